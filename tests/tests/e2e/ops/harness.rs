//! The tools of the other tests: what they promise must hold, or the tests prove nothing.

use std::{fs, time::Duration};

use anyhow::Result;
use causeway_tests::harness::{
    backend::{Backend, Request},
    http, loopback,
    process::Process,
    redis::Redis,
    scratch::Scratch,
    wait,
    websocket::WebSocket,
};
use tokio::process::Command;

#[tokio::test]
async fn redis_comes_back_on_the_port_it_had() -> Result<()> {
    let scratch = Scratch::new("harness-redis")?;
    let mut redis = Redis::start(loopback::own(), scratch.path()).await?;
    let address = redis.address();
    assert_eq!(redis.cli(&["PING"]).await?, "PONG");
    redis.kill().await?;
    assert!(redis.cli(&["PING"]).await.is_err());
    redis.restart().await?;
    assert_eq!(
        (redis.cli(&["PING"]).await?.as_str(), redis.address()),
        ("PONG", address)
    );
    Ok(())
}

#[tokio::test]
async fn a_dropped_process_is_gone_and_a_dropped_directory_too() -> Result<()> {
    let scratch = Scratch::new("harness-drop")?;
    let directory = scratch.path().to_owned();
    let mut command = Command::new("sleep");
    command.arg("1000");
    let process = Process::spawn("sleep", command, &directory)?;
    let status = format!("/proc/{}", process.pid());
    assert!(fs::exists(&status)?);
    drop(process);
    assert!(!fs::exists(&status)?);
    drop(scratch);
    assert!(!fs::exists(&directory)?);
    Ok(())
}

#[tokio::test]
async fn a_wait_in_vain_ends_at_its_deadline_and_says_for_what() {
    let waited = wait::until("the end of time", Duration::from_millis(30), async || {
        None::<()>
    })
    .await;
    assert!(waited.is_err_and(|error| error.to_string().contains("the end of time")));
    let stuck = wait::until("a response", Duration::from_millis(30), async || {
        std::future::pending::<Option<()>>().await
    });
    assert!(stuck.await.is_err());
}

#[tokio::test]
async fn responses_are_read_whatever_ends_their_body() -> Result<()> {
    let backend = Backend::start(async |mut request: Request| {
        use tokio::io::AsyncWriteExt as _;
        let response: &[u8] = match request.head.split(' ').nth(1) {
            Some("/length") => b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nbody",
            Some("/chunks") => b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nbo\r\n2\r\ndy\r\n0\r\n\r\n",
            _ => b"HTTP/1.1 200 OK\r\n\r\nbody",
        };
        request.stream.write_all(response).await.unwrap_or_default();
    })
    .await?;
    for path in ["/length", "/chunks", "/close"] {
        let response = http::get(backend.address, path).await?;
        assert_eq!(
            (response.status, response.text().as_str()),
            (200, "body"),
            "{path}"
        );
    }
    assert_eq!(http::get(backend.address, "/ready").await?.status, 200);
    assert!(
        WebSocket::open(backend.address, "/").await.is_err(),
        "a 200 is no WebSocket"
    );
    Ok(())
}
