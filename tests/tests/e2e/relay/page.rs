//! The page in a browser: three visitors on three nodes who hear each other.

use std::{fs, path::Path, time::Duration};

use anyhow::{Context as _, Result};
use causeway_tests::harness::{
    clients,
    cluster::{Cluster, ClusterConfig},
    process::Process,
    programs,
};
use serde_json::{Value, json};

const DEADLINE: Duration = Duration::from_secs(120);

#[tokio::test]
async fn three_visitors_sit_on_three_nodes_and_hear_each_other() -> Result<()> {
    let cluster = Cluster::start("page", ClusterConfig::three_nodes()).await?;
    let target = Path::new(env!("CARGO_TARGET_TMPDIR"))
        .parent()
        .context("the temporary directory is in the target directory")?;
    let screenshot = target.join("page.png");
    let orders = json!({
        "url": format!("http://{}/", cluster.edge.address),
        "chromium": programs::installed(&["chromium", "chromium-browser", "google-chrome"])?,
        "screenshot": screenshot,
    });
    let mut browser = Process::spawn(
        "page",
        clients::command("page.mjs", &orders)?,
        cluster.scratch.path(),
    )?;
    let status = browser.exit(DEADLINE).await?;
    assert!(status.success(), "{}", browser.tail());
    let shown = browser
        .output_lines()
        .pop()
        .context("the browser reported nothing")?;

    assert_eq!(shown["errors"], json!([]));
    let mut nodes: Vec<&str> = strings(&shown["nodes"]);
    nodes.sort_unstable();
    nodes.dedup();
    assert_eq!(nodes.len(), 3, "{}", shown["nodes"]);

    let heard = shown["heard"]
        .as_array()
        .context("a list for each visitor")?;
    for visitor in heard {
        let lines = visitor.as_array().context("a list of lines")?;
        for (from, text) in [
            ("Ada", "Hello from the first node"),
            ("Grace", "I hear you on the second"),
            ("Edsger", "<b>and on the third</b>"),
        ] {
            let matching = |line: &&Value| {
                line["from"] == from
                    && line["text"]
                        .as_str()
                        .is_some_and(|line| line.contains(text))
            };
            assert_eq!(
                lines.iter().filter(matching).count(),
                1,
                "{text:?} of {from} in {visitor}"
            );
        }
    }
    assert_ne!(shown["moved"]["from"], shown["moved"]["to"]);
    assert!(
        10_000 < fs::metadata(&screenshot)?.len(),
        "the screenshot shows something"
    );
    Ok(())
}

fn strings(value: &Value) -> Vec<&str> {
    value
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(Value::as_str)
        .collect()
}
