//! Socket.IO over WebSocket, with its Redis adapter where there are several nodes.

use anyhow::Result;
use async_trait::async_trait;

use crate::bench::contender::{Contender, Place, Running, installed};
use crate::bench::dialect::Dialect;

/// A relay of a few lines on Socket.IO.
pub(crate) struct SocketIo;

#[async_trait(?Send)]
impl Contender for SocketIo {
    fn name(&self) -> &'static str {
        "socket.io"
    }

    fn settings(&self) -> &'static str {
        "node, one thread, WebSocket alone, a room for each channel, no compression, the request of the upgrade not kept; \
         several nodes: @socket.io/redis-adapter"
    }

    fn version(&self) -> Result<String> {
        installed::npm_version("socket.io")
    }

    async fn start(&self, place: &Place<'_>) -> Result<Running> {
        let running = installed::start_node("socketio", include_str!("socketio.js"), place).await?;
        let path = "/socket.io/?EIO=4&transport=websocket&channel={}";
        Ok(running.speaking(Dialect::socket_io(path)))
    }
}
