//! How the gateway authenticates to NATS, and the permissions in docs/nats.md.

use std::{fs, path::Path};

use base64::{Engine as _, prelude::BASE64_URL_SAFE_NO_PAD};
use nkeys::KeyPair;
use serde_json::{Value, json};

use super::*;

/// A server whose users have tokens that are signed by an account's key.
struct Guarded {
    server: NatsServer,
    account: KeyPair,
    folder: TempDir,
}

impl Guarded {
    async fn start() -> Self {
        let (operator, system, account) =
            (KeyPair::new_operator(), KeyPair::new_account(), KeyPair::new_account());
        let unlimited = json!({
            "subs": -1, "data": -1, "payload": -1, "imports": -1, "exports": -1, "wildcards": true,
            "conn": -1, "leaf": -1, "mem_storage": -1, "disk_storage": -1, "streams": -1,
            "consumer": -1,
        });
        let of_account = |account: &KeyPair, limits: &Value| {
            token(&operator, account, json!({ "type": "account", "limits": limits }))
        };
        let mut no_streams = unlimited.clone();
        no_streams["disk_storage"] = json!(0);
        no_streams["mem_storage"] = json!(0);
        let more = format!(
            "operator: {}\nsystem_account: {}\nresolver: MEMORY\n\
             resolver_preload: {{ {}: {}, {}: {} }}",
            token(&operator, &operator, json!({ "type": "operator" })),
            system.public_key(),
            system.public_key(),
            of_account(&system, &no_streams),
            account.public_key(),
            of_account(&account, &unlimited),
        );
        let server = NatsServer::start_with(&more).await;
        Self { server, account, folder: tempfile::tempdir().unwrap() }
    }

    /// A credentials file of a user with these permissions only.
    fn allow(&self, publish: &[&str], subscribe: &[&str]) -> std::path::PathBuf {
        let user = KeyPair::new_user();
        let rights = json!({
            "type": "user", "subs": -1, "data": -1, "payload": -1,
            "pub": { "allow": publish }, "sub": { "allow": subscribe },
        });
        let file = self.folder.path().join("gateway.creds");
        let token = token(&self.account, &user, rights);
        let text = format!(
            "-----BEGIN NATS USER JWT-----\n{token}\n------END NATS USER JWT------\n\n\
             -----BEGIN USER NKEY SEED-----\n{}\n------END USER NKEY SEED------\n",
            user.seed().unwrap()
        );
        fs::write(&file, text).unwrap();
        file
    }
}

fn token(issuer: &KeyPair, subject: &KeyPair, mut rights: Value) -> String {
    rights["version"] = json!(2);
    let claims = json!({
        "jti": Uuid::new_v4().to_string(), "iat": 1_700_000_000, "iss": issuer.public_key(),
        "name": "test", "sub": subject.public_key(), "nats": rights,
    });
    let part = |value: &Value| BASE64_URL_SAFE_NO_PAD.encode(value.to_string());
    let signed =
        format!("{}.{}", part(&json!({ "typ": "JWT", "alg": "ed25519-nkey" })), part(&claims));
    let signature = BASE64_URL_SAFE_NO_PAD.encode(issuer.sign(signed.as_bytes()).unwrap());
    format!("{signed}.{signature}")
}

