//! Paths of backends that are not for clients, however they are spelled.
//!
//! Servers agree on what `/metrics` is, and on nothing else: some decode twice, resolve `..` before or after that, cut off path
//! parameters, take `\` for `/`, merge slashes, look for a host behind `//`, or compare without case. A path is closed if any of
//! them might take it for one that is. So it is decoded as far as it goes, and where servers differ all readings are followed at
//! once: `..` may take away any number of segments before it, and a `;`, an encoded `?`, `#` or zero may end the path or not. What is
//! closed too much is spelled in a way that no client has a reason for.

/// The most segments that a closed path may have: what is known of a path is kept in the bits of a word.
pub(in crate::config) const SEGMENTS_MAX: usize = 16;

/// Behind a closed path: all that lies below it is closed too.
const BELOW: &str = "/*";

/// A path that is closed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct ClosedPath {
    /// As it was written, without [`BELOW`].
    path: String,
    /// Whether all that lies below it is closed too.
    below: bool,
}

/// Paths that are closed.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct ClosedPaths(Vec<ClosedPath>);

/// What one segment of a path does to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Segment<'a> {
    /// Nothing: it is empty, or a dot.
    Empty,
    /// It takes away segments before it.
    Parent,
    Name(&'a [u8]),
}

impl ClosedPath {
    pub(super) fn new(text: &str) -> Self {
        let path = text.strip_suffix(BELOW);
        Self {
            path: path.unwrap_or(text).to_owned(),
            below: path.is_some(),
        }
    }

    /// Whether `path`, which is spelled plainly, is this one.
    fn matches(&self, path: &str) -> bool {
        let path = path.strip_suffix('/').unwrap_or(path);
        let Some((start, rest)) = path.split_at_checked(self.path.len()) else {
            return false;
        };
        let ends = rest.is_empty() || (self.below && rest.starts_with('/'));
        ends && start.eq_ignore_ascii_case(&self.path)
    }

    fn segments(&self) -> impl Iterator<Item = &[u8]> {
        self.path.split('/').skip(1).map(str::as_bytes)
    }

    /// Whether a server might take `decoded` for this path.
    fn may_match(&self, decoded: &[u8]) -> bool {
        // What the path amounts to so far, in all readings. Bit `m` of `exact`: to the first `m` segments of this path; of `more`:
        // to those and something below.
        let (mut exact, mut more) = (1_u32, 0_u32);
        let count = self.segments().count();
        let reached = |exact: u32, more: u32| {
            let below = if self.below { more } else { 0 };
            (exact | below) >> count & 1 == 1
        };
        let mut segments = decoded
            .split(|byte| matches!(byte, b'/' | b'\\'))
            .peekable();
        if segments.peek().is_some_and(|first| first.is_empty()) {
            segments.next();
        }
        // `//host/path` is read as a URL without a scheme.
        let has_host = segments.peek().is_some_and(|first| first.is_empty()) && 1 < decoded.len();
        // What is cut off behind a `;` may hold an encoded slash: what is a segment here may have been cut off with it.
        let mut may_vanish = false;
        for text in segments {
            let end = text.iter().position(|byte| b";?#\0".contains(byte));
            match segment(&text[..end.unwrap_or(text.len())]) {
                Segment::Empty => {}
                Segment::Parent => {
                    let highest = u32::BITS - 1 - (exact | more).leading_zeros();
                    exact |= (2 << highest) - 1;
                }
                Segment::Name(name) => {
                    let mut next = u32::from(has_host) | if may_vanish { exact } else { 0 };
                    for (index, wanted) in self.segments().enumerate() {
                        if exact >> index & 1 == 1 && name.eq_ignore_ascii_case(wanted) {
                            next |= 2 << index;
                            exact &= !(1 << index);
                        }
                    }
                    more |= exact;
                    exact = next;
                }
            }
            may_vanish |= end.is_some();
            if end.is_some() && reached(exact, more) {
                return true;
            }
        }
        reached(exact, more)
    }
}

