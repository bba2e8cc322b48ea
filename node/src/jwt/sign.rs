//! Signing, for `gentoken`. The node itself only verifies.

use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use ring::hmac;
use ring::rand::SystemRandom;
use ring::rsa::KeyPair as RsaKeyPair;
use ring::signature;
use ring::signature::EcdsaKeyPair;
use ring::signature::Ed25519KeyPair;
use x509_parser::pem::Pem;

use crate::jwt::Algorithm;
use crate::jwt::Key;

/// Why a key cannot sign. The texts contain no part of the key.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum BadSigningKey {
    /// A public key only verifies.
    #[error(
        "the {0} key in the configuration is the public one: give the private key with --key FILE"
    )]
    Public(Algorithm),
    /// It is PEM, but not of a private key that is supported.
    #[error(
        "expected a private key in PEM that begins with \"-----BEGIN PRIVATE KEY-----\" (PKCS #8; from another form: \
         openssl pkcs8 -topk8 -nodes), found {0}"
    )]
    NotPkcs8(String),
    /// It is for other algorithms.
    #[error("expected a private key for {0}: {1}")]
    OtherKind(Algorithm, String),
    /// The secret is too short.
    #[error("{0}")]
    Secret(String),
    /// No algorithm is known for it.
    #[error("expected a private key for RS256, PS256, ES256, ES384 or EdDSA")]
    Unknown,
    /// The system has no random numbers.
    #[error("cannot sign")]
    Failed,
}

/// A key that signs, bound to one algorithm. `Debug` shows no part of it.
pub(crate) struct SigningKey {
    id: Option<String>,
    algorithm: Algorithm,
    material: Material,
}

enum Material {
    Secret(hmac::Key),
    Rsa(Box<RsaKeyPair>),
    Ecdsa(EcdsaKeyPair),
    Ed25519(Ed25519KeyPair),
}

impl fmt::Debug for SigningKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SigningKey")
            .field("id", &self.id)
            .field("algorithm", &self.algorithm)
            .finish_non_exhaustive()
    }
}

impl SigningKey {
    /// The key that signs what `key` verifies.
    ///
    /// # Errors
    ///
    /// [`BadSigningKey::Public`].
    pub(crate) fn of(key: &Key) -> Result<Self, BadSigningKey> {
        let algorithm = key.algorithm();
        let secret = key.secret_bytes().ok_or(BadSigningKey::Public(algorithm))?;
        Ok(Self {
            id: key.id().map(str::to_owned),
            algorithm,
            material: Material::Secret(hmac::Key::new(hmac::HMAC_SHA256, secret)),
        })
    }

    /// A secret, or a private key in PEM. Without an `algorithm` it is the one of its kind, for RSA RS256.
    ///
    /// # Errors
    ///
    /// [`BadSigningKey`].
    pub(crate) fn new(
        id: Option<String>,
        algorithm: Option<Algorithm>,
        text: &str,
    ) -> Result<Self, BadSigningKey> {
        let is_pem = text.trim_start().starts_with("-----BEGIN");
        if !is_pem && algorithm.is_none_or(|algorithm| algorithm == Algorithm::Hs256) {
            let key = Key::new(id, Algorithm::Hs256, text)
                .map_err(|error| BadSigningKey::Secret(error.to_string()))?;
            return Self::of(&key);
        }
        let pem = Pem::iter_from_buffer(text.as_bytes())
            .next()
            .and_then(Result::ok);
        let pem = match pem {
            Some(pem) if pem.label == "PRIVATE KEY" => pem,
            Some(pem) => return Err(BadSigningKey::NotPkcs8(format!("\"{}\"", pem.label))),
            None => return Err(BadSigningKey::NotPkcs8("no PEM".to_owned())),
        };
        let der = &pem.contents;
        let Some(algorithm) = algorithm else {
            let kinds = [
                Algorithm::Rs256,
                Algorithm::Es256,
                Algorithm::Es384,
                Algorithm::EdDsa,
            ];
            let fitting = kinds.into_iter().find_map(|algorithm| {
                let material = Material::from_pkcs8(algorithm, der).ok()?;
                Some((algorithm, material))
            });
            let (algorithm, material) = fitting.ok_or(BadSigningKey::Unknown)?;
            return Ok(Self {
                id,
                algorithm,
                material,
            });
        };
        let material = Material::from_pkcs8(algorithm, der)
            .map_err(|reason| BadSigningKey::OtherKind(algorithm, reason))?;
        Ok(Self {
            id,
            algorithm,
            material,
        })
    }

    /// The token with `claims`, which are JSON.
    ///
    /// # Errors
    ///
    /// [`BadSigningKey::Failed`].
    pub(crate) fn sign(&self, claims: &str) -> Result<String, BadSigningKey> {
        let header = match &self.id {
            Some(id) => {
                serde_json::json!({ "alg": self.algorithm.to_string(), "typ": "JWT", "kid": id })
            }
            None => serde_json::json!({ "alg": self.algorithm.to_string(), "typ": "JWT" }),
        };
        let [header, claims] = [&header.to_string(), claims].map(|it| URL_SAFE_NO_PAD.encode(it));
        let signed = format!("{header}.{claims}");
        let signature = self.signature(signed.as_bytes())?;
        Ok(format!("{signed}.{}", URL_SAFE_NO_PAD.encode(signature)))
    }

    fn signature(&self, message: &[u8]) -> Result<Vec<u8>, BadSigningKey> {
        let random = SystemRandom::new();
        match &self.material {
            Material::Secret(secret) => Ok(hmac::sign(secret, message).as_ref().to_vec()),
            Material::Ed25519(pair) => Ok(pair.sign(message).as_ref().to_vec()),
            Material::Ecdsa(pair) => match pair.sign(&random, message) {
                Ok(signature) => Ok(signature.as_ref().to_vec()),
                Err(_) => Err(BadSigningKey::Failed),
            },
            Material::Rsa(pair) => {
                let encoding: &dyn signature::RsaEncoding = match self.algorithm {
                    Algorithm::Ps256 => &signature::RSA_PSS_SHA256,
                    _ => &signature::RSA_PKCS1_SHA256,
                };
                let mut signature = vec![0; pair.public().modulus_len()];
                let signed = pair.sign(encoding, &random, message, &mut signature);
                match signed {
                    Ok(()) => Ok(signature),
                    Err(_) => Err(BadSigningKey::Failed),
                }
            }
        }
    }
}

impl Material {
    /// A private key for `algorithm`.
    fn from_pkcs8(algorithm: Algorithm, der: &[u8]) -> Result<Self, String> {
        let random = SystemRandom::new();
        let ecdsa = |algorithm| {
            EcdsaKeyPair::from_pkcs8(algorithm, der, &random)
                .map(Self::Ecdsa)
                .map_err(|error| error.to_string())
        };
        match algorithm {
            Algorithm::Hs256 => Err("HS256 has a secret, which is no PEM".to_owned()),
            Algorithm::Rs256 | Algorithm::Ps256 => RsaKeyPair::from_pkcs8(der)
                .map(|pair| Self::Rsa(Box::new(pair)))
                .map_err(|error| error.to_string()),
            Algorithm::Es256 => ecdsa(&signature::ECDSA_P256_SHA256_FIXED_SIGNING),
            Algorithm::Es384 => ecdsa(&signature::ECDSA_P384_SHA384_FIXED_SIGNING),
            Algorithm::EdDsa => Ed25519KeyPair::from_pkcs8_maybe_unchecked(der)
                .map(Self::Ed25519)
                .map_err(|error| error.to_string()),
        }
    }
}
