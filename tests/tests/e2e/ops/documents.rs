//! The documents beside the programs: their configurations, commands, code, tables and links.
//!
//! Names of metrics, log fields and codes are compared in both directions: with what runs, and with the sources as text for those
//! that appear only when they are first used.

mod code;
mod commands;

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write as _,
    fs,
    net::SocketAddr,
    path::{Path, PathBuf},
    process::Output,
};

use anyhow::{Context as _, Result, ensure};
use causeway_tests::harness::{
    clients,
    edge::{self, Edge},
    http,
    node::{self, Node},
    process::Process,
    programs,
    scratch::Scratch,
    tls::Authority,
    wait,
};
use serde_json::{Value, json};
use tokio::process::Command;

const README: &str = "README.md";
const EDGE: &str = "proxy/README.md";
const NODE: &str = "node/README.md";
const TESTS: &str = "tests/README.md";
const CONF: &str = "conf/README.md";
const DOCUMENTS: [&str; 5] = [README, EDGE, NODE, TESTS, CONF];

/// Documents without commands and configurations.
const OTHERS: [&str; 3] = [
    "CHANGELOG.md",
    ".github/CONTRIBUTING.md",
    ".github/SECURITY.md",
];

/// Longer, and a newcomer does not read it.
const README_LINES_MAX: usize = 250;

/// Where the documents keep certificates and keys.
const FILES: &str = "/etc/causeway";

/// Where they have the sockets of the edge: the unit of systemd makes the folder.
const SOCKETS: &str = "/run/causeway-proxy";

/// What a machine that runs tests lacks: the addresses of the examples, and the right to take a port below 1024.
const ADDRESSES: [(&str, &str); 4] = [
    ("listen: 10.0.0.1:9000", "listen: 127.0.0.1:0"),
    ("listen: 10.0.0.3:9000", "listen: 127.0.0.1:0"),
    ("address: 0.0.0.0:443", "address: 127.0.0.1:0"),
    ("address: 0.0.0.0:80\n", "address: 127.0.0.1:0\n"),
];

fn root() -> PathBuf {
    let tests = Path::new(env!("CARGO_MANIFEST_DIR"));
    tests.parent().unwrap_or(tests).to_owned()
}

fn read(path: impl AsRef<Path>) -> Result<String> {
    let path = root().join(path);
    fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))
}

/// A fenced block: what stands behind the fence, and the text.
#[derive(Debug)]
struct Block {
    info: String,
    text: String,
}

fn blocks(document: &str) -> Result<Vec<Block>> {
    let (mut found, mut open) = (Vec::new(), None::<Block>);
    for line in read(document)?.lines() {
        match (line.strip_prefix("```"), &mut open) {
            (Some(_), Some(_)) => found.extend(open.take()),
            (Some(info), None) => {
                open = Some(Block {
                    info: info.to_owned(),
                    text: String::new(),
                });
            }
            (None, Some(block)) => {
                block.text.push_str(line);
                block.text.push('\n');
            }
            (None, None) => {}
        }
    }
    ensure!(open.is_none(), "{document}: a block has no end");
    Ok(found)
}

/// The cells of the tables below `heading`, without code quotes; rows of a header are left out.
fn rows(document: &str, heading: &str) -> Result<Vec<Vec<String>>> {
    let text = read(document)?;
    let below = text.split_once(&format!("\n{heading}\n"));
    let below = below
        .with_context(|| format!("{document} has no {heading:?}"))?
        .1;
    // A comment in a block is no heading.
    let mut in_block = false;
    let lines = below.lines().take_while(|line| {
        in_block ^= line.starts_with("```");
        in_block || !line.starts_with('#')
    });
    let section: Vec<&str> = lines.collect();
    let rows = section.windows(2).enumerate();
    let is_header = |next: &str| next.starts_with("|--");
    let mut found: Vec<Vec<String>> = rows
        .filter(|(_, pair)| pair[0].starts_with("| ") && !is_header(pair[1]))
        .map(|(_, pair)| cells(pair[0]))
        .collect();
    found.extend(
        section
            .last()
            .filter(|line| line.starts_with("| "))
            .map(|line| cells(line)),
    );
    ensure!(!found.is_empty(), "{document}: {heading:?} has no table");
    Ok(found)
}

