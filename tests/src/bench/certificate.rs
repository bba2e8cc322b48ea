//! The certificate that every edge serves TLS with, and the clients that trust it.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::Result;
use rustls::client::Resumption;
use rustls::crypto::ring;
use rustls::{ClientConfig, RootCertStore};

/// The names that it is for.
pub(crate) const NAME: &str = "bench.example";

/// A certificate on a key of 256 bits on P-256, in the files that each edge likes.
pub(crate) struct Certificate {
    /// Holds `certificate` and `key`, and nothing else.
    pub(crate) folder: PathBuf,
    pub(crate) certificate: PathBuf,
    pub(crate) key: PathBuf,
    /// Both in one file.
    pub(crate) both: PathBuf,
    /// Clients that trust it. They resume nothing, so that each connection costs a whole handshake.
    pub(crate) clients: Arc<ClientConfig>,
}

impl Certificate {
    /// Makes one below `directory`.
    pub(crate) fn new(directory: &Path) -> Result<Self> {
        let made = rcgen::generate_simple_self_signed([NAME.to_owned()])?;
        let (certificate_pem, key_pem) = (made.cert.pem(), made.signing_key.serialize_pem());
        let folder = directory.join("tls");
        fs::create_dir(&folder)?;
        let (certificate, key) = (folder.join("bench.crt"), folder.join("bench.key"));
        let both = directory.join("both.pem");
        fs::write(&certificate, &certificate_pem)?;
        fs::write(&key, &key_pem)?;
        fs::write(&both, certificate_pem + &key_pem)?;
        let mut roots = RootCertStore::empty();
        roots.add(made.cert.der().clone())?;
        let provider = Arc::new(ring::default_provider());
        let mut clients = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()?
            .with_root_certificates(roots)
            .with_no_client_auth();
        clients.resumption = Resumption::disabled();
        Ok(Self {
            folder,
            certificate,
            key,
            both,
            clients: Arc::new(clients),
        })
    }
}
