//! Who may reach the API.

use std::fs;

use rcgen::{BasicConstraints, CertificateParams, IsCa, KeyPair, date_time_ymd};

use super::*;
use crate::config::{AllowConfig, ClientCert};

fn entry(callers: &[&str], methods: &[&str], accounts: &[&str]) -> AllowConfig {
    let list = |names: &[&str]| names.iter().map(|&name| name.to_owned()).collect();
    AllowConfig { callers: list(callers), methods: list(methods), accounts: list(accounts) }
}

#[test]
fn all_problems_of_the_policy_are_reported_at_once() {
    let (_folder, mut config) = deployed();
    config.auth.allow = vec![
        entry(&["anonymous", "*"], &["*", "WatchRequest"], &["*", "0000123456-00001"]),
        entry(&["token:a", "jwt:a", "spiffe://a/b", "dns:a"], &["*"], &["*"]),
        entry(&["orders", "token:*a"], &["Order"], &["0000999999-00001"]),
        entry(&[], &[], &[]),
    ];
    let problems = [
        "auth.allow #2: callers: \"token:a\" never calls, because auth.tokens_file is not set",
        "auth.allow #2: callers: \"jwt:a\" never calls, because auth.jwt is not set",
        "auth.allow #2: callers: \"spiffe://a/b\" never calls, because grpc.client_ca_file is not",
        "auth.allow #2: callers: \"dns:a\" never calls, because grpc.client_ca_file is not set",
        "auth.allow #3: callers: \"orders\" is no name of a caller",
        "auth.allow #3: callers: \"token:*a\" has a * that is not at its end",
        "auth.allow #3: methods: there is no method \"Order\"; use DownloadProfile, ",
        "auth.allow #3: accounts: \"0000999999-00001\" is in no [[credentials]] section",
        "auth.allow #4: callers: there are none",
        "auth.allow #4: methods: there are none",
        "auth.allow #4: accounts: there are none",
    ];
    assert_begin(&bounds(&config), &problems);
}

#[test]
fn names_in_certificates_have_one_spelling() {
    let (folder, mut config) = deployed();
    let file = |name: &str| folder.path().join(name);
    let grpc = &mut config.grpc;
    (grpc.tls_cert_file, grpc.tls_key_file) = (file("tls.pem"), file("tls.key"));
    grpc.client_ca_file = file("clients.pem");
    config.auth.allow = vec![entry(
        &["spiffe://a/b", "spiffe://a/*", "dns:a.example", "dns:a*", "*"],
        &["*"],
        &["*"],
    )];
    assert_begin(&bounds(&config), &[]);
    config.auth.allow =
        vec![entry(&["anonymous", "spiffe://a*", "spiffe://*", "dns:A.example"], &["*"], &["*"])];
    let problems = [
        "auth.allow #1: callers: \"anonymous\" never calls",
        "auth.allow #1: callers: \"spiffe://a*\" has a * in the trust domain",
        "auth.allow #1: callers: \"spiffe://*\" has a * in the trust domain",
        "auth.allow #1: callers: \"dns:A.example\" never calls",
    ];
    assert_begin(&bounds(&config), &problems);
    let wrong = [
        "spiffe://A/b",
        "spiffe://a/b c",
        "spiffe://a//*",
        "spiffe://a/../*",
        "spiffe://a/",
        "dns:a b",
        "dns:a..*",
        "dns:a.",
    ];
    config.auth.allow = vec![entry(&wrong, &["*"], &["*"])];
    let problems = wrong.map(|name| format!("auth.allow #1: callers: {name:?} never calls"));
    assert_begin(&bounds(&config), &problems.each_ref().map(String::as_str));
    config.auth.allow.clear();
    assert_begin(&bounds(&config), &["auth.allow: there are no entries"]);
}

#[test]
fn names_of_callers_are_short_and_have_no_blanks() {
    let (folder, mut config) = deployed();
    config.auth.tokens_file = folder.path().join("tokens");
    let (long, longest) =
        (format!("token:{}", "a".repeat(251)), format!("token:{}*", "a".repeat(249)));
    config.auth.allow = vec![entry(&["token:a b", "token:ä*", &long, &longest], &["*"], &["*"])];
    let problems = ["token:a b", "token:ä*", &long]
        .map(|name| format!("auth.allow #1: callers: {name:?} never calls, because names"));
    assert_begin(&bounds(&config), &problems.each_ref().map(String::as_str));
}

/// The next version of the file may have the token.
#[test]
fn a_token_that_is_not_in_the_file_is_a_warning() {
    let (folder, mut config) = deployed();
    config.auth.tokens_file = folder.path().join("tokens");
    fs::write(&config.auth.tokens_file, format!("orders {}\n", "ab".repeat(32))).unwrap();
    let callers = ["token:orders", "token:ord*", "token:*", "*", "token:order", "token:reader*"];
    config.auth.allow = vec![entry(&callers, &["*"], &["*"])];
    assert_begin(&bounds(&config), &[]);
    assert_begin(&deployment(&config, None), &[]);
    let expected = [
        "auth.allow #1: callers: \"token:order\" cannot call, because auth.tokens_file (",
        "auth.allow #1: callers: \"token:reader*\" cannot call",
    ];
    assert_begin(&warnings(&config), &expected);
}

