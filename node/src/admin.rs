//! Answers for the operator: is the node alive, is it ready, what does it count, and who is slow.
//!
//! They are on the port of the clients; the edge routes none of them unless it is told to.

use std::sync::Arc;

use http::HeaderName;
use http::HeaderValue;
use http::Method;
use http::Response;
use http::StatusCode;
use http::header;
use tokio_util::sync::CancellationToken;

use crate::broker::Broker;
use crate::channels::Slowness;
use crate::metrics;
use crate::metrics::Metrics;
use crate::transport::Body;

/// Tells the edge that not ready means leaving, not broken.
const DRAIN: HeaderName = HeaderName::from_static("causeway-drain");

/// How many clients `/slowest` names.
const SLOWEST: usize = 20;

/// Answers `/live`, `/ready`, `/metrics` and `/slowest`.
pub(crate) struct Admin {
    broker: Arc<dyn Broker>,
    slowest: Slowest,
    metrics: Arc<Metrics>,
    draining: CancellationToken,
}

/// Names so many of the clients for which most waits.
pub(crate) type Slowest = Box<dyn Fn(usize) -> Vec<Slowness> + Send + Sync>;

impl Admin {
    /// Not ready from the moment at which `draining` is cancelled.
    pub(crate) fn new(
        broker: Arc<dyn Broker>,
        slowest: Slowest,
        metrics: Arc<Metrics>,
        draining: CancellationToken,
    ) -> Self {
        Self {
            broker,
            slowest,
            metrics,
            draining,
        }
    }

    /// The answer if `path` is one of ours.
    pub(crate) fn answer(&self, method: &Method, path: &str) -> Option<Response<Body>> {
        let answer: fn(&Self) -> Response<Body> = match path {
            "/live" => |_| text(StatusCode::OK, "alive\n"),
            "/ready" => Self::ready,
            "/metrics" => Self::metrics,
            "/slowest" => Self::slowest,
            _ => return None,
        };
        let mut response = if matches!(*method, Method::GET | Method::HEAD) {
            answer(self)
        } else {
            not_allowed()
        };
        response
            .headers_mut()
            .insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
        Some(response)
    }

    fn ready(&self) -> Response<Body> {
        if self.draining.is_cancelled() {
            let mut response = text(StatusCode::SERVICE_UNAVAILABLE, "draining\n");
            response
                .headers_mut()
                .insert(DRAIN, HeaderValue::from_static("1"));
            return response;
        }
        match self.broker.readiness() {
            Ok(()) => text(StatusCode::OK, "ready\n"),
            Err(reason) => text(StatusCode::SERVICE_UNAVAILABLE, format!("{reason}\n")),
        }
    }

    /// The channel clients for which most waits, as a list in JSON.
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
    use async_trait::async_trait;
    use bytes::Bytes;

    use super::*;
    use crate::broker::NotReady;
    use crate::broker::PublishError;
    use crate::broker::TryPublishError;
    use crate::channel::ChannelName;

    /// A broker that is not ready, and says why.
    struct Away;

    #[async_trait]
    impl Broker for Away {
        fn try_publish(&self, _: &ChannelName, _: Bytes) -> Result<(), TryPublishError> {
            Ok(())
        }

        async fn publish(&self, _: &ChannelName, _: Bytes) -> Result<(), PublishError> {
            Ok(())
        }

        fn subscribe(&self, _: &ChannelName) {}

        fn unsubscribe(&self, _: &ChannelName) {}

        fn readiness(&self) -> Result<(), NotReady> {
            Err(NotReady("redis does not answer".to_owned()))
        }
    }

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
        Admin::new(Arc::new(Away), slowest, Metrics::new(), draining.clone())
    }

    #[test]
    fn a_node_without_its_broker_lives_and_is_not_ready() {
        let admin = admin(&CancellationToken::new());
        assert_eq!(admin.answer(&Method::GET, "/live").unwrap().status(), 200);
        let ready = admin.answer(&Method::GET, "/ready").unwrap();
        assert_eq!(ready.status(), 503);
        assert_eq!(ready.headers().get(DRAIN), None);
        let Body::Whole(body) = ready.into_body() else {
            panic!("a reason is expected")
        };
        assert_eq!(body, "redis does not answer\n");
    }

    #[test]
    fn the_slowest_are_named() {
        let admin = admin(&CancellationToken::new());
        let slowest = admin.answer(&Method::GET, "/slowest").unwrap();
        assert_eq!(slowest.headers()[header::CONTENT_TYPE], "application/json");
        let Body::Whole(body) = slowest.into_body() else {
            panic!("a list is expected")
        };
        let expected =
            r#"[{"client":"a-1","user":"ann","transport":"channels_json","bytes_queued":7}]"#;
        assert_eq!(body, format!("{expected}\n"));
    }

    #[test]
    fn a_draining_node_says_so() {
        let draining = CancellationToken::new();
        draining.cancel();
        let ready = admin(&draining).answer(&Method::HEAD, "/ready").unwrap();
        assert_eq!(ready.status(), 503);
        assert_eq!(ready.headers()[DRAIN], "1");
    }

    #[test]
    fn other_paths_are_not_ours_and_other_methods_are_refused() {
        let admin = admin(&CancellationToken::new());
        assert!(admin.answer(&Method::GET, "/").is_none());
        assert!(admin.answer(&Method::GET, "/live/").is_none());
        let refused = admin.answer(&Method::POST, "/metrics").unwrap();
        assert_eq!(refused.status(), 405);
        assert_eq!(refused.headers()[header::ALLOW], "GET, HEAD");
    }
}
