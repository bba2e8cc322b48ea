//! A program on trial: an edge or a plugin with a node behind it, or a node alone.

use std::{
    fs,
    net::{SocketAddr, TcpListener},
    path::PathBuf,
};

use anyhow::{Context as _, Result, ensure};
use causeway_tests::harness::{
    edge, http, loopback,
    node::{self, Node},
    process::{Process, Signal, Streams},
    programs,
    scratch::Scratch,
    settings::Settings,
    wait,
    websocket::WebSocket,
};
use serde_json::{Value, json};
use tokio::process::Command;

/// Which program.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Edge,
    Plugin,
    Node,
}

/// Makes a test of each program of each of these functions, which take a [`Kind`].
macro_rules! on_each_program {
    ($($test:ident),+ $(,)?) => {
        mod on_the_edge {
            $(#[tokio::test] async fn $test() -> anyhow::Result<()> { super::$test(crate::subject::Kind::Edge).await })+
        }
        mod on_the_plugin {
            $(#[tokio::test] async fn $test() -> anyhow::Result<()> { super::$test(crate::subject::Kind::Plugin).await })+
        }
        mod on_the_node {
            $(#[tokio::test] async fn $test() -> anyhow::Result<()> { super::$test(crate::subject::Kind::Node).await })+
        }
    };
}
pub(crate) use on_each_program;

/// A program, ready to be tried.
pub(crate) struct Subject {
    pub(crate) kind: Kind,
    /// Where clients connect.
    pub(crate) address: SocketAddr,
    /// Where `/metrics` is.
    pub(crate) admin: SocketAddr,
    pub(crate) process: Process,
    file: PathBuf,
    settings: Settings,
    /// Behind an edge.
    backend: Option<Node>,
}

fn own_address() -> Result<SocketAddr> {
    Ok(TcpListener::bind(loopback::own_any_port())?.local_addr()?)
}

impl Subject {
    /// Starts one with these streams, and changes of its settings, and waits until it serves.
    pub(crate) async fn start(
        kind: Kind,
        scratch: &Scratch,
        change: impl FnOnce(Settings) -> Settings,
        streams: Streams,
    ) -> Result<Self> {
        Self::start_changed(kind, scratch, change, streams, |_| {}).await
    }

    /// As [`Subject::start`], by a command that is changed too.
    pub(crate) async fn start_changed(
        kind: Kind,
        scratch: &Scratch,
        change: impl FnOnce(Settings) -> Settings,
        streams: Streams,
        change_command: impl FnOnce(&mut Command),
    ) -> Result<Self> {
        let (address, admin) = (own_address()?, own_address()?);
        let listen = json!(address.to_string());
        let mut backend = None;
        let (program, settings) = match kind {
            Kind::Node => {
                let settings = node::settings()
                    .with("listen", listen)
                    .with("admin.address", json!(admin.to_string()));
                ("causeway-node", settings.with("drain.lead", json!("100ms")))
            }
            Kind::Edge | Kind::Plugin => {
                let settings = node::settings().with("listen", json!(loopback::own_any_port()));
                let node = Node::start("n1", settings, scratch.path()).await?;
                let settings = edge::settings(&[("n1", node.address)])
                    .with("listeners", json!([{ "address": listen }]))
                    .with("admin.address", json!(admin.to_string()));
                backend = Some(node);
                let plugin = kind == Kind::Plugin;
                (
                    if plugin {
                        "examples/plugin"
                    } else {
                        "causeway-proxy"
                    },
                    settings,
                )
            }
        };
        let settings = change(settings);
        let file = scratch.write("subject.yaml", &settings.text())?;
        let mut command = Command::new(programs::ours(program)?);
        command.arg("--config").arg(&file);
        change_command(&mut command);
        let process = Process::spawn_on("subject", command, scratch.path(), streams)?;
        let subject = Self {
            kind,
            address,
            admin,
            process,
            file,
            settings,
            backend,
        };
        wait::until("the program to serve", wait::SOON, async || {
            let ready = http::get(admin, "/ready").await.ok()?.status == 200;
            let served = http::get(address, "/").await.ok()?.status == 200;
            (ready && served).then_some(())
        })
        .await
        .with_context(|| subject.process.tail())?;
        Ok(subject)
    }

    /// A client with a WebSocket.
    pub(crate) async fn client(&self) -> Result<WebSocket> {
        let mut client = WebSocket::open(self.address, "/echo/websocket").await?;
        echo(&mut client).await?;
        Ok(client)
    }

    /// The sum of a metric over its labels.
    pub(crate) async fn metric(&self, name: &str) -> Result<u64> {
        let page = http::get(self.admin, "/metrics").await?.text();
        let prefix = match self.kind {
            Kind::Node => "causeway_node_",
            Kind::Edge | Kind::Plugin => "causeway_proxy_",
        };
        let lines = page.lines().filter_map(|line| {
            let rest = line.strip_prefix(prefix)?.strip_prefix(name)?;
            let value = rest.rsplit_once(' ')?.1;
            (rest.starts_with(' ') || rest.starts_with('{')).then_some(value)
        });
        let values: Result<Vec<u64>, _> = lines.map(str::parse).collect();
        let values = values?;
        ensure!(!values.is_empty(), "no metric {name}");
        Ok(values.into_iter().sum())
    }

    /// How many lines of its program log it says that it lost.
    pub(crate) async fn lost_lines(&self) -> Result<u64> {
        self.metric("log_lines_dropped_total").await
    }

    /// Has it do everything that makes log lines, and sees that it does it.
    pub(crate) async fn work(&mut self) -> Result<()> {
        ensure!(http::get(self.address, "/").await?.status == 200);
        self.log_something().await?;
        let Some(backend) = &mut self.backend else {
            return Ok(());
        };
        // Health checks find out that a backend is gone, and that it is back.
        backend.kill().await?;
        self.backend_is_up(false).await?;
        let backend = self.backend.as_mut().context("there is one")?;
        backend.restart().await?;
        self.backend_is_up(true).await?;
        ensure!(http::get(self.address, "/").await?.status == 200);
        Ok(())
    }

    /// Has it log a line or more.
    pub(crate) async fn log_something(&mut self) -> Result<()> {
        match self.kind {
            Kind::Node => {
                let foreign = [("Origin", "https://other.example")];
                let refused = http::get_with(self.address, "/sockjs/info", &foreign).await?;
                ensure!(refused.status == 403, "{refused:?}");
                Ok(())
            }
            Kind::Edge | Kind::Plugin => {
                let text = self.settings.text();
                self.reload(&text).await
            }
        }
    }

    /// Has an edge log more than may wait to be written, until lines are lost.
    pub(crate) async fn log_too_much(&mut self) -> Result<()> {
        // One line names each repeated key.
        let repeated = "repeated: key\n".repeat(15_000);
        while self.lost_lines().await? == 0 {
            self.reload(&repeated).await?;
        }
        Ok(())
    }

    async fn reload(&mut self, text: &str) -> Result<()> {
        fs::write(&self.file, text)?;
        let reloads = "reloads_total";
        let before = self.metric(reloads).await.unwrap_or_default();
        self.process.signal(Signal::Hangup);
        wait::until("the configuration to be read", wait::SOON, async || {
            (before < self.metric(reloads).await.ok()?).then_some(())
        })
        .await
    }

    async fn backend_is_up(&self, expected: bool) -> Result<()> {
        wait::until("health checks to find out", wait::SOON, async || {
            let page = http::get(self.admin, "/backends").await.ok()?;
            let backends: Value = serde_json::from_slice(&page.body).ok()?;
            let is_up = backends[0]["state"] == "up";
            (is_up == expected).then_some(())
        })
        .await
    }

    /// Ends it as an operator does: `client` is told, and the exit code says that all is well.
    pub(crate) async fn end(mut self, mut client: WebSocket) -> Result<()> {
        echo(&mut client).await?;
        self.process.signal(Signal::Terminate);
        let code = client.close_code().await?;
        ensure!(code == Some(1012), "closed with {code:?}");
        let status = self.process.exit(wait::SOON).await?;
        ensure!(status.success(), "{status}");
        Ok(())
    }
}

async fn echo(client: &mut WebSocket) -> Result<()> {
    client.send("hello").await?;
    let text = client.text().await?;
    ensure!(text == "hello", "{text}");
    Ok(())
}
