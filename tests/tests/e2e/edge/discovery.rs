//! The edge finds its backends by itself: nodes that come, and nodes that go.

use anyhow::Result;
use causeway_tests::harness::{
    edge::{self, Edge},
    http, loopback,
    node::{self, Node},
    redis::Redis,
    scratch::Scratch,
    tls::Authority,
    wait,
};
use serde_json::json;

#[tokio::test]
async fn nodes_are_backends_as_long_as_they_are_there() -> Result<()> {
    let scratch = Scratch::new("discovery")?;
    let mut redis = Redis::start(loopback::own(), scratch.path()).await?;
    let start = async |id: &str| -> Result<Node> {
        let listen = std::net::TcpListener::bind(loopback::own_any_port())?.local_addr()?;
        let settings = node::settings_with_redis(&redis.url())
            .with("listen", json!(listen))
            .with("node.advertise", json!(listen))
            .with("node.zone", json!("east"));
        let node = Node::start(id, settings, scratch.path()).await?;
        node.ready().await?;
        Ok(node)
    };
    let mut first = start("n1").await?;
    let pool = json!([{ "name": "nodes", "discover": { "redis": redis.url(), "every": "200ms" } }]);
    let edge = Edge::start(&edge::settings(&[]).with("pools", pool), scratch.path()).await?;
    edge.backend_in_state("n1", "up").await?;
    assert_eq!(
        http::get(edge.address, "/").await?.header("causeway-node"),
        Some("n1")
    );

    let mut second = start("n2").await?;
    edge.backend_in_state("n2", "up").await?;

    // While Redis is away nothing changes, nor when it has forgotten everything.
    redis.kill().await?;
    redis.restart().await?;
    for node in [&first, &second] {
        node.ready().await?;
    }
    edge.backend_in_state("n1", "up").await?;
    edge.backend_in_state("n2", "up").await?;

    // One that stops leaves the registry at once, and the pool after a while; one that is killed, with its lease.
    first.drain();
    second.kill().await?;
    for id in ["n1", "n2"] {
        edge.backend_in_state(id, "draining").await?;
    }
    Ok(())
}

#[tokio::test]
async fn one_of_several_servers_is_enough_to_find_nodes() -> Result<()> {
    let scratch = Scratch::new("discovery-servers")?;
    let mut servers = Vec::new();
    for name in ["first", "second"] {
        let directory = scratch.path().join(name);
        std::fs::create_dir_all(&directory)?;
        servers.push(Redis::start(loopback::own(), &directory).await?);
    }
    let urls = json!(servers.iter().map(Redis::url).collect::<Vec<_>>());
    let start = async |id: &str| -> Result<Node> {
        let listen = std::net::TcpListener::bind(loopback::own_any_port())?.local_addr()?;
        let settings = node::settings()
            .with("broker", json!({ "kind": "redis", "urls": urls }))
            .with("listen", json!(listen))
            .with("node.advertise", json!(listen));
        Node::start(id, settings, scratch.path()).await
    };
    let discover = json!({ "redis_urls": urls, "every": "200ms" });
    // A node that misses a server is not ready; here it is enough that it listens.
    let pool = json!([{ "name": "nodes", "discover": discover, "health": { "kind": "tcp" } }]);
    let edge = Edge::start(&edge::settings(&[]).with("pools", pool), scratch.path()).await?;
    servers[0].kill().await?;
    let _first = start("n1").await?;
    edge.backend_in_state("n1", "up").await?;
    servers[0].restart().await?;
    servers[1].kill().await?;
    let _second = start("n2").await?;
    edge.backend_in_state("n2", "up").await?;
    edge.backend_in_state("n1", "up").await
}

