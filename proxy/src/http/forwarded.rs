//! The address of the client, and the forwarding headers for the backend.
//!
//! Forwarding headers are used only if they come from a trusted proxy. From other peers every `X-Forwarded-*`, `X-Real-IP` and
//! `Forwarded` header is removed and set by the edge. Spellings with underscores, which some applications treat as the same
//! header, are removed too, also those of headers that define host, framing or connection. Behind a trusted proxy the client is
//! the last address in the chain that is not trusted; addresses before it were sent by the client itself and are dropped.

mod chain;

use std::borrow::Cow;
use std::fmt::Write as _;
use std::net::IpAddr;

use crate::http::fields::{Fields, Request};
use crate::http::scheme::Scheme;
use causeway_conf::AddressRange;

const X_FORWARDED_FOR: &str = "x-forwarded-for";
const X_FORWARDED_HOST: &str = "x-forwarded-host";
const X_FORWARDED_PORT: &str = "x-forwarded-port";
const X_FORWARDED_PROTO: &str = "x-forwarded-proto";
const X_REAL_IP: &str = "x-real-ip";
const X_REQUEST_ID: &str = "x-request-id";
const FORWARDED: &str = "forwarded";

/// The longest text of an address.
const ADDRESS_BYTES: usize = "ffff:ffff:ffff:ffff:ffff:ffff:255.255.255.255".len();

/// The longest request id that is kept.
const REQUEST_ID_BYTES_MAX: usize = 128;

/// Reads the forwarding headers of trusted proxies, and writes those for the backend.
#[derive(Debug, Clone)]
pub(crate) struct Forwarder {
    trusted: Vec<AddressRange>,
}

/// What the forwarding headers of one request say, as far as they are trusted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Forwarded {
    /// The address of the client, as reported by trusted proxies.
    pub(crate) client: IpAddr,
    /// The trusted proxies between the client and the edge, the nearest to the client first.
    via: Vec<IpAddr>,
    /// The scheme that the client used; a proxy that terminates TLS reports it.
    pub(crate) scheme: Scheme,
    /// The host of the client's request, with its port if it has one.
    host: Option<Box<str>>,
    port: u16,
    request_id: Box<str>,
    /// Whether `peer` is a trusted proxy.
    trusted: bool,
}

impl Forwarded {
    /// The id of the request.
    pub(crate) fn request_id(&self) -> &str {
        &self.request_id
    }

    /// Whether it came from a trusted proxy.
    pub(crate) fn is_trusted(&self) -> bool {
        self.trusted
    }
}

impl Forwarder {
    pub(crate) fn new(trusted: Vec<AddressRange>) -> Self {
        Self { trusted }
    }

    /// Reads `headers` if `peer` is trusted, else ignores them. `scheme` is that of the listener.
    pub(crate) fn read(&self, headers: &impl Request, peer: IpAddr, scheme: Scheme) -> Forwarded {
        let peer = peer.to_canonical();
        let trusted = self.trusts(peer);
        // In HTTP/2 it is in `:authority`.
        let own_host = || headers.host().map(Box::from);
        if !trusted {
            let host = own_host();
            return Forwarded {
                client: peer,
                via: Vec::new(),
                scheme,
                port: port_of(host.as_deref()).unwrap_or(scheme.default_port()),
                host,
                request_id: new_request_id(),
                trusted,
            };
        }
        let hops = chain::hops(headers);
        let (client, via) = self.split(peer, &hops);
        let scheme = chain::proto(headers).unwrap_or(scheme);
        let host = chain::host(headers).map(String::into_boxed_str);
        let host = host.or_else(own_host);
        let text = |name| headers.text(name).map(str::trim);
        let port = text(X_FORWARDED_PORT)
            .and_then(|port| port.parse().ok().filter(|port| *port != 0))
            .or(port_of(host.as_deref()))
            .unwrap_or(scheme.default_port());
        let request_id = text(X_REQUEST_ID)
            .filter(|id| is_request_id(id))
            .map_or_else(new_request_id, Box::from);
        Forwarded {
            client,
            via,
            scheme,
            host,
            port,
            request_id,
            trusted,
        }
    }

    /// Replaces the forwarding headers of `request` by those of `forwarded`.
    pub(crate) fn write(&self, forwarded: &Forwarded, request: &mut impl Fields) {
        request.remove_if(|name| is_dropped(name, forwarded.trusted));
        let address = text_of(forwarded.client);
        let mut chain = Cow::Borrowed(&*address);
        for hop in &forwarded.via {
            // Writing to a string does not fail.
            let _ = write!(chain.to_mut(), ", {hop}");
        }
        let scheme = forwarded.scheme;
        request.append_text("X-Forwarded-For", &chain);
        request.append_text("X-Forwarded-Proto", scheme.as_str());
        if let Some(host) = &forwarded.host {
            request.append_text("X-Forwarded-Host", host);
        }
        match forwarded.port == scheme.default_port() {
            true => request.append_text("X-Forwarded-Port", scheme.default_port_text()),
            false => request.append_text("X-Forwarded-Port", &forwarded.port.to_string()),
        }
        request.append_text("X-Real-IP", &address);
        request.append_text("Forwarded", &rfc7239(forwarded, &address));
        request.append_text("X-Request-Id", &forwarded.request_id);
    }

    fn trusts(&self, address: IpAddr) -> bool {
        self.trusted.iter().any(|range| range.contains(address))
    }

