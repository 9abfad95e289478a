//! The keys of callbacks, one for each purpose, derived from one random key in a permanent cell.

use aws_lc_rs::{hkdf, hmac};
use base64::{Engine, prelude::BASE64_URL_SAFE_NO_PAD};
use secrecy::zeroize::Zeroizing;

use super::pair::random;
use crate::{
    identity::AccountName,
    proto::storage,
    store::{CellName, Store, StoreError, load_or_create},
};

pub(super) struct Keys {
    root: Zeroizing<Vec<u8>>,
    path: hmac::Key,
    pair: hmac::Key,
    password: hmac::Key,
    quarantine: Zeroizing<[u8; 32]>,
}

impl Keys {
    /// Loads the keys. A store without keys gets the known ones, so that registered URLs and pairs
    /// stay valid, or new ones if none are known.
    pub(super) async fn load_or_create(
        store: &dyn Store,
        known: Option<&Self>,
    ) -> Result<Self, StoreError> {
        let make = || {
            let key = match known {
                Some(known) => known.root.to_vec(),
                None => random::<32>()?.to_vec(),
            };
            Ok(storage::CallbackSecrets { key, ..storage::CallbackSecrets::default() })
        };
        let stored = load_or_create(store, &CellName::permanent("callback-secrets"), make).await?;
        Ok(Self::derive(stored.key))
    }

    fn derive(root: Vec<u8>) -> Self {
        let salted =
            hkdf::Salt::new(hkdf::HKDF_SHA256, b"thingspace-gateway callbacks").extract(&root);
        let derive = |purpose: &str| {
            let mut key = Zeroizing::new([0; 32]);
            salted
                .expand(&[purpose.as_bytes()], hkdf::HKDF_SHA256)
                .and_then(|okm| okm.fill(&mut *key))
                .expect("HKDF-SHA256 gives 32 bytes");
            key
        };
        Self {
            path: hmac::Key::new(hmac::HMAC_SHA256, &*derive("path")),
            pair: hmac::Key::new(hmac::HMAC_SHA256, &*derive("pair")),
            password: hmac::Key::new(hmac::HMAC_SHA256, &*derive("password")),
            quarantine: derive("quarantine"),
            root: Zeroizing::new(root),
        }
    }

    pub(super) fn same_as(&self, other: &Self) -> bool {
        self.root == other.root
    }

    /// Returns the path secret of an account. The generation counts its replacements.
    pub(super) fn path(&self, account: &AccountName, generation: u32) -> String {
        let mut context = hmac::Context::with_key(&self.path);
        context.update(account.as_str().as_bytes());
        if generation > 0 {
            // Unambiguous, because no account name contains a zero byte.
            context.update(&[0]);
            context.update(&generation.to_be_bytes());
        }
        BASE64_URL_SAFE_NO_PAD.encode(context.sign())
    }

    /// Returns the authentication code of a pair. The case of the user name does not matter.
    pub(super) fn code(&self, username: &str, password: &str) -> Vec<u8> {
        let username = username.to_lowercase();
        let mut context = hmac::Context::with_key(&self.pair);
        context.update(&(username.len() as u64).to_be_bytes());
        context.update(username.as_bytes());
        context.update(password.as_bytes());
        context.sign().as_ref().to_vec()
    }

    /// Returns the authentication code of a password alone.
    pub(super) fn password_code(&self, password: &str) -> Vec<u8> {
        hmac::sign(&self.password, password.as_bytes()).as_ref().to_vec()
    }

    pub(super) fn quarantine(&self) -> &[u8; 32] {
        &self.quarantine
    }
}
