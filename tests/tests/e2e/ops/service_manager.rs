//! Both programs tell a service manager such as systemd when they are ready, reload, still work and stop.

use std::{
    fs,
    os::linux::net::SocketAddrExt as _,
    os::unix::net::{SocketAddr, UnixDatagram},
};

use anyhow::{Context as _, Result, ensure};
use causeway_tests::harness::{
    edge::{self, Edge, Program},
    node::{self, Node},
    process::{Process, Signal},
    programs,
    scratch::Scratch,
    wait,
};
use serde_json::json;

/// The program's watchdog. It has to report twice as often.
const WATCHDOG: (&str, &str) = ("WATCHDOG_USEC", "500000");

/// The service manager's end of the socket.
struct Messages(UnixDatagram);

impl Messages {
    /// Listens on the abstract socket `name`.
    fn listen(name: &str) -> Result<Self> {
        let socket = UnixDatagram::bind_addr(&SocketAddr::from_abstract_name(name)?)?;
        socket.set_nonblocking(true)?;
        Ok(Self(socket))
    }

    /// The next message that has come.
    fn take(&self) -> Option<String> {
        let mut buffer = [0; 512];
        let length = self.0.recv(&mut buffer).ok()?;
        Some(String::from_utf8_lossy(&buffer[..length]).into_owned())
    }

    /// Waits for the next message; those for the watchdog come at any time and are skipped.
    async fn next(&self) -> Result<String> {
        wait::until("a message to the service manager", wait::SOON, async || {
            self.take().filter(|message| message != "WATCHDOG=1")
        })
        .await
    }

    /// Waits for a message for the watchdog.
    async fn alive(&self) -> Result<()> {
        wait::until("a message for the watchdog", wait::SOON, async || {
            (self.take()? == "WATCHDOG=1").then_some(())
        })
        .await
    }

    /// What two processes tell when one takes over, in any order: which is the main one, and that it is ready.
    async fn successor(&self) -> Result<Successor> {
        let mut both = [self.next().await?, self.next().await?];
        both.sort();
        let [main, ready] = &both;
        let main = main.strip_prefix("MAINPID=").context("no other process")?;
        ensure!(ready == "READY=1", "the successor is not ready: {ready}");
        Ok(Successor(main.to_owned()))
    }

    /// Sends SIGHUP and waits until the reload has ended.
    async fn reload(&self, process: &mut Process) -> Result<()> {
        process.signal(Signal::Hangup);
        let begun = self.next().await?;
        let time = begun.strip_prefix("RELOADING=1\nMONOTONIC_USEC=");
        let time: u64 = time.with_context(|| begun.clone())?.parse()?;
        ensure!(time > 0, "{begun}");
        ensure!(self.next().await? == "READY=1", "a reload has no end");
        Ok(())
    }

    /// What a process tells from its start, which has just been, to its end.
    async fn whole_life(&self, process: &mut Process, file: &str, scratch: &Scratch) -> Result<()> {
        ensure!(self.next().await? == "READY=1", "the start has no end");
        self.alive().await?;
        self.reload(process).await?;
        let file = scratch.path().join(file);
        let valid = fs::read_to_string(&file)?;
        fs::write(&file, "no: such setting\n")?;
        self.reload(process).await?;
        fs::write(&file, valid)?;
        self.alive().await?;
        process.signal(Signal::Terminate);
        ensure!(
            self.next().await? == "STOPPING=1",
            "the drain has no beginning"
        );
        let status = process.exit(wait::SOON).await?;
        ensure!(status.success(), "{status}");
        Ok(())
    }
}

#[tokio::test]
async fn the_edge_tells_when_it_is_ready_reloads_and_stops() -> Result<()> {
    let scratch = Scratch::new("notify-edge")?;
    let name = format!("causeway-edge-{}", std::process::id());
    let messages = Messages::listen(&name)?;
    let socket = format!("@{name}");
    let environment = [("NOTIFY_SOCKET", socket.as_str()), WATCHDOG];
    let settings = edge::settings(&[("n1", "127.0.0.1:9".parse()?)]);
    let mut edge = Edge::start_with(Program::Edge, &environment, &settings, scratch.path()).await?;
    let told = messages.whole_life(&mut edge.process, "edge.yaml", &scratch);
    told.await
}

