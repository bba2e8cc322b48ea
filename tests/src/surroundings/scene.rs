//! An edge in front of three nodes, each node with a wire of its own to Redis.

use std::{
    net::SocketAddr,
    time::{Duration, Instant},
};

use anyhow::{Result, ensure};
use serde_json::json;
use tokio::{net::TcpListener, task::JoinSet};

use crate::{
    chaos::{record::Record, scene as chaos, wire::Wire},
    harness::{
        edge, http, loopback,
        output::Fault,
        redis::{Keeps, Redis},
        scratch::Scratch,
        settings::Settings,
        wait,
        websocket::WebSocket,
    },
    surroundings::{
        clock::Clock,
        faults::Means,
        machine::Machine,
        program::{Files, New, Program, launch},
    },
};

/// How many nodes there are.
pub const NODES: usize = 3;

/// Connections of each node.
pub const CONNECTIONS: usize = 100;

/// `limits.memory` of each node.
const MEMORY: &str = "128MiB";

/// The endpoint whose clients may leave unread what fits into a node, and the namespace that is theirs alone.
pub const HOARD: &str = "/hoard";

/// For how long a client that reads nothing is not disconnected for that alone.
const PATIENCE: &str = "10m";

/// All of it. The fields are dropped in this order.
#[derive(Debug)]
pub struct Scene {
    /// Reads the pipes.
    reading: JoinSet<()>,
    /// The edge.
    pub edge: Program,
    /// The nodes.
    pub nodes: Vec<Program>,
    /// The way of each node to Redis.
    pub wires: Vec<Wire>,
    /// Redis.
    pub redis: Redis,
    /// Builds clocks, where there is a compiler.
    pub clock: Option<Clock>,
    /// What can be changed of the machine, in a namespace.
    pub machine: Option<Machine>,
    scratch: Scratch,
}

impl Scene {
    /// Starts everything and waits until it is ready.
    ///
    /// # Errors
    ///
    /// Something does not start.
    pub async fn start() -> Result<Self> {
        let scratch = Scratch::new("surroundings")?;
        let clock = Clock::build(scratch.path());
        let directory = scratch.path().join("redis");
        std::fs::create_dir_all(&directory)?;
        let redis = Redis::start_that(Keeps::Everything, loopback::own(), &directory).await?;
        let mut machine = Machine::set_up(scratch.path()).await?;
        let mut named = |host: &str, address: SocketAddr| match &mut machine {
            Some(machine) => machine.name(host, address),
            None => Ok(address.to_string()),
        };
        let mut reading = JoinSet::new();
        let (mut nodes, mut wires, mut backends) = (Vec::new(), Vec::new(), Vec::new());
        let mut news = Vec::new();
        for number in 1..=NODES {
            let wire = Wire::start(redis.address()).await?;
            let (address, admin) = (own_address().await?, own_address().await?);
            let name = format!("n{number}");
            let redis = named(&format!("redis{number}"), wire.address)?;
            let settings = node_settings(&format!("redis://{redis}"))
                .with("listen", json!(address.to_string()))
                .with("admin.address", json!(admin.to_string()))
                .with("node.id", json!(name));
            backends.push(json!({ "id": name, "address": named(&name, address)? }));
            news.push(New {
                name,
                program: "causeway-node",
                settings,
                address,
                admin,
                // The second one writes to a file, the others to pipes.
                stderr: if number == 2 {
                    Fault::Full
                } else {
                    Fault::Closed
                },
                stdout: Fault::Full,
            });
            wires.push(wire);
        }
        let (address, admin) = (own_address().await?, own_address().await?);
        let settings = edge::settings(&[])
            .with("pools", json!([{ "name": "nodes", "backends": backends }]))
            .with("listeners", json!([{ "address": address.to_string() }]))
            .with("admin.address", json!(admin.to_string()))
            // A backend that goes down again within a minute needs up to 16 good probes, and faults come faster than that.
            .with(
                "health",
                json!({ "interval": "500ms", "fast_interval": "100ms", "down_interval": "250ms" }),
            )
            .with("timeouts.tcp_user_timeout", json!(PATIENCE));
        let edge = New {
            name: "edge".to_owned(),
            program: "causeway-proxy",
            settings,
            address,
            admin,
            stderr: Fault::Closed,
            stdout: Fault::Full,
        };
        let files = Files {
            scratch: &scratch,
            disk: machine.as_ref().map(|machine| machine.disk.as_path()),
            clock: clock.as_ref(),
        };
        for new in news {
            nodes.push(launch(new, &files, &mut reading)?);
        }
        let edge = launch(edge, &files, &mut reading)?;
        let mut scene = Self {
            reading,
            edge,
            nodes,
            wires,
            redis,
            clock,
            machine,
            scratch,
        };
        scene.is_normal(wait::SOON).await?;
        Ok(scene)
    }

