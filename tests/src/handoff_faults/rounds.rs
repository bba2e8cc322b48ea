//! One round: clients of a node are handed off, something goes wrong, all is well again, and everything is checked.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use anyhow::{Context as _, Result};
use tokio::{
    sync::oneshot,
    time::{Instant, sleep, timeout},
};

use crate::{
    handoff_faults::{
        faults::{Cause, Choice, Fault, Side, Step},
        odd::{self, Fragmented, Large, ReadsNothing},
        record::Finding,
        scene::{SETTLE, Scene},
        shared::{Kind, Shared},
        tap::Trap,
        tokens::{self, Waiting},
    },
    harness::{process::Signal, wait},
};

/// For a step to be there; then the fault is made all the same.
const STEP_WAIT: Duration = Duration::from_millis(1_200);

/// A node or Redis that is silent for longer may lose what is not kept, which nodes count.
const SILENCE_MAX: Duration = Duration::from_millis(1_800);

/// A lease lasts 3 s, and is renewed every 500 ms.
const LEASE_MIN: Duration = Duration::from_millis(2_000);

/// For the edge to have no tunnels at a node that is drained: a handoff may take 6 s, a closing handshake 5 s.
const DRAIN_WAIT: Duration = Duration::from_secs(25);

/// How long nodes may count more clients than there are: a session over HTTP without a client lasts 4 s.
const OWNERS_WAIT: Duration = Duration::from_secs(15);

/// From one look to the next.
const LOOK: Duration = Duration::from_millis(20);

/// What runs over all rounds.
#[derive(Debug)]
pub struct Rounds {
    /// The processes.
    pub scene: Scene,
    /// What clients see.
    pub shared: Arc<Shared>,
    /// What each client is.
    pub kinds: Vec<Kind>,
    /// A connection that waits for a client for too long.
    pub waiting: Option<Waiting>,
}

/// What a round counts.
#[derive(Clone, Copy, Debug, Default)]
pub struct Counted {
    /// Whether the fault was made at its step, and not because that did not come.
    pub is_at_step: bool,
    /// Clients that were handed off.
    pub moved: u64,
    /// Ends of connections.
    pub ends: usize,
}

/// A client that behaves oddly in this round.
enum Odd {
    None,
    Fragmented(Fragmented),
    ReadsNothing(ReadsNothing),
    Large(Large),
}

impl Rounds {
    /// Waits until all clients are connected and get messages.
    ///
    /// # Errors
    ///
    /// They are not in time.
    pub async fn joined(&self) -> Result<()> {
        wait::until("all clients to be connected", SETTLE, async || {
            self.unsettled(&[0, 0, 0]).is_empty().then_some(())
        })
        .await
        .with_context(|| self.unsettled(&[0, 0, 0]).join("\n"))
    }

    /// One round. What is wrong goes to the record.
    ///
    /// # Errors
    ///
    /// The harness failed.
    pub async fn round(&mut self, choice: &Choice) -> Result<Counted> {
        let mut choice = *choice;
        self.shared.begin_round();
        let there = self.shared.ids();
        self.choose_source(&mut choice).await?;
        let before = self.handoffs().await.unwrap_or(0);

        let odd = self.begin_odd(&choice).await;
        let is_at_step = self.drain_with_fault(&choice).await?;
        self.finish_drain(&choice).await?;
        self.finish_odd(odd, &choice).await;
        self.repair(&choice).await?;
        self.check(&choice, &there).await?;

        let after = self.handoffs().await.unwrap_or(0);
        let statuses = self.shared.statuses.lock();
        Ok(Counted {
            is_at_step,
            moved: after.checked_sub(before).unwrap_or(after),
            ends: statuses.iter().map(|status| status.ends.len()).sum(),
        })
    }

