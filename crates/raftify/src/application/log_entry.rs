//! The first of the two traits that an application implements: the replicated entry.
//!
//! The node that proposes an entry encodes it once; from then on every component except the state machine
//! sees only bytes. Every type that serde can serialize is a log entry already; an application that needs
//! another format implements the trait.

use std::cell::RefCell;

use bytes::Bytes;
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::application::encoding;
use crate::error::BoxError;
use crate::runtime::worker::caught;

/// An application's log entry: one change of the state machine.
///
/// Implemented for every type that is `Serialize + DeserializeOwned`, in the format of [`postcard`], which is
/// stable: a later version of the program reads the entries of an earlier one, as long as variants are only
/// added at the end of an enum. Fields cannot be added, not even at the end: add a new variant instead.
/// Entries stay in the log until a snapshot covers them, so that an updated program decodes entries that the
/// old program wrote.
///
/// ```
/// use raftify::LogEntry;
/// use serde::{Deserialize, Serialize};
///
/// #[derive(Debug, PartialEq, Serialize, Deserialize)]
/// enum Change {
///     Insert { key: u64, value: String },
/// }
///
/// let change = Change::Insert { key: 1, value: "A".to_owned() };
/// assert_eq!(Change::decode(&change.encode()?)?, change);
/// # Ok::<(), raftify::BoxError>(())
/// ```
///
/// # Serde attributes
/// postcard writes neither names nor types. With attributes that make serde write another shape than it
/// reads, the bytes cannot be decoded, or are decoded to another entry without an error. `propose` rejects
/// every such entry, of any size, on the task of the proposer:
///
/// | attribute | an entry of such a type |
/// |---|---|
/// | `skip`, `skip_deserializing` on a variant | each variant after it is decoded as its successor, and rejected; the others are accepted |
/// | `skip_serializing` on a variant | this variant cannot be encoded ([`Encode`](crate::error::ProposeError::Encode)) |
/// | `skip` on a field | accepted; the field has its default when the entry is applied |
/// | `skip_serializing`, `skip_deserializing` on a field | rejected |
/// | `skip_serializing_if` on a field | rejected whenever the field is skipped |
/// | `untagged`, `tag = "…"`, `content = "…"` on an enum; `serde_json::Value` | rejected: only a self-describing format can decode it |
/// | `flatten` | cannot be encoded |
/// | `serialize_with`, `with`, `into` and their inverses | rejected if the decoded entry does not serialize to the encoded one |
/// | `default`, `rename`, `alias`, `transparent`, `other`, `bound` | accepted |
///
/// Implement the trait with another format for such types:
///
/// ```
/// use bytes::Bytes;
/// use raftify::{BoxError, LogEntry};
/// use serde::{Deserialize, Serialize};
///
/// #[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
/// struct Document {
///     #[serde(skip_serializing_if = "Option::is_none")]
///     title: Option<String>,
///     body: String,
/// }
///
/// let document = Document { title: None, body: "text".to_owned() };
/// // As a log entry, it would be decoded with a title and without a body.
/// assert!(Document::decode(&document.encode()?).is_err());
///
/// /// The same in JSON, which writes names.
/// #[derive(Debug, PartialEq)]
/// struct AsJson(Document);
///
/// impl LogEntry for AsJson {
///     fn encode(&self) -> Result<Bytes, BoxError> {
///         Ok(serde_json::to_vec(&self.0)?.into())
///     }
///
///     fn decode(bytes: &[u8]) -> Result<AsJson, BoxError> {
///         Ok(AsJson(serde_json::from_slice(bytes)?))
///     }
/// }
///
/// let entry = AsJson(document);
/// assert_eq!(AsJson::decode(&entry.encode()?)?, entry);
/// # Ok::<(), BoxError>(())
/// ```
pub trait LogEntry: Sized + Send + 'static {
    /// Encodes the entry to the bytes that are replicated. Called once for each proposal, on the task of the
    /// proposer, and once more by each node to which the proposal comes over the network.
    ///
    /// # Errors
    /// The proposal fails with [`ProposeError::Encode`](crate::error::ProposeError::Encode); nothing is
    /// written.
    fn encode(&self) -> Result<Bytes, BoxError>;

    /// The inverse of [`encode`](Self::encode). Called on every node when the entry is committed, and again
    /// whenever a node starts on a log that still holds it; and before that, on the task of the proposer,
    /// and on the task of the connection by each node to which the proposal comes over the network.
    ///
    /// # Errors
    /// A proposal that one of them cannot decode fails with
    /// [`ProposeError::Undecodable`](crate::error::ProposeError::Undecodable); nothing is written. A
    /// committed entry that cannot be decoded stops the node: if the node skipped it, its state would
    /// silently differ from that of the other nodes.
    fn decode(bytes: &[u8]) -> Result<Self, BoxError>;

    /// Checks that the entry survives its own encoding: the value decoded from `encoded`, which
    /// [`encode`](Self::encode) has returned for this entry, must mean the same. Called once for each
    /// proposal, on the task of the proposer, after a slot for the proposal is reserved: a proposal that
    /// is rejected because the node is busy costs nothing.
    ///
    /// By default, an entry survives if it can be decoded. For types with serde's traits, the decoded value
    /// must also serialize to the same, field by field, by name; maps and sets may be in another order.
    ///
    /// # Errors
    /// The proposal fails with [`ProposeError::Undecodable`](crate::error::ProposeError::Undecodable);
    /// nothing is written.
    fn check_round_trip(&self, encoded: &[u8]) -> Result<(), BoxError> {
        Self::decode(encoded).map(drop)
    }

    /// Whether [`encode`](Self::encode) returns exactly these bytes.
    #[doc(hidden)]
    fn encodes_to(&self, encoded: &[u8]) -> bool {
        self.encode().is_ok_and(|again| again == encoded)
    }
}

