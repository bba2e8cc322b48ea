//! Chooses one of several independent servers, by a name and the number of servers alone, so that all nodes agree.

/// The index of the server of `name` among `shards`: Lamping and Veach's jump consistent hash.
pub(crate) fn shard_of(name: &str, shards: usize) -> usize {
    let mut key = stable_hash(name);
    let (mut shard, mut next) = (0_usize, 0_usize);
    while next < shards {
        shard = next;
        key = key.wrapping_mul(2_862_933_555_777_941_757).wrapping_add(1);
        let step = 2_f64.powi(31) / ((key >> 33) + 1) as f64;
        next = ((shard + 1) as f64 * step) as usize;
    }
    shard
}

/// FNV-1a, and splitmix64's end so that every bit counts: the same in every build, since nodes of two
/// versions have to agree.
fn stable_hash(name: &str) -> u64 {
    let hash = name.bytes().fold(0xcbf2_9ce4_8422_2325, |hash: u64, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    });
    let hash = (hash ^ (hash >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let hash = (hash ^ (hash >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    hash ^ (hash >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    const NAMES: u32 = 10_000;

    fn places(shards: usize) -> Vec<usize> {
        (0..NAMES)
            .map(|number| shard_of(&format!("causeway:ch:{{chat:{number}}}"), shards))
            .collect()
    }

    #[test]
    fn every_server_has_its_share() {
        for shards in 1..=7 {
            let places = places(shards);
            for shard in 0..shards {
                let share = places.iter().filter(|&&place| place == shard).count();
                let fair = NAMES as usize / shards;
                assert!(
                    (fair * 9 / 10..=fair * 11 / 10).contains(&share),
                    "{share} of {shards}"
                );
            }
        }
    }

    #[test]
    fn when_a_server_is_added_a_channel_stays_or_moves_to_it() {
        for shards in 1..7 {
            let moved = places(shards).into_iter().zip(places(shards + 1));
            assert!(
                moved
                    .into_iter()
                    .all(|(before, now)| now == before || now == shards)
            );
        }
    }

    #[test]
    fn all_builds_agree() {
        let places =
            ["global", "causeway:ch:{chat:1}", "causeway:ch:{ä}"].map(|name| shard_of(name, 5));
        assert_eq!(places, [3, 2, 0]);
    }
}
