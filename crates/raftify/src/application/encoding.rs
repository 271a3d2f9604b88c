//! The encoding of user-defined types, postcard, and the check that a value survives it.
//!
//! postcard writes no names and no types: a decoder that expects other fields or variants than the encoder
//! wrote may decode the bytes to another value, without an error. [`is_same`] detects this.

use std::fmt::Display;

use serde::de::DeserializeOwned;
use serde::ser::{self, Serialize, Serializer};

use crate::error::BoxError;

/// Decodes bytes that hold one value and nothing else.
pub(crate) fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, BoxError> {
    let (value, rest) = postcard::take_from_bytes(bytes)?;
    if rest.is_empty() { Ok(value) } else { Err(format!("{} bytes follow the value", rest.len()).into()) }
}

/// Whether the value is encoded to exactly these bytes. Nothing is allocated.
pub(crate) fn encodes_to<T: Serialize + ?Sized>(value: &T, expected: &[u8]) -> bool {
    postcard::serialize_with_flavor(value, Expected(expected)).unwrap_or(false)
}

/// The bytes that are still to be written.
struct Expected<'a>(&'a [u8]);

impl postcard::ser_flavors::Flavor for Expected<'_> {
    type Output = bool;

    #[inline]
    fn try_push(&mut self, byte: u8) -> postcard::Result<()> {
        self.try_extend(&[byte])
    }

    #[inline]
    fn try_extend(&mut self, bytes: &[u8]) -> postcard::Result<()> {
        self.0 = self.0.strip_prefix(bytes).ok_or(postcard::Error::SerializeBufferFull)?;
        Ok(())
    }

    fn finalize(self) -> postcard::Result<bool> {
        Ok(self.0.is_empty())
    }
}

