//! Follows the primary that Sentinels name.
//!
//! Each Sentinel is asked at intervals, and at once when it reports a switch or when a connection to the primary fails. The
//! primary is the first of the [`candidates`] that says of itself (`ROLE`) that it is one. All connections to the previous one
//! are then left, whether they work or not.
//!
//! While no Sentinel responds, and while none of the candidates is a primary, the primary in use stays for as long as it says
//! that it is one.

use std::collections::HashMap;
use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering;

use deadpool_redis::redis::FromRedisValue;
use deadpool_redis::redis::Value;
use futures_util::future::join_all;
use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::time;
use tokio::time::Duration;
use tokio_util::sync::CancellationToken;
use tracing::debug;
use tracing::info;
use tracing::warn;

use super::Backoff;
use super::Batch;
use super::Connection;
use super::Connector;
use super::Reply;
use super::chain;
use super::commands::ServerCommands;
use super::connect::ConnectOptions;
use super::connect::ExpectedRole;
use super::primary::Candidate;
use super::primary::Named;
use super::primary::Primary;
use super::primary::candidates;
use super::tenure::CurrentPrimary;
use crate::config::RedisAddress;
use crate::config::RedisLocation;
use crate::config::RedisServer;
use crate::config::Sentinels;
use crate::logging::Throttle;
use crate::metrics::Metrics;

/// How often each Sentinel is asked.
const POLL_INTERVAL: Duration = Duration::from_secs(1);

/// The shortest pause between two questions to one Sentinel, and between two decisions.
const PAUSE_MIN: Duration = Duration::from_millis(50);

/// Where Sentinels report that a primary was replaced.
const SWITCHES: &str = "+switch-master";

/// More than one of these messages has.
const MESSAGE_BYTES_MAX: usize = 4096;

/// The longest host name.
const HOST_BYTES_MAX: usize = 255;

/// What one Sentinel has last said.
type Said = Result<Option<Named>, String>;

/// Follows one primary.
pub(super) struct Follower {
    primary: Arc<CurrentPrimary>,
    /// The login to the servers that the Sentinels name.
    server: RedisServer,
    options: ConnectOptions,
    backoff_max: Duration,
    asked: Vec<Asked>,
    /// How many primaries were taken.
    taken: AtomicU64,
    /// One of `asked` has changed.
    announced: Notify,
    metrics: Arc<Metrics>,
    log: DecisionLog,
}

/// One Sentinel.
struct Asked {
    address: RedisAddress,
    connector: Connector,
    commands: ServerCommands,
    /// `None` before its first reply.
    said: Mutex<Option<Said>>,
    /// It has reported a switch.
    switched: Notify,
}

/// What was logged, so that a state is logged once.
#[derive(Default)]
struct DecisionLog {
    problem: Mutex<Option<Problem>>,
    throttle: Throttle,
}

/// Why the Sentinels are of no use now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Problem {
    NoReply,
    Unknown,
    NoPrimary,
}

impl Follower {
    /// Follows the primary that `sentinels` name; `server` is the login to it.
    pub(super) fn new(
        primary: Arc<CurrentPrimary>,
        sentinels: &Sentinels,
        server: &RedisServer,
        config: (ConnectOptions, Duration),
        metrics: Arc<Metrics>,
    ) -> Self {
        let (options, backoff_max) = config;
        let asked = sentinels.servers.iter().map(|address| {
            let server = RedisServer {
                location: RedisLocation::At(address.clone()),
                tls: sentinels.tls.clone(),
                database: 0,
                username: sentinels.username.clone(),
                password: sentinels.password.clone(),
            };
            let options = options.clone();
            let connector = Connector::to(address.clone(), server, ExpectedRole::Any, options);
            Asked {
                address: address.clone(),
                commands: ServerCommands::new(connector.clone(), "sentinel"),
                connector,
                said: Mutex::default(),
                switched: Notify::new(),
            }
        });
        Self {
            asked: asked.collect(),
            primary,
            server: server.clone(),
            options,
            backoff_max,
            taken: AtomicU64::new(0),
            announced: Notify::new(),
            metrics,
            log: DecisionLog::default(),
        }
    }

    /// Follows the primary until `shutdown`. Afterwards the last one stays in use.
    pub(super) async fn run(self, shutdown: CancellationToken) {
        let asks = join_all(self.asked.iter().map(|asked| self.ask(asked)));
        let watches = join_all(self.asked.iter().map(|asked| self.watch_switches(asked)));
        tokio::select! {
            biased;
            () = shutdown.cancelled() => {}
            _ = asks => {}
            _ = watches => {}
            never = self.decide() => match never {},
        }
    }

