//! What the files of a configuration must contain.

use super::*;

/// ThingSpace counts a login with such a password as rejected.
#[test]
fn a_secret_with_something_around_it_is_refused() {
    let (_folder, config) = deployed();
    for secret in ["\n", "password \n", "\u{feff}password", "pass\u{0}word", "password\n\n"] {
        fs::write(&config.credentials[0].password_file, secret).unwrap();
        assert_begin(&deployment(&config, None), &["credentials #1: password_file: "]);
        assert!(!deployment(&config, None).to_string().contains("pass\u{0}word"));
    }
    fs::write(&config.credentials[0].password_file, "password\r\n").unwrap();
    assert_begin(&deployment(&config, None), &[]);
}

#[test]
fn credentials_are_unique_and_their_files_exist() {
    let (folder, mut config) = deployed();
    let mut second = config.credentials[0].clone();
    fs::write(&second.secret_file, "").unwrap();
    second.key_file = folder.path().join("missing");
    second.password_file = folder.path().to_owned();
    config.credentials.push(second);
    let mut third = config.credentials[1].clone();
    third.name = "a name".to_owned();
    third.accounts.clear();
    config.credentials[0].secret_file = config.credentials[0].key_file.clone();
    third.key_file = config.credentials[0].key_file.clone();
    third.secret_file = third.key_file.clone();
    third.password_file = third.key_file.clone();
    config.credentials.push(third);
    assert_begin(
        &deployment(&config, None),
        &[
            "credentials #2: name: \"main\" is the name of another section",
            "credentials #2: accounts: 0000123456-00001 is already listed in credentials #1",
            "credentials #2: key_file: ",
            "credentials #2: secret_file: ",
            "credentials #2: password_file: ",
            "credentials #3: name: must be 1 to 64",
            "credentials #3: accounts: there are none",
        ],
    );
}

#[test]
fn one_user_is_spelled_one_way() {
    let (folder, mut config) = deployed();
    let mut second = config.credentials[0].clone();
    second.name = "second".to_owned();
    second.accounts = vec!["0000123456-00002".to_owned().try_into().unwrap()];
    second.username_file = folder.path().join("second");
    config.credentials.push(second);
    for (user, problems) in [
        ("username", &[][..]),
        ("username\n", &[]),
        ("another", &[]),
        ("UserName", &["credentials #2: username_file: "]),
    ] {
        fs::write(&config.credentials[1].username_file, user).unwrap();
        assert_begin(&deployment(&config, None), problems);
    }
}

#[test]
fn nats_needs_servers_and_its_files_but_no_path() {
    let (folder, mut config) = deployed();
    config.store.kind = StoreKind::Nats;
    config.store.path = PathBuf::new();
    let problems = ["store.nats.url: is required", "control.socket: is required"];
    assert_begin(&deployment(&config, None), &problems);
    config.control.socket = folder.path().join("gateway.sock");
    config.store.nats.url = "nats://localhost:4222, tls://b:4222".to_owned();
    assert_begin(&deployment(&config, None), &[]);
    assert_begin(&bounds(&config), &[]);
    assert_eq!(config.store.nats.servers(), ["nats://localhost:4222", "tls://b:4222"]);

    config.store.nats.creds_file = folder.path().join("missing");
    config.store.nats.ca_file = folder.path().join("key");
    config.store.nats.cert_file = folder.path().to_owned();
    config.store.nats.key_file = folder.path().to_owned();
    assert_begin(
        &deployment(&config, None),
        &[
            "store.nats.creds_file: ",
            "store.nats.ca_file: ",
            "store.nats.key_file: ",
            "store.nats.cert_file: ",
        ],
    );
    config.store.nats.key_file = PathBuf::new();
    config.store.nats.username_file = folder.path().join("username");
    config.store.nats.url = "http://a,nats://user:password@b,nats://c/d,,nats://e:0".to_owned();
    let problems = [
        "store.nats.url: must begin with nats:// or tls://",
        "store.nats.url: must hold no user or password",
        "store.nats.url: must have no path",
        "store.nats.url: is not a URL",
        "store.nats.url: has a port that does not exist",
        "store.nats.key_file: is required with cert_file",
        "store.nats.password_file: is required with username_file",
        "store.nats.username_file: cannot be used together",
    ];
    assert_begin(&bounds(&config), &problems);
}

