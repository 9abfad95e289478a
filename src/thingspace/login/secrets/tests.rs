//! Names, fingerprints and sealed tokens, and what the files may contain.

use super::*;
use crate::proto::storage::GuardCandidate;

fn raw([key, secret, username, password]: [&str; 4]) -> RawSecrets {
    RawSecrets {
        key: key.into(),
        secret: secret.into(),
        username: username.into(),
        password: password.into(),
    }
}

fn secrets(values: [&str; 4]) -> CredentialSecrets {
    let hosts = Hosts { user: "a:443".into(), application: "a:443".into() };
    CredentialSecrets::derive(raw(values), &hosts)
}

/// What the four files hold, and the outcome of reading them.
async fn read_all(texts: [&[u8]; 4]) -> Result<CredentialSecrets, String> {
    let folder = tempfile::tempdir().unwrap();
    let mut paths =
        ["key", "secret", "user", "password"].map(|name| folder.path().join(name)).into_iter();
    for (path, text) in paths.clone().zip(texts) {
        std::fs::write(path, text).unwrap();
    }
    let mut next = || paths.next().unwrap();
    let files = CredentialsConfig {
        name: "test".into(),
        accounts: vec![],
        key_file: next(),
        secret_file: next(),
        username_file: next(),
        password_file: next(),
    };
    let hosts = Hosts { user: "a:443".into(), application: "a:443".into() };
    RawSecrets::read(&files).await.map(|raw| CredentialSecrets::derive(raw, &hosts))
}

