//! Files that hang, and what `--check` finds.

use std::{fs, net::TcpListener, time::Duration};

use anyhow::{Context as _, Result, ensure};
use causeway_tests::harness::{
    http,
    log_pipe::LogPipe,
    loopback,
    process::{Signal, Streams},
    programs,
    scratch::Scratch,
    wait,
};
use serde_json::json;
use tokio::{process::Command, time::timeout};

use crate::subject::{Kind, Subject};

/// Runs a program that has to end; its exit code and what it printed.
async fn run(program: &str, arguments: &[&str]) -> Result<(Option<i32>, String)> {
    let mut command = Command::new(programs::ours(program)?);
    command.args(arguments).kill_on_drop(true);
    let ended = timeout(Duration::from_secs(60), command.output()).await;
    let output = ended.with_context(|| format!("{program} hangs"))??;
    let printed = [output.stdout, output.stderr].concat();
    let printed = String::from_utf8_lossy(&printed).into_owned();
    Ok((output.status.code(), printed))
}

#[tokio::test]
async fn a_configuration_that_hangs_is_one_clear_error() -> Result<()> {
    let scratch = Scratch::new("hangs")?;
    let pipe = LogPipe::new(scratch.path(), "config.yaml")?;
    let path = pipe.path().to_str().context("it is UTF-8")?;
    for program in ["causeway-proxy", "causeway-node"] {
        for arguments in [&["--config", path][..], &["--config", path, "--check"]] {
            let (code, printed) = run(program, arguments).await?;
            ensure!(code == Some(2), "{program}: {code:?} {printed}");
            ensure!(printed.contains("it hangs"), "{program}: {printed}");
            ensure!(printed.contains(path), "{program}: {printed}");
        }
    }
    Ok(())
}

mod while_it_runs {
    use super::*;

    #[tokio::test]
    async fn a_configuration_that_hangs_changes_nothing_and_stops_no_health_check_of_the_edge()
    -> Result<()> {
        configuration_hangs(Kind::Edge).await
    }

    #[tokio::test]
    async fn a_configuration_that_hangs_changes_nothing_and_stops_no_health_check_of_the_plugin()
    -> Result<()> {
        configuration_hangs(Kind::Plugin).await
    }

    async fn configuration_hangs(kind: Kind) -> Result<()> {
        let scratch = Scratch::new("hangs")?;
        let quick = json!({ "interval": "100ms", "fast_interval": "100ms" });
        let subject = Subject::start(
            kind,
            &scratch,
            |settings| settings.with("health", quick),
            Streams::default(),
        );
        let mut subject = subject.await?;
        let file = scratch.path().join("subject.yaml");
        let text = fs::read_to_string(&file)?;
        fs::remove_file(&file)?;
        let pipe = LogPipe::new(scratch.path(), "subject.yaml")?;
        // Its other end is there, so that opening it works, and reading it does not.
        let writer = pipe.writer()?;
        subject.process.signal(Signal::Hangup);
        let probes = async || subject.metric("probes_total").await;
        let before = probes().await?;
        wait::until("probes to go on", Duration::from_secs(4), async || {
            (before + 5 < probes().await.ok()?).then_some(())
        })
        .await?;
        wait::until("the log to say so", wait::SOON, async || {
            let log = subject.process.log();
            let is_said = log.contains("configuration reload failed") && log.contains("it hangs");
            is_said.then_some(())
        })
        .await?;
        drop(writer);
        fs::remove_file(&file)?;
        fs::write(&file, text)?;
        subject.work().await?;
        let client = subject.client().await?;
        subject.end(client).await
    }
}

/// A file of the edge with these lines.
fn edge_file(scratch: &Scratch, lines: &str) -> Result<String> {
    let text = format!(
        "pools: [{{ name: p, backends: [{{ id: b, address: '127.0.0.1:1' }}] }}]\nroutes: [{{ path: /, pool: p }}]\n{lines}"
    );
    let file = scratch.write("edge.yaml", &text)?;
    Ok(file.display().to_string())
}

