//! A strict parser for all URLs in the configuration.
//!
//! A URL consists of a scheme, a host, a port and a path. A user or password is refused, because
//! URLs are printed and logged. A query or a fragment is refused, because no URL here needs one. An
//! invalid port is an error.

use std::net::{IpAddr, Ipv6Addr};

use http::Uri;

/// The allowed schemes, each with its default port.
pub(crate) type Schemes = &'static [(&'static str, u16)];

pub(crate) const WEB: Schemes = &[("http", 80), ("https", 443)];
pub(crate) const NATS: Schemes = &[("nats", 4222), ("tls", 4222)];

/// The limits of DNS for a host name and for each label of it, in bytes.
const MAX_HOST_BYTES: usize = 253;
const MAX_LABEL_BYTES: usize = 63;

/// A URL without credentials, query and fragment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Url {
    /// In lower case.
    pub(crate) scheme: &'static str,
    /// In lower case; an IPv6 address in brackets.
    pub(crate) host: String,
    /// The default of the scheme if the text has none.
    pub(crate) port: u16,
    /// Begins with a slash.
    pub(crate) path: String,
}

impl Url {
    /// Parses a URL. An error completes the sentence "the URL …" and never quotes the text.
    pub(crate) fn parse(text: &str, schemes: Schemes) -> Result<Self, String> {
        let one_of = schemes
            .iter()
            .map(|(scheme, _)| format!("{scheme}://"))
            .collect::<Vec<_>>()
            .join(" or ");
        let not_a_url = || {
            invalid_character(text).unwrap_or_else(|| {
                format!("is not a URL; write {one_of} with host, and port and path as needed")
            })
        };
        if text.contains('#') {
            return Err("must have no fragment".to_owned());
        }
        let uri: Uri = text.parse().map_err(|_| not_a_url())?;
        let Some(scheme) = uri.scheme_str() else {
            return Err(format!("must begin with {one_of}"));
        };
        let known = schemes.iter().find(|(known, _)| known.eq_ignore_ascii_case(scheme));
        let &(scheme, default) = known.ok_or_else(|| format!("must begin with {one_of}"))?;
        let authority = uri.authority().ok_or_else(not_a_url)?.as_str();
        if authority.contains('@') {
            return Err(
                "must hold no user or password, because URLs are printed and logged".to_owned()
            );
        }
        if uri.query().is_some() {
            return Err("must have no query".to_owned());
        }
        let (host, port) = split(authority);
        if !is_host(host) {
            return Err("has no valid host".to_owned());
        }
        let port = match port {
            None => default,
            Some(port) => {
                parse_port(port).ok_or("has a port that does not exist; must be 1 to 65535")?
            }
        };
        let path = uri.path().to_owned();
        Ok(Self { scheme, host: host.to_ascii_lowercase(), port, path })
    }

    /// Refuses port 0. A URL may have it, but no client can connect to it.
    pub(crate) fn with_usable_port(self) -> Result<Self, String> {
        match self.port {
            0 => Err("has a port that does not exist; must be 1 to 65535".to_owned()),
            _ => Ok(self),
        }
    }

    /// Whether the host is this machine.
    pub(crate) fn is_loopback(&self) -> bool {
        let address = self.host.trim_start_matches('[').trim_end_matches(']').parse::<IpAddr>();
        match address {
            Ok(address) => address.to_canonical().is_loopback(),
            Err(_) => self.host == "localhost" || self.host.ends_with(".localhost"),
        }
    }
}

/// Returns the problem of the first character that is not allowed in a URL.
fn invalid_character(text: &str) -> Option<String> {
    let odd = text.chars().find(|&one| !one.is_ascii_graphic() || "\"<>\\^`{|}".contains(one))?;
    Some(match odd {
        ' ' => "holds a space, which is not allowed in a URL; remove it".to_owned(),
        odd => {
            format!("holds the character {odd:?}, which is not allowed in a URL; percent-encode it")
        }
    })
}

/// Splits an authority into host and port. Colons in brackets belong to the host.
fn split(authority: &str) -> (&str, Option<&str>) {
    match authority.rsplit_once(':') {
        Some((host, port)) if !port.contains(']') => (host, Some(port)),
        _ => (authority, None),
    }
}

