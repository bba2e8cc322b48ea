//! The same cases on one node and between two, then faults of other nodes.

use super::*;
use crate::broker;
use crate::cluster::directory::ClientControl;
use crate::cluster::directory::CommandRejected;
use crate::cluster::registry;
use crate::cluster::registry::MemberListener;
use crate::config::Config;
use crate::protocol::instance::ClientId;
use crate::redis::testing::DEADLINE;
use crate::redis::testing::RedisServer;
use tokio::task::JoinSet;

/// Ignores join and leave events.
struct IgnoreMembers;

impl MemberListener for IgnoreMembers {
    fn joined(&self, _: &ChannelName, _: Bytes) {}
    fn left(&self, _: &ChannelName, _: Bytes) {}
}

/// Records publications on other channels.
#[derive(Default)]
struct Rest(Mutex<Vec<Publication>>);

impl Deliver for Rest {
    fn deliver(&self, publications: Vec<Publication>) {
        self.0.lock().extend(publications);
    }
}

/// Channels with subscribers, set by a test.
#[derive(Default)]
struct Few(Mutex<BTreeMap<String, u64>>);

impl ChannelCounts for Few {
    fn each(&self, show: &mut dyn FnMut(&str, u64)) {
        for (channel, count) in &*self.0.lock() {
            show(channel, *count);
        }
    }
}

/// A client that records its commands.
#[derive(Default)]
struct Client {
    commands: Mutex<Vec<ControlCommand>>,
    is_busy: bool,
}

impl ClientControl for Client {
    fn command(self: Arc<Self>, command: &ControlCommand) -> Result<(), CommandRejected> {
        if self.is_busy {
            return Err(CommandRejected::Busy);
        }
        self.commands.lock().push(command.clone());
        Ok(())
    }
}

struct Setup {
    control: Arc<Control>,
    directory: Arc<Directory>,
    registry: Arc<Registry>,
    broker: Arc<dyn Broker>,
    channel_counts: Arc<Few>,
    rest: Arc<Rest>,
    metrics: Arc<Metrics>,
    /// Handles incoming messages.
    work: JoinSet<()>,
    _others: [JoinSet<()>; 2],
}

async fn set_up(config: &Config) -> Setup {
    let instance = Instance::random();
    let metrics = Metrics::new();
    let shutdown = CancellationToken::new();
    let rest = Arc::new(Rest::default());
    let (inbox, mail) = inbox(instance, Arc::clone(&metrics));
    let demux = Demux {
        inbox,
        rest: Arc::clone(&rest) as Arc<dyn Deliver>,
    };
    let servers = crate::redis::testing::servers(&config.broker);
    let broker = broker::start(
        &servers,
        "test-node",
        Arc::new(demux),
        Arc::clone(&metrics),
        shutdown.clone(),
    );
    let about = Node {
        instance,
        id: "test-node".to_owned(),
        address: None,
        zone: None,
        generation: None,
        leaving: false,
    };
    let (broker_tasks, broker): (_, Arc<dyn Broker>) = (broker.tasks, broker.broker);
    let registry = registry::start(
        &servers,
        &config.registry,
        registry::Dependencies {
            about,
            listener: Arc::new(IgnoreMembers),
            needs: registry::Needs {
                registry: false,
                streams: false,
                values: false,
                lifecycle: false,
            },
            draining: CancellationToken::new(),
            metrics: Arc::clone(&metrics),
            shutdown: shutdown.clone(),
        },
    );
    let directory = Directory::new(Arc::clone(&registry.registry) as _);
    let channel_counts = Arc::new(Few::default());
    let control = Control::new(Components {
        arrivals: None,
        registry: Arc::clone(&registry.registry),
        directory: Arc::clone(&directory),
        broker: Arc::clone(&broker),
        channel_counts: Arc::clone(&channel_counts) as Arc<dyn ChannelCounts>,
        metrics: Arc::clone(&metrics),
    });
    let mut work = JoinSet::new();
    work.spawn(Arc::clone(&control).run(mail, shutdown));
    let setup = Setup {
        control,
        directory,
        registry: registry.registry,
        broker,
        channel_counts,
        rest,
        metrics,
        work,
        _others: [broker_tasks, registry.tasks],
    };
    until(async || setup.metrics.subscriptions.get() == 1).await;
    until(async || setup.registry.nodes().await.is_ok()).await;
    setup
}

impl Setup {
    fn client(&self, user: &str) -> (ClientId, Arc<Client>, crate::cluster::directory::Listed) {
        let id = ClientId::random(self.registry.instance());
        let client = Arc::new(Client::default());
        let place = self.directory.reserve(&user.into(), None).unwrap();
        let (listed, _) = place.enter(id, Arc::clone(&client) as Arc<dyn ClientControl>);
        (id, client, listed)
    }

    async fn until_held(&self, user: &str, nodes: usize) {
        until(async || {
            let held = self.registry.nodes_of(user).await;
            held.is_ok_and(|held| held.len() == nodes)
        })
        .await;
    }

