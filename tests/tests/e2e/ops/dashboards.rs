//! The dashboards and alerts below `conf/` ask for metrics and labels that the running programs have.
//!
//! Some metrics are there only since their first event, so each program goes through one of each.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    net::{Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, ensure};
use causeway_tests::harness::{
    edge::{self, Edge, Program},
    http,
    node::{self, Node},
    process::{Signal, json_lines},
    redis::Redis,
    scratch::Scratch,
    subscriber::{Subscriber, token},
    tls::Authority,
    wait,
    websocket::{WebSocket, handshake},
};
use serde_json::{Value, json};

const SECRET: &str = "the secret of a test, at least thirty-two bytes";

/// Labels that Prometheus adds.
const ADDED_LABELS: [&str; 2] = ["instance", "job"];

/// The metrics of a page, with the labels of each.
type Metrics = BTreeMap<String, BTreeSet<String>>;

fn conf(file: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../conf")
        .join(file)
}

fn parse_metrics(page: &str) -> Metrics {
    let mut metrics = Metrics::new();
    let series = page.lines().filter(|line| !line.starts_with('#'));
    for line in series {
        let Some(end) = line.find(['{', ' ']) else {
            continue;
        };
        let labels = metrics.entry(line[..end].to_owned()).or_default();
        labels.extend(labels_in_braces(&line[end..]));
    }
    metrics
}

/// The names in `{name="value", ...}` at the beginning of `text`.
fn labels_in_braces(text: &str) -> BTreeSet<String> {
    let Some((braces, _)) = text.strip_prefix('{').and_then(|text| text.split_once('}')) else {
        return BTreeSet::new();
    };
    // Every second piece is the inside of a value.
    let names = braces.split('"').step_by(2);
    let names = names.flat_map(|names| names.split(|c: char| !is_of_name(c)));
    let names = names.filter(|name| !name.is_empty());
    names.map(str::to_owned).collect()
}

fn is_of_name(c: char) -> bool {
    c.is_ascii_alphanumeric() || c == '_'
}

/// The metrics of ours that a PromQL expression names, each with the labels that it is selected by.
fn named_metrics(expression: &str) -> Vec<(String, BTreeSet<String>)> {
    let starts = expression.match_indices("causeway_").filter(|(at, _)| {
        let before = expression[..*at].chars().next_back();
        !before.is_some_and(is_of_name)
    });
    let named = starts.map(|(at, _)| {
        let rest = &expression[at..];
        let end = rest.find(|c| !is_of_name(c)).unwrap_or(rest.len());
        (rest[..end].to_owned(), labels_in_braces(&rest[end..]))
    });
    named.collect()
}

/// The labels that a PromQL expression groups by.
fn grouping_labels(expression: &str) -> BTreeSet<String> {
    let lists = expression.split("by (").skip(1);
    let lists = lists.filter_map(|text| text.split_once(')'));
    let labels = lists.flat_map(|(list, _)| list.split(','));
    labels.map(|label| label.trim().to_owned()).collect()
}

/// What `expression` asks for and `metrics` do not have.
fn missing(expression: &str, metrics: &Metrics) -> Vec<String> {
    let mut missing = Vec::new();
    let mut known: BTreeSet<&str> = ADDED_LABELS.into();
    let named = named_metrics(expression);
    for (name, selected) in &named {
        let Some(labels) = metrics.get(name) else {
            missing.push(format!("no metric `{name}`"));
            continue;
        };
        known.extend(labels.iter().map(String::as_str));
        let unknown = { selected.iter() }
            .filter(|label| !labels.contains(*label) && !ADDED_LABELS.contains(&label.as_str()));
        missing.extend(unknown.map(|label| format!("`{name}` has no label `{label}`")));
    }
    if !named.is_empty() {
        let unknown = grouping_labels(expression);
        let unknown = { unknown.iter() }.filter(|label| !known.contains(label.as_str()));
        missing.extend(unknown.map(|label| format!("no label `{label}`: {expression}")));
    }
    missing
}

