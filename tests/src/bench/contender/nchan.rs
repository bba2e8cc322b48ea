//! nchan, a module of nginx: clients listen on WebSockets, and messages are posted.

use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result};
use async_trait::async_trait;
use tokio::process::Command;

use crate::bench::contender::{
    Contender, Place, Running, accepting, free_address, nginx, version_line,
};
use crate::bench::dialect::Dialect;
use crate::harness::http;
use crate::harness::process::Process;
use crate::harness::programs;
use crate::harness::wait;

/// Where Debian puts the module.
const MODULE: &str = "/usr/lib/nginx/modules/ngx_nchan_module.so";

/// nginx with nchan.
pub(crate) struct Nchan;

#[async_trait(?Send)]
impl Contender for Nchan {
    fn name(&self) -> &'static str {
        "nchan"
    }

    fn settings(&self) -> &'static str {
        "one worker for each thread, published to by POST, no message kept, no pings, no access log; several nodes: nchan's own Redis \
         mode, distributed"
    }

    fn version(&self) -> Result<String> {
        anyhow::ensure!(
            Path::new(MODULE).exists(),
            "not installed: run `make bench-rivals`"
        );
        let server = version_line(&programs::installed(&["nginx"])?, "-v")?;
        Ok(match debian_version("libnginx-mod-nchan") {
            Some(version) => format!("nchan {version}, {server}"),
            None => format!("nchan, {server}"),
        })
    }

    async fn start(&self, place: &Place<'_>) -> Result<Running> {
        let (address, tls_address) = (free_address()?, free_address()?);
        let tls = match place.tls {
            Some(tls) => format!(
                "listen {tls_address} ssl backlog=4096; ssl_certificate {}; ssl_certificate_key {}; ssl_buffer_size 4k;",
                tls.certificate.display(),
                tls.key.display()
            ),
            None => String::new(),
        };
        let (upstream, through) = match place.redis {
            Some(redis) => (
                format!("upstream redis {{ nchan_redis_server redis://{redis}; }}"),
                "nchan_redis_pass redis;",
            ),
            None => (String::new(), ""),
        };
        let config = format!(
            "load_module {MODULE};
{head}
  nchan_shared_memory_size 256m;
  {upstream}
  server {{
    listen {address} backlog=4096;
    {tls}
    client_max_body_size 1m;
    client_body_buffer_size 128k;
    location ~ ^/sub/(\\w+)$ {{
      nchan_subscriber websocket;
      nchan_channel_id $1;
      nchan_websocket_ping_interval 0;
      nchan_subscriber_first_message newest;
      {through}
    }}
    location ~ ^/pub/(\\w+)$ {{
      nchan_publisher;
      nchan_channel_id $1;
      nchan_store_messages off;
      {through}
    }}
  }}
}}
",
            head = nginx::head(place),
        );
        let file = place.directory.join("nchan.conf");
        fs::write(&file, config)?;
        let mut command = Command::new(programs::installed(&["nginx"])?);
        command.arg("-c").arg(&file).arg("-p").arg(place.directory);
        let mut process = Process::spawn("nchan", command, place.directory)?;
        accepting(&mut process, address).await?;
        // The kernel takes connections before there are workers, whose memory is not to be the clients'.
        let responses = wait::until("a response of nginx", wait::SOON, async || {
            http::get(address, "/").await.ok()
        });
        responses.await.with_context(|| process.tail())?;
        let running =
            Running::with_workers(process, address).speaking(Dialect::posted("/sub/{}", "/pub/{}"));
        Ok(match place.tls {
            Some(_) => running.with_tls(tls_address),
            None => running,
        })
    }
}

/// What Debian calls the version of a package that is installed.
fn debian_version(package: &str) -> Option<String> {
    let output = std::process::Command::new("dpkg-query")
        .args(["-W", "-f", "${Version}", package])
        .output()
        .ok()?;
    let version = String::from_utf8(output.stdout).ok()?;
    (!version.is_empty()).then_some(version)
}
