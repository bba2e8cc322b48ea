//! `make bench`: memory and CPU of our programs beside their rivals.

use anyhow::Result;
use causeway_tests::bench::{self, Options};
use clap::Parser;

/// Measures the edge and the node beside nginx, HAProxy and other relays.
#[derive(Parser)]
#[command(version, args_conflicts_with_subcommands = true)]
struct Cli {
    #[command(subcommand)]
    server: Option<Server>,
    #[command(flatten)]
    options: Options,
}

/// A server that the bench starts as a process of its own.
#[derive(clap::Subcommand)]
enum Server {
    /// Echoes WebSocket messages and answers requests, behind the edges.
    Backend,
    /// Relays messages with a plain tokio-tungstenite loop, beside the node.
    Relay,
}

fn main() -> Result<()> {
    let cli = Cli::parse();
    match cli.server {
        // The generator fills this thread, and nothing else is to run meanwhile.
        None => tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?
            .block_on(bench::run(&cli.options)),
        Some(Server::Backend) => bench::backend::serve(),
        Some(Server::Relay) => {
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
