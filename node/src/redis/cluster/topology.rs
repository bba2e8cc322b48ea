//! Which primary has which slots, by what the servers of a cluster say. No I/O.
//!
//! A *shard* is a primary and those that replace it by a failover: its number stays. Servers may say different things for a
//! while, and one that is cut off goes on naming itself. So each slot belongs to the server that got it in the latest epoch.
//!
//! Invariant: a shard with slots has a primary, and no two have the same one.

use std::collections::BTreeMap;
use std::collections::BTreeSet;

use super::view::Seen;
use crate::config::RedisAddress;
use crate::redis::slot::SLOTS;
use crate::redis::slot::Slot;

/// The most shards: a cluster has at most a thousand servers.
const SHARDS_MAX: usize = 1024;

/// No shard has the slot.
const NONE: u16 = u16::MAX;

/// The shards, and the slots of each.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Topology {
    slots: Box<[u16]>,
    pub(crate) shards: Vec<Shard>,
}

/// A shard. One without slots has no primary.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Shard {
    pub(crate) primary: Option<Server>,
    /// Servers that may take its place.
    pub(super) replicas: BTreeMap<String, Option<RedisAddress>>,
    /// How many slots it has.
    pub(crate) slots: usize,
}

/// A server of the cluster.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Server {
    /// What the cluster calls it.
    pub(crate) id: String,
    pub(crate) address: RedisAddress,
}

/// The server that has a slot, if one does, and the epoch in which it got it.
type Claim<'a> = Option<(u64, &'a str)>;

/// A server with slots, by all that is said of it.
#[derive(Debug, Default)]
struct Owner {
    address: Option<RedisAddress>,
    slots: usize,
    replicas: BTreeMap<String, Option<RedisAddress>>,
}

impl Topology {
    /// Nothing is known yet.
    pub(super) fn unknown() -> Self {
        Self {
            slots: vec![NONE; SLOTS].into(),
            shards: Vec::new(),
        }
    }

    /// The number of the shard that has `slot`.
    pub(crate) fn shard_of(&self, slot: Slot) -> Option<usize> {
        let shard = self.slots[slot.index()];
        (shard != NONE).then_some(usize::from(shard))
    }

    /// The numbers of the shards that have slots.
    pub(crate) fn numbers(&self) -> impl Iterator<Item = usize> {
        let numbered = self.shards.iter().enumerate();
        numbered.filter_map(|(number, shard)| shard.primary.as_ref().map(|_| number))
    }

    /// Slots that no shard has.
    pub(crate) fn uncovered(&self) -> usize {
        self.slots.iter().filter(|shard| **shard == NONE).count()
    }

    /// Slots that another shard has in `next`.
    pub(super) fn moved_to(&self, next: &Self) -> Vec<usize> {
        let mut moved = vec![0; next.shards.len()];
        for (before, after) in self.slots.iter().zip(&next.slots) {
            if before != after && *before != NONE && *after != NONE {
                moved[usize::from(*after)] += 1;
            }
        }
        moved
    }

