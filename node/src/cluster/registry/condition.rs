//! Whether the registry of each server can be relied on, and why not.
//!
//! A registry that cannot be written is worse than one that cannot be read: leases lapse, and then nobody is anywhere. So
//! what is asked of it is refused from the first renewal that Redis refuses, which is long before the first lease lapses.

use std::fmt;
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::time::Duration;
use tokio::time::Instant;
use tracing::info;
use tracing::warn;

use crate::metrics::Metrics;
use crate::redis::CommandError;

/// What is wrong with the registry of one server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Trouble {
    /// The node has not got its first lease yet.
    Starting,
    /// Redis cannot be reached, or says nothing.
    Away(String),
    /// Redis has reached `maxmemory` and takes no writes.
    Full(String),
    /// Redis refuses what this node needs.
    Refused(String),
}

/// What a node does with the registry, each of which may fail by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Part {
    /// Renewing its lease.
    Lease,
    /// Writing what it holds.
    Writes,
    /// Whatever else it needs of Redis.
    Trial,
}

/// The condition of one server.
#[derive(Debug)]
struct Condition {
    /// When the lease was taken or renewed for the last time.
    renewed_at: Option<Instant>,
    lease: Option<Trouble>,
    writes: Option<Trouble>,
    trial: Option<Trouble>,
    /// For people.
    address: String,
}

/// The conditions of all servers. Each change is logged once and counted.
pub(super) struct Conditions {
    servers: Mutex<Vec<Condition>>,
    metrics: Arc<Metrics>,
}

impl Trouble {
    pub(super) fn of(error: &CommandError) -> Self {
        match error {
            CommandError::Unreachable(_) | CommandError::Timeout(_) => {
                Self::Away(super::chain(error))
            }
            CommandError::Full(text) => Self::Full(text.clone()),
            CommandError::Refused(text) => Self::Refused(text.clone()),
        }
    }
}

impl fmt::Display for Trouble {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Starting => write!(f, "this node is not in the registry yet"),
            Self::Away(why) => write!(f, "the registry is away: {why}"),
            Self::Full(why) => {
                write!(f, "redis is full (maxmemory) and takes no writes: {why}")
            }
            Self::Refused(why) => write!(f, "redis refuses what this node needs: {why}"),
        }
    }
}

impl Condition {
    /// What says most: a trial names the commands that are refused, a script that fails does not.
    fn trouble(&self) -> Option<&Trouble> {
        match &self.trial {
            Some(refused @ Trouble::Refused(_)) => Some(refused),
            _ => {
                let all = [&self.lease, &self.writes, &self.trial];
                all.into_iter().find_map(Option::as_ref)
            }
        }
    }
}

impl Conditions {
    /// None of the servers at `addresses` is usable yet.
    pub(super) fn new(addresses: Vec<String>, metrics: Arc<Metrics>) -> Arc<Self> {
        let condition = |address| Condition {
            renewed_at: None,
            lease: Some(Trouble::Starting),
            writes: None,
            trial: None,
            address,
        };
        let servers: Vec<Condition> = addresses.into_iter().map(condition).collect();
        metrics.registry_ready.set(i64::from(servers.is_empty()));
        Arc::new(Self {
            servers: Mutex::new(servers),
            metrics,
        })
    }

    /// Notes how `part` fares at `server`.
    pub(super) fn note(&self, server: usize, part: Part, trouble: Option<Trouble>) {
        let mut servers = self.servers.lock();
        let condition = &mut servers[server];
        let before = condition.trouble().cloned();
        match part {
            Part::Lease => {
                if trouble.is_none() {
                    condition.renewed_at = Some(Instant::now());
                }
                condition.lease = trouble;
            }
            Part::Writes => condition.writes = trouble,
            Part::Trial => condition.trial = trouble,
        }
        let after = condition.trouble().cloned();
        log(&condition.address, before.as_ref(), after.as_ref());
        let troubles = || servers.iter().filter_map(Condition::trouble);
        let full = troubles().any(|trouble| matches!(trouble, Trouble::Full(_)));
        self.metrics
            .registry_ready
            .set(i64::from(troubles().next().is_none()));
        self.metrics.redis_full.set(i64::from(full));
    }

    /// Why what stands in the registry at `server` cannot be relied on although it can be read: leases are not renewed.
    pub(super) fn distrust(&self, server: usize) -> Option<String> {
        match &self.servers.lock()[server].lease {
            Some(trouble @ (Trouble::Full(_) | Trouble::Refused(_))) => Some(trouble.to_string()),
            Some(Trouble::Starting | Trouble::Away(_)) | None => None,
        }
    }

