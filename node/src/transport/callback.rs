//! The name of the page's function that is called with each frame.
//!
//! Invariant: a [`Callback`] is safe to write into a script.

use crate::transport::form;

/// The longest name. sockjs-client's have 11 characters; sockjs-node allows 32 as well.
const NAME_BYTES_MAX: usize = 32;

/// A name of 1 to 32 letters, digits, `-`, `_` and `.`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Callback(String);

/// Why the name is rejected. The texts are defined by the protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum BadCallback {
    /// Neither `c` nor `callback`, or empty.
    #[error("\"callback\" parameter required")]
    Missing,
    /// Too long, or with other characters: it could contain a script.
    #[error("invalid \"callback\" parameter")]
    Invalid,
}

impl Callback {
    /// Reads the parameter `c`, else `callback`, of a query.
    ///
    /// # Errors
    ///
    /// [`BadCallback`]: the request has to be rejected, whatever its session.
    pub(crate) fn of_query(query: Option<&str>) -> Result<Self, BadCallback> {
        let query = query.unwrap_or_default().as_bytes();
        let name = form::field(query, "c").or_else(|| form::field(query, "callback"));
        let name = name
            .filter(|name| !name.is_empty())
            .ok_or(BadCallback::Missing)?;
        let fits = |byte: &u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
        if NAME_BYTES_MAX < name.len() || !name.iter().all(fits) {
            return Err(BadCallback::Invalid);
        }
        String::from_utf8(name)
            .map(Self)
            .map_err(|_| BadCallback::Invalid)
    }

    /// The name.
    pub(crate) fn as_str(&self) -> &str {
        &self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(query: &str) -> Result<String, BadCallback> {
        Callback::of_query(Some(query)).map(|callback| callback.0)
    }

    #[test]
    fn a_name_is_decoded_and_c_takes_precedence() {
        for query in [
            "c=%63b",
            "callback=cb",
            "t=1&c=cb",
            "callback=x&c=cb",
            "c=cb&c=y",
        ] {
            assert_eq!(name(query), Ok("cb".to_owned()), "{query}");
        }
        assert_eq!(name("c=_jp.a-1"), Ok("_jp.a-1".to_owned()));
    }

    #[test]
    fn a_name_is_required() {
        assert_eq!(Callback::of_query(None), Err(BadCallback::Missing));
        for query in ["", "c", "c=", "t=1", "C=cb", "cc=cb"] {
            assert_eq!(name(query), Err(BadCallback::Missing), "{query}");
        }
    }

    #[test]
    fn a_name_that_could_contain_a_script_is_rejected() {
        for query in [
            "c=%20", "c=*", "c=abc(", "c=abc%28", "c=a;b", "c=%c3%a4", "c=%", "c=a%00", "c=a+b",
        ] {
            assert_eq!(name(query), Err(BadCallback::Invalid), "{query}");
        }
        let longest = "x".repeat(NAME_BYTES_MAX);
        assert_eq!(name(&format!("c={longest}")), Ok(longest.clone()));
        assert_eq!(name(&format!("c={longest}x")), Err(BadCallback::Invalid));
    }
}
