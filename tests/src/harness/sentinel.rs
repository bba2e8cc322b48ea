//! A primary with replicas, and Sentinels that watch it.

use std::{
    fs,
    net::{Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::{Value, json};
use tokio::process::Command;

use crate::harness::{
    process::{Process, Signal},
    programs,
    redis::{self, Redis},
    wait,
};

/// What the Sentinels call the primary.
pub const MASTER: &str = "main";

/// What a [`Watched`] is made of.
#[derive(Clone, Copy, Debug)]
pub struct WatchedConfig<'a> {
    /// How many replicas.
    pub replicas: usize,
    /// How many Sentinels.
    pub sentinels: usize,
    /// How long a server is silent before a Sentinel calls it down, in milliseconds.
    pub down_after: &'a str,
    /// From one failover to the next half as long at least, in milliseconds.
    pub failover_timeout: &'a str,
}

impl Default for WatchedConfig<'_> {
    fn default() -> Self {
        Self {
            replicas: 1,
            sentinels: 3,
            down_after: "500",
            failover_timeout: "4000",
        }
    }
}

/// Redis servers of which one is the primary, and the Sentinels that watch it.
#[derive(Debug)]
pub struct Watched {
    /// All servers; the first one was the first primary.
    pub servers: Vec<Redis>,
    /// The Sentinels.
    pub sentinels: Vec<Sentinel>,
}

/// A running Sentinel.
#[derive(Debug)]
pub struct Sentinel {
    process: Process,
    address: SocketAddr,
    directory: PathBuf,
}

impl Watched {
    /// Starts all of it on `host`, and waits until every replica is in sync and every Sentinel knows all others.
    ///
    /// # Errors
    ///
    /// One of them did not start.
    pub async fn start(
        host: Ipv4Addr,
        directory: &Path,
        config: WatchedConfig<'_>,
    ) -> Result<Self> {
        let mut servers: Vec<Redis> = Vec::new();
        for number in 0..=config.replicas {
            let directory = directory.join(format!("redis-{number}"));
            fs::create_dir_all(&directory)?;
            let mut server = Redis::start(host, &directory).await?;
            // Connections on loopback leave from another address than the one that it listens on.
            server.announce(server.address()).await?;
            if let Some(primary) = servers.first() {
                server.follow(primary.address()).await?;
            }
            servers.push(server);
        }
        Self::watch(servers, host, directory, config).await
    }

    /// The same with `servers` that run already: a primary and its replicas.
    ///
    /// # Errors
    ///
    /// A Sentinel did not start.
    pub async fn watch(
        servers: Vec<Redis>,
        host: Ipv4Addr,
        directory: &Path,
        config: WatchedConfig<'_>,
    ) -> Result<Self> {
        for replica in &servers[1..] {
            replica.in_sync().await?;
        }
        let mut sentinels = Vec::new();
        for number in 0..config.sentinels {
            let directory = directory.join(format!("sentinel-{number}"));
            fs::create_dir_all(&directory)?;
            let primary = servers[0].announced();
            sentinels.push(Sentinel::start(host, &directory, primary, config).await?);
        }
        let watched = Self { servers, sentinels };
        watched.settled().await?;
        Ok(watched)
    }

    /// What goes into `broker.sentinel` or `discover.sentinel`.
    #[must_use]
    pub fn settings(&self) -> Value {
        let servers: Vec<String> = { self.sentinels.iter() }
            .map(|sentinel| sentinel.address.to_string())
            .collect();
        json!({ "master": MASTER, "servers": servers })
    }

    /// The index of the server that the first running Sentinel names.
    ///
    /// # Errors
    ///
    /// It names none of the servers.
    pub async fn primary(&self) -> Result<usize> {
        for sentinel in &self.sentinels {
            let Ok(said) = sentinel
                .cli(&["SENTINEL", "get-master-addr-by-name", MASTER])
                .await
            else {
                continue;
            };
            let address = said.split_ascii_whitespace().collect::<Vec<_>>().join(":");
            let mut servers = self.servers.iter();
            let index = servers.position(|server| server.announced().to_string() == address);
            return index.with_context(|| format!("a sentinel names {address}"));
        }
        bail!("no sentinel responds")
    }

    /// Waits until every Sentinel names one primary that is one, and knows a replica that may take its place and all other
    /// Sentinels.
    ///
    /// # Errors
    ///
    /// It did not come to that soon.
    pub async fn settled(&self) -> Result<()> {
        wait::until("the sentinels to agree", wait::SOON, async || {
            self.agreed_now().await?;
            for sentinel in &self.sentinels {
                let replicas = sentinel.cli(&["SENTINEL", "REPLICAS", MASTER]).await.ok()?;
                (field(&replicas, "flags") == Some("slave")).then_some(())?;
            }
            Some(())
        })
        .await
    }

