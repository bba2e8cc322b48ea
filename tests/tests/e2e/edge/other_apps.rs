//! Other people's apps behind the edge, with their own clients: two processes of each, as npm and PyPI have them.
//!
//! Every request of a session reaches the process that has it, and who lost a process goes on with the other one.

use std::{
    collections::{BTreeSet, HashMap},
    path::Path,
    process::Stdio,
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use causeway_tests::harness::{
    clients,
    edge::{self, Edge},
    process::Process,
    scratch::Scratch,
    wait,
};
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::io::AsyncWriteExt as _;

const MESSAGES: usize = 10;
const DEADLINE: Duration = Duration::from_secs(120);

/// An app: two processes of a server, and clients that are made with the library that belongs to it.
struct App {
    name: &'static str,
    server: (&'static str, Value),
    clients: &'static str,
    /// Library and wire of the clients, `each` of every kind.
    kinds: &'static [&'static str],
    each: usize,
    /// Whether its clients show the cookie again when they return, and so come back to where they were.
    comes_back: bool,
    health: Value,
    affinity: Value,
}

impl App {
    /// One that npm has.
    fn of_npm(name: &'static str, kinds: &'static [&'static str], each: usize) -> Self {
        Self {
            name,
            server: ("apps/server.mjs", json!({ "app": name })),
            clients: "apps/clients.mjs",
            kinds,
            each,
            comes_back: true,
            health: json!({ "kind": "http", "path": "/", "expect": [200], "timeout": "30s" }),
            affinity: json!({}),
        }
    }

    fn start_server(&self, process: &str, directory: &Path) -> Result<Process> {
        let (script, mut orders) = self.server.clone();
        orders["name"] = json!(process);
        Process::spawn(process, clients::command(script, &orders)?, directory)
    }

    fn start_clients(&self, edge: &Edge, directory: &Path) -> Result<Crowd> {
        let orders = json!({
            "url": format!("http://{}", edge.address),
            "kinds": self.kinds,
            "each": self.each,
            "messages": MESSAGES,
        });
        let mut command = clients::command(self.clients, &orders)?;
        command.stdin(Stdio::piped());
        Ok(Crowd {
            process: Process::spawn("clients", command, directory)?,
        })
    }
}

/// What became of one client.
#[derive(Debug, Deserialize)]
struct Client {
    /// What carries its messages.
    wire: String,
    /// How often it has been opened.
    opened: usize,
    /// Who answered it in this round.
    processes: BTreeSet<String>,
}

impl Client {
    /// The one process that answered it.
    fn process(&self) -> Result<&str> {
        let mut processes = self.processes.iter();
        let first = processes.next().context("somebody answered")?;
        ensure!(processes.next().is_none(), "{self:?} was answered by two");
        Ok(first)
    }
}

/// All clients of an app, in one process.
struct Crowd {
    process: Process,
}

impl Crowd {
    /// Gives the `count`th command like this one and returns what it came to.
    async fn tell(&mut self, command: &str, count: usize) -> Result<Vec<Client>> {
        let input = self.process.stdin().context("it is piped")?;
        input.write_all(format!("{command}\n").as_bytes()).await?;
        let what = format!("`{command}` of the clients");
        let found = wait::until(&what, DEADLINE, async || {
            let events = self.process.output_lines();
            let mut done = events.iter().filter(|event| event["event"] == command);
            match done.nth(count - 1) {
                Some(event) => Some(Ok(event["clients"].clone())),
                None if self.process.is_running() => None,
                None => Some(Err(anyhow::anyhow!("they ended"))),
            }
        });
        let reports = found
            .await
            .and_then(|found| found)
            .with_context(|| self.process.tail())?;
        Ok(serde_json::from_value(reports)?)
    }
}

/// The backends that served each SockJS session that goes by requests, by the edge's own account.
fn backends_of_sessions(edge: &Edge) -> HashMap<String, BTreeSet<String>> {
    let mut sessions: HashMap<String, BTreeSet<String>> = HashMap::new();
    for line in edge.process.output_lines() {
        let path: Vec<&str> = line["path"]
            .as_str()
            .unwrap_or_default()
            .split('/')
            .collect();
        if let (["", "echo", _, session, "xhr_send"], Some(backend)) =
            (&path[..], line["backend"].as_str())
        {
            let backends = sessions.entry((*session).to_owned()).or_default();
            backends.insert(backend.to_owned());
        }
    }
    sessions
}

/// Waits until the edge tells of all sessions of `app`, and checks that each was at one backend.
async fn each_session_was_at_one_backend(app: &App, edge: &Edge) -> Result<()> {
    let polling = app.kinds.iter().filter(|kind| kind.contains("/xhr-"));
    let count = polling.count() * app.each;
    let what = format!("{count} sessions in the access log");
    let sessions = wait::until(&what, wait::SOON, async || {
        let sessions = backends_of_sessions(edge);
        (sessions.len() == count).then_some(sessions)
    })
    .await?;
    for (session, backends) in sessions {
        assert_eq!(backends.len(), 1, "session {session} was at {backends:?}");
    }
    Ok(())
}

/// The life of an app: clients come, talk, leave and return; then one of its two processes is killed.
async fn survives(app: App) -> Result<()> {
    let scratch = Scratch::new(app.name)?;
    let mut servers = Vec::new();
    for name in ["a", "b"] {
        servers.push(app.start_server(name, scratch.path())?);
    }
    let mut backends = Vec::new();
    for server in &mut servers {
        let address = server.listening("app").await?;
        backends.push((server.name().to_owned(), address));
    }
    let backends: Vec<_> = backends.iter().map(|(id, at)| (id.as_str(), *at)).collect();
    // The process that is killed never comes back: its clients are not to wait for it for long.
    let settings = edge::settings(&backends)
        .with("health", app.health.clone())
        .with("affinity", app.affinity.clone())
        .with("affinity.hold", json!("1s"));
    let edge = Edge::start(&settings, scratch.path()).await?;
    for (id, _) in &backends {
        edge.backend_in_state(id, "up").await?;
    }

    let mut crowd = app.start_clients(&edge, scratch.path())?;
    let first = crowd.tell("round", 1).await?;
    assert_eq!(first.len(), app.kinds.len() * app.each);
    for (number, client) in first.iter().enumerate() {
        assert_eq!(client.opened, 1, "nobody is thrown out: {client:?}");
        let kind = app.kinds[number / app.each];
        assert!(
            kind.ends_with(&format!("/{}", client.wire)),
            "{kind}: {client:?}"
        );
        client.process()?;
    }
    let on = |clients: &[Client], name: &str| {
        let there = clients
            .iter()
            .filter(|client| client.processes.contains(name));
        there.count()
    };
    assert!(0 < on(&first, "a") && 0 < on(&first, "b"), "{first:?}");

    each_session_was_at_one_backend(&app, &edge).await?;

    crowd.tell("reopen", 1).await?;
    let second = crowd.tell("round", 2).await?;
    for (before, after) in first.iter().zip(&second) {
        assert_eq!(after.opened, 2, "{after:?}");
        let process = after.process()?;
        if app.comes_back {
            assert_eq!(process, before.process()?, "a cookie leads back");
        }
    }

    let victim = second[0].process()?;
    let server = servers.iter_mut().find(|server| server.name() == victim);
    server.context("it is one of the two")?.kill().await?;
    let third = crowd.tell("round", 3).await?;
    for (before, after) in second.iter().zip(&third) {
        if before.process()? == victim {
            assert_ne!(after.process()?, victim, "{after:?}");
            assert!(2 < after.opened, "{after:?}");
        } else {
            assert_eq!(after.process()?, before.process()?);
            assert_eq!(after.opened, 2, "nobody else notices: {after:?}");
        }
    }
    Ok(())
}

#[tokio::test]
async fn sockjs_keeps_its_sessions_over_each_transport() -> Result<()> {
    let kinds = &[
        "sockjs/websocket",
        "sockjs/xhr-streaming",
        "sockjs/xhr-polling",
    ];
    // Its client has no cookies outside of a browser: a session is kept by its path, and a new one may go anywhere.
    survives(App {
        comes_back: false,
        ..App::of_npm("sockjs", kinds, 4)
    })
    .await
}

#[tokio::test]
async fn socket_io_keeps_its_sessions_while_it_polls_and_when_it_upgrades() -> Result<()> {
    let kinds = &["socket.io/polling", "socket.io/websocket"];
    // Its client forgets its cookies with each connection outside of a browser.
    survives(App {
        comes_back: false,
        ..App::of_npm("socket.io", kinds, 4)
    })
    .await
}

#[tokio::test]
async fn socket_io_keeps_its_sessions_without_cookies() -> Result<()> {
    let kinds = &["socket.io/polling", "socket.io/websocket"];
    survives(App {
        comes_back: false,
        affinity: json!({ "cookie": "none", "query_parameter": "sid" }),
        ..App::of_npm("socket.io", kinds, 4)
    })
    .await
}

#[tokio::test]
async fn ws_comes_back_to_its_process() -> Result<()> {
    survives(App::of_npm("ws", &["ws/websocket"], 8)).await
}

#[tokio::test]
async fn websockets_of_python_come_back_to_their_process() -> Result<()> {
    survives(App {
        name: "websockets",
        server: ("apps/server.py", json!({})),
        clients: "apps/clients.py",
        kinds: &["websockets/websocket"],
        each: 8,
        comes_back: true,
        // It knows nothing but upgrades.
        health: json!({ "kind": "tcp", "timeout": "30s" }),
        affinity: json!({}),
    })
    .await
}
