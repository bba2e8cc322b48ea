//! Affinity cookies as broken and hostile clients send them, on plain requests and on upgrades alike.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, SystemTime},
};

use anyhow::{Context as _, Result, ensure};
use causeway_tests::harness::{
    backend::{Backend, Request},
    edge::{self, Edge},
    http::{self, Connection, Response},
    scratch::Scratch,
    settings::Settings,
    websocket,
};
use serde_json::json;

const COOKIE: &str = "causeway";
const OLD_KEY: &str = "0123456789abcdef0123456789abcdef";
const NEW_KEY: &str = "fedcba9876543210fedcba9876543210";

/// The second that cookies made by hand say they were bound: long before any process here started.
const LONG_AGO: u64 = 1;

/// The ways a request comes: each has its own code at the edge, and the same rules.
#[derive(Clone, Copy, Debug)]
enum Way {
    Plain,
    Upgrade,
}

const WAYS: [Way; 2] = [Way::Plain, Way::Upgrade];

/// Backends that tell what they see.
struct Backends {
    all: Vec<(&'static str, Backend)>,
    /// Whether the first one says that it drains.
    draining: Arc<AtomicBool>,
}

impl Backends {
    async fn start(names: &[&'static str]) -> Result<Self> {
        let draining = Arc::new(AtomicBool::new(false));
        let mut all = Vec::new();
        for (index, name) in names.iter().copied().enumerate() {
            let drains = match index {
                0 => draining.clone(),
                _ => Arc::default(),
            };
            let handle = move |request| tell(name, drains.clone(), request);
            all.push((name, Backend::start(handle).await?));
        }
        Ok(Self { all, draining })
    }

    fn addresses(&self) -> Vec<(&str, SocketAddr)> {
        let each = self.all.iter();
        each.map(|(name, backend)| (*name, backend.address))
            .collect()
    }
}

/// Responds with the backend's name, the cookies that it got, and the `Cache-Control` that the query asks for.
async fn tell(name: &'static str, drains: Arc<AtomicBool>, mut request: Request) {
    let path = request.head.split(' ').nth(1).unwrap_or_default();
    if path == "/health" {
        let answered = if drains.load(Ordering::SeqCst) {
            let status = "503 Service Unavailable";
            request.respond(status, "Causeway-Drain: 1\r\n", "").await
        } else {
            request.respond("200 OK", "", "").await
        };
        return answered.unwrap_or_default();
    }
    let mut headers = format!("X-Backend: {name}\r\n");
    for line in request.head.lines() {
        if let Some((field, value)) = line.split_once(": ")
            && field.eq_ignore_ascii_case("cookie")
        {
            headers.push_str(&format!("X-Cookie: {value}\r\n"));
        }
    }
    if let Some((_, wanted)) = path.split_once("?cache=") {
        let wanted = wanted.replace("%20", " ").replace("%22", "\"");
        headers.push_str(&format!("Cache-Control: {wanted}\r\n"));
    }
    let answered = if request.header("upgrade").is_some() {
        let accept = websocket::ACCEPT;
        headers.push_str(&format!(
            "Upgrade: websocket\r\nSec-WebSocket-Accept: {accept}\r\n"
        ));
        let head =
            format!("HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\n{headers}\r\n");
        tokio::io::AsyncWriteExt::write_all(&mut request.stream, head.as_bytes()).await
    } else {
        request.respond("200 OK", &headers, "fine").await
    };
    answered.unwrap_or_default();
}

/// An edge, and where its files are.
struct Scene {
    edge: Edge,
    _scratch: Scratch,
}

impl Scene {
    async fn start(name: &str, settings: Settings) -> Result<Self> {
        let scratch = Scratch::new(name)?;
        // A busy machine is no reason to think that a backend is gone.
        let health = json!({ "path": "/health", "timeout": "30s" });
        let settings = settings.with("health", health);
        let edge = Edge::start(&settings, scratch.path()).await?;
        Ok(Self {
            edge,
            _scratch: scratch,
        })
    }

