//! One key, bound to one algorithm.

use std::fmt;

use ring::hmac;
use ring::signature;
use ring::signature::RsaPublicKeyComponents;
use ring::signature::UnparsedPublicKey;
use x509_parser::oid_registry;
use x509_parser::oid_registry::Oid;
use x509_parser::pem::Pem;
use x509_parser::prelude::FromDer;
use x509_parser::public_key::PublicKey;
use x509_parser::x509::SubjectPublicKeyInfo;

/// The shortest secret: as long as the hash, RFC 7518 section 3.2.
const SECRET_BYTES_MIN: usize = 32;

/// In bits; shorter RSA keys are insecure, and longer ones are not used.
const RSA_BITS_MIN: usize = 2048;
const RSA_BITS_MAX: usize = 8192;

/// An uncompressed point of a curve: a prefix byte and two coordinates.
const P256_POINT_BYTES: usize = 65;
const P384_POINT_BYTES: usize = 97;
const POINT_MARK: u8 = 4;

const ED25519_BYTES: usize = 32;

/// How a token is signed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Deserialize)]
pub(crate) enum Algorithm {
    /// HMAC with SHA-256: the same secret signs and verifies.
    #[serde(rename = "HS256")]
    Hs256,
    /// RSA (PKCS #1 v1.5) with SHA-256.
    #[serde(rename = "RS256")]
    Rs256,
    /// RSA (PSS) with SHA-256.
    #[serde(rename = "PS256")]
    Ps256,
    /// ECDSA on the curve P-256 with SHA-256.
    #[serde(rename = "ES256")]
    Es256,
    /// ECDSA on the curve P-384 with SHA-384.
    #[serde(rename = "ES384")]
    Es384,
    /// EdDSA on the curve Ed25519 (RFC 8037).
    #[serde(rename = "EdDSA")]
    EdDsa,
}

impl Algorithm {
    /// The algorithm with exactly this name.
    pub(crate) fn named(name: &str) -> Option<Self> {
        Self::ALL
            .into_iter()
            .find(|algorithm| algorithm.name() == name)
    }

    const ALL: [Self; 6] = [
        Self::Hs256,
        Self::Rs256,
        Self::Ps256,
        Self::Es256,
        Self::Es384,
        Self::EdDsa,
    ];

    fn name(self) -> &'static str {
        match self {
            Self::Hs256 => "HS256",
            Self::Rs256 => "RS256",
            Self::Ps256 => "PS256",
            Self::Es256 => "ES256",
            Self::Es384 => "ES384",
            Self::EdDsa => "EdDSA",
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
    #[error("expected an RSA key, as RS256 and PS256 need it")]
    NotRsa,
    /// Too short to be safe, or longer than `ring` supports.
    #[error("expected an RSA key of {RSA_BITS_MIN} to {RSA_BITS_MAX} bits, found {0}")]
    RsaSize(usize),
    /// A public key, but not for this algorithm.
    #[error("expected a key on the curve P-256, as ES256 needs it")]
    NotP256,
    /// A public key, but not for this algorithm.
    #[error("expected a key on the curve P-384, as ES384 needs it")]
    NotP384,
    /// A public key, but not for this algorithm.
    #[error("expected an Ed25519 key, as EdDSA needs it")]
    NotEd25519,
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
        scheme: RsaScheme,
        modulus: Vec<u8>,
        exponent: Vec<u8>,
    },
    /// Uncompressed.
    P256(Vec<u8>),
    /// Uncompressed.
    P384(Vec<u8>),
    Ed25519(Vec<u8>),
}

