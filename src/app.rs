//! To be written.

use std::net::SocketAddr;

use crate::{config::Config, shutdown::Stop};

/// Runs a gateway until it is told to stop.
#[expect(clippy::unused_async, reason = "placeholder")]
pub async fn serve(_config: Config, _stop: Stop) -> anyhow::Result<()> {
    anyhow::bail!("not built yet")
}

/// Runs a gateway and a simulator; what `config` lacks for that it fills in.
#[expect(clippy::unused_async, reason = "placeholder")]
pub async fn dev(_config: Config, _stop: Stop) -> anyhow::Result<()> {
    anyhow::bail!("not built yet")
}

/// Runs a simulator.
#[expect(clippy::unused_async, reason = "placeholder")]
pub async fn simulate(_listen: SocketAddr, _stop: Stop) -> anyhow::Result<()> {
    anyhow::bail!("not built yet")
}
