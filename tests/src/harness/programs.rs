//! Where the programs are.

use std::{
    env,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, bail};

/// Names a directory that holds the programs to use, instead of the one this program was built into.
pub const DIRECTORY_VARIABLE: &str = "CAUSEWAY_BIN";

/// The path of one of our programs, built in the same profile as the running one.
///
/// # Errors
///
/// It has not been built; the error says how to.
pub fn ours(name: &str) -> Result<PathBuf> {
    let directory = match env::var_os(DIRECTORY_VARIABLE) {
        Some(directory) => PathBuf::from(directory),
        None => directory_of_this()?,
    };
    let path = directory.join(name);
    if !path.is_file() {
        bail!(
            "{name} is not in {}: run `cargo build --workspace --bins --examples` first",
            directory.display()
        );
    }
    Ok(path)
}

/// The path of a program of the system.
///
/// # Errors
///
/// None of `names` is on the `PATH`, or where Debian has servers; the error says how to install it.
pub fn installed(names: &[&str]) -> Result<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    let found = names.iter().find_map(|name| {
        env::split_paths(&path)
            .chain([PathBuf::from("/usr/sbin")])
            .map(|dir| dir.join(name))
            .find(|file| file.is_file())
    });
    found.with_context(|| {
        format!(
            "{} is not installed: run `make deps-test`",
            names.join(" or ")
        )
    })
}

/// What a program prints about its version: its first line that is not empty.
///
/// # Errors
///
/// It cannot be run.
pub fn version_line(program: &Path, flag: &str) -> Result<String> {
    let output = Command::new(program)
        .arg(flag)
        .output()
        .with_context(|| format!("cannot run {}", program.display()))?;
    let printed = [output.stdout, output.stderr].concat();
    let printed = String::from_utf8_lossy(&printed);
    let mut lines = printed.lines().map(str::trim);
    Ok(lines
        .find(|line| !line.is_empty())
        .unwrap_or_default()
        .to_owned())
}

/// `target/debug` or `target/release`: a test runs in `deps` below it.
fn directory_of_this() -> Result<PathBuf> {
    let this = env::current_exe().context("cannot tell where this program is")?;
    let directory = this.parent().unwrap_or(Path::new("."));
    let below = directory.ends_with("deps");
    Ok(if below {
        directory.parent().unwrap_or(directory)
    } else {
        directory
    }
    .to_owned())
}
