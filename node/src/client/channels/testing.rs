//! Channel clients for the tests of other modules.

use std::sync::Arc;

use http::HeaderMap;
use tokio_util::sync::CancellationToken;

use crate::auth::Verifier;
use crate::client::channels;
use crate::client::channels::Admitted;
use crate::client::channels::ChannelClients;
use crate::client::channels::Components;
use crate::client::channels::Direction;
use crate::client::channels::Origin;
use crate::cluster::directory::Directory;
use crate::cluster::directory::UserWatch;
use crate::cluster::presence::Presence;
use crate::cluster::registry;
use crate::cluster::values::Values;
use crate::config::Config;
use crate::hooks::Hooks;
use crate::hub::Hub;
use crate::hub::HubConfig;
use crate::hub::Member;
use crate::hub::outbox::QueueOutbox;
use crate::metrics::Metrics;
use crate::metrics::Transport;
use crate::protocol::instance::Instance;
use crate::stream::ChannelStreams;

/// Creates channel clients without a namespace and without a broker.
pub(crate) fn no_clients(hub: Arc<Hub>, metrics: Arc<Metrics>) -> Arc<ChannelClients> {
    let config = Config::default_without_file();
    let instance = Instance::random();
    let (join_leave, _) = channels::join_leave_queue(Arc::clone(&metrics));
    let dependencies = registry::Dependencies {
        about: registry::Node {
            instance,
            id: "n".to_owned(),
            address: None,
            zone: None,
            generation: None,
            leaving: false,
        },
        listener: Arc::new(join_leave),
        needs: registry::Needs {
            registry: false,
            streams: false,
            values: false,
            lifecycle: false,
        },
        draining: CancellationToken::new(),
        metrics: Arc::clone(&metrics),
        shutdown: CancellationToken::new(),
    };
    let registry = registry::start(&[], &config.registry, dependencies).registry;
    ChannelClients::new(Components {
        streams: ChannelStreams::new(config.channels.streams, hub, Arc::clone(&metrics)),
        config: config.channels,
        instance,
        presence: Presence::new(Arc::clone(&registry)),
        directory: Directory::new(registry as Arc<dyn UserWatch>),
        verifier: Arc::new(Verifier::new(config.auth)),
        hooks: Hooks::new(config.hooks, Arc::clone(&metrics)),
        values: Arc::new(Values::new(&[], &config.values)),
        lifecycle: None,
        metrics,
    })
}

/// Creates a client that has not connected, and returns its metrics.
pub(crate) fn client() -> (Admitted, Arc<Metrics>) {
    let metrics = Metrics::new();
    let config = Config::default_without_file();
    let hub = HubConfig {
        fanout: config.fanout,
        pinned: Vec::new(),
    };
    let clients = no_clients(Hub::new(hub, Arc::clone(&metrics)), Arc::clone(&metrics));
    let admitted = clients.admit(Origin {
        endpoint: Arc::clone(&config.endpoints[0]),
        transport: Transport::ChannelsJson,
        direction: Direction::TwoWay,
        member: Member::Queue(Arc::new(QueueOutbox::new(1 << 20))),
        headers: HeaderMap::new(),
    });
    (admitted, metrics)
}
