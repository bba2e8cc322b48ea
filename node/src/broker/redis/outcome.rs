//! Sorts a batch of publications by the replies of Redis. No I/O.

use std::collections::HashSet;

use deadpool_redis::redis::Value;

use super::publish_queue::Entry;
use super::publish_queue::Outcome;
use super::scripts;
use crate::broker::Stored;

/// Error codes after which Redis may accept the same command later, here or over another connection.
const RETRY_CODES: [&str; 8] = [
    "LOADING",
    "BUSY",
    "TRYAGAIN",
    "CLUSTERDOWN",
    "MASTERDOWN",
    "READONLY",
    "NOREPLICAS",
    "NOSCRIPT",
];

/// Whether Redis may accept a command later that it rejected with this code.
pub(super) fn is_for_now(code: &str) -> bool {
    RETRY_CODES.contains(&code)
}

/// A batch after its replies.
pub(super) struct Sorted {
    pub(super) ended: Vec<(Entry, Outcome)>,
    /// What Redis has certainly not executed and may accept later, in order.
    pub(super) retried: Vec<Entry>,
}

/// Sorts a batch by its replies, which are in the same order. Without a reply a publication may have been published.
///
/// A publication is not retried if a later one of its channel was published: order comes before delivery.
pub(super) fn sort(batch: Vec<Entry>, replies: Vec<Value>) -> Sorted {
    let mut replies: Vec<_> = replies.into_iter().map(Some).collect();
    replies.resize_with(batch.len(), || None);
    let mut overtaken = HashSet::new();
    let mut ended = Vec::with_capacity(batch.len());
    let mut retried = Vec::new();
    for (entry, reply) in batch.into_iter().zip(replies).rev() {
        let outcome = match reply {
            Some(Value::ServerError(error)) => {
                let may_retry = is_for_now(error.code());
                if may_retry && !overtaken.contains(&entry.channel) {
                    retried.push(entry);
                    continue;
                }
                Outcome::Refused(error.to_string())
            }
            Some(reply) => taken(&entry, &reply),
            None => Outcome::Unanswered,
        };
        if !matches!(outcome, Outcome::Refused(_)) {
            overtaken.insert(entry.channel.clone());
        }
        ended.push((entry, outcome));
    }
    ended.reverse();
    retried.reverse();
    Sorted { ended, retried }
}

fn taken(entry: &Entry, reply: &Value) -> Outcome {
    if entry.storing.is_none() {
        return Outcome::Taken(Stored { position: None });
    }
    scripts::stored(reply).map_or(Outcome::Unanswered, Outcome::Taken)
}

/// Marks publications that no replica has confirmed. `confirmed` is the reply to WAIT.
pub(super) fn need_replica(ended: &mut [(Entry, Outcome)], confirmed: Option<&Value>) {
    if matches!(confirmed, Some(Value::Int(1..))) {
        return;
    }
    for (entry, outcome) in ended {
        if entry.storing.is_some() && matches!(outcome, Outcome::Taken(_)) {
            *outcome = Outcome::Unreplicated;
        }
    }
}

#[cfg(test)]
mod tests;