/// Why `entry`, encoded as `encoded`, must not get into the log. An entry that cannot be decoded would stop
/// every node, at each start, permanently; an entry that decodes to another entry would be applied as the
/// other entry.
///
/// Every entry is checked, including large ones: a type may fail for some entries only. The check runs where
/// the entry is encoded, in the caller, which waits for it anyway. Measured for two strings, in addition to
/// decoding: 51 ns for 64 bytes, 213 ns for 1 KiB, 12 µs for 64 KiB.
pub(crate) fn check_entry<Entry: LogEntry>(entry: &Entry, encoded: &[u8]) -> Result<(), String> {
    // The decoded value is also dropped in there, or the error is shown and dropped.
    explained(|| entry.check_round_trip(encoded))
}

/// Why an entry that came over the network must not get into the log. Only the proposer can check that the
/// entry means what was proposed; but the entry decoded from the bytes must survive its encoding. Measured as
/// for [`check_entry`]: 11 ns for 64 bytes, 58 ns for 1 KiB, 1.4 µs for 64 KiB.
pub(crate) fn check_encoded<Entry: LogEntry>(encoded: &[u8]) -> Result<(), String> {
    explained(|| {
        let entry = Entry::decode(encoded)?;
        if entry.encodes_to(encoded) {
            return Ok(());
        }
        // Other bytes may mean the same: the order of a map differs each time.
        entry.check_round_trip(&entry.encode()?)
    })
}

fn explained(check: impl FnOnce() -> Result<(), BoxError>) -> Result<(), String> {
    caught(|| check().map_err(|error| error.to_string()))
        .unwrap_or_else(|panic| Err(format!("its encoder or decoder {panic}")))
}

/// A larger buffer is not kept for the next entry.
const SCRATCH_BYTES_MAX: usize = 64 * 1024;

thread_local! {
    /// The length of an entry is known only after encoding: this buffer grows once and is reused.
    static SCRATCH: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

impl<T: Serialize + DeserializeOwned + Send + 'static> LogEntry for T {
    fn encode(&self) -> Result<Bytes, BoxError> {
        SCRATCH.with(|scratch| {
            // Taken out of the cell: the user's `serialize` may itself encode an entry.
            let mut buffer = scratch.take();
            buffer.clear();
            let buffer = postcard::to_extend(self, buffer)?;
            let encoded = Bytes::copy_from_slice(&buffer);
            if buffer.capacity() <= SCRATCH_BYTES_MAX {
                scratch.replace(buffer);
            }
            Ok(encoded)
        })
    }

    fn decode(bytes: &[u8]) -> Result<T, BoxError> {
        encoding::decode(bytes)
    }

    fn encodes_to(&self, encoded: &[u8]) -> bool {
        encoding::encodes_to(self, encoded)
    }

    fn check_round_trip(&self, encoded: &[u8]) -> Result<(), BoxError> {
        let decoded = Self::decode(encoded)?;
        if encoding::is_same(self, &decoded)? {
            return Ok(());
        }
        Err("its type decodes it as another entry. Look for attributes of serde that let it read something else than it \
             writes, such as `skip` on a variant or `skip_serializing_if`"
            .into())
    }
}

