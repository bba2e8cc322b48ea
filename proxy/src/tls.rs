//! TLS with rustls: for clients the versions, the choice of a certificate and session resumption; for backends their verification.
//!
//! [`record`] carries the tunnels of both on without rustls, which keeps several kilobytes for each connection.
//!
//! A [`Connector`] belongs to one pool, a [`Terminator`] to one listener. [`watch`] reloads the certificates and ticket keys of
//! listeners when their files change: new handshakes use the new ones, open connections are not affected.

mod certificates;
mod connector;
mod file_state;
pub(crate) mod record;
mod stream;
#[cfg(test)]
pub(crate) mod testing;
mod tickets;

use std::collections::{HashMap, HashSet};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use causeway_conf::{PEM_BYTES_MAX, read_file};
use rustls::crypto::CryptoProvider;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use rustls::server::{
    ClientCertVerifierBuilder, NoServerSessionStorage, UnbufferedServerConnection,
    WebPkiClientVerifier,
};
use rustls::{RootCertStore, ServerConfig};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use crate::config::{Config, TlsConfig, TlsVersion};
use crate::metrics::Metrics;
use crate::net::accepted::Accepted;
use crate::tls::certificates::{
    CertificateState, CertificateStatus, Certificates, ReloadOutcome, unix,
};
use crate::tls::file_state::FileStates;
use crate::tls::record::SecretLog;
use crate::tls::tickets::Tickets;

pub use crate::tls::certificates::CertificateError;
pub(crate) use crate::tls::connector::{
    ClientStream, ConnectError, Connector, no_authorities_file,
};
pub(crate) use crate::tls::stream::TlsStream;
pub use crate::tls::tickets::TicketKeyError;

/// How often files are checked for changes: cheap for a handful of files, and soon enough after a renewal.
const CHECK_INTERVAL: Duration = Duration::from_secs(2);

/// How long before its expiry a certificate is warned about. Renewal is usually due at 30 days, so it is then half that time overdue.
const WARN_BEFORE: Duration = Duration::from_secs(14 * 24 * 3600);
const WARN_AGAIN: Duration = Duration::from_secs(24 * 3600);

/// How many certificates of a listener are named in the log at a time; `/certificates` lists all.
const WARNED_MAX: usize = 20;

/// A TLS connection of a client.
pub(crate) type ServerStream = TlsStream<UnbufferedServerConnection, Accepted>;

/// Why the TLS settings of a listener or a pool cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A certificate cannot be used.
    #[error(transparent)]
    Certificate(#[from] CertificateError),
    /// The ticket keys cannot be used.
    #[error(transparent)]
    TicketKey(#[from] TicketKeyError),
    /// The certificate authorities for the peer, or the key of the client certificate, cannot be used.
    #[error("{path}: {why}")]
    Authority {
        /// The file.
        path: PathBuf,
        /// The problem.
        why: String,
    },
    /// The system has no certificate authorities.
    #[error(
        "this machine has no certificate authorities{0}; expected \"ca\" with some, or \"verify: false\""
    )]
    NoAuthority(String),
    /// rustls rejects the settings.
    #[error("TLS settings: {0}")]
    Settings(#[from] rustls::Error),
}

/// Why a handshake with a client failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum HandshakeError {
    #[error("not complete within {0:?}")]
    Timeout(Duration),
    #[error(transparent)]
    Failed(#[from] io::Error),
}

/// Why a handshake failed, as a label of the metrics.
pub(crate) fn reason(error: &io::Error) -> &'static str {
    use rustls::Error;
    let Some(error) = error.get_ref().and_then(|error| error.downcast_ref()) else {
        return "lost";
    };
    match error {
        Error::InvalidMessage(_) | Error::InappropriateMessage { .. } => "not_tls",
        Error::PeerIncompatible(_) => "incompatible",
        Error::NoApplicationProtocol => "no_protocol",
        Error::NoCertificatesPresented | Error::InvalidCertificate(_) => "client_certificate",
        Error::AlertReceived(_) => "refused_by_client",
        _ => "failed",
    }
}

