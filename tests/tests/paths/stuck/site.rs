//! One edge with two listeners, plain and TLS, and the backend behind it.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use anyhow::{Context as _, Result};
use causeway_tests::harness::{
    edge::{self, Edge},
    http,
    scratch::Scratch,
    settings::Settings,
    tls::Authority,
    wait,
};
use rustls::ClientConfig;
use serde_json::json;
use tokio::net::TcpStream;

use crate::site::{free_address, open};

use super::{Http2Client, backend::Backend};

/// For what clients leave behind to be gone.
const GONE: Duration = Duration::from_secs(60);

/// The fields are dropped in this order.
pub(crate) struct Site {
    pub(crate) edge: Edge,
    pub(crate) tls: SocketAddr,
    pub(crate) http1: Arc<ClientConfig>,
    pub(crate) http2: Arc<ClientConfig>,
    pub(crate) backend: Backend,
    _scratch: Scratch,
}

impl Site {
    /// Starts all of it, with more settings of the edge.
    pub(crate) async fn start(more: impl FnOnce(Settings) -> Settings) -> Result<Self> {
        let scratch = Scratch::new("stuck")?;
        let backend = Backend::start()?;
        let authority = Authority::new(scratch.path())?;
        let certificates = scratch.path().join("certificates");
        std::fs::create_dir(&certificates)?;
        authority.renew(&certificates)?;
        let (plain, tls) = (free_address()?, free_address()?);
        let settings = edge::settings(&[("b1", backend.address)])
            .with(
                "listeners",
                json!([
                    { "address": plain.to_string() },
                    { "address": tls.to_string(), "tls": { "folder": certificates } },
                ]),
            )
            .with("websockets_over_http2", json!(true))
            .with("health.kind", json!("tcp"))
            .with("health.timeout", json!("10s"))
            .with("timeouts.connect", json!("10s"))
            .with("log.access", json!("off"));
        let mut edge = Edge::start(&more(settings), scratch.path()).await?;
        edge.address = plain;
        edge.backend_in_state("b1", "up").await?;
        for address in [plain, tls] {
            wait::until("the edge to listen", wait::SOON, async || {
                TcpStream::connect(address).await.ok()
            })
            .await?;
        }
        Ok(Self {
            edge,
            tls,
            http1: authority.clients("http/1.1")?,
            http2: authority.clients("h2")?,
            backend,
            _scratch: scratch,
        })
    }

    /// Has the edge do all that is done later once before its memory is read.
    pub(super) async fn warm_up(&self) -> Result<()> {
        http::get(self.edge.address, "/").await?;
        let client = Http2Client::connect(self, h2::client::Builder::new()).await?;
        client.get("/").await?;
        drop(client);
        self.nothing_left().await
    }

    /// Waits until the edge has nothing open of any client.
    pub(crate) async fn nothing_left(&self) -> Result<()> {
        let gone = wait::until("nothing to be left", GONE, async || {
            let page = http::get(self.edge.admin, "/metrics").await.ok()?.text();
            open(&page).is_empty().then_some(())
        });
        if let Err(error) = gone.await {
            let page = http::get(self.edge.admin, "/metrics").await?.text();
            return Err(error).with_context(|| format!("the edge still has {:?}", open(&page)));
        }
        Ok(())
    }
}
