//! Keeps the order of commands when a connection is replaced.
//!
//! A connection is abandoned when Redis does not reply for too long. What was written to it may still be in
//! transit: in the kernel's buffers behind a broken link, to be retransmitted seconds after the link is repaired,
//! or in the socket of a Redis that was suspended. The next connection would overtake it. So that one first waits
//! until Redis has closed the last one: it gives Redis a moment to read to its end, then has Redis close it.
//! One to another server is left by its [`Tenure`](super::tenure::Tenure).

use deadpool_redis::redis::Pipeline;
use deadpool_redis::redis::RedisError;
use deadpool_redis::redis::Value;
use tokio::time;
use tokio::time::Duration;
use tracing::debug;

use super::Link;
use super::connect::Identity;

/// How often and how long to check whether the last connection is closed.
const LOOKS: u32 = 20;
const LOOK_INTERVAL: Duration = Duration::from_millis(10);

/// The last of the connections that replace each other, as long as commands on it may lack their replies.
#[derive(Debug, Default)]
pub(crate) struct Fence {
    last: Option<Identity>,
}

impl Fence {
    /// Returns once Redis has closed the last connection; `link` is then the last one. Without the permission to list
    /// connections there is no fence.
    ///
    /// # Errors
    ///
    /// [`RedisError`]: `link` can no longer be used.
    pub(crate) async fn pass(&mut self, link: &mut Link) -> Result<(), RedisError> {
        if let Some(last) = &self.last {
            wait_closed(link, last).await?;
        }
        if link.identity.is_none() {
            debug!("redis does not permit CLIENT commands: order across reconnects is not fenced");
        }
        self.last = link.identity.clone();
        Ok(())
    }

    /// All commands sent over the last connection have their replies.
    pub(crate) fn lift(&mut self) {
        self.last = None;
    }
}

async fn wait_closed(link: &mut Link, last: &Identity) -> Result<(), RedisError> {
    for _ in 0..LOOKS {
        if !is_open(link, last).await? {
            return Ok(());
        }
        time::sleep(LOOK_INTERVAL).await;
    }
    let mut kill = Pipeline::new();
    kill.cmd("CLIENT").arg("KILL").arg("ID").arg(last.id);
    link.exchange(&kill).await?;
    debug!("had redis close the last connection");
    Ok(())
}

/// Whether Redis still has `last`; `false` if it does not permit the query.
async fn is_open(link: &mut Link, last: &Identity) -> Result<bool, RedisError> {
    let mut list = Pipeline::new();
    list.cmd("CLIENT").arg("LIST").arg("ID").arg(last.id);
    let replies = link.exchange(&list).await?;
    let text = match replies.as_slice() {
        [Value::BulkString(bytes)] => String::from_utf8_lossy(bytes),
        _ => return Ok(false),
    };
    let name = format!("name={}", last.name);
    Ok(text.split_ascii_whitespace().any(|field| field == name))
}
