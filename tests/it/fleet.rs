//! Several replicas of a gateway over one NATS.

use thingspace_gateway::config::{Config, StoreKind};

use crate::harness::{Gateway, Upstream};

impl Upstream {
    /// A configuration as that of the `n`th replica over the NATS at these URLs, which stores
    /// everything so often.
    pub fn replica(&self, config: &Config, url: &str, stored: usize, n: usize) -> Config {
        let mut config = config.clone();
        config.store.kind = StoreKind::Nats;
        url.clone_into(&mut config.store.nats.url);
        config.store.nats.replicas = stored;
        config.control.socket = self.dir.path().join(format!("replica-{n}.sock"));
        config
    }

    /// Three replicas in this process, over one server.
    pub async fn replicas(&self, config: &Config, url: &str) -> [Gateway; 3] {
        let start = |n| Gateway::start(self.replica(config, url, 1, n));
        [start(0).await, start(1).await, start(2).await]
    }
}
