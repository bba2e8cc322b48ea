//! Errors of an app are the app's: no request that a client can choose takes a backend out of service.

use std::{net::SocketAddr, time::Duration};

use anyhow::{Context as _, Result, ensure};
use causeway_tests::harness::{
    backend::{Backend, Request},
    edge::{self, Edge},
    http::{self, Connection, Response},
    scratch::Scratch,
    websocket,
};
use serde_json::json;
use tokio::{io::AsyncWriteExt as _, task::JoinSet, time::timeout};

const IDS: [&str; 3] = ["b1", "b2", "b3"];
const COOKIE: &str = "causeway";

/// Clients at a time, and how often each asks.
const CLIENTS: usize = 20;
const TIMES: usize = 30;

/// The app: what it responds with depends on the path alone, and it is well all the time.
async fn app(id: &'static str, mut request: Request) {
    let path = request
        .head
        .split(' ')
        .nth(1)
        .unwrap_or_default()
        .to_owned();
    let named = format!("X-Backend: {id}\r\n");
    let answered = match path.as_str() {
        "/hangs-up" => return,
        "/silent" => return std::future::pending().await,
        "/half" => {
            let half = b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhalf";
            request.stream.write_all(half).await
        }
        "/garbage" => {
            request
                .stream
                .write_all(b"\0\0 no response \0\0\r\n\r\n")
                .await
        }
        "/502" => request.respond("502 Bad Gateway", &named, "").await,
        "/503" => request.respond("503 Service Unavailable", &named, "").await,
        "/504" => request.respond("504 Gateway Timeout", &named, "").await,
        "/500" => {
            request
                .respond("500 Internal Server Error", &named, "")
                .await
        }
        _ => request.respond("200 OK", &named, "fine").await,
    };
    // Clients that left are part of it.
    answered.unwrap_or_default();
}

struct Scene {
    edge: Edge,
    _backends: Vec<Backend>,
    /// A client of each backend: its cookie.
    cookies: Vec<String>,
    /// The changes of state when all were up.
    changes: usize,
    _scratch: Scratch,
}

impl Scene {
    async fn set(name: &str) -> Result<Self> {
        let scratch = Scratch::new(name)?;
        let mut backends = Vec::new();
        for id in IDS {
            backends.push(Backend::start(move |request| app(id, request)).await?);
        }
        let addresses: Vec<(&str, SocketAddr)> = IDS
            .into_iter()
            .zip(backends.iter().map(|backend| backend.address))
            .collect();
        let settings = edge::settings(&addresses)
            // Probes must fail for nothing but a fault, on a slow machine too, and find one soon.
            .with("health.timeout", json!("20s"))
            .with("health.interval", json!("500ms"))
            // Longer than a backend takes to hang up, on such a machine.
            .with("timeouts.upstream_read", json!("5s"))
            .with("timeouts.upgrade", json!("5s"));
        let edge = Edge::start(&settings, scratch.path()).await?;
        for id in IDS {
            edge.backend_in_state(id, "up").await?;
        }
        let mut cookies = Vec::new();
        for _ in IDS {
            let first = http::get(edge.address, "/").await?;
            cookies.push(first.cookie(COOKIE).context("the first response binds")?);
        }
        let mut scene = Self {
            edge,
            _backends: backends,
            cookies,
            changes: 0,
            _scratch: scratch,
        };
        scene.changes = scene.changes_of_state();
        Ok(scene)
    }

    fn changes_of_state(&self) -> usize {
        let log = self.edge.process.log();
        log.matches("backend changed state").count()
    }

    /// No backend has been anything but up, and every client is where it was.
    async fn nothing_has_changed(&self) -> Result<()> {
        for cookie in &self.cookies {
            let response = get(self.edge.address, "/", Some(cookie)).await?;
            let id = response.header("x-backend").unwrap_or_default();
            ensure!(
                response.status == 200 && cookie.contains(id),
                "{cookie} went to {id}"
            );
            ensure!(response.cookie(COOKIE).is_none(), "{cookie} was bound anew");
        }
        for id in IDS {
            self.edge.backend_in_state(id, "up").await?;
        }
        let changes = self.changes_of_state();
        ensure!(changes == self.changes, "{}", self.edge.process.tail());
        Ok(())
    }
}

async fn get(edge: SocketAddr, path: &str, cookie: Option<&str>) -> Result<Response> {
    match cookie {
        Some(cookie) => {
            http::get_with(edge, path, &[("Cookie", &format!("{COOKIE}={cookie}"))]).await
        }
        None => http::get(edge, path).await,
    }
}

#[tokio::test]
async fn an_app_that_responds_503_on_one_url_stays_in_service() -> Result<()> {
    let scene = Scene::set("app-503").await?;
    let edge = scene.edge.address;
    let mut clients = JoinSet::new();
    for number in 0..CLIENTS {
        // Every fourth is a newcomer each time.
        let cookie = scene.cookies.get(number % 4).cloned();
        clients.spawn(async move {
            for _ in 0..TIMES {
                let response = get(edge, "/503", cookie.as_deref()).await?;
                let by_app = response.header("x-backend").is_some();
                ensure!(
                    response.status == 503 && by_app,
                    "not the app's response: {response:?}"
                );
            }
            Ok(())
        });
    }
    while let Some(client) = clients.join_next().await {
        client??;
    }
    scene.nothing_has_changed().await
}

/// Asks for an upgrade to a WebSocket.
async fn upgrade(edge: SocketAddr, path: &str, cookie: &str) -> Result<Response> {
    let mut connection = Connection::open(edge).await?;
    let cookie = format!("{COOKIE}={cookie}");
    let request = websocket::handshake(edge, path, &[("Cookie", &cookie)]);
    connection.send(request).await?;
    connection.response().await
}

/// One client that asks one backend for all that it does badly.
async fn nasty(edge: SocketAddr, cookie: String) -> Result<()> {
    for _ in 0..TIMES / 3 {
        for path in ["/502", "/503", "/504", "/500"] {
            ensure!(
                get(edge, path, Some(&cookie))
                    .await?
                    .header("x-backend")
                    .is_some(),
                "{path}"
            );
            let refused = upgrade(edge, path, &cookie).await?;
            ensure!(refused.header("x-backend").is_some(), "{path}: {refused:?}");
        }
        for path in ["/hangs-up", "/garbage"] {
            ensure!(
                get(edge, path, Some(&cookie)).await?.status == 502,
                "{path}"
            );
            ensure!(upgrade(edge, path, &cookie).await?.status == 502, "{path}");
        }
        ensure!(
            get(edge, "/half", Some(&cookie)).await.is_err(),
            "half a response is none"
        );
        // Clients that leave before they are answered.
        let left = get(edge, "/silent", Some(&cookie));
        ensure!(
            timeout(Duration::from_millis(5), left).await.is_err(),
            "it is silent"
        );
    }
    ensure!(get(edge, "/silent", Some(&cookie)).await?.status == 504);
    ensure!(upgrade(edge, "/silent", &cookie).await?.status == 504);
    Ok(())
}

#[tokio::test]
async fn requests_of_a_clients_choice_cannot_make_a_backend_suspect() -> Result<()> {
    let scene = Scene::set("nasty").await?;
    let mut clients = JoinSet::new();
    for number in 0..CLIENTS {
        let cookie = scene.cookies[number % IDS.len()].clone();
        clients.spawn(nasty(scene.edge.address, cookie));
    }
    while let Some(client) = clients.join_next().await {
        client??;
    }
    scene.nothing_has_changed().await
}
