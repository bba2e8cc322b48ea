//! Operators act on a running edge: over its unix socket, with a token, and by `causeway-proxy ctl`.
//!
//! What is closed is told by its close code, and what is not by an echo, never by time: a drain over an hour closes one tunnel and
//! leaves the others, a drain over no time closes all.

use std::{
    collections::HashMap,
    fs,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::Output,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use anyhow::{Context as _, Result, ensure};
use causeway_tests::harness::{
    backend::{Backend, Request},
    edge::{self, Edge},
    http,
    node::{self, Node},
    process::json_lines,
    programs,
    scratch::Scratch,
    settings::Settings,
    wait,
    websocket::{ACCEPT, WebSocket},
};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    process::Command,
    time::timeout,
};

const TOKEN: &str = "0123456789abcdef0123456789abcdef";

const ECHO: &str = "/echo/websocket";

/// The code that tells a client to reconnect.
const RESTART: u16 = 1012;

/// An edge in front of nodes, with both ways to act on it.
struct Scene {
    scratch: Scratch,
    nodes: Vec<Node>,
    edge: Edge,
}

impl Scene {
    /// With this many nodes, and all of them up.
    async fn start(name: &str, nodes: usize) -> Result<Self> {
        Self::start_with(name, nodes, nodes).await
    }

    /// With this many nodes, of which the edge knows the first `known`.
    async fn start_with(name: &str, nodes: usize, known: usize) -> Result<Self> {
        let scratch = Scratch::new(name)?;
        let mut started = Vec::new();
        for number in 1..=nodes {
            let id = format!("n{number}");
            started.push(Node::start(&id, node::settings(), scratch.path()).await?);
        }
        let settings = settings(&scratch, &started[..known]);
        let edge = Edge::start(&settings, scratch.path()).await?;
        for node in &started[..known] {
            edge.backend_in_state(&node.id, "up").await?;
        }
        Ok(Self {
            scratch,
            nodes: started,
            edge,
        })
    }

    fn socket(&self) -> PathBuf {
        socket(&self.scratch)
    }

    /// Runs `causeway-proxy ctl` through the socket.
    async fn ctl(&self, arguments: &[&str]) -> Result<Output> {
        let socket = self.socket();
        let mut all = vec!["--socket", socket.to_str().context("a path")?];
        all.extend(arguments);
        ctl(&all).await
    }

    /// The same, of a command that has to succeed, with its response.
    async fn act(&self, arguments: &[&str]) -> Result<Value> {
        let output = self.ctl(&[arguments, &["--json"]].concat()).await?;
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        ensure!(output.status.success(), "{arguments:?}: {said}");
        serde_json::from_slice(&output.stdout).context("JSON")
    }

    /// Writes the configuration with these nodes.
    fn write(&self, nodes: &[Node]) -> Result<()> {
        let text = settings(&self.scratch, nodes).text();
        fs::write(self.scratch.path().join("edge.yaml"), text)?;
        Ok(())
    }

    /// Opens WebSockets until each node has `each`; by node.
    async fn open(&self, each: usize) -> Result<HashMap<String, Vec<WebSocket>>> {
        let mut by_node: HashMap<String, Vec<WebSocket>> = HashMap::new();
        for _ in 0..each * self.nodes.len() {
            let socket = WebSocket::open(self.edge.address, ECHO).await?;
            by_node
                .entry(socket.node().to_owned())
                .or_default()
                .push(socket);
        }
        for (node, sockets) in &by_node {
            ensure!(sockets.len() == each, "{node} has {}", sockets.len());
        }
        Ok(by_node)
    }

    /// How many tunnels the list has for `node`.
    async fn listed(&self, node: &str) -> Result<u64> {
        let page = self.act(&["tunnels", "--backend", node]).await?;
        page["matching"].as_u64().context("a number")
    }

    /// Waits until the access log has this many tunnels that ended for `reason`.
    async fn closed_with(&self, reason: &str, tunnels: usize) -> Result<()> {
        let what = format!("{tunnels} lines with {reason}");
        wait::until(&what, wait::SOON, async || {
            let lines = self.edge.process.output_lines();
            let ended = lines.iter().filter(|line| line["close_reason"] == reason);
            (ended.count() == tunnels).then_some(())
        })
        .await
    }

