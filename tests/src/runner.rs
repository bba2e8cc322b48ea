//! `make run-proxy`: a private Redis, nodes and the edge from one command, for a person.
//!
//! Reads its few settings from the environment, checks all that can be checked before it starts anything, and ends what
//! it started in order: the edge, the nodes, Redis. It never restarts anything: what ends by itself is told.
//!
//! Invariant: when [`run`] returns, none of the processes that it started is left.

mod alone;
mod options;
mod stack;

use std::process::ExitCode;

use anyhow::Result;
use tokio::signal::unix::{Signal as Signals, SignalKind, signal};

use crate::runner::{
    options::{Options, Plan},
    stack::Stack,
};

/// What `--help` prints.
pub const HELP: &str = "\
Runs Causeway for a look: a private Redis, nodes and the edge. Ctrl-C stops all of it.

It is configured by the environment (`make run-proxy NAME=value` sets it):
  PORT=8080       where the edge listens on 127.0.0.1
  NODES=3         how many nodes, 1 to 64
  REDIS_URL=...   a Redis that runs already, instead of a private one
  CONF=file       runs the edge alone with this configuration file, as in production
";

/// What one run came to.
#[derive(Debug)]
enum Outcome {
    /// A person asked it to stop.
    Stopped,
    /// The edge is gone, so there is nothing to look at.
    EdgeEnded,
}

/// Runs until a person stops it. Exit codes: 0 stopped, 1 the edge ended by itself, 2 it could not start.
pub async fn run() -> ExitCode {
    match run_plan().await {
        Ok(Outcome::Stopped) => ExitCode::SUCCESS,
        Ok(Outcome::EdgeEnded) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("causeway-run: {error:#}");
            ExitCode::from(2)
        }
    }
}

async fn run_plan() -> Result<Outcome> {
    // Before anything starts: from here on a Ctrl-C ends things in order, whenever it comes.
    let mut stop = Stop::listen()?;
    let options = match Options::from_environment()? {
        Plan::EdgeAlone(file) => return Err(alone::become_edge(&file)),
        Plan::Stack(options) => options,
    };
    tokio::select! {
        biased;
        () = stop.asked() => Ok(Outcome::Stopped),
        stack = Stack::start(&options) => {
            let mut stack = stack?;
            say(&stack.greeting());
            let outcome = watch(&mut stack, &mut stop).await;
            stack.stop(&mut stop).await;
            say("Stopped.\n");
            Ok(outcome)
        }
    }
}

/// Waits for a person or for the end of the edge; tells of every other process that ends.
async fn watch(stack: &mut Stack, stop: &mut Stop) -> Outcome {
    loop {
        tokio::select! {
            biased;
            () = stop.asked() => {
                say("\nStopping: the edge, the nodes, Redis.\n");
                return Outcome::Stopped;
            }
            end = stack.next_end() => {
                eprintln!("causeway-run: {}", end.text);
                if end.of_edge {
                    return Outcome::EdgeEnded;
                }
            }
        }
    }
}

/// The two signals that ask for the end.
struct Stop {
    interrupt: Signals,
    terminate: Signals,
}

impl Stop {
    fn listen() -> Result<Self> {
        Ok(Self {
            interrupt: signal(SignalKind::interrupt())?,
            terminate: signal(SignalKind::terminate())?,
        })
    }

    /// Waits for either of them.
    ///
    /// # Cancel safety
    ///
    /// A signal that comes while nobody waits is seen by the next call.
    async fn asked(&mut self) {
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
        }
    }
}

/// Writes to standard output; a reader that went away is no reason to stop.
fn say(text: &str) {
    use std::io::Write as _;
    let mut stdout = std::io::stdout().lock();
    stdout
        .write_all(text.as_bytes())
        .and_then(|()| stdout.flush())
        .ok();
}
