//! The tables of a report.

use std::{fmt::Write as _, time::Duration};

use crate::{
    chaos::violation::Kind as Fault,
    continuity::{
        pauses::Pauses,
        report::{Outcome, Tally, comparison},
    },
};

/// A table of what clients noticed, one of the pauses, the comparison with other programs if there was one, and the failures.
#[must_use]
pub fn markdown(outcomes: &[Outcome]) -> String {
    let mut out = String::from(
        "| scenario | clients | transport | ended | lost | repeated | out of order | other faults | joins and leaves | missed while away |\n\
         |---|---|---|---|---|---|---|---|---|---|\n",
    );
    for outcome in outcomes {
        for is_websocket in [true, false] {
            row(&mut out, outcome, is_websocket);
        }
    }
    out += "\n| scenario | part | WebSocket: p50 | p99 | longest | SockJS over HTTP: p50 | p99 | longest |\n|---|---|---|---|---|---|---|---|\n";
    for outcome in outcomes {
        for window in &outcome.seen.windows {
            pauses(
                &mut out,
                outcome,
                &window.name,
                &window.websocket,
                &window.http,
            );
        }
        let (websocket, http) = (outcome.pauses(true), outcome.pauses(false));
        pauses(&mut out, outcome, "**all events**", &websocket, &http);
    }
    out.push('\n');
    if let Some(table) = comparison(outcomes) {
        out += &table;
        out.push('\n');
    }
    for outcome in outcomes {
        let mut line = |text: std::fmt::Arguments<'_>| {
            let written = writeln!(out, "- {}: {text}", outcome.scenario);
            debug_assert!(written.is_ok(), "a string takes everything");
        };
        for event in &outcome.events {
            line(format_args!("{}", event.line));
        }
        line(format_args!("{} handoffs", outcome.handoffs.moved));
        if let Some(requests) = &outcome.requests {
            let seconds = requests.lasted.as_secs_f64();
            line(format_args!(
                "{:.0} new connections and {:.0} requests a second, {} refused, {} cut, {} failed",
                requests.connections as f64 / seconds,
                requests.requests as f64 / seconds,
                requests.refused,
                requests.cut,
                requests.failed
            ));
        }
        for failure in outcome.failures() {
            match outcome.other {
                None => line(format_args!("**failed: {failure}**")),
                Some(_) => line(format_args!("noticed: {failure}")),
            }
        }
    }
    out
}

fn row(out: &mut String, outcome: &Outcome, is_websocket: bool) {
    let clients = outcome.clients.iter();
    let clients = clients.filter(|(kind, _)| kind.is_websocket() == is_websocket);
    let clients: usize = clients.map(|(_, count)| count).sum();
    let Tally {
        ended,
        missed_while_away,
        presence,
        faults,
        ..
    } = outcome.sum(is_websocket);
    let named = [Fault::Lost, Fault::Repeated, Fault::Reordered];
    let [lost, repeated, reordered] = named.map(|fault| outcome.faults(is_websocket, fault));
    let all: usize = faults.values().sum();
    let other = all - lost - repeated - reordered;
    let (scenario, transport) = (outcome.scenario, transport(is_websocket));
    let written = writeln!(
        out,
        "| {scenario} | {clients} | {transport} | {ended} | {lost} | {repeated} | {reordered} | {other} | {presence} | {missed_while_away} |",
    );
    debug_assert!(written.is_ok(), "a string takes everything");
}

fn pauses(out: &mut String, outcome: &Outcome, part: &str, websocket: &Pauses, http: &Pauses) {
    let cells = [websocket, http].map(|pauses| {
        let values = [pauses.quantile(500), pauses.quantile(990), pauses.most()];
        values.map(milliseconds).join(" | ")
    });
    let written = writeln!(
        out,
        "| {} | {part} | {} |",
        outcome.scenario,
        cells.join(" | ")
    );
    debug_assert!(written.is_ok(), "a string takes everything");
}

pub(super) fn transport(is_websocket: bool) -> &'static str {
    match is_websocket {
        true => "WebSocket",
        false => "SockJS over HTTP",
    }
}

pub(super) fn milliseconds(time: Duration) -> String {
    let milliseconds = time.as_secs_f64() * 1_000.0;
    match milliseconds {
        few if few < 10.0 => format!("{few:.1} ms"),
        many => format!("{many:.0} ms"),
    }
}
