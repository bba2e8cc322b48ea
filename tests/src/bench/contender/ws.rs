//! The npm package ws, with npm redis where there are several nodes.

use anyhow::Result;
use async_trait::async_trait;

use crate::bench::contender::{Contender, Place, Running, installed};

/// A relay of a few lines on ws.
pub(crate) struct Ws;

#[async_trait(?Send)]
impl Contender for Ws {
    fn name(&self) -> &'static str {
        "ws"
    }

    fn settings(&self) -> &'static str {
        "node, one thread, no compression, no UTF-8 validation; several nodes: npm redis, one connection to publish and one to subscribe"
    }

    fn version(&self) -> Result<String> {
        installed::npm_version("ws")
    }

    async fn start(&self, place: &Place<'_>) -> Result<Running> {
        installed::start_node("ws", include_str!("ws.js"), place).await
    }
}
