//! Addresses to listen on in configuration: an IP address and a port.

use std::net::SocketAddr;

use serde::{Deserialize, Deserializer, de::Error};

pub(super) fn deserialize<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<SocketAddr, D::Error> {
    let text = String::deserialize(deserializer)?;
    text.parse().map_err(|_| {
        D::Error::custom(format!(
            "{text:?} is not an IP address and a port: write for example \"127.0.0.1:50051\" or \"[::]:50051\""
        ))
    })
}
