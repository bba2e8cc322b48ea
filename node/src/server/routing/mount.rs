//! An endpoint and its services.

use std::sync::Arc;
use std::time::SystemTime;

use http::HeaderMap;
use http::Response;

use crate::client::relay::Client;
use crate::client::relay::Clients;
use crate::client::session::Delays;
use crate::client::session::Quota;
use crate::client::session::Sessions;
use crate::client::session::SessionsConfig;
use crate::config::AllowedOrigins;
use crate::config::Endpoint;
use crate::config::Live;
use crate::config::Mode;
use crate::config::Protocol;
use crate::config::Sockjs;
use crate::hub::Member;
use crate::hub::outbox::QueueOutbox;
use crate::logging::Throttle;
use crate::metrics::Transport;
use crate::protocol::disconnect::Disconnect;
use crate::server::routing::iframe::IframePage;
use crate::transport::Body;

/// What is served under one path.
pub(crate) struct Mount {
    /// Its settings.
    pub(crate) endpoint: Arc<Endpoint>,
    /// Origins from which browsers may connect. A reload replaces them here, not in `endpoint`.
    pub(crate) allowed_origins: Live<AllowedOrigins>,
    /// Creates its clients.
    pub(crate) clients: Arc<Clients>,
    /// Limits the log lines about rejected origins.
    pub(crate) refusals: Throttle,
    /// Set if it speaks SockJS.
    sockjs: Option<SockjsMount>,
}

/// What only SockJS needs.
pub(crate) struct SockjsMount {
    /// Its own settings.
    pub(crate) settings: Sockjs,
    /// The clients that have no WebSocket.
    pub(crate) sessions: Arc<Sessions>,
    /// Set if it is served.
    iframe: Live<Option<IframePage>>,
}

impl Mount {
    /// Serves `endpoint`; `quota` limits the sessions of all mounts together.
    pub(crate) fn new(endpoint: Arc<Endpoint>, clients: Arc<Clients>, quota: &Arc<Quota>) -> Self {
        let sockjs = match &endpoint.protocol {
            Protocol::Websocket | Protocol::Channels(_) => None,
            Protocol::Sockjs(settings) => {
                let config = SessionsConfig {
                    delays: Delays {
                        heartbeat: settings.heartbeat,
                        disconnect: settings.disconnect_delay,
                    },
                    quota: Arc::clone(quota),
                    close_on_open: (endpoint.mode == Mode::Close).then_some(Disconnect::GO_AWAY),
                    metrics: Arc::clone(&clients.metrics),
                };
                let sessions = Arc::new(Sessions::new(config));
                Some(SockjsMount {
                    settings: settings.clone(),
                    sessions,
                    iframe: Live::new(iframe(settings, &endpoint.allowed_origins)),
                })
            }
        };
        Self {
            allowed_origins: Live::new(endpoint.allowed_origins.clone()),
            endpoint,
            clients,
            refusals: Throttle::default(),
            sockjs,
        }
    }

    /// Replaces the allowed origins.
    pub(crate) fn reload(&self, allowed_origins: AllowedOrigins) {
        if let Some(sockjs) = &self.sockjs {
            sockjs
                .iframe
                .set(iframe(&sockjs.settings, &allowed_origins));
        }
        self.allowed_origins.set(allowed_origins);
    }

    /// What only SockJS needs; for places that only SockJS has.
    pub(crate) fn sockjs(&self) -> &SockjsMount {
        self.sockjs
            .as_ref()
            .expect("a path below a WebSocket endpoint names no place of SockJS")
    }

    /// Its sessions over HTTP, if it speaks SockJS.
    pub(crate) fn sessions(&self) -> Option<&Arc<Sessions>> {
        self.sockjs.as_ref().map(|sockjs| &sockjs.sessions)
    }

    /// The page for frames; for a path that [`route`](super::route) has found.
    pub(crate) fn iframe_page(&self, request: &HeaderMap) -> Response<Body> {
        let page = self.sockjs().iframe.get();
        let page = { &*page }.as_ref();
        let page = page.expect("without `client_script` no path names it");
        page.respond(request, SystemTime::now())
    }

    /// Connects a client whose messages wait for receivers.
    pub(crate) fn connect_session(&self) -> (Arc<QueueOutbox>, Arc<Client>) {
        let outbox = Arc::new(QueueOutbox::new(self.endpoint.outbox_bytes_max));
        let client = self.clients.connect(
            Arc::clone(&self.endpoint),
            Transport::SockjsHttp,
            Member::Queue(Arc::clone(&outbox)),
        );
        (outbox, Arc::new(client))
    }
}

/// The page for frames, if there is one.
fn iframe(settings: &Sockjs, allowed_origins: &AllowedOrigins) -> Option<IframePage> {
    let script = settings.client_script.as_deref()?;
    Some(IframePage::new(script, allowed_origins))
}
