//! The edge beside the other programs: what each upgrade or reload did to the same load.

use std::fmt::Write as _;

use crate::{
    chaos::violation::Kind as Fault,
    continuity::{
        former::Former,
        other::Setup,
        report::{Outcome, markdown::milliseconds},
    },
};

/// A table with a row for the edge and one for each other program; nothing if there was no other one.
#[must_use]
pub fn comparison(outcomes: &[Outcome]) -> Option<String> {
    let replaces = |outcome: &&Outcome| outcome.events.iter().any(|event| event.former.is_some());
    let compared: Vec<_> = outcomes.iter().filter(replaces).collect();
    if compared.iter().all(|outcome| outcome.other.is_none()) {
        return None;
    }
    let mut out = String::from(
        "| replaced | setting for old connections | WebSockets | ended | for each client | lost while connected | missed while away \
         | connections refused | requests cut or failed | pause p50 | p99 | longest \
         | 5 s after each reload: old processes, connections, memory |\n\
         |---|---|---|---|---|---|---|---|---|---|---|---|---|\n",
    );
    for outcome in compared {
        row(&mut out, outcome);
    }
    Some(out)
}

fn row(out: &mut String, outcome: &Outcome) {
    let (name, setting) = match outcome.other {
        None => ("causeway-proxy".to_owned(), "they are handed over"),
        Some(setup) => (version(setup), setup.setting()),
    };
    let clients = outcome.clients.iter();
    let websockets = clients.filter(|(kind, _)| kind.is_websocket());
    let websockets: usize = websockets.map(|(_, count)| count).sum();
    let seen = outcome.sum(true);
    let for_each = seen.ended as f64 / websockets.max(1) as f64;
    let [lost, overdue] = [Fault::Lost, Fault::Overdue].map(|fault| outcome.faults(true, fault));
    let lost = lost + overdue;
    let requests = outcome.requests.clone().unwrap_or_default();
    let refused = seen.refused + requests.refused;
    let cut = requests.cut + requests.failed;
    let pauses = outcome.pauses(true);
    let pauses = [pauses.quantile(500), pauses.quantile(990), pauses.most()];
    let pauses = pauses.map(milliseconds).join(" | ");
    let formers = outcome.events.iter().filter_map(|event| event.former);
    let formers: Vec<String> = formers.map(held).collect();
    let written = writeln!(
        out,
        "| {name} | {setting} | {websockets} | {} | {for_each:.2} | {lost} | {} | {refused} | {cut} | {pauses} | {} |",
        seen.ended,
        seen.missed_while_away,
        formers.join("; "),
    );
    debug_assert!(written.is_ok(), "a string takes everything");
}

/// The program with its version, without the words around it.
fn version(setup: Setup) -> String {
    let line = setup.version().unwrap_or_default();
    let number = line.split([' ', '/']).find(|word| {
        let begins = word.starts_with(|first: char| first.is_ascii_digit());
        begins && word.contains('.')
    });
    format!("{} {}", setup.program.name(), number.unwrap_or("?"))
}

fn held(former: Former) -> String {
    let Former {
        processes,
        connections,
        bytes,
    } = former;
    match processes {
        0 => "none".to_owned(),
        _ => format!(
            "{processes}, {connections}, {:.1} MiB",
            bytes as f64 / f64::from(1 << 20)
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_old_processes_hold_is_told_and_that_there_are_none() {
        assert_eq!(held(Former::default()), "none");
        let former = Former {
            processes: 3,
            connections: 450,
            bytes: 12 << 20,
        };
        assert_eq!(held(former), "3, 450, 12.0 MiB");
    }

    #[test]
    fn without_another_program_there_is_nothing_to_compare() {
        assert_eq!(comparison(&[]), None);
    }
}
