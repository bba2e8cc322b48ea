//! What a publication costs Redis: the CPU time of its process, by how many nodes receive it.
//!
//! Redis runs commands on one thread, so this is what bounds a channel, and the number of primaries that a Redis Cluster needs. The
//! subscribers stand for nodes: each has one connection, and takes what comes. What is sent is what a node sends.

use std::io::{self, Write as _};
use std::path::Path;
use std::time::Duration;

use anyhow::{Result, ensure};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::task::JoinSet;

use crate::bench::proc::Family;
use crate::harness::loopback;
use crate::harness::redis::Redis;
use crate::harness::scratch::Scratch;

/// The script that a node publishes with where the channel has a history.
const STORE: &str = concat!(
    include_str!("../../../node/src/broker/redis/scripts/position.lua"),
    include_str!("../../../node/src/broker/redis/scripts/store.lua")
);
const CHANNEL: &str = "{a channel}";
/// How many nodes receive a publication.
const NODES: [usize; 5] = [1, 3, 10, 30, 100];
/// Publications under way, as in the pipeline of a busy publish queue.
const BATCH: usize = 32;

/// What to send.
#[derive(Clone, Debug, clap::Args)]
pub struct Options {
    /// Publications for each figure, at least.
    #[arg(long, default_value_t = 20_000)]
    pub publications: usize,
    /// Bytes of a publication.
    #[arg(long, default_value_t = 100)]
    pub size: usize,
}

/// How a publication is sent.
#[derive(Clone, Copy)]
enum Kind {
    /// By `SPUBLISH`: relays, and channels without a history.
    Sent,
    /// By the script that keeps a history of 1,000.
    Stored,
}

/// Prints a table in Markdown.
///
/// # Errors
///
/// Redis is not installed, or does not do what it is told.
pub async fn run(options: &Options) -> Result<()> {
    let mut out = io::stdout();
    writeln!(
        out,
        "| nodes that receive it | relayed: CPU of a publication | deliveries for each second of a core | with history: CPU | \
         deliveries |\n|---:|---:|---:|---:|---:|"
    )?;
    for nodes in NODES {
        let mut cells = String::new();
        for kind in [Kind::Sent, Kind::Stored] {
            let cost = cost(kind, nodes, options).await?;
            let micros = cost.as_secs_f64() * 1e6;
            cells += &format!(" {micros:.1} µs | {:.2} million |", nodes as f64 / micros);
        }
        writeln!(out, "| {nodes} |{cells}")?;
    }
    Ok(())
}

/// The CPU time that Redis needs for a publication that so many nodes receive.
async fn cost(kind: Kind, nodes: usize, options: &Options) -> Result<Duration> {
    let scratch = Scratch::new("redis-cost")?;
    let redis = start(scratch.path()).await?;
    let mut subscribers = JoinSet::new();
    for _ in 0..nodes {
        let mut subscriber = TcpStream::connect(redis.address()).await?;
        subscriber
            .write_all(&command(&["SSUBSCRIBE", CHANNEL]))
            .await?;
        let mut reply = [0; 256];
        ensure!(0 < subscriber.read(&mut reply).await?, "not subscribed");
        subscribers.spawn(async move {
            let mut bytes = vec![0; 64 << 10];
            while matches!(subscriber.read(&mut bytes).await, Ok(1..)) {}
        });
    }
    let mut publisher = TcpStream::connect(redis.address()).await?;
    let body = format!("1700000000000:{}", "x".repeat(options.size));
    let one = match kind {
        Kind::Sent => command(&["SPUBLISH", CHANNEL, &body]),
        Kind::Stored => {
            let (stream, meta) = (format!("s:{CHANNEL}"), format!("m:{CHANNEL}"));
            let (size, ttl, meta_ttl) = ("1000", "600000", "3600000");
            publisher
                .write_all(&command(&["SCRIPT", "LOAD", STORE]))
                .await?;
            let mut reply = [0; 256];
            let length = publisher.read(&mut reply).await?;
            let reply = String::from_utf8_lossy(&reply[..length]).into_owned();
            let sha = reply.lines().nth(1).unwrap_or_default();
            command(&[
                "EVALSHA", sha, "2", &stream, &meta, CHANNEL, &body, size, ttl, meta_ttl,
                "anepoch", "0", "0", "SPUBLISH",
            ])
        }
    };
    let batch = one.repeat(BATCH);
    let batches = options.publications.div_ceil(BATCH);
    let before = Family::of(redis.pid())?.cpu()?;
    for _ in 0..batches {
        publisher.write_all(&batch).await?;
        replies(&mut publisher, kind, nodes).await?;
    }
    let used = Family::of(redis.pid())?.cpu()?.saturating_sub(before);
    Ok(used.div_f64((batches * BATCH) as f64))
}

async fn start(directory: &Path) -> Result<Redis> {
    Redis::start(loopback::own(), directory).await
}

/// Reads the replies of a batch, each of which says how many have received the publication.
async fn replies(publisher: &mut TcpStream, kind: Kind, nodes: usize) -> Result<()> {
    let received = format!(":{nodes}\r\n");
    let mut text = String::new();
    let mut bytes = vec![0; 64 << 10];
    while text.matches(&received).count() < BATCH || !text.ends_with("\r\n") {
        let length = publisher.read(&mut bytes).await?;
        ensure!(0 < length, "Redis has closed the connection");
        text += &String::from_utf8_lossy(&bytes[..length]);
        let is_wrong = text.contains('-') || (matches!(kind, Kind::Sent) && text.contains('*'));
        ensure!(!is_wrong, "Redis replies {text:?}");
    }
    Ok(())
}

/// A command as Redis reads it.
fn command(words: &[&str]) -> Vec<u8> {
    let mut bytes = format!("*{}\r\n", words.len()).into_bytes();
    for word in words {
        bytes.extend_from_slice(format!("${}\r\n{word}\r\n", word.len()).as_bytes());
    }
    bytes
}
