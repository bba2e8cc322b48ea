//! Questions to the application's backend: may this client connect, stay, subscribe, publish, and what does it get.
//!
//! Each is a POST with JSON, and so is its answer; both have the form of Centrifugo's proxy, so that backends that
//! were written for it work here. [`question`] and [`answer`] are plain, [`ask`] does the talking.
//!
//! Invariant: of each hook at most `open` questions are with the backend, and each is given up after `timeout`, however
//! the backend behaves. What a client sent or a backend answered is never in a log line.

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
use crate::logging::Pace;
use crate::metrics::Hook;
use crate::metrics::HookOutcome;
use crate::metrics::Metrics;
use crate::protocol::ProtocolError;

mod answer;
mod ask;
mod headers;
mod question;

pub(crate) use answer::PublishGrant;
pub(crate) use answer::Refreshed;
pub(crate) use headers::BadHeaders;
pub(crate) use headers::ClientHeaders;
pub(crate) use question::Asker;
pub(crate) use question::Connecting;

use answer::Answer;
use ask::Backend;
use ask::HookCalls;
use ask::HookError;

/// Why a hook grants nothing.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Refusal {
    /// The application answers with an error, which the client is told as it is.
    Error(ProtocolError),
    /// The application wants the client to go.
    Disconnect {
        /// 3000 to 4999; from 3500 to 3999 and from 4500 on, the client does not come back.
        code: u32,
        /// For people.
        reason: String,
    },
    /// There is no answer that could be used; the log says why. The client may try again.
    Failed,
}

/// The application has not said that it took lifecycle events.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct NotTaken;

/// Asks the backend.
pub(crate) struct Hooks {
    config: config::Hooks,
    calls: Calls,
    backend: Backend,
    failures: Pace,
    metrics: Arc<Metrics>,
}

