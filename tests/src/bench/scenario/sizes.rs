//! Fan-out of messages of several sizes, one after the other on the same server.

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
use crate::bench::scenario::{Scenario, Stage, explained};

const CLIENTS: usize = 200;
const PER_SECOND: u32 = 50;

/// A size, with the names of its figures.
struct Size {
    bytes: usize,
    cpu: &'static str,
    p99: &'static str,
}

static ALL: [Size; 3] = [
    Size {
        bytes: 64,
        cpu: "CPU at 64 B",
        p99: "p99 at 64 B",
    },
    Size {
        bytes: 1_024,
        cpu: "CPU at 1 KB",
        p99: "p99 at 1 KB",
    },
    Size {
        bytes: 16 * 1_024,
        cpu: "CPU at 16 KB",
        p99: "p99 at 16 KB",
    },
];

/// Messages of each size.
pub(super) struct Sizes;

pub(super) static SIZES: Sizes = Sizes;

#[async_trait(?Send)]
impl Scenario for Sizes {
    fn name(&self) -> &'static str {
        "sizes"
    }

    fn title(&self) -> &'static str {
        "fan-out of larger messages"
    }

    fn work(&self, options: &Options) -> String {
        format!(
            "{} clients on one channel, {PER_SECOND} messages of each size a second for {} s",
            options.clients(CLIENTS),
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
        &["CPU at 1 KB", "CPU at 16 KB"]
    }

    fn rounds(&self) -> usize {
        2
    }

    async fn measure(&self, contender: &dyn Contender, options: &Options) -> Result<Vec<Figure>> {
        let stage = Stage::new(options)?;
        let server = contender.start(&stage.place()).await?;
        explained(&server, run(&server, options))
    }
}

fn run(server: &Running, options: &Options) -> Result<Vec<Figure>> {
    let clients = options.clients(CLIENTS);
    let mut load = Load::new(server.clients())?;
    load.open(clients)?;
    let mut figures = Vec::new();
    let (mut due, mut came) = (0, 0);
    for size in &ALL {
        let publishing = publishing(PER_SECOND, size.bytes, clients);
        let (cpu, published) = deliver(server, &mut load, publishing, options)?;
        figures.push(Figure::microseconds(size.cpu, cpu));
        figures.push(Figure::milliseconds(
            size.p99,
            published.latency.quantile_ms(0.99),
        ));
        due += published.due;
        came += published.deliveries;
    }
    let lost = due.saturating_sub(came) as f64 / due.max(1) as f64;
    figures.push(Figure::percent("lost", lost * 100.0));
    Ok(figures)
}
