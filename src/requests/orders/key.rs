//! The cell of an idempotency key. It ensures that an order is placed at most once.

use std::time::Duration;

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

/// Returns the digest of an order, which a key belongs to.
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

impl KeyCell {
    pub async fn load(store: &dyn Store, cell: &CellName) -> Result<Option<Self>, StoreError> {
        Ok(load_cell(store, cell).await?.map(Self))
    }

    pub fn phase(&self) -> KeyPhase {
        self.0.value.phase()
    }

    pub fn order_id(&self) -> &str {
        &self.0.value.order_id
    }

    pub fn request_id(&self) -> &str {
        &self.0.value.request_id
    }

    pub fn incarnation(&self) -> &str {
        &self.0.value.incarnation
    }

    pub fn version(&self) -> Version {
        self.0.version
    }

    /// How long the process that claimed the key may take.
    pub fn lease(&self) -> Duration {
        Duration::from_millis(self.0.value.lease_ms.into())
    }

    pub fn sent_time(&self) -> Timestamp {
        Timestamp::from_millisecond(self.0.value.sent_time_ms).unwrap_or_default()
    }

    /// Whether the key belongs to this order. With an unknown algorithm it does not.
    pub fn is_for(&self, hash: &[u8]) -> bool {
        self.0.value.hash_algorithm == HASH_ALGORITHM && self.0.value.request_hash == hash
    }

    /// Claims the cell for an order, replacing the content `before`. `None`: another replica was
    /// first.
    pub async fn claim(
        store: &dyn Store,
        cell: &CellName,
        before: Option<&Self>,
        claim: KeyClaim<'_>,
    ) -> Result<Option<Self>, StoreError> {
        let value = storage::Key {
            order_id: claim.order_id.to_owned(),
            hash_algorithm: HASH_ALGORITHM,
            request_hash: claim.hash.to_vec(),
            phase: KeyPhase::Sending.into(),
            sent_time_ms: claim.sent_time.as_millisecond(),
            incarnation: claim.incarnation.to_owned(),
            lease_ms: claim.lease_ms,
            ..storage::Key::default()
        };
        swap(store, cell, before.map(Self::version), value).await
    }

    /// Changes the phase. `None`: another replica has changed the cell.
    pub async fn advance(
        &self,
        store: &dyn Store,
        cell: &CellName,
        phase: KeyPhase,
        request_id: &str,
    ) -> Result<Option<Self>, StoreError> {
        let value = storage::Key {
            phase: phase.into(),
            request_id: request_id.to_owned(),
            ..self.0.value.clone()
        };
        swap(store, cell, Some(self.0.version), value).await
    }
}

/// The content of a claim.
#[derive(Debug, Clone, Copy)]
pub struct KeyClaim<'a> {
    pub order_id: &'a str,
    pub hash: &'a [u8],
    pub incarnation: &'a str,
    pub sent_time: Timestamp,
    pub lease_ms: u32,
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
