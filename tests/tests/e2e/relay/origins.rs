//! What an operator hears about pages that may not connect.

use anyhow::Result;
use causeway_tests::harness::{
    http,
    node::{self, Node},
    process::json_lines,
    scratch::Scratch,
    wait,
};
use serde_json::Value;

const REQUESTS: usize = 50;

#[tokio::test]
async fn a_flood_of_refused_origins_makes_few_lines_that_name_the_setting() -> Result<()> {
    let scratch = Scratch::new("origins")?;
    let node = Node::start("n1", node::settings(), scratch.path()).await?;
    let headers = [("Origin", "https://other.example")];
    for _ in 0..REQUESTS {
        let refused = http::get_with(node.address, "/sockjs/info", &headers).await?;
        assert_eq!(refused.status, 403);
        assert_eq!(refused.header("access-control-allow-origin"), None);
    }
    let fields = wait::until("a line of it", wait::SOON, async || {
        let lines = json_lines(&node.process.log()).into_iter();
        let fields = lines.map(|mut line| line["fields"].take());
        let of_it: Vec<Value> = fields
            .filter(|fields| fields["setting"] == "allowed_origins")
            .collect();
        (!of_it.is_empty()).then_some(of_it)
    })
    .await?;
    // One a second: as many as requests only if each of them took one.
    assert!((1..REQUESTS).contains(&fields.len()), "{fields:?}");
    assert_eq!(fields[0]["endpoint"], "/sockjs");
    let origin = fields[0]["origin"].as_str().unwrap_or_default();
    assert!(origin.contains("https://other.example"), "{origin}");
    let metrics = http::get(node.admin, "/metrics").await?.text();
    let counted = format!("reason=\"origin\"}} {REQUESTS}\n");
    assert!(metrics.contains(&counted), "{metrics}");
    Ok(())
}
