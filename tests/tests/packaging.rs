//! What the packages carry besides the programs: systemd units that systemd accepts and finds well sandboxed.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, ensure};
use causeway_tests::harness::{programs, scratch::Scratch};
use tokio::process::Command;

const UNITS: [&str; 3] = [
    "causeway-proxy.service",
    "causeway-node.service",
    "causeway-node@.service",
];

/// The highest exposure that `systemd-analyze security` may find, of 100.
const EXPOSURE_MAX: &str = "20";

fn conf() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../conf")
}

fn unit(name: &str) -> Result<String> {
    let path = conf().join("systemd").join(name);
    fs::read_to_string(&path).with_context(|| path.display().to_string())
}

/// Runs `systemd-analyze`, if this machine has it, and returns what it printed.
async fn systemd_analyze(arguments: &[&str]) -> Result<String> {
    let Ok(program) = programs::installed(&["systemd-analyze"]) else {
        eprintln!("systemd-analyze is not installed: {arguments:?} is not checked");
        return Ok(String::new());
    };
    let mut command = Command::new(program);
    let output = command.args(arguments).kill_on_drop(true).output().await?;
    let text = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{arguments:?}\n{text}");
    Ok(text.into_owned())
}

#[tokio::test]
async fn systemd_accepts_the_units_and_finds_them_well_sandboxed() -> Result<()> {
    let scratch = Scratch::new("units")?;
    let programs = programs::ours("causeway-proxy")?;
    let programs = programs.parent().context("the program is in a folder")?;
    for name in UNITS {
        // The programs are not installed on this machine.
        let text = unit(name)?.replace("/usr/bin", &programs.display().to_string());
        let file = scratch.write(name, &text)?.display().to_string();
        let instance = file.replace('@', "@n1");
        if instance != file {
            fs::copy(&file, &instance)?;
        }
        // Misspelled settings are warnings alone.
        let warnings = systemd_analyze(&["verify", "--man=no", &instance]).await?;
        ensure!(warnings.is_empty(), "{warnings}");
        let threshold = format!("--threshold={EXPOSURE_MAX}");
        systemd_analyze(&["security", "--offline=true", &threshold, &instance]).await?;
    }
    Ok(())
}

#[test]
fn the_template_of_nodes_differs_from_their_unit_in_the_file_names_alone() -> Result<()> {
    let without_comments = |text: String| -> Vec<String> {
        let lines = text.lines().filter(|line| !line.starts_with('#'));
        lines.map(str::to_owned).collect()
    };
    let template = unit("causeway-node@.service")?;
    let template = template
        .replace("node-%i", "node")
        .replace("node %i", "node");
    assert_eq!(
        without_comments(template),
        without_comments(unit("causeway-node.service")?)
    );
    Ok(())
}