#[cfg(test)]
mod tests {
    use serde::Deserialize;

    use super::*;
    use crate::runtime::worker::PanicsWhenShown;

    #[derive(Serialize, Deserialize)]
    enum Old {
        Insert { key: u64 },
    }

    #[derive(Debug, PartialEq, Serialize, Deserialize)]
    enum WithAnotherVariant {
        Insert { key: u64 },
        Remove { key: u64 },
    }

    #[derive(Debug, Serialize, Deserialize)]
    enum WithAnotherField {
        Insert { key: u64, value: Option<u64> },
    }

    /// As the documentation of [`LogEntry`] says for program updates.
    #[test]
    fn entries_of_an_older_program_are_decoded_if_there_are_more_variants_and_not_if_there_are_more_fields() {
        let old = Old::Insert { key: 7 }.encode().unwrap();
        assert_eq!(WithAnotherVariant::decode(&old).unwrap(), WithAnotherVariant::Insert { key: 7 });
        WithAnotherField::decode(&old).unwrap_err();
    }

    struct Unreadable;

    impl LogEntry for Unreadable {
        fn encode(&self) -> Result<Bytes, BoxError> {
            Ok(Bytes::new())
        }

        fn decode(_: &[u8]) -> Result<Unreadable, BoxError> {
            Err(PanicsWhenShown.into())
        }
    }

    /// The proposer would learn that the entry may have been applied.
    #[test]
    fn an_entry_whose_error_panics_when_it_is_shown_is_one_that_cannot_be_decoded() {
        assert_eq!(check_entry(&Unreadable, &[]), Err("its encoder or decoder panicked: told to".to_owned()));
    }

    /// The outcome for an entry of a type with a serde attribute.
    #[derive(Debug, PartialEq)]
    enum Fate {
        Accepted,
        NotEncoded,
        Refused,
    }
    use Fate::{Accepted, NotEncoded, Refused};

    fn fate<T: LogEntry>(entry: T) -> Fate {
        match entry.encode() {
            Err(_) => NotEncoded,
            Ok(encoded) => match check_entry(&entry, &encoded) {
                Err(_) => Refused,
                Ok(()) => {
                    assert_eq!(
                        check_encoded::<T>(&encoded),
                        Ok(()),
                        "what its proposer accepts, a leader does"
                    );
                    Accepted
                }
            },
        }
    }

    #[test]
    fn variants_behind_a_skipped_one_are_refused_and_not_applied_as_others() {
        #[derive(Debug, PartialEq, Serialize, Deserialize)]
        enum Change {
            Clear,
            #[serde(skip)]
            #[allow(dead_code, reason = "it stands before the others")]
            Local,
            Insert(u64),
            Remove(u64),
        }
        let encoded = Change::Insert(7).encode().unwrap();
        assert_eq!(Change::decode(&encoded).unwrap(), Change::Remove(7));
        assert_eq!(fate(Change::Insert(7)), Refused);
        assert_eq!(fate(Change::Remove(7)), Refused);
        assert_eq!(fate(Change::Clear), Accepted);
        assert_eq!(fate(Change::Local), NotEncoded);
        // A leader rejects it as well, if the proposer did not check.
        check_encoded::<Change>(&encoded).unwrap_err();
    }

