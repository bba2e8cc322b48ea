//! Which Redis servers there are.

use std::{env, fmt, str::FromStr};

use anyhow::{Context as _, Error, Result, bail};

/// What `make chaos` sets from `TOPOLOGY`.
const VARIABLE: &str = "CAUSEWAY_TOPOLOGY";

/// Which servers there are, and what decides which one nodes use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Topology {
    /// One primary, at one address, and a replica.
    One,
    /// A primary and two replicas that three Sentinels watch.
    Sentinel,
    /// A Redis Cluster of three primaries with a replica each.
    Cluster,
}

impl Topology {
    /// The one that was asked for; one Redis if none was.
    ///
    /// # Errors
    ///
    /// There is no such one.
    pub fn from_environment() -> Result<Self> {
        match env::var(VARIABLE) {
            Ok(text) => text.parse().context(VARIABLE),
            Err(_) => Ok(Self::One),
        }
    }
}

impl FromStr for Topology {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        match text {
            "one" => Ok(Self::One),
            "sentinel" => Ok(Self::Sentinel),
            "cluster" => Ok(Self::Cluster),
            other => bail!("there is no topology `{other}`: expected one, sentinel or cluster"),
        }
    }
}

impl fmt::Display for Topology {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::One => "one",
            Self::Sentinel => "sentinel",
            Self::Cluster => "cluster",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_topology_has_one_name_and_another_name_is_an_error_that_says_which_there_are() {
        for topology in [Topology::One, Topology::Sentinel, Topology::Cluster] {
            assert_eq!(topology.to_string().parse::<Topology>().unwrap(), topology);
        }
        let error = "ring".parse::<Topology>().unwrap_err().to_string();
        assert_eq!(
            error,
            "there is no topology `ring`: expected one, sentinel or cluster"
        );
    }
}
