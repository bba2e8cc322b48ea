//! Redis, nodes and an edge that can be replaced, or another program in its place.

use std::{
    fs,
    net::{SocketAddr, TcpListener},
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use parking_lot::Mutex;
use rustls::version::{TLS12, TLS13};
use serde_json::{Value, json};
use tokio::{
    process::Command,
    task::JoinSet,
    time::{sleep, timeout},
};

use crate::{
    chaos::scene::KEY,
    continuity::{
        Pace,
        client::Listeners,
        former::{Former, LOOK_AFTER},
        other::{Other, Place, Setup},
        population::{Channel, Stream},
    },
    harness::{
        edge::{self, Edge},
        http, loopback,
        node::{self, Node},
        process::Process,
        programs,
        redis::Redis,
        scratch::Scratch,
        settings::Settings,
        tls::Authority,
        wait,
    },
};

/// How often open files are counted.
const WATCH: Duration = Duration::from_millis(500);

/// How long a takeover may take: the former edge waits for requests in flight, at most its `drain.timeout`, and ends.
const TAKEOVER_WAIT: Duration = Duration::from_secs(120);

/// What is started.
#[derive(Debug)]
pub struct ScenePlan {
    /// For people who look for its files.
    pub name: String,
    /// How many nodes.
    pub nodes: usize,
    /// How many channels; the relay endpoints follow from them.
    pub channels: usize,
    /// Which settings the programs have.
    pub pace: Pace,
    /// What the nodes do wrong on purpose.
    pub sabotage: Option<String>,
    /// What clients connect to instead of the edge.
    pub other: Option<Setup>,
}

/// All processes. The fields are dropped in this order.
#[derive(Debug)]
pub struct Scene {
    /// What stands in the place of the edge.
    pub other: Option<Other>,
    /// The process that accepts; idle beside another program.
    pub edge: Edge,
    /// By number.
    pub nodes: Vec<Node>,
    /// What the nodes share.
    pub redis: Redis,
    /// Where clients connect without TLS.
    pub plain: SocketAddr,
    secure: SocketAddr,
    authority: Authority,
    settings: Settings,
    plan: NodePlan,
    /// What ended edges and nodes have logged as errors.
    ended: Vec<String>,
    /// What ended edges have counted.
    counted: Handoffs,
    scratch: Scratch,
}

/// What another node needs.
#[derive(Debug)]
struct NodePlan {
    settings: Settings,
    sabotage: Option<String>,
}

/// What the programs have counted.
#[derive(Clone, Copy, Debug, Default)]
pub struct Handoffs {
    /// Tunnels that the edges moved to another node.
    pub moved: u64,
    /// Those that stayed.
    pub stayed: u64,
}

/// Open files of the programs, as long as somebody looks.
#[derive(Clone, Debug, Default)]
pub struct Watched {
    programs: Arc<Mutex<Programs>>,
    files: Arc<[AtomicUsize; 3]>,
}

/// Their process ids.
#[derive(Debug, Default)]
struct Programs {
    /// Of the edge, or of what stands in its place.
    edge: Vec<i32>,
    nodes: Vec<i32>,
}

/// The most open files at a time.
#[derive(Clone, Copy, Debug, Default)]
pub struct FilesMax {
    /// Of this program.
    pub load: usize,
    /// Of an edge.
    pub edge: usize,
    /// Of a node.
    pub node: usize,
}

impl Scene {
    /// Starts everything and waits until it is ready.
    ///
    /// # Errors
    ///
    /// Something does not start.
    pub async fn start(plan: &ScenePlan) -> Result<Self> {
        let scratch = Scratch::new(&plan.name)?;
        let certificates = scratch.path().join("certificates");
        fs::create_dir(&certificates)?;
        let authority = Authority::new(scratch.path())?;
        authority.renew(&certificates)?;
        let redis = Redis::start(loopback::own(), scratch.path()).await?;
        let node_plan = NodePlan {
            settings: node_settings(&redis.url(), plan),
            sabotage: plan.sabotage.clone(),
        };
        let mut nodes = Vec::new();
        for number in 1..=plan.nodes {
            nodes.push(node_plan.start(number, scratch.path()).await?);
        }
        for node in &nodes {
            node.ready().await?;
        }
        let (plain, secure) = (free_address()?, free_address()?);
        let listeners = json!([
            { "address": plain.to_string() },
            { "address": secure.to_string(), "tls": { "folder": certificates } },
        ]);
        let settings = edge_settings(&nodes, plan.pace)
            .with("listeners", listeners)
            .with("takeover.socket", json!(takeover_socket(&scratch)))
            .with("admin.socket", json!(admin_socket(&scratch)));
        let edge = Edge::start(&settings, scratch.path()).await?;
        for node in &nodes {
            edge.backend_in_state(&node.id, "up").await?;
        }
        let (other, plain, secure) = match plan.other {
            None => (None, plain, secure),
            Some(setup) => {
                let place = Place {
                    plain: free_address()?,
                    secure: free_address()?,
                    certificates: &certificates,
                    nodes: &backends(&nodes),
                    directory: scratch.path(),
                };
                let other = Other::start(setup, &place).await?;
                (Some(other), place.plain, place.secure)
            }
        };
        Ok(Self {
            other,
            edge,
            nodes,
            redis,
            plain,
            secure,
            authority,
            settings,
            plan: node_plan,
            ended: Vec::new(),
            counted: Handoffs::default(),
            scratch,
        })
    }

    /// Where clients connect.
    ///
    /// # Errors
    ///
    /// rustls refuses the settings.
    pub fn listeners(&self) -> Result<Listeners> {
        Ok(Listeners {
            plain: self.plain,
            secure: self.secure,
            tls12: self.authority.clients_of(&TLS12)?,
            tls13: self.authority.clients_of(&TLS13)?,
        })
    }

    /// Restarts a node, and waits until the edge sends clients there. Returns how long its drain took.
    ///
    /// # Errors
    ///
    /// It does not end well, or does not come back.
    pub async fn restart_node(&mut self, number: usize) -> Result<Duration> {
        let began = std::time::Instant::now();
        let node = &mut self.nodes[number];
        node.drain();
        let status = node.process.exit(wait::SOON).await?;
        ensure!(status.success(), "{} ended with {status}", node.id);
        let took = began.elapsed();
        self.ended.extend(errors(&node.id, &node.process.log()));
        node.restart().await?;
        node.ready().await?;
        self.edge.backend_in_state(&node.id, "up").await?;
        Ok(took)
    }

    /// Has another process take the edge over. Returns how long it took until the former one ended, and what was left of it 5 s after
    /// the takeover.
    ///
    /// # Errors
    ///
    /// It does not, or leaves something behind.
    pub async fn upgrade_edge(&mut self, number: usize) -> Result<(Duration, Former)> {
        let began = std::time::Instant::now();
        self.count().await?;
        let name = format!("edge-{number}");
        let file = self
            .scratch
            .write(&format!("{name}.yaml"), &self.settings.text())?;
        let mut command = Command::new(programs::ours("causeway-proxy")?);
        command.arg("--config").arg(file);
        command
            .arg("--takeover")
            .arg(takeover_socket(&self.scratch));
        let mut process = Process::spawn(&name, command, self.scratch.path())?;
        wait::until("a takeover", TAKEOVER_WAIT, async || {
            process.log().contains("takeover complete").then_some(())
        })
        .await
        .with_context(|| format!("{}\n{}", self.edge.process.tail(), process.tail()))?;
        let admin = process.listening("admin").await?;
        let mut former = std::mem::replace(
            &mut self.edge,
            Edge {
                address: self.plain,
                admin,
                process,
            },
        );
        let mut left = Former::default();
        if timeout(LOOK_AFTER, former.process.ended()).await.is_err() {
            left = Former::of(&[former.process.pid()], &[self.plain, self.secure]);
        }
        let status = former.process.exit(TAKEOVER_WAIT).await?;
        ensure!(status.success(), "{status} {}", former.process.tail());
        self.ended.extend(errors("edge", &former.process.log()));
        Ok((began.elapsed(), left))
    }

    /// Adds a node, and waits until the edge sends clients there.
    ///
    /// # Errors
    ///
    /// It does not start, or the edge does not take it.
    pub async fn add_node(&mut self) -> Result<()> {
        let number = self.nodes.len() + 1;
        let node = self.plan.start(number, self.scratch.path()).await?;
        node.ready().await?;
        self.nodes.push(node);
        let pools = edge::settings(&backends(&self.nodes)).get("pools").clone();
        self.settings = self.settings.clone().with("pools", pools);
        self.scratch.write("edge.yaml", &self.settings.text())?;
        self.act(&["reload"]).await?;
        self.edge
            .backend_in_state(&self.nodes[number - 1].id, "up")
            .await
    }

    /// Runs `causeway-proxy ctl`, and returns its response.
    ///
    /// # Errors
    ///
    /// It fails.
    pub async fn act(&self, arguments: &[&str]) -> Result<Value> {
        let mut command = Command::new(programs::ours("causeway-proxy")?);
        command
            .arg("ctl")
            .arg("--socket")
            .arg(admin_socket(&self.scratch));
        command.args(arguments).arg("--json");
        let output = command.output().await?;
        let said = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "{arguments:?}: {said}");
        serde_json::from_slice(&output.stdout).context("JSON")
    }

    /// How many tunnels each node has.
    ///
    /// # Errors
    ///
    /// The edge does not say.
    pub async fn tunnels(&self) -> Result<Vec<u64>> {
        let backends = self.edge.backends().await?;
        let backends = backends.as_array().context("a list of backends")?;
        let tunnels = backends.iter().map(|backend| backend["tunnels"].as_u64());
        tunnels.collect::<Option<_>>().context("with their tunnels")
    }

    /// What all edges have counted.
    ///
    /// # Errors
    ///
    /// The edge does not say.
    pub async fn handoffs(&mut self) -> Result<Handoffs> {
        self.count().await?;
        Ok(self.counted)
    }

    async fn count(&mut self) -> Result<()> {
        let metrics = http::get(self.edge.admin, "/metrics").await?.text();
        let count = |outcome: &str| {
            let name = format!("causeway_proxy_handoffs_total{{outcome=\"{outcome}\"}} ");
            let value = metrics.lines().find_map(|line| line.strip_prefix(&name));
            value.and_then(|value| value.parse().ok()).unwrap_or(0)
        };
        self.counted.moved += count("moved");
        self.counted.stayed += count("stayed");
        Ok(())
    }

    /// Counts open files from now on.
    pub fn watch(&self, tasks: &mut JoinSet<()>) -> Watched {
        let watched = Watched::default();
        watched.set_programs(self);
        let copy = watched.clone();
        tasks.spawn(async move {
            loop {
                copy.look();
                sleep(WATCH).await;
            }
        });
        watched
    }

    /// Ends all processes; their files go with the value.
    #[must_use]
    pub fn end(self) -> Scratch {
        let Self { scratch, .. } = self;
        scratch
    }

    /// What the programs logged as errors, or panicked with.
    #[must_use]
    pub fn errors(&self) -> Vec<String> {
        let mut all = self.ended.clone();
        all.extend(errors("edge", &self.edge.process.log()));
        for node in &self.nodes {
            all.extend(errors(&node.id, &node.process.log()));
        }
        all
    }
}

