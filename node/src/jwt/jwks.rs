//! JSON Web Key Sets (RFC 7517): the keys of a file that an identity provider writes.

use std::borrow::Cow;
use std::io;
use std::path::Path;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use causeway_conf::read_file;
use serde::Deserialize;
use serde_json::value::RawValue;

use crate::jwt::Algorithm;
use crate::jwt::BadKey;
use crate::jwt::Key;
use crate::jwt::key::RsaScheme;

/// The largest file that is read.
const KEY_SET_BYTES_MAX: usize = 256 << 10;

/// How many keys a set may have: a token without `kid` is tried with each.
const KEYS_MAX: usize = 64;

/// Why a key set cannot be used. No part of a key is in the texts, but its `kid` may be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum BadKeySet {
    /// Its file cannot be read.
    #[error("cannot read the key set: {0}")]
    Unreadable(String),
    /// Its file is too large.
    #[error("the key set has more than {KEY_SET_BYTES_MAX} bytes")]
    TooLarge,
    /// It is not JSON or has no `keys`.
    #[error("expected {{\"keys\": [...]}} as in RFC 7517")]
    NotASet,
    /// It has too many keys.
    #[error("expected at most {KEYS_MAX} keys, found {0}")]
    TooMany(usize),
    /// A signature key is invalid.
    #[error("key {0}: {1}")]
    Key(String, BadKey),
    /// A field of a key is missing or not base64url.
    #[error("key {0}: expected {1} in base64url")]
    Part(String, &'static str),
    /// It has no key for tokens.
    #[error("the key set has no signature key for HS256, RS256, PS256, ES256, ES384 or EdDSA")]
    NoneFits,
}

#[derive(Deserialize)]
struct Set<'a> {
    #[serde(borrow)]
    keys: Vec<&'a RawValue>,
}

#[derive(Deserialize)]
struct Jwk<'a> {
    #[serde(borrow)]
    kty: Cow<'a, str>,
    kid: Option<String>,
    #[serde(borrow)]
    alg: Option<Cow<'a, str>>,
    #[serde(borrow, rename = "use")]
    purpose: Option<Cow<'a, str>>,
    #[serde(borrow)]
    crv: Option<Cow<'a, str>>,
    #[serde(borrow)]
    n: Option<Cow<'a, str>>,
    #[serde(borrow)]
    e: Option<Cow<'a, str>>,
    #[serde(borrow)]
    x: Option<Cow<'a, str>>,
    #[serde(borrow)]
    y: Option<Cow<'a, str>>,
    #[serde(borrow)]
    k: Option<Cow<'a, str>>,
}

impl Key {
    /// Reads the key set in a file.
    ///
    /// # Errors
    ///
    /// [`BadKeySet`], see [`set`](Self::set).
    pub(crate) fn set_in_file(path: &Path) -> Result<Vec<Self>, BadKeySet> {
        let text = read_file(path, KEY_SET_BYTES_MAX as u64);
        let text = text.map_err(|error| match error.kind() {
            io::ErrorKind::FileTooLarge => BadKeySet::TooLarge,
            _ => BadKeySet::Unreadable(error.to_string()),
        })?;
        Self::set(&text)
    }

    /// Parses a key set. Keys for encryption and for other algorithms are ignored, as the RFC requires; a key without
    /// an algorithm is bound to the one of its type.
    ///
    /// # Errors
    ///
    /// [`BadKeySet`]: the whole set is rejected, so that a typing error does not silently leave out a key.
    pub(crate) fn set(text: &[u8]) -> Result<Vec<Self>, BadKeySet> {
        if KEY_SET_BYTES_MAX < text.len() {
            return Err(BadKeySet::TooLarge);
        }
        let set: Set<'_> = serde_json::from_slice(text).map_err(|_| BadKeySet::NotASet)?;
        if KEYS_MAX < set.keys.len() {
            return Err(BadKeySet::TooMany(set.keys.len()));
        }
        let mut keys = Vec::new();
        for (index, jwk) in set.keys.iter().enumerate() {
            let jwk: Jwk<'_> = serde_json::from_str(jwk.get()).map_err(|_| BadKeySet::NotASet)?;
            let name = || match &jwk.kid {
                Some(kid) => format!("{kid:?}"),
                None => format!("number {}", index + 1),
            };
            keys.extend(jwk.key(name)?);
        }
        if keys.is_empty() {
            return Err(BadKeySet::NoneFits);
        }
        Ok(keys)
    }
}

impl Jwk<'_> {
    /// The key, unless it is for another purpose.
    fn key(&self, name: impl Fn() -> String) -> Result<Option<Key>, BadKeySet> {
        let algorithm = self.alg.as_deref().map(Algorithm::named);
        let kind = match (&*self.kty, self.crv.as_deref()) {
            ("oct", _) => Algorithm::Hs256,
            ("RSA", _) if algorithm == Some(Some(Algorithm::Ps256)) => Algorithm::Ps256,
            ("RSA", _) => Algorithm::Rs256,
            ("EC", Some("P-256")) => Algorithm::Es256,
            ("EC", Some("P-384")) => Algorithm::Es384,
            ("OKP", Some("Ed25519")) => Algorithm::EdDsa,
            _ => return Ok(None),
        };
        let is_for_tokens = algorithm.is_none_or(|algorithm| algorithm == Some(kind))
            && self
                .purpose
                .as_deref()
                .is_none_or(|purpose| purpose == "sig");
        if !is_for_tokens {
            return Ok(None);
        }
        let part = |text: &Option<Cow<'_, str>>, expected| {
            let bytes = text.as_deref().map(|text| URL_SAFE_NO_PAD.decode(text));
            match bytes {
                Some(Ok(bytes)) => Ok(bytes),
                _ => Err(BadKeySet::Part(name(), expected)),
            }
        };
        let id = self.kid.clone();
        let key = match kind {
            Algorithm::Hs256 => Key::secret(id, part(&self.k, "`k`")?),
            Algorithm::Rs256 | Algorithm::Ps256 => {
                let scheme = if kind == Algorithm::Ps256 {
                    RsaScheme::Pss
                } else {
                    RsaScheme::Pkcs1
                };
                let (n, e) = (part(&self.n, "`n`")?, part(&self.e, "`e`")?);
                Key::rsa(id, scheme, &n, &e)
            }
            Algorithm::Es256 | Algorithm::Es384 => {
                let point = [vec![4], part(&self.x, "`x`")?, part(&self.y, "`y`")?].concat();
                if kind == Algorithm::Es384 {
                    Key::p384(id, point)
                } else {
                    Key::p256(id, point)
                }
            }
            Algorithm::EdDsa => Key::ed25519(id, part(&self.x, "`x`")?),
        };
        key.map(Some).map_err(|error| BadKeySet::Key(name(), error))
    }
}
