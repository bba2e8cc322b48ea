//! Tokens of others, hostile ones, and the keys of RFC 7515.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use proptest::prelude::*;
use ring::rand::SystemRandom;
use ring::signature::ECDSA_P256_SHA256_FIXED_SIGNING;
use ring::signature::ECDSA_P384_SHA384_FIXED_SIGNING;
use ring::signature::EcdsaKeyPair;
use ring::signature::Ed25519KeyPair;
use ring::signature::KeyPair as _;

use super::testing;
use super::*;
use crate::jwt::jwks::BadKeySet;
use crate::jwt::key::RsaScheme;

/// RFC 7515 appendix A: claims that all three examples share.
const CLAIMS: &str = "eyJpc3MiOiJqb2UiLA0KICJleHAiOjEzMDA4MTkzODAsDQogImh0dHA6Ly9leGFtcGxlLmNvbS9pc19yb290Ijp0cnVlfQ";

const RFC_KEYS: &str = r#"{"keys": [
    {"kty": "oct", "kid": "hs", "k": "AyM1SysPpbyDfgZld3umj1qzKObwVMkoqQ-EstJQLr_T-1qS0gZH75aKtMN3Yj0iPS4hcgUuTwjAzZr1Z9CAow"},
    {"kty": "RSA", "kid": "rs", "use": "sig", "e": "AQAB", "n": "ofgWCuLjybRlzo0tZWJjNiuSfb4p4fAkd_wWJcyQoTbji9k0l8W26mPddxHmfHQp-Vaw-4qPCJrcS2mJPMEzP1Pt0Bm4d4QlL-yRT-SFd2lZS-pCgNMsD1W_YpRPEwOWvG6b32690r2jZ47soMZo9wGzjb_7OMg0LOL-bSf63kpaSHSXndS5z5rexMdbBYUsLA9e-KXBdQOS-UTo7WTBEMa2R2CapHg665xsmtdVMTBQY4uDZlxvb3qCo5ZwKh9kG4LT6_I5IhlJH7aGhyxXFvUK-DWNmoudF8NAco9_h9iaGNj8q2ethFkMLs91kzk2PAcDTW9gb54h4FRWyuXpoQ"},
    {"kty": "EC", "kid": "es", "crv": "P-256", "alg": "ES256", "x": "f83OJ3D2xF1Bg8vub9tLe1gHMzV76e8Tus9uPHvRVEU", "y": "x_FEzRu9m36HLN_tue659LNpXW6pCyStikYjKIWI5a0"}
]}"#;

const HS256: [&str; 2] = [
    "eyJ0eXAiOiJKV1QiLA0KICJhbGciOiJIUzI1NiJ9",
    "dBjftJeZ4CVP-mB92K27uhbUJU1p1r_wW1gFWFOEjXk",
];
const RS256: [&str; 2] = [
    "eyJhbGciOiJSUzI1NiJ9",
    "cC4hiUPoj9Eetdgtv3hF80EGrhuB__dzERat0XF9g2VtQgr9PJbu3XOiZj5RZmh7AAuHIm4Bh-0Qc_lF5YKt_O8W2Fp5jujGbds9uJdbF9CUAr7t1dnZcAcQjbKBYNX4BAynRFdiuB--f_nZLgrnbyTyWzO75vRK5h6xBArLIARNPvkSjtQBMHlb1L07Qe7K0GarZRmB_eSN9383LcOLn6_dO--xi12jzDwusC-eOkHWEsqtFZESc6BfI7noOPqvhJ1phCnvWh6IeYI2w9QOYEUipUTI8np6LbgGY9Fs98rqVt5AXLIhWkWywlVmtVrBp0igcN_IoypGlUPQGe77Rw",
];
const ES256: [&str; 2] = [
    "eyJhbGciOiJFUzI1NiJ9",
    "DtEhU3ljbEg8L38VWAfUAqOyKAM6-Xx-F4GawxaepmXFCgfTjDxw5djxLa8ISlSApmWQxfKTUJqPP3-Kg6NU1Q",
];

