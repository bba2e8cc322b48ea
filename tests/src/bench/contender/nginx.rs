//! nginx as a WebSocket and HTTP proxy.

use std::fs;

use anyhow::Result;
use async_trait::async_trait;
use tokio::process::Command;

use crate::bench::contender::{Contender, Place, Running, accepting, free_address, version_line};
use crate::bench::dialect::Dialect;
use crate::harness::process::Process;
use crate::harness::programs;

/// nginx.
pub(crate) struct Nginx;

#[async_trait(?Send)]
impl Contender for Nginx {
    fn name(&self) -> &'static str {
        "nginx"
    }

    fn settings(&self) -> &'static str {
        "one worker for each thread, 4 KiB proxy and TLS buffers, upstream keep-alive, X-Forwarded-For, no access log. No cookie \
         affinity, which is in the paid edition alone before 1.29.6, and no active health checks, which are so in all versions"
    }

    fn version(&self) -> Result<String> {
        version_line(&programs::installed(&["nginx"])?, "-v")
    }

    async fn start(&self, place: &Place<'_>) -> Result<Running> {
        let (address, tls_address) = (free_address()?, free_address()?);
        let tls = place.tls()?;
        let config = format!(
            "{head}
  map $http_upgrade $connection_upgrade {{ default upgrade; '' ''; }}
  upstream nodes {{ server {backend}; keepalive 128; keepalive_requests 100000000; }}
  server {{
    listen {address} backlog=4096;
    listen {tls_address} ssl backlog=4096;
    ssl_certificate {certificate};
    ssl_certificate_key {key};
    ssl_buffer_size 4k;
    location / {{
      proxy_pass http://nodes;
      proxy_http_version 1.1;
      proxy_set_header Host $host;
      proxy_set_header Upgrade $http_upgrade;
      proxy_set_header Connection $connection_upgrade;
      proxy_set_header X-Forwarded-For $remote_addr;
      proxy_set_header X-Forwarded-Proto $scheme;
      proxy_buffer_size 4k;
      proxy_buffers 2 4k;
      proxy_busy_buffers_size 4k;
      proxy_read_timeout 1h;
      proxy_send_timeout 1h;
    }}
  }}
}}
",
            head = head(place),
            backend = place.backend()?,
            certificate = tls.certificate.display(),
            key = tls.key.display(),
        );
        let file = place.directory.join("nginx.conf");
        fs::write(&file, config)?;
        let mut command = Command::new(programs::installed(&["nginx"])?);
        command.arg("-c").arg(&file).arg("-p").arg(place.directory);
        let mut process = Process::spawn("nginx", command, place.directory)?;
        accepting(&mut process, address).await?;
        Ok(Running::with_workers(process, address)
            .with_tls(tls_address)
            .speaking(Dialect::websocket("/")))
    }
}

/// How every nginx begins: its workers, its limits, and its block for HTTP.
pub(super) fn head(place: &Place<'_>) -> String {
    format!(
        "daemon off;
worker_processes {threads};
worker_rlimit_nofile 20000;
pid {directory}/nginx.pid;
error_log {directory}/nginx-error.log;
events {{ worker_connections 40000; multi_accept on; }}
http {{
  access_log off;
  client_body_temp_path {directory}/body;
  proxy_temp_path {directory}/proxy;
  fastcgi_temp_path {directory}/fastcgi;
  uwsgi_temp_path {directory}/uwsgi;
  scgi_temp_path {directory}/scgi;
  keepalive_requests 100000000;
  keepalive_timeout 1h;",
        threads = place.threads,
        directory = place.directory.display(),
    )
}
