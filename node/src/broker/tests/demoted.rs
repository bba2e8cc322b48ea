//! A primary that becomes a replica, and keeps its connections.

use std::fs;
use std::os::unix::fs::symlink;

use super::*;
use crate::redis::testing::free_port;

/// Lets new connections that are meant for `old` lead to `new`.
fn lead_elsewhere(old: &RedisServer, new: &RedisServer) {
    fs::remove_file(old.socket()).unwrap();
    symlink(new.socket(), old.socket()).unwrap();
}

#[tokio::test]
async fn a_node_that_says_nothing_leaves_a_demoted_server_and_reads_what_it_may_have_missed() {
    let port = free_port().to_string();
    let (old, mut new) = (RedisServer::start().await, RedisServer::absent());
    new.launch(&["--port", &port]).await;
    let setup = set_up(&settings(&old, ""));
    setup.subscribe(&["a"]).await;
    setup.until_ready().await;
    // From now on the old one brings what the new one publishes, probes included: those do not stay away.
    assert_eq!(old.cli(&["REPLICAOF", "127.0.0.1", &port]), "OK\n");
    setup
        .until(|| {
            old.cli(&["INFO", "replication"])
                .contains("master_link_status:up")
        })
        .await;
    let receivers = || new.cli(&["PUBLISH", "a", "of the new one"]);
    assert_eq!(receivers(), "0\n");
    setup.recorder.wait_for("a", 1).await;
    lead_elsewhere(&old, &new);
    setup.until(|| receivers() == "1\n").await;
    setup.until_ready().await;
    assert_eq!(setup.metrics.broker_gaps.get(), 1);
    assert_eq!(*setup.recorder.interrupted.lock(), [Shard(0)]);
    assert_eq!(setup.recorder.resumed.load(Ordering::SeqCst), 2);
    setup.stop().await;
}

#[tokio::test]
async fn a_server_that_followed_another_for_a_moment_has_its_streams_read_again() {
    let server = RedisServer::start().await;
    // No probe falls into that moment.
    let text = format!(
        "broker: {{kind: redis, url: \"{}\", probe_interval: 2s}}",
        server.url()
    );
    let setup = set_up(&Config::parse("test", &text).unwrap().broker);
    setup.subscribe(&["a"]).await;
    setup.until_ready().await;
    let connects = (setup.connects("subscribe"), setup.connects("publish"));
    server.cli(&["REPLICAOF", "127.0.0.1", "1"]);
    server.cli(&["REPLICAOF", "NO", "ONE"]);
    setup
        .until(|| setup.recorder.resumed.load(Ordering::SeqCst) == 2)
        .await;
    assert_eq!(setup.metrics.broker_gaps.get(), 1);
    let connects_now = (setup.connects("subscribe"), setup.connects("publish"));
    assert_eq!(connects_now, connects, "all connections are whole");
    setup.stop().await;
}