/// Whether two values serialize to the same, with all names, in any format. Two maps or sets with the same
/// content are the same, regardless of the iteration order. Two different values compare equal with a
/// probability of about 1 to 2^64.
pub(crate) fn is_same<T: Serialize + ?Sized>(one: &T, other: &T) -> Result<bool, BoxError> {
    for order in [Order::AsWritten, Order::Any] {
        if Fingerprint::of(one, order)? == Fingerprint::of(other, order)? {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Whether the order of elements counts, in sequences and maps: sets are sequences to serde.
#[derive(Clone, Copy, PartialEq)]
enum Order {
    AsWritten,
    /// Slower. Needed only for collections with a random iteration order, such as a `HashMap`.
    Any,
}

/// Not zero: a leading zero would leave a zero state unchanged.
const START: u64 = 0x9e37_79b9_7f4a_7c15;

#[inline]
fn mixed(state: u64, word: u64) -> u64 {
    (state.rotate_left(5) ^ word).wrapping_mul(0x517c_c1b7_2722_0a95)
}

/// A hash of everything that a value passes to a serializer.
struct Fingerprint {
    state: u64,
    order: Order,
}

impl Fingerprint {
    fn of<T: Serialize + ?Sized>(value: &T, order: Order) -> Result<u64, Unserializable> {
        let mut fingerprint = Fingerprint { state: START, order };
        value.serialize(&mut fingerprint)?;
        Ok(fingerprint.finish())
    }

    #[inline]
    fn mix(&mut self, word: u64) {
        self.state = mixed(self.state, word);
    }

    fn mix_bytes(&mut self, bytes: &[u8]) {
        self.mix(bytes.len() as u64);
        let (blocks, rest) = bytes.as_chunks::<32>();
        if !blocks.is_empty() {
            // Four independent lanes at a time.
            let mut lanes = [START, START ^ 1, START ^ 2, START ^ 3];
            for block in blocks {
                for (lane, word) in lanes.iter_mut().zip(block.as_chunks::<8>().0) {
                    *lane = mixed(*lane, u64::from_le_bytes(*word));
                }
            }
            lanes.into_iter().for_each(|lane| self.mix(lane));
        }
        let (words, rest) = rest.as_chunks::<8>();
        for word in words {
            self.mix(u64::from_le_bytes(*word));
        }
        if !rest.is_empty() {
            let mut last = [0; 8];
            last[..rest.len()].copy_from_slice(rest);
            self.mix(u64::from_le_bytes(last));
        }
    }

    /// Spreads the state over all bits, so that the sum of several hashes identifies them.
    fn finish(self) -> u64 {
        let mut state = self.state;
        state = (state ^ (state >> 33)).wrapping_mul(0xff51_afd7_ed55_8ccd);
        state = (state ^ (state >> 33)).wrapping_mul(0xc4ce_b9fe_1a85_ec53);
        state ^ (state >> 33)
    }

    fn elements(&mut self) -> Elements<'_> {
        let order = self.order;
        Elements { of: self, element: Fingerprint { state: START, order }, count: 0, sum: 0 }
    }
}

#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct Unserializable(String);

impl ser::Error for Unserializable {
    fn custom<T: Display>(message: T) -> Unserializable {
        Unserializable(message.to_string())
    }
}

/// Forwards numbers to [`Fingerprint::mix`].
macro_rules! mix_as_word {
    ($($method:ident($kind:ty)),*) => {
        $(#[inline]
        fn $method(self, value: $kind) -> Result<(), Unserializable> {
            self.mix(value as u64);
            Ok(())
        })*
    };
}

impl<'a> Serializer for &'a mut Fingerprint {
    type Ok = ();
    type Error = Unserializable;
    type SerializeSeq = Elements<'a>;
    type SerializeTuple = Fields<'a>;
    type SerializeTupleStruct = Fields<'a>;
    type SerializeTupleVariant = Fields<'a>;
    type SerializeMap = Elements<'a>;
    type SerializeStruct = Fields<'a>;
    type SerializeStructVariant = Fields<'a>;

    mix_as_word!(
        serialize_bool(bool),
        serialize_i8(i8),
        serialize_i16(i16),
        serialize_i32(i32),
        serialize_i64(i64),
        serialize_u8(u8),
        serialize_u16(u16),
        serialize_u32(u32),
        serialize_u64(u64),
        serialize_char(char)
    );

    fn serialize_i128(self, value: i128) -> Result<(), Unserializable> {
        self.serialize_u128(value as u128)
    }

    fn serialize_u128(self, value: u128) -> Result<(), Unserializable> {
        self.mix(value as u64);
        self.mix((value >> 64) as u64);
        Ok(())
    }

    // Compared by their bits: two equal NaNs are the same.
    fn serialize_f32(self, value: f32) -> Result<(), Unserializable> {
        self.serialize_u32(value.to_bits())
    }

    fn serialize_f64(self, value: f64) -> Result<(), Unserializable> {
        self.serialize_u64(value.to_bits())
    }

    fn serialize_str(self, value: &str) -> Result<(), Unserializable> {
        self.serialize_bytes(value.as_bytes())
    }

    fn serialize_bytes(self, value: &[u8]) -> Result<(), Unserializable> {
        self.mix_bytes(value);
        Ok(())
    }

    fn serialize_none(self) -> Result<(), Unserializable> {
        self.serialize_bool(false)
    }

    fn serialize_some<T: Serialize + ?Sized>(self, value: &T) -> Result<(), Unserializable> {
        self.mix(1);
        value.serialize(self)
    }

    fn serialize_unit(self) -> Result<(), Unserializable> {
        Ok(())
    }

    fn serialize_unit_struct(self, _: &'static str) -> Result<(), Unserializable> {
        Ok(())
    }

    fn serialize_unit_variant(
        self,
        _: &'static str,
        index: u32,
        name: &'static str,
    ) -> Result<(), Unserializable> {
        self.mix(index.into());
        self.serialize_str(name)
    }

    fn serialize_newtype_struct<T: Serialize + ?Sized>(
        self,
        _: &'static str,
        value: &T,
    ) -> Result<(), Unserializable> {
        value.serialize(self)
    }

    fn serialize_newtype_variant<T: Serialize + ?Sized>(
        self,
        of: &'static str,
        index: u32,
        name: &'static str,
        value: &T,
    ) -> Result<(), Unserializable> {
        self.serialize_unit_variant(of, index, name)?;
        value.serialize(self)
    }

    fn serialize_seq(self, _: Option<usize>) -> Result<Elements<'a>, Unserializable> {
        Ok(self.elements())
    }

    fn serialize_tuple(self, count: usize) -> Result<Fields<'a>, Unserializable> {
        self.mix(count as u64);
        Ok(Fields(self))
    }

    fn serialize_tuple_struct(self, _: &'static str, count: usize) -> Result<Fields<'a>, Unserializable> {
        self.serialize_tuple(count)
    }

    fn serialize_tuple_variant(
        self,
        of: &'static str,
        index: u32,
        name: &'static str,
        count: usize,
    ) -> Result<Fields<'a>, Unserializable> {
        self.serialize_unit_variant(of, index, name)?;
        self.serialize_tuple(count)
    }

    fn serialize_map(self, _: Option<usize>) -> Result<Elements<'a>, Unserializable> {
        Ok(self.elements())
    }

    fn serialize_struct(self, _: &'static str, count: usize) -> Result<Fields<'a>, Unserializable> {
        self.serialize_tuple(count)
    }

    fn serialize_struct_variant(
        self,
        of: &'static str,
        index: u32,
        name: &'static str,
        count: usize,
    ) -> Result<Fields<'a>, Unserializable> {
        self.serialize_tuple_variant(of, index, name, count)
    }

    /// As in postcard.
    fn is_human_readable(&self) -> bool {
        false
    }
}

