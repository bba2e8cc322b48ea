//! A constant load: clients that keep their cookies, as browsers do, and write down every response.
//!
//! Each client waits for its response before it asks again, so a slow machine gets less to do and nothing piles up. What
//! they asked and got is in the [`Journal`], and so is how each of them fares now.

mod client;
mod journal;
mod session;
mod story;
mod tunnel;

use std::{net::SocketAddr, sync::Arc, time::Duration};

use anyhow::{Context as _, Result};
use tokio::{
    task::JoinSet,
    time::{Instant, sleep},
};

pub use crate::harness::load::{
    journal::{Journal, Kind, Loss, Place, Record},
    story::{Story, clients_of},
};
use crate::harness::{load::client::Client, wait};

/// How long a client waits after a response before it asks again.
const PAUSE: Duration = Duration::from_millis(100);

/// How long it waits after it got none, or a bad one.
const PAUSE_AFTER_FAILURE: Duration = Duration::from_millis(200);

/// Who takes part.
#[derive(Clone, Copy, Debug)]
pub struct Plan {
    /// Clients that GET.
    pub gets: usize,
    /// Clients that POST.
    pub posts: usize,
    /// Clients that GET and never send a cookie: each of their requests is a newcomer's.
    pub newcomers: usize,
    /// Clients with a SockJS session over xhr-polling.
    pub sessions: usize,
    /// Clients with an open WebSocket.
    pub tunnels: usize,
    /// Whether those with sessions keep cookies.
    pub session_cookies: Cookies,
    /// From one echo of a client with a WebSocket to its next.
    pub beat: Duration,
    /// How long it waits for an echo before it connects anew.
    pub patience: Duration,
}

/// Whether a client keeps cookies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cookies {
    /// As browsers do.
    Kept,
    /// Switched off, or the page is on another site.
    Off,
}

impl Plan {
    /// Nobody.
    pub const NOBODY: Self = Self {
        gets: 0,
        posts: 0,
        newcomers: 0,
        sessions: 0,
        tunnels: 0,
        session_cookies: Cookies::Kept,
        beat: Duration::from_secs(1),
        patience: Duration::from_secs(20),
    };

    fn clients(&self) -> impl Iterator<Item = Kind> {
        let kinds = [
            (Kind::Get, self.gets),
            (Kind::Post, self.posts),
            (Kind::Newcomer, self.newcomers),
            (Kind::Session, self.sessions),
            (Kind::Tunnel, self.tunnels),
        ];
        kinds
            .into_iter()
            .flat_map(|(kind, count)| std::iter::repeat_n(kind, count))
    }

    fn cookies(&self, kind: Kind) -> Cookies {
        match kind {
            Kind::Newcomer => Cookies::Off,
            Kind::Session => self.session_cookies,
            Kind::Get | Kind::Post | Kind::Tunnel => Cookies::Kept,
        }
    }
}

/// Clients at work. They stop when this is dropped.
#[derive(Debug)]
pub struct Load {
    journal: Arc<Journal>,
    tasks: JoinSet<()>,
}

impl Load {
    /// Sends the clients of `plan` to the edge.
    #[must_use]
    pub fn start(edge: SocketAddr, plan: &Plan) -> Self {
        let journal = Arc::new(Journal::new(plan.clients()));
        let mut tasks = JoinSet::new();
        for (number, kind) in plan.clients().enumerate() {
            let client = Client::new(edge, number, plan.cookies(kind), Arc::clone(&journal));
            let (beat, patience) = (plan.beat, plan.patience);
            tasks.spawn(async move {
                // Not all in the same moment, and not in step afterwards.
                sleep(PAUSE.mul_f64(fastrand::f64())).await;
                match kind {
                    Kind::Get | Kind::Newcomer => ask_again_and_again(client, "GET").await,
                    Kind::Post => ask_again_and_again(client, "POST").await,
                    Kind::Session => session::keep(client).await,
                    Kind::Tunnel => tunnel::keep(client, beat, patience).await,
                }
            });
        }
        Self { journal, tasks }
    }

    /// What they wrote down so far.
    #[must_use]
    pub fn journal(&self) -> &Journal {
        &self.journal
    }

    /// Waits until each client has been served what it asked for after `since`, and `is_well` where it is.
    ///
    /// # Errors
    ///
    /// Some were not within `deadline`; the error tells of one of them.
    pub async fn served(
        &self,
        since: Instant,
        deadline: Duration,
        is_well: impl Fn(&Place) -> bool,
    ) -> Result<()> {
        self.wait(deadline, |place| {
            !(place.served_since(since) && is_well(place))
        })
        .await
    }

    /// Waits until each of the clients that `are_meant` has been served what it asked for after `since`.
    ///
    /// # Errors
    ///
    /// Some were not within `deadline`; the error tells of one of them.
    pub async fn served_all(
        &self,
        since: Instant,
        deadline: Duration,
        are_meant: impl Fn(&Place) -> bool,
    ) -> Result<()> {
        self.wait(deadline, |place| {
            are_meant(place) && !place.served_since(since)
        })
        .await
    }

    /// Waits until nobody is `waiting`.
    async fn wait(&self, deadline: Duration, waiting: impl Fn(&Place) -> bool) -> Result<()> {
        let waited = wait::until("every client to be served", deadline, async || {
            let places = self.journal.places();
            (!places.iter().any(&waiting)).then_some(())
        });
        waited.await.with_context(|| {
            let places = self.journal.places();
            let left: Vec<&Place> = places.iter().filter(|place| waiting(place)).collect();
            let (count, one) = (left.len(), left.first());
            let last = one.map(|place| self.journal.last_of(place.client));
            format!("{count} clients are not, such as {one:?}: {last:?}")
        })
    }

    /// Stops all clients and returns what they wrote down.
    pub async fn stop(mut self) -> Arc<Journal> {
        self.tasks.shutdown().await;
        self.journal
    }
}

async fn ask_again_and_again(mut client: Client, method: &'static str) {
    loop {
        // The node has no page that takes a POST: its 405 went all the way. No body, because a server that refuses may
        // close on a body that it has not read, and whatever comes next on that connection would fail for it.
        let good = |status| matches!((method, status), ("GET", 200) | ("POST", 405));
        let response = client.ask(method, "/", b"", good).await;
        sleep(if response.is_some() {
            PAUSE
        } else {
            PAUSE_AFTER_FAILURE
        })
        .await;
    }
}
