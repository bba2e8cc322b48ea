//! What is measured: one kind of work, done by each contender in turn on fresh processes.
//!
//! One file for each family of work; a scenario of the family is a value with its numbers.

mod edge;
mod fanout;
mod idle;
mod measuring;
mod nodes;
mod nodes_cluster;
pub(crate) mod sessions;
mod sizes;
mod stalled;

use anyhow::{Result, anyhow};
use async_trait::async_trait;

use crate::bench::Options;
use crate::bench::certificate::Certificate;
use crate::bench::contender::{Contender, Contenders, Place, Running};
use crate::bench::report::Figure;
use crate::harness::scratch::Scratch;

/// The message whose echo shows that a fresh connection works.
const FRESH_BYTES: usize = 4;
/// What goes each way before memory is read a second time.
const LARGE_BYTES: usize = 60 * 1_024;
/// The size of the messages whose CPU time is measured.
const SMALL_BYTES: usize = 64;

/// One kind of work.
#[async_trait(?Send)]
pub(crate) trait Scenario: Sync {
    /// What it is called where one is chosen.
    fn name(&self) -> &'static str;

    /// What it is about, for the picture.
    fn title(&self) -> &'static str;

    /// With which others it is shown.
    fn group(&self) -> &'static str {
        "relay"
    }

    /// What the contenders have to do.
    fn work(&self, options: &Options) -> String;

    /// Who takes part.
    fn contenders(&self) -> Contenders;

    /// Whose figures the others are divided by.
    fn peer(&self) -> &'static str;

    /// The figures that the picture shows, by name.
    fn shown(&self) -> &'static [&'static str];

    /// How many rounds tell the truth: memory is the same in each.
    fn rounds(&self) -> usize {
        3
    }

    /// Does the work once on a fresh process of `contender`.
    ///
    /// # Errors
    ///
    /// It does not start, gives wrong responses, dies, or is not done in time.
    async fn measure(&self, contender: &dyn Contender, options: &Options) -> Result<Vec<Figure>>;
}

/// All of them, in the order in which they run.
pub(crate) static ALL: &[&dyn Scenario] = &[
    &edge::IDLE,
    &edge::IDLE_TLS,
    &edge::CONNECT,
    &edge::ECHO,
    &edge::ECHO_TLS,
    &edge::HTTP,
    &edge::POST,
    &edge::POST_IN_TWO,
    &idle::ECHO,
    &idle::SOCKJS,
    &idle::CHANNEL,
    &sessions::POLLING,
    &sessions::ABANDONED,
    &fanout::LIGHT,
    &fanout::HEAVY,
    &fanout::WIDE,
    &fanout::MANY,
    &fanout::TLS,
    &sizes::SIZES,
    &nodes::THREE,
    &nodes_cluster::THREE,
    &stalled::STALLED,
];

/// The names of all scenarios.
pub(crate) fn names() -> Vec<&'static str> {
    ALL.iter().map(|scenario| scenario.name()).collect()
}

/// Where a contender does its work: what is needed for it, gone when this is dropped.
struct Stage {
    scratch: Scratch,
    threads: usize,
}

impl Stage {
    fn new(options: &Options) -> Result<Self> {
        Ok(Self {
            scratch: Scratch::new("bench")?,
            threads: options.threads,
        })
    }

    fn certificate(&self) -> Result<Certificate> {
        Certificate::new(self.scratch.path())
    }

    /// A place for a relay alone.
    fn place(&self) -> Place<'_> {
        Place {
            directory: self.scratch.path(),
            threads: self.threads,
            backend: None,
            tls: None,
            redis: None,
            redis_cluster: &[],
        }
    }
}

/// Has the end of a server's log in an error.
fn explained<T>(server: &Running, result: Result<T>) -> Result<T> {
    result.map_err(|error| anyhow!("{error:#}\n{}", server.tail()))
}
