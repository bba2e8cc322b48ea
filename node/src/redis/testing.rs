//! A real redis-server for tests: private, on a unix socket, without persistence.

use std::env;
use std::fs;
use std::path::PathBuf;
use std::process::Child;
use std::process::Command;
use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::AtomicU32;
use std::sync::atomic::Ordering;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::io::AsyncBufReadExt;
use tokio::io::AsyncWriteExt;
use tokio::io::BufReader;
use tokio::net::TcpListener;
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time;
use tokio_util::sync::CancellationToken;

use super::Server;
use crate::config;
use crate::metrics::Metrics;

/// The longest wait of a test.
pub(crate) const DEADLINE: Duration = Duration::from_secs(20);

/// The servers that `broker` names, by address.
pub(crate) fn servers(broker: &config::Broker) -> Vec<Server> {
    super::start(
        broker,
        "test-node",
        &Metrics::new(),
        &CancellationToken::new(),
    )
    .servers
}

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
        let mut command = Command::new("redis-server");
        command.args(["--port", "0", "--save", "", "--appendonly", "no"]);
        command.args(["--repl-diskless-sync-delay", "0"]);
        self.spawn(command.args(arguments)).await;
    }

    /// Starts a Sentinel on `port` that watches the primary `main` on port `primary`. `quorum`: so many have to agree on
    /// a failover.
    pub(crate) async fn launch_sentinel(&mut self, port: u16, primary: u16, quorum: usize) {
        let file = self.directory.join("sentinel.conf");
        let text = format!(
            "bind 127.0.0.1\nport {port}\nsentinel monitor main 127.0.0.1 {primary} {quorum}\n\
             sentinel down-after-milliseconds main 500\nsentinel failover-timeout main 4000\n"
        );
        fs::write(&file, text).unwrap();
        let mut command = Command::new("redis-server");
        self.spawn(command.arg(file).arg("--sentinel")).await;
    }

    async fn spawn(&mut self, command: &mut Command) {
        let child = command
            .args(["--daemonize", "no", "--unixsocket"])
            .arg(self.socket())
            .current_dir(&self.directory)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("these tests need redis-server on PATH (apt install redis-server)");
        self.child = Some(child);
        let replies = async {
            while !self.cli(&["PING"]).contains("PONG") {
                time::sleep(Duration::from_millis(5)).await;
            }
        };
        time::timeout(DEADLINE, replies)
            .await
            .expect("redis-server does not respond");
    }

    /// Whether it is a replica that has all that its primary has.
    pub(crate) fn is_in_sync(&self) -> bool {
        let about = self.cli(&["INFO", "replication"]);
        about.contains("master_link_status:up")
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

/// A Redis Cluster of three primaries.
pub(crate) struct RedisCluster {
    /// The primaries, and behind them their replicas.
    servers: Vec<RedisServer>,
    ports: Vec<u16>,
}

impl RedisCluster {
    const PRIMARIES: usize = 3;

    /// Starts it, with so many replicas of each primary, and waits until all servers agree and the replicas are in sync.
    pub(crate) async fn start(replicas: usize) -> Self {
        let mut cluster = Self {
            servers: Vec::new(),
            ports: Vec::new(),
        };
        for _ in 0..Self::PRIMARIES * (1 + replicas) {
            let (mut server, port) = (RedisServer::absent(), free_port_with_bus());
            let port_text = port.to_string();
            let own = ["--port", &port_text, "--bind", "127.0.0.1"];
            let shared = ["--cluster-enabled", "yes", "--cluster-node-timeout", "2000"];
            server.launch(&[own, shared].concat()).await;
            cluster.servers.push(server);
            cluster.ports.push(port);
        }
        let (primaries, replicas) = cluster.servers.split_at(Self::PRIMARIES);
        for (number, primary) in primaries.iter().enumerate() {
            let of = |number: usize| number * super::SLOTS / Self::PRIMARIES;
            let (first, last) = (of(number).to_string(), (of(number + 1) - 1).to_string());
            primary.cli(&["CLUSTER", "ADDSLOTSRANGE", &first, &last]);
            // Different, so that no two servers have to settle that first.
            let epoch = (number + 1).to_string();
            primary.cli(&["CLUSTER", "SET-CONFIG-EPOCH", &epoch]);
        }
        let first = cluster.ports[0].to_string();
        for server in &cluster.servers[1..] {
            server.cli(&["CLUSTER", "MEET", "127.0.0.1", &first]);
        }
        for (number, replica) in replicas.iter().enumerate() {
            let primary = primaries[number % Self::PRIMARIES].cli(&["CLUSTER", "MYID"]);
            let replicate = ["CLUSTER", "REPLICATE", primary.trim()];
            until(|| replica.cli(&replicate).contains("OK")).await;
        }
        let count = format!("cluster_known_nodes:{}\r\n", cluster.servers.len());
        for server in &cluster.servers {
            until(|| {
                let about = server.cli(&["CLUSTER", "INFO"]);
                about.contains("cluster_state:ok") && about.contains(&count)
            })
            .await;
        }
        for replica in replicas {
            until(|| replica.is_in_sync()).await;
        }
        cluster
    }

    /// What goes into `broker.cluster.servers`.
    pub(crate) fn addresses(&self) -> String {
        addresses(&self.ports)
    }
}

/// Ports of this machine, as a list of the configuration.
pub(crate) fn addresses(ports: &[u16]) -> String {
    let addresses = ports.iter().map(|port| format!("\"127.0.0.1:{port}\""));
    addresses.collect::<Vec<_>>().join(", ")
}

/// Waits until `condition` is met.
pub(crate) async fn until(condition: impl Fn() -> bool) {
    let poll = async {
        while !condition() {
            time::sleep(Duration::from_millis(20)).await;
        }
    };
    time::timeout(DEADLINE, poll).await.expect("in time");
}

/// Such a port of loopback behind which the one of the cluster bus, 10,000 higher, was free too.
fn free_port_with_bus() -> u16 {
    let is_free = |port: &u16| {
        let bus = port.checked_add(10_000);
        bus.is_some_and(|bus| std::net::TcpListener::bind(("127.0.0.1", bus)).is_ok())
    };
    let mut ports = std::iter::repeat_with(free_port);
    ports.find(is_free).expect("it goes on without end")
}

/// A port of loopback that was free a moment ago: Redis cannot be told to let the kernel choose.
pub(crate) fn free_port() -> u16 {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    listener.local_addr().unwrap().port()
}

/// A stand-in for a Sentinel that says whatever a test wants.
pub(crate) struct FakeSentinel {
    pub(crate) port: u16,
    says: Arc<Mutex<Says>>,
    /// Notified when it reports a switch.
    switched: watch::Sender<()>,
    /// How often it was asked.
    asked: watch::Receiver<u64>,
    _tasks: JoinSet<()>,
}

/// What a Sentinel says of the primary.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Says {
    /// It is on this port, by the failover with this epoch.
    Primary(u16, u64),
    /// It does not know it.
    Nothing,
    /// It rejects the question.
    Error,
}

