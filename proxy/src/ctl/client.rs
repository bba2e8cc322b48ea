//! One request to the admin API, over TCP or a unix socket, with a deadline and a bound on the response.

use std::io::{self, Read, Write};
use std::net::{TcpStream, ToSocketAddrs as _};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::Duration;

use causeway_conf::Secret;
use serde_json::Value;

/// How long the edge may take to accept, and between two pieces of its response. A reload reads files.
const DEADLINE: Duration = Duration::from_secs(30);

/// The largest response: a list of 10,000 backends has a few megabytes.
const RESPONSE_BYTES_MAX: u64 = 64 << 20;

/// The most header lines of a response.
const HEADERS_MAX: usize = 64;

/// Why there is no result.
#[derive(Debug, thiserror::Error)]
pub(super) enum Failed {
    /// A flag or a file cannot be used.
    #[error("{0}")]
    Usage(String),
    #[error("cannot reach the edge at {at}: {source}")]
    Unreachable {
        at: String,
        #[source]
        source: io::Error,
    },
    /// There is a server, but it is no edge.
    #[error("the response is not that of an edge's admin listener: {0}")]
    Response(String),
    #[error("not allowed: {0}")]
    Denied(String),
    #[error("{0}")]
    Refused(String),
}

impl Failed {
    pub(super) fn exit_code(&self) -> u8 {
        match self {
            Self::Refused(_) => 1,
            Self::Usage(_) => 2,
            Self::Unreachable { .. } | Self::Response(_) => 3,
            Self::Denied(_) => 4,
        }
    }
}

/// Where the edge listens.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Target {
    Socket(PathBuf),
    /// Host and port.
    Tcp(String),
}

impl Target {
    /// The target of a URL such as `http://127.0.0.1:8081`.
    pub(super) fn of_url(url: &str) -> Result<Self, Failed> {
        let wrong = |why: &str| {
            let url = url.escape_debug();
            Failed::Usage(format!(
                "--url \"{url}\": {why}, expected one such as http://127.0.0.1:8081"
            ))
        };
        if url.starts_with("https://") {
            return Err(wrong("the admin listener has no TLS"));
        }
        let rest = url
            .strip_prefix("http://")
            .ok_or_else(|| wrong("no http URL"))?;
        let authority = rest.strip_suffix('/').unwrap_or(rest);
        let is_authority = |byte: u8| byte.is_ascii_alphanumeric() || b".-_:[]".contains(&byte);
        if authority.is_empty() || !authority.bytes().all(is_authority) {
            return Err(wrong("a host and a port is all that it may have"));
        }
        let host_end = authority.rfind(']').unwrap_or(0);
        let has_port = authority[host_end..].contains(':');
        Ok(Self::Tcp(match has_port {
            true => authority.to_owned(),
            false => format!("{authority}:80"),
        }))
    }

    fn name(&self) -> String {
        match self {
            Self::Socket(path) => path.display().to_string(),
            Self::Tcp(authority) => authority.clone(),
        }
    }
}

/// The admin API of one edge.
pub(super) struct Api {
    pub(super) target: Target,
    pub(super) token: Option<Secret>,
}

impl Api {
    /// Sends a request, and returns the JSON of a successful response.
    ///
    /// # Errors
    ///
    /// [`Failed`].
    pub(super) fn ask(
        &self,
        method: &str,
        path: &str,
        body: Option<&Value>,
    ) -> Result<Value, Failed> {
        let response = self.exchange(self.head(method, path, body)?);
        let response = response.map_err(|source| Failed::Unreachable {
            at: self.target.name(),
            source,
        })?;
        let (status, body) = parse(&response)?;
        let value: Result<Value, _> = serde_json::from_slice(body);
        if (200..300).contains(&status) {
            return value.map_err(|error| Failed::Response(error.to_string()));
        }
        let error = value.ok().and_then(|value| {
            let text = value.get("error")?.as_str()?;
            Some(text.to_owned())
        });
        Err(match (status, error) {
            (401 | 403, Some(error)) => Failed::Denied(error),
            (_, Some(error)) => Failed::Refused(error),
            (status, None) => Failed::Response(format!("status {status} without a reason")),
        })
    }

    /// The whole request.
    fn head(&self, method: &str, path: &str, body: Option<&Value>) -> Result<Vec<u8>, Failed> {
        let host = match &self.target {
            Target::Socket(_) => "localhost",
            Target::Tcp(authority) => authority,
        };
        let mut request =
            format!("{method} {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n");
        if let Some(token) = &self.token {
            let token = token.expose();
            if !token.bytes().all(|byte| byte.is_ascii_graphic()) {
                let why = "the token in --token-file is not visible ASCII in one line";
                return Err(Failed::Usage(why.to_owned()));
            }
            request.push_str(&format!("Authorization: Bearer {token}\r\n"));
        }
        let body = body.map(Value::to_string);
        if let Some(body) = &body {
            let length = body.len();
            request.push_str(&format!(
                "Content-Type: application/json\r\nContent-Length: {length}\r\n"
            ));
        }
        request.push_str("\r\n");
        request.push_str(body.as_deref().unwrap_or_default());
        Ok(request.into_bytes())
    }