fn cells(row: &str) -> Vec<String> {
    let inner = row.trim_matches('|').split(" | ");
    inner.map(|cell| cell.trim().to_owned()).collect()
}

/// The names in code quotes in `cell`.
fn quoted(cell: &str) -> BTreeSet<String> {
    cell.split('`')
        .skip(1)
        .step_by(2)
        .map(str::to_owned)
        .collect()
}

/// Asserts that both are the same, and names what only one has.
fn assert_same<T: Ord + std::fmt::Debug>(what: &str, documented: &BTreeSet<T>, real: &BTreeSet<T>) {
    let missing: Vec<_> = real.difference(documented).collect();
    let stale: Vec<_> = documented.difference(real).collect();
    assert!(
        missing.is_empty() && stale.is_empty(),
        "{what}: without a row: {missing:?}; a row, but not in the program: {stale:?}"
    );
}

/// The sources of a program, without unit tests.
fn sources(folder: &str) -> Result<String> {
    let (mut folders, mut text) = (vec![root().join(folder)], String::new());
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder)? {
            let path = entry?.path();
            let name = path
                .file_name()
                .unwrap_or_default()
                .to_string_lossy()
                .into_owned();
            if path.is_dir() && name != "tests" {
                folders.push(path);
            } else if name.ends_with(".rs") && name != "tests.rs" {
                let source = read(&path)?;
                text.push_str(
                    source
                        .split("#[cfg(test)]\nmod tests {")
                        .next()
                        .unwrap_or(&source),
                );
            }
        }
    }
    Ok(text)
}

/// What the documents' files hold: certificates for the folder, and secrets.
fn prepare(scratch: &Scratch) -> Result<()> {
    let certificates = scratch.path().join("certificates");
    fs::create_dir(&certificates)?;
    let (certificate, key) = Authority::new(scratch.path())?.certify("site.example")?;
    fs::write(certificates.join("site.crt"), certificate)?;
    fs::write(certificates.join("site.key"), key)?;
    let secret = "0123456789abcdef".repeat(4);
    scratch.write("cookie.key", &format!("{secret}\n"))?;
    scratch.write("token.key", &format!("{secret}\n"))?;
    scratch.write("api.key", &format!("{secret}\n"))?;
    Ok(())
}

/// `text` as it is on this machine.
fn localized(text: &str, scratch: &Scratch) -> String {
    let files = scratch.path().display().to_string();
    let text = text.replace(FILES, &files).replace(SOCKETS, &files);
    ADDRESSES
        .iter()
        .fold(text, |text, (from, to)| text.replace(from, to))
}

async fn check(program: &str, text: &str, scratch: &Scratch) -> Result<Output> {
    let file = scratch.write("document.yaml", &localized(text, scratch))?;
    let mut command = Command::new(programs::ours(program)?);
    command.arg("--check").arg("--config").arg(file);
    command
        .env("REDIS_URL", "redis://127.0.0.1:6379")
        .kill_on_drop(true);
    command.output().await.context("the program runs")
}

#[tokio::test]
async fn each_configuration_passes_the_check_of_its_program_without_a_warning() -> Result<()> {
    let scratch = Scratch::new("documents")?;
    prepare(&scratch)?;
    let mut checked = 0;
    for document in DOCUMENTS {
        for block in blocks(document)? {
            let program = match &*block.info {
                "yaml proxy" => "causeway-proxy",
                "yaml node" => "causeway-node",
                info => {
                    // Of Prometheus: `dashboards` and `commands` check them.
                    let is_known = matches!(info, "yaml alerts" | "yaml prometheus");
                    ensure!(
                        is_known || !info.starts_with("yaml"),
                        "{document}: {info:?} does not say which program reads it"
                    );
                    continue;
                }
            };
            let output = check(program, &block.text, &scratch).await?;
            let said = String::from_utf8_lossy(&output.stderr).into_owned();
            ensure!(
                output.status.success() && !said.contains("warning"),
                "{document}: {program} of\n{}\n{said}",
                block.text
            );
            checked += 1;
        }
    }
    assert!(8 < checked, "only {checked} configurations were found");
    Ok(())
}

