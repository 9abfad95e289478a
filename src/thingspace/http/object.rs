//! A JSON object, read tolerantly: names in any case, numbers in place of texts, one thing in place
//! of a list.

use std::fmt;

use serde::{
    Deserialize, Deserializer,
    de::{MapAccess, Visitor},
};
use serde_json::value::RawValue;

use super::{
    json::Json,
    verdict::{carried, is_request_id},
    words::plain,
};
use crate::identity::{AccountName, RequestId};

/// An object's fields in their order, each value still as it was written. A map would keep only one
/// of a name.
pub(crate) struct Object<'a>(Vec<(String, &'a RawValue)>);

impl<'a> Object<'a> {
    /// Every field's value.
    pub(crate) fn all(&self) -> impl Iterator<Item = &'a RawValue> {
        self.0.iter().map(|(_, value)| *value)
    }

    /// The values of the fields of these names, in any case, that are not null.
    pub(crate) fn values(&self, names: &[&str]) -> impl Iterator<Item = &'a RawValue> {
        self.values_where(|key| names.iter().any(|name| name.eq_ignore_ascii_case(key)))
    }

    /// The values of the fields whose names fit, that are not null.
    pub(crate) fn values_where(
        &self,
        fits: impl Fn(&str) -> bool,
    ) -> impl Iterator<Item = &'a RawValue> {
        self.0
            .iter()
            .filter(move |(key, value)| value.get() != "null" && fits(key))
            .map(|(_, value)| *value)
    }

    /// Those of them that are texts or numbers. A number's digits stay as they are, however many.
    pub(crate) fn texts(&self, names: &[&str]) -> impl Iterator<Item = String> {
        self.values(names).filter_map(|value| match value.get().as_bytes().first()? {
            b'"' => serde_json::from_str(value.get()).ok(),
            b'{' | b'[' => None,
            _ => Some(value.get().to_owned()),
        })
    }

    /// The first of them.
    pub(crate) fn text(&self, names: &[&str]) -> Option<String> {
        self.texts(names).next()
    }

    /// The request that this object is about: the one id that all of its fields for it agree on,
    /// without regard to case.
    pub(crate) fn request_id(&self) -> Option<RequestId> {
        let mut ids = self.values_where(is_request_id).map(Json::of).filter(Json::says_something);
        let first = carried(&ids.next()?)?;
        let agrees = |id: RequestId| id.as_str().eq_ignore_ascii_case(first.as_str());
        ids.all(|id| carried(&id).is_some_and(agrees)).then_some(first)
    }

    /// Whether every field for the account names this one, or nothing.
    pub(crate) fn is_of_account(&self, account: &AccountName) -> bool {
        let names_it = |value: &RawValue| match Json::of(value) {
            Json::Text(name) => name.trim().is_empty() || name.trim() == account.as_str(),
            _ => false,
        };
        self.values_where(|name| matches!(&*plain(name), "accountname" | "account")).all(names_it)
    }

    /// The objects among them, and in lists among them.
    pub(crate) fn objects(&self, names: &[&str]) -> Vec<Self> {
        self.elements(names).filter_map(|value| serde_json::from_str(value.get()).ok()).collect()
    }

    /// The values, with the elements of a list in its place.
    pub(crate) fn elements(&self, names: &[&str]) -> impl Iterator<Item = &'a RawValue> {
        self.elements_where(|key| names.iter().any(|name| name.eq_ignore_ascii_case(key)))
    }

    /// The same of the fields whose names fit.
    pub(crate) fn elements_where(
        &self,
        fits: impl Fn(&str) -> bool,
    ) -> impl Iterator<Item = &'a RawValue> {
        self.values_where(fits).flat_map(|value| {
            serde_json::from_str::<Vec<&RawValue>>(value.get()).unwrap_or(vec![value])
        })
    }
}

impl<'a> Deserialize<'a> for Object<'a> {
    fn deserialize<D: Deserializer<'a>>(deserializer: D) -> Result<Self, D::Error> {
        struct Fields;
        impl<'a> Visitor<'a> for Fields {
            type Value = Object<'a>;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }
            fn visit_map<A: MapAccess<'a>>(self, mut map: A) -> Result<Object<'a>, A::Error> {
                let mut fields = Vec::new();
                while let Some(field) = map.next_entry()? {
                    fields.push(field);
                }
                Ok(Object(fields))
            }
        }
        deserializer.deserialize_map(Fields)
    }
}
