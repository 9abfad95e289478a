//! Resume and page tokens: opaque to callers, authenticated, and valid for one request.
//!
//! A token gives its bearer no rights. Its HMAC only ensures that a forged token, or the token of
//! another request, is never taken for a position in a request's history. A token from another
//! epoch of the store cannot be verified, because its key is gone. The watch then begins with a
//! snapshot, which is always correct.

use std::sync::Arc;

use aws_lc_rs::{digest, hmac, rand};
use base64::{Engine, prelude::BASE64_URL_SAFE_NO_PAD};

use crate::{
    identity::RequestId,
    proto::storage,
    requests::{
        Requests,
        error::{Error, TokenKind},
        lock,
    },
    store::{CellName, Position, Store, StoreError, load_or_create},
};

/// The longest text that is decoded, in bytes. Valid tokens are shorter.
const MAX_TOKEN: usize = 256;

/// The kinds of token.
const RESUME: u8 = 1;
const PAGE: u8 = 2;

/// The size of the parts of a token, in bytes.
const FIELD: usize = 8;
const ID_HASH: usize = 8;
const TAG: usize = 32;

/// The position and revision after which a watch continues.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Resume {
    /// The position of the last event that was sent.
    pub position: Position,
    /// The revision at that position.
    pub revision: u64,
}

/// The key that signs and verifies tokens. All replicas share it through its cell. Each watch has a
/// reference to it.
#[derive(Clone)]
pub struct TokenKey(Arc<hmac::Key>);

impl std::fmt::Debug for TokenKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("TokenKey(…)")
    }
}

impl TokenKey {
    /// Reads the key from its cell, or writes a random one.
    pub async fn load_or_create(store: &dyn Store) -> Result<Self, StoreError> {
        let make = || {
            let mut key = [0; 32];
            rand::fill(&mut key)
                .map_err(|_| StoreError::Unavailable("no random numbers".to_owned()))?;
            Ok(storage::TokenKey { key: key.to_vec(), ..storage::TokenKey::default() })
        };
        let stored = load_or_create(store, &CellName::permanent("token-key"), make).await?;
        Ok(Self(Arc::new(hmac::Key::new(hmac::HMAC_SHA256, &stored.key))))
    }

    /// Returns the token that continues a watch of a request.
    pub fn resume(&self, id: &RequestId, resume: Resume) -> String {
        self.seal(RESUME, id, [resume.position.epoch, resume.position.sequence, resume.revision])
    }

    /// Reads a resume token. Returns `None` if it is from another epoch of the store than `epoch`.
    pub(in crate::requests) fn open_resume(
        &self,
        id: &RequestId,
        text: &str,
        epoch: u64,
    ) -> Result<Option<Resume>, Error> {
        match self.open::<3>(RESUME, id, text) {
            Some(([other, ..], _)) if other != epoch => Ok(None),
            Some(([_, sequence, revision], true)) => {
                Ok(Some(Resume { position: Position { epoch, sequence }, revision }))
            }
            _ => Err(Error::InvalidToken(TokenKind::Resume)),
        }
    }

    /// Returns the token of the page that begins at an offset.
    fn page(&self, id: &RequestId, offset: usize) -> String {
        self.seal(PAGE, id, [offset as u64])
    }

    fn open_page(&self, id: &RequestId, text: &str) -> Result<usize, Error> {
        let opened = self.open::<1>(PAGE, id, text).filter(|(_, is_genuine)| *is_genuine);
        let offset = opened.and_then(|([offset], _)| usize::try_from(offset).ok());
        offset.ok_or(Error::InvalidToken(TokenKind::Page))
    }

    fn seal<const N: usize>(&self, kind: u8, id: &RequestId, fields: [u64; N]) -> String {
        let mut token = vec![kind];
        token.extend(fields.map(u64::to_be_bytes).as_flattened());
        token.extend(id_hash(id));
        let tag = hmac::sign(&self.0, &[&token, id.as_str().as_bytes()].concat());
        token.extend(tag.as_ref());
        BASE64_URL_SAFE_NO_PAD.encode(token)
    }

