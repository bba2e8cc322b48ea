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

/// Error codes after which another server of the cluster accepts the command.
const REDIRECT_CODES: [&str; 2] = ["MOVED", "ASK"];

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
/// A publication is not retried if a later one of its channel was published: order comes before delivery. In a cluster,
/// what was redirected is retried too.
pub(super) fn sort(batch: Vec<Entry>, replies: Vec<Value>, is_cluster: bool) -> Sorted {
    let mut replies: Vec<_> = replies.into_iter().map(Some).collect();
    replies.resize_with(batch.len(), || None);
    let mut overtaken = HashSet::new();
    let mut ended = Vec::with_capacity(batch.len());
    let mut retried = Vec::new();
    for (mut entry, reply) in batch.into_iter().zip(replies).rev() {
        let outcome = match reply {
            Some(Value::ServerError(error)) => {
                let is_redirected = is_cluster && REDIRECT_CODES.contains(&error.code());
                let may_retry = is_redirected || is_for_now(error.code());
                if may_retry && !overtaken.contains(&entry.channel) {
                    entry.refused(&error.to_string());
                    retried.push(entry);
                    continue;
                }
                Outcome::Refused(error.to_string())
            }
            Some(reply) => taken(&entry, &reply, is_cluster),
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

fn taken(entry: &Entry, reply: &Value, is_cluster: bool) -> Outcome {
    let is_stored = entry.storing.as_ref().is_some_and(|storing| {
        // In a cluster, what keeps nothing is published without a script.
        !is_cluster || !storing.store.keeps_nothing() || !matches!(reply, Value::Int(_))
    });
    if !is_stored {
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
