//! uWebSockets, by way of the Python package socketify: Python hears of what clients send, and C++ does the
//! fan-out.

use anyhow::Result;
use async_trait::async_trait;

use crate::bench::contender::{Contender, Place, Running, installed};

/// A relay of a few lines on socketify.
pub(crate) struct Uwebsockets;

#[async_trait(?Send)]
impl Contender for Uwebsockets {
    fn name(&self) -> &'static str {
        "uwebsockets"
    }

    fn settings(&self) -> &'static str {
        "from Python, by publish on a topic for each path, one thread, no compression, no idle timeout, slow clients closed at 256 KB"
    }

    fn version(&self) -> Result<String> {
        installed::python_version("socketify")
    }

    async fn start(&self, place: &Place<'_>) -> Result<Running> {
        installed::start_python("uwebsockets", include_str!("uwebsockets.py"), place).await
    }
}
