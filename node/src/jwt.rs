//! JSON Web Tokens in their compact form (RFC 7515, RFC 7519): which key signed one, and what it carries.
//!
//! Knows nothing of claims, clocks or files. The cryptography is `ring`'s.
//!
//! Invariant: a key is for one algorithm, which the operator or its key set chose. A token's header only says which
//! keys are worth a try, so it can neither switch the check off (`none`) nor have a public key taken for a secret.

use std::borrow::Cow;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::Deserialize;
use serde::de::IgnoredAny;

mod jwks;
mod key;

pub(crate) use key::Algorithm;
pub(crate) use key::Key;

use key::BadKey;

/// The longest token that is looked at. Real ones have some hundred bytes, with many channels some thousand.
pub(crate) const TOKEN_BYTES_MAX: usize = 16 << 10;

/// Why a token is not believed. The texts are for the operator's log and never hold a part of the token but the name
/// of an algorithm.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum BadToken {
    /// Nobody decodes it.
    #[error("it has {0} bytes, at most {TOKEN_BYTES_MAX} are read")]
    TooLarge(usize),
    /// Not of this form at all.
    #[error("expected three parts in base64url with dots between them")]
    Parts,
    /// The first part.
    #[error("its header is not JSON with a text `alg`")]
    Header,
    /// The header names extensions that whoever reads the token must understand.
    #[error("its header has `crit`, and no extension is known here")]
    Critical,
    /// `none`, or one that is not spoken here.
    #[error("expected the algorithm HS256, RS256 or ES256, found {0}")]
    Algorithm(String),
    /// There are keys, perhaps, but none that its header can mean.
    #[error("there is no {0} key for it{1}")]
    NoKey(Algorithm, &'static str),
    /// It was signed by someone else, or changed since.
    #[error("its signature does not match")]
    Signature,
}

/// What of a header counts here.
#[derive(Deserialize)]
struct Header<'a> {
    #[serde(borrow)]
    alg: Cow<'a, str>,
    #[serde(borrow)]
    kid: Option<Cow<'a, str>>,
    crit: Option<IgnoredAny>,
}

/// The claims of `token`, bytes that one of `keys` has signed: JSON or not.
///
/// A token that names its key (`kid`) is checked with the keys of that id, or, if no key has it, with those that have
/// none; any other token with all keys of its algorithm.
///
/// # Errors
///
/// [`BadToken`]: the first thing that is wrong.
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
            " of the id in its header"
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

/// A stranger's word as a log line may hold it.
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