    /// Asks one Sentinel, without end.
    async fn ask(&self, asked: &Asked) -> Infallible {
        let mut failures = self.primary.failures();
        loop {
            failures.mark_unchanged();
            let said = asked.primary_of(&self.primary.master).await;
            if let Err(why) = &said {
                debug!(sentinel = %asked.address, why, "a sentinel does not say which server is the primary");
            }
            *asked.said.lock() = Some(said);
            self.announced.notify_one();
            time::sleep(PAUSE_MIN).await;
            tokio::select! {
                () = asked.switched.notified() => {}
                Ok(()) = failures.changed() => {}
                () = time::sleep(POLL_INTERVAL) => {}
            }
        }
    }

    /// Subscribes to the switches that one Sentinel reports, without end.
    async fn watch_switches(&self, asked: &Asked) -> Infallible {
        let mut backoff = Backoff::new(self.backoff_max);
        loop {
            let why = match self.watch_once(asked, &mut backoff).await {
                Ok(never) => match never {},
                Err(why) => why,
            };
            debug!(sentinel = %asked.address, why, "not subscribed to a sentinel");
            time::sleep(backoff.next(fastrand::f64())).await;
        }
    }

    async fn watch_once(&self, asked: &Asked, backoff: &mut Backoff) -> Result<Infallible, String> {
        let opened = asked.connector.open("sentinel-subscriber").await;
        let opened = opened.map_err(|error| chain(&error))?;
        let mut connection = Connection::over(opened, MESSAGE_BYTES_MAX);
        connection.queue(&["SUBSCRIBE", SWITCHES]);
        loop {
            let progress = connection.progress().await;
            progress.map_err(|error| chain(&error))?;
            while let Some(reply) = connection.next_reply().map_err(|error| chain(&error))? {
                match reply {
                    // A switch before this is found by asking.
                    Reply::Subscribed { .. } => {
                        backoff.reset();
                        asked.switched.notify_one();
                    }
                    Reply::Message { data, .. } => {
                        let name = data.split(|&byte| byte == b' ').next();
                        if name == Some(self.primary.master.as_bytes()) {
                            asked.switched.notify_one();
                        }
                    }
                    Reply::Error(error) => return Err(error),
                    Reply::Oversized { .. } | Reply::Unsubscribed { .. } | Reply::Status => {}
                }
            }
        }
    }

    /// Decides which server is the primary whenever a Sentinel has said something, without end.
    async fn decide(&self) -> Infallible {
        loop {
            self.announced.notified().await;
            // All are asked at the same time.
            time::sleep(PAUSE_MIN).await;
            self.decide_once().await;
        }
    }

    async fn decide_once(&self) {
        let said: Vec<Option<Said>> = { self.asked.iter() }
            .map(|asked| asked.said.lock().clone())
            .collect();
        let named = said.iter().flatten().flatten().flatten().cloned();
        let in_use = self.primary.get();
        let candidates = candidates(named, self.asked.len(), in_use.as_ref());
        let is_in_use = |candidate: &Candidate| in_use.as_ref().is_some_and(|it| candidate.is(it));
        let mut whys = Vec::new();
        for candidate in &candidates {
            // It was checked when it was taken, and each connection to it is.
            if whys.is_empty() && is_in_use(candidate) {
                self.log.well(&self.primary.master);
                return;
            }
            match self.check(&candidate.named.address).await {
                Ok(()) => {
                    self.log.well(&self.primary.master);
                    if !is_in_use(candidate) {
                        self.take(in_use.as_ref(), &candidate.named);
                    }
                    return;
                }
                Err(why) => whys.push(why),
            }
        }
        self.stay_or_leave(in_use, &said, &candidates, whys).await;
    }

    /// None of the candidates is a primary, or there are none.
    async fn stay_or_leave(
        &self,
        in_use: Option<Primary>,
        said: &[Option<Said>],
        candidates: &[Candidate],
        mut whys: Vec<String>,
    ) {
        let responded = said.iter().flatten().filter(|said| said.is_ok()).count();
        if said.iter().any(Option::is_none) && candidates.is_empty() && in_use.is_none() {
            return; // The first replies are still to come.
        }
        let problem = match (responded, candidates.is_empty()) {
            (0, _) => Problem::NoReply,
            (_, true) => Problem::Unknown,
            (_, false) => Problem::NoPrimary,
        };
        if candidates.is_empty() {
            for (asked, said) in self.asked.iter().zip(said) {
                match said {
                    Some(Err(why)) => whys.push(format!("sentinel {}: {why}", asked.address)),
                    Some(Ok(None)) => {
                        whys.push(format!("sentinel {}: it does not know it", asked.address));
                    }
                    _ => {}
                }
            }
        }
        let why = problem.explain(&self.primary.master, &whys.join("; "));
        let stays = match &in_use {
            // It may have been demoted: a newer one is named.
            Some(primary) if problem == Problem::NoPrimary => {
                self.check(&primary.address).await.is_ok()
            }
            Some(_) => true,
            None => false,
        };
        self.log.problem(problem, &why, in_use.as_ref());
        if stays {
            return;
        }
        if let Some(primary) = &in_use {
            self.metrics
                .broker_primary(&primary.address.to_string(), false);
        }
        self.primary.clear(why);
    }

