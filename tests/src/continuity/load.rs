//! All clients and publishers at work.

use std::{
    collections::BTreeMap,
    sync::{Arc, atomic::AtomicU64},
    time::Duration,
};

use anyhow::{Context as _, Result};
use tokio::{
    sync::{Semaphore, watch},
    task::JoinSet,
    time::{Instant, sleep, sleep_until},
};

use crate::{
    chaos::{checker::Position, publishers::Publisher},
    continuity::{
        client::{Client, Listeners, Phase},
        polling,
        population::{Kind, Population, Stream},
        record::Record,
    },
    harness::wait,
};

/// Clients that connect at a time.
const CONNECTING: usize = 48;

/// How often the checker looks for what is overdue.
const LOOK: Duration = Duration::from_millis(500);

/// For what this program was late, clients and nodes get so many times as long.
const SLACK: u32 = 4;

/// For how long that counts.
const SLACK_FOR: Duration = Duration::from_secs(10);

/// Clients and publishers.
#[derive(Debug)]
pub struct Load {
    /// What they saw.
    pub record: Arc<Record>,
    population: Population,
    phase: watch::Sender<Phase>,
    publishes: watch::Sender<bool>,
    clients: JoinSet<()>,
    publishers: JoinSet<(usize, Result<Position>)>,
    looking: JoinSet<()>,
    stalled: watch::Receiver<Duration>,
}

impl Load {
    /// Has all clients connect. Messages are published from [`Load::joined`] on, so many a second in all channels.
    #[must_use]
    pub fn start(population: Population, listeners: Listeners, rate: u32) -> Self {
        let record = Arc::new(Record::new(&population));
        let (phase, watched) = watch::channel(Phase::Join);
        let (publishes, may_publish) = watch::channel(false);
        let interval = Duration::from_secs(population.channels.len() as u64) / rate.max(1);
        let listeners = Arc::new(listeners);
        let connecting = Arc::new(Semaphore::new(CONNECTING));
        let mut clients = JoinSet::new();
        for &member in &population.members {
            let (record, listeners) = (Arc::clone(&record), Arc::clone(&listeners));
            let (phase, connecting) = (watched.clone(), Arc::clone(&connecting));
            match member.kind {
                Kind::SockjsPolling | Kind::SockjsStreaming => {
                    let client = polling::Client {
                        member,
                        listeners,
                        record,
                        phase,
                        connecting,
                    };
                    clients.spawn(client.live());
                }
                _ => {
                    let client = Client {
                        member,
                        channel: population.channels[member.channel].name.clone(),
                        listeners,
                        record,
                        phase,
                        interval,
                        connecting,
                    };
                    clients.spawn(client.live());
                }
            }
        }
        let mut publishers = JoinSet::new();
        let ids = Arc::new(AtomicU64::new(1));
        for (channel, about) in population.channels.iter().enumerate() {
            if about.stream != Stream::History {
                continue;
            }
            let publisher = Publisher {
                channel,
                nodes: vec![listeners.plain],
                record: Arc::clone(&record.streams),
                ids: Arc::clone(&ids),
                interval,
                goes_on: may_publish.clone(),
                dice: fastrand::Rng::new(),
            };
            let mut begins = may_publish.clone();
            publishers.spawn(async move {
                // An error is the end of the load; the publisher sees it as well.
                let _ = begins.wait_for(|may_publish| *may_publish).await;
                (channel, publisher.publish().await)
            });
        }
        let mut looking = JoinSet::new();
        let (stall_max, stalled) = watch::channel(Duration::ZERO);
        looking.spawn(look(Arc::clone(&record), stall_max));
        Self {
            record,
            population,
            phase,
            publishes,
            clients,
            publishers,
            looking,
            stalled,
        }
    }

    /// Waits until every client is connected, has messages published, and waits until each has received one.
    ///
    /// # Errors
    ///
    /// Some are not within `deadline`.
    pub async fn joined(&self, deadline: Duration) -> Result<()> {
        let record = &self.record;
        let members = self.population.members.len();
        wait::until("every client to be connected", deadline, async || {
            (members <= record.connections()).then_some(())
        })
        .await
        .with_context(|| self.told())?;
        self.phase.send_replace(Phase::Publish);
        self.publishes.send_replace(true);
        self.subscribed(deadline).await
    }

    /// Waits until every client is subscribed, as a message that it has received shows.
    async fn subscribed(&self, deadline: Duration) -> Result<()> {
        let checker = &self.record.streams;
        wait::until("every client to get messages", deadline, async || {
            checker.checker().is_everybody_subscribed().then_some(())
        })
        .await
        .with_context(|| self.told())
    }

    fn told(&self) -> String {
        let seen = self.record.seen();
        format!("{:?} {:#?}", seen.kinds, seen.reasons)
    }

    /// Publishes no more, gives all clients `settle` to have everything, and ends them. Returns how late this program was at most.
    ///
    /// # Errors
    ///
    /// A task has panicked, or a channel's last message was not acknowledged.
    pub async fn finish(mut self, settle: Duration) -> Result<Duration> {
        // Those that have begun another session. Who is not back is found below.
        let _ = self.subscribed(settle).await;
        self.phase.send_replace(Phase::Listen);
        self.publishes.send_replace(false);
        let mut stored = BTreeMap::new();
        while let Some(ended) = self.publishers.join_next().await {
            let (channel, mark) = ended.context("a publisher panicked")?;
            let name = || format!("in {}", self.population.channels[channel].name);
            stored.insert(channel, mark.with_context(name)?);
        }
        let deadline = Instant::now() + settle;
        let marks = loop {
            // A client may be about to send one more.
            let marks = self.record.marks(&self.population, &stored)?;
            let is_settled = self.record.streams.checker().unsettled(&marks).is_empty();
            if is_settled || deadline < Instant::now() {
                break marks;
            }
            sleep(LOOK).await;
        };
        let now = self.record.streams.now();
        self.record.streams.checker().finish(&marks, now);
        self.record.end();
        self.phase.send_replace(Phase::End);
        while let Some(ended) = self.clients.join_next().await {
            ended.context("a client panicked")?;
        }
        self.looking.shutdown().await;
        Ok(*self.stalled.borrow())
    }
}

/// Has the checker look, and notes how late that is: then everything else is late too.
async fn look(record: Arc<Record>, stall_max: watch::Sender<Duration>) {
    let mut stalls: Vec<(Instant, Duration)> = Vec::new();
    let mut next = Instant::now() + LOOK;
    loop {
        sleep_until(next).await;
        let now = Instant::now();
        let stall = now - next;
        next = now + LOOK;
        stall_max.send_modify(|max| *max = stall.max(*max));
        stalls.retain(|(at, _)| now < *at + SLACK_FOR);
        stalls.push((now, stall));
        let longest = stalls.iter().map(|(_, stall)| *stall).max();
        let slack = longest.unwrap_or_default() * SLACK;
        let streams = &record.streams;
        streams.checker().look(streams.now(), slack);
    }
}
