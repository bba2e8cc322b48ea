//! The commands of both programs beside running: `genconfig`, `--print-config`, `gentoken`, `checktoken`; and settings from the
//! environment.

use std::{
    fs,
    os::unix::fs::PermissionsExt as _,
    path::Path,
    process::{Output, Stdio},
};

use anyhow::{Context as _, Result, ensure};
use causeway_tests::harness::{
    clients, http,
    process::{Process, Signal, json_lines},
    programs,
    scratch::Scratch,
    server_api,
    subscriber::Subscriber,
    wait,
};
use serde_json::json;
use tokio::{io::AsyncWriteExt as _, process::Command};

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

/// The whole way of a newcomer, with the settings that a test has to change in the environment.
#[tokio::test]
async fn a_client_connects_to_a_generated_node_with_a_generated_token() -> Result<()> {
    let scratch = Scratch::new("newcomer")?;
    let file = scratch.path().join("node.yaml");
    let file = path(&file)?;
    printed("causeway-node", &["genconfig", "--output", file], &[]).await?;
    let variables = [
        ("CAUSEWAY_NODE__LISTEN", "127.0.0.1:0"),
        ("CAUSEWAY_NODE__ADMIN", "none"),
    ];
    let command = command("causeway-node", &["--config", file], &variables)?;
    let mut node = Process::spawn("node", command, scratch.path())?;
    let address = node.listening("node").await?;

    let made = |arguments: &'static [&'static str]| async move {
        let all = [&["gentoken", "--config", file], arguments].concat();
        let token = printed("causeway-node", &all, &[]).await?;
        Ok::<_, anyhow::Error>(token.trim().to_owned())
    };
    let token = made(&["--user", "alice", "--info", "{\"name\": \"Alice\"}"]).await?;
    let mut client = Subscriber::connect(address, &token).await?;
    client
        .ask("subscribe", json!({ "channel": "chat:lobby" }))
        .await?;
    client
        .ask("publish", json!({ "channel": "chat:lobby", "data": {} }))
        .await?;
    let subscription = made(&["--user", "alice", "--channel", "private:42"]).await?;
    client
        .ask(
            "subscribe",
            json!({ "channel": "private:42", "token": subscription }),
        )
        .await?;
    let config = fs::read_to_string(file)?;
    let api = config.split_once("api:").context("there is an API")?.1;
    let key = api.split('"').nth(1).context("it has a key")?;
    let key = if key.len() == 64 {
        key
    } else {
        api.split("keys: [ \"")
            .nth(1)
            .and_then(|rest| rest.split('"').next())
            .context("it has a key")?
    };
    server_api::call(
        address,
        key,
        "publish",
        &json!({ "channel": "private:42", "data": {} }),
    )
    .await?;
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

/// The verdict on a token, by its exit code and its text; the token as argument and on standard input.
async fn verdict(token: &str, arguments: &[&str]) -> Result<(Option<i32>, String)> {
    let by_argument = [&["checktoken"], arguments, &[token]].concat();
    let first = run("causeway-node", &by_argument, &[]).await?;
    let mut command = command("causeway-node", &[&["checktoken"], arguments].concat(), &[])?;
    command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let mut child = command.spawn()?;
    let mut input = child.stdin.take().context("it is piped")?;
    input.write_all(format!("{token}\n").as_bytes()).await?;
    drop(input);
    let second = child.wait_with_output().await?;
    ensure!(
        first.status.code() == second.status.code(),
        "{:?} and {:?}",
        text(&first.stderr),
        text(&second.stderr)
    );
    let said = text(&first.stdout);
    // Times pass between the two.
    ensure!(
        said.lines().next() == text(&second.stdout).lines().next(),
        "{said}"
    );
    ensure!(!said.contains("hunter2"), "{said}");
    Ok((first.status.code(), said))
}

