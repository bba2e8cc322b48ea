//! Certificates for tests, and clients that trust the authority behind them.

use std::{
    fs,
    net::{Ipv4Addr, SocketAddr},
    path::Path,
    sync::Arc,
    time::Duration,
};

use anyhow::{Context as _, Result};
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair, date_time_ymd,
};
use rustls::{
    ClientConfig, RootCertStore, SupportedProtocolVersion, client::Resumption,
    pki_types::ServerName,
};
use tokio::{
    net::{TcpSocket, TcpStream},
    time::timeout,
};
use tokio_rustls::{TlsConnector, client::TlsStream};

/// The names that the certificates are for.
pub const NAME: &str = "chat.example";

/// For a handshake, on a machine that has much else to do.
const DEADLINE: Duration = Duration::from_secs(60);

/// Signs certificates, and is what the clients trust.
#[derive(Debug)]
pub struct Authority(CertifiedIssuer<'static, KeyPair>);

/// How a certificate is wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// Its key is another one's.
    OtherKey,
    /// The file ends in its middle.
    Truncated,
    /// Its time is over.
    Expired,
}

impl Authority {
    /// A new one; its own certificate is `authority.ca` in `folder`.
    ///
    /// # Errors
    ///
    /// There is no randomness, or no place for the file.
    pub fn new(folder: &Path) -> Result<Self> {
        let mut params = CertificateParams::new(Vec::new())?;
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        // Named like what it signs, it would look as if that signed itself.
        params
            .distinguished_name
            .push(DnType::CommonName, "the test's authority");
        let issuer = CertifiedIssuer::self_signed(params, KeyPair::generate()?)?;
        fs::write(folder.join("authority.ca"), issuer.pem())?;
        Ok(Self(issuer))
    }

    /// Writes a new certificate for [`NAME`] where the edge looks for it, as a renewal does: two files, one after the other.
    ///
    /// # Errors
    ///
    /// They cannot be written.
    pub fn renew(&self, folder: &Path) -> Result<()> {
        self.write(folder, None)
    }

    /// As [`Authority::renew`], with something wrong.
    ///
    /// # Errors
    ///
    /// As [`Authority::renew`].
    pub fn renew_wrongly(&self, folder: &Path, fault: Fault) -> Result<()> {
        self.write(folder, Some(fault))
    }

    /// A certificate for `name`, which may be an address, and its key, in PEM.
    ///
    /// # Errors
    ///
    /// There is no randomness, or nobody can be called that.
    pub fn certify(&self, name: &str) -> Result<(String, String)> {
        let key = KeyPair::generate()?;
        let params = CertificateParams::new(vec![name.to_owned()])?;
        Ok((params.signed_by(&key, &self.0)?.pem(), key.serialize_pem()))
    }

    fn write(&self, folder: &Path, fault: Option<Fault>) -> Result<()> {
        let mut key = KeyPair::generate()?;
        let mut params = CertificateParams::new(vec![NAME.to_owned()])?;
        if fault == Some(Fault::Expired) {
            params.not_before = date_time_ymd(2000, 1, 1);
            params.not_after = date_time_ymd(2001, 1, 1);
        }
        let mut certificate = params.signed_by(&key, &self.0)?.pem();
        match fault {
            Some(Fault::OtherKey) => key = KeyPair::generate()?,
            Some(Fault::Truncated) => certificate.truncate(certificate.len() / 2),
            Some(Fault::Expired) | None => {}
        }
        fs::write(folder.join("site.crt"), certificate)?;
        fs::write(folder.join("site.key"), key.serialize_pem())?;
        Ok(())
    }

    /// Clients that trust it, speak `protocol` (as ALPN names it) and resume nothing.
    ///
    /// # Errors
    ///
    /// rustls refuses the settings.
    pub fn clients(&self, protocol: &str) -> Result<Arc<ClientConfig>> {
        self.clients_with(protocol, rustls::DEFAULT_VERSIONS)
    }

    /// Those that speak HTTP/1.1 over this version of TLS and no other.
    ///
    /// # Errors
    ///
    /// As [`Authority::clients`].
    pub fn clients_of(
        &self,
        version: &'static SupportedProtocolVersion,
    ) -> Result<Arc<ClientConfig>> {
        self.clients_with("http/1.1", &[version])
    }

    fn clients_with(
        &self,
        protocol: &str,
        versions: &[&'static SupportedProtocolVersion],
    ) -> Result<Arc<ClientConfig>> {
        let mut roots = RootCertStore::empty();
        roots.add(self.0.der().clone())?;
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let mut clients = ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(versions)?
            .with_root_certificates(roots)
            .with_no_client_auth();
        clients.resumption = Resumption::disabled();
        clients.alpn_protocols = vec![protocol.as_bytes().to_vec()];
        Ok(Arc::new(clients))
    }
}

/// Connects from `source`, an address of this machine.
///
/// # Errors
///
/// Nobody listens there.
pub async fn connect_from(source: Ipv4Addr, address: SocketAddr) -> Result<TcpStream> {
    let socket = TcpSocket::new_v4()?;
    socket.bind((source, 0).into())?;
    let stream = socket.connect(address).await;
    stream.with_context(|| format!("cannot connect from {source} to {address}"))
}

/// Does the handshake on `stream`.
///
/// # Errors
///
/// It fails, or takes too long.
pub async fn handshake(
    clients: &Arc<ClientConfig>,
    stream: TcpStream,
) -> Result<TlsStream<TcpStream>> {
    stream.set_nodelay(true)?;
    let connector = TlsConnector::from(Arc::clone(clients));
    let handshake = connector.connect(ServerName::try_from(NAME)?, stream);
    let done = timeout(DEADLINE, handshake).await;
    done.context("no handshake in time")?
        .context("the handshake failed")
}
