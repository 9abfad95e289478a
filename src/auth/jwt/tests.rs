use aws_lc_rs::{
    hmac,
    rand::SystemRandom,
    rsa::KeySize,
    signature::{KeyPair, RSA_PKCS1_SHA256, RSA_PSS_SHA256, RsaEncoding, RsaKeyPair},
};
use serde_json::json;
use test_support::issuer::{self, AUDIENCE, ISSUER, Issuer, encode, key_set, unsigned};

use super::*;

fn keys(issuers: &[&Issuer]) -> Keys {
    Keys::parse(key_set(issuers).as_bytes()).unwrap()
}

fn now() -> i64 {
    jiff::Timestamp::now().as_second()
}

fn claims() -> Value {
    issuer::claims(now() + 600)
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
    let expected = ExpectedClaims { issuer: ISSUER.into(), audience: AUDIENCE.into() };
    expected.verify(keys, token)
}

#[track_caller]
fn why_invalid(keys: &Keys, token: &str) -> &'static str {
    match verify(keys, token) {
        Err(JwtError::Invalid(why)) => why,
        accepted => panic!("{token}: {accepted:?}"),
    }
}

#[test]
fn a_token_names_its_caller_until_it_expires() {
    let issuer = Issuer::new("one");
    let caller = verify(&keys(&[&issuer]), &issuer.token(&claims())).unwrap();
    assert_eq!(caller.name(), "jwt:system:serviceaccount:fleet:orders");
    let left = caller.expires().unwrap().saturating_duration_since(Instant::now());
    let expected = Duration::from_mins(10) + LEEWAY;
    assert!(left <= expected && left + Duration::from_secs(30) > expected, "{left:?}");
    for usable in
        [with("exp", now() - 30), with("nbf", now() + 30), without("nbf"), with("aud", "gateway")]
    {
        verify(&keys(&[&issuer]), &issuer.token(&usable))
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
        // The last second of the leeway.
        (with("exp", now() - 60), "expired"),
        (with("exp", "tomorrow"), "cannot be verified"),
        (with("exp", -1), "lacks"),
        (with("sub", 7), "cannot be verified"),
        (with("sub", ""), "subject"),
        (with("sub", "a*"), "subject"),
        (with("sub", "a b"), "subject"),
        (with("sub", "x".repeat(300)), "subject"),
    ] {
        let said = why_invalid(&keys(&[&issuer]), &issuer.token(&wrong));
        assert!(said.contains(why), "{wrong}: {said}");
    }
}

#[test]
fn only_a_signature_of_the_named_key_counts() {
    let (issuer, other) = (Issuer::new("one"), Issuer::new("two"));
    let keys = keys(&[&issuer]);
    let invalid = |token: &str| why_invalid(&keys, token);
    assert_eq!(verify(&keys, &other.token(&claims())), Err(JwtError::UnknownKey));
    // Another key that calls itself like the known one.
    let forged = Issuer::new("one").token(&claims());
    assert!(invalid(&forged).contains("signature"));
    let good = issuer.token(&claims());
    let (signed, _) = good.rsplit_once('.').unwrap();
    for cut in [signed, &format!("{signed}."), &good[..good.len() - 2], "", "a.b.c", "..."] {
        invalid(cut);
    }
    for algorithm in ["none", "None", "HS256", "HS512", "ES384", "RS256", "ES256K", ""] {
        invalid(&issuer.sign(&json!({ "alg": algorithm, "kid": "one" }), &claims()));
    }
    invalid(&format!("{}.", unsigned(&json!({ "alg": "none" }), &claims())));
    for header in [
        json!({ "alg": "ES256", "kid": "one", "crit": ["exp"], "exp": 1 }),
        json!({ "alg": "ES256", "kid": "one", "crit": ["b64"], "b64": true }),
    ] {
        invalid(&issuer.sign(&header, &claims()));
    }
    assert!(invalid(&issuer.token(&with("padding", "x".repeat(1 << 20)))).contains("8 KiB"));
}

#[test]
fn a_token_without_a_key_id_needs_a_set_of_one_key() {
    let (issuer, other) = (Issuer::new("one"), Issuer::new("two"));
    let token = issuer.sign(&json!({ "alg": "ES256" }), &claims());
    verify(&keys(&[&issuer]), &token).unwrap();
    let both = keys(&[&issuer, &other]);
    assert!(matches!(verify(&both, &token), Err(JwtError::Invalid(_))));
    verify(&both, &other.token(&claims())).unwrap();
}

