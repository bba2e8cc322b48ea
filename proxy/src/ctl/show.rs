//! Responses of the admin API as text for people: tables and sentences.
//!
//! Fields that another version of the edge does not have are shown as `-`.

use std::fmt::Write as _;

use serde_json::Value;

/// How a response is shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Shown {
    Backends,
    Backend,
    Weight,
    Tunnels,
    Closed,
    Rebalance,
    Reload,
    Upgrade,
}

/// `response` as text.
pub(super) fn text(shown: Shown, response: &Value) -> String {
    match shown {
        Shown::Backends => backends(response),
        Shown::Backend => backend(response),
        Shown::Weight => format!(
            "{} has weight {} until the next reload or restart; the configuration has {}",
            plain(&response["id"]),
            plain(&response["weight"]),
            plain(&response["configured_weight"])
        ),
        Shown::Tunnels => tunnels(response),
        Shown::Closed => format!(
            "tunnel {} is being closed with code {}",
            plain(&response["id"]),
            plain(&response["code"])
        ),
        Shown::Rebalance => rebalance(response),
        Shown::Reload => reload(response),
        Shown::Upgrade => successor(response).to_owned(),
    }
}

fn backends(response: &Value) -> String {
    let mut table = Table::new(&[
        "POOL", "BACKEND", "ADDRESS", "STATE", "FOR", "WEIGHT", "TUNNELS", "CLOSING", "REQUESTS",
        "WAITING", "WHY",
    ]);
    for backend in items(response) {
        table.row([
            plain(&backend["pool"]),
            plain(&backend["id"]),
            plain(&backend["address"]),
            state(backend),
            seconds(&backend["lasts"]),
            plain(&backend["weight"]),
            plain(&backend["tunnels"]),
            plain(&backend["closing"]),
            plain(&backend["in_flight"]),
            plain(&backend["waiting"]),
            plain(&backend["why"]),
        ]);
    }
    table.text()
}

/// The state, and whether an operator has set it.
fn state(backend: &Value) -> String {
    let state = plain(&backend["state"]);
    match backend["operator"].as_str() {
        Some(_) => format!("{state}*"),
        None => state,
    }
}

fn backend(response: &Value) -> String {
    let mut text = format!(
        "{} is {} ({}), with {}",
        plain(&response["id"]),
        plain(&response["state"]),
        plain(&response["why"]),
        number(&response["tunnels"], "open tunnel")
    );
    if response["closing"]
        .as_u64()
        .is_some_and(|closing| 0 < closing)
    {
        let closing = number(&response["closing"], "tunnel");
        let _ = write!(text, ", and closes {closing}");
    }
    text
}

fn tunnels(response: &Value) -> String {
    let mut table = Table::new(&[
        "ID", "POOL", "BACKEND", "CLIENT", "OPEN", "IDLE", "IN", "OUT", "PATH",
    ]);
    for tunnel in items(&response["tunnels"]) {
        table.row([
            plain(&tunnel["id"]),
            plain(&tunnel["pool"]),
            plain(&tunnel["backend"]),
            plain(&tunnel["client"]),
            seconds(&tunnel["lasts"]),
            seconds(&tunnel["idle"]),
            plain(&tunnel["bytes_in"]),
            plain(&tunnel["bytes_out"]),
            plain(&tunnel["path"]),
        ]);
    }
    let mut text = table.text();
    let _ = write!(text, "{} in all", number(&response["matching"], "tunnel"));
    if let Some(next) = response["next"].as_u64() {
        let _ = write!(text, ", more with --after {next}");
    }
    text
}

fn rebalance(response: &Value) -> String {
    let mut table = Table::new(&["BACKEND", "TUNNELS", "TARGET", "CLOSING", "SPARED"]);
    for backend in items(&response["backends"]) {
        let fields = ["backend", "tunnels", "target", "closing", "spared"];
        table.row(fields.map(|field| plain(&backend[field])));
    }
    let closing = number(&response["closing"], "tunnel");
    let says = if is_dry(response) {
        "would close"
    } else {
        "closes"
    };
    format!(
        "{}the rebalance of pool {} {says} {closing}",
        table.text(),
        plain(&response["pool"])
    )
}