/// The gateway starts with it, as it would use it after a change.
#[test]
fn a_file_with_only_comments_is_a_warning_and_an_empty_one_a_problem() {
    let (folder, mut config) = deployed();
    config.auth.tokens_file = folder.path().join("tokens");
    config.auth.allow = vec![entry(&["*"], &["*"], &["*"])];
    fs::write(&config.auth.tokens_file, "# nobody\n").unwrap();
    assert_begin(&deployment(&config, None), &[]);
    let shown = config.auth.tokens_file.display();
    assert_begin(&warnings(&config), &[&format!("auth.tokens_file: {shown} has no tokens")]);
    fs::write(&config.auth.tokens_file, "\n").unwrap();
    let expected = format!("auth.tokens_file: {shown} is empty; to remove the last token");
    assert_begin(&deployment(&config, None), &[&expected]);
}

/// rustls refuses it as that of a server, and `openssl req -x509` makes such a one.
#[test]
fn the_certificate_of_an_authority_as_that_of_a_server_is_a_warning() {
    let (folder, mut config) = deployed();
    let [cert, key] = ["tls.pem", "tls.key"].map(|name| folder.path().join(name));
    config.callbacks.enabled = true;
    config.callbacks.tls_cert_file.clone_from(&cert);
    config.callbacks.tls_key_file.clone_from(&key);
    (config.grpc.tls_cert_file, config.grpc.tls_key_file) = (cert.clone(), key.clone());
    for (is_ca, problems) in [
        (IsCa::ExplicitNoCa, &[][..]),
        (IsCa::Ca(BasicConstraints::Unconstrained), &["grpc.tls_cert", "callbacks.tls_cert"]),
    ] {
        let mut params = CertificateParams::new(["gateway.example".to_owned()]).unwrap();
        params.is_ca = is_ca;
        let signing_key = KeyPair::generate().unwrap();
        fs::write(&cert, params.self_signed(&signing_key).unwrap().pem()).unwrap();
        fs::write(&key, signing_key.serialize_pem()).unwrap();
        assert_begin(&deployment(&config, None), &[]);
        assert_begin(&warnings(&config), problems);
    }
}

#[test]
fn authorities_of_a_key_set_need_https() {
    let (folder, mut config) = deployed();
    let jwt = &mut config.auth.jwt;
    (jwt.issuer, jwt.audience) = ("issuer".to_owned(), "gateway".to_owned());
    jwt.jwks_ca_file = folder.path().join("ca.pem");
    config.auth.allow = vec![entry(&["*"], &["*"], &["*"])];
    config.auth.jwt.jwks_url = "https://issuer.example/keys".to_owned();
    assert_begin(&bounds(&config), &[]);
    config.auth.jwt.jwks_url = "http://127.0.0.1:8080/keys".to_owned();
    assert_begin(&bounds(&config), &["auth.jwt.jwks_ca_file: is used only with https://"]);
}

/// TLS accepts the certificates that it has issued.
#[test]
fn an_authority_that_has_expired_is_a_warning() {
    let (folder, mut config) = deployed();
    let file = folder.path().join("clients.pem");
    config.grpc.client_ca_file.clone_from(&file);
    let authority = |year| {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        (params.not_before, params.not_after) =
            (date_time_ymd(2000, 1, 1), date_time_ymd(year, 1, 1));
        params.self_signed(&KeyPair::generate().unwrap()).unwrap().pem()
    };
    fs::write(&file, authority(4096)).unwrap();
    assert_begin(&warnings(&config), &[]);
    fs::write(&file, authority(4096) + &authority(2001)).unwrap();
    let expected = format!(
        "grpc.client_ca_file: {} holds an authority that expired at 2001-01-01T00:00:00Z",
        file.display()
    );
    assert_begin(&warnings(&config), &[&expected]);
}

#[test]
fn certificates_of_callers_need_tls_and_authorities() {
    let (folder, mut config) = deployed();
    config.grpc.client_cert = ClientCert::Required;
    assert_begin(&bounds(&config), &["grpc.client_cert: certificates cannot be required"]);
    config.grpc.client_ca_file = folder.path().join("clients.pem");
    config.auth.allow = vec![entry(&["*"], &["*"], &["*"])];
    assert_begin(&bounds(&config), &["grpc.client_ca_file: is used only with TLS"]);
    config.grpc.tls_cert_file = folder.path().join("tls.pem");
    let problems = ["grpc.tls_key_file: is required with tls_cert_file", "grpc.client_ca_file: is"];
    assert_begin(&bounds(&config), &problems);

    config.grpc.tls_key_file = folder.path().join("tls.key");
    assert_begin(&bounds(&config), &[]);
    for name in ["clients.pem", "tls.pem", "tls.key"] {
        fs::write(folder.path().join(name), "nothing").unwrap();
    }
    let problems = ["grpc.tls_key_file: ", "grpc.tls_cert_file: ", "grpc.client_ca_file: "];
    assert_begin(&deployment(&config, None), &problems);
}
