//! Which server is the primary, by what Sentinels say. No I/O.
//!
//! Sentinels may disagree for a while, and one that is cut off with an old primary goes on naming it. Each failover has a
//! higher epoch than the one before it, so the newest epoch comes first, and an older one than that of the primary in use counts
//! only if most of the Sentinels agree: they were set up anew. What the server says of itself decides in the end
//! ([`sentinel`](super::sentinel)).

use std::cmp::Reverse;

use crate::config::RedisAddress;

/// A primary that is in use.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Primary {
    pub(super) address: RedisAddress,
    /// The epoch of the failover that made it the primary; 0 if the Sentinels do not say.
    pub(super) epoch: u64,
    /// Counts the primaries of this process; the next one has the next number, even at the same address.
    pub(super) number: u64,
}

/// The primary that one Sentinel names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Named {
    pub(super) address: RedisAddress,
    pub(super) epoch: u64,
}

/// A primary that Sentinels name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Candidate {
    pub(super) named: Named,
    /// How many of them.
    pub(super) votes: usize,
}

impl Candidate {
    /// Whether it is the primary in use, from the same failover.
    pub(super) fn is(&self, primary: &Primary) -> bool {
        self.named.address == primary.address && self.named.epoch == primary.epoch
    }
}

/// The candidates to check, in this order, of what each of so many `sentinels` names; those that are older than the primary in
/// use are left out, unless most Sentinels name them.
pub(super) fn candidates(
    named: impl IntoIterator<Item = Named>,
    sentinels: usize,
    in_use: Option<&Primary>,
) -> Vec<Candidate> {
    let mut candidates: Vec<Candidate> = Vec::new();
    for named in named {
        let known = candidates
            .iter_mut()
            .find(|candidate| candidate.named.address == named.address);
        match known {
            Some(known) => {
                known.votes += 1;
                known.named.epoch = known.named.epoch.max(named.epoch);
            }
            None => candidates.push(Candidate { named, votes: 1 }),
        }
    }
    candidates.retain(|candidate| {
        let is_old = in_use.is_some_and(|primary| candidate.named.epoch < primary.epoch);
        !is_old || sentinels < 2 * candidate.votes
    });
    candidates.sort_by_key(|candidate| Reverse((candidate.named.epoch, candidate.votes)));
    candidates
}

#[cfg(test)]
mod tests {
    use super::*;

    fn named(host: &str, epoch: u64) -> Named {
        let address = RedisAddress::Tcp {
            host: host.to_owned(),
            port: 6379,
        };
        Named { address, epoch }
    }

    fn hosts(candidates: &[Candidate]) -> Vec<(String, u64, usize)> {
        let parts = candidates.iter().map(|candidate| {
            let address = candidate.named.address.to_string();
            (address, candidate.named.epoch, candidate.votes)
        });
        parts.collect()
    }

    fn primary(host: &str, epoch: u64) -> Primary {
        Primary {
            address: named(host, epoch).address,
            epoch,
            number: 1,
        }
    }

    #[test]
    fn the_newest_epoch_comes_first_and_then_the_one_that_more_name() {
        let all = [named("a", 3), named("b", 4), named("a", 3), named("c", 3)];
        let found = candidates(all, 4, None);
        let expected = [("b:6379", 4, 1), ("a:6379", 3, 2), ("c:6379", 3, 1)];
        assert_eq!(
            hosts(&found),
            expected.map(|(address, epoch, votes)| (address.to_owned(), epoch, votes))
        );
        assert_eq!(candidates([], 3, None), []);
    }

    #[test]
    fn of_two_epochs_of_one_server_the_newer_counts() {
        let found = candidates([named("a", 3), named("a", 5)], 2, None);
        assert_eq!(hosts(&found), [("a:6379".to_owned(), 5, 2)]);
        assert!(found[0].is(&primary("a", 5)));
        assert!(!found[0].is(&primary("a", 3)));
    }

    #[test]
    fn an_older_epoch_counts_only_if_most_sentinels_name_it() {
        let in_use = primary("new", 7);
        let of = |all: &[Named], sentinels| candidates(all.to_vec(), sentinels, Some(&in_use));
        let old = named("old", 6);
        assert_eq!(of(std::slice::from_ref(&old), 3), []);
        assert_eq!(of(&[old.clone(), named("new", 7)], 2).len(), 1);
        let two = of(&[old.clone(), old.clone()], 3);
        assert_eq!(hosts(&two), [("old:6379".to_owned(), 6, 2)]);
        assert_eq!(of(&[old.clone(), old.clone()], 4), []);
        assert_eq!(of(&[old], 1).len(), 1, "a single one that was set up anew");
    }
}
