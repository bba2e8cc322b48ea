//! The runner behind `make run-proxy`: what it says, how it ends, and that it leaves nothing behind.

use std::{fs, net::TcpListener, time::Duration};

use anyhow::{Context as _, Result};
use causeway_tests::harness::{
    http,
    process::{Process, Signal},
    programs,
    scratch::Scratch,
    wait,
    websocket::WebSocket,
};
use tokio::process::Command;

/// A runner on a port that the kernel chose.
fn runner(scratch: &Scratch, environment: &[(&str, &str)]) -> Result<Process> {
    let mut command = Command::new(programs::ours("causeway-run")?);
    for name in ["CONF", "NODES", "REDIS_URL"] {
        command.env_remove(name);
    }
    // A killed runner leaves its files: they go with the scratch directory.
    command
        .env("PORT", "0")
        .env("TMPDIR", scratch.path())
        .envs(environment.iter().copied());
    Process::spawn("runner", command, scratch.path())
}

/// The address of the page, once the runner tells it.
async fn greeted(runner: &mut Process) -> Result<std::net::SocketAddr> {
    wait::until(
        "the greeting of the runner",
        Duration::from_secs(60),
        async || {
            let output = runner.output();
            let address = output
                .split("page      http://")
                .nth(1)?
                .split('/')
                .next()?;
            output.contains("Ctrl-C").then(|| address.parse().ok())?
        },
    )
    .await
    .with_context(|| runner.tail())
}

/// The processes that a process started and that still run.
fn children(pid: i32) -> Vec<i32> {
    let tasks = fs::read_dir(format!("/proc/{pid}/task"))
        .into_iter()
        .flatten()
        .flatten();
    let lists = tasks.filter_map(|task| fs::read_to_string(task.path().join("children")).ok());
    lists
        .flat_map(|list| {
            list.split_whitespace()
                .filter_map(|pid| pid.parse().ok())
                .collect::<Vec<_>>()
        })
        .collect()
}

fn runs(pid: i32) -> bool {
    let status = fs::read_to_string(format!("/proc/{pid}/stat"));
    status.is_ok_and(|status| !status.contains(") Z "))
}

#[tokio::test]
async fn one_command_runs_everything_and_an_interrupt_ends_it_all() -> Result<()> {
    let scratch = Scratch::new("runner")?;
    let mut runner = runner(&scratch, &[])?;
    let address = greeted(&mut runner).await?;
    assert_eq!(http::get(address, "/").await?.status, 200);

    let children = children(runner.pid());
    assert_eq!(children.len(), 5, "redis, three nodes and the edge");
    let socket = WebSocket::open(address, "/ws").await?;

    runner.signal(Signal::Interrupt);
    let status = runner.exit(Duration::from_secs(30)).await?;
    assert_eq!(status.code(), Some(0), "{}", runner.tail());
    assert_eq!(children.into_iter().filter(|&pid| runs(pid)).count(), 0);
    drop(socket);
    Ok(())
}

#[tokio::test]
async fn a_node_that_dies_is_told_and_the_others_go_on() -> Result<()> {
    let scratch = Scratch::new("runner-death")?;
    let mut runner = runner(&scratch, &[("NODES", "2")])?;
    let address = greeted(&mut runner).await?;

    let is_node = |pid: &i32| {
        fs::read_to_string(format!("/proc/{pid}/comm"))
            .is_ok_and(|name| name.starts_with("causeway-node"))
    };
    let victim = children(runner.pid())
        .into_iter()
        .find(is_node)
        .context("no node among the children")?;
    Command::new("kill")
        .args(["-9", &victim.to_string()])
        .status()
        .await?;
    wait::until("the word about the node", wait::SOON, async || {
        runner.log().contains("ended by itself").then_some(())
    })
    .await?;
    assert_eq!(http::get(address, "/").await?.status, 200);

    runner.signal(Signal::Terminate);
    assert_eq!(runner.exit(Duration::from_secs(30)).await?.code(), Some(0));
    Ok(())
}

#[tokio::test]
async fn a_killed_runner_takes_its_children_with_it() -> Result<()> {
    let scratch = Scratch::new("runner-killed")?;
    let mut runner = runner(&scratch, &[("NODES", "1")])?;
    greeted(&mut runner).await?;
    let children = children(runner.pid());
    assert_eq!(children.len(), 3);
    runner.kill().await?;
    wait::until("the end of the children", wait::SOON, async || {
        children.iter().all(|&pid| !runs(pid)).then_some(())
    })
    .await
}

#[tokio::test]
async fn what_stands_in_the_way_is_one_clear_line_and_exit_code_2() -> Result<()> {
    let taken = TcpListener::bind("127.0.0.1:0")?;
    let taken = taken.local_addr()?.port().to_string();
    let scratch = Scratch::new("runner-refused")?;
    let bad = scratch.write("bad.yaml", "listeners: 7\n")?;
    let bad = bad.to_str().context("a temporary path is UTF-8")?;
    let busy = format!(
        "listeners: [{{ address: '127.0.0.1:{taken}' }}]\nadmin: {{ address: 127.0.0.1:0 }}\n\
         pools: [{{ name: a, backends: [{{ id: x, address: '127.0.0.1:1' }}] }}]\nroutes: [{{ path: /, pool: a }}]\n"
    );
    let busy = scratch.write("busy.yaml", &busy)?;
    let busy = busy.to_str().context("a temporary path is UTF-8")?;
    let empty = scratch.path().join("empty");
    fs::create_dir(&empty)?;
    let empty = empty.to_str().context("a temporary path is UTF-8")?;

    // One process after the other: each case needs a log of its own.
    let cases: [(&[(&str, &str)], &str); 8] = [
        (&[("PORT", &taken)], "PORT="),
        (&[("PORT", "eighty")], "PORT=eighty"),
        (&[("NODES", "0")], "NODES=0"),
        (&[("PATH", empty)], "redis-server is not installed"),
        (&[("REDIS_URL", "redis://127.0.0.1:1")], "is not ready"),
        (&[("CONF", bad)], "bad.yaml:1"),
        (&[("CONF", busy)], &taken),
        (&[("CONF", "/does/not/exist.yaml")], "/does/not/exist.yaml"),
    ];
    for (number, (environment, expected)) in cases.iter().enumerate() {
        let own = Scratch::new(&format!("runner-refused-{number}"))?;
        let mut runner = runner(&own, environment)?;
        let status = runner.exit(Duration::from_secs(30)).await?;
        let log = runner.log();
        assert_eq!(status.code(), Some(2), "{environment:?}: {log}");
        assert!(log.contains(expected), "{environment:?}: {log}");
        assert_eq!(log.trim().lines().count(), 1, "{environment:?}: {log}");
    }
    Ok(())
}
