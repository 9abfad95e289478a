//! Whose a URL is.

use http::Uri;
use secrecy::{ExposeSecret, SecretString};

/// The parts of a URL that tell where it leads.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Address {
    scheme: String,
    host: String,
    port: u16,
    /// Without a slash at its end.
    path: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Whose {
    /// Ours, as it should be.
    Ours,
    /// Ours, with another secret: of a store that is gone, or of an earlier key.
    Former,
    Another,
}

impl Address {
    pub(super) fn parse(text: &str) -> Option<Self> {
        let uri: Uri = text.parse().ok()?;
        let scheme = uri.scheme_str()?.to_ascii_lowercase();
        let default = match scheme.as_str() {
            "http" => 80,
            "https" => 443,
            _ => return None,
        };
        Some(Self {
            host: uri.host()?.to_ascii_lowercase(),
            port: uri.port_u16().unwrap_or(default),
            path: uri.path().trim_end_matches('/').to_owned(),
            scheme,
        })
    }

    /// With this port in place of 0.
    pub(super) fn or_port(self, port: u16) -> Self {
        Self { port: if self.port == 0 { port } else { self.port }, ..self }
    }

    /// What an account with this secret registers.
    pub(super) fn with(&self, secret: &str) -> SecretString {
        let Self { scheme, host, port, path } = self;
        let port = match (scheme.as_str(), port) {
            ("http", 80) | ("https", 443) => String::new(),
            _ => format!(":{port}"),
        };
        format!("{scheme}://{host}{port}{path}/{secret}").into()
    }

    /// Whose a registered URL is, to the account with this secret and the gateway whose `public_url` this is.
    pub(super) fn whose(&self, registered: &SecretString, secret: &str) -> Whose {
        let Some(mut there) = Self::parse(registered.expose_secret()) else { return Whose::Another };
        let Some((above, last)) = there.path.rsplit_once('/').map(|(a, l)| (a.to_owned(), l.to_owned()))
        else {
            return Whose::Another;
        };
        there.path = above;
        // Something else below our host is not ours to replace.
        let secret_like = last.len() == secret.len()
            && last.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_'));
        match there == *self {
            true if last == secret => Whose::Ours,
            true if secret_like => Whose::Former,
            _ => Whose::Another,
        }
    }
}

/// The host of a URL, which is what may be shown of it.
pub(super) fn host(registered: &SecretString) -> String {
    Address::parse(registered.expose_secret())
        .map_or_else(|| "an unreadable URL".to_owned(), |there| there.host)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whose_a_url_is() {
        let cases = [
            ("https://gw.example", "https://gw.example/SECRET-1", Whose::Ours),
            ("https://gw.example/", "https://GW.example:443/SECRET-1/", Whose::Ours),
            ("https://gw.example:28200/a/b/", "https://gw.example:28200/a/b/SECRET-1", Whose::Ours),
            ("https://gw.example/a", "https://gw.example/a/secret_2", Whose::Former),
            ("https://gw.example/a", "https://gw.example/a/orders", Whose::Another),
            ("https://gw.example/a", "https://gw.example/a/sec.et_2", Whose::Another),
            ("https://gw.example/a", "https://gw.example/SECRET-1", Whose::Another),
            ("https://gw.example/a", "https://gw.example/a/b/SECRET-1", Whose::Another),
            ("https://gw.example/a", "https://gw.example/A/SECRET-1", Whose::Another),
            ("https://gw.example", "http://gw.example/SECRET-1", Whose::Another),
            ("https://gw.example", "https://gw.example:28200/SECRET-1", Whose::Another),
            ("https://gw.example", "https://staging.gw.example/SECRET-1", Whose::Another),
            ("https://gw.example", "https://gw.example", Whose::Another),
            ("https://gw.example", "", Whose::Another),
            ("https://gw.example", "SECRET-1", Whose::Another),
        ];
        for (public, registered, whose) in cases {
            let public = Address::parse(public).unwrap();
            assert_eq!(public.whose(&registered.into(), "SECRET-1"), whose, "{registered}");
        }
    }

    #[test]
    fn what_is_registered_is_ours() {
        for (public, url) in [
            ("https://gw.example/", "https://gw.example/S"),
            ("http://GW.example:80/a/", "http://gw.example/a/S"),
            ("http://[::1]:28200", "http://[::1]:28200/S"),
        ] {
            let public = Address::parse(public).unwrap();
            assert_eq!(public.with("S").expose_secret(), url);
            assert_eq!(public.whose(&public.with("S"), "S"), Whose::Ours);
        }
        assert_eq!(host(&"https://u:p@gw.example/secret".into()), "gw.example");
        assert_eq!(host(&"secret".into()), "an unreadable URL");
    }
}
