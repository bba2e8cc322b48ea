//! One probe: a connection, or one `GET`, by pingora-load-balancing's checks.

use std::io;
use std::os::unix::net::SocketAddr as UnixAddr;
use std::sync::Arc;
use std::time::Duration;

use http::StatusCode;
use pingora::http::{RequestHeader, ResponseHeader};
use pingora::protocols::l4::socket::SocketAddr as PingoraAddr;
use pingora::{Error, ErrorType};
use pingora_load_balancing::Backend as Target;
use pingora_load_balancing::health_check::{HealthCheck, HttpHealthCheck, TcpHealthCheck};
use tokio::time::timeout;

use crate::backend::Address;
use crate::config::{HealthConfig, ProbeKind};
use crate::names::Names;
use crate::pool::ProbeResult;

/// The header with which a backend says that it drains, with value `1`.
const DRAIN: &str = "causeway-drain";

/// What a validator answers when the backend drains.
const DRAINING: ErrorType = ErrorType::Custom("draining");

/// What a validator answers, with the status, when it expected another.
const UNEXPECTED: &str = "unexpected status";

/// Sends the probes of one pool.
pub(super) struct Prober {
    check: Box<dyn HealthCheck + Send + Sync>,
    names: Arc<Names>,
    timeout: Duration,
}

impl Prober {
    pub(super) fn new(config: &HealthConfig, names: Arc<Names>) -> Self {
        let check: Box<dyn HealthCheck + Send + Sync> = match config.kind {
            ProbeKind::Http => Box::new(http_check(config)),
            ProbeKind::Tcp => {
                let mut check = TcpHealthCheck::new();
                check.peer_template.options.connection_timeout = Some(config.timeout);
                check
            }
        };
        Self {
            check,
            names,
            timeout: config.timeout,
        }
    }

    /// Probes the backend at `address` once, at most for `health.timeout`.
    ///
    /// # Cancel safety
    ///
    /// Dropping it closes the connection.
    pub(super) async fn probe(&self, address: &Address) -> ProbeResult {
        match timeout(self.timeout, self.any(address)).await {
            Ok(result) => result,
            Err(_) => ProbeResult::NoAnswer(format!(
                "its probe was not answered within {:?}",
                self.timeout
            )),
        }
    }

    /// Probes the addresses of a host name in turn, until one answers.
    async fn any(&self, address: &Address) -> ProbeResult {
        let addresses = match self.resolve(address).await {
            Ok(addresses) => addresses,
            Err(error) => {
                return ProbeResult::Unreachable(format!("its name does not resolve: {error}"));
            }
        };
        let mut result = ProbeResult::Unreachable("its name has no address".to_owned());
        for addr in addresses {
            let target = Target {
                addr,
                weight: 1,
                ext: http::Extensions::new(),
            };
            result = match self.check.check(&target).await {
                Ok(()) => ProbeResult::Good,
                Err(error) => failure(&error),
            };
            if !matches!(
                result,
                ProbeResult::Unreachable(_) | ProbeResult::NoAnswer(_)
            ) {
                break;
            }
        }
        result
    }

    async fn resolve(&self, address: &Address) -> io::Result<Vec<PingoraAddr>> {
        Ok(match address {
            Address::Ip(address) => vec![PingoraAddr::Inet(*address)],
            Address::Name { host, port } => {
                let addresses = self.names.resolve(host, *port).await?;
                addresses.iter().copied().map(PingoraAddr::Inet).collect()
            }
            Address::Unix(path) => vec![PingoraAddr::Unix(UnixAddr::from_pathname(path)?)],
        })
    }
}

fn http_check(config: &HealthConfig) -> HttpHealthCheck {
    let mut check = HttpHealthCheck::new(&config.host, false);
    check.req = request(&config.path, &config.host);
    let options = &mut check.peer_template.options;
    options.connection_timeout = Some(config.timeout);
    options.read_timeout = Some(config.timeout);
    options.write_timeout = Some(config.timeout);
    let expect = config.expect.clone();
    check.validator = Some(Box::new(move |answer| validate(answer, &expect)));
    check
}

fn request(path: &str, host: &str) -> RequestHeader {
    let build = || -> pingora::Result<RequestHeader> {
        let mut request = RequestHeader::build("GET", path.as_bytes(), Some(3))?;
        request.insert_header("Host", host)?;
        request.insert_header(
            "User-Agent",
            concat!("causeway-proxy/", env!("CARGO_PKG_VERSION")),
        )?;
        request.insert_header("Connection", "close")?;
        Ok(request)
    };
    build().expect("path and host are checked to be visible ASCII")
}

fn validate(answer: &ResponseHeader, expect: &[StatusCode]) -> pingora::Result<()> {
    let draining = answer
        .headers
        .get(DRAIN)
        .is_some_and(|value| value.as_bytes() == b"1");
    if draining && answer.status == StatusCode::SERVICE_UNAVAILABLE {
        return Error::e_explain(DRAINING, "");
    }
    if expect.contains(&answer.status) {
        return Ok(());
    }
    let status = answer.status.as_u16();
    Error::e_explain(ErrorType::CustomCode(UNEXPECTED, status), "")
}

fn failure(error: &Error) -> ProbeResult {
    match error.etype() {
        kind if *kind == DRAINING => ProbeResult::Draining,
        ErrorType::CustomCode(UNEXPECTED, status) => {
            ProbeResult::BadAnswer(format!("its probe was answered with status {status}"))
        }
        ErrorType::InvalidHTTPHeader | ErrorType::H1Error => {
            ProbeResult::BadAnswer("its answer to a probe is not HTTP".to_owned())
        }
        ErrorType::ConnectRefused => ProbeResult::Unreachable("it refuses connections".to_owned()),
        ErrorType::ConnectNoRoute | ErrorType::ConnectError => {
            ProbeResult::Unreachable("it cannot be reached".to_owned())
        }
        ErrorType::ConnectTimedout => ProbeResult::NoAnswer("a dial took too long".to_owned()),
        ErrorType::ReadTimedout => ProbeResult::NoAnswer("its probe was not answered".to_owned()),
        ErrorType::ConnectionClosed => {
            ProbeResult::NoAnswer("it closed the connection of its probe".to_owned())
        }
        kind => ProbeResult::NoAnswer(format!("its probe failed: {}", kind.as_str())),
    }
}
