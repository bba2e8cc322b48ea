//! Parses the forwarding headers of a trusted proxy: `X-Forwarded-*`, or `Forwarded` (RFC 7239) where there is no
//! `X-Forwarded-For`.
//!
//! Each proxy appends to the chain, so its last element is the hop nearest to the edge.

use std::net::{IpAddr, SocketAddr};

use super::{FORWARDED, X_FORWARDED_FOR, X_FORWARDED_HOST, X_FORWARDED_PROTO};
use crate::http::fields::{Fields, text};
use crate::http::scheme::Scheme;

/// The most hops that are considered, counted from the edge.
const HOPS_MAX: usize = 32;

/// The addresses in the chain, the farthest first; `None` for a hop that is not an address.
pub(super) fn hops(headers: &impl Fields) -> Vec<Option<IpAddr>> {
    let mut hops: Vec<Option<IpAddr>> = if headers.has(X_FORWARDED_FOR) {
        list(headers, X_FORWARDED_FOR).map(address).collect()
    } else {
        elements(headers)
            .iter()
            .map(|element| parameter(element, "for").and_then(|node| address(&node)))
            .collect()
    };
    hops.drain(..hops.len().saturating_sub(HOPS_MAX));
    hops
}

/// The scheme of the request to the nearest proxy.
pub(super) fn proto(headers: &impl Fields) -> Option<Scheme> {
    let proto = match list(headers, X_FORWARDED_PROTO).last() {
        Some(proto) => proto.to_owned(),
        None => parameter(elements(headers).last()?, "proto")?,
    };
    match proto.to_ascii_lowercase().as_str() {
        "http" | "ws" => Some(Scheme::Http),
        "https" | "wss" => Some(Scheme::Https),
        _ => None,
    }
}

/// The host of the request to the nearest proxy.
pub(super) fn host(headers: &impl Fields) -> Option<String> {
    let host = match list(headers, X_FORWARDED_HOST).last() {
        Some(host) => host.to_owned(),
        None => parameter(elements(headers).last()?, "host")?,
    };
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b".-_:[]".contains(&byte);
    (!host.is_empty() && host.len() <= 260 && host.bytes().all(plain)).then_some(host)
}

/// The elements of all headers called `name`, split at commas.
fn list<'a>(headers: &'a impl Fields, name: &'static str) -> impl Iterator<Item = &'a str> {
    headers
        .values(name)
        .flat_map(|value| text(value).unwrap_or("?").split(','))
        .map(str::trim)
        .filter(|element| !element.is_empty())
}

/// An address with or without a port: `1.2.3.4`, `1.2.3.4:80`, `::1`, `[::1]`, `[::1]:80`.
fn address(text: &str) -> Option<IpAddr> {
    let bare = text.strip_prefix('[').and_then(|t| t.strip_suffix(']'));
    let address = bare.unwrap_or(text).parse::<IpAddr>().ok();
    let address = address.or_else(|| Some(text.parse::<SocketAddr>().ok()?.ip()))?;
    Some(address.to_canonical())
}

/// The elements of all `Forwarded` headers, split at commas outside of quotes.
fn elements(headers: &impl Fields) -> Vec<String> {
    let values = headers.values(FORWARDED);
    values
        .flat_map(|value| split_unquoted(text(value).unwrap_or("?"), ','))
        .filter(|element| !element.is_empty())
        .collect()
}

/// The unquoted value of `name` in one element of `Forwarded`.
fn parameter(element: &str, name: &str) -> Option<String> {
    split_unquoted(element, ';').iter().find_map(|pair| {
        let (found, value) = pair.split_once('=')?;
        if !found.trim().eq_ignore_ascii_case(name) {
            return None;
        }
        let value = value.trim();
        let quoted = value.strip_prefix('"').and_then(|v| v.strip_suffix('"'));
        Some(quoted.map_or_else(|| value.to_owned(), unescape))
    })
}

fn unescape(quoted: &str) -> String {
    let mut plain = String::with_capacity(quoted.len());
    let mut characters = quoted.chars();
    while let Some(character) = characters.next() {
        plain.extend(match character {
            '\\' => characters.next(),
            other => Some(other),
        });
    }
    plain
}

fn split_unquoted(text: &str, separator: char) -> Vec<String> {
    let mut parts = vec![String::new()];
    let (mut quoted, mut escaped) = (false, false);
    for character in text.chars() {
        if character == separator && !quoted {
            parts.push(String::new());
            continue;
        }
        match character {
            '"' if !escaped => quoted = !quoted,
            _ => {}
        }
        escaped = character == '\\' && quoted && !escaped;
        if let Some(part) = parts.last_mut() {
            part.push(character);
        }
    }
    parts.iter().map(|part| part.trim().to_owned()).collect()
}
