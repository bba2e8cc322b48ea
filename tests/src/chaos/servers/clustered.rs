//! A Redis Cluster of three primaries with a replica each.
//!
//! ```text
//! node ──wire, one for each node and server──▶ server ◀──route, one for each server── replica
//! ```
//! Servers call themselves by their routes, so a route that is held keeps a replica behind. Nodes are told to use wires in their
//! place (`broker.cluster.announce`).

use std::{net::SocketAddr, path::Path, time::Duration};

use anyhow::{Context as _, Result};
use serde_json::{Map, Value, json};
use tokio::time::{sleep, timeout};

use super::{REQUEST_AGAIN, REQUESTS_MAX, acked_behind, offsets};
use crate::{
    chaos::{
        kind::Kind,
        record::Record,
        wire::{Condition, Wire},
    },
    harness::{
        loopback,
        redis::Keeps,
        redis_cluster::{ClusterConfig, RedisCluster, Server},
        wait,
    },
};

const PRIMARIES: usize = 3;
const REPLICAS: usize = 1;

/// How many keys move at a time.
const KEYS_MOVED: usize = 20;

/// A pause between two looks at all servers, each of which takes several processes.
const LOOK: Duration = Duration::from_millis(50);

/// The servers and the ways to them.
#[derive(Debug)]
pub struct Clustered {
    redis: RedisCluster,
    /// By server.
    routes: Vec<Wire>,
    /// By node and server.
    wires: Vec<Vec<Wire>>,
    /// A key in the slot whose primary something was done to last, and the primary.
    key: String,
    victim: usize,
}

impl Clustered {
    pub(super) async fn start(nodes: usize, directory: &Path) -> Result<Self> {
        let host = loopback::own();
        // They lead somewhere once there are servers.
        let nowhere = SocketAddr::from((host, 1));
        let mut routes = Vec::new();
        for _ in 0..PRIMARIES * (1 + REPLICAS) {
            routes.push(Wire::start_on(host, nowhere, Vec::new()).await?);
        }
        let config = ClusterConfig {
            primaries: PRIMARIES,
            replicas: REPLICAS,
            keeps: Keeps::Everything,
            announced: routes.iter().map(|route| route.address).collect(),
        };
        let lead = |number: usize, address| routes[number].lead_to(address);
        let redis = RedisCluster::start_that(config, lead, host, directory).await?;
        let mut wires = Vec::new();
        for _ in 0..nodes {
            let mut to_servers = Vec::new();
            for server in &redis.servers {
                to_servers.push(Wire::start_on(host, server.address(), Vec::new()).await?);
            }
            wires.push(to_servers);
        }
        Ok(Self {
            redis,
            routes,
            wires,
            key: String::new(),
            victim: 0,
        })
    }

    pub(super) fn broker(&self, node: usize) -> Value {
        let wires = &self.wires[node];
        let servers: Vec<String> = wires.iter().map(|wire| wire.address.to_string()).collect();
        let announce: Map<String, Value> = { self.routes.iter().zip(wires) }
            .map(|(route, wire)| (route.address.to_string(), json!(wire.address)))
            .collect();
        json!({ "kind": "redis", "cluster": { "servers": servers, "announce": announce } })
    }

    pub(super) fn wires(&self, node: usize) -> &[Wire] {
        &self.wires[node]
    }

    /// The wires of `node` to one shard, or now and then to all.
    pub(super) async fn part(&self, node: usize, dice: &mut fastrand::Rng) -> Result<Vec<&Wire>> {
        let wires = &self.wires[node];
        if dice.u8(..4) == 0 {
            return Ok(wires.iter().collect());
        }
        let primaries = self.redis.primaries().await?;
        let primary = dice.choice(primaries).context("there is no primary")?;
        let replica = self.redis.replica_of(primary).await?;
        Ok(vec![&wires[primary], &wires[replica]])
    }

    pub(super) async fn begin(
        &mut self,
        kind: Kind,
        dice: &mut fastrand::Rng,
        record: &Record,
    ) -> Result<u64> {
        self.key = key(record.channel(dice.usize(..record.channels())));
        self.victim = self.redis.primary_of(&self.key).await?;
        let victim = self.victim;
        match kind {
            Kind::RedisKilled | Kind::RedisEmptied => self.redis.servers[victim].kill().await?,
            Kind::SubscribersKilled => {
                let kill = ["CLIENT", "KILL", "TYPE", "pubsub"];
                self.redis.servers[victim].cli(&kill).await?;
            }
            Kind::Failover => self.take_over(&["CLUSTER", "FAILOVER"]).await?,
            Kind::PrimaryPaused => self.redis.servers[victim].freeze(),
            Kind::PrimaryReplaced => {
                let lost = self.hold_replica(dice.u64(200..1_200), record).await?;
                self.redis.servers[victim].kill().await?;
                return Ok(lost);
            }
            Kind::PrimaryDemoted => {
                let lost = self.hold_replica(dice.u64(200..600), record).await?;
                self.take_over(&["CLUSTER", "FAILOVER", "FORCE"]).await?;
                return Ok(lost);
            }
            Kind::SlotsMoved => {
                for _ in 0..dice.usize(1..4) {
                    let channel = dice.usize(..record.channels());
                    self.move_slot(&key(record.channel(channel)), dice).await?;
                }
            }
            Kind::RedisFull => self.limit_memory(1).await?,
            _ => {}
        }
        Ok(0)
    }

