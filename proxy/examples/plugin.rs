//! A Pingora server of your own with the edge mounted in it.
//!
//! ```sh
//! cargo run --release --example plugin -- --config edge.yaml
//! ```
//!
//! The file is the one that `causeway-proxy` takes. With `--certificate` and `--key` the server speaks TLS, with HTTP/2.

use std::path::PathBuf;

use anyhow::{Context as _, Result};
use causeway_proxy::{AfterDrain, Config, Plugin};
use clap::Parser;
use pingora::listeners::tls::TlsSettings;
use pingora::listeners::{L4BufferSettings, ListenerConfig};
use pingora::server::Server;
use pingora::server::configuration::ServerConf;

/// The one of the edge's own program: idle tunnels are smallest with it.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

/// A Pingora server with the edge in it.
#[derive(Parser)]
struct Flags {
    /// The configuration of the edge, a YAML file
    #[arg(long, value_name = "FILE")]
    config: PathBuf,
    /// The certificate chain, in PEM
    #[arg(long, value_name = "FILE", requires = "key")]
    certificate: Option<PathBuf>,
    /// Its private key, in PEM
    #[arg(long, value_name = "FILE", requires = "certificate")]
    key: Option<PathBuf>,
}

impl Flags {
    fn tls(&self) -> Result<Option<TlsSettings>> {
        let (Some(certificate), Some(key)) = (&self.certificate, &self.key) else {
            return Ok(None);
        };
        let path = |file: &PathBuf| {
            // Pingora panics on a file that it cannot read.
            std::fs::read(file).with_context(|| format!("cannot read {}", file.display()))?;
            let path = file.to_str().map(str::to_owned);
            path.with_context(|| format!("{} is not UTF-8", file.display()))
        };
        let mut settings = TlsSettings::intermediate(&path(certificate)?, &path(key)?)?;
        settings.enable_h2();
        Ok(Some(settings))
    }
}

fn main() -> Result<()> {
    let flags = Flags::parse();
    let config = Config::load(&flags.config)?;
    Plugin::start_logging(&config);
    let plugin = Plugin::new(config)?;

    let mut conf = ServerConf {
        threads: std::thread::available_parallelism()?.get(),
        ..ServerConf::default()
    };
    plugin.configure(&mut conf);
    let mut server = Server::new_with_opt_and_conf(None, conf);
    server.bootstrap();

    let mut proxy = pingora_proxy::http_proxy_service(&server.configuration, plugin.edge());
    for address in plugin.listeners() {
        let mut listener = ListenerConfig::tcp(address.to_string())
            .tcp_socket_options(plugin.socket_options())
            // A buffer for reading costs 64 KiB for each connection, also for those that wait for a request.
            .l4_buffer(L4BufferSettings::default().read(0));
        if let Some(tls) = flags.tls()? {
            listener = listener.tls(tls);
        }
        proxy.add_listener(listener);
    }
    server.add_service(proxy);
    server.add_service(plugin.background(AfterDrain::Exit));
    server.add_service(plugin.reload_on_hangup(flags.config.clone()));
    if let Some(admin) = plugin.admin()? {
        server.add_service(admin);
    }
    server.run_forever()
}