    /// One before these backends, whose affinity has these settings; it knows them all.
    async fn before(backends: &[(&str, SocketAddr)], affinity: serde_json::Value) -> Result<Self> {
        let settings = edge::settings(backends).with("affinity", affinity);
        let scene = Self::start("cookies", settings).await?;
        for (id, _) in backends {
            scene.edge.backend_in_state(id, "up").await?;
        }
        Ok(scene)
    }

    async fn ask(&self, way: Way, path: &str, headers: &[(&str, &str)]) -> Result<Told> {
        let address = self.edge.address;
        let response = match way {
            Way::Plain => http::get_with(address, path, headers).await?,
            Way::Upgrade => {
                let mut connection = Connection::open(address).await?;
                let head = websocket::handshake(address, path, headers);
                connection.send(head).await?;
                connection.head().await?
            }
        };
        let status = match way {
            Way::Plain => 200,
            Way::Upgrade => 101,
        };
        ensure!(response.status == status, "{way:?}: {response:?}");
        Ok(Told(response))
    }

    /// Asks with these Cookie headers.
    async fn ask_as(&self, way: Way, cookies: &[&str]) -> Result<Told> {
        let headers: Vec<_> = cookies.iter().map(|cookie| ("Cookie", *cookie)).collect();
        self.ask(way, "/", &headers).await
    }

    /// Asks with this value of the affinity cookie.
    async fn ask_with(&self, way: Way, value: &str) -> Result<Told> {
        self.ask_as(way, &[&format!("{COOKIE}={value}")]).await
    }
}

/// What a backend told, and what the edge added to it.
#[derive(Debug)]
struct Told(Response);

impl Told {
    fn backend(&self) -> &str {
        self.0.header("x-backend").unwrap_or_default()
    }

    /// The cookies that the backend got to see, one for each header.
    fn cookies(&self) -> Vec<&str> {
        self.all("x-cookie")
    }

    /// The cookie that binds the client, if the response has one.
    fn bound(&self) -> Option<String> {
        self.0.cookie(COOKIE)
    }

