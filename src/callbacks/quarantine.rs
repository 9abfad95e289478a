//! Callbacks that nobody understands, kept for a person to look at.
//!
//! They came by the right path, so ThingSpace sent them and will not send them again: they are worth keeping, and they are
//! bounded, the oldest going first. The bodies hold device identities and passwords, so they are sealed (AES-256-GCM) with a
//! key derived from the one in the cell `callback-secrets`. That keeps them from whoever sees values of the store by themselves:
//! a log, a trace, a dump of these cells, and it keeps one from being shown in place of another. It protects from nobody who
//! has the whole store, which holds the key as well.

use std::{fmt, sync::Arc};

use aws_lc_rs::aead::{AES_256_GCM, Aad, Nonce, RandomizedNonceKey};
use bytes::Bytes;
use jiff::Timestamp;
use prost::Message;
use secrecy::ExposeSecret;
use tokio::sync::Mutex;
use uuid::Uuid;

use super::secrets::Secrets;
use crate::{
    identity::AccountName,
    proto::storage::{QuarantineBody, QuarantineEntry, QuarantineIndex},
    store::{CellName, Store, StoreError, Swap, decode_cell},
};

/// Callbacks that are kept.
pub const MAX_ENTRIES: usize = 1_000;

/// Of all bodies together.
pub const MAX_BYTES: u64 = 16 << 20;

/// How often a swap is tried again when another replica was first.
const SWAP_TRIES: u32 = 8;

const NONCE_BYTES: usize = 12;

/// Format of the cells.
const FORMAT: u32 = 1;

pub struct Quarantine {
    store: Arc<dyn Store>,
    secrets: Secrets,
    /// One at a time: they all change the index.
    turn: Mutex<()>,
}

impl fmt::Debug for Quarantine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Quarantine(…)")
    }
}

/// What is said of a quarantined callback.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listed {
    pub number: u64,
    pub time: Timestamp,
    pub account: String,
    /// Bytes of its body.
    pub size: u32,
}

/// A quarantined callback, with `***` for each password that can be found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Shown {
    pub account: String,
    pub body: String,
}

impl Quarantine {
    pub(super) fn new(store: Arc<dyn Store>, secrets: Secrets) -> Self {
        Self { store, secrets, turn: Mutex::default() }
    }

    /// Keeps a body; durable when this returns. It gives the body's number.
    pub(super) async fn add(&self, account: &AccountName, body: &[u8]) -> Result<u64, StoreError> {
        let _turn = self.turn.lock().await;
        let size = u32::try_from(body.len()).map_err(|_| StoreError::TooLarge(body.len()))?;
        let (entry, gone) = self.announce(account, size).await?;
        self.put(entry.number, self.seal(&entry, body)?).await?;
        // What went only because of its size still lies in a cell of its own.
        for entry in gone {
            self.put(entry.number, Vec::new()).await?;
        }
        Ok(entry.number)
    }

    /// Those that are kept, oldest first.
    pub async fn list(&self) -> Result<Vec<Listed>, StoreError> {
        let (_, index) = self.index().await?;
        let listed = |entry: QuarantineEntry| Listed {
            number: entry.number,
            time: Timestamp::from_millisecond(entry.time_ms).unwrap_or_default(),
            account: entry.account,
            size: entry.size,
        };
        Ok(index.entries.into_iter().map(listed).collect())
    }

    /// A body, with `***` for each password that can be found; `None` if there is none of this number.
    pub async fn show(&self, number: u64) -> Result<Option<Shown>, StoreError> {
        let (_, index) = self.index().await?;
        let Some(entry) = index.entries.into_iter().find(|entry| entry.number == number) else {
            return Ok(None);
        };
        let Some(held) = self.store.load(&slot(number)).await? else { return Ok(None) };
        let stored = decode_cell(held.value, FORMAT, |cell: &QuarantineBody| cell.version)?;
        if stored.number != number || stored.sealed.is_empty() {
            return Ok(None);
        }
        let body = self.open(&entry, stored.sealed)?;
        let body = without_passwords(&String::from_utf8_lossy(&body));
        // It may also stand under another name.
        let known = AccountName::parse(&entry.account).ok().and_then(|account| self.secrets.pair(&account));
        let body = match &known {
            Some(pair) => body.replace(pair.password.expose_secret(), "***"),
            None => body,
        };
        Ok(Some(Shown { account: entry.account, body }))
    }

    /// Writes a new entry into the index, and takes from it what goes for that.
    async fn announce(
        &self,
        account: &AccountName,
        size: u32,
    ) -> Result<(QuarantineEntry, Vec<QuarantineEntry>), StoreError> {
        for _ in 0..SWAP_TRIES {
            let (version, mut index) = self.index().await?;
            index.version = FORMAT;
            index.nonce = Uuid::now_v7().to_string();
            index.count += 1;
            let entry = QuarantineEntry {
                number: index.count,
                time_ms: Timestamp::now().as_millisecond(),
                account: account.to_string(),
                size,
            };
            index.entries.push(entry.clone());
            let gone = excess(&index.entries);
            let gone = index.entries.drain(..gone).collect();
            let value = Bytes::from(index.encode_to_vec());
            if let Swap::Swapped(_) = self.store.swap(&index_cell(), version, value).await? {
                return Ok((entry, gone));
            }
        }
        Err(StoreError::Unavailable("other replicas keep changing the quarantine".to_owned()))
    }