    /// Returns the fields of a token, and whether this key has signed it. `None`: the token has
    /// another kind, form or request.
    fn open<const N: usize>(
        &self,
        kind: u8,
        id: &RequestId,
        text: &str,
    ) -> Option<([u64; N], bool)> {
        let bytes =
            BASE64_URL_SAFE_NO_PAD.decode(Some(text).filter(|t| t.len() <= MAX_TOKEN)?).ok()?;
        let (signed, tag) = bytes.split_at_checked(1 + N * FIELD + ID_HASH)?;
        let (numbers, hash) = signed[1..].split_at(N * FIELD);
        if signed[0] != kind || hash != id_hash(id) || tag.len() != TAG {
            return None;
        }
        let mut fields = [0; N];
        for (field, bytes) in fields.iter_mut().zip(numbers.as_chunks().0) {
            *field = u64::from_be_bytes(*bytes);
        }
        let signed = [signed, id.as_str().as_bytes()].concat();
        Some((fields, hmac::verify(&self.0, &signed, tag).is_ok()))
    }
}

/// Returns the hash of a request's id. It is in each token, so that a token of another request is
/// refused even if its key is gone.
fn id_hash(id: &RequestId) -> [u8; ID_HASH] {
    let digest = digest::digest(&digest::SHA256, id.as_str().as_bytes());
    let mut hash = [0; ID_HASH];
    hash.copy_from_slice(&digest.as_ref()[..ID_HASH]);
    hash
}

impl Requests {
    /// Returns a token for the page of devices that begins at `offset`.
    pub(crate) async fn page_token(&self, id: &RequestId, offset: usize) -> Result<String, Error> {
        Ok(self.token_key().await?.0.page(id, offset))
    }

    /// Returns the offset of the page of a token. The first page has an empty token.
    pub(crate) async fn page_offset(&self, id: &RequestId, token: &str) -> Result<usize, Error> {
        if token.is_empty() {
            return Ok(0);
        }
        self.token_key().await?.0.open_page(id, token)
    }

    /// Returns the key of resume and page tokens, and the epoch of the store that it belongs to.
    pub(in crate::requests) async fn token_key(&self) -> Result<(TokenKey, u64), Error> {
        let epoch = self.hub.epoch().ok_or_else(|| {
            Error::Store(StoreError::Unavailable("this replica has not caught up yet".to_owned()))
        })?;
        let cached = lock(&self.token_key).clone();
        if let Some((key, _)) = cached.filter(|(_, of)| *of == epoch) {
            return Ok((key, epoch));
        }
        let key = TokenKey::load_or_create(&*self.store).await?;
        *lock(&self.token_key) = Some((key.clone(), epoch));
        Ok((key, epoch))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(byte: u8) -> TokenKey {
        TokenKey(Arc::new(hmac::Key::new(hmac::HMAC_SHA256, &[byte; 32])))
    }

    fn id(text: &str) -> RequestId {
        RequestId::parse(text).unwrap()
    }

    const RESUMED: Resume =
        Resume { position: Position { epoch: 7, sequence: 1 << 40 }, revision: 3 };

    #[test]
    fn a_token_is_valid_for_its_request_and_kind() {
        let token = key(1).resume(&id("r1"), RESUMED);
        assert_eq!(key(1).open_resume(&id("r1"), &token, 7).unwrap(), Some(RESUMED));
        // The key of another epoch is gone, so the watch begins with a snapshot.
        assert_eq!(key(2).open_resume(&id("r1"), &token, 8).unwrap(), None);
        let page = key(1).page(&id("r1"), 1_000);
        assert_eq!(key(1).open_page(&id("r1"), &page).unwrap(), 1_000);
    }

    #[test]
    fn other_tokens_are_invalid() {
        let token = key(1).resume(&id("r1"), RESUMED);
        let page = key(1).page(&id("r1"), 1_000);
        let flipped = |at: usize| {
            let mut bytes = BASE64_URL_SAFE_NO_PAD.decode(&token).unwrap();
            bytes[at] ^= 1;
            BASE64_URL_SAFE_NO_PAD.encode(bytes)
        };
        let length = BASE64_URL_SAFE_NO_PAD.decode(&token).unwrap().len();
        // A change in the epoch (bytes 1..9) makes a token of another epoch. Any other change makes
        // the token invalid.
        let tampered = (0..length).filter(|at| !(1..9).contains(at)).map(flipped);
        let wrong = tampered.chain([
            "x".to_owned(),
            "é".to_owned(),
            "A".repeat(500),
            page,
            key(2).resume(&id("r1"), RESUMED),
        ]);
        for text in wrong {
            assert!(
                matches!(
                    key(1).open_resume(&id("r1"), &text, 7),
                    Err(Error::InvalidToken(TokenKind::Resume))
                ),
                "{text}"
            );
        }
        assert!(key(1).open_resume(&id("r2"), &token, 7).is_err());
        assert!(key(1).open_resume(&id("r2"), &token, 8).is_err());
        assert!(key(1).open_page(&id("r1"), &token).is_err());
    }
}