    /// Waits until every Sentinel names one primary that is one, and knows all other Sentinels. Returns its index.
    ///
    /// # Errors
    ///
    /// It did not come to that soon.
    pub async fn agreed(&self) -> Result<usize> {
        let agreed = async || self.agreed_now().await;
        wait::until("the sentinels to name one primary", wait::SOON, agreed).await
    }

    async fn agreed_now(&self) -> Option<usize> {
        let others = (self.sentinels.len() - 1).to_string();
        let primary = self.primary().await.ok()?;
        let role = self.servers[primary].cli(&["ROLE"]).await.ok()?;
        role.starts_with("master").then_some(())?;
        let port = self.servers[primary].announced().port().to_string();
        for sentinel in &self.sentinels {
            let about = sentinel.cli(&["SENTINEL", "MASTER", MASTER]).await.ok()?;
            let is_agreed = field(&about, "num-other-sentinels") == Some(&others)
                && field(&about, "flags") == Some("master")
                && field(&about, "port") == Some(&port);
            is_agreed.then_some(())?;
        }
        Some(primary)
    }

    /// Has a Sentinel fail over, and waits until the replica is the primary. Returns the index of the new primary.
    ///
    /// # Errors
    ///
    /// It refuses, or does not do it soon.
    pub async fn fail_over(&self) -> Result<usize> {
        self.settled().await?;
        let before = self.primary().await?;
        let said = self.sentinels[0]
            .cli(&["SENTINEL", "FAILOVER", MASTER])
            .await?;
        ensure!(said == "OK", "the sentinel does not fail over: {said}");
        self.another_primary(before).await
    }

    /// Waits until another server than the one with this index is the primary, and returns its index.
    ///
    /// # Errors
    ///
    /// None was soon.
    pub async fn another_primary(&self, before: usize) -> Result<usize> {
        wait::until("another primary", wait::SOON, async || {
            self.primary().await.ok().filter(|now| *now != before)
        })
        .await
    }
}

impl Sentinel {
    async fn start(
        host: Ipv4Addr,
        directory: &Path,
        primary: SocketAddr,
        config: WatchedConfig<'_>,
    ) -> Result<Self> {
        let address = redis::free_port(host)?;
        let quorum = config.sentinels / 2 + 1;
        let text = format!(
            "bind {host}\nport {port}\ndir {directory}\nsentinel announce-ip {host}\n\
            sentinel monitor {MASTER} {ip} {primary_port} {quorum}\n\
            sentinel down-after-milliseconds {MASTER} {down_after}\n\
            sentinel failover-timeout {MASTER} {failover_timeout}\n",
            port = address.port(),
            directory = directory.display(),
            ip = primary.ip(),
            primary_port = primary.port(),
            down_after = config.down_after,
            failover_timeout = config.failover_timeout,
        );
        fs::write(directory.join("sentinel.conf"), text)?;
        let process = launch(directory)?;
        let sentinel = Self {
            process,
            address,
            directory: directory.to_owned(),
        };
        sentinel.responds().await?;
        Ok(sentinel)
    }

    /// Where it listens.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Ends it at once.
    ///
    /// # Errors
    ///
    /// The system cannot tell whether it ended.
    pub async fn kill(&mut self) -> Result<()> {
        self.process.kill().await
    }

    /// Starts it again, with all that it knew.
    ///
    /// # Errors
    ///
    /// It does not start.
    pub async fn restart(&mut self) -> Result<()> {
        self.process = launch(&self.directory)?;
        self.responds().await
    }

    /// Makes it silent: it keeps its connections and sends no response.
    pub fn freeze(&mut self) {
        self.process.signal(Signal::Stop);
    }

    /// Lets it go on after [`Sentinel::freeze`].
    pub fn thaw(&mut self) {
        self.process.signal(Signal::Continue);
    }

    /// Runs `redis-cli` with these arguments and returns what it printed.
    ///
    /// # Errors
    ///
    /// It is not installed, or fails.
    pub async fn cli(&self, arguments: &[&str]) -> Result<String> {
        redis::cli(self.address, arguments).await
    }

    async fn responds(&self) -> Result<()> {
        wait::until("a sentinel to respond", wait::SOON, async || {
            let said = self.cli(&["PING"]).await.ok()?;
            (said == "PONG").then_some(())
        })
        .await
    }
}

fn launch(directory: &Path) -> Result<Process> {
    let mut command = Command::new(programs::installed(&["redis-server"])?);
    command
        .arg(directory.join("sentinel.conf"))
        .arg("--sentinel");
    Process::spawn("sentinel", command, directory)
}

/// The first value with this name in what `redis-cli` prints of a mapping: names and values on lines by turns.
fn field<'a>(about: &'a str, name: &str) -> Option<&'a str> {
    let mut lines = about.lines();
    lines.find(|line| *line == name)?;
    lines.next()
}
