//! Headers of a client that are forwarded with its hook requests.
//!
//! Two configured lists name them: one for the headers of the client's own request, which a proxy in front may have
//! set or checked, and one for the `headers` that an SDK sends with its `connect` because browsers cannot set any on a
//! WebSocket. A client can choose the latter freely, so they have a separate list and never replace the former.
//!
//! Names and values are copies: a slice would keep the whole read buffer of the request as long as the client is connected.

use std::collections::BTreeMap;

use ::http::HeaderMap;
use ::http::HeaderName;
use ::http::HeaderValue;

/// The limit of the emulated headers of one client, names included: they are kept as long as it is connected.
const EMULATED_BYTES_MAX: usize = 8 << 10;

/// Headers that are kept with a client; mostly there are none, and then nothing is allocated.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct ClientHeaders(Box<[(HeaderName, HeaderValue)]>);

/// Why the headers in a client's `connect` are rejected.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum BadHeaders {
    /// It contains a line ending or other control characters.
    #[error("the value of the header {0} has characters that are not allowed in headers")]
    Value(HeaderName),
    /// They are too large.
    #[error("the headers have {0} bytes, at most {EMULATED_BYTES_MAX} are allowed")]
    TooLarge(usize),
}

impl ClientHeaders {
    /// Those of a `request` that are on the list.
    pub(super) fn of_request(list: &[HeaderName], request: &HeaderMap) -> Self {
        let values = |name| request.get_all(name).iter().map(move |value| (name, value));
        let listed = list.iter().flat_map(values);
        let copies = listed.filter_map(|(name, value)| Some((name.clone(), copy(value)?)));
        Self(copies.collect())
    }

    /// Those of a client's `connect` that are on the list, unless `self`, those of its request, have them.
    pub(super) fn emulated(
        &self,
        list: &[HeaderName],
        connect: &BTreeMap<String, String>,
    ) -> Result<Self, BadHeaders> {
        let mut emulated = Vec::new();
        let mut bytes = 0;
        for (name, value) in connect {
            // Header names have no case, and the list holds lower case alone.
            let Some(name) = list
                .iter()
                .find(|listed| name.eq_ignore_ascii_case(listed.as_str()))
            else {
                continue;
            };
            if self.0.iter().any(|(has, _)| has == name) {
                continue;
            }
            bytes += name.as_str().len() + value.len();
            let value = HeaderValue::from_str(value);
            emulated.push((
                name.clone(),
                value.map_err(|_| BadHeaders::Value(name.clone()))?,
            ));
        }
        if EMULATED_BYTES_MAX < bytes {
            return Err(BadHeaders::TooLarge(bytes));
        }
        Ok(Self(emulated.into()))
    }

    /// Whether there is none.
    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Names, values, and whether a value is a secret, for another node.
    pub(crate) fn parts(&self) -> impl Iterator<Item = (&str, &[u8], bool)> {
        self.0
            .iter()
            .map(|(name, value)| (name.as_str(), value.as_bytes(), value.is_sensitive()))
    }

    /// Those that another node has kept; `None` if one of them is no header.
    pub(crate) fn from_parts<'a>(
        parts: impl Iterator<Item = (&'a str, &'a [u8], bool)>,
    ) -> Option<Self> {
        let headers = parts.map(|(name, value, is_secret)| {
            let mut value = HeaderValue::from_bytes(value).ok()?;
            value.set_sensitive(is_secret);
            Some((HeaderName::from_bytes(name.as_bytes()).ok()?, value))
        });
        headers.collect::<Option<Box<[_]>>>().map(Self)
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &(HeaderName, HeaderValue)> {
        self.0.iter()
    }
}

/// The same value in memory of its own.
fn copy(value: &HeaderValue) -> Option<HeaderValue> {
    let mut copy = HeaderValue::from_bytes(value.as_bytes()).ok()?;
    copy.set_sensitive(value.is_sensitive());
    Some(copy)
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;

    const LIST: [HeaderName; 2] = [
        HeaderName::from_static("authorization"),
        HeaderName::from_static("x-user"),
    ];

    #[test]
    fn a_kept_value_does_not_keep_the_read_buffer() {
        let buffer = Bytes::from(vec![b'a'; 8 << 10]);
        let mut request = HeaderMap::new();
        let value = HeaderValue::from_maybe_shared(buffer.slice(10..20)).unwrap();
        request.append("x-user", value);
        let kept = ClientHeaders::of_request(&LIST, &request);
        drop(request);
        assert_eq!(kept.iter().count(), 1);
        assert!(buffer.is_unique(), "a slice of it is still there");
    }

    #[test]
    fn emulated_headers_have_a_list_and_never_replace_those_of_the_request() {
        let connect = |pairs: &[(&str, &str)]| {
            let owned = pairs
                .iter()
                .map(|&(name, value)| (name.to_owned(), value.to_owned()));
            owned.collect::<BTreeMap<_, _>>()
        };
        let mut request = HeaderMap::new();
        request.append("x-user", HeaderValue::from_static("42"));
        let own = ClientHeaders::of_request(&LIST, &request);
        let pairs = connect(&[
            ("Authorization", "Bearer t"),
            ("X-User", "1"),
            ("Cookie", "a"),
        ]);
        let emulated = own.emulated(&LIST, &pairs).unwrap();
        let names: Vec<_> = emulated.iter().map(|(name, _)| name.as_str()).collect();
        assert_eq!(names, ["authorization"]);
        let none = ClientHeaders::default();
        let broken = connect(&[("x-user", "1\r\nx-admin: 1")]);
        let error = none.emulated(&LIST, &broken).unwrap_err();
        assert_eq!(error, BadHeaders::Value(LIST[1].clone()));
        for (length, fits) in [
            (EMULATED_BYTES_MAX - 6, true),
            (EMULATED_BYTES_MAX - 5, false),
        ] {
            let pairs = connect(&[("x-user", &"x".repeat(length))]);
            assert_eq!(none.emulated(&LIST, &pairs).is_ok(), fits, "{length}");
        }
        assert!(none.emulated(&[], &broken).unwrap().is_empty());
    }
}
