//! TLS under our own control: towards clients what is spoken, which certificate serves whom, who resumes where; towards backends
//! whom to believe.
//!
//! A [`Connector`] belongs to one pool, a [`Terminator`] to one listener. Its certificates and ticket keys are read again when
//! their files change, by [`watch`]; connections go on meanwhile, and new handshakes see the new ones.

mod certificates;
mod connector;
mod seen;
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
use pingora::protocols::l4::stream::Stream as Transport;
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
use crate::tls::certificates::{CertificateState, CertificateStatus, Certificates, Change, unix};
use crate::tls::seen::Seen;
use crate::tls::tickets::Tickets;

pub use crate::tls::certificates::CertificateError;
pub(crate) use crate::tls::connector::{
    ClientStream, ConnectError, Connector, no_authorities_file,
};
pub(crate) use crate::tls::stream::TlsStream;
pub use crate::tls::tickets::TicketKeyError;

/// How often files are looked at: a lookup of a handful of files, and soon enough after a renewal.
const LOOK: Duration = Duration::from_secs(2);

/// How long before its end a certificate is warned about: renewal is usually due at 30 days, so half of the time has been lost.
const WARN_BEFORE: Duration = Duration::from_secs(14 * 24 * 3600);
const WARN_AGAIN: Duration = Duration::from_secs(24 * 3600);

/// How many certificates of a listener are named in the log at a time; `/certificates` has them all.
const WARN_ABOUT: usize = 20;

/// A connection of a client.
pub(crate) type ServerStream = TlsStream<UnbufferedServerConnection, Transport>;

/// Why a listener or a pool cannot speak TLS.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A certificate is wrong.
    #[error(transparent)]
    Certificate(#[from] CertificateError),
    /// The ticket keys are wrong.
    #[error(transparent)]
    TicketKey(#[from] TicketKeyError),
    /// The authorities that sign the certificates of the other side are wrong.
    #[error("{path}: {why}")]
    Authority {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        why: String,
    },
    /// There are none to go by.
    #[error(
        "this machine has no certificates of authorities{0}; expected \"ca\" with some, or \"verify: false\""
    )]
    NoAuthority(String),
    /// rustls refuses the settings.
    #[error("TLS settings: {0}")]
    Settings(#[from] rustls::Error),
}

/// Why a client did not get through the handshake.
#[derive(Debug, thiserror::Error)]
pub(crate) enum HandshakeError {
    #[error("not over within {0:?}")]
    Timeout(Duration),
    #[error(transparent)]
    Failed(#[from] io::Error),
}

/// What a handshake failed for, as a label of the metrics.
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

/// Speaks TLS for one listener.
pub(crate) struct Terminator {
    config: Arc<ServerConfig>,
    certificates: Arc<Certificates>,
    tickets: Option<Arc<Tickets>>,
    deadline: Duration,
    /// The listener, for the log and the metrics.
    name: String,
}

impl Terminator {
    /// Reads all files. `name` is what the log calls the listener.
    ///
    /// # Errors
    ///
    /// [`TlsError`] for the first file that is wrong; for certificates, if none of them can be served.
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
        // Tickets keep the session with the client: no table here, and any edge with the keys resumes it.
        rustls.session_storage = Arc::new(NoServerSessionStorage {});
        rustls.ticketer = match &tickets {
            Some(tickets) => Arc::clone(tickets) as _,
            None => rustls::crypto::ring::Ticketer::new()?,
        };
        // A second ticket helps clients that open several connections at once, and costs each handshake.
        rustls.send_tls13_tickets = 1;
        Ok(Self {
            config: Arc::new(rustls),
            certificates,
            tickets,
            deadline: config.handshake,
            name,
        })
    }

    /// Does the handshake.
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
        transport: Transport,
    ) -> Result<ServerStream, HandshakeError> {
        let tls = UnbufferedServerConnection::new(Arc::clone(&self.config));
        let tls = tls.map_err(io::Error::other)?;
        let handshake = TlsStream::shake_hands(Box::new(tls), transport);
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

/// What is in a file of certificates or keys; what is wrong in words.
fn read_pem(path: &Path) -> Result<Vec<u8>, String> {
    read_file(path, PEM_BYTES_MAX).map_err(|error| error.to_string())
}

/// The certificates of authorities in a file.
fn authorities_of(path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let wrong = |why: String| TlsError::Authority {
        path: path.to_owned(),
        why,
    };
    let pem = read_pem(path).map_err(wrong)?;
    let authorities = CertificateDer::pem_slice_iter(&pem)
        .collect::<Result<Vec<_>, _>>()
        .map_err(|error| wrong(error.to_string()))?;
    match authorities.is_empty() {
        true => Err(wrong(
            "no certificate; expected the authorities' as PEM".to_owned(),
        )),
        false => Ok(authorities),
    }
}

/// What speaks TLS to the backends of each pool that wants it, by the pool's name.
#[derive(Debug, Default)]
pub(crate) struct Connectors(HashMap<String, Arc<Connector>>);

/// A pool whose backends cannot be spoken to.
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
    /// [`PoolTlsError`] for the first that is wrong.
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

    /// The one of the pool called `name`, if its backends speak TLS.
    pub(crate) fn of(&self, name: &str) -> Option<Arc<Connector>> {
        self.0.get(name).cloned()
    }
}

