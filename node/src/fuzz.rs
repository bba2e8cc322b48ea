//! Entry points of the fuzz targets in `tests/fuzz`: the parsers of untrusted input, and what always holds for them.
//!
//! Compiled with `--cfg fuzzing`, which `cargo fuzz` sets, and for the unit tests, which run the seeds.

use std::sync::LazyLock;
use std::time::Duration;
use std::time::UNIX_EPOCH;

use bytes::BytesMut;
use prost::Message as _;

use crate::auth::Asking;
use crate::auth::Verifier;
use crate::config::Config;
use crate::jwt::Key;
use crate::jwt::testing;
use crate::protocol::Codec;
use crate::protocol::frame::sockjs;
use crate::protocol::frame::websocket::Scan;
use crate::redis::Parser;
use crate::redis::Reply;
use crate::server::routing::Place;
use crate::server::routing::Route;
use crate::server::routing::find_route;

static CONFIG: LazyLock<Config> = LazyLock::new(Config::default_without_file);

/// Parses `data` as input of a SockJS client, and checks that the encoded messages parse to the same.
pub fn sockjs(data: &[u8]) {
    for messages in [sockjs::decode_messages(data), sockjs::decode_array(data)]
        .into_iter()
        .flatten()
    {
        assert_eq!(told(&messages), messages);
    }
    let text = String::from_utf8_lossy(data).into_owned();
    assert_eq!(told(std::slice::from_ref(&text)), [text]);
}

/// What a client reads after an `a[...]` frame of `messages`.
fn told(messages: &[String]) -> Vec<String> {
    let quoted: Vec<BytesMut> = messages
        .iter()
        .map(|message| {
            let mut quoted = BytesMut::new();
            sockjs::append_quoted(&mut quoted, message);
            quoted
        })
        .collect();
    let mut frame = BytesMut::new();
    sockjs::append_array(&mut frame, quoted.iter().map(|quoted| &quoted[..]));
    let array = frame
        .strip_prefix(b"a")
        .expect("it is an array of messages");
    sockjs::decode_array(array).expect("we wrote it")
}

/// Reads `data` as commands of a channel client; what is read can be written down and read again.
pub fn commands(data: &[u8]) {
    if let Ok(commands) = Codec::Protobuf.decode_commands(data) {
        let mut again = Vec::new();
        for command in &commands {
            let written = command.encode_length_delimited(&mut again);
            written.expect("a Vec has room for everything");
        }
        let read = Codec::Protobuf.decode_commands(&again);
        assert_eq!(read.expect("we wrote it"), commands);
    }
    if let Ok(commands) = Codec::Json.decode_commands(data) {
        let mut again = Vec::new();
        for command in &commands {
            serde_json::to_writer(&mut again, command).expect("its data was JSON");
        }
        let read = Codec::Json.decode_commands(&again).expect("we wrote it");
        // A line end between two tokens of the data is a space now.
        assert_eq!(read.len(), commands.len());
    }
}

/// The session that `path` names, unless it is one over a WebSocket.
#[must_use]
pub fn sockjs_session(path: &str) -> Option<String> {
    let endpoints = CONFIG.endpoints.iter().map(|endpoint| &**endpoint);
    match find_route(path, endpoints, true)? {
        Route::Endpoint(_, Place::Session { id, .. }) => Some(id.to_owned()),
        _ => None,
    }
}

/// Reads `data` as replies of Redis, at once and in pieces: `cut` is where the first piece ends, and how long the others are.
pub fn replies(data: &[u8], cut: u8) {
    let (first, rest) = data.split_at(usize::from(cut).min(data.len()));
    let pieces = [first].into_iter().chain(rest.chunks(1 + first.len()));
    assert_eq!(read([data]), read(pieces));
}

/// All replies, and whether the last bytes were none.
fn read<'a>(pieces: impl IntoIterator<Item = &'a [u8]>) -> (Vec<Reply>, bool) {
    const MESSAGE_BYTES_MAX: usize = 64;
    let mut parser = Parser::new(MESSAGE_BYTES_MAX);
    let (mut input, mut replies) = (BytesMut::new(), Vec::new());
    for piece in pieces {
        input.extend_from_slice(piece);
        loop {
            match parser.next(&mut input) {
                Ok(Some(reply)) => replies.push(reply),
                Ok(None) => break,
                Err(_) => return (replies, true),
            }
        }
    }
    (replies, false)
}

/// After how many bytes of `data` a client's WebSocket message or control frame ends, and no fragmented message is open.
#[must_use]
pub fn message_ends(data: &[u8]) -> Vec<usize> {
    let mut scan = Scan::default();
    let mut ends = Vec::new();
    for (at, byte) in data.iter().enumerate() {
        scan.advance(&[*byte]);
        if scan.is_between_messages() {
            ends.push(at + 1);
        }
    }
    let mut whole = Scan::default();
    whole.advance(data);
    assert_eq!(whole.is_between_messages(), scan.is_between_messages());
    ends
}

static VERIFIER: LazyLock<Verifier> = LazyLock::new(|| {
    let mut rules = CONFIG.auth.clone();
    rules.keys = vec![testing::secret_key(None, 1)];
    Verifier::new(rules)
});

/// Reads `data` as a token, as the claims of one that is signed, and as a key set.
pub fn tokens(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    let now = UNIX_EPOCH + Duration::from_secs(1_800_000_000);
    let believed = VERIFIER.connect(&text, now);
    assert!(believed.is_err(), "only the key's holder can sign");
    let claims = testing::hs256(1, &text);
    let connected = VERIFIER.connect(&claims, now).is_ok();
    let asking = Asking {
        user: "1",
        client: "c",
    };
    let subscribed = VERIFIER.subscribe(&claims, "a", asking, now).is_ok();
    assert!(!(connected && subscribed), "a token is for one thing");
    let _ = Key::set(data);
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::Path;

    use super::*;

    fn seeds(target: &str) -> Vec<Vec<u8>> {
        let seeds = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fuzz/seeds");
        let entries = fs::read_dir(seeds.join(target)).unwrap();
        let seeds: Vec<Vec<u8>> = entries
            .map(|entry| fs::read(entry.unwrap().path()).unwrap())
            .collect();
        assert!(!seeds.is_empty());
        seeds
    }

    #[test]
    fn every_seed_is_read() {
        for seed in seeds("frames") {
            let _ = message_ends(&seed);
        }
        for seed in seeds("paths") {
            let _ = sockjs_session(&String::from_utf8_lossy(&seed));
        }
        for seed in seeds("replies") {
            replies(&seed[1..], seed[0]);
        }
        for seed in seeds("sockjs") {
            sockjs(&seed);
        }
        for seed in seeds("commands") {
            commands(&seed);
        }
        for seed in seeds("tokens") {
            tokens(&seed);
        }
    }
}