    /// The node that is drained has clients: if the chosen one has few, it is the one with the most.
    async fn choose_source(&self, choice: &mut Choice) -> Result<()> {
        const FEW: u64 = 3;
        let backends = self.scene.edge.backends().await?;
        let backends = backends.as_array().context("a list of backends")?;
        let tunnels = backends.iter().map(|backend| backend["tunnels"].as_u64());
        let tunnels: Vec<u64> = tunnels.map(Option::unwrap_or_default).collect();
        if tunnels[choice.source] < FEW {
            let most = (0..tunnels.len()).max_by_key(|node| tunnels[*node]);
            choice.source = most.unwrap_or_default();
            if choice.target == choice.source {
                choice.target = (choice.source + 1) % tunnels.len();
            }
        }
        Ok(())
    }

    async fn handoffs(&self) -> Result<u64> {
        let name = "causeway_proxy_handoffs_total{outcome=\"moved\"}";
        self.scene.of_edge(name).await
    }

    async fn begin_odd(&self, choice: &Choice) -> Odd {
        let (edge, own) = (self.shared.edge, self.scene.own.address);
        let begun = match choice.fault {
            Fault::Fragmented => Fragmented::begin(edge, own).await.map(Odd::Fragmented),
            Fault::ReadsNothing => ReadsNothing::begin(edge).await.map(Odd::ReadsNothing),
            Fault::LargeSnapshot => Large::begin(edge).await.map(Odd::Large),
            _ => Ok(Odd::None),
        };
        begun.unwrap_or_else(|error| {
            self.refused(&error);
            Odd::None
        })
    }

    async fn finish_odd(&self, odd: Odd, choice: &Choice) {
        let may_end = choice.fault.cuts_connections();
        let finished = match odd {
            Odd::None => Ok(()),
            Odd::Fragmented(client) => client.finish(may_end).await,
            Odd::ReadsNothing(client) => client.finish(may_end).await,
            Odd::Large(client) => client.finish(may_end).await,
        };
        if let Err(error) = finished {
            self.refused(&error);
        }
    }

    fn refused(&self, error: &anyhow::Error) {
        let detail = format!("{error:#}");
        self.shared
            .record
            .lock()
            .violation(Finding::Refused, detail);
    }

    /// Starts the drain and makes the fault at its step. Returns whether the step came.
    async fn drain_with_fault(&mut self, choice: &Choice) -> Result<bool> {
        // What a trap holds back may be lost as well.
        let gap = self.begin_gap(choice).await;
        let mut sprung = None;
        let mut held = None;
        if let Step::Message {
            wire,
            direction,
            kind,
            skip,
        } = choice.step
        {
            let (tell, told) = oneshot::channel();
            let (hold, until) = oneshot::channel::<()>();
            let node = match wire {
                Side::Source => choice.source,
                Side::Target => choice.target,
            };
            self.scene.taps[node].arm(Trap {
                direction,
                needle: kind.needle(),
                skip,
                mangle: choice.fault.mangle(),
                sprung: tell,
                held: until,
            });
            (sprung, held) = (Some((node, told)), Some(hold));
        }
        if choice.step == Step::Before {
            self.begin_fault(choice).await?;
            self.start_drain(choice).await?;
            self.end_fault(choice, gap).await?;
            return Ok(true);
        }
        self.start_drain(choice).await?;
        let is_at_step = match (choice.step, sprung) {
            (_, Some((node, told))) => {
                let came = timeout(STEP_WAIT, told).await;
                self.scene.taps[node].disarm();
                matches!(came, Ok(Ok(())))
            }
            (Step::After(delay), None) => {
                sleep(delay).await;
                true
            }
            (_, None) => true,
        };
        if choice.fault.needs_the_wires() {
            drop(held.take());
        }
        self.begin_fault(choice).await?;
        drop(held);
        self.end_fault(choice, gap).await?;
        Ok(is_at_step)
    }

    async fn start_drain(&mut self, choice: &Choice) -> Result<()> {
        match choice.cause {
            Cause::Operator => {
                let asked = self.scene.act(choice.source, "drain").await;
                if choice.fault == Fault::KillEdge {
                    return Ok(()); // It may be dead already.
                }
                asked
            }
            Cause::Terminate => {
                self.scene.signal(choice.source, Signal::Terminate);
                Ok(())
            }
        }
    }

