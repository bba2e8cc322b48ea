//! Clients that are there, those that have left, and how they come back.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    ops::Range,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use causeway_tests::harness::subscriber::{Subscriber, token};
use futures_util::future;
use serde_json::{Value, json};
use tokio::time::sleep;

use crate::{BEFORE, CHANNELS, MISSED, SECRET, channel};

/// Clients that come at a time, when there is no hurry.
const AT_ONCE: usize = 50;

/// After a refusal.
const PAUSE: Duration = Duration::from_millis(500);

/// Where clients come in.
pub(crate) enum Door {
    /// At these nodes.
    Nodes(Vec<SocketAddr>),
    /// At the edge, with this cookie.
    Edge(SocketAddr, String),
}

impl Door {
    pub(crate) fn name(&self) -> &'static str {
        match self {
            Self::Nodes(_) => "directly",
            Self::Edge(..) => "through the edge",
        }
    }

    async fn enter(&self, number: usize) -> Result<Subscriber> {
        let token = token(SECRET, &number.to_string());
        match self {
            Self::Nodes(nodes) => {
                // So that each channel is heard on all of them.
                let node = nodes[number / CHANNELS % nodes.len()];
                Subscriber::connect(node, &token).await
            }
            Self::Edge(edge, cookie) => {
                Subscriber::connect_with(*edge, &token, &[("Cookie", cookie)]).await
            }
        }
    }
}

/// Who is there.
pub(crate) struct Crowd {
    clients: Vec<Client>,
}

struct Client {
    subscriber: Subscriber,
    position: Position,
}

/// Up to where a client has heard its channel.
struct Position {
    epoch: String,
    offset: u64,
}

/// Who was there, and wants to be again.
pub(crate) struct Left {
    positions: Vec<Position>,
}

/// All who are back.
pub(crate) struct Back {
    pub(crate) crowd: Crowd,
    /// Why some were refused, each once.
    pub(crate) refusals: Vec<String>,
    /// How long half of them took.
    pub(crate) median: Duration,
}

impl Crowd {
    /// Lets `count` clients come in one after the other and subscribe.
    pub(crate) async fn gather(count: usize, door: &Door) -> Result<Self> {
        let mut clients = Vec::with_capacity(count);
        let numbers: Vec<usize> = (0..count).collect();
        for some in numbers.chunks(AT_ONCE) {
            let coming = some.iter().map(async |&number| {
                let mut subscriber = door.enter(number).await?;
                let subscribed = subscriber.subscribe(&channel(number)).await?;
                let position = Position::of(&subscribed)?;
                anyhow::Ok(Client {
                    subscriber,
                    position,
                })
            });
            clients.extend(future::try_join_all(coming).await?);
        }
        Ok(Self { clients })
    }

    pub(crate) fn len(&self) -> usize {
        self.clients.len()
    }

    /// Makes sure that each client hears these messages next, and nothing between them.
    pub(crate) async fn hear(&mut self, messages: Range<usize>) -> Result<()> {
        for (number, client) in self.clients.iter_mut().enumerate() {
            for message in messages.clone() {
                let push = client.subscriber.push("pub").await;
                let push = push.with_context(|| format!("client {number}, message {message}"))?;
                client.position.take(&push["pub"], message)?;
            }
        }
        Ok(())
    }

    /// All go, each knowing where it was.
    pub(crate) fn leave(self) -> Left {
        let positions = self.clients.into_iter().map(|client| client.position);
        Left {
            positions: positions.collect(),
        }
    }
}

impl Left {
    /// All come at once, and each has to get what it has missed.
    pub(crate) async fn come_back(self, door: &Door) -> Result<Back> {
        let began = Instant::now();
        let coming = self.positions.into_iter().enumerate();
        let coming = coming.map(async |(number, position)| {
            let (come, refusal) = match come(number, &position, door).await {
                Ok(come) => (come, None),
                Err(refusal) => {
                    let refusal = format!("{refusal:#}");
                    sleep(PAUSE).await;
                    let come = come(number, &position, door).await;
                    let twice = || format!("client {number} was refused twice, first: {refusal}");
                    (come.with_context(twice)?, Some(refusal))
                }
            };
            let (subscriber, subscribed) = come;
            let mut client = Client {
                subscriber,
                position,
            };
            client.recover(&subscribed)?;
            anyhow::Ok((client, refusal, began.elapsed()))
        });
        let (mut clients, mut refusals, mut times) = (Vec::new(), Vec::new(), Vec::new());
        for (client, refusal, time) in future::try_join_all(coming).await? {
            clients.push(client);
            refusals.extend(refusal);
            times.push(time);
        }
        times.sort_unstable();
        Ok(Back {
            median: times.get(times.len() / 2).copied().unwrap_or_default(),
            crowd: Crowd { clients },
            refusals,
        })
    }
}

impl Back {
    /// How often each refusal came.
    pub(crate) fn why(&self) -> BTreeMap<&str, usize> {
        let mut why = BTreeMap::new();
        for refusal in &self.refusals {
            *why.entry(refusal.as_str()).or_default() += 1;
        }
        why
    }
}

/// Connects and subscribes with a position; what the node says to that.
async fn come(number: usize, position: &Position, door: &Door) -> Result<(Subscriber, Value)> {
    let mut subscriber = door.enter(number).await?;
    let again = json!({
        "channel": channel(number), "recover": true, "epoch": position.epoch, "offset": position.offset,
    });
    let subscribed = subscriber.ask("subscribe", again).await?;
    Ok((subscriber, subscribed))
}

impl Client {
    fn recover(&mut self, subscribed: &Value) -> Result<()> {
        ensure!(
            subscribed["recovered"] == true,
            "not recovered: {subscribed}"
        );
        let publications = subscribed["publications"].as_array();
        let publications = publications.context("nothing was missed")?;
        ensure!(
            publications.len() == MISSED,
            "{} publications instead of {}",
            publications.len(),
            MISSED
        );
        for (message, publication) in (BEFORE..).zip(publications) {
            self.position.take(publication, message)?;
        }
        Ok(())
    }
}

impl Position {
    fn of(subscribed: &Value) -> Result<Self> {
        Ok(Self {
            epoch: subscribed["epoch"]
                .as_str()
                .context("a stream has an epoch")?
                .to_owned(),
            offset: subscribed["offset"].as_u64().unwrap_or_default(),
        })
    }

    /// Goes on by a publication, which has to be the next one and to say `message`.
    fn take(&mut self, publication: &Value, message: usize) -> Result<()> {
        let is_next = publication["offset"] == self.offset + 1 && publication["data"] == message;
        ensure!(
            is_next,
            "behind offset {} message {message} was expected, not {publication}",
            self.offset
        );
        self.offset += 1;
        Ok(())
    }
}
