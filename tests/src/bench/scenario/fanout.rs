//! Fan-out: what is published on a channel goes to all of its clients, and every delivery is counted.

use anyhow::Result;
use async_trait::async_trait;

use crate::bench::Options;
use crate::bench::contender::causeway;
use crate::bench::contender::centrifugo::Centrifugo;
use crate::bench::contender::nchan::Nchan;
use crate::bench::contender::socketio::SocketIo;
use crate::bench::contender::sockjs::Sockjs;
use crate::bench::contender::tungstenite::Tungstenite;
use crate::bench::contender::uwebsockets::Uwebsockets;
use crate::bench::contender::ws::Ws;
use crate::bench::contender::{Contender, Contenders, Place, Running};
use crate::bench::load::{Load, Plan, Published, Publishing};
use crate::bench::report::Figure;
use crate::bench::scenario::measuring::Work;
use crate::bench::scenario::{SMALL_BYTES, Scenario, Stage, explained};

/// All that pass messages on.
pub(super) static RELAYS: Contenders = &[
    &causeway::Node,
    &causeway::Channels,
    &Tungstenite,
    &Uwebsockets,
    &Nchan,
    &Centrifugo,
    &Ws,
    &SocketIo,
    &Sockjs,
];
/// Those that know more than one channel.
static WITH_CHANNELS: Contenders = &[
    &causeway::Channels,
    &Tungstenite,
    &Uwebsockets,
    &Nchan,
    &Centrifugo,
    &Ws,
    &SocketIo,
];
/// Those that serve TLS, one of them by an edge.
static WITH_TLS: Contenders = &[&causeway::Both, &Uwebsockets, &Nchan, &Centrifugo, &Ws];

/// Clients of a channel that take turns in publishing.
const PUBLISHERS: usize = 8;

/// So many clients on channels, and so many messages.
pub(super) struct FanOut {
    name: &'static str,
    title: &'static str,
    clients: usize,
    /// How many share a channel; all of them, if there is none.
    members: Option<usize>,
    per_second: u32,
    wire: Wire,
    contenders: Contenders,
}

/// What clients connect over.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Wire {
    Plain,
    Tls,
}

pub(super) static LIGHT: FanOut = FanOut {
    name: "fanout-light",
    title: "light fan-out",
    clients: 2_000,
    members: None,
    per_second: 40,
    wire: Wire::Plain,
    contenders: RELAYS,
};

pub(super) static HEAVY: FanOut = FanOut {
    name: "fanout-heavy",
    title: "heavy fan-out",
    clients: 1_000,
    members: None,
    per_second: 600,
    wire: Wire::Plain,
    contenders: RELAYS,
};

pub(super) static WIDE: FanOut = FanOut {
    name: "fanout-wide",
    title: "wide fan-out",
    clients: 9_000,
    members: None,
    per_second: 5,
    wire: Wire::Plain,
    contenders: RELAYS,
};

pub(super) static MANY: FanOut = FanOut {
    name: "many-channels",
    title: "many channels of 4",
    clients: 20_000,
    members: Some(4),
    per_second: 2_000,
    wire: Wire::Plain,
    contenders: WITH_CHANNELS,
};

pub(super) static TLS: FanOut = FanOut {
    name: "fanout-tls",
    title: "light fan-out over TLS",
    clients: 1_000,
    members: None,
    per_second: 40,
    wire: Wire::Tls,
    contenders: WITH_TLS,
};

#[async_trait(?Send)]
impl Scenario for FanOut {
    fn name(&self) -> &'static str {
        self.name
    }

    fn title(&self) -> &'static str {
        self.title
    }

    fn work(&self, options: &Options) -> String {
        let clients = options.clients(self.clients);
        let channels = match self.members {
            Some(members) => format!("{} channels of {members}", clients / members),
            None => "one channel".to_owned(),
        };
        let over_tls = match self.wire {
            Wire::Plain => "",
            Wire::Tls => " over TLS",
        };
        format!(
            "{clients} clients{over_tls} on {channels}, {} messages of {SMALL_BYTES} B a second for {} s",
            self.per_second,
            options.duration().as_secs_f64()
        )
    }

    fn contenders(&self) -> Contenders {
        self.contenders
    }

    fn peer(&self) -> &'static str {
        "uwebsockets"
    }

    fn shown(&self) -> &'static [&'static str] {
        &["CPU of a delivery", "p99"]
    }

    async fn measure(&self, contender: &dyn Contender, options: &Options) -> Result<Vec<Figure>> {
        let stage = Stage::new(options)?;
        let (server, plan) = match self.wire {
            Wire::Plain => {
                let server = contender.start(&stage.place()).await?;
                let plan = server.clients();
                (server, plan)
            }
            Wire::Tls => {
                let tls = stage.certificate()?;
                let place = Place {
                    tls: Some(&tls),
                    ..stage.place()
                };
                let server = contender.start(&place).await?;
                let plan = server.tls_clients(&tls)?;
                (server, plan)
            }
        };
        explained(&server, self.run(&server, plan, options))
    }
}

impl FanOut {
    fn run(&self, server: &Running, plan: Plan, options: &Options) -> Result<Vec<Figure>> {
        let clients = options.clients(self.clients);
        let channels = self.members.map_or(1, |members| (clients / members).max(1));
        let mut load = Load::new(plan.with_channels(channels))?;
        load.open(clients)?;
        let publishing = publishing(self.per_second, SMALL_BYTES, clients / channels);
        let (cpu, published) = deliver(server, &mut load, publishing, options)?;
        Ok(figures(cpu, &published, &load))
    }
}

/// Small work for the first clients of each channel.
pub(super) fn publishing(per_second: u32, payload_bytes: usize, members: usize) -> Publishing {
    Publishing {
        publishers: PUBLISHERS.min(members),
        per_second,
        payload_bytes,
    }
}

/// Publishes for a while, then measures it: the CPU time of a delivery in microseconds, and what has come.
pub(super) fn deliver(
    server: &Running,
    load: &mut Load,
    publishing: Publishing,
    options: &Options,
) -> Result<(f64, Published)> {
    load.publish(&publishing, options.warm_up())?;
    let work = Work::start(server)?;
    let published = load.publish(&publishing, options.duration())?;
    let cpu = work.per_unit(published.deliveries)?;
    Ok((cpu, published))
}

/// What every fan-out shows.
pub(super) fn figures(cpu: f64, published: &Published, load: &Load) -> Vec<Figure> {
    vec![
        Figure::microseconds("CPU of a delivery", cpu),
        Figure::milliseconds("p50", published.latency.quantile_ms(0.5)),
        Figure::milliseconds("p99", published.latency.quantile_ms(0.99)),
        Figure::milliseconds("p99.9", published.latency.quantile_ms(0.999)),
        Figure::count("deliveries", published.deliveries as f64),
        Figure::percent("lost", published.lost_percent()),
        Figure::count("clients lost", load.lost() as f64),
    ]
}