    /// What the nodes have counted before the fault, if messages that are kept nowhere may be lost from here on.
    async fn begin_gap(&self, choice: &Choice) -> Option<Gaps> {
        let may_lose = match choice.fault {
            Fault::KillRedis | Fault::ResetWire => true,
            Fault::PauseTarget
            | Fault::PauseSource
            | Fault::PauseRedis
            | Fault::HoldWire
            | Fault::Nothing => SILENCE_MAX < choice.lasts,
            _ => false,
        };
        if !may_lose {
            return None;
        }
        let gaps = gaps(&self.scene).await;
        self.shared.record.lock().begin_gap();
        Some(gaps)
    }

    /// Makes the fault.
    async fn begin_fault(&mut self, choice: &Choice) -> Result<()> {
        let (source, target) = (choice.source, choice.target);
        let scene = &mut self.scene;
        match choice.fault {
            Fault::Nothing => sleep(choice.lasts).await,
            Fault::KillTarget => scene.kill_node(target).await?,
            Fault::KillSource => scene.kill_node(source).await?,
            Fault::PauseTarget => scene.signal(target, Signal::Stop),
            Fault::PauseSource => scene.signal(source, Signal::Stop),
            Fault::SlowRedis => [source, target]
                .iter()
                .for_each(|node| scene.taps[*node].slow(choice.delay)),
            Fault::PauseRedis => scene.redis.freeze(),
            Fault::KillRedis => scene.redis.kill().await?,
            Fault::ResetWire => scene.taps[victim(choice)].reset(),
            Fault::HoldWire => scene.taps[victim(choice)].hold(true),
            Fault::KillEdge => scene.replace_edge().await?,
            Fault::ReservedOpcode => {
                if let Err(error) = odd::reserved_opcode(self.shared.edge).await {
                    self.refused(&error);
                }
            }
            Fault::ReadsNothing => ReadsNothing::publish(scene.redis.address()).await?,
            Fault::ForgedToken | Fault::RepeatedToken | Fault::LateToken => {
                self.tokens(choice).await?;
            }
            Fault::Fragmented
            | Fault::LargeSnapshot
            | Fault::OtherVersion
            | Fault::DamagedSnapshot => {}
        }
        Ok(())
    }

    /// Tokens are tried between nodes that do not drain.
    async fn tokens(&mut self, choice: &Choice) -> Result<()> {
        let others: Vec<usize> = (0..self.scene.nodes.len())
            .filter(|node| *node != choice.source)
            .collect();
        let [one, other] = [others[0], others[1]].map(|node| self.scene.nodes[node].address);
        let tried = match choice.fault {
            Fault::ForgedToken => tokens::forged(one, other).await,
            Fault::RepeatedToken => tokens::repeated(one, other).await,
            _ => {
                let is_too_late = self.waiting.as_ref().is_some_and(Waiting::is_too_late);
                let expired = is_too_late.then(|| self.waiting.take()).flatten();
                let tried = tokens::late(one, other, expired).await;
                if self.waiting.is_none() {
                    self.waiting = Waiting::open(other).await.ok();
                }
                tried
            }
        };
        if let Err(error) = tried {
            self.refused(&error);
        }
        Ok(())
    }

    /// Ends what lasts.
    async fn end_fault(&mut self, choice: &Choice, gap: Option<Gaps>) -> Result<()> {
        let (source, target) = (choice.source, choice.target);
        match choice.fault {
            Fault::PauseTarget | Fault::PauseSource => {
                sleep(choice.lasts).await;
                [source, target]
                    .iter()
                    .for_each(|node| self.scene.signal(*node, Signal::Continue));
            }
            Fault::SlowRedis => {
                sleep(choice.lasts).await;
                self.scene
                    .taps
                    .iter()
                    .for_each(|tap| tap.slow(Duration::ZERO));
            }
            Fault::PauseRedis => {
                sleep(choice.lasts).await;
                self.scene.redis.thaw();
            }
            Fault::KillRedis => {
                sleep(choice.lasts).await;
                self.scene.redis.restart().await?;
            }
            Fault::HoldWire => {
                sleep(choice.lasts).await;
                self.scene.taps.iter().for_each(|tap| tap.hold(false));
            }
            _ => {}
        }
        if let Some(before) = gap {
            self.end_gap(choice, before).await?;
        }
        Ok(())
    }

