//! The task that receives publications: one connection, subscribed to the channels that the hub wants.
//!
//! It reads as fast as Redis sends and never waits for the hub. All publications of one read are passed to the
//! hub together, in order.

use std::collections::BTreeMap;
use std::iter;
use std::str;
use std::sync::Arc;

use tokio::time;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::debug;
use tracing::info;
use tracing::warn;

use super::RedisBroker;
use super::subscriptions::Confirmed;
use super::subscriptions::Subscriptions;
use super::subscriptions::UnexpectedConfirmation;
use crate::metrics::DropReason;
use crate::metrics::Side;
use crate::protocol::channel::ChannelName;
use crate::protocol::envelope;
use crate::protocol::publication::Publication;
use crate::redis::Backoff;
use crate::redis::ConnectError;
use crate::redis::Connection;
use crate::redis::PubSub;
use crate::redis::ReadError;
use crate::redis::Redirect;
use crate::redis::Reply;
use crate::redis::Slot;
use crate::redis::chain;
use crate::redis::keys;

/// Receives publications until `shutdown`, and reconnects as needed.
pub(super) async fn run(broker: Arc<RedisBroker>, shutdown: CancellationToken) {
    let mut subscriber = Subscriber {
        backoff: Backoff::new(broker.config.backoff_max),
        received_until: None,
        broker: &broker,
    };
    loop {
        let lost = tokio::select! {
            biased;
            () = shutdown.cancelled() => return,
            lost = subscriber.subscribe() => lost,
        };
        // Before the pause: a publisher that reconnects sooner must not assume that this node is subscribed.
        broker.subscribed.send_replace(false);
        broker.change_subscriptions(Subscriptions::lose_all);
        broker.interrupted();
        if let Some(member) = &broker.member {
            member.refresh();
        }
        let reason = chain(&lost);
        debug!(reason, "the subscriber has no connection");
        let reason = format!("cannot subscribe to redis: {reason}");
        broker.monitor.subscriber(Err(reason));
        let pause = subscriber.backoff.next(fastrand::f64());
        tokio::select! {
            biased;
            () = shutdown.cancelled() => return,
            () = time::sleep(pause) => {}
        }
    }
}

struct Subscriber<'a> {
    broker: &'a RedisBroker,
    backoff: Backoff,
    /// When the last connection on which all channels were subscribed was lost.
    received_until: Option<Instant>,
}