/// Terminates TLS for one listener.
pub(crate) struct Terminator {
    config: Arc<ServerConfig>,
    certificates: Arc<Certificates>,
    tickets: Option<Arc<Tickets>>,
    deadline: Duration,
    /// The name of the listener, for the log and the metrics.
    name: String,
}

impl Terminator {
    /// Reads all files. `name` is the listener's name in the log.
    ///
    /// # Errors
    ///
    /// [`TlsError`] for the first file that cannot be used; for certificates only if none of them can be served.
    pub(crate) fn new(name: String, config: &TlsConfig) -> Result<Self, TlsError> {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let certificates = Arc::new(Certificates::load(
            config.certificates.clone(),
            Arc::clone(&provider),
            SystemTime::now(),
        )?);
        let tickets = match &config.ticket_keys {
            Some(path) => Some(Arc::new(Tickets::load(path.clone())?)),
            None => None,
        };
        let versions: &[_] = match config.min_version {
            TlsVersion::V1_2 => &[&rustls::version::TLS13, &rustls::version::TLS12],
            TlsVersion::V1_3 => &[&rustls::version::TLS13],
        };
        let builder = ServerConfig::builder_with_provider(Arc::clone(&provider))
            .with_protocol_versions(versions)?;
        let builder = match &config.client_ca {
            None => builder.with_no_client_auth(),
            Some(path) => {
                let verifier = client_verifier(path, provider)?.build();
                builder.with_client_cert_verifier(verifier.map_err(|error| {
                    let (path, why) = (path.clone(), error.to_string());
                    TlsError::Authority { path, why }
                })?)
            }
        };
        let mut rustls = builder.with_cert_resolver(Arc::clone(&certificates) as _);
        rustls.alpn_protocols = match config.http2 {
            true => vec![b"h2".to_vec(), b"http/1.1".to_vec()],
            false => vec![b"http/1.1".to_vec()],
        };
        // With tickets the client stores the session: the edge needs no table, and any edge with the same keys can resume it.
        rustls.session_storage = Arc::new(NoServerSessionStorage {});
        rustls.ticketer = match &tickets {
            Some(tickets) => Arc::clone(tickets) as _,
            None => rustls::crypto::ring::Ticketer::new()?,
        };
        // A second ticket would help clients that open several connections at once, but cost time in each handshake.
        rustls.send_tls13_tickets = 1;
        // A tunnel goes on without rustls.
        rustls.enable_secret_extraction = true;
        rustls.key_log = Arc::new(SecretLog);
        Ok(Self {
            config: Arc::new(rustls),
            certificates,
            tickets,
            deadline: config.handshake,
            name,
        })
    }

    /// Does the handshake. `early` is what was already read from `transport`.
    ///
    /// # Errors
    ///
    /// [`HandshakeError`]; the connection is closed.
    ///
    /// # Cancel safety
    ///
    /// Dropping it closes the connection.
    pub(crate) async fn accept(
        &self,
        transport: Accepted,
        early: Vec<u8>,
    ) -> Result<ServerStream, HandshakeError> {
        let tls = UnbufferedServerConnection::new(Arc::clone(&self.config));
        let tls = tls.map_err(io::Error::other)?;
        let handshake = TlsStream::handshake(Box::new(tls), transport, early);
        match timeout(self.deadline, handshake).await {
            Ok(done) => Ok(done?),
            Err(_) => Err(HandshakeError::Timeout(self.deadline)),
        }
    }
}

fn client_verifier(
    path: &Path,
    provider: Arc<CryptoProvider>,
) -> Result<ClientCertVerifierBuilder, TlsError> {
    let mut roots = RootCertStore::empty();
    for authority in authorities_of(path)? {
        roots.add(authority).map_err(|error| {
            let (path, why) = (path.to_owned(), error.to_string());
            TlsError::Authority { path, why }
        })?;
    }
    Ok(WebPkiClientVerifier::builder_with_provider(
        Arc::new(roots),
        provider,
    ))
}