/// A probe that such a server does not respond to takes it out of service, and the first edge of a newcomer with it.
#[tokio::test]
async fn the_probes_of_the_guide_hold_for_servers_without_a_page_of_their_own() -> Result<()> {
    let scratch = Scratch::new("documents-probes")?;
    let rows = rows(EDGE, "## Health checks")?;
    let mut pools = String::new();
    let mut routes = String::new();
    let mut servers = Vec::new();
    for (row, app) in [
        ("socket.io 4", "socket.io"),
        ("sockjs-node 0.3", "sockjs"),
        ("ws 8 with `port`", "ws-alone"),
        ("ws 8 with `server`", "ws"),
    ] {
        let found = rows.iter().find(|cells| cells[0] == row);
        let health =
            found.with_context(|| format!("there is no row of {row}"))?[1].trim_matches('`');
        let orders = json!({ "app": app, "name": app, "bare": true });
        let command = clients::command("apps/server.mjs", &orders)?;
        let mut server = Process::spawn(app, command, scratch.path())?;
        let address = server.listening("app").await?;
        servers.push(server);
        writeln!(
            pools,
            "  - {{ name: {app}, backends: [ {{ id: {app}, address: '{address}' }} ], health: {health} }}"
        )?;
        writeln!(routes, "  - {{ path: /{app}, pool: {app} }}")?;
    }
    let text = format!(
        "listeners: [ {{ address: '127.0.0.1:0' }} ]\nadmin: {{ address: '127.0.0.1:0' }}\npools:\n{pools}routes:\n{routes}"
    );
    let mut command = Command::new(programs::ours("causeway-proxy")?);
    command
        .arg("--config")
        .arg(scratch.write("edge.yaml", &text)?);
    let mut edge = Process::spawn("edge", command, scratch.path())?;
    let admin = edge.listening("admin").await?;
    wait::until("all to be up", wait::SOON, async || {
        let page = http::get(admin, "/backends").await.ok()?.text();
        (page.matches("\"state\":\"up\"").count() == servers.len()).then_some(())
    })
    .await
    .with_context(|| edge.tail())
}

/// The README has the shortest way for each, and the guide says more of them.
#[test]
fn the_probes_of_the_readme_are_those_of_the_guide() -> Result<()> {
    let guide = rows(EDGE, "## Health checks")?;
    let guide: BTreeSet<String> = guide
        .iter()
        .flat_map(|row| quoted(&row.join(" ")))
        .collect();
    let rows = rows(README, "### 1. Put the edge in front of your application")?;
    for row in &rows {
        for probe in quoted(&row[1]) {
            ensure!(guide.contains(&probe), "{row:?}");
        }
    }
    ensure!(rows.len() == 4, "{rows:?}");
    Ok(())
}

/// The name and type of each metric on a page of OpenMetrics, as samples have it, without the deprecated ones.
async fn shown(admin: SocketAddr) -> Result<BTreeMap<String, String>> {
    let page = http::get(admin, "/metrics").await?.text();
    let comments = |kind: &'static str| {
        let lines = page.lines().filter_map(move |line| line.strip_prefix(kind));
        lines.filter_map(|line| line.split_once(' '))
    };
    let helps = comments("# HELP ").filter(|(_, help)| help.starts_with("Deprecated, use "));
    let deprecated: BTreeSet<&str> = helps.map(|(name, _)| name).collect();
    let types = comments("# TYPE ").filter(|(name, _)| !deprecated.contains(name));
    let sample = |name: &str, kind: &str| match kind {
        "counter" => format!("{name}_total"),
        _ => name.to_owned(),
    };
    Ok(types
        .map(|(name, kind)| (sample(name, kind), kind.to_owned()))
        .collect())
}

