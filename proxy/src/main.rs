//! The edge's program: command-line flags and exit codes.

use std::path::PathBuf;
use std::process::ExitCode;

use causeway_conf::{ignore_signals, print_error, print_output};
use causeway_proxy::Config;
use causeway_proxy::ctl::{self, Ctl};
use clap::{Parser, Subcommand};
use libc::SIGUSR1;

/// jemalloc returns the memory of buffers that idle tunnels have freed. In the measurement of `make bench-allocators` an idle
/// tunnel was 9 % larger with glibc's allocator and 1 % larger with mimalloc, and a new one cost 4 % and 8 % more CPU.
#[cfg(feature = "jemalloc")]
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

/// The settings of jemalloc. Pingora reads each body into a buffer of 64 KiB, which the thread cache keeps for the next one.
#[cfg(feature = "jemalloc")]
#[expect(
    unsafe_code,
    reason = "jemalloc reads its settings from this symbol, and nothing else defines it"
)]
#[unsafe(export_name = "_rjem_malloc_conf")]
#[used]
static ALLOCATOR_SETTINGS: &[u8; 17] = b"lg_tcache_max:16\0";

/// The exit code for an invalid configuration or environment: a restart does not help.
const CANNOT_START: u8 = 2;

/// A reverse proxy that keeps each client on its server and carries WebSockets.
#[derive(Parser)]
#[command(
    name = "causeway-proxy",
    version,
    args_conflicts_with_subcommands = true,
    subcommand_negates_reqs = true
)]
struct Flags {
    /// The configuration, a YAML file
    #[arg(long, value_name = "FILE", required = true)]
    config: Option<PathBuf>,
    /// Check the configuration and exit
    #[arg(long)]
    check: bool,
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Subcommand)]
enum Command {
    /// Look at a running edge, and act on it
    Ctl(Ctl),
}

fn main() -> ExitCode {
    // A log rotation may send it before its handler is installed.
    ignore_signals(&[SIGUSR1]);
    let flags = Flags::parse();
    match (flags.command, flags.config) {
        (Some(Command::Ctl(ctl)), _) => ExitCode::from(ctl::run(&ctl)),
        (None, Some(file)) => run(file, flags.check),
        (None, None) => {
            print_error("causeway-proxy: expected --config FILE");
            ExitCode::from(CANNOT_START)
        }
    }
}

/// Runs the edge with the configuration in `path`, or checks that.
fn run(path: PathBuf, check: bool) -> ExitCode {
    let config = match Config::load(&path) {
        Ok(config) => config,
        Err(errors) => {
            print_error(&errors.to_string());
            return ExitCode::from(CANNOT_START);
        }
    };
    if check {
        let file = path.display();
        match causeway_proxy::check(&config) {
            Ok(warnings) => warnings
                .iter()
                .for_each(|warning| print_error(&format!("{file}: warning: {warning}"))),
            Err(error) => {
                print_error(&format!("{file}: {error}"));
                return ExitCode::from(CANNOT_START);
            }
        }
        print_output(&format!("{file}: valid"));
        return ExitCode::SUCCESS;
    }
    match causeway_proxy::run(config, path) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            print_error(&format!("causeway-proxy: {error}"));
            ExitCode::from(CANNOT_START)
        }
    }
}
