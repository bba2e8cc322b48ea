//! Sends commands that are not publications to one Redis server: one multiplexed connection, opened when it is
//! needed and replaced when it fails.
//!
//! Callers share the connection, and their commands are pipelined on it. The number of callers at a time and
//! their waits are bounded, so that an unresponsive Redis delays callers only for a limited time.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering;
use std::time::Duration;

use deadpool_redis::redis::RedisError;
use deadpool_redis::redis::ServerError;
use deadpool_redis::redis::Value;
use tokio::sync::Mutex;
use tokio::sync::Semaphore;
use tokio::time;
use tokio::time::Instant;

use super::Batch;
use super::ConnectError;
use super::Connector;
use super::Fence;
use super::Link;

/// Callers at a time; more wait.
const CALLERS_MAX: usize = 1024;

/// How long a failed attempt to connect stands for all callers, so that they do not queue up for one each.
const CONNECT_PAUSE: Duration = Duration::from_millis(100);

/// Errors of a Redis that does not accept writes, or not yet: the connection leads to the wrong server.
const UNUSABLE_CODES: [&str; 3] = ["READONLY", "LOADING", "MASTERDOWN"];

/// The error of a Redis that has reached `maxmemory` and may not evict. Within a script older versions use another code, but
/// the same text.
const FULL_CODE: &str = "OOM";
const FULL_WORDS: &str = "OOM command not allowed";

/// A connection for commands.
pub(crate) struct ServerCommands {
    connector: Connector,
    /// What its connection is for, which is part of its name in Redis.
    role: &'static str,
    room: Semaphore,
    /// Whether the connection may be dead without having said so.
    is_suspect: AtomicBool,
    /// How often the connection was replaced.
    replaced: AtomicU64,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    open: Option<Open>,
    /// How many connections have been opened.
    opened: u64,
    /// The last one: commands on it that got no reply must not be executed after commands on the next one.
    fence: Fence,
    failed: Option<(Instant, CommandError)>,
}

#[derive(Clone)]
struct Open {
    number: u64,
    link: Link,
}

/// The replies of Redis to the commands of a batch.
#[derive(Debug)]
pub(crate) struct Replies {
    /// One for each command. None is an error, except from [`ServerCommands::try_each`].
    pub(crate) values: Vec<Value>,
    /// Which connection they came over: another number is another connection, and maybe another server.
    pub(crate) connection: u64,
}

