//! Responses for operators: liveness, readiness, metrics, and the slowest clients.
//!
//! The admin listener serves all of them. The clients' listener serves only `/live` and `/ready`, which contain nothing about
//! clients: load balancers probe the port that they send clients to.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use http::HeaderMap;
use http::HeaderName;
use http::HeaderValue;
use http::Method;
use http::Response;
use http::StatusCode;
use http::header;
use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::time;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::info;
use tracing::warn;

use crate::client::channels::Slowness;
use crate::metrics;
use crate::metrics::Metrics;
use crate::transport::Body;

mod probers;

use probers::ProberId;
use probers::Probers;
use probers::Told;

/// Tells the edge that the node is draining and not failed.
const DRAIN: HeaderName = HeaderName::from_static("causeway-drain");

/// Tells the edge which deploy the node belongs to.
const GENERATION: HeaderName = HeaderName::from_static("causeway-generation");

/// How long the edges have to act on the response to their probe.
const SETTLE: Duration = Duration::from_millis(250);

/// How many clients `/slowest` lists.
const SLOWEST: usize = 20;

/// Serves `/live`, `/ready`, `/metrics` and `/slowest`.
pub(crate) struct Admin {
    readiness: Readiness,
    slowest: Slowest,
    metrics: Arc<Metrics>,
    draining: CancellationToken,
    /// The deploy that the node belongs to, if configured.
    generation: Option<u64>,
    probers: Mutex<Probers>,
    /// Notified when a probe was received.
    asked: Notify,
}

/// A request of an operator or a prober.
pub(crate) struct Asked<'a> {
    pub(crate) method: &'a Method,
    pub(crate) path: &'a str,
    pub(crate) headers: &'a HeaderMap,
    pub(crate) peer: IpAddr,
}

/// Whether the node is ready, maybe with a note for the operator; or why it is not.
pub(crate) type Readiness = Box<dyn Fn() -> Result<Option<String>, String> + Send + Sync>;

/// Lists that many of the clients with the most queued data.
pub(crate) type Slowest = Box<dyn Fn(usize) -> Vec<Slowness> + Send + Sync>;

impl Admin {
    /// Not ready from the moment at which `draining` is cancelled.
    pub(crate) fn new(
        readiness: Readiness,
        slowest: Slowest,
        metrics: Arc<Metrics>,
        draining: CancellationToken,
    ) -> Self {
        Self {
            readiness,
            slowest,
            metrics,
            draining,
            generation: None,
            probers: Mutex::default(),
            asked: Notify::new(),
        }
    }

    /// Says in the responses to probes that the node belongs to `generation`.
    pub(crate) fn with_generation(self, generation: Option<u64>) -> Self {
        Self { generation, ..self }
    }

    /// Waits until every prober that requests `/ready` regularly has got the response that the node is stopping, at most for `max`.
    /// Without such probers it returns at once.
    ///
    /// # Cancel safety
    ///
    /// Nothing is lost: the state of probers is kept.
    pub(crate) async fn wait_until_probers_know(&self, max: Duration) {
        let end = Instant::now() + max;
        loop {
            let now = Instant::now().into_std();
            let until = self.probers.lock().wait_until(now, end.into_std());
            let Some(until) = until else { break };
            tokio::select! {
                () = self.asked.notified() => {}
                () = time::sleep_until(until.into()) => {}
            }
        }
        let (told, pending) = {
            let probers = self.probers.lock();
            (probers.told(), probers.pending(Instant::now().into_std()))
        };
        info!(
            probers = told,
            "draining: all probers of /ready got the response"
        );
        if !pending.is_empty() {
            warn!(
                probers = pending.join(", "),
                "draining: these ask /ready too rarely to know of it, so their clients may wait for this node; \
                 raise drain.lead_max, or shorten the interval of the health checks"
            );
        }
        if 0 < told {
            time::sleep(SETTLE).await;
        }
    }

    /// Adds the header that the node is stopping, while it is.
    pub(crate) fn announce_drain(&self, headers: &mut HeaderMap) {
        if self.draining.is_cancelled() {
            headers.insert(DRAIN, HeaderValue::from_static("1"));
        }
    }

    /// Whether `path` is served to load balancers, on the clients' listener too.
    pub(crate) fn is_probe(path: &str) -> bool {
        matches!(path, "/live" | "/ready")
    }

    /// The response to a probe; `None` for any other path.
    pub(crate) fn probe(&self, asked: &Asked<'_>) -> Option<Response<Body>> {
        Self::is_probe(asked.path).then(|| self.respond(asked))
    }

