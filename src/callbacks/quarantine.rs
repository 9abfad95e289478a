//! Keeps callbacks that cannot be read, name no request or name another account, for an operator.
//!
//! They arrived at the right path, so ThingSpace may have sent them and will not send them again.
//! Their number and size are bounded; see [`quota`]. The bodies hold device identities and
//! passwords, so they are sealed (AES-256-GCM) with a key that is derived from the one in the cell
//! `callback-secrets`. This protects single values of the store, for example in a log or a dump. It
//! also detects a body in the place of another one. It does not protect the bodies from a reader of
//! the whole store, because the store also holds the key.

mod mask;
mod quota;

use std::{
    collections::HashSet,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use jiff::Timestamp;
use prost::Message;
use secrecy::{ExposeSecret, zeroize::Zeroizing};
use tokio::sync::Mutex;
use tracing::warn;

use super::secrets::CallbackSecrets;
use crate::{
    crypto::SealingKey,
    identity::AccountName,
    log_throttle::LogThrottle,
    proto::storage::{QuarantineBody, QuarantineEntry, QuarantineIndex},
    store::{CellName, Store, StoreError, change_cell, load_cell},
    telemetry::metrics,
};
use mask::without_passwords;
use quota::Allowances;

/// The most callbacks that are kept.
const MAX_ENTRIES: usize = 1_000;

/// The most bytes of all bodies together.
const MAX_BYTES: u64 = 16 << 20;

/// The callbacks that are kept for an operator.
#[derive(Debug)]
pub struct Quarantine {
    store: Arc<dyn Store>,
    secrets: CallbackSecrets,
    allowances: Allowances,
    /// Held while a callback is added, because every addition changes the index.
    adding: Mutex<()>,
    /// Callbacks that this replica evicted.
    evicted: AtomicU64,
    evictions: LogThrottle,
}

/// A callback in the list of the quarantine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ListedCallback {
    /// Counts the callbacks that were added, from 1.
    pub number: u64,
    /// When it was added.
    pub time: Timestamp,
    /// The account in its path.
    pub account: String,
    /// Bytes of the body.
    pub size: u32,
}

/// A callback that is shown to an operator.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct QuarantinedBody {
    /// The account in its path.
    pub account: String,
    /// The body, with `***` for each password that was found.
    pub body: String,
}

impl Quarantine {
    pub(super) fn new(store: Arc<dyn Store>, secrets: CallbackSecrets) -> Self {
        let (allowances, adding, evicted, evictions) = Default::default();
        Self { store, secrets, allowances, adding, evicted, evictions }
    }

    pub(crate) fn evicted(&self) -> u64 {
        self.evicted.load(Ordering::Relaxed)
    }

    /// Adds a callback durably and returns its number. A callback with the account's pair is
    /// `proved`. Returns `None` if too many unproved ones were added recently.
    pub(super) async fn add(
        &self,
        account: &AccountName,
        body: &[u8],
        proved: bool,
    ) -> Result<Option<u64>, StoreError> {
        if !proved && !self.allowances.take(account) {
            return Ok(None);
        }
        let _adding = self.adding.lock().await;
        let size = u32::try_from(body.len()).map_err(|_| StoreError::TooLarge(body.len()))?;
        let (entry, evicted) = self.add_to_index(account, size, proved).await?;
        self.put(&entry, self.seal(&entry, body)?).await?;
        // Empties the cells of the evicted bodies. `put` keeps a newer body in one of these cells.
        for entry in evicted {
            self.evicted.fetch_add(1, Ordering::Relaxed);
            metrics().quarantine_evicted.add(&[]);
            if let Some(times) = self.evictions.count() {
                warn!(
                    %account, times,
                    "the quarantine is full; callbacks were removed from it to make room"
                );
            }
            self.put(&entry, Vec::new()).await?;
        }
        Ok(Some(entry.number))
    }

    /// Lists the callbacks, oldest first.
    pub async fn list(&self) -> Result<Vec<ListedCallback>, StoreError> {
        let listed = |entry: QuarantineEntry| ListedCallback {
            number: entry.number,
            time: Timestamp::from_millisecond(entry.time_ms).unwrap_or_default(),
            account: entry.account,
            size: entry.size,
        };
        Ok(self.index().await?.entries.into_iter().map(listed).collect())
    }

    /// Returns the body of a callback, or `None` if there is no callback with this number.
    pub async fn show(&self, number: u64) -> Result<Option<QuarantinedBody>, StoreError> {
        let entries = self.index().await?.entries;
        let Some(entry) = entries.into_iter().find(|entry| entry.number == number) else {
            return Ok(None);
        };
        let held = load_cell::<QuarantineBody>(&*self.store, &cell(&entry)).await?;
        let Some(held) = held.map(|held| held.value) else { return Ok(None) };
        if held.number != number || held.sealed.is_empty() {
            return Ok(None);
        }
        let body = self.open(&entry, &held.sealed)?;
        let mut body = without_passwords(&String::from_utf8_lossy(&body));
        // The password may also be in a field with another name.
        let account = AccountName::parse(&entry.account).ok();
        if let Some(pair) = account.and_then(|account| self.secrets.pair(&account)) {
            body = body.replace(pair.password.expose_secret(), "***");
        }
        Ok(Some(QuarantinedBody { account: entry.account, body }))
    }