#[tokio::test]
async fn a_token_is_judged_as_the_node_does() -> Result<()> {
    let scratch = Scratch::new("checktoken")?;
    let text = format!(
        "auth: {{ keys: [{{ id: k, algorithm: HS256, key: {SECRET} }}], audience: [app] }}\n\
         channels: {{ namespaces: [{{ name: chat }}] }}\n"
    );
    let file = scratch.write("node.yaml", &text)?;
    let config = ["--config", path(&file)?];
    let made = |arguments: &'static [&'static str]| async move {
        let all = [&["gentoken"], &config[..], arguments].concat();
        let token = printed("causeway-node", &all, &[]).await?;
        Ok::<_, anyhow::Error>(token.trim().to_owned())
    };
    let token = made(&["--user", "alice"]).await?;
    let (code, said) = verdict(&token, &config).await?;
    assert_eq!(code, Some(0), "{said}");
    assert!(
        said.starts_with("valid: connects the user \"alice\"\nexpires: "),
        "{said}"
    );

    let token = made(&["--user", "alice", "--channel", "chat:a", "--expires", "10m"]).await?;
    let (code, said) = verdict(&token, &config).await?;
    assert_eq!(code, Some(0), "{said}");
    let other = [&config[..], &["--channel", "chat:b"]].concat();
    let (code, said) = verdict(&token, &other).await?;
    assert_eq!(code, Some(1), "{said}");
    assert!(
        said.contains("refused: ") && said.contains("`channel` \"chat:b\", found \"chat:a\""),
        "{said}"
    );

    let token = made(&["--expires", "never", "--claims", "{\"aud\": \"other\"}"]).await?;
    let (code, said) = verdict(&token, &config).await?;
    assert_eq!(code, Some(1), "{said}");
    assert!(
        said.contains("`aud` with one of [\"app\"], found \"other\""),
        "{said}"
    );
    let (signed, signature) = token.rsplit_once('.').context("a token has dots")?;
    let first = if signature.starts_with('A') { "B" } else { "A" };
    let changed = format!("{signed}.{first}{}", &signature[1..]);
    let (code, said) = verdict(&changed, &config).await?;
    assert_eq!(code, Some(1), "{said}");
    assert!(said.contains("HS256 with the id \"k\""), "{said}");
    let (code, _) = verdict("", &config).await?;
    assert_eq!(code, Some(1));
    Ok(())
}

/// What a JWT library makes is valid, and what `gentoken` makes is for that library.
#[tokio::test]
async fn tokens_and_keys_of_each_algorithm_are_those_of_a_jwt_library() -> Result<()> {
    let scratch = Scratch::new("algorithms")?;
    let folder = path(scratch.path())?.to_owned();
    let mut command = clients::command("tokens.mjs", &json!({ "make": folder }))?;
    let output = command.kill_on_drop(true).output().await?;
    ensure!(output.status.success(), "{}", text(&output.stderr));
    let mut checked = 0;
    for algorithm in ["HS256", "RS256", "PS256", "ES256", "ES384", "EdDSA"] {
        let [public, private, token] =
            ["public", "private", "token"].map(|kind| format!("{folder}/{algorithm}.{kind}"));
        let config = format!(
            "auth: {{ keys: [{{ id: k, algorithm: {algorithm}, key: {{ file: {public} }} }}] }}\n"
        );
        let file = scratch.write("node.yaml", &config)?;
        let config = ["--config", path(&file)?];
        let theirs = fs::read_to_string(&token)?;
        let (code, said) = verdict(theirs.trim(), &config).await?;
        assert_eq!(code, Some(0), "{algorithm}: {said}");
        // A key is used with its own algorithm alone.
        let other = if algorithm == "RS256" {
            "PS256"
        } else {
            "RS256"
        };
        let theirs = fs::read_to_string(format!("{folder}/{other}.token"))?;
        let (code, said) = verdict(theirs.trim(), &config).await?;
        assert_eq!(code, Some(1), "{algorithm}: {said}");

        let all = [
            &["gentoken"],
            &config[..],
            &[
                "--user",
                "bob",
                "--key",
                &private,
                "--algorithm",
                algorithm,
                "--key-id",
                "k",
            ],
        ]
        .concat();
        let ours = printed("causeway-node", &all, &[]).await?;
        let (code, said) = verdict(ours.trim(), &config).await?;
        assert_eq!(code, Some(0), "{algorithm}: {said}");
        let orders = json!({ "verify": ours.trim(), "algorithm": algorithm, "key": public });
        let mut command = clients::command("tokens.mjs", &orders)?;
        let output = command.kill_on_drop(true).output().await?;
        ensure!(
            output.status.success(),
            "{algorithm}: {}",
            text(&output.stderr)
        );
        assert_eq!(text(&output.stdout).trim(), "bob");
        checked += 1;
    }
    assert_eq!(checked, 6);

    // A public key signs nothing, and says what does.
    let config = format!(
        "auth: {{ keys: [{{ algorithm: ES256, key: {{ file: {folder}/ES256.public }} }}] }}\n"
    );
    let file = scratch.write("node.yaml", &config)?;
    let said = refused(
        "causeway-node",
        &["gentoken", "--config", path(&file)?],
        &[],
    )
    .await?;
    assert!(
        said.contains("the public one: give the private key with --key FILE"),
        "{said}"
    );
    Ok(())
}
