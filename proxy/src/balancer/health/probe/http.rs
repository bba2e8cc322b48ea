//! Probes by an HTTP request, or by a connection alone.

use std::io;
use std::sync::OnceLock;

use http::{Method, StatusCode};
use pingora::http::{RequestHeader, ResponseHeader};
use pingora::protocols::Stream;
use pingora::protocols::http::v1::client::HttpSession;
use pingora::{Error, ErrorType};

use super::{CannotProbe, DRAIN, Probed, USER_AGENT, is_exhaustion, unexpected};
use crate::balancer::pool::ProbeResult;
use crate::config::{BackendConfig, HealthConfig, ProbeKind, Statuses};

/// Identifies this edge to its backends: a node that is stopping waits until every edge that probes it has noticed.
const EDGE: &str = "Causeway-Edge";

/// The deploy that a backend belongs to (of a node: `node.generation`), on its responses to probes.
const GENERATION: &str = "causeway-generation";

/// The error code of [`validate`] for a status that is not expected.
const UNEXPECTED: &str = "unexpected status";

/// The same, if the response has the header of a draining backend.
const DRAINING: &str = "draining";

/// One HTTP exchange on a connection.
pub(super) struct HttpCheck {
    kind: ProbeKind,
    /// The request and the expected statuses; `None` if a connection is enough.
    request: Option<Box<(RequestHeader, Statuses)>>,
}

impl HttpCheck {
    /// The request of `config`.
    pub(super) fn http(config: &HealthConfig) -> Self {
        let request = build_request(config);
        Self {
            kind: config.kind,
            request: Some(Box::new((request, config.expect.clone()))),
        }
    }

    /// No request: a connection is enough.
    pub(super) fn tcp(config: &HealthConfig) -> Self {
        Self {
            kind: config.kind,
            request: None,
        }
    }

    /// Makes the check on an established connection.
    pub(super) async fn run(&self, stream: Stream) -> Result<Probed, CannotProbe> {
        let Some((request, expect)) = self.request.as_deref() else {
            return Ok(ProbeResult::Good.into());
        };
        let mut generation = None;
        let mut session = HttpSession::new(stream);
        let exchange = async {
            session
                .write_request_header(Box::new(request.clone()))
                .await?;
            loop {
                session.read_response().await?;
                match session.resp_header() {
                    Some(response) if !response.status.is_informational() => {
                        validate(response, expect)?;
                        generation = generation_of(response);
                        break;
                    }
                    _ => {}
                }
            }
            // The response has to end.
            while session.read_body_bytes().await?.is_some() {}
            Ok::<(), Box<Error>>(())
        };
        match exchange.await {
            Ok(()) => Ok(Probed {
                result: ProbeResult::Good,
                generation,
            }),
            Err(error) => self.failure(&error).map(Into::into),
        }
    }

    fn failure(&self, error: &Error) -> Result<ProbeResult, CannotProbe> {
        let cause = error.root_cause().downcast_ref::<io::Error>();
        if let Some(cause) = cause.filter(|cause| is_exhaustion(cause)) {
            return Err(CannotProbe(io::Error::new(cause.kind(), cause.to_string())));
        }
        let no_response = |why: &str| ProbeResult::NoResponse(why.to_owned());
        Ok(match error.etype() {
            ErrorType::CustomCode(DRAINING, status) => unexpected(*status, true, ""),
            ErrorType::CustomCode(UNEXPECTED, status) => {
                unexpected(*status, false, self.hint(*status))
            }
            ErrorType::InvalidHTTPHeader | ErrorType::H1Error => {
                ProbeResult::UnexpectedResponse("the response to the probe is not HTTP".to_owned())
            }
            ErrorType::ReadTimedout => no_response("no response to the probe"),
            ErrorType::ConnectionClosed => {
                no_response("the backend closed the connection of the probe")
            }
            kind => ProbeResult::NoResponse(format!("the probe failed: {}", kind.as_str())),
        })
    }

    fn uses_head(&self) -> bool {
        let request = self.request.as_deref();
        request.is_some_and(|(request, _)| request.method == Method::HEAD)
    }

    /// Advice for a status that suggests another kind of probe.
    fn hint(&self, status: u16) -> &'static str {
        match (self.kind, status) {
            (ProbeKind::Node, 300..=499) => {
                " (health.kind: http suits apps that are not Causeway nodes)"
            }
            (ProbeKind::Http, 405 | 501) if self.uses_head() => " (health.method: GET may suit it)",
            _ => "",
        }
    }
}

fn build_request(config: &HealthConfig) -> RequestHeader {
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
    build().expect("the path, the host and the headers are validated with the configuration")
}

/// Random, and the same for as long as the process runs.
fn edge_name() -> &'static str {
    static NAME: OnceLock<String> = OnceLock::new();
    NAME.get_or_init(|| format!("{:016x}", fastrand::u64(..)))
}

/// What a backend says of its deploy. A value that is no generation is as none: without it the backend is older than others.
fn generation_of(response: &ResponseHeader) -> Option<u64> {
    let value = response.headers.get(GENERATION)?;
    let generation = value.to_str().ok()?.parse().ok()?;
    (1..=BackendConfig::GENERATION_MAX)
        .contains(&generation)
        .then_some(generation)
}

fn validate(response: &ResponseHeader, expect: &Statuses) -> pingora::Result<()> {
    let drains = response.headers.get(DRAIN);
    let drains = drains.is_some_and(|value| value.as_bytes() == b"1");
    let status = response.status.as_u16();
    if drains && response.status == StatusCode::SERVICE_UNAVAILABLE {
        return Error::e_explain(ErrorType::CustomCode(DRAINING, status), "");
    }
    if expect.contains(response.status) {
        return Ok(());
    }
    Error::e_explain(ErrorType::CustomCode(UNEXPECTED, status), "")
}
