//! JSON Web Tokens in compact serialization (RFC 7515, RFC 7519): verifies the signature and returns the payload; signs, for the
//! commands that make tokens.
//!
//! Does not interpret claims or time, and reads no files except key sets. The cryptography is `ring`'s.
//!
//! Invariant: a key is bound to one algorithm, by the configuration or its key set. A token's header only selects among
//! keys, so it can neither disable the check (`none`) nor have a public key used as a secret.

use std::borrow::Cow;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::Deserialize;
use serde::de::IgnoredAny;

mod jwks;
mod key;
mod sign;

pub(crate) use key::Algorithm;
pub(crate) use key::Key;
pub(crate) use sign::BadSigningKey;
pub(crate) use sign::SigningKey;

use key::BadKey;

/// The longest token that is accepted. Typical ones have some hundred bytes, with many channels some thousand.
pub(crate) const TOKEN_BYTES_MAX: usize = 16 << 10;

/// Why a token is rejected. The texts are for the log and contain no part of the token except the name of an
/// algorithm.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum BadToken {
    /// It is too long.
    #[error("the token has {0} bytes, at most {TOKEN_BYTES_MAX} are accepted")]
    TooLarge(usize),
    /// It has another form.
    #[error("expected three parts in base64url with dots between them")]
    Parts,
    /// The header is malformed.
    #[error("the header is not JSON with a string `alg`")]
    Header,
    /// The header requires extensions.
    #[error("the header has `crit`, and no extensions are supported")]
    Critical,
    /// `none`, or one that is not supported.
    #[error("expected the algorithm HS256, RS256, PS256, ES256, ES384 or EdDSA, found {0}")]
    Algorithm(String),
    /// No key matches the header.
    #[error("there is no {0} key{1}")]
    NoKey(Algorithm, &'static str),
    /// It was signed with another key, or changed.
    #[error("the signature does not match")]
    Signature,
}

/// The fields of a header that are used.
#[derive(Deserialize)]
struct Header<'a> {
    #[serde(borrow)]
    alg: Cow<'a, str>,
    #[serde(borrow)]
    kid: Option<Cow<'a, str>>,
    crit: Option<IgnoredAny>,
}

/// The payload of `token`, which one of `keys` has signed. It may not be JSON.
///
/// A token that names its key (`kid`) is checked with the keys of that id, or, if no key has it, with those that have
/// none; any other token with all keys of its algorithm.
///
/// # Errors
///
/// [`BadToken`]: the first problem.
pub(crate) fn verify(token: &str, keys: &[Key]) -> Result<Vec<u8>, BadToken> {
    if TOKEN_BYTES_MAX < token.len() {
        return Err(BadToken::TooLarge(token.len()));
    }
    let (signed, signature) = token.rsplit_once('.').ok_or(BadToken::Parts)?;
    let (header, claims) = signed.split_once('.').ok_or(BadToken::Parts)?;
    let [header, claims, signature] =
        [header, claims, signature].map(|part| URL_SAFE_NO_PAD.decode(part));
    let (Ok(header), Ok(claims), Ok(signature)) = (header, claims, signature) else {
        return Err(BadToken::Parts);
    };
    let header: Header<'_> = serde_json::from_slice(&header).map_err(|_| BadToken::Header)?;
    if header.crit.is_some() {
        return Err(BadToken::Critical);
    }
    let Some(algorithm) = Algorithm::named(&header.alg) else {
        return Err(BadToken::Algorithm(shown(&header.alg)));
    };
    let mut candidates = candidates(keys, algorithm, header.kid.as_deref()).peekable();
    if candidates.peek().is_none() {
        let of_its_id = if header.kid.is_some() {
            " with the id in the header"
        } else {
            ""
        };
        return Err(BadToken::NoKey(algorithm, of_its_id));
    }
    if candidates.any(|key| key.has_signed(signed.as_bytes(), &signature)) {
        Ok(claims)
    } else {
        Err(BadToken::Signature)
    }
}

fn candidates<'k>(
    keys: &'k [Key],
    algorithm: Algorithm,
    kid: Option<&str>,
) -> impl Iterator<Item = &'k Key> {
    let is_known = kid.is_some() && keys.iter().any(|key| key.id() == kid);
    keys.iter().filter(move |key| {
        let is_meant = match kid {
            None => true,
            Some(_) if is_known => key.id() == kid,
            Some(_) => key.id().is_none(),
        };
        is_meant && key.algorithm() == algorithm
    })
}

/// An untrusted name, shortened for the log.
fn shown(name: &str) -> String {
    const CHARACTERS_MAX: usize = 16;
    let fits = name.chars().count() <= CHARACTERS_MAX;
    if fits {
        format!("{name:?}")
    } else {
        "a long name".to_owned()
    }
}

#[cfg(any(fuzzing, test))]
pub(crate) mod testing;
#[cfg(test)]
mod tests;
