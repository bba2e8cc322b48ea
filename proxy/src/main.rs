//! The edge's program: command-line flags, commands and exit codes.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use causeway_conf::{ignore_signals, print_error, print_output, write_document};
use causeway_proxy::Config;
use causeway_proxy::ctl::{self, Ctl};
use clap::{Parser, Subcommand};
use libc::{SIGUSR1, SIGUSR2};

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
///
/// Settings also come from environment variables: CAUSEWAY_PROXY__LOG__LEVEL is log.level.
#[derive(Parser)]
#[command(
    name = "causeway-proxy",
    version,
    args_conflicts_with_subcommands = true
)]
struct Flags {
    /// The configuration, a YAML file; without it: settings of the environment alone
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Check the configuration and exit
    #[arg(long)]
    check: bool,
    /// Print the configuration that applies, with the source of each value, and exit
    #[arg(long, conflicts_with = "check")]
    print_config: bool,
    /// Take over the sockets of the running edge that listens on this one (its setting takeover.socket)
    #[arg(long, value_name = "SOCKET", conflicts_with_all = ["check", "print_config"])]
    takeover: Option<PathBuf>,
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Subcommand)]
enum Command {
    /// Print a commented configuration that works as it is, with fresh keys
    Genconfig {
        /// Write it to this new file, which only its owner may read
        #[arg(long, value_name = "FILE")]
        output: Option<PathBuf>,
    },
    /// Look at a running edge, and act on it
    Ctl(Ctl),
}

fn main() -> ExitCode {
    // A log rotation or an upgrade may send it before its handler is installed.
    ignore_signals(&[SIGUSR1, SIGUSR2]);
    let flags = Flags::parse();
    let ended = match &flags.command {
        None => serve(&flags),
        Some(Command::Ctl(ctl)) => return ExitCode::from(ctl::run(ctl)),
        Some(Command::Genconfig { output }) => generate_config(output.as_deref()),
    };
    match ended {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            print_error(&error);
            ExitCode::from(CANNOT_START)
        }
    }
}

/// Runs the edge, or checks or prints its configuration.
fn serve(flags: &Flags) -> Result<(), String> {
    let file = flags.config.clone();
    if file.is_none() && !Config::is_in_environment() {
        return Err(
            "causeway-proxy: expected --config FILE, or settings in environment variables such as \
             CAUSEWAY_PROXY__POOLS; `causeway-proxy genconfig` prints a file to start with"
                .to_owned(),
        );
    }
    if flags.print_config {
        let text = Config::print(file.as_deref()).map_err(|errors| errors.to_string())?;
        return write(&text, None);
    }
    let config =
        Config::load_with_environment(file.as_deref()).map_err(|errors| errors.to_string())?;
    if !flags.check {
        return causeway_proxy::run(config, file, flags.takeover.as_deref())
            .map_err(|error| format!("causeway-proxy: {error}"));
    }
    let name = file.map_or("environment".to_owned(), |path| path.display().to_string());
    let warnings = causeway_proxy::check(&config).map_err(|error| format!("{name}: {error}"))?;
    for warning in warnings {
        print_error(&format!("{name}: warning: {warning}"));
    }
    print_output(&format!("{name}: valid"));
    Ok(())
}

fn generate_config(output: Option<&Path>) -> Result<(), String> {
    let text = Config::generate().map_err(|_| "cannot make a key: no random numbers".to_owned())?;
    write(&text, output)
}

fn write(text: &str, output: Option<&Path>) -> Result<(), String> {
    let name = output.map_or("standard output".to_owned(), |path| {
        path.display().to_string()
    });
    write_document(text, output).map_err(|error| format!("cannot write to {name}: {error}"))
}