    /// The response of the admin listener.
    pub(crate) fn respond(&self, asked: &Asked<'_>) -> Response<Body> {
        let respond: fn(&Self, &Asked<'_>) -> Response<Body> = match asked.path {
            "/live" => |_, _| text(StatusCode::OK, "alive\n"),
            "/ready" => Self::ready,
            "/metrics" => |admin, _| admin.metrics(),
            "/slowest" => |admin, _| admin.slowest(),
            _ => |_, _| text(StatusCode::NOT_FOUND, "not found\n"),
        };
        let mut response = if matches!(*asked.method, Method::GET | Method::HEAD) {
            respond(self, asked)
        } else {
            not_allowed()
        };
        response
            .headers_mut()
            .insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
        response
    }

    fn ready(&self, asked: &Asked<'_>) -> Response<Body> {
        let is_draining = self.draining.is_cancelled();
        let told = if is_draining {
            Told::Draining
        } else {
            Told::Other
        };
        let prober = ProberId::of(asked.headers, asked.peer);
        let now = Instant::now().into_std();
        self.probers.lock().asked(prober, told, now);
        self.asked.notify_one();
        if is_draining {
            let mut response = text(StatusCode::SERVICE_UNAVAILABLE, "draining\n");
            self.announce_drain(response.headers_mut());
            return response;
        }
        let mut response = match (self.readiness)() {
            Ok(None) => text(StatusCode::OK, "ready\n"),
            Ok(Some(note)) => text(StatusCode::OK, format!("ready, but {note}\n")),
            Err(reason) => text(StatusCode::SERVICE_UNAVAILABLE, format!("{reason}\n")),
        };
        if let Some(generation) = self.generation {
            response.headers_mut().insert(GENERATION, generation.into());
        }
        response
    }

    /// The channel clients with the most queued data, as a list in JSON.
    fn slowest(&self) -> Response<Body> {
        let slowest = (self.slowest)(SLOWEST);
        let list = serde_json::to_string(&slowest).expect("names and numbers are JSON");
        let mut response = text(StatusCode::OK, format!("{list}\n"));
        let content_type = HeaderValue::from_static("application/json");
        response
            .headers_mut()
            .insert(header::CONTENT_TYPE, content_type);
        response
    }

    fn metrics(&self) -> Response<Body> {
        let mut response = text(StatusCode::OK, self.metrics.render());
        let content_type = HeaderValue::from_static(metrics::CONTENT_TYPE);
        response
            .headers_mut()
            .insert(header::CONTENT_TYPE, content_type);
        response
    }
}

fn text(status: StatusCode, text: impl Into<Body>) -> Response<Body> {
    let mut response = Response::new(text.into());
    *response.status_mut() = status;
    let content_type = HeaderValue::from_static("text/plain; charset=utf-8");
    response
        .headers_mut()
        .insert(header::CONTENT_TYPE, content_type);
    response
}

