//! A primary and two replicas that three Sentinels watch.
//!
//! ```text
//! node ──wire, one for each node and server──▶ server ◀──route, one for each server── Sentinels, replicas
//!   └──front, which names wires──▶ Sentinel
//! ```
//! Servers call themselves by their routes, so a route that is held cuts a server off from Sentinels and replicas, but not from
//! nodes.

use std::{fs, path::Path, time::Duration};

use anyhow::{Result, ensure};
use serde_json::{Value, json};
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
        redis::{Keeps, Redis},
        sentinel::{self, MASTER, WatchedConfig},
        wait,
    },
};

const REPLICAS: usize = 2;

/// A pause between two looks at all servers, each of which takes several processes.
const LOOK: Duration = Duration::from_millis(50);

/// The servers and the ways to them.
#[derive(Debug)]
pub struct Watched {
    redis: sentinel::Watched,
    /// By server.
    routes: Vec<Wire>,
    /// By node and server.
    wires: Vec<Vec<Wire>>,
    /// By node and Sentinel.
    fronts: Vec<Vec<Wire>>,
    /// The primary that something was done to last.
    victim: usize,
    /// The node that is cut off from the Sentinels.
    late: Option<usize>,
}

impl Watched {
    pub(super) async fn start(nodes: usize, directory: &Path) -> Result<Self> {
        let host = loopback::own();
        let (mut servers, mut routes): (Vec<Redis>, Vec<Wire>) = (Vec::new(), Vec::new());
        for number in 0..=REPLICAS {
            let directory = directory.join(format!("redis-{number}"));
            fs::create_dir_all(&directory)?;
            let mut server = Redis::start_that(Keeps::Everything, host, &directory).await?;
            let route = Wire::start_on(host, server.address(), Vec::new()).await?;
            server.announce(route.address).await?;
            if let Some(primary) = servers.first() {
                server.follow(primary.announced()).await?;
            }
            servers.push(server);
            routes.push(route);
        }
        let config = WatchedConfig {
            replicas: REPLICAS,
            failover_timeout: "1000",
            ..WatchedConfig::default()
        };
        let redis = sentinel::Watched::watch(servers, host, directory, config).await?;
        let (mut wires, mut fronts) = (Vec::new(), Vec::new());
        for _ in 0..nodes {
            let (mut to_servers, mut renamed) = (Vec::new(), Vec::new());
            for server in &redis.servers {
                let wire = Wire::start_on(host, server.address(), Vec::new()).await?;
                let ports = [server.announced().port(), wire.address.port()];
                let [old, new] = ports.map(|port| format!("$5\r\n{port}\r\n"));
                ensure!(old.len() == new.len(), "ports of different lengths");
                renamed.push((old, new));
                to_servers.push(wire);
            }
            let mut to_sentinels = Vec::new();
            for sentinel in &redis.sentinels {
                let front = Wire::start_on(host, sentinel.address(), renamed.clone()).await?;
                to_sentinels.push(front);
            }
            wires.push(to_servers);
            fronts.push(to_sentinels);
        }
        Ok(Self {
            redis,
            routes,
            wires,
            fronts,
            victim: 0,
            late: None,
        })
    }

    pub(super) fn broker(&self, node: usize) -> Value {
        let fronts = self.fronts[node].iter();
        let servers: Vec<String> = fronts.map(|front| front.address.to_string()).collect();
        json!({ "kind": "redis", "sentinel": { "master": MASTER, "servers": servers } })
    }

    pub(super) fn wires(&self, node: usize) -> &[Wire] {
        &self.wires[node]
    }

    pub(super) async fn begin(
        &mut self,
        kind: Kind,
        dice: &mut fastrand::Rng,
        record: &Record,
    ) -> Result<u64> {
        self.victim = self.redis.agreed().await?;
        let victim = self.victim;
        match kind {
            Kind::RedisKilled | Kind::RedisEmptied => self.redis.servers[victim].kill().await?,
            Kind::SubscribersKilled => {
                let kill = ["CLIENT", "KILL", "TYPE", "pubsub"];
                self.redis.servers[victim].cli(&kill).await?;
            }
            Kind::Failover => {
                self.cut_off_late_node(dice);
                self.fail_over().await?;
            }
            Kind::PrimaryPaused => self.redis.servers[victim].freeze(),
            Kind::PrimaryReplaced => {
                let lost = self.cut_off(dice.u64(100..400), record).await?;
                self.redis.servers[victim].kill().await?;
                return Ok(lost);
            }
            Kind::PrimaryDemoted => {
                self.cut_off_late_node(dice);
                return self.cut_off(300, record).await;
            }
            Kind::RedisFull => self.limit_memory(1).await?,
            _ => {}
        }
        Ok(0)
    }

