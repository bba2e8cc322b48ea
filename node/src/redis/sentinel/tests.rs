//! The primary as Sentinels name it, on good days and on bad ones.

use tokio::task::JoinSet;

use super::*;
use crate::config::Config;
use crate::redis::Link;
use crate::redis::Server;
use crate::redis::testing::DEADLINE;
use crate::redis::testing::FakeSentinel;
use crate::redis::testing::RedisServer;
use crate::redis::testing::Says;
use crate::redis::testing::free_port;

/// A Redis on a TCP port.
struct Redis {
    server: RedisServer,
    port: u16,
}

impl Redis {
    async fn start() -> Self {
        let (mut server, port) = (RedisServer::absent(), free_port());
        server.launch(&["--port", &port.to_string()]).await;
        // To tell it from others.
        server.cli(&["SET", "port", &port.to_string()]);
        Self { server, port }
    }
}

struct Setup {
    server: Server,
    metrics: Arc<Metrics>,
    _tasks: JoinSet<()>,
}

fn set_up(sentinels: &[&FakeSentinel]) -> Setup {
    let servers = sentinels
        .iter()
        .map(|sentinel| format!("\"127.0.0.1:{}\"", sentinel.port));
    let servers: Vec<String> = servers.collect();
    let text = format!(
        "broker: {{kind: redis, connect_timeout: 500ms, response_timeout: 60s, backoff_max: 100ms, \
         sentinel: {{master: main, servers: [{}]}}}}",
        servers.join(", ")
    );
    let broker = Config::parse("test", &text).unwrap().broker;
    let metrics = Metrics::new();
    let started = crate::redis::start(&broker, "n1", &metrics, &CancellationToken::new());
    let [server] = <[Server; 1]>::try_from(started.servers).ok().unwrap();
    Setup {
        server,
        metrics,
        _tasks: started.tasks,
    }
}

impl Setup {
    /// The port of the server that commands reach, or why there is none.
    async fn port(&self, commands: &crate::redis::Commands) -> Result<u16, String> {
        let mut get = Batch::new();
        get.cmd("GET").arg("port");
        let replies = commands.run(&get).await.map_err(|error| chain(&error))?;
        Ok(u16::from_redis_value(replies.values[0].clone()).unwrap())
    }

    async fn until_port(&self, commands: &crate::redis::Commands, port: u16) {
        let found = async {
            while self.port(commands).await != Ok(port) {
                time::sleep(Duration::from_millis(5)).await;
            }
        };
        time::timeout(DEADLINE, found).await.unwrap();
    }

    /// Waits until there is no primary, for a reason with this text.
    async fn until_none(&self, commands: &crate::redis::Commands, why: &str) {
        let mut last = String::new();
        let none = async {
            loop {
                match self.port(commands).await {
                    Err(error) if error.contains(why) => return,
                    other => last = format!("{other:?}"),
                }
                time::sleep(Duration::from_millis(5)).await;
            }
        };
        let none = time::timeout(DEADLINE, none).await;
        assert!(none.is_ok(), "{last}");
    }
}

#[tokio::test]
async fn a_replica_that_a_sentinel_names_is_not_used() {
    let (primary, replica) = (Redis::start().await, Redis::start().await);
    replica
        .server
        .cli(&["REPLICAOF", "127.0.0.1", &primary.port.to_string()]);
    let sentinel = FakeSentinel::start(Says::Primary(replica.port, 1)).await;
    let setup = set_up(&[&sentinel]);
    let commands = setup.server.commands("test");
    setup
        .until_none(&commands, "is not a primary: its role is slave")
        .await;
    sentinel.name(primary.port, 1);
    setup.until_port(&commands, primary.port).await;
    assert!(
        setup
            .server
            .connector()
            .to_string()
            .starts_with("127.0.0.1:")
    );
}

#[tokio::test]
async fn of_two_primaries_the_one_of_the_newest_epoch_is_used_and_an_old_one_is_not_returned_to() {
    let (old, new) = (Redis::start().await, Redis::start().await);
    let stale = FakeSentinel::start(Says::Primary(old.port, 1)).await;
    let other = FakeSentinel::start(Says::Primary(new.port, 2)).await;
    let current = FakeSentinel::start(Says::Primary(new.port, 2)).await;
    let setup = set_up(&[&stale, &other, &current]);
    let commands = setup.server.commands("test");
    setup.until_port(&commands, new.port).await;
    // Of three, one is not most of them, whoever else is away.
    current.say(Says::Error);
    other.say(Says::Nothing);
    let opened = setup.server.connector().open("test").await.unwrap();
    for sentinel in [&current, &other, &stale] {
        sentinel.until_asked().await;
    }
    assert_eq!(setup.port(&commands).await, Ok(new.port));
    // They were set up anew: their epochs begin again.
    other.name(old.port, 1);
    setup.until_port(&commands, old.port).await;
    assert!(opened.tenure.is_over());
}

