//! Answers for the operator: is the node alive, is it ready, what does it count.
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
use crate::metrics;
use crate::metrics::Metrics;
use crate::transport::Body;

/// Tells the edge that not ready means leaving, not broken.
const DRAIN: HeaderName = HeaderName::from_static("causeway-drain");

/// Answers `/live`, `/ready` and `/metrics`.
pub(crate) struct Admin {
    broker: Arc<dyn Broker>,
    metrics: Arc<Metrics>,
    draining: CancellationToken,
}

impl Admin {
    /// Not ready from the moment at which `draining` is cancelled.
    pub(crate) fn new(
        broker: Arc<dyn Broker>,
        metrics: Arc<Metrics>,
        draining: CancellationToken,
    ) -> Self {
        Self {
            broker,
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
        Admin::new(Arc::new(Away), Metrics::new(), draining.clone())
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
