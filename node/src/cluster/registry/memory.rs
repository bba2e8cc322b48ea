//! Redis's memory: whether it is limited, its eviction policy, and how many keys were evicted.

use std::collections::HashMap;

/// Fields of `INFO`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct MemoryInfo {
    /// What happens at `maxmemory`.
    pub(super) policy: Policy,
    /// Keys evicted since the server was started.
    pub(super) evicted: u64,
}

/// What happens at the limit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Policy {
    /// There is no limit, or Redis rejects writes at it: nothing is evicted.
    Keeps,
    /// Keys that have a lifetime are evicted: histories and session values, but nothing of the registry.
    EvictsWithLifetime(String),
    /// Any key is, the registry's too.
    EvictsAny(String),
}

impl MemoryInfo {
    /// Parses the replies to `INFO memory` and `INFO stats`; `None` if a field is missing.
    pub(super) fn parse(text: &str) -> Option<Self> {
        let fields: HashMap<&str, &str> = text
            .lines()
            .filter_map(|line| line.trim_end().split_once(':'))
            .collect();
        let limit: u64 = fields.get("maxmemory")?.parse().ok()?;
        let policy = (*fields.get("maxmemory_policy")?).to_owned();
        Some(Self {
            policy: match policy.split('-').next() {
                Some("allkeys") if limit != 0 => Policy::EvictsAny(policy),
                Some("volatile") if limit != 0 => Policy::EvictsWithLifetime(policy),
                _ => Policy::Keeps,
            },
            evicted: fields.get("evicted_keys")?.parse().ok()?,
        })
    }

    /// The state of two servers together: the policy that evicts more.
    pub(super) fn with(self, other: Self) -> Self {
        let policy = match (self.policy, other.policy) {
            (any @ Policy::EvictsAny(_), _) | (_, any @ Policy::EvictsAny(_)) => any,
            (some @ Policy::EvictsWithLifetime(_), _)
            | (_, some @ Policy::EvictsWithLifetime(_)) => some,
            (Policy::Keeps, Policy::Keeps) => Policy::Keeps,
        };
        Self {
            policy,
            evicted: self.evicted.saturating_add(other.evicted),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(limit: &str, policy: &str) -> Option<Policy> {
        let text = format!(
            "# Memory\r\nmaxmemory:{limit}\r\nmaxmemory_policy:{policy}\r\n# Stats\r\nevicted_keys:7\r\n"
        );
        let info = MemoryInfo::parse(&text)?;
        assert_eq!(info.evicted, 7);
        Some(info.policy)
    }

    #[test]
    fn a_policy_matters_only_if_there_is_a_limit() {
        assert_eq!(parse("0", "allkeys-lru"), Some(Policy::Keeps));
        assert_eq!(parse("1", "noeviction"), Some(Policy::Keeps));
        let (any, some) = ("allkeys-random".to_owned(), "volatile-ttl".to_owned());
        assert_eq!(parse("1", &any), Some(Policy::EvictsAny(any)));
        assert_eq!(parse("1", &some), Some(Policy::EvictsWithLifetime(some)));
    }

    #[test]
    fn of_two_servers_the_one_that_evicts_more_counts() {
        let info = |policy, evicted| MemoryInfo { policy, evicted };
        let some = Policy::EvictsWithLifetime("volatile-ttl".to_owned());
        let any = Policy::EvictsAny("allkeys-lru".to_owned());
        let both = info(Policy::Keeps, 1).with(info(some.clone(), 2));
        assert_eq!(both, info(some, 3));
        assert_eq!(both.with(info(any.clone(), 4)), info(any, 7));
    }

    #[test]
    fn other_text_is_rejected() {
        assert_eq!(MemoryInfo::parse(""), None);
        assert_eq!(parse("much", "noeviction"), None);
    }
}
