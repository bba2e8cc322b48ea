//! The commands that Redis has to permit, and two nodes with one id.

use super::*;

const ALL: Needs = Needs {
    registry: true,
    streams: true,
    values: true,
    lifecycle: true,
};

/// The commands that `conf/node.yaml` lists for the user of a node with channels.
fn documented() -> (Vec<String>, Vec<String>) {
    let text = include_str!("../../../../../conf/node.yaml");
    let lines = text
        .lines()
        .filter_map(|line| line.trim().strip_prefix("#   | "));
    let words: Vec<String> = lines
        .flat_map(str::split_whitespace)
        .map(str::to_owned)
        .collect();
    let commands = words.iter().filter_map(|word| word.strip_prefix('+'));
    let commands = commands.map(str::to_owned).collect();
    (words, commands)
}

#[tokio::test]
async fn each_rejected_command_is_named_and_the_documented_ones_are_enough() {
    /// Not checked by the registry: the broker's probe checks the first, and a node without the others works except for
    /// their features.
    const OTHERS: [&str; 9] = [
        "ping",
        "select",
        "subscribe",
        "unsubscribe",
        "client|setname",
        "client|id",
        "client|list",
        "client|kill",
        "wait",
    ];
    let server = RedisServer::start().await;
    let (rights, commands) = documented();
    let rights: Vec<&str> = rights.iter().map(String::as_str).collect();
    assert_eq!(server.cli(&rights), "OK\n");
    let url = format!("{}?user=causeway&pass=secret", server.url());
    let config = config(&format!(
        "broker: {{kind: redis, url: \"{url}\", response_timeout: 500ms}}\n{FAST}"
    ));
    let start = || set_up_with(&config, "n1", ALL);
    let allowed = start();
    until(async || allowed.registry.readiness().is_ok()).await;
    // The permission check comes after the lease.
    until(async || {
        server
            .cli(&["INFO", "commandstats"])
            .contains("cmdstat_zcard:")
    })
    .await;
    assert_eq!(allowed.registry.readiness(), Ok(()));
    allowed.stop().await;

    for command in commands {
        if OTHERS.contains(&command.as_str()) {
            continue;
        }
        server.cli(&["ACL", "SETUSER", "causeway", &format!("-{command}")]);
        let node = start();
        let named = command.replace('|', " ");
        until(async || match node.registry.readiness() {
            Err(NotReady::Other(reason)) => reason.contains(&named) || reason.contains(&command),
            _ => false,
        })
        .await;
        assert_eq!(node.metrics.registry_ready.get(), 0, "{command}");
        server.cli(&["ACL", "SETUSER", "causeway", &format!("+{command}")]);
        until(async || node.registry.readiness().is_ok()).await;
        node.kill();
    }
    // Keys that could not be deleted expire soon.
    let left = || server.cli(&["--scan", "--pattern", "causeway:*try:*"]);
    until(async || left().trim().is_empty()).await;
}

#[tokio::test]
async fn a_node_that_needs_no_registry_is_ready_without_one() {
    let server = RedisServer::start().await;
    let url = format!("{}?user=relay&pass=pw", server.url());
    server.cli(&[
        "ACL", "SETUSER", "relay", "on", ">pw", "&*", "+ping", "+publish",
    ]);
    let config = config(&format!("broker: {{kind: redis, url: \"{url}\"}}\n{FAST}"));
    let nothing = Needs {
        registry: false,
        streams: false,
        values: false,
        lifecycle: false,
    };
    let node = set_up_with(&config, "n1", nothing);
    until(async || node.registry.nodes().await.is_err()).await;
    assert_eq!(node.registry.readiness(), Ok(()));
}

#[tokio::test]
async fn two_nodes_with_one_id_find_each_other_and_a_killed_one_does_not_count() {
    let server = RedisServer::start().await;
    let start = |id| set_up_with(&with_redis(&server, FAST), id, ALL);
    let others = |node: &Setup| node.metrics.registry_same_id.get();
    let (killed, unlike) = (start("n1"), start("n2"));
    until(async || {
        unlike
            .registry
            .nodes()
            .await
            .is_ok_and(|nodes| nodes.len() == 2)
    })
    .await;
    killed.kill();
    let one = start("n1");
    until(async || one.registry.readiness().is_ok()).await;
    let two = start("n1");
    until(async || (others(&one), others(&two)) == (1, 1)).await;
    assert_eq!(others(&unlike), 0);
    two.stop().await;
    until(async || others(&one) == 0).await;
}
