//! Sessions in a query parameter, such as `sid` of socket.io: reads the session of a request, and finds the id of a new session in
//! the response of a server.

use crate::balancer::affinity::{SESSION_BYTES_MAX, SessionKey};

/// How much of a response is searched: servers send a new session id at the beginning.
const CONTENT_BYTES_MAX: usize = 1024;

/// The session in the query parameter `name` of `target`.
pub(super) fn session(target: &[u8], name: &str) -> Option<SessionKey> {
    let query = target.iter().position(|byte| *byte == b'?')?;
    let mut pairs = target[query + 1..].split(|byte| *byte == b'&');
    let value = pairs.find_map(|pair| pair.strip_prefix(name.as_bytes())?.strip_prefix(b"="))?;
    key(value)
}

/// A session id that needs no escapes in a URL.
fn key(text: &[u8]) -> Option<SessionKey> {
    let plain = |byte: &u8| byte.is_ascii_alphanumeric() || b"-._~".contains(byte);
    let fits = (1..=SESSION_BYTES_MAX).contains(&text.len()) && text.iter().all(plain);
    let text = std::str::from_utf8(text).ok().filter(|_| fits)?;
    Some(SessionKey(text.into()))
}

/// Searches the JSON of a response for a session id: `"sid":"..."`.
#[derive(Debug)]
pub(crate) struct SessionSearch {
    /// The name, in quotes.
    name: Box<[u8]>,
    seen: Vec<u8>,
    is_over: bool,
}

impl SessionSearch {
    pub(super) fn new(name: &str) -> Self {
        Self {
            name: format!("\"{name}\"").into_bytes().into(),
            seen: Vec::new(),
            is_over: false,
        }
    }

    /// Searches the next piece of the body. Returns the session id when it is complete.
    pub(crate) fn inspect(&mut self, content: &[u8]) -> Option<SessionKey> {
        if self.is_over {
            return None;
        }
        let room = CONTENT_BYTES_MAX - self.seen.len();
        self.seen
            .extend_from_slice(&content[..content.len().min(room)]);
        let found = self.find();
        if found.is_some() || self.seen.len() == CONTENT_BYTES_MAX {
            self.is_over = true;
            self.seen = Vec::new();
        }
        found
    }

    fn find(&self) -> Option<SessionKey> {
        let seen = &*self.seen;
        let mut suffixes = (0..seen.len()).map(|start| &seen[start..]);
        suffixes.find_map(|rest| {
            let rest = rest.strip_prefix(&*self.name)?.trim_ascii_start();
            let rest = rest.strip_prefix(b":")?.trim_ascii_start();
            let rest = rest.strip_prefix(b"\"")?;
            let end = rest.iter().position(|byte| *byte == b'"')?;
            key(&rest[..end])
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_parameter_is_found_in_the_query_and_nowhere_else() {
        let found = |target: &str| session(target.as_bytes(), "sid");
        for target in [
            "/socket.io/?EIO=4&transport=polling&sid=abc-_1",
            "/?sid=abc-_1",
            "/x?sid=abc-_1&sid=other",
            "http://h/x?a&sid=abc-_1&b",
        ] {
            assert_eq!(found(target), Some(SessionKey::new("abc-_1")), "{target}");
        }
        let long = format!("/?sid={}", "x".repeat(SESSION_BYTES_MAX + 1));
        for target in [
            "/sid=abc",
            "/?Sid=abc",
            "/?xsid=abc",
            "/?sid=",
            "/?sid",
            "/?sid=a%20b",
            "/?a=?sid=abc",
            &long,
        ] {
            assert_eq!(found(target), None, "{target}");
        }
    }

    #[test]
    fn a_new_session_is_found_however_its_response_is_split() {
        let whole = br#"0{"sid":"abc-_1","upgrades":["websocket"],"pingInterval":25000}"#;
        for cut in 0..whole.len() {
            let mut search = SessionSearch::new("sid");
            let (one, two) = whole.split_at(cut);
            let found = [
                search.inspect(one),
                search.inspect(two),
                search.inspect(whole),
            ];
            let found: Vec<SessionKey> = found.into_iter().flatten().collect();
            assert_eq!(found, [SessionKey::new("abc-_1")], "{cut}");
        }
        let mut spaced = SessionSearch::new("sid");
        let found = spaced.inspect(b"{\n  \"sid\" : \"x\"\n}");
        assert_eq!(found, Some(SessionKey::new("x")));
    }

    #[test]
    fn a_response_without_a_session_is_searched_up_to_the_limit() {
        let late = format!("{}\"sid\":\"abc\"", "x".repeat(CONTENT_BYTES_MAX));
        for content in [
            "",
            "2",
            r#"{"sid":7}"#,
            r#"{"sid":"a b"}"#,
            r#"{"sid":"a"#,
            r#"{"xsid":"a"}"#,
            &late,
        ] {
            let mut search = SessionSearch::new("sid");
            assert_eq!(search.inspect(content.as_bytes()), None, "{content}");
            assert!(search.seen.capacity() <= 2 * CONTENT_BYTES_MAX);
        }
    }
}