impl NodePlan {
    async fn start(&self, number: usize, directory: &Path) -> Result<Node> {
        let settings = self.settings.clone();
        let settings = settings.with("listen", json!(loopback::own_any_port()));
        let variables = self
            .sabotage
            .as_deref()
            .map(|deed| ("CAUSEWAY_SABOTAGE", deed));
        let variables: Vec<_> = variables.into_iter().collect();
        Node::start_with(&format!("n{number}"), settings, directory, &variables).await
    }
}

impl Watched {
    /// Other processes are the programs.
    pub fn set_programs(&self, scene: &Scene) {
        let nodes = scene.nodes.iter().map(|node| node.process.pid());
        let edge = match &scene.other {
            Some(other) => other.processes(),
            None => vec![scene.edge.process.pid()],
        };
        *self.programs.lock() = Programs {
            edge,
            nodes: nodes.collect(),
        };
    }

    /// The most that was seen.
    #[must_use]
    pub fn files_max(&self) -> FilesMax {
        let [load, edge, node] = &*self.files;
        let [load, edge, node] = [load, edge, node].map(|count| count.load(Ordering::Relaxed));
        FilesMax { load, edge, node }
    }

    fn look(&self) {
        let [load, edge, node] = &*self.files;
        load.fetch_max(open_files("self"), Ordering::Relaxed);
        let programs = self.programs.lock();
        for (pids, files) in [(&programs.edge, edge), (&programs.nodes, node)] {
            for pid in pids {
                files.fetch_max(open_files(&pid.to_string()), Ordering::Relaxed);
            }
        }
    }
}

