//! Keeps a lane's order across its connections.
//!
//! A lane gives its connection up when Redis says nothing for too long. What it wrote may still be on its
//! way: in the kernel's buffers behind a broken link, to be sent again seconds after the link is whole, or
//! in the socket of a Redis that was stopped. The lane's next connection would overtake it. So the next
//! one first sees the last one out: it gives Redis a moment to come to its end, then has Redis close it.

use std::time::Duration;

use deadpool_redis::Connection;
use deadpool_redis::redis::Pipeline;
use deadpool_redis::redis::RedisError;
use deadpool_redis::redis::Value;
use tokio::time;
use tracing::debug;

/// How often and how long Redis is asked whether the last connection is gone.
const LOOKS: u32 = 20;
const LOOK_INTERVAL: Duration = Duration::from_millis(10);

/// A connection as Redis knows it. Ids start over when Redis restarts, so the name has to agree too.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Identity {
    id: i64,
    name: String,
}

/// Names the connection, and asks for its id. `None` if Redis does not allow it: then there is no fence.
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
            debug!("redis tells no client id: order across reconnects is not fenced");
            Ok(None)
        }
    }
}

/// Returns once Redis is done with the connection `last`.
pub(super) async fn see_out(
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
    debug!("redis was made to close the lane's last connection");
    Ok(())
}

/// Whether Redis still has `last`; no, if it does not tell.
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