    /// Waits for a line of the edge's log that `matches`.
    async fn logged(&self, what: &str, matches: impl Fn(&Value) -> bool) -> Result<Value> {
        wait::until(what, wait::SOON, async || {
            let lines = json_lines(&self.edge.process.log());
            let mut fields = lines.into_iter().map(|mut line| line["fields"].take());
            fields.find(&matches)
        })
        .await
    }
}

fn socket(scratch: &Scratch) -> PathBuf {
    scratch.path().join("admin.sock")
}

fn settings(scratch: &Scratch, nodes: &[Node]) -> Settings {
    let backends: Vec<_> = nodes
        .iter()
        .map(|node| (node.id.as_str(), node.address))
        .collect();
    edge::settings(&backends)
        .with("admin.token", json!(TOKEN))
        .with("admin.socket", json!(socket(scratch)))
}

async fn ctl(arguments: &[&str]) -> Result<Output> {
    let mut command = Command::new(programs::ours("causeway-proxy")?);
    command.arg("ctl").args(arguments).kill_on_drop(true);
    command.output().await.context("the program runs")
}

fn said(output: &Output) -> String {
    let both = [&output.stdout[..], &output.stderr[..]].concat();
    String::from_utf8_lossy(&both).into_owned()
}

/// Checks that a WebSocket is open: it echoes.
async fn echoes(socket: &mut WebSocket) -> Result<()> {
    socket.send("still here").await?;
    let text = socket.text().await?;
    ensure!(text == "still here", "an echo of {text}");
    Ok(())
}

/// Opens the next WebSocket of a client, with the cookie of `closed`.
async fn reconnect(edge: &Edge, closed: &WebSocket) -> Result<WebSocket> {
    let cookie = closed.handshake.cookie("causeway").context("a cookie")?;
    let pair = format!("causeway={cookie}");
    WebSocket::open_with(edge.address, ECHO, &[("Cookie", &pair)]).await
}

/// Lets each client read what it gets, an echo or the end, after which it reconnects, until `moves` have reconnected.
async fn follow(edge: &Edge, open: &mut [WebSocket], moves: usize) -> Result<()> {
    let mut moved = 0;
    while moved < moves {
        for socket in &mut *open {
            if echoes(socket).await.is_err() {
                moved += 1;
                *socket = reconnect(edge, socket).await?;
            }
        }
    }
    ensure!(moved == moves, "{moved} clients were moved");
    Ok(())
}

#[tokio::test]
async fn a_drain_closes_the_tunnels_of_one_backend_alone_and_one_after_the_other() -> Result<()> {
    let scene = Scene::start("admin-drain", 3).await?;
    let mut sockets = scene.open(4).await?;
    let mut drained = sockets.remove("n1").context("some at n1")?;

    let done = scene.act(&["drain", "n1", "--spread", "1h"]).await?;
    assert_eq!(
        (&done["state"], &done["closing"]),
        (&json!("draining"), &json!(4))
    );
    // The first is due at once, the second in a quarter of an hour.
    let mut first = drained.remove(0);
    assert_eq!(first.close_code().await?, Some(RESTART));
    for socket in drained.iter_mut().chain(sockets.values_mut().flatten()) {
        echoes(socket).await?;
    }
    let mut moved = vec![reconnect(&scene.edge, &first).await?];

    // Nobody else is moved once it is called off; then the rest goes.
    scene.act(&["ready", "n1"]).await?;
    scene.act(&["drain", "n1", "--spread", "0s"]).await?;
    for mut socket in drained {
        assert_eq!(socket.close_code().await?, Some(RESTART));
        moved.push(reconnect(&scene.edge, &socket).await?);
    }
    for socket in moved.iter_mut().chain(sockets.values_mut().flatten()) {
        assert_ne!(socket.node(), "n1");
        echoes(socket).await?;
    }
    wait::until("no tunnel at n1", wait::SOON, async || {
        (scene.listed("n1").await.ok()? == 0).then_some(())
    })
    .await?;
    for _ in 0..6 {
        let response = http::get(scene.edge.address, "/").await?;
        assert_ne!(response.header("causeway-node"), Some("n1"));
    }
    scene.closed_with("backend_drained", 4).await?;

    scene.act(&["ready", "n1"]).await?;
    scene.edge.backend_in_state("n1", "up").await
}