fn reload(response: &Value) -> String {
    let dry = is_dry(response);
    let mut text = String::new();
    let list = |value: &Value| {
        let names: Vec<String> = items(value).map(plain).collect();
        names.join(", ")
    };
    if items(&response["sections"]).next().is_none() {
        text.push_str("no setting differs\n");
    } else {
        let says = if dry { "would change" } else { "changed" };
        let _ = writeln!(text, "{says}: {}", list(&response["sections"]));
    }
    let mut table = Table::new(&["POOL", "BACKEND", "CHANGE", "SETTINGS", "TUNNELS"]);
    for backend in items(&response["backends"]) {
        let tunnels = match backend["tunnels"].as_u64() {
            Some(0) | None => "-".to_owned(),
            Some(tunnels) if backend["closes_tunnels"] == true => format!("{tunnels} closed"),
            Some(tunnels) => format!("{tunnels} stay"),
        };
        table.row([
            plain(&backend["pool"]),
            plain(&backend["backend"]),
            plain(&backend["change"]),
            list(&backend["settings"]),
            tunnels,
        ]);
    }
    if !table.rows.is_empty() {
        text.push_str(&table.text());
    }
    let hands_over = response["hands_over"] == true;
    if items(&response["needs_restart"]).next().is_some() {
        let settings = list(&response["needs_restart"]);
        let _ = match hands_over {
            true => writeln!(text, "takes a new process that takes over: {settings}"),
            false => writeln!(text, "takes effect only after a restart: {settings}"),
        };
    }
    for warning in items(&response["warnings"]) {
        let _ = writeln!(text, "warning: {}", plain(warning));
    }
    text.push_str(match dry {
        true => "nothing was changed",
        false if hands_over => successor(response),
        false => "the configuration is applied",
    });
    text
}

/// How far the process is that takes over.
fn successor(response: &Value) -> &'static str {
    match response["successor"].as_str() {
        Some("accepting") => "a new process has the listeners, and takes over the connections",
        _ => "a new process starts; whether it takes over is in the log of the edge",
    }
}

fn is_dry(response: &Value) -> bool {
    response["dry_run"] == true
}

fn items(value: &Value) -> impl Iterator<Item = &Value> {
    value.as_array().into_iter().flatten()
}

/// A text without what could confuse a terminal, a number, or `-`.
fn plain(value: &Value) -> String {
    match value {
        Value::Null => "-".to_owned(),
        Value::String(text) => text
            .chars()
            .map(|each| if each.is_control() { '?' } else { each })
            .collect(),
        other => other.to_string(),
    }
}

/// A number of things.
fn number(value: &Value, thing: &str) -> String {
    match value.as_u64() {
        Some(1) => format!("1 {thing}"),
        Some(number) => format!("{number} {thing}s"),
        None => format!("- {thing}s"),
    }
}

/// A time in seconds, in its two largest units.
fn seconds(value: &Value) -> String {
    let Some(seconds) = value.as_f64() else {
        return "-".to_owned();
    };
    let seconds = seconds as u64;
    let (minutes, hours, days) = (seconds / 60, seconds / 3600, seconds / 86_400);
    match () {
        () if 0 < days => format!("{days}d{}h", hours % 24),
        () if 0 < hours => format!("{hours}h{}m", minutes % 60),
        () if 0 < minutes => format!("{minutes}m{}s", seconds % 60),
        () => format!("{seconds}s"),
    }
}

/// Columns that are as wide as their widest cell.
struct Table {
    header: Vec<String>,
    rows: Vec<Vec<String>>,
}

impl Table {
    fn new(header: &[&str]) -> Self {
        Self {
            header: header.iter().map(|&name| name.to_owned()).collect(),
            rows: Vec::new(),
        }
    }

    fn row<const N: usize>(&mut self, cells: [String; N]) {
        debug_assert_eq!(N, self.header.len());
        self.rows.push(cells.into());
    }

