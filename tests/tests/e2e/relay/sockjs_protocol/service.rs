//! A server as the cases see it: requests to its services, and what must hold of their responses.

use std::net::SocketAddr;

use anyhow::{Context as _, Result, ensure};
use causeway_tests::harness::{
    http::{self, Connection, Response},
    websocket::WebSocket,
};

/// Long for any client, as a day is; a year is what there should be.
const LONG_SECONDS: u64 = 1_000_000;
/// What every response says that is for one client at one moment.
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

    pub(crate) async fn get(self, path: &str, headers: &[(&str, &str)]) -> Result<Response> {
        http::get_with(self.address, path, headers).await
    }

    pub(crate) async fn post(
        self,
        path: &str,
        headers: &[(&str, &str)],
        body: impl AsRef<[u8]>,
    ) -> Result<Response> {
        http::request(self.address, "POST", path, headers, body.as_ref()).await
    }

    pub(crate) async fn options(self, path: &str, headers: &[(&str, &str)]) -> Result<Response> {
        http::request(self.address, "OPTIONS", path, headers, b"").await
    }

    /// Asks for a stream and reads the head of the response.
    pub(crate) async fn stream(self, method: &str, path: &str) -> Result<(Response, Connection)> {
        self.stream_with(method, path, "").await
    }

    /// As [`Server::stream`], with more header lines.
    pub(crate) async fn stream_with(
        self,
        method: &str,
        path: &str,
        headers: &str,
    ) -> Result<(Response, Connection)> {
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
        let response = self.post(&format!("{session}/xhr"), &[], "").await?;
        status(&response, 200)?;
        Ok(response.text())
    }

    /// Sends messages to a session over `xhr_send`.
    pub(crate) async fn send(self, session: &str, messages: impl AsRef<[u8]>) -> Result<()> {
        let response = self
            .post(&format!("{session}/xhr_send"), &[], messages)
            .await?;
        status(&response, 204)?;
        empty(&response)
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

pub(crate) fn status(response: &Response, expected: u16) -> Result<()> {
    same("the status", &response.status, &expected).with_context(|| response.text())
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

pub(crate) fn empty(response: &Response) -> Result<()> {
    same("the body", &*response.text(), "")
}

pub(crate) fn body(response: &Response, expected: &str) -> Result<()> {
    same("the body", &*response.text(), expected)
}

pub(crate) fn content_type(response: &Response, expected: &str) -> Result<()> {
    let found = response.header("content-type").unwrap_or_default();
    same("the content type", &*found.replace(' ', ""), expected)
}

pub(crate) fn without(response: &Response, header: &str) -> Result<()> {
    ensure!(
        response.header(header).is_none(),
        "there is a header {header}: {response:?}"
    );
    Ok(())
}

pub(crate) fn no_cookie(response: &Response) -> Result<()> {
    without(response, "set-cookie")
}

/// A page of `origin` may read it, with its cookies; without an origin, anyone may without.
pub(crate) fn cors(response: &Response, origin: Option<&str>) -> Result<()> {
    let allowed = response.header("access-control-allow-origin");
    let credentials = response.header("access-control-allow-credentials");
    same("the allowed origin", &allowed, &Some(origin.unwrap_or("*")))?;
    same(
        "the header for credentials",
        &credentials,
        &origin.map(|_| "true"),
    )
}

pub(crate) fn not_cached(response: &Response) -> Result<()> {
    same(
        "the cache control",
        &response.header("cache-control"),
        &Some(NOT_CACHED),
    )?;
    without(response, "expires")?;
    without(response, "last-modified")
}

pub(crate) fn cached_for_long(response: &Response) -> Result<()> {
    let control = response.header("cache-control").unwrap_or_default();
    let mut directives = control.split(',').map(str::trim);
    let age = directives.find_map(|directive| directive.strip_prefix("max-age=")?.parse().ok());
    ensure!(
        control.contains("public") && age.is_some_and(|age: u64| LONG_SECONDS <= age),
        "not cached for long: {control:?}"
    );
    ensure!(
        response.header("expires").is_some(),
        "no expiry: {response:?}"
    );
    Ok(())
}

/// A method that is not served, and nothing else wrong.
pub(crate) fn method_not_allowed(response: &Response) -> Result<()> {
    status(response, 405)?;
    without(response, "content-type")?;
    ensure!(
        response
            .header("allow")
            .is_some_and(|methods| !methods.is_empty()),
        "it does not say what is allowed: {response:?}"
    );
    empty(response)
}

/// Preflights of `path` are answered for long, for a page and for a file (whose origin is `null`).
pub(crate) async fn preflights(server: Server, path: &str, methods: &[&str]) -> Result<()> {
    for origin in ["http://page.example", "null"] {
        let headers = [
            ("Origin", origin),
            ("Access-Control-Request-Method", methods[methods.len() - 1]),
        ];
        let response = server.options(path, &headers).await?;
        ensure!([200, 204].contains(&response.status), "{response:?}");
        cached_for_long(&response)?;
        let age = response
            .header("access-control-max-age")
            .unwrap_or_default();
        ensure!(
            LONG_SECONDS < age.parse().context("no age of the preflight")?,
            "{response:?}"
        );
        let allowed = response
            .header("access-control-allow-methods")
            .unwrap_or_default();
        for method in methods {
            ensure!(allowed.contains(method), "no {method} in {allowed:?}");
        }
        empty(&response)?;
        cors(&response, Some(origin))?;
    }
    Ok(())
}
