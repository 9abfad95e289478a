//! The identifiers of accounts, requests, devices and profiles.
//!
//! Identifiers are parsed once, when they arrive: a value of a type in this module has the right
//! shape. Check digits are not part of the shape, because Verizon's own samples have wrong ones.
//! `Debug` and `Display` mask the identifiers of devices, so that no log line shows one. Only
//! [`Digits::as_str`] returns all digits.

use std::{fmt, sync::Arc};

use serde::{Deserialize, Serialize};

/// A ThingSpace billing account, `[0-9A-Za-z-]{3,32}`, with leading zeros.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct AccountName(Arc<str>);

/// ThingSpace's id of a request, `[0-9A-Za-z-]{1,64}`, case-sensitive.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RequestId(Arc<str>);

/// Why a text is not an identifier: a phrase that completes "the field …".
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct IdentifierError(pub &'static str);

/// Implements parsing and printing for a name of letters, digits and hyphens.
macro_rules! name {
    ($type:ident, $lengths:expr, $phrase:literal) => {
        impl $type {
            /// Checks the length and the characters.
            pub fn parse(text: &str) -> Result<Self, IdentifierError> {
                let shape = $lengths.contains(&text.len())
                    && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-');
                if shape { Ok(Self(text.into())) } else { Err(IdentifierError($phrase)) }
            }

            /// Returns the text as it was parsed.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl fmt::Debug for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(self, f)
            }
        }
    };
}
name!(AccountName, (3..=32), "must be 3 to 32 letters, digits and hyphens");
name!(RequestId, (1..=64), "must be 1 to 64 letters, digits and hyphens");

impl TryFrom<String> for AccountName {
    type Error = IdentifierError;
    fn try_from(text: String) -> Result<Self, IdentifierError> {
        Self::parse(&text)
    }
}

impl From<AccountName> for String {
    fn from(name: AccountName) -> Self {
        name.as_str().to_owned()
    }
}

/// The kinds of identifier that a device has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum IdentifierKind {
    Eid,
    Iccid,
    Imei,
    Mdn,
}

impl IdentifierKind {
    /// All kinds, in the order in which a device is looked up.
    pub(crate) const ALL: [Self; 4] = [Self::Eid, Self::Iccid, Self::Imei, Self::Mdn];

    /// Parses ThingSpace's name of a kind, in upper or lower case. `None`: the gateway does not use
    /// the kind (IMSI, MEID, …).
    pub(crate) fn parse(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.as_str().eq_ignore_ascii_case(text))
    }

    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Eid => "eid",
            Self::Iccid => "iccid",
            Self::Imei => "imei",
            Self::Mdn => "mdn",
        }
    }

    /// Checks length and digits.
    pub(crate) fn check(self, text: &str) -> Result<(), IdentifierError> {
        let (lengths, phrase) = match self {
            Self::Eid => (32..=32, "must be 32 digits"),
            Self::Iccid => (19..=20, "must be 19 or 20 digits"),
            Self::Imei => (15..=16, "must be 15 or 16 digits"),
            Self::Mdn => (10..=15, "must be 10 to 15 digits"),
        };
        let shape = lengths.contains(&text.len()) && text.bytes().all(|b| b.is_ascii_digit());
        if shape { Ok(()) } else { Err(IdentifierError(phrase)) }
    }

    /// Checks the check digits of a well-formed identifier. An EID has two, by ISO 7064 MOD 97-10
    /// (GSMA SGP.29). An ICCID of 20 digits and an IMEI of 15 digits have one, by Luhn. Others have
    /// none.
    pub(crate) fn checksum(self, text: &str) -> Result<(), IdentifierError> {
        let holds = match self {
            Self::Eid => text.bytes().fold(0, |n, b| (n * 10 + u32::from(b - b'0')) % 97) == 1,
            Self::Iccid => text.len() == 19 || luhn(text),
            Self::Imei => text.len() == 16 || luhn(text),
            Self::Mdn => true,
        };
        if holds { Ok(()) } else { Err(IdentifierError("has a wrong check digit")) }
    }
}

fn luhn(digits: &str) -> bool {
    let sum: u32 = digits
        .bytes()
        .rev()
        .enumerate()
        .map(|(i, b)| match u32::from(b - b'0') {
            d if i % 2 == 0 => d,
            d if d > 4 => d * 2 - 9,
            d => d * 2,
        })
        .sum();
    sum.is_multiple_of(10)
}

