use secrecy::{ExposeSecret, SecretString};

use super::*;
use crate::{
    simulator::{CallbackOptions, ServiceField},
    thingspace::{RefusalKind, Target},
};

const SERVICE: &str = "DeviceProfileService";
const URL: &str = "https://gateway.example:28200/secret";

impl World {
    async fn register(&self) -> Result<(), Error> {
        let (url, password) = (SecretString::from(URL), SecretString::from("open sesame"));
        let target = Target { url: &url, username: "gateway", password: &password };
        self.client.register_callback(&account(), SERVICE, &target).await
    }

    async fn listed(&self) -> Vec<(String, String, String)> {
        let listed = self.client.callbacks(&account()).await.unwrap();
        listed
            .into_iter()
            .map(|r| (r.service, r.url.expose_secret().to_owned(), r.username))
            .collect()
    }
}

#[tokio::test]
async fn registered_listed_and_deregistered() {
    for service_field in [ServiceField::ServiceName, ServiceField::Name] {
        let callbacks = CallbackOptions { service_field, ..CallbackOptions::default() };
        let world = world(Options { callbacks, ..manual() }).await;
        assert_eq!(world.listed().await, []);
        world.register().await.unwrap();
        assert_eq!(world.listed().await, [(SERVICE.into(), URL.into(), "gateway".into())]);
        let registered = world.handle.registered(&account()).unwrap();
        assert_eq!(registered.password.expose_secret(), "open sesame");
        let listed = world.client.callbacks(&account()).await.unwrap().remove(0);
        let has = ["open sesame", "sesame"].map(|password| listed.has_password(&password.into()));
        assert_eq!(has, [Some(true), Some(false)]);
        let shown = format!("{listed:?}");
        assert!(!shown.contains("sesame") && !shown.contains("gateway.example"), "{shown}");
        assert!(
            matches!(world.register().await, Err(Error::Refused(r)) if r.kind == RefusalKind::Other)
        );
        world.client.deregister_callback(&account(), SERVICE).await.unwrap();
        assert_eq!(world.listed().await, []);
        let again = world.client.deregister_callback(&account(), SERVICE).await;
        assert!(matches!(again, Err(Error::Refused(_))), "{again:?}");
    }
}

#[tokio::test]
async fn a_refused_token_is_renewed_and_the_call_repeated() {
    let world = world(manual()).await;
    world.register().await.unwrap();
    world.handle.expire_bearer();
    assert_eq!(world.listed().await.len(), 1);
    world.handle.expire_sessions();
    world.client.deregister_callback(&account(), SERVICE).await.unwrap();
    world.handle.expire_bearer();
    world.handle.expire_sessions();
    world.register().await.unwrap();
    let ledger = world.handle.ledger();
    let calls = [Endpoint::ListCallbacks, Endpoint::DeregisterCallback, Endpoint::RegisterCallback];
    assert_eq!(calls.map(|endpoint| ledger.calls(endpoint)), [2, 2, 4]);
}

#[tokio::test]
async fn a_lost_answer_is_ambiguous() {
    let world = world(manual()).await;
    world.handle.inject(Fault::once(Endpoint::RegisterCallback, When::AfterEffect, What::Drop));
    assert!(matches!(world.register().await, Err(Error::OutcomeUnknown { .. })));
    assert_eq!(world.listed().await.len(), 1);
    assert_eq!(world.handle.ledger().calls(Endpoint::RegisterCallback), 1);
}