/// The RSA key of the RFC in PEM, as `openssl pkey -pubin` writes it.
const RSA_PEM: &str = "-----BEGIN PUBLIC KEY-----
MIIBIjANBgkqhkiG9w0BAQEFAAOCAQ8AMIIBCgKCAQEAofgWCuLjybRlzo0tZWJj
NiuSfb4p4fAkd/wWJcyQoTbji9k0l8W26mPddxHmfHQp+Vaw+4qPCJrcS2mJPMEz
P1Pt0Bm4d4QlL+yRT+SFd2lZS+pCgNMsD1W/YpRPEwOWvG6b32690r2jZ47soMZo
9wGzjb/7OMg0LOL+bSf63kpaSHSXndS5z5rexMdbBYUsLA9e+KXBdQOS+UTo7WTB
EMa2R2CapHg665xsmtdVMTBQY4uDZlxvb3qCo5ZwKh9kG4LT6/I5IhlJH7aGhyxX
FvUK+DWNmoudF8NAco9/h9iaGNj8q2ethFkMLs91kzk2PAcDTW9gb54h4FRWyuXp
oQIDAQAB
-----END PUBLIC KEY-----
";

/// The key on P-256 of the RFC in PEM.
const P256_PEM: &str = "-----BEGIN PUBLIC KEY-----
MFkwEwYHKoZIzj0CAQYIKoZIzj0DAQcDQgAEf83OJ3D2xF1Bg8vub9tLe1gHMzV7
6e8Tus9uPHvRVEXH8UTNG72bfocs3+257rn0s2ldbqkLJK2KRiMohYjlrQ==
-----END PUBLIC KEY-----
";

fn rfc_keys() -> Vec<Key> {
    Key::set(RFC_KEYS.as_bytes()).unwrap()
}

fn rfc_token([header, signature]: [&str; 2]) -> String {
    format!("{header}.{CLAIMS}.{signature}")
}

#[test]
fn the_examples_of_rfc_7515_verify() {
    let claims = URL_SAFE_NO_PAD.decode(CLAIMS).unwrap();
    for example in [HS256, RS256, ES256] {
        assert_eq!(verify(&rfc_token(example), &rfc_keys()), Ok(claims.clone()));
    }
}

#[test]
fn a_key_in_pem_is_the_same_as_in_a_set() {
    let keys = [
        Key::new(Some("rs".into()), Algorithm::Rs256, RSA_PEM).unwrap(),
        Key::new(Some("es".into()), Algorithm::Es256, P256_PEM).unwrap(),
    ];
    assert_eq!(keys[..], rfc_keys()[1..]);
}

#[test]
fn a_key_of_the_wrong_type_for_its_algorithm_is_rejected() {
    let private = RSA_PEM.replace("PUBLIC", "PRIVATE");
    let certificate = RSA_PEM.replace("PUBLIC KEY", "CERTIFICATE");
    let cut = &RSA_PEM[..200];
    for (algorithm, text, expected) in [
        (Algorithm::Hs256, &"x".repeat(32)[..], None),
        (
            Algorithm::Hs256,
            &"x".repeat(31),
            Some(BadKey::ShortSecret(31)),
        ),
        (Algorithm::Hs256, "", Some(BadKey::ShortSecret(0))),
        (Algorithm::Rs256, RSA_PEM, None),
        (Algorithm::Rs256, P256_PEM, Some(BadKey::NotRsa)),
        (Algorithm::Es256, P256_PEM, None),
        (Algorithm::Es256, RSA_PEM, Some(BadKey::NotP256)),
        (Algorithm::Rs256, &private, Some(BadKey::NotPem)),
        (Algorithm::Rs256, &certificate, Some(BadKey::NotPem)),
        (Algorithm::Rs256, cut, Some(BadKey::NotPem)),
        (Algorithm::Es256, "a secret", Some(BadKey::NotPem)),
        (Algorithm::Ps256, RSA_PEM, None),
        (Algorithm::Ps256, P256_PEM, Some(BadKey::NotRsa)),
        (Algorithm::Es384, P256_PEM, Some(BadKey::NotP384)),
        (Algorithm::Es384, RSA_PEM, Some(BadKey::NotP384)),
        (Algorithm::EdDsa, P256_PEM, Some(BadKey::NotEd25519)),
        (Algorithm::EdDsa, RSA_PEM, Some(BadKey::NotEd25519)),
    ] {
        let refused = Key::new(None, algorithm, text).err();
        assert_eq!(refused, expected, "{algorithm} {text}");
    }
    let short = Key::rsa(None, RsaScheme::Pkcs1, &[0xff; 255], &[1, 0, 1]).err();
    assert_eq!(short, Some(BadKey::RsaSize(2040)));
    // Zeros in front do not make a number larger.
    let padded = [[0; 8].as_slice(), &[0xff; 255]].concat();
    assert!(Key::rsa(None, RsaScheme::Pkcs1, &padded, &[1, 0, 1]).is_err());
}

