//! One key, bound to one algorithm.

use std::fmt;

use ring::hmac;
use ring::signature;
use ring::signature::RsaPublicKeyComponents;
use ring::signature::UnparsedPublicKey;
use x509_parser::oid_registry;
use x509_parser::pem::Pem;
use x509_parser::prelude::FromDer;
use x509_parser::public_key::PublicKey;
use x509_parser::x509::SubjectPublicKeyInfo;

/// The shortest secret: as long as the hash, RFC 7518 section 3.2.
const SECRET_BYTES_MIN: usize = 32;

/// In bits; shorter RSA keys are insecure, and longer ones are not used.
const RSA_BITS_MIN: usize = 2048;
const RSA_BITS_MAX: usize = 8192;

/// An uncompressed point of the curve P-256: a prefix byte and two coordinates.
const POINT_BYTES: usize = 65;
const POINT_MARK: u8 = 4;

/// How a token is signed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Deserialize)]
pub(crate) enum Algorithm {
    /// HMAC with SHA-256: the same secret signs and verifies.
    #[serde(rename = "HS256")]
    Hs256,
    /// RSA (PKCS #1 v1.5) with SHA-256.
    #[serde(rename = "RS256")]
    Rs256,
    /// ECDSA on the curve P-256 with SHA-256.
    #[serde(rename = "ES256")]
    Es256,
}

impl Algorithm {
    /// The algorithm with exactly this name.
    pub(super) fn named(name: &str) -> Option<Self> {
        [Self::Hs256, Self::Rs256, Self::Es256]
            .into_iter()
            .find(|algorithm| algorithm.name() == name)
    }

    fn name(self) -> &'static str {
        match self {
            Self::Hs256 => "HS256",
            Self::Rs256 => "RS256",
            Self::Es256 => "ES256",
        }
    }
}

impl fmt::Display for Algorithm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Why a key is rejected.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum BadKey {
    /// It could be found by brute force with a token.
    #[error("expected a secret of at least {SECRET_BYTES_MIN} bytes, found {0}")]
    ShortSecret(usize),
    /// It is not PEM of a public key, such as a private key.
    #[error("expected a public key in PEM, which begins with \"-----BEGIN PUBLIC KEY-----\"")]
    NotPem,
    /// A public key, but not for this algorithm.
    #[error("expected an RSA key, as RS256 needs it")]
    NotRsa,
    /// Too short to be safe, or longer than `ring` supports.
    #[error("expected an RSA key of {RSA_BITS_MIN} to {RSA_BITS_MAX} bits, found {0}")]
    RsaSize(usize),
    /// A public key, but not for this algorithm.
    #[error("expected a key on the curve P-256, as ES256 needs it")]
    NotP256,
}

/// A verification key. `Debug` shows no part of it.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Key {
    id: Option<String>,
    material: Material,
}

#[derive(Clone, PartialEq, Eq)]
enum Material {
    Secret(Vec<u8>),
    /// Big-endian, without zeros in front.
    Rsa {
        modulus: Vec<u8>,
        exponent: Vec<u8>,
    },
    /// Uncompressed.
    P256(Vec<u8>),
}

impl Key {
    /// A key for `algorithm`: for HS256 `text` is the secret, for others a public key in PEM.
    ///
    /// # Errors
    ///
    /// [`BadKey`] says what is expected.
    pub(crate) fn new(
        id: Option<String>,
        algorithm: Algorithm,
        text: &str,
    ) -> Result<Self, BadKey> {
        match algorithm {
            Algorithm::Hs256 => Self::secret(id, text.as_bytes().to_vec()),
            Algorithm::Rs256 | Algorithm::Es256 => Self::from_pem(id, algorithm, text),
        }
    }

    pub(super) fn secret(id: Option<String>, secret: Vec<u8>) -> Result<Self, BadKey> {
        if secret.len() < SECRET_BYTES_MIN {
            return Err(BadKey::ShortSecret(secret.len()));
        }
        let material = Material::Secret(secret);
        Ok(Self { id, material })
    }

