//! One client: its cookie and its connections.

use std::{
    net::SocketAddr,
    sync::{Arc, Mutex, PoisonError},
};

use anyhow::Result;
use tokio::time::Instant;

use crate::harness::{
    http::{Connection, Response},
    load::{
        Cookies,
        journal::{Journal, Record},
    },
    websocket,
};

/// The cookie of the edge.
const COOKIE: &str = "causeway";

/// A client, with what a browser keeps from one request to the next.
#[derive(Debug)]
pub(super) struct Client {
    edge: SocketAddr,
    number: usize,
    cookies: Cookies,
    /// Shared by its connections, as in a browser.
    cookie: Arc<Mutex<Option<String>>>,
    /// A kept connection, if there is one.
    idle: Option<Connection>,
    journal: Arc<Journal>,
}

impl Client {
    pub(super) fn new(
        edge: SocketAddr,
        number: usize,
        cookies: Cookies,
        journal: Arc<Journal>,
    ) -> Self {
        Self {
            edge,
            number,
            cookies,
            cookie: Arc::default(),
            idle: None,
            journal,
        }
    }

    pub(super) fn journal(&self) -> &Journal {
        &self.journal
    }

    pub(super) fn number(&self) -> usize {
        self.number
    }

    /// A second connection of the same client, with the same cookies.
    pub(super) fn twin(&self) -> Self {
        Self {
            cookie: Arc::clone(&self.cookie),
            idle: None,
            journal: Arc::clone(&self.journal),
            ..*self
        }
    }

    fn cookie(&self) -> Option<String> {
        self.cookie
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    /// Sends a request and writes down what came of it. The response, if its status is `good`.
    pub(super) async fn ask(
        &mut self,
        method: &'static str,
        path: &str,
        body: &[u8],
        good: impl Fn(u16) -> bool,
    ) -> Option<Response> {
        let mut head = format!("{method} {path} HTTP/1.1\r\nHost: {}\r\n", self.edge);
        let before = self.cookie();
        head.push_str(&cookie_header(before.as_deref()));
        if method == "POST" {
            head.push_str(&format!("Content-Length: {}\r\n", body.len()));
        }
        head.push_str("\r\n");
        let begun = Instant::now();
        let mut kept = self.idle.take();
        let asked = exchange(self.edge, &mut kept, [head.as_bytes(), body].concat()).await;
        if let Ok(response) = &asked
            && response.header("connection") != Some("close")
        {
            self.idle = kept;
        }
        self.write_down(method, path, begun, before, asked, good)
    }

    /// Asks for a WebSocket and writes down what came of it. The connection and the 101, if it is one.
    pub(super) async fn upgrade(&mut self, path: &str) -> Option<(Connection, Response)> {
        let before = self.cookie();
        let cookie = cookie_header(before.as_deref());
        let begun = Instant::now();
        let mut connection = None;
        let mut head = websocket::handshake(self.edge, path, &[]);
        head.insert_str(head.len() - 2, &cookie);
        let asked = async {
            let connection = connection.insert(Connection::open(self.edge).await?);
            connection.send(head).await?;
            connection.head().await
        }
        .await;
        let response = self.write_down("upgrade", path, begun, before, asked, |status| {
            status == 101
        })?;
        Some((connection?, response))
    }

    fn write_down(
        &mut self,
        method: &'static str,
        path: &str,
        begun: Instant,
        before: Option<String>,
        asked: Result<Response>,
        good: impl Fn(u16) -> bool,
    ) -> Option<Response> {
        let set = asked
            .as_ref()
            .ok()
            .and_then(|response| response.cookie(COOKIE));
        if self.cookies == Cookies::Kept && set.is_some() {
            *self.cookie.lock().unwrap_or_else(PoisonError::into_inner) = set;
        }
        let outcome = match &asked {
            Ok(response) => Ok(response.status),
            Err(error) => Err(format!("{error:#}")),
        };
        let good = outcome.as_ref().is_ok_and(|status| good(*status));
        let node = asked
            .as_ref()
            .ok()
            .and_then(|response| response.header("causeway-node"));
        self.journal.add(Record {
            client: self.number,
            method,
            path: path.to_owned(),
            begun,
            ended: Instant::now(),
            outcome,
            good,
            node: node.map(ToOwned::to_owned),
            bound_before: before.as_deref().and_then(backend_of),
            moved: false,
            bound_after: self.cookie().as_deref().and_then(backend_of),
        });
        asked.ok().filter(|_| good)
    }
}

fn cookie_header(cookie: Option<&str>) -> String {
    cookie.map_or_else(String::new, |cookie| {
        format!("Cookie: {COOKIE}={cookie}\r\n")
    })
}

/// One request on a kept connection, or on a new one that is kept.
async fn exchange(
    edge: SocketAddr,
    kept: &mut Option<Connection>,
    request: Vec<u8>,
) -> Result<Response> {
    let connection = match kept {
        Some(connection) => connection,
        None => kept.insert(Connection::open(edge).await?),
    };
    connection.send(request).await?;
    connection.response().await
}

/// The backend that an unsigned cookie names: `u1.ID.TIME`.
fn backend_of(cookie: &str) -> Option<String> {
    let (id, _bound_at) = cookie.strip_prefix("u1.")?.rsplit_once('.')?;
    Some(id.to_owned())
}
