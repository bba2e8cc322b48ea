//! `causeway-proxy ctl`: the client of the admin listener, for operators and scripts.
//!
//! Sends one request and shows the response, as a table or as the JSON that it is. Knows nothing of the edge but its admin API, so
//! that it works with an edge of another version as well.

mod client;
mod show;

use std::path::PathBuf;

use causeway_conf::{Secret, print_error, print_output};
use clap::{Args, Subcommand};
use serde_json::{Map, Value, json};

use crate::ctl::client::{Api, Failed, Target};
use crate::ctl::show::Shown;

/// Looks at a running edge, and acts on it.
#[derive(Debug, Args)]
pub struct Ctl {
    /// The unix socket of the edge (admin.socket)
    #[arg(long, value_name = "PATH", global = true, conflicts_with = "url")]
    socket: Option<PathBuf>,
    /// The admin listener of the edge, such as http://127.0.0.1:8081
    #[arg(long, value_name = "URL", global = true)]
    url: Option<String>,
    /// The file with the token (admin.token), for --url
    #[arg(long, value_name = "FILE", global = true, conflicts_with = "socket")]
    token_file: Option<PathBuf>,
    /// Print the response as JSON
    #[arg(long, global = true)]
    json: bool,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Show the backends, with their states and loads
    Status,
    /// Take a backend out of service and close its tunnels with code 1012, paced
    Drain {
        /// The id of the backend
        backend: String,
        /// Close the tunnels over this time, such as 30s, instead of drain.backend_spread
        #[arg(long, value_name = "TIME", conflicts_with = "keep_tunnels")]
        spread: Option<String>,
        /// Leave the tunnels open
        #[arg(long)]
        keep_tunnels: bool,
        /// Also if no other backend of the pool is in service
        #[arg(long)]
        force: bool,
    },
    /// Lift a drain or a maintenance
    Ready {
        /// The id of the backend
        backend: String,
    },
    /// Let no client go to a backend; its tunnels stay open, and probes go on
    Maintenance {
        /// The id of the backend
        backend: String,
        /// Also if no other backend of the pool is in service
        #[arg(long)]
        force: bool,
    },
    /// Give a backend another weight, until the next reload or restart
    Weight {
        /// The id of the backend
        backend: String,
        /// 1 to 1000
        weight: u64,
    },
    /// List tunnels
    Tunnels {
        /// Only those of this pool
        #[arg(long)]
        pool: Option<String>,
        /// Only those of this backend
        #[arg(long)]
        backend: Option<String>,
        /// Only those of this client address
        #[arg(long)]
        client: Option<String>,
        /// At most this many, 1 to 1000
        #[arg(long, default_value_t = 100)]
        limit: u64,
        /// Only those with a larger number: the next page
        #[arg(long, value_name = "ID")]
        after: Option<u64>,
    },
    /// End one tunnel
    Close {
        /// Its number, as in the list
        tunnel: u64,
        /// 1012, after which clients reconnect, or 1001
        #[arg(long, default_value_t = 1012)]
        code: u16,
    },
    /// Even out the tunnels of a pool, after a backend was added
    Rebalance {
        /// The pool, if there are several
        pool: Option<String>,
        /// Move the tunnels over this time, such as 30s, instead of rebalance.spread
        #[arg(long, value_name = "TIME")]
        spread: Option<String>,
        /// Only say what would be done
        #[arg(long)]
        dry_run: bool,
    },
    /// Start the program at the path of the edge, which takes over (takeover.socket)
    Upgrade,
    /// Read the configuration file again; for some settings a new process takes over
    Reload {
        /// Only say what would change
        #[arg(long)]
        dry_run: bool,
    },
}

/// Runs the command, prints its result, and returns the exit code: 0 if it was done, 1 if the edge refused it, 2 if a flag or a file
/// cannot be used, 3 if the edge cannot be reached or does not respond as an edge does, 4 if it does not allow it.
#[must_use]
pub fn run(ctl: &Ctl) -> u8 {
    match carry_out(ctl) {
        Ok(text) => {
            print_output(text.trim_end());
            0
        }
        Err(failed) => {
            print_error(&format!("causeway-proxy ctl: {failed}"));
            failed.exit_code()
        }
    }
}

fn carry_out(ctl: &Ctl) -> Result<String, Failed> {
    let api = Api {
        target: target(ctl)?,
        token: ctl.token_file.as_deref().map(token).transpose()?,
    };
    let (request, shown) = ctl.command.request();
    let response = api.ask(request.method, &request.path, request.body.as_ref())?;
    if ctl.json {
        let pretty = serde_json::to_string_pretty(&response);
        return pretty.map_err(|error| Failed::Response(error.to_string()));
    }
    Ok(show::text(shown, &response))
}

