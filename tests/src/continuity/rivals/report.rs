//! The systems beside each other.

use std::{fmt::Write as _, time::Duration};

use crate::continuity::{
    pauses::Pauses,
    rivals::{Happening, Outcome, Seen},
};

/// A table with a row for each system; nothing if there was none.
#[must_use]
pub fn comparison(outcomes: &[Outcome]) -> Option<String> {
    let first = outcomes.first()?;
    let (event, took) = match first.plan.happening {
        Happening::Restart { .. } => ("restart", "a node: drain, until ready again"),
        Happening::Failover { .. } => ("failover", "another primary is named after"),
    };
    let mut out = format!(
        "| {event} of | behind | clients | disconnects | for each client | refused | lost | of them silently | repeated | out of order \
         | longest pause of each client: p50 | p99 | most | before: p50 | p99 | most | {took} |\n\
         |---|---|---|---|---|---|---|---|---|---|---|---|---|---|---|---|---|\n",
    );
    for outcome in outcomes {
        row(&mut out, outcome);
    }
    Some(out)
}

fn row(out: &mut String, outcome: &Outcome) {
    let Seen {
        ended,
        refused,
        lost,
        lost_silently,
        repeated,
        out_of_order,
        windows,
        longest,
        ..
    } = &outcome.seen;
    let clients = outcome.plan.clients;
    let for_each = *ended as f64 / clients.max(1) as f64;
    let before = windows.first().map(|window| window.pauses.clone());
    let cells = [longest, &before.unwrap_or_default()].map(|pauses: &Pauses| {
        let values = [pauses.quantile(500), pauses.quantile(990), pauses.most()];
        values.map(milliseconds).join(" | ")
    });
    let mean = |value: fn(&super::Happened) -> Duration| {
        let sum: Duration = outcome.events.iter().map(value).sum();
        sum.as_secs_f64() / outcome.events.len().max(1) as f64
    };
    let (first, all) = (mean(|event| event.first), mean(|event| event.all));
    let took = match outcome.plan.happening {
        Happening::Restart { .. } => format!("{first:.1} s, {all:.1} s"),
        Happening::Failover { .. } => format!("{first:.1} s"),
    };
    let written = writeln!(
        out,
        "| {} | {} | {clients} | {ended} | {for_each:.2} | {refused} | {lost} | {lost_silently} | {repeated} | {out_of_order} | {} | {took} |",
        outcome.version,
        outcome.plan.system.front(),
        cells.join(" | "),
    );
    debug_assert!(written.is_ok(), "a string takes everything");
}

fn milliseconds(time: Duration) -> String {
    format!("{:.0} ms", time.as_secs_f64() * 1_000.0)
}
