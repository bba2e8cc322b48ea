//! Three nodes on a Redis Cluster of three primaries, beside the same on one Redis.

use std::fs;

use anyhow::{Context as _, Result};
use async_trait::async_trait;

use crate::bench::Options;
use crate::bench::contender::causeway;
use crate::bench::contender::centrifugo::Centrifugo;
use crate::bench::contender::{Contender, Contenders, Place, Running};
use crate::bench::load::Load;
use crate::bench::proc::Family;
use crate::bench::report::Figure;
use crate::bench::scenario::fanout::{deliver, publishing};
use crate::bench::scenario::measuring::Work;
use crate::bench::scenario::{SMALL_BYTES, Scenario, Stage, explained};
use crate::harness::loopback;
use crate::harness::redis::Redis;
use crate::harness::redis_cluster::RedisCluster;

const NODES: usize = 3;
const PRIMARIES: usize = 3;
const CLIENTS: usize = 1_500;
/// Enough for each primary to have its share of them.
const CHANNELS: usize = 30;
/// Of all channels together: 50 deliveries each.
const PER_SECOND: u32 = 300;

/// The same clients and nodes on both.
pub(super) struct Cluster;

pub(super) static THREE: Cluster = Cluster;

/// What a run of one of them took.
struct Took {
    nodes: f64,
    redis: f64,
    p99: f64,
    lost: f64,
}

#[async_trait(?Send)]
impl Scenario for Cluster {
    fn name(&self) -> &'static str {
        "three-nodes-cluster"
    }

    fn title(&self) -> &'static str {
        "three nodes through a Redis Cluster"
    }

    fn work(&self, options: &Options) -> String {
        format!(
            "{} clients on {CHANNELS} channels of {NODES} nodes, {PER_SECOND} messages of {SMALL_BYTES} B a second for {} s: through one \
             Redis, then through a cluster of {PRIMARIES} primaries",
            options.clients(CLIENTS),
            options.duration().as_secs_f64()
        )
    }

    fn contenders(&self) -> Contenders {
        &[&causeway::Channels, &Centrifugo]
    }

    fn peer(&self) -> &'static str {
        "causeway-channels"
    }

    fn shown(&self) -> &'static [&'static str] {
        &["CPU of a delivery, cluster"]
    }

    async fn measure(&self, contender: &dyn Contender, options: &Options) -> Result<Vec<Figure>> {
        let stage = Stage::new(options)?;
        let one = {
            let mut redis = Redis::start(loopback::own(), stage.scratch.path()).await?;
            let place = Place {
                redis: Some(redis.address()),
                ..stage.place()
            };
            let servers = start(contender, &place).await?;
            fan_out(&servers, &[redis.process().pid()], options)?
        };
        let cluster = RedisCluster::start(loopback::own(), stage.scratch.path(), PRIMARIES, 0);
        let cluster = cluster.await?;
        let primaries = cluster.servers.iter();
        let (addresses, pids): (Vec<_>, Vec<_>) = primaries
            .map(|server| (server.address(), server.pid()))
            .unzip();
        let place = Place {
            redis_cluster: &addresses,
            ..stage.place()
        };
        let servers = start(contender, &place).await?;
        let many = fan_out(&servers, &pids, options)?;
        Ok(vec![
            Figure::microseconds("CPU of a delivery, one Redis", one.nodes),
            Figure::microseconds("CPU of a delivery, cluster", many.nodes),
            Figure::times("cluster to one", many.nodes / one.nodes),
            Figure::microseconds("and of one Redis", one.redis),
            Figure::microseconds("and of the cluster", many.redis),
            Figure::milliseconds("p99, one Redis", one.p99),
            Figure::milliseconds("p99, cluster", many.p99),
            Figure::percent("lost, one Redis", one.lost),
            Figure::percent("lost, cluster", many.lost),
        ])
    }
}

/// The nodes, which clients take turns with.
async fn start(contender: &dyn Contender, place: &Place<'_>) -> Result<Running> {
    let mut servers = Vec::new();
    for number in 0..NODES {
        let directory = place.directory.join(format!("node{number}"));
        fs::create_dir_all(&directory)?;
        let place = Place {
            directory: &directory,
            ..*place
        };
        servers.push(contender.start(&place).await?);
    }
    let server = servers.into_iter().reduce(Running::beside);
    server.context("no node was started")
}

/// Delivers for a while; `redis` are the processes of Redis.
fn fan_out(server: &Running, redis: &[i32], options: &Options) -> Result<Took> {
    explained(server, deliver_to_all(server, redis, options))
}

fn deliver_to_all(server: &Running, redis: &[i32], options: &Options) -> Result<Took> {
    let clients = options.clients(CLIENTS);
    let channels = CHANNELS.min(clients);
    let mut load = Load::new(server.clients().with_channels(channels))?;
    load.open(clients / channels * channels)?;
    let publishing = publishing(PER_SECOND, SMALL_BYTES, clients / channels);
    let broker = redis.iter().map(|pid| Work::of(Family::of(*pid)?));
    let broker: Vec<Work> = broker.collect::<Result<_>>()?;
    let (cpu, published) = deliver(server, &mut load, publishing, options)?;
    // What Redis did in the warm-up is in it too, and so are the deliveries of that time.
    let share =
        options.duration().as_secs_f64() / (options.duration() + options.warm_up()).as_secs_f64();
    let redis = broker
        .iter()
        .map(|work| work.per_unit(published.deliveries));
    let redis = redis.sum::<Result<f64>>()? * share;
    Ok(Took {
        nodes: cpu,
        redis,
        p99: published.latency.quantile_ms(0.99),
        lost: published.lost_percent(),
    })
}
