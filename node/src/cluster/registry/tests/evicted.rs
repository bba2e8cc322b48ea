//! Keys that are evicted, or deleted one by one.

use super::*;

const MEMBERS: usize = 600;

/// A node with members in several channels, and a user.
async fn filled(server: &RedisServer, registry: &str) -> (Setup, Vec<Registration>) {
    let node = set_up(&with_redis(server, registry));
    node.registry.connected(&"ann".into());
    let members: Vec<Registration> = (0..MEMBERS)
        .map(|number| node.member(&format!("room {}", number % 3), "x"))
        .collect();
    assert!(members[MEMBERS - 1].seen(DEADLINE).await);
    node.until_held("ann", &[&node]).await;
    (node, members)
}

fn index_of(node: &Setup) -> String {
    format!("causeway:ix:{{{}.1}}", node.registry.instance())
}

/// Waits until all of it is stored in Redis again, and checks that no events were published.
async fn until_whole(server: &RedisServer, node: &Setup) {
    until(async || {
        let counts = (0..3).map(|room| {
            let key = format!("causeway:pr:{{room {room}}}");
            server.cli(&["HLEN", &key])
        });
        let members: usize = counts
            .map(|count| count.trim().parse::<usize>().unwrap())
            .sum();
        let users = server.cli(&["HLEN", "causeway:us:{ann}"]);
        let index = server.cli(&["SCARD", &index_of(node)]);
        let about = server.cli(&["HLEN", "causeway:{no}:info"]);
        (members, users.trim(), index.trim(), about.trim())
            == (MEMBERS, "1", &(MEMBERS + 1).to_string(), "1")
    })
    .await;
    assert_eq!(node.events.count('-'), 0);
    assert_eq!(node.events.count('+'), MEMBERS);
}

#[tokio::test]
async fn deleted_entries_are_written_again_slowly_and_without_events() {
    let server = RedisServer::start().await;
    let (node, _members) = filled(&server, "registry: {verify: 500ms}").await;
    for key in [
        "causeway:pr:{room 1}",
        "causeway:us:{ann}",
        "causeway:{no}:info",
    ] {
        assert_eq!(server.cli(&["DEL", key]), "1\n", "{key}");
    }
    assert_eq!(server.cli(&["DEL", &index_of(&node)]), "1\n");
    until_whole(&server, &node).await;
    assert_eq!(
        node.metrics.registry_leases.get(),
        1,
        "under the same lease"
    );
    until(async || node.metrics.registry_repaired.get() == MEMBERS as u64 / 3 + 1).await;

    // A wrong value counts as missing too.
    let key = "causeway:pr:{room 0}";
    let client = server
        .cli(&["HKEYS", key])
        .lines()
        .next()
        .unwrap()
        .to_owned();
    server.cli(&["HSET", key, &client, "garbage"]);
    until(async || node.metrics.registry_repaired.get() == MEMBERS as u64 / 3 + 2).await;
    until(async || !server.cli(&["HGET", key, &client]).contains("garbage")).await;
    node.stop().await;
}

#[tokio::test]
async fn missing_entries_are_searched_as_soon_as_redis_has_evicted_keys() {
    let server = RedisServer::start().await;
    let fast = "registry: {renew: 250ms, lease: 60s, verify: 1h}";
    let (node, _members) = filled(&server, fast).await;
    // As if it had been evicted; the key that Redis evicts is one of these.
    for number in 0..1000 {
        let key = format!("junk {number}");
        server.cli(&["SET", &key, &"x".repeat(1000), "EX", "1000"]);
    }
    assert_eq!(server.cli(&["DEL", "causeway:pr:{room 2}"]), "1\n");
    let used = server.cli(&["INFO", "memory"]);
    let used = used
        .lines()
        .find_map(|line| line.strip_prefix("used_memory:"));
    let used: u64 = used.unwrap().trim().parse().unwrap();
    server.cli(&["CONFIG", "SET", "maxmemory-policy", "volatile-random"]);
    server.cli(&["CONFIG", "SET", "maxmemory", &(used - 200_000).to_string()]);
    until_whole(&server, &node).await;
    assert_eq!(node.metrics.registry_leases.get(), 1);
    node.stop().await;
}

#[tokio::test]
async fn where_any_key_may_be_evicted_commands_go_to_all_nodes() {
    let server = RedisServer::start().await;
    let nodes = [(); 3].map(|()| set_up(&with_redis(&server, FAST)));
    nodes[0].registry.connected(&"ann".into());
    for node in &nodes {
        node.until_held("ann", &[&nodes[0]]).await;
    }
    server.cli(&["CONFIG", "SET", "maxmemory-policy", "allkeys-lru"]);
    server.cli(&["CONFIG", "SET", "maxmemory", "1gb"]);
    let all = [&nodes[0], &nodes[1], &nodes[2]];
    for node in &nodes {
        node.until_held("ann", &all).await;
        assert!(node.registry.is_alive(Instance::random()).await.unwrap());
    }
    server.cli(&["CONFIG", "SET", "maxmemory-policy", "noeviction"]);
    nodes[1].until_held("ann", &[&nodes[0]]).await;
}