fn not_allowed() -> Response<Body> {
    let mut response = Response::new(Body::Empty);
    *response.status_mut() = StatusCode::METHOD_NOT_ALLOWED;
    response
        .headers_mut()
        .insert(header::ALLOW, HeaderValue::from_static("GET, HEAD"));
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    fn admin(draining: &CancellationToken) -> Admin {
        let slowest = Box::new(|_| {
            let transport = "channels_json";
            vec![Slowness {
                client: "a-1".to_owned(),
                user: "ann".to_owned(),
                transport,
                bytes_queued: 7,
            }]
        });
        let readiness = Box::new(|| Err("redis does not respond".to_owned()));
        Admin::new(readiness, slowest, Metrics::new(), draining.clone())
    }

    fn ask(admin: &Admin, method: &Method, path: &str) -> Response<Body> {
        let headers = HeaderMap::from_iter([(header::USER_AGENT, HeaderValue::from_static("lb"))]);
        admin.respond(&Asked {
            method,
            path,
            headers: &headers,
            peer: IpAddr::from([127, 0, 0, 1]),
        })
    }

    #[test]
    fn a_node_without_its_broker_lives_and_is_not_ready() {
        let admin = admin(&CancellationToken::new());
        assert_eq!(ask(&admin, &Method::GET, "/live").status(), 200);
        let ready = ask(&admin, &Method::GET, "/ready");
        assert_eq!(ready.status(), 503);
        assert_eq!(ready.headers().get(DRAIN), None);
        let Body::Whole(body) = ready.into_body() else {
            panic!("a reason is expected")
        };
        assert_eq!(body, "redis does not respond\n");
    }

    #[test]
    fn a_ready_node_may_have_a_note() {
        let readiness = Box::new(|| Ok(Some("redis is full".to_owned())));
        let none = Box::new(|_| Vec::new());
        let admin = Admin::new(readiness, none, Metrics::new(), CancellationToken::new());
        let ready = ask(&admin, &Method::GET, "/ready");
        assert_eq!(ready.status(), 200);
        let Body::Whole(body) = ready.into_body() else {
            panic!("a text is expected")
        };
        assert_eq!(body, "ready, but redis is full\n");
    }

    #[test]
    fn the_slowest_are_named() {
        let admin = admin(&CancellationToken::new());
        let slowest = ask(&admin, &Method::GET, "/slowest");
        assert_eq!(slowest.headers()[header::CONTENT_TYPE], "application/json");
        let Body::Whole(body) = slowest.into_body() else {
            panic!("a list is expected")
        };
        let expected =
            r#"[{"client":"a-1","user":"ann","transport":"channels_json","bytes_queued":7}]"#;
        assert_eq!(body, format!("{expected}\n"));
    }

    #[test]
    fn a_node_of_a_generation_says_so() {
        let of_none = admin(&CancellationToken::new());
        let ready = ask(&of_none, &Method::GET, "/ready");
        assert_eq!(ready.headers().get(GENERATION), None);
        let of_seven = of_none.with_generation(Some(7));
        let ready = ask(&of_seven, &Method::GET, "/ready");
        assert_eq!(ready.headers()[GENERATION], "7");
    }

    #[test]
    fn a_draining_node_says_so() {
        let draining = CancellationToken::new();
        draining.cancel();
        let ready = ask(&admin(&draining), &Method::HEAD, "/ready");
        assert_eq!(ready.status(), 503);
        assert_eq!(ready.headers()[DRAIN], "1");
    }

    #[test]
    fn other_paths_are_not_found_and_other_methods_are_refused() {
        let admin = admin(&CancellationToken::new());
        assert_eq!(ask(&admin, &Method::GET, "/").status(), 404);
        assert_eq!(ask(&admin, &Method::GET, "/live/").status(), 404);
        let refused = ask(&admin, &Method::POST, "/metrics");
        assert_eq!(refused.status(), 405);
        assert_eq!(refused.headers()[header::ALLOW], "GET, HEAD");
    }

    #[test]
    fn the_client_listener_serves_only_probes() {
        let admin = admin(&CancellationToken::new());
        let headers = HeaderMap::new();
        let probe = |path| {
            admin.probe(&Asked {
                method: &Method::GET,
                path,
                headers: &headers,
                peer: IpAddr::from([127, 0, 0, 1]),
            })
        };
        assert!(probe("/live").is_some() && probe("/ready").is_some());
        assert!(probe("/metrics").is_none() && probe("/slowest").is_none());
    }

    #[tokio::test(start_paused = true)]
    async fn a_drain_waits_only_for_regular_probers() {
        let draining = CancellationToken::new();
        let admin = admin(&draining);
        let began = Instant::now();
        ask(&admin, &Method::GET, "/ready");
        admin.wait_until_probers_know(Duration::from_secs(5)).await;
        assert_eq!(began.elapsed(), Duration::ZERO, "it may have been a person");

        time::sleep(Duration::from_secs(2)).await;
        ask(&admin, &Method::GET, "/ready");
        draining.cancel();
        let began = Instant::now();
        let asks = async {
            time::sleep(Duration::from_secs(2)).await;
            ask(&admin, &Method::GET, "/ready");
        };
        tokio::join!(admin.wait_until_probers_know(Duration::from_secs(5)), asks);
        assert_eq!(began.elapsed(), Duration::from_secs(2) + SETTLE);
    }

    #[tokio::test(start_paused = true)]
    async fn a_prober_that_stops_probing_delays_a_drain_until_it_counts_as_gone() {
        let admin = admin(&CancellationToken::new());
        for _ in 0..2 {
            ask(&admin, &Method::GET, "/ready");
            time::sleep(Duration::from_secs(1)).await;
        }
        let began = Instant::now();
        admin.wait_until_probers_know(Duration::from_secs(60)).await;
        // One and a half of its pause and a second, of which one has gone by.
        assert_eq!(began.elapsed(), Duration::from_millis(1500));
    }
}
