//! The syntax of the Cookie header (RFC 6265, section 5.4), as far as needed: finding values by name,
//! and taking cookies out without touching the others.
//!
//! Works on bytes: other applications' cookies may hold anything.

/// The values of all cookies called `name` in one header, in their order.
pub(super) fn values<'a>(header: &'a [u8], name: &'a [u8]) -> impl Iterator<Item = &'a [u8]> {
    header.split(|&byte| byte == b';').filter_map(move |pair| {
        let (found, value) = split(pair)?;
        (found == name).then_some(value)
    })
}

/// The header without the cookies whose name is `unwanted`; `None` if it has none of them.
///
/// What is left is byte for byte what it was, and starts with a cookie.
pub(super) fn without(header: &[u8], unwanted: impl Fn(&[u8]) -> bool) -> Option<Vec<u8>> {
    let is_unwanted = |pair: &&[u8]| split(pair).is_some_and(|(name, _)| unwanted(name));
    let pairs = || header.split(|&byte| byte == b';');
    if !pairs().any(|pair| is_unwanted(&pair)) {
        return None;
    }
    let kept: Vec<&[u8]> = pairs().filter(|pair| !is_unwanted(pair)).collect();
    let kept = kept.join(&b';');
    // Nothing but the separators around what went is nothing.
    if kept.iter().all(|byte| b"; \t".contains(byte)) {
        return Some(Vec::new());
    }
    Some(kept.trim_ascii_start().to_vec())
}

/// Name and value of `name=value`, without the blanks around them.
fn split(pair: &[u8]) -> Option<(&[u8], &[u8])> {
    let at = pair.iter().position(|&byte| byte == b'=')?;
    Some((pair[..at].trim_ascii(), pair[at + 1..].trim_ascii()))
}
