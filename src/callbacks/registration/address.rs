//! The gateway's public URL, and the owners of registered URLs.

use secrecy::{ExposeSecret, SecretString};

use crate::config::url::{self, Url};

/// An HTTP or HTTPS URL, without a slash at the end of its path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Address(Url);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum UrlOwner {
    /// This gateway, with the current path secret.
    Ours,
    /// This gateway, with an earlier path secret.
    OursBefore,
    /// Below this gateway's `public_url`, with an unknown path secret: left from a lost store, or
    /// registered by another gateway with the same address.
    SameAddress,
    Other,
}

impl Address {
    pub(super) fn parse(text: &str) -> Option<Self> {
        let mut url = Url::parse(text, url::WEB).ok()?;
        url.path.truncate(url.path.trim_end_matches('/').len());
        Some(Self(url))
    }

    pub(super) fn url(&self) -> &Url {
        &self.0
    }

    /// Replaces a port of 0 with `port`.
    pub(super) fn or_port(mut self, port: u16) -> Self {
        if self.0.port == 0 {
            self.0.port = port;
        }
        self
    }

    /// Returns the URL that an account with this path secret registers.
    pub(super) fn with(&self, secret: &str) -> SecretString {
        let Url { scheme, host, port, path } = &self.0;
        let port = match (*scheme, port) {
            ("http", 80) | ("https", 443) => String::new(),
            _ => format!(":{port}"),
        };
        format!("{scheme}://{host}{port}{path}/{secret}").into()
    }

    /// Returns the owner of a registered URL. `self` is the `public_url`, `secret` the path secret
    /// of the account, and `is_own` recognises its earlier ones.
    pub(super) fn owner(
        &self,
        registered: &SecretString,
        secret: &str,
        is_own: impl Fn(&str) -> bool,
    ) -> UrlOwner {
        let Some(mut url) = Self::parse(registered.expose_secret()) else {
            return UrlOwner::Other;
        };
        let path = std::mem::take(&mut url.0.path);
        let Some((above, last)) = path.rsplit_once('/') else { return UrlOwner::Other };
        above.clone_into(&mut url.0.path);
        // Other paths below `public_url` belong to other programs.
        let secret_like = last.len() == secret.len()
            && last.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_'));
        match url == *self {
            true if last == secret => UrlOwner::Ours,
            true if secret_like && is_own(last) => UrlOwner::OursBefore,
            true if secret_like => UrlOwner::SameAddress,
            _ => UrlOwner::Other,
        }
    }
}

/// Returns the host of a URL. The other parts may be secret.
pub(super) fn host(registered: &SecretString) -> String {
    Address::parse(registered.expose_secret())
        .map_or_else(|| "an unreadable URL".to_owned(), |address| address.0.host)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_url_has_an_owner() {
        let cases = [
            ("https://gw.example", "https://gw.example/SECRET-1", UrlOwner::Ours),
            ("https://gw.example/", "https://GW.example:443/SECRET-1/", UrlOwner::Ours),
            (
                "https://gw.example:28200/a/b/",
                "https://gw.example:28200/a/b/SECRET-1",
                UrlOwner::Ours,
            ),
            ("https://gw.example/a", "https://gw.example/a/EARLIER_", UrlOwner::OursBefore),
            ("https://gw.example/a", "https://gw.example/a/secret_2", UrlOwner::SameAddress),
            ("https://gw.example/a", "https://gw.example/b/EARLIER_", UrlOwner::Other),
            ("https://gw.example/a", "https://gw.example/a/orders", UrlOwner::Other),
            ("https://gw.example/a", "https://gw.example/a/sec.et_2", UrlOwner::Other),
            ("https://gw.example/a", "https://gw.example/SECRET-1", UrlOwner::Other),
            ("https://gw.example/a", "https://gw.example/a/b/SECRET-1", UrlOwner::Other),
            ("https://gw.example/a", "https://gw.example/A/SECRET-1", UrlOwner::Other),
            ("https://gw.example", "http://gw.example/SECRET-1", UrlOwner::Other),
            ("https://gw.example", "https://gw.example:28200/SECRET-1", UrlOwner::Other),
            ("https://gw.example", "https://staging.gw.example/SECRET-1", UrlOwner::Other),
            ("https://gw.example", "https://gw.example", UrlOwner::Other),
            ("https://gw.example", "https://gw.example:99999/SECRET-1", UrlOwner::Other),
            ("http://gw.example", "http://gw.example:99999/SECRET-1", UrlOwner::Other),
            ("https://gw.example", "https://u:p@gw.example/SECRET-1", UrlOwner::Other),
            ("https://gw.example", "https://gw.example/SECRET-1?x=1", UrlOwner::Other),
            ("https://gw.example", "", UrlOwner::Other),
            ("https://gw.example", "SECRET-1", UrlOwner::Other),
        ];
        for (public, registered, owner) in cases {
            let public = Address::parse(public).unwrap();
            let found = public.owner(&registered.into(), "SECRET-1", |secret| secret == "EARLIER_");
            assert_eq!(found, owner, "{registered}");
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
            assert_eq!(public.owner(&public.with("S"), "S", |_| false), UrlOwner::Ours);
        }
        assert_eq!(host(&"https://gw.example/secret".into()), "gw.example");
        // A URL with a user name or password is not read, so neither can be shown.
        assert_eq!(host(&"https://u:p@gw.example/secret".into()), "an unreadable URL");
        assert_eq!(host(&"secret".into()), "an unreadable URL");
    }
}