    /// What there is for faults.
    #[must_use]
    pub fn means(&self) -> Means {
        Means {
            clocks: self.clock.is_some(),
            machine: self.machine.is_some(),
        }
    }

    /// Waits until everything is as before a fault: all programs run, the edge calls all nodes up, a new client gets through,
    /// every client of the load is subscribed again, and another message was acknowledged.
    ///
    /// # Errors
    ///
    /// It is not within `deadline`; or a program has ended.
    pub async fn back_to_normal(&mut self, record: &Record, deadline: Duration) -> Result<()> {
        let acked = record.tally().acked;
        let until = Instant::now() + deadline;
        self.is_normal(deadline).await?;
        let left = until.saturating_duration_since(Instant::now());
        wait::until("all clients and publishers", left, async || {
            let is_flowing = acked < record.tally().acked;
            (is_flowing && record.checker().is_everybody_subscribed()).then_some(())
        })
        .await
    }

    async fn is_normal(&mut self, deadline: Duration) -> Result<()> {
        for program in self.nodes.iter_mut().chain([&mut self.edge]) {
            let is_running = program.process.is_running();
            ensure!(is_running, "{} has ended\n{}", program.name, program.tail());
        }
        let (nodes, edge) = (&self.nodes, &self.edge);
        wait::until("everything to be as before", deadline, async || {
            for node in nodes {
                is_ready(node.address).await?;
            }
            is_ready(edge.admin).await?;
            if edge.backends_up().await.ok()? != nodes.len() {
                return None;
            }
            let opened = WebSocket::open(edge.address, "/connection/websocket").await;
            let mut client = opened.ok()?;
            client.send(r#"{"id":1,"connect":{}}"#).await.ok()?;
            let is_greeted = client.text().await.ok()?.contains("\"connect\"");
            is_greeted.then_some(())
        })
        .await
    }

    /// The lines that the programs say they have lost.
    ///
    /// # Errors
    ///
    /// One does not say.
    pub async fn lost_lines(&self) -> Result<u64> {
        let mut lost = 0;
        for program in self.programs() {
            lost += program.lost_lines().await?;
        }
        Ok(lost)
    }

    /// All of our programs.
    pub fn programs(&self) -> impl Iterator<Item = &Program> {
        self.nodes.iter().chain([&self.edge])
    }

    /// What the programs logged of panics.
    #[must_use]
    pub fn panics(&self) -> Vec<String> {
        let logs = self.programs().map(|program| (program, program.log()));
        let panics = logs.flat_map(|(program, log)| {
            let lines = log.lines().filter(|line| line.contains("\"panicked\""));
            let named = lines.map(|line| format!("{}: {line}", program.name));
            named.collect::<Vec<_>>()
        });
        panics.collect()
    }

    /// Ends all processes; their files go with the value.
    ///
    /// # Errors
    ///
    /// The disk is still in use.
    pub async fn end(mut self) -> Result<Scratch> {
        self.reading.shutdown().await;
        for program in self.programs() {
            let path = self.scratch.path().join(format!("{}.all", program.name));
            std::fs::write(path, program.log())?;
        }
        let Self {
            edge,
            nodes,
            machine,
            scratch,
            ..
        } = self;
        drop((edge, nodes));
        if let Some(machine) = machine {
            machine.take_down().await?;
        }
        Ok(scratch)
    }
}

/// As `make chaos` has them, with limits that can be reached.
fn node_settings(redis: &str) -> Settings {
    let settings = chaos::settings(redis);
    let mut endpoints = settings.get("endpoints").clone();
    let mut namespaces = settings.get("channels")["namespaces"].clone();
    if let (Some(endpoints), Some(namespaces)) =
        (endpoints.as_array_mut(), namespaces.as_array_mut())
    {
        // A client that reads nothing replies to no pings and takes nothing (PATIENCE): it is to fill its node before that disconnects it,
        // on a slow machine too.
        let ping = json!({ "interval": PATIENCE, "timeout": PATIENCE });
        endpoints
            .push(json!({ "path": HOARD, "mode": "channels", "outbox": "256MiB", "ping": ping }));
        namespaces.push(json!({ "name": "hoard", "subscribe": "anyone" }));
    }
    settings
        .with("endpoints", endpoints)
        .with("channels.namespaces", namespaces)
        .with("limits.connections", json!(CONNECTIONS))
        .with("limits.memory", json!(MEMORY))
        .with("limits.send_timeout", json!(PATIENCE))
        .with("tcp.user_timeout", json!(PATIENCE))
}

async fn is_ready(address: SocketAddr) -> Option<()> {
    let response = http::get(address, "/ready").await.ok()?;
    (response.status == 200).then_some(())
}

async fn own_address() -> Result<SocketAddr> {
    Ok(TcpListener::bind(loopback::own_any_port())
        .await?
        .local_addr()?)
}
