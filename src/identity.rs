//! The identifiers of accounts, requests, devices and profiles, parsed once at the edge.
//!
//! A value of a type here has the right shape: whoever holds one need not check again. `Debug` and
//! `Display` of a device's identifiers are masked, so that no log line gives an identity away; the
//! full digits come only from `as_str`. Checksums are not part of the shape, because Verizon's own
//! samples fail them.

use std::{fmt, sync::Arc};

use serde::{Deserialize, Serialize};

/// A ThingSpace billing account, `[0-9A-Za-z-]{3,32}`, leading zeros kept.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct AccountName(Arc<str>);

/// ThingSpace's id of a request, `[0-9A-Za-z-]{1,64}`, case kept.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RequestId(Arc<str>);

/// Why a text is not an identifier: a phrase that completes "the field …".
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Invalid(pub &'static str);

impl AccountName {
    pub fn parse(text: &str) -> Result<Self, Invalid> {
        let shape = (3..=32).contains(&text.len()) && text.bytes().all(alphanumeric_or_hyphen);
        if shape {
            Ok(Self(text.into()))
        } else {
            Err(Invalid("must be 3 to 32 letters, digits and hyphens"))
        }
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl RequestId {
    pub fn parse(text: &str) -> Result<Self, Invalid> {
        let shape = (1..=64).contains(&text.len()) && text.bytes().all(alphanumeric_or_hyphen);
        if shape {
            Ok(Self(text.into()))
        } else {
            Err(Invalid("must be 1 to 64 letters, digits and hyphens"))
        }
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

fn alphanumeric_or_hyphen(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || byte == b'-'
}

impl TryFrom<String> for AccountName {
    type Error = Invalid;
    fn try_from(text: String) -> Result<Self, Invalid> {
        Self::parse(&text)
    }
}

impl From<AccountName> for String {
    fn from(name: AccountName) -> Self {
        name.as_str().to_owned()
    }
}

macro_rules! plain_text {
    ($type:ident) => {
        impl fmt::Display for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
        impl fmt::Debug for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
    };
}
plain_text!(AccountName);
plain_text!(RequestId);

/// The kinds of identifier a device has, by the names ThingSpace uses (there in any case).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Kind {
    Eid,
    Iccid,
    Imei,
    Mdn,
}

impl Kind {
    /// Upstream's word, in any case. `None` for kinds the gateway does not use (IMSI, MEID, …).
    pub fn parse(text: &str) -> Option<Self> {
        [Self::Eid, Self::Iccid, Self::Imei, Self::Mdn]
            .into_iter()
            .find(|k| k.as_str().eq_ignore_ascii_case(text))
    }

    pub fn as_str(self) -> &'static str {
        match self {
            Self::Eid => "eid",
            Self::Iccid => "iccid",
            Self::Imei => "imei",
            Self::Mdn => "mdn",
        }
    }

    /// Checks length and digits.
    pub fn check(self, text: &str) -> Result<(), Invalid> {
        let (lengths, phrase) = match self {
            Self::Eid => (32..=32, "must be 32 digits"),
            Self::Iccid => (19..=20, "must be 19 or 20 digits"),
            Self::Imei => (15..=16, "must be 15 or 16 digits"),
            Self::Mdn => (10..=15, "must be 10 to 15 digits"),
        };
        let shape = lengths.contains(&text.len()) && text.bytes().all(|b| b.is_ascii_digit());
        if shape { Ok(()) } else { Err(Invalid(phrase)) }
    }

    /// Checks the check digits of a well-formed identifier: EID by ISO 7064 MOD 97-10 (GSMA
    /// SGP.29), ICCID and 15-digit IMEI by Luhn. Others have none, nor has a 19-digit ICCID that
    /// was handed out without.
    pub fn checksum(self, text: &str) -> Result<(), Invalid> {
        let holds = match self {
            Self::Eid => text.bytes().fold(0, |n, b| (n * 10 + u32::from(b - b'0')) % 97) == 1,
            Self::Iccid => text.len() == 19 || luhn(text),
            Self::Imei => text.len() == 16 || luhn(text),
            Self::Mdn => true,
        };
        if holds { Ok(()) } else { Err(Invalid("has a wrong check digit")) }
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

/// The identifiers of one device. Each is of its shape or empty.
#[derive(Clone, Default, PartialEq, Eq, Hash)]
pub struct Device {
    pub eid: Digits,
    pub iccid: Digits,
    pub imei: Digits,
    pub mdn: Digits,
}

impl Device {
    pub fn get(&self, kind: Kind) -> &Digits {
        match kind {
            Kind::Eid => &self.eid,
            Kind::Iccid => &self.iccid,
            Kind::Imei => &self.imei,
            Kind::Mdn => &self.mdn,
        }
    }

    pub fn get_mut(&mut self, kind: Kind) -> &mut Digits {
        match kind {
            Kind::Eid => &mut self.eid,
            Kind::Iccid => &mut self.iccid,
            Kind::Imei => &mut self.imei,
            Kind::Mdn => &mut self.mdn,
        }
    }

    /// The identifiers that are there, EID first: the order in which a device is looked for.
    pub fn present(&self) -> impl Iterator<Item = (Kind, &Digits)> {
        [Kind::Eid, Kind::Iccid, Kind::Imei, Kind::Mdn]
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

/// An identifier's digits as text, or nothing. Prints only its last four.
#[derive(Clone, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Digits(Option<Arc<str>>);

impl Digits {
    /// Takes the text as it is; empty means absent. Whoever takes it from outside checks it first
    /// with [`Kind::check`].
    pub fn new(text: &str) -> Self {
        Self((!text.is_empty()).then(|| text.into()))
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_none()
    }

    /// The full digits, for the wire and for comparing. Never for a log.
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
            (Kind::Eid, "89049032007008882600086299134038"),
            (Kind::Eid, "89049032123451234512345678901235"),
            (Kind::Iccid, "89148000004292933820"),
            (Kind::Iccid, "89141390780800784259"),
            (Kind::Imei, "490154203237518"),
        ];
        let bad = [
            (Kind::Eid, "89049032007008882600086299134039"),
            (Kind::Iccid, "89148000000800139708"),
            (Kind::Imei, "990013907835573"),
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
        for (kind, wrong) in
            [(Kind::Eid, "1"), (Kind::Iccid, "123456789012345678"), (Kind::Imei, "١٢٣٤٥٦٧٨٩٠١٢٣٤٥")]
        {
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
