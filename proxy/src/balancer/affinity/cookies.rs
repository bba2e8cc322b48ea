//! The syntax of the Cookie header (RFC 6265, section 5.4), as far as needed: finds values by name, and removes cookies without
//! changing the others.
//!
//! Works on bytes: cookies of applications may contain anything.

/// The values of all cookies called `name` in one header, in their order.
pub(super) fn values<'a>(header: &'a [u8], name: &'a [u8]) -> impl Iterator<Item = &'a [u8]> {
    header.split(|&byte| byte == b';').filter_map(move |pair| {
        let (found, value) = split(pair)?;
        (found == name).then_some(value)
    })
}

/// Appends the header without the cookies whose name is `unwanted` to the rest of previous headers. Whether there were any.
///
/// The other cookies are unchanged byte for byte. An empty header appends nothing, nor does one that has only separators left.
pub(super) fn append_without(
    left: &mut Vec<u8>,
    header: &[u8],
    unwanted: impl Fn(&[u8]) -> bool,
) -> bool {
    if header.is_empty() {
        return false;
    }
    let before = left.len();
    if !left.is_empty() {
        left.extend_from_slice(b"; ");
    }
    let start = left.len();
    let (mut changes, mut is_bare, mut is_first) = (false, true, true);
    for pair in header.split(|&byte| byte == b';') {
        if split(pair).is_some_and(|(name, _)| unwanted(name)) {
            changes = true;
            continue;
        }
        if is_first {
            left.extend_from_slice(pair.trim_ascii_start());
        } else {
            left.push(b';');
            left.extend_from_slice(pair);
        }
        is_first = false;
        is_bare = is_bare && pair.iter().all(|byte| b" \t".contains(byte));
    }
    if !changes {
        left.truncate(start);
        left.extend_from_slice(header);
    } else if is_bare {
        left.truncate(before);
    }
    changes
}

/// Name and value of `name=value`, without surrounding whitespace.
fn split(pair: &[u8]) -> Option<(&[u8], &[u8])> {
    let at = pair.iter().position(|&byte| byte == b'=')?;
    Some((pair[..at].trim_ascii(), pair[at + 1..].trim_ascii()))
}
