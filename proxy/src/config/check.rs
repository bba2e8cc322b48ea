//! Validates single settings, and collects errors.
//!
//! A setting that is not valid yields an error and its default, so that all errors of a file are reported together.

use std::fmt::Display;
use std::net::SocketAddr;
use std::ops::RangeInclusive;
use std::str::FromStr;
use std::time::Duration;

use causeway_conf::{ByteSize, ConfError, ConfErrors, Positions, Secret, Span};
use http::{HeaderValue, StatusCode};

/// The errors found so far.
pub(super) struct Check {
    positions: Positions,
    errors: Vec<ConfError>,
}

impl Check {
    pub(super) fn new(positions: Positions) -> Self {
        Self {
            positions,
            errors: Vec::new(),
        }
    }

    /// `value` and the positions, if there were no errors.
    pub(super) fn finish<T>(self, value: T) -> Result<(T, Positions), ConfErrors> {
        if self.errors.is_empty() {
            return Ok((value, self.positions));
        }
        let mut errors = self.errors;
        errors.sort_by_key(|error| error.position);
        Err(ConfErrors(errors))
    }

    pub(super) fn error(&mut self, key: &str, message: impl Into<String>) {
        self.errors.push(self.positions.error(key, message));
    }

    /// Adds an error unless `is_valid`.
    pub(super) fn require(&mut self, is_valid: bool, key: &str, message: &str) {
        if !is_valid {
            self.error(key, message);
        }
    }

    pub(super) fn span(
        &mut self,
        key: &str,
        value: Option<Span>,
        default: Duration,
        range: RangeInclusive<Span>,
    ) -> Duration {
        self.within(key, value, Span(default), range).0
    }

    pub(super) fn size(
        &mut self,
        key: &str,
        value: Option<ByteSize>,
        default: usize,
        range: RangeInclusive<ByteSize>,
    ) -> usize {
        let value = self.within(key, value, ByteSize(default as u64), range);
        usize::try_from(value.0).unwrap_or(default)
    }

    pub(super) fn number<N>(
        &mut self,
        key: &str,
        value: Option<u64>,
        default: N,
        range: RangeInclusive<N>,
    ) -> N
    where
        N: Copy + Display + PartialOrd + TryFrom<u64>,
    {
        let Some(value) = value else { return default };
        match N::try_from(value) {
            Ok(value) if range.contains(&value) => value,
            _ => {
                self.out_of_range(key, &value, &range);
                default
            }
        }
    }

    pub(super) fn within<T: Copy + Display + PartialOrd>(
        &mut self,
        key: &str,
        value: Option<T>,
        default: T,
        range: RangeInclusive<T>,
    ) -> T {
        match value {
            None => default,
            Some(value) if range.contains(&value) => value,
            Some(value) => {
                self.out_of_range(key, &value, &range);
                default
            }
        }
    }

    fn out_of_range<T: Display>(
        &mut self,
        key: &str,
        value: &dyn Display,
        range: &RangeInclusive<T>,
    ) {
        let (min, max) = (range.start(), range.end());
        self.error(
            key,
            format!("{value} is out of range, expected {min} to {max}"),
        );
    }

    /// Parses `text` as a `T`; the error has the message of `T`.
    pub(super) fn parsed<T>(&mut self, key: &str, text: &str) -> Option<T>
    where
        T: FromStr,
        T::Err: Display,
    {
        match text.parse() {
            Ok(value) => Some(value),
            Err(error) => {
                self.error(key, format!("\"{}\": {error}", text.escape_debug()));
                None
            }
        }
    }

    /// An address to listen on. Host names are not accepted: they may have several addresses, which may change.
    pub(super) fn listener(&mut self, key: &str, text: &str) -> Option<SocketAddr> {
        let address = text.parse().ok();
        if address.is_none() {
            let text = text.escape_debug();
            self.error(
                key,
                format!(
                    "\"{text}\": expected an IP address and a port, such as \"127.0.0.1:8080\", \"0.0.0.0:80\" or \"[::]:80\""
                ),
            );
        }
        address
    }

    pub(super) fn status(
        &mut self,
        key: &str,
        value: u64,
        range: RangeInclusive<u16>,
    ) -> Option<StatusCode> {
        let status = u16::try_from(value).ok().filter(|s| range.contains(s));
        if status.is_none() {
            self.out_of_range(key, &value, &range);
        }
        status.and_then(|status| StatusCode::from_u16(status).ok())
    }

    /// A path for a route or a cookie: absolute, visible ASCII, no query.
    pub(super) fn path(&mut self, key: &str, path: &str) {
        let plain = |byte: u8| byte.is_ascii_graphic() && !b"?#;".contains(&byte);
        let is_valid = path.starts_with('/') && path.len() <= 1024 && path.bytes().all(plain);
        self.require(
            is_valid,
            key,
            "expected a path that starts with \"/\", without spaces or any of ?#;",
        );
    }
}

/// `text` as a header value, if it is valid. Marked as sensitive: not shown in debug output.
pub(super) fn header_value(text: &Secret) -> Option<HeaderValue> {
    let text = text.expose();
    let plain = |byte: u8| byte.is_ascii_graphic() || b" \t".contains(&byte);
    if !text.bytes().all(plain) || text.trim().len() != text.len() {
        return None;
    }
    let mut value = HeaderValue::from_str(text).ok()?;
    value.set_sensitive(true);
    Some(value)
}

/// Whether `text` is a token by RFC 9110, section 5.6.2.
pub(super) fn is_token(text: &str) -> bool {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte);
    !text.is_empty() && text.bytes().all(plain)
}