    fn dropped(&self, reason: &str) -> bool {
        let line = format!("causeway_node_dropped_total{{reason=\"{reason}\"}} ");
        self.metrics.render().contains(&line)
    }
}

async fn until(mut condition: impl AsyncFnMut() -> bool) {
    let met = async {
        while !condition().await {
            time::sleep(Duration::from_millis(5)).await;
        }
    };
    time::timeout(DEADLINE, met)
        .await
        .expect("it never happens");
}

fn with_redis(server: &RedisServer) -> Config {
    let url = server.url();
    Config::parse("test", &format!("broker: {{kind: redis, url: \"{url}\"}}")).unwrap()
}

fn goodbye() -> ControlCommand {
    ControlCommand::Disconnect {
        code: 3000,
        reason: "bye".to_owned(),
    }
}

fn user(user: &str) -> Target {
    Target::User {
        user: user.to_owned(),
        except: Vec::new(),
    }
}

/// One test on a single node, and one on a node beside another, in modules of their own.
macro_rules! alone_and_beside_another {
    ($($case:ident),* $(,)?) => {
        mod alone {
            $(#[tokio::test] async fn $case() {
                let node = super::set_up(&super::Config::parse("test", "").unwrap()).await;
                super::$case(&node, &node).await;
            })*
        }
        mod beside_another {
            $(#[tokio::test] async fn $case() {
                let server = super::RedisServer::start().await;
                let node = super::set_up(&super::with_redis(&server)).await;
                let other = super::set_up(&super::with_redis(&server)).await;
                super::until(async || node.registry.nodes().await.unwrap().len() == 2).await;
                super::$case(&node, &other).await;
            })*
        }
    };
}

alone_and_beside_another! {
    a_command_reaches_its_client_on_any_node,
    a_command_for_a_user_reaches_its_clients_on_all_nodes,
    a_command_without_a_matching_client_is_not_accepted,
    busy_clients_are_counted,
    channels_are_those_of_all_nodes,
    every_node_reports_its_counts,
}

async fn a_command_reaches_its_client_on_any_node(node: &Setup, other: &Setup) {
    let (id, client, _listed) = other.client("ann");
    let result = node
        .control
        .command(Target::Client(id), goodbye())
        .await
        .unwrap();
    assert_eq!(
        result,
        CommandResult {
            accepted: 1,
            busy: 0
        }
    );
    assert_eq!(*client.commands.lock(), [goodbye()]);
    let user = "bob".to_owned();
    let of_another = Target::ClientOf { user, client: id };
    let result = node.control.command(of_another, goodbye()).await.unwrap();
    assert_eq!(result.accepted, 0);
}

async fn a_command_for_a_user_reaches_its_clients_on_all_nodes(node: &Setup, other: &Setup) {
    let (_, here, _a) = node.client("ann");
    let (_, there, _b) = other.client("ann");
    let (_, stranger, _c) = other.client("bob");
    let nodes = if std::ptr::eq(node, other) { 1 } else { 2 };
    node.until_held("ann", nodes).await;
    let result = node.control.command(user("ann"), goodbye()).await.unwrap();
    assert_eq!(result.accepted, 2);
    assert_eq!(*here.commands.lock(), [goodbye()]);
    assert_eq!(*there.commands.lock(), [goodbye()]);
    assert!(stranger.commands.lock().is_empty());
}

async fn a_command_without_a_matching_client_is_not_accepted(node: &Setup, other: &Setup) {
    let (id, _, listed) = other.client("ann");
    drop(listed);
    let nobody = CommandResult::default();
    for target in [
        Target::Client(id),
        Target::Client(ClientId::random(Instance::random())),
        user("nobody"),
    ] {
        let result = node.control.command(target, goodbye()).await.unwrap();
        assert_eq!(result, nobody);
    }
}

async fn busy_clients_are_counted(node: &Setup, other: &Setup) {
    let id = ClientId::random(other.registry.instance());
    let busy = Arc::new(Client {
        is_busy: true,
        ..Client::default()
    });
    let place = other.directory.reserve(&"ann".into(), None).unwrap();
    let (mut listed, _) = place.enter(id, busy);
    let session = ClientId::random(other.registry.instance());
    listed.set_session(session);
    let input = ControlCommand::Input(Bytes::from_static(b"\xff"));
    let result = node
        .control
        .command(Target::Client(id), input.clone())
        .await;
    assert_eq!(
        result.unwrap(),
        CommandResult::default(),
        "its id is not secret"
    );
    let by_session = |user: &str| Target::Session {
        user: user.to_owned(),
        session,
    };
    let result = node.control.command(by_session("bob"), input.clone()).await;
    assert_eq!(
        result.unwrap(),
        CommandResult::default(),
        "it is another user's"
    );
    let result = node.control.command(by_session("ann"), goodbye()).await;
    assert_eq!(
        result.unwrap(),
        CommandResult {
            accepted: 0,
            busy: 1
        }
    );
    let result = node.control.command(by_session(""), input).await;
    let result = result.unwrap();
    assert_eq!(
        result,
        CommandResult {
            accepted: 0,
            busy: 1
        }
    );
}