    async fn index(&self) -> Result<(Option<crate::store::Version>, QuarantineIndex), StoreError> {
        let Some(held) = self.store.load(&index_cell()).await? else {
            return Ok((None, QuarantineIndex::default()));
        };
        let index = decode_cell(held.value, FORMAT, |cell: &QuarantineIndex| cell.version)?;
        Ok((Some(held.version), index))
    }

    /// Puts a body into its cell, unless a later one is there already.
    async fn put(&self, number: u64, sealed: Vec<u8>) -> Result<(), StoreError> {
        let cell = slot(number);
        let value = Bytes::from(QuarantineBody { version: FORMAT, number, sealed }.encode_to_vec());
        for _ in 0..SWAP_TRIES {
            let held = self.store.load(&cell).await?;
            let version = held.as_ref().map(|held| held.version);
            if let Some(held) = held {
                let there = decode_cell(held.value, FORMAT, |cell: &QuarantineBody| cell.version)?;
                if there.number > number {
                    return Ok(());
                }
            }
            if let Swap::Swapped(_) = self.store.swap(&cell, version, value.clone()).await? {
                return Ok(());
            }
        }
        Err(StoreError::Unavailable("other replicas keep changing the quarantine".to_owned()))
    }

    fn key(&self) -> Result<RandomizedNonceKey, StoreError> {
        let key = self.secrets.quarantine_key()?;
        Ok(RandomizedNonceKey::new(&AES_256_GCM, &*key).expect("AES-256 takes 32 bytes"))
    }

    fn seal(&self, entry: &QuarantineEntry, body: &[u8]) -> Result<Vec<u8>, StoreError> {
        let mut sealed = body.to_vec();
        let nonce = self
            .key()?
            .seal_in_place_append_tag(Aad::from(context(entry)), &mut sealed)
            .map_err(|_| StoreError::Unavailable("cannot seal".to_owned()))?;
        Ok([nonce.as_ref().as_slice(), &sealed].concat())
    }

    fn open(&self, entry: &QuarantineEntry, mut sealed: Vec<u8>) -> Result<Vec<u8>, StoreError> {
        let corrupt = || StoreError::Corrupt("a quarantined callback does not open".to_owned());
        let (nonce, body) = sealed.split_at_mut_checked(NONCE_BYTES).ok_or_else(corrupt)?;
        let nonce = Nonce::try_assume_unique_for_key(nonce).map_err(|_| corrupt())?;
        let body =
            self.key()?.open_in_place(nonce, Aad::from(context(entry)), body).map_err(|_| corrupt())?;
        Ok(body.to_vec())
    }
}

/// How many of the oldest have to go.
fn excess(entries: &[QuarantineEntry]) -> usize {
    let mut bytes: u64 = entries.iter().map(|entry| u64::from(entry.size)).sum();
    let mut gone = entries.len().saturating_sub(MAX_ENTRIES);
    bytes -= entries[..gone].iter().map(|entry| u64::from(entry.size)).sum::<u64>();
    while bytes > MAX_BYTES {
        bytes -= u64::from(entries[gone].size);
        gone += 1;
    }
    gone
}

/// What a sealed body belongs to.
fn context(entry: &QuarantineEntry) -> Vec<u8> {
    entry.encode_to_vec()
}

fn index_cell() -> CellName {
    CellName::permanent("quarantine/index")
}

fn slot(number: u64) -> CellName {
    CellName::permanent(format!("quarantine/{:04}", number % MAX_ENTRIES as u64))
}

/// Takes out what follows the word `password`, in quotes or up to the next separator: the text is of no known form.
fn without_passwords(text: &str) -> String {
    const WORD: &str = "password";
    let lower = text.to_ascii_lowercase();
    let mut shown = String::new();
    let mut from = 0;
    while let Some(at) = lower[from..].find(WORD) {
        let word_end = from + at + WORD.len();
        let rest = &text[word_end..];
        let lead = rest.len()
            - rest.trim_start_matches(['"', '\'', '\\', ' ', '\t', '\r', '\n', ':', '=', '>']).len();
        // An opening quote belongs to the value.
        let (lead, quote) = match rest[..lead].chars().next_back() {
            Some(quote @ ('"' | '\'')) if rest[..lead].contains([':', '=', '>']) => (lead, Some(quote)),
            _ => (lead, None),
        };
        let value = &rest[lead..];
        let end = match quote {
            Some(quote) => end_of_quoted(value, quote),
            None => value.find([',', '}', '&', '<', '"', '\n']).unwrap_or(value.len()),
        };
        shown.push_str(&text[from..word_end + lead]);
        shown.push_str("***");
        from = word_end + lead + end;
    }
    shown.push_str(&text[from..]);
    shown
}

