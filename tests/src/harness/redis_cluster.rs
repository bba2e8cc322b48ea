//! A Redis Cluster: primaries with replicas, from plain `redis-server`.

use std::{
    fs,
    net::{Ipv4Addr, SocketAddr, TcpListener},
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::{Value, json};
use tokio::process::Command;

use crate::harness::{
    process::{Process, Signal},
    programs,
    redis::{self, Keeps},
    wait,
};

/// How many slots there are.
const SLOTS: usize = 16_384;

/// How far the port of the cluster bus is from that of clients.
const BUS: u16 = 10_000;

/// The length of the name that a server has in the cluster.
const ID_LENGTH: usize = 40;

/// How often other ports are tried when one is taken.
const PORTS_TRIED: u32 = 20;

/// A running cluster. The first servers are the primaries, each with its share of the slots; the others are their replicas.
#[derive(Debug)]
pub struct RedisCluster {
    /// All servers.
    pub servers: Vec<Server>,
}

/// One server of it.
#[derive(Debug)]
pub struct Server {
    process: Process,
    address: SocketAddr,
    id: String,
    directory: PathBuf,
    start: Start,
    /// It was neither killed nor frozen.
    is_up: bool,
}

/// How servers are started.
#[derive(Clone, Debug)]
pub struct ClusterConfig {
    /// How many primaries.
    pub primaries: usize,
    /// How many replicas each of them has.
    pub replicas: usize,
    /// What a server that is killed has when it is started again.
    pub keeps: Keeps,
    /// Where clients and replicas are told to connect to each server; none: to the server itself. The addresses are on the host
    /// of the servers.
    pub announced: Vec<SocketAddr>,
}

/// How one of them is started.
#[derive(Clone, Copy, Debug)]
struct Start {
    keeps: Keeps,
    announced: Option<SocketAddr>,
}

impl RedisCluster {
    /// Starts `primaries`, each with so many `replicas`, on `host`, and waits until all agree and the replicas are in sync.
    ///
    /// # Errors
    ///
    /// One of them did not start.
    pub async fn start(
        host: Ipv4Addr,
        directory: &Path,
        primaries: usize,
        replicas: usize,
    ) -> Result<Self> {
        let config = ClusterConfig {
            primaries,
            replicas,
            keeps: Keeps::Nothing,
            announced: Vec::new(),
        };
        Self::start_that(config, |_, _| (), host, directory).await
    }

    /// The same, as `config` says. Calls `started` with the index and the address of each server.
    ///
    /// # Errors
    ///
    /// One of them did not start.
    pub async fn start_that(
        config: ClusterConfig,
        started: impl Fn(usize, SocketAddr),
        host: Ipv4Addr,
        directory: &Path,
    ) -> Result<Self> {
        let primaries = config.primaries;
        let mut servers = Vec::new();
        for number in 0..primaries * (1 + config.replicas) {
            let directory = directory.join(format!("redis-{number}"));
            fs::create_dir_all(&directory)?;
            let start = Start {
                keeps: config.keeps,
                announced: config.announced.get(number).copied(),
            };
            let server = Server::start(host, &directory, start).await?;
            started(number, server.address);
            servers.push(server);
        }
        let cluster = Self { servers };
        for (number, server) in cluster.servers[..primaries].iter().enumerate() {
            let (first, end) = (number * SLOTS / primaries, (number + 1) * SLOTS / primaries);
            let (first, last) = (first.to_string(), (end - 1).to_string());
            let said = server
                .cli(&["CLUSTER", "ADDSLOTSRANGE", &first, &last])
                .await?;
            ensure!(said == "OK", "a server does not take its slots: {said}");
            // Different, so that no two servers have to settle that first.
            let epoch = (number + 1).to_string();
            let said = server.cli(&["CLUSTER", "SET-CONFIG-EPOCH", &epoch]).await?;
            ensure!(said == "OK", "a server does not take its epoch: {said}");
        }
        for server in &cluster.servers[1..] {
            cluster.meet(server).await?;
        }
        cluster.all_know(cluster.servers.len()).await?;
        for (number, replica) in cluster.servers[primaries..].iter().enumerate() {
            let primary = &cluster.servers[number % primaries];
            wait::until("a replica to follow", wait::SOON, async || {
                let said = replica.cli(&["CLUSTER", "REPLICATE", &primary.id]).await;
                (said.ok()? == "OK").then_some(())
            })
            .await?;
        }
        cluster.settled().await?;
        Ok(cluster)
    }

    /// What goes into `broker.cluster`.
    #[must_use]
    pub fn settings(&self) -> Value {
        let servers: Vec<String> = { self.servers.iter() }
            .map(|server| server.address.to_string())
            .collect();
        json!({ "servers": servers })
    }

    /// Adds a primary without slots, and returns its index.
    ///
    /// # Errors
    ///
    /// It does not start.
    pub async fn add(&mut self, host: Ipv4Addr, directory: &Path) -> Result<usize> {
        let directory = directory.join(format!("redis-{}", self.servers.len()));
        fs::create_dir_all(&directory)?;
        let start = Start {
            keeps: Keeps::Nothing,
            announced: None,
        };
        let server = Server::start(host, &directory, start).await?;
        self.meet(&server).await?;
        self.servers.push(server);
        self.all_know(self.servers.len()).await?;
        self.settled().await?;
        Ok(self.servers.len() - 1)
    }

    async fn meet(&self, server: &Server) -> Result<()> {
        let first = self.servers[0].address;
        let (ip, port) = (first.ip().to_string(), first.port().to_string());
        let said = server.cli(&["CLUSTER", "MEET", &ip, &port]).await?;
        ensure!(said == "OK", "a server does not meet the first one: {said}");
        Ok(())
    }

    async fn all_know(&self, count: usize) -> Result<()> {
        let count = format!("cluster_known_nodes:{count}");
        wait::until("all servers to know all others", wait::SOON, async || {
            for server in &self.servers {
                let said = server.cli(&["CLUSTER", "INFO"]).await.ok()?;
                said.contains(&count).then_some(())?;
                let said = server.cli(&["CLUSTER", "NODES"]).await.ok()?;
                (!said.contains("handshake")).then_some(())?;
            }
            Some(())
        })
        .await
    }

    /// Waits until every running server serves, every replica is in sync with its primary, and all agree which primary each
    /// replica follows and which slots each has. A primary that has not heard of a replica yet would not vote for it, and a
    /// failover on request is not repeated.
    ///
    /// # Errors
    ///
    /// It did not come to that soon.
    pub async fn settled(&self) -> Result<()> {
        wait::until("the cluster to settle", wait::SOON, async || {
            for server in self.servers.iter().filter(|server| server.is_up) {
                let said = server.cli(&["CLUSTER", "INFO"]).await.ok()?;
                said.contains("cluster_state:ok").then_some(())?;
                let said = server.cli(&["INFO", "replication"]).await.ok()?;
                let is_in_sync =
                    said.contains("role:master") || said.contains("master_link_status:up");
                is_in_sync.then_some(())?;
            }
            self.agree().await.then_some(())
        })
        .await
    }

    /// Whether all running servers say the same of each other.
    async fn agree(&self) -> bool {
        let mut first = None;
        for server in self.servers.iter().filter(|server| server.is_up) {
            let Ok(nodes) = server.cli(&["CLUSTER", "NODES"]).await else {
                return false;
            };
            let of_running = nodes.lines().filter_map(|line| {
                let mut fields = line.split_ascii_whitespace();
                let id = fields.next()?;
                let is_up = { self.servers.iter() }.any(|server| server.is_up && server.id == id);
                let is_replica = fields.nth(1)?.contains("slave");
                let primary = fields.next()?;
                // Slots that are on the move are in brackets, and told by nobody else.
                let slots = fields.skip(4).filter(|field| !field.starts_with('['));
                is_up.then(|| {
                    format!(
                        "{id} {is_replica} {primary} {slots:?}",
                        slots = slots.collect::<Vec<_>>()
                    )
                })
            });
            let mut said: Vec<String> = of_running.collect();
            said.sort_unstable();
            if *first.get_or_insert_with(|| said.clone()) != said {
                return false;
            }
        }
        true
    }

    /// The index of the primary of the slot of `key`, by what a running server says.
    ///
    /// # Errors
    ///
    /// None says it.
    pub async fn primary_of(&self, key: &str) -> Result<usize> {
        for server in self.servers.iter().filter(|server| server.is_up) {
            let Ok(slot) = server.cli(&["CLUSTER", "KEYSLOT", key]).await else {
                continue;
            };
            let slot: usize = slot.parse()?;
            let nodes = server.cli(&["CLUSTER", "NODES"]).await?;
            let has_slot = |field: &str| {
                let (first, last) = field.split_once('-').unwrap_or((field, field));
                let range = first.parse().ok().zip(last.parse().ok());
                range.is_some_and(|(first, last): (usize, usize)| (first..=last).contains(&slot))
            };
            for line in nodes.lines() {
                let mut fields = line.split_ascii_whitespace();
                let id = fields.next().unwrap_or_default();
                if fields.skip(7).any(has_slot) {
                    return self.index_of(id);
                }
            }
        }
        bail!("no server says who has {key}")
    }

    /// The indexes of all primaries that run.
    ///
    /// # Errors
    ///
    /// One of the servers does not respond.
    pub async fn primaries(&self) -> Result<Vec<usize>> {
        let mut primaries = Vec::new();
        for (number, server) in self.servers.iter().enumerate() {
            if server.is_up && server.cli(&["ROLE"]).await?.starts_with("master") {
                primaries.push(number);
            }
        }
        Ok(primaries)
    }

    fn index_of(&self, id: &str) -> Result<usize> {
        let found = self.servers.iter().position(|server| server.id == id);
        found.with_context(|| format!("no server is {id}"))
    }

    /// The index of a replica of the server with index `primary`.
    ///
    /// # Errors
    ///
    /// There is none.
    pub async fn replica_of(&self, primary: usize) -> Result<usize> {
        let id = &self.servers[primary].id;
        let said = self.servers[primary]
            .cli(&["CLUSTER", "REPLICAS", id])
            .await?;
        let replica = said.split_ascii_whitespace().next();
        self.index_of(replica.context("it has no replica")?)
    }

    /// Waits until another server than the one with index `before` is the primary of the slot of `key`.
    ///
    /// # Errors
    ///
    /// None was soon.
    pub async fn another_primary(&self, key: &str, before: usize) -> Result<usize> {
        wait::until("another primary", wait::SOON, async || {
            self.primary_of(key).await.ok().filter(|now| *now != before)
        })
        .await
    }

    /// Has a replica of the primary of `key` take its place, and waits for that. Returns its index.
    ///
    /// # Errors
    ///
    /// It does not do it soon.
    pub async fn fail_over(&self, key: &str) -> Result<usize> {
        self.settled().await?;
        let before = self.primary_of(key).await?;
        let replica = self.replica_of(before).await?;
        let said = self.servers[replica].cli(&["CLUSTER", "FAILOVER"]).await?;
        ensure!(said == "OK", "the replica does not take over: {said}");
        self.another_primary(key, before).await
    }

    /// Begins to move the slot of `key` to the server with index `to`: it is open on both, and no key has moved. Returns the
    /// slot.
    ///
    /// # Errors
    ///
    /// A server refuses.
    pub async fn open_slot(&self, key: &str, to: usize) -> Result<String> {
        let from = self.primary_of(key).await?;
        let (from, to) = (&self.servers[from], &self.servers[to]);
        let slot = from.cli(&["CLUSTER", "KEYSLOT", key]).await?;
        for (server, state, other) in [(to, "IMPORTING", from), (from, "MIGRATING", to)] {
            let said = server
                .cli(&["CLUSTER", "SETSLOT", &slot, state, &other.id])
                .await?;
            ensure!(said == "OK", "a server does not open the slot: {said}");
        }
        Ok(slot)
    }

    /// Moves all keys of `slot` from the server with index `from` to the one with index `to`.
    ///
    /// # Errors
    ///
    /// A server refuses.
    pub async fn move_keys(&self, slot: &str, from: usize, to: usize) -> Result<()> {
        // One by one, so that there are moments at which some keys of a channel are here and some there.
        self.move_keys_by(1, slot, from, to).await
    }

    /// The same, `count` keys at a time.
    ///
    /// # Errors
    ///
    /// A server refuses.
    pub async fn move_keys_by(
        &self,
        count: usize,
        slot: &str,
        from: usize,
        to: usize,
    ) -> Result<()> {
        let (from, to) = (&self.servers[from], &self.servers[to]);
        let (ip, port) = (to.address.ip().to_string(), to.address.port().to_string());
        loop {
            let keys = from.cli(&["CLUSTER", "GETKEYSINSLOT", slot, "500"]).await?;
            let keys: Vec<&str> = keys.lines().filter(|key| !key.is_empty()).collect();
            if keys.is_empty() {
                return Ok(());
            }
            for keys in keys.chunks(count) {
                let migrate = ["MIGRATE", &ip, &port, "", "0", "5000", "KEYS"];
                let said = from.cli(&[&migrate[..], keys].concat()).await?;
                ensure!(
                    said == "OK" || said == "NOKEY",
                    "a key does not move: {said}"
                );
            }
        }
    }

    /// Gives `slot` to the server with index `to`.
    ///
    /// # Errors
    ///
    /// A server refuses.
    pub async fn close_slot(&self, slot: &str, from: usize, to: usize) -> Result<()> {
        let id = &self.servers[to].id;
        for server in [to, from] {
            let said = self.servers[server]
                .cli(&["CLUSTER", "SETSLOT", slot, "NODE", id])
                .await?;
            // One that has lost its last slot may follow the other one by now.
            let is_replica = server == from && said.contains("only with masters");
            ensure!(
                said == "OK" || is_replica,
                "a server does not close the slot: {said}"
            );
        }
        Ok(())
    }

    /// Moves the slot of `key` with all of its keys to the server with index `to`.
    ///
    /// # Errors
    ///
    /// A server refuses.
    pub async fn migrate(&self, key: &str, to: usize) -> Result<()> {
        let from = self.primary_of(key).await?;
        let slot = self.open_slot(key, to).await?;
        self.move_keys(&slot, from, to).await?;
        self.close_slot(&slot, from, to).await
    }
}

impl Server {
    async fn start(host: Ipv4Addr, directory: &Path, start: Start) -> Result<Self> {
        let mut last = None;
        for _ in 0..PORTS_TRIED {
            let Some(address) = free_ports(host)? else {
                continue;
            };
            match launch(directory, address, start).await {
                Ok((process, id)) => {
                    return Ok(Self {
                        process,
                        address,
                        id,
                        directory: directory.to_owned(),
                        start,
                        is_up: true,
                    });
                }
                Err(error) => last = Some(error),
            }
        }
        Err(last.context("no pair of ports is free")?)
    }

    /// Where clients connect.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Its process id.
    #[must_use]
    pub fn pid(&self) -> i32 {
        self.process.pid()
    }

    /// Ends it at once.
    ///
    /// # Errors
    ///
    /// The system cannot tell whether it ended.
    pub async fn kill(&mut self) -> Result<()> {
        self.is_up = false;
        self.process.kill().await
    }

    /// Whether it was neither killed nor frozen.
    #[must_use]
    pub fn is_up(&self) -> bool {
        self.is_up
    }

    /// Drops the data that it keeps, between [`Server::kill`] and [`Server::restart`].
    ///
    /// # Errors
    ///
    /// It cannot be removed.
    pub fn forget(&self) -> Result<()> {
        redis::forget(&self.directory)
    }

    /// Starts it again after [`Server::kill`], with the data that it keeps.
    ///
    /// # Errors
    ///
    /// It does not start.
    pub async fn restart(&mut self) -> Result<()> {
        (self.process, self.id) = launch(&self.directory, self.address, self.start).await?;
        self.is_up = true;
        Ok(())
    }

    /// Makes it silent: it keeps its connections and responds to nothing.
    pub fn freeze(&mut self) {
        self.is_up = false;
        self.process.signal(Signal::Stop);
    }

    /// Lets it go on after [`Server::freeze`].
    pub fn thaw(&mut self) {
        self.is_up = true;
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
}

/// A port that was free a moment ago, as was that of the cluster bus.
fn free_ports(host: Ipv4Addr) -> Result<Option<SocketAddr>> {
    let listener = TcpListener::bind((host, 0)).context("cannot find a free port")?;
    let address = listener.local_addr()?;
    let bus = match address.port().checked_add(BUS) {
        Some(bus) => bus,
        // The kernel chooses high ones: one below it whose bus is in range.
        None => return free_low_ports(host),
    };
    Ok(TcpListener::bind((host, bus)).is_ok().then_some(address))
}

fn free_low_ports(host: Ipv4Addr) -> Result<Option<SocketAddr>> {
    let listener = TcpListener::bind((host, 0)).context("cannot find a free port")?;
    let bus = listener.local_addr()?;
    let Some(port) = bus.port().checked_sub(BUS).filter(|port| 1024 < *port) else {
        return Ok(None);
    };
    let is_free = TcpListener::bind((host, port)).is_ok();
    Ok(is_free.then_some(SocketAddr::from((host, port))))
}

async fn launch(directory: &Path, address: SocketAddr, start: Start) -> Result<(Process, String)> {
    let mut command = Command::new(programs::installed(&["redis-server"])?);
    let (host, port) = (address.ip().to_string(), address.port().to_string());
    command.args(["--bind", &host, "--port", &port, "--save", ""]);
    command.args(["--cluster-enabled", "yes", "--cluster-announce-ip", &host]);
    command.args([
        "--cluster-node-timeout",
        "2000",
        "--repl-diskless-sync-delay",
        "0",
    ]);
    command.args(["--cluster-replica-validity-factor", "0"]);
    command.args(["--appendonly", start.keeps.appendonly()]);
    if let Some(announced) = start.announced {
        let (port, bus) = (announced.port(), u32::from(address.port()) + u32::from(BUS));
        command.args(["--cluster-announce-port", &port.to_string()]);
        command.args(["--cluster-announce-bus-port", &bus.to_string()]);
    }
    command.arg("--dir").arg(directory);
    let mut process = Process::spawn("redis", command, directory)?;
    let answered = wait::until(
        "a reply of redis-server",
        wait::SOON,
        async || match redis::cli(address, &["CLUSTER", "MYID"]).await {
            Ok(id) if id.len() == ID_LENGTH => Some(Some(id)),
            // It loads its data.
            Ok(_) => None,
            Err(_) => (!process.is_running()).then_some(None),
        },
    );
    match answered.await? {
        Some(id) => Ok((process, id)),
        None => bail!("redis-server ended at its start\n{}", process.output()),
    }
}
