//! The order in which backends get new clients: by health, by tier and by zone.

use crate::balancer::pool::machine::Machine;
use crate::balancer::pool::state::State;
use crate::config::BackendConfig;

/// The health of a backend, as a choice sees it; better ones come first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub(super) enum Rank {
    Up,
    Unknown,
    Suspect,
    /// Down, but it responds to probes.
    Responding,
    Down,
    Draining,
    /// Draining for good: it was removed from the configuration.
    Removed,
    /// Drained by an operator, and it no longer responds to probes.
    Lost,
    Maintenance,
}

impl Rank {
    pub(super) const ALL: [Self; 9] = [
        Self::Up,
        Self::Unknown,
        Self::Suspect,
        Self::Responding,
        Self::Down,
        Self::Draining,
        Self::Removed,
        Self::Lost,
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
            State::Draining if machine.is_lost() => Self::Lost,
            State::Draining => Self::Draining,
            State::Maintenance => Self::Maintenance,
        }
    }

    /// Whether its clients stay with it.
    pub(super) fn keeps_clients(self) -> bool {
        self <= Self::Suspect
    }

    pub(super) fn state(self) -> State {
        match self {
            Self::Up => State::Up,
            Self::Unknown => State::Unknown,
            Self::Suspect => State::Suspect,
            Self::Responding | Self::Down => State::Down,
            Self::Draining | Self::Removed | Self::Lost => State::Draining,
            Self::Maintenance => State::Maintenance,
        }
    }
}

/// Primary or backup, in the zone of this edge or in another; earlier ones come first.
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

    /// The tier of a backend for an edge in `zone`. A backend without a zone is local to all edges.
    pub(super) fn of(config: &BackendConfig, zone: Option<&str>) -> Self {
        let remote = zone.is_some() && config.zone.is_some() && config.zone.as_deref() != zone;
        match (config.backup, remote) {
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

/// The priority of a backend for new clients, which go to the backends with the highest one; the smallest number is the highest.
///
/// Healthy primaries come first, those in the zone of the edge before others; then healthy backups, then suspect backends, then
/// those that are down but respond, then the rest. The numbers are consecutive, to be used as an index.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Priority(u8);

impl Priority {
    /// How many priorities there are.
    pub(super) const COUNT: usize = 20;

    /// `None` if it gets no new clients.
    pub(super) fn of(rank: Rank, tier: Tier) -> Option<Self> {
        let tier = tier as u8;
        match rank {
            Rank::Up => Some(Self(2 * tier)),
            Rank::Unknown => Some(Self(2 * tier + 1)),
            Rank::Suspect => Some(Self(8 + tier)),
            Rank::Responding => Some(Self(12 + tier)),
            Rank::Down => Some(Self(16 + tier)),
            Rank::Draining | Rank::Removed | Rank::Lost | Rank::Maintenance => None,
        }
    }

    pub(super) fn at(index: usize) -> Self {
        debug_assert!(index < Self::COUNT);
        Self(index as u8)
    }

    pub(super) fn index(self) -> usize {
        usize::from(self.0)
    }

    /// The best rank of a backend with this priority.
    pub(super) fn rank(self) -> Rank {
        match self.0 {
            0..8 => Rank::Up,
            8..12 => Rank::Suspect,
            12..16 => Rank::Responding,
            _ => Rank::Down,
        }
    }
}
