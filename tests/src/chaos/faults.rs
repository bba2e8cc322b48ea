//! What is done to the programs, in which order, and for how long: all of it follows from a seed.

use std::{sync::atomic::Ordering, time::Duration};

use anyhow::{Context as _, Result};
use tokio::{sync::watch, time::sleep};

use crate::{
    chaos::{
        checker::Scope,
        clients::{Behaviour, Manner},
        kind::Kind,
        record::Record,
        scene::{NODES, Scene},
        wire::{Condition, Direction, Half},
    },
    harness::process::Signal,
};

/// Which kind comes when: each as often as any other, in an order of its own each time.
#[derive(Debug)]
pub struct Schedule {
    dice: fastrand::Rng,
    kinds: Vec<Kind>,
    bag: Vec<Kind>,
}

/// What comes next.
#[derive(Debug, PartialEq, Eq)]
pub struct Slot {
    /// One fault, or two of which the second begins and ends while the first lasts. None, if there are no kinds.
    pub kinds: Vec<Kind>,
    /// How long nothing happens after that. Mostly longer than clients may wait for what they have missed.
    pub calm: Duration,
}

impl Schedule {
    /// The schedule of this seed with faults of these kinds.
    #[must_use]
    pub fn new(seed: u64, kinds: &[Kind]) -> Self {
        Self {
            dice: fastrand::Rng::with_seed(seed),
            kinds: kinds.to_vec(),
            bag: Vec::new(),
        }
    }

    /// What comes next.
    pub fn next_slot(&mut self) -> Slot {
        let mut kinds: Vec<Kind> = self.draw().into_iter().collect();
        let is_company_welcome = kinds
            .first()
            .is_some_and(|kind| Kind::BESIDE_OTHERS.contains(kind));
        if is_company_welcome && self.dice.bool() {
            kinds.extend(self.draw());
        }
        let calm = if self.dice.u8(..8) == 0 {
            self.dice.u64(200..1_000)
        } else {
            self.dice.u64(5_300..6_000)
        };
        Slot {
            kinds,
            calm: Duration::from_millis(calm),
        }
    }

    fn draw(&mut self) -> Option<Kind> {
        if self.bag.is_empty() {
            self.bag.clone_from(&self.kinds);
            self.dice.shuffle(&mut self.bag);
        }
        self.bag.pop()
    }
}

/// Who does it.
#[derive(Debug)]
pub struct Havoc<'a> {
    /// The target.
    pub scene: &'a mut Scene,
    /// Where it is noted.
    pub record: &'a Record,
    /// What the clients are to do.
    pub behaviours: &'a [watch::Sender<Behaviour>],
    /// Chooses victims and times.
    pub dice: fastrand::Rng,
    /// Acknowledged writes that were lost with a primary.
    pub lost_writes: u64,
}

/// A fault that has begun.
#[derive(Debug)]
pub struct UnderWay {
    kind: Kind,
    number: u64,
    lasts: Duration,
    /// The nodes, or the clients.
    victims: Vec<usize>,
}

