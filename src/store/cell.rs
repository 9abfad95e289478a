//! What cells hold: messages that say the number of their format, and who writes them first.

use bytes::Bytes;
use prost::Message;

use super::{CellName, Store, StoreError, Swap};

/// Decodes what a cell holds. One of a newer format is refused, so that it is never swapped by
/// somebody who reads only half of it.
pub fn decode_cell<M: Message + Default>(
    value: Bytes,
    newest: u32,
    version: impl FnOnce(&M) -> u32,
) -> Result<M, StoreError> {
    let message = M::decode(value).map_err(|error| StoreError::Corrupt(error.to_string()))?;
    match version(&message) {
        0 => Err(StoreError::Corrupt("a cell without a version".to_owned())),
        newer if newer > newest => {
            Err(StoreError::Corrupt(format!("a cell of version {newer}, newer than this gateway")))
        }
        _ => Ok(message),
    }
}

/// Whether a permanent cell that is out of date does more harm than one that is missing. The
/// guard's count of rejected logins in a backup may be lower than ThingSpace's; without a count,
/// nothing is tried.
pub fn must_be_current(name: &str) -> bool {
    name.starts_with("guard/")
}

/// What a cell holds, or what `make` makes for it: where several come at once, all get what the
/// first one stored.
pub async fn load_or_create(
    store: &dyn Store,
    cell: &CellName,
    make: impl FnOnce() -> Result<Bytes, StoreError>,
) -> Result<Bytes, StoreError> {
    if let Some(held) = store.load(cell).await? {
        return Ok(held.value);
    }
    let made = make()?;
    match store.swap(cell, None, made.clone()).await? {
        Swap::Swapped(_) => Ok(made),
        Swap::Conflict(Some(current)) => Ok(current.value),
        Swap::Conflict(None) => {
            Err(StoreError::Corrupt("a cell conflicts with nothing".to_owned()))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::storage::Poll;

    #[test]
    fn a_newer_format_is_refused_and_so_is_what_is_no_message() {
        let held =
            |version| Bytes::from(Poll { version, count: 3, ..Poll::default() }.encode_to_vec());
        let decode = |value| decode_cell(value, 1, |poll: &Poll| poll.version);
        assert_eq!(decode(held(1)).unwrap().count, 3);
        assert!(matches!(decode(held(2)), Err(StoreError::Corrupt(_))));
        assert!(matches!(decode(Bytes::from_static(b"\xff")), Err(StoreError::Corrupt(_))));
    }
}