impl ClosedPaths {
    pub(super) fn new(all: Vec<ClosedPath>) -> Self {
        Self(all)
    }

    /// Those that `is_named` says no and yes of.
    pub(super) fn split(self, is_named: impl Fn(&str) -> bool) -> (Self, Self) {
        let all = self.0.into_iter();
        let (named, others) = all.partition(|closed| is_named(&closed.path));
        (Self(others), Self(named))
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether a server might take `path`, which has no query, for one of these.
    pub(super) fn contains(&self, path: &str) -> bool {
        if is_plain(path) {
            return self.0.iter().any(|closed| closed.matches(path));
        }
        let decoded = decode(path);
        self.0.iter().any(|closed| closed.may_match(&decoded))
    }
}

/// Whether `path` has segments that take others away.
pub(super) fn has_parent_segments(path: &str) -> bool {
    if is_plain(path) {
        return false;
    }
    let decoded = decode(path);
    let mut segments = decoded.split(|byte| b"/\\;?#\0".contains(byte));
    segments.any(|text| segment(text) == Segment::Parent)
}

/// Whether all servers read `path` alike. Byte by byte: this is done for each request, and searching for strings has much to
/// prepare.
fn is_plain(path: &str) -> bool {
    let mut before = b'/';
    for (index, byte) in path.bytes().enumerate() {
        let is_odd = match byte {
            b'%' | b';' | b'\\' | b'?' | b'#' => true,
            0..=b' ' | 0x7f.. => true,
            b'.' => before == b'/',
            b'/' => index != 0 && matches!(before, b'/' | b'.'),
            _ => false,
        };
        if is_odd {
            return false;
        }
        before = byte;
    }
    before != b'.' && path.starts_with('/')
}

/// What one segment does, of which all that may be cut off behind is cut off.
fn segment(text: &[u8]) -> Segment<'_> {
    let is_blank = |byte: &u8| matches!(byte, 0..=b' ' | 0x7f);
    let start = text.iter().position(|byte| !is_blank(byte));
    let text = &text[start.unwrap_or(text.len())..];
    let blank_behind = |byte: &&u8| is_blank(byte) || **byte == b'.';
    let behind = text.iter().rev().take_while(blank_behind).count();
    let (name, behind) = text.split_at(text.len() - behind);
    match behind.iter().filter(|byte| **byte == b'.').count() {
        _ if !name.is_empty() => Segment::Name(name),
        0 | 1 => Segment::Empty,
        _ => Segment::Parent,
    }
}

/// `path` without escapes: those within escapes, overlong and wide characters included. Characters that URL parsers drop are
/// dropped.
fn decode(path: &str) -> Vec<u8> {
    let mut decoded = Vec::with_capacity(path.len());
    for byte in path.bytes() {
        decoded.push(byte);
        // What comes out may be the end of another escape.
        while let Some((length, byte)) = escape_at_end(&decoded) {
            decoded.truncate(decoded.len() - length);
            decoded.push(byte);
        }
        if matches!(decoded.last(), Some(b'\t' | b'\n' | b'\r')) {
            decoded.pop();
        }
    }
    decoded
}