    /// The topology by what servers say now; each says something of all servers. The shards keep their numbers.
    pub(super) fn next(&self, views: &[Vec<Seen>]) -> Self {
        let (claims, mut owners) = owners(views);
        // A server without an address cannot be reached.
        owners.retain(|_, owner| owner.address.is_some());
        let mut numbers: BTreeMap<&str, usize> = BTreeMap::new();
        let mut taken = BTreeSet::new();
        let is_owner = |id: &str| owners.contains_key(id);
        for (id, owner) in &owners {
            let same = |shard: &Shard| {
                shard
                    .primary
                    .as_ref()
                    .is_some_and(|before| before.id == **id)
            };
            let replaced = |shard: &Shard| {
                shard.primary.as_ref().is_some_and(|before| {
                    let is_heir =
                        shard.replicas.contains_key(*id) || owner.replicas.contains_key(&before.id);
                    is_heir && !is_owner(&before.id)
                })
            };
            let number = (self.shards.iter().position(same)).or_else(|| {
                let mut numbered = self.shards.iter().enumerate();
                let heir =
                    numbered.find(|(number, shard)| replaced(shard) && !taken.contains(number));
                heir.map(|(number, _)| number)
            });
            if let Some(number) = number {
                taken.insert(number);
                numbers.insert(*id, number);
            }
        }
        let mut free = (0..SHARDS_MAX).filter(|number| {
            let is_vacant = |shard: &Shard| {
                let before = shard.primary.as_ref();
                before.is_none_or(|before| !is_owner(&before.id))
            };
            !taken.contains(number) && self.shards.get(*number).is_none_or(is_vacant)
        });
        for id in owners.keys() {
            if !numbers.contains_key(id)
                && let Some(number) = free.next()
            {
                numbers.insert(*id, number);
            }
        }
        let count = numbers.values().map(|number| number + 1).max();
        let mut shards = vec![Shard::default(); count.unwrap_or(0).max(self.shards.len())];
        for (id, owner) in &owners {
            let (Some(number), Some(address)) = (numbers.get(id), &owner.address) else {
                continue;
            };
            shards[*number] = Shard {
                primary: Some(Server {
                    id: (*id).to_owned(),
                    address: address.clone(),
                }),
                replicas: owner.replicas.clone(),
                slots: owner.slots,
            };
        }
        let number_of = |claim: &Claim<'_>| {
            let number = claim.and_then(|(_, id)| numbers.get(id));
            number
                .and_then(|number| u16::try_from(*number).ok())
                .unwrap_or(NONE)
        };
        Self {
            slots: claims.iter().map(number_of).collect(),
            shards,
        }
    }
}