    fn all(&self, name: &str) -> Vec<&str> {
        let each = self.0.headers.iter().filter(|(found, _)| found == name);
        each.map(|(_, value)| value.as_str()).collect()
    }
}

/// What comes of the Cookie headers of a request.
struct Case<'a> {
    sent: Vec<&'a str>,
    /// The backend that they name, if they name one.
    belongs_to: Option<&'a str>,
    /// What the backend sees of them.
    passed_on: Vec<&'a str>,
}

#[tokio::test]
async fn the_first_cookie_that_holds_counts_and_none_of_ours_is_passed_on() -> Result<()> {
    let backends = Backends::start(&["a", "b", "c"]).await?;
    let scene = Scene::before(&backends.addresses(), json!({})).await?;
    let long = format!("{COOKIE}={}", "x".repeat(8 * 1024));
    let long_then_good = format!("{long}; causeway=u1.b.1");
    let many = vec!["causeway=x"; 1_000].join("; ");
    let good_then_many = format!("causeway=u1.b.1; {many}");
    let case = |sent: &[&'static str], belongs_to, passed_on: &[&'static str]| Case {
        sent: sent.to_vec(),
        belongs_to,
        passed_on: passed_on.to_vec(),
    };
    #[rustfmt::skip]
    let mut cases = vec![
        case(&[], None, &[]),
        case(&["causeway=u1.b.1"], Some("b"), &[]),
        case(&["x=1; causeway=u1.b.1; z=3"], Some("b"), &["x=1; z=3"]),
        case(&["x=1", "y=2;causeway=u1.b.1", "z=3"], Some("b"), &["x=1; y=2; z=3"]),
        case(&["causeway=u1.b.1", "causeway=u1.a.1"], Some("b"), &[]),
        case(&["causeway=u1.b.1; causeway=u1.a.1"], Some("b"), &[]),
        case(&["causeway=u1.gone.1; causeway=u1.b.1"], Some("b"), &[]),
        case(&["causeway=forged", "causeway=u1.b.1"], Some("b"), &[]),
        case(&["causeway=u1.b.1; broken; =; ;;"], Some("b"), &["broken; =; ;;"]),
        case(&["a=causeway=u1.b.1"], None, &["a=causeway=u1.b.1"]),
        case(&["a=\"b; causeway=u1.b.1; c\""], Some("b"), &["a=\"b; c\""]),
        case(&["Causeway=u1.b.1"], None, &["Causeway=u1.b.1"]),
        case(&["causeway2=u1.b.1; xcauseway=u1.b.1"], None, &["causeway2=u1.b.1; xcauseway=u1.b.1"]),
        case(&["causeway=u1.gone.1"], None, &[]),
        case(&["causeway=\"u1.b.1\""], None, &[]),
        case(&["causeway=u1.b.-1"], None, &[]),
        case(&["causeway=u1.127.0.0.1:80.1"], None, &[]),
        case(&["causeway="], None, &[]),
        case(&["causeway"], None, &["causeway"]),
    ];
    cases.push(Case {
        sent: vec![&long],
        belongs_to: None,
        passed_on: vec![],
    });
    cases.push(Case {
        sent: vec!["a=1", &long_then_good],
        belongs_to: Some("b"),
        passed_on: vec!["a=1"],
    });
    // Only so many are looked at.
    cases.push(Case {
        sent: vec![&many, "causeway=u1.b.1"],
        belongs_to: None,
        passed_on: vec![],
    });
    cases.push(Case {
        sent: vec![&good_then_many],
        belongs_to: Some("b"),
        passed_on: vec![],
    });
    for way in WAYS {
        for case in &cases {
            let told = scene.ask_as(way, &case.sent).await?;
            let what = || format!("{way:?} {:.100?}", case.sent);
            assert_eq!(told.cookies(), case.passed_on, "{}", what());
            match case.belongs_to {
                Some(backend) => {
                    assert_eq!(told.backend(), backend, "{}", what());
                    assert_eq!(told.bound(), None, "{}", what());
                }
                None => {
                    let bound = told.bound().with_context(what)?;
                    let named = bound.split('.').nth(1);
                    assert_eq!(named, Some(told.backend()), "{}", what());
                }
            }
        }
    }
    Ok(())
}

#[tokio::test]
async fn nobody_chooses_a_backend_without_the_key() -> Result<()> {
    let backends = Backends::start(&["a", "b"]).await?;
    let addresses = backends.addresses();
    let scene = Scene::before(&addresses, json!({ "keys": [NEW_KEY] })).await?;
    let other = Scene::before(&addresses, json!({ "keys": [OLD_KEY] })).await?;
    let none = Scene::before(&addresses, json!({})).await?;
    let first = scene.ask_with(Way::Plain, "").await?;
    let good = first.bound().context("a newcomer is bound")?;
    let (from, to) = match first.backend() {
        "a" => (".a.", ".b."),
        _ => (".b.", ".a."),
    };
    let by_another_key = other.ask_with(Way::Plain, "").await?.bound();
    let unsigned = none.ask_with(Way::Plain, "").await?.bound();
    let (head, mac) = good.rsplit_once('.').context("it is signed")?;
    let forgeries = [
        good.replace(from, to),
        good.replace("s1.", "u1."),
        good[..good.len() - 1].to_owned(),
        format!("{good}A"),
        format!("{good}="),
        format!("{head}."),
        format!("{head}.{}", "A".repeat(mac.len())),
        format!("{head}.{}", mac.repeat(64)),
        by_another_key.context("a newcomer is bound")?,
        unsigned.context("a newcomer is bound")?,
    ];
    for way in WAYS {
        let told = scene.ask_with(way, &good).await?;
        assert_eq!((told.backend(), told.bound()), (first.backend(), None));
        for forged in &forgeries {
            let told = scene.ask_with(way, forged).await?;
            let bound = told.bound();
            assert!(bound.is_some(), "{way:?} {forged} counts as none");
            assert!(told.cookies().is_empty(), "{way:?} {forged}");
        }
    }
    let metrics = http::get(scene.edge.admin, "/metrics").await?.text();
    let forged = metrics
        .lines()
        .find_map(|line| line.strip_prefix("causeway_proxy_affinity_forged_total "))
        .context("forgeries are counted")?;
    // The first cookie of all, an empty one, counts too.
    assert_eq!(forged, (1 + WAYS.len() * forgeries.len()).to_string());
    Ok(())
}

#[tokio::test]
async fn keys_are_turned_on_over_two_edges_without_moving_anybody() -> Result<()> {
    let backends = Backends::start(&["a", "b", "c"]).await?;
    let addresses = backends.addresses();
    let edge = async |affinity| Scene::before(&addresses, affinity).await;
    // One edge after the other is turned: half of the requests of a client go to either.
    let before = edge(json!({})).await?;
    let unix = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH)?;
    let later = rcgen::date_time_ymd(1970, 1, 1) + unix + Duration::from_secs(48 * 3600);
    let month = u8::from(later.month());
    let day = format!("{}-{month:02}-{:02}", later.year(), later.day());
    let affinity = json!({ "keys": [NEW_KEY], "accept_unsigned_until": day });
    let turned = edge(affinity).await?;
    let after = edge(json!({ "keys": [NEW_KEY] })).await?;
    for way in WAYS {
        for _ in 0..3 {
            let first = before.ask_as(way, &[]).await?;
            let unsigned = first.bound().context("a newcomer is bound")?;
            assert!(unsigned.starts_with("u1."), "{unsigned}");
            let stays = |told: &Told| assert_eq!(told.backend(), first.backend(), "{told:?}");

            let told = turned.ask_with(way, &unsigned).await?;
            stays(&told);
            let signed = told.bound().context("it is signed from now on")?;
            assert!(signed.starts_with("s1."), "{signed}");

            for edge in [&before, &turned, &after] {
                let told = edge.ask_with(way, &signed).await?;
                stays(&told);
                assert_eq!(told.bound(), None);
            }
            let told = after.ask_with(way, &unsigned).await?;
            assert!(told.bound().is_some(), "no longer");
        }
    }
    let metrics = http::get(turned.edge.admin, "/metrics").await?.text();
    assert!(metrics.contains("causeway_proxy_affinity_forged_total 0"));
    Ok(())
}

