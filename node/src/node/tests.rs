//! Tests of whole nodes over real sockets, byte by byte.

use std::time::Duration;

use super::*;

mod bad_input;
mod close;
mod drain;
mod full;
mod headers;
mod interleavings;
mod raw;
mod sessions;
mod streams;
mod websockets;
mod wires;

use raw::Client;
use raw::DEADLINE;

/// A node on a port that the kernel chose. It ends with the test.
struct TestNode {
    address: SocketAddr,
    /// Where operators connect.
    admin: SocketAddr,
    draining: CancellationToken,
    living: JoinSet<Result<(), RunError>>,
}

impl TestNode {
    /// A node with `endpoints` and other settings of `yaml`.
    fn start(yaml: &str) -> Self {
        let config = Config::parse("test", &format!("listen: 127.0.0.1:0\n{yaml}")).unwrap();
        let lifecycle = Lifecycle::default();
        let draining = lifecycle.draining.clone();
        let node = Node::start(config, lifecycle).unwrap();
        let address = node.listener.local_addr().unwrap();
        let admin = node.admin.unwrap();
        let mut living = JoinSet::new();
        living.spawn(node.live());
        Self {
            address,
            admin,
            draining,
            living,
        }
    }

    async fn connect(&self) -> Client {
        Client::connect(self.address).await
    }

    /// Sends one request on a connection of its own.
    async fn request(&self, request: &str) -> raw::Response {
        let mut client = self.connect().await;
        client.send(request).await;
        client.response().await
    }

    async fn get(&self, path: &str) -> raw::Response {
        self.request(&format!("GET {path} HTTP/1.1\r\nHost: node\r\n\r\n"))
            .await
    }

    /// What operators see at `path`.
    async fn get_from_admin(&self, path: &str) -> raw::Response {
        let mut client = Client::connect(self.admin).await;
        client
            .send(&format!("GET {path} HTTP/1.1\r\nHost: node\r\n\r\n"))
            .await;
        client.response().await
    }

    async fn post(&self, path: &str, body: &str) -> raw::Response {
        let mut client = self.connect().await;
        client.post(path, body).await;
        client.response().await
    }

    /// Waits until the node has ended by itself.
    async fn ended(&mut self) -> Result<(), RunError> {
        let ended = tokio::time::timeout(DEADLINE, self.living.join_next()).await;
        ended.expect("the node should end").unwrap().unwrap()
    }
}

/// Repeats `look` until it says yes.
async fn until(mut look: impl AsyncFnMut() -> bool) {
    let repeated = async {
        while !look().await {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(DEADLINE, repeated)
        .await
        .expect("it should become true");
}
