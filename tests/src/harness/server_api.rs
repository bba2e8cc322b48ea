//! What an application's backend asks a node: `POST /api/METHOD` with a key.

use std::net::SocketAddr;

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use crate::harness::http::Connection;

/// Calls a method and returns its result.
///
/// # Errors
///
/// The node refuses, or does not respond.
pub async fn call(node: SocketAddr, key: &str, method: &str, body: &Value) -> Result<Value> {
    let body = body.to_string();
    let length = body.len();
    let head = format!(
        "POST /api/{method} HTTP/1.1\r\nHost: n\r\nX-API-Key: {key}\r\nContent-Length: {length}\r\n\r\n"
    );
    let mut connection = Connection::open(node).await?;
    connection.send(format!("{head}{body}")).await?;
    let response = connection.response().await?;
    ensure!(response.status == 200, "{method}: {response:?}");
    let mut response: Value = serde_json::from_str(&response.text())?;
    let result = response.get_mut("result").map(Value::take);
    result.with_context(|| format!("{method} was refused: {response}"))
}
