//! Which clients this node holds: by their ids and by their users, and the way to each of them.
//!
//! Plain: no task, no socket. Clients enter when they are connected and leave when the guard that they
//! got is dropped. Orders are handed to a client's own mailbox; nothing here waits for it.
//!
//! Invariant: a user is in the map if and only if one of its clients is, and whoever watches the users
//! has been told so in that order. The empty user is nobody: its clients are found by their ids alone.

use std::collections::BTreeMap;
use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::Arc;

use parking_lot::Mutex;

use crate::protocol::instance::ClientId;

mod order;

pub(crate) use order::Lifetime;
pub(crate) use order::Order;
pub(crate) use order::Since;
pub(crate) use order::SubscribeOrder;
pub(crate) use order::Target;

/// The way to one client.
pub(crate) trait Controls: Send + Sync + 'static {
    /// Hands the client an order, to be carried out in a moment. Must not block.
    ///
    /// # Errors
    ///
    /// The order is not carried out.
    fn order(&self, order: &Order) -> Result<(), OrderRefused>;
}

/// Why a client takes no order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum OrderRefused {
    /// It has not carried out those before: what sent this one may try again.
    #[error("the client has too many orders to carry out")]
    Busy,
    /// It is on its way out.
    #[error("the client is gone")]
    Gone,
}

/// Who wants to know which users are here. Called under the directory's lock, in order: must not block
/// and not call back.
pub(crate) trait UserWatch: Send + Sync + 'static {
    /// The first client of `user` has come.
    fn came(&self, user: &Arc<str>);
    /// The last client of `user` has left.
    fn left(&self, user: &Arc<str>);
}

/// What became of an order, over all clients that it was for.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Given {
    /// Clients that have taken it.
    pub(crate) taken: u32,
    /// Clients that were too busy for it.
    pub(crate) busy: u32,
}

/// The clients of this node.
pub(crate) struct Directory {
    state: Mutex<State>,
    watch: Arc<dyn UserWatch>,
}

#[derive(Default)]
struct State {
    /// A tree: a hash table doubles, and while it does all others wait for the lock.
    clients: BTreeMap<ClientId, Local>,
    /// Secret names under which clients take what they send themselves.
    sessions: HashMap<ClientId, ClientId>,
    /// What is dropped when a client leaves; empty unless there are lifecycle events.
    kept: BTreeMap<ClientId, Box<dyn Kept>>,
    users: HashMap<Arc<str>, Clients>,
    /// Places that are kept for clients of a user that are about to enter, never 0. Empty without a limit.
    reserved: HashMap<Arc<str>, usize>,
}

/// Anything that is dropped with a client.
trait Kept: Send {}

impl<T: Send> Kept for T {}

/// Those of one user, never none: mostly it is one, which needs no map.
enum Clients {
    One(ClientId),
    /// With numbers in the order in which they entered.
    Many(BTreeMap<ClientId, u64>),
}

struct Local {
    user: Arc<str>,
    controls: Arc<dyn Controls>,
}

/// How many clients of one user there may be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct UserLimit {
    pub(crate) clients_max: usize,
    /// Whether a newcomer displaces the oldest one, or is refused.
    pub(crate) displaces_oldest: bool,
}

/// A user has as many clients as it may have.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the user has too many clients")]
pub(crate) struct UserFull;

/// The place of a client of a user that is about to enter; given up when it is dropped.
pub(crate) struct Reserved {
    directory: Arc<Directory>,
    user: Arc<str>,
    limit: Option<UserLimit>,
}

/// A client in the directory, until it is dropped.
pub(crate) struct Listed {
    directory: Arc<Directory>,
    client: ClientId,
    /// In a box, because clients over WebSocket have none.
    session: Option<Box<ClientId>>,
}

impl Directory {
    /// A directory without clients.
    pub(crate) fn new(watch: Arc<dyn UserWatch>) -> Arc<Self> {
        let state = Mutex::default();
        Arc::new(Self { state, watch })
    }

    /// Keeps a place for a client of `user`, which is to [enter](Reserved::enter). The empty user has no limit.
    ///
    /// # Errors
    ///
    /// [`UserFull`] if the limit is reached, places that are kept included, and newcomers are refused.
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

    /// Lists a client, see [`Reserved::enter`], and takes out the oldest ones of its user that are too many.
    fn enter(
        self: &Arc<Self>,
        client: ClientId,
        user: &Arc<str>,
        limit: Option<UserLimit>,
        controls: Arc<dyn Controls>,
    ) -> (Listed, Vec<Arc<dyn Controls>>) {
        let mut state = self.state.lock();
        let known = state.users.get_key_value(user);
        let user = Arc::clone(known.map_or(user, |(known, _)| known));
        let mut displaced = Vec::new();
        if !user.is_empty() {
            match state.users.entry(Arc::clone(&user)) {
                Entry::Vacant(place) => {
                    self.watch.came(&user);
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

    /// Hands `order` to all clients of this node that it is for.
    pub(crate) fn give(&self, target: &Target, order: &Order) -> Given {
        // Collected first: a client must not be called under the lock.
        let clients = match (target, order) {
            // Everybody in a channel may know a client's id, so its id alone must not speak for it.
            (
                Target::Client(_) | Target::ClientOf { .. } | Target::User { .. },
                Order::Input(_),
            ) => Vec::new(),
            _ => self.find(target),
        };
        let mut given = Given::default();
        for controls in clients {
            match controls.order(order) {
                Ok(()) => given.taken += 1,
                Err(OrderRefused::Busy) => given.busy += 1,
                Err(OrderRefused::Gone) => {}
            }
        }
        given
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

    fn find(&self, target: &Target) -> Vec<Arc<dyn Controls>> {
        let state = self.state.lock();
        let of = |client: &ClientId| state.clients.get(client);
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
                let meant = clients.filter(|client| !except.contains(client));
                meant.filter_map(of).map(controls).collect()
            }
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
            self.watch.left(&user);
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

    /// Takes out those that entered first until there are `clients_max`, and one at least.
    fn take_oldest(&mut self, clients_max: usize) -> Vec<ClientId> {
        let mut taken = Vec::new();
        while let Self::Many(clients) = self
            && clients_max.max(1) < clients.len()
        {
            let oldest = clients.iter().min_by_key(|(_, number)| **number);
            let Some((client, _)) = oldest.map(|(client, number)| (*client, *number)) else {
                break;
            };
            clients.remove(&client);
            taken.push(client);
        }
        taken
    }

    /// Takes `client` out, if it is there; whether nobody is left.
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
    /// Lists the client for as long as the returned value lives. Its id must be new. Older clients of the user
    /// that are too many now are no longer found by the user; they are returned, to be disconnected.
    pub(crate) fn enter(
        self,
        client: ClientId,
        controls: Arc<dyn Controls>,
    ) -> (Listed, Vec<Arc<dyn Controls>>) {
        // The place is given up behind that, so that nobody else finds it free.
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
    /// Lets who knows `session` speak for the client ([`Order::Input`]): a new id, told to nobody else.
    pub(crate) fn answer_to(&mut self, session: ClientId) {
        debug_assert!(self.session.is_none(), "it has one already");
        self.session = Some(Box::new(session));
        let mut state = self.directory.state.lock();
        state.sessions.insert(session, self.client);
    }

    /// Keeps something until the client leaves.
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
