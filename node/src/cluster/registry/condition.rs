//! Whether the registry on each server is reliable, and why not.
//!
//! A registry that cannot be written is worse than one that cannot be read: leases lapse, and it then appears empty. So reads
//! are rejected from the first renewal that Redis rejects, which is long before the first lease lapses.

use std::fmt;
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::time::Duration;
use tokio::time::Instant;
use tracing::info;
use tracing::warn;

use crate::metrics::Metrics;
use crate::redis::CommandError;
use crate::redis::chain;

/// What is wrong with the registry on one server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Problem {
    /// The node has not taken its first lease yet.
    Starting,
    /// Redis cannot be reached, or does not respond.
    Unreachable(String),
    /// Redis has reached `maxmemory` and rejects writes.
    Full(String),
    /// Redis rejects commands that this node needs.
    Refused(String),
}

/// The uses of the registry that can fail independently.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Part {
    /// Renewing its lease.
    Lease,
    /// Writing its entries.
    Writes,
    /// Running the commands that it needs.
    Permissions,
}

/// The condition of one server.
#[derive(Debug)]
struct Condition {
    /// When the lease was last taken or renewed.
    renewed_at: Option<Instant>,
    lease: Option<Problem>,
    writes: Option<Problem>,
    permissions: Option<Problem>,
    /// For logs.
    address: String,
}

/// The conditions of all servers. Each change is logged once and counted.
pub(super) struct Conditions {
    servers: Mutex<Vec<Condition>>,
    metrics: Arc<Metrics>,
}

impl Problem {
    pub(super) fn of(error: &CommandError) -> Self {
        match error {
            CommandError::Unreachable(_)
            | CommandError::Timeout(_)
            | CommandError::Uncovered(_) => Self::Unreachable(chain(error)),
            CommandError::Full(text) => Self::Full(text.clone()),
            CommandError::Refused(text) => Self::Refused(text.clone()),
        }
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Starting => write!(f, "this node is not registered yet"),
            Self::Unreachable(why) => write!(f, "cannot reach the registry: {why}"),
            Self::Full(why) => {
                write!(f, "redis is full (maxmemory) and rejects writes: {why}")
            }
            Self::Refused(why) => write!(f, "redis rejects commands that this node needs: {why}"),
        }
    }
}

impl Condition {
    /// Whether this node's lease, which lasts for `lease`, was renewed and has not ended since.
    fn is_held(&self, lease: Duration) -> bool {
        self.renewed_at.is_some_and(|at| at.elapsed() < lease)
    }

    /// The most specific problem: the permission check lists the rejected commands, a failed script does not.
    fn problem(&self) -> Option<&Problem> {
        match &self.permissions {
            Some(refused @ Problem::Refused(_)) => Some(refused),
            _ => {
                let all = [&self.lease, &self.writes, &self.permissions];
                all.into_iter().find_map(Option::as_ref)
            }
        }
    }
}

impl Conditions {
    /// The conditions of the servers at `addresses`, all of which are still starting.
    pub(super) fn new(addresses: Vec<String>, metrics: Arc<Metrics>) -> Arc<Self> {
        let condition = |address| Condition {
            renewed_at: None,
            lease: Some(Problem::Starting),
            writes: None,
            permissions: None,
            address,
        };
        let servers: Vec<Condition> = addresses.into_iter().map(condition).collect();
        metrics.registry_ready.set(i64::from(servers.is_empty()));
        Arc::new(Self {
            servers: Mutex::new(servers),
            metrics,
        })
    }

    /// Records the state of `part` on `server`.
    pub(super) fn note(&self, server: usize, part: Part, problem: Option<Problem>) {
        let mut servers = self.servers.lock();
        let condition = &mut servers[server];
        let before = condition.problem().cloned();
        match part {
            Part::Lease => {
                if problem.is_none() {
                    condition.renewed_at = Some(Instant::now());
                }
                condition.lease = problem;
            }
            Part::Writes => condition.writes = problem,
            Part::Permissions => condition.permissions = problem,
        }
        let after = condition.problem().cloned();
        log(&condition.address, before.as_ref(), after.as_ref());
        let problems = || servers.iter().filter_map(Condition::problem);
        let full = problems().any(|problem| matches!(problem, Problem::Full(_)));
        self.metrics
            .registry_ready
            .set(i64::from(problems().next().is_none()));
        self.metrics.redis_full.set(i64::from(full));
    }

    /// Why entries on `server` are not reliable although they can be read: leases, which last for `lease`, are not renewed.
    ///
    /// A Redis that is full renews none, whichever command of this node it has rejected first. Where this node's own lease has
    /// ended, its entries are missing, and those of other nodes may be.
    pub(super) fn distrust(&self, server: usize, lease: Duration) -> Option<String> {
        let condition = &self.servers.lock()[server];
        let has_ended = condition.renewed_at.is_some() && !condition.is_held(lease);
        match (&condition.lease, &condition.writes) {
            (Some(problem @ (Problem::Full(_) | Problem::Refused(_))), _)
            | (_, Some(problem @ Problem::Full(_))) => Some(problem.to_string()),
            (Some(problem), _) if has_ended => Some(problem.to_string()),
            (None, _) if has_ended => Some("this node's lease has ended".to_owned()),
            _ => None,
        }
    }

