//! TLS towards the backends of one pool: whom to believe, and who the edge is.
//!
//! Tunnels and probes connect here; for plain requests Pingora does, by the same settings. Without `verify` a backend may be
//! anybody: what is said stays secret from those who only listen.

use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::SystemTime;

use pingora::protocols::IO;
use pingora::protocols::tls::CaType;
use pingora::upstreams::peer::{HttpPeer, Scheme};
use pingora::utils::tls::{CertKey, WrappedX509, parse_x509};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{ResolvesClientCert, UnbufferedClientConnection};
use rustls::crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::sign::SingleCertAndKey;
use rustls::{
    CertificateError as Distrust, ClientConfig, DigitallySignedStruct, RootCertStore,
    SignatureScheme,
};
use webpki::KeyUsage;

use crate::config::backend::Address;
use crate::config::{BackendTls, CertificateFiles};
use crate::tls::TlsError;
use crate::tls::TlsStream;
use crate::tls::authorities_of;
use crate::tls::certificates;
use crate::tls::read_pem;

/// A file without certificates.
const NO_AUTHORITIES: &str = "/dev/null";

/// A connection to a backend.
pub(crate) type ClientStream<T> = TlsStream<UnbufferedClientConnection, T>;

/// Why there is no TLS connection to a backend that can be reached.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ConnectError {
    /// It is not who it should be, or does not speak TLS as it should.
    #[error("TLS: {0}")]
    Wrong(String),
    /// The connection ended or broke.
    #[error("the connection broke during the TLS handshake")]
    Broken(#[from] io::Error),
}

/// Speaks TLS to the backends of one pool.
pub(crate) struct Connector {
    config: Arc<ClientConfig>,
    server_name: Option<ServerName<'static>>,
    verify: bool,
    /// For Pingora: the authorities and the certificate that `config` has already.
    authorities: Option<Arc<CaType>>,
    identity: Option<Arc<CertKey>>,
    /// Tells kept connections apart that were made by other settings.
    number: u64,
}

impl std::fmt::Debug for Connector {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Connector").finish_non_exhaustive()
    }
}

impl Connector {
    /// Reads the files that `config` names.
    ///
    /// # Errors
    ///
    /// [`TlsError`] for the first that is wrong.
    pub(crate) fn load(config: &BackendTls) -> Result<Self, TlsError> {
        static NUMBER: AtomicU64 = AtomicU64::new(1);
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let builder = ClientConfig::builder_with_provider(Arc::clone(&provider))
            .with_safe_default_protocol_versions()?;
        let mut authorities = None;
        let builder = if config.verify {
            let mut roots = RootCertStore::empty();
            match &config.ca {
                Some(path) => {
                    let certificates = authorities_of(path)?;
                    authorities = Some(certificates.iter().map(wrapped).collect());
                    for certificate in certificates {
                        roots.add(certificate).map_err(|error| {
                            let (path, why) = (path.clone(), error.to_string());
                            TlsError::Authority { path, why }
                        })?;
                    }
                }
                None => authorities = add_those_of_the_machine(&mut roots)?,
            }
            builder.with_root_certificates(roots)
        } else {
            let anybody = Arc::new(Anybody(Arc::clone(&provider)));
            builder
                .dangerous()
                .with_custom_certificate_verifier(anybody)
        };
        let (mut rustls, identity) = match &config.certificate {
            None => (builder.with_no_client_auth(), None),
            Some(files) => {
                let (resolver, identity) = identity_of(files, &provider)?;
                (builder.with_client_cert_resolver(resolver), Some(identity))
            }
        };
        rustls.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(Self {
            config: Arc::new(rustls),
            server_name: config.server_name.clone(),
            verify: config.verify,
            authorities,
            identity,
            number: NUMBER.fetch_add(1, Ordering::Relaxed),
        })
    }

    /// Tells what was made by these settings from what was made by others; never 0.
    pub(crate) fn number(&self) -> u64 {
        self.number
    }

    /// Does the handshake with the backend at `address`, to which `transport` leads.
    ///
    /// # Errors
    ///
    /// [`ConnectError`]; the connection is closed.
    ///
    /// # Cancel safety
    ///
    /// Dropping it closes the connection.
    pub(crate) async fn connect<T: IO>(
        &self,
        address: &Address,
        transport: T,
    ) -> Result<ClientStream<T>, ConnectError> {
        let name = self.name_of(address);
        let wrong = |error: &rustls::Error| ConnectError::Wrong(in_words(error, &name));
        let tls = UnbufferedClientConnection::new(Arc::clone(&self.config), name.clone());
        let tls = Box::new(tls.map_err(|error| wrong(&error))?);
        let shaken = TlsStream::shake_hands(tls, transport).await;
        shaken.map_err(|error| {
            let inner = error.get_ref().map(|inner| inner.downcast_ref());
            match inner {
                Some(Some(error)) => wrong(error),
                Some(None) => ConnectError::Wrong(error.to_string()),
                None => ConnectError::Broken(error),
            }
        })
    }