/// Reads a file of certificates or keys; the error is a text.
fn read_pem(path: &Path) -> Result<Vec<u8>, String> {
    read_file(path, PEM_BYTES_MAX).map_err(|error| error.to_string())
}

/// Reads the certificates of authorities in a file.
fn authorities_of(path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let unusable = |why: String| TlsError::Authority {
        path: path.to_owned(),
        why,
    };
    let pem = read_pem(path).map_err(unusable)?;
    let authorities = CertificateDer::pem_slice_iter(&pem)
        .collect::<Result<Vec<_>, _>>()
        .map_err(|error| unusable(error.to_string()))?;
    match authorities.is_empty() {
        true => Err(unusable(
            "no certificate; expected those of the authorities as PEM".to_owned(),
        )),
        false => Ok(authorities),
    }
}

/// The connectors of the pools with TLS, by pool name.
#[derive(Debug, Default)]
pub(crate) struct Connectors(HashMap<String, Arc<Connector>>);

/// The TLS settings of a pool cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("pool \"{pool}\": {source}")]
pub struct PoolTlsError {
    pool: String,
    source: TlsError,
}

impl Connectors {
    /// Reads the files that `config` names.
    ///
    /// # Errors
    ///
    /// [`PoolTlsError`] for the first pool whose files cannot be used.
    pub(crate) fn load(config: &Config) -> Result<Self, PoolTlsError> {
        let with_tls = config
            .pools
            .iter()
            .filter_map(|pool| Some((pool.name.clone(), pool.tls.as_ref()?)));
        let loaded = with_tls.map(|(pool, tls)| match Connector::load(tls) {
            Ok(connector) => Ok((pool, Arc::new(connector))),
            Err(source) => Err(PoolTlsError { pool, source }),
        });
        loaded.collect::<Result<_, _>>().map(Self)
    }

    /// The connector of the pool called `name`, if it uses TLS.
    pub(crate) fn of(&self, name: &str) -> Option<Arc<Connector>> {
        self.0.get(name).cloned()
    }
}

/// Reloads the files of all listeners when they change, until `stop`.
pub(crate) async fn watch(
    terminators: Vec<Arc<Terminator>>,
    metrics: Arc<Metrics>,
    stop: CancellationToken,
) {
    let mut watched: Vec<WatchedListener> =
        terminators.into_iter().map(WatchedListener::new).collect();
    let mut tick = tokio::time::interval(CHECK_INTERVAL);
    while stop.run_until_cancelled(tick.tick()).await.is_some() {
        let metrics = Arc::clone(&metrics);
        // Off the runtime: the file system may hang.
        let checking = tokio::task::spawn_blocking(move || {
            let now = SystemTime::now();
            watched
                .iter_mut()
                .for_each(|listener| listener.check(&metrics, now));
            watched
        });
        watched = match checking.await {
            Ok(checked) => checked,
            // The supervisor of this task restarts it.
            Err(ended) => match ended.try_into_panic() {
                Ok(panic) => std::panic::resume_unwind(panic),
                Err(_) => return,
            },
        };
    }
}

/// One listener, and the state of its files when they were last read.
struct WatchedListener {
    terminator: Arc<Terminator>,
    file_states: FileStates,
    /// The last warning about each certificate, and when it was logged; only for certificates that still have a problem.
    logged: HashMap<PathBuf, (String, SystemTime)>,
}

impl WatchedListener {
    fn new(terminator: Arc<Terminator>) -> Self {
        Self {
            terminator,
            // The first check reads the files again: they may have changed since they were loaded.
            file_states: FileStates::default(),
            logged: HashMap::new(),
        }
    }

