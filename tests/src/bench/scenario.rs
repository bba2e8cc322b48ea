//! What is measured: one kind of work, done by each contender in turn on fresh processes.

mod edge;
mod node;
pub(crate) mod sessions;

use std::time::Duration;

use anyhow::{Context as _, Result};

use crate::bench::Options;
use crate::bench::certificate::Certificate;
use crate::bench::contender::{Contender, Place, Running};
use crate::bench::load::{Load, Plan};
use crate::bench::proc::Family;
use crate::bench::report::Figure;
use crate::harness::scratch::Scratch;

/// The message whose echo shows that a fresh connection works.
const FRESH_BYTES: usize = 4;
/// What goes each way before memory is read a second time.
const LARGE_BYTES: usize = 60 * 1_024;
/// The size of the messages whose CPU time is measured.
const SMALL_BYTES: usize = 64;

/// One kind of work.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Scenario {
    /// Memory of idle proxied WebSockets, and the cost of opening them.
    EdgeIdle,
    /// The same over TLS.
    EdgeIdleTls,
    /// CPU of a round trip through a proxied WebSocket.
    EdgeEcho,
    /// The same over TLS.
    EdgeEchoTls,
    /// CPU of a request on a connection that is kept.
    EdgeHttp,
    /// Memory of idle clients of an echo endpoint.
    NodeIdle,
    /// Memory of idle clients of a SockJS echo endpoint, over WebSocket.
    NodeSockjs,
    /// Memory of idle clients of a relay endpoint, which all share one channel.
    NodeChannel,
    /// Memory of SockJS sessions of clients that poll, between two polls and during one.
    NodePolling,
    /// Memory of SockJS sessions whose clients have gone, and what is left of it.
    NodeAbandoned,
    /// CPU of a delivery: many clients, few messages.
    FanoutLight,
    /// CPU of a delivery: fewer clients, very many messages.
    FanoutHeavy,
}

impl Scenario {
    /// What the contenders have to do.
    pub(crate) fn work(self, options: &Options) -> String {
        let clients = self.clients(options);
        let seconds = options.duration().as_secs_f64();
        match self {
            Self::EdgeIdle => format!("{clients} proxied WebSockets, idle"),
            Self::EdgeIdleTls => format!("{clients} proxied WebSockets over TLS, idle"),
            Self::EdgeEcho | Self::EdgeEchoTls => {
                let over_tls = if self == Self::EdgeEcho {
                    ""
                } else {
                    " over TLS"
                };
                format!(
                    "{clients} proxied WebSockets{over_tls} echo {SMALL_BYTES} B without a pause for {seconds} s"
                )
            }
            Self::EdgeHttp => {
                format!("{clients} keep-alive connections ask without a pause for {seconds} s")
            }
            Self::NodeIdle => format!("{clients} clients of an echo endpoint, idle"),
            Self::NodeSockjs => {
                format!("{clients} SockJS clients of an echo endpoint over WebSocket, idle")
            }
            Self::NodeChannel => format!("{clients} clients on one channel, idle"),
            Self::NodePolling => format!("{clients} SockJS clients that poll, idle"),
            Self::NodeAbandoned => {
                format!("{clients} SockJS sessions whose clients do not come back")
            }
            Self::FanoutLight | Self::FanoutHeavy => format!(
                "{clients} clients on one channel, {} messages of {SMALL_BYTES} B a second for {seconds} s",
                self.messages_per_second()
            ),
        }
    }

