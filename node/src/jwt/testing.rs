//! Keys and tokens for tests. The keys are generated here, or printed in RFC 7515.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use ring::hmac;
use ring::rand::SystemRandom;
use ring::signature::ECDSA_P256_SHA256_FIXED_SIGNING;
use ring::signature::EcdsaKeyPair;
use ring::signature::KeyPair as _;

use crate::jwt::Key;

/// Secret number `number`.
pub(crate) fn secret(number: u8) -> [u8; 32] {
    [number; 32]
}

/// [`secret`] as a key.
pub(crate) fn secret_key(id: Option<&str>, number: u8) -> Key {
    Key::secret(id.map(str::to_owned), secret(number).to_vec()).expect("it is long enough")
}

/// A key set of secrets, with their ids.
pub(crate) fn key_set(keys: &[(&str, u8)]) -> String {
    let keys = keys.iter().map(|&(id, number)| {
        let k = URL_SAFE_NO_PAD.encode(secret(number));
        serde_json::json!({ "kty": "oct", "kid": id, "alg": "HS256", "k": k })
    });
    serde_json::json!({ "keys": keys.collect::<Vec<_>>() }).to_string()
}

/// A token of these bytes, which `sign` signs.
pub(crate) fn token(header: &str, claims: &[u8], sign: impl Fn(&[u8]) -> Vec<u8>) -> String {
    let signed = format!(
        "{}.{}",
        URL_SAFE_NO_PAD.encode(header),
        URL_SAFE_NO_PAD.encode(claims)
    );
    let signature = URL_SAFE_NO_PAD.encode(sign(signed.as_bytes()));
    format!("{signed}.{signature}")
}

/// A token that is signed with [`secret`] number `number`.
pub(crate) fn hs256(number: u8, claims: &str) -> String {
    token(r#"{"alg":"HS256"}"#, claims.as_bytes(), |message| {
        hmac_of(&secret(number), message)
    })
}

pub(crate) fn hmac_of(secret: &[u8], message: &[u8]) -> Vec<u8> {
    let key = hmac::Key::new(hmac::HMAC_SHA256, secret);
    hmac::sign(&key, message).as_ref().to_vec()
}

/// A new key pair on P-256: the key to check with, and what signs.
pub(crate) fn p256(id: Option<&str>) -> (Key, impl Fn(&[u8]) -> Vec<u8> + use<>) {
    let random = SystemRandom::new();
    let algorithm = &ECDSA_P256_SHA256_FIXED_SIGNING;
    let pkcs8 = EcdsaKeyPair::generate_pkcs8(algorithm, &random).expect("there is randomness");
    let pair = EcdsaKeyPair::from_pkcs8(algorithm, pkcs8.as_ref(), &random).expect("it is fresh");
    let point = pair.public_key().as_ref().to_vec();
    let key = Key::p256(id.map(str::to_owned), point).expect("ring made it");
    let sign = move |message: &[u8]| {
        pair.sign(&random, message)
            .expect("there is randomness")
            .as_ref()
            .to_vec()
    };
    (key, sign)
}