/// 0 for a process that has ended.
fn open_files(process: &str) -> usize {
    fs::read_dir(format!("/proc/{process}/fd")).map_or(0, Iterator::count)
}

/// Lines of a log that no run may have.
fn errors(name: &str, log: &str) -> Vec<String> {
    let lines = log.lines();
    let lines = lines.filter(|line| {
        let is_error = line.contains("\"level\":\"ERROR\"") || line.contains("panicked");
        is_error && !line.contains("CAUSEWAY_SABOTAGE")
    });
    lines.map(|line| format!("{name}: {line}")).collect()
}

fn takeover_socket(scratch: &Scratch) -> PathBuf {
    scratch.path().join("takeover.sock")
}

fn admin_socket(scratch: &Scratch) -> PathBuf {
    scratch.path().join("admin.sock")
}

fn free_address() -> Result<SocketAddr> {
    Ok(TcpListener::bind(loopback::own_any_port())?.local_addr()?)
}

fn backends(nodes: &[Node]) -> Vec<(&str, SocketAddr)> {
    let nodes = nodes.iter();
    nodes.map(|node| (node.id.as_str(), node.address)).collect()
}

fn edge_settings(nodes: &[Node], pace: Pace) -> Settings {
    // The application publishes through the edge, which closes the server API unless a route names it.
    let routes = json!([{ "path": "/", "pool": "nodes" }, { "path": "/api", "pool": "nodes" }]);
    let settings = edge::settings(&backends(nodes))
        .with("log.access", json!("off"))
        .with("routes", routes);
    match pace {
        Pace::Default => settings,
        Pace::Short => settings
            .with(
                "health",
                json!({ "interval": "300ms", "fast_interval": "100ms", "down_interval": "100ms" }),
            )
            .with(
                "drain",
                json!({ "late": "2s", "spread": "1s", "timeout": "4s" }),
            ),
    }
}

