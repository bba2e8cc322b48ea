//! A SockJS session over xhr-polling, as sockjs-client keeps it: a poll that waits, and messages sent beside it.

use anyhow::{Result, bail, ensure};
use tokio::time::{Instant, sleep};

use crate::harness::{
    http::Response,
    load::{PAUSE, PAUSE_AFTER_FAILURE, client::Client},
};

/// Keeps a session alive; when it is lost, begins another.
pub(super) async fn keep(mut client: Client) {
    loop {
        if let Err(error) = one(&mut client).await {
            client.journal().lost(client.number(), format!("{error:#}"));
            sleep(PAUSE_AFTER_FAILURE).await;
        }
    }
}

/// One session from its opening to its loss.
async fn one(client: &mut Client) -> Result<()> {
    let id: String = std::iter::repeat_with(fastrand::alphanumeric)
        .take(12)
        .collect();
    let (xhr, xhr_send) = (
        format!("/echo/000/{id}/xhr"),
        format!("/echo/000/{id}/xhr_send"),
    );
    let is_ok = |status| status == 200;
    let node = |response: &Response| response.header("causeway-node").map(str::to_owned);
    let home = match client.ask("POST", &xhr, b"", is_ok).await {
        Some(opened) if opened.text() == "o\n" => node(&opened),
        Some(opened) => bail!("a new session begins with {:?}", opened.text()),
        None => bail!("it cannot be opened"),
    };
    let mut heard = Instant::now();
    let mut sender = client.twin();
    for number in 0_u64.. {
        let message = format!("[\"{number}\"]");
        let sent = async {
            sleep(PAUSE).await;
            let is_taken = |status| status == 204;
            let sent = sender
                .ask("POST", &xhr_send, message.as_bytes(), is_taken)
                .await;
            ensure!(sent.is_some(), "message {number} cannot be sent");
            Ok(())
        };
        let polled = async {
            loop {
                let Some(response) = client.ask("POST", &xhr, b"", is_ok).await else {
                    bail!("poll {number} fails");
                };
                let (frame, from) = (response.text(), node(&response));
                let before = std::mem::replace(&mut heard, Instant::now());
                if frame != "h\n" {
                    ensure!(
                        frame == format!("a{message}\n"),
                        "poll {number} gets {frame:?} from {from:?}, {:?} after the response before; opened at {home:?}",
                        before.elapsed()
                    );
                    return Ok(());
                }
            }
        };
        // Whichever fails first ends it: the other may wait for what will not come.
        tokio::try_join!(sent, polled)?;
    }
    Ok(())
}