    pub(super) async fn end(&mut self, kind: Kind, dice: &mut fastrand::Rng) -> Result<()> {
        let server = &mut self.redis.servers[self.victim];
        match kind {
            Kind::RedisKilled => server.restart().await?,
            Kind::RedisEmptied => {
                server.forget()?;
                server.restart().await?;
                if dice.bool() {
                    // Before all servers are in sync: the empty one may be promoted. A refusal does not matter.
                    let fail_over = ["SENTINEL", "FAILOVER", MASTER];
                    self.redis.sentinels[0].cli(&fail_over).await?;
                }
            }
            Kind::PrimaryPaused => server.thaw(),
            Kind::PrimaryReplaced | Kind::PrimaryDemoted => {
                self.redis.another_primary(self.victim).await?;
            }
            Kind::Failover => self.failed_over().await?,
            Kind::RedisFull => return self.limit_memory(0).await,
            _ => return Ok(()),
        }
        self.redis.agreed().await?;
        if let Some(node) = self.late.take() {
            // Until then it writes to the old primary, and the others to the new one.
            sleep(Duration::from_millis(dice.u64(100..1_500))).await;
            for front in &self.fronts[node] {
                front.set(Condition::Whole);
            }
        }
        Ok(())
    }

    pub(super) async fn restore(&mut self, kind: Kind) -> Result<()> {
        match kind {
            Kind::PrimaryReplaced => {
                self.routes[self.victim].set(Condition::Whole);
                self.redis.servers[self.victim].restart().await?;
            }
            Kind::PrimaryDemoted => self.routes[self.victim].set(Condition::Whole),
            Kind::RedisKilled | Kind::RedisEmptied | Kind::PrimaryPaused | Kind::Failover => {}
            _ => return Ok(()),
        }
        self.all_follow().await?;
        self.redis.settled().await
    }

    pub(super) async fn evict(&self, key: &str) -> Result<()> {
        let primary = self.redis.primary().await?;
        let deleted = self.redis.servers[primary].cli(&["DEL", key]).await;
        deleted.map(drop)
    }

    /// Cuts a node off from the Sentinels, now and then.
    fn cut_off_late_node(&mut self, dice: &mut fastrand::Rng) {
        if dice.bool() {
            return;
        }
        let node = dice.usize(..self.fronts.len());
        for front in &self.fronts[node] {
            front.set(Condition::Held);
        }
        self.late = Some(node);
    }

    /// Cuts the primary off from Sentinels and replicas. Returns how many writes it has acknowledged `millis` later that no
    /// replica has.
    async fn cut_off(&self, millis: u64, record: &Record) -> Result<u64> {
        self.routes[self.victim].set(Condition::Held);
        let primary = &self.redis.servers[self.victim];
        let kept = offsets(record, async |arguments| primary.cli(arguments).await).await?;
        sleep(Duration::from_millis(millis)).await;
        Ok(acked_behind(record, &kept))
    }

    /// Has a Sentinel fail over. It refuses for as long as it knows of no replica that can be promoted.
    async fn fail_over(&self) -> Result<()> {
        wait::until("a sentinel to fail over", wait::SOON, async || {
            let sentinel = &self.redis.sentinels[0];
            let said = sentinel.cli(&["SENTINEL", "FAILOVER", MASTER]).await.ok()?;
            if said != "OK" {
                sleep(LOOK).await;
                return None;
            }
            Some(())
        })
        .await
    }

    /// Waits until the failover is done. A Sentinel gives one up whose replica takes too long, and does not try again by itself.
    async fn failed_over(&self) -> Result<()> {
        for _ in 0..REQUESTS_MAX {
            let another = self.redis.another_primary(self.victim);
            if let Ok(done) = timeout(REQUEST_AGAIN, another).await {
                return done.map(drop);
            }
            // It refuses while one is under way.
            let fail_over = ["SENTINEL", "FAILOVER", MASTER];
            self.redis.sentinels[0].cli(&fail_over).await?;
        }
        self.redis.another_primary(self.victim).await.map(drop)
    }

    /// Makes all servers but the primary its replicas, and waits until they are in sync. Sentinels would do that too, after ten
    /// seconds.
    async fn all_follow(&self) -> Result<()> {
        wait::until(
            "all servers to follow the primary",
            wait::SOON,
            async || {
                sleep(LOOK).await;
                let primary = self.redis.primary().await.ok()?;
                let address = self.redis.servers[primary].announced();
                let followed = format!("master_port:{}\r\n", address.port());
                let mut are_all = true;
                for (number, server) in self.redis.servers.iter().enumerate() {
                    if number == primary {
                        continue;
                    }
                    let said = server.cli(&["INFO", "replication"]).await.ok()?;
                    if !said.contains(&followed) {
                        server.follow(address).await.ok()?;
                    }
                    are_all &= said.contains(&followed) && said.contains("master_link_status:up");
                }
                are_all.then_some(())
            },
        )
        .await
    }

    /// Sets `maxmemory` of the primary, in bytes, or of all servers to none.
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
