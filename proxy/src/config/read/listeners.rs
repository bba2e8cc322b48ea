//! The listeners for clients, and their TLS.

use std::collections::HashMap;
use std::time::Duration;

use causeway_conf::Span;

use super::super::check::Check;
use super::super::{CertificateFiles, CertificateSource, LISTENER, ListenerConfig, TlsConfig, raw};

const HANDSHAKE_MIN: Duration = Duration::from_millis(100);
const HANDSHAKE_MAX: Duration = Duration::from_secs(60);

pub(super) fn listeners(
    check: &mut Check,
    listeners: Option<Vec<raw::Listener>>,
) -> Vec<ListenerConfig> {
    let Some(listeners) = listeners else {
        let address = check.listener("listeners", LISTENER);
        return address.into_iter().map(ListenerConfig::plain).collect();
    };
    check.require(
        !listeners.is_empty(),
        "listeners",
        "expected at least one listener",
    );
    let mut seen = HashMap::new();
    let mut all = Vec::new();
    for (index, raw) in listeners.into_iter().enumerate() {
        let section = format!("listeners[{index}]");
        let key = format!("{section}.address");
        let Some(address) = check.listener(&key, &raw.address) else {
            continue;
        };
        // Port 0 is any free port, another one each time.
        if address.port() != 0 && seen.insert(address, index).is_some() {
            check.error(&key, format!("duplicate address {address}"));
        }
        all.push(listener(
            check,
            &section,
            raw,
            ListenerConfig::plain(address),
        ));
    }
    all
}

fn listener(
    check: &mut Check,
    section: &str,
    raw: raw::Listener,
    plain: ListenerConfig,
) -> ListenerConfig {
    let key = format!("{section}.redirect_to_https");
    let redirect_to_https = raw
        .redirect_to_https
        .map(|port| check.number(&key, Some(port), 443, 1..=u16::MAX));
    let both = redirect_to_https.is_some() && raw.tls.is_some();
    check.require(
        !both,
        &key,
        "expected no \"tls\" with it: only a plain listener redirects",
    );
    let tls = raw
        .tls
        .and_then(|raw| tls(check, &format!("{section}.tls"), raw));
    ListenerConfig {
        proxy_protocol: raw.proxy_protocol,
        tls,
        redirect_to_https,
        ..plain
    }
}

fn tls(check: &mut Check, section: &str, raw: raw::Tls) -> Option<TlsConfig> {
    let certificates = match (raw.certificates, raw.folder) {
        (Some(files), None) if !files.is_empty() => {
            let files = files.into_iter().map(|pair| CertificateFiles {
                certificate: pair.certificate,
                key: pair.key,
            });
            Some(CertificateSource::Files(files.collect()))
        }
        (None, Some(folder)) => Some(CertificateSource::Folder(folder)),
        _ => {
            check.error(
                section,
                "expected either \"certificates\" with at least one, or \"folder\"",
            );
            None
        }
    };
    let handshake = check.span(
        &format!("{section}.handshake"),
        raw.handshake,
        TlsConfig::HANDSHAKE,
        Span(HANDSHAKE_MIN)..=Span(HANDSHAKE_MAX),
    );
    Some(TlsConfig {
        certificates: certificates?,
        min_version: raw.min_version.unwrap_or(TlsConfig::MIN_VERSION),
        http2: raw.http2.unwrap_or(TlsConfig::HTTP2),
        handshake,
        ticket_keys: raw.ticket_keys,
        client_ca: raw.client_ca,
    })
}