#[test]
fn files_of_callbacks_are_checked_if_callbacks_are_enabled() {
    let (folder, mut config) = deployed();
    let (cert, key) = (folder.path().join("cert.pem"), folder.path().join("key.pem"));
    (config.callbacks.tls_cert_file, config.callbacks.tls_key_file) = (cert.clone(), key.clone());
    config.callbacks.username_file = folder.path().join("callbacks-username");
    config.callbacks.password_file = folder.path().join("callbacks-password");
    assert_begin(&deployment(&config, None), &[]);
    config.callbacks.enabled = true;
    fs::write(&config.callbacks.username_file, "u".repeat(41)).unwrap();
    fs::write(&config.callbacks.password_file, " password").unwrap();
    let pair = ["callbacks.username_file: ", "callbacks.password_file: "];
    let tls = "callbacks.tls_cert_file: ";
    let tls_key = "callbacks.tls_key_file: ";
    assert_begin(&deployment(&config, None), &[&[tls_key, tls], &pair[..]].concat());
    for (years, valid) in [((2000, 2001), false), ((4000, 4001), false), ((2000, 4096), true)] {
        issue(&cert, &key, years);
        let expected = if valid { pair.to_vec() } else { [&[tls], &pair[..]].concat() };
        assert_begin(&deployment(&config, None), &expected);
    }
    fs::write(&config.callbacks.username_file, "u".repeat(40)).unwrap();
    fs::write(&config.callbacks.password_file, "another").unwrap();
    assert_begin(&deployment(&config, None), &[]);
    let login = fs::read_to_string(&config.credentials[0].username_file).unwrap();
    fs::write(&config.callbacks.username_file, login.to_uppercase()).unwrap();
    assert_begin(&deployment(&config, None), &[pair[0]]);
    fs::write(&config.callbacks.username_file, "another").unwrap();
    let own_key = fs::read_to_string(&key).unwrap();
    let encrypted = own_key.replace("PRIVATE", "ENCRYPTED PRIVATE");
    for (content, what) in
        [("no PEM", "holds no private key"), (&encrypted, "holds an encrypted private key")]
    {
        fs::write(&key, content).unwrap();
        let problem = format!("callbacks.tls_key_file: {} {what}", key.display());
        assert_begin(&deployment(&config, None), &[&problem]);
    }
    fs::write(&key, own_key).unwrap();
    let chain = fs::read_to_string(&cert).unwrap();
    let issuer = folder.path().join("issuer.pem");
    issue(&issuer, &folder.path().join("issuer.key"), (2000, 4096));
    fs::write(&cert, fs::read_to_string(&issuer).unwrap() + &chain).unwrap();
    let problems = deployment(&config, None).to_string();
    assert!(
        problems.starts_with(tls) && problems.contains("write the certificate of the server first"),
        "{problems}"
    );
}

fn issue(cert: &Path, key: &Path, (from, to): (i32, i32)) {
    let mut params = rcgen::CertificateParams::new(["gateway.example".to_owned()]).unwrap();
    params.not_before = rcgen::date_time_ymd(from, 1, 1);
    params.not_after = rcgen::date_time_ymd(to, 1, 1);
    let signing_key = rcgen::KeyPair::generate().unwrap();
    fs::write(cert, params.self_signed(&signing_key).unwrap().pem()).unwrap();
    fs::write(key, signing_key.serialize_pem()).unwrap();
}

#[test]
fn a_path_that_is_too_long_for_a_socket_is_refused() {
    let (folder, mut config) = deployed();
    config.control.socket = folder.path().join("s".repeat(120));
    assert_begin(
        &deployment(&config, None),
        &["control.socket: is too long for a socket; use a shorter path"],
    );
    config.control.socket = PathBuf::new();
    config.store.path = folder.path().join("s".repeat(120));
    assert_begin(
        &deployment(&config, None),
        &["control.socket: is too long for a socket; shorten store.path"],
    );
}