fn target(ctl: &Ctl) -> Result<Target, Failed> {
    match (&ctl.socket, &ctl.url) {
        (Some(socket), _) => Ok(Target::Socket(socket.clone())),
        (None, Some(url)) => Target::of_url(url),
        (None, None) => Err(Failed::Usage(
            "expected --socket PATH (admin.socket of the edge) or --url URL with --token-file FILE"
                .to_owned(),
        )),
    }
}

fn token(file: &std::path::Path) -> Result<Secret, Failed> {
    Secret::from_path(file).map_err(Failed::Usage)
}

/// One request to the admin API.
struct Request {
    method: &'static str,
    path: String,
    /// `None` for a GET.
    body: Option<Value>,
}

impl Request {
    fn get(path: String) -> Self {
        Self {
            method: "GET",
            path,
            body: None,
        }
    }

    fn post(path: String, settings: Map<String, Value>) -> Self {
        Self {
            method: "POST",
            path,
            body: Some(Value::Object(settings)),
        }
    }
}

impl Command {
    /// The request, and how its response is shown.
    fn request(&self) -> (Request, Shown) {
        let of_backend = |backend: &str, action: &str| {
            let backend = escaped(backend);
            format!("/backends/{backend}/{action}")
        };
        match self {
            Self::Status => (Request::get("/backends".to_owned()), Shown::Backends),
            Self::Drain {
                backend,
                spread,
                keep_tunnels,
                force,
            } => {
                let mut settings = spread_setting(spread.as_deref());
                if *keep_tunnels {
                    settings.insert("tunnels".to_owned(), json!("keep"));
                }
                settings.insert("force".to_owned(), json!(force));
                let path = of_backend(backend, "drain");
                (Request::post(path, settings), Shown::Backend)
            }
            Self::Ready { backend } => {
                let path = of_backend(backend, "ready");
                (Request::post(path, Map::new()), Shown::Backend)
            }
            Self::Maintenance { backend, force } => {
                let settings = Map::from_iter([("force".to_owned(), json!(force))]);
                let path = of_backend(backend, "maintenance");
                (Request::post(path, settings), Shown::Backend)
            }
            Self::Weight { backend, weight } => {
                let settings = Map::from_iter([("weight".to_owned(), json!(weight))]);
                let path = of_backend(backend, "weight");
                (Request::post(path, settings), Shown::Weight)
            }
            Self::Tunnels {
                pool,
                backend,
                client,
                limit,
                after,
            } => {
                let mut path = format!("/tunnels?limit={limit}");
                let filters = [("pool", pool), ("backend", backend), ("client", client)];
                for (name, value) in filters {
                    if let Some(value) = value {
                        path.push_str(&format!("&{name}={}", escaped(value)));
                    }
                }
                if let Some(after) = after {
                    path.push_str(&format!("&after={after}"));
                }
                (Request::get(path), Shown::Tunnels)
            }
            Self::Close { tunnel, code } => {
                let settings = Map::from_iter([("code".to_owned(), json!(code))]);
                let path = format!("/tunnels/{tunnel}/close");
                (Request::post(path, settings), Shown::Closed)
            }
            Self::Rebalance {
                pool,
                spread,
                dry_run,
            } => {
                let mut settings = spread_setting(spread.as_deref());
                if let Some(pool) = pool {
                    settings.insert("pool".to_owned(), json!(pool));
                }
                settings.insert("dry_run".to_owned(), json!(dry_run));
                let path = "/rebalance".to_owned();
                (Request::post(path, settings), Shown::Rebalance)
            }
            Self::Upgrade => {
                let path = "/upgrade".to_owned();
                (Request::post(path, Map::new()), Shown::Upgrade)
            }
            Self::Reload { dry_run } => {
                let settings = Map::from_iter([("dry_run".to_owned(), json!(dry_run))]);
                let path = "/reload".to_owned();
                (Request::post(path, settings), Shown::Reload)
            }
        }
    }
}

fn spread_setting(spread: Option<&str>) -> Map<String, Value> {
    let spread = spread.map(|spread| ("spread".to_owned(), json!(spread)));
    spread.into_iter().collect()
}

/// `text` with percent-encoding, as a part of a path or a query.
fn escaped(text: &str) -> String {
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~".contains(&byte);
    let escape = |byte: u8| match is_plain(byte) {
        true => char::from(byte).to_string(),
        false => format!("%{byte:02X}"),
    };
    text.bytes().map(escape).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_cannot_change_the_path() {
        let drain = Command::Ready {
            backend: "a/../b?c d".to_owned(),
        };
        let (request, _) = drain.request();
        assert_eq!(request.path, "/backends/a%2F..%2Fb%3Fc%20d/ready");
    }

    #[test]
    fn filters_are_in_the_query() {
        let tunnels = Command::Tunnels {
            pool: None,
            backend: Some("n1".to_owned()),
            client: Some("::1".to_owned()),
            limit: 5,
            after: Some(7),
        };
        let (request, _) = tunnels.request();
        assert_eq!(
            request.path,
            "/tunnels?limit=5&backend=n1&client=%3A%3A1&after=7"
        );
    }
}
