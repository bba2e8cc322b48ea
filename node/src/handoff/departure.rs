//! This node hands a client off to another one.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use futures_util::future;
use parking_lot::Mutex;
use tokio::sync::oneshot;
use tokio::time;
use tokio_util::task::TaskTracker;
use tracing::debug;

use crate::broker::Broker;
use crate::client::channels;
use crate::client::channels::Departing;
use crate::client::relay;
use crate::client::relay::Client;
use crate::client::relay::HandoffError;
use crate::cluster::control::Control;
use crate::cluster::control::CutAt;
use crate::cluster::directory::ClientControl;
use crate::handoff::Kind;
use crate::handoff::Marks;
use crate::handoff::Snapshot;
use crate::handoff::forward::Forward;
use crate::handoff::marks::Mark;
#[cfg(debug_assertions)]
use crate::handoff::sabotage;
#[cfg(debug_assertions)]
use crate::handoff::sabotage::Fault;
use crate::metrics::Metrics;
use crate::protocol::channel::ChannelName;
use crate::protocol::handoff::Target;
use crate::protocol::handoff::Token;
use crate::redis::keys;
use crate::stream::Cut;

/// How long a mark may take to come back, and what is before it to be written. Longer than a round trip over Redis by far, and
/// shorter than an edge waits; after it the client has to connect again.
const MARK_WAIT_MAX: Duration = Duration::from_secs(2);

/// How long the marks of a channel client may take, and how long the other node may take to continue it.
const CUT_WAIT_MAX: Duration = Duration::from_secs(1);
pub(super) const RESUME_WAIT_MAX: Duration = Duration::from_secs(2);

/// Hands clients off.
pub(crate) struct Departures {
    pub(crate) control: Arc<Control>,
    pub(crate) broker: Arc<dyn Broker>,
    pub(crate) marks: Arc<Marks>,
    /// Runs what passes commands on to clients that were handed off.
    pub(crate) tasks: TaskTracker,
}

#[async_trait]
impl relay::HandOff for Departures {
    async fn hand_off(&self, client: Arc<Client>, target: Target) -> Result<(), HandoffError> {
        let handed_off = self.hand_off_plain(&client, target).await;
        count(client.metrics(), &handed_off, target);
        handed_off
    }

    async fn flush(&self, channel: &ChannelName) {
        self.flushed(channel).await;
    }
}

#[async_trait]
impl channels::HandOff for Departures {
    async fn hand_off(&self, departing: Departing, target: Target) -> Result<(), HandoffError> {
        let metrics = Arc::clone(departing.metrics());
        let handed_off = self.hand_off_channels(departing, target).await;
        count(&metrics, &handed_off, target);
        handed_off
    }
}

/// Counts a handoff by its result.
pub(super) fn count(metrics: &Metrics, handed_off: &Result<(), HandoffError>, target: Target) {
    match handed_off {
        Ok(()) => {
            metrics.handoffs.sent.inc();
        }
        Err(HandoffError::Kept(reason)) => {
            debug!(reason, node = %target.instance, "client not handed off, it stays");
            metrics.handoffs.kept.inc();
        }
        Err(HandoffError::Lost) => {
            debug!(node = %target.instance, "handoff failed, the client has to connect again");
            metrics.handoffs.lost.inc();
        }
    }
}

impl Departures {
    async fn hand_off_plain(
        &self,
        client: &Arc<Client>,
        target: Target,
    ) -> Result<(), HandoffError> {
        let snapshot = Snapshot {
            endpoint: client.endpoint().path.clone(),
            transport: client.transport(),
            kind: Kind::Plain {
                rate_ahead: client.rate_ahead(),
            },
        };
        self.leave_at_mark(client, target, snapshot).await
    }

    /// Has the other node prepare a client of a relay, and ends the deliveries to it here at a mark that both nodes receive.
    /// Returns once all before the mark is written, or queued for a receiver.
    pub(super) async fn leave_at_mark(
        &self,
        client: &Arc<Client>,
        target: Target,
        snapshot: Snapshot,
    ) -> Result<(), HandoffError> {
        let token = target.token;
        let (left, has_left) = oneshot::channel();
        let client_here = Arc::clone(client);
        self.at_mark(Mark::first(token), move || {
            let _ = left.send(client_here.leave_here()); // The handoff may have been given up.
        });
        let _forget = Forget {
            marks: &self.marks,
            token,
            count: 1,
        };
        self.ask(target, snapshot).await?;
        #[cfg(debug_assertions)]
        self.inject_before_marks(token, 1).await;

        let mark = keys::handoff_marks();
        // A client without a channel leaves at a mark all the same: that needs the broker, as all handoffs do.
        let channel = client.channel().unwrap_or(&mark);
        let marked = self.broker.mark(channel, &mark, token.bytes()).await;
        marked.map_err(|error| HandoffError::Kept(error.to_string()))?;

        // From here on the other node may have the client.
        let written = async {
            match has_left.await.ok()? {
                Some(written) => written.await.ok(),
                None => Some(()),
            }
        };
        let written = time::timeout(MARK_WAIT_MAX, written).await;
        written.ok().flatten().ok_or(HandoffError::Lost)
    }