    pub(super) async fn end(&mut self, kind: Kind) -> Result<()> {
        let server = &mut self.redis.servers[self.victim];
        match kind {
            Kind::RedisKilled => server.restart().await?,
            Kind::RedisEmptied => {
                server.forget()?;
                server.restart().await?;
            }
            Kind::PrimaryPaused => server.thaw(),
            Kind::PrimaryReplaced | Kind::PrimaryDemoted => {
                self.redis.another_primary(&self.key, self.victim).await?;
            }
            Kind::Failover => self.taken_over().await?,
            Kind::RedisFull => return self.limit_memory(0).await,
            _ => return Ok(()),
        }
        self.covered().await
    }

    pub(super) async fn restore(&mut self, kind: Kind) -> Result<()> {
        match kind {
            Kind::PrimaryReplaced => {
                self.routes[self.victim].set(Condition::Whole);
                self.redis.servers[self.victim].restart().await?;
            }
            Kind::PrimaryDemoted => self.routes[self.victim].set(Condition::Whole),
            Kind::RedisKilled
            | Kind::RedisEmptied
            | Kind::PrimaryPaused
            | Kind::Failover
            | Kind::SlotsMoved => {}
            _ => return Ok(()),
        }
        self.redis.settled().await
    }

    pub(super) async fn evict(&self, key: &str, channel: Option<&str>) -> Result<()> {
        // Each node's lease has a name of its own.
        let Some(channel) = channel else {
            return Ok(());
        };
        let primary = self.redis.primary_of(&self::key(channel)).await?;
        let deleted = self.redis.servers[primary].cli(&["DEL", key]).await;
        deleted.map(drop)
    }

    /// Keeps the victim's replica behind. Returns how many writes the victim has acknowledged `millis` later that it does not
    /// have.
    async fn hold_replica(&self, millis: u64, record: &Record) -> Result<u64> {
        self.routes[self.victim].set(Condition::Held);
        let primary = &self.redis.servers[self.victim];
        let kept = offsets(record, async |arguments| primary.cli(arguments).await).await?;
        sleep(Duration::from_millis(millis)).await;
        Ok(acked_behind(record, &kept))
    }

    /// Has the victim's replica take its place.
    async fn take_over(&self, command: &[&str]) -> Result<()> {
        let replica = self.redis.replica_of(self.victim).await?;
        let replica = &self.redis.servers[replica];
        wait::until("a replica to take over", wait::SOON, async || {
            let said = replica.cli(command).await.ok()?;
            if !said.starts_with("OK") {
                sleep(LOOK).await;
                return None;
            }
            Some(())
        })
        .await
    }

    /// Waits until the failover is done. A replica gives one up that takes too long, and does not try again by itself.
    async fn taken_over(&self) -> Result<()> {
        for _ in 0..REQUESTS_MAX {
            let another = self.redis.another_primary(&self.key, self.victim);
            if let Ok(done) = timeout(REQUEST_AGAIN, another).await {
                return done.map(drop);
            }
            // It refuses if it is the primary by now.
            let replica = self.redis.replica_of(self.victim).await?;
            let replica = &self.redis.servers[replica];
            replica.cli(&["CLUSTER", "FAILOVER"]).await?;
        }
        let another = self.redis.another_primary(&self.key, self.victim);
        another.await.map(drop)
    }

    async fn move_slot(&self, key: &str, dice: &mut fastrand::Rng) -> Result<()> {
        let from = self.redis.primary_of(key).await?;
        let mut others = self.redis.primaries().await?;
        others.retain(|other| *other != from);
        let to = dice.choice(others).context("there is no other primary")?;
        let slot = self.redis.open_slot(key, to).await?;
        let moved = self.redis.move_keys_by(KEYS_MOVED, &slot, from, to);
        moved.await?;
        self.redis.close_slot(&slot, from, to).await
    }

    /// Waits until the victim's slots have a primary again, as all servers see it.
    async fn covered(&self) -> Result<()> {
        let is_up = |server: &&Server| server.is_up();
        wait::until("all slots to have a primary", wait::SOON, async || {
            sleep(LOOK).await;
            for server in self.redis.servers.iter().filter(is_up) {
                let said = server.cli(&["CLUSTER", "INFO"]).await.ok()?;
                said.contains("cluster_state:ok").then_some(())?;
            }
            let primary = self.redis.primary_of(&self.key).await.ok()?;
            self.redis.servers[primary].is_up().then_some(())
        })
        .await
    }

    /// Sets `maxmemory` of the victim, in bytes, or of all servers to none.
    async fn limit_memory(&self, bytes: usize) -> Result<()> {
        let set = ["CONFIG", "SET", "maxmemory", &bytes.to_string()];
        for (number, server) in self.redis.servers.iter().enumerate() {
            if bytes == 0 || number == self.victim {
                server.cli(&set).await?;
            }
        }
        Ok(())
    }
}

/// A key in the slot of all that is kept of a channel.
fn key(channel: &str) -> String {
    format!("{{{channel}}}")
}
