//! Typed cells: cells that hold a message of [`storage`].
//!
//! Each message has the number of its format. A cell of a newer format is refused, so that a
//! gateway that knows only some of its fields never replaces it.

use bytes::Bytes;
use prost::Message;

use super::{CellName, Store, StoreError, Swap, Version, Versioned};
use crate::proto::storage;

/// The format of all messages in cells.
pub(crate) const CELL_FORMAT: u32 = 1;

/// The most swaps that one change tries while other replicas change the cell, too.
const SWAP_TRIES: u32 = 8;

/// A message that a cell holds.
pub(crate) trait CellMessage: Message + Default + Clone + PartialEq {
    /// The number of the message's format.
    fn format(&mut self) -> &mut u32;
}

macro_rules! cell_messages {
    ($($message:ident)*) => {$(
        impl CellMessage for storage::$message {
            fn format(&mut self) -> &mut u32 {
                &mut self.version
            }
        }
    )*};
}

cell_messages! {
    Key Poll LowWater TokenKey CallbackSecrets CallbackPair QuarantineIndex QuarantineBody Guard
    StoreRecord
}

/// Decodes what a cell holds. A newer format is an error.
pub(crate) fn decode_cell<M: CellMessage>(value: Bytes) -> Result<M, StoreError> {
    let mut message = M::decode(value).map_err(|error| StoreError::Corrupt(error.to_string()))?;
    match *message.format() {
        0 => Err(StoreError::Corrupt("a cell without a version".to_owned())),
        CELL_FORMAT => Ok(message),
        newer => {
            Err(StoreError::Corrupt(format!("a cell of version {newer}, newer than this gateway")))
        }
    }
}

/// Returns the message that a cell holds, and its version.
pub(crate) async fn load_cell<M: CellMessage>(
    store: &dyn Store,
    cell: &CellName,
) -> Result<Option<Versioned<M>>, StoreError> {
    let Some(Versioned { version, value }) = store.load(cell).await? else { return Ok(None) };
    Ok(Some(Versioned { version, value: decode_cell(value)? }))
}

/// Replaces the message that a cell holds; see [`Store::swap`].
pub(crate) async fn swap_cell<M: CellMessage>(
    store: &dyn Store,
    cell: &CellName,
    expected: Option<Version>,
    message: &mut M,
) -> Result<Swap, StoreError> {
    *message.format() = CELL_FORMAT;
    store.swap(cell, expected, message.encode_to_vec().into()).await
}

/// Changes the message that a cell holds, or an empty message if the cell is absent. `change` is
/// called again if another replica changed the cell first.
pub(crate) async fn change_cell<M: CellMessage, T>(
    store: &dyn Store,
    cell: &CellName,
    mut change: impl FnMut(&mut M) -> T,
) -> Result<T, StoreError> {
    for _ in 0..SWAP_TRIES {
        let current = load_cell::<M>(store, cell).await?;
        let mut message = current.as_ref().map(|cell| cell.value.clone()).unwrap_or_default();
        let result = change(&mut message);
        if current.as_ref().is_some_and(|cell| cell.value == message) {
            return Ok(result);
        }
        let expected = current.map(|cell| cell.version);
        if let Swap::Swapped(_) = swap_cell(store, cell, expected, &mut message).await? {
            return Ok(result);
        }
    }
    Err(contended(cell))
}

/// Returns the error for a change that failed after [`SWAP_TRIES`] swaps.
fn contended(cell: &CellName) -> StoreError {
    StoreError::Unavailable(format!("other replicas keep changing the cell {}", cell.name))
}

/// Returns the message that a cell holds. If there is none, stores the one that `make` returns. All
/// concurrent callers get the message that was stored first.
pub(crate) async fn load_or_create<M: CellMessage>(
    store: &dyn Store,
    cell: &CellName,
    make: impl FnOnce() -> Result<M, StoreError>,
) -> Result<M, StoreError> {
    if let Some(current) = load_cell(store, cell).await? {
        return Ok(current.value);
    }
    let mut message = make()?;
    match swap_cell(store, cell, None, &mut message).await? {
        Swap::Swapped(_) => Ok(message),
        Swap::Conflict(Some(current)) => decode_cell(current.value),
        Swap::Conflict(None) => Err(StoreError::Corrupt(
            "an absent cell could not be created, and has no other value".to_owned(),
        )),
    }
}

/// Returns whether an outdated value of a permanent cell is worse than none. That holds for a login
/// guard: its count of rejected logins may be too low in a backup. Without a count, no login is
/// sent.
pub(crate) fn must_be_current(name: &str) -> bool {
    name.starts_with("guard/")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::storage::Poll;

    #[test]
    fn a_newer_format_and_bytes_that_are_no_message_are_refused() {
        let encoded =
            |version| Bytes::from(Poll { version, count: 3, ..Poll::default() }.encode_to_vec());
        assert_eq!(decode_cell::<Poll>(encoded(1)).unwrap().count, 3);
        assert!(matches!(decode_cell::<Poll>(encoded(2)), Err(StoreError::Corrupt(_))));
        let garbage = decode_cell::<Poll>(Bytes::from_static(b"\xff"));
        assert!(matches!(garbage, Err(StoreError::Corrupt(_))));
    }
}