/// One of each hook; `None`: it is not asked.
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
    /// Asks where `config` says. Nothing is sent before somebody asks.
    pub(crate) fn new(config: config::Hooks, metrics: Arc<Metrics>) -> Arc<Self> {
        Arc::new(Self {
            calls: Calls::new(&config),
            backend: Backend::new(&config),
            config,
            failures: Pace::default(),
            metrics,
        })
    }

    /// Whether the application decides about clients that connect without a token.
    pub(crate) fn has_connect(&self) -> bool {
        self.config.connect.is_some()
    }

    /// Whether the application decides about clients that [`connect`](Self::connect) let in, when their time is over.
    pub(crate) fn has_refresh(&self) -> bool {
        self.config.refresh.is_some()
    }

    /// Names of the session values that go along with a question.
    pub(crate) fn values(&self) -> &[String] {
        &self.config.values
    }

    /// Whether the application decides about subscriptions that [`subscribe`](Self::subscribe) granted, when their
    /// time is over.
    pub(crate) fn has_sub_refresh(&self) -> bool {
        self.config.sub_refresh.is_some()
    }

    /// Whether clients may ask the application.
    pub(crate) fn has_rpc(&self) -> bool {
        self.config.rpc.is_some()
    }

    /// The headers of a client's request that its questions take along, and no others. To be kept with the client.
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

    /// Asks whether a client may connect, and as whom.
    ///
    /// # Errors
    ///
    /// [`Refusal`], as for all questions.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future of a question gives the answer up; the backend may have heard it.
    pub(crate) async fn connect(
        &self,
        asker: &Asker<'_>,
        connecting: &Connecting<'_>,
    ) -> Result<ConnectGrant, Refusal> {
        let question = question::connect(asker, connecting);
        self.ask(Hook::Connect, asker, &question, answer::connect)
            .await
    }

    /// Asks whether a client whose time is over may stay.
    ///
    /// # Errors
    ///
    /// See [`connect`](Self::connect).
    pub(crate) async fn refresh(&self, asker: &Asker<'_>) -> Result<Refreshed, Refusal> {
        let question = question::refresh(asker);
        self.ask(Hook::Refresh, asker, &question, answer::refresh)
            .await
    }

    /// Asks whether a client may hear `channel`; it said `data` with its wish.
    ///
    /// # Errors
    ///
    /// See [`connect`](Self::connect).
    pub(crate) async fn subscribe(
        &self,
        asker: &Asker<'_>,
        channel: &str,
        token: &str,
        data: &Bytes,
    ) -> Result<SubscribeGrant, Refusal> {
        let question = question::subscribe(asker, channel, token, data);
        self.ask(Hook::Subscribe, asker, &question, answer::subscribe)
            .await
    }

    /// Asks whether a client whose time in `channel` is over may go on hearing it.
    ///
    /// # Errors
    ///
    /// See [`connect`](Self::connect).
    pub(crate) async fn sub_refresh(
        &self,
        asker: &Asker<'_>,
        channel: &str,
    ) -> Result<Refreshed, Refusal> {
        let question = question::sub_refresh(asker, channel);
        self.ask(Hook::SubRefresh, asker, &question, answer::refresh)
            .await
    }

    /// Asks whether a client may publish `data` in `channel`, which carries data of this `kind`.
    ///
    /// # Errors
    ///
    /// See [`connect`](Self::connect).
    pub(crate) async fn publish(
        &self,
        asker: &Asker<'_>,
        channel: &str,
        data: &Bytes,
        kind: DataKind,
    ) -> Result<PublishGrant, Refusal> {
        let question = question::publish(asker, channel, data);
        let read = |answer: &[u8]| answer::publish(answer, kind);
        self.ask(Hook::Publish, asker, &question, read).await
    }

    /// Asks the application what a client asks; returns the data of the answer.
    ///
    /// # Errors
    ///
    /// See [`connect`](Self::connect).
    pub(crate) async fn rpc(
        &self,
        asker: &Asker<'_>,
        method: &str,
        data: &Bytes,
    ) -> Result<Bytes, Refusal> {
        let question = question::rpc(asker, method, data);
        self.ask(Hook::Rpc, asker, &question, answer::rpc).await
    }

    /// How long a request with lifecycle events may take; `None`: they are sent nowhere.
    pub(crate) fn lifecycle_timeout(&self) -> Option<Duration> {
        self.config.lifecycle.as_ref().map(|hook| hook.timeout)
    }

    /// Sends lifecycle events, which the application has taken if it responds with a status of 200 to 299.
    ///
    /// # Errors
    ///
    /// [`NotTaken`]: the log says why. The application may have taken them all the same.
    pub(crate) async fn lifecycle(&self, events: &impl Serialize) -> Result<(), NotTaken> {
        let none = ClientHeaders::default();
        let answered = match &self.calls.lifecycle {
            None => Err(HookError::NoAddress),
            Some(calls) => self.backend.ask(calls, [&none, &none], events).await,
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

    async fn ask<T>(
        &self,
        hook: Hook,
        asker: &Asker<'_>,
        question: &impl Serialize,
        read: impl Fn(&[u8]) -> Result<Answer<T>, HookError>,
    ) -> Result<T, Refusal> {
        let answered = match self.calls.of(hook) {
            None => Err(HookError::NoAddress),
            Some(calls) => self.backend.ask(calls, asker.headers, question).await,
        };
        let (outcome, answer) = match answered.and_then(|answer| read(&answer)) {
            Ok(Answer::Granted(granted)) => (HookOutcome::Granted, Ok(granted)),
            Ok(Answer::Error(error)) => (HookOutcome::Refused, Err(Refusal::Error(error))),
            Ok(Answer::Disconnect { code, reason }) => {
                let refusal = Refusal::Disconnect { code, reason };
                (HookOutcome::Refused, Err(refusal))
            }
            Err(error) => {
                self.warn_of(hook, &error);
                (HookOutcome::Failed, Err(Refusal::Failed))
            }
        };
        self.metrics.hook(hook, outcome);
        answer
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
