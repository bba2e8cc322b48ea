//! HAProxy as an edge with cookie affinity.

use std::fs;

use anyhow::Result;
use async_trait::async_trait;
use tokio::process::Command;

use crate::bench::contender::{Contender, Place, Running, accepting, free_address, version_line};
use crate::bench::dialect::Dialect;
use crate::harness::process::Process;
use crate::harness::programs;

/// HAProxy.
pub(crate) struct Haproxy;

#[async_trait(?Send)]
impl Contender for Haproxy {
    fn name(&self) -> &'static str {
        "haproxy"
    }

    fn settings(&self) -> &'static str {
        "one process, nbthread as given, inserted affinity cookie, health check, X-Forwarded-For, no log; nothing of HAProxy \
         Enterprise would change what is measured"
    }

    fn version(&self) -> Result<String> {
        version_line(&programs::installed(&["haproxy"])?, "-v")
    }

    async fn start(&self, place: &Place<'_>) -> Result<Running> {
        let (address, tls_address) = (free_address()?, free_address()?);
        let config = format!(
            "global
  nbthread {threads}
  ssl-default-bind-options ssl-min-ver TLSv1.2
  maxconn 9500
defaults
  mode http
  timeout connect 5s
  timeout client 1h
  timeout server 1h
  timeout tunnel 1h
  option http-keep-alive
  http-reuse safe
frontend edge
  bind {address} backlog 4096
  bind {tls_address} ssl crt {pem} backlog 4096
  default_backend nodes
backend nodes
  option forwardfor
  cookie causeway insert indirect nocache
  option httpchk GET /ready
  server n1 {backend} cookie n1 check inter 2s
",
            threads = place.threads,
            backend = place.backend()?,
            pem = place.tls()?.both.display(),
        );
        let file = place.directory.join("haproxy.cfg");
        fs::write(&file, config)?;
        let mut command = Command::new(programs::installed(&["haproxy"])?);
        command.arg("-db").arg("-f").arg(&file);
        let mut process = Process::spawn("haproxy", command, place.directory)?;
        accepting(&mut process, address).await?;
        Ok(Running::new(process, address)
            .with_tls(tls_address)
            .speaking(Dialect::websocket("/")))
    }
}
