//! One interface to headers, whether in Pingora's maps or as original bytes ([`http1`](crate::http::http1)).
//!
//! Code that reads or changes headers is written once, against these traits.

use http::header::{HeaderName, HeaderValue};
use http::{Method, StatusCode, Version};
use pingora::http::{RequestHeader, ResponseHeader};

/// The headers of a request or a response.
pub(crate) trait Fields {
    /// The values of all headers called `name`, which is in lower case, in their order.
    fn values(&self, name: &'static str) -> impl Iterator<Item = &[u8]>;

    /// Removes the headers for whose names `unwanted` is true. Names are ASCII, in lower case or in their original spelling.
    fn remove_if(&mut self, unwanted: impl FnMut(&[u8]) -> bool);

    /// Appends a header. `name` is spelled as it is to be sent.
    fn append(&mut self, name: &'static str, value: HeaderValue);

    /// The same for a text without control characters; cheaper in some implementations.
    fn append_text(&mut self, name: &'static str, value: &str) {
        let value = HeaderValue::from_str(value);
        self.append(name, value.expect("text without a control character"));
    }

    /// Replaces all headers called `name` by one with this value.
    fn set(&mut self, name: &'static str, value: HeaderValue) {
        self.remove(name);
        self.append(name, value);
    }

    /// Removes all headers called `name`.
    fn remove(&mut self, name: &'static str) {
        self.remove_if(|other| other.eq_ignore_ascii_case(name.as_bytes()));
    }

    /// Whether there is a header called `name`.
    fn has(&self, name: &'static str) -> bool {
        self.values(name).next().is_some()
    }

    /// The first value called `name`, if it is text.
    fn text(&self, name: &'static str) -> Option<&str> {
        text(self.values(name).next()?)
    }

    /// The elements of all comma-separated lists called `name`, trimmed. Values that are not text are skipped.
    fn elements(&self, name: &'static str) -> impl Iterator<Item = &str> {
        let values = self.values(name).filter_map(text);
        values.flat_map(|value| value.split(',')).map(str::trim)
    }

    /// Whether one of the lists called `name` contains `token`, in any case.
    fn lists(&self, name: &'static str, token: &str) -> bool {
        self.elements(name)
            .any(|element| element.eq_ignore_ascii_case(token))
    }
}

/// A request.
pub(crate) trait Request: Fields {
    fn method(&self) -> &Method;

    fn version(&self) -> Version;

    /// The request target, not validated.
    fn target(&self) -> &[u8];

    /// Replaces the request target.
    fn set_target(&mut self, target: String);

    /// The host in the target.
    fn authority(&self) -> Option<&str>;

    /// The path in the target, without the query.
    fn path(&self) -> &str;

    /// Whether a header value begins or ends with whitespace: never for parsed HTTP/1 heads.
    fn has_padding(&self) -> bool;

    /// The host of the request: that of an absolute target (RFC 9112, 3.2.2), else its `Host` header.
    fn host(&self) -> Option<&str> {
        self.authority().or_else(|| self.text("host"))
    }
}

/// A response.
pub(crate) trait Response: Fields {
    fn status(&self) -> StatusCode;
}

/// The value as text, if it consists of visible ASCII, spaces and tabs.
pub(crate) fn text(value: &[u8]) -> Option<&str> {
    let plain = |byte: &u8| matches!(byte, b' '..=b'~' | b'\t');
    value.iter().all(plain).then_some(())?;
    std::str::from_utf8(value).ok()
}

macro_rules! fields_of_pingora {
    ($header:ty) => {
        impl Fields for $header {
            fn values(&self, name: &'static str) -> impl Iterator<Item = &[u8]> {
                let values = self.headers.get_all(name).into_iter();
                values.map(HeaderValue::as_bytes)
            }

            fn remove_if(&mut self, mut unwanted: impl FnMut(&[u8]) -> bool) {
                let names = self.headers.keys().filter(|name| unwanted(name.as_ref()));
                let names: Vec<HeaderName> = names.cloned().collect();
                for name in names {
                    self.remove_header(&name);
                }
            }

            /// The name is `'static`: Pingora copies any other.
            fn append(&mut self, name: &'static str, value: HeaderValue) {
                let appended = self.append_header(name, value);
                debug_assert!(
                    appended.is_ok(),
                    "a map has room for more headers than a head may have"
                );
            }

            fn set(&mut self, name: &'static str, value: HeaderValue) {
                let inserted = self.insert_header(name, value);
                debug_assert!(
                    inserted.is_ok(),
                    "a map has room for more headers than a head may have"
                );
            }
        }
    };
}

fields_of_pingora!(RequestHeader);
fields_of_pingora!(ResponseHeader);

impl Request for RequestHeader {
    fn method(&self) -> &Method {
        &self.method
    }

    fn version(&self) -> Version {
        self.version
    }

    fn target(&self) -> &[u8] {
        self.raw_path()
    }

    fn set_target(&mut self, target: String) {
        let replaced = self.set_raw_path(target.as_bytes());
        debug_assert!(replaced.is_ok(), "it is a part of a validated target");
    }

    fn authority(&self) -> Option<&str> {
        self.uri.authority().map(http::uri::Authority::as_str)
    }

    fn path(&self) -> &str {
        self.uri.path()
    }

    fn has_padding(&self) -> bool {
        let padded = |value: &[u8]| value.trim_ascii().len() != value.len();
        self.headers.values().any(|value| padded(value.as_bytes()))
    }
}

impl Response for ResponseHeader {
    fn status(&self) -> StatusCode {
        self.status
    }
}