/// The process that takes over is the main one from then on, and the service never stops.
#[tokio::test]
async fn an_upgrade_of_the_edge_tells_which_process_goes_on() -> Result<()> {
    let scratch = Scratch::new("notify-upgrade")?;
    let name = format!("causeway-upgrade-{}", std::process::id());
    let messages = Messages::listen(&name)?;
    let socket = format!("@{name}");
    let watchdog_pid = ("WATCHDOG_PID", "1");
    let environment = [("NOTIFY_SOCKET", socket.as_str()), WATCHDOG, watchdog_pid];
    let admin = scratch.path().join("admin.sock");
    let settings = edge::settings(&[("n1", "127.0.0.1:9".parse()?)])
        .with("admin.socket", json!(admin))
        .with("takeover.socket", json!(scratch.path().join("edge.sock")));
    let mut edge = Edge::start_with(Program::Edge, &environment, &settings, scratch.path()).await?;
    ensure!(messages.next().await? == "READY=1", "the start has no end");
    let mut ctl = std::process::Command::new(programs::ours("causeway-proxy")?);
    let asked = ctl
        .arg("ctl")
        .arg("--socket")
        .arg(admin)
        .arg("upgrade")
        .output()?;
    ensure!(asked.status.success(), "{asked:?}");
    let successor = messages.successor().await?;
    // Its watchdog is its own, although that of the first was for another process.
    messages.alive().await?;
    let status = edge.process.exit(wait::SOON).await?;
    ensure!(status.success(), "{status}");

    // A reload for which a process takes over ends in the new one.
    let file = scratch.path().join("edge.yaml");
    let slower = settings.with("timeouts.connect", json!("3s"));
    fs::write(file, slower.text())?;
    successor.signal("HUP")?;
    let begun = messages.next().await?;
    ensure!(begun.starts_with("RELOADING=1\n"), "{begun}");
    let third = messages.successor().await?;
    ensure!(third.0 != successor.0, "the same process goes on");
    messages.alive().await?;
    wait::until("the end of the second process", wait::SOON, async || {
        (!successor.is_running()).then_some(())
    })
    .await?;
    drop(third);
    while let Some(message) = messages.take() {
        ensure!(message == "WATCHDOG=1", "the service stops: {message}");
    }
    Ok(())
}

/// The id of a process that is not a child of this one, ended when this is dropped.
struct Successor(String);

impl Successor {
    fn signal(&self, name: &str) -> Result<()> {
        let sent = std::process::Command::new("kill")
            .args(["-s", name, &self.0])
            .status()?;
        ensure!(sent.success(), "{sent}");
        Ok(())
    }

    fn is_running(&self) -> bool {
        std::path::Path::new("/proc")
            .join(&self.0)
            .join("fd")
            .read_dir()
            .is_ok_and(|mut it| it.next().is_some())
    }
}

impl Drop for Successor {
    fn drop(&mut self) {
        let kill = std::process::Command::new("kill")
            .args(["-KILL", &self.0])
            .status();
        drop(kill);
    }
}

#[tokio::test]
async fn a_node_tells_when_it_is_ready_reloads_and_stops() -> Result<()> {
    let scratch = Scratch::new("notify-node")?;
    let name = format!("causeway-node-{}", std::process::id());
    let messages = Messages::listen(&name)?;
    let socket = format!("@{name}");
    let environment = [("NOTIFY_SOCKET", socket.as_str()), WATCHDOG];
    let mut node = Node::start_with("n1", node::settings(), scratch.path(), &environment).await?;
    let told = messages.whole_life(&mut node.process, "n1.yaml", &scratch);
    told.await
}

/// The Pingora server in which the edge is mounted tells its service manager itself.
#[tokio::test]
async fn the_plugin_tells_nothing() -> Result<()> {
    let scratch = Scratch::new("notify-plugin")?;
    let name = format!("causeway-plugin-{}", std::process::id());
    let messages = Messages::listen(&name)?;
    let socket = format!("@{name}");
    let environment = [("NOTIFY_SOCKET", socket.as_str()), WATCHDOG];
    let settings = edge::settings(&[("n1", "127.0.0.1:9".parse()?)])
        .with("drain", json!({ "spread": "0s", "late": "0s" }));
    let mut edge =
        Edge::start_with(Program::Plugin, &environment, &settings, scratch.path()).await?;
    edge.process.signal(Signal::Terminate);
    edge.process.exit(wait::SOON).await?;
    ensure!(
        messages.take().is_none(),
        "a message that is not the edge's"
    );
    Ok(())
}
