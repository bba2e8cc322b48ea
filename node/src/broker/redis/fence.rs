//! Keeps the order of publications when a publisher reconnects.
//!
//! A publisher abandons its connection when Redis does not reply for too long. What it wrote may still be in
//! transit: in the kernel's buffers behind a broken link, to be retransmitted seconds after the link is repaired,
//! or in the socket of a Redis that was suspended. The next connection would overtake it. So that one first waits
//! until Redis has closed the last one: it gives Redis a moment to read to its end, then has Redis close it.

use std::time::Duration;

use deadpool_redis::Connection;
use deadpool_redis::redis::Pipeline;
use deadpool_redis::redis::RedisError;
use deadpool_redis::redis::Value;
use tokio::time;
use tracing::debug;

/// How often and how long to check whether the last connection is closed.
const LOOKS: u32 = 20;
const LOOK_INTERVAL: Duration = Duration::from_millis(10);

/// A connection by its id in Redis. Ids start over when Redis restarts, so the name has to match too.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Identity {
    id: i64,
    name: String,
}

/// Names the connection, and reads its id. `None` if Redis does not permit it: then there is no fence.
pub(super) async fn identify(
    connection: &mut Connection,
    name: String,
) -> Result<Option<Identity>, RedisError> {
    let mut commands = Pipeline::new();
    commands.cmd("CLIENT").arg("SETNAME").arg(&name);
    commands.cmd("CLIENT").arg("ID");
    let answers = connection.send_packed_commands(&commands, 0, 2).await?;
    match answers.as_slice() {
        [Value::Okay, Value::Int(id)] => Ok(Some(Identity { id: *id, name })),
        _ => {
            debug!("redis does not permit CLIENT commands: order across reconnects is not fenced");
            Ok(None)
        }
    }
}

/// Returns once Redis has closed the connection `last`.
pub(super) async fn wait_closed(
    connection: &mut Connection,
    last: &Identity,
) -> Result<(), RedisError> {
    for _ in 0..LOOKS {
        if !is_open(connection, last).await? {
            return Ok(());
        }
        time::sleep(LOOK_INTERVAL).await;
    }
    let mut kill = Pipeline::new();
    kill.cmd("CLIENT").arg("KILL").arg("ID").arg(last.id);
    connection.send_packed_commands(&kill, 0, 1).await?;
    debug!("had redis close the publisher's last connection");
    Ok(())
}

/// Whether Redis still has `last`; `false` if it does not permit the query.
async fn is_open(connection: &mut Connection, last: &Identity) -> Result<bool, RedisError> {
    let mut list = Pipeline::new();
    list.cmd("CLIENT").arg("LIST").arg("ID").arg(last.id);
    let answers = connection.send_packed_commands(&list, 0, 1).await?;
    let text = match answers.as_slice() {
        [Value::BulkString(bytes)] => String::from_utf8_lossy(bytes),
        _ => return Ok(false),
    };
    let name = format!("name={}", last.name);
    Ok(text.split_ascii_whitespace().any(|field| field == name))
}
