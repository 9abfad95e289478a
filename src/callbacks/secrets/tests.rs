use std::path::Path;

use tempfile::TempDir;

use super::{stored::MAX_REPLACED, *};
use crate::{
    config::{Config, MAX_PAIR_CHARS},
    store::{change_cell, embedded::Embedded},
};

fn account(n: u32) -> AccountName {
    AccountName::parse(&format!("0000123456-{n:05}")).unwrap()
}

fn config() -> CallbacksConfig {
    Config::defaults().callbacks
}

fn store() -> (TempDir, Arc<dyn Store>) {
    let folder = tempfile::tempdir().unwrap();
    let store = Embedded::open(&folder.path().join("store"), Duration::from_hours(1)).unwrap();
    (folder, Arc::new(store))
}

async fn load(config: &CallbacksConfig, store: &Arc<dyn Store>) -> CallbackSecrets {
    let secrets = CallbackSecrets::new(config, Arc::clone(store), &[account(1), account(2)]);
    secrets.refresh().await.unwrap();
    secrets
}

fn accepts(secrets: &CallbackSecrets, of: u32, pair: &Pair) -> bool {
    secrets.accepts(&account(of), &pair.username, pair.password.expose_secret())
}

fn with_files(folder: &Path, username: &str, password: &str) -> CallbacksConfig {
    let mut config = config();
    config.username_file = folder.join("username");
    config.password_file = folder.join("password");
    std::fs::write(&config.username_file, username).unwrap();
    std::fs::write(&config.password_file, password).unwrap();
    config
}

#[tokio::test]
async fn each_account_has_a_path_and_a_pair_that_stay() {
    let (_folder, store) = store();
    let secrets = load(&config(), &store).await;
    let (path, pair) = (secrets.path(&account(1)), secrets.pair(&account(1)).unwrap());
    assert!(path.len() >= 32 && path != secrets.path(&account(2)));
    assert_eq!(secrets.account_of(&path), Some(account(1)));
    for wrong in ["", &path[1..], &path.to_uppercase(), &format!("{path}x")] {
        assert_eq!(secrets.account_of(wrong), None, "{wrong}");
    }
    assert!(
        accepts(&secrets, 1, &pair) && !accepts(&secrets, 2, &pair) && !accepts(&secrets, 3, &pair)
    );
    let shouted = Pair { username: pair.username.to_uppercase(), ..pair.clone() };
    assert!(accepts(&secrets, 1, &shouted));
    for wrong in ["", "x", &pair.password.expose_secret().to_uppercase()] {
        assert!(!secrets.accepts(&account(1), &pair.username, wrong));
    }
    assert!(
        pair.username.len() <= MAX_PAIR_CHARS
            && pair.password.expose_secret().len() <= MAX_PAIR_CHARS
    );

    let again = load(&config(), &store).await;
    assert_eq!(again.path(&account(1)), path);
    assert!(accepts(&again, 1, &pair));
    assert!(!format!("{again:?} {pair:?}").contains(pair.password.expose_secret()));
}

#[tokio::test]
async fn a_replaced_pair_is_accepted_for_a_while() {
    let (_folder, store) = store();
    let mut config = config();
    let secrets = load(&config, &store).await;
    let first = secrets.pair(&account(1)).unwrap();
    let second = secrets.rotate(&account(1)).await.unwrap();
    let third = secrets.rotate(&account(1)).await.unwrap();
    for pair in [&first, &second, &third] {
        assert!(accepts(&secrets, 1, pair));
    }
    assert_eq!(secrets.pair(&account(1)).unwrap().username, third.username);
    config.password_grace = Duration::ZERO;
    let strict = load(&config, &store).await;
    assert_eq!(
        [&first, &second, &third].map(|pair| accepts(&strict, 1, pair)),
        [false, false, true]
    );
    for _ in 0..MAX_REPLACED {
        secrets.rotate(&account(1)).await.unwrap();
    }
    assert!(accepts(&secrets, 1, &third) && !accepts(&secrets, 1, &second));
}

#[tokio::test]
async fn another_replica_learns_of_a_rotation_when_it_refreshes() {
    let (_folder, store) = store();
    let (one, other) = (load(&config(), &store).await, load(&config(), &store).await);
    let pair = one.rotate(&account(2)).await.unwrap();
    assert!(!accepts(&other, 2, &pair));
    other.refresh().await.unwrap();
    assert!(accepts(&other, 2, &pair));
}

/// The replica that replaced the pair has a clock ahead of this one.
#[tokio::test]
async fn a_pair_replaced_in_the_future_is_still_accepted() {
    let (_folder, store) = store();
    let secrets = load(&config(), &store).await;
    let before = secrets.pair(&account(1)).unwrap();
    secrets.rotate(&account(1)).await.unwrap();
    let cell = CellName::permanent(format!("callback-pair/{}", account(1)));
    change_cell(&*store, &cell, |pair: &mut storage::CallbackPair| {
        pair.replaced[0].replaced_time_ms += 3_600_000;
    })
    .await
    .unwrap();

    let behind = load(&config(), &store).await;
    assert!(accepts(&behind, 1, &before));
}

