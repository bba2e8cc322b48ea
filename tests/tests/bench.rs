//! The bench itself: runs of a few seconds, whose figures mean nothing.

use std::fs;
use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use causeway_tests::harness::scratch::Scratch;
use serde_json::Value;

/// What needs nothing to be installed, and so is measured everywhere.
const ALWAYS_HERE: [&str; 6] = [
    "causeway-proxy",
    "pingora",
    "causeway-node",
    "causeway-channels",
    "causeway",
    "tungstenite",
];

/// One of each family of work, and all that differ by more than a number.
const SCENARIOS: [&str; 15] = [
    "edge-idle",
    "edge-connect",
    "edge-echo-tls",
    "edge-http",
    "edge-post",
    "edge-post-in-two",
    "node-sockjs",
    "node-channel",
    "node-polling",
    "many-channels",
    "fanout-tls",
    "sizes",
    "three-nodes",
    "three-nodes-cluster",
    "stalled",
];

#[test]
fn a_quick_run_measures_every_kind_of_work() {
    let here = ALWAYS_HERE.map(|name| ["--contender", name]);
    let work = SCENARIOS.map(|name| ["--scenario", name]);
    let arguments = [here.as_flattened(), work.as_flattened()].concat();
    let (report, _) = run(&arguments).unwrap();
    let scenarios = report["scenarios"].as_array().unwrap();
    assert_eq!(scenarios.len(), SCENARIOS.len());
    for scenario in scenarios {
        let contenders = scenario["contenders"].as_array().unwrap();
        assert!(!contenders.is_empty(), "{scenario}");
        for contender in contenders {
            assert!(contender["medians"][0].is_object(), "{contender}");
        }
    }
}

/// Rivals may not be installed, and then the table says so; one that is has to be measured.
#[test]
fn a_quick_run_measures_every_rival_or_names_it_as_missing() {
    let (report, printed) =
        run(&["--scenario", "edge-echo", "--scenario", "fanout-light"]).unwrap();
    for scenario in report["scenarios"].as_array().unwrap() {
        for contender in scenario["contenders"].as_array().unwrap() {
            let name = contender["name"].as_str().unwrap_or_default();
            match contender["missing"].as_str() {
                None => assert!(contender["medians"][0].is_object(), "{contender}"),
                Some(reason) => {
                    assert!(!ALWAYS_HERE.contains(&name), "{name}: {reason}");
                    assert!(printed.contains(&format!("{name} is missing: ")));
                }
            }
        }
    }
}

#[test]
fn a_quick_soak_lets_every_kind_of_client_come_and_go() {
    let printed = bench(&["soak", "--quick", "--minutes", "2"]).unwrap();
    assert!(printed.contains("minute 2: "), "{printed}");
    assert!(printed.contains("node: "), "{printed}");
}

#[test]
fn what_redis_needs_for_a_publication_is_a_table_by_nodes() {
    let printed = bench(&["redis", "--publications", "64"]).unwrap();
    let rows: Vec<&str> = printed.lines().skip(2).collect();
    assert_eq!(rows.len(), 5, "{printed}");
    assert!(rows[4].starts_with("| 100 | "), "{printed}");
}

/// The report of a quick run, and what it printed.
fn run(arguments: &[&str]) -> Result<(Value, String)> {
    let scratch = Scratch::new("bench-smoke")?;
    let file = scratch.path().join("bench.json");
    let name = file.to_str().context("the path is UTF-8")?;
    let printed = bench(&[&["--quick", "--output", name], arguments].concat())?;
    ensure!(file.with_extension("svg").exists() && file.with_extension("md").exists());
    Ok((serde_json::from_str(&fs::read_to_string(&file)?)?, printed))
}

fn bench(arguments: &[&str]) -> Result<String> {
    let output = Command::new(env!("CARGO_BIN_EXE_causeway-bench"))
        .args(arguments)
        .output()?;
    let printed = String::from_utf8_lossy(&output.stdout).into_owned();
    let log = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{printed}\n{log}");
    Ok(printed)
}
