//! Pingora as it comes, to be measured beside the edge: an `HttpProxy` that takes turns, and nothing else.
//!
//! With the edge's allocator, which does Pingora good: what differs is what the edge does.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;

use anyhow::{Result, bail};
use async_trait::async_trait;
use clap::Parser;
use pingora::listeners::tls::TlsSettings;
use pingora::prelude::HttpPeer;
use pingora::server::Server;
use pingora::server::configuration::ServerConf;
use pingora_load_balancing::LoadBalancer;
use pingora_load_balancing::selection::RoundRobin;
use pingora_proxy::{ProxyHttp, Session, http_proxy_service};

#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

/// Passes requests on to one backend.
#[derive(Parser)]
#[command(version)]
struct Flags {
    /// Where plain connections come
    #[arg(long)]
    listen: SocketAddr,
    /// Where TLS connections come
    #[arg(long)]
    listen_tls: SocketAddr,
    /// The certificate, as PEM
    #[arg(long)]
    certificate: PathBuf,
    /// Its key, as PEM
    #[arg(long)]
    key: PathBuf,
    /// What it stands in front of
    #[arg(long)]
    backend: SocketAddr,
    /// Worker threads
    #[arg(long, default_value_t = 1)]
    threads: usize,
}

struct Stock(Arc<LoadBalancer<RoundRobin>>);

#[async_trait]
impl ProxyHttp for Stock {
    type CTX = ();

    fn new_ctx(&self) {}

    async fn upstream_peer(
        &self,
        _downstream: &mut Session,
        (): &mut (),
    ) -> pingora::Result<Box<HttpPeer>> {
        let backend = self.0.select(b"", 8);
        let backend = backend.ok_or_else(|| pingora::Error::new_str("there is no backend"))?;
        Ok(Box::new(HttpPeer::new(backend, false, String::new())))
    }
}

fn main() -> Result<()> {
    let flags = Flags::parse();
    let conf = ServerConf {
        threads: flags.threads,
        ..ServerConf::default()
    };
    let mut server = Server::new_with_opt_and_conf(None, conf);
    server.bootstrap();
    let backends = LoadBalancer::<RoundRobin>::try_from_iter([flags.backend])?;
    let mut proxy = http_proxy_service(&server.configuration, Stock(Arc::new(backends)));
    proxy.add_tcp(&flags.listen.to_string());
    let (Some(certificate), Some(key)) = (flags.certificate.to_str(), flags.key.to_str()) else {
        bail!("paths that are no UTF-8");
    };
    let mut tls = TlsSettings::intermediate(certificate, key)?;
    tls.enable_h2();
    proxy.add_tls_with_settings(&flags.listen_tls.to_string(), None, tls);
    server.add_service(proxy);
    server.run_forever()
}
