//! What a server took for some work: memory and CPU time.

use std::time::Duration;

use anyhow::Result;

use crate::bench::contender::Running;
use crate::bench::proc::Family;

/// What a server's memory was before its clients came, to be taken off what it is afterwards.
pub(super) struct Memory {
    family: Family,
    baseline: u64,
}

impl Memory {
    pub(super) fn new(server: &Running) -> Result<Self> {
        let family = server.family()?;
        let baseline = family.pss()?;
        Ok(Self { family, baseline })
    }

    /// The bytes that each of so many clients takes now.
    pub(super) fn per_client(&self, clients: usize) -> Result<f64> {
        Ok(self.family.pss()?.saturating_sub(self.baseline) as f64 / clients as f64)
    }
}

/// What a server's CPU time was before some work began.
pub(super) struct Work {
    family: Family,
    before: Duration,
}

impl Work {
    pub(super) fn start(server: &Running) -> Result<Self> {
        Self::of(server.family()?)
    }

    pub(super) fn of(family: Family) -> Result<Self> {
        let before = family.cpu()?;
        Ok(Self { family, before })
    }

    /// The microseconds of CPU time that each of so many units took.
    pub(super) fn per_unit(&self, units: u64) -> Result<f64> {
        let used = self.family.cpu()?.saturating_sub(self.before);
        Ok(used.as_secs_f64() * 1_000_000.0 / units.max(1) as f64)
    }
}