#[tokio::test]
async fn a_maintenance_leaves_tunnels_open_and_a_weight_shifts_new_ones() -> Result<()> {
    let scene = Scene::start("admin-maintenance", 3).await?;
    let mut sockets = scene.open(2).await?;
    let done = scene.act(&["maintenance", "n1"]).await?;
    assert_eq!(done["state"], "maintenance");
    for socket in sockets.get_mut("n1").context("some at n1")? {
        echoes(socket).await?;
        assert_ne!(reconnect(&scene.edge, socket).await?.node(), "n1");
    }
    let kept = scene.act(&["drain", "n2", "--keep-tunnels"]).await?;
    assert_eq!(
        (&kept["state"], &kept["closing"]),
        (&json!("draining"), &json!(0))
    );
    for socket in sockets.get_mut("n2").context("some at n2")? {
        echoes(socket).await?;
    }
    let last = scene.ctl(&["maintenance", "n3"]).await?;
    assert_eq!(last.status.code(), Some(1), "{}", said(&last));
    assert!(said(&last).contains("no other backend"), "{}", said(&last));

    for node in ["n1", "n2"] {
        scene.act(&["ready", node]).await?;
        scene.edge.backend_in_state(node, "up").await?;
    }
    drop(sockets);
    wait::until("no tunnel to be open", wait::SOON, async || {
        let page = scene.act(&["tunnels"]).await.ok()?;
        (page["matching"] == 0).then_some(())
    })
    .await?;
    scene.act(&["weight", "n3", "10"]).await?;
    let mut open = Vec::new();
    for _ in 0..24 {
        open.push(WebSocket::open(scene.edge.address, ECHO).await?);
    }
    let at_n3 = open.iter().filter(|socket| socket.node() == "n3").count();
    assert!(18 <= at_n3, "{at_n3} of 24 with ten times the weight");

    // Until the next reload.
    scene.act(&["reload"]).await?;
    let backends = scene.act(&["status"]).await?;
    let weights: Vec<&Value> = backends
        .as_array()
        .into_iter()
        .flatten()
        .map(|backend| &backend["weight"])
        .collect();
    assert_eq!(weights, [1, 1, 1]);
    Ok(())
}

#[tokio::test]
async fn a_drain_holds_over_a_reload_and_shows_in_the_metrics() -> Result<()> {
    let scene = Scene::start("admin-reload-keeps", 2).await?;
    scene.act(&["drain", "n1"]).await?;
    scene.act(&["reload"]).await?;
    scene.edge.backend_in_state("n1", "draining").await?;
    let page = http::get(scene.edge.admin, "/metrics").await?.text();
    for line in [
        "causeway_proxy_overrides{backend=\"n1\",override=\"drain\"} 1",
        "causeway_proxy_drains_total{backend=\"n1\",cause=\"operator\"} 1",
        "causeway_proxy_state{backend=\"n1\",state=\"draining\"} 1",
        "causeway_proxy_admin_actions_total{action=\"reload\",outcome=\"done\"} 1",
    ] {
        assert!(page.contains(line), "{line}\n{page}");
    }
    let status = said(&scene.ctl(&["status"]).await?);
    assert!(status.contains("draining*"), "{status}");
    scene.act(&["ready", "n1"]).await?;
    scene.edge.backend_in_state("n1", "up").await
}

