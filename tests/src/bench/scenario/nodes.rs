//! Three nodes that share a channel through Redis, beside one node that keeps it in memory.

use std::fs;
use std::net::Ipv4Addr;

use anyhow::{Context as _, Result};
use async_trait::async_trait;

use crate::bench::Options;
use crate::bench::contender::causeway;
use crate::bench::contender::centrifugo::Centrifugo;
use crate::bench::contender::nchan::Nchan;
use crate::bench::contender::socketio::SocketIo;
use crate::bench::contender::sockjs::Sockjs;
use crate::bench::contender::ws::Ws;
use crate::bench::contender::{Contender, Contenders, Place, Running};
use crate::bench::load::Load;
use crate::bench::proc::Family;
use crate::bench::report::Figure;
use crate::bench::scenario::fanout::{deliver, publishing};
use crate::bench::scenario::measuring::Work;
use crate::bench::scenario::{SMALL_BYTES, Scenario, Stage, explained};
use crate::harness::redis::Redis;

const NODES: usize = 3;
const CLIENTS: usize = 1_500;
/// Farther apart than any window of ours, so that a write carries one message wherever it is made. At 100 a second one node has
/// two of them gather and three nodes, with a third of the clients each, one: half the writes, and another comparison.
const PER_SECOND: u32 = 40;

/// The same clients on one node, then on three.
pub(super) struct Nodes;

pub(super) static THREE: Nodes = Nodes;

#[async_trait(?Send)]
impl Scenario for Nodes {
    fn name(&self) -> &'static str {
        "three-nodes"
    }

    fn title(&self) -> &'static str {
        "three nodes through Redis"
    }

    fn work(&self, options: &Options) -> String {
        format!(
            "{} clients on one channel, {PER_SECOND} messages of {SMALL_BYTES} B a second for {} s: on one node in memory, then on \
             {NODES} through Redis",
            options.clients(CLIENTS),
            options.duration().as_secs_f64()
        )
    }

    fn contenders(&self) -> Contenders {
        &[
            &causeway::Node,
            &causeway::Channels,
            &Nchan,
            &Centrifugo,
            &Ws,
            &SocketIo,
            &Sockjs,
        ]
    }

    fn peer(&self) -> &'static str {
        "ws"
    }

    fn shown(&self) -> &'static [&'static str] {
        &["CPU of a delivery, three nodes"]
    }

    async fn measure(&self, contender: &dyn Contender, options: &Options) -> Result<Vec<Figure>> {
        let stage = Stage::new(options)?;
        let alone = {
            let server = contender.start(&stage.place()).await?;
            let fanned = fan_out(&server, options);
            explained(&server, fanned)?.0
        };
        let mut redis = Redis::start(Ipv4Addr::LOCALHOST, stage.scratch.path()).await?;
        let mut servers = Vec::new();
        for number in 0..NODES {
            let directory = stage.scratch.path().join(format!("node{number}"));
            fs::create_dir(&directory)?;
            let place = Place {
                directory: &directory,
                redis: Some(redis.address()),
                ..stage.place()
            };
            servers.push(contender.start(&place).await?);
        }
        let server = servers.into_iter().reduce(Running::beside);
        let server = server.context("no node was started")?;
        let broker = Work::of(Family::of(redis.process().pid())?)?;
        let (three, mut figures, deliveries) = {
            let fanned = fan_out(&server, options);
            explained(&server, fanned)?
        };
        // What Redis did in the warm-up is in it too, and so are the deliveries of that time.
        let share = options.duration().as_secs_f64()
            / (options.duration() + options.warm_up()).as_secs_f64();
        let broker = broker.per_unit(deliveries)? * share;
        let mut all = vec![
            Figure::microseconds("CPU of a delivery, one node", alone),
            Figure::microseconds("CPU of a delivery, three nodes", three),
            Figure::times("three to one", three / alone),
            Figure::microseconds("and of Redis", broker),
        ];
        all.append(&mut figures);
        Ok(all)
    }
}

/// The CPU time of a delivery, further figures, and how many deliveries there were.
fn fan_out(server: &Running, options: &Options) -> Result<(f64, Vec<Figure>, u64)> {
    let clients = options.clients(CLIENTS);
    let mut load = Load::new(server.clients())?;
    load.open(clients)?;
    let publishing = publishing(PER_SECOND, SMALL_BYTES, clients);
    let (cpu, published) = deliver(server, &mut load, publishing, options)?;
    let figures = vec![
        Figure::milliseconds("p50", published.latency.quantile_ms(0.5)),
        Figure::milliseconds("p99", published.latency.quantile_ms(0.99)),
        Figure::percent("lost", published.lost_percent()),
        Figure::count("clients lost", load.lost() as f64),
    ];
    Ok((cpu, figures, published.deliveries))
}