#[tokio::test]
async fn keys_rotate_over_two_edges_without_moving_anybody() -> Result<()> {
    let backends = Backends::start(&["a", "b", "c"]).await?;
    let addresses = backends.addresses();
    let edge = async |keys: &[&str]| Scene::before(&addresses, json!({ "keys": keys })).await;
    // The two edges are never more than one step apart.
    let before = edge(&[OLD_KEY]).await?;
    let added = edge(&[OLD_KEY, NEW_KEY]).await?;
    let turned = edge(&[NEW_KEY, OLD_KEY]).await?;
    let after = edge(&[NEW_KEY]).await?;
    for way in WAYS {
        for _ in 0..3 {
            let first = before.ask_as(way, &[]).await?;
            let old = first.bound().context("a newcomer is bound")?;
            let stays = |told: &Told| assert_eq!(told.backend(), first.backend(), "{told:?}");

            let told = added.ask_with(way, &old).await?;
            stays(&told);
            assert_eq!(told.bound(), None, "the first key signs still");

            let told = turned.ask_with(way, &old).await?;
            stays(&told);
            let new = told.bound().context("the new key signs now")?;

            // The other edge is a step behind: it sets its own, and moves nobody.
            let told = added.ask_with(way, &new).await?;
            stays(&told);
            let back = told.bound().context("the old key signs there")?;
            stays(&turned.ask_with(way, &back).await?);

            let told = after.ask_with(way, &new).await?;
            stays(&told);
            assert_eq!(told.bound(), None);
            let told = after.ask_with(way, &old).await?;
            assert!(told.bound().is_some(), "a dropped key verifies nothing");
        }
    }
    Ok(())
}

#[tokio::test]
async fn a_cookie_of_a_backend_that_was_removed_leads_elsewhere_once() -> Result<()> {
    let backends = Backends::start(&["a", "b", "c"]).await?;
    let affinity = || json!({ "keys": [NEW_KEY] });
    let addresses = backends.addresses();
    let before = Scene::before(&addresses, affinity()).await?;
    let after = Scene::before(&addresses[..2], affinity()).await?;
    let mut moved = 0;
    for way in WAYS {
        for _ in 0..3 {
            let first = before.ask_as(way, &[]).await?;
            let cookie = first.bound().context("a newcomer is bound")?;
            let second = after.ask_with(way, &cookie).await?;
            if first.backend() != "c" {
                assert_eq!(second.backend(), first.backend());
                assert_eq!(second.bound(), None);
                continue;
            }
            moved += 1;
            let anew = second.bound().context("it is bound anew")?;
            let third = after.ask_with(way, &anew).await?;
            assert_eq!((third.backend(), third.bound()), (second.backend(), None));
        }
    }
    assert!(0 < moved, "newcomers are spread over all three");
    Ok(())
}