#[tokio::test]
async fn a_pair_from_files_follows_them_and_is_not_stored() {
    let (folder, store) = store();
    let files = with_files(folder.path(), "ali\n", "open sesame");
    let secrets = load(&files, &store).await;
    assert!(secrets.accepts(&account(1), "Ali", "open sesame"));
    with_files(folder.path(), "ali", "close sesame");
    secrets.refresh().await.unwrap();
    for password in ["open sesame", "close sesame"] {
        assert!(secrets.accepts(&account(1), "ali", password), "{password}");
    }
    let cell = CellName::permanent(format!("callback-pair/{}", account(1)));
    let value = store.load(&cell).await.unwrap().unwrap().value;
    assert!(!String::from_utf8_lossy(&value).contains("sesame"));

    let generated = load(&config(), &store).await;
    assert!(generated.accepts(&account(1), "ali", "close sesame"));
    assert_ne!(generated.pair(&account(1)).unwrap().username, "ali");
}

#[tokio::test]
async fn files_that_hold_no_pair_are_refused_and_not_shown() {
    let (folder, store) = store();
    for wrong in ["", "sesame\nsesame", &"sesame".repeat(7)] {
        let files = with_files(folder.path(), "ali", wrong);
        let secrets = CallbackSecrets::new(&files, Arc::clone(&store), &[account(1)]);
        let error = secrets.refresh().await.unwrap_err();
        assert!(
            matches!(error, SecretsError::Files(_)) && !error.to_string().contains("sesame"),
            "{error}"
        );
    }
}

/// ThingSpace still uses the old path secret and pair. Both stay valid in a new store, for every
/// replica.
#[tokio::test]
async fn a_replaced_store_gets_what_is_registered() {
    let (_former, former) = store();
    let (_new, new) = store();
    let known = load(&config(), &former).await;
    let (path, pair) = (known.path(&account(1)), known.pair(&account(1)).unwrap());
    let moved = CallbackSecrets(Arc::new(SecretsInner {
        store: Arc::clone(&new),
        files: None,
        users: OnceLock::new(),
        grace: config().password_grace,
        accounts: known.accounts().cloned().collect(),
        state: Mutex::new(std::mem::take(&mut *lock(&known.0.state))),
        updating: tokio::sync::Mutex::default(),
        lookups: tokio::sync::Mutex::default(),
    }));
    moved.refresh().await.unwrap();
    let other = load(&config(), &new).await;
    for secrets in [&moved, &other] {
        assert_eq!(secrets.path(&account(1)), path);
        assert!(accepts(secrets, 1, &pair));
    }
}

#[tokio::test]
async fn nothing_is_known_before_the_store_is_read() {
    let (_folder, store) = store();
    let secrets = CallbackSecrets::new(&config(), Arc::clone(&store), &[account(1)]);
    assert!(!secrets.is_loaded() && secrets.account_of("").is_none());
    assert!(secrets.quarantine_key().is_err() && secrets.pair(&account(1)).is_none());
    secrets.reload().await;
    assert_eq!(secrets.account_of(&secrets.path(&account(1))), Some(account(1)));
}

#[tokio::test]
async fn a_replaced_path_is_accepted_for_a_while_in_every_replica_and_after_a_restart() {
    let (_folder, store) = store();
    let mut config = config();
    let (one, other) = (load(&config, &store).await, load(&config, &store).await);
    let (first, of_other) = (one.path(&account(1)), one.path(&account(2)));
    one.update(&account(1), SecretsChange::RotatePath).await.unwrap();
    one.update(&account(1), SecretsChange::RotatePath).await.unwrap();
    let third = one.path(&account(1));
    assert_ne!(first, third);
    assert_eq!((other.path(&account(1)), one.path(&account(2))), (first.clone(), of_other));
    other.refresh().await.unwrap();
    for secrets in [one, other, load(&config, &store).await] {
        assert_eq!(secrets.path(&account(1)), third);
        assert_eq!(secrets.account_of(&first), Some(account(1)));
        assert!(
            secrets.is_own_path(&account(1), &first) && !secrets.is_own_path(&account(2), &first)
        );
    }
    config.password_grace = Duration::ZERO;
    let strict = load(&config, &store).await;
    assert_eq!((strict.account_of(&first), strict.account_of(&third)), (None, Some(account(1))));
    assert!(strict.is_own_path(&account(1), &first), "a listing may still show it");
}