    /// Waits until all nodes are subscribed again, and finds whether one has counted a gap.
    async fn end_gap(&mut self, choice: &Choice, before: Gaps) -> Result<()> {
        let expects = match choice.fault {
            Fault::KillRedis => (0..=self.scene.nodes.len()).collect(),
            Fault::ResetWire => vec![victim(choice)],
            _ => Vec::new(),
        };
        let scene = &self.scene;
        let may_end = |node: usize| choice.cause == Cause::Terminate && node == choice.source;
        wait::until("the nodes to be subscribed again", SETTLE, async || {
            let now = gaps(scene).await;
            let is_again = |node: usize| match (now[node], before[node]) {
                (Some([now, _]), Some([before, _])) => before < now,
                // Until it has ended, it has clients that may miss something.
                (now, _) => now.is_none() && may_end(node),
            };
            expects.iter().all(|node| is_again(*node)).then_some(())
        })
        .await?;
        if choice.fault != Fault::ResetWire && choice.fault != Fault::KillRedis {
            // A probe that was late is seen when the next one is due.
            sleep(SILENCE_MAX).await;
        }
        let now = gaps(scene).await;
        let is_counted = { now.iter().zip(&before) }
            .any(|(now, before)| now.is_some() && before.is_some() && now != before);
        self.shared.record.lock().end_gap(is_counted);
        Ok(())
    }

    /// Waits until the drain is over, and lets clients come to the node again.
    async fn finish_drain(&mut self, choice: &Choice) -> Result<()> {
        match choice.cause {
            Cause::Operator => {
                let source = choice.source;
                let scene = &self.scene;
                let empty = wait::until("no tunnel at a drained node", DRAIN_WAIT, async || {
                    if choice.fault == Fault::KillEdge {
                        return Some(());
                    }
                    let backends = scene.edge.backends().await.ok()?;
                    (backends[source]["tunnels"] == 0).then_some(())
                });
                // A client in the middle of a message stays until it has ended.
                if choice.fault == Fault::Fragmented {
                    timeout(Duration::from_millis(500), empty).await.ok();
                } else if let Err(error) = empty.await {
                    self.refused(&error);
                }
                self.scene.act(choice.source, "ready").await
            }
            Cause::Terminate => self.scene.exit(choice.source).await,
        }
    }

    /// Has everything run again.
    async fn repair(&mut self, _choice: &Choice) -> Result<()> {
        self.scene.restart_nodes().await?;
        self.scene.all_up().await
    }

    /// What every client has to have by now, where it is, and who is said to be there.
    async fn check(&mut self, choice: &Choice, there: &BTreeSet<String>) -> Result<()> {
        let targets = {
            let record = self.shared.record.lock();
            let Shared {
                relay, past, live, ..
            } = *self.shared;
            [relay, past, live].map(|stream| record.sent(stream))
        };
        let deadline = Instant::now() + SETTLE;
        loop {
            let unsettled = self.unsettled(&targets);
            if unsettled.is_empty() {
                break;
            }
            if deadline < Instant::now() {
                let mut record = self.shared.record.lock();
                for one in unsettled {
                    record.violation(Finding::Silent, one);
                }
                break;
            }
            sleep(LOOK).await;
        }
        self.check_ends(choice);
        if !loses_leases(choice) {
            self.shared.check_joins(there);
        }
        self.check_owners().await;
        self.check_presence().await;
        for error in self.scene.take_errors() {
            self.shared.record.lock().violation(Finding::Program, error);
        }
        Ok(())
    }

