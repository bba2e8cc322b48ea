//! The log of a node without Redis, in this process's memory.

use std::collections::BTreeMap;
use std::collections::HashMap;
use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;
use std::time::SystemTime;
use std::time::UNIX_EPOCH;

use async_trait::async_trait;
use parking_lot::Mutex;
use tokio::time;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::delivery::Log;
use super::delivery::Pending;
use super::delivery::Turn;
use super::event::Event;
use super::journal::Key;
use super::journal::Step;
use super::journal::Subject;
use super::store::Scope;
use crate::protocol::channel::ChannelName;
use crate::protocol::instance::ClientId;
use crate::redis::CommandError;

/// How often to check for ends that are due.
const TEND_INTERVAL: Duration = Duration::from_millis(100);

/// The log.
pub(super) struct MemoryLog {
    scope: Scope,
    /// The prefix of event ids, unique to this process.
    started: u64,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// Of the last event.
    number: u64,
    /// Of the last event that the application has accepted.
    delivered: u64,
    /// Events that it has not accepted.
    events: VecDeque<Event>,
    clients: HashMap<ClientId, Client>,
    /// Sessions of each user that a reconnect continues, the oldest first; never empty.
    ended: HashMap<Arc<str>, VecDeque<Ended>>,
    vacated: HashMap<ChannelName, Instant>,
}

struct Client {
    session: ClientId,
    subject: Subject,
}

struct Ended {
    client: ClientId,
    was: Client,
    due_at: Instant,
}

impl MemoryLog {
    pub(super) fn new(scope: Scope) -> Self {
        Self {
            scope,
            started: milliseconds(),
            state: Mutex::default(),
        }
    }

    /// Emits ends that are due, until `shutdown`.
    pub(super) async fn run(self: Arc<Self>, shutdown: CancellationToken) {
        let tend = async {
            loop {
                time::sleep(TEND_INTERVAL).await;
                self.tend(Instant::now());
            }
        };
        shutdown.run_until_cancelled(tend).await;
    }

    /// Enters a step.
    pub(super) fn enter(&self, step: Step) {
        let mut state = self.state.lock();
        match (step.key, step.begins) {
            (Key::Client(client), Some(subject)) => self.begin_client(&mut state, client, subject),
            (Key::Client(client), None) => self.end_client(&mut state, client),
            (Key::Channel(channel), Some(_)) => {
                if state.vacated.remove(&channel).is_none() {
                    self.emit(&mut state, channel_event("occupied", &channel));
                }
            }
            (Key::Channel(channel), None) => {
                if self.scope.coalesce.is_zero() {
                    self.emit(&mut state, channel_event("vacated", &channel));
                } else {
                    let due_at = Instant::now() + self.scope.coalesce;
                    state.vacated.insert(channel, due_at);
                }
            }
        }
    }

    fn begin_client(&self, state: &mut State, client: ClientId, subject: Subject) {
        let continued = state.take_ended(&subject.user);
        let session = continued.unwrap_or(client);
        let begun = Client { session, subject };
        if continued.is_none() {
            let event = self.client_event("connected", client, &begun);
            self.emit(state, event);
        }
        state.clients.insert(client, begun);
    }

    fn end_client(&self, state: &mut State, client: ClientId) {
        let Some(was) = state.clients.remove(&client) else {
            return;
        };
        if self.scope.coalesce.is_zero() || was.subject.user.is_empty() {
            let event = self.client_event("disconnected", client, &was);
            return self.emit(state, event);
        }
        let due_at = Instant::now() + self.scope.coalesce;
        let ended = state
            .ended
            .entry(Arc::clone(&was.subject.user))
            .or_default();
        ended.push_back(Ended {
            client,
            was,
            due_at,
        });
    }

    /// Emits the ends that are due at `now`.
    fn tend(&self, now: Instant) {
        let mut state = self.state.lock();
        let state = &mut *state;
        let mut events = Vec::new();
        for ended in state.ended.values_mut() {
            while let Some(ended) = ended.pop_front_if(|ended| ended.due_at <= now) {
                events.push(self.client_event("disconnected", ended.client, &ended.was));
            }
        }
        state.ended.retain(|_, ended| !ended.is_empty());
        state.vacated.retain(|channel, due_at| {
            let is_over = *due_at <= now;
            if is_over {
                events.push(channel_event("vacated", channel));
            }
            !is_over
        });
        for event in events {
            self.emit(state, event);
        }
    }

    fn client_event(&self, kind: &str, client: ClientId, was: &Client) -> BTreeMap<String, String> {
        fields([
            ("type", kind),
            ("client", &client.to_string()),
            ("session", &was.session.to_string()),
            ("user", &was.subject.user),
            ("transport", was.subject.transport),
            ("node", &self.scope.node_id),
        ])
    }

    fn emit(&self, state: &mut State, fields: BTreeMap<String, String>) {
        state.number += 1;
        state.events.push_back(Event {
            id: format!("{}-{}", self.started, state.number),
            number: state.number,
            time: milliseconds(),
            fields,
        });
        while self.scope.keep < state.events.len() {
            state.events.pop_front();
        }
    }
}

impl State {
    /// Takes the oldest session of `user` that a reconnect continues.
    fn take_ended(&mut self, user: &str) -> Option<ClientId> {
        let waiting = self.ended.get_mut(user)?;
        let session = waiting.pop_front().map(|ended| ended.was.session);
        if waiting.is_empty() {
            self.ended.remove(user);
        }
        session
    }
}

#[async_trait]
impl Log for MemoryLog {
    async fn pending(&self, _: Turn, count: usize) -> Result<Option<Pending>, CommandError> {
        let state = self.state.lock();
        Ok(Some(Pending {
            delivered: state.delivered,
            events: state.events.iter().take(count).cloned().collect(),
        }))
    }

    async fn delivered(&self, _: Turn, last: &Event) -> Result<(), CommandError> {
        let mut state = self.state.lock();
        state.delivered = last.number;
        let is_delivered = |event: &mut Event| event.number <= last.number;
        while state.events.pop_front_if(is_delivered).is_some() {}
        Ok(())
    }

    async fn hand_over(&self, _: Turn) -> Result<bool, CommandError> {
        // No client can reconnect to this process any more.
        self.tend(Instant::now() + self.scope.coalesce);
        Ok(true)
    }
}

fn channel_event(kind: &str, channel: &ChannelName) -> BTreeMap<String, String> {
    fields([("type", kind), ("channel", channel.as_str())])
}

fn fields<const N: usize>(fields: [(&str, &str); N]) -> BTreeMap<String, String> {
    let own = |(name, value): (&str, &str)| (name.to_owned(), value.to_owned());
    fields.into_iter().map(own).collect()
}

fn milliseconds() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    u64::try_from(since.unwrap_or_default().as_millis()).unwrap_or(u64::MAX)
}