#[tokio::test]
async fn tunnels_are_listed_in_pages_and_ended_one_by_one() -> Result<()> {
    let scene = Scene::start("admin-tunnels", 2).await?;
    let mut sockets = scene.open(3).await?;
    let at_n1 = sockets.get_mut("n1").context("some at n1")?;
    echoes(&mut at_n1[0]).await?;
    let page = scene
        .act(&["tunnels", "--backend", "n1", "--limit", "2"])
        .await?;
    assert_eq!(page["matching"], 3);
    let list = page["tunnels"].as_array().context("a list")?;
    assert_eq!(list.len(), 2);
    for tunnel in list {
        assert_eq!(tunnel["backend"], "n1");
        assert_eq!(tunnel["client"], "127.0.0.1");
        assert_eq!(tunnel["path"], ECHO);
        assert!(0.0 < tunnel["since"].as_f64().context("a time")?);
    }
    let text = "still here".len() as u64;
    assert!(text <= list[0]["bytes_in"].as_u64().context("a number")?);
    assert!(text <= list[0]["bytes_out"].as_u64().context("a number")?);
    let after = page["next"].to_string();
    let rest = scene
        .act(&["tunnels", "--backend", "n1", "--after", &after])
        .await?;
    let rest_of = rest["tunnels"].as_array().context("a list")?;
    assert_eq!((rest_of.len(), &rest["next"]), (1, &Value::Null));
    let nobody = scene.act(&["tunnels", "--client", "10.0.0.1"]).await?;
    assert_eq!(nobody["matching"], 0);

    let (first, second) = (list[0]["id"].to_string(), list[1]["id"].to_string());
    scene.act(&["close", &first]).await?;
    assert_eq!(at_n1[0].close_code().await?, Some(RESTART));
    scene.act(&["close", &second, "--code", "1001"]).await?;
    assert_eq!(at_n1[1].close_code().await?, Some(1001));
    echoes(&mut at_n1[2]).await?;
    wait::until("the list to forget it", wait::SOON, async || {
        let gone = scene.ctl(&["close", &first]).await.ok()?;
        (gone.status.code() == Some(1)).then_some(())
    })
    .await?;
    scene.closed_with("operator", 2).await
}

#[tokio::test]
async fn a_rebalance_fills_a_new_backend_and_moves_nobody_twice() -> Result<()> {
    const EACH: usize = 30;
    let scene = Scene::start_with("admin-rebalance", 3, 2).await?;
    let mut clients = Vec::new();
    for _ in 0..2 * EACH {
        clients.push(WebSocket::open(scene.edge.address, ECHO).await?);
    }
    scene.write(&scene.nodes)?;
    scene.act(&["reload"]).await?;
    scene.edge.backend_in_state("n3", "up").await?;

    let dry = scene.act(&["rebalance", "--dry-run"]).await?;
    assert_eq!(
        (&dry["closing"], &dry["dry_run"]),
        (&json!(20), &json!(true))
    );
    for socket in &mut clients {
        echoes(socket).await?;
    }
    let done = scene.act(&["rebalance", "nodes", "--spread", "0s"]).await?;
    assert_eq!(done["closing"], 20);

    let mut open = clients;
    timeout(wait::SOON, follow(&scene.edge, &mut open, 20)).await??;
    for socket in &mut open {
        echoes(socket).await?;
    }
    let mut tunnels: HashMap<&str, usize> = HashMap::new();
    for socket in &open {
        *tunnels.entry(socket.node()).or_default() += 1;
    }
    let most = tunnels.values().max().context("there are some")?;
    let mean = open.len() as f64 / 3.0;
    assert!(*most as f64 / mean <= 1.10, "{tunnels:?}");

    // The clients that were moved are left alone, however uneven it is.
    open.retain(|socket| socket.node() == "n3");
    wait::until("the others to be gone", wait::SOON, async || {
        let page = scene.act(&["tunnels"]).await.ok()?;
        (page["matching"] == open.len()).then_some(())
    })
    .await?;
    let again = scene.act(&["rebalance", "--spread", "0s"]).await?;
    assert_eq!(again["closing"], 0, "{again}");
    for socket in &mut open {
        echoes(socket).await?;
    }
    Ok(())
}

#[tokio::test]
async fn with_a_threshold_a_new_backend_gets_its_share_by_itself() -> Result<()> {
    let scene = Scene::start_with("admin-threshold", 3, 2).await?;
    let mut open = Vec::new();
    for _ in 0..60 {
        open.push(WebSocket::open(scene.edge.address, ECHO).await?);
    }
    let by_itself = json!({ "threshold": 20, "after": "1s", "spread": "0s" });
    let settings = settings(&scene.scratch, &scene.nodes).with("rebalance", by_itself);
    let file = scene.scratch.path().join("edge.yaml");
    fs::write(file, settings.text())?;
    scene.act(&["reload"]).await?;

    timeout(wait::SOON, follow(&scene.edge, &mut open, 20)).await??;
    for node in ["n1", "n2", "n3"] {
        let at_node = open.iter().filter(|socket| socket.node() == node);
        assert_eq!(at_node.count(), 20, "{node}");
    }
    let line = scene
        .logged("the rebalance", |line| line["closing"] == 20)
        .await?;
    let all = [&line["tunnels"], &line["target"], &line["threshold"]];
    assert_eq!(all, [&json!(30), &json!(20), &json!(20)], "{line}");
    for socket in &mut open {
        echoes(socket).await?;
    }
    Ok(())
}

