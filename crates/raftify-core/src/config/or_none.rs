//! Settings that may be absent. TOML has no null value: the string `"none"` stands for it.

use std::fmt;
use std::time::Duration;

use serde::de::{Error, Visitor};
use serde::{Deserializer, Serializer};

const NONE: &str = "none";

/// A count, or `"none"`.
pub(super) mod count {
    use super::*;

    pub(in crate::config) fn serialize<S: Serializer>(value: &Option<u64>, to: S) -> Result<S::Ok, S::Error> {
        match value {
            Some(count) => to.serialize_u64(*count),
            None => to.serialize_str(NONE),
        }
    }

    pub(in crate::config) fn deserialize<'de, D: Deserializer<'de>>(
        from: D,
    ) -> Result<Option<u64>, D::Error> {
        struct Count;

        impl Visitor<'_> for Count {
            type Value = Option<u64>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("u64 or \"none\"")
            }

            fn visit_u64<E: Error>(self, count: u64) -> Result<Self::Value, E> {
                Ok(Some(count))
            }

            fn visit_i64<E: Error>(self, count: i64) -> Result<Self::Value, E> {
                let unexpected = || E::invalid_value(serde::de::Unexpected::Signed(count), &self);
                Ok(Some(u64::try_from(count).map_err(|_| unexpected())?))
            }

            fn visit_str<E: Error>(self, text: &str) -> Result<Self::Value, E> {
                match text {
                    NONE => Ok(None),
                    _ => Err(E::invalid_value(serde::de::Unexpected::Str(text), &self)),
                }
            }
        }

        from.deserialize_any(Count)
    }
}

/// A duration in words, such as `"5s"`, or `"none"`.
pub(super) mod duration {
    use super::*;

    pub(in crate::config) fn serialize<S: Serializer>(
        value: &Option<Duration>,
        to: S,
    ) -> Result<S::Ok, S::Error> {
        match value {
            Some(duration) => humantime_serde::serialize(duration, to),
            None => to.serialize_str(NONE),
        }
    }

    pub(in crate::config) fn deserialize<'de, D: Deserializer<'de>>(
        from: D,
    ) -> Result<Option<Duration>, D::Error> {
        struct Span;

        impl Visitor<'_> for Span {
            type Value = Option<Duration>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a duration or \"none\"")
            }

            fn visit_str<E: Error>(self, text: &str) -> Result<Self::Value, E> {
                if text == NONE {
                    return Ok(None);
                }
                let parsed = humantime_serde::re::humantime::parse_duration(text);
                parsed.map(Some).map_err(|_| E::invalid_value(serde::de::Unexpected::Str(text), &self))
            }
        }

        from.deserialize_str(Span)
    }
}
