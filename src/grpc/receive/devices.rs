//! Counts the devices of an order without decoding them.

use bytes::Buf;
use prost::encoding::{DecodeContext, WireType, decode_key, skip_field};

/// The most devices of an order that any configuration allows, which is ThingSpace's limit.
pub(super) const MAX_DEVICES: usize = 10_000;

/// The number of the field `devices` in `DownloadProfileRequest`.
const DEVICES: u32 = 2;

/// Returns the number of devices in an encoded order, up to the first byte that cannot be decoded.
pub(super) fn count(mut order: &[u8]) -> usize {
    let mut devices = 0;
    while order.has_remaining() {
        let Ok((tag, wire_type)) = decode_key(&mut order) else { break };
        devices += usize::from(tag == DEVICES && wire_type == WireType::LengthDelimited);
        if skip_field(wire_type, tag, &mut order, DecodeContext::default()).is_err() {
            break;
        }
    }
    devices
}

#[cfg(test)]
mod tests {
    use prost::Message;

    use super::*;
    use crate::proto::esim::{DeviceIdentifiers, DownloadProfileRequest};

    #[test]
    fn devices_are_counted() {
        for devices in [0, 1, 3, 20_000] {
            let mut order = DownloadProfileRequest {
                account_name: "0000123456-00001".to_owned(),
                devices: vec![DeviceIdentifiers::default(); devices],
                service_plan: "plan".to_owned(),
                idempotency_key: "key".to_owned(),
                validate_only: true,
            };
            assert_eq!(count(&order.encode_to_vec()), devices);
            order.devices.iter_mut().for_each(|device| "8".repeat(32).clone_into(&mut device.eid));
            assert_eq!(count(&order.encode_to_vec()), devices);
        }
    }

    #[test]
    fn what_cannot_be_decoded_is_not_counted() {
        assert_eq!(count(&[0x12, 0, 0x12, 0, 0xff]), 2);
        assert_eq!(count(&[0x12, 0, 0x12, 200]), 1 + 1);
        assert_eq!(count(&[0x10, 1]), 0);
    }
}
