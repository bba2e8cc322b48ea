//! TLS for the subscriber's connection.

use std::io;
use std::sync::Arc;

use rustls::ClientConfig;
use rustls::RootCertStore;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::ServerName;
use rustls::pki_types::pem::PemObject;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use crate::config::RedisTls;

/// Starts TLS to `host` on `stream`; the certificate has to name the host and be signed by a trusted CA.
pub(super) async fn connect(
    stream: TcpStream,
    host: &str,
    tls: &RedisTls,
) -> io::Result<TlsStream<TcpStream>> {
    let name = ServerName::try_from(host.to_owned()).map_err(io::Error::other)?;
    let config = ClientConfig::builder()
        .with_root_certificates(trusted(tls)?)
        .with_no_client_auth();
    let connector = TlsConnector::from(Arc::new(config));
    connector.connect(name, stream).await
}

fn trusted(tls: &RedisTls) -> io::Result<RootCertStore> {
    let mut trusted = RootCertStore::empty();
    match &tls.ca {
        Some(pem) => {
            for certificate in CertificateDer::pem_slice_iter(pem) {
                let certificate = certificate.map_err(io::Error::other)?;
                trusted.add(certificate).map_err(io::Error::other)?;
            }
        }
        None => {
            let found = rustls_native_certs::load_native_certs()?;
            trusted.add_parsable_certificates(found);
        }
    }
    Ok(trusted)
}
