//! The name of the caller that a client certificate identifies.
//!
//! It comes from the subjectAltName extension only, never from the subject.

use rustls::pki_types::{CertificateDer, DnsName};
use webpki::EndEntityCert;

const SPIFFE: &str = "spiffe://";
const DNS: &str = "dns:";

/// Returns the name of a caller with this certificate, which TLS has verified.
///
/// It is the SPIFFE ID of an X.509 SVID, such as `spiffe://example.org/ns/fleet/sa/orders`, or else
/// `dns:` and the first valid DNS name. `None`: the certificate has neither. A certificate with a
/// wrong SPIFFE ID, or with more URIs beside it, has no name, even if it has a DNS name.
pub(crate) fn caller_name(certificate: &CertificateDer<'_>) -> Option<String> {
    let certificate = EndEntityCert::try_from(certificate).ok()?;
    let uris: Vec<_> = certificate.valid_uri_names().collect();
    if uris.iter().any(|uri| has_spiffe_scheme(uri)) {
        return match uris[..] {
            [id] if is_spiffe_id(id) => Some(id.to_owned()),
            _ => None,
        };
    }
    let name = certificate.valid_dns_names().next()?;
    // A wildcard names many machines.
    (!name.starts_with('*')).then(|| format!("{DNS}{}", name.to_ascii_lowercase()))
}

/// Whether [`caller_name`] can return this name.
pub(crate) fn is_caller_name(name: &str) -> bool {
    let Some(dns) = name.strip_prefix(DNS) else { return is_spiffe_id(name) };
    let is_lower = !dns.bytes().any(|byte| byte.is_ascii_uppercase());
    is_lower && !dns.ends_with('.') && DnsName::try_from(dns).is_ok()
}

fn has_spiffe_scheme(uri: &str) -> bool {
    uri.split_once(':').is_some_and(|(scheme, _)| scheme.eq_ignore_ascii_case("spiffe"))
}

/// Whether a URI is a SPIFFE ID in its only spelling (SPIFFE-ID section 2). So equal IDs are equal
/// texts.
fn is_spiffe_id(uri: &str) -> bool {
    let Some(id) = uri.strip_prefix(SPIFFE) else { return false };
    let mut parts = id.split('/');
    let is_part = |part: &str, allowed: fn(u8) -> bool| {
        !part.is_empty() && part.bytes().all(|byte| allowed(byte) || b"-._".contains(&byte))
    };
    let domain = parts.next().unwrap_or_default();
    let in_domain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    is_part(domain, in_domain)
        && parts.all(|part| {
            is_part(part, |byte| byte.is_ascii_alphanumeric()) && part != "." && part != ".."
        })
}

#[cfg(test)]
mod tests {
    use rcgen::{CertificateParams, KeyPair, SanType};

    use super::*;

    fn named(names: Vec<SanType>) -> Option<String> {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(rcgen::DnType::CommonName, "subject.example");
        params.subject_alt_names = names;
        caller_name(params.self_signed(&KeyPair::generate().unwrap()).unwrap().der())
    }

    fn uri(uri: &str) -> SanType {
        SanType::URI(uri.try_into().unwrap())
    }

    fn dns(name: &str) -> SanType {
        SanType::DnsName(name.try_into().unwrap())
    }

    #[test]
    fn a_spiffe_id_comes_before_a_dns_name() {
        for id in
            ["spiffe://example.org/ns/fleet/sa/Orders_1", "spiffe://example.org", "spiffe://a/b.c"]
        {
            assert_eq!(named(vec![dns("a.example"), uri(id)]).as_deref(), Some(id));
            assert!(is_caller_name(id), "{id}");
        }
        for wrong in [
            "SPIFFE://example.org/a",
            "spiffe://Example.org/a",
            "spiffe://example.org/",
            "spiffe://example.org//a",
            "spiffe://example.org/a/../b",
            "spiffe://example.org/./a",
            "spiffe://example.org/a%2fb",
            "spiffe://example.org/a?b",
            "spiffe://example.org/a#b",
            "spiffe://example.org/a*",
            "spiffe://example.org/a b",
            "spiffe://example.org/a\nb",
            "spiffe://user@example.org/a",
            "spiffe://example.org:1/a",
            "spiffe:///a",
            "spiffe://",
            "spiffe:example.org/a",
        ] {
            assert_eq!(named(vec![uri(wrong), dns("a.example")]), None, "{wrong}");
            assert!(!is_caller_name(wrong), "{wrong}");
        }
        let id = uri("spiffe://example.org/a");
        assert_eq!(named(vec![id.clone(), uri("spiffe://example.org/b")]), None);
        assert_eq!(named(vec![uri("https://a.example"), id]), None);
    }

    #[test]
    fn without_a_spiffe_id_the_first_dns_name_counts() {
        let names = vec![uri("https://a.example"), dns("Orders.example"), dns("b.example")];
        assert_eq!(named(names).as_deref(), Some("dns:orders.example"));
        assert!(is_caller_name("dns:orders.example"));
        for wrong in ["dns:Orders.example", "dns:*.a.example", "dns:a..b", "dns:a.", "dns:a b"] {
            assert!(!is_caller_name(wrong), "{wrong}");
        }
        assert_eq!(named(vec![dns("*.a.example"), dns("b.example")]), None);
        let address = SanType::IpAddress([127, 0, 0, 1].into());
        let mail = SanType::Rfc822Name("orders@a.example".try_into().unwrap());
        assert_eq!(named(vec![address, mail]), None);
        assert_eq!(named(vec![]), None);
        for wrong in ["a\nb.example", "a b", "a..b", ""] {
            assert_eq!(named(vec![dns(wrong)]), None, "{wrong:?}");
        }
    }

    #[test]
    fn bytes_that_are_no_certificate_have_no_name() {
        assert_eq!(caller_name(&CertificateDer::from(vec![0x30, 0])), None);
    }
}