/// The identifiers of one device. Each has its shape or is empty.
#[derive(Clone, Default, PartialEq, Eq, Hash)]
pub struct Device {
    /// eUICC identifier: 32 digits.
    pub eid: Digits,
    /// Integrated circuit card identifier: 19 or 20 digits.
    pub iccid: Digits,
    /// International mobile equipment identity: 15 or 16 digits.
    pub imei: Digits,
    /// Mobile directory number: 10 to 15 digits.
    pub mdn: Digits,
}

impl Device {
    pub(crate) fn get(&self, kind: IdentifierKind) -> &Digits {
        match kind {
            IdentifierKind::Eid => &self.eid,
            IdentifierKind::Iccid => &self.iccid,
            IdentifierKind::Imei => &self.imei,
            IdentifierKind::Mdn => &self.mdn,
        }
    }

    pub(crate) fn get_mut(&mut self, kind: IdentifierKind) -> &mut Digits {
        match kind {
            IdentifierKind::Eid => &mut self.eid,
            IdentifierKind::Iccid => &mut self.iccid,
            IdentifierKind::Imei => &mut self.imei,
            IdentifierKind::Mdn => &mut self.mdn,
        }
    }

    /// Returns the identifiers that the device has, in the order of [`IdentifierKind::ALL`].
    pub(crate) fn present(&self) -> impl Iterator<Item = (IdentifierKind, &Digits)> {
        IdentifierKind::ALL
            .into_iter()
            .map(|kind| (kind, self.get(kind)))
            .filter(|(_, digits)| !digits.is_empty())
    }
}

impl fmt::Debug for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut map = f.debug_map();
        for (kind, digits) in self.present() {
            map.entry(&format_args!("{}", kind.as_str()), digits);
        }
        map.finish()
    }
}

/// The digits of an identifier, or none. Prints only the last four.
#[derive(Clone, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Digits(Option<Arc<str>>);

impl Digits {
    /// Takes a text that [`IdentifierKind::check`] accepted, or an empty one.
    pub fn new(text: &str) -> Self {
        Self((!text.is_empty()).then(|| text.into()))
    }

    /// Whether the device has no such identifier.
    pub fn is_empty(&self) -> bool {
        self.0.is_none()
    }

    /// Returns all digits. They must not be logged.
    pub fn as_str(&self) -> &str {
        self.0.as_deref().unwrap_or("")
    }
}

impl fmt::Display for Digits {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = self.as_str();
        let tail = text.len().saturating_sub(4);
        write!(f, "…{}", text.get(tail..).unwrap_or(""))
    }
}

impl fmt::Debug for Digits {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn check_digits_of_known_identifiers() {
        let good = [
            (IdentifierKind::Eid, "89049032007008882600086299134038"),
            (IdentifierKind::Eid, "89049032123451234512345678901235"),
            (IdentifierKind::Iccid, "89148000004292933820"),
            (IdentifierKind::Iccid, "89141390780800784259"),
            (IdentifierKind::Imei, "490154203237518"),
        ];
        let bad = [
            (IdentifierKind::Eid, "89049032007008882600086299134039"),
            (IdentifierKind::Iccid, "89148000000800139708"),
            (IdentifierKind::Imei, "990013907835573"),
        ];
        for (kind, text) in good {
            assert_eq!(kind.check(text).and_then(|()| kind.checksum(text)), Ok(()), "{text}");
        }
        for (kind, text) in bad {
            assert_eq!(kind.check(text), Ok(()), "{text}");
            assert!(kind.checksum(text).is_err(), "{text}");
        }
    }

    #[test]
    fn shapes() {
        assert!(AccountName::parse("0000123456-00001").is_ok());
        for wrong in ["", "ab", "a/b", "0000123456-00001'", "ä123", &"1".repeat(33)] {
            assert!(AccountName::parse(wrong).is_err(), "{wrong}");
        }
        for wrong in ["", "a/b", "..", "a b", "%2e", &"1".repeat(65)] {
            assert!(RequestId::parse(wrong).is_err(), "{wrong}");
        }
        for (kind, wrong) in [
            (IdentifierKind::Eid, "1"),
            (IdentifierKind::Iccid, "123456789012345678"),
            (IdentifierKind::Imei, "١٢٣٤٥٦٧٨٩٠١٢٣٤٥"),
        ] {
            assert!(kind.check(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn printing_masks() {
        let device = Device {
            eid: Digits::new("89049032007008882600086299134038"),
            mdn: Digits::new("5551234567"),
            ..Device::default()
        };
        assert_eq!(format!("{device:?}"), "{eid: …4038, mdn: …4567}");
    }
}
