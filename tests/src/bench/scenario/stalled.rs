//! Clients that read nothing any more beside good ones, who must not notice.

use anyhow::Result;
use async_trait::async_trait;

use crate::bench::Options;
use crate::bench::contender::causeway;
use crate::bench::contender::centrifugo::Centrifugo;
use crate::bench::contender::nchan::Nchan;
use crate::bench::contender::tungstenite::Tungstenite;
use crate::bench::contender::uwebsockets::Uwebsockets;
use crate::bench::contender::ws::Ws;
use crate::bench::contender::{Contender, Contenders, Running};
use crate::bench::load::Load;
use crate::bench::report::Figure;
use crate::bench::scenario::fanout::{deliver, publishing};
use crate::bench::scenario::measuring::Memory;
use crate::bench::scenario::{Scenario, Stage, explained};

const CLIENTS: usize = 300;
const PER_SECOND: u32 = 80;
/// Large enough to fill what the kernel takes for a client, some megabytes, in a few seconds.
const PAYLOAD_BYTES: usize = 16 * 1_024;

/// The same work without, and then with stalled readers.
pub(super) struct Stalled;

pub(super) static STALLED: Stalled = Stalled;

#[async_trait(?Send)]
impl Scenario for Stalled {
    fn name(&self) -> &'static str {
        "stalled"
    }

    fn title(&self) -> &'static str {
        "1 % of the readers stalled"
    }

    fn work(&self, options: &Options) -> String {
        let clients = options.clients(CLIENTS);
        format!(
            "{clients} clients on one channel, {PER_SECOND} messages of {PAYLOAD_BYTES} B a second: without, then with {} of them \
             reading nothing, for {} s each",
            stalled(clients),
            options.duration().as_secs_f64()
        )
    }

    fn contenders(&self) -> Contenders {
        &[
            &causeway::Node,
            &causeway::Channels,
            &Tungstenite,
            &Uwebsockets,
            &Nchan,
            &Centrifugo,
            &Ws,
        ]
    }

    fn peer(&self) -> &'static str {
        "uwebsockets"
    }

    fn shown(&self) -> &'static [&'static str] {
        &["with to without"]
    }

    async fn measure(&self, contender: &dyn Contender, options: &Options) -> Result<Vec<Figure>> {
        let stage = Stage::new(options)?;
        let server = contender.start(&stage.place()).await?;
        explained(&server, run(&server, options))
    }
}

fn run(server: &Running, options: &Options) -> Result<Vec<Figure>> {
    let clients = options.clients(CLIENTS);
    let stalled = stalled(clients);
    let mut load = Load::new(server.clients())?;
    load.open(clients)?;
    let (_, without) = deliver(
        server,
        &mut load,
        publishing(PER_SECOND, PAYLOAD_BYTES, clients - stalled),
        options,
    )?;
    let memory = Memory::new(server)?;
    load.stall(stalled);
    let (cpu, with) = deliver(
        server,
        &mut load,
        publishing(PER_SECOND, PAYLOAD_BYTES, clients - stalled),
        options,
    )?;
    let kept = memory.per_client(stalled)?;
    let p99 = [&without, &with].map(|published| published.latency.quantile_ms(0.99));
    Ok(vec![
        Figure::milliseconds("p99 without", p99[0]),
        Figure::milliseconds("p99 with", p99[1]),
        Figure::times("with to without", p99[1] / p99[0].max(0.001)),
        Figure::kilobytes("memory for each that stalls", kept),
        Figure::microseconds("CPU of a delivery", cpu),
        Figure::percent("lost by the others", with.lost_percent()),
        Figure::count("others lost", load.lost() as f64),
    ])
}

fn stalled(clients: usize) -> usize {
    (clients / 100).max(1)
}