    #[test]
    fn fields_that_are_skipped_on_one_side_only_are_refused_at_any_size() {
        #[derive(Serialize, Deserialize)]
        struct SkippedIf {
            #[serde(skip_serializing_if = "Option::is_none", default)]
            title: Option<u8>,
            pages: u8,
            body: Vec<u8>,
        }
        let entry = |title, pages, body| SkippedIf { title, pages, body };
        for length in [0, 1, 100, 2000, 2 << 20] {
            assert_eq!(fate(entry(None, 9, vec![b'x'; length])), Refused);
            assert_eq!(fate(entry(Some(1), 9, vec![b'x'; length])), Accepted);
        }
        // Its bytes are also the encoding of another entry, which encodes to the same bytes again.
        let lies = entry(None, 1, vec![9, 1, 7]);
        let encoded = lies.encode().unwrap();
        let decoded = SkippedIf::decode(&encoded).unwrap();
        assert_eq!((decoded.title, decoded.pages, &*decoded.body), (Some(3), 9, &[7][..]));
        assert_eq!(decoded.encode().unwrap(), encoded);
        assert_eq!(fate(lies), Refused);

        #[derive(Serialize, Deserialize)]
        struct SkippedWhenWritten {
            #[serde(skip_serializing, default)]
            #[allow(dead_code, reason = "only its place counts")]
            first: u8,
            second: Vec<u8>,
        }
        assert_eq!(fate(SkippedWhenWritten { first: 1, second: vec![1, 0] }), Refused);

        #[derive(Serialize, Deserialize)]
        struct SkippedWhenRead {
            #[serde(skip_deserializing)]
            first: u8,
            second: Vec<u8>,
        }
        assert_eq!(fate(SkippedWhenRead { first: 1, second: vec![7] }), Refused);
        assert_eq!(fate(SkippedWhenRead { first: 0, second: vec![] }), Refused);

        #[derive(Serialize, Deserialize)]
        struct SkippedOnBothSides {
            #[serde(skip)]
            #[allow(dead_code, reason = "only its place counts")]
            cached: u8,
            value: u8,
        }
        assert_eq!(fate(SkippedOnBothSides { cached: 1, value: 2 }), Accepted);
    }

    #[test]
    fn what_only_a_format_that_describes_itself_can_carry_is_refused() {
        #[derive(Serialize, Deserialize)]
        #[serde(untagged)]
        enum Untagged {
            Number(u64),
            Text(String),
        }
        assert_eq!(fate(Untagged::Number(1)), Refused);
        assert_eq!(fate(Untagged::Text("x".repeat(5000))), Refused);

        #[derive(Serialize, Deserialize)]
        #[serde(tag = "kind")]
        enum InternallyTagged {
            Insert { key: u64 },
            Clear,
        }
        assert_eq!(fate(InternallyTagged::Insert { key: 1 }), Refused);
        assert_eq!(fate(InternallyTagged::Clear), Refused);

        #[derive(Serialize, Deserialize)]
        #[serde(tag = "kind", content = "value")]
        enum AdjacentlyTagged {
            Insert { key: u64 },
            Remove(u64),
            Move(u64, u64),
            Clear,
        }
        for entry in [
            AdjacentlyTagged::Insert { key: 1 },
            AdjacentlyTagged::Remove(1),
            AdjacentlyTagged::Move(1, 2),
            AdjacentlyTagged::Clear,
        ] {
            assert_eq!(fate(entry), Refused);
        }

        #[derive(Serialize, Deserialize)]
        struct Inner {
            key: u64,
        }
        #[derive(Serialize, Deserialize)]
        struct Flattened {
            #[serde(flatten)]
            inner: Inner,
        }
        assert_eq!(fate(Flattened { inner: Inner { key: 1 } }), NotEncoded);
        assert_eq!(fate(serde_json::json!({ "key": [1, null] })), Refused);
        assert_eq!(fate(serde_json::Value::Null), Refused);
    }

    #[test]
    fn conversions_that_are_no_inverses_are_refused() {
        mod adds_one {
            use serde::{Deserialize, Deserializer, Serializer};

            pub(super) fn serialize<S: Serializer>(value: &u64, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.serialize_u64(value + 1)
            }

            pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u64, D::Error> {
                u64::deserialize(deserializer)
            }
        }
        #[derive(Serialize, Deserialize)]
        struct With(#[serde(with = "adds_one")] u64);
        assert_eq!(fate(With(1)), Refused);

        #[derive(Clone, Serialize, Deserialize)]
        #[serde(into = "u8", try_from = "u8")]
        struct Small(u64);
        impl From<Small> for u8 {
            fn from(small: Small) -> u8 {
                small.0 as u8
            }
        }
        impl TryFrom<u8> for Small {
            type Error = &'static str;

            fn try_from(value: u8) -> Result<Small, &'static str> {
                if value == 0 { Err("zero") } else { Ok(Small(value.into())) }
            }
        }
        assert_eq!(fate(Small(7)), Accepted);
        assert_eq!(fate(Small(0)), Refused);
    }

