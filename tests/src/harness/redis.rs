//! A private `redis-server` that keeps nothing on disk, or all it is given.

use std::{
    fs,
    net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener},
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, bail, ensure};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    process::Command,
};

use crate::harness::{
    process::{Process, Signal},
    programs,
    tls::Authority,
    wait,
};

/// How often another port is tried when somebody took the first between our look and Redis's bind.
const PORTS_TRIED: u32 = 5;

/// What a Redis that is killed has when it is started again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Keeps {
    /// Nothing.
    Nothing,
    /// Everything that it has acknowledged, in its directory, which no other one may have.
    Everything,
}

impl Keeps {
    /// The setting.
    pub(super) fn appendonly(self) -> &'static str {
        match self {
            Self::Nothing => "no",
            Self::Everything => "yes",
        }
    }
}

/// A running Redis, which may be killed and started again on its port.
#[derive(Debug)]
pub struct Redis {
    process: Process,
    keeps: Keeps,
    directory: PathBuf,
    address: SocketAddr,
    announced: Option<SocketAddr>,
}

impl Redis {
    /// Starts one on a free port of `host`, with its log in `directory`, and waits until it responds.
    ///
    /// # Errors
    ///
    /// It is not installed, or does not start.
    pub async fn start(host: Ipv4Addr, directory: &Path) -> Result<Self> {
        Self::start_that(Keeps::Nothing, host, directory).await
    }

    /// The same, and says what it keeps.
    ///
    /// # Errors
    ///
    /// It is not installed, or does not start.
    pub async fn start_that(keeps: Keeps, host: Ipv4Addr, directory: &Path) -> Result<Self> {
        let mut last = None;
        for _ in 0..PORTS_TRIED {
            let address = free_port(host)?;
            match launch(directory, address, keeps, None).await {
                Ok(process) => {
                    return Ok(Self {
                        process,
                        keeps,
                        directory: directory.to_owned(),
                        address,
                        announced: None,
                    });
                }
                Err(error) => last = Some(error),
            }
        }
        Err(last.context("no port was tried")?)
    }

    /// Starts it again on the port it had, after [`Redis::kill`].
    ///
    /// # Errors
    ///
    /// It does not start.
    pub async fn restart(&mut self) -> Result<()> {
        let (directory, address) = (&self.directory, self.address);
        self.process = launch(directory, address, self.keeps, self.announced).await?;
        Ok(())
    }

    /// Drops what it keeps, between [`Redis::kill`] and [`Redis::restart`].
    ///
    /// # Errors
    ///
    /// It cannot be removed.
    pub fn forget(&self) -> Result<()> {
        forget(&self.directory)
    }

    /// Has it call itself `address`, before its next start and after: that is where Sentinels and replicas connect to it.
    ///
    /// # Errors
    ///
    /// It does not obey.
    pub async fn announce(&mut self, address: SocketAddr) -> Result<()> {
        let (ip, port) = (address.ip().to_string(), address.port().to_string());
        for (setting, value) in [("replica-announce-ip", ip), ("replica-announce-port", port)] {
            let said = self.cli(&["CONFIG", "SET", setting, &value]).await?;
            ensure!(said == "OK", "it does not announce its address: {said}");
        }
        self.announced = Some(address);
        Ok(())
    }

    /// What it calls itself.
    #[must_use]
    pub fn announced(&self) -> SocketAddr {
        self.announced.unwrap_or(self.address)
    }

    /// Has it follow the primary at `address`.
    ///
    /// # Errors
    ///
    /// It does not obey.
    pub async fn follow(&self, address: SocketAddr) -> Result<()> {
        let (ip, port) = (address.ip().to_string(), address.port().to_string());
        let said = self.cli(&["REPLICAOF", &ip, &port]).await?;
        ensure!(
            said.starts_with("OK"),
            "it does not follow the primary: {said}"
        );
        Ok(())
    }

    /// Waits until it has all that its primary has.
    ///
    /// # Errors
    ///
    /// It has not soon.
    pub async fn in_sync(&self) -> Result<()> {
        wait::until("a replica to be in sync", wait::SOON, async || {
            let said = self.cli(&["INFO", "replication"]).await.ok()?;
            said.contains("master_link_status:up").then_some(())
        })
        .await
    }

    /// Ends it at once; its connections are reset.
    ///
    /// # Errors
    ///
    /// The system cannot tell whether it ended.
    pub async fn kill(&mut self) -> Result<()> {
        self.process.kill().await
    }

    /// Makes it silent: it keeps its connections and sends no response.
    pub fn freeze(&mut self) {
        self.process.signal(Signal::Stop);
    }

    /// Lets it go on after [`Redis::freeze`].
    pub fn thaw(&mut self) {
        self.process.signal(Signal::Continue);
    }