/// The permissions in docs/nats.md.
fn documented() -> (Vec<&'static str>, Vec<&'static str>) {
    let page = include_str!("../../../../docs/nats.md");
    let (_, block) = page.split_once("publish:\n").unwrap();
    let (publish, rest) = block.split_once("subscribe:\n").unwrap();
    let (subscribe, _) = rest.split_once("```").unwrap();
    let subjects = |text: &'static str| text.lines().map(str::trim).collect();
    (subjects(publish), subjects(subscribe))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_documented_permissions_are_enough() {
    let mut guarded = Guarded::start().await;
    let (publish, subscribe) = documented();
    let settings = NatsConfig {
        creds_file: guarded.allow(&publish, &subscribe),
        ..settings(&guarded.server.url())
    };
    let store = Arc::new(Nats::open(&settings, KEEP).await.unwrap());
    timeout(store.usable()).await;
    contract::order(&*store).await;
    contract::read_your_writes(&*store).await;
    contract::swap_conflict(&*store).await;
    contract::follow_all(Arc::clone(&store) as Arc<dyn Store>, contract::LearnsEnd::Later).await;
    // Some requests are sent only after the connection broke.
    let mut followed = store.follow(None);
    contract::catch_up(&mut followed).await;
    guarded.server.kill();
    guarded.server.restart().await;
    timeout(store.usable()).await;
    let position =
        contract::append(&*store, &contract::new_log(), "after the break").await.unwrap();
    loop {
        match contract::next(&mut followed).await {
            Some(Followed::Event(_, entry)) if entry.position == position => break,
            Some(_) => {}
            None => panic!("the follower ended"),
        }
    }
    let error = store.core.link.state.borrow().error.clone();
    assert_eq!(error, None);
    let error = store.core.follow_link.state.borrow().error.clone();
    assert_eq!(error, None);
}

/// Wrong credentials are reported, and the file is read again for each attempt.
#[tokio::test]
async fn credentials_may_be_mended() {
    let guarded = Guarded::start().await;
    let (publish, subscribe) = documented();
    let file = guarded.allow(&publish, &subscribe);
    let right = fs::read(&file).unwrap();
    let stranger = Guarded { account: KeyPair::new_account(), ..guarded };
    let file = stranger.allow(&publish, &subscribe);
    let settings = NatsConfig { creds_file: file.clone(), ..settings(&stranger.server.url()) };
    let store = Nats::open(&settings, KEEP).await.unwrap();
    let refused = async {
        while !store.trouble().is_some_and(|why| why.contains("authorization violation")) {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    timeout(refused).await;
    fs::write(&file, right).unwrap();
    timeout(store.usable()).await;
}

/// A server with user names and passwords. The files are read for each attempt.
#[tokio::test]
async fn user_name_and_password_from_files() {
    let server =
        NatsServer::start_with(r#"authorization { user: gateway, password: "hidden 1" }"#).await;
    let folder = tempfile::tempdir().unwrap();
    let (username, password) = (folder.path().join("username"), folder.path().join("password"));
    fs::write(&username, "gateway\n").unwrap();
    fs::write(&password, "wrong\n").unwrap();
    let settings = NatsConfig {
        username_file: username,
        password_file: password.clone(),
        ..settings(&server.url())
    };
    let store = Nats::open(&settings, KEEP).await.unwrap();
    let refused = async {
        while !store.trouble().is_some_and(|why| why.contains("authorization violation")) {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    timeout(refused).await;
    fs::write(&password, "hidden 1\n").unwrap();
    timeout(store.usable()).await;
    contract::order(&store).await;
    assert!(!format!("{store:?}").contains("hidden 1"));
}

/// Server and gateway authenticate to each other by certificates.
#[tokio::test]
async fn tls_on_both_sides() {
    let folder = tempfile::tempdir().unwrap();
    let file = |name: &str| folder.path().join(name);
    let text = |path: &Path| path.display().to_string();
    let files =
        ["server.pem", "server.key", "client.pem", "client.key"].map(|name| text(&file(name)));
    let mut server = NatsServer::stopped_with(&format!(
        "tls {{ cert_file: {:?}, key_file: {:?}, ca_file: {:?}, verify: true }}",
        files[0], files[1], files[2]
    ));
    for (name, subject) in
        [("server", server.address().to_string()), ("client", "gateway".to_owned())]
    {
        let issued = rcgen::generate_simple_self_signed([subject]).unwrap();
        fs::write(file(&format!("{name}.pem")), issued.cert.pem()).unwrap();
        fs::write(file(&format!("{name}.key")), issued.signing_key.serialize_pem()).unwrap();
    }
    server.restart().await;
    let trusting = NatsConfig { ca_file: file("server.pem"), ..settings(&server.url()) };
    let proving = NatsConfig {
        cert_file: file("client.pem"),
        key_file: file("client.key"),
        ..trusting.clone()
    };
    let stranger = Nats::open(&trusting, KEEP).await.unwrap();
    let store = Nats::open(&proving, KEEP).await.unwrap();
    timeout(store.usable()).await;
    contract::order(&store).await;
    assert!(stranger.trouble().is_some(), "a gateway without a certificate got in");
}
