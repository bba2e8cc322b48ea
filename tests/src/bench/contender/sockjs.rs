//! sockjs-node over WebSocket, with npm redis where there are several nodes.

use anyhow::Result;
use async_trait::async_trait;

use crate::bench::contender::{Contender, Place, Running, installed};
use crate::bench::dialect::Dialect;

/// A relay of a few lines on sockjs-node.
pub(crate) struct Sockjs;

#[async_trait(?Send)]
impl Contender for Sockjs {
    fn name(&self) -> &'static str {
        "sockjs"
    }

    fn settings(&self) -> &'static str {
        "node, one thread, no log; several nodes: npm redis, one connection to publish and one to subscribe"
    }

    fn version(&self) -> Result<String> {
        installed::npm_version("sockjs")
    }

    async fn start(&self, place: &Place<'_>) -> Result<Running> {
        let running = installed::start_node("sockjs", include_str!("sockjs.js"), place).await?;
        Ok(running.speaking(Dialect::sockjs("/sockjs")))
    }
}
