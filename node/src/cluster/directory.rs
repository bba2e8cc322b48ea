//! The clients of this node, by id and by user, with a handle to each.
//!
//! No task, no socket. Clients are entered when they are connected and removed when the returned guard is
//! dropped. Commands are passed to a client's own queue, without waiting.
//!
//! Invariant: a user is in the map if and only if one of its clients is, and the [`UserWatch`] has been
//! called in that order. The empty user is anonymous: its clients are found by their ids alone.

use std::collections::BTreeMap;
use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::Arc;

use parking_lot::Mutex;

use crate::protocol::instance::ClientId;

mod command;

pub(crate) use command::ControlCommand;
pub(crate) use command::Lifetime;
pub(crate) use command::Since;
pub(crate) use command::SubscribeCommand;
pub(crate) use command::Target;

/// The handle to one client.
pub(crate) trait ClientControl: Send + Sync + 'static {
    /// Queues a command for the client. Must not block.
    ///
    /// # Errors
    ///
    /// The command is not executed.
    fn command(self: Arc<Self>, command: &ControlCommand) -> Result<(), CommandRejected>;
}

/// Why a client rejects a command.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum CommandRejected {
    /// Its queue is full: the sender may try again.
    #[error("the client's command queue is full")]
    Busy,
}

/// Is told which users have clients here. Called under the directory's lock, in order: must not block
/// and not call back.
pub(crate) trait UserWatch: Send + Sync + 'static {
    /// The first client of `user` has connected.
    fn connected(&self, user: &Arc<str>);
    /// The last client of `user` has disconnected.
    fn disconnected(&self, user: &Arc<str>);
}

/// The result of a command, summed over all of its targets.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct CommandResult {
    /// Clients that accepted it.
    pub(crate) accepted: u32,
    /// Clients whose queue was full.
    pub(crate) busy: u32,
}

/// The clients of this node.
pub(crate) struct Directory {
    state: Mutex<State>,
    watch: Arc<dyn UserWatch>,
}

#[derive(Default)]
struct State {
    /// A tree, because a hash table blocks all others that wait for the lock while it grows.
    clients: BTreeMap<ClientId, Local>,
    /// Clients that were handed off a moment ago, with what passes commands on to their new node: a command may be on its
    /// way here. Mostly empty.
    moved: BTreeMap<ClientId, Local>,
    /// Secret session ids, with which clients send over other nodes.
    sessions: HashMap<ClientId, ClientId>,
    /// Values that are dropped with a client; empty unless there are lifecycle events.
    kept: BTreeMap<ClientId, Box<dyn Kept>>,
    users: HashMap<Arc<str>, Clients>,
    /// Reserved slots for clients of a user that are about to enter, never 0. Empty without a limit.
    reserved: HashMap<Arc<str>, usize>,
}

/// Anything that is dropped with a client.
trait Kept: Send {}

impl<T: Send> Kept for T {}

/// The clients of one user, never empty: mostly there is one, which needs no map.
enum Clients {
    One(ClientId),
    /// With numbers in the order in which they entered.
    Many(BTreeMap<ClientId, u64>),
}

struct Local {
    user: Arc<str>,
    controls: Arc<dyn ClientControl>,
}

/// The limit of clients of one user.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct UserLimit {
    pub(crate) clients_max: usize,
    /// Whether a new client displaces the oldest one, or is rejected.
    pub(crate) displaces_oldest: bool,
}

/// The user has reached its limit of clients.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the user has too many clients")]
pub(crate) struct UserFull;

/// The slot of a client that is about to enter; released when it is dropped.
pub(crate) struct Reserved {
    directory: Arc<Directory>,
    user: Arc<str>,
    limit: Option<UserLimit>,
}

/// A client in the directory, until it is dropped.
pub(crate) struct Listed {
    directory: Arc<Directory>,
    client: ClientId,
    /// Boxed, because clients over WebSocket have none.
    session: Option<Box<ClientId>>,
}

impl Directory {
    /// A directory without clients.
    pub(crate) fn new(watch: Arc<dyn UserWatch>) -> Arc<Self> {
        let state = Mutex::default();
        Arc::new(Self { state, watch })
    }

