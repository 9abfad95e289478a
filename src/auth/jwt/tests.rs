use aws_lc_rs::{
    rand::SystemRandom,
    signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair},
};
use base64::{Engine, prelude::BASE64_URL_SAFE_NO_PAD};
use serde_json::json;

use super::*;

/// An issuer with one P-256 key.
struct Issuer {
    pair: EcdsaKeyPair,
    id: &'static str,
}

impl Issuer {
    fn new(id: &'static str) -> Self {
        Self { pair: EcdsaKeyPair::generate(&ECDSA_P256_SHA256_FIXED_SIGNING).unwrap(), id }
    }

    /// The public key: the point is 4, x, y.
    fn jwk(&self) -> Value {
        let point = self.pair.public_key().as_ref();
        json!({
            "kty": "EC", "crv": "P-256", "kid": self.id, "use": "sig",
            "x": BASE64_URL_SAFE_NO_PAD.encode(&point[1..33]),
            "y": BASE64_URL_SAFE_NO_PAD.encode(&point[33..]),
        })
    }

    fn keys(&self) -> Keys {
        Keys::parse(json!({ "keys": [self.jwk()] }).to_string().as_bytes()).unwrap()
    }

    fn sign(&self, header: &Value, claims: &Value) -> String {
        let part = |json: &Value| BASE64_URL_SAFE_NO_PAD.encode(json.to_string());
        let signed = format!("{}.{}", part(header), part(claims));
        let signature = self.pair.sign(&SystemRandom::new(), signed.as_bytes()).unwrap();
        format!("{signed}.{}", BASE64_URL_SAFE_NO_PAD.encode(signature))
    }

    fn token(&self, claims: &Value) -> String {
        self.sign(&json!({ "alg": "ES256", "kid": self.id }), claims)
    }
}

fn now() -> i64 {
    jiff::Timestamp::now().as_second()
}

fn claims() -> Value {
    json!({
        "iss": "https://issuer.example", "aud": ["other", "gateway"],
        "sub": "system:serviceaccount:fleet:orders", "exp": now() + 600, "nbf": now() - 5,
    })
}

fn with(key: &str, value: impl Into<Value>) -> Value {
    let mut claims = claims();
    claims[key] = value.into();
    claims
}

fn without(key: &str) -> Value {
    let mut claims = claims();
    claims.as_object_mut().unwrap().remove(key);
    claims
}

fn verify(keys: &Keys, token: &str) -> Result<Caller, JwtError> {
    let expected =
        ExpectedClaims { issuer: "https://issuer.example".into(), audience: "gateway".into() };
    expected.verify(keys, token)
}

#[test]
fn a_token_names_its_caller_until_it_expires() {
    let issuer = Issuer::new("one");
    let caller = verify(&issuer.keys(), &issuer.token(&claims())).unwrap();
    assert_eq!(caller.name(), "jwt:system:serviceaccount:fleet:orders");
    let left = caller.expires().unwrap().saturating_duration_since(Instant::now());
    let expected = Duration::from_mins(10) + LEEWAY;
    assert!(left <= expected && left + Duration::from_secs(30) > expected, "{left:?}");
    for usable in
        [with("exp", now() - 30), with("nbf", now() + 30), without("nbf"), with("aud", "gateway")]
    {
        verify(&issuer.keys(), &issuer.token(&usable))
            .unwrap_or_else(|error| panic!("{usable}: {error:?}"));
    }
}

#[test]
fn a_wrong_claim_is_named() {
    let issuer = Issuer::new("one");
    for (wrong, why) in [
        (with("exp", now() - 90), "expired"),
        (with("nbf", now() + 90), "not valid yet"),
        (with("iss", "https://other.example"), "another issuer"),
        (with("aud", "other"), "another audience"),
        (with("aud", json!([])), "audience"),
        (without("exp"), "lacks"),
        (without("iss"), "lacks"),
        (without("aud"), "lacks"),
        (without("sub"), "lacks"),
        (with("exp", "tomorrow"), "cannot be verified"),
        (with("sub", ""), "subject"),
        (with("sub", "a*"), "subject"),
        (with("sub", "a b"), "subject"),
        (with("sub", "x".repeat(300)), "subject"),
    ] {
        match verify(&issuer.keys(), &issuer.token(&wrong)) {
            Err(JwtError::Invalid(said)) => assert!(said.contains(why), "{wrong}: {said}"),
            other => panic!("{wrong}: {other:?}"),
        }
    }
}

#[test]
fn only_a_signature_of_the_named_key_counts() {
    let (issuer, other) = (Issuer::new("one"), Issuer::new("two"));
    let keys = issuer.keys();
    let invalid = |token: &str| match verify(&keys, token) {
        Err(JwtError::Invalid(why)) => why,
        accepted => panic!("{token}: {accepted:?}"),
    };
    assert_eq!(verify(&keys, &other.token(&claims())), Err(JwtError::UnknownKey));
    // Another key that calls itself like the known one.
    let forged = Issuer { id: "one", ..other }.token(&claims());
    assert!(invalid(&forged).contains("signature"));
    let good = issuer.token(&claims());
    let (signed, _) = good.rsplit_once('.').unwrap();
    for cut in [signed, &format!("{signed}."), &good[..good.len() - 2], "", "a.b.c", "..."] {
        invalid(cut);
    }
    for algorithm in ["none", "None", "HS256", "HS512", "ES384", "RS256", "ES256K", ""] {
        invalid(&issuer.sign(&json!({ "alg": algorithm, "kid": "one" }), &claims()));
    }
    invalid(&format!("{}.", issuer.sign(&json!({ "alg": "none" }), &claims())));
    assert!(invalid(&issuer.token(&with("padding", "x".repeat(1 << 20)))).contains("8 KiB"));
}

#[test]
fn a_token_without_a_key_id_needs_a_set_of_one_key() {
    let (issuer, other) = (Issuer::new("one"), Issuer::new("two"));
    let token = issuer.sign(&json!({ "alg": "ES256" }), &claims());
    verify(&issuer.keys(), &token).unwrap();
    let both = json!({ "keys": [issuer.jwk(), other.jwk()] }).to_string();
    let both = Keys::parse(both.as_bytes()).unwrap();
    assert!(matches!(verify(&both, &token), Err(JwtError::Invalid(_))));
    verify(&both, &other.token(&claims())).unwrap();
}

#[test]
fn keys_that_cannot_verify_are_left_out() {
    let issuer = Issuer::new("one");
    let mut encryption = issuer.jwk();
    encryption["use"] = "enc".into();
    let mut shared = json!({ "kty": "oct", "k": "c2VjcmV0", "kid": "shared", "alg": "HS256" });
    let odd = json!({ "kty": "AKP", "alg": "ML-DSA-44", "kid": "odd" });
    let set = json!({ "keys": [encryption, shared.take(), odd, 7, issuer.jwk()] }).to_string();
    let keys = Keys::parse(set.as_bytes()).unwrap();
    assert_eq!(keys.0.len(), 1);
    verify(&keys, &issuer.token(&claims())).unwrap();
    for useless in ["", "{}", r#"{"keys": []}"#, r#"{"keys": [{"kty": "oct", "k": "AA"}]}"#] {
        assert!(Keys::parse(useless.as_bytes()).is_err(), "{useless}");
    }
}
