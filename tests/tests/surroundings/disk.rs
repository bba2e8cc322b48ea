//! A file system without room: what the programs log to it is lost, counted and told of, and nothing else happens.

use std::{
    fs::{self, File},
    io::{ErrorKind, Write as _},
    path::Path,
};

use anyhow::{Context as _, Result, ensure};
use causeway_tests::harness::{
    http, namespace,
    process::{Streams, json_lines},
    scratch::Scratch,
    wait,
};
use serde_json::json;

use crate::subject::{Kind, Subject, on_each_program};

on_each_program!(that_is_full_costs_lines_alone);

async fn that_is_full_costs_lines_alone(kind: Kind) -> Result<()> {
    if !namespace::is_inside() {
        let place = match kind {
            Kind::Edge => "on_the_edge",
            Kind::Plugin => "on_the_plugin",
            Kind::Node => "on_the_node",
        };
        let name = format!("disk::{place}::that_is_full_costs_lines_alone");
        if !namespace::run(&name, "").await? {
            eprintln!("left out: this machine gives no namespaces");
        }
        return Ok(());
    }
    let scratch = Scratch::new("disk")?;
    let disk = scratch.path().join("disk");
    fs::create_dir(&disk)?;
    let path = disk.to_str().context("it is UTF-8")?;
    namespace::mount(&["-t", "tmpfs", "-o", "size=64k", "tmpfs", path]).await?;
    let (stderr, access) = (disk.join("stderr"), disk.join("access.log"));
    let streams = Streams {
        stderr: Some(File::create(&stderr)?.into()),
        ..Streams::default()
    };
    let change = |settings: causeway_tests::harness::settings::Settings| match kind {
        Kind::Node => settings,
        Kind::Edge | Kind::Plugin => settings.with("log.access", json!(access)),
    };
    let mut subject = Subject::start(kind, &scratch, change, streams).await?;

    let filler = disk.join("filler");
    fill(&filler)?;
    while subject.lost_lines().await? == 0 {
        subject.log_something().await?;
    }
    subject.work().await?;
    fs::remove_file(&filler)?;
    wait::until("all lost lines to be told of", wait::SOON, async || {
        http::get(subject.address, "/").await.ok()?;
        let lines = json_lines(&fs::read_to_string(&stderr).ok()?);
        let told = lines
            .iter()
            .filter_map(|line| line["fields"]["lost"].as_u64());
        let mut lost = subject.lost_lines().await.ok()?;
        if kind != Kind::Node {
            lost += subject.metric("access_lines_dropped_total").await.ok()?;
        }
        (told.sum::<u64>() == lost).then_some(())
    })
    .await?;
    let client = subject.client().await?;
    subject.end(client).await?;
    unmount(path).await
}

/// Writes until there is no room for one more byte.
fn fill(path: &Path) -> Result<()> {
    let mut file = File::create(path)?;
    for size in [4096, 1] {
        loop {
            match file.write_all(&vec![b'x'; size]) {
                Ok(()) => {}
                Err(error) if error.kind() == ErrorKind::StorageFull => break,
                Err(error) => return Err(error.into()),
            }
        }
    }
    Ok(())
}

async fn unmount(path: &str) -> Result<()> {
    let status = tokio::process::Command::new("umount").arg(path).status();
    ensure!(status.await?.success(), "cannot unmount {path}");
    Ok(())
}
