//! Networks in CIDR notation, ADDRESS/BITS.

use std::net::{IpAddr, Ipv4Addr};

/// A range of IP addresses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Network {
    address: IpAddr,
    bits: u32,
}

impl Network {
    /// Parses networks that are separated by commas. An error completes the sentence "the list …".
    pub(crate) fn parse_list(text: &str) -> Result<Vec<Self>, String> {
        if text.trim().is_empty() {
            return Ok(Vec::new());
        }
        text.split(',').map(|one| Self::parse(one.trim())).collect()
    }

    fn parse(text: &str) -> Result<Self, String> {
        let wrong =
            || format!("holds {text:?}, which is not a network; write for example 203.0.113.0/24");
        let (address, bits) = text.split_once('/').ok_or_else(wrong)?;
        let address: IpAddr = address.parse().map_err(|_| wrong())?;
        let longest = if address.is_ipv4() { Ipv4Addr::BITS } else { u128::BITS };
        let bits: u32 = bits.parse().ok().filter(|bits| *bits <= longest).ok_or_else(wrong)?;
        Ok(Self { address, bits })
    }

    pub(crate) fn contains(&self, address: IpAddr) -> bool {
        let address = address.to_canonical();
        address.is_ipv4() == self.address.is_ipv4()
            && self.prefix(address) == self.prefix(self.address)
    }

    /// Returns the first `bits` bits of an address of the same family.
    fn prefix(&self, address: IpAddr) -> u128 {
        let (number, longest) = match address {
            IpAddr::V4(address) => (address.to_bits().into(), Ipv4Addr::BITS),
            IpAddr::V6(address) => (address.to_bits(), u128::BITS),
        };
        number.checked_shr(longest - self.bits).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_network_contains_its_addresses_only() {
        let networks = Network::parse_list("192.0.2.77/24, 198.51.100.7/32,2001:db8::/32").unwrap();
        let inside =
            |address: &str| networks.iter().any(|one| one.contains(address.parse().unwrap()));
        for address in
            ["192.0.2.0", "192.0.2.255", "::ffff:192.0.2.9", "198.51.100.7", "2001:db8:1::1"]
        {
            assert!(inside(address), "{address}");
        }
        for address in ["192.0.3.0", "198.51.100.8", "2001:db9::", "::", "0.0.0.0"] {
            assert!(!inside(address), "{address}");
        }
        for everything in ["0.0.0.0/0,::/0", " 0.0.0.0/0 , ::/0 "] {
            let networks = Network::parse_list(everything).unwrap();
            assert!(networks[0].contains("192.0.2.1".parse().unwrap()));
            assert!(networks[1].contains("2001:db8::1".parse().unwrap()));
        }
        assert_eq!(Network::parse_list(""), Ok(Vec::new()));
    }

    #[test]
    fn text_that_is_not_a_network_is_refused() {
        for wrong in
            ["192.0.2.1", "192.0.2.256/24", "192.0.2.0/33", "gw.example/8", "2001:db8::/129", "/8"]
        {
            let why = Network::parse_list(&format!("10.0.0.0/8,{wrong}")).unwrap_err();
            assert!(why.contains(wrong), "{why}");
        }
    }
}
