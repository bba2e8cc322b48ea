//! Authentication of the API by its keys.

use causeway_conf::Secret;
use http::HeaderMap;
use http::header;
use ring::digest;
use subtle::ConstantTimeEq as _;

/// Keys that are accepted, by their hashes: all hashes are equally long, and comparing them says
/// nothing about the keys.
pub(super) struct Keys(Vec<[u8; 32]>);

impl Keys {
    pub(super) fn new(keys: &[Secret]) -> Self {
        Self(
            keys.iter()
                .map(|key| hash(key.expose().as_bytes()))
                .collect(),
        )
    }

    /// Whether a request shows one of the keys, as `X-API-Key: KEY` or `Authorization: apikey KEY`.
    pub(super) fn admit(&self, headers: &HeaderMap) -> bool {
        let Some(shown) = shown(headers) else {
            return false;
        };
        let shown = hash(shown);
        // Each is compared whole, also after a match.
        self.0
            .iter()
            .fold(false, |found, key| found | bool::from(key.ct_eq(&shown)))
    }
}

fn shown(headers: &HeaderMap) -> Option<&[u8]> {
    if let Some(key) = headers.get("x-api-key") {
        return Some(key.as_bytes());
    }
    let authorization = headers.get(header::AUTHORIZATION)?.as_bytes();
    let (scheme, key) = authorization.split_at_checked("apikey ".len())?;
    scheme.eq_ignore_ascii_case(b"apikey ").then_some(key)
}

fn hash(key: &[u8]) -> [u8; 32] {
    let mut hash = [0; 32];
    hash.copy_from_slice(digest::digest(&digest::SHA256, key).as_ref());
    hash
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    fn admits(name: &'static str, value: &str) -> bool {
        let keys = ["the first key of all", "the second one"];
        let keys = Keys::new(&keys.map(|key| Secret::new(key.to_owned())));
        let mut headers = HeaderMap::new();
        headers.insert(name, HeaderValue::from_str(value).unwrap());
        keys.admit(&headers)
    }

    #[test]
    fn each_of_the_keys_opens_in_either_header() {
        for key in ["the first key of all", "the second one"] {
            assert!(admits("x-api-key", key));
            assert!(admits("authorization", &format!("apikey {key}")));
            assert!(admits("authorization", &format!("ApiKey {key}")));
        }
    }

    #[test]
    fn nothing_else_does() {
        for wrong in [
            "",
            "the first key of al",
            "the first key of all ",
            "The second one",
        ] {
            assert!(!admits("x-api-key", wrong), "{wrong}");
        }
        for wrong in [
            "the second one",
            "Bearer the second one",
            "apikey",
            "apikey  the second one",
        ] {
            assert!(!admits("authorization", wrong), "{wrong}");
        }
        assert!(!Keys::new(&[]).admit(&HeaderMap::new()));
    }
}