    /// Adds an entry to the index. Returns it, and the entries that were evicted.
    async fn add_to_index(
        &self,
        account: &AccountName,
        size: u32,
        proved: bool,
    ) -> Result<(QuarantineEntry, Vec<QuarantineEntry>), StoreError> {
        change_cell(&*self.store, &index_cell(), |index: &mut QuarantineIndex| {
            index.count += 1;
            let mut entry = QuarantineEntry {
                number: index.count,
                time_ms: Timestamp::now().as_millisecond(),
                account: account.to_string(),
                size,
                slot: None,
                unproved: !proved,
            };
            index.entries.push(entry.clone());
            let evicted = quota::evict(&mut index.entries);
            index.entries.pop();
            entry.slot = Some(free_slot(&index.entries));
            index.entries.push(entry.clone());
            (entry, evicted)
        })
        .await
    }

    async fn index(&self) -> Result<QuarantineIndex, StoreError> {
        let held = load_cell(&*self.store, &index_cell()).await?;
        Ok(held.map(|held| held.value).unwrap_or_default())
    }

    /// Writes a body into its cell, unless the cell holds that of a later callback.
    async fn put(&self, entry: &QuarantineEntry, sealed: Vec<u8>) -> Result<(), StoreError> {
        change_cell(&*self.store, &cell(entry), |body: &mut QuarantineBody| {
            if body.number <= entry.number {
                body.number = entry.number;
                body.sealed.clone_from(&sealed);
            }
        })
        .await
    }

    fn key(&self) -> Result<SealingKey, StoreError> {
        Ok(SealingKey::new(&*self.secrets.quarantine_key()?))
    }

    fn seal(&self, entry: &QuarantineEntry, body: &[u8]) -> Result<Vec<u8>, StoreError> {
        let sealed = self.key()?.seal(&context(entry), body);
        sealed.ok_or_else(|| StoreError::Unavailable("cannot seal".to_owned()))
    }

    fn open(
        &self,
        entry: &QuarantineEntry,
        sealed: &[u8],
    ) -> Result<Zeroizing<Vec<u8>>, StoreError> {
        let corrupt = || StoreError::Corrupt("a quarantined callback does not open".to_owned());
        self.key()?.open(&context(entry), sealed).ok_or_else(corrupt)
    }
}

/// Returns what binds a sealed body to its entry: the fields that the first release wrote.
fn context(entry: &QuarantineEntry) -> Vec<u8> {
    QuarantineEntry { slot: None, unproved: false, ..entry.clone() }.encode_to_vec()
}

fn index_cell() -> CellName {
    CellName::permanent("quarantine/index")
}

fn slot(entry: &QuarantineEntry) -> u64 {
    entry.slot.map_or(entry.number % MAX_ENTRIES as u64, u64::from)
}

/// Returns the lowest slot that none of these entries has.
fn free_slot(entries: &[QuarantineEntry]) -> u32 {
    let taken: HashSet<u64> = entries.iter().map(slot).collect();
    let most = u32::try_from(entries.len()).expect("at most MAX_ENTRIES");
    (0..=most).find(|slot| !taken.contains(&u64::from(*slot))).expect("more slots than entries")
}

