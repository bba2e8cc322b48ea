//! The node's program: flags, and exit codes.

use std::path::PathBuf;
use std::process::ExitCode;

use causeway_conf::ignore_signals;
use causeway_conf::print_error;
use causeway_conf::print_output;
use causeway_node::Config;
use causeway_node::RunError;
use clap::Parser;
use libc::SIGUSR1;

/// Idle clients keep no memory that carried bytes before: jemalloc gives it back. When it was chosen, by
/// `make bench-allocators`, an idle client was 6 % larger with glibc's allocator and 8 to 10 % with mimalloc, and heavy
/// fan-out cost 3 % more CPU with the one and 4 % less with the other.
#[cfg(feature = "jemalloc")]
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

/// Options that jemalloc reads at startup. Without its background thread, memory of disconnected clients is returned
/// to the system only while other clients are active.
#[cfg(feature = "jemalloc")]
#[expect(
    unsafe_code,
    reason = "jemalloc finds its settings under this name, and nothing else has it"
)]
#[unsafe(export_name = "_rjem_malloc_conf")]
#[used]
static ALLOCATOR_SETTINGS: &[u8; 23] = b"background_thread:true\0";

/// What is wrong is wrong with the file or its surroundings, and a restart does not help.
const CANNOT_START: u8 = 2;

/// A relay node: passes messages between SockJS and WebSocket clients, on this node and others
#[derive(Parser)]
#[command(name = "causeway-node", version)]
struct Flags {
    /// The configuration, a YAML file; without it: one node alone on 127.0.0.1:9000
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Check the configuration and exit
    #[arg(long)]
    check: bool,
}

fn main() -> ExitCode {
    // Log rotation may send it at any time, also before the handler is installed.
    ignore_signals(&[SIGUSR1]);
    let flags = Flags::parse();
    let config = match &flags.config {
        None => Config::default_without_file(),
        Some(path) => match Config::load(path) {
            Ok(config) => config,
            Err(errors) => {
                print_error(&errors.to_string());
                return ExitCode::from(CANNOT_START);
            }
        },
    };
    if flags.check {
        for warning in config.warnings() {
            eprintln!("warning: {warning}");
        }
        let name = flags
            .config
            .as_deref()
            .map_or("built-in settings".into(), |path| {
                path.display().to_string()
            });
        if let Err(error) = causeway_node::check(&config) {
            print_error(&format!("{name}: {error}"));
            return ExitCode::from(CANNOT_START);
        }
        print_output(&format!("{name}: valid"));
        return ExitCode::SUCCESS;
    }
    match causeway_node::run(config) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            print_error(&format!("causeway-node: {error}"));
            match error {
                RunError::Failed => ExitCode::FAILURE,
                RunError::System(_) | RunError::OpenFiles(_) | RunError::Listen { .. } => {
                    ExitCode::from(CANNOT_START)
                }
            }
        }
    }
}
