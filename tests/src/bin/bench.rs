//! `make bench`: memory and CPU of our programs beside their rivals.

use std::io;
use std::path::PathBuf;

use anyhow::Result;
use causeway_tests::bench::{self, Options, redis_cost, soak};
use clap::Parser;
use tokio::runtime::Runtime;

/// Measures the edge and the node beside nginx, HAProxy and other relays.
///
/// Where `CAUSEWAY_OTHER_PROXY` names another build of causeway-proxy, the scenarios of edges measure that too, as `other-proxy`.
#[derive(Parser)]
#[command(version, args_conflicts_with_subcommands = true)]
struct Cli {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    options: Options,
}

/// What else there is: servers that the bench starts as processes of its own, and putting reports together.
#[derive(clap::Subcommand)]
enum Command {
    /// Puts the JSON of several runs together: what is in several is taken from the last.
    Report {
        /// The files.
        #[arg(required = true)]
        files: Vec<PathBuf>,
        /// Writes the JSON here, and Markdown and a picture beside it.
        #[arg(long, default_value = "target/bench/bench.json")]
        output: PathBuf,
        /// Puts the tables into this document (`tests/README.md`), between its marks, and the picture into `bench.svg` beside it.
        #[arg(long)]
        readme: Option<PathBuf>,
    },
    /// Lets clients come and go, and fails if memory grows by it.
    Soak(soak::Options),
    /// Measures the CPU time of Redis for a publication, by how many nodes receive it.
    Redis(redis_cost::Options),
    /// Echoes WebSocket messages and responds to requests, behind the edges.
    Backend,
    /// Relays messages with a plain tokio-tungstenite loop, beside the node.
    Relay,
}

fn main() -> Result<()> {
    let cli = Cli::parse();
    match cli.command {
        // The generator fills this thread, and nothing else is to run meanwhile.
        None => one_thread()?.block_on(bench::run(&cli.options)),
        Some(Command::Soak(options)) => one_thread()?.block_on(soak::run(&options)),
        Some(Command::Redis(options)) => one_thread()?.block_on(redis_cost::run(&options)),
        Some(Command::Report {
            files,
            output,
            readme,
        }) => bench::put_together(&files, &output, readme.as_deref()),
        Some(Command::Backend) => bench::backend::serve(),
        Some(Command::Relay) => {
            // Accepting in a task: the thread of `block_on` is none of the workers.
            let runtime = tokio::runtime::Builder::new_multi_thread()
                .enable_all()
                .build()?;
            runtime.block_on(async {
                tokio_util::task::TaskTracker::new()
                    .spawn(bench::relay::serve())
                    .await?
            })
        }
    }
}

fn one_thread() -> io::Result<Runtime> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
}
