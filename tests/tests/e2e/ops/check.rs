//! What both programs say without running: `--check`, `--version`, `--help`.

use std::{path::Path, process::Output};

use anyhow::{Context as _, Result};
use causeway_tests::harness::{process::Process, programs, scratch::Scratch};
use tokio::process::Command;

async fn run(program: &str, arguments: &[&str]) -> Result<Output> {
    let mut command = Command::new(programs::ours(program)?);
    command
        .args(arguments)
        .kill_on_drop(true)
        .output()
        .await
        .context("the program runs")
}

/// A broken file, and what each line of the complaint must hold: place, key, and a word of what was expected.
struct Case {
    program: &'static str,
    text: &'static str,
    complaints: &'static [&'static [&'static str]],
}

const POOL: &str = "pools: [{ name: a, backends: [{ id: x, address: '127.0.0.1:1' }] }]";

const CASES: &[Case] = &[
    Case {
        program: "causeway-proxy",
        text: "listeners:\n  - address: 127.0.0.1:0\nlistners: []\n",
        complaints: &[&["bad.yaml:3:1", "listners"]],
    },
    Case {
        program: "causeway-proxy",
        text: "listeners: 7\n",
        complaints: &[&["bad.yaml:1:", "listeners", "list"]],
    },
    Case {
        program: "causeway-proxy",
        text: "listeners: [{ address: '127.0.0.1:0' }]\npools:\n  - name: a\n    backends:\n      - id: x\n        address: 127.0.0.1:1\n      - \
               id: x\n        address: 127.0.0.1:2\nroutes: [{ path: /, pool: a }]\n",
        complaints: &[&["bad.yaml:7:9", "pools[0].backends[1].id", "x"]],
    },
    Case {
        program: "causeway-proxy",
        text: "listeners: [{ address: '127.0.0.1:0' }]\npools: [{ name: a, backends: [{ id: x, address: '127.0.0.1:1' }] }]\nroutes:\n  - path: /\n    \
               pool: b\ntimeouts:\n  head: 10\n",
        complaints: &[&["bad.yaml:7:", "timeouts.head", "10s"]],
    },
    Case {
        program: "causeway-proxy",
        text: "listeners: [{ address: '127.0.0.1:0' }]\npools: [{ name: a, backends: [{ id: x, address: 'no port' }] }]\nroutes:\n  - path: /\n    \
               pool: b\n",
        complaints: &[
            &["bad.yaml:2:", "pools[0].backends[0].address"],
            &["bad.yaml:5:5", "routes[0].pool", "b"],
        ],
    },
    Case {
        program: "causeway-proxy",
        text: "listeners:\n  - address: [\n",
        complaints: &[&["bad.yaml:"]],
    },
    Case {
        program: "causeway-node",
        text: "listen: 127.0.0.1:0\nlisten_on: 7\n",
        complaints: &[&["bad.yaml:2:1", "listen_on"]],
    },
    Case {
        program: "causeway-node",
        text: "page: maybe\n",
        complaints: &[&["bad.yaml:1:", "page", "true or false", "maybe"]],
    },
    Case {
        program: "causeway-node",
        text: "endpoints:\n  - { path: /a, protocol: websocket, mode: relay }\n  - { path: /a, protocol: sockjs, mode: echo }\n",
        complaints: &[&["bad.yaml:3:", "endpoints[1].path", "/a"]],
    },
    Case {
        program: "causeway-node",
        text: "broker:\n  kind: redis\n",
        complaints: &[&["bad.yaml:", "broker", "url"]],
    },
    Case {
        program: "causeway-node",
        text: "listen: nowhere\nbroker: { kind: memory, publish_queues: 0 }\n",
        complaints: &[
            &["bad.yaml:1:", "listen"],
            &["bad.yaml:2:", "broker.publish_queues"],
        ],
    },
];

#[tokio::test]
async fn a_bad_file_is_refused_with_its_place_its_key_and_what_was_expected() -> Result<()> {
    let scratch = Scratch::new("check")?;
    for case in CASES {
        let file = scratch.write("bad.yaml", case.text)?;
        let file = file.to_str().context("a temporary path is UTF-8")?;
        for arguments in [&["--check", "--config", file][..], &["--config", file]] {
            let output = run(case.program, arguments).await?;
            let said = String::from_utf8_lossy(&output.stderr).into_owned();
            assert_eq!(output.status.code(), Some(2), "{}: {said}", case.text);
            let lines: Vec<&str> = said.lines().collect();
            assert_eq!(
                lines.len(),
                case.complaints.len(),
                "one line for each error of\n{}\n{said}",
                case.text
            );
            for parts in case.complaints {
                let complete = lines
                    .iter()
                    .any(|line| parts.iter().all(|part| line.contains(part)));
                assert!(complete, "no line has all of {parts:?}:\n{said}");
            }
        }
    }
    Ok(())
}

#[tokio::test]
async fn a_file_that_is_not_there_is_named() -> Result<()> {
    for program in ["causeway-proxy", "causeway-node"] {
        let output = run(program, &["--check", "--config", "/does/not/exist.yaml"]).await?;
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(2), "{said}");
        assert_eq!(said.lines().count(), 1, "{said}");
        assert!(said.contains("/does/not/exist.yaml"), "{said}");
    }
    Ok(())
}

