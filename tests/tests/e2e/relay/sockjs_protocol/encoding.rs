//! Characters that browsers mangled: escaped on the way out, decoded on the way in.

use anyhow::{Context as _, Result};

use crate::relay::sockjs_protocol::service::{Server, same, session};

/// What the server must write as `\uXXXX`, beyond what JSON asks for.
const ESCAPED: [std::ops::RangeInclusive<u16>; 4] = [
    0x200c..=0x200f,
    0x2028..=0x202f,
    0x2060..=0x206f,
    0xfff0..=0xffff,
];
/// How many characters go into one message.
const MESSAGE_CHARS: usize = 4096;

pub(crate) async fn what_the_server_escapes(server: Server) -> Result<()> {
    let points: Vec<u16> = ESCAPED.into_iter().flatten().collect();
    let plain = String::from_utf16(&points).context("none of them is half a character")?;
    let escaped: String = points
        .iter()
        .map(|point| format!("\\u{point:04x}"))
        .collect();
    let session = session("echo");
    same("the first frame", &*server.poll(&session).await?, "o\n")?;
    server.send(&session, format!("[\"{plain}\"]")).await?;
    let frame = server.poll(&session).await?;
    same("the frame", &*frame, &*format!("a[\"{escaped}\"]\n"))
}

pub(crate) async fn what_the_client_escapes(server: Server) -> Result<()> {
    // Every character that four digits can name: what clients escape is among them.
    let every: Vec<char> = (0..=0xffff).filter_map(char::from_u32).collect();
    let session = session("echo");
    same("the first frame", &*server.poll(&session).await?, "o\n")?;
    for part in every.chunks(MESSAGE_CHARS) {
        let plain: String = part.iter().collect();
        let escaped: String = part
            .iter()
            .map(|point| format!("\\u{:04x}", u32::from(*point)))
            .collect();
        server.send(&session, format!("[\"{escaped}\"]")).await?;
        let frame = server.poll(&session).await?;
        let array = frame.strip_prefix('a').context("no messages")?;
        let messages: Vec<String> = serde_json::from_str(array)?;
        same("the message", &*messages.concat(), &*plain)?;
    }
    Ok(())
}