/// The names that are registered in the sources, without a suffix for their type.
fn registered(folder: &str, prefix: &str) -> Result<BTreeSet<String>> {
    let sources = sources(folder)?;
    let mut names = BTreeSet::new();
    for (call, suffix) in [
        ("registry.register(", ""),
        ("registry.register_with_unit(", "_seconds"),
        ("register!(", ""),
    ] {
        for rest in sources.split(call).skip(1) {
            let rest = rest.trim_start().trim_start_matches('"');
            let name: String = rest
                .chars()
                .take_while(|c| c.is_ascii_lowercase() || *c == '_')
                .collect();
            // `register!` of a macro's definition, and `register(&mut registry)`, name none.
            if !name.is_empty() && rest[name.len()..].starts_with(['"', ',']) {
                names.insert(format!("{prefix}_{name}{suffix}"));
            }
        }
    }
    Ok(names)
}

fn assert_metrics(
    document: &str,
    registered: BTreeSet<String>,
    shown: BTreeMap<String, String>,
) -> Result<()> {
    let rows = rows(document, "## Metrics")?;
    let documented: BTreeMap<String, String> = rows
        .iter()
        .map(|row| (row[0].trim_matches('`').to_owned(), row[1].clone()))
        .collect();
    assert_eq!(
        documented.len(),
        rows.len(),
        "{document}: a metric has two rows"
    );
    for (name, kind) in &documented {
        assert_eq!(
            name.ends_with("_total"),
            kind == "counter",
            "{name}: {kind}"
        );
    }
    for (name, kind) in &shown {
        let row = documented.get(name);
        assert_eq!(row, Some(kind), "{document}: type of {name}");
    }
    let family = |name: &str| name.strip_suffix("_total").unwrap_or(name).to_owned();
    let documented = documented.keys().map(|name| family(name)).collect();
    let mut real: BTreeSet<String> = shown.keys().map(|name| family(name)).collect();
    real.extend(registered);
    assert_same(document, &documented, &real);
    Ok(())
}

#[tokio::test]
async fn the_table_of_metrics_of_the_edge_has_each_metric_and_no_other() -> Result<()> {
    let scratch = Scratch::new("documents-edge")?;
    let node = Node::start("n1", node::settings(), scratch.path()).await?;
    let edge = Edge::start(&edge::settings(&[("n1", node.address)]), scratch.path()).await?;
    edge.backend_in_state("n1", "up").await?;
    http::get(edge.address, "/").await?;
    let registered = registered("proxy/src", "causeway_proxy")?;
    assert_metrics(EDGE, registered, shown(edge.admin).await?)
}

#[tokio::test]
async fn the_table_of_metrics_of_the_node_has_each_metric_and_no_other() -> Result<()> {
    let scratch = Scratch::new("documents-node")?;
    let node = Node::start("n1", node::settings(), scratch.path()).await?;
    let registered = registered("node/src", "causeway_node")?;
    assert_metrics(NODE, registered, shown(node.admin).await?)
}

/// Alerts that wait for a metric or label that does not exist never fire.
#[test]
fn each_alert_is_about_metrics_and_labels_of_the_tables() -> Result<()> {
    let mut labels = BTreeMap::new();
    for row in [rows(EDGE, "## Metrics")?, rows(NODE, "## Metrics")?].concat() {
        labels.insert(row[0].trim_matches('`').to_owned(), quoted(&row[2]));
    }
    let rules = alerts_of_the_readme()?;
    assert_eq!(rules.len(), 5);
    let is_name = |c: char| c.is_ascii_lowercase() || c == '_';
    for rule in rules {
        for (start, _) in rule.match_indices("causeway_") {
            let name: String = rule[start..].chars().take_while(|c| is_name(*c)).collect();
            let known = labels.get(&name);
            let known = known.with_context(|| format!("there is no {name}: {rule}"))?;
            let selector = rule[start + name.len()..].strip_prefix('{');
            let label = selector.and_then(|selector| selector.split('=').next());
            if let Some(label) = label {
                assert!(known.contains(label), "{name} has no label {label}");
            }
        }
    }
    Ok(())
}