fn cell(entry: &QuarantineEntry) -> CellName {
    CellName::permanent(format!("quarantine/{:04}", slot(entry)))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tempfile::TempDir;

    use super::*;
    use crate::{config::Config, store::embedded::Embedded};

    fn account() -> AccountName {
        AccountName::parse("0000123456-00001").unwrap()
    }

    fn open(folder: &TempDir, name: &str) -> Arc<dyn Store> {
        Arc::new(Embedded::open(&folder.path().join(name), Duration::from_hours(1)).unwrap())
    }

    /// The cell of the nth body.
    fn cell_of(n: u32) -> CellName {
        cell(&QuarantineEntry { slot: Some(n - 1), ..QuarantineEntry::default() })
    }

    async fn secrets(of: &Arc<dyn Store>) -> CallbackSecrets {
        let config = Config::defaults().callbacks;
        let secrets = CallbackSecrets::new(&config, Arc::clone(of), &[account()]);
        secrets.refresh().await.unwrap();
        secrets
    }

    async fn quarantine() -> (TempDir, Arc<dyn Store>, Quarantine) {
        let folder = tempfile::tempdir().unwrap();
        let store = open(&folder, "store");
        let quarantine = Quarantine::new(Arc::clone(&store), secrets(&store).await);
        (folder, store, quarantine)
    }

    #[tokio::test]
    async fn what_is_kept_is_listed_shown_and_sealed() {
        let (folder, store, quarantine) = quarantine().await;
        for (body, number) in [("first secret", 1), ("second", 2)] {
            assert_eq!(
                quarantine.add(&account(), body.as_bytes(), false).await.unwrap(),
                Some(number)
            );
        }
        let listed = quarantine.list().await.unwrap();
        let of = |listed: &ListedCallback| (listed.number, listed.account.clone(), listed.size);
        assert_eq!(
            listed.iter().map(of).collect::<Vec<_>>(),
            [(1, account().to_string(), 12), (2, account().to_string(), 6)]
        );
        let shown = quarantine.show(1).await.unwrap().unwrap();
        assert_eq!((shown.account, shown.body.as_str()), (account().to_string(), "first secret"));
        assert_eq!(quarantine.show(3).await.unwrap(), None);
        let stored = store.load(&cell_of(1)).await.unwrap().unwrap();
        assert!(!String::from_utf8_lossy(&stored.value).contains("secret"));

        let another = Quarantine::new(Arc::clone(&store), secrets(&open(&folder, "another")).await);
        assert!(matches!(another.show(1).await, Err(StoreError::Corrupt(_))));
        let moved = store.load(&cell_of(2)).await.unwrap().unwrap();
        let mut body = QuarantineBody::decode(stored.value).unwrap();
        body.number = 2;
        store.swap(&cell_of(2), Some(moved.version), body.encode_to_vec().into()).await.unwrap();
        assert!(matches!(quarantine.show(2).await, Err(StoreError::Corrupt(_))));
    }

    #[tokio::test]
    async fn the_accounts_password_is_masked_under_every_name() {
        let (_folder, _store, quarantine) = quarantine().await;
        let pair = quarantine.secrets.pair(&account()).unwrap();
        let body = format!(r#"{{"pw": "{}", "x": 1}}"#, pair.password.expose_secret());
        quarantine.add(&account(), body.as_bytes(), true).await.unwrap();
        assert_eq!(quarantine.show(1).await.unwrap().unwrap().body, r#"{"pw": "***", "x": 1}"#);
    }

    #[tokio::test]
    async fn the_oldest_callbacks_are_evicted_first() {
        let (_folder, store, quarantine) = quarantine().await;
        let big = vec![b'x'; 256 << 10];
        for _ in 0..70 {
            quarantine.add(&account(), &big, true).await.unwrap();
        }
        let listed = quarantine.list().await.unwrap();
        assert_eq!((listed.len(), listed[0].number, quarantine.evicted()), (64, 7, 6));
        assert_eq!(quarantine.show(6).await.unwrap(), None);
        assert!(quarantine.show(7).await.unwrap().is_some());
        // The 65th callback is in the cell of the first.
        for number in listed.iter().map(|listed| listed.number) {
            assert!(quarantine.show(number).await.unwrap().is_some(), "{number}");
        }
        let cells = [63, 64].map(|slot| CellName::permanent(format!("quarantine/{slot:04}")));
        assert!(store.load(&cells[0]).await.unwrap().is_some());
        assert!(store.load(&cells[1]).await.unwrap().is_none_or(|held| held.value.len() < 100));
    }

    #[tokio::test]
    async fn many_unproved_callbacks_do_not_evict_a_proved_one() {
        let (_folder, _store, quarantine) = quarantine().await;
        quarantine.add(&account(), b"proved", true).await.unwrap();
        let mut kept = 0;
        for _ in 0..1_100 {
            kept +=
                u32::from(quarantine.add(&account(), b"unproved", false).await.unwrap().is_some());
        }
        assert_eq!(kept, 50);
        assert_eq!(quarantine.show(1).await.unwrap().unwrap().body, "proved");
        assert!(quarantine.add(&account(), b"proved", true).await.unwrap().is_some());
    }

    /// Earlier releases wrote entries without a slot.
    #[tokio::test]
    async fn an_entry_without_a_slot_has_the_cell_of_its_number() {
        let (_folder, store, quarantine) = quarantine().await;
        let entry = QuarantineEntry {
            number: 1_007,
            account: account().to_string(),
            ..QuarantineEntry::default()
        };
        quarantine.put(&entry, quarantine.seal(&entry, b"earlier").unwrap()).await.unwrap();
        let index = QuarantineIndex { version: 1, count: 1_007, entries: vec![entry] };
        store.swap(&index_cell(), None, index.encode_to_vec().into()).await.unwrap();
        quarantine.add(&account(), b"new", true).await.unwrap();
        assert_eq!(quarantine.show(1_007).await.unwrap().unwrap().body, "earlier");
        assert_eq!(quarantine.show(1_008).await.unwrap().unwrap().body, "new");
    }

    #[tokio::test]
    async fn an_older_callback_does_not_replace_a_newer_one_in_its_cell() {
        let (_folder, _store, quarantine) = quarantine().await;
        let entry =
            |number| QuarantineEntry { number, slot: Some(1), ..QuarantineEntry::default() };
        quarantine.put(&entry(1001), vec![1]).await.unwrap();
        quarantine.put(&entry(1), vec![2]).await.unwrap();
        let held = quarantine.store.load(&cell(&entry(1))).await.unwrap().unwrap();
        assert_eq!(QuarantineBody::decode(held.value).unwrap().number, 1001);
    }
}
