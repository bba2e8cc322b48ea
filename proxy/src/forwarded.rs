//! Who the client is, and the headers that tell the backend.
//!
//! Only a trusted proxy is believed. From anyone else every `X-Forwarded-*`, `X-Real-IP` and `Forwarded`
//! header is dropped and set anew; so are their spellings with underscores, which some applications take
//! for the same. From a trusted proxy the client is the last address in the chain that is not trusted;
//! what stands before it came from the client itself and is dropped.

mod chain;

use std::fmt::Write as _;
use std::net::IpAddr;

use causeway_conf::AddressRange;
use http::HeaderMap;
use http::header::{FORWARDED, HOST, HeaderName};
use pingora::http::RequestHeader;

use crate::scheme::Scheme;

const X_FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
const X_FORWARDED_HOST: HeaderName = HeaderName::from_static("x-forwarded-host");
const X_FORWARDED_PORT: HeaderName = HeaderName::from_static("x-forwarded-port");
const X_FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");
const X_REAL_IP: HeaderName = HeaderName::from_static("x-real-ip");
const X_REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// The longest request id that is kept.
const REQUEST_ID_BYTES_MAX: usize = 128;

/// Decides what of the forwarding headers to believe, and writes ours.
#[derive(Debug, Clone)]
pub(crate) struct Forwarder {
    trusted: Vec<AddressRange>,
}

/// What is known about the client of one request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Forwarded {
    /// The client itself, as far as trusted proxies tell.
    pub(crate) client: IpAddr,
    /// The trusted proxies between the client and us, the nearest to the client first.
    via: Vec<IpAddr>,
    /// What the client used, which a proxy that ends TLS knows better than we.
    pub(crate) scheme: Scheme,
    /// The host that the client asked for, with its port if it named one.
    host: Option<String>,
    port: u16,
    pub(crate) request_id: String,
    /// Whether `peer` is a trusted proxy.
    trusted: bool,
}

impl Forwarder {
    pub(crate) fn new(trusted: Vec<AddressRange>) -> Self {
        Self { trusted }
    }

    /// What `headers` say of the client, if `peer` may be believed. `scheme` is the one of our listener.
    pub(crate) fn read(&self, headers: &HeaderMap, peer: IpAddr, scheme: Scheme) -> Forwarded {
        let peer = peer.to_canonical();
        let trusted = self.trusts(peer);
        let own_host = text(headers, &HOST).map(str::to_owned);
        if !trusted {
            return Forwarded {
                client: peer,
                via: Vec::new(),
                scheme,
                port: port_of(own_host.as_deref()).unwrap_or(scheme.default_port()),
                host: own_host,
                request_id: new_request_id(),
                trusted,
            };
        }
        let hops = chain::hops(headers);
        let (client, via) = self.split(peer, &hops);
        let scheme = chain::proto(headers).unwrap_or(scheme);
        let host = chain::host(headers).or(own_host);
        let port = text(headers, &X_FORWARDED_PORT)
            .and_then(|port| port.parse().ok().filter(|port| *port != 0))
            .or(port_of(host.as_deref()))
            .unwrap_or(scheme.default_port());
        let request_id = text(headers, &X_REQUEST_ID)
            .filter(|id| is_request_id(id))
            .map_or_else(new_request_id, str::to_owned);
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

    /// Replaces the forwarding headers of `request` by what `forwarded` says.
    pub(crate) fn write(&self, forwarded: &Forwarded, request: &mut RequestHeader) {
        let stale: Vec<HeaderName> = request
            .headers
            .keys()
            .filter(|name| is_forwarding(name.as_str(), forwarded.trusted))
            .cloned()
            .collect();
        for name in stale {
            request.remove_header(&name);
        }
        let mut chain = forwarded.client.to_string();
        for hop in &forwarded.via {
            // Writing to a string does not fail.
            let _ = write!(chain, ", {hop}");
        }
        insert(request, X_FORWARDED_FOR, &chain);
        insert(request, X_FORWARDED_PROTO, forwarded.scheme.as_str());
        if let Some(host) = &forwarded.host {
            insert(request, X_FORWARDED_HOST, host);
        }
        insert(request, X_FORWARDED_PORT, &forwarded.port.to_string());
        insert(request, X_REAL_IP, &forwarded.client.to_string());
        insert(request, FORWARDED, &rfc7239(forwarded));
        insert(request, X_REQUEST_ID, &forwarded.request_id);
    }

    fn trusts(&self, address: IpAddr) -> bool {
        self.trusted.iter().any(|range| range.contains(address))
    }

    /// The client and the proxies after it, given what the proxies before `peer` said.
    ///
    /// A hop that is no address ends the chain: whoever wrote it is as far as we can see.
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

/// Whether a header is dropped before ours are written.
///
/// Others of the `X-Forwarded-` family (`-Prefix`, `-Server`) are kept from a trusted proxy.
fn is_forwarding(name: &str, trusted: bool) -> bool {
    // Spares the others, which are nearly all, the allocation.
    if !name.starts_with(['x', 'f']) {
        return false;
    }
    let dashed = name.replace('_', "-");
    let ours = [
        &X_FORWARDED_FOR,
        &X_FORWARDED_HOST,
        &X_FORWARDED_PORT,
        &X_FORWARDED_PROTO,
        &X_REAL_IP,
        &X_REQUEST_ID,
        &FORWARDED,
    ];
    let spelled = name.contains('_');
    ours.iter().any(|our| our.as_str() == dashed)
        || (dashed.starts_with("x-forwarded-") && (!trusted || spelled))
}

fn rfc7239(forwarded: &Forwarded) -> String {
    let node = |address: IpAddr| match address {
        IpAddr::V4(address) => format!("for={address}"),
        IpAddr::V6(address) => format!("for=\"[{address}]\""),
    };
    let mut header = node(forwarded.client);
    if let Some(host) = &forwarded.host {
        let quoted = host.replace('\\', "\\\\").replace('"', "\\\"");
        // Writing to a string does not fail.
        let _ = write!(header, ";host=\"{quoted}\"");
    }
    header.push_str(";proto=");
    header.push_str(forwarded.scheme.as_str());
    for hop in &forwarded.via {
        header.push_str(", ");
        header.push_str(&node(*hop));
    }
    header
}

fn text<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Option<&'a str> {
    headers.get(name)?.to_str().ok().map(str::trim)
}

fn port_of(host: Option<&str>) -> Option<u16> {
    let (name, port) = host?.rsplit_once(':')?;
    let whole = !name.contains(':') || name.ends_with(']');
    port.parse().ok().filter(|port| whole && *port != 0)
}

fn insert(request: &mut RequestHeader, name: HeaderName, value: &str) {
    let inserted = request.insert_header(name, value);
    debug_assert!(inserted.is_ok(), "made of checked parts");
}

fn is_request_id(id: &str) -> bool {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
    (1..=REQUEST_ID_BYTES_MAX).contains(&id.len()) && id.bytes().all(plain)
}

/// 128 random bits: enough to find a request in the logs, and nothing that anybody relies on.
fn new_request_id() -> String {
    format!("{:032x}", fastrand::u128(..))
}

#[cfg(test)]
mod tests;
