//! Hooks: requests to the application's backend that decide whether a client may connect, stay, subscribe or publish.
//!
//! Each is a POST with JSON, and so is its response; both have the format of Centrifugo's proxy, so that backends that
//! were written for it work here. [`request`] and [`response`] do no I/O, [`call`] sends the requests.
//!
//! Invariant: of each hook at most `open` requests are in flight, and each is cancelled after `timeout`, however the
//! backend behaves. Data of clients and backends is never logged.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;
use std::time::Instant;

use ::http::HeaderMap;
use bytes::Bytes;
use serde::Serialize;
use tracing::warn;

use crate::auth::grant::ConnectGrant;
use crate::auth::grant::SubscribeGrant;
use crate::config;
use crate::config::DataKind;
use crate::logging::Throttle;
use crate::metrics::Hook;
use crate::metrics::HookOutcome;
use crate::metrics::Metrics;
use crate::protocol::ProtocolError;

mod call;
mod headers;
mod request;
mod response;

pub(crate) use headers::BadHeaders;
pub(crate) use headers::ClientHeaders;
pub(crate) use request::Connecting;
pub(crate) use request::HookClient;
pub(crate) use response::PublishGrant;
pub(crate) use response::Refreshed;

use call::Backend;
use call::HookCalls;
use call::HookError;
use response::HookResponse;

/// Why a hook grants nothing.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Refusal {
    /// The application responds with an error, which is passed on to the client.
    Error(ProtocolError),
    /// The application disconnects the client.
    Disconnect {
        /// 3000 to 4999; from 3500 to 3999 and from 4500 on, the client does not reconnect.
        code: u32,
        /// As text.
        reason: String,
    },
    /// There is no valid response; the log has the reason. The client may retry.
    Failed,
}

/// The application has not accepted lifecycle events.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct NotTaken;

/// Calls the backend.
pub(crate) struct Hooks {
    config: config::Hooks,
    calls: Calls,
    backend: Backend,
    failures: Throttle,
    metrics: Arc<Metrics>,
}

/// The calls of each hook; `None`: it is not configured.
struct Calls {
    connect: Option<HookCalls>,
    refresh: Option<HookCalls>,
    subscribe: Option<HookCalls>,
    sub_refresh: Option<HookCalls>,
    publish: Option<HookCalls>,
    rpc: Option<HookCalls>,
    lifecycle: Option<HookCalls>,
}

impl Calls {
    fn new(config: &config::Hooks) -> Self {
        let calls = |hook: &Option<config::Hook>| hook.clone().map(HookCalls::new);
        Self {
            connect: calls(&config.connect),
            refresh: calls(&config.refresh),
            subscribe: calls(&config.subscribe),
            sub_refresh: calls(&config.sub_refresh),
            publish: calls(&config.publish),
            rpc: calls(&config.rpc),
            lifecycle: calls(&config.lifecycle),
        }
    }

    fn of(&self, hook: Hook) -> Option<&HookCalls> {
        let calls = match hook {
            Hook::Connect => &self.connect,
            Hook::Refresh => &self.refresh,
            Hook::Subscribe => &self.subscribe,
            Hook::SubRefresh => &self.sub_refresh,
            Hook::Publish => &self.publish,
            Hook::Rpc => &self.rpc,
            Hook::Lifecycle => &self.lifecycle,
        };
        calls.as_ref()
    }
}

impl Hooks {
    /// Calls the addresses in `config`. Connections are made with the first request.
    pub(crate) fn new(config: config::Hooks, metrics: Arc<Metrics>) -> Arc<Self> {
        Arc::new(Self {
            calls: Calls::new(&config),
            backend: Backend::new(&config),
            config,
            failures: Throttle::default(),
            metrics,
        })
    }

    /// Whether the application decides about clients that connect without a token.
    pub(crate) fn has_connect(&self) -> bool {
        self.config.connect.is_some()
    }

    /// Whether the application decides about clients that [`connect`](Self::connect) accepted, when their connection expires.
    pub(crate) fn has_refresh(&self) -> bool {
        self.config.refresh.is_some()
    }

    /// Names of the session values that are sent with a request.
    pub(crate) fn values(&self) -> &[String] {
        &self.config.values
    }

    /// Whether the application decides about subscriptions that [`subscribe`](Self::subscribe) granted, when they
    /// expire.
    pub(crate) fn has_sub_refresh(&self) -> bool {
        self.config.sub_refresh.is_some()
    }

    /// Whether clients may call the application (RPC).
    pub(crate) fn has_rpc(&self) -> bool {
        self.config.rpc.is_some()
    }

    /// The headers of a client's request that are forwarded with its hook requests. To be kept with the client.
    pub(crate) fn forwarded(&self, request: &HeaderMap) -> ClientHeaders {
        ClientHeaders::of_request(&self.config.forward_headers, request)
    }

    /// The same of the headers in its `connect`; those of its request, `forwarded`, are not replaced.
    ///
    /// # Errors
    ///
    /// [`BadHeaders`]: the client cannot connect with them.
    pub(crate) fn emulated(
        &self,
        forwarded: &ClientHeaders,
        connect: &BTreeMap<String, String>,
    ) -> Result<ClientHeaders, BadHeaders> {
        forwarded.emulated(&self.config.emulated_headers, connect)
    }

