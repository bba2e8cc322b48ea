//! What happens under the load.

use std::{fmt, time::Duration};

use anyhow::{Context as _, Result};
use tokio::time::{Instant, sleep};

use crate::continuity::{Pace, former::Former, scene::Scene};

/// How uneven the tunnels may be after a rebalance: the most of a node, by the mean.
pub const UNEVEN_MAX: f64 = 1.10;

/// Within which they have to be even.
pub const REBALANCE_WAIT: Duration = Duration::from_secs(60);

const PAUSE: Duration = Duration::from_millis(100);

/// One of them.
#[derive(Clone, Copy, Debug)]
pub enum Event {
    /// A node is restarted.
    Restart {
        /// In which round.
        round: usize,
        /// Which one.
        node: usize,
    },
    /// Another process takes the edge over.
    Upgrade {
        /// Which one.
        number: usize,
    },
    /// A node is added, and the clients are distributed anew.
    ScaleOut,
    /// The processes of another program are replaced.
    Reload {
        /// Which time.
        number: usize,
    },
}

impl fmt::Display for Event {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Restart { round, node } => write!(f, "round {}, node {}", round + 1, node + 1),
            Self::Upgrade { number } => write!(f, "upgrade {number}"),
            Self::ScaleOut => f.write_str("scale-out"),
            Self::Reload { number } => write!(f, "reload {number}"),
        }
    }
}

/// What became of an event.
#[derive(Clone, Debug)]
pub struct Happened {
    /// For people.
    pub line: String,
    /// What is wrong with it.
    pub failure: Option<String>,
    /// What was left of the processes that it replaced, if it replaced some.
    pub former: Option<Former>,
}

impl Event {
    /// Has it happen.
    ///
    /// # Errors
    ///
    /// A program does not do it at all.
    pub async fn happen(self, scene: &mut Scene, pace: Pace) -> Result<Happened> {
        let (mut failure, mut former) = (None, None);
        let said = match self {
            Self::Restart { node, .. } => {
                let took = scene.restart_node(node).await?;
                format!("its drain took {took:.1?}")
            }
            Self::Upgrade { number } => {
                let (took, left) = scene.upgrade_edge(number).await?;
                former = Some(left);
                format!("the former process ended after {took:.1?}")
            }
            Self::ScaleOut => {
                scene.add_node().await?;
                let before = scene.tunnels().await?;
                let began = Instant::now();
                let arguments: &[&str] = match pace {
                    Pace::Default => &["rebalance"],
                    Pace::Short => &["rebalance", "--spread", "1s"],
                };
                scene.act(arguments).await?;
                let (after, is_even) = even(scene).await?;
                let took = began.elapsed();
                if !is_even {
                    failure = Some(format!("uneven after {took:.0?}: {after:?}"));
                }
                let uneven = uneven(&after);
                format!(
                    "{before:?} tunnels became {after:?} within {took:.1?}, max/mean {uneven:.2}"
                )
            }
            Self::Reload { .. } => {
                let other = scene.other.as_mut().context("there is no other program")?;
                let (said, left) = other.reload().await?;
                former = Some(left);
                said
            }
        };
        Ok(Happened {
            line: format!("{self}: {said}"),
            failure,
            former,
        })
    }
}

/// Waits until the tunnels are even.
async fn even(scene: &Scene) -> Result<(Vec<u64>, bool)> {
    let deadline = Instant::now() + REBALANCE_WAIT;
    loop {
        let tunnels = scene.tunnels().await.context("after a rebalance")?;
        let is_even = uneven(&tunnels) <= UNEVEN_MAX;
        if is_even || deadline < Instant::now() {
            return Ok((tunnels, is_even));
        }
        sleep(PAUSE).await;
    }
}

/// The most tunnels of a node, by the mean.
fn uneven(tunnels: &[u64]) -> f64 {
    let all: u64 = tunnels.iter().sum();
    let most = tunnels.iter().max().copied().unwrap_or(0);
    most as f64 * tunnels.len() as f64 / all.max(1) as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_with_more_than_its_share_is_uneven() {
        assert!(uneven(&[10, 10, 10, 10]) <= UNEVEN_MAX);
        assert!(UNEVEN_MAX < uneven(&[12, 10, 9, 9]));
        assert!(UNEVEN_MAX < uneven(&[10, 10, 10, 0]));
    }
}