/// Follows the files of all listeners until `stop`.
pub(crate) async fn watch(
    terminators: Vec<Arc<Terminator>>,
    metrics: Arc<Metrics>,
    stop: CancellationToken,
) {
    let mut watched: Vec<Watched> = terminators.into_iter().map(Watched::new).collect();
    let mut tick = tokio::time::interval(LOOK);
    while stop.run_until_cancelled(tick.tick()).await.is_some() {
        let metrics = Arc::clone(&metrics);
        // Files may be on a disk that is slow or gone.
        let look = tokio::task::spawn_blocking(move || {
            let now = SystemTime::now();
            watched
                .iter_mut()
                .for_each(|listener| listener.look(&metrics, now));
            watched
        });
        watched = match look.await {
            Ok(looked) => looked,
            // Whoever runs this runs it again.
            Err(ended) => match ended.try_into_panic() {
                Ok(panic) => std::panic::resume_unwind(panic),
                Err(_) => return,
            },
        };
    }
}

/// The files of one listener, as they were when they were last read.
struct Watched {
    terminator: Arc<Terminator>,
    seen: Seen,
    /// What has been said of certificates, and when; only of those of which there still is something to say.
    said: HashMap<PathBuf, (String, SystemTime)>,
}

impl Watched {
    fn new(terminator: Arc<Terminator>) -> Self {
        let seen = terminator.look();
        Self {
            terminator,
            seen,
            said: HashMap::new(),
        }
    }

    /// Reads the files again if they look different, and says which certificates are wrong or end soon.
    fn look(&mut self, metrics: &Metrics, now: SystemTime) {
        let seen = self.terminator.look();
        if seen != self.seen {
            self.seen = seen;
            self.terminator.reload(metrics, now);
        }
        let (listener, certificates) = (&self.terminator.name, &self.terminator.certificates);
        certificates.follow_dates(now);
        metrics.certificate_ends(listener, certificates.ends().as_secs());
        let all = certificates.status(now);
        for state in CertificateState::ALL {
            let number = all.iter().filter(|it| it.state == state).count();
            metrics.certificates(listener, state.name(), number);
        }
        self.warn(&all, now);
    }

    /// Names the certificates that want an operator: as soon as they do, and once a day.
    fn warn(&mut self, all: &[CertificateStatus], now: SystemTime) {
        let listener = &self.terminator.name;
        let mut unsaid = 0;
        let mut wanting = HashSet::new();
        for certificate in all {
            let left = certificate.ends.map(|ends| ends.saturating_sub(unix(now)));
            let ends_soon = left.is_some_and(|left| left < WARN_BEFORE);
            let is_good = certificate.state == CertificateState::Good;
            if is_good && !ends_soon {
                continue;
            }
            wanting.insert(&certificate.path);
            let said = self.said.get(&certificate.path);
            let is_said = said.is_some_and(|(why, then)| {
                let since = now.duration_since(*then).unwrap_or_default();
                *why == certificate.why && since < WARN_AGAIN
            });
            if is_said {
                continue;
            }
            self.said
                .insert(certificate.path.clone(), (certificate.why.clone(), now));
            unsaid += 1;
            if WARN_ABOUT < unsaid {
                continue;
            }
            let path = certificate.path.display();
            let CertificateStatus { state, why, .. } = certificate;
            let days = left.unwrap_or_default().as_secs() / (24 * 3600);
            match state {
                CertificateState::Good => {
                    tracing::warn!(listener, certificate = %path, days, "a certificate ends soon");
                }
                CertificateState::Previous => {
                    tracing::error!(listener, certificate = %path, why, days, "a certificate cannot be renewed, its previous version is served");
                }
                CertificateState::OutOfDate => {
                    tracing::error!(listener, certificate = %path, why, "a certificate is out of date, clients refuse it");
                }
                CertificateState::Unusable => {
                    tracing::error!(listener, certificate = %path, why, "a certificate cannot be served");
                }
            }
        }
        if let Some(more) = unsaid.checked_sub(WARN_ABOUT).filter(|more| 0 < *more) {
            tracing::error!(listener, more, "more certificates are wrong or end soon");
        }
        self.said.retain(|path, _| wanting.contains(path));
    }
}

impl Terminator {
    /// What the log and the metrics call the listener.
    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// Its certificates, and how each is served.
    pub(crate) fn certificates(&self, now: SystemTime) -> Vec<CertificateStatus> {
        self.certificates.status(now)
    }

    fn look(&self) -> Seen {
        let tickets = self.tickets.iter().map(|tickets| tickets.path().to_owned());
        Seen::look(self.certificates.paths().into_iter().chain(tickets))
    }

    fn reload(&self, metrics: &Metrics, now: SystemTime) {
        let listener = &self.name;
        let changes = self.certificates.reload(now);
        let taken = changes.iter().filter(|it| **it == Change::Taken).count();
        let refused = changes.len() - taken;
        metrics.certificates_exchanged("taken", taken);
        metrics.certificates_exchanged("refused", refused);
        if 0 < taken {
            tracing::info!(listener, taken, "certificates read again");
        }
        let tickets = self.tickets.as_ref().map(|tickets| tickets.reload());
        if let Some(Err(error)) = tickets {
            metrics.certificates_exchanged("refused", 1);
            tracing::error!(listener, %error, "ticket keys cannot be read, the previous ones stay");
        }
    }
}

#[cfg(test)]
mod tests;
