//! What nodes have to tell each other, one by one: orders for clients, and questions.
//!
//! Every node hears a channel of its own, by the broker like any other. An order goes to the nodes that
//! hold whom it is for, and to no others; each says what became of it, so whoever gave the order knows that
//! it has arrived. What is for this node itself does not travel.
//!
//! [`Inbox`] is where the broker puts what came; it never waits. [`Control::run`] works it off.

use std::collections::BTreeMap;
use std::collections::HashMap;
use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::join_all;
use parking_lot::Mutex;
use tokio::sync::mpsc;
use tokio::time;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::debug;
use wildmatch::WildMatch;

use crate::broker::Broker;
use crate::broker::Deliver;
use crate::broker::PublishError;
use crate::broker::Shard;
use crate::cluster::directory::Directory;
use crate::cluster::directory::Given;
use crate::cluster::directory::Order;
use crate::cluster::directory::Target;
use crate::cluster::registry::Away;
use crate::cluster::registry::Node;
use crate::cluster::registry::Registry;
use crate::metrics::DropReason;
use crate::metrics::Metrics;
use crate::protocol::channel::ChannelName;
use crate::protocol::instance::Instance;
use crate::protocol::publication::Publication;
use crate::redis::keys;

mod message;

pub(crate) use message::Channels;
pub(crate) use message::Counts;

use message::Answer;
use message::Body;
use message::Message;
use message::Question;

/// Messages of other nodes that wait. More are dropped, and counted.
const INBOX_MESSAGES_MAX: usize = 4096;

/// How long other nodes may take to answer.
const PATIENCE: Duration = Duration::from_secs(2);

/// The most that one answer says of channels, so that it is a message like others: names and bytes of names.
const CHANNELS_MAX: usize = 5000;
const CHANNEL_BYTES_MAX: usize = 256 << 10;

/// Who knows which channels have subscribers on this node.
pub(crate) trait Census: Send + Sync + 'static {
    /// Shows each channel and how many subscribers it has here, in no order.
    fn each(&self, show: &mut dyn FnMut(&str, u64));
}

/// Where messages of other nodes come in.
pub(crate) struct Inbox {
    /// Whose publications belong here.
    channel: ChannelName,
    queue: mpsc::Sender<Bytes>,
    metrics: Arc<Metrics>,
}

/// Takes what is for this node alone out of what the broker brings, and hands on the rest.
pub(crate) struct Sorter {
    pub(crate) inbox: Inbox,
    pub(crate) rest: Arc<dyn Deliver>,
}

/// What an [`Inbox`] has taken, for [`Control::run`].
pub(crate) struct Mail(mpsc::Receiver<Bytes>);

/// What a [`Control`] is made of.
pub(crate) struct Parts {
    pub(crate) registry: Arc<Registry>,
    pub(crate) directory: Arc<Directory>,
    pub(crate) broker: Arc<dyn Broker>,
    pub(crate) census: Arc<dyn Census>,
    pub(crate) metrics: Arc<Metrics>,
}

/// The way to other nodes.
pub(crate) struct Control {
    parts: Parts,
    started: Instant,
    /// Questions that wait for answers.
    waiting: Mutex<HashMap<u64, Waiting>>,
    next_number: AtomicU64,
}

struct Waiting {
    /// Who has not answered yet.
    silent: HashSet<Instance>,
    answers: mpsc::Sender<(Instance, Answer)>,
}