#[tokio::test]
async fn one_line_break_at_the_end_is_none_of_the_secret() {
    let plain = read_all([b"k", b"s", b"u", b"p"]).await.unwrap();
    let lines = read_all([b"k\n", b"s\r\n", b"u", b"p\n"]).await.unwrap();
    assert_eq!(plain.raw, lines.raw);
    assert_eq!(plain.basic(), format!("Basic {}", BASE64_STANDARD.encode("k:s")));
    assert_eq!(&lines.login_body()[..], br#"{"username":"u","password":"p"}"#);
    for padded in [[b" k" as &[u8], b"s", b"u", b"p"], [b"k", b"s", b"u", b"p \n\n"]] {
        assert!(read_all(padded).await.is_err(), "ThingSpace would count it as a rejected login");
    }
}

#[test]
fn application_and_user_have_fingerprints_of_their_own() {
    let one = secrets(["k", "s", "u", "p"]);
    let of = |values| {
        let other = secrets(values);
        (
            other.application.fingerprint == one.application.fingerprint,
            other.user.fingerprint == one.user.fingerprint,
        )
    };
    assert_eq!(of(["k", "s", "u", "p"]), (true, true));
    assert_eq!(of(["K", "s", "u", "p"]), (false, true));
    assert_eq!(of(["k", "S", "u", "p"]), (false, true));
    assert_eq!(of(["k", "s", "U", "p"]), (true, false));
    assert_eq!(of(["k", "s", "u", "P"]), (true, false));
    assert_eq!(of(["ks", "", "up", ""]), (false, false));
    assert_ne!(secrets(["x", "x", "x", "x"]).user.fingerprint, {
        secrets(["x", "x", "x", "x"]).application.fingerprint
    });
}

#[test]
fn a_cell_belongs_to_a_user_or_to_an_application_of_a_host() {
    let one = secrets(["k", "s", "user", "p"]);
    let other = secrets(["k ", "S", " USER", "P"]);
    assert_eq!(
        (&one.application.cell, &one.user.cell),
        (&other.application.cell, &other.user.cell)
    );
    let hosts = Hosts { user: "b:443".into(), application: "a:443".into() };
    let elsewhere = CredentialSecrets::derive(raw(["k", "s", "user", "p"]), &hosts);
    assert_eq!(elsewhere.user.cell, one.user.cell, "another name of the host is no new count");
    assert_ne!(elsewhere.user.fingerprint, one.user.fingerprint);
    let hosts = Hosts { user: "a:443".into(), application: "b:443".into() };
    let elsewhere = CredentialSecrets::derive(raw(["k", "s", "user", "p"]), &hosts);
    assert_ne!(elsewhere.application.cell, one.application.cell);
    for (url, host) in [
        ("https://A.example/api", "a.example:443"),
        ("https://a.example:443", "a.example:443"),
        ("http://a.example:80/x", "a.example:80"),
        ("http://[::1]:8080/api", "[::1]:8080"),
    ] {
        assert_eq!(authority(url), host);
    }
}

#[test]
fn only_the_secrets_open_a_token_and_only_in_its_place() {
    let (one, other) = (secrets(["k", "s", "u", "p"]), secrets(["k", "S", "u", "P"]));
    let token = HeaderValue::from_static("a token");
    let [sealed, for_other_half] = one.user.seal(7, &token).unwrap();
    for sealed in [&sealed, &for_other_half] {
        assert!(!sealed.windows(5).any(|part| part == b"token"));
    }
    let opened = one.user.open(7, &sealed).unwrap();
    assert_eq!((&opened, opened.is_sensitive()), (&token, true));
    assert_eq!(one.user.open(8, &sealed), None);
    assert_eq!(other.user.open(7, &sealed), None);
    assert_eq!(one.application.open(7, &sealed), None);
    assert_eq!(one.user.open(7, &sealed[..20]), None);
    assert_eq!(one.user.open(7, &[]), None);
}

#[test]
fn a_token_outlives_a_change_of_one_half() {
    let one = secrets(["k", "s", "u", "p"]);
    let token = HeaderValue::from_static("a token");
    let session = &one.user.seal(7, &token).unwrap()[1];
    let opened = |of: [&str; 4]| secrets(of).user.open_for_other_half(7, session);
    assert_eq!(opened(["k", "s", "u", "P"]).as_ref(), Some(&token));
    assert_eq!(opened(["k", "S", "u", "p"]), None);
    assert_eq!(opened(["k", "s", "other", "p"]), None);
    let bearer = &one.application.seal(7, &token).unwrap()[1];
    let opened = |of: [&str; 4]| secrets(of).application.open_for_other_half(7, bearer);
    assert_eq!(opened(["k", "S", "u", "p"]).as_ref(), Some(&token));
    assert_eq!(opened(["k", "s", "u", "P"]), None);
}

/// Computed without this code: what release 0.1 stored for this user and password.
#[test]
fn what_an_earlier_release_stored_is_recognised() {
    let stored = "a95f1443e6d91773840ebe59b797fd1a015eec39af4c87fc4d2c1627f66513ea";
    let one = secrets(["k", "s", "u", "p"]);
    let earlier = u128::from_be_bytes(one.user.earlier_fingerprint.0[..16].try_into().unwrap());
    assert!(stored.starts_with(&format!("{earlier:032x}")));
    let fingerprint = one.user.earlier_fingerprint.0.to_vec();
    let token = HeaderValue::from_static("a token");
    let sealed = one.user.earlier_seal.seal(&one.user.context(7), b"a token").unwrap();
    let candidate = GuardCandidate { fingerprint, strikes: 2, sealed, ..GuardCandidate::default() };
    let guard = one.user.renamed(Guard { candidates: vec![candidate], ..Guard::default() });
    let candidate = guard.candidate(&one.user.fingerprint.0).unwrap();
    assert_eq!((candidate.strikes, candidate.derivation), (2, guard::DERIVATION));
    assert_eq!(one.user.open(7, &candidate.sealed), Some(token));
}

#[tokio::test]
async fn what_cannot_be_a_secret_is_refused_and_not_shown() {
    let long = vec![b'x'; 5000];
    for wrong in [&b""[..], b"\n", b"\xff\xfe", &long] {
        let error = read_all([b"k", b"s", b"u", wrong]).await.unwrap_err();
        assert!(error.contains("password") && error.len() < 500, "{error}");
    }
    let secrets = read_all([b"open", b"sesame", b"aladdin", b"baba"]).await.unwrap();
    let shown = format!("{secrets:?} {:?}", secrets.basic());
    for word in ["open", "sesame", "aladdin", "baba", "Basic"] {
        assert!(!shown.contains(word), "{shown}");
    }
}