/// The expressions of the alerts in the README.
pub(super) fn alerts_of_the_readme() -> Result<Vec<String>> {
    let blocks = blocks(README)?;
    let rules = blocks.iter().find(|block| block.info == "yaml alerts");
    let rules = rules.context("the README has alerts")?;
    let rules: Value = serde_yaml::from_str(&rules.text)?;
    let rules = rules["groups"][0]["rules"].as_array();
    let rules = rules.context("they are in one group")?.iter();
    let expressions = rules.map(|rule| rule["expr"].as_str().map(str::to_owned));
    expressions
        .collect::<Option<_>>()
        .context("each has an expression")
}

#[test]
fn the_table_of_fields_of_the_access_log_has_each_field_and_no_other() -> Result<()> {
    let source = read("proxy/src/request/access_log.rs")?;
    let line = source
        .split_once("struct AccessLine {")
        .context("the line is a struct")?
        .1;
    let fields = line.split_once("\n}").context("it ends")?.0.lines();
    let fields = fields.filter_map(|line| line.trim().strip_prefix("pub(crate) ")?.split_once(':'));
    let real: BTreeSet<String> = fields.map(|(name, _)| name.to_owned()).collect();
    let rows = rows(EDGE, "## Access log")?;
    let documented = rows.iter().flat_map(|row| quoted(&row[0])).collect();
    assert_same("fields of the access log", &documented, &real);
    Ok(())
}

#[test]
fn the_table_of_close_codes_of_the_node_has_each_code_with_its_reason() -> Result<()> {
    let source = read("node/src/protocol/disconnect.rs")?;
    let source = source.split("#[cfg(test)]").next().unwrap_or_default();
    let mut real = BTreeSet::new();
    for call in source.split("Self::new(").skip(1) {
        let call = call.split(')').next().unwrap_or_default();
        let name = call.rsplit('"').nth(1).unwrap_or_default();
        let code = call.split(',').next().unwrap_or_default().trim();
        real.insert((code.to_owned(), name.to_owned()));
    }
    let rows = rows(NODE, "## Close codes")?;
    let row = |row: &Vec<String>| (row[0].clone(), row[1].trim_matches('`').to_owned());
    assert_same("close codes", &rows.iter().map(row).collect(), &real);
    Ok(())
}

#[test]
fn the_table_of_error_codes_of_the_node_has_each_code() -> Result<()> {
    let source = read("node/src/protocol/codes.rs")?;
    let codes = source
        .lines()
        .filter_map(|line| line.trim().strip_suffix(','));
    let codes = codes.filter_map(|line| line.split_once(" = ")?.1.parse().ok());
    let real: BTreeSet<u32> = codes.collect();
    let rows = rows(NODE, "## Error codes")?;
    let documented: BTreeSet<u32> = rows.iter().filter_map(|row| row[0].parse().ok()).collect();
    assert_same("error codes", &documented, &real);
    Ok(())
}

#[test]
fn the_table_of_close_codes_of_the_edge_has_each_code() -> Result<()> {
    let source = sources("proxy/src")?;
    let arms = source.split("CloseRequest::").skip(1);
    let arms = arms.filter_map(|arm| arm.lines().next()?.split_once(" => (")?.1.split_once(','));
    let mut real: BTreeSet<String> = arms.map(|(code, _)| code.to_owned()).collect();
    let tunnel = read("proxy/src/tunnel.rs")?;
    let constants = tunnel
        .lines()
        .filter_map(|line| line.split_once(": u16 = "));
    real.extend(constants.map(|(_, code)| code.trim_end_matches(';').to_owned()));
    let rows = rows(EDGE, "## WebSockets")?;
    let documented = rows.iter().map(|row| row[0].clone()).collect();
    assert_same("close codes of the edge", &documented, &real);
    Ok(())
}

