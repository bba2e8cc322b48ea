//! The commands of the documents: each is run, or it is held against what it names.

use std::{collections::BTreeMap, net::SocketAddr, process::Stdio};

use anyhow::{Context as _, Result, bail, ensure};
use causeway_tests::harness::{
    edge::{self, Edge},
    node::{self, Node},
    programs,
    scratch::Scratch,
    wait,
};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncBufReadExt as _, BufReader},
    process::Command,
    time::timeout,
};

use super::{
    CONF, DOCUMENTS, EDGE, NODE, README, assert_same, blocks,
    code::{block_with, node_of_the_guide},
    localized, prepare, quoted, read, root, rows,
};

/// Programs that commands in code quotes begin with.
const PROGRAMS: [&str; 13] = [
    "apt",
    "cargo",
    "causeway-bench",
    "causeway-node",
    "causeway-proxy",
    "ctl",
    "curl",
    "docker",
    "kill",
    "make",
    "openssl",
    "redis-cli",
    "systemctl",
];

/// A command and the document that it stands in.
type Line = (&'static str, String);

/// The commands in blocks and in code quotes, without comments.
fn lines() -> Result<Vec<Line>> {
    let mut found = Vec::new();
    for document in DOCUMENTS {
        for block in blocks(document)?.iter().filter(|block| block.info == "sh") {
            let lines = block.text.lines().map(without_comment);
            let lines = lines.filter(|line| !line.is_empty());
            found.extend(lines.map(|line| (document, line.to_owned())));
        }
        for line in quoted(&read(document)?.replace("```", "")) {
            let line = line.trim_start_matches("target/dist/").to_owned();
            let program = line.split(' ').next().unwrap_or_default();
            if PROGRAMS.contains(&program) && line.contains(' ') {
                found.push((document, line));
            }
        }
    }
    Ok(found)
}

fn without_comment(line: &str) -> &str {
    let line = line.split(" # ").next().unwrap_or_default();
    line.split("  #").next().unwrap_or_default().trim()
}

/// What `command` prints about itself.
async fn help(command: &mut Command) -> Result<Option<String>> {
    let output = command.arg("--help").kill_on_drop(true).output().await?;
    let is_known = output.status.success();
    Ok(is_known.then(|| String::from_utf8_lossy(&output.stdout).into_owned()))
}

#[tokio::test]
async fn each_command_of_ours_has_the_subcommands_and_flags_that_it_uses() -> Result<()> {
    let mut helps: BTreeMap<Vec<String>, Option<String>> = BTreeMap::new();
    let mut checked = 0;
    for (document, command) in lines()? {
        let command = match command.strip_prefix("ctl ") {
            Some(rest) => format!("causeway-proxy ctl {rest}"),
            None => command,
        };
        let mut words: Vec<&str> = command.split_whitespace().collect();
        if !words[0].starts_with("causeway-") {
            continue;
        }
        // Flags of `ctl` stand before its subcommand, and some have a value.
        if words.get(1) == Some(&"ctl") {
            while let Some(flag) = words
                .iter()
                .position(|word| matches!(*word, "--socket" | "--url" | "--token-file"))
            {
                words.drain(flag..flag + 2);
            }
        }
        let names = { words.iter().skip(1) }
            .take(if words.get(1) == Some(&"ctl") { 2 } else { 1 })
            .take_while(|word| !word.starts_with('-'));
        let mut key = vec![words[0].to_owned()];
        key.extend(names.map(|word| (*word).to_owned()));
        if !helps.contains_key(&key) {
            let mut program = Command::new(programs::ours(&key[0])?);
            let text = help(program.args(&key[1..])).await?;
            helps.insert(key.clone(), text);
        }
        let Some(help) = &helps[&key] else {
            bail!("{document}: {command:?} is no command");
        };
        for flag in words.iter().filter(|word| word.starts_with("--")) {
            let mut has_it = help.split(|c: char| c.is_whitespace() || c == ',');
            ensure!(
                has_it.any(|word| word == *flag),
                "{document}: {command:?}: there is no {flag}"
            );
        }
        checked += 1;
    }
    assert!(30 < checked, "only {checked} commands were found");
    Ok(())
}

/// Holds a command of somebody else's program against the files and names of ours that are in it.
fn check_other(line: &str) -> Result<()> {
    let words: Vec<&str> = line.split_whitespace().collect();
    let after = |flag: &str| {
        let at = words.iter().position(|word| *word == flag)?;
        words.get(at + 1).copied()
    };
    let exists = |path: &str| root().join(path).exists();
    match words[0] {
        // Their own tests have these.
        "make" | "causeway-bench" | "causeway-proxy" | "causeway-node" | "ctl" => {}
        "cargo" => {
            if let Some(test) = after("--test") {
                ensure!(exists(&format!("tests/tests/{test}")), "no test {test}");
            }
            if let Some(filter) = after("--").filter(|word| !word.starts_with('-')) {
                let file = filter.replace("::", "/");
                ensure!(exists(&format!("tests/tests/e2e/{file}.rs")), "{filter}");
            }
        }
        "docker" => {
            let file = after("-f").context("it names its file")?;
            ensure!(exists(file), "no {file}");
            if let Some(stage) = after("--target") {
                let stage = format!(" AS {stage}\n");
                ensure!(read(file)?.contains(&stage), "no stage{stage}");
            }
        }
        "apt" | "editor" if line.contains('/') => {
            let packaging = read("conf/packaging/package.sh")?;
            let name = line.rsplit('/').next().unwrap_or_default();
            let name = name.split('_').next().unwrap_or_default();
            ensure!(packaging.contains(name), "{name} is in no package");
        }
        "systemctl" => {
            let unit = words.last().copied().unwrap_or_default();
            if unit.starts_with("causeway") {
                let unit = unit.split('@').next().unwrap_or_default();
                ensure!(exists(&format!("conf/systemd/{unit}.service")), "{unit}");
            }
        }
        // `the_certificate_of_the_guide_is_one_that_the_edge_serves` runs the last one.
        "apt" | "iptables" | "kill" | "redis-cli" | "openssl" => {}
        // `each_request_of_the_guide_to_a_node_has_the_response_that_it_is_for` runs them.
        "curl" | "KEY=$(cat" => {
            let known = ["/uni_sse", "/api/publish", "/slowest", "api.key"];
            ensure!(
                known.iter().any(|part| line.contains(part)),
                "nobody runs it"
            );
        }
        word if word.starts_with("CAUSEWAY_") => check_other(&words[1..].join(" "))?,
        _ => bail!("no test knows this program"),
    }
    Ok(())
}

#[test]
fn each_other_command_names_what_is_there() -> Result<()> {
    for (document, line) in lines()? {
        check_other(&line).with_context(|| format!("{document}: {line:?}"))?;
    }
    Ok(())
}

/// `line` in a shell, in the directory of `scratch`, with the programs of these tests.
fn shell(line: &str, scratch: &Scratch) -> Result<Command> {
    let programs = programs::ours("causeway-node")?;
    let programs = programs.parent().context("the program is in a folder")?;
    let path = std::env::var("PATH").unwrap_or_default();
    let mut command = Command::new("sh");
    command.args(["-ec", &localized(line, scratch)]);
    command
        .env("PATH", format!("{}:{path}", programs.display()))
        .current_dir(scratch.path())
        .kill_on_drop(true);
    Ok(command)
}

/// What `line` prints.
async fn run(line: &str, scratch: &Scratch) -> Result<String> {
    let output = shell(line, scratch)?.output().await?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{line}: {said}");
    Ok(String::from_utf8(output.stdout)?)
}

/// As in the guide, but at the addresses of a running node.
fn at(text: &str, node: SocketAddr, admin: SocketAddr) -> String {
    let text = text.replace("127.0.0.1:9000", &node.to_string());
    text.replace("127.0.0.1:10000", &admin.to_string())
}

#[tokio::test]
async fn each_request_of_the_guide_to_a_node_has_the_response_that_it_is_for() -> Result<()> {
    let scratch = Scratch::new("documents-requests")?;
    prepare(&scratch)?;
    let (_node, address, admin) = node_of_the_guide(&scratch).await?;

    let tokens = block_with(NODE, "causeway-node gentoken --config")?;
    let mut lines = tokens.lines();
    let mut next = || lines.next().context("the block has three commands");
    let token = run(next()?, &scratch).await?;
    scratch.write("token.txt", &token)?;
    ensure!(run(next()?, &scratch).await?.starts_with("ey"));
    let checked = run(next()?, &scratch).await?;
    ensure!(checked.starts_with("valid: "), "{checked}");

    let publish = at(&block_with(NODE, "/api/publish")?, address, admin);
    let published: Value = serde_json::from_str(&run(&publish, &scratch).await?)?;
    ensure!(published["result"]["offset"] == 1, "{published}");

    let stream = at(&block_with(NODE, "/uni_sse")?, address, admin);
    let mut stream = shell(&format!("exec {}", stream.trim()), &scratch)?
        .env("TOKEN", token.trim())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()?;
    let output = stream.stdout.take().context("the output is a pipe")?;
    let mut lines = BufReader::new(output).lines();
    let connected = timeout(wait::SOON, async {
        loop {
            let line = lines.next_line().await?.context("the stream has ended")?;
            if line.contains("\"connect\"") {
                return anyhow::Ok(());
            }
        }
    });
    connected.await.context("the stream is silent")??;

    let slowest = quoted(&read(NODE)?.replace("```", ""));
    let slowest = slowest
        .iter()
        .find(|line| line.contains("/slowest") && line.contains("curl"));
    let slowest = at(slowest.context("the runbook asks for it")?, address, admin);
    ensure!(run(&slowest, &scratch).await?.trim() == "[]");
    Ok(())
}

#[tokio::test]
async fn the_edge_obeys_the_commands_of_the_guide_to_it() -> Result<()> {
    let scratch = Scratch::new("documents-ctl")?;
    prepare(&scratch)?;
    let first = Node::start("app-1", node::settings(), scratch.path()).await?;
    let second = Node::start("app-2", node::settings(), scratch.path()).await?;
    let backends = [("app-1", first.address), ("app-2", second.address)];
    let settings = edge::settings(&backends).with(
        "admin",
        json!({
            "address": "127.0.0.1:0",
            "socket": scratch.path().join("admin.sock"),
            "token": { "file": scratch.path().join("token.key") },
        }),
    );
    let edge = Edge::start(&settings, scratch.path()).await?;
    for id in ["app-1", "app-2"] {
        edge.backend_in_state(id, "up").await?;
    }
    let socket = scratch.path().join("admin.sock").display().to_string();
    for line in block_with(EDGE, "causeway-proxy ctl --socket")?.lines() {
        let line = line.replace("/run/causeway-proxy/admin.sock", &socket);
        let line = line.replace("127.0.0.1:8081", &edge.admin.to_string());
        let printed = run(&line, &scratch).await?;
        ensure!(printed.contains("app-1"), "{line}: {printed}");
    }
    let mut status = shell(
        &format!("causeway-proxy ctl --socket {socket} status"),
        &scratch,
    )?;
    let status = String::from_utf8(status.output().await?.stdout)?;
    ensure!(status.contains("draining*"), "{status}");
    Ok(())
}

#[tokio::test]
async fn the_table_of_commands_to_the_edge_has_each_and_no_other() -> Result<()> {
    let mut command = Command::new(programs::ours("causeway-proxy")?);
    let help = help(command.arg("ctl")).await?.context("there is help")?;
    let below = help.split("Commands:\n").nth(1).unwrap_or_default();
    let names = below
        .lines()
        .map_while(|line| line.split_whitespace().next());
    let real = names.filter(|name| *name != "help").map(str::to_owned);
    let rows = rows(EDGE, "### Acting on a running edge")?;
    let is_request = |cell: &String| cell.starts_with("`GET ") || cell.starts_with("`POST ");
    let commands = rows.iter().filter(|row| row.get(1).is_some_and(is_request));
    let names = commands.flat_map(|row| quoted(&row[0]));
    let documented = names.filter_map(|name| name.split(' ').next().map(str::to_owned));
    assert_same("commands of ctl", &documented.collect(), &real.collect());
    Ok(())
}

/// The files that `genconfig` writes, and what `--print-config` says of them.
#[tokio::test]
async fn the_commands_that_begin_without_a_file_write_ones_that_work() -> Result<()> {
    let scratch = Scratch::new("documents-genconfig")?;
    let block = block_with(CONF, "causeway-proxy genconfig --output")?;
    let printed = run(&block, &scratch).await?;
    ensure!(printed.contains("node:\n"), "{printed}");
    for program in ["proxy", "node"] {
        let line = format!("causeway-{program} --config {program}.yaml --check");
        run(&line, &scratch).await?;
    }
    Ok(())
}

/// A certificate to try TLS with, as the guide makes it.
#[tokio::test]
async fn the_certificate_of_the_guide_is_one_that_the_edge_serves() -> Result<()> {
    let scratch = Scratch::new("documents-certificate")?;
    std::fs::create_dir(scratch.path().join("certificates"))?;
    run(&block_with(EDGE, "openssl req")?, &scratch).await?;
    let config = block_with(
        EDGE,
        "redirect_to_https: 443\npools:\n  - name: app\n    backends: [",
    )?;
    scratch.write("edge.yaml", &localized(&config, &scratch))?;
    run("causeway-proxy --config edge.yaml --check", &scratch).await?;
    Ok(())
}

/// The jobs of the alerts, the file of the rules, and the ports that the programs have by default.
#[tokio::test]
async fn prometheus_finds_the_programs_and_the_rules_by_the_configuration_of_the_guide()
-> Result<()> {
    let text = block_with(CONF, "# prometheus.yml")?;
    let config: Value = serde_yaml::from_str(&text)?;
    let alerts = read("conf/prometheus/alerts.yaml")?;
    ensure!(config["rule_files"] == json!(["alerts.yaml"]));
    let jobs = config["scrape_configs"].as_array().context("it has jobs")?;
    for (job, port) in jobs.iter().zip(["8081", "10000"]) {
        let name = job["job_name"].as_str().context("a job has a name")?;
        ensure!(alerts.contains(&format!("up{{job=\"{name}\"}}")), "{name}");
        let target = job["static_configs"][0]["targets"][0].as_str();
        ensure!(target == Some(&format!("127.0.0.1:{port}")), "{job}");
    }
    let Ok(promtool) = programs::installed(&["promtool"]) else {
        eprintln!("promtool is not installed: the syntax of its files is not checked");
        return Ok(());
    };
    let scratch = Scratch::new("documents-prometheus")?;
    scratch.write("alerts.yaml", &alerts)?;
    let config = scratch.write("prometheus.yml", &text)?;
    let rules = block_with(README, "alert: BackendDown")?;
    let rules = scratch.write("readme.yaml", &rules)?;
    for arguments in [["check", "config"], ["check", "rules"]] {
        let file = if arguments[1] == "config" {
            &config
        } else {
            &rules
        };
        let mut command = Command::new(&promtool);
        let output = command.args(arguments).arg(file).output().await?;
        let said = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "{said}");
    }
    Ok(())
}