/// A collection with a fixed order.
struct Fields<'a>(&'a mut Fingerprint);

macro_rules! fields_in_order {
    ($($kind:ident::$method:ident($($key:ident)?)),*) => {
        $(impl ser::$kind for Fields<'_> {
            type Ok = ();
            type Error = Unserializable;

            fn $method<T: Serialize + ?Sized>(
                &mut self,
                $($key: &'static str,)?
                value: &T,
            ) -> Result<(), Unserializable> {
                // The set of fields may depend on the value.
                $(self.0.mix_bytes($key.as_bytes());)?
                value.serialize(&mut *self.0)
            }

            fn end(self) -> Result<(), Unserializable> {
                Ok(())
            }
        })*
    };
}

fields_in_order!(
    SerializeTuple::serialize_element(),
    SerializeTupleStruct::serialize_field(),
    SerializeTupleVariant::serialize_field(),
    SerializeStruct::serialize_field(key),
    SerializeStructVariant::serialize_field(key)
);

/// The elements of a sequence or a map.
struct Elements<'a> {
    of: &'a mut Fingerprint,
    /// The current element, if the order does not count.
    element: Fingerprint,
    count: u64,
    sum: u64,
}

impl Elements<'_> {
    #[inline]
    fn part<T: Serialize + ?Sized>(&mut self, value: &T) -> Result<(), Unserializable> {
        match self.of.order {
            Order::AsWritten => value.serialize(&mut *self.of),
            Order::Any => value.serialize(&mut self.element),
        }
    }

    #[inline]
    fn end_of_element(&mut self) {
        self.count += 1;
        if self.of.order == Order::Any {
            let next = Fingerprint { state: START, order: Order::Any };
            let element = std::mem::replace(&mut self.element, next);
            self.sum = self.sum.wrapping_add(element.finish());
        }
    }

    fn end(self) {
        self.of.mix(self.count);
        self.of.mix(self.sum);
    }
}