/// How an RSA key is used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum RsaScheme {
    /// RS256.
    Pkcs1,
    /// PS256.
    Pss,
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
            Algorithm::Rs256
            | Algorithm::Ps256
            | Algorithm::Es256
            | Algorithm::Es384
            | Algorithm::EdDsa => Self::from_pem(id, algorithm, text),
        }
    }

    pub(super) fn secret(id: Option<String>, secret: Vec<u8>) -> Result<Self, BadKey> {
        if secret.len() < SECRET_BYTES_MIN {
            return Err(BadKey::ShortSecret(secret.len()));
        }
        let material = Material::Secret(secret);
        Ok(Self { id, material })
    }

    pub(super) fn rsa(
        id: Option<String>,
        scheme: RsaScheme,
        modulus: &[u8],
        exponent: &[u8],
    ) -> Result<Self, BadKey> {
        let [modulus, exponent] = [modulus, exponent].map(without_zeros);
        let unused = modulus.first().map_or(0, |byte| byte.leading_zeros());
        let bits = modulus.len() * 8 - unused as usize;
        if !(RSA_BITS_MIN..=RSA_BITS_MAX).contains(&bits) {
            return Err(BadKey::RsaSize(bits));
        }
        let material = Material::Rsa {
            scheme,
            modulus,
            exponent,
        };
        Ok(Self { id, material })
    }

    pub(super) fn p256(id: Option<String>, point: Vec<u8>) -> Result<Self, BadKey> {
        if point.len() != P256_POINT_BYTES || point[0] != POINT_MARK {
            return Err(BadKey::NotP256);
        }
        let material = Material::P256(point);
        Ok(Self { id, material })
    }

    pub(super) fn p384(id: Option<String>, point: Vec<u8>) -> Result<Self, BadKey> {
        if point.len() != P384_POINT_BYTES || point[0] != POINT_MARK {
            return Err(BadKey::NotP384);
        }
        let material = Material::P384(point);
        Ok(Self { id, material })
    }

    pub(super) fn ed25519(id: Option<String>, public: Vec<u8>) -> Result<Self, BadKey> {
        if public.len() != ED25519_BYTES {
            return Err(BadKey::NotEd25519);
        }
        let material = Material::Ed25519(public);
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
            (Algorithm::Rs256, Ok(PublicKey::RSA(rsa))) => {
                Self::rsa(id, RsaScheme::Pkcs1, rsa.modulus, rsa.exponent)
            }
            (Algorithm::Ps256, Ok(PublicKey::RSA(rsa))) => {
                Self::rsa(id, RsaScheme::Pss, rsa.modulus, rsa.exponent)
            }
            (Algorithm::Es256, Ok(PublicKey::EC(point)))
                if is_on(&info, &oid_registry::OID_EC_P256) =>
            {
                Self::p256(id, point.data().to_vec())
            }
            (Algorithm::Es384, Ok(PublicKey::EC(point)))
                if is_on(&info, &oid_registry::OID_NIST_EC_P384) =>
            {
                Self::p384(id, point.data().to_vec())
            }
            (Algorithm::EdDsa, _) if info.algorithm.algorithm == oid_registry::OID_SIG_ED25519 => {
                Self::ed25519(id, info.subject_public_key.data.to_vec())
            }
            (Algorithm::Rs256 | Algorithm::Ps256, _) => Err(BadKey::NotRsa),
            (Algorithm::Es384, _) => Err(BadKey::NotP384),
            (Algorithm::EdDsa, _) => Err(BadKey::NotEd25519),
            (Algorithm::Es256 | Algorithm::Hs256, _) => Err(BadKey::NotP256),
        }
    }

    /// The secret that also signs; `None`: it only verifies.
    pub(super) fn secret_bytes(&self) -> Option<&[u8]> {
        match &self.material {
            Material::Secret(secret) => Some(secret),
            _ => None,
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
            Material::Rsa {
                scheme: RsaScheme::Pkcs1,
                ..
            } => Algorithm::Rs256,
            Material::Rsa {
                scheme: RsaScheme::Pss,
                ..
            } => Algorithm::Ps256,
            Material::P256(_) => Algorithm::Es256,
            Material::P384(_) => Algorithm::Es384,
            Material::Ed25519(_) => Algorithm::EdDsa,
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
                scheme,
                modulus: n,
                exponent: e,
            } => {
                let parameters = match scheme {
                    RsaScheme::Pkcs1 => &signature::RSA_PKCS1_2048_8192_SHA256,
                    RsaScheme::Pss => &signature::RSA_PSS_2048_8192_SHA256,
                };
                RsaPublicKeyComponents { n, e }.verify(parameters, message, signature)
            }
            Material::P256(point) => {
                UnparsedPublicKey::new(&signature::ECDSA_P256_SHA256_FIXED, point)
                    .verify(message, signature)
            }
            Material::P384(point) => {
                UnparsedPublicKey::new(&signature::ECDSA_P384_SHA384_FIXED, point)
                    .verify(message, signature)
            }
            Material::Ed25519(public) => {
                UnparsedPublicKey::new(&signature::ED25519, public).verify(message, signature)
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

fn is_on(info: &SubjectPublicKeyInfo<'_>, expected: &Oid<'_>) -> bool {
    let curve = info.algorithm.parameters.as_ref();
    curve.is_some_and(|curve| curve.as_oid().is_ok_and(|oid| oid == *expected))
}

/// A big-endian number as `ring` wants it.
fn without_zeros(number: &[u8]) -> Vec<u8> {
    let zeros = number.iter().take_while(|&&byte| byte == 0).count();
    number[zeros..].to_vec()
}