/// A key verifies only the algorithms of its type, even if a token names another one.
#[test]
fn a_token_cannot_choose_the_type_of_its_key() {
    let pair = RsaKeyPair::generate(KeySize::Rsa2048).unwrap();
    // PKCS #1: a sequence of the modulus, which begins at byte 9, and the exponent 65537.
    let public = pair.public_key().as_ref();
    let rsa = json!({ "kty": "RSA", "kid": "rsa", "n": encode(&public[9..265]), "e": "AQAB" });
    let issuer = Issuer::new("ec");
    let set = json!({ "keys": [rsa, issuer.jwk()] }).to_string();
    let keys = Keys::parse(set.as_bytes()).unwrap();
    let sign = |encoding: &'static dyn RsaEncoding, header: Value| {
        let signed = unsigned(&header, &claims());
        let mut signature = vec![0; pair.public_modulus_len()];
        pair.sign(encoding, &SystemRandom::new(), signed.as_bytes(), &mut signature).unwrap();
        format!("{signed}.{}", encode(signature))
    };
    verify(&keys, &sign(&RSA_PKCS1_SHA256, json!({ "alg": "RS256", "kid": "rsa" }))).unwrap();
    verify(&keys, &sign(&RSA_PSS_SHA256, json!({ "alg": "PS256", "kid": "rsa" }))).unwrap();
    verify(&keys, &issuer.token(&claims())).unwrap();

    why_invalid(&keys, &sign(&RSA_PKCS1_SHA256, json!({ "alg": "PS256", "kid": "rsa" })));
    why_invalid(&keys, &sign(&RSA_PKCS1_SHA256, json!({ "alg": "RS256", "kid": "ec" })));
    why_invalid(&keys, &issuer.sign(&json!({ "alg": "ES256", "kid": "rsa" }), &claims()));
    // The public key as a shared secret.
    for (id, secret) in [("rsa", public), ("ec", issuer.public_key())] {
        let signed = unsigned(&json!({ "alg": "HS256", "kid": id }), &claims());
        let key = hmac::Key::new(hmac::HMAC_SHA256, secret);
        let token = format!("{signed}.{}", encode(hmac::sign(&key, signed.as_bytes())));
        assert!(why_invalid(&keys, &token).contains("algorithm"));
    }
}

#[test]
fn keys_that_cannot_verify_are_left_out() {
    let issuer = Issuer::new("one");
    let (mut encryption, mut signing) = (issuer.jwk(), issuer.jwk());
    encryption["use"] = "enc".into();
    signing["key_ops"] = json!(["sign"]);
    let shared = json!({ "kty": "oct", "k": "c2VjcmV0", "kid": "shared", "alg": "HS256" });
    let odd = json!({ "kty": "AKP", "alg": "ML-DSA-44", "kid": "odd" });
    let mut useless = vec![encryption, signing, shared, odd, 7.into()];
    let bytes = |length| encode(vec![1; length]);
    for (curve, length) in [("P-256", 1), ("P-256", 32), ("P-384", 32), ("P-521", 66)] {
        // A point of 32 bytes has the right length, and is not on the curve.
        let coordinate = bytes(length);
        useless.push(json!({ "kty": "EC", "crv": curve, "x": coordinate, "y": coordinate }));
    }
    useless.push(json!({ "kty": "OKP", "crv": "Ed25519", "x": bytes(31) }));
    useless.push(json!({ "kty": "OKP", "crv": "X25519", "x": bytes(32) }));
    useless.push(json!({ "kty": "RSA", "n": bytes(128), "e": "AQAB" }));
    // Algorithms of another curve and of another type of key.
    for algorithm in ["ES384", "RS256", "HS256"] {
        let mut key = issuer.jwk();
        key["alg"] = algorithm.into();
        useless.push(key);
    }
    for key in &useless {
        let set = json!({ "keys": [key] }).to_string();
        assert!(Keys::parse(set.as_bytes()).is_err(), "{set}");
    }
    useless.push(issuer.jwk());
    let keys = Keys::parse(json!({ "keys": useless }).to_string().as_bytes()).unwrap();
    assert_eq!(keys.0.len(), 1);
    verify(&keys, &issuer.token(&claims())).unwrap();
    for useless in ["", "{}", r#"{"keys": []}"#, r#"{"keys": [{"kty": "oct", "k": "AA"}]}"#] {
        assert!(Keys::parse(useless.as_bytes()).is_err(), "{useless}");
    }
}
