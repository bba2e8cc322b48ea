//! The code in the documents: it runs with the packages that `tests/clients` has, or it is that of an example.

use std::{net::SocketAddr, path::Path};

use anyhow::{Context as _, Result, ensure};
use causeway_tests::harness::{
    clients,
    node::{self, Node},
    process::Process,
    programs,
    scratch::Scratch,
    subscriber::Subscriber,
    wait,
};
use serde_json::{Deserializer, Value, json};
use tokio::process::Command;

use super::{DOCUMENTS, EDGE, NODE, README, blocks, localized, prepare, read};

/// The block of `document` that has `part`.
pub(super) fn block_with(document: &str, part: &str) -> Result<String> {
    let blocks = blocks(document)?;
    let block = blocks.into_iter().find(|block| block.text.contains(part));
    Ok(block
        .with_context(|| format!("{document}: no block has {part}"))?
        .text)
}

/// The node of the section on channels, on ports that the kernel chooses.
pub(super) async fn node_of_the_guide(
    scratch: &Scratch,
) -> Result<(Process, SocketAddr, SocketAddr)> {
    let config = block_with(NODE, "id: \"2026\"")?;
    let text = format!("listen: 127.0.0.1:0\nadmin: {{ address: '127.0.0.1:0' }}\n{config}");
    let file = scratch.write("node.yaml", &localized(&text, scratch))?;
    let mut command = Command::new(programs::ours("causeway-node")?);
    command.arg("--config").arg(file);
    let mut process = Process::spawn("node", command, scratch.path())?;
    let address = process.listening("node").await?;
    let admin = process.listening("admin").await?;
    Ok((process, address, admin))
}

/// The command that runs `code` beside the packages of `tests/clients`.
fn command(script: &str, code: &str, scratch: &Scratch) -> Result<Command> {
    let packages = Path::new(env!("CARGO_MANIFEST_DIR")).join("clients/node_modules");
    let link = scratch.path().join("node_modules");
    if !link.exists() {
        std::os::unix::fs::symlink(packages, link)?;
    }
    let file = scratch.write(script, &localized(code, scratch))?;
    let file = file.to_str().context("a temporary path is UTF-8")?;
    // The path is absolute, and so takes the place of the folder of the other scripts.
    clients::command(file, &json!({}))
}

/// What `script` prints until it ends.
async fn printed(script: &str, code: &str, scratch: &Scratch) -> Result<String> {
    let mut command = command(script, code, scratch)?;
    let output = command.kill_on_drop(true).output().await?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{script}: {said}");
    Ok(String::from_utf8(output.stdout)?.trim().to_owned())
}

/// Runs `script`, which never ends, until it has printed all of `expected`.
async fn prints(script: &str, code: &str, expected: &[&str], scratch: &Scratch) -> Result<()> {
    let process = Process::spawn(script, command(script, code, scratch)?, scratch.path())?;
    wait::until("the output", wait::SOON, async || {
        let output = process.output();
        expected
            .iter()
            .all(|line| output.contains(line))
            .then_some(())
    })
    .await
    .with_context(|| format!("{script}: {}\n{}", process.output(), process.tail()))
}

#[tokio::test]
async fn the_code_that_makes_a_token_makes_one_that_connects_to_the_node_of_the_guide() -> Result<()>
{
    let scratch = Scratch::new("documents-tokens")?;
    prepare(&scratch)?;
    let (_node, address, _) = node_of_the_guide(&scratch).await?;
    let javascript = block_with(NODE, "jwt.sign(")? + "console.log(token);\n";
    let python = block_with(NODE, "jwt.encode(")? + "print(token)\n";
    for token in [
        printed("token.mjs", &javascript, &scratch).await?,
        printed("token.py", &python, &scratch).await?,
    ] {
        let mut client = Subscriber::connect(address, &token).await?;
        client
            .ask("subscribe", json!({ "channel": "chat:room1" }))
            .await?;
        client
            .ask(
                "publish",
                json!({ "channel": "chat:room1", "data": { "text": "hello" } }),
            )
            .await?;
    }
    Ok(())
}

/// With what the text around it says: a token, and a WebSocket of its own for an older Node.js.
#[tokio::test]
async fn the_client_of_the_guide_gets_what_it_publishes_and_what_it_missed() -> Result<()> {
    let scratch = Scratch::new("documents-client")?;
    prepare(&scratch)?;
    let (_node, address, _) = node_of_the_guide(&scratch).await?;
    let token = block_with(NODE, "jwt.sign(")?;
    let client = block_with(NODE, "new Centrifuge(\"ws://")?
        .replace("127.0.0.1:9000", &address.to_string())
        .replace("{ token }", "{ token, websocket: WebSocket }");
    let code = format!(
        r#"import WebSocket from "ws";
{token}{client}
client.disconnect();
const key = readFileSync("/etc/causeway/api.key", "utf8").trim();
await fetch("http://{address}/api/publish", {{
  method: "POST",
  headers: {{ "X-API-Key": key }},
  body: JSON.stringify({{ channel: "chat:room1", data: "meanwhile" }}),
}});
client.connect();
"#
    );
    let expected = ["{ text: 'hello' }", "nothing was missed", "meanwhile"];
    prints("client.mjs", &code, &expected, &scratch).await
}

#[tokio::test]
async fn the_sockjs_client_of_the_readme_gets_its_own_message() -> Result<()> {
    let scratch = Scratch::new("documents-sockjs")?;
    let node = Node::start("n1", node::settings(), scratch.path()).await?;
    let client = block_with(README, "new SockJS(")?;
    let client = client.replace("https://chat.example", &format!("http://{}", node.address));
    let code = format!("import SockJS from \"sockjs-client\";\n{client}");
    prints("sockjs.mjs", &code, &["hello"], &scratch).await
}

/// The example is compiled and run, so what it has in common with the guide works.
#[test]
fn the_server_of_the_guide_is_that_of_the_example() -> Result<()> {
    let example = read("proxy/examples/plugin.rs")?;
    let lines: Vec<&str> = example.lines().map(str::trim).collect();
    let mut checked = 0;
    for line in block_with(EDGE, "Plugin::new(")?.lines() {
        let code = line.split("//").next().unwrap_or_default().trim();
        ensure!(lines.contains(&code), "plugin.rs has no line {code}");
        checked += 1;
    }
    assert!(5 < checked, "only {checked} lines were found");
    Ok(())
}

#[test]
fn each_block_of_json_is_valid() -> Result<()> {
    let mut checked = 0;
    for document in DOCUMENTS {
        for block in blocks(document)?
            .iter()
            .filter(|block| block.info == "json")
        {
            for value in Deserializer::from_str(&block.text).into_iter::<Value>() {
                value.with_context(|| format!("{document}: {}", block.text))?;
                checked += 1;
            }
        }
    }
    assert!(2 < checked, "only {checked} values were found");
    Ok(())
}

/// A block of another kind would be one that nothing checks.
#[test]
fn each_block_is_of_a_kind_that_is_checked() -> Result<()> {
    let kinds = [
        "js",
        "json",
        "python",
        "rust",
        "sh",
        "yaml alerts",
        "yaml node",
        "yaml prometheus",
        "yaml proxy",
    ];
    for document in DOCUMENTS {
        for block in blocks(document)? {
            let is_checked = kinds.contains(&&*block.info);
            // A picture, and what a node and a hook say to each other.
            let is_text = block.info == "text";
            ensure!(is_checked || is_text, "{document}: {block:?}");
        }
    }
    Ok(())
}