#[tokio::test]
async fn a_reload_shows_its_plan_first_and_a_wrong_file_changes_nothing() -> Result<()> {
    let scene = Scene::start("admin-reload", 2).await?;
    let mut socket = WebSocket::open(scene.edge.address, ECHO).await?;
    let node = socket.node().to_owned();
    let file = scene.scratch.path().join("edge.yaml");
    let before = fs::read_to_string(&file)?;
    let others: Vec<_> = scene
        .nodes
        .iter()
        .filter(|other| other.id != node)
        .map(|other| (other.id.as_str(), other.address))
        .collect();
    let without = edge::settings(&others)
        .with("admin.token", json!(TOKEN))
        .with("admin.socket", json!(scene.socket()))
        .with(
            "drain",
            json!({ "backend_spread": "0s", "close_tunnels": ["reload"] }),
        )
        .with("threads", json!(1));
    fs::write(&file, without.text())?;

    let output = scene.ctl(&["reload", "--dry-run"]).await?;
    let text = said(&output);
    assert!(output.status.success(), "{text}");
    for part in [
        "would change: pools, drain, threads",
        "removed",
        "1 closed",
        "nothing was changed",
    ] {
        assert!(text.contains(part), "{part}: {text}");
    }
    echoes(&mut socket).await?;
    scene.edge.backend_in_state(&node, "up").await?;
    let page = http::get(scene.edge.admin, "/metrics").await?.text();
    assert!(!page.contains("causeway_proxy_reloads_total{"), "{page}");

    fs::write(&file, before.replace("\"pools\"", "\"pulls\""))?;
    for arguments in [&["reload", "--dry-run"][..], &["reload"]] {
        let output = scene.ctl(arguments).await?;
        assert_eq!(output.status.code(), Some(1));
        let text = said(&output);
        assert!(
            text.contains("edge.yaml:") && text.contains("pulls"),
            "{text}"
        );
    }
    echoes(&mut socket).await?;

    fs::write(&file, without.text())?;
    let done = scene.act(&["reload"]).await?;
    assert_eq!(done["needs_restart"], json!(["threads"]));
    assert_eq!(socket.close_code().await?, Some(RESTART));
    assert_ne!(reconnect(&scene.edge, &socket).await?.node(), node);
    scene.edge.backend_in_state(&node, "draining").await
}

#[tokio::test]
async fn nobody_acts_without_the_right_to_and_the_log_says_who_did() -> Result<()> {
    let scene = Scene::start("admin-access", 2).await?;
    let mode = fs::metadata(scene.socket())?.permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    let admin = scene.edge.admin;
    let bearer = format!("Bearer {TOKEN}");
    let wrong = format!("Bearer {}", TOKEN.replace('0', "1"));
    for headers in [&[][..], &[("Authorization", wrong.as_str())]] {
        for (method, path) in [
            ("POST", "/backends/n1/drain"),
            ("POST", "/reload"),
            ("POST", "/upgrade"),
            ("POST", "/rebalance"),
            ("POST", "/tunnels/0/close"),
            ("GET", "/tunnels"),
        ] {
            let response = http::request(admin, method, path, headers, b"").await?;
            assert_eq!(response.status, 401, "{path}");
            assert_eq!(response.header("www-authenticate"), Some("Bearer"));
        }
    }
    scene.edge.backend_in_state("n1", "up").await?;
    let allowed = [("Authorization", bearer.as_str())];
    let response = http::request(admin, "GET", "/backends/n1/drain", &allowed, b"").await?;
    assert_eq!(
        (response.status, response.header("allow")),
        (405, Some("POST"))
    );
    let body = br#"{"weight": 5}"#;
    let response = http::request(admin, "POST", "/backends/n1/weight", &allowed, body).await?;
    assert_eq!(response.status, 200, "{}", response.text());
    scene.act(&["weight", "n2", "6"]).await?;

    let by_token = scene.logged("the action with the token", |fields| {
        fields["message"] == "admin action" && fields["backend"] == "n1"
    });
    let who = by_token.await?["who"].as_str().context("who")?.to_owned();
    assert!(who.starts_with("token, 127.0.0.1:"), "{who}");
    let by_socket = scene.logged("the action through the socket", |fields| {
        fields["message"] == "admin action" && fields["backend"] == "n2"
    });
    let who = by_socket.await?["who"].as_str().context("who")?.to_owned();
    assert!(who.starts_with("uid ") && who.contains(", pid "), "{who}");
    let denied = |fields: &Value| fields["message"] == "admin action denied";
    scene.logged("the denied one", denied).await?;
    assert!(!scene.edge.process.log().contains(TOKEN));
    Ok(())
}