    /// Reserves a slot for a client of `user`, which is to [enter](Reserved::enter). The empty user has no limit.
    ///
    /// # Errors
    ///
    /// [`UserFull`] if the limit is reached, reservations included, and new clients are rejected.
    pub(crate) fn reserve(
        self: &Arc<Self>,
        user: &Arc<str>,
        limit: Option<UserLimit>,
    ) -> Result<Reserved, UserFull> {
        let limit = limit.filter(|_| !user.is_empty());
        if let Some(limit) = limit {
            let mut state = self.state.lock();
            let listed = state.users.get(user).map_or(0, Clients::len);
            let reserved = state.reserved.get(user).copied().unwrap_or(0);
            let is_full = limit.clients_max <= listed + reserved;
            if is_full && !limit.displaces_oldest {
                return Err(UserFull);
            }
            state.reserved.insert(Arc::clone(user), reserved + 1);
        }
        Ok(Reserved {
            directory: Arc::clone(self),
            user: Arc::clone(user),
            limit,
        })
    }

    /// Adds a client, see [`Reserved::enter`], and removes the oldest ones of its user above the limit.
    fn enter(
        self: &Arc<Self>,
        client: ClientId,
        user: &Arc<str>,
        limit: Option<UserLimit>,
        controls: Arc<dyn ClientControl>,
    ) -> (Listed, Vec<Arc<dyn ClientControl>>) {
        let mut state = self.state.lock();
        let known = state.users.get_key_value(user);
        let user = Arc::clone(known.map_or(user, |(known, _)| known));
        let mut displaced = Vec::new();
        if !user.is_empty() {
            match state.users.entry(Arc::clone(&user)) {
                Entry::Vacant(place) => {
                    self.watch.connected(&user);
                    place.insert(Clients::One(client));
                }
                Entry::Occupied(mut clients) => {
                    let clients = clients.get_mut();
                    clients.add(client);
                    if let Some(limit) = limit {
                        displaced = clients.take_oldest(limit.clients_max);
                    }
                }
            }
        }
        state.moved.remove(&client);
        let before = state.clients.insert(client, Local { user, controls });
        debug_assert!(before.is_none(), "two clients have one id");
        let displaced = displaced
            .iter()
            .filter_map(|client| state.clients.get(client));
        let displaced = displaced.map(|local| Arc::clone(&local.controls)).collect();
        drop(state);
        let listed = Listed {
            directory: Arc::clone(self),
            client,
            session: None,
        };
        (listed, displaced)
    }

    /// Passes `command` to all clients of this node that match `target`.
    pub(crate) fn execute(&self, target: &Target, command: &ControlCommand) -> CommandResult {
        // Collected first: a client must not be called under the lock.
        let clients = match (target, command) {
            // All members of a channel may know a client's id, so the id does not authorize input.
            (
                Target::Client(_) | Target::ClientOf { .. } | Target::User { .. },
                ControlCommand::Input(_),
            ) => Vec::new(),
            _ => self.find(target),
        };
        let mut result = CommandResult::default();
        for controls in clients {
            match controls.command(command) {
                Ok(()) => result.accepted += 1,
                Err(CommandRejected::Busy) => result.busy += 1,
            }
        }
        result
    }

    /// Clients on this node.
    pub(crate) fn clients(&self) -> usize {
        self.state.lock().clients.len()
    }

    /// Users with a client on this node.
    pub(crate) fn users(&self) -> usize {
        self.state.lock().users.len()
    }

    /// Clients of `user` on this node.
    #[cfg(test)]
    fn clients_of(&self, user: &str) -> usize {
        self.state.lock().users.get(user).map_or(0, Clients::len)
    }

    fn find(&self, target: &Target) -> Vec<Arc<dyn ClientControl>> {
        let state = self.state.lock();
        let of = |client: &ClientId| {
            let local = state.clients.get(client);
            local.or_else(|| state.moved.get(client))
        };
        let controls = |local: &Local| Arc::clone(&local.controls);
        match target {
            Target::Client(client) => of(client).map(controls).into_iter().collect(),
            Target::ClientOf { user, client } => {
                let local = of(client).filter(|local| *local.user == **user);
                local.map(controls).into_iter().collect()
            }
            Target::Session { user, session } => {
                let local = state.sessions.get(session).and_then(of);
                let local = local.filter(|local| user.is_empty() || *local.user == **user);
                local.map(controls).into_iter().collect()
            }
            Target::User { user, except } => {
                let clients = state.users.get(user.as_str());
                let clients = clients.into_iter().flat_map(Clients::iter);
                let moved = state.moved.iter();
                let moved = moved.filter(|(client, local)| {
                    !user.is_empty() && *local.user == **user && !state.clients.contains_key(client)
                });
                let clients = clients.chain(moved.map(|(client, _)| client));
                let meant = clients.filter(|client| !except.contains(client));
                meant.filter_map(of).map(controls).collect()
            }
        }
    }

