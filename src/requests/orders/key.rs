//! The cell of an idempotency key. It ensures that an order is placed at most once.

use std::{ops::Deref, time::Duration};

use base64::{Engine, prelude::BASE64_URL_SAFE_NO_PAD};
use jiff::Timestamp;

use crate::{
    crypto::digest_of,
    identity::AccountName,
    proto::storage::{self, KeyPhase},
    store::{CellName, Store, StoreError, Swap, Version, Versioned, load_cell, swap_cell},
    thingspace::Order,
};

/// The algorithm of [`hash`].
const HASH_ALGORITHM: u32 = 1;

/// Returns the cell of an account's key. Its name is a digest, because a key may be any text.
pub fn cell(account: &AccountName, key: &str) -> CellName {
    let digest = digest_of(&[account.as_str(), key]);
    CellName::retained(format!("key/{}", BASE64_URL_SAFE_NO_PAD.encode(digest)))
}

/// Returns the digest of an order. A key may be repeated only for orders with the same digest.
pub fn hash(order: &Order) -> Vec<u8> {
    let mut fields = vec![order.account.as_str(), order.service_plan.as_str()];
    for device in &order.devices {
        fields.extend([device.eid.as_str(), device.iccid.as_str(), device.imei.as_str()]);
    }
    digest_of(&fields).to_vec()
}

/// The content of a key's cell at one version.
#[derive(Debug, Clone)]
pub struct KeyCell(Versioned<storage::Key>);

impl Deref for KeyCell {
    type Target = storage::Key;

    fn deref(&self) -> &storage::Key {
        &self.0.value
    }
}

impl KeyCell {
    pub(super) async fn load(
        store: &dyn Store,
        cell: &CellName,
    ) -> Result<Option<Self>, StoreError> {
        Ok(load_cell(store, cell).await?.map(Self))
    }

    pub(super) fn version(&self) -> Version {
        self.0.version
    }

    /// The time that the process that claimed the key has to send the order.
    pub(super) fn lease(&self) -> Duration {
        Duration::from_millis(self.lease_ms.into())
    }

    pub(super) fn sent_time(&self) -> Timestamp {
        Timestamp::from_millisecond(self.sent_time_ms).unwrap_or_default()
    }

    /// Returns whether the key was claimed for an order with this digest. An unknown algorithm
    /// never matches.
    pub(super) fn is_for(&self, hash: &[u8]) -> bool {
        self.hash_algorithm == HASH_ALGORITHM && self.request_hash == hash
    }

    /// Claims the cell for an order: replaces the content `before` by `claim` with the phase
    /// SENDING. Returns `None` if another replica was first.
    pub async fn claim(
        store: &dyn Store,
        cell: &CellName,
        before: Option<&Self>,
        claim: storage::Key,
    ) -> Result<Option<Self>, StoreError> {
        let (hash_algorithm, phase) = (HASH_ALGORITHM, KeyPhase::Sending.into());
        let value = storage::Key { hash_algorithm, phase, ..claim };
        swap(store, cell, before.map(Self::version), value).await
    }

    /// Changes the phase. Returns `None` if another replica has changed the cell.
    pub async fn advance(
        &self,
        store: &dyn Store,
        cell: &CellName,
        phase: KeyPhase,
        request_id: &str,
    ) -> Result<Option<Self>, StoreError> {
        let (phase, request_id) = (phase.into(), request_id.to_owned());
        let value = storage::Key { phase, request_id, ..self.0.value.clone() };
        swap(store, cell, Some(self.0.version), value).await
    }
}

async fn swap(
    store: &dyn Store,
    cell: &CellName,
    expected: Option<Version>,
    mut value: storage::Key,
) -> Result<Option<KeyCell>, StoreError> {
    Ok(match swap_cell(store, cell, expected, &mut value).await? {
        Swap::Swapped(version) => Some(KeyCell(Versioned { version, value })),
        Swap::Conflict(_) => None,
    })
}