/// ThingSpace uses a new path at once.
#[tokio::test]
async fn a_path_that_another_replica_made_is_found() {
    let (_folder, store) = store();
    let (one, other) = (load(&config(), &store).await, load(&config(), &store).await);
    for _ in 0..2 {
        one.update(&account(1), SecretsChange::RotatePath).await.unwrap();
        let path = one.path(&account(1));
        assert_eq!(other.account_of(&path), None);
        let both = tokio::join!(other.find(&path), other.find(&path));
        assert_eq!((both.0.unwrap(), both.1.unwrap()), (Some(account(1)), Some(account(1))));
    }
    for unknown in ["", "short", &"x".repeat(43)] {
        assert_eq!(other.find(unknown).await.unwrap(), None, "{unknown}");
    }
    store.close().await;
    assert!(other.find(&"x".repeat(43)).await.is_err(), "it may be a right one");
    assert_eq!(other.find(&one.path(&account(1))).await.unwrap(), Some(account(1)));
}

#[tokio::test]
async fn which_pair_was_registered_is_known_after_a_restart() {
    let (_folder, store) = store();
    let secrets = load(&config(), &store).await;
    let known = |secrets: &CallbackSecrets| secrets.of(&account(1)).unwrap();
    assert!(!known(&secrets).is_registered());
    let code = known(&secrets).code().to_vec();
    secrets.update(&account(1), SecretsChange::Registered(&code)).await.unwrap();
    assert!(known(&secrets).is_registered());
    assert!(known(&load(&config(), &store).await).is_registered());
    secrets.rotate(&account(1)).await.unwrap();
    assert!(!known(&secrets).is_registered());
}

fn user_files(folder: &Path) -> UserFiles {
    UserFiles { username: folder.join("user"), password: folder.join("login") }
}

/// ThingSpace sends the pair in every callback.
#[tokio::test]
async fn a_secret_of_a_user_is_never_sent() {
    let (folder, store) = store();
    let files = with_files(folder.path(), "ali", "open sesame");
    let UserFiles { username: user, password: login } = user_files(folder.path());
    std::fs::write(&login, "swordfish\n").unwrap();
    std::fs::write(&user, "uws-user").unwrap();
    let secrets = load(&files, &store).await;
    let missing = UserFiles { username: "missing".into(), password: "missing".into() };
    secrets.keep_apart_from(vec![missing, user_files(folder.path())]);
    secrets.refresh().await.unwrap();
    // The pair becomes the user's, or the user's password the pair's.
    for (name, password, of_login, file) in [
        ("ali", "swordfish", "swordfish\n", &login),
        ("ali", "open sesame", "open sesame\r\n", &login),
        ("UWS-User", "open sesame", "swordfish", &user),
    ] {
        with_files(folder.path(), name, password);
        std::fs::write(&login, of_login).unwrap();
        for refused in [secrets.refresh().await.err(), secrets.rotate(&account(1)).await.err()] {
            let error = refused.unwrap();
            let said = error.to_string();
            assert!(
                matches!(error, SecretsError::SharedWithUser { .. })
                    && said.contains(file.to_str().unwrap()),
                "{said}"
            );
            assert!(!said.contains(password), "{said}");
        }
        assert!(secrets.accepts(&account(1), "ali", "open sesame"), "the pair stays as it was");
        assert!(!secrets.accepts(&account(1), "ali", "swordfish"));
    }
    with_files(folder.path(), "ali", "close sesame");
    secrets.refresh().await.unwrap();
    assert!(secrets.accepts(&account(1), "ali", "close sesame"));
}

/// ThingSpace goes on sending the password of an earlier pair.
#[tokio::test]
async fn passwords_that_callbacks_carry_or_carried_are_known() {
    let (folder, store) = store();
    let mut files = with_files(folder.path(), "ali", "first");
    let secrets = load(&files, &store).await;
    with_files(folder.path(), "another name", "second");
    secrets.refresh().await.unwrap();
    let sends = |secrets: &CallbackSecrets| {
        ["first", "second", "third"].map(|text| secrets.sends(&text.into()))
    };
    assert_eq!(sends(&secrets), [true, true, false]);
    assert_eq!(sends(&load(&files, &store).await), [true, true, false]);
    files.password_grace = Duration::ZERO;
    assert_eq!(sends(&load(&files, &store).await), [false, true, false]);
}

#[tokio::test]
async fn a_generated_password_that_becomes_a_user_s_is_replaced() {
    let (folder, store) = store();
    let secrets = load(&config(), &store).await;
    let before = secrets.pair(&account(1)).unwrap();
    let UserFiles { username, password } = user_files(folder.path());
    std::fs::write(username, "uws-user").unwrap();
    std::fs::write(password, before.password.expose_secret()).unwrap();
    secrets.keep_apart_from(vec![user_files(folder.path())]);
    secrets.refresh().await.unwrap();
    let after = secrets.pair(&account(1)).unwrap();
    assert_ne!(after.password.expose_secret(), before.password.expose_secret());
    assert!(secrets.sends(&before.password), "it must not log in");
    assert!(accepts(&secrets, 1, &before) && accepts(&secrets, 1, &after));
}