    /// Who takes part.
    pub(crate) fn contenders(self) -> &'static [Contender] {
        match self {
            edge if edge.is_of_edge() => &[
                Contender::CausewayProxy,
                Contender::Haproxy,
                Contender::Nginx,
                Contender::Pingora,
            ],
            Self::NodeSockjs | Self::NodePolling | Self::NodeAbandoned => {
                &[Contender::CausewayNode]
            }
            _ => &[
                Contender::CausewayNode,
                Contender::Tungstenite,
                Contender::Ws,
            ],
        }
    }

    /// Whose figures the others are divided by.
    pub(crate) fn peer(self) -> Contender {
        match self {
            Self::EdgeIdle | Self::EdgeIdleTls => Contender::Haproxy,
            Self::EdgeEcho | Self::EdgeEchoTls => Contender::Nginx,
            Self::EdgeHttp => Contender::Pingora,
            Self::NodeSockjs | Self::NodePolling | Self::NodeAbandoned => Contender::CausewayNode,
            _ => Contender::Tungstenite,
        }
    }

    /// Whether the contenders stand in front of a backend of ours.
    fn is_of_edge(self) -> bool {
        match self {
            Self::EdgeIdle
            | Self::EdgeIdleTls
            | Self::EdgeEcho
            | Self::EdgeEchoTls
            | Self::EdgeHttp => true,
            Self::NodeIdle
            | Self::NodeSockjs
            | Self::NodeChannel
            | Self::NodePolling
            | Self::NodeAbandoned
            | Self::FanoutLight
            | Self::FanoutHeavy => false,
        }
    }

    /// Runs the work once on a fresh process of `contender`.
    pub(crate) async fn measure(
        self,
        contender: Contender,
        options: &Options,
    ) -> Result<Vec<Figure>> {
        let scratch = Scratch::new("bench")?;
        let (backend, tls) = match self.is_of_edge() {
            true => (
                Some(edge::start_backend(scratch.path()).await?),
                Some(Certificate::new(scratch.path())?),
            ),
            false => (None, None),
        };
        let place = Place {
            directory: scratch.path(),
            threads: options.threads,
            backend: backend.as_ref().map(|backend| backend.address),
            tls: tls.as_ref(),
        };
        let server = contender.start(&place).await?;
        let figures = match self {
            Self::EdgeIdle => edge::idle(&server, None, self, options).await,
            Self::EdgeIdleTls => edge::idle(&server, tls.as_ref(), self, options).await,
            Self::EdgeEcho => edge::echo(&server, None, self, options).await,
            Self::EdgeEchoTls => edge::echo(&server, tls.as_ref(), self, options).await,
            Self::EdgeHttp => edge::http(&server, self, options).await,
            Self::NodeIdle => idle(
                Plan::websocket(server.address, "/echo"),
                &server,
                self,
                options,
            ),
            Self::NodeSockjs => idle(
                Plan::sockjs(server.address, "/sockjs"),
                &server,
                self,
                options,
            ),
            Self::NodeChannel => node::channel(&server, self, options),
            Self::NodePolling => sessions::polling(&server, self, options).await,
            Self::NodeAbandoned => sessions::abandoned(&server, self, options).await,
            Self::FanoutLight | Self::FanoutHeavy => node::fan_out(&server, self, options),
        };
        figures.with_context(|| server.tail())
    }

    fn clients(self, options: &Options) -> usize {
        options.connections.unwrap_or(match (options.quick, self) {
            (true, _) => 50,
            (false, Self::NodeAbandoned) => 20_000,
            (
                false,
                Self::NodePolling
                | Self::EdgeIdle
                | Self::EdgeIdleTls
                | Self::NodeIdle
                | Self::NodeSockjs
                | Self::NodeChannel,
            ) => 4_000,
            (false, Self::EdgeEcho | Self::EdgeEchoTls | Self::EdgeHttp) => 64,
            (false, Self::FanoutLight) => 2_000,
            (false, Self::FanoutHeavy) => 1_000,
        })
    }

    fn messages_per_second(self) -> u32 {
        match self {
            Self::FanoutHeavy => 600,
            _ => 40,
        }
    }
}

/// Opens clients that are echoed, and reads memory when they are fresh and after a large
/// message each way.
fn idle(
    plan: Plan,
    server: &Running,
    scenario: Scenario,
    options: &Options,
) -> Result<Vec<Figure>> {
    let clients = scenario.clients(options);
    let memory = Memory::new(server)?;
    let work = Work::start(server)?;
    let mut load = Load::new(plan)?;
    load.open(clients)?;
    let connect = work.per_unit(clients as u64)?;
    load.exchange(FRESH_BYTES)?;
    load.idle(options.settle())?;
    let fresh = memory.per_client(clients)?;
    load.exchange(LARGE_BYTES)?;
    load.idle(options.settle())?;
    let used = memory.per_client(clients)?;
    Ok(vec![
        Figure::kilobytes("fresh", fresh),
        Figure::kilobytes("after 60 KB each way", used),
        Figure::microseconds("CPU to connect", connect),
    ])
}

/// What a server's memory was before its clients came, to be taken off what it is afterwards.
struct Memory {
    family: Family,
    baseline: u64,
}

impl Memory {
    fn new(server: &Running) -> Result<Self> {
        let family = server.family()?;
        let baseline = family.pss()?;
        Ok(Self { family, baseline })
    }

    /// The bytes that each of so many clients takes now.
    fn per_client(&self, clients: usize) -> Result<f64> {
        Ok(self.family.pss()?.saturating_sub(self.baseline) as f64 / clients as f64)
    }
}

/// What a server's CPU time was before some work began.
struct Work {
    family: Family,
    before: Duration,
}

impl Work {
    fn start(server: &Running) -> Result<Self> {
        let family = server.family()?;
        let before = family.cpu()?;
        Ok(Self { family, before })
    }

    /// The microseconds of CPU time that each of so many units took.
    fn per_unit(&self, units: u64) -> Result<f64> {
        let used = self.family.cpu()?.saturating_sub(self.before);
        Ok(used.as_secs_f64() * 1_000_000.0 / units.max(1) as f64)
    }
}
