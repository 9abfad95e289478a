//! Whose a URL is.

use secrecy::{ExposeSecret, SecretString};

use crate::config::url::{self, Url};

/// A URL of the web without a slash at the end of its path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Address(Url);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Whose {
    /// Ours, as it should be.
    Ours,
    /// Ours, with an earlier secret.
    Former,
    /// Below our `public_url`, with a secret that is not known here: left of a store that is gone,
    /// or of another gateway with the same address.
    SameAddress,
    Another,
}

impl Address {
    pub(super) fn parse(text: &str) -> Option<Self> {
        let mut url = Url::parse(text, url::WEB).ok()?;
        url.path.truncate(url.path.trim_end_matches('/').len());
        Some(Self(url))
    }

    /// With this port in place of 0.
    pub(super) fn or_port(mut self, port: u16) -> Self {
        if self.0.port == 0 {
            self.0.port = port;
        }
        self
    }

    /// What an account with this secret registers.
    pub(super) fn with(&self, secret: &str) -> SecretString {
        let Url { scheme, host, port, path } = &self.0;
        let port = match (*scheme, port) {
            ("http", 80) | ("https", 443) => String::new(),
            _ => format!(":{port}"),
        };
        format!("{scheme}://{host}{port}{path}/{secret}").into()
    }

    /// Whose a registered URL is, to the account with this secret and the gateway whose
    /// `public_url` this is. `is_own` knows its earlier secrets.
    pub(super) fn whose(
        &self,
        registered: &SecretString,
        secret: &str,
        is_own: impl Fn(&str) -> bool,
    ) -> Whose {
        let Some(mut there) = Self::parse(registered.expose_secret()) else {
            return Whose::Another;
        };
        let path = std::mem::take(&mut there.0.path);
        let Some((above, last)) = path.rsplit_once('/') else { return Whose::Another };
        above.clone_into(&mut there.0.path);
        // Something else below our host is not ours to replace.
        let secret_like = last.len() == secret.len()
            && last.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_'));
        match there == *self {
            true if last == secret => Whose::Ours,
            true if secret_like && is_own(last) => Whose::Former,
            true if secret_like => Whose::SameAddress,
            _ => Whose::Another,
        }
    }
}

/// The host of a URL, which is what may be shown of it.
pub(super) fn host(registered: &SecretString) -> String {
    Address::parse(registered.expose_secret())
        .map_or_else(|| "an unreadable URL".to_owned(), |there| there.0.host)
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
            ("https://gw.example/a", "https://gw.example/a/EARLIER_", Whose::Former),
            ("https://gw.example/a", "https://gw.example/a/secret_2", Whose::SameAddress),
            ("https://gw.example/a", "https://gw.example/b/EARLIER_", Whose::Another),
            ("https://gw.example/a", "https://gw.example/a/orders", Whose::Another),
            ("https://gw.example/a", "https://gw.example/a/sec.et_2", Whose::Another),
            ("https://gw.example/a", "https://gw.example/SECRET-1", Whose::Another),
            ("https://gw.example/a", "https://gw.example/a/b/SECRET-1", Whose::Another),
            ("https://gw.example/a", "https://gw.example/A/SECRET-1", Whose::Another),
            ("https://gw.example", "http://gw.example/SECRET-1", Whose::Another),
            ("https://gw.example", "https://gw.example:28200/SECRET-1", Whose::Another),
            ("https://gw.example", "https://staging.gw.example/SECRET-1", Whose::Another),
            ("https://gw.example", "https://gw.example", Whose::Another),
            ("https://gw.example", "https://gw.example:99999/SECRET-1", Whose::Another),
            ("http://gw.example", "http://gw.example:99999/SECRET-1", Whose::Another),
            ("https://gw.example", "https://u:p@gw.example/SECRET-1", Whose::Another),
            ("https://gw.example", "https://gw.example/SECRET-1?x=1", Whose::Another),
            ("https://gw.example", "", Whose::Another),
            ("https://gw.example", "SECRET-1", Whose::Another),
        ];
        for (public, registered, whose) in cases {
            let public = Address::parse(public).unwrap();
            let found = public.whose(&registered.into(), "SECRET-1", |secret| secret == "EARLIER_");
            assert_eq!(found, whose, "{registered}");
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
            assert_eq!(public.whose(&public.with("S"), "S", |_| false), Whose::Ours);
        }
        assert_eq!(host(&"https://gw.example/secret".into()), "gw.example");
        // The password of a URL that is not ours is not read, so it cannot be shown.
        assert_eq!(host(&"https://u:p@gw.example/secret".into()), "an unreadable URL");
        assert_eq!(host(&"secret".into()), "an unreadable URL");
    }
}