    /// Has it speak TLS too, on a port of its own, with a certificate that `authority` signs. Returns the URL, which a
    /// [`Redis::restart`] ends.
    ///
    /// # Errors
    ///
    /// It is built without TLS.
    pub async fn speak_tls(&self, authority: &Authority) -> Result<String> {
        let host = self.address.ip().to_string();
        let (certificate, key) = authority.certify(&host)?;
        let write = |name: &str, text: String| -> Result<String> {
            let path = self.directory.join(name);
            fs::write(&path, text)?;
            Ok(path.display().to_string())
        };
        let certificate = write("redis.crt", certificate)?;
        let key = write("redis.key", key)?;
        let address = free_port(self.address.ip())?;
        let port = address.port().to_string();
        let settings = [
            "tls-auth-clients",
            "no",
            "tls-cert-file",
            &certificate,
            "tls-key-file",
            &key,
            "tls-port",
            &port,
        ];
        let said = self
            .cli(&[&["CONFIG", "SET"], &settings[..]].concat())
            .await?;
        ensure!(said == "OK", "redis-server does not speak TLS: {said}");
        Ok(format!("rediss://{address}"))
    }

    /// Where it listens.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The id of its process.
    #[must_use]
    pub fn pid(&self) -> i32 {
        self.process.pid()
    }

    /// The URL that a node takes.
    #[must_use]
    pub fn url(&self) -> String {
        format!("redis://{}", self.address)
    }

    /// Its process.
    pub fn process(&mut self) -> &mut Process {
        &mut self.process
    }

    /// Runs `redis-cli` with these arguments and returns what it printed.
    ///
    /// # Errors
    ///
    /// It is not installed, or fails.
    pub async fn cli(&self, arguments: &[&str]) -> Result<String> {
        cli(self.address, arguments).await
    }
}

/// Runs `redis-cli` against `address` with these arguments and returns what it printed.
pub(super) async fn cli(address: SocketAddr, arguments: &[&str]) -> Result<String> {
    let mut command = Command::new(programs::installed(&["redis-cli"])?);
    let (host, port) = (address.ip().to_string(), address.port().to_string());
    command
        .args(["-h", &host, "-p", &port])
        .args(arguments)
        .kill_on_drop(true);
    let output = command.output().await.context("cannot run redis-cli")?;
    if !output.status.success() {
        bail!("redis-cli {arguments:?} ended with {}", output.status);
    }
    Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

/// Removes the data that a server keeps in `directory`.
pub(super) fn forget(directory: &Path) -> Result<()> {
    for entry in fs::read_dir(directory)? {
        let path = entry?.path();
        if path.is_dir() {
            fs::remove_dir_all(path)?;
        } else if path.extension().is_some_and(|extension| extension == "rdb") {
            fs::remove_file(path)?;
        }
    }
    Ok(())
}

async fn launch(
    directory: &Path,
    address: SocketAddr,
    keeps: Keeps,
    announced: Option<SocketAddr>,
) -> Result<Process> {
    let mut command = Command::new(programs::installed(&["redis-server"])?);
    command.args([
        "--bind",
        &address.ip().to_string(),
        "--port",
        &address.port().to_string(),
        "--save",
        "",
        "--appendonly",
        keeps.appendonly(),
        // For tests that have it load its data set slowly.
        "--enable-debug-command",
        "local",
        // A replica that comes is served at once.
        "--repl-diskless-sync-delay",
        "0",
    ]);
    if let Some(address) = announced {
        let (ip, port) = (address.ip().to_string(), address.port().to_string());
        command.args([
            "--replica-announce-ip",
            &ip,
            "--replica-announce-port",
            &port,
        ]);
    }
    command.arg("--dir").arg(directory);
    let mut process = Process::spawn("redis", command, directory)?;
    let answered = wait::until(
        "a response of redis-server",
        wait::SOON,
        async || match ping(address).await {
            true => Some(true),
            false => (!process.is_running()).then_some(false),
        },
    );
    if !answered.await? {
        bail!("redis-server ended at its start\n{}", process.output());
    }
    Ok(process)
}

async fn ping(address: SocketAddr) -> bool {
    let exchange = async {
        let mut stream = TcpStream::connect(address).await?;
        stream.write_all(b"PING\r\n").await?;
        let mut response = [0; 5];
        stream.read_exact(&mut response).await?;
        std::io::Result::Ok(response)
    };
    exchange.await.is_ok_and(|response| &response == b"+PONG")
}

/// A port that was free a moment ago: Redis cannot be told to let the kernel choose.
pub(super) fn free_port(host: impl Into<IpAddr>) -> Result<SocketAddr> {
    let listener = TcpListener::bind((host.into(), 0)).context("cannot find a free port")?;
    Ok(listener.local_addr()?)
}
