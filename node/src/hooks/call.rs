//! One request to the backend and its response over HTTP.

use std::error::Error;
use std::sync::Arc;
use std::time::Duration;

use ::http::HeaderMap;
use ::http::HeaderValue;
use ::http::Request;
use ::http::StatusCode;
use ::http::header;
use bytes::Bytes;
use http_body_util::BodyExt;
use http_body_util::Full;
use http_body_util::LengthLimitError;
use http_body_util::Limited;
use hyper::rt::Executor;
use hyper_rustls::HttpsConnector;
use hyper_rustls::HttpsConnectorBuilder;
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioTimer;
use rustls::ClientConfig;
use rustls::RootCertStore;
use rustls::crypto::ring;
use serde::Serialize;
use tokio::sync::Semaphore;
use tokio::time;
use tokio_util::task::TaskTracker;
use tracing::warn;

use crate::auth::grant::BadField;
use crate::config;
use crate::hooks::headers::ClientHeaders;
use crate::protocol::BadData;

/// How long an idle connection is kept: less than servers keep theirs, mostly 60 s or more.
const IDLE: Duration = Duration::from_secs(30);

/// Why there is no valid response. A request that was sent is not retried: the backend may have received it.
#[derive(Debug, thiserror::Error)]
pub(super) enum HookError {
    /// The hook is not configured, which the caller should have checked.
    #[error("no address is configured for it")]
    NoAddress,
    /// The limit of open requests was reached for the whole time.
    #[error("{0} requests were already open (setting `open` of the hook) for {1:?}")]
    Crowded(usize, Duration),
    /// The response was not complete in time.
    #[error("no response within {0:?} (setting `timeout` of the hook)")]
    Late(Duration),
    /// The backend cannot be reached, or has closed the connection.
    #[error("cannot reach the backend")]
    Unreachable(#[source] Box<dyn Error + Send + Sync>),
    /// The status is not 200.
    #[error("expected status 200, found {0}")]
    Status(StatusCode),
    /// The response is too large.
    #[error("the response has more than {0} bytes (setting hooks.response_size)")]
    TooLarge(usize),
    /// The response ended early.
    #[error("the response is incomplete")]
    BrokeOff(#[source] Box<dyn Error + Send + Sync>),
    /// The body is not JSON of this form.
    #[error(
        "expected {{\"result\": {{...}}}}, {{\"error\": {{...}}}} or {{\"disconnect\": {{...}}}}"
    )]
    MalformedResponse(#[source] serde_json::Error),
    /// The JSON object has none of the three.
    #[error("expected `result`, `error` or `disconnect`, found none of them")]
    Nothing,
    /// Invalid base64 data.
    #[error(transparent)]
    Field(#[from] BadField),
    /// The data is not JSON, in a namespace of JSON.
    #[error("cannot publish `data`")]
    Data(#[from] BadData),
    /// SDKs use lower codes themselves.
    #[error("expected an error code from 100 on, found {0}")]
    ErrorCode(u32),
    /// WebSocket does not allow the code in a close frame.
    #[error("expected a disconnect code from 3000 to 4999, found {0}")]
    DisconnectCode(u32),
    /// It does not fit into a close frame.
    #[error("expected a reason of at most 123 bytes, found {0}")]
    LongReason(usize),
}

/// The backend, and the pool of connections to it.
pub(super) struct Backend {
    client: Client<HttpsConnector<HttpConnector>, Full<Bytes>>,
    response_bytes_max: usize,
    headers: HeaderMap,
}

/// The address of one hook, and its limit of open requests.
pub(super) struct HookCalls {
    hook: config::Hook,
    pub(super) permits: Semaphore,
}

impl HookCalls {
    pub(super) fn new(hook: config::Hook) -> Self {
        let permits = Semaphore::new(hook.open_max);
        Self { hook, permits }
    }
}

/// Owns the tasks of the connections. They end with the HTTP client.
#[derive(Clone, Default)]
struct Tasks(TaskTracker);

impl<F> Executor<F> for Tasks
where
    F: Future<Output = ()> + Send + 'static,
{
    fn execute(&self, task: F) {
        self.0.spawn(task);
    }
}

impl Backend {
    pub(super) fn new(config: &config::Hooks) -> Self {
        let mut tcp = HttpConnector::new();
        tcp.enforce_http(false);
        tcp.set_nodelay(true);
        let timeouts = config.all().map(|hook| hook.timeout);
        tcp.set_connect_timeout(timeouts.max()); // Each request has its own deadline too.
        let connector = HttpsConnectorBuilder::new()
            .with_tls_config(tls(config))
            .https_or_http()
            .enable_http1()
            .wrap_connector(tcp);
        let client = Client::builder(Tasks::default())
            .pool_timer(TokioTimer::new())
            .pool_idle_timeout(IDLE)
            .pool_max_idle_per_host(config.all().map(|hook| hook.open_max).sum())
            .build(connector);
        let mut headers = HeaderMap::new();
        for (name, value) in &config.headers {
            let value = HeaderValue::from_str(value.expose());
            let mut value = value.expect("the configuration checks it");
            value.set_sensitive(true);
            headers.insert(name, value);
        }
        Self {
            client,
            response_bytes_max: config.response_bytes_max,
            headers,
        }
    }

    /// Sends a request to the hook of `calls` and returns the body of the response.
    ///
    /// # Cancel safety
    ///
    /// Dropping this future closes the connection of the request.
    pub(super) async fn call(
        &self,
        calls: &HookCalls,
        headers: [&ClientHeaders; 2],
        hook_request: &impl Serialize,
    ) -> Result<Bytes, HookError> {
        let HookCalls { hook, permits } = calls;
        let body = serde_json::to_vec(hook_request).expect("it is made of texts and JSON");
        let request = self.request(hook, headers, body);
        let due = time::Instant::now() + hook.timeout;
        let permit = time::timeout_at(due, permits.acquire()).await;
        let _permit = permit
            .map_err(|_| HookError::Crowded(hook.open_max, hook.timeout))?
            .expect("the semaphore is never closed");
        time::timeout_at(due, self.talk(request))
            .await
            .map_err(|_| HookError::Late(hook.timeout))?
    }

    fn request(
        &self,
        hook: &config::Hook,
        headers: [&ClientHeaders; 2],
        body: Vec<u8>,
    ) -> Request<Full<Bytes>> {
        let mut request = Request::new(Full::from(body));
        *request.method_mut() = ::http::Method::POST;
        *request.uri_mut() = hook.address.clone();
        let all = request.headers_mut();
        // Configured headers are set last, so that a client's headers cannot replace them.
        for (name, value) in headers.into_iter().flat_map(ClientHeaders::iter) {
            all.append(name, value.clone());
        }
        for (name, value) in &self.headers {
            all.insert(name, value.clone());
        }
        let json = HeaderValue::from_static("application/json");
        all.insert(header::CONTENT_TYPE, json.clone());
        all.insert(header::ACCEPT, json);
        request
    }

    async fn talk(&self, request: Request<Full<Bytes>>) -> Result<Bytes, HookError> {
        let response = self.client.request(request).await;
        let response = response.map_err(|error| HookError::Unreachable(innermost(error)))?;
        if response.status() != StatusCode::OK {
            return Err(HookError::Status(response.status()));
        }
        let body = Limited::new(response.into_body(), self.response_bytes_max);
        match body.collect().await {
            Ok(body) => Ok(body.to_bytes()),
            Err(error) if error.is::<LengthLimitError>() => {
                Err(HookError::TooLarge(self.response_bytes_max))
            }
            Err(error) => Err(HookError::BrokeOff(error)),
        }
    }
}

/// The causes of a client error in one line, without hyper-util's own generic text.
fn innermost(error: hyper_util::client::legacy::Error) -> Box<dyn Error + Send + Sync> {
    let mut texts = Vec::new();
    let mut cause: Option<&dyn Error> = Some(&error);
    while let Some(error) = cause {
        texts.push(error.to_string());
        cause = error.source();
    }
    texts.join(": ").into()
}

/// The trusted CAs for the backend.
fn tls(config: &config::Hooks) -> ClientConfig {
    let mut roots = RootCertStore::empty();
    if config.ca.is_empty() {
        let is_needed = |hook: &config::Hook| hook.address.scheme_str() == Some("https");
        if config.all().any(is_needed) {
            match rustls_native_certs::load_native_certs() {
                Ok(certificates) => {
                    roots.add_parsable_certificates(certificates);
                }
                Err(error) => {
                    warn!(%error, "cannot read the system's trusted certificates: hooks over https will fail")
                }
            }
        }
    } else {
        roots.add_parsable_certificates(config.ca.iter().cloned());
    }
    ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .expect("ring knows TLS 1.2 and 1.3")
        .with_root_certificates(roots)
        .with_no_client_auth()
}
