//! TLS to the backends of one pool: which certificates are trusted, and the client certificate of the edge.
//!
//! Tunnels and probes connect here; plain requests of a mounted edge connect through Pingora, with the same settings. Without
//! `verify` the backend is not authenticated: TLS then protects only against passive eavesdropping.

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
    CertificateError as CertificateProblem, ClientConfig, DigitallySignedStruct, RootCertStore,
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
use crate::tls::record::SecretLog;

/// A file that contains no certificates.
const NO_AUTHORITIES: &str = "/dev/null";

/// A TLS connection to a backend.
pub(crate) type ClientStream<T> = TlsStream<UnbufferedClientConnection, T>;

/// Why the TLS handshake with a backend failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ConnectError {
    /// Its certificate is not trusted, or it violates the protocol.
    #[error("TLS: {0}")]
    Wrong(String),
    /// The connection closed or failed.
    #[error("the connection broke during the TLS handshake")]
    Broken(#[from] io::Error),
}

/// Makes TLS connections to the backends of one pool.
pub(crate) struct Connector {
    config: Arc<ClientConfig>,
    server_name: Option<ServerName<'static>>,
    verify: bool,
    /// For Pingora: the same authorities and client certificate as in `config`.
    authorities: Option<Arc<CaType>>,
    identity: Option<Arc<CertKey>>,
    /// Distinguishes idle connections that were made with other settings.
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
    /// [`TlsError`] for the first that cannot be used.
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
                    authorities = Some(certificates.iter().map(to_pingora).collect());
                    for certificate in certificates {
                        roots.add(certificate).map_err(|error| {
                            let (path, why) = (path.clone(), error.to_string());
                            TlsError::Authority { path, why }
                        })?;
                    }
                }
                None => authorities = add_system_authorities(&mut roots)?,
            }
            builder.with_root_certificates(roots)
        } else {
            let accept_any = Arc::new(AcceptAnyCertificate(Arc::clone(&provider)));
            builder
                .dangerous()
                .with_custom_certificate_verifier(accept_any)
        };
        let (mut rustls, identity) = match &config.certificate {
            None => (builder.with_no_client_auth(), None),
            Some(files) => {
                let (resolver, identity) = identity_of(files, &provider)?;
                (builder.with_client_cert_resolver(resolver), Some(identity))
            }
        };
        rustls.alpn_protocols = vec![b"http/1.1".to_vec()];
        // A tunnel goes on without rustls.
        rustls.enable_secret_extraction = true;
        rustls.key_log = Arc::new(SecretLog);
        Ok(Self {
            config: Arc::new(rustls),
            server_name: config.server_name.clone(),
            verify: config.verify,
            authorities,
            identity,
            number: NUMBER.fetch_add(1, Ordering::Relaxed),
        })
    }

    /// A number that identifies these settings; never 0.
    pub(crate) fn number(&self) -> u64 {
        self.number
    }

    /// Does the handshake over `transport`, a connection to the backend at `address`.
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
        let failed = |error: &rustls::Error| ConnectError::Wrong(error_text(error, &name));
        let tls = UnbufferedClientConnection::new(Arc::clone(&self.config), name.clone());
        let tls = Box::new(tls.map_err(|error| failed(&error))?);
        let connected = TlsStream::handshake(tls, transport, Vec::new()).await;
        connected.map_err(|error| {
            let inner = error.get_ref().map(|inner| inner.downcast_ref());
            match inner {
                Some(Some(error)) => failed(error),
                Some(None) => ConnectError::Wrong(error.to_string()),
                None => ConnectError::Broken(error),
            }
        })
    }

    /// Sets the same options on `peer`, for connections that Pingora makes to the backend at `address`.
    pub(crate) fn prepare(&self, peer: &mut HttpPeer, address: &Address) {
        peer.scheme = Scheme::HTTPS;
        // Pingora does not verify without a name, so there has to be one.
        peer.sni = self.name_of(address).to_str().into_owned();
        peer.options.verify_cert = self.verify;
        peer.options.verify_hostname = self.verify;
        peer.options.ca = self.authorities.clone();
        peer.client_cert_key = self.identity.clone();
        peer.group_key |= self.number << 1;
    }

    /// The name that the certificate of the backend at `address` has to be for.
    fn name_of(&self, address: &Address) -> ServerName<'static> {
        let of_address = || match address {
            Address::Ip(address) => Some(ServerName::from(address.ip())),
            Address::Name { host, .. } => ServerName::try_from(host.clone()).ok(),
            Address::Unix(_) => None,
        };
        let name = self.server_name.clone().or_else(of_address);
        // The configuration requires a name wherever certificates are verified.
        name.unwrap_or_else(|| ServerName::from(std::net::Ipv4Addr::LOCALHOST))
    }
}

