//! TLS to the backends of a pool.

use rustls::pki_types::ServerName;

use super::super::check::Check;
use super::super::{BackendConfig, BackendTls, CertificateFiles, raw};
use crate::config::backend::Address;

/// `section` is the key of the pool, whose `backends` these are.
pub(super) fn backend_tls(
    check: &mut Check,
    section: &str,
    raw: raw::BackendTls,
    backends: &[BackendConfig],
) -> BackendTls {
    let verify = raw.verify.unwrap_or(BackendTls::VERIFY);
    let key = format!("{section}.tls.ca");
    check.require(
        verify || raw.ca.is_none(),
        &key,
        "expected none with \"verify: false\", which accepts any certificate",
    );
    let server_name = raw.server_name.and_then(|name| {
        let parsed = ServerName::try_from(name.clone()).ok();
        if parsed.is_none() {
            let name = name.escape_debug();
            check.error(
                &format!("{section}.tls.server_name"),
                format!("\"{name}\": expected a host name or an IP address"),
            );
        }
        parsed
    });
    if verify && server_name.is_none() {
        for (index, backend) in backends.iter().enumerate() {
            let has_name = match &backend.address {
                Address::Ip(_) => true,
                Address::Name { host, .. } => ServerName::try_from(host.as_str()).is_ok(),
                Address::Unix(_) => false,
            };
            check.require(
                has_name,
                &format!("{section}.backends[{index}].address"),
                "expected \"tls.server_name\" for its pool: this address has no name that a certificate can be verified against",
            );
        }
    }
    let certificate = match (raw.certificate, raw.key) {
        (Some(certificate), Some(key)) => Some(CertificateFiles { certificate, key }),
        (None, None) => None,
        _ => {
            check.error(
                &format!("{section}.tls"),
                "expected \"certificate\" and \"key\" together",
            );
            None
        }
    };
    BackendTls {
        verify,
        ca: raw.ca,
        server_name,
        certificate,
    }
}
