//! Two hundred clients over every transport at once, and a node that is killed and comes back.

mod wires;

use std::{
    collections::HashMap,
    net::SocketAddr,
    process::Stdio,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use causeway_tests::harness::{
    clients,
    cluster::{Cluster, ClusterConfig},
    http::{self, Connection},
    node::Node,
    process::Process,
    redis::Redis,
    wait,
};
use serde::Deserialize;
use serde_json::json;
use tokio::{io::AsyncWriteExt as _, task::JoinSet, time::sleep};

use wires::Wire;

const CLIENTS: usize = 200;
const MESSAGES: u64 = 500;
/// Everyone has heard all messages before this one when a node is killed.
const BEFORE: u64 = 150;
/// The next ones, while the node dies.
const KILLED_AT: u64 = 200;
const RESTARTED_AT: u64 = 275;
/// Everyone is there again before this one.
const AFTER: u64 = 350;

const DEADLINE: Duration = Duration::from_secs(120);
/// Between two messages, so that some fall into each moment.
const PAUSE: Duration = Duration::from_millis(5);
/// Between two looks at what the clients heard.
const LOOK: Duration = Duration::from_millis(100);

/// What clients speak: those of npm, and those of our own.
const NPM: [&str; 4] = ["websocket", "xhr-streaming", "xhr-polling", "ws"];
const OWN: [(&str, Wire); 3] = [
    ("eventsource", Wire::Eventsource),
    ("htmlfile", Wire::Htmlfile),
    ("jsonp", Wire::Jsonp),
];

/// What one client went through.
#[derive(Clone, Debug, Default, Deserialize)]
struct Record {
    index: usize,
    open: bool,
    /// How often it was closed after it had been open.
    closed: usize,
    /// The first and the last of each row of messages that came without a gap, in their order.
    heard: Vec<(u64, u64)>,
}

impl Record {
    fn hear(&mut self, number: u64) {
        match self.heard.last_mut() {
            Some((_, last)) if *last + 1 == number => *last = number,
            _ => self.heard.push((number, number)),
        }
    }

    fn close(&mut self) {
        self.closed += usize::from(std::mem::take(&mut self.open));
    }

    fn last(&self) -> Option<u64> {
        self.heard.last().map(|(_, last)| *last)
    }

    /// A client of a node that lived heard all of it, once and in order.
    fn check_kept(&self) -> Result<()> {
        ensure!(self.heard == [(0, MESSAGES - 1)], "it did not hear all");
        Ok(())
    }

    /// A client of the node that died missed at most one row of messages, of the time when it was away.
    fn check_returned(&self) -> Result<()> {
        ensure!(self.closed == 1, "it was closed more than once");
        let (until, from) = match self.heard[..] {
            [(0, last)] => (last, last),
            [(0, until), (from, last)] if last == MESSAGES - 1 => (until, from),
            _ => anyhow::bail!("it heard something twice, or missed something in between"),
        };
        ensure!(
            self.last() == Some(MESSAGES - 1)
                && BEFORE - 1 <= until
                && until <= from
                && from <= AFTER,
            "it missed something while it was there"
        );
        Ok(())
    }
}

/// All clients.
struct Fleet {
    npm: Process,
    /// How many it was asked for.
    reports: u64,
    own: Vec<Arc<Mutex<Record>>>,
    /// By index.
    kinds: Vec<&'static str>,
    _running: JoinSet<()>,
}

impl Fleet {
    fn start(cluster: &Cluster) -> Result<Self> {
        let (mut plans, mut own, mut kinds) = (Vec::new(), Vec::new(), Vec::new());
        let mut running = JoinSet::new();
        for index in 0..CLIENTS {
            let kind = index % (NPM.len() + OWN.len());
            if let Some(kind) = NPM.get(kind) {
                plans.push(json!({ "index": index, "kind": kind }));
                kinds.push(*kind);
                continue;
            }
            let (kind, wire) = OWN[kind - NPM.len()];
            kinds.push(kind);
            let record = Record {
                index,
                ..Record::default()
            };
            let record = Arc::new(Mutex::new(record));
            own.push(Arc::clone(&record));
            running.spawn(wires::run(wire, cluster.edge.address, record));
        }
        let url = format!("http://{}", cluster.edge.address);
        let orders = json!({ "url": url, "clients": plans });
        let mut command = clients::command("returning.mjs", &orders)?;
        command.stdin(Stdio::piped());
        Ok(Self {
            npm: Process::spawn("npm", command, cluster.scratch.path())?,
            reports: 0,
            own,
            kinds,
            _running: running,
        })
    }

    /// What all of them went through so far.
    async fn records(&mut self) -> Result<Vec<Record>> {
        self.reports += 1;
        let number = self.reports;
        let stdin = self.npm.stdin().context("its input is piped")?;
        stdin
            .write_all(format!("{number}\n").as_bytes())
            .await
            .context("the clients have ended")?;
        let process = &self.npm;
        let report = wait::until("a report", wait::SOON, async || {
            let mut lines = process.output_lines().into_iter();
            lines.find(|line| line["report"] == number)
        });
        let mut report = report.await?;
        let mut records: Vec<Record> = serde_json::from_value(report["clients"].take())?;
        for record in &self.own {
            let record = record.lock().unwrap_or_else(PoisonError::into_inner);
            records.push(record.clone());
        }
        Ok(records)
    }

    /// Waits until `holds` of each of them.
    async fn all(&mut self, what: &str, holds: impl Fn(&Record) -> bool) -> Result<()> {
        let mut seen = Vec::new();
        let reached = wait::until(what, DEADLINE, async || {
            sleep(LOOK).await;
            seen = self.records().await.ok()?;
            seen.iter().all(&holds).then_some(())
        });
        reached.await.with_context(|| {
            let others = seen.iter().filter(|record| !holds(record));
            let others = others.map(|record| format!("\n{} {record:?}", self.kinds[record.index]));
            others.take(10).collect::<String>()
        })
    }
}

/// Publishes the messages from the first to before the last in Redis.
async fn publish(redis: &mut Connection, from: u64, before: u64) -> Result<()> {
    for number in from..before {
        redis.send(format!("PUBLISH global {number}\r\n")).await?;
        let response = redis.bytes(":3\r\n".len()).await?;
        ensure!(response.starts_with(b":"), "{response:?}");
        sleep(PAUSE).await;
    }
    Ok(())
}

async fn redis(redis: &Redis) -> Result<Connection> {
    let address: SocketAddr = redis
        .url()
        .trim_start_matches("redis://")
        .parse()
        .context("no address in the url")?;
    Connection::open(address).await
}

/// How many clients a node holds, by its own account.
async fn clients_of(node: &Node) -> Result<usize> {
    let metrics = http::get(node.admin, "/metrics").await?.text();
    let counts = metrics
        .lines()
        .filter(|line| line.starts_with("causeway_node_clients{"));
    let counts = counts.filter_map(|line| line.rsplit(' ').next()?.parse::<usize>().ok());
    Ok(counts.sum())
}

#[tokio::test]
async fn clients_of_a_killed_node_miss_what_was_said_while_they_were_away_and_nobody_else_anything()
-> Result<()> {
    let config = ClusterConfig {
        // Signs of life more often than the harness waits, and time for clients on a busy machine.
        node_settings: |settings| {
            settings.with(
                "endpoints",
                json!([
                    { "path": "/sockjs", "protocol": "sockjs", "heartbeat": "5s", "disconnect_delay": "1m" },
                    { "path": "/ws", "protocol": "websocket" },
                ]),
            )
        },
        ..ClusterConfig::three_nodes()
    };
    let mut cluster = Cluster::start("mixed", config).await?;
    let mut redis = redis(&cluster.redis).await?;
    let mut fleet = Fleet::start(&cluster)?;
    fleet
        .all("all clients to be there", |record| record.open)
        .await?;

    publish(&mut redis, 0, BEFORE).await?;
    let up_to_date = |record: &Record| record.last() == Some(BEFORE - 1);
    fleet.all("the first messages", up_to_date).await?;
    let on_victim = clients_of(&cluster.nodes[0]).await?;
    assert!((1..CLIENTS).contains(&on_victim), "{on_victim} on one node");

    publish(&mut redis, BEFORE, KILLED_AT).await?;
    cluster.nodes[0].kill().await?;
    publish(&mut redis, KILLED_AT, RESTARTED_AT).await?;
    cluster.nodes[0].restart().await?;
    publish(&mut redis, RESTARTED_AT, AFTER).await?;
    // From here on it hears what the others hear.
    cluster.nodes[0].ready().await?;
    // One that is open and heard nothing of late has not noticed yet that its node is gone.
    let there =
        |record: &Record| record.open && (0 < record.closed || record.last() == Some(AFTER - 1));
    fleet.all("everyone to be there again", there).await?;
    publish(&mut redis, AFTER, MESSAGES).await?;
    let done = |record: &Record| record.last() == Some(MESSAGES - 1);
    fleet.all("the last messages", done).await?;

    let mut returned = HashMap::<&str, (usize, usize)>::new();
    for record in fleet.records().await? {
        let kind = fleet.kinds[record.index];
        let counts = returned.entry(kind).or_default();
        counts.0 += 1;
        let checked = if record.closed == 0 {
            record.check_kept()
        } else {
            counts.1 += 1;
            record.check_returned()
        };
        checked.with_context(|| format!("{kind} {record:?}"))?;
    }
    println!("{:16}{:>8}{:>12}", "transport", "clients", "came back");
    for (kind, (clients, returned)) in &returned {
        println!("{kind:16}{clients:>8}{returned:>12}");
    }
    let returned: usize = returned.values().map(|(_, returned)| returned).sum();
    assert_eq!(
        returned, on_victim,
        "who was closed, and who was on the node"
    );
    Ok(())
}