fn end_of_quoted(value: &str, quote: char) -> usize {
    let mut escaped = false;
    for (at, c) in value.char_indices() {
        if c == quote && !escaped {
            return at;
        }
        escaped = c == '\\' && !escaped;
    }
    value.len()
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

    async fn secrets(of: &Arc<dyn Store>) -> Secrets {
        let config = Config::defaults().callbacks;
        Secrets::load_or_create(&config, Arc::clone(of), &[account()]).await.unwrap()
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
            assert_eq!(quarantine.add(&account(), body.as_bytes()).await.unwrap(), number);
        }
        let listed = quarantine.list().await.unwrap();
        let of = |listed: &Listed| (listed.number, listed.account.clone(), listed.size);
        assert_eq!(
            listed.iter().map(of).collect::<Vec<_>>(),
            [(1, account().to_string(), 12), (2, account().to_string(), 6)]
        );
        let shown = quarantine.show(1).await.unwrap().unwrap();
        assert_eq!((shown.account, shown.body.as_str()), (account().to_string(), "first secret"));
        assert_eq!(quarantine.show(3).await.unwrap(), None);
        let stored = store.load(&slot(1)).await.unwrap().unwrap();
        assert!(!String::from_utf8_lossy(&stored.value).contains("secret"));

        let another = Quarantine::new(Arc::clone(&store), secrets(&open(&folder, "another")).await);
        assert!(matches!(another.show(1).await, Err(StoreError::Corrupt(_))));
        let moved = store.load(&slot(2)).await.unwrap().unwrap();
        let mut body = QuarantineBody::decode(stored.value).unwrap();
        body.number = 2;
        store.swap(&slot(2), Some(moved.version), body.encode_to_vec().into()).await.unwrap();
        assert!(matches!(quarantine.show(2).await, Err(StoreError::Corrupt(_))));
    }

    #[tokio::test]
    async fn the_accounts_password_is_masked_under_every_name() {
        let (_folder, _store, quarantine) = quarantine().await;
        let pair = quarantine.secrets.pair(&account()).unwrap();
        let body = format!(r#"{{"pw": "{}", "x": 1}}"#, pair.password.expose_secret());
        quarantine.add(&account(), body.as_bytes()).await.unwrap();
        assert_eq!(quarantine.show(1).await.unwrap().unwrap().body, r#"{"pw": "***", "x": 1}"#);
    }

    #[tokio::test]
    async fn the_oldest_go_first() {
        let (_folder, store, quarantine) = quarantine().await;
        let big = vec![b'x'; 256 << 10];
        for _ in 0..70 {
            quarantine.add(&account(), &big).await.unwrap();
        }
        let listed = quarantine.list().await.unwrap();
        assert_eq!((listed.len(), listed[0].number), (64, 7));
        assert_eq!(quarantine.show(6).await.unwrap(), None);
        assert!(quarantine.show(7).await.unwrap().is_some());
        assert!(store.load(&slot(6)).await.unwrap().unwrap().value.len() < 100);
    }

    #[test]
    fn number_and_size_are_bounded() {
        let entry = |size| QuarantineEntry { size, ..QuarantineEntry::default() };
        assert_eq!(excess(&vec![entry(1); MAX_ENTRIES]), 0);
        assert_eq!(excess(&vec![entry(1); MAX_ENTRIES + 3]), 3);
        assert_eq!(excess(&vec![entry(1 << 20); 20]), 4);
        assert_eq!(excess(&[entry(16 << 20)]), 0);
    }

    #[tokio::test]
    async fn a_cell_is_used_again_and_never_by_an_older_one() {
        let (_folder, _store, quarantine) = quarantine().await;
        quarantine.put(1001, vec![1]).await.unwrap();
        quarantine.put(1, vec![2]).await.unwrap();
        let held = quarantine.store.load(&slot(1)).await.unwrap().unwrap();
        assert_eq!(QuarantineBody::decode(held.value).unwrap().number, 1001);
    }

    #[test]
    fn passwords_are_not_shown() {
        for (text, shown) in [
            (r#"{"password": "a\"b", "x": 1"#, r#"{"password": "***", "x": 1"#),
            (r#""Password":"abc","userpassword":'d' "#, r#""Password":"***","userpassword":'***' "#),
            ("<Password>abc</Password>", "<Password>***</Password>***"),
            ("password=abc&x=1", "password=***&x=1"),
            ("PASSWORD: 123, x", "PASSWORD: ***, x"),
            (r#""password":"cut off"#, r#""password":"***"#),
            ("nothing ö", "nothing ö"),
        ] {
            assert_eq!(without_passwords(text), shown);
        }
    }
}
