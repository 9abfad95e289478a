//! Validates `[thingspace]`.

use super::{super::ThingSpaceConfig, Problems, Url};

/// The domain of ThingSpace's hosts.
const VERIZON: &str = "verizon.com";

impl Problems {
    pub(super) fn thingspace(&mut self, thingspace: &ThingSpaceConfig) {
        let ThingSpaceConfig { connect_timeout, call_timeout, order_timeout, .. } = *thingspace;
        let ThingSpaceConfig { login_backoff_first, breaker_first, .. } = *thingspace;
        self.base_url(thingspace);
        if !thingspace.token_url.is_empty() {
            self.thingspace_url("thingspace.token_url", &thingspace.token_url, thingspace);
        }
        self.duration("thingspace.connect_timeout", connect_timeout, ["100ms", "1m"]);
        self.duration("thingspace.call_timeout", call_timeout, ["100ms", "5m"]);
        self.duration("thingspace.order_timeout", order_timeout, ["100ms", "10m"]);
        let key = "thingspace.login_backoff_first";
        self.duration(key, login_backoff_first, ["100ms", "1h"]);
        let max = ("thingspace.login_backoff_max", thingspace.login_backoff_max);
        self.ordered((key, login_backoff_first), max, "1d");
        self.number("thingspace.calls_per_second", thingspace.calls_per_second, 1..=10_000);
        let devices = thingspace.max_devices_per_order;
        self.number("thingspace.max_devices_per_order", devices, 1..=10_000);
        self.number("thingspace.max_connections", thingspace.max_connections, 4..=10_000);
        self.number("thingspace.breaker_failures", thingspace.breaker_failures, 1..=100);
        let key = "thingspace.breaker_first";
        self.duration(key, breaker_first, ["10ms", "1m"]);
        let max = ("thingspace.breaker_max", thingspace.breaker_max);
        self.ordered((key, breaker_first), max, "5m");
        self.proxy("thingspace.proxy_url", &thingspace.proxy_url);
    }

    /// Checks the base URL. Every path on a host of Verizon begins with `/api`. Other hosts may use
    /// other paths.
    fn base_url(&mut self, thingspace: &ThingSpaceConfig) {
        let key = "thingspace.base_url";
        let Some(url) = self.thingspace_url(key, &thingspace.base_url, thingspace) else { return };
        let is_verizon = url.host == VERIZON || url.host.ends_with(&format!(".{VERIZON}"));
        if is_verizon && !url.path.trim_end_matches('/').ends_with("/api") {
            self.push(format!(
                "{key}: must end with /api; write for example https://thingspace.verizon.com/api"
            ));
        }
    }

    /// Checks a URL to which tokens and passwords are sent.
    fn thingspace_url(
        &mut self,
        key: &str,
        text: &str,
        thingspace: &ThingSpaceConfig,
    ) -> Option<Url> {
        let url = self.url(key, text)?;
        if url.scheme == "http" && !url.is_loopback() && !thingspace.allow_plaintext {
            self.push(format!(
                "{key}: http:// would send passwords and tokens to {} in plain text. Write \
                 https://, or accept that risk with thingspace.allow_plaintext = true",
                url.host
            ));
        }
        Some(url)
    }

    /// Checks the URL of a proxy. The connection to the proxy is plaintext, but calls through it to
    /// an `https://` URL are encrypted.
    fn proxy(&mut self, key: &str, text: &str) {
        if !text.is_empty() && self.url(key, text).is_some_and(|url| url.scheme == "https") {
            self.push(format!("{key}: https is not supported; write http://HOST:PORT"));
        }
    }
}