    /// The clients that are not connected, or have not got these numbers of the application's streams, or whose own messages
    /// have not arrived.
    fn unsettled(&self, targets: &[u64; 3]) -> Vec<String> {
        let statuses = self.shared.statuses.lock().clone();
        let record = self.shared.record.lock();
        let [relay, past, live] = *targets;
        let observer = self.kinds.len();
        let mut all = Vec::new();
        for (number, (kind, status)) in self.kinds.iter().zip(&statuses).enumerate() {
            let (stream, target) = match kind {
                Kind::History => (self.shared.past, past),
                Kind::Live => (self.shared.live, live),
                _ => (self.shared.relay, relay),
            };
            if !status.is_connected {
                all.push(format!(
                    "client {number} ({kind:?}) is not connected: {:?} {:?}",
                    status.ends, status.refused
                ));
            } else if !record.has(number, stream, target.max(1)) {
                all.push(format!(
                    "client {number} ({kind:?}) has {:?} of {}, of which there is {target}; {:?}",
                    record.last(number, stream),
                    record.name(stream),
                    status.ends
                ));
            } else if let Some(stream) = status.stream {
                const UNDER_WAY: u64 = 5;
                let sent = record.sent(stream).saturating_sub(UNDER_WAY);
                if 0 < sent && !record.has(observer, stream, sent) {
                    all.push(format!(
                        "client {number} ({kind:?}) has published {sent}, of which the application has {:?}",
                        record.last(observer, stream)
                    ));
                }
            }
        }
        all
    }

    /// How connections have ended: clients are told, unless a process that has their connection was killed.
    fn check_ends(&self, choice: &Choice) {
        if choice.fault.cuts_connections() {
            return;
        }
        let statuses = self.shared.statuses.lock().clone();
        for (number, status) in statuses.iter().enumerate() {
            for end in status.ends.iter().filter(|end| !end.is_told) {
                let detail = format!("client {number}: {}", end.why);
                let finding = Finding::Disconnected;
                self.shared.record.lock().violation(finding, detail);
            }
        }
    }

    /// The nodes have as many clients as there are.
    async fn check_owners(&self) {
        let clients = self.kinds.len() as u64;
        let counted = wait::until("each client to have one node", OWNERS_WAIT, async || {
            (self.scene.clients().await.ok()? == clients).then_some(())
        });
        if counted.await.is_err() {
            let found = self.scene.clients().await;
            let detail = format!("the nodes have {found:?} clients, there are {clients}");
            let finding = Finding::Owners;
            self.shared.record.lock().violation(finding, detail);
        }
    }

    /// Presence lists those who are there.
    async fn check_presence(&self) {
        let listed = wait::until("presence to be right", OWNERS_WAIT, async || {
            (self.scene.present().await.ok()? == self.shared.ids()).then_some(())
        });
        if listed.await.is_err() {
            let found = self.scene.present().await;
            let ids = self.shared.ids();
            let detail = format!("presence lists {found:?}, there are {ids:?}");
            let finding = Finding::Presence;
            self.shared.record.lock().violation(finding, detail);
        }
    }
}

/// Whether nodes lose their leases, and with them all members that they hold, until they register again: clients are told of that
/// as the documents say (`registry.lease`).
fn loses_leases(choice: &Choice) -> bool {
    match choice.fault {
        // Whoever had no reply to a change of the registry tells it twice rather than never.
        Fault::KillRedis | Fault::ResetWire => true,
        Fault::PauseSource
        | Fault::PauseTarget
        | Fault::PauseRedis
        | Fault::HoldWire
        | Fault::Nothing => LEASE_MIN < choice.lasts,
        _ => false,
    }
}

/// A node whose wire is meant: either of the two.
fn victim(choice: &Choice) -> usize {
    match choice.seed % 2 {
        0 => choice.source,
        _ => choice.target,
    }
}

/// Times after which publications may be missing, and messages that are lost; of a node that has not ended.
type Gaps = Vec<Option<[u64; 2]>>;

/// What each node counts, and the application's own.
async fn gaps(scene: &Scene) -> Gaps {
    let mut all = Vec::new();
    for node in scene.nodes.iter().chain([&scene.own]) {
        let names = [
            "causeway_node_broker_gaps_total",
            "causeway_node_dropped_total{",
        ];
        let counts = Scene::of_node(node, names).await;
        all.push(counts.ok());
    }
    all
}