/// Why there is no connection, or why it ended.
#[derive(Debug, thiserror::Error)]
enum Lost {
    #[error(transparent)]
    Connect(#[from] ConnectError),
    #[error(transparent)]
    Read(#[from] ReadError),
    #[error(transparent)]
    UnexpectedConfirmation(#[from] UnexpectedConfirmation),
    /// Mostly because of an ACL.
    #[error("redis rejected the subscription: {0}")]
    Refused(String),
    #[error("redis did not confirm a subscription in time")]
    Unconfirmed,
    #[error("no probes are received on this connection")]
    Stalled,
    #[error("another redis is the primary now")]
    OtherPrimary,
}

impl Subscriber<'_> {
    /// Connects, subscribes and receives publications, until the connection is lost.
    async fn subscribe(&mut self) -> Lost {
        let broker = self.broker;
        let connection = match broker.connector.open("subscriber").await {
            Ok(opened) => Connection::over(opened, broker.config.message_bytes_max),
            Err(error) => return error.into(),
        };
        self.broker.metrics.broker_connected(Side::Subscribe);
        let mut is_resumed = false;
        let lost = match self.serve(connection, &mut is_resumed).await {
            Ok(never) => match never {},
            Err(lost) => lost,
        };
        self.broker.metrics.broker_lost(Side::Subscribe);
        if self.broker.member.is_some() {
            let address = self.broker.connector.to_string();
            self.broker.metrics.broker_shard_lost(&address);
        }
        if is_resumed {
            self.received_until = Some(Instant::now());
        }
        // The connections of the publishers and of the reader may be broken by the same cause: as soon as this node
        // is subscribed again, streams are read to find what was missed.
        self.broker.suspect_all_queues();
        self.broker.reader.suspect();
        lost
    }

    async fn serve(
        &mut self,
        mut connection: Connection,
        is_resumed: &mut bool,
    ) -> Result<std::convert::Infallible, Lost> {
        let mut tenure = connection.tenure();
        let mut stalled = self.broker.subscribing_stalled.subscribe();
        let mut changed = self.broker.server_changed.subscribe();
        let mut confirmed_by = None;
        loop {
            if *is_resumed {
                self.returned(); // Before more commands are sent, which may be so without end.
            }
            let step = self.next_step(&mut connection);
            if step.has_resumed && !*is_resumed {
                *is_resumed = true;
                self.resumed();
            }
            match step.commands {
                Commands::Sent => {
                    confirmed_by = Some(Instant::now() + self.broker.config.response_timeout);
                }
                Commands::UnderWay => {}
                Commands::None => confirmed_by = None,
            }
            let unconfirmed = async {
                match confirmed_by {
                    Some(at) => time::sleep_until(at).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                progress = connection.progress() => progress?,
                () = self.broker.subscription_changes.notified() => {}
                Ok(()) = stalled.changed() => return Err(Lost::Stalled),
                Ok(()) = changed.changed() => self.doubt(),
                () = unconfirmed => return Err(Lost::Unconfirmed),
                () = tenure.over() => return Err(Lost::OtherPrimary),
            }
            self.take_replies(&mut connection)?;
        }
    }

    /// Queues the commands that turn the confirmed subscriptions into the wanted ones.
    fn next_step(&self, connection: &mut Connection) -> Step {
        let mut subscriptions = self.broker.subscriptions.lock();
        let has_resumed = subscriptions.is_resumed();
        let commands = match subscriptions.next_batch() {
            Some(batch) => {
                self.queue(connection, batch.subscribe, true, &mut subscriptions);
                self.queue(connection, batch.unsubscribe, false, &mut subscriptions);
                Commands::Sent
            }
            None if subscriptions.is_waiting() => Commands::UnderWay,
            None => Commands::None,
        };
        Step {
            has_resumed,
            commands,
        }
    }

    /// Queues commands for `channels`: one, or in a cluster one for each slot.
    fn queue(
        &self,
        connection: &mut Connection,
        channels: Vec<ChannelName>,
        is_subscribe: bool,
        subscriptions: &mut Subscriptions,
    ) {
        let keys = &self.broker.keys;
        let mut groups: BTreeMap<(PubSub, Slot), Vec<ChannelName>> = BTreeMap::new();
        for channel in channels {
            let group = (keys.pubsub(&channel), self.broker.slot(&channel));
            groups.entry(group).or_default().push(channel);
        }
        for ((pubsub, slot), channels) in groups {
            let command = match is_subscribe {
                true => pubsub.subscribe(),
                false => pubsub.unsubscribe(),
            };
            let names = channels.iter().map(|channel| keys.channel(channel));
            let words: Vec<_> = iter::once(command.into()).chain(names).collect();
            let words: Vec<&str> = words.iter().map(|word| &**word).collect();
            connection.queue(&words);
            if self.broker.member.is_some() {
                subscriptions.note_sent(slot, is_subscribe, channels);
            }
        }
    }

    /// Reports slots of a cluster whose channels are all subscribed (again) after they had moved.
    fn returned(&self) {
        let slots = {
            let mut subscriptions = self.broker.subscriptions.lock();
            subscriptions.returned(|channel| self.broker.keys.slot(channel))
        };
        if !slots.is_empty() {
            self.broker.note_gap();
            let redis = &self.broker.connector;
            debug!(%redis, slots = slots.len(), "subscribed to channels of slots that have moved");
            self.broker.deliver.resumed_all(&super::shards_of(slots));
        }
    }

    /// All wanted channels are subscribed (again).
    fn resumed(&mut self) {
        self.backoff.reset();
        let channels = self.broker.subscriptions.lock().confirmed();
        if let Some(received_until) = self.received_until {
            self.broker.note_gap();
            let silent_ms = u64::try_from(received_until.elapsed().as_millis()).unwrap_or(u64::MAX);
            warn!(
                silent_ms,
                channels, "subscribed again: publications in between were missed"
            );
        } else {
            info!(channels, "subscribed");
        }
        self.broker.resumed();
        self.broker.subscribed.send_replace(true);
        self.broker.monitor.subscriber(Ok(()));
    }

    /// Publications may be missing, although the connection is the same.
    fn doubt(&self) {
        self.broker.note_gap();
        self.broker.interrupted();
        self.broker.resumed();
    }

    /// Handles all complete replies. Publications before an invalid one are delivered.
    fn take_replies(&self, connection: &mut Connection) -> Result<(), Lost> {
        let mut publications = Vec::new();
        let taken = {
            let mut subscriptions = self.broker.subscriptions.lock();
            loop {
                match connection.next_reply() {
                    Ok(Some(reply)) => {
                        if let Err(lost) = self.take(reply, &mut subscriptions, &mut publications) {
                            break Err(lost);
                        }
                    }
                    Ok(None) => break Ok(()),
                    Err(error) => break Err(error.into()),
                }
            }
        };
        if !publications.is_empty() {
            let count = publications.len() as u64;
            self.broker.metrics.publications_received.inc_by(count);
            self.broker.deliver.deliver(publications);
        }
        taken
    }

    fn take(
        &self,
        reply: Reply,
        subscriptions: &mut Subscriptions,
        publications: &mut Vec<Publication>,
    ) -> Result<(), Lost> {
        match reply {
            Reply::Message { channel, data } => {
                let keys = &self.broker.keys;
                let name = str::from_utf8(&channel).ok();
                let name = name.map(|name| keys.channel_of(name));
                let Some(channel) = name.and_then(|name| subscriptions.find(&name)) else {
                    return Ok(()); // It is no longer wanted.
                };
                if Some(channel) == subscriptions.probe_channel() {
                    self.broker.monitor.seen(&data);
                    return Ok(());
                }
                let mut publication = Publication {
                    channel: channel.clone(),
                    data,
                };
                if self.broker.member.is_some() {
                    note_mark(&mut publication);
                }
                publications.push(publication);
            }
            Reply::Oversized { channel, bytes } => {
                let channel = String::from_utf8_lossy(&channel);
                debug!(%channel, bytes, "a publication is larger than broker.message_size");
                self.broker.drop_counters.note(DropReason::Oversized, 1);
            }
            Reply::Subscribed { channel } => self.confirm(&channel, true, subscriptions)?,
            Reply::Unsubscribed { channel } => self.confirm(&channel, false, subscriptions)?,
            Reply::Status => {}
            Reply::Error(reply) => self.rejected(reply, subscriptions)?,
        }
        Ok(())
    }

    /// Processes an error. In a cluster it may say that the server does not have the slot, or not now.
    fn rejected(&self, reply: String, subscriptions: &mut Subscriptions) -> Result<(), Lost> {
        let redirect = self.broker.member.as_ref().zip(Redirect::of_text(&reply));
        let Some((member, redirect)) = redirect else {
            return Err(Lost::Refused(reply));
        };
        let sent = subscriptions.oldest_sent().ok_or(UnexpectedConfirmation)?;
        match redirect {
            Redirect::Moved { slot, .. } | Redirect::Ask { slot, .. } if slot != sent.slot => {
                return Err(UnexpectedConfirmation.into());
            }
            _ => {}
        }
        let before = subscriptions.counts();
        subscriptions.rejected();
        self.broker.count_subscriptions(before, subscriptions);
        member.refresh();
        Ok(())
    }

    fn confirm(
        &self,
        channel: &[u8],
        is_subscribed: bool,
        subscriptions: &mut Subscriptions,
    ) -> Result<(), UnexpectedConfirmation> {
        let channel = str::from_utf8(channel).map_err(|_| UnexpectedConfirmation)?;
        let before = subscriptions.counts();
        let keys = &self.broker.keys;
        let channel = keys.channel_of(channel);
        match &self.broker.member {
            None => subscriptions.confirm(&channel, is_subscribed)?,
            Some(member) => {
                let slot_of = |channel: &ChannelName| keys.slot(channel);
                let confirmed = subscriptions.confirm_sharded(&channel, is_subscribed, slot_of)?;
                if confirmed == Confirmed::Ended {
                    member.refresh();
                }
            }
        }
        self.broker.count_subscriptions(before, subscriptions);
        Ok(())
    }
}

/// In a cluster, marks of handoffs are received on channels in the slot that they are about, or on the very channel.
fn note_mark(publication: &mut Publication) {
    if keys::is_handoff_marks(&publication.channel) {
        publication.channel = keys::handoff_marks();
    } else if publication.channel.is_wire()
        && let Some(mark) = envelope::in_mark(&publication.data)
    {
        *publication = Publication {
            channel: keys::handoff_marks(),
            data: mark,
        };
    }
}

struct Step {
    has_resumed: bool,
    commands: Commands,
}

/// The state of the commands to Redis.
enum Commands {
    Sent,
    UnderWay,
    None,
}
