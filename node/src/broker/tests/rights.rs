//! The least that Redis has to allow, as the documentation has it.

use super::*;

/// The user of `conf/node.yaml`, from its comment.
fn documented_rights() -> Vec<String> {
    let text = include_str!("../../../../conf/node.yaml");
    let lines = text
        .lines()
        .filter_map(|line| line.trim().strip_prefix("#   | "));
    let words = lines
        .flat_map(|line| line.split_whitespace())
        .map(str::to_owned);
    let rights: Vec<String> = words.collect();
    assert_eq!(
        rights.first().map(String::as_str),
        Some("ACL"),
        "the documentation has it"
    );
    rights
}

#[tokio::test]
async fn the_documented_rights_are_enough_for_everything() {
    let server = RedisServer::start().await;
    let rights = documented_rights();
    let rights: Vec<&str> = rights.iter().map(String::as_str).collect();
    assert_eq!(server.cli(&rights), "OK\n");
    let url = format!("{}?user=causeway&pass=secret", server.url());
    let text = format!("broker: {{kind: redis, url: \"{url}\", response_timeout: 400ms}}");
    let setup = set_up(&Config::parse("test", &text).unwrap().broker);
    setup.subscribe(&["global"]).await;
    setup.until_ready().await;
    setup.publish("global", "relayed").await.unwrap();
    setup.recorder.wait_for("global", 1).await;

    let wire = ChannelName::wire(&name("a"));
    setup.broker.subscribe(&wire);
    setup.broker.subscribed(&wire).await.unwrap();
    let stored = setup.broker.store(store("a", Until::Stored)).await.unwrap();
    assert_eq!(stored.position.unwrap().offset, 1);
    let replicated = setup.broker.store(store("a", Until::Replicated)).await;
    assert_eq!(replicated, Err(StoreError::NotReplicated));
    setup.recorder.wait_for(wire.as_str(), 2).await;
    for order in [Order::OldestFirst, Order::NewestFirst] {
        let mut ask = ask("a");
        ask.query.order = order;
        assert_eq!(setup.broker.history(ask).await.unwrap().entries.len(), 2);
    }
    setup.broker.remove_history(&name("a")).await.unwrap();
    // Fences included: the publish queue's last connection is looked for, and its name is known.
    assert!(server.cli(&["CLIENT", "LIST"]).contains(":publish-0:"));
    setup.stop().await;
}

#[tokio::test]
async fn who_may_only_relay_can_relay_and_is_told_why_nothing_is_stored() {
    let server = RedisServer::start().await;
    let rights = [
        "ACL",
        "SETUSER",
        "relay",
        "on",
        ">pw",
        "&*",
        "+ping",
        "+unwatch",
        "+publish",
        "+subscribe",
        "+unsubscribe",
    ];
    server.cli(&rights);
    let url = format!("{}?user=relay&pass=pw", server.url());
    let text = format!("broker: {{kind: redis, url: \"{url}\"}}");
    let config = Config::parse("test", &text).unwrap().broker;
    let setup = set_up(&config);
    setup.subscribe(&["a"]).await;
    setup.until_ready().await;
    setup.publish("a", "relayed").await.unwrap();
    setup.recorder.wait_for("a", 1).await;
    let stored = setup.broker.store(store("a", Until::Stored)).await;
    assert!(
        matches!(&stored, Err(StoreError::Refused(why)) if why.contains("NOPERM") || why.contains("permission")),
        "{stored:?}"
    );
    setup.stop().await;

    // Who may give Redis a script and not run it has probes all the same.
    server.cli(&["ACL", "SETUSER", "relay", "+script|load"]);
    let setup = set_up(&config);
    setup.until_ready().await;
    setup.stop().await;
}
