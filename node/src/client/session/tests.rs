//! Sessions with their outbox, client and quota, in any order of events of clients, the hub and the
//! clock.

use std::net::IpAddr;
use std::net::Ipv4Addr;
use std::sync::LazyLock;
use std::time::Duration;

use futures_util::FutureExt;
use proptest::prelude::*;
use tokio::runtime::Runtime;
use tokio_util::sync::CancellationToken;

use super::*;
use crate::broker;
use crate::broker::Deliver;
use crate::client::relay::Clients;
use crate::config::Config;
use crate::config::Endpoint;
use crate::hub::Hub;
use crate::hub::HubConfig;
use crate::hub::Member;
use crate::metrics::Transport;

const DELAYS: Delays = Delays {
    heartbeat: Duration::from_secs(25),
    disconnect: Duration::from_secs(5),
};

const ADDRESS: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);

/// For the broker's task, which is idle here.
static RUNTIME: LazyLock<Runtime> = LazyLock::new(|| Runtime::new().unwrap());

/// A table of sessions on an echo endpoint, and the session under test.
struct Bench {
    sessions: Sessions,
    quota: Arc<Quota>,
    clients: Arc<Clients>,
    endpoint: Arc<Endpoint>,
    /// Of the newest session.
    outbox: Option<Arc<QueueOutbox>>,
    receiver: Option<Receiver>,
    now: Instant,
}

impl Bench {
    fn new() -> Self {
        let config = Config::default_without_file();
        let metrics = Metrics::new();
        let hub = HubConfig {
            fanout: config.fanout,
            pinned: Vec::new(),
        };
        let hub = Hub::new(hub, Arc::clone(&metrics));
        let _in_runtime = RUNTIME.enter();
        let broker = broker::start(
            &[],
            "test",
            Arc::clone(&hub) as Arc<dyn Deliver>,
            Arc::clone(&metrics),
            CancellationToken::new(),
        );
        let quota = Quota::new(QuotaConfig {
            sessions_max: 10,
            half_open_max: 10,
        });
        let mut endpoints = config.endpoints.into_iter();
        Self {
            sessions: Sessions::new(SessionsConfig {
                delays: DELAYS,
                quota: Arc::clone(&quota),
                metrics: Arc::clone(&metrics),
                close_on_open: None,
            }),
            quota,
            clients: Clients::new(hub, broker.broker, metrics),
            endpoint: endpoints.find(|endpoint| endpoint.path == "/echo").unwrap(),
            outbox: None,
            receiver: None,
            now: Instant::now(),
        }
    }

    /// Attaches a receiver. `true` if it opened a session.
    fn receive(&mut self) -> bool {
        let mut opened = None;
        let received = self.sessions.receive("a", ADDRESS, false, self.now, || {
            let outbox = Arc::new(QueueOutbox::new(64));
            opened = Some(Arc::clone(&outbox));
            let member = Member::Queue(Arc::clone(&outbox));
            let endpoint = Arc::clone(&self.endpoint);
            let client = self
                .clients
                .connect(endpoint, Transport::SockjsHttp, member);
            (outbox, Arc::new(client))
        });
        match received {
            Ok(receiver) => {
                assert!(self.receiver.is_none(), "there is one receiver");
                self.receiver = Some(receiver);
            }
            Err(error) => {
                assert_eq!(error, ReceiveError::Busy);
                assert!(
                    self.receiver.is_some(),
                    "only a receiver keeps another one out"
                );
            }
        }
        let is_new = opened.is_some();
        self.outbox = opened.or(self.outbox.take());
        is_new
    }

    /// Detaches the receiver. Done here and not by the receiver, which uses the real clock.
    fn leave(&mut self, how: Detach) {
        if let Some(mut receiver) = self.receiver.take() {
            receiver.finished = true;
            receiver.session.detach(how, self.now);
        }
    }

    fn next(&mut self) -> Option<Frame> {
        let receiver = self.receiver.as_ref()?;
        receiver.session.next(self.now)
    }

    fn send(&mut self, message: &str) -> Sent {
        let sent = self.sessions.send("a", vec![message.to_owned()]);
        sent.now_or_never().expect("an echo does not wait")
    }

    fn clients_connected(&self) -> bool {
        let text = self.clients.metrics.render();
        text.contains("causeway_node_clients{transport=\"sockjs_http\"} 1\n")
    }
}

