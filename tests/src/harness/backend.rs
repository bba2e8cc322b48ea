//! A backend whose behaviour the test writes itself.

use std::net::SocketAddr;

use anyhow::Result;
use bytes::BytesMut;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    task::JoinSet,
};

use crate::harness::loopback;

/// The response to a health check.
const READY: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n";

/// One request to a [`Backend`], and the connection it came on.
#[derive(Debug)]
pub struct Request {
    /// The head, up to and including the empty line.
    pub head: String,
    /// What came behind the head.
    pub rest: BytesMut,
    /// Where to respond.
    pub stream: TcpStream,
}

impl Request {
    /// The value of the first header of this name.
    #[must_use]
    pub fn header(&self, name: &str) -> Option<&str> {
        let fields = self.head.lines().filter_map(|line| line.split_once(':'));
        fields
            .into_iter()
            .find(|(found, _)| found.eq_ignore_ascii_case(name))
            .map(|(_, value)| value.trim())
    }

    /// Responds with `text` and closes.
    ///
    /// # Errors
    ///
    /// The edge has gone.
    pub async fn respond(
        &mut self,
        status: &str,
        headers: &str,
        text: &str,
    ) -> std::io::Result<()> {
        let length = text.len();
        let response = format!(
            "HTTP/1.1 {status}\r\nContent-Length: {length}\r\nConnection: close\r\n{headers}\r\n{text}"
        );
        self.stream.write_all(response.as_bytes()).await?;
        self.stream.shutdown().await
    }
}

/// A server that responds to `/ready` with 200 and gives every other request to the test.
#[derive(Debug)]
pub struct Backend {
    /// Where it listens.
    pub address: SocketAddr,
    /// The accepting task, which owns the serving ones.
    tasks: JoinSet<()>,
}

impl Backend {
    /// Starts one; `handle` gets the first request of each connection.
    ///
    /// # Errors
    ///
    /// There is no port.
    pub async fn start<Handle, Done>(handle: Handle) -> Result<Self>
    where
        Handle: Fn(Request) -> Done + Clone + Send + 'static,
        Done: Future<Output = ()> + Send + 'static,
    {
        let listener = TcpListener::bind(loopback::own_any_port()).await?;
        let address = listener.local_addr()?;
        let mut tasks = JoinSet::new();
        tasks.spawn(async move {
            let mut serving = JoinSet::new();
            loop {
                tokio::select! {
                    Some(_) = serving.join_next() => {}
                    accepted = listener.accept() => {
                        let Ok((stream, _)) = accepted else { return };
                        serving.spawn(serve(stream, handle.clone()));
                    }
                }
            }
        });
        Ok(Self { address, tasks })
    }

    /// Stops listening and cuts every connection, as a crash would.
    pub async fn stop(mut self) {
        self.tasks.shutdown().await;
    }
}

async fn serve<Handle, Done>(mut stream: TcpStream, handle: Handle)
where
    Handle: Fn(Request) -> Done,
    Done: Future<Output = ()>,
{
    stream.set_nodelay(true).ok();
    let mut rest = BytesMut::new();
    loop {
        let Some(end) = rest.windows(4).position(|window| window == b"\r\n\r\n") else {
            match stream.read_buf(&mut rest).await {
                Ok(1..) => continue,
                _ => return,
            }
        };
        let head = String::from_utf8_lossy(&rest.split_to(end + 4)).into_owned();
        if !head.starts_with("GET /ready ") {
            return handle(Request { head, rest, stream }).await;
        }
        if stream.write_all(READY).await.is_err() {
            return;
        }
    }
}
