//! Requests to the server API: its path, its keys, its limit of bodies.

use std::error::Error;
use std::sync::Arc;

use bytes::Bytes;
use http::HeaderValue;
use http::Method;
use http::Response;
use http::StatusCode;
use http::header;
use http::request::Parts;

use crate::server::api::Api;
use crate::server::routing::body;
use crate::server::routing::body::BodyLimits;
use crate::server::routing::method_not_allowed;
use crate::server::routing::text;
use crate::transport::Body;

/// The API and its place.
pub(crate) struct ApiMount {
    /// All below it are methods.
    pub(crate) path: String,
    pub(crate) api: Arc<Api>,
}

impl ApiMount {
    /// The method that `path` names, if it is here.
    pub(super) fn method<'a>(&self, path: &'a str) -> Option<&'a str> {
        let rest = path.strip_prefix(self.path.as_str())?;
        match rest.strip_prefix('/') {
            Some(method) => Some(method),
            None => rest.is_empty().then_some(""),
        }
    }

    /// Responds to a request for `method`.
    ///
    /// # Cancel safety
    ///
    /// After dropping this future it is unknown whether the method was executed.
    pub(super) async fn respond<B>(
        &self,
        method: &str,
        parts: &Parts,
        body: B,
        limits: BodyLimits,
    ) -> Response<Body>
    where
        B: http_body::Body<Data = Bytes> + Send,
        B::Error: Into<Box<dyn Error + Send + Sync>>,
    {
        if parts.method != Method::POST {
            return method_not_allowed("POST");
        }
        // Before anything else: a client without a key gets no information.
        if !self.api.admit(&parts.headers) {
            return text(
                StatusCode::UNAUTHORIZED,
                "one of the keys is expected, as \"X-API-Key: KEY\" or \"Authorization: apikey KEY\"\n",
            );
        }
        let body = match body::read(body, limits).await {
            Ok(body) => body,
            Err(error) => {
                error.log(parts.uri.path(), limits);
                return text(error.status(), format!("{error}\n"));
            }
        };
        let (status, json) = self.api.respond(method, &body).await;
        let mut response = Response::new(Body::Whole(json));
        *response.status_mut() = status;
        let headers = response.headers_mut();
        let json = HeaderValue::from_static("application/json");
        headers.insert(header::CONTENT_TYPE, json);
        let no_store = HeaderValue::from_static("no-store");
        headers.insert(header::CACHE_CONTROL, no_store);
        response
    }
}