#[test]
fn a_store_that_cannot_be_opened_is_refused() {
    let (folder, mut config) = deployed();
    let record = folder.path().join("store.redb.record");
    fs::create_dir(&record).unwrap();
    assert_begin(&deployment(&config, None), &["store.path: the record beside the store, "]);
    fs::remove_dir(&record).unwrap();
    let listening = std::os::unix::net::UnixListener::bind(&config.store.path).unwrap();
    let not_a_file = format!("store.path: {} is not a file", config.store.path.display());
    assert_begin(&deployment(&config, None), &[&not_a_file]);
    drop(listening);
    fs::remove_file(&config.store.path).unwrap();
    let before = fs::read_dir(&folder).unwrap().count();
    assert_begin(&deployment(&config, None), &[]);
    assert_eq!(fs::read_dir(&folder).unwrap().count(), before, "something is left behind");
    // Not even root can create a file in /proc.
    config.store.path = "/proc/store.redb".into();
    assert_begin(
        &deployment(&config, None),
        &["store.path: cannot create a file in the folder /proc"],
    );
    config.control.socket = "/proc/gateway.sock".into();
    config.store.path = folder.path().join("store.redb");
    assert_begin(
        &deployment(&config, None),
        &["control.socket: cannot create a file in the folder /proc"],
    );
}

/// `serve` opens no other files, so `check` must refuse them.
#[test]
fn a_file_that_is_not_a_store_is_refused() {
    let (folder, mut config) = deployed();
    let path = config.store.path.clone();
    for (content, problem) in [
        (&b""[..], "is an empty file"),
        (b"redb", "is not a store of a gateway"),
        (&[b'j'; 2_000], "is not a store of a gateway"),
    ] {
        fs::write(&path, content).unwrap();
        assert_begin(
            &deployment(&config, None),
            &[&format!("store.path: {} {problem}", path.display())],
        );
        assert_eq!(fs::read(&path).unwrap(), content);
    }
    fs::remove_file(&path).unwrap();
    let held = redb::Database::create(&path).unwrap();
    assert_begin(&deployment(&config, None), &[]);
    drop(held);

    config.store.path = folder.path().join("link");
    std::os::unix::fs::symlink(&path, &config.store.path).unwrap();
    assert_begin(&deployment(&config, None), &[]);
    fs::remove_file(&path).unwrap();
    let problem =
        format!("store.path: {} is a symbolic link to nothing", config.store.path.display());
    assert_begin(&deployment(&config, None), &[&problem]);
    config.store.path = folder.path().join("new/");
    let problem = format!("store.path: {} ends with a slash", config.store.path.display());
    assert_begin(&deployment(&config, None), &[&problem]);
}

/// An operator wrote the secret instead of its path.
#[test]
fn a_secret_in_the_place_of_its_path_is_not_shown() {
    const SECRET: &str = "hidden-secret";
    let (folder, mut config) = deployed();
    config.credentials[0].password_file = SECRET.into();
    config.callbacks.enabled = true;
    config.callbacks.username_file = config.credentials[0].key_file.clone();
    config.callbacks.password_file = SECRET.into();
    let problems = [
        "credentials #1: password_file: is not the path of a file; ",
        "callbacks.password_file: is not the path of a file; ",
    ];
    assert_begin(&deployment(&config, None), &problems);
    config.store.kind = StoreKind::Nats;
    config.store.nats.url = "nats://127.0.0.1:4222".to_owned();
    config.control.socket = folder.path().join("gateway.sock");
    config.store.nats.creds_file = SECRET.into();
    let problems = deployment(&config, None).to_string();
    assert!(problems.contains("store.nats.creds_file: is not the path of a file; "), "{problems}");
    assert!(!problems.contains(SECRET), "{problems}");
    // A value with a slash and an existing file are shown.
    config.credentials[0].password_file = "missing/password".into();
    config.credentials[0].key_file = "src".into();
    let problems = deployment(&config, None).to_string();
    assert!(problems.contains("password_file: missing/password cannot be read"), "{problems}");
    assert!(problems.contains("key_file: src is not a file"), "{problems}");
}

#[test]
fn a_drain_shorter_than_an_order_is_a_warning() {
    let (_folder, mut config) = deployed();
    assert_begin(&warnings(&config), &[]);
    config.grpc.drain = Duration::from_secs(5);
    assert_begin(&deployment(&config, None), &[]);
    assert_begin(&warnings(&config), &["grpc.drain: 5s is shorter than an order may take"]);
}
