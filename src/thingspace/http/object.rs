//! A JSON object that is read tolerantly: names in any case, a number instead of a text, one value
//! instead of a list.

use std::fmt;

use serde::{
    Deserialize, Deserializer,
    de::{MapAccess, Visitor},
};
use serde_json::value::RawValue;

use super::{
    json::Json,
    verdict::{exact_id, is_request_id},
    words::plain,
};
use crate::identity::{AccountName, RequestId};

/// The fields of an object in their order, with their values as they were written. A map would lose
/// a field whose name is repeated.
pub(crate) struct Object<'a>(Vec<(String, &'a RawValue)>);

impl<'a> Object<'a> {
    pub(crate) fn all(&self) -> impl Iterator<Item = &'a RawValue> {
        self.0.iter().map(|(_, value)| *value)
    }

    /// Returns the value of the field of this name in any case, if there is exactly one.
    pub(crate) fn only(&self, name: &str) -> Option<&'a RawValue> {
        let mut fields = self.0.iter().filter(|(key, _)| key.eq_ignore_ascii_case(name));
        let (_, value) = fields.next()?;
        fields.next().is_none().then_some(*value)
    }

    /// Returns the values, except null, of the fields with these names in any case.
    pub(crate) fn values(&self, names: &[&str]) -> impl Iterator<Item = &'a RawValue> {
        self.values_where(|key| names.iter().any(|name| name.eq_ignore_ascii_case(key)))
    }

    /// Returns the values, except null, of the fields whose names fit.
    pub(crate) fn values_where(
        &self,
        fits: impl Fn(&str) -> bool,
    ) -> impl Iterator<Item = &'a RawValue> {
        self.0
            .iter()
            .filter(move |(key, value)| value.get() != "null" && fits(key))
            .map(|(_, value)| *value)
    }

    /// Returns the values that are texts, numbers or booleans. All digits of a number are kept.
    pub(crate) fn texts(&self, names: &[&str]) -> impl Iterator<Item = String> {
        self.values(names).filter_map(|value| match value.get().as_bytes().first()? {
            b'"' => serde_json::from_str(value.get()).ok(),
            b'{' | b'[' => None,
            _ => Some(value.get().to_owned()),
        })
    }

    pub(crate) fn text(&self, names: &[&str]) -> Option<String> {
        self.texts(names).next()
    }

    /// Returns the request id if all fields for it agree, in any case.
    pub(crate) fn request_id(&self) -> Option<RequestId> {
        let mut ids = self.values_where(is_request_id).map(Json::of).filter(Json::has_content);
        let first = exact_id(&ids.next()?)?;
        let agrees = |id: RequestId| id.as_str().eq_ignore_ascii_case(first.as_str());
        ids.all(|id| exact_id(&id).is_some_and(agrees)).then_some(first)
    }

    /// Returns whether no field names another account.
    pub(crate) fn is_of_account(&self, account: &AccountName) -> bool {
        let names_it = |value: &RawValue| match Json::of(value) {
            Json::Text(name) => name.trim().is_empty() || name.trim() == account.as_str(),
            _ => false,
        };
        self.values_where(|name| matches!(&*plain(name), "accountname" | "account")).all(names_it)
    }

    /// Returns the values that are objects, also those in lists.
    pub(crate) fn objects(&self, names: &[&str]) -> Vec<Self> {
        self.elements(names).filter_map(|value| serde_json::from_str(value.get()).ok()).collect()
    }

    /// Returns the values, with the elements of a list instead of the list.
    pub(crate) fn elements(&self, names: &[&str]) -> impl Iterator<Item = &'a RawValue> {
        self.elements_where(|key| names.iter().any(|name| name.eq_ignore_ascii_case(key)))
    }

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