    fn text(&self) -> String {
        let all = || std::iter::once(&self.header).chain(&self.rows);
        let width = |column: usize| all().map(|row| row[column].chars().count()).max();
        let widths: Vec<usize> = (0..self.header.len())
            .map(|column| width(column).unwrap_or_default())
            .collect();
        let mut text = String::new();
        for row in all() {
            let cells = row.iter().zip(&widths);
            let line: String = cells
                .map(|(cell, width)| format!("{cell:<width$}  "))
                .collect();
            text.push_str(line.trim_end());
            text.push('\n');
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use expect_test::expect;
    use serde_json::json;

    use super::*;

    #[test]
    fn backends_are_a_table() {
        let response = json!([
            { "pool": "p", "id": "n1", "address": "10.0.0.1:80", "state": "up", "lasts": 61.5, "weight": 1, "tunnels": 3,
              "closing": 0, "in_flight": 0, "waiting": 0, "why": "the probe passes", "operator": null },
            { "pool": "p", "id": "backend-2", "address": "unix:/s", "state": "draining", "lasts": 90_000, "weight": 10,
              "tunnels": 12345, "closing": 7, "in_flight": 1, "waiting": 0, "why": "by\u{1b}[2J", "operator": "drain" },
        ]);
        expect![[r#"
            POOL  BACKEND    ADDRESS      STATE      FOR   WEIGHT  TUNNELS  CLOSING  REQUESTS  WAITING  WHY
            p     n1         10.0.0.1:80  up         1m1s  1       3        0        0         0        the probe passes
            p     backend-2  unix:/s      draining*  1d1h  10      12345    7        1         0        by?[2J
        "#]]
        .assert_eq(&text(Shown::Backends, &response));
    }

    #[test]
    fn a_reload_says_what_changes_and_who_is_touched() {
        let response = json!({
            "dry_run": true, "sections": ["pools", "log"], "needs_restart": ["log"], "warnings": ["odd"], "tunnels_closed": 2,
            "backends": [
                { "pool": "p", "backend": "n1", "change": "removed", "tunnels": 2, "closes_tunnels": true },
                { "pool": "p", "backend": "n2", "change": "changed", "settings": ["weight", "zone"], "tunnels": 3, "closes_tunnels": false },
                { "pool": "p", "backend": "n3", "change": "added", "tunnels": 0, "closes_tunnels": false },
            ],
        });
        expect![[r#"
            would change: pools, log
            POOL  BACKEND  CHANGE   SETTINGS      TUNNELS
            p     n1       removed                2 closed
            p     n2       changed  weight, zone  3 stay
            p     n3       added                  -
            takes effect only after a restart: log
            warning: odd
            nothing was changed"#]]
        .assert_eq(&text(Shown::Reload, &response));
    }

    #[test]
    fn a_reload_says_whether_a_new_process_takes_over() {
        let mut response = json!({
            "dry_run": true, "sections": ["listeners"], "needs_restart": ["listeners"], "hands_over": true, "backends": [],
        });
        expect![[r#"
            would change: listeners
            takes a new process that takes over: listeners
            nothing was changed"#]]
        .assert_eq(&text(Shown::Reload, &response));
        response["dry_run"] = json!(false);
        response["successor"] = json!("accepting");
        expect![[r#"
            changed: listeners
            takes a new process that takes over: listeners
            a new process has the listeners, and takes over the connections"#]]
        .assert_eq(&text(Shown::Reload, &response));
        response["successor"] = json!("starting");
        let says = text(Shown::Reload, &response);
        assert!(says.ends_with("is in the log of the edge"), "{says}");
        assert_eq!(text(Shown::Upgrade, &response), successor(&response));
    }

    #[test]
    fn fields_that_are_missing_are_no_error() {
        for shown in [
            Shown::Backends,
            Shown::Backend,
            Shown::Weight,
            Shown::Tunnels,
            Shown::Closed,
            Shown::Rebalance,
            Shown::Reload,
            Shown::Upgrade,
        ] {
            for response in [
                json!(null),
                json!({}),
                json!([{}]),
                json!({ "tunnels": [1] }),
            ] {
                assert!(!text(shown, &response).is_empty(), "{shown:?}");
            }
        }
    }
}