/// The settings of a file in `conf/`: each key of the reference, by the name of its section.
fn settings_in(reference: &str) -> Result<BTreeMap<String, BTreeSet<String>>> {
    let mut sections: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    let mut section = String::new();
    for line in read(reference)?.lines() {
        let is_top = line.starts_with(|c: char| c.is_ascii_lowercase());
        if let Some((key, _)) = line.split_once(':').filter(|_| is_top) {
            section = key.to_owned();
        }
        // Optional parts are commented out, and flow mappings have several keys in a line.
        let words = line.split(|c: char| !c.is_ascii_alphanumeric() && c != '_' && c != ':');
        let keys = words.filter_map(|word| word.strip_suffix(':'));
        let keys = keys.map(str::to_owned);
        sections.entry(section.clone()).or_default().extend(keys);
    }
    sections.remove("");
    Ok(sections)
}

#[test]
fn each_setting_that_is_named_is_in_the_reference() -> Result<()> {
    let references = [
        settings_in("conf/proxy.yaml")?,
        settings_in("conf/node.yaml")?,
    ];
    for document in DOCUMENTS {
        for name in quoted(&read(document)?.replace("```", "")) {
            let is_key = |c: char| c.is_ascii_lowercase() || c == '_' || c == '.';
            let is_file = name.ends_with(".yaml") || name.ends_with(".env");
            let is_name = name.chars().all(is_key) && !is_file;
            let Some((section, rest)) = name.split_once('.').filter(|_| is_name) else {
                continue;
            };
            let sections: Vec<_> = references
                .iter()
                .filter_map(|all| all.get(section))
                .collect();
            let is_known = |part: &str| sections.iter().any(|keys| keys.contains(part));
            let is_known = sections.is_empty() || rest.split('.').all(is_known);
            assert!(is_known, "{document}: there is no setting `{name}`");
        }
    }
    Ok(())
}

/// What GitHub makes of a heading.
fn anchor(heading: &str) -> String {
    let heading = heading.trim_start_matches('#').trim().to_lowercase();
    let kept = heading
        .chars()
        .filter(|c| c.is_alphanumeric() || " -_".contains(*c));
    kept.collect::<String>().replace(' ', "-")
}

#[test]
fn each_relative_link_leads_to_a_file_and_a_heading_that_exist() -> Result<()> {
    let mut checked = 0;
    for document in DOCUMENTS.into_iter().chain(OTHERS) {
        let folder = Path::new(document).parent().unwrap_or(Path::new(""));
        for rest in read(document)?.split("](").skip(1) {
            let target = rest.split(')').next().unwrap_or_default();
            if target.contains("://") {
                continue;
            }
            let (file, heading) = target.split_once('#').unwrap_or((target, ""));
            let file = match file {
                "" => PathBuf::from(document),
                file => folder.join(file),
            };
            let path = root().join(&file);
            ensure!(path.exists(), "{document}: {target} does not exist");
            if !heading.is_empty() {
                let text = read(&file)?;
                let mut headings = text.lines().filter(|line| line.starts_with('#'));
                let exists = headings.any(|line| anchor(line) == heading);
                ensure!(exists, "{document}: {target} has no such heading");
            }
            checked += 1;
        }
    }
    assert!(50 < checked, "only {checked} links were found");
    Ok(())
}

#[test]
fn each_target_of_make_is_explained_and_no_other_is_named() -> Result<()> {
    let makefile = read("Makefile")?;
    let help = makefile.lines().take_while(|line| line.starts_with('#'));
    let help = help.filter_map(|line| line.strip_prefix("# make ")?.split(' ').next());
    let real = help.map(str::to_owned).collect();
    let mut named = BTreeSet::new();
    for document in DOCUMENTS {
        let mut commands = quoted(&read(document)?.replace("```", ""));
        for block in blocks(document)?.iter().filter(|block| block.info == "sh") {
            commands.extend(block.text.lines().map(str::to_owned));
        }
        let commands = commands
            .iter()
            .filter_map(|line| line.strip_prefix("make "));
        let targets = commands.filter_map(|rest| rest.split_whitespace().next());
        named.extend(targets.map(str::to_owned));
    }
    assert_same("targets of make", &named, &real);
    Ok(())
}

