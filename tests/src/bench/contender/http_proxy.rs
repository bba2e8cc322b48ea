//! The npm package http-proxy.

use anyhow::Result;
use async_trait::async_trait;

use crate::bench::contender::{Contender, Place, Running, installed};
use crate::bench::dialect::Dialect;

/// An edge of a few lines on http-proxy.
pub(crate) struct HttpProxy;

#[async_trait(?Send)]
impl Contender for HttpProxy {
    fn name(&self) -> &'static str {
        "http-proxy"
    }

    fn settings(&self) -> &'static str {
        "node, one thread, kept connections to the backend, X-Forwarded-*, neither affinity nor health check"
    }

    fn version(&self) -> Result<String> {
        installed::npm_version("http-proxy")
    }

    async fn start(&self, place: &Place<'_>) -> Result<Running> {
        let script = include_str!("http_proxy.js");
        let running = installed::start_node("http-proxy", script, place).await?;
        Ok(running.speaking(Dialect::websocket("/")))
    }
}