async fn channels_are_those_of_all_nodes(node: &Setup, other: &Setup) {
    let add = |setup: &Setup, channel: &str| {
        *setup
            .channel_counts
            .0
            .lock()
            .entry(channel.to_owned())
            .or_default() += 1;
    };
    for (setup, channel) in [(node, "chat:a"), (other, "chat:a"), (other, "news:b")] {
        add(setup, channel);
    }
    let channels = node.control.channels("").await.unwrap();
    let expected = [("chat:a".to_owned(), 2), ("news:b".to_owned(), 1)];
    assert_eq!(channels.subscribers, BTreeMap::from(expected));
    let channels = node.control.channels("n*:?").await.unwrap();
    assert_eq!(
        channels.subscribers.into_keys().collect::<Vec<_>>(),
        ["news:b"]
    );
    for number in 0..CHANNELS_MAX {
        add(other, &format!("many:{number}"));
    }
    assert!(node.control.channels("").await.unwrap().is_cut);
    assert!(!node.control.channels("many:*").await.unwrap().is_cut);
}

async fn every_node_reports_its_counts(node: &Setup, other: &Setup) {
    let (_, _, _a) = other.client("ann");
    let (_, _, _b) = other.client("ann");
    other.channel_counts.0.lock().insert("chat:a".to_owned(), 3);
    let counts = node.control.counts().await.unwrap();
    let nodes = if std::ptr::eq(node, other) { 1 } else { 2 };
    assert_eq!(counts.len(), nodes);
    let instance = other.registry.instance();
    let (_, counts) = counts
        .iter()
        .find(|(node, _)| node.instance == instance)
        .unwrap();
    assert_eq!((counts.clients, counts.users), (2, 1));
    assert_eq!((counts.channels, counts.subscriptions), (1, 3));
}

#[tokio::test]
async fn a_node_that_does_not_respond_is_an_error_and_is_left_out_of_counts() {
    let server = RedisServer::start().await;
    let node = set_up(&with_redis(&server)).await;
    let mut silent = set_up(&with_redis(&server)).await;
    until(async || node.registry.nodes().await.unwrap().len() == 2).await;
    let (id, client, _listed) = silent.client("ann");
    silent.work.abort_all();
    let result = node.control.command(Target::Client(id), goodbye()).await;
    assert!(
        matches!(result, Err(ControlError::NoResponse(1))),
        "{result:?}"
    );
    assert!(client.commands.lock().is_empty());
    assert_eq!(node.control.counts().await.unwrap().len(), 1);
    assert!(
        node.control.pending.lock().is_empty(),
        "nobody waits any more"
    );
}

#[tokio::test]
async fn undecodable_messages_are_dropped_and_counted() {
    let server = RedisServer::start().await;
    let node = set_up(&with_redis(&server)).await;
    let channel = keys::control_channel(node.registry.instance());
    server.cli(&["PUBLISH", channel.as_str(), "nonsense"]);
    until(async || node.dropped("control_malformed")).await;
    // A response to no request, and one of an unknown node, change nothing.
    let reply = |number| Message {
        from: Instance::random(),
        number,
        body: Body::Response(Response::CommandResult(CommandResult {
            accepted: 7,
            busy: 0,
        })),
    };
    node.broker
        .publish(&channel, reply(99).encode())
        .await
        .unwrap();
    let other = set_up(&with_redis(&server)).await;
    let (id, _, _listed) = other.client("ann");
    for number in 0..3 {
        node.broker
            .publish(&channel, reply(number).encode())
            .await
            .unwrap();
    }
    let result = node
        .control
        .command(Target::Client(id), goodbye())
        .await
        .unwrap();
    assert_eq!(result.accepted, 1);
}

#[tokio::test]
async fn publications_on_other_channels_are_passed_on() {
    let node = set_up(&Config::parse("test", "").unwrap()).await;
    let channel = ChannelName::new("chat").unwrap();
    node.broker.subscribe(&channel);
    let data = Bytes::from_static(b"hello");
    node.broker.publish(&channel, data.clone()).await.unwrap();
    until(async || node.rest.0.lock().len() == 1).await;
    assert_eq!(*node.rest.0.lock(), [Publication { channel, data }]);
}

#[tokio::test]
async fn a_full_inbox_drops_and_counts() {
    let metrics = Metrics::new();
    let (inbox, _mail) = inbox(Instance::random(), Arc::clone(&metrics));
    for _ in 0..=INBOX_MESSAGES_MAX {
        inbox.put(Bytes::new());
    }
    let line = "causeway_node_dropped_total{reason=\"control_full\"} 1";
    assert!(metrics.render().contains(line), "{}", metrics.render());
}
