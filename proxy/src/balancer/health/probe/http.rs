//! Probes by an HTTP request, or by a bare connection.

use std::io;
use std::sync::OnceLock;

use http::{Method, StatusCode};
use pingora::http::{RequestHeader, ResponseHeader};
use pingora::protocols::Stream;
use pingora::protocols::http::v1::client::HttpSession;
use pingora::{Error, ErrorType};

use super::{CannotProbe, DRAIN, USER_AGENT, is_ours, unexpected};
use crate::balancer::pool::ProbeResult;
use crate::config::{HealthConfig, ProbeKind, Statuses};

/// Names this edge to its backends: a node that stops waits until every edge that probes it knows of that.
const EDGE: &str = "Causeway-Edge";

/// What [`validate`] answers, with the status, when it expected another.
const UNEXPECTED: &str = "unexpected status";

/// The same, when the answer has the header of a drain.
const DRAINING: &str = "draining";

/// What is asked on a connection, and what the answer means.
pub(super) struct HttpCheck {
    kind: ProbeKind,
    /// The request, and which answers are good; `None`: a connection is enough.
    question: Option<Box<(RequestHeader, Statuses)>>,
}

impl HttpCheck {
    /// A request as `config` has it.
    pub(super) fn http(config: &HealthConfig) -> Self {
        let question = request(config);
        Self {
            kind: config.kind,
            question: Some(Box::new((question, config.expect.clone()))),
        }
    }

    /// A connection, and no more.
    pub(super) fn tcp(config: &HealthConfig) -> Self {
        Self {
            kind: config.kind,
            question: None,
        }
    }

    /// Asks on a connection that is there already.
    pub(super) async fn ask(&self, stream: Stream) -> Result<ProbeResult, CannotProbe> {
        let Some((request, expect)) = self.question.as_deref() else {
            return Ok(ProbeResult::Good);
        };
        let mut session = HttpSession::new(stream);
        let asked = async {
            session
                .write_request_header(Box::new(request.clone()))
                .await?;
            loop {
                session.read_response().await?;
                match session.resp_header() {
                    Some(answer) if !answer.status.is_informational() => {
                        validate(answer, expect)?;
                        break;
                    }
                    _ => {}
                }
            }
            // An answer that never ends is none.
            while session.read_body_bytes().await?.is_some() {}
            Ok::<(), Box<Error>>(())
        };
        match asked.await {
            Ok(()) => Ok(ProbeResult::Good),
            Err(error) => self.failure(&error),
        }
    }

    fn failure(&self, error: &Error) -> Result<ProbeResult, CannotProbe> {
        let cause = error.root_cause().downcast_ref::<io::Error>();
        if let Some(cause) = cause.filter(|cause| is_ours(cause)) {
            return Err(CannotProbe(io::Error::new(cause.kind(), cause.to_string())));
        }
        let no_answer = |why: &str| ProbeResult::NoResponse(why.to_owned());
        Ok(match error.etype() {
            ErrorType::CustomCode(DRAINING, status) => unexpected(*status, true, ""),
            ErrorType::CustomCode(UNEXPECTED, status) => {
                unexpected(*status, false, self.hint(*status))
            }
            ErrorType::InvalidHTTPHeader | ErrorType::H1Error => {
                ProbeResult::UnexpectedResponse("its answer to a probe is not HTTP".to_owned())
            }
            ErrorType::ReadTimedout => no_answer("its probe was not answered"),
            ErrorType::ConnectionClosed => no_answer("it closed the connection of its probe"),
            kind => ProbeResult::NoResponse(format!("its probe failed: {}", kind.as_str())),
        })
    }

    fn asks_by_head(&self) -> bool {
        let question = self.question.as_deref();
        question.is_some_and(|(request, _)| request.method == Method::HEAD)
    }

    /// What to do about an answer that shows that it was the wrong question.
    fn hint(&self, status: u16) -> &'static str {
        match (self.kind, status) {
            (ProbeKind::Node, 300..=499) => {
                " (health.kind: http suits apps that are no Causeway nodes)"
            }
            (ProbeKind::Http, 405 | 501) if self.asks_by_head() => {
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
