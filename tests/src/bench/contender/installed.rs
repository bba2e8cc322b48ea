//! Where `make bench-rivals` puts what it installs: npm packages, a Python environment and programs.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use serde_json::Value;
use tokio::process::Command;

use crate::bench::contender::{Place, Running, free_address};
use crate::harness::process::Process;
use crate::harness::programs;

/// What makes good that something is missing.
const REMEDY: &str = "not installed: run `make bench-rivals`";

/// The folder of the rivals.
fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("rivals")
}

/// The version of an npm package.
///
/// # Errors
///
/// It is not installed, or Node is not.
pub(crate) fn npm_version(package: &str) -> Result<String> {
    programs::installed(&["node"])?;
    let mut files = npm_folders()
        .into_iter()
        .map(|folder| folder.join(package).join("package.json"));
    let text = files.find_map(|file| fs::read_to_string(file).ok());
    let text = text.context(REMEDY)?;
    let about: Value = serde_json::from_str(&text)?;
    let version = about["version"].as_str().unwrap_or("?");
    Ok(format!("{package} {version}"))
}

/// Starts a script of Node's that uses npm packages, and waits for the address that it announces.
pub(super) async fn start_node(name: &str, script: &str, place: &Place<'_>) -> Result<Running> {
    let file = place.directory.join(format!("{name}.js"));
    fs::write(&file, script)?;
    let mut command = Command::new(programs::installed(&["node"])?);
    command
        .arg(&file)
        .env("NODE_PATH", env::join_paths(npm_folders())?);
    start(name, command, place).await
}

/// Starts a script of Python's that uses packages of its own, and waits for the address that it announces.
pub(super) async fn start_python(name: &str, script: &str, place: &Place<'_>) -> Result<Running> {
    let file = place.directory.join(format!("{name}.py"));
    fs::write(&file, script)?;
    let mut command = Command::new(program(".venv/bin/python")?);
    command
        .arg(&file)
        .env("PORT", free_address()?.port().to_string());
    start(name, command, place).await
}

/// Tells it of Redis, its certificate and what is behind it, and waits until it listens.
async fn start(name: &str, mut command: Command, place: &Place<'_>) -> Result<Running> {
    if let Some(redis) = place.redis {
        command.env("REDIS_URL", format!("redis://{redis}"));
    }
    if let Some(tls) = place.tls {
        command
            .env("CERTIFICATE", &tls.certificate)
            .env("KEY", &tls.key);
    }
    if let Some(backend) = place.backend {
        command.env("BACKEND", format!("http://{backend}"));
    }
    let mut process = Process::spawn(name, command, place.directory)?;
    let address = process.listening("bench").await?;
    Ok(match place.tls {
        None => Running::new(process, address),
        Some(_) => {
            let tls_address = process.listening("bench-tls").await?;
            Running::new(process, address).with_tls(tls_address)
        }
    })
}

/// A program among the rivals.
///
/// # Errors
///
/// It is not installed.
pub(crate) fn program(path: &str) -> Result<PathBuf> {
    let path = folder().join(path);
    anyhow::ensure!(path.exists(), "{REMEDY}");
    Ok(path)
}

/// The version of a Python package.
///
/// # Errors
///
/// It is not installed.
pub(super) fn python_version(package: &str) -> Result<String> {
    let about = fs::read_dir(python_packages()?)?
        .flatten()
        .filter_map(|entry| entry.file_name().into_string().ok())
        .find_map(|name| {
            let rest = name.strip_prefix(package)?.strip_prefix('-')?;
            Some(rest.strip_suffix(".dist-info")?.to_owned())
        });
    let version = about.context(REMEDY)?;
    Ok(format!("{package} {version}"))
}

/// A file of a Python package.
///
/// # Errors
///
/// It is not installed.
pub(super) fn python_file(path: &str) -> Result<PathBuf> {
    let path = python_packages()?.join(path);
    anyhow::ensure!(path.exists(), "{REMEDY}");
    Ok(path)
}

fn python_packages() -> Result<PathBuf> {
    let mut versions = fs::read_dir(folder().join(".venv/lib")).context(REMEDY)?;
    let version = versions.next().context(REMEDY)??;
    Ok(version.path().join("site-packages"))
}

/// Where npm packages are looked for: the end-to-end tests have some of them too.
pub(crate) fn npm_folders() -> [PathBuf; 2] {
    let crate_folder = Path::new(env!("CARGO_MANIFEST_DIR"));
    ["rivals", "clients"].map(|folder| crate_folder.join(folder).join("node_modules"))
}
