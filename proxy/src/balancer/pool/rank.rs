//! How gladly a backend is chosen: by what is known about it, its tier and its zone.

use crate::balancer::pool::machine::Machine;
use crate::balancer::pool::state::State;
use crate::config::BackendConfig;

/// What is known about a backend, as far as choosing goes by it: the better, the sooner.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub(super) enum Rank {
    Up,
    Unknown,
    Suspect,
    /// Down, but it answers.
    Responding,
    Down,
    Draining,
    /// Draining for good: the configuration does not name it any more.
    Removed,
    Maintenance,
}

impl Rank {
    pub(super) const ALL: [Self; 8] = [
        Self::Up,
        Self::Unknown,
        Self::Suspect,
        Self::Responding,
        Self::Down,
        Self::Draining,
        Self::Removed,
        Self::Maintenance,
    ];

    pub(super) fn of(machine: &Machine) -> Self {
        match machine.state() {
            State::Up => Self::Up,
            State::Unknown => Self::Unknown,
            State::Suspect => Self::Suspect,
            State::Down if machine.responds() => Self::Responding,
            State::Down => Self::Down,
            State::Draining if machine.is_removed() => Self::Removed,
            State::Draining => Self::Draining,
            State::Maintenance => Self::Maintenance,
        }
    }

    /// Whether known clients stay.
    pub(super) fn keeps_clients(self) -> bool {
        self <= Self::Suspect
    }

    pub(super) fn state(self) -> State {
        match self {
            Self::Up => State::Up,
            Self::Unknown => State::Unknown,
            Self::Suspect => State::Suspect,
            Self::Responding | Self::Down => State::Down,
            Self::Draining | Self::Removed => State::Draining,
            Self::Maintenance => State::Maintenance,
        }
    }
}

/// Where a backend stands by configuration: the nearer, the sooner.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub(crate) enum Tier {
    Local,
    /// In another zone than this edge.
    Remote,
    LocalBackup,
    RemoteBackup,
}

impl Tier {
    pub(super) const ALL: [Self; 4] = [
        Self::Local,
        Self::Remote,
        Self::LocalBackup,
        Self::RemoteBackup,
    ];

    /// The place of a backend for an edge in `zone`. What has no zone is near to everybody.
    pub(super) fn of(config: &BackendConfig, zone: Option<&str>) -> Self {
        let far = zone.is_some() && config.zone.is_some() && config.zone.as_deref() != zone;
        match (config.backup, far) {
            (false, false) => Self::Local,
            (false, true) => Self::Remote,
            (true, false) => Self::LocalBackup,
            (true, true) => Self::RemoteBackup,
        }
    }

    pub(crate) fn is_backup(self) -> bool {
        Self::Remote < self
    }
}

/// The turn of a backend that takes clients: new ones go to the first that there is.
///
/// Primaries that are well come first, those in the zone of the edge before others; then backups, then what is suspect, what
/// answers badly and what is down. The numbers follow each other, so that they can be counted by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Priority(u8);

impl Priority {
    /// How many turns there are.
    pub(super) const COUNT: usize = 20;

    /// `None` if it takes no clients.
    pub(super) fn of(rank: Rank, place: Tier) -> Option<Self> {
        let place = place as u8;
        match rank {
            Rank::Up => Some(Self(2 * place)),
            Rank::Unknown => Some(Self(2 * place + 1)),
            Rank::Suspect => Some(Self(8 + place)),
            Rank::Responding => Some(Self(12 + place)),
            Rank::Down => Some(Self(16 + place)),
            Rank::Draining | Rank::Removed | Rank::Maintenance => None,
        }
    }

    pub(super) fn at(index: usize) -> Self {
        debug_assert!(index < Self::COUNT);
        Self(index as u8)
    }

    pub(super) fn index(self) -> usize {
        usize::from(self.0)
    }

    /// The best rank that a backend whose turn it is may have.
    pub(super) fn rank(self) -> Rank {
        match self.0 {
            0..8 => Rank::Up,
            8..12 => Rank::Suspect,
            12..16 => Rank::Responding,
            _ => Rank::Down,
        }
    }
}