    /// No longer passes commands for a client on that was handed off to `controls`.
    pub(crate) fn forget_moved(&self, client: ClientId, controls: &Arc<dyn ClientControl>) {
        let mut state = self.state.lock();
        let moved = state.moved.get(&client);
        if moved.is_some_and(|local| Arc::ptr_eq(&local.controls, controls)) {
            state.moved.remove(&client);
        }
    }

    fn leave(&self, client: ClientId, session: Option<ClientId>) {
        let _kept; // Dropped last, outside the lock.
        let mut state = self.state.lock();
        _kept = state.kept.remove(&client);
        if let Some(session) = session {
            state.sessions.remove(&session);
        }
        let Some(Local { user, .. }) = state.clients.remove(&client) else {
            return;
        };
        if let Some(clients) = state.users.get_mut(&user)
            && clients.remove(&client)
        {
            state.users.remove(&user);
            self.watch.disconnected(&user);
        }
    }
}

impl Clients {
    fn len(&self) -> usize {
        match self {
            Self::One(_) => 1,
            Self::Many(clients) => clients.len(),
        }
    }

    fn iter(&self) -> impl Iterator<Item = &ClientId> {
        let (one, many) = match self {
            Self::One(client) => (Some(client), None),
            Self::Many(clients) => (None, Some(clients.keys())),
        };
        one.into_iter().chain(many.into_iter().flatten())
    }

    fn add(&mut self, client: ClientId) {
        match self {
            Self::One(first) => *self = Self::Many(BTreeMap::from([(*first, 0), (client, 1)])),
            Self::Many(clients) => {
                let newest = clients.values().max().copied().unwrap_or(0);
                clients.insert(client, newest + 1);
            }
        }
    }

    /// Removes those that entered first until `clients_max` are left, at least one.
    fn take_oldest(&mut self, clients_max: usize) -> Vec<ClientId> {
        let mut accepted = Vec::new();
        while let Self::Many(clients) = self
            && clients_max.max(1) < clients.len()
        {
            let oldest = clients.iter().min_by_key(|(_, number)| **number);
            let Some((client, _)) = oldest.map(|(client, number)| (*client, *number)) else {
                break;
            };
            clients.remove(&client);
            accepted.push(client);
        }
        accepted
    }

    /// Removes `client`, if it is there; whether none is left.
    fn remove(&mut self, client: &ClientId) -> bool {
        match self {
            Self::One(last) => last == client,
            Self::Many(clients) => {
                clients.remove(client);
                clients.is_empty()
            }
        }
    }
}

impl Reserved {
    /// Adds the client until the returned value is dropped. Its id must be new. The oldest clients of the user
    /// above the limit are no longer found by the user; they are returned, to be disconnected.
    pub(crate) fn enter(
        self,
        client: ClientId,
        controls: Arc<dyn ClientControl>,
    ) -> (Listed, Vec<Arc<dyn ClientControl>>) {
        // The reservation is released after that, so that no other client gets the slot.
        self.directory
            .enter(client, &self.user, self.limit, controls)
    }
}

impl Drop for Reserved {
    fn drop(&mut self) {
        if self.limit.is_none() {
            return;
        }
        let mut state = self.directory.state.lock();
        if let Some(reserved) = state.reserved.get_mut(&self.user) {
            *reserved -= 1;
            if *reserved == 0 {
                state.reserved.remove(&self.user);
            }
        }
    }
}

impl Listed {
    /// Accepts input for the client ([`ControlCommand::Input`]) under `session`: a new id that only the client is told.
    pub(crate) fn set_session(&mut self, session: ClientId) {
        debug_assert!(self.session.is_none(), "it has one already");
        self.session = Some(Box::new(session));
        let mut state = self.directory.state.lock();
        state.sessions.insert(session, self.client);
    }

    /// Removes the client, which was handed off: commands for it are passed to `controls` until that is
    /// [forgotten](Directory::forget_moved).
    pub(crate) fn move_to(self, controls: Arc<dyn ClientControl>) {
        let mut state = self.directory.state.lock();
        if let Some(local) = state.clients.get(&self.client) {
            let user = Arc::clone(&local.user);
            state.moved.insert(self.client, Local { user, controls });
        }
    }

    /// Keeps a value until the client leaves.
    pub(crate) fn keep(&self, kept: impl Send + 'static) {
        let mut state = self.directory.state.lock();
        state.kept.insert(self.client, Box::new(kept));
    }
}

impl Drop for Listed {
    fn drop(&mut self) {
        self.directory
            .leave(self.client, self.session.as_deref().copied());
    }
}

#[cfg(test)]
mod tests;
