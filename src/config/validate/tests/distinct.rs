use super::*;

#[test]
fn the_socket_overwrites_no_other_file() {
    let (folder, config) = deployed();
    let file = folder.path().join("gateway.toml");
    fs::write(&file, "").unwrap();
    let link = folder.path().join("link");
    std::os::unix::fs::symlink(folder.path(), &link).unwrap();
    let credentials = &config.credentials[0];
    let taken = [
        (config.store.path.clone(), "store.path"),
        (link.join("store.redb"), "store.path"),
        (folder.path().join("./store.redb"), "store.path"),
        (file.clone(), "the configuration file"),
        (credentials.password_file.clone(), "password_file of credentials #1"),
        (credentials.key_file.clone(), "key_file of credentials #1"),
        (folder.path().join("tls"), "callbacks.tls_key_file"),
        (folder.path().join("authority"), "telemetry.otlp_ca_file"),
    ];
    for (path, what) in taken {
        let mut config = config.clone();
        config.callbacks.tls_key_file = folder.path().join("tls");
        config.telemetry.otlp_ca_file = folder.path().join("authority");
        config.control.socket = path;
        let problems = deployment(&config, Some(&file));
        let lines = lines(&problems);
        let named = |line: &&str| {
            line.starts_with("control.socket: ") && line.contains(&format!("the path of {what};"))
        };
        assert!(lines.iter().any(named), "{what}: {lines:#?}");
    }
    let mut on_nats = config.clone();
    on_nats.store.kind = StoreKind::Nats;
    (on_nats.store.nats.username_file, on_nats.store.nats.password_file) =
        ("user".into(), "secret".into());
    for (path, what) in
        [("user", "store.nats.username_file"), ("./secret", "store.nats.password_file")]
    {
        on_nats.control.socket = path.into();
        let problems = deployment(&on_nats, Some(&file)).to_string();
        assert!(problems.contains(&format!("{path} is the path of {what};")), "{problems}");
    }
    let other = folder.path().join("notes");
    fs::write(&other, "kept").unwrap();
    let mut config = config;
    config.control.socket = other;
    assert_begin(&deployment(&config, Some(&file)), &["control.socket: "]);
    config.control.socket = folder.path().join("store.redb.sock");
    assert_begin(&deployment(&config, Some(&file)), &[]);
    let _listening = std::os::unix::net::UnixListener::bind(&config.control.socket).unwrap();
    assert_begin(&deployment(&config, Some(&file)), &[]);
}

#[test]
fn the_store_overwrites_no_other_file() {
    let (folder, mut config) = deployed();
    let file = folder.path().join("gateway.toml");
    fs::write(&file, "").unwrap();
    config.credentials[0].password_file = folder.path().join("store.redb.record");
    fs::write(&config.credentials[0].password_file, "password").unwrap();
    let problems = deployment(&config, Some(&file)).to_string();
    assert!(
        problems.contains(
            "the record beside the store, is the path of password_file of credentials #1;"
        ),
        "{problems}"
    );
    let (_folder, mut config) = deployed();
    config.store.path = file.clone();
    let problems = deployment(&config, Some(&file)).to_string();
    assert!(problems.contains(" is the path of the configuration file;"), "{problems}");
}

#[test]
fn the_password_of_callbacks_is_not_that_of_a_user() {
    let (folder, mut config) = deployed();
    config.callbacks.enabled = true;
    config.callbacks.username_file = folder.path().join("user");
    config.callbacks.password_file = folder.path().join("sent");
    fs::write(&config.callbacks.username_file, "somebody").unwrap();
    // The password of the user, except for the line break.
    fs::write(&config.callbacks.password_file, "password\r\n").unwrap();
    let problems = deployment(&config, None);
    assert_begin(&problems, &["callbacks.password_file: "]);
    let line = problems.iter().next().unwrap();
    for path in [&config.callbacks.password_file, &config.credentials[0].password_file] {
        assert!(line.contains(path.to_str().unwrap()), "{line}");
    }
    fs::write(&config.callbacks.password_file, "another").unwrap();
    assert_begin(&deployment(&config, None), &[]);
    config.callbacks.password_file = config.credentials[0].password_file.clone();
    assert_begin(&deployment(&config, None), &["callbacks.password_file: "]);
    config.callbacks.enabled = false;
    assert_begin(&deployment(&config, None), &[]);
}
