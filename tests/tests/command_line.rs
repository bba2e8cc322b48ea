//! The commands of both programs beside running, `genconfig` and `--print-config`, and settings from the environment.

use std::{
    fs,
    os::unix::fs::PermissionsExt as _,
    path::Path,
    process::Output,
};

use anyhow::{Context as _, Result, ensure};
use causeway_tests::harness::{
    http,
    process::{Process, Signal, json_lines},
    programs,
    scratch::Scratch,
    wait,
};
use tokio::process::Command;

const PROGRAMS: [&str; 2] = ["causeway-proxy", "causeway-node"];

/// A key of the node and of the edge.
const SECRET: &str = "hunter2-hunter2-hunter2-hunter2-hunter2";

fn command(program: &str, arguments: &[&str], variables: &[(&str, &str)]) -> Result<Command> {
    let mut command = Command::new(programs::ours(program)?);
    command
        .args(arguments)
        .envs(variables.iter().copied())
        .kill_on_drop(true);
    Ok(command)
}

async fn run(program: &str, arguments: &[&str], variables: &[(&str, &str)]) -> Result<Output> {
    let mut command = command(program, arguments, variables)?;
    command.output().await.context("the program runs")
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// What a program prints that succeeds.
async fn printed(program: &str, arguments: &[&str], variables: &[(&str, &str)]) -> Result<String> {
    let output = run(program, arguments, variables).await?;
    let said = text(&output.stderr);
    ensure!(output.status.success(), "{program} {arguments:?}: {said}");
    Ok(text(&output.stdout))
}

/// What a program says that refuses its configuration.
async fn refused(program: &str, arguments: &[&str], variables: &[(&str, &str)]) -> Result<String> {
    let output = run(program, arguments, variables).await?;
    let said = text(&output.stderr);
    ensure!(
        output.status.code() == Some(2),
        "{program} {arguments:?}: {:?} {said}",
        output.status
    );
    Ok(said)
}

fn path(path: &Path) -> Result<&str> {
    path.to_str().context("a temporary path is UTF-8")
}

#[tokio::test]
async fn a_generated_configuration_passes_the_check_and_is_never_written_over() -> Result<()> {
    let scratch = Scratch::new("genconfig")?;
    for program in PROGRAMS {
        let file = scratch.path().join(format!("{program}.yaml"));
        let file = path(&file)?;
        let output = run(program, &["genconfig", "--output", file], &[]).await?;
        assert!(output.status.success(), "{}", text(&output.stderr));
        assert_eq!(output.stdout, b"");
        let mode = fs::metadata(file)?.permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        let before = fs::read_to_string(file)?;

        let check = run(program, &["--check", "--config", file], &[]).await?;
        assert!(check.status.success(), "{}", text(&check.stderr));
        assert_eq!(text(&check.stderr), "", "{program} warns of its own file");

        let said = refused(program, &["genconfig", "--output", file], &[]).await?;
        assert!(said.contains(file) && said.contains("exists"), "{said}");
        assert_eq!(fs::read_to_string(file)?, before);

        let other = printed(program, &["genconfig"], &[]).await?;
        assert_ne!(other, before, "{program} has the same keys again");
        assert_eq!(other.lines().count(), before.lines().count());
    }
    Ok(())
}

#[tokio::test]
async fn the_printed_configuration_has_the_source_of_each_value_and_passes_the_check() -> Result<()>
{
    let scratch = Scratch::new("print-config")?;
    let key = scratch.write("key", SECRET)?;
    let key = path(&key)?;
    let node = format!(
        "listen: 127.0.0.1:0\nauth:\n  keys: [{{ algorithm: HS256, key: {{ file: {key} }} }}]\n\
         endpoints: [{{ path: /c, mode: channels }}]\nchannels: {{ namespaces: [{{ name: a }}] }}\n"
    );
    let edge = format!(
        "listeners: [{{ address: '127.0.0.1:0' }}]\naffinity: {{ keys: [{{ file: {key} }}] }}\n\
         pools: [{{ name: a, backends: [{{ id: x, address: '127.0.0.1:1' }}] }}]\n"
    );
    for (program, text, variable, lines) in [
        (
            "causeway-node",
            &node,
            ("CAUSEWAY_NODE__LIMITS__SESSIONS", "77"),
            [
                "listen: \"127.0.0.1:0\"  # FILE:1",
                "  sessions: 77  # CAUSEWAY_NODE__LIMITS__SESSIONS",
                "  sessions_per_address: 1000  # default",
            ],
        ),
        (
            "causeway-proxy",
            &edge,
            (
                "CAUSEWAY_PROXY__POOLS__0__BACKENDS__1",
                "{ id: b, address: '127.0.0.1:2' }",
            ),
            [
                "  - address: \"127.0.0.1:0\"  # FILE:1",
                "      - id: b  # CAUSEWAY_PROXY__POOLS__0__BACKENDS__1",
                "        weight: 1  # default",
            ],
        ),
    ] {
        let file = scratch.write("file.yaml", text)?;
        let file = path(&file)?;
        let arguments = ["--config", file, "--print-config"];
        let effective = printed(program, &arguments, &[variable]).await?;
        for line in lines {
            let line = line.replace("FILE", file);
            assert!(
                effective.lines().any(|other| other == line),
                "{line} is not in\n{effective}"
            );
        }
        assert!(!effective.contains("hunter2"), "{effective}");
        let again = scratch.write("printed.yaml", &effective)?;
        let again = path(&again)?;
        printed(program, &["--check", "--config", again], &[]).await?;
        let twice = printed(program, &["--config", again, "--print-config"], &[]).await?;
        let values = |text: &str| -> Vec<String> {
            let lines = text.lines().filter_map(|line| line.split("  #").next());
            lines.map(str::to_owned).collect()
        };
        assert_eq!(values(&twice), values(&effective));
    }
    Ok(())
}

#[tokio::test]
async fn a_secret_from_the_environment_is_in_no_output() -> Result<()> {
    let scratch = Scratch::new("secret-environment")?;
    let url = "redis://:hunter2@127.0.0.1:1";
    for (program, variables) in [
        (
            "causeway-node",
            [
                ("CAUSEWAY_NODE__BROKER__KIND", "redis"),
                ("CAUSEWAY_NODE__BROKER__URL", url),
                ("CAUSEWAY_NODE__API__KEYS", "[hunter2-hunter2-hunter2]"),
            ],
        ),
        (
            "causeway-proxy",
            [
                ("CAUSEWAY_PROXY__POOLS__0__NAME", "a"),
                ("CAUSEWAY_PROXY__POOLS__0__DISCOVER__REDIS", url),
                (
                    "CAUSEWAY_PROXY__AFFINITY__KEYS__0",
                    "hunter2-hunter2-hunter2",
                ),
            ],
        ),
    ] {
        let effective = printed(program, &["--print-config"], &variables).await?;
        assert!(effective.contains("\"***\"  # CAUSEWAY_"), "{effective}");
        assert!(!effective.contains("hunter2"), "{effective}");
        // At the wrong place as well.
        let prefix = program.to_uppercase().replace('-', "_");
        for place in [
            "LIMITS",
            "LIMITS__CONNECTIONS__0",
            "TRUSTED_PROXIES",
            "NONSENSE",
            "LOG",
        ] {
            let name = format!("{prefix}__{place}");
            for value in [url, "[hunter2", "{a: hunter2"] {
                let said = refused(program, &["--check"], &[(&name, value)]).await?;
                assert!(said.contains(&name) && !said.contains("hunter2"), "{said}");
            }
        }
    }
    drop(scratch);
    Ok(())
}

#[tokio::test]
async fn an_unknown_variable_is_refused_with_the_nearest_name() -> Result<()> {
    for (program, variable, expected) in [
        (
            "causeway-node",
            "CAUSEWAY_NODE__BROKR__URL",
            "environment variable CAUSEWAY_NODE__BROKR__URL: brokr: unknown setting \"brokr\", did you mean CAUSEWAY_NODE__BROKER__URL?",
        ),
        (
            "causeway-node",
            "CAUSEWAY_NODE__LIMITS__SESSION",
            "environment variable CAUSEWAY_NODE__LIMITS__SESSION: limits.session: unknown setting \"session\", did you mean CAUSEWAY_NODE__LIMITS__SESSIONS?",
        ),
        (
            "causeway-proxy",
            "CAUSEWAY_PROXY__LISTNERS",
            "environment variable CAUSEWAY_PROXY__LISTNERS: listners: unknown setting \"listners\", did you mean CAUSEWAY_PROXY__LISTENERS?",
        ),
        (
            "causeway-proxy",
            "CAUSEWAY_PROXY__",
            "environment variable CAUSEWAY_PROXY__: expected names of settings with two underscores between them, such as BROKER__URL behind the prefix",
        ),
    ] {
        for arguments in [&["--check"][..], &["--print-config"], &[]] {
            let said = refused(program, arguments, &[(variable, "a")]).await?;
            assert_eq!(said.trim_end(), expected);
        }
    }
    Ok(())
}

/// What the environment says holds over the file, at the start and at each reload.
#[tokio::test]
async fn a_reload_reads_the_environment_of_the_process_again() -> Result<()> {
    let scratch = Scratch::new("environment-reload")?;
    let text = |page: bool, level: &str| {
        format!(
            "listen: 127.0.0.1:0\nadmin: none\npage: {page}\nlog: {{ level: {level} }}\n\
             endpoints: [{{ path: /ws, protocol: websocket }}]\n"
        )
    };
    let file = scratch.write("node.yaml", &text(false, "info"))?;
    let variables = [("CAUSEWAY_NODE__PAGE", "true")];
    let command = command("causeway-node", &["--config", path(&file)?], &variables)?;
    let mut node = Process::spawn("node", command, scratch.path())?;
    let address = node.listening("node").await?;
    assert_eq!(http::get(address, "/").await?.status, 200);

    scratch.write("node.yaml", &text(false, "debug"))?;
    node.signal(Signal::Hangup);
    wait::until("the reload", wait::SOON, async || {
        node.log().contains("configuration applied").then_some(())
    })
    .await?;
    assert_eq!(http::get(address, "/").await?.status, 200);
    let lines = json_lines(&node.log());
    let restart = lines
        .iter()
        .any(|line| line["fields"]["message"] == "these settings take a restart");
    assert!(!restart, "{}", node.log());
    Ok(())
}

/// A container's edge without a file.
#[tokio::test]
async fn the_edge_runs_with_settings_of_the_environment_alone() -> Result<()> {
    let scratch = Scratch::new("environment-edge")?;
    let said = refused("causeway-proxy", &[], &[]).await?;
    assert!(
        said.contains("--config FILE") && said.contains("genconfig"),
        "{said}"
    );
    let variables = [
        ("CAUSEWAY_PROXY__LISTENERS", "[{ address: '127.0.0.1:0' }]"),
        ("CAUSEWAY_PROXY__ADMIN__ADDRESS", "127.0.0.1:0"),
        ("CAUSEWAY_PROXY__POOLS__0__NAME", "app"),
        ("CAUSEWAY_PROXY__POOLS__0__BACKENDS__0__ID", "a"),
        (
            "CAUSEWAY_PROXY__POOLS__0__BACKENDS__0__ADDRESS",
            "127.0.0.1:1",
        ),
        ("CAUSEWAY_PROXY__NO_ROUTE__STATUS", "421"),
        ("CAUSEWAY_PROXY__ROUTES", "[{ path: /app, pool: app }]"),
    ];
    let command = command("causeway-proxy", &[], &variables)?;
    let mut edge = Process::spawn("edge", command, scratch.path())?;
    let address = edge.listening("edge").await?;
    assert_eq!(http::get(address, "/").await?.status, 421);
    edge.signal(Signal::Hangup);
    wait::until("the reload", wait::SOON, async || {
        edge.log().contains("configuration applied").then_some(())
    })
    .await?;
    assert_eq!(http::get(address, "/").await?.status, 421);
    Ok(())
}