impl ser::SerializeSeq for Elements<'_> {
    type Ok = ();
    type Error = Unserializable;

    #[inline]
    fn serialize_element<T: Serialize + ?Sized>(&mut self, value: &T) -> Result<(), Unserializable> {
        self.part(value)?;
        self.end_of_element();
        Ok(())
    }

    fn end(self) -> Result<(), Unserializable> {
        Elements::end(self);
        Ok(())
    }
}

impl ser::SerializeMap for Elements<'_> {
    type Ok = ();
    type Error = Unserializable;

    fn serialize_key<T: Serialize + ?Sized>(&mut self, key: &T) -> Result<(), Unserializable> {
        self.part(key)
    }

    fn serialize_value<T: Serialize + ?Sized>(&mut self, value: &T) -> Result<(), Unserializable> {
        self.part(value)?;
        self.end_of_element();
        Ok(())
    }

    fn end(self) -> Result<(), Unserializable> {
        Elements::end(self);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, HashMap, HashSet};

    use super::*;

    #[test]
    fn bytes_after_a_value_are_an_error() {
        let mut bytes = postcard::to_stdvec(&7_u64).unwrap();
        assert_eq!(decode::<u64>(&bytes).unwrap(), 7);
        bytes.push(0);
        assert_eq!(decode::<u64>(&bytes).unwrap_err().to_string(), "1 bytes follow the value");
    }

    #[test]
    fn a_value_is_encoded_to_its_own_bytes_only() {
        let bytes = postcard::to_stdvec("text").unwrap();
        assert!(encodes_to("text", &bytes));
        assert!(!encodes_to("next", &bytes) && !encodes_to("tex", &bytes) && !encodes_to("texts", &bytes));
        assert!(!encodes_to("text", &bytes[..4]) && !encodes_to("text", &[&bytes[..], &[0]].concat()));
    }

    #[test]
    fn one_other_byte_makes_another_value_wherever_it_is() {
        for length in [1, 8, 31, 32, 33, 64, 100] {
            let text = "x".repeat(length);
            assert!(is_same(&text, &text.clone()).unwrap());
            for place in 0..length {
                let mut other = text.clone();
                other.replace_range(place..=place, "y");
                assert!(!is_same(&text, &other).unwrap());
            }
        }
    }

    #[test]
    fn values_are_the_same_if_they_serialize_to_the_same() {
        let same = |one: &[u64], other: &[u64]| is_same(&one, &other).unwrap();
        assert!(same(&[], &[]) && same(&[1, 2, 3], &[1, 2, 3]));
        assert!(!same(&[], &[0]) && !same(&[1, 4], &[2, 3]) && !same(&[1, 1], &[1]));
        let text = |one: &str, other: &str| is_same(one, other).unwrap();
        assert!(text("", "") && text("abcdefghi", "abcdefghi"));
        assert!(!text("abcdefghi", "abcdefghj") && !text("a", "a\0") && !text("abcdefgh", "abcdefg"));
        assert!(is_same(&f64::NAN, &f64::NAN).unwrap() && !is_same(&0.0, &-0.0).unwrap());
        assert!(is_same(&Some(()), &Some(())).unwrap() && !is_same(&Some(()), &None).unwrap());
        assert!(!is_same(&(1_i128 << 100), &(1_i128 << 101)).unwrap());
    }

    #[test]
    fn the_order_of_a_hash_map_does_not_count_and_its_content_does() {
        let map = |salt: u64| -> HashMap<u64, HashSet<String>> {
            (0..100).map(|key| (key, (0..10).map(|n| format!("{}", n * key + salt)).collect())).collect()
        };
        // Each map has its own iteration order.
        assert!(is_same(&map(0), &map(0)).unwrap());
        assert!(!is_same(&map(0), &map(1)).unwrap());
        // The values of two keys are swapped.
        let exchanged = BTreeMap::from([(1, 2), (2, 1)]);
        assert!(!is_same(&BTreeMap::from([(1, 1), (2, 2)]), &exchanged).unwrap());
    }
}