/// For each slot the server that got it last, and those servers.
fn owners(views: &[Vec<Seen>]) -> (Vec<Claim<'_>>, BTreeMap<&str, Owner>) {
    let mut claims: Vec<Claim<'_>> = vec![None; SLOTS];
    let all = || views.iter().flatten();
    for seen in all().filter(|seen| seen.is_primary) {
        for (first, last) in &seen.slots {
            for claim in &mut claims[*first..=*last] {
                let is_newer = claim.is_none_or(|(epoch, id)| {
                    // Of two with one epoch, which the cluster settles soon, the same one in every view.
                    (epoch, id) < (seen.epoch, seen.id.as_str())
                });
                if is_newer {
                    *claim = Some((seen.epoch, seen.id.as_str()));
                }
            }
        }
    }
    let mut owners: BTreeMap<&str, Owner> = BTreeMap::new();
    for (_, id) in claims.iter().flatten() {
        owners.entry(*id).or_default().slots += 1;
    }
    for seen in all() {
        if let Some(owner) = owners.get_mut(seen.id.as_str()) {
            // What a server says of itself comes first.
            if owner.address.is_none() || (seen.is_asked && seen.address.is_some()) {
                owner.address.clone_from(&seen.address);
            }
        }
        let primary = seen.follows.as_deref();
        if let Some(owner) = primary.and_then(|primary| owners.get_mut(primary)) {
            let replica = owner.replicas.entry(seen.id.clone()).or_default();
            *replica = replica.take().or_else(|| seen.address.clone());
        }
    }
    (claims, owners)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::redis::cluster::view::Naming;
    use crate::redis::cluster::view::parse;

    fn view(lines: &[&str]) -> Vec<Seen> {
        parse(&lines.join("\n"), Naming::Address).unwrap()
    }

    /// A primary with its epoch and slots; its port is 7000 and what follows the first letter of its id.
    fn primary(id: &str, epoch: u64, slots: &str) -> String {
        format!(
            "{id} h:700{}@1 master - 0 0 {epoch} connected {slots}",
            &id[1..]
        )
    }

    fn replica(id: &str, of: &str) -> String {
        format!("{id} h:700{}@1 slave {of} 0 0 0 connected", &id[1..])
    }

    fn next(before: &Topology, lines: &[String]) -> Topology {
        let lines: Vec<&str> = lines.iter().map(String::as_str).collect();
        before.next(&[view(&lines)])
    }

    fn three() -> Topology {
        next(
            &Topology::unknown(),
            &[
                primary("a1", 1, "0-5460"),
                primary("b2", 2, "5461-10922"),
                primary("c3", 3, "10923-16383"),
                replica("d4", "a1"),
            ],
        )
    }

    fn shard(topology: &Topology, slot: usize) -> Option<usize> {
        topology.shard_of(Slot::new(slot).unwrap())
    }

    fn id(topology: &Topology, shard: usize) -> Option<&str> {
        let primary = topology.shards[shard].primary.as_ref();
        primary.map(|primary| primary.id.as_str())
    }

    #[test]
    fn each_slot_has_the_shard_of_its_primary() {
        let topology = three();
        let found = [0, 5460, 5461, 10_923, 16_383].map(|slot| shard(&topology, slot));
        assert_eq!(found, [Some(0), Some(0), Some(1), Some(2), Some(2)]);
        assert_eq!(topology.shards[0].slots, 5461);
        assert_eq!(topology.uncovered(), 0);
        let RedisAddress::Tcp { host, .. } = &topology.shards[1].primary.as_ref().unwrap().address
        else {
            panic!("an address is expected");
        };
        assert_eq!(host, "h");
    }

    #[test]
    fn a_failover_keeps_the_number_of_the_shard() {
        let before = three();
        let after = next(
            &before,
            &[
                primary("b2", 2, "5461-10922"),
                primary("c3", 3, "10923-16383"),
                primary("d4", 4, "0-5460"),
            ],
        );
        assert_eq!(id(&after, 0), Some("d4"));
        assert_eq!(before.moved_to(&after), [0, 0, 0]);
        // The replica was not known, but the old primary follows it now.
        let after = next(
            &before,
            &[
                primary("b2", 2, "5461-10922"),
                primary("e5", 4, "0-5460"),
                primary("c3", 3, "10923-16383"),
                replica("a1", "e5"),
            ],
        );
        assert_eq!(id(&after, 0), Some("e5"));
    }

    #[test]
    fn a_primary_that_is_cut_off_and_names_itself_loses_against_the_later_epoch() {
        let old = primary("a1", 1, "0-5460");
        let new = primary("d4", 4, "0-5460");
        for views in [[&old, &new], [&new, &old]] {
            let views = views.map(|line| view(&[line]));
            let after = three().next(&views);
            assert_eq!(id(&after, 0), Some("d4"));
            assert_eq!(shard(&after, 0), Some(0));
        }
    }

    #[test]
    fn slots_move_to_other_and_to_new_shards() {
        let before = three();
        let after = next(
            &before,
            &[
                primary("a1", 1, "0-5459"),
                primary("b2", 5, "5460-10922"),
                primary("c3", 3, "10923-16000"),
                primary("e5", 6, "16001-16383"),
            ],
        );
        assert_eq!(shard(&after, 5460), Some(1));
        assert_eq!(shard(&after, 16_383), Some(3));
        assert_eq!(before.moved_to(&after), [0, 1, 0, 383]);
    }

    #[test]
    fn a_shard_that_is_gone_is_empty_and_its_number_is_used_again() {
        let before = three();
        let after = next(&before, &[primary("b2", 5, "0-16383")]);
        assert_eq!(
            (id(&after, 0), id(&after, 1), id(&after, 2)),
            (None, Some("b2"), None)
        );
        assert_eq!(after.shards[0].slots, 0);
        let again = next(
            &after,
            &[primary("b2", 5, "100-16383"), primary("f6", 6, "0-99")],
        );
        assert_eq!(id(&again, 0), Some("f6"));
        assert_eq!(again.shards.len(), 3);
    }

    #[test]
    fn slots_may_have_no_shard() {
        let topology = next(&Topology::unknown(), &[primary("a1", 1, "0-99")]);
        assert_eq!(
            (shard(&topology, 99), shard(&topology, 100)),
            (Some(0), None)
        );
        assert_eq!(topology.uncovered(), SLOTS - 100);
        assert_eq!(Topology::unknown().uncovered(), SLOTS);
    }
}
