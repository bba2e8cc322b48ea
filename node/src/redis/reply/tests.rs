use proptest::prelude::*;

use super::*;

const MESSAGE_BYTES_MAX: usize = 64;

/// All replies of `chunks`, given one after the other, and the error that ended it.
fn parse(chunks: &[&[u8]]) -> (Vec<Reply>, Option<ProtocolError>) {
    let mut parser = Parser::new(MESSAGE_BYTES_MAX);
    let mut input = BytesMut::new();
    let mut replies = Vec::new();
    for chunk in chunks {
        input.extend_from_slice(chunk);
        loop {
            match parser.next(&mut input) {
                Ok(Some(reply)) => replies.push(reply),
                Ok(None) => break,
                Err(protocol_error) => return (replies, Some(protocol_error)),
            }
        }
    }
    (replies, None)
}

fn message(channel: &str, data: &[u8]) -> Reply {
    Reply::Message {
        channel: Bytes::copy_from_slice(channel.as_bytes()),
        data: Bytes::copy_from_slice(data),
    }
}

fn encode(reply: &Reply) -> Vec<u8> {
    let bulk = |bytes: &[u8]| [format!("${}\r\n", bytes.len()).as_bytes(), bytes, b"\r\n"].concat();
    let push = |kind: &str, channel: &[u8], rest: &[u8]| {
        [
            b"*3\r\n",
            bulk(kind.as_bytes()).as_slice(),
            &bulk(channel),
            rest,
        ]
        .concat()
    };
    match reply {
        Reply::Message { channel, data } => push("message", channel, &bulk(data)),
        Reply::Oversized { channel, bytes } => {
            let data = vec![b'x'; usize::try_from(*bytes).unwrap()];
            push("message", channel, &bulk(&data))
        }
        Reply::Subscribed { channel } => push("subscribe", channel, b":1\r\n"),
        Reply::Unsubscribed { channel } => push("unsubscribe", channel, b":0\r\n"),
        Reply::Status => b"+OK\r\n".to_vec(),
        Reply::Error(text) => format!("-{text}\r\n").into_bytes(),
    }
}

#[test]
fn each_kind_of_reply_is_read() {
    let wire = b"+OK\r\n-ERR no\r\n*3\r\n$9\r\nsubscribe\r\n$1\r\na\r\n:1\r\n\
        *3\r\n$7\r\nmessage\r\n$1\r\na\r\n$4\r\n\r\n\xff\x00\r\n\
        *3\r\n$11\r\nunsubscribe\r\n$1\r\na\r\n:0\r\n";
    let channel = Bytes::from_static(b"a");
    let expected = vec![
        Reply::Status,
        Reply::Error("ERR no".to_owned()),
        Reply::Subscribed {
            channel: channel.clone(),
        },
        message("a", b"\r\n\xff\x00"),
        Reply::Unsubscribed { channel },
    ];
    assert_eq!(parse(&[wire]), (expected, None));
}

#[test]
fn a_message_at_the_limit_is_kept_and_one_above_is_skipped() {
    for (length, oversized) in [(63, false), (64, false), (65, true), (5000, true)] {
        let first = message("a", &vec![b'x'; length]);
        let second = message("b", b"after");
        let wire = [encode(&first), encode(&second)].concat();
        let (replies, protocol_error) = parse(&wire.chunks(7).collect::<Vec<_>>());
        assert_eq!(protocol_error, None);
        let channel = Bytes::from_static(b"a");
        let bytes = length as u64;
        let expected = if oversized {
            Reply::Oversized { channel, bytes }
        } else {
            first
        };
        assert_eq!(replies, [expected, second], "{length}");
    }
}

#[test]
fn other_input_is_a_protocol_error() {
    let endless = vec![b'1'; 5000];
    let wrong: [&[u8]; 14] = [
        b"HTTP/1.1 400 Bad Request\r\n",
        b"*2\r\n",
        b"*-1\r\n",
        b"*9223372036854775807\r\n",
        b"*99999999999999999999999\r\n",
        b"*3\r\n$-1\r\n",
        b"*3\r\n:1\r\n",
        b"*3\r\n*3\r\n",
        b"*3\r\n$+1\r\n",
        b"*3\r\n$1\r\nabc",
        b"*3\r\n$100\r\n",
        b"*3\r\n$8\r\npmessage\r\n$1\r\na\r\n$1\r\nx\r\n",
        b"*3\r\n$7\r\nmessage\r\n$1\r\na\r\n:1\r\n",
        b"\r\n",
    ];
    for wire in wrong {
        let (replies, protocol_error) = parse(&[wire]);
        assert_eq!(
            (replies.len(), protocol_error.is_some()),
            (0, true),
            "{}",
            wire.escape_ascii()
        );
    }
    assert_eq!(
        parse(&[b"+", &endless]).1,
        Some(ProtocolError("line too long"))
    );
}

fn any_reply() -> impl Strategy<Value = Reply> {
    let bytes = |max| prop::collection::vec(any::<u8>(), 0..=max).prop_map(Bytes::from);
    prop_oneof![
        (bytes(20), bytes(MESSAGE_BYTES_MAX))
            .prop_map(|(channel, data)| Reply::Message { channel, data }),
        (bytes(20), 65_u64..300).prop_map(|(channel, bytes)| Reply::Oversized { channel, bytes }),
        bytes(20).prop_map(|channel| Reply::Subscribed { channel }),
        bytes(20).prop_map(|channel| Reply::Unsubscribed { channel }),
        Just(Reply::Status),
        "[ -~]{0,30}".prop_map(Reply::Error),
    ]
}

proptest! {
    #[test]
    fn replies_are_the_same_for_all_chunk_boundaries(
        replies in prop::collection::vec(any_reply(), 0..8),
        cuts in prop::collection::vec(1_usize..40, 1..20),
    ) {
        let wire: Vec<u8> = replies.iter().flat_map(encode).collect();
        let mut chunks = Vec::new();
        let mut rest = wire.as_slice();
        for cut in cuts.iter().cycle() {
            let (chunk, after) = rest.split_at(rest.len().min(*cut));
            chunks.push(chunk);
            rest = after;
            if rest.is_empty() {
                break;
            }
        }
        prop_assert_eq!(parse(&chunks), (replies, None));
    }

    #[test]
    fn no_input_makes_the_parser_panic_or_spin(chunks in prop::collection::vec(
        prop::collection::vec(prop::sample::select(b"*$:+-3901mesagubcrin\r\n\xff".to_vec()), 0..30), 0..8,
    )) {
        let chunks: Vec<&[u8]> = chunks.iter().map(Vec::as_slice).collect();
        parse(&chunks);
    }
}