impl Havoc<'_> {
    /// Has these faults begin, one after the other, and end in the opposite order.
    ///
    /// # Errors
    ///
    /// The harness failed, not the programs.
    pub async fn inflict(&mut self, kinds: &[Kind]) -> Result<()> {
        let mut under_way = Vec::new();
        for kind in kinds {
            let begun = self.begin(*kind).await;
            under_way.push(begun.with_context(|| format!("cannot begin: {kind}"))?);
        }
        while let Some(fault) = under_way.pop() {
            sleep(fault.lasts).await;
            let kind = fault.kind;
            let ended = self.end(fault).await;
            ended.with_context(|| format!("cannot end: {kind}"))?;
        }
        Ok(())
    }

    async fn begin(&mut self, kind: Kind) -> Result<UnderWay> {
        let node = self.dice.usize(..NODES);
        let mut victims = vec![node];
        let mut millis = 0;
        let mut more = String::new();
        match kind {
            Kind::NodeKilled | Kind::WireHalfClosed => millis = self.dice.u64(200..2_000),
            Kind::NodeStopped => {
                millis = self.dice.u64(500..3_500);
                if self.dice.u8(..5) == 0 {
                    millis += 7_000;
                }
            }
            Kind::RedisKilled | Kind::RedisEmptied => millis = self.dice.u64(200..2_000),
            Kind::SubscribersKilled => {}
            Kind::PrimaryReplaced | Kind::PrimaryDemoted => millis = self.dice.u64(200..1_000),
            Kind::WireCut => {
                millis = self.dice.u64(200..2_500);
                if self.dice.u8(..4) == 0 {
                    victims = (0..NODES).collect();
                }
            }
            Kind::WireSlow => millis = self.dice.u64(1_000..3_500),
            Kind::SlowReaders => {
                millis = self.dice.u64(3_000..5_000);
                victims = self.some_clients(6);
            }
            Kind::ComeAndGo => {
                millis = self.dice.u64(200..3_000);
                victims = self.some_clients(self.behaviours.len() / 3);
            }
            Kind::Resubscribing => {
                millis = self.dice.u64(1_000..4_000);
                victims = self.some_clients(self.behaviours.len() / 3);
            }
            Kind::RedisFull => millis = self.dice.u64(300..1_500),
            Kind::KeysEvicted => {}
            Kind::SlowHook => millis = self.dice.u64(1_000..3_000),
            Kind::PrimaryPaused => millis = self.dice.u64(300..4_000),
            Kind::Failover | Kind::SlotsMoved => {}
        }
        let (mut delay, mut half) = (Duration::ZERO, (Direction::Back, Half::Closed));
        match kind {
            Kind::WireSlow => {
                delay = Duration::from_millis(self.dice.u64(50..500));
                more = format!(", {delay:?}");
            }
            Kind::WireHalfClosed => {
                half = (
                    self.dice
                        .choice([Direction::There, Direction::Back])
                        .unwrap_or(Direction::Back),
                    self.dice
                        .choice([Half::Closed, Half::Mute])
                        .unwrap_or(Half::Closed),
                );
                more = format!(", {half:?}");
                millis = 0;
            }
            _ => {}
        }
        let scopes = match kind {
            Kind::RedisKilled
            | Kind::RedisEmptied
            | Kind::SubscribersKilled
            | Kind::PrimaryReplaced
            | Kind::PrimaryDemoted
            | Kind::RedisFull
            | Kind::KeysEvicted
            | Kind::Failover
            | Kind::PrimaryPaused
            | Kind::SlotsMoved => vec![Scope::Everyone],
            Kind::SlowReaders => victims.iter().copied().map(Scope::Client).collect(),
            Kind::ComeAndGo | Kind::Resubscribing | Kind::SlowHook => Vec::new(),
            _ => victims.iter().copied().map(Scope::Node).collect(),
        };
        let label = match kind {
            Kind::SlowReaders | Kind::ComeAndGo | Kind::Resubscribing => {
                format!("{kind}: {victims:?}")
            }
            Kind::SlowHook => kind.to_string(),
            _ if scopes == [Scope::Everyone] => format!("{kind}{more}"),
            _ => {
                let nodes: Vec<usize> = victims.iter().map(|node| node + 1).collect();
                format!("{kind}: nodes {nodes:?}{more}")
            }
        };
        let number = self.record.fault_began(label, scopes);
        match kind {
            Kind::NodeKilled => self.scene.nodes[node].kill().await?,
            Kind::NodeStopped => self.scene.nodes[node].process.signal(Signal::Stop),
            Kind::WireCut => {
                for node in &victims {
                    for wire in self.scene.servers.part(*node, &mut self.dice).await? {
                        wire.set(Condition::Cut);
                    }
                }
            }
            Kind::WireSlow => {
                for wire in self.scene.servers.wires(node) {
                    wire.set(Condition::Slow(delay));
                }
            }
            Kind::WireHalfClosed => {
                for wire in self.scene.servers.part(node, &mut self.dice).await? {
                    wire.half_close(half.0, half.1);
                }
            }
            Kind::SlowReaders => self.set(&victims, |_| Behaviour::Dawdle),
            Kind::Resubscribing => self.set(&victims, |_| Behaviour::Resubscribe),
            Kind::KeysEvicted => self.evict_keys().await?,
            Kind::SlowHook => self.scene.slow_hook.store(true, Ordering::Relaxed),
            Kind::ComeAndGo => self.set(&victims, |dice| {
                Behaviour::Away(if dice.bool() {
                    Manner::Closing
                } else {
                    Manner::Vanishing
                })
            }),
            _ => {
                let begun = self.scene.servers.begin(kind, &mut self.dice, self.record);
                self.lost_writes += begun.await?;
            }
        }
        Ok(UnderWay {
            kind,
            number,
            lasts: Duration::from_millis(millis),
            victims,
        })
    }

    async fn end(&mut self, fault: UnderWay) -> Result<()> {
        let victims = fault.victims;
        match fault.kind {
            Kind::NodeKilled => self.scene.nodes[victims[0]].restart().await?,
            Kind::NodeStopped => self.scene.nodes[victims[0]]
                .process
                .signal(Signal::Continue),
            Kind::WireCut | Kind::WireSlow => {
                for node in &victims {
                    for wire in self.scene.servers.wires(*node) {
                        wire.set(Condition::Whole);
                    }
                }
            }
            Kind::SlowReaders | Kind::ComeAndGo | Kind::Resubscribing => {
                self.set(&victims, |_| Behaviour::Listen);
            }
            Kind::SlowHook => self.scene.slow_hook.store(false, Ordering::Relaxed),
            Kind::WireHalfClosed | Kind::KeysEvicted => {}
            kind => {
                let ended = self.scene.servers.end(kind, &mut self.dice, self.record);
                self.lost_writes += ended.await?;
            }
        }
        self.record.fault_ended(fault.number);
        self.scene.servers.restore(fault.kind).await
    }

    /// Deletes keys one after the other, as a Redis does that evicts them.
    async fn evict_keys(&mut self) -> Result<()> {
        for _ in 0..self.dice.usize(4..16) {
            let channel = self.dice.usize(..self.record.channels());
            let channel = self.record.channel(channel);
            let (key, channel) = match self.dice.u8(..8) {
                0 => ("causeway:{no}:live".to_owned(), None),
                1 => ("causeway:{no}:info".to_owned(), None),
                2..5 => (format!("causeway:st:{{{channel}}}"), Some(channel)),
                _ => (format!("causeway:me:{{{channel}}}"), Some(channel)),
            };
            self.scene.servers.evict(&key, channel).await?;
            sleep(Duration::from_millis(self.dice.u64(20..150))).await;
        }
        Ok(())
    }

    fn some_clients(&mut self, count: usize) -> Vec<usize> {
        let mut clients: Vec<usize> = (0..self.behaviours.len()).collect();
        self.dice.shuffle(&mut clients);
        clients.truncate(count);
        clients.sort_unstable();
        clients
    }

    fn set(
        &mut self,
        clients: &[usize],
        mut behaviour: impl FnMut(&mut fastrand::Rng) -> Behaviour,
    ) {
        for client in clients {
            self.behaviours[*client].send_replace(behaviour(&mut self.dice));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    #[test]
    fn a_seed_makes_one_schedule_in_which_all_kinds_are_alike() {
        let slots = |seed| {
            let mut schedule = Schedule::new(seed, &Kind::ALL);
            let slots: Vec<Slot> = (0..220).map(|_| schedule.next_slot()).collect();
            slots
        };
        assert_eq!(slots(7), slots(7));
        assert_ne!(slots(7), slots(8));
        let mut counts = BTreeMap::new();
        for kind in slots(7).into_iter().flat_map(|slot| slot.kinds) {
            *counts.entry(kind).or_insert(0) += 1;
        }
        assert_eq!(counts.len(), Kind::ALL.len());
        let (min, max) = (counts.values().min(), counts.values().max());
        assert!(max.unwrap() - min.unwrap() <= 1, "{counts:?}");
    }
}
