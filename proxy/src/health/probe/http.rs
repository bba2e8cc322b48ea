//! A probe that pingora-load-balancing has ready: an HTTP request. Over TLS the connection is ours.

use std::sync::OnceLock;

use http::{Method, StatusCode};
use pingora::connectors::ConnectorOptions;
use pingora::connectors::http::Connector;
use pingora::http::{RequestHeader, ResponseHeader};
use pingora::protocols::Stream;
use pingora::protocols::http::v1::client::HttpSession;
use pingora::protocols::l4::socket::SocketAddr as PingoraAddr;
use pingora::{Error, ErrorType};
use pingora_load_balancing::Backend as Target;
use pingora_load_balancing::health_check::{HealthCheck, HttpHealthCheck};

use super::{CannotProbe, DRAIN, USER_AGENT, is_ours, unexpected};
use crate::config::{HealthConfig, ProbeKind, Statuses};
use crate::pool::ProbeResult;

/// Names this edge to its backends: a node that stops waits until every edge that probes it knows of that.
const EDGE: &str = "Causeway-Edge";

/// What a validator answers, with the status, when it expected another.
const UNEXPECTED: &str = "unexpected status";

/// The same, when the answer has the header of a drain.
const DRAINING: &str = "draining";

/// A check of pingora-load-balancing, and what its errors mean.
pub(super) struct PingoraCheck {
    check: Box<dyn HealthCheck + Send + Sync>,
    kind: ProbeKind,
    method: Method,
    request: RequestHeader,
    /// The answers that are good.
    expect: Statuses,
}

impl PingoraCheck {
    /// A request as `config` has it.
    pub(super) fn new(config: &HealthConfig) -> Self {
        // It speaks no TLS: what this machine trusts would be read for nothing, and by a function that panics if it cannot.
        let mut options = ConnectorOptions::new(1);
        options.ca_file = Some("/dev/null".to_owned());
        let connector = Connector::new(Some(options));
        let mut check = HttpHealthCheck::new_custom(&config.host, false, connector);
        let request = request(config);
        check.req = request.clone();
        let options = &mut check.peer_template.options;
        options.connection_timeout = Some(config.timeout);
        options.read_timeout = Some(config.timeout);
        options.write_timeout = Some(config.timeout);
        let expect = config.expect.clone();
        check.validator = Some(Box::new(move |answer| validate(answer, &expect)));
        Self {
            check: Box::new(check),
            kind: config.kind,
            method: config.method.clone(),
            request,
            expect: config.expect.clone(),
        }
    }

    /// Asks on a connection that is there already.
    pub(super) async fn ask(&self, stream: Stream) -> Result<ProbeResult, CannotProbe> {
        let mut session = HttpSession::new(stream);
        let asked = async {
            session
                .write_request_header(Box::new(self.request.clone()))
                .await?;
            loop {
                session.read_response().await?;
                match session.resp_header() {
                    Some(answer) if !answer.status.is_informational() => {
                        return validate(answer, &self.expect);
                    }
                    _ => {}
                }
            }
        };
        match asked.await {
            Ok(()) => Ok(ProbeResult::Good),
            Err(error) => self.failure(&error),
        }
    }

    pub(super) async fn check(&self, addr: PingoraAddr) -> Result<ProbeResult, CannotProbe> {
        let target = Target {
            addr,
            weight: 1,
            ext: http::Extensions::new(),
        };
        match self.check.check(&target).await {
            Ok(()) => Ok(ProbeResult::Good),
            Err(error) => self.failure(&error),
        }
    }

    fn failure(&self, error: &Error) -> Result<ProbeResult, CannotProbe> {
        let cause = error.root_cause().downcast_ref::<std::io::Error>();
        if let Some(cause) = cause.filter(|cause| is_ours(cause)) {
            return Err(CannotProbe(std::io::Error::new(
                cause.kind(),
                cause.to_string(),
            )));
        }
        let unreachable = |why: &str| ProbeResult::Unreachable(why.to_owned());
        let no_answer = |why: &str| ProbeResult::NoAnswer(why.to_owned());
        Ok(match error.etype() {
            ErrorType::CustomCode(DRAINING, status) => unexpected(*status, true, ""),
            ErrorType::CustomCode(UNEXPECTED, status) => {
                unexpected(*status, false, self.hint(*status))
            }
            ErrorType::InvalidHTTPHeader | ErrorType::H1Error => {
                ProbeResult::BadAnswer("its answer to a probe is not HTTP".to_owned())
            }
            ErrorType::ConnectRefused => unreachable("it refuses connections"),
            ErrorType::ConnectNoRoute | ErrorType::ConnectError => {
                unreachable("it cannot be reached")
            }
            ErrorType::ConnectTimedout => no_answer("a dial took too long"),
            ErrorType::ReadTimedout => no_answer("its probe was not answered"),
            ErrorType::ConnectionClosed => no_answer("it closed the connection of its probe"),
            kind => ProbeResult::NoAnswer(format!("its probe failed: {}", kind.as_str())),
        })
    }

    /// What to do about an answer that shows that it was the wrong question.
    fn hint(&self, status: u16) -> &'static str {
        match (self.kind, status) {
            (ProbeKind::Node, 300..=499) => {
                " (health.kind: http suits apps that are no Causeway nodes)"
            }
            (ProbeKind::Http, 405 | 501) if self.method == Method::HEAD => {
                " (health.method: GET may suit it)"
            }
            _ => "",
        }
    }
}

fn request(config: &HealthConfig) -> RequestHeader {
    let build = || -> pingora::Result<RequestHeader> {
        let path = config.path.as_bytes();
        let mut request = RequestHeader::build(config.method.clone(), path, Some(3))?;
        request.insert_header("Host", &*config.host)?;
        request.insert_header("User-Agent", USER_AGENT)?;
        request.insert_header("Connection", "close")?;
        request.insert_header(EDGE, edge_name())?;
        for (name, value) in &config.headers {
            request.insert_header(name.spelled(), value.clone())?;
        }
        Ok(request)
    };
    build().expect("the path, the host and the headers of the configuration are checked")
}

/// Random, and the same for as long as the process runs.
fn edge_name() -> &'static str {
    static NAME: OnceLock<String> = OnceLock::new();
    NAME.get_or_init(|| format!("{:016x}", fastrand::u64(..)))
}

fn validate(answer: &ResponseHeader, expect: &Statuses) -> pingora::Result<()> {
    let drains = answer.headers.get(DRAIN);
    let drains = drains.is_some_and(|value| value.as_bytes() == b"1");
    let status = answer.status.as_u16();
    if drains && answer.status == StatusCode::SERVICE_UNAVAILABLE {
        return Error::e_explain(ErrorType::CustomCode(DRAINING, status), "");
    }
    if expect.contains(answer.status) {
        return Ok(());
    }
    Error::e_explain(ErrorType::CustomCode(UNEXPECTED, status), "")
}