    /// What is wrong with any of the servers: something that is not just a full Redis goes first. One that is away counts
    /// once the lease there has ended, which is after `lease`: that it is away is for the broker's probes to find out.
    pub(super) fn trouble(&self, lease: Duration) -> Option<Trouble> {
        let servers = self.servers.lock();
        let is_held = |condition: &Condition| {
            let renewed_at = condition.renewed_at;
            renewed_at.is_some_and(|at| at.elapsed() < lease)
        };
        let troubles = || {
            servers.iter().filter_map(|condition| {
                let trouble = condition.trouble()?;
                let is_brief = matches!(trouble, Trouble::Away(_)) && is_held(condition);
                (!is_brief).then_some(trouble)
            })
        };
        let is_other = |trouble: &&Trouble| !matches!(trouble, Trouble::Full(_));
        troubles()
            .find(is_other)
            .or_else(|| troubles().next())
            .cloned()
    }
}

/// Tells of a change, once: what Redis says may differ each time.
fn log(redis: &str, before: Option<&Trouble>, after: Option<&Trouble>) {
    let kind = |trouble: Option<&Trouble>| trouble.map(std::mem::discriminant);
    if kind(before) == kind(after) {
        return;
    }
    match after {
        Some(Trouble::Starting) => {}
        Some(trouble) => warn!(redis, reason = %trouble, "the registry cannot be relied on"),
        None if before == Some(&Trouble::Starting) => {}
        None => info!(redis, "the registry can be relied on again"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LEASE: Duration = Duration::from_secs(8);

    fn conditions() -> (Arc<Conditions>, Arc<Metrics>) {
        let metrics = Metrics::new();
        let addresses = vec!["a".to_owned(), "b".to_owned()];
        (Conditions::new(addresses, Arc::clone(&metrics)), metrics)
    }

    #[tokio::test(start_paused = true)]
    async fn a_registry_is_ready_once_each_server_is_and_until_one_is_not() {
        let (conditions, metrics) = conditions();
        assert_eq!(conditions.trouble(LEASE), Some(Trouble::Starting));
        conditions.note(0, Part::Lease, None);
        assert_eq!(metrics.registry_ready.get(), 0);
        conditions.note(1, Part::Lease, None);
        assert_eq!(
            (conditions.trouble(LEASE), metrics.registry_ready.get()),
            (None, 1)
        );
        let away = Trouble::Away("x".to_owned());
        conditions.note(1, Part::Lease, Some(away.clone()));
        assert_eq!(conditions.trouble(LEASE), None, "the lease holds");
        tokio::time::advance(LEASE).await;
        assert_eq!(conditions.trouble(LEASE), Some(away));
        assert_eq!(metrics.registry_ready.get(), 0);
    }

    #[test]
    fn without_servers_it_is_ready() {
        let metrics = Metrics::new();
        let conditions = Conditions::new(Vec::new(), Arc::clone(&metrics));
        assert_eq!(
            (conditions.trouble(LEASE), metrics.registry_ready.get()),
            (None, 1)
        );
    }

    #[test]
    fn what_is_read_is_not_relied_on_while_redis_takes_no_renewal() {
        let (conditions, metrics) = conditions();
        assert_eq!(conditions.distrust(0), None, "the start is waited for");
        let full = Trouble::Full("OOM".to_owned());
        conditions.note(0, Part::Lease, Some(full));
        let why = conditions.distrust(0).unwrap();
        assert_eq!(why, "redis is full (maxmemory) and takes no writes: OOM");
        assert_eq!(conditions.distrust(1), None);
        assert_eq!(metrics.redis_full.get(), 1);
        // One that cannot be reached says so when it is asked.
        conditions.note(0, Part::Lease, Some(Trouble::Away(String::new())));
        assert_eq!(
            (conditions.distrust(0), metrics.redis_full.get()),
            (None, 0)
        );
    }

    #[test]
    fn a_full_redis_hides_nothing_worse() {
        let (conditions, _) = conditions();
        conditions.note(0, Part::Lease, Some(Trouble::Full(String::new())));
        let refused = Trouble::Refused("NOPERM".to_owned());
        conditions.note(1, Part::Trial, Some(refused.clone()));
        conditions.note(1, Part::Lease, None);
        assert_eq!(conditions.trouble(LEASE), Some(refused));
    }
}