/// Two relay endpoints for each relay channel, and channels with a history and without.
fn node_settings(redis: &str, plan: &ScenePlan) -> Settings {
    let channels = (0..plan.channels).map(Channel::new).enumerate();
    let mut endpoints = vec![json!({ "path": "/connection", "mode": "channels" })];
    for (number, channel) in channels.filter(|(_, channel)| channel.stream == Stream::Relay) {
        let endpoint = |path: &str, protocol: &str| {
            let path = format!("/{path}-{number}");
            json!({ "path": path, "protocol": protocol, "mode": "relay", "channel": channel.name })
        };
        endpoints.push(endpoint("ws", "websocket"));
        let mut sockjs = endpoint("sockjs", "sockjs");
        // A request waits for messages until all clients are there, and gives up after 20 s.
        sockjs["heartbeat"] = json!("5s");
        endpoints.push(sockjs);
    }
    let namespace = |name: &str| {
        json!({
            "name": name, "subscribe": "anyone", "publish": "anyone", "presence": true, "join_leave": true,
        })
    };
    let mut past = namespace("past");
    past["recovery"] = json!(true);
    past["history"] = json!({ "size": 10_000, "lifetime": "1h" });
    node::settings_with_redis(redis)
        .with("trusted_proxies", json!(["127.0.0.0/8"]))
        .with("auth.anonymous", json!(true))
        .with("endpoints", json!(endpoints))
        .with("channels.namespaces", json!([past, namespace("live")]))
        .with("api.keys", json!([KEY]))
}
