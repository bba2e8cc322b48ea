//! The order of backends in weighted round robin.

/// The longest schedule, unless there are more backends.
const SCHEDULE_MAX: usize = 4096;

/// Smooth weighted round robin over at most [`SCHEDULE_MAX`] turns, as in nginx.
///
/// Each backend occurs at least once and in proportion to its weight, evenly spread.
pub(super) fn schedule(weights: &[u32]) -> Vec<u16> {
    let divisor = weights.iter().copied().reduce(gcd).unwrap_or(1).max(1);
    let reduced = weights.iter().map(|weight| u64::from(weight / divisor));
    let sum: u64 = reduced.clone().sum();
    let most = (SCHEDULE_MAX as u64).max(weights.len() as u64);
    let weights: Vec<i64> = reduced
        .map(|weight| {
            if sum <= most {
                weight as i64
            } else {
                (weight * most / sum).max(1) as i64
            }
        })
        .collect();
    let sum: i64 = weights.iter().sum();
    // Equal weights: in order, without the quadratic time of the general case.
    if weights.iter().all(|weight| *weight == 1) {
        return (0..weights.len()).map(|index| index as u16).collect();
    }
    let mut credit = vec![0_i64; weights.len()];
    let mut turns = Vec::with_capacity(sum as usize);
    for _ in 0..sum {
        credit.iter_mut().zip(&weights).for_each(|(c, w)| *c += w);
        let richest =
            (0..credit.len()).max_by_key(|&index| (credit[index], std::cmp::Reverse(index)));
        let Some(richest) = richest else { break };
        credit[richest] -= sum;
        turns.push(richest as u16);
    }
    turns
}

fn gcd(a: u32, b: u32) -> u32 {
    if b == 0 { a } else { gcd(b, a % b) }
}
