//! Static tokens: a file with the name of a caller and the SHA-256 hash of its token on each line.
//!
//! The file holds no secret: a token is random, so nobody finds it from its hash. A caller may have
//! several tokens, so that they can be replaced one after the other.

use aws_lc_rs::digest::{SHA256, SHA256_OUTPUT_LEN, digest};
use subtle::{ConditionallySelectable, ConstantTimeEq};

use super::Caller;

/// The most tokens in a file. Each is compared with each token that a caller sends.
const MAX_TOKENS: usize = 1000;

/// The most problems of a file that are reported.
const MAX_PROBLEMS: usize = 10;

type Hash = [u8; SHA256_OUTPUT_LEN];

/// The tokens of a file.
#[derive(Debug)]
pub(super) struct Tokens(Vec<(Hash, Caller)>);

impl Tokens {
    /// Parses the content of a file. A file with only comments is valid: the last caller may have
    /// been removed. An empty file is not, because it may be the result of a failed write. An error
    /// completes "FILE …" and names all wrong lines. It quotes none of them, because somebody may
    /// have written a token in the place of its hash.
    pub(super) fn parse(content: &[u8]) -> Result<Self, String> {
        let text = str::from_utf8(content).map_err(|_| "holds no UTF-8 text".to_owned())?;
        if text.trim().is_empty() {
            return Err(
                "is empty; to remove the last token, leave a line with a comment".to_owned()
            );
        }
        let (mut tokens, mut problems) = (Vec::<(Hash, Caller)>::new(), Vec::new());
        for (number, line) in (1..).zip(text.lines()) {
            let line = line.trim();
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            match parse_line(line) {
                Ok((hash, _)) if tokens.iter().any(|(other, _)| *other == hash) => {
                    problems.push(format!("line {number}: the hash is on an earlier line, too"));
                }
                Ok(token) => tokens.push(token),
                Err(why) => problems.push(format!("line {number}: {why}")),
            }
        }
        if tokens.len() > MAX_TOKENS {
            problems.push(format!("there are more than {MAX_TOKENS} tokens"));
        }
        if problems.is_empty() {
            return Ok(Self(tokens));
        }
        let more = problems.len().saturating_sub(MAX_PROBLEMS);
        problems.truncate(MAX_PROBLEMS);
        if more > 0 {
            problems.push(format!("and {more} more"));
        }
        Err(format!("cannot be used: {}", problems.join("; ")))
    }

    /// The names of the callers, such as `token:orders`.
    pub(super) fn names(&self) -> impl Iterator<Item = &str> {
        self.0.iter().map(|(_, caller)| caller.name())
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Returns the caller that has this token. Compares the hash with all others, in constant time.
    pub(super) fn find(&self, token: &str) -> Option<Caller> {
        let sent = digest(&SHA256, token.as_bytes());
        let mut found = u64::MAX;
        for (index, (hash, _)) in (0..).zip(&self.0) {
            found.conditional_assign(&index, hash.as_slice().ct_eq(sent.as_ref()));
        }
        self.0.get(usize::try_from(found).ok()?).map(|(_, caller)| caller.clone())
    }
}

fn parse_line(line: &str) -> Result<(Hash, Caller), &'static str> {
    const FORMAT: &str = "write NAME HASH, where HASH is the SHA-256 hash of the token in 64 \
                          hexadecimal digits";
    let mut words = line.split_ascii_whitespace();
    let (Some(name), Some(hex), None) = (words.next(), words.next(), words.next()) else {
        return Err(FORMAT);
    };
    let caller = Caller::new("token:", name, None)
        .ok_or("the name may have printable ASCII characters except *, at most 250")?;
    let hash = parse_hash(hex).ok_or(FORMAT)?;
    if hash == digest(&SHA256, b"").as_ref() {
        return Err("this is the hash of an empty token");
    }
    Ok((hash, caller.with_token(&hash)))
}

fn parse_hash(hex: &str) -> Option<Hash> {
    let mut hash = Hash::default();
    let (pairs, []) = hex.as_bytes().as_chunks::<2>() else { return None };
    if pairs.len() != hash.len() {
        return None;
    }
    for (byte, pair) in hash.iter_mut().zip(pairs) {
        let digit = |digit: u8| char::from(digit).to_digit(16).and_then(|d| u8::try_from(d).ok());
        *byte = digit(pair[0])? << 4 | digit(pair[1])?;
    }
    Some(hash)
}

#[cfg(test)]
mod tests {
    use std::fmt::Write;

    use super::*;

    fn hash(token: &str) -> String {
        let mut hex = String::new();
        for byte in digest(&SHA256, token.as_bytes()).as_ref() {
            write!(hex, "{byte:02x}").unwrap();
        }
        hex
    }

    #[test]
    fn a_caller_is_found_by_its_token() {
        let text = format!(
            "# team fleet\norders {}\n\norders {}\nstatus {}\n",
            hash("one"),
            hash("two").to_uppercase(),
            hash("three")
        );
        let tokens = Tokens::parse(text.as_bytes()).unwrap();
        for (token, name) in [("one", "orders"), ("two", "orders"), ("three", "status")] {
            let caller = tokens.find(token).unwrap();
            assert_eq!(caller.name(), format!("token:{name}"));
            assert_eq!(caller.token().as_deref(), Some(&hash(token)[..8]));
        }
        for wrong in ["", "One", "one ", "four", &hash("one")] {
            assert_eq!(tokens.find(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn all_wrong_lines_are_named_and_none_is_quoted() {
        let (one, empty) = (hash("one"), hash(""));
        let text = format!(
            "orders secret-token\norders\n* {one}\norders {one} x\na {one}\nb {one}\nc {empty}"
        );
        let problems = Tokens::parse(text.as_bytes()).unwrap_err();
        for line in [1, 2, 3, 4, 6, 7] {
            assert!(problems.contains(&format!("line {line}:")), "{problems}");
        }
        assert!(problems.contains("line 1: write NAME HASH, where HASH is"), "{problems}");
        assert!(!problems.contains("line 5") && !problems.contains("secret"), "{problems}");
        assert!(Tokens::parse(b"\xff").unwrap_err().contains("UTF-8"));
    }

    /// Otherwise the removal of the last token would not revoke it.
    #[test]
    fn a_file_without_tokens_is_valid() {
        let tokens = Tokens::parse(b"# nobody\n").unwrap();
        assert!(tokens.is_empty() && tokens.find("").is_none());
    }

    /// A write that failed must not remove all callers.
    #[test]
    fn an_empty_file_is_refused() {
        for empty in ["", " ", "\n", "\r\n \t\n"] {
            let why = Tokens::parse(empty.as_bytes()).unwrap_err();
            assert!(why.starts_with("is empty"), "{empty:?}: {why}");
        }
    }
}
