//! A server as the cases see it: requests to its services, and what must hold of their answers.

use std::net::SocketAddr;

use anyhow::{Context as _, Result, ensure};
use causeway_tests::harness::{
    http::{self, Answer, Connection},
    websocket::WebSocket,
};

/// Long for any client, as a day is; a year is what there should be.
const LONG_SECONDS: u64 = 1_000_000;
/// What every answer says that is for one client at one moment.
const NOT_CACHED: &str = "no-store, no-cache, no-transform, must-revalidate, max-age=0";

pub(crate) const FORM: (&str, &str) = ("Content-Type", "application/x-www-form-urlencoded");

/// Where the services are.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Server {
    pub(crate) address: SocketAddr,
}

impl Server {
    pub(crate) fn at(address: SocketAddr) -> Self {
        Self { address }
    }

    pub(crate) async fn get(self, path: &str, headers: &[(&str, &str)]) -> Result<Answer> {
        http::get_with(self.address, path, headers).await
    }

    pub(crate) async fn post(
        self,
        path: &str,
        headers: &[(&str, &str)],
        body: impl AsRef<[u8]>,
    ) -> Result<Answer> {
        http::request(self.address, "POST", path, headers, body.as_ref()).await
    }

    pub(crate) async fn options(self, path: &str, headers: &[(&str, &str)]) -> Result<Answer> {
        http::request(self.address, "OPTIONS", path, headers, b"").await
    }

    /// Asks for a stream and reads the head of the answer.
    pub(crate) async fn stream(self, method: &str, path: &str) -> Result<(Answer, Connection)> {
        self.stream_with(method, path, "").await
    }

    /// As [`Server::stream`], with more header lines.
    pub(crate) async fn stream_with(
        self,
        method: &str,
        path: &str,
        headers: &str,
    ) -> Result<(Answer, Connection)> {
        let mut connection = Connection::open(self.address).await?;
        let length = match method {
            "POST" => "Content-Length: 0\r\n",
            _ => "",
        };
        let host = self.address;
        connection
            .send(format!(
                "{method} {path} HTTP/1.1\r\nHost: {host}\r\n{length}{headers}\r\n"
            ))
            .await?;
        let head = connection.head().await?;
        status(&head, 200)?;
        Ok((head, connection))
    }

    /// Polls a session over `xhr` and returns what came.
    pub(crate) async fn poll(self, session: &str) -> Result<String> {
        let answer = self.post(&format!("{session}/xhr"), &[], "").await?;
        status(&answer, 200)?;
        Ok(answer.text())
    }

    /// Sends messages to a session over `xhr_send`.
    pub(crate) async fn send(self, session: &str, messages: impl AsRef<[u8]>) -> Result<()> {
        let answer = self
            .post(&format!("{session}/xhr_send"), &[], messages)
            .await?;
        status(&answer, 204)?;
        empty(&answer)
    }

    pub(crate) async fn websocket(self, path: &str) -> Result<WebSocket> {
        WebSocket::open(self.address, path).await
    }
}

/// The path of a session of this service that nobody has had.
pub(crate) fn session(service: &str) -> String {
    let id: String = std::iter::repeat_with(fastrand::alphanumeric)
        .take(16)
        .collect();
    format!("/{service}/000/{id}")
}

pub(crate) fn status(answer: &Answer, expected: u16) -> Result<()> {
    same("the status", &answer.status, &expected).with_context(|| answer.text())
}

pub(crate) fn same<T: PartialEq + std::fmt::Debug + ?Sized>(
    what: &str,
    found: &T,
    expected: &T,
) -> Result<()> {
    ensure!(
        found == expected,
        "{what} is {found:?} instead of {expected:?}"
    );
    Ok(())
}

pub(crate) fn empty(answer: &Answer) -> Result<()> {
    same("the body", &*answer.text(), "")
}

pub(crate) fn body(answer: &Answer, expected: &str) -> Result<()> {
    same("the body", &*answer.text(), expected)
}

pub(crate) fn content_type(answer: &Answer, expected: &str) -> Result<()> {
    let found = answer.header("content-type").unwrap_or_default();
    same("the content type", &*found.replace(' ', ""), expected)
}

pub(crate) fn without(answer: &Answer, header: &str) -> Result<()> {
    ensure!(
        answer.header(header).is_none(),
        "there is a header {header}: {answer:?}"
    );
    Ok(())
}

pub(crate) fn no_cookie(answer: &Answer) -> Result<()> {
    without(answer, "set-cookie")
}

/// A page of `origin` may read it, with its cookies; without an origin, anyone may without.
pub(crate) fn cors(answer: &Answer, origin: Option<&str>) -> Result<()> {
    let allowed = answer.header("access-control-allow-origin");
    let credentials = answer.header("access-control-allow-credentials");
    same("the allowed origin", &allowed, &Some(origin.unwrap_or("*")))?;
    same(
        "the header for credentials",
        &credentials,
        &origin.map(|_| "true"),
    )
}

pub(crate) fn not_cached(answer: &Answer) -> Result<()> {
    same(
        "the cache control",
        &answer.header("cache-control"),
        &Some(NOT_CACHED),
    )?;
    without(answer, "expires")?;
    without(answer, "last-modified")
}

pub(crate) fn cached_for_long(answer: &Answer) -> Result<()> {
    let control = answer.header("cache-control").unwrap_or_default();
    let mut directives = control.split(',').map(str::trim);
    let age = directives.find_map(|directive| directive.strip_prefix("max-age=")?.parse().ok());
    ensure!(
        control.contains("public") && age.is_some_and(|age: u64| LONG_SECONDS <= age),
        "not cached for long: {control:?}"
    );
    ensure!(answer.header("expires").is_some(), "no expiry: {answer:?}");
    Ok(())
}

/// A method that is not served, and nothing else wrong.
pub(crate) fn method_not_allowed(answer: &Answer) -> Result<()> {
    status(answer, 405)?;
    without(answer, "content-type")?;
    ensure!(
        answer
            .header("allow")
            .is_some_and(|methods| !methods.is_empty()),
        "it does not say what is allowed: {answer:?}"
    );
    empty(answer)
}

/// Preflights of `path` are answered for long, for a page and for a file (whose origin is `null`).
pub(crate) async fn preflights(server: Server, path: &str, methods: &[&str]) -> Result<()> {
    for origin in ["http://page.example", "null"] {
        let headers = [
            ("Origin", origin),
            ("Access-Control-Request-Method", methods[methods.len() - 1]),
        ];
        let answer = server.options(path, &headers).await?;
        ensure!([200, 204].contains(&answer.status), "{answer:?}");
        cached_for_long(&answer)?;
        let age = answer.header("access-control-max-age").unwrap_or_default();
        ensure!(
            LONG_SECONDS < age.parse().context("no age of the preflight")?,
            "{answer:?}"
        );
        let allowed = answer
            .header("access-control-allow-methods")
            .unwrap_or_default();
        for method in methods {
            ensure!(allowed.contains(method), "no {method} in {allowed:?}");
        }
        empty(&answer)?;
        cors(&answer, Some(origin))?;
    }
    Ok(())
}
