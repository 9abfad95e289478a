//! JSON as a tree that keeps all fields with the same name.

use std::fmt;

use serde::{
    Deserialize, Deserializer,
    de::{MapAccess, SeqAccess, Visitor},
};
use serde_json::value::RawValue;

/// Up to this number, all programs that read and write JSON keep integers exact (RFC 7493, section
/// 2.2).
const MAX_EXACT_NUMBER: u64 = (1 << 53) - 1;

/// A JSON value. `serde_json` bounds its depth.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Json {
    Null,
    Bool(bool),
    /// An integer from 0 to [`MAX_EXACT_NUMBER`].
    Exact(u64),
    /// Any other number.
    Inexact,
    Text(String),
    List(Vec<Json>),
    Fields(Vec<(String, Json)>),
}

impl Json {
    /// Reads a value. A number that is too large and a value that is too deep become
    /// [`Json::Inexact`].
    pub(super) fn of(value: &RawValue) -> Self {
        serde_json::from_str(value.get()).unwrap_or(Self::Inexact)
    }

    /// Returns the value as an id: a text or an exact number.
    pub(crate) fn id(&self) -> Option<String> {
        match self {
            Self::Text(text) => Some(text.clone()),
            Self::Exact(number) => Some(number.to_string()),
            _ => None,
        }
    }

    /// Returns whether the value contains more than nulls and empty texts, lists and objects.
    pub(crate) fn has_content(&self) -> bool {
        match self {
            Self::Null => false,
            Self::Bool(_) | Self::Exact(_) | Self::Inexact => true,
            Self::Text(text) => !text.trim().is_empty(),
            Self::List(values) => values.iter().any(Self::has_content),
            Self::Fields(fields) => fields.iter().any(|(_, value)| value.has_content()),
        }
    }
}

impl<'de> Deserialize<'de> for Json {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Any;
        impl<'de> Visitor<'de> for Any {
            type Value = Json;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a JSON value")
            }
            fn visit_unit<E>(self) -> Result<Json, E> {
                Ok(Json::Null)
            }
            fn visit_bool<E>(self, value: bool) -> Result<Json, E> {
                Ok(Json::Bool(value))
            }
            fn visit_u64<E>(self, number: u64) -> Result<Json, E> {
                Ok(if number <= MAX_EXACT_NUMBER { Json::Exact(number) } else { Json::Inexact })
            }
            fn visit_i64<E>(self, _: i64) -> Result<Json, E> {
                Ok(Json::Inexact)
            }
            fn visit_f64<E>(self, _: f64) -> Result<Json, E> {
                Ok(Json::Inexact)
            }
            fn visit_str<E>(self, text: &str) -> Result<Json, E> {
                Ok(Json::Text(text.to_owned()))
            }
            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Json, A::Error> {
                let mut values = Vec::new();
                while let Some(value) = seq.next_element()? {
                    values.push(value);
                }
                Ok(Json::List(values))
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Json, A::Error> {
                let mut fields = Vec::new();
                while let Some(field) = map.next_entry()? {
                    fields.push(field);
                }
                Ok(Json::Fields(fields))
            }
        }
        deserializer.deserialize_any(Any)
    }
}
