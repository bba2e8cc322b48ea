//! Has a fault begin and end, and waits until everything is as before.

use std::{
    fs,
    net::SocketAddr,
    pin::pin,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use parking_lot::Mutex;
use serde_json::json;
use tokio::time::{sleep, timeout};

use crate::{
    chaos::{checker::Scope, record::Record, scene::KEY, wire::Condition},
    harness::{
        http::{self, Connection},
        limits::{self, Resource},
        log_pipe::LogPipe,
        memory,
        output::Fault,
        process::Signal,
        wait,
        websocket::WebSocket,
    },
    surroundings::{
        faults::{Effect, Jump, Kind, Victim},
        observe::{self, Flow, Inflicted, NewClients},
        program::{Outlet, Program},
        scene::{CONNECTIONS, HOARD, Scene},
    },
};

/// Within which everything has to be as before, once a fault has ended.
pub const BACK_WITHIN: Duration = Duration::from_secs(10);

/// How long a fault lasts, in milliseconds, unless it takes longer to see what it does.
const LASTS: std::ops::Range<u64> = 500..2_500;

/// From one look at a program during a fault to the next.
const LOOK: Duration = Duration::from_millis(100);

/// For a new client, and from one to the next.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
const CONNECT_INTERVAL: Duration = Duration::from_millis(50);

/// Silent connections to an admin listener: more than it has room for.
const SILENT: usize = 100;

/// Connections that wait to be accepted.
const WAITING: usize = 10;

/// Probes that are skipped while there are no ports.
const SKIPPED: u64 = 3;

/// Bytes of a message to a client that does not read.
const MESSAGE_BYTES: usize = 256 << 10;

/// From one of those to the next: what comes faster than the hub delivers is dropped.
const MESSAGE_INTERVAL: Duration = Duration::from_millis(4);

/// More of those than fit into a node, by far.
const MESSAGES_MAX: usize = 2_000;

/// What the edge may use more than before while a client does not read.
const EDGE_BYTES_MAX: u64 = 16 << 20;

/// Seconds by which a clock jumps.
const YEARS: i64 = 10 * 365 * 24 * 3600;

/// What causes the faults.
#[derive(Debug)]
pub struct Injector<'a> {
    /// What they happen to.
    pub scene: &'a mut Scene,
    /// Where they are noted.
    pub record: &'a Record,
    /// Chooses times.
    pub dice: fastrand::Rng,
}

