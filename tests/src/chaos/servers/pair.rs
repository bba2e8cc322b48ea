//! One primary, to which all nodes connect at one address, and a replica, with a wire to its primary.

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::Result;
use serde_json::{Value, json};
use tokio::time::sleep;

use super::{acked_behind, offsets};
use crate::{
    chaos::{
        kind::Kind,
        record::Record,
        wire::{Condition, Wire},
    },
    harness::{
        loopback,
        redis::{Keeps, Redis},
    },
};

/// The two servers.
#[derive(Debug)]
pub struct Pair {
    /// The way of each node to the primary.
    wires: Vec<Wire>,
    /// Where nodes write.
    primary: Redis,
    /// What follows it.
    replica: Redis,
    /// The replica's way to its primary.
    replication: Wire,
    /// How many servers have been started.
    started: usize,
    directory: PathBuf,
}

impl Pair {
    pub(super) async fn start(nodes: usize, directory: &Path) -> Result<Self> {
        let mut started = 0;
        let primary = server(directory, &mut started).await?;
        let replica = server(directory, &mut started).await?;
        let replication = Wire::start(primary.address()).await?;
        follow(&replica, &replication).await?;
        let mut wires = Vec::new();
        for _ in 0..nodes {
            wires.push(Wire::start(primary.address()).await?);
        }
        Ok(Self {
            wires,
            primary,
            replica,
            replication,
            started,
            directory: directory.to_owned(),
        })
    }

    pub(super) fn broker(&self, node: usize) -> Value {
        json!({ "kind": "redis", "url": self.wires[node].url() })
    }

    pub(super) fn wires(&self, node: usize) -> &[Wire] {
        &self.wires[node..=node]
    }

    pub(super) async fn begin(&mut self, kind: Kind, dice: &mut fastrand::Rng) -> Result<()> {
        match kind {
            Kind::RedisKilled | Kind::RedisEmptied => self.primary.kill().await,
            Kind::SubscribersKilled => {
                let kill = ["CLIENT", "KILL", "TYPE", "pubsub"];
                self.primary.cli(&kill).await.map(drop)
            }
            Kind::PrimaryDemoted => {
                self.replication.set(Condition::Held);
                Ok(())
            }
            Kind::PrimaryReplaced => {
                self.replication.set(Condition::Held);
                sleep(Duration::from_millis(dice.u64(200..1_200))).await;
                self.lose_primary().await
            }
            Kind::RedisFull => self.limit_memory(1).await,
            _ => Ok(()),
        }
    }

    pub(super) async fn end(
        &mut self,
        kind: Kind,
        dice: &mut fastrand::Rng,
        record: &Record,
    ) -> Result<u64> {
        match kind {
            Kind::RedisKilled => self.primary.restart().await?,
            Kind::RedisEmptied => {
                self.primary.forget()?;
                self.primary.restart().await?;
            }
            Kind::PrimaryReplaced => {
                let kept = self.offsets_at_replica(record).await?;
                let lost = acked_behind(record, &kept);
                self.promote_replica().await?;
                return Ok(lost);
            }
            Kind::PrimaryDemoted => {
                let kept = self.offsets_at_replica(record).await?;
                let link_down = Duration::from_millis(dice.u64(200..1_500));
                self.demote_primary(link_down).await?;
                return Ok(acked_behind(record, &kept));
            }
            Kind::RedisFull => self.limit_memory(0).await?,
            _ => {}
        }
        Ok(0)
    }

    pub(super) async fn restore(&mut self, kind: Kind) -> Result<()> {
        match kind {
            Kind::PrimaryReplaced => self.replace_replica().await,
            Kind::RedisKilled | Kind::RedisEmptied | Kind::PrimaryDemoted => {
                self.replica.in_sync().await
            }
            _ => Ok(()),
        }
    }

    pub(super) async fn evict(&self, key: &str) -> Result<()> {
        self.primary.cli(&["DEL", key]).await.map(drop)
    }

    async fn offsets_at_replica(&self, record: &Record) -> Result<Vec<Option<u64>>> {
        let replica = &self.replica;
        offsets(record, async |arguments| replica.cli(arguments).await).await
    }

    /// Ends the primary at once, and all that was under way from and to it.
    async fn lose_primary(&mut self) -> Result<()> {
        self.replication.set(Condition::Cut);
        self.primary.kill().await?;
        for wire in &self.wires {
            wire.set(Condition::Cut);
        }
        Ok(())
    }

    /// Makes the replica the primary, and lets the nodes reach it.
    async fn promote_replica(&mut self) -> Result<()> {
        self.replica.cli(&["REPLICAOF", "NO", "ONE"]).await?;
        std::mem::swap(&mut self.primary, &mut self.replica);
        for wire in &self.wires {
            wire.lead_to(self.primary.address());
            wire.set(Condition::Whole);
        }
        Ok(())
    }

    /// Makes the replica the primary, and has the old one follow it, without hearing it for as long as `link_down`: connections
    /// that lead to that one stay.
    async fn demote_primary(&mut self, link_down: Duration) -> Result<()> {
        self.replica.cli(&["REPLICAOF", "NO", "ONE"]).await?;
        std::mem::swap(&mut self.primary, &mut self.replica);
        for wire in &self.wires {
            wire.lead_to(self.primary.address());
        }
        self.replication = Wire::start(self.primary.address()).await?;
        // For a moment it takes no writes any more, and brings nothing of what its new primary takes.
        self.replication.set(Condition::Held);
        self.replica.follow(self.replication.address).await?;
        sleep(link_down).await;
        self.replication.set(Condition::Whole);
        Ok(())
    }

    /// Starts another replica, and waits until it has everything.
    async fn replace_replica(&mut self) -> Result<()> {
        self.replica = server(&self.directory, &mut self.started).await?;
        self.replication = Wire::start(self.primary.address()).await?;
        follow(&self.replica, &self.replication).await
    }

    /// Sets `maxmemory` of the primary, in bytes; 0: none.
    async fn limit_memory(&self, bytes: usize) -> Result<()> {
        let set = ["CONFIG", "SET", "maxmemory", &bytes.to_string()];
        self.primary.cli(&set).await.map(drop)
    }
}

async fn server(directory: &Path, started: &mut usize) -> Result<Redis> {
    *started += 1;
    let directory = directory.join(format!("redis-{started}"));
    std::fs::create_dir_all(&directory)?;
    Redis::start_that(Keeps::Everything, loopback::own(), &directory).await
}

async fn follow(replica: &Redis, replication: &Wire) -> Result<()> {
    replica.follow(replication.address).await?;
    replica.in_sync().await
}
