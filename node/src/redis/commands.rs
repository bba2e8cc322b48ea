//! Sends commands that are not publications to Redis: one multiplexed connection, opened when it is
//! needed and replaced when it fails.
//!
//! Callers share the connection, and their commands are pipelined on it. The number of callers at a time and
//! their waits are bounded, so that an unresponsive Redis delays callers only for a limited time.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering;
use std::time::Duration;

use deadpool_redis::redis::AsyncConnectionConfig;
use deadpool_redis::redis::Client;
use deadpool_redis::redis::Pipeline;
use deadpool_redis::redis::RedisError;
use deadpool_redis::redis::ServerError;
use deadpool_redis::redis::Value;
use deadpool_redis::redis::aio::MultiplexedConnection;
use tokio::sync::Mutex;
use tokio::sync::Semaphore;
use tokio::time;
use tokio::time::Instant;

use crate::config;

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
pub(crate) struct Commands {
    client: Client,
    timeouts: Timeouts,
    name: String,
    room: Semaphore,
    /// Whether the connection may be dead without having said so.
    is_suspect: AtomicBool,
    state: Mutex<State>,
}

struct Timeouts {
    connect: Duration,
    response: Duration,
}

#[derive(Default)]
struct State {
    open: Option<Open>,
    /// How many connections have been opened.
    opened: u64,
    /// The id of the last one in Redis.
    last_id: Option<i64>,
    failed: Option<(Instant, CommandError)>,
}

#[derive(Clone)]
struct Open {
    number: u64,
    connection: MultiplexedConnection,
}

/// The replies of Redis to the commands of a pipeline.
#[derive(Debug)]
pub(crate) struct Answers {
    /// One for each command. None is an error, except from [`Commands::try_each`].
    pub(crate) values: Vec<Value>,
    /// Which connection they came over: another number is another connection, and maybe another server.
    pub(crate) connection: u64,
}

