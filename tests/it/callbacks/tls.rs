//! Callbacks over HTTPS.

use super::{Sender, about};
use crate::harness::{Gateway, Upstream, device, place, within};

#[tokio::test]
async fn callbacks_are_accepted_over_https_in_http_1_1() {
    let upstream = Upstream::manual().await;
    let issued = rcgen::generate_simple_self_signed(["127.0.0.1".to_owned()]).unwrap();
    let mut config = upstream.with_callbacks();
    config.callbacks.tls_cert_file = upstream.dir.path().join("cert.pem");
    config.callbacks.tls_key_file = upstream.dir.path().join("key.pem");
    std::fs::write(&config.callbacks.tls_cert_file, issued.cert.pem()).unwrap();
    std::fs::write(&config.callbacks.tls_key_file, issued.signing_key.serialize_pem()).unwrap();
    let gateway = Gateway::start(config).await;
    let id = place(&mut gateway.client().await, "key", 0..1).await.unwrap();

    let trusted = reqwest::Certificate::from_pem(issued.cert.pem().as_bytes()).unwrap();
    let client = || reqwest::Client::builder().tls_certs_only([trusted.clone()]);
    let mut sender = Sender::new(&gateway);
    let plain = within("no answer", sender.http.post(&sender.url).send()).await;
    assert!(plain.is_err(), "{plain:?}");
    sender.url = sender.url.replace("http://", "https://");
    // The second client offers HTTP/2, too, which the listener does not use.
    for http in [client().http1_only().build().unwrap(), client().build().unwrap()] {
        sender.http = http;
        let body = sender.sign(&about(&id, &device(0), "Success"));
        let answer =
            within("an answer", sender.http.post(&sender.url).body(body).send()).await.unwrap();
        assert_eq!((answer.status().as_u16(), answer.version()), (200, reqwest::Version::HTTP_11));
    }
    gateway.stop().await;
}