    /// The client and the proxies after it, given the hops that `peer` reported.
    ///
    /// A hop that is not an address ends the chain: the proxy that wrote it then counts as the client.
    fn split(&self, peer: IpAddr, hops: &[Option<IpAddr>]) -> (IpAddr, Vec<IpAddr>) {
        let mut client = peer;
        let mut via = Vec::new();
        for hop in hops.iter().rev() {
            let Some(hop) = *hop else { break };
            via.insert(0, client);
            client = hop;
            if !self.trusts(hop) {
                break;
            }
        }
        (client, via)
    }
}

/// The headers that the edge sets.
const SET_BY_EDGE: [&str; 7] = [
    X_FORWARDED_FOR,
    X_FORWARDED_HOST,
    X_FORWARDED_PORT,
    X_FORWARDED_PROTO,
    X_REAL_IP,
    X_REQUEST_ID,
    FORWARDED,
];

/// Headers whose spellings with underscores are removed: CGI and similar interfaces cannot tell them from the real ones.
const LOOKALIKES: [&str; 10] = [
    "connection",
    "content-length",
    "cookie",
    "host",
    "http2-settings",
    "keep-alive",
    "proxy-connection",
    "te",
    "transfer-encoding",
    "upgrade",
];

/// Whether a header is removed before those of the edge are written.
///
/// Other `X-Forwarded-` headers (`-Prefix`, `-Server`) of a trusted proxy are kept. `Proxy` is always removed: CGI programs would
/// use it as their own proxy setting (httpoxy).
fn is_dropped(name: &[u8], trusted: bool) -> bool {
    let has_underscore = name.contains(&b'_');
    // A fast path for most headers.
    let may_be = name
        .first()
        .is_some_and(|first| b"xfphXFPH".contains(first));
    if !has_underscore && (!may_be || name.eq_ignore_ascii_case(b"host")) {
        return false;
    }
    let name = String::from_utf8_lossy(name).to_ascii_lowercase();
    let dashed = name.replace('_', "-");
    SET_BY_EDGE.contains(&&*dashed)
        || (dashed.starts_with("x-forwarded-") && (!trusted || has_underscore))
        || (has_underscore && LOOKALIKES.contains(&&*dashed))
        || ["proxy", "http2-settings"].contains(&&*name)
}

/// The value of the `Forwarded` header; `address` is the text of the client's address.
fn rfc7239(forwarded: &Forwarded, address: &str) -> String {
    let node = |header: &mut String, is_v6, address: &str| {
        let (open, close) = if is_v6 { ("\"[", "]\"") } else { ("", "") };
        header.extend(["for=", open, address, close]);
    };
    let host = forwarded.host.as_deref();
    let hops = forwarded.via.len() * (ADDRESS_BYTES + ", for=".len());
    let room = ";host=\"\";proto=https".len() + host.map_or(0, str::len) + 2 * ADDRESS_BYTES + hops;
    let mut header = String::with_capacity(room);
    node(&mut header, forwarded.client.is_ipv6(), address);
    if let Some(host) = host {
        header.push_str(";host=\"");
        if host.bytes().any(|byte| matches!(byte, b'\\' | b'"')) {
            header.push_str(&host.replace('\\', "\\\\").replace('"', "\\\""));
        } else {
            header.push_str(host);
        }
        header.push('"');
    }
    header.extend([";proto=", forwarded.scheme.as_str()]);
    for hop in &forwarded.via {
        header.push_str(", ");
        node(&mut header, hop.is_ipv6(), &hop.to_string());
    }
    header
}

fn port_of(host: Option<&str>) -> Option<u16> {
    let host = host?;
    let colon = host.bytes().rposition(|byte| byte == b':')?;
    let (name, port) = (&host[..colon], &host[colon + 1..]);
    let whole = !name.contains(':') || name.ends_with(']');
    port.parse().ok().filter(|port| whole && *port != 0)
}

/// An address as text. Each request needs one, mostly IPv4, for which this takes a fifth of the time of `Display`.
fn text_of(address: IpAddr) -> String {
    let mut text = String::with_capacity(ADDRESS_BYTES);
    let IpAddr::V4(address) = address else {
        // Writing to a string does not fail.
        let _ = write!(text, "{address}");
        return text;
    };
    for (at, octet) in address.octets().into_iter().enumerate() {
        if 0 < at {
            text.push('.');
        }
        let digits = [octet / 100, octet / 10 % 10, octet % 10];
        let leading = usize::from(octet < 100) + usize::from(octet < 10);
        text.extend(
            digits[leading..]
                .iter()
                .map(|&digit| char::from(b'0' + digit)),
        );
    }
    text
}

fn is_request_id(id: &str) -> bool {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
    (1..=REQUEST_ID_BYTES_MAX).contains(&id.len()) && id.bytes().all(plain)
}

/// 128 random bits: unique enough to find a request in the logs; not a secret.
fn new_request_id() -> Box<str> {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let mut text = [0; 32];
    for (pair, byte) in text
        .chunks_exact_mut(2)
        .zip(fastrand::u128(..).to_be_bytes())
    {
        pair.copy_from_slice(&[
            DIGITS[usize::from(byte >> 4)],
            DIGITS[usize::from(byte & 15)],
        ]);
    }
    std::str::from_utf8(&text).expect("digits are ASCII").into()
}

#[cfg(test)]
mod tests;