/// Why commands failed. They may have been executed.
#[derive(Debug, Clone, thiserror::Error)]
pub(crate) enum CommandError {
    /// There is no connection, or it broke.
    #[error("cannot reach redis")]
    Unreachable(#[source] Arc<RedisError>),
    /// Redis did not reply, or no slot became free, in time.
    #[error("redis did not reply within {0:?}")]
    Timeout(Duration),
    /// Redis rejected at least one of the commands.
    #[error("redis rejected a command: {0}")]
    Refused(String),
    /// Redis has no memory left for at least one of the commands.
    #[error("redis is full: {0}")]
    Full(String),
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

impl Commands {
    /// Connects with the first command. `name` is what `CLIENT LIST` shows.
    pub(crate) fn new(config: &config::Redis, name: String) -> Self {
        let info = super::connection_info(&config.server);
        Self {
            client: Client::open(info).expect("an address needs no parsing"),
            timeouts: Timeouts {
                connect: config.connect_timeout,
                response: config.response_timeout,
            },
            name,
            room: Semaphore::new(CALLERS_MAX),
            is_suspect: AtomicBool::new(false),
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
    pub(crate) async fn run(&self, commands: &Pipeline) -> Result<Answers, CommandError> {
        let answers = self.try_each(commands).await?;
        match answers.values.iter().find_map(error_in) {
            Some(error) => Err(CommandError::of(error)),
            None => Ok(answers),
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
    pub(crate) async fn try_each(&self, commands: &Pipeline) -> Result<Answers, CommandError> {
        let patience = self.timeouts.connect + self.timeouts.response;
        let outcome = time::timeout(patience, async {
            let _room = self.room.acquire().await.expect("it is never closed");
            let mut open = self.connection().await?;
            let count = commands.len();
            let answered = open.connection.send_packed_commands(commands, 0, count);
            let values = match answered.await {
                Ok(values) => values,
                Err(error) => {
                    self.give_up(open.number).await;
                    return Err(CommandError::Unreachable(Arc::new(error)));
                }
            };
            let mut errors = values.iter().filter_map(error_in);
            if errors.any(|error| UNUSABLE_CODES.contains(&error.code())) {
                self.give_up(open.number).await;
            }
            Ok(Answers {
                values,
                connection: open.number,
            })
        });
        outcome
            .await
            .unwrap_or(Err(CommandError::Timeout(patience)))
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
        if let Some(open) = &state.open {
            return Ok(open.clone());
        }
        if let Some((at, error)) = &state.failed
            && at.elapsed() < CONNECT_PAUSE
        {
            return Err(error.clone());
        }
        match self.open(state.last_id).await {
            Ok((connection, id)) => {
                state.opened += 1;
                state.failed = None;
                state.last_id = id;
                let number = state.opened;
                let open = Open { number, connection };
                state.open = Some(open.clone());
                Ok(open)
            }
            Err(error) => {
                let error = CommandError::Unreachable(Arc::new(error));
                state.failed = Some((Instant::now(), error.clone()));
                Err(error)
            }
        }
    }

    /// Connects, and has Redis close the previous connection: commands on it that got no reply must not be
    /// executed after commands on this one.
    async fn open(
        &self,
        last_id: Option<i64>,
    ) -> Result<(MultiplexedConnection, Option<i64>), RedisError> {
        let config = AsyncConnectionConfig::new()
            .set_connection_timeout(Some(self.timeouts.connect))
            .set_response_timeout(Some(self.timeouts.response));
        let opening = self
            .client
            .get_multiplexed_async_connection_with_config(&config);
        let mut connection = opening.await?;
        // Ids start over when Redis restarts, so the last one's name has to match too; for that it is looked
        // up before this connection has the name. Without the permission this is skipped.
        let mut commands = Pipeline::new();
        let last_id = last_id.unwrap_or_default();
        commands.cmd("CLIENT").arg("LIST").arg("ID").arg(last_id);
        commands.cmd("CLIENT").arg("SETNAME").arg(&self.name);
        commands.cmd("CLIENT").arg("ID");
        let answers = connection.send_packed_commands(&commands, 0, 3).await?;
        let name = format!("name={}", self.name);
        let is_last = |list: &Value| match list {
            Value::BulkString(list) => String::from_utf8_lossy(list)
                .split_ascii_whitespace()
                .any(|field| field == name),
            _ => false,
        };
        if answers.first().is_some_and(is_last) {
            let mut kill = Pipeline::new();
            kill.cmd("CLIENT").arg("KILL").arg("ID").arg(last_id);
            connection.send_packed_commands(&kill, 0, 1).await?;
        }
        let id = match answers.get(2) {
            Some(Value::Int(id)) => Some(*id),
            _ => None,
        };
        Ok((connection, id))
    }

    /// Stops using connection `number`.
    async fn give_up(&self, number: u64) {
        let mut state = self.state.lock().await;
        state.open.take_if(|open| open.number == number);
    }
}

fn error_in(value: &Value) -> Option<&ServerError> {
    match value {
        Value::ServerError(error) => Some(error),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;
    use crate::redis::testing::RedisServer;

    fn commands(server: &RedisServer) -> Commands {
        let text = format!(
            "broker: {{kind: redis, url: \"{}\", response_timeout: 300ms, connect_timeout: 300ms}}",
            server.url()
        );
        let config::Broker::Redis(config) = Config::parse("test", &text).unwrap().broker else {
            panic!("redis is expected")
        };
        Commands::new(&config, "causeway:test".to_owned())
    }

    fn ping() -> Pipeline {
        let mut pipeline = Pipeline::new();
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
                if let Ok(answers) = commands.run(&ping()).await {
                    return answers;
                }
                time::sleep(Duration::from_millis(10)).await;
            }
        };
        let answers = time::timeout(crate::redis::testing::DEADLINE, answered).await;
        assert_eq!(answers.unwrap().connection, 2);
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
            let mut set = Pipeline::new();
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
        let mut set = Pipeline::new();
        set.cmd("SET").arg("a").arg("b");
        let mut script = Pipeline::new();
        let text = "return redis.call('SET', KEYS[1], '1')";
        script.cmd("EVAL").arg(text).arg(1).arg("a");
        for full in [set, script] {
            let error = commands.run(&full).await.unwrap_err();
            assert!(matches!(error, CommandError::Full(_)), "{error}");
            let answers = commands.try_each(&full).await.unwrap();
            assert!(matches!(answers.values[..], [Value::ServerError(_)]));
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
}
