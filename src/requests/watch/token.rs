//! Resume and page tokens: opaque to callers, authenticated, and valid for one request.
//!
//! A token gives its bearer no rights. Its HMAC only makes sure that a forged or confused token is
//! never taken for a position in a request's history. The key of a token from another epoch of the
//! store is gone: such a token makes a watch begin with a snapshot, which is always correct.

use aws_lc_rs::{digest, hmac, rand};
use base64::{Engine, prelude::BASE64_URL_SAFE_NO_PAD};

use crate::{
    identity::RequestId,
    proto::storage,
    requests::error::{Error, TokenKind},
    store::{CellName, Position, Store, StoreError, load_or_create},
};

/// The longest text that is decoded, in bytes. Valid tokens are shorter.
const MAX_TOKEN: usize = 256;

const RESUME: u8 = 1;
const PAGE: u8 = 2;

/// The position and revision after which a watch continues.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Resume {
    pub position: Position,
    pub revision: u64,
}

/// The key that signs and verifies tokens. All replicas share it through its cell.
#[derive(Clone)]
pub struct TokenKey(hmac::Key);

impl std::fmt::Debug for TokenKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("TokenKey(…)")
    }
}

impl TokenKey {
    pub async fn load_or_create(store: &dyn Store) -> Result<Self, StoreError> {
        let make = || {
            let mut key = [0; 32];
            rand::fill(&mut key)
                .map_err(|_| StoreError::Unavailable("no random numbers".to_owned()))?;
            Ok(storage::TokenKey { key: key.to_vec(), ..storage::TokenKey::default() })
        };
        let stored = load_or_create(store, &CellName::permanent("token-key"), make).await?;
        Ok(Self(hmac::Key::new(hmac::HMAC_SHA256, &stored.key)))
    }

    pub fn resume(&self, id: &RequestId, resume: Resume) -> String {
        let fields = [resume.position.epoch, resume.position.sequence, resume.revision];
        self.seal(RESUME, id, &fields.map(u64::to_be_bytes).concat())
    }

    /// Opens a resume token. Returns `None` if its epoch of the store is not `epoch`.
    pub fn open_resume(
        &self,
        id: &RequestId,
        text: &str,
        epoch: u64,
    ) -> Result<Option<Resume>, Error> {
        let invalid = || Error::InvalidToken(TokenKind::Resume);
        let sealed = UnverifiedToken::parse(RESUME, id, text).ok_or_else(invalid)?;
        let [token_epoch, sequence, revision] = sealed.fields().ok_or_else(invalid)?;
        if token_epoch != epoch {
            return Ok(None);
        }
        self.verify(&sealed, id).ok_or_else(invalid)?;
        Ok(Some(Resume { position: Position { epoch, sequence }, revision }))
    }

    /// Returns the token of the page that begins at an offset.
    pub fn page(&self, id: &RequestId, offset: usize) -> String {
        self.seal(PAGE, id, &(offset as u64).to_be_bytes())
    }

    pub fn open_page(&self, id: &RequestId, text: &str) -> Result<usize, Error> {
        let invalid = || Error::InvalidToken(TokenKind::Page);
        let sealed = UnverifiedToken::parse(PAGE, id, text).ok_or_else(invalid)?;
        self.verify(&sealed, id).ok_or_else(invalid)?;
        let [offset] = sealed.fields().ok_or_else(invalid)?;
        usize::try_from(offset).map_err(|_| invalid())
    }

    fn seal(&self, kind: u8, id: &RequestId, fields: &[u8]) -> String {
        let mut token = vec![kind];
        token.extend(fields);
        token.extend(id_hash(id));
        let tag = self.tag(&token, id);
        token.extend(tag.as_ref());
        BASE64_URL_SAFE_NO_PAD.encode(token)
    }

    fn tag(&self, token: &[u8], id: &RequestId) -> hmac::Tag {
        hmac::sign(&self.0, &[token, id.as_str().as_bytes()].concat())
    }

    /// Compares in constant time.
    fn verify(&self, sealed: &UnverifiedToken, id: &RequestId) -> Option<()> {
        let signed = [sealed.signed(), id.as_str().as_bytes()].concat();
        hmac::verify(&self.0, &signed, sealed.tag()).ok()
    }
}

/// A token of the right kind, form and request that is not verified yet.
struct UnverifiedToken(Vec<u8>);

const ID_HASH: usize = 8;
const TAG: usize = 32;

impl UnverifiedToken {
    fn parse(kind: u8, id: &RequestId, text: &str) -> Option<Self> {
        let bytes =
            BASE64_URL_SAFE_NO_PAD.decode(Some(text).filter(|t| t.len() <= MAX_TOKEN)?).ok()?;
        let long_enough = bytes.len() > 1 + ID_HASH + TAG;
        let sealed = Self(bytes);
        (long_enough && sealed.0[0] == kind && sealed.signed().ends_with(&id_hash(id)))
            .then_some(sealed)
    }

    fn signed(&self) -> &[u8] {
        &self.0[..self.0.len() - TAG]
    }

    fn tag(&self) -> &[u8] {
        &self.0[self.0.len() - TAG..]
    }

    fn fields<const N: usize>(&self) -> Option<[u64; N]> {
        let fields = &self.signed()[1..self.signed().len() - ID_HASH];
        let numbers: Vec<u64> = fields
            .chunks_exact(8)
            .map(|chunk| chunk.iter().fold(0, |number, byte| number << 8 | u64::from(*byte)))
            .collect();
        numbers.try_into().ok().filter(|_| fields.len() == N * 8)
    }
}

/// Part of a token, so that a token of another request is refused even if its key is gone.
fn id_hash(id: &RequestId) -> [u8; ID_HASH] {
    let digest = digest::digest(&digest::SHA256, id.as_str().as_bytes());
    let mut hash = [0; ID_HASH];
    hash.copy_from_slice(&digest.as_ref()[..ID_HASH]);
    hash
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(byte: u8) -> TokenKey {
        TokenKey(hmac::Key::new(hmac::HMAC_SHA256, &[byte; 32]))
    }

    fn id(text: &str) -> RequestId {
        RequestId::parse(text).unwrap()
    }

    const RESUMED: Resume =
        Resume { position: Position { epoch: 7, sequence: 1 << 40 }, revision: 3 };

    #[test]
    fn tokens_open_where_they_belong() {
        let token = key(1).resume(&id("r1"), RESUMED);
        assert_eq!(key(1).open_resume(&id("r1"), &token, 7).unwrap(), Some(RESUMED));
        // The key of another epoch is gone, and the watch begins with a snapshot.
        assert_eq!(key(2).open_resume(&id("r1"), &token, 8).unwrap(), None);
        let page = key(1).page(&id("r1"), 1_000);
        assert_eq!(key(1).open_page(&id("r1"), &page).unwrap(), 1_000);
    }

    #[test]
    fn other_tokens_do_not_open() {
        let token = key(1).resume(&id("r1"), RESUMED);
        let page = key(1).page(&id("r1"), 1_000);
        let flipped = |at: usize| {
            let mut bytes = BASE64_URL_SAFE_NO_PAD.decode(&token).unwrap();
            bytes[at] ^= 1;
            BASE64_URL_SAFE_NO_PAD.encode(bytes)
        };
        let length = BASE64_URL_SAFE_NO_PAD.decode(&token).unwrap().len();
        // Other bytes of the epoch (1..9) make a token of another epoch; all others make it
        // invalid.
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
