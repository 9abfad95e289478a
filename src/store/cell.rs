//! What cells hold: messages that say the number of their format.

use bytes::Bytes;
use prost::Message;

use super::StoreError;

/// Decodes what a cell holds. One of a newer format is refused, so that it is never swapped by somebody who reads only half of it.
pub fn decode_cell<M: Message + Default>(
    value: Bytes,
    newest: u32,
    version: impl FnOnce(&M) -> u32,
) -> Result<M, StoreError> {
    let message = M::decode(value).map_err(|error| StoreError::Corrupt(error.to_string()))?;
    match version(&message) {
        newer if newer > newest => {
            Err(StoreError::Corrupt(format!("a cell of version {newer}, newer than this gateway")))
        }
        _ => Ok(message),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::storage::Poll;

    #[test]
    fn a_newer_format_is_refused_and_so_is_what_is_no_message() {
        let held = |version| Bytes::from(Poll { version, count: 3, ..Poll::default() }.encode_to_vec());
        let decode = |value| decode_cell(value, 1, |poll: &Poll| poll.version);
        assert_eq!(decode(held(1)).unwrap().count, 3);
        assert!(matches!(decode(held(2)), Err(StoreError::Corrupt(_))));
        assert!(matches!(decode(Bytes::from_static(b"\xff")), Err(StoreError::Corrupt(_))));
    }
}