#[tokio::test]
async fn a_registry_behind_tls_is_read_if_it_proves_itself() -> Result<()> {
    let scratch = Scratch::new("discovery-tls")?;
    let redis = Redis::start(loopback::own(), scratch.path()).await?;
    let authority = Authority::new(scratch.path())?;
    let over_tls = redis.speak_tls(&authority).await?;
    let listen = std::net::TcpListener::bind(loopback::own_any_port())?.local_addr()?;
    let settings = node::settings_with_redis(&redis.url())
        .with("listen", json!(listen))
        .with("node.advertise", json!(listen));
    let node = Node::start("n1", settings, scratch.path()).await?;
    node.ready().await?;
    let edge = async |name: &str, ca: &std::path::Path| -> Result<Edge> {
        let directory = scratch.path().join(name);
        std::fs::create_dir_all(&directory)?;
        let discover = json!({ "redis": over_tls, "every": "100ms", "tls": { "ca": ca } });
        let pool = json!([{ "name": "nodes", "discover": discover }]);
        Edge::start(&edge::settings(&[]).with("pools", pool), &directory).await
    };
    let trusting = edge("trusting", &scratch.path().join("authority.ca")).await?;
    trusting.backend_in_state("n1", "up").await?;

    let elsewhere = scratch.path().join("elsewhere");
    std::fs::create_dir_all(&elsewhere)?;
    Authority::new(&elsewhere)?;
    let doubting = edge("doubting", &elsewhere.join("authority.ca")).await?;
    wait::until("the edge to doubt", wait::SOON, async || {
        let log = doubting.process.log();
        log.contains("invalid peer certificate").then_some(())
    })
    .await?;
    let found = doubting.backends().await?.to_string();
    assert!(!found.contains("n1"), "{found}");
    Ok(())
}

#[tokio::test]
async fn a_registry_names_no_backends_that_are_not_allowed() -> Result<()> {
    let scratch = Scratch::new("discovery-allowed")?;
    let redis = Redis::start(loopback::own(), scratch.path()).await?;
    let listener = std::net::TcpListener::bind(loopback::own_any_port())?;
    let here = listener.local_addr()?;
    let socket = scratch.path().join("node.sock");
    let _listener = std::os::unix::net::UnixListener::bind(&socket)?;
    let nodes = [
        ("here", here.to_string()),
        ("named", format!("localhost:{}", here.port())),
        ("socket", format!("unix:{}", socket.display())),
        ("metadata", "169.254.169.254:80".to_owned()),
        ("odd name", "10.0.0.1:9000".to_owned()),
    ];
    for (id, address) in &nodes {
        let about = json!({ "id": id, "address": address }).to_string();
        redis
            .cli(&["ZADD", "causeway:{no}:live", "99999999999999", id])
            .await?;
        redis
            .cli(&["HSET", "causeway:{no}:info", id, &about])
            .await?;
    }
    let edge = async |name: &str, allow: serde_json::Value| -> Result<Edge> {
        let directory = scratch.path().join(name);
        std::fs::create_dir_all(&directory)?;
        let discover = json!({ "redis": redis.url(), "every": "100ms", "allow": allow });
        let health = json!({ "kind": "tcp", "interval": "100ms", "fast_interval": "100ms" });
        let pool = json!([{ "name": "nodes", "discover": discover, "health": health }]);
        let settings = edge::settings(&[])
            .with("pools", pool)
            .with("affinity.hold", json!("500ms"));
        Edge::start(&settings, &directory).await
    };
    let ids = async |edge: &Edge| -> Result<Vec<String>> {
        let backends = edge.backends().await?;
        let all = backends.as_array().into_iter().flatten();
        Ok(all
            .filter_map(|backend| Some(backend["id"].as_str()?.to_owned()))
            .collect())
    };
    let skipped = async |edge: &Edge, number: u32| {
        let line = format!("causeway_proxy_nodes_skipped{{pool=\"nodes\"}} {number}");
        wait::until("nodes to be skipped", wait::SOON, async || {
            let page = http::get(edge.admin, "/metrics").await.ok()?.text();
            page.lines().any(|found| found == line).then_some(())
        })
        .await
    };

    // Redis is on loopback, and so may nodes be.
    let near = edge("near", json!(null)).await?;
    near.backend_in_state("here", "up").await?;
    skipped(&near, 3).await?;
    assert_eq!(ids(&near).await?, ["here", "named"]);

    // A name is held to the ranges when it is looked up.
    let far = edge("far", json!(["10.0.0.0/8"])).await?;
    skipped(&far, 4).await?;
    far.backend_in_state("named", "down").await?;
    let backends = far.backends().await?;
    assert_eq!(backends[0]["id"], "named");
    let why = backends[0]["why"].as_str().unwrap_or_default();
    assert!(why.contains("discover.allow"), "{why}");
    assert_eq!(ids(&far).await?, ["named"]);
    let log = far.process.log();
    let lines = log
        .lines()
        .filter(|line| line.contains("in the registry are skipped"));
    assert_eq!(lines.count(), 1, "{log}");
    Ok(())
}