#[tokio::test]
async fn a_good_file_passes_with_one_line() -> Result<()> {
    let scratch = Scratch::new("check-good")?;
    let edge = format!(
        "listeners: [{{ address: '127.0.0.1:0' }}]\n{POOL}\nroutes: [{{ path: /, pool: a }}]\n"
    );
    for (program, text) in [
        ("causeway-proxy", edge.as_str()),
        ("causeway-node", "listen: 127.0.0.1:0\n"),
    ] {
        let file = scratch.write("good.yaml", text)?;
        let output = run(
            program,
            &[
                "--check",
                "--config",
                file.to_str().context("a temporary path is UTF-8")?,
            ],
        )
        .await?;
        assert_eq!(
            output.status.code(),
            Some(0),
            "{program}: {}",
            String::from_utf8_lossy(&output.stderr)
        );
        let said = [output.stdout, output.stderr].concat();
        assert_eq!(
            String::from_utf8_lossy(&said).lines().count(),
            1,
            "{program}"
        );
    }
    Ok(())
}

#[tokio::test]
async fn what_is_likely_not_meant_so_is_warned_of_and_passes() -> Result<()> {
    let scratch = Scratch::new("check-warnings")?;
    let text = format!(
        "listeners: [{{ address: '127.0.0.1:0' }}]\n{POOL}\nroutes: [{{ path: /, pool: a }}]\n\
         affinity: {{ same_site: None }}\n"
    );
    let file = scratch.write("warned.yaml", &text)?;
    let file = file.to_str().context("a temporary path is UTF-8")?;
    let output = run("causeway-proxy", &["--check", "--config", file]).await?;
    assert_eq!(output.status.code(), Some(0));
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(said.lines().count(), 1, "{said}");
    for part in ["warned.yaml: warning: affinity.same_site", "127.0.0.1:0"] {
        assert!(said.contains(part), "{said}");
    }
    Ok(())
}

#[tokio::test]
async fn what_cannot_work_is_warned_about_and_the_node_starts_all_the_same() -> Result<()> {
    let scratch = Scratch::new("check-warnings")?;
    let text = "listen: 127.0.0.1:0\nendpoints: [{ path: /c, mode: channels }]\nchannels:\n  namespaces:\n    - { name: a, subscribe: hook }\n";
    let file = scratch.write("doubtful.yaml", text)?;
    let file = file.to_str().context("a temporary path is UTF-8")?;
    let output = run("causeway-node", &["--check", "--config", file]).await?;
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    let lines: Vec<&str> = said.lines().collect();
    assert_eq!(lines.len(), 2, "{said}");
    for (line, parts) in lines.iter().zip([
        [
            "warning: ",
            "doubtful.yaml:2:",
            "endpoints[0].mode",
            "auth.anonymous",
        ],
        [
            "warning: ",
            "doubtful.yaml:5:",
            "channels.namespaces[0].subscribe",
            "hooks.subscribe",
        ],
    ]) {
        assert!(parts.iter().all(|part| line.contains(part)), "{line}");
    }
    let mut command = Command::new(programs::ours("causeway-node")?);
    command.args(["--config", file]);
    let mut node = Process::spawn("node", command, scratch.path())?;
    node.listening("node").await?;
    assert_eq!(
        node.log().matches("configuration warning").count(),
        2,
        "{}",
        node.log()
    );
    Ok(())
}

