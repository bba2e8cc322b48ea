//! Memory of idle clients of relays: read when they are fresh, and again after a large message.

use anyhow::Result;
use async_trait::async_trait;

use crate::bench::Options;
use crate::bench::contender::causeway;
use crate::bench::contender::tungstenite::Tungstenite;
use crate::bench::contender::uwebsockets::Uwebsockets;
use crate::bench::contender::ws::Ws;
use crate::bench::contender::{Contender, Contenders, Running};
use crate::bench::dialect::Dialect;
use crate::bench::load::{Load, Plan};
use crate::bench::report::Figure;
use crate::bench::scenario::measuring::{Memory, Work};
use crate::bench::scenario::{FRESH_BYTES, LARGE_BYTES, Scenario, Stage, explained, fanout};

const CLIENTS: usize = 4_000;

/// Idle clients of an endpoint that sends back what each of them sends.
pub(super) struct Echo {
    name: &'static str,
    title: &'static str,
    kind: &'static str,
    contenders: Contenders,
    dialect: fn() -> Dialect,
}

/// Idle clients that share one channel.
pub(super) struct Channel;

pub(super) static ECHO: Echo = Echo {
    name: "node-idle",
    title: "relay: idle client of an echo endpoint",
    kind: "clients of an echo endpoint",
    contenders: &[&causeway::Node, &Tungstenite, &Uwebsockets, &Ws],
    dialect: || Dialect::websocket("/echo"),
};

pub(super) static SOCKJS: Echo = Echo {
    name: "node-sockjs",
    title: "relay: idle SockJS client",
    kind: "SockJS clients of an echo endpoint over WebSocket",
    contenders: &[&causeway::Node],
    dialect: || Dialect::sockjs("/sockjs"),
};

pub(super) static CHANNEL: Channel = Channel;

#[async_trait(?Send)]
impl Scenario for Echo {
    fn name(&self) -> &'static str {
        self.name
    }

    fn title(&self) -> &'static str {
        self.title
    }

    fn work(&self, options: &Options) -> String {
        format!("{} {}, idle", options.clients(CLIENTS), self.kind)
    }

    fn contenders(&self) -> Contenders {
        self.contenders
    }

    fn peer(&self) -> &'static str {
        match self.contenders.len() {
            1 => "causeway-node",
            _ => "uwebsockets",
        }
    }

    fn shown(&self) -> &'static [&'static str] {
        &["fresh"]
    }

    fn rounds(&self) -> usize {
        1
    }

    async fn measure(&self, contender: &dyn Contender, options: &Options) -> Result<Vec<Figure>> {
        let stage = Stage::new(options)?;
        let server = contender.start(&stage.place()).await?;
        let plan = Plan::new(server.address, (self.dialect)());
        explained(
            &server,
            echoed(plan, &server, options.clients(CLIENTS), options),
        )
    }
}

#[async_trait(?Send)]
impl Scenario for Channel {
    fn name(&self) -> &'static str {
        "node-channel"
    }

    fn title(&self) -> &'static str {
        "relay: idle client on a channel"
    }

    fn work(&self, options: &Options) -> String {
        format!("{} clients on one channel, idle", options.clients(CLIENTS))
    }

    fn contenders(&self) -> Contenders {
        fanout::RELAYS
    }

    fn peer(&self) -> &'static str {
        "uwebsockets"
    }

    fn shown(&self) -> &'static [&'static str] {
        &["fresh"]
    }

    fn rounds(&self) -> usize {
        1
    }

    async fn measure(&self, contender: &dyn Contender, options: &Options) -> Result<Vec<Figure>> {
        let stage = Stage::new(options)?;
        let server = contender.start(&stage.place()).await?;
        explained(&server, spread(&server, options.clients(CLIENTS), options))
    }
}

/// Reads memory of clients on one channel, before and after a large message reached all of them.
fn spread(server: &Running, clients: usize, options: &Options) -> Result<Vec<Figure>> {
    let large = "after 60 KB to each";
    idle(
        server.clients(),
        server,
        clients,
        options,
        Load::spread,
        large,
    )
}

/// Opens clients that are echoed, and reads memory when they are fresh and after a large
/// message each way.
pub(super) fn echoed(
    plan: Plan,
    server: &Running,
    clients: usize,
    options: &Options,
) -> Result<Vec<Figure>> {
    let large = "after 60 KB each way";
    idle(plan, server, clients, options, Load::exchange, large)
}

/// Opens clients, and reads their memory after a small message and after a large one, which `message` has them get; `large` is
/// what the second reading is called.
fn idle(
    plan: Plan,
    server: &Running,
    clients: usize,
    options: &Options,
    message: fn(&mut Load, usize) -> Result<()>,
    large: &'static str,
) -> Result<Vec<Figure>> {
    let memory = Memory::new(server)?;
    let work = Work::start(server)?;
    let mut load = Load::new(plan)?;
    load.open(clients)?;
    let connect = work.per_unit(clients as u64)?;
    message(&mut load, FRESH_BYTES)?;
    load.idle(options.settle())?;
    let fresh = memory.per_client(clients)?;
    message(&mut load, LARGE_BYTES)?;
    load.idle(options.settle())?;
    let used = memory.per_client(clients)?;
    Ok(vec![
        Figure::kilobytes("fresh", fresh),
        Figure::kilobytes(large, used),
        Figure::microseconds("CPU to connect", connect),
    ])
}