/// The strings under `key` anywhere in `tree`.
fn strings_under(key: &str, tree: &Value) -> Vec<String> {
    match tree {
        Value::Object(fields) => { fields.iter() }
            .flat_map(|(name, value)| match value {
                Value::String(text) if name == key => vec![text.clone()],
                _ => strings_under(key, value),
            })
            .collect(),
        Value::Array(items) => { items.iter() }
            .flat_map(|item| strings_under(key, item))
            .collect(),
        _ => Vec::new(),
    }
}

/// The expressions of a dashboard, and those of the alerts of `program`.
fn expressions(program: &str) -> Result<Vec<String>> {
    let dashboard = fs::read_to_string(conf(&format!("grafana/{program}.json")))?;
    let dashboard: Value = serde_json::from_str(&dashboard)?;
    let mut found = strings_under("expr", &dashboard);
    ensure!(found.len() > 30, "{program} has only {found:?}");
    let variables = strings_under("query", &dashboard["templating"]).join(" ");
    found.push(variables.replace("label_values(", "("));
    let alerts = fs::read_to_string(conf("prometheus/alerts.yaml"))?;
    let alerts: Value = serde_yaml::from_str(&alerts)?;
    let groups = alerts["groups"].as_array().context("there are groups")?;
    let group = groups.iter().find(|group| group["name"] == program);
    let of_alerts = strings_under("expr", group.context("each program has alerts")?);
    ensure!(of_alerts.len() > 5, "{program} has only {of_alerts:?}");
    found.extend(of_alerts);
    let prefix = format!("{}_", program.replace('-', "_"));
    for alert in super::documents::alerts_of_the_readme()? {
        // One alert is about both programs.
        let parts = alert.split(" or causeway_").enumerate();
        let parts = parts.map(|(index, part)| match index {
            0 => part.to_owned(),
            _ => format!("causeway_{part}"),
        });
        found.extend(parts.filter(|part| part.contains(&prefix)));
    }
    Ok(found)
}

/// Waits until all that is asked for in the files is in the metrics at `admin`.
async fn all_are_there(program: &str, admin: SocketAddr) -> Result<()> {
    let expressions = expressions(program)?;
    let mut gaps = Vec::new();
    let complete = wait::until(
        "the metrics of dashboards and alerts",
        wait::SOON,
        async || {
            let page = http::get(admin, "/metrics").await.ok()?;
            let metrics = parse_metrics(&page.text());
            let found = { expressions.iter() }.flat_map(|expression| missing(expression, &metrics));
            gaps = found.collect();
            gaps.is_empty().then_some(())
        },
    );
    complete.await.with_context(|| gaps.join("\n"))
}

#[tokio::test]
async fn the_edge_has_all_metrics_of_its_dashboard_and_alerts() -> Result<()> {
    let scratch = Scratch::new("dashboards-edge")?;
    let certificates = scratch.path().join("certificates");
    fs::create_dir(&certificates)?;
    Authority::new(scratch.path())?.renew(&certificates)?;
    let mut node = Node::start("n1", node::settings(), scratch.path()).await?;
    let settings = edge::settings(&[("n1", node.address)])
        .with(
            "listeners",
            json!([
                { "address": "127.0.0.1:0" },
                { "address": "127.0.0.1:0", "tls": { "folder": certificates } },
            ]),
        )
        .with("routes", json!([{ "path": "/ws", "pool": "nodes" }]))
        .with("affinity.hold", json!("100ms"));
    // One background task fails, as a bug would have it.
    let environment = [("CAUSEWAY_SABOTAGE", "panic:tunnels")];
    let mut edge = Edge::start_with(Program::Edge, &environment, &settings, scratch.path()).await?;
    edge.backend_in_state("n1", "up").await?;

    // A handshake that fails, and a path without a route.
    let lines = json_lines(&edge.process.log());
    let addresses = lines.iter().map(|line| &line["fields"]["address"]);
    let listeners: BTreeSet<SocketAddr> = { addresses }
        .filter_map(|address| address.as_str()?.parse().ok())
        .collect();
    for listener in listeners {
        drop(http::get(listener, "/nowhere").await);
    }
    // A tunnel that opens and ends.
    let request = handshake(edge.address, "/ws", &[]);
    let mut connection = http::Connection::open(edge.address).await?;
    connection.send(request).await?;
    let opened = connection.head().await?;
    let cookie = opened
        .cookie("causeway")
        .context("a client gets a cookie")?;
    let mut socket = WebSocket::begin(connection, opened).await?;
    socket.send("hello").await?;
    socket.text().await?;
    socket.close().await?;
    edge.process.signal(Signal::Hangup);
    // A request that waits for its backend in vain.
    node.kill().await?;
    let cookie = format!("causeway={cookie}");
    http::get_with(edge.address, "/ws", &[("Cookie", &cookie)]).await?;
    all_are_there("causeway-proxy", edge.admin).await
}

