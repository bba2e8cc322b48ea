//! New connections and requests beside the clients, and what became of them.

use std::{
    net::{Ipv4Addr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use anyhow::{Context as _, Result};
use parking_lot::Mutex;
use tokio::{
    net::TcpSocket,
    sync::watch,
    task::JoinSet,
    time::{Instant, MissedTickBehavior, interval_at},
};

use crate::harness::http::Connection;

/// What is asked for: a response that a node has at once.
const PATH: &str = "/sockjs-0/info";

/// Tasks that open new connections, each from an address of its own: the ports of one would not last.
const OPENING: u8 = 32;

/// Connections that are kept.
const KEPT: usize = 32;

/// Errors whose words are kept.
const REASONS_MAX: usize = 20;

/// How many there are each second.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RequestsPlan {
    /// New connections, with one request each.
    pub connections: u32,
    /// Requests on connections that are kept as long as the edge keeps them.
    pub requests: u32,
}

/// What became of them.
#[derive(Clone, Debug, Default)]
pub struct Outcomes {
    /// How long there were any.
    pub lasted: Duration,
    /// New connections that were served.
    pub connections: u64,
    /// Requests on kept connections that were served.
    pub requests: u64,
    /// Connections that were refused, or reset before the request was sent.
    pub refused: u64,
    /// Requests without a whole response.
    pub cut: u64,
    /// Requests with another response than was expected.
    pub failed: u64,
    /// The longest that one took, with its connection if that was new.
    pub longest: Duration,
    /// The first errors.
    pub reasons: Vec<String>,
}

/// Clients at work.
#[derive(Debug)]
pub struct Requests {
    began: Instant,
    outcomes: Arc<Mutex<Outcomes>>,
    stop: watch::Sender<bool>,
    tasks: JoinSet<()>,
}

/// What is counted.
#[derive(Clone, Copy)]
enum Count {
    Refused,
    Cut,
    Failed,
}

impl Requests {
    /// Begins.
    #[must_use]
    pub fn start(edge: SocketAddr, plan: RequestsPlan) -> Self {
        let outcomes = Arc::<Mutex<Outcomes>>::default();
        let (stop, stopped) = watch::channel(false);
        let mut tasks = JoinSet::new();
        if let Some(pause) = Duration::from_secs(OPENING.into()).checked_div(plan.connections) {
            for number in 0..OPENING {
                let source = Ipv4Addr::new(127, 0, 1, number + 1);
                tasks.spawn(open(
                    edge,
                    source,
                    pause,
                    Arc::clone(&outcomes),
                    stopped.clone(),
                ));
            }
        }
        if let Some(pause) = Duration::from_secs(KEPT as u64).checked_div(plan.requests) {
            for _ in 0..KEPT {
                tasks.spawn(keep(edge, pause, Arc::clone(&outcomes), stopped.clone()));
            }
        }
        Self {
            began: Instant::now(),
            outcomes,
            stop,
            tasks,
        }
    }

    /// Ends them.
    ///
    /// # Errors
    ///
    /// One has panicked.
    pub async fn finish(mut self) -> Result<Outcomes> {
        self.stop.send_replace(true);
        while let Some(ended) = self.tasks.join_next().await {
            ended.context("a client panicked")?;
        }
        let mut outcomes = self.outcomes.lock().clone();
        outcomes.lasted = self.began.elapsed();
        Ok(outcomes)
    }
}

/// Opens one connection after the other, with a request each.
async fn open(
    edge: SocketAddr,
    source: Ipv4Addr,
    pause: Duration,
    outcomes: Arc<Mutex<Outcomes>>,
    stopped: watch::Receiver<bool>,
) {
    let mut pace = pace(pause);
    while !*stopped.borrow() {
        pace.tick().await;
        let began = Instant::now();
        let served = async {
            let connected = async {
                let socket = TcpSocket::new_v4()?;
                socket.bind((source, 0).into())?;
                let stream = socket.connect(edge).await?;
                stream.set_nodelay(true)?;
                anyhow::Ok(Connection::of(stream))
            };
            let mut connection = connected.await.map_err(|error| (Count::Refused, error))?;
            ask(&mut connection, edge, "close").await
        };
        let served = served.await.map(drop);
        outcomes
            .lock()
            .note(served, began, |outcomes| &mut outcomes.connections);
    }
}

/// Sends requests on one connection, and on another when the edge has said that it closes that.
async fn keep(
    edge: SocketAddr,
    pause: Duration,
    outcomes: Arc<Mutex<Outcomes>>,
    stopped: watch::Receiver<bool>,
) {
    let mut pace = pace(pause);
    let mut kept: Option<Connection> = None;
    while !*stopped.borrow() {
        pace.tick().await;
        let began = Instant::now();
        let served = async {
            // One that was closed while no request was under way is no failure.
            let open = kept.take().filter(|connection| !connection.has_ended());
            let mut connection = match open {
                Some(connection) => connection,
                None => {
                    let opened = Connection::open(edge).await;
                    opened.map_err(|error| (Count::Refused, error))?
                }
            };
            let is_kept = ask(&mut connection, edge, "keep-alive").await?;
            Ok(is_kept.then_some(connection))
        };
        let served = match served.await {
            Ok(connection) => {
                kept = connection;
                Ok(())
            }
            Err(error) => Err(error),
        };
        outcomes
            .lock()
            .note(served, began, |outcomes| &mut outcomes.requests);
    }
}

/// Sends a request and reads its response. Returns whether the edge keeps the connection.
async fn ask(
    connection: &mut Connection,
    edge: SocketAddr,
    keeps: &str,
) -> Result<bool, (Count, anyhow::Error)> {
    let request = format!("GET {PATH} HTTP/1.1\r\nHost: {edge}\r\nConnection: {keeps}\r\n\r\n");
    let response = async {
        connection.send(request).await?;
        connection.response().await
    };
    let response = response.await.map_err(|error| (Count::Cut, error))?;
    if response.status != 200 {
        return Err((Count::Failed, anyhow::anyhow!("{response:?}")));
    }
    Ok(response.header("connection") != Some("close"))
}

fn pace(pause: Duration) -> tokio::time::Interval {
    let mut pace = interval_at(Instant::now() + pause.mul_f64(fastrand::f64()), pause);
    pace.set_missed_tick_behavior(MissedTickBehavior::Delay);
    pace
}

impl Outcomes {
    fn note(
        &mut self,
        served: Result<(), (Count, anyhow::Error)>,
        began: Instant,
        count: fn(&mut Self) -> &mut u64,
    ) {
        self.longest = self.longest.max(began.elapsed());
        let Err((kind, error)) = served else {
            *count(self) += 1;
            return;
        };
        let (what, count) = match kind {
            Count::Refused => ("refused", &mut self.refused),
            Count::Cut => ("cut", &mut self.cut),
            Count::Failed => ("failed", &mut self.failed),
        };
        *count += 1;
        if self.reasons.len() < REASONS_MAX {
            let took = began.elapsed();
            self.reasons
                .push(format!("{what} after {took:.1?}: {error:#}"));
        }
    }
}
