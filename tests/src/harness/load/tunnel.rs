//! A WebSocket that is kept open: an echo now and then, and a new one as soon as it has gone.

use std::time::Duration;

use anyhow::{Result, ensure};
use tokio::time::{Instant, sleep, timeout};

use crate::harness::{
    load::{PAUSE_AFTER_FAILURE, client::Client},
    websocket::WebSocket,
};

/// Keeps a WebSocket open, with an echo each `beat`; gives one up when an echo takes longer than `patience`.
pub(super) async fn keep(mut client: Client, beat: Duration, patience: Duration) {
    loop {
        let Some((connection, response)) = client.upgrade("/echo/websocket").await else {
            sleep(PAUSE_AFTER_FAILURE.mul_f64(0.5 + fastrand::f64())).await;
            continue;
        };
        let end = match WebSocket::begin(connection, response).await {
            Ok(socket) => carry(&client, socket, beat, patience).await,
            Err(error) => Err(error),
        };
        let why = end.map_or_else(|error| format!("{error:#}"), |()| "closed".to_owned());
        client.journal().lost(client.number(), why);
    }
}

/// Says something now and then until the other side ends it.
async fn carry(
    client: &Client,
    mut socket: WebSocket,
    beat: Duration,
    patience: Duration,
) -> Result<()> {
    let mut pause = beat.mul_f64(fastrand::f64());
    for number in 0_u64.. {
        tokio::select! {
            unexpected = socket.message() => {
                ensure!(unexpected?.is_none_or(|message| message.is_close()), "an echo of nothing");
                return Ok(());
            }
            () = sleep(pause) => {}
        }
        pause = beat;
        let begun = Instant::now();
        let text = number.to_string();
        socket.send(&text).await?;
        let echo = timeout(patience, socket.text()).await;
        ensure!(echo.is_ok(), "no echo within {patience:?}");
        ensure!(echo?? == text, "another echo than {text}");
        client.journal().echoed(client.number(), begun);
    }
    Ok(())
}