#[tokio::test]
async fn without_a_token_there_are_no_actions_over_tcp() -> Result<()> {
    let scratch = Scratch::new("admin-no-token")?;
    let node = Node::start("n1", node::settings(), scratch.path()).await?;
    let edge = Edge::start(&edge::settings(&[("n1", node.address)]), scratch.path()).await?;
    let headers = [("Authorization", "Bearer 0123456789abcdef")];
    let response = http::request(edge.admin, "POST", "/reload", &headers, b"").await?;
    assert_eq!(response.status, 403);
    assert!(
        response.text().contains("admin.token"),
        "{}",
        response.text()
    );
    assert_eq!(http::get(edge.admin, "/backends").await?.status, 200);
    Ok(())
}

#[tokio::test]
async fn the_socket_goes_with_the_edge_and_what_a_killed_one_left_is_replaced() -> Result<()> {
    let mut scene = Scene::start("admin-socket", 1).await?;
    scene.edge.process.kill().await?;
    assert!(scene.socket().exists());
    let unreachable = scene.ctl(&["status"]).await?;
    assert_eq!(unreachable.status.code(), Some(3), "{}", said(&unreachable));
    let settings = settings(&scene.scratch, &scene.nodes);
    scene.edge = Edge::start(&settings, scene.scratch.path()).await?;
    scene.act(&["status"]).await?;
    scene
        .edge
        .process
        .signal(causeway_tests::harness::process::Signal::Terminate);
    scene.edge.process.exit(wait::SOON).await?;
    assert!(!scene.socket().exists());
    Ok(())
}

#[tokio::test]
async fn ctl_tells_by_its_exit_code_what_went_wrong() -> Result<()> {
    let scene = Scene::start("admin-ctl", 1).await?;
    let url = format!("http://{}", scene.edge.admin);
    let token = scene.scratch.write("token", &format!("{TOKEN}\n"))?;
    let wrong = scene.scratch.write("wrong", "0123456789abcdef\n")?;
    let text = |path: &Path| path.display().to_string();
    let (token, wrong) = (text(&token), text(&wrong));
    let not_an_edge = format!("http://{}", scene.nodes[0].address);
    for (arguments, code, part) in [
        (&["--url", &url, "status"][..], 0, "n1"),
        (
            &["--url", &url, "--token-file", &token, "tunnels"],
            0,
            "0 tunnels in all",
        ),
        (
            &["--url", &url, "--token-file", &wrong, "tunnels"],
            4,
            "not allowed",
        ),
        (&["--url", &url, "tunnels"], 4, "Authorization"),
        (
            &["--url", &url, "--token-file", &token, "ready", "n9"],
            1,
            "the backends are n1",
        ),
        (
            &["--url", &url, "--token-file", "/none", "ready", "n1"],
            2,
            "/none",
        ),
        (&["--url", "https://a", "status"], 2, "no TLS"),
        (&["status"], 2, "--socket"),
        (&["--socket", "/none.sock", "status"], 3, "cannot reach"),
        (&["--url", &not_an_edge, "status"], 3, "not that of an edge"),
        (&["drain"], 2, "BACKEND"),
        (
            &["--url", &url, "--socket", "/s", "status"],
            2,
            "cannot be used with",
        ),
    ] {
        let output = ctl(arguments).await?;
        let said = said(&output);
        assert_eq!(output.status.code(), Some(code), "{arguments:?}: {said}");
        assert!(said.contains(part), "{arguments:?}: {said}");
        assert!(!said.contains(TOKEN));
    }
    Ok(())
}