    /// Whether the server says that it is a primary.
    async fn check(&self, address: &RedisAddress) -> Result<(), String> {
        let (server, options) = (self.server.clone(), self.options.clone());
        let connector = Connector::to(address.clone(), server, ExpectedRole::Primary, options);
        let opened = connector.open("role").await;
        opened.map(drop).map_err(|error| chain(&error))
    }

    /// Uses `named` from now on.
    fn take(&self, before: Option<&Primary>, named: &Named) {
        let number = self.taken.fetch_add(1, Ordering::Relaxed) + 1;
        let (address, epoch) = (&named.address, named.epoch);
        let master = &*self.primary.master;
        match before {
            Some(before) => {
                let previous = &before.address;
                warn!(master, redis = %address, epoch, %previous, "another redis is the primary now");
                self.metrics.broker_primary(&previous.to_string(), false);
            }
            None => info!(master, redis = %address, epoch, "found the primary"),
        }
        if 1 < number {
            self.metrics.broker_primary_changes.inc();
        }
        self.metrics.broker_primary(&address.to_string(), true);
        self.primary.set(Primary {
            address: address.clone(),
            epoch,
            number,
        });
    }
}

impl Asked {
    /// The primary that the Sentinel names; `None` if it does not know `master`.
    async fn primary_of(&self, master: &str) -> Said {
        let mut batch = Batch::new();
        let ask = batch.cmd("SENTINEL").arg("GET-MASTER-ADDR-BY-NAME");
        ask.arg(master);
        // For the epoch; a user who may not ask for it has none.
        batch.cmd("SENTINEL").arg("MASTER").arg(master);
        let replies = self.commands.try_each(&batch).await;
        let replies = replies.map_err(|error| chain(&error))?;
        let mut replies = replies.values.into_iter();
        let (address, about) = (replies.next(), replies.next());
        match address {
            Some(Value::ServerError(error)) => return Err(error.to_string()),
            None | Some(Value::Nil) => return Ok(None),
            Some(_) => {}
        }
        let address = <(String, u16)>::from_redis_value(address.unwrap_or(Value::Nil));
        let (host, port) = address.map_err(|_| "its reply is not an address".to_owned())?;
        if host.is_empty() || HOST_BYTES_MAX < host.len() || port == 0 {
            return Err("its reply is not an address".to_owned());
        }
        Ok(Some(Named {
            address: RedisAddress::Tcp { host, port },
            epoch: about.and_then(epoch).unwrap_or_default(),
        }))
    }
}

fn epoch(about: Value) -> Option<u64> {
    let fields = HashMap::<String, String>::from_redis_value(about).ok()?;
    fields.get("config-epoch")?.parse().ok()
}

impl Problem {
    fn explain(self, master: &str, whys: &str) -> String {
        match self {
            Self::NoReply => format!("no sentinel responds: {whys}"),
            Self::Unknown => format!("no sentinel names a primary of `{master}`: {whys}"),
            Self::NoPrimary => {
                format!("the server that sentinels name for `{master}` is not a primary: {whys}")
            }
        }
    }
}

impl DecisionLog {
    /// The primary in use is the one that Sentinels name.
    fn well(&self, master: &str) {
        if self.problem.lock().take().is_some() {
            info!(master, "sentinels name a primary again");
        }
    }

    fn problem(&self, problem: Problem, why: &str, in_use: Option<&Primary>) {
        let mut logged = self.problem.lock();
        if *logged == Some(problem) {
            return;
        }
        if let Some(held_back) = self.throttle.admit(std::time::Instant::now()) {
            *logged = Some(problem);
            let in_use = in_use.map(|primary| primary.address.to_string());
            warn!(why, in_use, held_back, "sentinels name no usable primary");
        }
    }
}

#[cfg(test)]
mod tests;
