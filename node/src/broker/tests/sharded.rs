//! Several servers that share the channels.

use super::*;

/// A broker over two servers, and a channel on each of them.
struct TwoServers {
    servers: [RedisServer; 2],
    setup: Setup,
    channels: [ChannelName; 2],
}

async fn two_servers() -> TwoServers {
    let servers = [RedisServer::start().await, RedisServer::start().await];
    let text = format!(
        "broker: {{kind: redis, urls: [\"{}\", \"{}\"], probe_interval: 200ms, probe_timeout: 400ms, \
         response_timeout: 800ms, backoff_max: 200ms, publish_queue_wait: 300ms}}",
        servers[0].url(),
        servers[1].url()
    );
    let setup = set_up(&Config::parse("test", &text).unwrap().broker);
    setup.until_ready().await;
    let on = |shard| {
        let mut names = (0..).map(|number| name(&format!("channel-{number}")));
        let is_there =
            |channel: &ChannelName| setup.broker.shard(&ChannelName::wire(channel)) == Shard(shard);
        names.find(is_there).unwrap()
    };
    let channels = [on(0), on(1)];
    TwoServers {
        servers,
        setup,
        channels,
    }
}

#[tokio::test]
async fn a_channel_and_what_it_keeps_are_on_one_server() {
    let TwoServers {
        servers,
        setup,
        channels,
    } = two_servers().await;
    for channel in &channels {
        let wire = ChannelName::wire(channel);
        setup.broker.subscribe(&wire);
        setup.broker.subscribed(&wire).await.unwrap();
        setup
            .broker
            .store(store(channel.as_str(), Until::Stored))
            .await
            .unwrap();
        setup.recorder.wait_for(wire.as_str(), 1).await;
        let page = setup.broker.history(ask(channel.as_str())).await.unwrap();
        assert_eq!(page.entries.len(), 1);
    }
    assert_eq!(setup.metrics.subscriptions.get(), 2);
    for (server, channel) in servers.iter().zip(&channels) {
        let mut keys: Vec<String> = server
            .cli(&["KEYS", "*"])
            .lines()
            .map(str::to_owned)
            .collect();
        keys.sort();
        assert_eq!(
            keys,
            [
                format!("causeway:me:{{{channel}}}"),
                format!("causeway:st:{{{channel}}}")
            ]
        );
    }
    setup.stop().await;
}

#[tokio::test]
async fn a_server_that_is_away_takes_only_its_own_channels_with_it() {
    let TwoServers {
        mut servers,
        setup,
        channels,
    } = two_servers().await;
    for channel in &channels {
        setup.broker.subscribe(&ChannelName::wire(channel));
    }
    setup.until_settled(2).await;
    servers[0].kill();
    setup.until(|| setup.broker.readiness().is_err()).await;
    assert_eq!(setup.metrics.broker_ready.get(), 0);
    setup.until_settled(1).await;
    let [away, here] = channels.each_ref().map(ChannelName::as_str);
    setup
        .broker
        .store(store(here, Until::Stored))
        .await
        .unwrap();
    let lost = setup.broker.store(store(away, Until::Stored)).await;
    assert_eq!(
        lost,
        Err(StoreError::Expired),
        "it was certainly not stored"
    );
    assert_eq!(*setup.recorder.interrupted.lock(), [Shard(0)]);
    servers[0].launch(&[]).await;
    setup.until_ready().await;
    assert_eq!(setup.metrics.broker_ready.get(), 1);
    setup.until_settled(2).await;
    setup
        .broker
        .store(store(away, Until::Stored))
        .await
        .unwrap();
    setup.stop().await;
}