/// An application that announces by its health check that it is stopping, and closes no WebSocket by itself.
async fn application(is_stopping: Arc<AtomicBool>) -> Result<Backend> {
    Backend::start(move |mut request: Request| {
        let is_stopping = Arc::clone(&is_stopping);
        async move {
            if !request.head.starts_with("GET /health ") {
                return hold(request).await;
            }
            let answered = if is_stopping.load(Ordering::SeqCst) {
                let drain = "Causeway-Drain: 1\r\n";
                request.respond("503 Service Unavailable", drain, "").await
            } else {
                request.respond("200 OK", "", "").await
            };
            drop(answered); // The edge may be gone.
        }
    })
    .await
}

/// Accepts a WebSocket and keeps it until its other side ends it.
async fn hold(mut request: Request) {
    let head = format!(
        "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
         Sec-WebSocket-Accept: {ACCEPT}\r\n\r\n"
    );
    let mut bytes = [0; 512];
    if request.stream.write_all(head.as_bytes()).await.is_ok() {
        while matches!(request.stream.read(&mut bytes).await, Ok(1..)) {}
    }
}

/// Two applications with a WebSocket each, of which the first has announced a drain.
async fn announced(close_tunnels: Value) -> Result<(Scratch, Edge, [WebSocket; 2], [Backend; 2])> {
    let scratch = Scratch::new("admin-announced")?;
    let is_stopping = Arc::new(AtomicBool::new(false));
    let stopping = application(Arc::clone(&is_stopping)).await?;
    let staying = application(Arc::new(AtomicBool::new(false))).await?;
    let backends = [("n1", stopping.address), ("n2", staying.address)];
    let settings = edge::settings(&backends)
        .with(
            "health",
            json!({ "kind": "http", "method": "GET", "path": "/health", "interval": "100ms" }),
        )
        .with(
            "drain",
            json!({ "backend_spread": "0s", "close_tunnels": close_tunnels }),
        );
    let edge = Edge::start(&settings, scratch.path()).await?;
    for (id, _) in backends {
        edge.backend_in_state(id, "up").await?;
    }
    let sockets = [
        WebSocket::open(edge.address, "/").await?,
        WebSocket::open(edge.address, "/").await?,
    ];
    is_stopping.store(true, Ordering::SeqCst);
    edge.backend_in_state("n1", "draining").await?;
    Ok((scratch, edge, sockets, [stopping, staying]))
}

async fn tunnels(edge: &Edge) -> Result<[u64; 2]> {
    let backends = edge.backends().await?;
    let of = |index: usize| backends[index]["tunnels"].as_u64().context("a number");
    Ok([of(0)?, of(1)?])
}

#[tokio::test]
async fn a_drain_that_a_backend_announces_leaves_its_tunnels_open_by_default() -> Result<()> {
    let (_scratch, edge, _sockets, _backends) = announced(json!([])).await?;
    // More probes than the one that told of the drain.
    let probes = async || {
        let page = http::get(edge.admin, "/metrics").await.ok()?.text();
        let name = "causeway_proxy_probes_total{backend=\"n1\",result=\"draining\"} ";
        let value = page.lines().find_map(|line| line.strip_prefix(name))?;
        value.parse::<u64>().ok().filter(|probes| 3 <= *probes)
    };
    wait::until("more probes", wait::SOON, probes).await?;
    assert_eq!(tunnels(&edge).await?, [1, 1]);
    Ok(())
}

#[tokio::test]
async fn a_drain_that_a_backend_announces_closes_its_tunnels_where_that_is_set() -> Result<()> {
    let (_scratch, edge, sockets, _backends) = announced(json!(["announced"])).await?;
    wait::until("the tunnel to be closed", wait::SOON, async || {
        (tunnels(&edge).await.ok()? == [0, 1]).then_some(())
    })
    .await?;
    for mut socket in sockets {
        let cookie = socket.handshake.cookie("causeway").context("a cookie")?;
        if cookie.contains("n1") {
            assert_eq!(socket.close_code().await?, Some(RESTART));
        } else {
            assert!(cookie.contains("n2"), "{cookie}");
        }
    }
    Ok(())
}