    /// Sends `request` on a connection of its own, and reads until that is closed.
    fn exchange(&self, request: Vec<u8>) -> io::Result<Vec<u8>> {
        match &self.target {
            Target::Socket(path) => {
                let stream = UnixStream::connect(path)?;
                stream.set_read_timeout(Some(DEADLINE))?;
                stream.set_write_timeout(Some(DEADLINE))?;
                send(stream, &request)
            }
            Target::Tcp(authority) => {
                let mut last = io::Error::new(io::ErrorKind::NotFound, "the host has no address");
                for address in authority.to_socket_addrs()? {
                    match TcpStream::connect_timeout(&address, DEADLINE) {
                        Ok(stream) => {
                            stream.set_read_timeout(Some(DEADLINE))?;
                            stream.set_write_timeout(Some(DEADLINE))?;
                            return send(stream, &request);
                        }
                        Err(error) => last = error,
                    }
                }
                Err(last)
            }
        }
    }
}

fn send(mut stream: impl Read + Write, request: &[u8]) -> io::Result<Vec<u8>> {
    // The edge may respond before it has read everything, and close.
    let written = stream.write_all(request);
    let mut response = Vec::new();
    let read = stream.take(RESPONSE_BYTES_MAX).read_to_end(&mut response);
    match (written, read) {
        (_, Ok(_)) if !response.is_empty() => Ok(response),
        // A reset after the response.
        (_, Err(error))
            if error.kind() == io::ErrorKind::ConnectionReset && !response.is_empty() =>
        {
            Ok(response)
        }
        (Err(error), _) | (Ok(()), Err(error)) => Err(match error.kind() {
            io::ErrorKind::WouldBlock => {
                io::Error::new(io::ErrorKind::TimedOut, "no response in time")
            }
            _ => error,
        }),
        (Ok(()), Ok(_)) => Err(io::Error::new(
            io::ErrorKind::UnexpectedEof,
            "the connection was closed without a response",
        )),
    }
}

/// The status and the body of a response.
fn parse(response: &[u8]) -> Result<(u16, &[u8]), Failed> {
    let mut headers = [httparse::EMPTY_HEADER; HEADERS_MAX];
    let mut head = httparse::Response::new(&mut headers);
    let parsed = head.parse(response);
    let parsed = parsed.map_err(|error| Failed::Response(error.to_string()))?;
    let (httparse::Status::Complete(end), Some(status)) = (parsed, head.code) else {
        return Err(Failed::Response("its head is cut off".to_owned()));
    };
    let mut length = head
        .headers
        .iter()
        .filter(|header| header.name.eq_ignore_ascii_case("content-length"));
    let length = length.next().and_then(|header| {
        let text = std::str::from_utf8(header.value).ok()?;
        text.trim().parse::<usize>().ok()
    });
    let body = &response[end..];
    match length {
        Some(length) if body.len() < length => {
            Err(Failed::Response("its body is cut off".to_owned()))
        }
        Some(length) => Ok((status, &body[..length])),
        None => Err(Failed::Response("it has no Content-Length".to_owned())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_url_is_a_host_and_a_port() {
        let tcp = |text: &str| Target::Tcp(text.to_owned());
        for (url, target) in [
            ("http://127.0.0.1:8081", "127.0.0.1:8081"),
            ("http://edge.example/", "edge.example:80"),
            ("http://[::1]:8081/", "[::1]:8081"),
            ("http://[::1]", "[::1]:80"),
        ] {
            assert_eq!(Target::of_url(url).unwrap(), tcp(target));
        }
        for wrong in [
            "https://127.0.0.1:8081",
            "127.0.0.1:8081",
            "http://",
            "http://a/b",
            "http://a b",
            "http://a\r\nX: y",
            "http://user@a",
        ] {
            let error = Target::of_url(wrong).unwrap_err();
            assert_eq!(error.exit_code(), 2, "{wrong}");
        }
    }

    #[test]
    fn what_is_no_response_of_an_edge_is_an_error() {
        let ok = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}";
        assert_eq!(parse(ok).unwrap(), (200, &b"{}"[..]));
        for wrong in [
            &b"SSH-2.0-OpenSSH\r\n"[..],
            b"HTTP/1.1 200 OK\r\nConte",
            b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\n{}",
            b"HTTP/1.1 200 OK\r\n\r\n{}",
        ] {
            assert_eq!(parse(wrong).unwrap_err().exit_code(), 3);
        }
    }

    #[test]
    fn a_token_that_would_break_the_request_is_an_error() {
        let api = Api {
            target: Target::Tcp("a:1".to_owned()),
            token: Some(Secret::new("one\r\nX: two".to_owned())),
        };
        assert_eq!(api.head("GET", "/", None).unwrap_err().exit_code(), 2);
    }
}