#[tokio::test]
async fn a_setting_under_its_old_name_works_and_is_warned_of_with_its_place() -> Result<()> {
    let scratch = Scratch::new("check-renamed")?;
    let text =
        "listen: 127.0.0.1:0\nadmin: { address: 127.0.0.1:0 }\nlimits:\n  answer_timeout: 3s\n";
    let file = scratch.write("renamed.yaml", text)?;
    let path = file.to_str().context("a temporary path is UTF-8")?;
    let warning =
        "renamed.yaml:4:3: limits.answer_timeout: the setting is called \"send_timeout\" now";

    let checked = run("causeway-node", &["--check", "--config", path]).await?;
    assert_eq!(checked.status.code(), Some(0));
    let said = String::from_utf8_lossy(&checked.stderr).into_owned();
    assert_eq!(said.matches("warning: ").count(), 1, "{said}");
    assert!(said.contains(warning), "{said}");

    let printed = run("causeway-node", &["--print-config", "--config", path]).await?;
    let printed = String::from_utf8_lossy(&printed.stdout).into_owned();
    let line = printed.lines().find(|line| line.contains("send_timeout"));
    let line = line.context("--print-config has the setting under its new name")?;
    assert!(line.starts_with("  send_timeout: 3s  # "), "{line}");
    assert!(
        line.ends_with("renamed.yaml:4, as answer_timeout"),
        "{line}"
    );
    assert!(!printed.contains("answer_timeout:"), "{printed}");

    let mut command = Command::new(programs::ours("causeway-node")?);
    command.arg("--config").arg(&file);
    let mut node = Process::spawn("renamed", command, scratch.path())?;
    node.listening("admin").await?;
    assert_eq!(
        node.log().matches("answer_timeout").count(),
        1,
        "{}",
        node.log()
    );

    let both = scratch.write("both.yaml", &format!("{text}  send_timeout: 3s\n"))?;
    let path = both.to_str().context("a temporary path is UTF-8")?;
    let refused = run("causeway-node", &["--check", "--config", path]).await?;
    assert_eq!(refused.status.code(), Some(2));
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(
        said.contains("both.yaml:4:3: limits.answer_timeout: "),
        "{said}"
    );
    assert!(said.contains("both.yaml:5 gives that too"), "{said}");
    Ok(())
}

#[tokio::test]
async fn the_files_that_explain_every_setting_are_valid() -> Result<()> {
    let conf = Path::new(env!("CARGO_MANIFEST_DIR")).join("../conf");
    for (program, name) in [
        ("causeway-proxy", "proxy.yaml"),
        ("causeway-node", "node.yaml"),
    ] {
        let file = conf.join(name);
        let output = run(
            program,
            &[
                "--check",
                "--config",
                file.to_str().context("the path is UTF-8")?,
            ],
        )
        .await?;
        assert_eq!(
            output.status.code(),
            Some(0),
            "{name}: {}",
            String::from_utf8_lossy(&output.stderr)
        );
    }
    Ok(())
}

#[tokio::test]
async fn a_secret_is_never_shown() -> Result<()> {
    let scratch = Scratch::new("secret")?;
    let text =
        "broker: { kind: redis, url: 'redis://:hunter2@127.0.0.1:1/0', publish_queues: 0 }\n";
    let file = scratch.write("secret.yaml", text)?;
    let output = run(
        "causeway-node",
        &[
            "--check",
            "--config",
            file.to_str().context("a temporary path is UTF-8")?,
        ],
    )
    .await?;
    let said = [output.stdout, output.stderr].concat();
    assert!(!String::from_utf8_lossy(&said).contains("hunter2"));
    Ok(())
}

#[tokio::test]
async fn version_and_help_are_told_and_a_wrong_flag_is_refused() -> Result<()> {
    for program in ["causeway-proxy", "causeway-node"] {
        let version = run(program, &["--version"]).await?;
        assert!(version.status.success());
        assert_eq!(
            String::from_utf8_lossy(&version.stdout).trim(),
            format!("{program} {}", env!("CARGO_PKG_VERSION"))
        );
        let help = run(program, &["--help"]).await?;
        assert!(help.status.success());
        let text = String::from_utf8_lossy(&help.stdout).into_owned();
        assert!(
            ["--config", "--check", "--version"]
                .iter()
                .all(|flag| text.contains(flag)),
            "{text}"
        );
        assert_eq!(run(program, &["--chekc"]).await?.status.code(), Some(2));
    }
    Ok(())
}