/// Each row of the table of variables sets what it says.
#[tokio::test]
async fn each_variable_of_the_guide_is_a_setting() -> Result<()> {
    let scratch = Scratch::new("documents-variables")?;
    prepare(&scratch)?;
    let edge = scratch.write(
        "edge.yaml",
        "pools: [{ name: a, backends: [{ id: x, address: '10.0.0.1:1' }, { id: y, address: '10.0.0.1:2' }] }]\n",
    )?;
    let node = scratch.write(
        "node.yaml",
        "broker: { kind: redis }\nendpoints: [{ path: /c, mode: channels }]\nchannels: { namespaces: [{ name: a }] }\n",
    )?;
    let rows = rows(CONF, "## Settings from the environment")?;
    let mut checked = 0;
    for variable in rows.iter().flat_map(|row| quoted(&row[0])) {
        let Some((name, value)) = variable.split_once('=') else {
            continue;
        };
        let (program, file) = if name.starts_with("CAUSEWAY_PROXY__") {
            ("causeway-proxy", &edge)
        } else {
            ("causeway-node", &node)
        };
        let value = localized(value.trim_matches('\''), &scratch);
        let mut command = Command::new(programs::ours(program)?);
        command.arg("--print-config").arg("--config").arg(file);
        // Needed where it is not the row itself.
        command.env("CAUSEWAY_NODE__BROKER__URL", "redis://127.0.0.1:6379");
        let output = command.env(name, value).kill_on_drop(true).output().await?;
        let said = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "{variable}: {said}");
        let printed = String::from_utf8(output.stdout)?;
        ensure!(
            printed.contains(&format!("  # {name}\n")),
            "{variable}\n{printed}"
        );
        checked += 1;
    }
    assert_eq!(checked, 8);
    Ok(())
}

#[test]
fn the_readme_is_short() -> Result<()> {
    let lines = read(README)?.lines().count();
    assert!(lines <= README_LINES_MAX, "{lines} lines");
    Ok(())
}

#[test]
fn each_figure_of_the_comparison_is_among_the_results() -> Result<()> {
    let results = read(TESTS)?;
    let mut checked = 0;
    for row in rows(README, "## Comparison")? {
        let words: Vec<String> = row[1..].join(" ").split(' ').map(str::to_owned).collect();
        for pair in words.windows(2) {
            let unit = pair[1].trim_end_matches([',', ';']);
            if pair[0].parse::<f64>().is_ok() {
                let figure = format!("{} {unit}", pair[0]);
                assert!(results.contains(&figure), "{figure} of {row:?}");
                checked += 1;
            }
        }
    }
    assert!(30 < checked, "only {checked} figures were found");
    Ok(())
}

/// What the guide says of SDKs holds for the versions that are tested.
#[test]
fn the_versions_of_sdks_that_are_named_are_those_of_the_tests() -> Result<()> {
    let guide = read(NODE)?;
    let lock: Value = serde_json::from_str(&read("tests/clients/package-lock.json")?)?;
    let version = lock["packages"]["node_modules/centrifuge"]["version"].as_str();
    let version = version.context("the lock file has centrifuge")?;
    ensure!(guide.contains(&format!("`centrifuge` {version} ")));
    let requirements = read("tests/clients/apps/requirements.txt")?;
    for name in ["centrifuge-python", "cent"] {
        let mut lines = requirements
            .lines()
            .filter_map(|line| line.split_once("=="));
        let version = lines.find(|(package, _)| *package == name);
        let version = version.with_context(|| format!("no {name}"))?.1;
        ensure!(guide.contains(&format!("`{name}` {version} ")), "{name}");
    }
    Ok(())
}
