//! The node's program: flags, commands, and exit codes.

use std::io;
use std::io::Read as _;
use std::path::Path;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::SystemTime;

use causeway_conf::Span;
use causeway_conf::ignore_signals;
use causeway_conf::print_error;
use causeway_conf::print_output;
use causeway_conf::write_document;
use causeway_node::Config;
use causeway_node::RunError;
use causeway_node::TokenCheck;
use causeway_node::TokenRequest;
use clap::Args;
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

/// What is read of standard input; longer than any token.
const TOKEN_INPUT_BYTES_MAX: u64 = 64 << 10;

/// The exit code of `checktoken` for a token that the node refuses.
const REFUSED: u8 = 1;

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
    /// Make a token with which a client connects, or subscribes to a channel
    Gentoken(GenerateFlags),
    /// Say what the node says of a token: exit code 0 if it is valid, 1 if it is refused
    Checktoken(CheckFlags),
}

#[derive(Args)]
struct GenerateFlags {
    /// The configuration of the node, for its keys, audience and issuer
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// The user; without it the client is anonymous
    #[arg(long, default_value = "")]
    user: String,
    /// The channel, for a token that subscribes
    #[arg(long)]
    channel: Option<String>,
    /// The id of the one connection that may subscribe with it
    #[arg(long)]
    client: Option<String>,
    /// How long it is valid: a duration such as 10m or 1h, or "never"
    #[arg(long, default_value = "1h", value_name = "DURATION")]
    expires: String,
    /// What others in a channel see of the client, in JSON
    #[arg(long, value_name = "JSON")]
    info: Option<String>,
    /// Further claims, an object in JSON
    #[arg(long, value_name = "JSON")]
    claims: Option<String>,
    /// A file with the secret or the private key (PEM, PKCS #8), instead of a key of the configuration
    #[arg(long, value_name = "FILE")]
    key: Option<PathBuf>,
    /// HS256, RS256, PS256, ES256, ES384 or EdDSA; by default the one of the key
    #[arg(long, value_name = "NAME")]
    algorithm: Option<String>,
    /// The id of the key (kid); without it the first key of the configuration that signs
    #[arg(long, value_name = "ID")]
    key_id: Option<String>,
}

#[derive(Args)]
struct CheckFlags {
    /// The configuration of the node
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// The channel that is subscribed to with it; by default its own
    #[arg(long)]
    channel: Option<String>,
    /// The user of the connection that subscribes; by default its own
    #[arg(long)]
    user: Option<String>,
    /// The id of the connection that subscribes; by default its own
    #[arg(long)]
    client: Option<String>,
    /// The token; without it, or with "-", it is read from standard input, where no list of processes shows it
    token: Option<String>,
}

fn main() -> ExitCode {
    // Log rotation may send it at any time, also before the handler is installed.
    ignore_signals(&[SIGUSR1]);
    let flags = Flags::parse();
    let ended = match flags.command {
        None => serve(flags.config, flags.check, flags.print_config),
        Some(Command::Genconfig { output }) => generate_config(output.as_deref()),
        Some(Command::Gentoken(flags)) => generate_token(flags),
        Some(Command::Checktoken(flags)) => check_token(flags),
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

fn generate_token(flags: GenerateFlags) -> Result<ExitCode, String> {
    let config = load(flags.config.as_deref())?;
    let expires = match &*flags.expires {
        "never" => None,
        text => {
            let span = text.parse::<Span>();
            Some(span.map_err(|error| format!("--expires: {error}, or \"never\", found {text:?}"))?)
        }
    };
    let request = TokenRequest {
        user: flags.user,
        channel: flags.channel,
        client: flags.client,
        expires: expires.map(|span| span.0),
        info: flags.info,
        claims: flags.claims,
        key: flags.key,
        algorithm: flags.algorithm,
        key_id: flags.key_id,
    };
    let now = SystemTime::now();
    let token = causeway_node::generate_token(&config, &request, now);
    let token = token.map_err(|error| format!("causeway-node: {error}"))?;
    // With no configuration, another node is meant than this one.
    if flags.config.is_some() {
        let verdict = causeway_node::check_token(&config, &token, &TokenCheck::default(), now);
        if !verdict.is_valid {
            print_error("warning: a node with this configuration refuses the token:");
            print_error(&verdict.text);
        }
    }
    write(&format!("{token}\n"), None)
}

fn check_token(flags: CheckFlags) -> Result<ExitCode, String> {
    let config = load(flags.config.as_deref())?;
    let token = match flags.token.filter(|token| token != "-") {
        Some(token) => token,
        None => {
            let mut text = String::new();
            let mut input = io::stdin().take(TOKEN_INPUT_BYTES_MAX);
            let read = input.read_to_string(&mut text);
            read.map_err(|error| format!("cannot read a token from standard input: {error}"))?;
            text
        }
    };
    let check = TokenCheck {
        channel: flags.channel,
        user: flags.user,
        client: flags.client,
    };
    let verdict = causeway_node::check_token(&config, &token, &check, SystemTime::now());
    write(&format!("{}\n", verdict.text), None)?;
    if verdict.is_valid {
        Ok(ExitCode::SUCCESS)
    } else {
        Ok(ExitCode::from(REFUSED))
    }
}
