//! Replies to the few commands that are sent while a connection is opened. No I/O.
//!
//! Bounded in size and in nesting: the server may not be Redis.

use bytes::Buf;
use bytes::BytesMut;

use super::reply::ProtocolError;

/// The most bytes of one reply; a `ROLE` of a primary with hundreds of replicas fits.
const BYTES_MAX: usize = 64 << 10;

/// How deep arrays may be nested: `ROLE` has the replicas in one, each an array.
const DEPTH_MAX: usize = 4;

/// A reply.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum LoginReply {
    /// `+OK` and the like.
    Status,
    /// `-ERR ...`, Redis's text.
    Error(String),
    Integer(i64),
    Text(String),
    Nil,
    Array(Vec<LoginReply>),
}

/// Why no reply could be parsed.
enum Stop {
    Incomplete,
    Wrong(ProtocolError),
}

/// The next complete reply, removed from the front of `input`; `None` when more bytes are needed.
///
/// # Errors
///
/// [`ProtocolError`]: the connection can no longer be used.
pub(super) fn next(input: &mut BytesMut) -> Result<Option<LoginReply>, ProtocolError> {
    let mut cursor = Cursor { input, at: 0 };
    match cursor.reply(DEPTH_MAX) {
        Ok(reply) => {
            let used = cursor.at;
            input.advance(used);
            Ok(Some(reply))
        }
        Err(Stop::Incomplete) if BYTES_MAX <= input.len() => {
            Err(ProtocolError("a reply to the login is too long"))
        }
        Err(Stop::Incomplete) => Ok(None),
        Err(Stop::Wrong(error)) => Err(error),
    }
}

struct Cursor<'a> {
    input: &'a [u8],
    at: usize,
}

impl Cursor<'_> {
    fn reply(&mut self, depth: usize) -> Result<LoginReply, Stop> {
        let line = self.line()?;
        let (kind, text) = line.split_at_checked(1).ok_or(wrong("an empty line"))?;
        match kind {
            b"+" => Ok(LoginReply::Status),
            b"-" => Ok(LoginReply::Error(
                String::from_utf8_lossy(text).into_owned(),
            )),
            b":" => Ok(LoginReply::Integer(number(text)?)),
            b"$" => match length(text)? {
                None => Ok(LoginReply::Nil),
                Some(length) => self.text(length),
            },
            b"*" => {
                let Some(length) = length(text)? else {
                    return Ok(LoginReply::Nil);
                };
                let depth = depth.checked_sub(1).ok_or(wrong("nested too deep"))?;
                let mut replies = Vec::new();
                for _ in 0..length {
                    replies.push(self.reply(depth)?);
                }
                Ok(LoginReply::Array(replies))
            }
            _ => Err(wrong("unknown type")),
        }
    }

    fn text(&mut self, length: usize) -> Result<LoginReply, Stop> {
        let end = self.at + length;
        let bytes = self.input.get(self.at..end).ok_or(Stop::Incomplete)?;
        let text = String::from_utf8_lossy(bytes).into_owned();
        match self.input.get(end..end + 2) {
            Some(b"\r\n") => {}
            Some(_) => return Err(wrong("string longer than its length")),
            None => return Err(Stop::Incomplete),
        }
        self.at = end + 2;
        Ok(LoginReply::Text(text))
    }

    /// The rest of the line, without its ending.
    fn line(&mut self) -> Result<&[u8], Stop> {
        let rest = &self.input[self.at..];
        let ending = rest.windows(2).position(|pair| pair == b"\r\n");
        let length = ending.ok_or(Stop::Incomplete)?;
        self.at += length + 2;
        Ok(&rest[..length])
    }
}

fn wrong(what: &'static str) -> Stop {
    Stop::Wrong(ProtocolError(what))
}

fn number(text: &[u8]) -> Result<i64, Stop> {
    let number = str::from_utf8(text).ok().and_then(|text| text.parse().ok());
    number.ok_or(wrong("expected a number"))
}

/// The length of a string or an array; `None`: it is nil.
fn length(text: &[u8]) -> Result<Option<usize>, Stop> {
    match number(text)? {
        -1 => Ok(None),
        length => match usize::try_from(length) {
            Ok(length) if length <= BYTES_MAX => Ok(Some(length)),
            _ => Err(wrong("a length is out of range")),
        },
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn all(input: &[u8]) -> Result<Vec<LoginReply>, ProtocolError> {
        let mut input = BytesMut::from(input);
        let mut replies = Vec::new();
        while let Some(reply) = next(&mut input)? {
            replies.push(reply);
        }
        Ok(replies)
    }

    #[test]
    fn every_form_is_parsed() {
        let role = b"*3\r\n$6\r\nmaster\r\n:7\r\n*1\r\n*3\r\n$1\r\na\r\n$1\r\n1\r\n$1\r\n7\r\n";
        let text = |text: &str| LoginReply::Text(text.to_owned());
        let replica = LoginReply::Array(vec![text("a"), text("1"), text("7")]);
        let expected = LoginReply::Array(vec![
            text("master"),
            LoginReply::Integer(7),
            LoginReply::Array(vec![replica]),
        ]);
        assert_eq!(all(role), Ok(vec![expected]));
        let rest = b"+OK\r\n-ERR no\r\n:-3\r\n$-1\r\n*-1\r\n$0\r\n\r\n*0\r\n";
        let expected = [
            LoginReply::Status,
            LoginReply::Error("ERR no".to_owned()),
            LoginReply::Integer(-3),
            LoginReply::Nil,
            LoginReply::Nil,
            text(""),
            LoginReply::Array(Vec::new()),
        ];
        assert_eq!(all(rest), Ok(expected.to_vec()));
        for end in 0..role.len() {
            assert_eq!(all(&role[..end]), Ok(Vec::new()), "{end} bytes");
        }
    }

    #[test]
    fn other_input_is_rejected_and_bounded() {
        for wrong in [
            "\r\n",
            "HTTP/1.1 400 Bad Request\r\n",
            ":x\r\n",
            "$-2\r\n",
            "$99999999999\r\n",
            "*65537\r\n",
            "$1\r\nab\r\n",
            "*1\r\n*1\r\n*1\r\n*1\r\n*1\r\n:1\r\n",
        ] {
            assert!(all(wrong.as_bytes()).is_err(), "{wrong:?}");
        }
        assert!(all(&vec![b'+'; BYTES_MAX]).is_err(), "an endless line");
        assert_eq!(all(&vec![b'+'; BYTES_MAX - 1]), Ok(Vec::new()));
    }

    proptest! {
        #[test]
        fn no_input_panics(input: Vec<u8>) {
            let _ = all(&input);
        }
    }
}
