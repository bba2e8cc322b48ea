//! A real redis-server for tests: private, on a unix socket, without persistence.

use std::env;
use std::fs;
use std::path::PathBuf;
use std::process::Child;
use std::process::Command;
use std::process::Stdio;
use std::sync::atomic::AtomicU32;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::time;

/// The longest wait of a test.
pub(crate) const DEADLINE: Duration = Duration::from_secs(20);

/// A redis-server that is killed when this is dropped.
pub(crate) struct RedisServer {
    directory: PathBuf,
    child: Option<Child>,
}

impl RedisServer {
    /// The address of a server that is not started yet.
    pub(crate) fn absent() -> Self {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let name = format!("causeway-redis-{}-{number}", std::process::id());
        let directory = env::temp_dir().join(name);
        fs::create_dir_all(&directory).unwrap();
        Self {
            directory,
            child: None,
        }
    }

    pub(crate) async fn start() -> Self {
        let mut server = Self::absent();
        server.launch(&[]).await;
        server
    }

    /// Starts the server, with `arguments` besides the usual ones, and waits until it responds.
    pub(crate) async fn launch(&mut self, arguments: &[&str]) {
        let socket = self.socket();
        let child = Command::new("redis-server")
            .args(["--port", "0", "--save", "", "--appendonly", "no"])
            .args(["--daemonize", "no", "--unixsocket"])
            .arg(&socket)
            .args(arguments)
            .current_dir(&self.directory)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("these tests need redis-server on PATH (apt install redis-server)");
        self.child = Some(child);
        let answers = async {
            while !self.cli(&["PING"]).contains("PONG") {
                time::sleep(Duration::from_millis(5)).await;
            }
        };
        time::timeout(DEADLINE, answers)
            .await
            .expect("redis-server does not respond");
    }

    /// Ends the server as a crash would.
    pub(crate) fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            child.kill().unwrap();
            child.wait().unwrap();
        }
    }

    /// Suspends the process (SIGSTOP): its sockets stay open, and it does not respond.
    pub(crate) fn freeze(&self) {
        self.signal("-STOP");
    }

    pub(crate) fn thaw(&self) {
        self.signal("-CONT");
    }

    fn signal(&self, signal: &str) {
        let pid = self.child.as_ref().unwrap().id().to_string();
        let status = Command::new("kill").args([signal, &pid]).status().unwrap();
        assert!(status.success());
    }

    pub(crate) fn socket(&self) -> PathBuf {
        self.directory.join("redis.sock")
    }

    pub(crate) fn url(&self) -> String {
        format!("unix://{}", self.socket().display())
    }

    /// The output of redis-cli.
    pub(crate) fn cli(&self, arguments: &[&str]) -> String {
        let output = Command::new("redis-cli")
            .arg("-s")
            .arg(self.socket())
            .args(arguments)
            .output()
            .expect("these tests need redis-cli on PATH (apt install redis-tools)");
        String::from_utf8_lossy(&output.stdout).into_owned()
    }
}

impl Drop for RedisServer {
    fn drop(&mut self) {
        self.kill();
        fs::remove_dir_all(&self.directory).ok();
    }
}
