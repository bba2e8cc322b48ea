//! Requests that are wrong on purpose, through the edge, nginx and HAProxy in one run, before a backend that records what
//! reaches it: never more requests behind than in front, nothing that another parser could read otherwise, no header that is
//! not for it, and the response that its RFC names.
//!
//! The edge gets each of them in one segment, in two and in two records of TLS: what it makes of a request must not depend on
//! that. Only the edge is held to it. Where it is mounted in a Pingora server, that one reads the requests, and the edge is held to
//! what is dangerous alone. The table (`--nocapture`) shows what the others make of the same bytes.

mod corpus;
mod downgrade;
mod framing;
mod h2;
mod heads;
mod hops;
mod play;
mod proxies;
mod recorder;
mod targets;
mod upgrades;

use std::path::PathBuf;

use anyhow::{Context as _, Result};
use causeway_tests::harness::{scratch::Scratch, tls::Authority};
use tokio::{net::TcpStream, time::timeout};

use crate::edge::smuggling::{
    corpus::Case,
    h2::Response,
    play::{Played, Way},
    proxies::{Kind, Proxy},
    recorder::Seen,
};

#[tokio::test]
async fn one_request_in_front_is_at_most_one_behind_and_has_the_response_of_its_rfc() -> Result<()>
{
    let cases = corpus::all();
    assert!(80 <= cases.len(), "{} cases", cases.len());
    let (one, two, tls, plugin, nginx, haproxy) = tokio::try_join!(
        play_all(Kind::Edge, Way::One, &cases),
        play_all(Kind::Edge, Way::Two, &cases),
        play_all(Kind::Edge, Way::Tls, &cases),
        play_all(Kind::Plugin, Way::Two, &cases),
        play_all(Kind::Nginx, Way::One, &cases),
        play_all(Kind::Haproxy, Way::One, &cases),
    )?;
    let heads = [
        "edge",
        "in two",
        "TLS, in two",
        "plugin",
        "nginx",
        "haproxy",
    ];
    println!(
        "{:58} {}",
        "",
        heads.map(|head| format!("{head:>16}")).join(" ")
    );
    let mut wrong = Vec::new();
    for (at, case) in cases.iter().enumerate() {
        let played = [&one, &two, &tls, &plugin, &nginx, &haproxy].map(|all| &all[at]);
        let columns = played.map(|played| format!("{:>16}", played.summary(case)));
        println!("{:58} {}", case.name, columns.join(" "));
        for (name, played) in heads.iter().zip(&played[..3]) {
            let faults = played.faults(case).into_iter();
            wrong.extend(faults.map(|fault| format!("{}, {name}: {fault}", case.name)));
        }
        let dangers = plugin[at].dangers().into_iter();
        wrong.extend(dangers.map(|danger| format!("{}, plugin: {danger}", case.name)));
    }
    println!(
        "the statuses that came back, =requests behind if there were any, . if the connection was closed, ! if more or other\n\
         requests came out than went in, or a header that is not for the backend"
    );
    assert!(wrong.is_empty(), "\n{}", wrong.join("\n"));
    Ok(())
}

/// Plays every case against one proxy, one after the other.
async fn play_all(kind: Kind, way: Way, cases: &[Case]) -> Result<Vec<Played>> {
    let scene = Scene::set()?;
    let mut proxy = scene.start(kind).await?;
    let mut played = Vec::new();
    for case in cases {
        played.push(play::play(&mut proxy, case, way).await?);
    }
    assert!(proxy.is_running(), "{kind:?} has ended");
    Ok(played)
}

#[tokio::test]
async fn what_http_2_can_say_and_http_1_cannot_stays_in_front() -> Result<()> {
    let cases = downgrade::all();
    let (edge, nginx, haproxy) = tokio::try_join!(
        ask_all(Kind::Edge, &cases),
        ask_all(Kind::Nginx, &cases),
        ask_all(Kind::Haproxy, &cases),
    )?;
    println!("{:58} {:>16} {:>16} {:>16}", "", "edge", "nginx", "haproxy");
    let mut wrong = Vec::new();
    for (at, case) in cases.iter().enumerate() {
        let [edge, nginx, haproxy] = [&edge[at], &nginx[at], &haproxy[at]];
        let summary = |asked: &Asked| {
            let bad = if play::leaks(&asked.behind, case.front, &[]).is_empty() {
                ""
            } else {
                "!"
            };
            match asked.response {
                Response::Status(status) => format!("{status}={}{bad}", asked.behind.len()),
                Response::Refused => format!("-={}{bad}", asked.behind.len()),
            }
        };
        let columns = [edge, nginx, haproxy].map(summary);
        println!(
            "{:58} {:>16} {:>16} {:>16}",
            case.name, columns[0], columns[1], columns[2]
        );
        let mut faults = play::leaks(&edge.behind, case.front, &[]);
        if !case.responses.contains(&edge.response) {
            faults.push(format!(
                "{:?} is not one of {:?}",
                edge.response, case.responses
            ));
        }
        wrong.extend(faults.iter().map(|fault| format!("{}: {fault}", case.name)));
    }
    assert!(wrong.is_empty(), "\n{}", wrong.join("\n"));
    Ok(())
}

#[tokio::test]
async fn http_2_says_how_many_streams_and_how_large_heads_it_takes() -> Result<()> {
    let scene = Scene::set()?;
    let proxy = scene.start(Kind::Edge).await?;
    let clients = scene.authority.clients("h2")?;
    let settings = h2::settings(&clients, TcpStream::connect(proxy.tls).await?).await?;
    let (streams, head) = (settings.get(&h2::STREAMS_MAX), settings.get(&h2::HEAD_MAX));
    assert_eq!((streams, head), (Some(&100), Some(&(16 * 1024))));
    Ok(())
}

/// What became of one case of HTTP/2.
struct Asked {
    response: Response,
    behind: Vec<Seen>,
}

async fn ask_all(kind: Kind, cases: &[downgrade::Case]) -> Result<Vec<Asked>> {
    let scene = Scene::set()?;
    let mut proxy = scene.start(kind).await?;
    let clients = scene.authority.clients("h2")?;
    let mut asked = Vec::new();
    for case in cases {
        let response = h2::ask(&clients, TcpStream::connect(proxy.tls).await?, &case.frames);
        let response = timeout(play::PATIENCE, response).await;
        let response = response.with_context(|| format!("{kind:?}, {}: no end", case.name))??;
        play::witness(&proxy).await?;
        let mut behind = proxy.recorder.take();
        behind.retain(|seen| seen.line != "GET /witness HTTP/1.1");
        asked.push(Asked { response, behind });
    }
    assert!(proxy.is_running(), "{kind:?} has ended");
    Ok(asked)
}

/// The files of one proxy.
struct Scene {
    scratch: Scratch,
    authority: Authority,
    certificates: PathBuf,
}

impl Scene {
    fn set() -> Result<Self> {
        let scratch = Scratch::new("smuggling")?;
        let certificates = scratch.path().join("certificates");
        std::fs::create_dir(&certificates)?;
        let authority = Authority::new(scratch.path())?;
        authority.renew(&certificates)?;
        Ok(Self {
            scratch,
            authority,
            certificates,
        })
    }

    async fn start(&self, kind: Kind) -> Result<Proxy> {
        let clients = self.authority.clients("http/1.1")?;
        Proxy::start(kind, self.scratch.path(), &self.certificates, clients).await
    }
}