    /// Runs `act`, which ends deliveries, at `mark`.
    pub(super) fn at_mark(&self, mark: Mark, act: impl FnOnce() + Send + 'static) {
        #[cfg(debug_assertions)]
        if sabotage::fault() == Some(Fault::StopsLate) {
            let tasks = self.tasks.clone();
            return self.marks.at(mark, move || {
                tasks.spawn(async move {
                    time::sleep(sabotage::WRONG_FOR).await;
                    act();
                });
            });
        }
        self.marks.at(mark, act);
    }

    /// Makes time for a fault, before `count` marks are published.
    #[cfg(debug_assertions)]
    pub(super) async fn inject_before_marks(&self, token: Token, count: usize) {
        match sabotage::fault() {
            Some(Fault::MarkIgnored) => {
                for number in (0..).take(count) {
                    self.marks.run(Mark { token, number });
                }
            }
            Some(Fault::BeginsEarly) => {}
            _ => return,
        }
        time::sleep(sabotage::WRONG_FOR).await;
    }

    /// Has the other node prepare the client.
    pub(super) async fn ask(&self, target: Target, snapshot: Snapshot) -> Result<(), HandoffError> {
        let snapshot = snapshot.encode();
        let snapshot = snapshot.map_err(|error| HandoffError::Kept(error.to_string()))?;
        let accepted = self
            .control
            .hand_off(target.instance, target.token, snapshot);
        accepted.await.map_err(HandoffError::Kept)
    }

    async fn hand_off_channels(
        &self,
        mut departing: Departing,
        target: Target,
    ) -> Result<(), HandoffError> {
        let token = target.token;
        departing.settle().await.map_err(HandoffError::Kept)?;
        let state = departing.snapshot().map_err(HandoffError::Kept)?;
        let snapshot = Snapshot {
            endpoint: departing.endpoint().to_owned(),
            transport: departing.transport(),
            kind: Kind::Channels(Box::new(state)),
        };
        let mut cuts = Vec::new();
        for (number, at_mark) in (0..).zip(departing.at_marks()) {
            let (cut, has_cut) = oneshot::channel();
            self.at_mark(Mark { token, number }, move || {
                let _ = cut.send(at_mark()); // The handoff may have been given up.
            });
            cuts.push(has_cut);
        }
        let _forget = Forget {
            marks: &self.marks,
            token,
            count: u16::try_from(cuts.len()).unwrap_or(u16::MAX),
        };
        self.ask(target, snapshot).await?;
        if !departing.is_settled() {
            let reason = "a channel of the client has ended";
            return Err(HandoffError::Kept(reason.to_owned()));
        }
        #[cfg(debug_assertions)]
        self.inject_before_marks(token, departing.marks().count())
            .await;

        let mark = keys::handoff_marks();
        for (number, channel) in (0..).zip(departing.marks()) {
            let data = Mark { token, number }.bytes();
            match self.broker.mark(channel, &mark, data).await {
                Ok(()) => {}
                Err(error) if number == 0 => return Err(HandoffError::Kept(error.to_string())),
                Err(_) => {
                    departing.lose();
                    return Err(HandoffError::Lost);
                }
            }
        }
        let Ok(Some(cut)) = time::timeout(CUT_WAIT_MAX, cut(cuts)).await else {
            departing.lose();
            return Err(HandoffError::Lost);
        };

        #[cfg(debug_assertions)]
        let cut = sabotage::aged(cut);
        // The other node continues the client from here on, or has it connect again.
        departing.offer_presence();
        let resumed = self.control.resume(target.instance, token, cut);
        match time::timeout(RESUME_WAIT_MAX, resumed).await {
            Ok(Ok(())) => {}
            failed => {
                let reason = failed.ok().and_then(Result::err).unwrap_or_default();
                debug!(reason, "the other node cannot continue a client");
                departing.lose();
                return Err(HandoffError::Lost);
            }
        }
        let forward = Forward {
            control: Arc::clone(&self.control),
            tasks: self.tasks.clone(),
            client: departing.id(),
            node: target.instance,
            waiting: Mutex::default(),
        };
        departing.leave(&(Arc::new(forward) as Arc<dyn ClientControl>));
        Ok(())
    }
}

/// What the deliveries of one server have ended with.
type CutHere = Option<Vec<(ChannelName, Cut)>>;

/// Where the deliveries of all channels have ended, once all before is in the client's outbox; `None` if a channel has ended,
/// or if publications were missed.
async fn cut(cuts: Vec<oneshot::Receiver<CutHere>>) -> Option<Vec<CutAt>> {
    let mut positions = Vec::new();
    let mut written = Vec::new();
    for cut in future::try_join_all(cuts).await.ok()? {
        for (channel, cut) in cut? {
            positions.push(CutAt {
                channel,
                position: cut.position,
            });
            written.extend(cut.written);
        }
    }
    future::try_join_all(written).await.ok()?;
    Some(positions)
}

/// Unregisters from the marks when the handoff ends, however it does.
pub(super) struct Forget<'a> {
    pub(super) marks: &'a Marks,
    pub(super) token: Token,
    pub(super) count: u16,
}

impl Drop for Forget<'_> {
    fn drop(&mut self) {
        self.marks.forget(self.token, self.count);
    }
}