#[tokio::test]
async fn connections_to_the_old_primary_are_left_at_once_although_they_work() {
    let (old, new) = (Redis::start().await, Redis::start().await);
    let sentinel = FakeSentinel::start(Says::Primary(old.port, 1)).await;
    let setup = set_up(&[&sentinel]);
    let commands = setup.server.commands("test");
    setup.until_port(&commands, old.port).await;
    let mut link = Link::open(&setup.server.connector(), "test").await.unwrap();
    let mut tenure = link.tenure();
    old.server.freeze();
    let mut ping = Batch::new();
    ping.cmd("PING");
    let pinged = async {
        let pinged = link.send(&ping).await;
        assert!(pinged.is_err());
    };
    let switch = async {
        sentinel.name(new.port, 2);
        tenure.over().await;
    };
    // Long before the old one, which is silent and connected, would be given up.
    time::timeout(DEADLINE, async { tokio::join!(pinged, switch) })
        .await
        .unwrap();
    setup.until_port(&commands, new.port).await;
    old.server.thaw();
    assert_eq!(setup.port(&commands).await, Ok(new.port));
    assert_eq!(setup.metrics.broker_primary_changes.get(), 1);
    let text = setup.metrics.render();
    for (port, value) in [(old.port, 0), (new.port, 1)] {
        let line = format!("broker_primary{{address=\"127.0.0.1:{port}\"}} {value}\n");
        assert!(text.contains(&line), "{text}");
    }
}

#[tokio::test]
async fn the_primary_stays_in_use_while_no_sentinel_responds_or_knows_it() {
    let redis = Redis::start().await;
    let sentinel = FakeSentinel::start(Says::Primary(redis.port, 1)).await;
    let setup = set_up(&[&sentinel]);
    let commands = setup.server.commands("test");
    setup.until_port(&commands, redis.port).await;
    let opened = setup.server.connector().open("test").await.unwrap();
    for says in [Says::Nothing, Says::Error] {
        sentinel.say(says);
        sentinel.until_asked().await;
    }
    assert!(!opened.tenure.is_over());
    commands.suspect();
    assert_eq!(setup.port(&commands).await, Ok(redis.port));
    assert_eq!(setup.metrics.broker_primary_changes.get(), 0);
}

#[tokio::test]
async fn a_primary_that_cannot_be_reached_is_not_used_and_the_one_in_use_stays_while_it_is_one() {
    let mut redis = Redis::start().await;
    let sentinel = FakeSentinel::start(Says::Primary(redis.port, 1)).await;
    let setup = set_up(&[&sentinel]);
    let commands = setup.server.commands("test");
    setup.until_port(&commands, redis.port).await;
    let closed = free_port();
    sentinel.name(closed, 2);
    sentinel.until_asked().await;
    assert_eq!(setup.port(&commands).await, Ok(redis.port));
    redis.server.kill();
    let why = format!("cannot connect to redis at 127.0.0.1:{closed}");
    setup.until_none(&commands, &why).await;
}

#[tokio::test]
async fn a_changed_password_is_named_and_the_connection_made_before_works() {
    let redis = Redis::start().await;
    let sentinel = FakeSentinel::start(Says::Primary(redis.port, 1)).await;
    let setup = set_up(&[&sentinel]);
    let commands = setup.server.commands("test");
    setup.until_port(&commands, redis.port).await;
    redis
        .server
        .cli(&["CONFIG", "SET", "requirepass", "another"]);
    assert_eq!(setup.port(&commands).await, Ok(redis.port));
    commands.suspect();
    setup.until_none(&commands, "NOAUTH").await;
    redis
        .server
        .cli(&["-a", "another", "CONFIG", "SET", "requirepass", ""]);
    setup.until_port(&commands, redis.port).await;
}

#[tokio::test]
async fn a_sentinel_that_does_not_know_the_name_is_said_to() {
    let sentinel = FakeSentinel::start(Says::Nothing).await;
    let setup = set_up(&[&sentinel]);
    let commands = setup.server.commands("test");
    setup
        .until_none(&commands, "no sentinel names a primary of `main`")
        .await;
}