/// A key pair in PKCS #8, as PEM, and its public key as JWK.
fn pair(algorithm: Algorithm) -> (String, String) {
    let random = SystemRandom::new();
    let encode = |bytes: &[u8]| URL_SAFE_NO_PAD.encode(bytes);
    let (pkcs8, jwk) = match algorithm {
        Algorithm::EdDsa => {
            let pkcs8 = Ed25519KeyPair::generate_pkcs8(&random).unwrap();
            let pair = Ed25519KeyPair::from_pkcs8(pkcs8.as_ref()).unwrap();
            let x = encode(pair.public_key().as_ref());
            let jwk = serde_json::json!({ "kty": "OKP", "crv": "Ed25519", "x": x });
            (pkcs8, jwk)
        }
        _ => {
            let (curve, signing) = match algorithm {
                Algorithm::Es384 => ("P-384", &ECDSA_P384_SHA384_FIXED_SIGNING),
                _ => ("P-256", &ECDSA_P256_SHA256_FIXED_SIGNING),
            };
            let pkcs8 = EcdsaKeyPair::generate_pkcs8(signing, &random).unwrap();
            let pair = EcdsaKeyPair::from_pkcs8(signing, pkcs8.as_ref(), &random).unwrap();
            let point = &pair.public_key().as_ref()[1..];
            let (x, y) = point.split_at(point.len() / 2);
            let (x, y) = (encode(x), encode(y));
            let jwk = serde_json::json!({ "kty": "EC", "crv": curve, "x": x, "y": y });
            (pkcs8, jwk)
        }
    };
    let text = STANDARD.encode(pkcs8.as_ref());
    let pem = format!("-----BEGIN PRIVATE KEY-----\n{text}\n-----END PRIVATE KEY-----\n");
    (pem, format!("{{\"keys\": [{jwk}]}}"))
}