#[tokio::test]
async fn a_node_has_all_metrics_of_its_dashboard_and_alerts() -> Result<()> {
    let scratch = Scratch::new("dashboards-node")?;
    let mut redis = Redis::start(Ipv4Addr::LOCALHOST, scratch.path()).await?;
    let endpoints = json!([
        { "path": "/ws", "protocol": "websocket" },
        { "path": "/connection", "mode": "channels" },
    ]);
    let history = json!({ "size": 10, "lifetime": "1m" });
    let namespace =
        json!({ "name": "room", "subscribe": "anyone", "history": history, "recovery": true });
    let key = json!({ "algorithm": "HS256", "key": SECRET });
    let settings = node::settings_with_redis(&redis.url())
        .with("broker.publish_queue_wait", json!("100ms"))
        .with("endpoints", endpoints)
        .with("auth.keys", json!([key]))
        .with("channels.namespaces", json!([namespace]))
        // Nobody is there, so each call fails.
        .with("hooks.connect", json!("http://127.0.0.1:9/connect"));
    let mut node = Node::start("n1", settings, scratch.path()).await?;
    node.ready().await?;

    // A client that comes back with a position of another time, and then breaks the protocol.
    let mut client = Subscriber::connect(node.address, &token(SECRET, "ann")).await?;
    let position = json!({ "channel": "room:1", "recover": true, "epoch": "other", "offset": 1 });
    client.ask("subscribe", position).await?;
    client.ask_for_reply("connect", json!({})).await.ok();
    // One whose hook fails, and one of a foreign page.
    let mut stranger = WebSocket::open(node.address, "/connection/websocket").await?;
    stranger.send(r#"{"id":1,"connect":{}}"#).await?;
    let foreign = [("Origin", "https://foreign.example")];
    drop(WebSocket::open_with(node.address, "/ws", &foreign).await);
    node.process.signal(Signal::Hangup);
    // A message that cannot be published.
    let mut talker = WebSocket::open(node.address, "/ws").await?;
    redis.kill().await?;
    talker.send("hello").await?;
    all_are_there("causeway-node", node.admin).await
}

#[test]
fn a_metric_or_label_that_is_not_there_is_found() {
    let metrics = parse_metrics(
        "# HELP causeway_a Help.\ncauseway_a{x=\"1\",y=\"}\"} 1\ncauseway_b_total 2\n",
    );
    for good in [
        r#"sum by (x, instance) (rate(causeway_a{x="1", instance=~"$instance"}[5m]))"#,
        "causeway_b_total > 0",
        r#"up{job="causeway-node"} == 0"#,
    ] {
        assert!(missing(good, &metrics).is_empty(), "{good}");
    }
    for bad in [
        "causeway_b > 0",
        "causeway_a - causeway_c",
        "sum by (z) (causeway_a)",
        r#"causeway_b_total{x="1"}"#,
    ] {
        assert_eq!(missing(bad, &metrics).len(), 1, "{bad}");
    }
}