/// Why commands failed. They may have been executed.
#[derive(Debug, Clone, thiserror::Error)]
pub(crate) enum CommandError {
    /// There is no connection, or it broke.
    #[error("cannot reach redis")]
    Unreachable(#[source] Arc<NoLink>),
    /// Redis did not reply, or no slot became free, in time.
    #[error("redis did not reply within {0:?}")]
    Timeout(Duration),
    /// Redis rejected at least one of the commands.
    #[error("redis rejected a command: {0}")]
    Refused(String),
    /// Redis has no memory left for at least one of the commands.
    #[error("redis is full: {0}")]
    Full(String),
    /// No server of the cluster has the keys: they were not executed, but others of the batch may have been.
    #[error("{0}")]
    Uncovered(String),
}

/// Why there is no connection for commands.
#[derive(Debug, thiserror::Error)]
pub(crate) enum NoLink {
    #[error(transparent)]
    Connect(#[from] ConnectError),
    /// The connection broke, or Redis did not reply.
    #[error(transparent)]
    Broken(#[from] RedisError),
}

impl From<NoLink> for CommandError {
    fn from(why: NoLink) -> Self {
        Self::Unreachable(Arc::new(why))
    }
}

impl CommandError {
    /// Classifies `error`, a reply of Redis.
    pub(crate) fn of(error: &ServerError) -> Self {
        let text = error.to_string();
        if error.code() == FULL_CODE {
            Self::Full(text)
        } else {
            Self::refused(text)
        }
    }

    /// Classifies an error reply by its text.
    pub(crate) fn refused(text: String) -> Self {
        if text.contains(FULL_WORDS) {
            Self::Full(text)
        } else {
            Self::Refused(text)
        }
    }
}

impl ServerCommands {
    /// Connects with the first command. `role` is part of the name that `CLIENT LIST` shows.
    pub(super) fn new(connector: Connector, role: &'static str) -> Self {
        Self {
            connector,
            role,
            room: Semaphore::new(CALLERS_MAX),
            is_suspect: AtomicBool::new(false),
            replaced: AtomicU64::new(0),
            state: Mutex::default(),
        }
    }

    /// Sends `commands` in one pipeline and waits for all of their replies.
    ///
    /// # Errors
    ///
    /// [`CommandError`]: it is unknown which of the commands were executed.
    ///
    /// # Cancel safety
    ///
    /// After dropping this future it is unknown whether the commands are executed.
    pub(crate) async fn run(&self, commands: &Batch) -> Result<Replies, CommandError> {
        let replies = self.try_each(commands).await?;
        match replies.values.iter().find_map(error_in) {
            Some(error) => Err(CommandError::of(error)),
            None => Ok(replies),
        }
    }

    /// As [`run`](Self::run), but error replies are returned among the others.
    ///
    /// # Errors
    ///
    /// [`CommandError`], except [`CommandError::Refused`] and [`CommandError::Full`].
    ///
    /// # Cancel safety
    ///
    /// After dropping this future it is unknown whether the commands are executed.
    pub(crate) async fn try_each(&self, commands: &Batch) -> Result<Replies, CommandError> {
        let wait_max = self.wait_max();
        let outcome = time::timeout(wait_max, async {
            let _room = self.room.acquire().await.expect("it is never closed");
            let mut open = self.connection().await?;
            let values = match open.link.send(commands).await {
                Ok(values) => values,
                Err(error) => {
                    self.give_up(open.number).await;
                    return Err(NoLink::from(error).into());
                }
            };
            let mut errors = values.iter().filter_map(error_in);
            if errors.any(|error| UNUSABLE_CODES.contains(&error.code())) {
                self.give_up(open.number).await;
            }
            Ok(Replies {
                values,
                connection: open.number,
            })
        });
        outcome
            .await
            .unwrap_or(Err(CommandError::Timeout(wait_max)))
    }

    /// How long commands may take.
    pub(super) fn wait_max(&self) -> Duration {
        self.connector.connect_timeout() + self.connector.response_timeout()
    }

    /// Makes the next command reconnect: the connection may be dead, and detecting that by a command takes
    /// the whole response timeout.
    pub(crate) fn suspect(&self) {
        self.is_suspect.store(true, Ordering::Release);
    }

    async fn connection(&self) -> Result<Open, CommandError> {
        let mut state = self.state.lock().await;
        if self.is_suspect.swap(false, Ordering::AcqRel) {
            state.open = None;
        }
        state.open.take_if(|open| open.link.tenure().is_over());
        if let Some(open) = &state.open {
            return Ok(open.clone());
        }
        if let Some((at, error)) = &state.failed
            && at.elapsed() < CONNECT_PAUSE
        {
            return Err(error.clone());
        }
        match self.open(&mut state.fence).await {
            Ok(link) => {
                state.opened += 1;
                self.replaced.store(state.opened - 1, Ordering::Relaxed);
                state.failed = None;
                let number = state.opened;
                let open = Open { number, link };
                state.open = Some(open.clone());
                Ok(open)
            }
            Err(error) => {
                let error = CommandError::from(error);
                state.failed = Some((Instant::now(), error.clone()));
                Err(error)
            }
        }
    }

    /// Connects, and waits until Redis has closed the previous connection.
    async fn open(&self, fence: &mut Fence) -> Result<Link, NoLink> {
        let mut link = Link::open(&self.connector, self.role).await?;
        fence.pass(&mut link).await?;
        Ok(link)
    }

    /// How often the connection was replaced.
    pub(super) fn replaced(&self) -> u64 {
        self.replaced.load(Ordering::Relaxed)
    }

    /// Stops using connection `number`.
    async fn give_up(&self, number: u64) {
        let mut state = self.state.lock().await;
        state.open.take_if(|open| open.number == number);
    }
}

pub(super) fn error_in(value: &Value) -> Option<&ServerError> {
    match value {
        Value::ServerError(error) => Some(error),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;
    use crate::redis::Script;
    use crate::redis::testing::RedisServer;
    use crate::redis::testing::servers;

    fn commands(server: &RedisServer) -> ServerCommands {
        let text = format!(
            "broker: {{kind: redis, url: \"{}\", response_timeout: 300ms, connect_timeout: 300ms}}",
            server.url()
        );
        let broker = Config::parse("test", &text).unwrap().broker;
        let server = servers(&broker).remove(0);
        ServerCommands::new(server.connector(), "test")
    }

    fn ping() -> Batch {
        let mut pipeline = Batch::new();
        pipeline.cmd("PING");
        pipeline
    }

    #[tokio::test]
    async fn a_connection_is_kept_until_it_fails_and_then_replaced() {
        let mut server = RedisServer::start().await;
        let commands = commands(&server);
        assert_eq!(commands.run(&ping()).await.unwrap().connection, 1);
        assert_eq!(commands.run(&ping()).await.unwrap().connection, 1);
        server.kill();
        assert!(commands.run(&ping()).await.is_err());
        server.launch(&[]).await;
        let answered = async {
            loop {
                if let Ok(replies) = commands.run(&ping()).await {
                    return replies;
                }
                time::sleep(Duration::from_millis(10)).await;
            }
        };
        let replies = time::timeout(crate::redis::testing::DEADLINE, answered).await;
        assert_eq!(replies.unwrap().connection, 2);
    }

    #[tokio::test]
    async fn a_suspect_connection_is_replaced_before_it_fails() {
        let server = RedisServer::start().await;
        let commands = commands(&server);
        assert_eq!(commands.run(&ping()).await.unwrap().connection, 1);
        commands.suspect();
        assert_eq!(commands.run(&ping()).await.unwrap().connection, 2);
        assert_eq!(commands.run(&ping()).await.unwrap().connection, 2);
    }

    #[tokio::test]
    async fn an_unresponsive_redis_causes_a_timeout_and_a_new_connection() {
        let server = RedisServer::start().await;
        let commands = commands(&server);
        commands.run(&ping()).await.unwrap();
        server.freeze();
        assert!(commands.run(&ping()).await.is_err());
        server.thaw();
        assert!(1 < commands.run(&ping()).await.unwrap().connection);
    }

    #[tokio::test]
    async fn commands_of_an_old_connection_are_not_executed_after_those_of_the_next() {
        let server = RedisServer::start().await;
        let commands = commands(&server);
        let set = |value: &str| {
            let mut set = Batch::new();
            set.cmd("SET").arg("key").arg(value);
            set
        };
        commands.run(&set("first")).await.unwrap();
        server.freeze();
        assert!(commands.run(&set("late")).await.is_err());
        let next = async {
            while commands.run(&set("next")).await.is_err() {
                time::sleep(Duration::from_millis(10)).await;
            }
        };
        let thaw = async { server.thaw() };
        tokio::join!(next, thaw);
        assert_eq!(server.cli(&["GET", "key"]), "next\n");
    }

    #[tokio::test]
    async fn a_full_redis_is_distinguished_from_a_rejected_command_also_within_a_script() {
        let server = RedisServer::start().await;
        server.cli(&["CONFIG", "SET", "maxmemory", "1"]);
        let commands = commands(&server);
        let mut set = Batch::new();
        set.cmd("SET").arg("a").arg("b");
        static SET: Script = Script::new("return redis.call('SET', KEYS[1], '1')");
        let mut script = Batch::new();
        script.call(&SET, &["a"]);
        for full in [set, script] {
            let error = commands.run(&full).await.unwrap_err();
            assert!(matches!(error, CommandError::Full(_)), "{error}");
            let replies = commands.try_each(&full).await.unwrap();
            assert!(matches!(replies.values[..], [Value::ServerError(_)]));
        }
        commands.run(&ping()).await.unwrap();
    }

    #[tokio::test]
    async fn a_refused_command_is_an_error_and_the_connection_stays() {
        let server = RedisServer::start().await;
        let commands = commands(&server);
        let mut wrong = ping();
        wrong.cmd("INCR").arg("a").arg("b");
        let error = commands.run(&wrong).await.unwrap_err();
        assert!(matches!(error, CommandError::Refused(_)), "{error}");
        assert_eq!(commands.run(&ping()).await.unwrap().connection, 1);
    }

    #[tokio::test]
    async fn a_script_is_sent_when_redis_does_not_have_it_and_called_by_its_digest_otherwise() {
        static ADD: Script = Script::new("return redis.call('INCRBY', KEYS[1], ARGV[1])");
        static MUL: Script = Script::new("return redis.call('GET', KEYS[1]) * ARGV[1]");
        let server = RedisServer::start().await;
        let commands = commands(&server);
        let mut batch = Batch::new();
        batch.call(&ADD, &["a"]).arg(2);
        batch.cmd("GET").arg("nothing");
        batch.call(&MUL, &["a"]).arg(3);
        batch.call(&ADD, &["a"]).arg(5);
        let expected = |values: [i64; 3]| {
            let [first, second, third] = values.map(Value::Int);
            vec![first, Value::Nil, second, third]
        };
        let ran = async || commands.run(&batch).await.unwrap().values;
        assert_eq!(ran().await, expected([2, 6, 7]));
        assert_eq!(ran().await, expected([9, 27, 14]));
        server.cli(&["SCRIPT", "FLUSH"]);
        assert_eq!(ran().await, expected([16, 48, 21]));
        let sent = server.cli(&["INFO", "commandstats"]);
        assert!(sent.contains("cmdstat_eval:calls=6,"), "{sent}");
        assert!(sent.contains("cmdstat_evalsha:calls=9,"), "{sent}");
    }

    #[tokio::test]
    async fn a_user_who_may_not_call_scripts_by_digest_sends_them() {
        static ADD: Script = Script::new("return redis.call('INCR', KEYS[1])");
        let server = RedisServer::start().await;
        server.cli(&["ACL", "SETUSER", "default", "-evalsha"]);
        let commands = commands(&server);
        let mut batch = Batch::new();
        batch.call(&ADD, &["a"]);
        assert_eq!(commands.run(&batch).await.unwrap().values, [Value::Int(1)]);
        server.cli(&["ACL", "SETUSER", "default", "-incr"]);
        let error = commands.run(&batch).await.unwrap_err();
        assert!(matches!(error, CommandError::Refused(_)), "{error}");
        assert_eq!(server.cli(&["GET", "a"]), "1\n");
    }
}
