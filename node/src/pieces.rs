//! What the pieces of fan-out cost one by one: `make micro` measures them, in a release build.

use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use divan::counter::ItemsCount;
use divan::{Bencher, Divan};

use crate::broker::Deliver;
use crate::config::Config;
use crate::hub::outbox::QueueOutbox;
use crate::hub::{Hub, HubConfig, Member, Subscriber};
use crate::metrics::Metrics;
use crate::protocol::channel::ChannelName;
use crate::protocol::frame::sockjs;
use crate::protocol::frame::websocket::{self, MessageKind};
use crate::protocol::publication::Publication;

/// Publications that come in one read of the broker.
const READ: usize = 100;

fn message(length: usize) -> String {
    "a message of the \"chat\" "
        .chars()
        .cycle()
        .take(length)
        .collect()
}

#[divan::bench(args = [64, 1024, 16384])]
fn websocket_frame(bencher: Bencher<'_, '_>, length: usize) {
    let message = message(length);
    bencher
        .with_inputs(|| BytesMut::with_capacity(length + 16))
        .bench_refs(|out| {
            websocket::append_message(out, MessageKind::Text, message.as_bytes());
        });
}

#[divan::bench(args = [64, 1024, 16384])]
fn sockjs_frame(bencher: Bencher<'_, '_>, length: usize) {
    let message = message(length);
    bencher
        .with_inputs(|| {
            let room = 2 * length + 16;
            (BytesMut::with_capacity(room), BytesMut::with_capacity(room))
        })
        .bench_refs(|(quoted, out)| {
            sockjs::append_quoted(quoted, &message);
            websocket::append_sockjs_message(out, quoted);
        });
}

/// A hub with a client in one channel.
fn hub(channel: &ChannelName) -> (Arc<Hub>, Subscriber) {
    let config = HubConfig {
        fanout: Config::default_without_file().fanout,
        pinned: Vec::new(),
    };
    let hub = Hub::new(config, Metrics::new());
    let member = Member::Queue(Arc::new(QueueOutbox::new(64 << 20)));
    let membership = hub.join(channel, member);
    (hub, membership)
}

#[divan::bench(args = [64, 1024])]
fn hub_deliver(bencher: Bencher<'_, '_>, length: usize) {
    let channel = ChannelName::new("news").unwrap();
    let data = Bytes::from(message(length));
    bencher
        .counter(ItemsCount::new(READ))
        .with_inputs(|| {
            let publication = Publication {
                channel: channel.clone(),
                data: data.clone(),
            };
            (hub(&channel), vec![publication; READ])
        })
        .bench_values(|((hub, membership), publications)| {
            hub.deliver(publications);
            (hub, membership)
        });
}

#[test]
fn each_piece_runs() {
    Divan::default().test_benches();
}

#[test]
#[ignore = "a measurement: make micro"]
fn pieces() {
    Divan::default().run_benches();
}
