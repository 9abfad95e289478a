//! Reads the version and the validity of an X.509 certificate (RFC 5280 section 4.1), and whether
//! it is one of an authority (section 4.2.1.9).

use jiff::{Timestamp, civil::DateTime, tz::TimeZone};

const INTEGER: u8 = 0x02;
const UTC_TIME: u8 = 0x17;
const GENERALIZED_TIME: u8 = 0x18;
const SEQUENCE: u8 = 0x30;
/// `[0] EXPLICIT`: the version.
const VERSION: u8 = 0xa0;
/// `[3] EXPLICIT`: the extensions.
const EXTENSIONS: u8 = 0xa3;
const OCTET_STRING: u8 = 0x04;
const OBJECT_IDENTIFIER: u8 = 0x06;
const BOOLEAN: u8 = 0x01;

/// The object identifier of the basic constraints: 2.5.29.19.
const BASIC_CONSTRAINTS: &[u8] = &[0x55, 0x1d, 0x13];

/// A year of two digits is 20YY below this number, else 19YY (RFC 5280 section 4.1.2.5.1).
const FIRST_YEAR_OF_1900S: i16 = 50;

#[derive(Debug, PartialEq, Eq)]
pub(super) struct X509 {
    pub(super) version: u8,
    pub(super) not_before: Timestamp,
    pub(super) not_after: Timestamp,
    /// Whether the basic constraints say so.
    pub(super) is_authority: bool,
}

impl X509 {
    /// Parses a certificate. Returns `None` if the bytes are not one.
    pub(super) fn parse(der: &[u8]) -> Option<Self> {
        let (certificate, _) = value(SEQUENCE, der)?;
        let (mut fields, _) = value(SEQUENCE, certificate)?;
        let version = match value(VERSION, fields) {
            Some((version, rest)) => {
                fields = rest;
                value(INTEGER, version)?.0.first()?.checked_add(1)?
            }
            None => 1,
        };
        // Serial number, signature algorithm, issuer.
        for tag in [INTEGER, SEQUENCE, SEQUENCE] {
            (_, fields) = value(tag, fields)?;
        }
        let (validity, rest) = value(SEQUENCE, fields)?;
        let (not_before, after) = time(validity)?;
        let (not_after, _) = time(after)?;
        let is_authority = is_authority(rest).unwrap_or(false);
        Some(Self { version, not_before, not_after, is_authority })
    }
}

/// Returns whether a certificate is one of an authority, from the bytes after its validity. `None`:
/// it does not say so.
fn is_authority(after_validity: &[u8]) -> Option<bool> {
    // Subject, public key.
    let (_, rest) = value(SEQUENCE, after_validity)?;
    let (_, mut rest) = value(SEQUENCE, rest)?;
    // The extensions come last, after two optional identifiers.
    while rest.first()? != &EXTENSIONS {
        (_, rest) = value(*rest.first()?, rest)?;
    }
    let (extensions, _) = value(EXTENSIONS, rest)?;
    let (mut extensions, _) = value(SEQUENCE, extensions)?;
    loop {
        let (extension, following) = value(SEQUENCE, extensions)?;
        let (id, content) = value(OBJECT_IDENTIFIER, extension)?;
        if id == BASIC_CONSTRAINTS {
            let content = value(BOOLEAN, content).map_or(content, |(_, content)| content);
            let (constraints, _) = value(SEQUENCE, value(OCTET_STRING, content)?.0)?;
            return Some(value(BOOLEAN, constraints)?.0 != [0]);
        }
        extensions = following;
    }
}

/// Returns the content of a value with this tag, and the bytes after the value.
fn value(tag: u8, der: &[u8]) -> Option<(&[u8], &[u8])> {
    let (&[found, first], rest) = der.split_first_chunk::<2>()?;
    if found != tag {
        return None;
    }
    // The first byte is the length, or the number of bytes with the length.
    let (length, rest) = match first {
        0..=0x7f => (usize::from(first), rest),
        0x81..=0x84 => {
            let (bytes, rest) = rest.split_at_checked(usize::from(first & 0x7f))?;
            (bytes.iter().fold(0, |length, &byte| length << 8 | usize::from(byte)), rest)
        }
        _ => return None,
    };
    rest.split_at_checked(length)
}

fn time(der: &[u8]) -> Option<(Timestamp, &[u8])> {
    let (text, rest, short) = match value(UTC_TIME, der) {
        Some((text, rest)) => (text, rest, true),
        None => value(GENERALIZED_TIME, der).map(|(text, rest)| (text, rest, false))?,
    };
    let digits = std::str::from_utf8(text).ok()?.strip_suffix('Z')?;
    if !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let (year, digits) = digits.split_at_checked(if short { 2 } else { 4 })?;
    let year: i16 = year.parse().ok()?;
    let year = match year {
        short_year if short && short_year < FIRST_YEAR_OF_1900S => 2000 + short_year,
        short_year if short => 1900 + short_year,
        year => year,
    };
    if digits.len() != 10 {
        return None;
    }
    let part = |at: usize| digits[at..at + 2].parse::<i8>().ok();
    let civil = DateTime::new(year, part(0)?, part(2)?, part(4)?, part(6)?, part(8)?, 0).ok()?;
    // "99991231235959Z" means "no expiry" and is later than the last timestamp.
    let time = TimeZone::UTC.to_timestamp(civil).unwrap_or(Timestamp::MAX);
    Some((time, rest))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use rcgen::{CertificateParams, KeyPair, date_time_ymd};

    use super::*;

    fn certificate(from: (i32, u8), to: (i32, u8)) -> Vec<u8> {
        let mut params = CertificateParams::new(vec!["a.example".to_owned()]).unwrap();
        params.not_before = date_time_ymd(from.0, from.1, 1);
        params.not_after = date_time_ymd(to.0, to.1, 1);
        params.self_signed(&KeyPair::generate().unwrap()).unwrap().der().to_vec()
    }

    #[test]
    fn validity_in_both_forms_of_time() {
        for (from, to) in [((1999, 1), (2049, 12)), ((2049, 12), (2050, 1)), ((1975, 2), (4096, 1))]
        {
            let read = X509::parse(&certificate(from, to)).unwrap();
            let day = |(year, month): (i32, u8)| -> Timestamp {
                format!("{year:04}-{month:02}-01T00:00:00Z").parse().unwrap()
            };
            let (not_before, not_after) = (day(from), day(to));
            assert_eq!(read, X509 { version: 3, not_before, not_after, is_authority: false });
        }
    }

    #[test]
    fn only_the_certificate_of_an_authority_is_one() {
        use rcgen::{BasicConstraints::Unconstrained, IsCa};
        for (is_ca, expected) in
            [(IsCa::Ca(Unconstrained), true), (IsCa::ExplicitNoCa, false), (IsCa::NoCa, false)]
        {
            let mut params = CertificateParams::new(vec!["a.example".to_owned()]).unwrap();
            params.is_ca = is_ca;
            let der = params.self_signed(&KeyPair::generate().unwrap()).unwrap();
            assert_eq!(X509::parse(der.der()).unwrap().is_authority, expected);
        }
    }

    #[test]
    fn no_bytes_make_the_parser_panic() {
        let der = certificate((2020, 1), (2030, 1));
        for end in 0..der.len() {
            assert_eq!(X509::parse(&der[..end]), None);
        }
        proptest!(|(at in 0..200_usize, byte: u8)| {
            let mut der = der.clone();
            der[at] = byte;
            let _ = X509::parse(&der);
        });
        proptest!(|(bytes: Vec<u8>)| { let _ = X509::parse(&bytes); });
    }
}