    #[test]
    fn what_survives_is_accepted() {
        use std::borrow::Cow;
        use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet, VecDeque};
        use std::marker::PhantomData;
        use std::net::{IpAddr, Ipv6Addr, SocketAddr};
        use std::time::{Duration, SystemTime};

        assert_eq!(fate(()), Accepted);
        assert_eq!(fate((0_u8, -1_i16, u32::MAX, i64::MIN, i128::MIN, u128::MAX, 'ß', true)), Accepted);
        for number in [0.0, -0.0, f64::NAN, -f64::NAN, f64::INFINITY, f64::from_bits(0x7ff8_dead_beef_0001)] {
            assert_eq!(fate((number, number as f32)), Accepted);
        }
        assert_eq!(fate(Some(Some(None::<u8>))), Accepted);
        assert_eq!(fate(Some(())), Accepted);
        assert_eq!(fate(Ok::<u8, String>(1)), Accepted);
        assert_eq!(fate([[1_u8; 3]; 3]), Accepted);
        assert_eq!(fate(Cow::<'static, str>::Owned("text".to_owned())), Accepted);
        assert_eq!(fate(Bytes::from(vec![7; 100_000])), Accepted);
        assert_eq!(fate(VecDeque::from(["a".to_owned(), "b".repeat(3000)])), Accepted);
        assert_eq!(fate((Duration::from_nanos(7), SystemTime::UNIX_EPOCH)), Accepted);
        assert_eq!(fate(SocketAddr::from((Ipv6Addr::LOCALHOST, 1))), Accepted);
        assert_eq!(fate(IpAddr::from([127, 0, 0, 1])), Accepted);
        assert_eq!(fate((Box::new(1..7), PhantomData::<String>, [(); 7])), Accepted);
        assert_eq!(fate(BTreeMap::from([(1, BTreeSet::from([2, 3])), (4, BTreeSet::new())])), Accepted);
        // Each of these collections gets a new iteration order whenever it is decoded.
        let nested: HashMap<String, HashSet<u64>> =
            (0..50).map(|key| (key.to_string(), (0..50).collect())).collect();
        assert_eq!(fate(nested), Accepted);

        #[derive(Serialize, Deserialize)]
        struct Unit;
        assert_eq!(fate(Unit), Accepted);

        #[derive(Serialize, Deserialize)]
        #[serde(rename_all = "SCREAMING_SNAKE_CASE", deny_unknown_fields)]
        struct Renamed {
            #[serde(rename(serialize = "written", deserialize = "read"), alias = "old", alias = "older")]
            first: u8,
            #[serde(default)]
            second: Option<String>,
        }
        assert_eq!(fate(Renamed { first: 1, second: None }), Accepted);

        #[derive(Serialize, Deserialize)]
        #[serde(transparent)]
        struct Transparent {
            inner: Vec<u8>,
        }
        assert_eq!(fate(Transparent { inner: vec![1; 4000] }), Accepted);

        #[derive(Serialize, Deserialize)]
        enum Kinds {
            #[serde(alias = "old")]
            Named {
                key: u64,
            },
            Pair(u8, u8),
            #[serde(skip_serializing)]
            #[allow(dead_code, reason = "only read")]
            OnlyRead,
            One(#[serde(skip)] u8),
            #[serde(other)]
            Other,
        }
        assert_eq!(fate(Kinds::Named { key: 1 }), Accepted);
        assert_eq!(fate(Kinds::Pair(1, 2)), Accepted);
        assert_eq!(fate(Kinds::OnlyRead), NotEncoded);
        assert_eq!(fate(Kinds::One(1)), Accepted);
        assert_eq!(fate(Kinds::Other), Accepted);
    }

    /// A user-defined format is only checked for decodability. The text may differ each time.
    #[test]
    fn an_entry_in_another_format_is_accepted_if_it_can_be_decoded() {
        struct Json(serde_json::Value);

        impl LogEntry for Json {
            fn encode(&self) -> Result<Bytes, BoxError> {
                Ok(serde_json::to_vec_pretty(&self.0)?.into())
            }

            fn decode(bytes: &[u8]) -> Result<Json, BoxError> {
                Ok(Json(serde_json::from_slice(bytes)?))
            }
        }
        assert_eq!(fate(Json(serde_json::json!({ "key": [1, null] }))), Accepted);
        assert_eq!(check_encoded::<Json>(b"{ \"key\":1}"), Ok(()));
        check_encoded::<Json>(b"{").unwrap_err();
    }
}
