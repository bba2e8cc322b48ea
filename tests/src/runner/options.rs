//! What the environment asks of the runner.

use std::{env, path::PathBuf, str::FromStr};

use anyhow::{Result, bail};

/// The most nodes that make sense on one machine.
const NODES_MAX: usize = 64;

/// What is to be run.
#[derive(Debug)]
pub(super) enum Plan {
    /// The edge with this configuration file, nothing else.
    EdgeAlone(PathBuf),
    /// Redis, nodes and the edge.
    Stack(Options),
}

/// The size and place of the stack.
#[derive(Debug)]
pub(super) struct Options {
    /// Where the edge listens; 0 lets the kernel choose.
    pub(super) port: u16,
    /// How many nodes, at least one.
    pub(super) nodes: usize,
    /// Whose Redis the nodes use.
    pub(super) redis: RedisChoice,
}

/// Where the nodes' Redis comes from. The URL stays in the environment: it may hold a password.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum RedisChoice {
    /// One that the runner starts and ends.
    Private,
    /// The one that `REDIS_URL` names.
    Given,
}

impl Options {
    /// Reads `CONF`, `PORT`, `NODES` and `REDIS_URL`; an empty value counts as none.
    pub(super) fn from_environment() -> Result<Plan> {
        if let Some(file) = value_of("CONF")? {
            return Ok(Plan::EdgeAlone(PathBuf::from(file)));
        }
        let nodes = number("NODES", 3)?;
        if !(1..=NODES_MAX).contains(&nodes) {
            bail!("NODES={nodes} is out of range: expected 1 to {NODES_MAX}");
        }
        let redis = if value_of("REDIS_URL")?.is_some() {
            RedisChoice::Given
        } else {
            RedisChoice::Private
        };
        Ok(Plan::Stack(Self {
            port: number("PORT", 8080)?,
            nodes,
            redis,
        }))
    }
}

fn number<T: FromStr>(name: &str, default: T) -> Result<T> {
    match value_of(name)? {
        None => Ok(default),
        Some(text) => text
            .parse()
            .map_err(|_| anyhow::anyhow!("{name}={text} is no number that fits")),
    }
}

fn value_of(name: &str) -> Result<Option<String>> {
    match env::var(name) {
        Ok(value) if value.is_empty() => Ok(None),
        Ok(value) => Ok(Some(value)),
        Err(env::VarError::NotPresent) => Ok(None),
        Err(env::VarError::NotUnicode(_)) => bail!("{name} is not UTF-8"),
    }
}