    /// Reloads the files if they have changed, and warns about certificates that have problems or expire soon.
    fn check(&mut self, metrics: &Metrics, now: SystemTime) {
        let file_states = self.terminator.file_states();
        if file_states != self.file_states {
            self.file_states = file_states;
            self.terminator.reload(metrics, now);
        }
        let (listener, certificates) = (&self.terminator.name, &self.terminator.certificates);
        certificates.update_for_dates(now);
        metrics.certificate_ends(listener, certificates.ends().as_secs());
        let all = certificates.status(now);
        for state in CertificateState::ALL {
            let number = all.iter().filter(|it| it.state == state).count();
            metrics.certificates(listener, state.name(), number);
        }
        self.warn(&all, now);
    }

    /// Warns about certificates that need attention: at once, and then once a day.
    fn warn(&mut self, all: &[CertificateStatus], now: SystemTime) {
        let listener = &self.terminator.name;
        let mut new_warnings = 0;
        let mut with_problems = HashSet::new();
        for certificate in all {
            let left = certificate.ends.map(|ends| ends.saturating_sub(unix(now)));
            let ends_soon = left.is_some_and(|left| left < WARN_BEFORE);
            let is_good = certificate.state == CertificateState::Good;
            if is_good && !ends_soon {
                continue;
            }
            with_problems.insert(&certificate.path);
            let logged = self.logged.get(&certificate.path);
            let is_logged = logged.is_some_and(|(why, then)| {
                let since = now.duration_since(*then).unwrap_or_default();
                *why == certificate.why && since < WARN_AGAIN
            });
            if is_logged {
                continue;
            }
            self.logged
                .insert(certificate.path.clone(), (certificate.why.clone(), now));
            new_warnings += 1;
            if WARNED_MAX < new_warnings {
                continue;
            }
            let path = certificate.path.display();
            let CertificateStatus { state, why, .. } = certificate;
            let days = left.unwrap_or_default().as_secs() / (24 * 3600);
            match state {
                CertificateState::Good => {
                    tracing::warn!(listener, certificate = %path, days, "certificate expires soon");
                }
                CertificateState::Previous => {
                    tracing::error!(listener, certificate = %path, why, days, "certificate reload failed, still serving the previous one");
                }
                CertificateState::OutOfDate => {
                    tracing::error!(listener, certificate = %path, why, "certificate has expired or is not valid yet, clients will reject it");
                }
                CertificateState::Unusable => {
                    tracing::error!(listener, certificate = %path, why, "certificate cannot be served");
                }
            }
        }
        if let Some(more) = new_warnings
            .checked_sub(WARNED_MAX)
            .filter(|more| 0 < *more)
        {
            tracing::error!(
                listener,
                more,
                "more certificates have problems or expire soon"
            );
        }
        self.logged.retain(|path, _| with_problems.contains(path));
    }
}

impl Terminator {
    /// The name of the listener in the log and the metrics.
    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// The status of each certificate.
    pub(crate) fn certificates(&self, now: SystemTime) -> Vec<CertificateStatus> {
        self.certificates.status(now)
    }

    fn file_states(&self) -> FileStates {
        let tickets = self.tickets.iter().map(|tickets| tickets.path().to_owned());
        FileStates::read(self.certificates.paths().into_iter().chain(tickets))
    }

    fn reload(&self, metrics: &Metrics, now: SystemTime) {
        let listener = &self.name;
        let changes = self.certificates.reload(now);
        let loaded = changes
            .iter()
            .filter(|it| **it == ReloadOutcome::Loaded)
            .count();
        let rejected = changes.len() - loaded;
        metrics.certificates_exchanged("taken", loaded);
        metrics.certificates_exchanged("refused", rejected);
        if 0 < loaded {
            tracing::info!(listener, loaded, "certificates reloaded");
        }
        let tickets = self.tickets.as_ref().map(|tickets| tickets.reload());
        if let Some(Err(error)) = tickets {
            metrics.certificates_exchanged("refused", 1);
            tracing::error!(listener, %error, "ticket key reload failed, still using the previous keys");
        }
    }
}

#[cfg(test)]
mod tests;