#[test]
fn a_key_verifies_what_its_private_key_has_signed_and_nothing_else() {
    let algorithms = [Algorithm::Es256, Algorithm::Es384, Algorithm::EdDsa];
    let pairs = algorithms.map(|algorithm| (algorithm, pair(algorithm)));
    for (algorithm, (private, set)) in &pairs {
        let keys = Key::set(set.as_bytes()).unwrap();
        assert_eq!(keys[0].algorithm(), *algorithm);
        let signing = SigningKey::new(None, None, private).unwrap();
        let token = signing.sign("{}").unwrap();
        assert_eq!(verify(&token, &keys), Ok(b"{}".to_vec()), "{algorithm}");
        let another = SigningKey::new(None, Some(*algorithm), &pair(*algorithm).0).unwrap();
        let another = another.sign("{}").unwrap();
        assert_eq!(verify(&another, &keys), Err(BadToken::Signature));
        for (other, (private, _)) in pairs.iter().filter(|(other, _)| other != algorithm) {
            let signing = SigningKey::new(None, Some(*other), private).unwrap();
            let token = signing.sign("{}").unwrap();
            let no_key = Err(BadToken::NoKey(*other, ""));
            assert_eq!(verify(&token, &keys), no_key, "{algorithm} and {other}");
            assert!(matches!(
                SigningKey::new(None, Some(*algorithm), private),
                Err(BadSigningKey::OtherKind(..))
            ));
        }
    }
    let secret = SigningKey::new(Some("k".to_owned()), None, &"s".repeat(32)).unwrap();
    let keys = [Key::new(Some("k".to_owned()), Algorithm::Hs256, &"s".repeat(32)).unwrap()];
    assert_eq!(
        verify(&secret.sign("{}").unwrap(), &keys),
        Ok(b"{}".to_vec())
    );
    for (text, algorithm) in [
        (RSA_PEM, None),
        ("short", None),
        ("a secret", Some(Algorithm::Rs256)),
        (
            "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n",
            None,
        ),
    ] {
        assert!(SigningKey::new(None, algorithm, text).is_err(), "{text}");
    }
    assert!(matches!(
        SigningKey::of(&Key::new(None, Algorithm::Rs256, RSA_PEM).unwrap()),
        Err(BadSigningKey::Public(Algorithm::Rs256))
    ));
}