    /// Has Pingora do the same when it connects `peer` to the backend at `address`.
    pub(crate) fn prepare(&self, peer: &mut HttpPeer, address: &Address) {
        peer.scheme = Scheme::HTTPS;
        // Pingora verifies nothing without a name, so it has to be there where that matters.
        peer.sni = self.name_of(address).to_str().into_owned();
        peer.options.verify_cert = self.verify;
        peer.options.verify_hostname = self.verify;
        peer.options.ca = self.authorities.clone();
        peer.client_cert_key = self.identity.clone();
        peer.group_key |= self.number << 1;
    }

    /// Whom the certificate of the backend at `address` has to name.
    fn name_of(&self, address: &Address) -> ServerName<'static> {
        let of_address = || match address {
            Address::Ip(address) => Some(ServerName::from(address.ip())),
            Address::Name { host, .. } => ServerName::try_from(host.clone()).ok(),
            Address::Unix(_) => None,
        };
        let name = self.server_name.clone().or_else(of_address);
        // The configuration lets none be without where it is verified.
        name.unwrap_or_else(|| ServerName::from(std::net::Ipv4Addr::LOCALHOST))
    }
}

fn wrapped(certificate: &CertificateDer<'static>) -> WrappedX509 {
    WrappedX509::new(certificate.to_vec(), parse_x509)
}

/// What signs on behalf of the edge, for rustls and for Pingora.
fn identity_of(
    files: &CertificateFiles,
    provider: &CryptoProvider,
) -> Result<(Arc<dyn ResolvesClientCert>, Arc<CertKey>), TlsError> {
    let now = SystemTime::now();
    let pair = certificates::check(files, provider, now, KeyUsage::client_auth())?;
    let wrong = |why: String| TlsError::Authority {
        path: files.key.clone(),
        why,
    };
    let pem = read_pem(&files.key).map_err(wrong)?;
    let key = PrivateKeyDer::from_pem_slice(&pem).map_err(|error| wrong(error.to_string()))?;
    let chain = pair.cert.iter().map(|certificate| certificate.to_vec());
    let identity = CertKey::new(chain.collect(), key.secret_der().to_vec());
    let resolver = SingleCertAndKey::from(pair);
    Ok((Arc::new(resolver), Arc::new(identity)))
}

/// Adds the authorities that this machine trusts to `roots`. Returns them for Pingora, if it has not got them itself.
fn add_those_of_the_machine(roots: &mut RootCertStore) -> Result<Option<Arc<CaType>>, TlsError> {
    let (found, why) = match rustls_native_certs::load_native_certs() {
        Ok(found) => (found, String::new()),
        Err(error) => (Vec::new(), format!(" ({error})")),
    };
    let mut taken = Vec::new();
    for authority in found {
        // Among many some are of a kind that rustls does not know.
        if roots.add(authority.clone()).is_ok() {
            taken.push(authority);
        }
    }
    if taken.is_empty() {
        return Err(TlsError::NoAuthority(why));
    }
    Ok((!pingora_has_authorities()).then(|| taken.iter().map(wrapped).collect()))
}

/// Whether Pingora can read the authorities that this machine trusts. It panics where it cannot: if `SSL_CERT_FILE` names a file that
/// is not there, or one of them is of a kind that rustls does not know. Looked at once, as Pingora does.
fn pingora_has_authorities() -> bool {
    static HAS: OnceLock<bool> = OnceLock::new();
    *HAS.get_or_init(|| {
        let mut roots = RootCertStore::empty();
        let found = rustls_native_certs::load_native_certs();
        found.is_ok_and(|found| found.into_iter().all(|it| roots.add(it).is_ok()))
    })
}

/// What Pingora is to read in place of the authorities that this machine trusts, where it cannot read those; nothing is in it.
pub(crate) fn no_authorities_file() -> Option<String> {
    (!pingora_has_authorities()).then(|| NO_AUTHORITIES.to_owned())
}

/// What is wrong with a backend that should be `name`.
fn in_words(error: &rustls::Error, name: &ServerName<'_>) -> String {
    let rustls::Error::InvalidCertificate(distrust) = error else {
        return error.to_string();
    };
    let name = name.to_str();
    match distrust {
        Distrust::Expired | Distrust::ExpiredContext { .. } => {
            "its certificate has expired".to_owned()
        }
        Distrust::NotValidYet | Distrust::NotValidYetContext { .. } => {
            "its certificate is not valid yet".to_owned()
        }
        Distrust::NotValidForName | Distrust::NotValidForNameContext { .. } => {
            format!("its certificate is not for \"{name}\"")
        }
        // A stranger may bear the name of somebody who is trusted.
        Distrust::UnknownIssuer | Distrust::BadSignature => {
            "its certificate is signed by nobody who is trusted here".to_owned()
        }
        _ => error.to_string(),
    }
}

/// Takes every certificate, but has its owner prove that it has the key.
#[derive(Debug)]
struct Anybody(Arc<CryptoProvider>);

impl ServerCertVerifier for Anybody {
    fn verify_server_cert(
        &self,
        _certificate: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _name: &ServerName<'_>,
        _ocsp: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let known = &self.0.signature_verification_algorithms;
        verify_tls12_signature(message, certificate, signed, known)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let known = &self.0.signature_verification_algorithms;
        verify_tls13_signature(message, certificate, signed, known)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}