impl FakeSentinel {
    pub(crate) async fn start(says: Says) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let says = Arc::new(Mutex::new(says));
        let (switched, receiver) = watch::channel(());
        let (count, asked) = watch::channel(0);
        let (shared, count) = (Arc::clone(&says), Arc::new(count));
        let mut tasks = JoinSet::new();
        tasks.spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                let (says, count) = (Arc::clone(&shared), Arc::clone(&count));
                connections.spawn(serve(stream, says, receiver.clone(), count));
            }
        });
        Self {
            port,
            says,
            switched,
            asked,
            _tasks: tasks,
        }
    }

    /// Names the primary on this port, and reports a switch to it.
    pub(crate) fn name(&self, port: u16, epoch: u64) {
        self.say(Says::Primary(port, epoch));
        self.switched.send_replace(());
    }

    pub(crate) fn say(&self, says: Says) {
        *self.says.lock() = says;
    }

    /// Waits until it has been asked twice more: what it said the first time has been received.
    pub(crate) async fn until_asked(&self) {
        let mut asked = self.asked.clone();
        let before = *asked.borrow();
        let twice = asked.wait_for(|count| before + 2 <= *count);
        time::timeout(DEADLINE, twice).await.unwrap().unwrap();
    }
}

async fn serve(
    stream: TcpStream,
    says: Arc<Mutex<Says>>,
    mut switched: watch::Receiver<()>,
    asked: Arc<watch::Sender<u64>>,
) {
    let (reader, mut writer) = stream.into_split();
    let mut lines = BufReader::new(reader).lines();
    let mut words: Vec<String> = Vec::new();
    let mut is_subscribed = false;
    loop {
        let line = tokio::select! {
            line = lines.next_line() => line,
            Ok(()) = switched.changed(), if is_subscribed => {
                let push = "*3\r\n$7\r\nmessage\r\n$14\r\n+switch-master\r\n$11\r\nmain 1 2 3 4\r\n";
                writer.write_all(push.as_bytes()).await.ok();
                continue;
            }
        };
        let Ok(Some(line)) = line else { return };
        if line.starts_with('*') {
            words = vec![line];
            continue;
        }
        if line.starts_with('$') {
            continue;
        }
        words.push(line);
        let count: usize = words[0][1..].parse().unwrap();
        if words.len() <= count {
            continue;
        }
        let command = words[1..].join(" ");
        let bulk = |text: String| format!("${}\r\n{text}\r\n", text.len());
        let says = *says.lock();
        let reply = match (command.as_str(), says) {
            ("CLIENT ID", _) => ":1\r\n".to_owned(),
            ("SUBSCRIBE +switch-master", _) => {
                is_subscribed = true;
                "*3\r\n$9\r\nsubscribe\r\n$14\r\n+switch-master\r\n:1\r\n".to_owned()
            }
            ("SENTINEL GET-MASTER-ADDR-BY-NAME main", Says::Primary(port, _)) => {
                format!(
                    "*2\r\n{}{}",
                    bulk("127.0.0.1".into()),
                    bulk(port.to_string())
                )
            }
            ("SENTINEL GET-MASTER-ADDR-BY-NAME main", Says::Nothing) => "*-1\r\n".to_owned(),
            ("SENTINEL MASTER main", Says::Primary(_, epoch)) => {
                format!(
                    "*2\r\n{}{}",
                    bulk("config-epoch".into()),
                    bulk(epoch.to_string())
                )
            }
            (command, _) if command.starts_with("CLIENT SETNAME") => "+OK\r\n".to_owned(),
            _ => "-ERR unknown\r\n".to_owned(),
        };
        writer.write_all(reply.as_bytes()).await.ok();
        if command.starts_with("SENTINEL GET") {
            asked.send_modify(|count| *count += 1);
        }
    }
}

impl Drop for RedisServer {
    fn drop(&mut self) {
        self.kill();
        fs::remove_dir_all(&self.directory).ok();
    }
}