#[test]
fn twenty_thousand_abandoned_sessions_leave_no_state() {
    let bench = Bench::new();
    let metrics = Arc::clone(&bench.clients.metrics);
    let quota = Quota::new(QuotaConfig {
        sessions_max: 20_000,
        half_open_max: 20_000,
    });
    let sessions = Sessions::new(SessionsConfig {
        delays: DELAYS,
        quota: Arc::clone(&quota),
        metrics: Arc::clone(&metrics),
        close_on_open: None,
    });
    let receive = |id: u32| {
        let connect = || {
            let outbox = Arc::new(QueueOutbox::new(64));
            let member = Member::Queue(Arc::clone(&outbox));
            let endpoint = Arc::clone(&bench.endpoint);
            let client = bench
                .clients
                .connect(endpoint, Transport::SockjsHttp, member);
            (outbox, Arc::new(client))
        };
        sessions.receive(&id.to_string(), ADDRESS, false, bench.now, connect)
    };
    for id in 0..20_000 {
        let mut receiver = receive(id).ok().unwrap();
        receiver.finished = true;
        receiver.session.detach(Detach::Finished, bench.now);
    }
    assert_eq!(receive(20_000).err(), Some(ReceiveError::NodeFull));
    assert_eq!(quota.counted(), (20_000, 1));
    sessions.sweep(bench.now + DELAYS.disconnect - Duration::from_millis(1));
    assert_eq!(quota.counted(), (20_000, 1));
    sessions.sweep(bench.now + DELAYS.disconnect);
    assert_eq!(quota.counted(), (0, 0));
    assert_eq!(sessions.capacity(), 0, "the tables free their memory");
    let text = metrics.render();
    assert!(text.contains("causeway_node_sessions 0\n"));
    assert!(text.contains("causeway_node_clients{transport=\"sockjs_http\"} 0\n"));
}

#[derive(Debug, Clone, Copy)]
enum Event {
    Receive,
    Next,
    Answered,
    Aborted,
    Send,
    Close,
    Pass(u64),
}

fn event() -> impl Strategy<Value = Event> {
    prop_oneof![
        4 => Just(Event::Receive),
        6 => Just(Event::Next),
        3 => Just(Event::Answered),
        1 => Just(Event::Aborted),
        6 => Just(Event::Send),
        1 => Just(Event::Close),
        2 => (0_u64..4).prop_map(Event::Pass),
    ]
}

/// What the client of one session has received, and what is due.
#[derive(Debug, Default)]
struct Seen {
    frames: usize,
    echoes_due: Vec<String>,
    closed: Option<Disconnect>,
}

impl Seen {
    fn take(&mut self, frame: Frame) {
        self.frames += 1;
        assert!(
            (frame == Frame::Open) == (self.frames == 1) || matches!(frame, Frame::Close(_)),
            "{frame:?} is frame {}",
            self.frames
        );
        match frame {
            Frame::Open | Frame::Heartbeat | Frame::Leave => assert_eq!(self.closed, None),
            Frame::Messages(messages) => {
                assert_eq!(self.closed, None);
                assert_eq!(messages, self.echoes_due, "all of them, in order, once");
                self.echoes_due.clear();
            }
            Frame::Close(disconnect) => {
                assert_eq!(*self.closed.get_or_insert(disconnect), disconnect);
                let may_lose = [Disconnect::INTERRUPTED, Disconnect::SLOW].contains(&disconnect);
                assert!(
                    may_lose || self.echoes_due.is_empty(),
                    "messages come before the end"
                );
            }
        }
    }
}

proptest! {
    #[test]
    fn in_any_order_of_events_messages_arrive_in_order_once_and_a_session_leaves_no_state(
        events in proptest::collection::vec(event(), 0..100),
    ) {
        let mut bench = Bench::new();
        let mut seen = Seen::default();
        for (number, event) in events.into_iter().enumerate() {
            match event {
                Event::Receive => {
                    if bench.receive() {
                        seen = Seen::default();
                    }
                }
                Event::Next => {
                    if let Some(frame) = bench.next() {
                        seen.take(frame);
                    }
                }
                Event::Answered => bench.leave(Detach::Finished),
                Event::Aborted => bench.leave(Detach::Aborted),
                Event::Send => {
                    let message = number.to_string();
                    let was_open = bench.clients_connected();
                    let is_slow = bench.outbox.as_ref().is_some_and(|outbox| outbox.is_slow());
                    let sent = bench.send(&message);
                    if sent == Sent::Taken && was_open && !is_slow {
                        seen.echoes_due.push(format!("\"{message}\""));
                    }
                }
                Event::Close => {
                    for session in bench.sessions.all() {
                        session.close(Disconnect::RESTART);
                    }
                }
                Event::Pass(seconds) => {
                    bench.now += Duration::from_secs(seconds);
                    bench.sessions.sweep(bench.now);
                }
            }
        }
        bench.leave(Detach::Finished);
        bench.now += DELAYS.disconnect;
        bench.sessions.sweep(bench.now);
        prop_assert!(!bench.clients_connected());
        prop_assert_eq!(bench.send("late"), Sent::Unknown);
        prop_assert_eq!(bench.quota.counted(), (0, 0));
        prop_assert!(bench.outbox.is_none_or(|outbox| Arc::strong_count(&outbox) == 1));
    }
}