/// How long the escape is that `bytes` end with, and what it stands for.
fn escape_at_end(bytes: &[u8]) -> Option<(usize, u8)> {
    let hex = |digits: &[u8]| {
        let digits = std::str::from_utf8(digits).ok()?;
        let is_hex = digits.bytes().all(|byte| byte.is_ascii_hexdigit());
        u32::from_str_radix(digits, 16).ok().filter(|_| is_hex)
    };
    // A character as one of ASCII that looks like it.
    let narrow = |character: u32| match character {
        0..=0x7f => Some(character as u8),
        0xff01..=0xff5e => Some((character - 0xff01) as u8 + b'!'),
        _ => None,
    };
    match *bytes {
        [.., b'%', high, low] => Some((3, hex(&[high, low])? as u8)),
        [.., b'%', b'u' | b'U', a, b, c, d] => Some((6, narrow(hex(&[a, b, c, d])?)?)),
        // Overlong forms, which decoders must not take (RFC 3629, 3), and some do.
        [.., high @ 0xc0..=0xc1, low @ 0x80..=0xbf] => Some((2, (high & 1) << 6 | (low & 0x3f))),
        [.., 0xe0, high @ 0x80..=0x81, low @ 0x80..=0xbf] => {
            Some((3, (high & 1) << 6 | (low & 0x3f)))
        }
        [.., 0xef, high @ 0xbc..=0xbd, low @ 0x80..=0xbf] => {
            let character = 0xf000 | u32::from(high & 0x3f) << 6 | u32::from(low & 0x3f);
            Some((3, narrow(character)?))
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn closed(all: &[&str]) -> ClosedPaths {
        ClosedPaths::new(all.iter().map(|path| ClosedPath::new(path)).collect())
    }

    /// As common servers read a path, one after the other.
    fn readings(path: &str) -> Vec<String> {
        let once = |path: &str| {
            let decoded = percent_encoding(path);
            String::from_utf8_lossy(&decoded).into_owned()
        };
        let resolve = |path: &str| {
            let mut out: Vec<&str> = Vec::new();
            for segment in path.split('/') {
                match segment {
                    "" | "." => {}
                    ".." => _ = out.pop(),
                    segment => out.push(segment),
                }
            }
            format!("/{}", out.join("/"))
        };
        let without_parameters = |path: &str| {
            let cut = |segment: &str| segment.split(';').next().unwrap_or_default().to_owned();
            path.split('/').map(cut).collect::<Vec<_>>().join("/")
        };
        let slashes = |path: &str| path.replace('\\', "/");
        let steps: [&dyn Fn(&str) -> String; 4] = [&once, &resolve, &without_parameters, &slashes];
        let mut found = vec![path.to_owned()];
        for _ in 0..5 {
            let next: Vec<String> = found
                .iter()
                .flat_map(|path| steps.iter().map(|step| step(path)))
                .filter(|path| !found.contains(path))
                .collect();
            found.extend(next);
            found.sort();
            found.dedup();
        }
        found
    }

    fn percent_encoding(path: &str) -> Vec<u8> {
        let bytes = path.as_bytes();
        let mut out = Vec::new();
        let mut at = 0;
        while at < bytes.len() {
            let digits = path.get(at + 1..at + 3);
            let value = digits.and_then(|digits| u8::from_str_radix(digits, 16).ok());
            match value {
                Some(value) if bytes[at] == b'%' => {
                    out.push(value);
                    at += 3;
                }
                _ => {
                    out.push(bytes[at]);
                    at += 1;
                }
            }
        }
        out
    }

    #[test]
    fn no_spelling_gets_at_what_is_closed() {
        let closed = closed(&["/metrics", "/api/*", "/a/b"]);
        for path in [
            "/metrics",
            "/metrics/",
            "/METRICS",
            "//metrics",
            "///metrics",
            "//host/metrics",
            "//host/x/../metrics",
            "/\\host/metrics",
            "/./metrics",
            "/metrics/.",
            "/a/../metrics",
            "/a/b/../../metrics",
            "/../metrics",
            "/x;y/../metrics",
            "/;x/metrics",
            "/x/..;/metrics",
            "/x/..;y=z/metrics",
            "/metrics;x=1",
            "/metrics;x=1/",
            "/metrics;/x",
            "/;x%2fy/metrics",
            "/%6Detrics",
            "/%256Detrics",
            "/%25256Detrics",
            "/%%36Detrics",
            "/m%65tri%63s",
            "/%2e%2e/metrics",
            "/x/%2e%2e/metrics",
            "/x/%252e%252e/metrics",
            "/x/.%2e/metrics",
            "/x%2f..%2fmetrics",
            "/x%252f..%252fmetrics",
            "/x%252fy/../metrics",
            "/metrics/x%252fy/..",
            "/x/..%3b/metrics",
            "/x/..%253by/metrics",
            "/%2fmetrics",
            "/%5cmetrics",
            "\\metrics",
            "/x\\..\\metrics",
            "/x%5c..%5cmetrics",
            "/metrics%3Fx",
            "/metrics%23x",
            "/metrics%00",
            "/metrics%00.js",
            "/metrics%20",
            "/metrics%0a",
            "/met%0arics",
            "/metrics.",
            "/metrics./",
            "/metrics/x/..",
            "/metrics/x/y/../..",
            "/%c0%ae%c0%ae/metrics",
            "/x/%c0%ae%c0%ae%c0%afmetrics",
            "/%e0%80%afmetrics",
            "/%u006detrics",
            "/%u002fmetrics",
            "/%ef%bc%8fmetrics",
            "/%ef%bd%8detrics",
            "/api",
            "/api/",
            "/api/publish",
            "/API/publish",
            "/api%2fpublish",
            "/api;x/publish",
            "/x/../api/publish",
            "/a/b",
            "/a//b",
            "/a/./b",
            "/a/x/../b",
            "/a;x/b;y",
            "/a%2fb",
            "/x/../a/b",
        ] {
            assert!(closed.contains(path), "{path}");
        }
    }

    #[test]
    fn other_paths_are_open_odd_as_they_are() {
        let closed = closed(&["/metrics", "/api/*", "/a/b"]);
        for path in [
            "/",
            "",
            "*",
            "//",
            "/.",
            "/..",
            "/x",
            "/x/metrics",
            "/x/api",
            "/metrics/x",
            "/metrics.json",
            "/metricsx",
            "/apix",
            "/a",
            "/a/b/c",
            "/a/c",
            "/b",
            "/x%20y/metrics",
            "/caf%C3%A9",
            "/%zz",
            "/%",
            "/x/metrics;jsessionid=1",
            "/x;y/metrics",
            "/../x/metrics",
            "/x/../y/metrics",
            "/%E2%82%AC/metrics",
            "/app.js",
            "/.well-known/acme-challenge/x",
            "/a/.b",
            "/x/y..z",
        ] {
            assert!(!closed.contains(path), "{path}");
        }
    }

    #[test]
    fn a_long_path_of_escapes_within_escapes_takes_no_longer_than_another() {
        let closed = closed(&["/metrics", "/api/*"]);
        for piece in [
            "%25", "%2525", "%%35", "/..", ";", "%2e%2e/", "%252f..", "/x/..",
        ] {
            let path = format!("/{}6Detrics", piece.repeat((256 << 10) / piece.len()));
            // In quadratic time this test would take minutes.
            closed.contains(&path);
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(1000))]

        #[test]
        fn what_any_server_may_take_for_a_closed_path_is_closed(
            pieces in prop::collection::vec(
                prop_oneof![
                    Just("/"), Just("//"), Just("metrics"), Just("api"), Just("x"), Just(".."), Just("."), Just(";"),
                    Just("%2e"), Just("%2f"), Just("%252f"), Just("%252e"), Just("%5c"), Just("\\"), Just("%6d"),
                    Just("%3b"), Just("etrics"), Just("%25"), Just("6d"),
                ],
                1..8,
            )
        ) {
            let path = format!("/{}", pieces.concat());
            let closed = closed(&["/metrics", "/api/*"]);
            let is_closed = |path: &String| {
                *path == "/metrics" || *path == "/api" || path.starts_with("/api/")
            };
            if let Some(reading) = readings(&path).iter().find(|path| is_closed(path)) {
                prop_assert!(closed.contains(&path), "{path} may be {reading}");
            }
        }
    }
}