/// Parses a port that consists of digits. `u16::from_str` alone would accept a sign.
fn parse_port(port: &str) -> Option<u16> {
    port.bytes().all(|byte| byte.is_ascii_digit()).then(|| port.parse().ok()).flatten()
}

fn is_host(host: &str) -> bool {
    if let Some(inner) = host.strip_prefix('[') {
        return inner.strip_suffix(']').is_some_and(|inner| inner.parse::<Ipv6Addr>().is_ok());
    }
    let numeric = host.bytes().all(|byte| byte.is_ascii_digit() || byte == b'.');
    if numeric {
        return host.parse::<std::net::Ipv4Addr>().is_ok();
    }
    // A dot at the end marks a fully qualified name.
    let name = host.strip_suffix('.').unwrap_or(host);
    name.len() <= MAX_HOST_BYTES && name.split('.').all(is_label)
}

fn is_label(label: &str) -> bool {
    (1..=MAX_LABEL_BYTES).contains(&label.len())
        && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_'))
        && !label.starts_with('-')
        && !label.ends_with('-')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_are_parsed() {
        for (text, host, port, path, loopback) in [
            ("https://a.example", "a.example", 443, "/", false),
            ("HTTP://A.Example:8080/api/", "a.example", 8080, "/api/", false),
            ("http://localhost", "localhost", 80, "/", true),
            ("http://x.localhost:1", "x.localhost", 1, "/", true),
            ("http://127.1.2.3/a", "127.1.2.3", 80, "/a", true),
            ("http://[::1]:28200", "[::1]", 28200, "/", true),
            ("http://[::ffff:127.0.0.1]", "[::ffff:127.0.0.1]", 80, "/", true),
            ("http://[2001:db8::1]", "[2001:db8::1]", 80, "/", false),
            ("http://my_host", "my_host", 80, "/", false),
            ("http://a.example.", "a.example.", 80, "/", false),
            ("http://localhost.example.com", "localhost.example.com", 80, "/", false),
            ("http://a:65535", "a", 65535, "/", false),
        ] {
            let url = Url::parse(text, WEB).unwrap();
            assert_eq!(
                (url.host.as_str(), url.port, url.path.as_str()),
                (host, port, path),
                "{text}"
            );
            assert_eq!(url.is_loopback(), loopback, "{text}");
        }
        assert_eq!(Url::parse("tls://a", NATS).unwrap().port, 4222);
    }

    #[test]
    fn refused_text_is_never_quoted() {
        for (text, why) in [
            ("", "is not a URL"),
            ("a.example", "must begin with http:// or https://"),
            ("ftp://secret", "must begin with http:// or https://"),
            ("https://secret:99999", "has a port"),
            ("https://secret:", "has a port"),
            ("https://secret:+80", "has a port"),
            ("https://:443/secret", "has no valid host"),
            ("https://-secret", "has no valid host"),
            ("https://se..cret", "has no valid host"),
            ("https://1.2.3.400", "has no valid host"),
            ("https://1.2.3", "has no valid host"),
            ("https://se%63ret", "is not a URL"),
            ("https://se$cret", "has no valid host"),
            ("https://user:secret@a", "must hold no user"),
            ("https://a/b?secret=1", "must have no query"),
            ("https://a/b#secret", "must have no fragment"),
            ("https://a/se cret", "holds a space"),
            (" https://secret", "holds a space"),
            ("https://a/se\tcret", "holds the character '\\t'"),
            ("https://sécret", "holds the character 'é'"),
            ("https://se{cret", "holds the character '{'"),
            ("https:///secret", "is not a URL"),
        ] {
            let refused = Url::parse(text, WEB).unwrap_err();
            assert!(refused.starts_with(why), "{text}: {refused}");
            assert!(!refused.contains("secret"), "{text}: {refused}");
        }
        assert!(Url::parse("http://a", NATS).is_err());
    }

    #[test]
    fn no_text_makes_the_parser_panic() {
        use proptest::prelude::*;
        proptest!(|(text in "(https?|nats)?(://)?[\\[\\]:@/?#%.a-z0-9é-]{0,40}")| {
            let _ = Url::parse(&text, WEB);
            let _ = Url::parse(&text, NATS);
        });
    }
}