/// Why an order may not have reached all that it was for.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Undelivered {
    /// Nobody knows now where they are.
    #[error(transparent)]
    Away(#[from] Away),
    /// It could not be sent.
    #[error("the broker takes no messages")]
    Broker(#[from] PublishError),
    /// It was sent. Giving the same order again does no harm.
    #[error("{0} nodes did not answer in time")]
    Silent(usize),
}

/// An inbox for messages to `instance`, and what it takes.
pub(crate) fn inbox(instance: Instance, metrics: Arc<Metrics>) -> (Inbox, Mail) {
    let (queue, mail) = mpsc::channel(INBOX_MESSAGES_MAX);
    let channel = keys::control_channel(instance);
    let inbox = Inbox {
        channel,
        queue,
        metrics,
    };
    (inbox, Mail(mail))
}

impl Deliver for Sorter {
    fn deliver(&self, mut publications: Vec<Publication>) {
        let own = |publication: &mut Publication| publication.channel == self.inbox.channel;
        for publication in publications.extract_if(.., own) {
            self.inbox.put(publication.data);
        }
        if !publications.is_empty() {
            self.rest.deliver(publications);
        }
    }

    fn interrupted(&self, shard: Shard) {
        self.rest.interrupted(shard);
    }

    fn resumed(&self, shard: Shard) {
        self.rest.resumed(shard);
    }
}

impl Inbox {
    /// Takes a message, or drops it if too many wait.
    fn put(&self, data: Bytes) {
        if self.queue.try_send(data).is_err() {
            self.metrics.dropped(DropReason::ControlFull, 1);
        }
    }
}

impl Control {
    pub(crate) fn new(parts: Parts) -> Arc<Self> {
        Arc::new(Self {
            parts,
            started: Instant::now(),
            waiting: Mutex::default(),
            next_number: AtomicU64::new(0),
        })
    }

    /// Works off what comes in until `shutdown`.
    pub(crate) async fn run(self: Arc<Self>, mut mail: Mail, shutdown: CancellationToken) {
        let channel = keys::control_channel(self.instance());
        self.parts.broker.subscribe(&channel);
        loop {
            let data = tokio::select! {
                biased;
                () = shutdown.cancelled() => return,
                data = mail.0.recv() => data,
            };
            let Some(data) = data else { return };
            match Message::decode(data) {
                Ok(message) => self.take(message).await,
                Err(error) => {
                    debug!(%error, "a message of no node was dropped");
                    self.parts.metrics.dropped(DropReason::ControlMalformed, 1);
                }
            }
        }
    }

    /// Hands `order` to all clients that it is for, on whatever nodes they are.
    ///
    /// # Errors
    ///
    /// [`Undelivered`]: some may have it all the same.
    pub(crate) async fn order(&self, target: Target, order: Order) -> Result<Given, Undelivered> {
        let nodes = self.holders(&target).await?;
        let answers = self.ask(&nodes, Question::Give(target, order)).await?;
        let mut given = Given::default();
        for (_, answer) in answers.all()? {
            if let Answer::Given(here) = answer {
                given.taken += here.taken;
                given.busy += here.busy;
            }
        }
        Ok(given)
    }

    /// What each node holds. Nodes that do not answer are left out.
    ///
    /// # Errors
    ///
    /// [`Undelivered`]: nobody could be asked.
    pub(crate) async fn counts(&self) -> Result<Vec<(Node, Counts)>, Undelivered> {
        let nodes = self.parts.registry.nodes().await?;
        let instances: Vec<Instance> = nodes.iter().map(|node| node.instance).collect();
        let answers = self.ask(&instances, Question::Counts).await?;
        let counts = answers.given.into_iter().filter_map(|(instance, answer)| {
            let node = nodes.iter().find(|node| node.instance == instance)?;
            match answer {
                Answer::Counts(counts) => Some((node.clone(), counts)),
                _ => None,
            }
        });
        Ok(counts.collect())
    }

    /// The channels that have subscribers, on all nodes, and how many.
    ///
    /// # Errors
    ///
    /// [`Undelivered`]: it is not known of all.
    pub(crate) async fn channels(&self, pattern: &str) -> Result<Channels, Undelivered> {
        let nodes = self.parts.registry.nodes().await?;
        let instances: Vec<Instance> = nodes.iter().map(|node| node.instance).collect();
        let question = Question::Channels(pattern.to_owned());
        let mut all = Channels::default();
        for (_, answer) in self.ask(&instances, question).await?.all()? {
            if let Answer::Channels(channels) = answer {
                all.is_cut |= channels.is_cut;
                for (channel, subscribers) in channels.subscribers {
                    *all.subscribers.entry(channel).or_default() += subscribers;
                }
            }
        }
        Ok(all)
    }

    /// The living nodes that may hold whom an order is for.
    async fn holders(&self, target: &Target) -> Result<Vec<Instance>, Undelivered> {
        let registry = &self.parts.registry;
        Ok(match target {
            Target::Client(client)
            | Target::ClientOf { client, .. }
            | Target::Session {
                session: client, ..
            } => {
                let instance = client.instance();
                let is_alive = registry.is_alive(instance).await?;
                is_alive.then_some(instance).into_iter().collect()
            }
            Target::User { user, .. } => registry.nodes_of(user).await?,
        })
    }

    async fn ask(&self, nodes: &[Instance], question: Question) -> Result<Answers, Undelivered> {
        let others: HashSet<Instance> = nodes
            .iter()
            .copied()
            .filter(|instance| *instance != self.instance())
            .collect();
        let mut given = Vec::with_capacity(nodes.len());
        if others.len() < nodes.len() {
            given.push((self.instance(), self.answer(&question)));
        }
        if others.is_empty() {
            return Ok(Answers { given, silent: 0 });
        }
        let (sender, mut answers) = mpsc::channel(others.len());
        let number = self.next_number.fetch_add(1, Ordering::Relaxed);
        let waiting = Waiting {
            silent: others.clone(),
            answers: sender,
        };
        self.waiting.lock().insert(number, waiting);
        let asked = Asked {
            control: self,
            number,
        };
        let data = Message {
            from: self.instance(),
            number,
            body: Body::Question(question),
        }
        .encode();
        let sent = others.iter().map(|instance| async {
            let channel = keys::control_channel(*instance);
            self.parts.broker.publish(&channel, data.clone()).await
        });
        for sent in join_all(sent).await {
            sent?;
        }
        // The queue ends when all have answered.
        let all = async {
            while let Some(answer) = answers.recv().await {
                given.push(answer);
            }
        };
        let _ = time::timeout(PATIENCE, all).await; // Whoever is late is silent.
        drop(asked);
        let heard: HashSet<Instance> = given.iter().map(|(instance, _)| *instance).collect();
        let silent = others.difference(&heard).count();
        Ok(Answers { given, silent })
    }

    async fn take(&self, message: Message) {
        match message.body {
            Body::Answer(answer) => self.answered(message.from, message.number, answer),
            Body::Question(question) => {
                let answer = Message {
                    from: self.instance(),
                    number: message.number,
                    body: Body::Answer(self.answer(&question)),
                };
                let channel = keys::control_channel(message.from);
                let publish = self.parts.broker.publish(&channel, answer.encode());
                if let Err(error) = publish.await {
                    debug!(%error, "an answer to another node was dropped");
                }
            }
        }
    }

    fn answered(&self, from: Instance, number: u64, answer: Answer) {
        let mut waiting = self.waiting.lock();
        let Some(question) = waiting.get_mut(&number) else {
            return; // It came too late.
        };
        // Each node once, so there is room.
        if question.silent.remove(&from) {
            let _ = question.answers.try_send((from, answer));
        }
        if question.silent.is_empty() {
            waiting.remove(&number);
        }
    }

    fn answer(&self, question: &Question) -> Answer {
        match question {
            Question::Give(target, order) => {
                Answer::Given(self.parts.directory.give(target, order))
            }
            Question::Counts => Answer::Counts(self.own_counts()),
            Question::Channels(pattern) => Answer::Channels(self.own_channels(pattern)),
        }
    }

    fn own_counts(&self) -> Counts {
        let mut counts = Counts {
            clients: self.parts.directory.clients() as u64,
            users: self.parts.directory.users() as u64,
            uptime: self.started.elapsed().as_secs(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            ..Counts::default()
        };
        self.parts.census.each(&mut |_, subscribers| {
            counts.channels += 1;
            counts.subscriptions += subscribers;
        });
        counts
    }

    fn own_channels(&self, pattern: &str) -> Channels {
        let pattern = (!pattern.is_empty()).then(|| WildMatch::new(pattern));
        let mut subscribers = BTreeMap::new();
        let mut bytes = 0;
        let mut is_cut = false;
        self.parts.census.each(&mut |channel, count| {
            if pattern
                .as_ref()
                .is_some_and(|pattern| !pattern.matches(channel))
            {
                return;
            }
            bytes += channel.len();
            if subscribers.len() < CHANNELS_MAX && bytes <= CHANNEL_BYTES_MAX {
                subscribers.insert(channel.to_owned(), count);
            } else {
                is_cut = true;
            }
        });
        Channels {
            subscribers,
            is_cut,
        }
    }

    fn instance(&self) -> Instance {
        self.parts.registry.instance()
    }
}

/// What came of a question.
struct Answers {
    given: Vec<(Instance, Answer)>,
    /// Nodes that have not answered.
    silent: usize,
}

impl Answers {
    fn all(self) -> Result<Vec<(Instance, Answer)>, Undelivered> {
        match self.silent {
            0 => Ok(self.given),
            silent => Err(Undelivered::Silent(silent)),
        }
    }
}

/// A question that waits, until it is dropped.
struct Asked<'a> {
    control: &'a Control,
    number: u64,
}

impl Drop for Asked<'_> {
    fn drop(&mut self) {
        self.control.waiting.lock().remove(&self.number);
    }
}

#[cfg(test)]
mod tests;