    /// Asks whether a client may connect, and as which user.
    ///
    /// # Errors
    ///
    /// [`Refusal`], as for all requests.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future cancels the request; the backend may have received it.
    pub(crate) async fn connect(
        &self,
        asker: &HookClient<'_>,
        connecting: &Connecting<'_>,
    ) -> Result<ConnectGrant, Refusal> {
        let hook_request = request::connect(asker, connecting);
        self.call(Hook::Connect, asker, &hook_request, response::connect)
            .await
    }

    /// Asks whether a client whose connection expires may stay.
    ///
    /// # Errors
    ///
    /// See [`connect`](Self::connect).
    pub(crate) async fn refresh(&self, asker: &HookClient<'_>) -> Result<Refreshed, Refusal> {
        let hook_request = request::refresh(asker);
        self.call(Hook::Refresh, asker, &hook_request, response::refresh)
            .await
    }

    /// Asks whether a client may subscribe to `channel`; `data` is from its request.
    ///
    /// # Errors
    ///
    /// See [`connect`](Self::connect).
    pub(crate) async fn subscribe(
        &self,
        asker: &HookClient<'_>,
        channel: &str,
        token: &str,
        data: &Bytes,
    ) -> Result<SubscribeGrant, Refusal> {
        let hook_request = request::subscribe(asker, channel, token, data);
        self.call(Hook::Subscribe, asker, &hook_request, response::subscribe)
            .await
    }

    /// Asks whether a client whose subscription of `channel` expires may keep it.
    ///
    /// # Errors
    ///
    /// See [`connect`](Self::connect).
    pub(crate) async fn sub_refresh(
        &self,
        asker: &HookClient<'_>,
        channel: &str,
    ) -> Result<Refreshed, Refusal> {
        let hook_request = request::sub_refresh(asker, channel);
        self.call(Hook::SubRefresh, asker, &hook_request, response::refresh)
            .await
    }

    /// Asks whether a client may publish `data` in `channel`, which carries data of this `kind`.
    ///
    /// # Errors
    ///
    /// See [`connect`](Self::connect).
    pub(crate) async fn publish(
        &self,
        asker: &HookClient<'_>,
        channel: &str,
        data: &Bytes,
        kind: DataKind,
    ) -> Result<PublishGrant, Refusal> {
        let hook_request = request::publish(asker, channel, data);
        let read = |response: &[u8]| response::publish(response, kind);
        self.call(Hook::Publish, asker, &hook_request, read).await
    }

    /// Passes a client's RPC request to the application; returns the data of the response.
    ///
    /// # Errors
    ///
    /// See [`connect`](Self::connect).
    pub(crate) async fn rpc(
        &self,
        asker: &HookClient<'_>,
        method: &str,
        data: &Bytes,
    ) -> Result<Bytes, Refusal> {
        let hook_request = request::rpc(asker, method, data);
        self.call(Hook::Rpc, asker, &hook_request, response::rpc)
            .await
    }

    /// How long a request with lifecycle events may take; `None`: there is no hook for them.
    pub(crate) fn lifecycle_timeout(&self) -> Option<Duration> {
        self.config.lifecycle.as_ref().map(|hook| hook.timeout)
    }

    /// Sends lifecycle events, which the application accepts with a status of 200 to 299.
    ///
    /// # Errors
    ///
    /// [`NotTaken`]: the log has the reason. The application may have received them.
    pub(crate) async fn lifecycle(&self, events: &impl Serialize) -> Result<(), NotTaken> {
        let none = ClientHeaders::default();
        let answered = match &self.calls.lifecycle {
            None => Err(HookError::NoAddress),
            Some(calls) => self.backend.call(calls, [&none, &none], events).await,
        };
        let (outcome, taken) = match answered {
            Err(HookError::Status(status)) if status.is_success() => (HookOutcome::Granted, Ok(())),
            Ok(_) => (HookOutcome::Granted, Ok(())),
            Err(error) => {
                self.warn_of(Hook::Lifecycle, &error);
                (HookOutcome::Failed, Err(NotTaken))
            }
        };
        self.metrics.hook(Hook::Lifecycle, outcome);
        taken
    }

    async fn call<T>(
        &self,
        hook: Hook,
        asker: &HookClient<'_>,
        hook_request: &impl Serialize,
        read: impl Fn(&[u8]) -> Result<HookResponse<T>, HookError>,
    ) -> Result<T, Refusal> {
        let answered = match self.calls.of(hook) {
            None => Err(HookError::NoAddress),
            Some(calls) => self.backend.call(calls, asker.headers, hook_request).await,
        };
        let (outcome, response) = match answered.and_then(|response| read(&response)) {
            Ok(HookResponse::Granted(granted)) => (HookOutcome::Granted, Ok(granted)),
            Ok(HookResponse::Error(error)) => (HookOutcome::Refused, Err(Refusal::Error(error))),
            Ok(HookResponse::Disconnect { code, reason }) => {
                let refusal = Refusal::Disconnect { code, reason };
                (HookOutcome::Refused, Err(refusal))
            }
            Err(error) => {
                self.warn_of(hook, &error);
                (HookOutcome::Failed, Err(Refusal::Failed))
            }
        };
        self.metrics.hook(hook, outcome);
        response
    }

    fn warn_of(&self, hook: Hook, error: &HookError) {
        if let Some(held_back) = self.failures.admit(Instant::now()) {
            let hook = hook.as_str();
            let source = std::error::Error::source(error).map(tracing::field::display);
            warn!(hook, %error, source, held_back, "hook failed");
        }
    }
}

#[cfg(test)]
mod tests;
