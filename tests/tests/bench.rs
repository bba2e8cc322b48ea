//! The bench itself: a run of a few seconds, whose figures mean nothing.

use std::fs;
use std::process::Command;

use causeway_tests::harness::scratch::Scratch;
use serde_json::Value;

#[test]
fn a_quick_run_measures_every_scenario_and_names_who_is_missing() {
    let scratch = Scratch::new("bench-smoke").unwrap();
    let file = scratch.path().join("bench.json");
    let output = Command::new(env!("CARGO_BIN_EXE_causeway-bench"))
        .args(["--quick", "--output"])
        .arg(&file)
        .output()
        .unwrap();
    let printed = String::from_utf8_lossy(&output.stdout);
    assert!(
        output.status.success(),
        "{printed}\n{}",
        String::from_utf8_lossy(&output.stderr)
    );
    let report: Value = serde_json::from_str(&fs::read_to_string(&file).unwrap()).unwrap();
    let scenarios = report["scenarios"].as_array().unwrap();
    assert_eq!(scenarios.len(), 12);
    for scenario in scenarios {
        for contender in scenario["contenders"].as_array().unwrap() {
            assert_measured_or_named(contender, &printed);
        }
    }
}

/// Ours and what the bench brings along take part; others may not be installed, and then the table says so.
fn assert_measured_or_named(contender: &Value, printed: &str) {
    let name = contender["name"].as_str().unwrap_or_default();
    let is_always_here = name.starts_with("causeway") || name == "tungstenite" || name == "pingora";
    match contender["missing"].as_str() {
        None => assert!(contender["medians"][0].is_object(), "{name}"),
        Some(reason) => {
            assert!(!is_always_here, "{name}: {reason}");
            assert!(printed.contains(&format!("{name} is missing: ")));
        }
    }
}