    pub(super) fn rsa(id: Option<String>, modulus: &[u8], exponent: &[u8]) -> Result<Self, BadKey> {
        let [modulus, exponent] = [modulus, exponent].map(without_zeros);
        let unused = modulus.first().map_or(0, |byte| byte.leading_zeros());
        let bits = modulus.len() * 8 - unused as usize;
        if !(RSA_BITS_MIN..=RSA_BITS_MAX).contains(&bits) {
            return Err(BadKey::RsaSize(bits));
        }
        let material = Material::Rsa { modulus, exponent };
        Ok(Self { id, material })
    }

    pub(super) fn p256(id: Option<String>, point: Vec<u8>) -> Result<Self, BadKey> {
        if point.len() != POINT_BYTES || point[0] != POINT_MARK {
            return Err(BadKey::NotP256);
        }
        let material = Material::P256(point);
        Ok(Self { id, material })
    }

    fn from_pem(id: Option<String>, algorithm: Algorithm, text: &str) -> Result<Self, BadKey> {
        let pem = Pem::iter_from_buffer(text.as_bytes()).next();
        let pem = pem
            .and_then(Result::ok)
            .filter(|pem| pem.label == "PUBLIC KEY")
            .ok_or(BadKey::NotPem)?;
        let (_, info) =
            SubjectPublicKeyInfo::from_der(&pem.contents).map_err(|_| BadKey::NotPem)?;
        match (algorithm, info.parsed()) {
            (Algorithm::Rs256, Ok(PublicKey::RSA(rsa))) => Self::rsa(id, rsa.modulus, rsa.exponent),
            (Algorithm::Es256, Ok(PublicKey::EC(point))) if is_on_p256(&info) => {
                Self::p256(id, point.data().to_vec())
            }
            (Algorithm::Rs256, _) => Err(BadKey::NotRsa),
            (Algorithm::Es256 | Algorithm::Hs256, _) => Err(BadKey::NotP256),
        }
    }

    /// Its `kid`; `None`: it is for tokens without `kid`, or with one that no key has.
    pub(crate) fn id(&self) -> Option<&str> {
        self.id.as_deref()
    }

    /// The one algorithm that it is used with.
    pub(crate) fn algorithm(&self) -> Algorithm {
        match self.material {
            Material::Secret(_) => Algorithm::Hs256,
            Material::Rsa { .. } => Algorithm::Rs256,
            Material::P256(_) => Algorithm::Es256,
        }
    }

    /// Whether `signature` of `message` is this key's. A secret is compared in constant time.
    pub(super) fn has_signed(&self, message: &[u8], signature: &[u8]) -> bool {
        let verified = match &self.material {
            Material::Secret(secret) => hmac::verify(
                &hmac::Key::new(hmac::HMAC_SHA256, secret),
                message,
                signature,
            ),
            Material::Rsa {
                modulus: n,
                exponent: e,
            } => RsaPublicKeyComponents { n, e }.verify(
                &signature::RSA_PKCS1_2048_8192_SHA256,
                message,
                signature,
            ),
            Material::P256(point) => {
                UnparsedPublicKey::new(&signature::ECDSA_P256_SHA256_FIXED, point)
                    .verify(message, signature)
            }
        };
        verified.is_ok()
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Key")
            .field("id", &self.id)
            .field("algorithm", &self.algorithm())
            .finish_non_exhaustive()
    }
}

fn is_on_p256(info: &SubjectPublicKeyInfo<'_>) -> bool {
    let curve = info.algorithm.parameters.as_ref();
    curve.is_some_and(|curve| {
        curve
            .as_oid()
            .is_ok_and(|oid| oid == oid_registry::OID_EC_P256)
    })
}

/// A big-endian number as `ring` wants it.
fn without_zeros(number: &[u8]) -> Vec<u8> {
    let zeros = number.iter().take_while(|&&byte| byte == 0).count();
    number[zeros..].to_vec()
}