/// The same RSA key serves one of its two algorithms, the one that it is configured with.
#[test]
fn an_rsa_key_is_used_with_its_own_algorithm() {
    let [pkcs1, pss] =
        [Algorithm::Rs256, Algorithm::Ps256].map(|it| Key::new(None, it, RSA_PEM).unwrap());
    assert_ne!(pkcs1, pss);
    let [header, signature] = RS256;
    let token = format!("{header}.{CLAIMS}.{signature}");
    assert!(verify(&token, std::slice::from_ref(&pkcs1)).is_ok());
    let no_key = Err(BadToken::NoKey(Algorithm::Rs256, ""));
    assert_eq!(verify(&token, std::slice::from_ref(&pss)), no_key);
    let as_pss = RFC_KEYS.replace(r#""kid": "rs""#, r#""kid": "rs", "alg": "PS256""#);
    let keys = Key::set(as_pss.as_bytes()).unwrap();
    assert_eq!(keys[1].algorithm(), Algorithm::Ps256);
}

#[test]
fn the_header_has_to_name_a_supported_algorithm() {
    let keys = rfc_keys();
    let none = format!("{}.{CLAIMS}.", URL_SAFE_NO_PAD.encode(r#"{"alg":"none"}"#));
    for (token, expected) in [
        (none, BadToken::Algorithm("\"none\"".into())),
        (
            testing::token(r#"{"alg":"NONE"}"#, b"{}", |_| vec![]),
            BadToken::Algorithm("\"NONE\"".into()),
        ),
        (
            testing::token(r#"{"alg":"RS512"}"#, b"{}", |_| vec![]),
            BadToken::Algorithm("\"RS512\"".into()),
        ),
        (
            testing::token(r#"{"alg":"hs256"}"#, b"{}", |_| vec![]),
            BadToken::Algorithm("\"hs256\"".into()),
        ),
        (
            testing::token(r#"{"alg":"0123456789abcdefg"}"#, b"{}", |_| vec![]),
            BadToken::Algorithm("a long name".into()),
        ),
    ] {
        assert_eq!(verify(&token, &keys), Err(expected));
    }
}

#[test]
fn a_public_key_is_never_used_as_a_secret() {
    let rsa = Key::new(None, Algorithm::Rs256, RSA_PEM).unwrap();
    // Signed with the public key, in each form that a vulnerable library would use as the secret.
    let forged = testing::token(r#"{"alg":"HS256"}"#, b"{}", |message| {
        testing::hmac_of(RSA_PEM.as_bytes(), message)
    });
    let no_key = Err(BadToken::NoKey(Algorithm::Hs256, ""));
    assert_eq!(verify(&forged, std::slice::from_ref(&rsa)), no_key);
    // A secret among the keys changes nothing.
    let keys = [rsa, testing::secret_key(None, 1)];
    assert_eq!(verify(&forged, &keys), Err(BadToken::Signature));
    // The signature of one type of key is invalid for another.
    let [header, _] = RS256;
    let mixed = format!("{header}.{CLAIMS}.{}", ES256[1]);
    assert_eq!(verify(&mixed, &rfc_keys()), Err(BadToken::Signature));
}

#[test]
fn a_token_with_kid_is_verified_with_that_key() {
    let keys = [
        testing::secret_key(Some("a"), 1),
        testing::secret_key(Some("b"), 2),
        testing::secret_key(None, 3),
    ];
    let with_kid = |kid: &str, number| {
        let header = format!(r#"{{"alg":"HS256","kid":"{kid}"}}"#);
        testing::token(&header, b"{}", |message| {
            testing::hmac_of(&testing::secret(number), message)
        })
    };
    for (token, is_good) in [
        (with_kid("a", 1), true),
        (with_kid("a", 2), false),
        (with_kid("a", 3), false),
        (with_kid("b", 2), true),
        // No key has this id: only keys without one are tried.
        (with_kid("c", 3), true),
        (with_kid("c", 1), false),
        (testing::hs256(1, "{}"), true),
        (testing::hs256(2, "{}"), true),
        (testing::hs256(3, "{}"), true),
        (testing::hs256(4, "{}"), false),
    ] {
        let expected = if is_good {
            Ok(b"{}".to_vec())
        } else {
            Err(BadToken::Signature)
        };
        assert_eq!(verify(&token, &keys), expected, "{token}");
    }
    let unknown = verify(&with_kid("c", 1), &keys[..2])
        .unwrap_err()
        .to_string();
    assert_eq!(unknown, "there is no HS256 key with the id in the header");
}

#[test]
fn malformed_tokens_are_rejected_with_a_reason() {
    let keys = [testing::secret_key(None, 1)];
    let good = testing::hs256(1, "{}");
    let (signed, signature) = good.rsplit_once('.').unwrap();
    let sign = |message: &[u8]| testing::hmac_of(&testing::secret(1), message);
    for (token, expected) in [
        (String::new(), BadToken::Parts),
        ("a.b".into(), BadToken::Parts),
        ("..".into(), BadToken::Header),
        (format!("{good}.x"), BadToken::Parts),
        (format!("{good}="), BadToken::Parts),
        (format!(" {good}"), BadToken::Parts),
        (format!("{signed}.+/+/"), BadToken::Parts),
        (signed.into(), BadToken::Parts),
        (format!("{signed}."), BadToken::Signature),
        (
            format!("{signed}.{}", &signature[..20]),
            BadToken::Signature,
        ),
        (format!("{signed}\u{e9}.{signature}"), BadToken::Parts),
        (testing::token("[]", b"{}", sign), BadToken::Header),
        (testing::token("{}", b"{}", sign), BadToken::Header),
        (
            testing::token(r#"{"alg":7}"#, b"{}", sign),
            BadToken::Header,
        ),
        (
            testing::token(r#"{"alg":"HS256","alg":"none"}"#, b"{}", sign),
            BadToken::Header,
        ),
        (
            testing::token(r#"{"alg":"HS256","crit":["b64"],"b64":false}"#, b"{}", sign),
            BadToken::Critical,
        ),
        (
            "x".repeat(TOKEN_BYTES_MAX + 1),
            BadToken::TooLarge(TOKEN_BYTES_MAX + 1),
        ),
        ("x".repeat(TOKEN_BYTES_MAX), BadToken::Parts),
    ] {
        assert_eq!(verify(&token, &keys), Err(expected), "{token:.60}");
    }
}

#[test]
fn a_key_set_is_accepted_whole_or_not_at_all() {
    let fits = RFC_KEYS;
    let other = |change: &dyn Fn(&str) -> String| Key::set(change(fits).as_bytes());
    assert_eq!(other(&str::to_owned).map(|keys| keys.len()), Ok(3));
    // Keys for other purposes are ignored.
    for (from, to) in [
        (r#""use": "sig""#, r#""use": "enc""#),
        (r#""alg": "ES256""#, r#""alg": "ECDH-ES""#),
        ("P-256", "P-384"),
        (r#""kty": "oct""#, r#""kty": "OKP""#),
    ] {
        let keys = other(&|text| text.replace(from, to)).unwrap();
        assert_eq!(keys.len(), 2, "{to}");
    }
    for (from, to, expected) in [
        ("AQAB", "A?", "key \"rs\": expected `e` in base64url"),
        (
            "\"n\": \"ofgWC",
            "\"m\": \"ofgWC",
            "key \"rs\": expected `n` in base64url",
        ),
        (
            "\"n\": \"ofgWCuLjybRlzo0t",
            "\"n\": \"",
            "key \"rs\": expected an RSA key of 2048 to 8192 bits, found 1951",
        ),
        (
            "f83OJ3D2xF1Bg8vub9tLe1gHMzV76e8Tus9uPHvRVEU",
            "f83O",
            "key \"es\": expected a key on the curve P-256, as ES256 needs it",
        ),
        (
            r#""kid": "hs", "k": "AyM1SysPpbyDfgZld3umj1qzKObwVMkoqQ-EstJQLr_T-1qS0gZH75aKtMN3Yj0iPS4hcgUuTwjAzZr1Z9CAow""#,
            r#""k": "AyM1""#,
            "key number 1: expected a secret of at least 32 bytes, found 3",
        ),
        ("keys", "kees", "expected {\"keys\": [...]} as in RFC 7517"),
        (
            r#""kty": "oct""#,
            r#""kty": 7"#,
            "expected {\"keys\": [...]} as in RFC 7517",
        ),
    ] {
        let error = other(&|text| text.replace(from, to)).unwrap_err();
        assert_eq!(error.to_string(), expected);
    }
    assert_eq!(Key::set(br#"{"keys": []}"#), Err(BadKeySet::NoneFits));
    let many = [RFC_KEYS; 22].map(|set| set[10..set.len() - 2].to_owned());
    let many = format!("{{\"keys\": [{}]}}", many.join(","));
    assert_eq!(Key::set(many.as_bytes()), Err(BadKeySet::TooMany(66)));
    assert_eq!(Key::set(&vec![b' '; 1 << 20]), Err(BadKeySet::TooLarge));
}

#[test]
fn debug_output_shows_no_key() {
    let shown = format!("{:?}", [testing::secret_key(Some("k"), b'x')]);
    assert_eq!(shown, "[Key { id: Some(\"k\"), algorithm: Hs256, .. }]");
}

proptest! {
    /// A changed bit in the signed part or in the signature invalidates the token.
    #[test]
    fn a_changed_token_is_rejected(claims in ".{0,64}", at in 0_usize..200, bit in 0_u8..8) {
        let (es256, sign) = testing::p256(None);
        let keys = [testing::secret_key(None, 1), es256];
        for token in [
            testing::hs256(1, &claims),
            testing::token(r#"{"alg":"ES256"}"#, claims.as_bytes(), &sign),
        ] {
            prop_assert_eq!(verify(&token, &keys), Ok(claims.clone().into_bytes()));
            let mut bytes = token.clone().into_bytes();
            let at = at % bytes.len();
            bytes[at] ^= 1 << bit;
            let Ok(changed) = String::from_utf8(bytes) else { continue };
            prop_assert!(verify(&changed, &keys).is_err(), "{} at {}", token, at);
        }
    }

    /// Any input leads to a result.
    #[test]
    fn no_input_causes_a_panic(token in "[a-zA-Z0-9_.-]{0,200}") {
        prop_assert!(verify(&token, &rfc_keys()).is_err());
    }
}