#[tokio::test]
async fn a_check_tries_what_the_start_will_open_and_leaves_nothing_behind() -> Result<()> {
    let scratch = Scratch::new("check")?;
    let elsewhere = "192.0.2.1:1";
    let taken = TcpListener::bind(loopback::own_any_port())?;
    let taken = taken.local_addr()?;
    let log = scratch.path().join("access.log");
    let valid = format!(
        "listeners: [{{ address: '{taken}' }}]\nadmin: {{ address: '127.0.0.1:0' }}\nlog: {{ access: '{}' }}\n",
        log.display()
    );
    let file = edge_file(&scratch, &valid)?;
    let (code, printed) = run("causeway-proxy", &["--config", &file, "--check"]).await?;
    ensure!(
        code == Some(0),
        "a port in use may be the running edge's: {printed}"
    );
    ensure!(!log.exists(), "a check makes no file");

    let wrong = [
        (
            format!("listeners: [{{ address: '{elsewhere}' }}]\n"),
            "cannot listen on 192.0.2.1:1",
        ),
        (
            format!(
                "listeners: [{{ address: '127.0.0.1:0' }}]\nadmin: {{ address: '{elsewhere}' }}\n"
            ),
            "cannot listen on 192.0.2.1:1",
        ),
        (
            "listeners: [{ address: '127.0.0.1:0' }]\nlog: { access: /nonexistent/access.log }\n"
                .to_owned(),
            "cannot open the access log /nonexistent/access.log",
        ),
        (
            "listeners: [{ address: '127.0.0.1:0' }]\nlog: { access: / }\n".to_owned(),
            "cannot open the access log /",
        ),
    ];
    for (lines, expected) in wrong {
        let file = edge_file(&scratch, &lines)?;
        let (code, printed) = run("causeway-proxy", &["--config", &file, "--check"]).await?;
        ensure!(
            code == Some(2) && printed.contains(expected),
            "{lines}: {code:?} {printed}"
        );
    }

    for (listen, admin, expected, said) in [
        (taken.to_string(), "127.0.0.1:0", 0, "valid"),
        (
            elsewhere.to_owned(),
            "none",
            2,
            "cannot listen on 192.0.2.1:1 (setting `listen`)",
        ),
        (
            "127.0.0.1:0".to_owned(),
            elsewhere,
            2,
            "cannot listen on 192.0.2.1:1 (setting `admin.address`)",
        ),
    ] {
        let text = format!("listen: '{listen}'\nadmin: {{ address: '{admin}' }}\n");
        let file = scratch.write("node.yaml", &text)?;
        let file = file.display().to_string();
        let (code, printed) = run("causeway-node", &["--config", &file, "--check"]).await?;
        ensure!(
            code == Some(expected) && printed.contains(said),
            "{text}: {code:?} {printed}"
        );
    }
    Ok(())
}

#[tokio::test]
async fn a_certificate_that_hangs_is_said_and_serves_on() -> Result<()> {
    let scratch = Scratch::new("certificate")?;
    let folder = scratch.path().join("certificates");
    fs::create_dir(&folder)?;
    let authority = causeway_tests::harness::tls::Authority::new(scratch.path())?;
    authority.renew(&folder)?;
    let subject = Subject::start(
        Kind::Edge,
        &scratch,
        |settings| {
            let plain = settings.get("listeners")[0].clone();
            settings.with(
                "listeners",
                json!([plain, { "address": "127.0.0.1:0", "tls": { "folder": folder } }]),
            )
        },
        Streams::default(),
    );
    let mut subject = subject.await?;
    for entry in fs::read_dir(&folder)? {
        let path = entry?.path();
        if path.extension().is_some_and(|ending| ending == "key") {
            fs::remove_file(&path)?;
            let name = path.file_name().and_then(|name| name.to_str());
            LogPipe::new(&folder, name.context("it has a name")?)?;
        }
    }
    wait::until("the log to say so", wait::SOON, async || {
        let log = subject.process.log();
        (log.contains("it hangs") && log.contains(".key")).then_some(())
    })
    .await?;
    ensure!(http::get(subject.address, "/").await?.status == 200);
    subject.work().await?;
    let client = subject.client().await?;
    subject.end(client).await
}