    /// The problem of any of the servers; others come before a full Redis. A server that cannot be reached counts once the lease
    /// on it has ended, which is after `lease`: until then detecting that is left to the broker's probes.
    pub(super) fn problem(&self, lease: Duration) -> Option<Problem> {
        let servers = self.servers.lock();
        let problems = || {
            servers.iter().filter_map(|condition| {
                let problem = condition.problem()?;
                let is_brief =
                    matches!(problem, Problem::Unreachable(_)) && condition.is_held(lease);
                (!is_brief).then_some(problem)
            })
        };
        let is_other = |problem: &&Problem| !matches!(problem, Problem::Full(_));
        problems()
            .find(is_other)
            .or_else(|| problems().next())
            .cloned()
    }
}

/// Logs a change of the kind of problem, once: the text of Redis may differ each time.
fn log(redis: &str, before: Option<&Problem>, after: Option<&Problem>) {
    let kind = |problem: Option<&Problem>| problem.map(std::mem::discriminant);
    if kind(before) == kind(after) {
        return;
    }
    match after {
        Some(Problem::Starting) => {}
        Some(problem) => warn!(redis, reason = %problem, "the registry is not reliable"),
        None if before == Some(&Problem::Starting) => {}
        None => info!(redis, "the registry is reliable again"),
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
        assert_eq!(conditions.problem(LEASE), Some(Problem::Starting));
        conditions.note(0, Part::Lease, None);
        assert_eq!(metrics.registry_ready.get(), 0);
        conditions.note(1, Part::Lease, None);
        assert_eq!(
            (conditions.problem(LEASE), metrics.registry_ready.get()),
            (None, 1)
        );
        let away = Problem::Unreachable("x".to_owned());
        conditions.note(1, Part::Lease, Some(away.clone()));
        assert_eq!(conditions.problem(LEASE), None, "the lease holds");
        tokio::time::advance(LEASE).await;
        assert_eq!(conditions.problem(LEASE), Some(away));
        assert_eq!(metrics.registry_ready.get(), 0);
    }

    #[test]
    fn without_servers_it_is_ready() {
        let metrics = Metrics::new();
        let conditions = Conditions::new(Vec::new(), Arc::clone(&metrics));
        assert_eq!(
            (conditions.problem(LEASE), metrics.registry_ready.get()),
            (None, 1)
        );
    }

    #[test]
    fn reads_are_not_reliable_while_redis_rejects_renewals() {
        let (conditions, metrics) = conditions();
        assert_eq!(
            conditions.distrust(0, LEASE),
            None,
            "starting is no reason to distrust"
        );
        let full = Problem::Full("OOM".to_owned());
        conditions.note(0, Part::Lease, Some(full));
        let why = conditions.distrust(0, LEASE).unwrap();
        assert_eq!(why, "redis is full (maxmemory) and rejects writes: OOM");
        assert_eq!(conditions.distrust(1, LEASE), None);
        assert_eq!(metrics.redis_full.get(), 1);
        // A server that cannot be reached fails when it is read.
        conditions.note(0, Part::Lease, Some(Problem::Unreachable(String::new())));
        assert_eq!(
            (conditions.distrust(0, LEASE), metrics.redis_full.get()),
            (None, 0)
        );
        // Another command may be the first that it rejects.
        conditions.note(1, Part::Lease, None);
        conditions.note(1, Part::Writes, Some(Problem::Full("OOM".to_owned())));
        assert!(conditions.distrust(1, LEASE).is_some());
    }

    #[tokio::test(start_paused = true)]
    async fn reads_are_not_reliable_once_the_lease_of_the_node_has_ended() {
        let (conditions, _) = conditions();
        conditions.note(0, Part::Lease, None);
        assert_eq!(conditions.distrust(0, LEASE), None);
        tokio::time::advance(LEASE).await;
        let why = conditions.distrust(0, LEASE).unwrap();
        assert_eq!(why, "this node's lease has ended");
        conditions.note(
            0,
            Part::Lease,
            Some(Problem::Unreachable("it is away".to_owned())),
        );
        let why = conditions.distrust(0, LEASE).unwrap();
        assert_eq!(why, "cannot reach the registry: it is away");
    }

    #[test]
    fn a_full_redis_does_not_hide_other_problems() {
        let (conditions, _) = conditions();
        conditions.note(0, Part::Lease, Some(Problem::Full(String::new())));
        let refused = Problem::Refused("NOPERM".to_owned());
        conditions.note(1, Part::Permissions, Some(refused.clone()));
        conditions.note(1, Part::Lease, None);
        assert_eq!(conditions.problem(LEASE), Some(refused));
    }
}
