//! Channel clients over streams: how they are sent away, and that it is counted.

use super::*;

const ENDPOINTS: &str = "
auth: { anonymous: true }
endpoints:
  - { path: /connection, mode: channels }
channels:
  namespaces: [{ name: chat }]
  limits: { connect_timeout: 100ms }
";

/// Opens a stream with what its client says first.
async fn open(node: &TestNode, place: &str, said: &str) -> Client {
    let mut client = node.connect().await;
    client.post(&format!("/connection/{place}"), said).await;
    assert_eq!(client.head().await.status, 200);
    client
}

/// All that comes until the stream ends.
async fn to_the_end(mut client: Client) -> String {
    let mut told = String::new();
    while let Some(chunk) = client.chunk().await {
        told += &chunk;
    }
    told
}

async fn is_counted(node: &TestNode, code: u16, reason: &str, times: usize) {
    let line =
        format!("causeway_node_disconnects_total{{code=\"{code}\",reason=\"{reason}\"}} {times}\n");
    until(async || node.get_from_admin("/metrics").await.body.contains(&line)).await;
}

#[tokio::test]
async fn who_is_sent_away_is_told_why_and_counted_by_code() {
    let node = TestNode::start(ENDPOINTS);
    for (times, place) in ["http_stream", "sse"].into_iter().enumerate() {
        let told = to_the_end(open(&node, place, "no command").await).await;
        assert!(told.contains("\"code\":3501"), "{told}");
        is_counted(&node, 3501, "bad_request", times + 1).await;
        let told = to_the_end(open(&node, place, "{}").await).await;
        assert!(told.contains("\"code\":3502"), "{told}");
        is_counted(&node, 3502, "stale", times + 1).await;
    }
    let response = node
        .post("/connection/uni_sse", "{\"token\":\"none\"}")
        .await;
    assert_eq!(response.status, 204, "an EventSource stays away");
    let why = response.header("causeway-disconnect");
    assert_eq!(why, Some("3500 invalid_token"));
    is_counted(&node, 3500, "invalid_token", 1).await;
}

#[tokio::test]
async fn who_leaves_is_not_counted_as_sent_away() {
    let node = TestNode::start(ENDPOINTS);
    let mut client = open(&node, "http_stream", "{\"id\":1,\"connect\":{}}").await;
    let connected = client.chunk().await.unwrap();
    assert!(connected.contains("\"connect\""), "{connected}");
    drop(client);
    let gone = "causeway_node_clients{transport=\"channels_http_stream\"} 0\n";
    until(async || node.get_from_admin("/metrics").await.body.contains(gone)).await;
    let metrics = node.get_from_admin("/metrics").await.body;
    assert!(!metrics.contains("disconnects_total{"), "{metrics}");
}
