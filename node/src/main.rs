//! The node's program: flags, commands, and exit codes.

use std::path::Path;
use std::path::PathBuf;
use std::process::ExitCode;

use causeway_conf::ignore_signals;
use causeway_conf::print_error;
use causeway_conf::print_output;
use causeway_conf::write_document;
use causeway_node::Config;
use causeway_node::RunError;
use clap::Parser;
use clap::Subcommand;
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
///
/// Settings also come from environment variables: CAUSEWAY_NODE__BROKER__URL is broker.url.
#[derive(Parser)]
#[command(
    name = "causeway-node",
    version,
    args_conflicts_with_subcommands = true
)]
struct Flags {
    /// The configuration, a YAML file; without it: one node alone on 127.0.0.1:9000
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Check the configuration and exit
    #[arg(long)]
    check: bool,
    /// Print the configuration that applies, with the source of each value, and exit
    #[arg(long, conflicts_with = "check")]
    print_config: bool,
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
}

fn main() -> ExitCode {
    // Whoever rotates logs sends it before anybody listens, too.
    ignore_signals(&[SIGUSR1]);
    let flags = Flags::parse();
    let ended = match flags.command {
        None => serve(flags.config, flags.check, flags.print_config),
        Some(Command::Genconfig { output }) => generate_config(output.as_deref()),
    };
    ended.unwrap_or_else(|error| {
        print_error(&error);
        ExitCode::from(CANNOT_START)
    })
}

/// Runs the node, or checks or prints its configuration.
fn serve(file: Option<PathBuf>, check: bool, print: bool) -> Result<ExitCode, String> {
    let file = file.as_deref();
    if print {
        let text = Config::print(file).map_err(|errors| errors.to_string())?;
        return write(&text, None);
    }
    let config = load(file)?;
    if check {
        for warning in config.warnings() {
            print_error(&format!("warning: {warning}"));
        }
        let name = file.map_or("built-in settings".into(), |path| {
            path.display().to_string()
        });
        causeway_node::check(&config).map_err(|error| format!("{name}: {error}"))?;
        print_output(&format!("{name}: valid"));
        return Ok(ExitCode::SUCCESS);
    }
    match causeway_node::run(config) {
        Ok(()) => Ok(ExitCode::SUCCESS),
        Err(error) => {
            print_error(&format!("causeway-node: {error}"));
            Ok(match error {
                RunError::Failed => ExitCode::FAILURE,
                RunError::System(_) | RunError::OpenFiles(_) | RunError::Listen { .. } => {
                    ExitCode::from(CANNOT_START)
                }
            })
        }
    }
}

fn load(file: Option<&Path>) -> Result<Config, String> {
    Config::load(file).map_err(|errors| errors.to_string())
}

fn generate_config(output: Option<&Path>) -> Result<ExitCode, String> {
    let text = Config::generate().map_err(|error| format!("cannot make keys: {error}"))?;
    write(&text, output)
}

fn write(text: &str, output: Option<&Path>) -> Result<ExitCode, String> {
    let name = output.map_or("standard output".into(), |path| path.display().to_string());
    write_document(text, output).map_err(|error| format!("cannot write to {name}: {error}"))?;
    Ok(ExitCode::SUCCESS)
}
