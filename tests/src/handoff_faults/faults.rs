//! What goes wrong in a round, at which step, chosen by a seed.

use std::{fmt, time::Duration};

use crate::handoff_faults::{
    scene::NODES,
    tap::{Direction, Mangle},
};

/// What goes wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Fault {
    /// Nothing but a slow step.
    Nothing,
    /// The node that gets clients is killed.
    KillTarget,
    /// It is stopped, and goes on.
    PauseTarget,
    /// The node that has the clients is killed.
    KillSource,
    /// It is stopped, and goes on.
    PauseSource,
    /// The wires of both to Redis are slow.
    SlowRedis,
    /// Redis is stopped, and goes on.
    PauseRedis,
    /// Redis is killed, and comes back empty.
    KillRedis,
    /// The connections of one node to Redis are reset.
    ResetWire,
    /// Nothing passes between one node and Redis for a time.
    HoldWire,
    /// The edge is killed, and another one starts.
    KillEdge,
    /// A client sends the opcode of the handoff.
    ReservedOpcode,
    /// A client is in the middle of a fragmented message of several MiB.
    Fragmented,
    /// A client reads nothing.
    ReadsNothing,
    /// A node is given a token that nobody has made.
    ForgedToken,
    /// A node is given a token that was used.
    RepeatedToken,
    /// A node is given a token whose connection has ended, or whose time is over.
    LateToken,
    /// A client's state is larger than a snapshot may be.
    LargeSnapshot,
    /// A snapshot has another version.
    OtherVersion,
    /// A snapshot is damaged.
    DamagedSnapshot,
}

impl Fault {
    /// All of them.
    pub const ALL: [Self; 20] = [
        Self::Nothing,
        Self::KillTarget,
        Self::PauseTarget,
        Self::KillSource,
        Self::PauseSource,
        Self::SlowRedis,
        Self::PauseRedis,
        Self::KillRedis,
        Self::ResetWire,
        Self::HoldWire,
        Self::KillEdge,
        Self::ReservedOpcode,
        Self::Fragmented,
        Self::ReadsNothing,
        Self::ForgedToken,
        Self::RepeatedToken,
        Self::LateToken,
        Self::LargeSnapshot,
        Self::OtherVersion,
        Self::DamagedSnapshot,
    ];

    /// Whether it is not made while a message is held back: it takes so long that the held wire would be a fault of its own, or
    /// hands clients off, for which messages have to pass.
    #[must_use]
    pub fn needs_the_wires(self) -> bool {
        matches!(
            self,
            Self::ForgedToken
                | Self::RepeatedToken
                | Self::LateToken
                | Self::ReservedOpcode
                | Self::ReadsNothing
        )
    }

    /// Whether clients may see their connection end without a Close frame: a process that has it is killed.
    #[must_use]
    pub fn cuts_connections(self) -> bool {
        matches!(self, Self::KillTarget | Self::KillSource | Self::KillEdge)
    }
}

/// A moment of a handoff at which the fault is made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Before the drain begins.
    Before,
    /// So long after it has begun.
    After(Duration),
    /// A message of a handoff passes the wire of one of the nodes.
    Message {
        /// Whose wire.
        wire: Side,
        /// In which direction.
        direction: Direction,
        /// Which kind of message.
        kind: Message,
        /// How many such messages pass before.
        skip: usize,
    },
}

/// A node of a handoff.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// Which has the clients.
    Source,
    /// Which gets them, or some of them.
    Target,
}

/// A message of a handoff.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Message {
    /// Between the two nodes: a snapshot, the positions of the cut, or a response to them.
    Control,
    /// The mark at which channels are cut.
    Mark,
}

impl Message {
    /// What it is recognised by on its way over Redis.
    #[must_use]
    pub fn needle(self) -> &'static [u8] {
        match self {
            Self::Control => b"causeway:node:",
            Self::Mark => b"causeway:handoff",
        }
    }
}

/// What starts the handoffs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cause {
    /// An operator drains the backend at the edge.
    Operator,
    /// The node gets SIGTERM.
    Terminate,
}

/// All choices of a round.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Choice {
    /// They follow from it.
    pub seed: u64,
    /// What goes wrong.
    pub fault: Fault,
    /// When.
    pub step: Step,
    /// What starts the handoffs.
    pub cause: Cause,
    /// The node that is drained, if it has clients.
    pub source: usize,
    /// One of the others.
    pub target: usize,
    /// How long what passes lasts.
    pub lasts: Duration,
    /// How slow a slow wire is.
    pub delay: Duration,
}

impl Choice {
    /// The choices that follow from `seed`, with one of these faults.
    #[must_use]
    pub fn new(seed: u64, faults: &[Fault]) -> Self {
        let mut dice = fastrand::Rng::with_seed(seed);
        let fault = faults[dice.usize(..faults.len())];
        let source = dice.usize(..NODES);
        let target = (source + 1 + dice.usize(..NODES - 1)) % NODES;
        let step = match dice.u8(..10) {
            0 => Step::Before,
            1 | 2 => Step::After(Duration::from_micros(dice.u64(..60_000))),
            _ => Step::Message {
                wire: if dice.bool() {
                    Side::Source
                } else {
                    Side::Target
                },
                direction: if dice.bool() {
                    Direction::There
                } else {
                    Direction::Back
                },
                kind: if dice.bool() {
                    Message::Control
                } else {
                    Message::Mark
                },
                skip: dice.usize(..6),
            },
        };
        let lasts = match dice.u8(..20) {
            0 => 2_200..5_000,
            1..=3 => 700..1_700,
            _ => 20..700,
        };
        let lasts = Duration::from_millis(dice.u64(lasts));
        let delay = Duration::from_millis(dice.u64(2..150));
        let cause = match dice.u8(..5) {
            0 => Cause::Terminate,
            _ => Cause::Operator,
        };
        Self {
            seed,
            fault,
            step: match fault.mangle() {
                Some(_) => Step::Message {
                    wire: Side::Source,
                    direction: Direction::There,
                    kind: Message::Control,
                    skip: dice.usize(..4),
                },
                None => step,
            },
            cause,
            source,
            target,
            lasts,
            delay,
        }
    }
}

impl Fault {
    /// What is done to the message at the step.
    #[must_use]
    pub fn mangle(self) -> Option<Mangle> {
        match self {
            Self::OtherVersion => Some(Mangle::Version),
            Self::DamagedSnapshot => Some(Mangle::Damage),
            _ => None,
        }
    }
}

impl fmt::Display for Choice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            seed,
            fault,
            step,
            cause,
            source,
            target,
            lasts,
            delay,
        } = self;
        write!(
            f,
            "seed {seed}: {fault:?} ({lasts:?}, wire {delay:?}) at {step:?}, {cause:?} of n{}, to n{}",
            source + 1,
            target + 1
        )
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn a_seed_repeats_its_choices_and_all_faults_have_their_turn() {
        let choice = |seed| Choice::new(seed, &Fault::ALL);
        assert_eq!(choice(7), choice(7));
        let faults: BTreeSet<Fault> = (0..400).map(|seed| choice(seed).fault).collect();
        assert_eq!(faults.len(), Fault::ALL.len());
        assert!((0..400).map(choice).all(|one| one.source != one.target));
    }
}
