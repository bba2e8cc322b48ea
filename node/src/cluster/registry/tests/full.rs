//! A Redis that has reached `maxmemory` and evicts nothing.

use super::*;

#[tokio::test]
async fn a_full_redis_makes_the_registry_unreliable_and_not_empty() {
    let server = RedisServer::start().await;
    let nodes = [(); 2].map(|()| set_up(&with_redis(&server, FAST)));
    nodes[0].registry.connected(&"ann".into());
    let _member = nodes[0].seen_member("room", "ann").await;
    nodes[1].until_held("ann", &[&nodes[0]]).await;
    for node in &nodes {
        until(async || node.registry.readiness().is_ok()).await;
    }

    server.cli(&["CONFIG", "SET", "maxmemory", "1"]);
    for node in &nodes {
        until(async || matches!(node.registry.readiness(), Err(NotReady::Full(_)))).await;
        assert_eq!(node.metrics.registry_ready.get(), 0);
        assert_eq!(node.metrics.redis_full.get(), 1);
        let Err(NotReady::Full(reason)) = node.registry.readiness() else {
            panic!("it is full")
        };
        assert!(reason.starts_with("redis is full (maxmemory)"), "{reason}");
    }
    // No member may appear to be gone, now or when all leases have lapsed.
    let lapsed = Instant::now() + Duration::from_secs(2);
    until(async || {
        let registry = &nodes[1].registry;
        let unreliable = |error: Unavailable| matches!(error, Unavailable::Unreliable(_));
        assert!(registry.nodes_of("ann").await.is_err_and(unreliable));
        assert!(registry.members(&name("room")).await.is_err_and(unreliable));
        assert!(registry.nodes().await.is_err_and(unreliable));
        let other = nodes[0].registry.instance();
        assert!(registry.is_alive(other).await.is_err_and(unreliable));
        lapsed <= Instant::now()
    })
    .await;

    // Entries added meanwhile are stored as soon as there is room.
    nodes[0].registry.connected(&"bob".into());
    server.cli(&["CONFIG", "SET", "maxmemory", "0"]);
    nodes[1].until_held("bob", &[&nodes[0]]).await;
    nodes[1].until_held("ann", &[&nodes[0]]).await;
    nodes[1].until_members("room", &["ann"]).await;
    for node in nodes {
        until(async || node.registry.readiness().is_ok()).await;
        assert_eq!(node.metrics.redis_full.get(), 0);
        node.stop().await;
    }
}
