//! Closed paths: paths of backends that are not for clients, in any spelling.
//!
//! Servers differ in how they normalize a path: some decode it twice, resolve `..` before or after that, remove path parameters, treat
//! `\` as `/`, merge slashes, read a host after `//`, or ignore case. A path is closed if any of them might resolve it to a closed
//! one. So it is decoded repeatedly, and where servers differ, all interpretations are followed at once: `..` may remove any number
//! of segments before it, and a `;`, an encoded `?`, `#` or zero may end the path or not. Only spellings that clients have no reason
//! to use are closed unnecessarily.

/// The most segments of a closed path: the matching state is kept in the bits of a word.
pub(in crate::config) const SEGMENTS_MAX: usize = 16;

/// The suffix of a closed path that includes all paths below it.
const BELOW: &str = "/*";

/// One closed path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct ClosedPath {
    /// As configured, without [`BELOW`].
    path: String,
    /// Whether all paths below it are closed too.
    below: bool,
}

/// A list of closed paths.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct ClosedPaths(Vec<ClosedPath>);

/// One segment of a path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Segment<'a> {
    /// Empty, or a dot: ignored.
    Empty,
    /// `..`: removes segments before it.
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

    /// Whether `path`, which all servers interpret alike, is this one.
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

    /// Whether a server might resolve `decoded` to this path.
    fn may_match(&self, decoded: &[u8]) -> bool {
        // What the path may resolve to so far, in all interpretations. Bit `m` of `exact`: the first `m` segments of this path; bit
        // `m` of `more`: those and further segments.
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
        // Path parameters after a `;` may contain an encoded slash: then what is a segment here may be part of them.
        let mut may_be_parameter = false;
        for text in segments {
            let end = text.iter().position(|byte| b";?#\0".contains(byte));
            match segment(&text[..end.unwrap_or(text.len())]) {
                Segment::Empty => {}
                Segment::Parent => {
                    let highest = u32::BITS - 1 - (exact | more).leading_zeros();
                    exact |= (2 << highest) - 1;
                }
                Segment::Name(name) => {
                    let mut next = u32::from(has_host) | if may_be_parameter { exact } else { 0 };
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
            may_be_parameter |= end.is_some();
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

    /// Splits it into the paths that are not opened and those that are.
    pub(super) fn split(self, is_opened: impl Fn(&str) -> bool) -> (Self, Self) {
        let all = self.0.into_iter();
        let (opened, others) = all.partition(|closed| is_opened(&closed.path));
        (Self(others), Self(opened))
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether a server might resolve `path`, which has no query, to one of these.
    pub(super) fn contains(&self, path: &str) -> bool {
        if is_plain(path) {
            return self.0.iter().any(|closed| closed.matches(path));
        }
        let decoded = decode(path);
        self.0.iter().any(|closed| closed.may_match(&decoded))
    }
}

/// Whether `path` has a `..` segment, in any spelling.
pub(super) fn has_parent_segments(path: &str) -> bool {
    if is_plain(path) {
        return false;
    }
    let decoded = decode(path);
    let mut segments = decoded.split(|byte| b"/\\;?#\0".contains(byte));
    segments.any(|text| segment(text) == Segment::Parent)
}

/// Whether all servers interpret `path` alike. Byte by byte: this runs for each request, and substring searches have a setup cost.
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

/// Classifies one segment, with whitespace and trailing dots ignored.
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

/// Decodes all escapes in `path`: nested ones, overlong forms and full-width characters included. Characters that URL parsers
/// remove are removed.
fn decode(path: &str) -> Vec<u8> {
    let mut decoded = Vec::with_capacity(path.len());
    for byte in path.bytes() {
        decoded.push(byte);
        // The decoded byte may complete another escape.
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

/// The length of the escape at the end of `bytes`, and the byte that it encodes.
fn escape_at_end(bytes: &[u8]) -> Option<(usize, u8)> {
    let hex = |digits: &[u8]| {
        let digits = std::str::from_utf8(digits).ok()?;
        let is_hex = digits.bytes().all(|byte| byte.is_ascii_hexdigit());
        u32::from_str_radix(digits, 16).ok().filter(|_| is_hex)
    };
    // The ASCII equivalent of a full-width character.
    let narrow = |character: u32| match character {
        0..=0x7f => Some(character as u8),
        0xff01..=0xff5e => Some((character - 0xff01) as u8 + b'!'),
        _ => None,
    };
    match *bytes {
        [.., b'%', high, low] => Some((3, hex(&[high, low])? as u8)),
        [.., b'%', b'u' | b'U', a, b, c, d] => Some((6, narrow(hex(&[a, b, c, d])?)?)),
        // Overlong forms, which decoders must reject (RFC 3629, 3), but some accept.
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

    /// The interpretations of a path by common servers, in any order of the steps.
    fn interpretations(path: &str) -> Vec<String> {
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
    fn closed_paths_are_closed_in_any_spelling() {
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
    fn unusual_spellings_of_other_paths_are_open() {
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
    fn decoding_nested_escapes_takes_linear_time() {
        let closed = closed(&["/metrics", "/api/*"]);
        for piece in [
            "%25", "%2525", "%%35", "/..", ";", "%2e%2e/", "%252f..", "/x/..",
        ] {
            let path = format!("/{}6Detrics", piece.repeat((256 << 10) / piece.len()));
            // In quadratic time, this test would take minutes.
            closed.contains(&path);
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(1000))]

        #[test]
        fn a_path_that_any_server_may_resolve_to_a_closed_one_is_closed(
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
            if let Some(resolved) = interpretations(&path).iter().find(|path| is_closed(path)) {
                prop_assert!(closed.contains(&path), "{path} may be {resolved}");
            }
        }
    }
}