fn to_pingora(certificate: &CertificateDer<'static>) -> WrappedX509 {
    WrappedX509::new(certificate.to_vec(), parse_x509)
}

/// The client certificate of the edge, for rustls and for Pingora.
fn identity_of(
    files: &CertificateFiles,
    provider: &CryptoProvider,
) -> Result<(Arc<dyn ResolvesClientCert>, Arc<CertKey>), TlsError> {
    let now = SystemTime::now();
    let pair = certificates::check(files, provider, now, KeyUsage::client_auth())?;
    let unusable = |why: String| TlsError::Authority {
        path: files.key.clone(),
        why,
    };
    let pem = read_pem(&files.key).map_err(unusable)?;
    let key = PrivateKeyDer::from_pem_slice(&pem).map_err(|error| unusable(error.to_string()))?;
    let chain = pair.cert.iter().map(|certificate| certificate.to_vec());
    let identity = CertKey::new(chain.collect(), key.secret_der().to_vec());
    let resolver = SingleCertAndKey::from(pair);
    Ok((Arc::new(resolver), Arc::new(identity)))
}

/// Adds the authorities that the system trusts to `roots`. Returns them for Pingora, if it cannot read them itself.
fn add_system_authorities(roots: &mut RootCertStore) -> Result<Option<Arc<CaType>>, TlsError> {
    let (found, why) = match rustls_native_certs::load_native_certs() {
        Ok(found) => (found, String::new()),
        Err(error) => (Vec::new(), format!(" ({error})")),
    };
    let mut added = Vec::new();
    for authority in found {
        // Some may be of a kind that rustls does not support.
        if roots.add(authority.clone()).is_ok() {
            added.push(authority);
        }
    }
    if added.is_empty() {
        return Err(TlsError::NoAuthority(why));
    }
    Ok((!pingora_has_authorities()).then(|| added.iter().map(to_pingora).collect()))
}

/// Whether Pingora can read the authorities that the system trusts. Pingora panics if it cannot: if `SSL_CERT_FILE` names a
/// missing file, or rustls does not support one of them. Checked only once, as by Pingora.
fn pingora_has_authorities() -> bool {
    static HAS: OnceLock<bool> = OnceLock::new();
    *HAS.get_or_init(|| {
        let mut roots = RootCertStore::empty();
        let found = rustls_native_certs::load_native_certs();
        found.is_ok_and(|found| found.into_iter().all(|it| roots.add(it).is_ok()))
    })
}

/// An empty file of authorities for Pingora, if it cannot read those of the system.
pub(crate) fn no_authorities_file() -> Option<String> {
    (!pingora_has_authorities()).then(|| NO_AUTHORITIES.to_owned())
}

/// The text of a handshake error with a backend that should be `name`.
fn error_text(error: &rustls::Error, name: &ServerName<'_>) -> String {
    let rustls::Error::InvalidCertificate(problem) = error else {
        return error.to_string();
    };
    let name = name.to_str();
    match problem {
        CertificateProblem::Expired | CertificateProblem::ExpiredContext { .. } => {
            "its certificate has expired".to_owned()
        }
        CertificateProblem::NotValidYet | CertificateProblem::NotValidYetContext { .. } => {
            "its certificate is not valid yet".to_owned()
        }
        CertificateProblem::NotValidForName | CertificateProblem::NotValidForNameContext { .. } => {
            format!("its certificate is not for \"{name}\"")
        }
        // A bad signature: the issuer has the name of a trusted authority, but not its key.
        CertificateProblem::UnknownIssuer | CertificateProblem::BadSignature => {
            "its certificate is not signed by a trusted authority".to_owned()
        }
        _ => error.to_string(),
    }
}

/// Accepts every certificate, but verifies that the peer has its key.
#[derive(Debug)]
struct AcceptAnyCertificate(Arc<CryptoProvider>);

impl ServerCertVerifier for AcceptAnyCertificate {
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