impl Injector<'_> {
    /// Has a fault begin and end, and waits until everything is as before.
    ///
    /// # Errors
    ///
    /// It is not within [`BACK_WITHIN`]; a program has ended, or did what it must not do meanwhile; or the harness failed.
    pub async fn inflict(&mut self, kind: Kind) -> Result<Inflicted> {
        let (losses, flow) = (observe::losses(self.scene).await?, Flow::of(self.record));
        let scopes = match kind.effect() {
            Effect::Everyone => vec![Scope::Everyone],
            // Then the checker excuses nothing.
            Effect::None | Effect::NewClients => Vec::new(),
        };
        let number = self.record.fault_began(kind.to_string(), scopes);
        let began = Instant::now();
        let lasts = Duration::from_millis(self.dice.u64(LASTS));
        let new_clients = self.fail_under_new_clients(kind, lasts).await?;
        self.record.fault_ended(number);
        let (ended, flow_meanwhile) = (Instant::now(), Flow::of(self.record).since(flow));
        self.scene.back_to_normal(self.record, BACK_WITHIN).await?;
        match kind {
            Kind::Stderr(victim, _) => self.log_works(victim).await?,
            Kind::Stdout(_) | Kind::Disk => self.log_works(Victim::Edge).await?,
            _ => {}
        }
        let normal_after = ended.elapsed();
        let reconnects = Flow::of(self.record).since(flow).connected;
        Ok(Inflicted {
            kind,
            lasted: ended - began,
            flow: flow_meanwhile,
            new_clients,
            reconnects,
            losses: observe::grown(&losses, &observe::losses(self.scene).await?),
            normal_after,
        })
    }

    /// Has a fault begin and end, while one new client after the other connects.
    async fn fail_under_new_clients(&mut self, kind: Kind, lasts: Duration) -> Result<NewClients> {
        let edge = self.scene.edge.address;
        let mut new_clients = NewClients::default();
        let mut failing = pin!(self.fail(kind, lasts));
        loop {
            tokio::select! {
                biased;
                failed = &mut failing => {
                    failed?;
                    return Ok(new_clients);
                }
                connected = connect(edge) => new_clients.note(connected),
            }
        }
    }

    async fn fail(&mut self, kind: Kind, lasts: Duration) -> Result<()> {
        match kind {
            Kind::Stderr(victim, fault) => {
                let outlet = Arc::clone(&self.program(victim).stderr);
                self.fail_output(&outlet, victim, fault, lasts).await?;
            }
            Kind::Stdout(fault) => {
                let outlet = Arc::clone(&self.scene.edge.stdout);
                self.fail_output(&outlet, Victim::Edge, fault, lasts)
                    .await?;
            }
            Kind::Disk => {
                let machine = self.scene.machine.as_ref();
                let filler = machine.context("the disk is not ours")?.fill_disk()?;
                self.log_for(&[Victim::Edge, Victim::Node(1)], lasts)
                    .await?;
                drop(filler);
            }
            Kind::Descriptors(victim) => self.take_descriptors(victim, lasts).await?,
            Kind::SilentAdmin => {
                let mut silent = Vec::new();
                for _ in 0..SILENT {
                    silent.push(Connection::open(self.scene.edge.admin).await?);
                }
                let response = http::get(self.scene.edge.admin, "/metrics").await?;
                ensure!(response.status == 200, "{response:?}");
                sleep(lasts).await;
            }
            Kind::Connections(node) => self.fill_node(node, lasts).await?,
            Kind::Ports => self.take_ports(lasts).await?,
            Kind::SlowReader => self.hoard().await?,
            Kind::Names => {
                let machine = self.scene.machine.as_ref();
                let machine = machine.context("names are not ours")?;
                machine.forget_names()?;
                sleep(lasts).await;
                machine.restore_names()?;
            }
            Kind::NamesAndRedis => {
                let machine = self.scene.machine.as_ref();
                let machine = machine.context("names are not ours")?;
                machine.forget_names()?;
                for wire in &self.scene.wires {
                    wire.reset();
                }
                sleep(lasts).await;
                machine.restore_names()?;
            }
            Kind::Clock(victim, jump) => {
                let hands = self.program(victim).hands.as_ref();
                let hands = hands.context("its clock cannot be turned")?;
                hands.turn(match jump {
                    Jump::Ahead => YEARS,
                    Jump::Back => -YEARS,
                })?;
                sleep(lasts).await;
                hands.turn(0)?;
            }
            Kind::RedisUnreachable => {
                for wire in &self.scene.wires {
                    wire.set(Condition::Cut);
                }
                sleep(lasts).await;
                for wire in &self.scene.wires {
                    wire.set(Condition::Whole);
                }
            }
            Kind::RedisKilled => {
                self.scene.redis.kill().await?;
                sleep(lasts).await;
                self.scene.redis.restart().await?;
            }
            Kind::RedisStopped => {
                self.scene.redis.freeze();
                sleep(lasts).await;
                self.scene.redis.thaw();
            }
            Kind::RedisFull => {
                let set = ["CONFIG", "SET", "maxmemory"];
                self.scene.redis.cli(&[&set[..], &["1"]].concat()).await?;
                sleep(lasts).await;
                self.scene.redis.cli(&[&set[..], &["0"]].concat()).await?;
            }
            Kind::Stopped(victim) => {
                self.program_mut(victim).process.signal(Signal::Stop);
                sleep(lasts).await;
                self.program_mut(victim).process.signal(Signal::Continue);
            }
            Kind::Rotate(victim) => self.program_mut(victim).process.signal(Signal::User1),
            Kind::Configuration => self.block_configuration().await?,
        }
        Ok(())
    }

    fn program(&self, victim: Victim) -> &Program {
        match victim {
            Victim::Edge => &self.scene.edge,
            Victim::Node(node) => &self.scene.nodes[node],
        }
    }

    fn program_mut(&mut self, victim: Victim) -> &mut Program {
        match victim {
            Victim::Edge => &mut self.scene.edge,
            Victim::Node(node) => &mut self.scene.nodes[node],
        }
    }

    async fn fail_output(
        &mut self,
        outlet: &Mutex<Outlet>,
        victim: Victim,
        fault: Fault,
        lasts: Duration,
    ) -> Result<()> {
        let pid = self.program(victim).process.pid();
        outlet.lock().fail(fault, pid)?;
        self.log_for(&[victim], lasts).await?;
        outlet.lock().recover(pid)
    }

    /// Has programs log a line or more, again and again.
    async fn log_for(&mut self, victims: &[Victim], lasts: Duration) -> Result<()> {
        let until = Instant::now() + lasts;
        while Instant::now() < until {
            for victim in victims {
                self.log_something(*victim).await?;
            }
            sleep(LOOK).await;
        }
        Ok(())
    }

    async fn log_something(&mut self, victim: Victim) -> Result<()> {
        match victim {
            Victim::Edge => {
                self.scene.edge.process.signal(Signal::Hangup);
                http::get(self.scene.edge.address, "/nothing").await?;
            }
            Victim::Node(_) => {
                let foreign = [("Origin", "https://other.example")];
                let path = "/connection/sse?cf_connect=%7B%7D";
                http::get_with(self.program(victim).address, path, &foreign).await?;
            }
        }
        Ok(())
    }

    /// Waits for a new line, and until all lost ones are reported.
    async fn log_works(&mut self, victim: Victim) -> Result<()> {
        let before = self.program(victim).log().len();
        let until = Instant::now() + BACK_WITHIN;
        loop {
            self.log_something(victim).await?;
            let program = self.program(victim);
            // The edge reports those of both of its logs in one.
            let (lost, reported) = (program.lost_lines().await?, program.reported_lost());
            if lost == reported && before < program.log().len() {
                return Ok(());
            }
            let name = &program.name;
            ensure!(
                Instant::now() < until,
                "{name} has lost {lost} lines and reports {reported}"
            );
            sleep(LOOK).await;
        }
    }

    async fn take_descriptors(&mut self, victim: Victim, lasts: Duration) -> Result<()> {
        let program = self.program(victim);
        let (pid, address) = (program.process.pid(), program.address);
        let open = fs::read_dir(format!("/proc/{pid}/fd"))?.count();
        limits::set(pid, Resource::OpenFiles, Some(open as u64))?;
        let mut waiting = Vec::new();
        for _ in 0..WAITING {
            waiting.push(Connection::open(address).await?);
        }
        sleep(lasts).await;
        limits::set(pid, Resource::OpenFiles, None)
    }

    async fn fill_node(&mut self, node: usize, lasts: Duration) -> Result<()> {
        let Program { address, admin, .. } = self.scene.nodes[node];
        let request = format!("GET / HTTP/1.1\r\nHost: {address}\r\n\r\n");
        let mut open = Vec::new();
        let mut is_full = false;
        for _ in 0..=CONNECTIONS {
            let mut connection = Connection::open(address).await?;
            connection.send(&request).await?;
            let response = connection.response().await?;
            if response.status == 503 {
                ensure!(response.header("retry-after").is_some(), "{response:?}");
                is_full = true;
                break;
            }
            open.push(connection);
        }
        ensure!(is_full, "the node accepts more than it may");
        let until = Instant::now() + lasts;
        while Instant::now() < until {
            for (address, path) in [(address, "/live"), (address, "/ready"), (admin, "/metrics")] {
                let response = http::get(address, path).await?;
                ensure!(response.status == 200, "{path}: {response:?}");
            }
            sleep(LOOK).await;
        }
        Ok(())
    }

    /// Nodes cannot be connected to, until some probes were skipped; they stay in service.
    async fn take_ports(&mut self, lasts: Duration) -> Result<()> {
        let nodes = self.scene.nodes.iter().map(|node| node.address).collect();
        let machine = self.scene.machine.as_ref();
        let mut taken = machine
            .context("ports are not ours")?
            .take_ports(nodes)
            .await?;
        let edge = &self.scene.edge;
        let until = Instant::now() + lasts;
        // The harness too has few ports to the admin listener: its attempts fail now and then.
        let before = wait::until("metrics", BACK_WITHIN, async || {
            edge.probes_skipped().await.ok()
        })
        .await?;
        wait::until("probes to be skipped", BACK_WITHIN, async || {
            taken.take().await;
            sleep(LOOK).await;
            let skipped = edge.probes_skipped().await.ok()? - before;
            (until < Instant::now() && SKIPPED <= skipped).then_some(())
        })
        .await?;
        let up = wait::until("states of backends", BACK_WITHIN, async || {
            edge.backends_up().await.ok()
        })
        .await?;
        ensure!(up == self.scene.nodes.len(), "{up} backends are up");
        drop(taken);
        Ok(())
    }

    /// A client of an endpoint of its own reads nothing, until its node disconnects it. The edge in between keeps little of it.
    async fn hoard(&mut self) -> Result<()> {
        let Scene { edge, nodes, .. } = &*self.scene;
        let used = || memory::anonymous(edge.process.pid());
        let path = format!("{HOARD}/websocket");
        let mut client = WebSocket::open(edge.address, &path).await?;
        client.send(r#"{"id":1,"connect":{}}"#).await?;
        client.text().await?;
        client
            .send(r#"{"id":2,"subscribe":{"channel":"hoard:1"}}"#)
            .await?;
        client.text().await?;
        let disconnected = || -> usize {
            let logs = nodes.iter().map(Program::log);
            logs.map(|log| log.matches("limits.memory").count()).sum()
        };
        let (before, used_before) = (disconnected(), used()?);
        let body = json!({ "channel": "hoard:1", "data": "x".repeat(MESSAGE_BYTES) }).to_string();
        let (key, path) = ([("X-API-Key", KEY)], "/api/publish");
        let address = nodes[0].address;
        for _ in 0..MESSAGES_MAX {
            let response = http::request(address, "POST", path, &key, body.as_bytes()).await?;
            ensure!(response.status == 200, "{response:?}");
            if before < disconnected() {
                let more = used()?.saturating_sub(used_before);
                ensure!(more < EDGE_BYTES_MAX, "the edge keeps {more} bytes");
                return Ok(());
            }
            sleep(MESSAGE_INTERVAL).await;
        }
        anyhow::bail!("no node disconnects a client that does not read")
    }

    async fn block_configuration(&mut self) -> Result<()> {
        let edge = &mut self.scene.edge;
        let aside = edge.file.with_extension("aside");
        fs::rename(&edge.file, &aside)?;
        let directory = edge.file.parent().context("it is in a directory")?;
        let name = edge.file.file_name().and_then(|name| name.to_str());
        let pipe = LogPipe::new(directory, name.context("it has a name")?)?;
        let writer = pipe.writer()?;
        let refusals = edge.log().matches("configuration reload failed").count();
        edge.process.signal(Signal::Hangup);
        wait::until("the configuration to be refused", BACK_WITHIN, async || {
            let now = edge.log().matches("configuration reload failed").count();
            (refusals < now).then_some(())
        })
        .await?;
        drop((writer, pipe));
        fs::rename(&aside, &edge.file)?;
        Ok(())
    }
}

/// A new client connects through the edge and leaves, and there is a pause until the next. Why it could not, if so.
async fn connect(edge: SocketAddr) -> Result<()> {
    let connected = timeout(CONNECT_TIMEOUT, async {
        let mut client = WebSocket::open(edge, "/connection/websocket").await?;
        client.send(r#"{"id":1,"connect":{}}"#).await?;
        let reply = client.text().await?;
        ensure!(reply.contains("\"connect\""), "{reply}");
        Ok(())
    });
    let connected = connected.await.context("no reply");
    sleep(CONNECT_INTERVAL).await;
    connected?
}