#[tokio::test]
async fn a_cookie_from_before_a_drain_does_not_hold_after_it() -> Result<()> {
    let backends = Backends::start(&["a", "b"]).await?;
    let scene = Scene::before(&backends.addresses(), json!({})).await?;
    let stale = format!("u1.a.{LONG_AGO}");
    for way in WAYS {
        let told = scene.ask_with(way, &stale).await?;
        assert_eq!((told.backend(), told.bound()), ("a", None));
    }

    backends.draining.store(true, Ordering::SeqCst);
    scene.edge.backend_in_state("a", "draining").await?;
    for way in WAYS {
        let told = scene.ask_with(way, &stale).await?;
        assert_eq!(told.backend(), "b", "{way:?}");
        assert!(told.bound().is_some_and(|bound| bound.starts_with("u1.b.")));
    }

    backends.draining.store(false, Ordering::SeqCst);
    scene.edge.backend_in_state("a", "up").await?;
    for way in WAYS {
        let told = scene.ask_with(way, &stale).await?;
        assert!(told.bound().is_some(), "{way:?}: it is bound anew");
    }
    Ok(())
}

#[tokio::test]
async fn a_client_of_another_site_gets_a_cookie_that_browsers_send_from_there() -> Result<()> {
    let backends = Backends::start(&["a"]).await?;
    let settings = edge::settings(&backends.addresses())
        .with("affinity", json!({ "same_site": "none" }))
        .with("trusted_proxies", json!(["127.0.0.1"]));
    let scene = Scene::start("cross-site", settings).await?;
    scene.edge.backend_in_state("a", "up").await?;
    for way in WAYS {
        // TLS ends at a proxy in front.
        let over_tls = [("X-Forwarded-Proto", "https")];
        let told = scene.ask(way, "/", &over_tls).await?;
        let set = told.all("set-cookie");
        assert_eq!(set.len(), 1, "{way:?}");
        let attributes: Vec<&str> = set[0].split("; ").skip(1).collect();
        let expected = ["Path=/", "Secure", "HttpOnly", "SameSite=None"];
        assert_eq!(attributes, expected, "{way:?}");
    }
    Ok(())
}

#[tokio::test]
async fn a_response_that_binds_its_client_is_kept_out_of_shared_caches() -> Result<()> {
    let backends = Backends::start(&["a"]).await?;
    let scene = Scene::before(&backends.addresses(), json!({})).await?;
    for (own, for_newcomers) in [
        ("", vec!["private"]),
        ("public,max-age=60", vec!["public,max-age=60", "private"]),
        ("max-age=60", vec!["max-age=60", "private"]),
        ("private", vec!["private"]),
        ("Private,max-age=60", vec!["Private,max-age=60"]),
        ("no-store", vec!["no-store"]),
        ("max-age=0,%20no-store", vec!["max-age=0, no-store"]),
        // Only the header named there, for all that this says.
        ("private=%22x%22", vec!["private=\"x\"", "private"]),
    ] {
        let path = format!("/?cache={own}");
        let path = if own.is_empty() { "/" } else { &path };
        let newcomer = scene.ask(Way::Plain, path, &[]).await?;
        assert!(newcomer.bound().is_some());
        assert_eq!(newcomer.all("cache-control"), for_newcomers, "{own:?}");

        let cookie = [("Cookie", "causeway=u1.a.1")];
        let known = scene.ask(Way::Plain, path, &cookie).await?;
        let expected: Vec<&str> = for_newcomers
            .iter()
            .copied()
            .filter(|value| *value != "private" || own == "private")
            .collect();
        assert_eq!(known.all("cache-control"), expected, "{own:?}");
    }
    Ok(())
}
