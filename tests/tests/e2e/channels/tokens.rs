//! Tokens as libraries make them, shown by npm centrifuge: what is harmless is taken, what is not is refused, and the log says
//! why.

use anyhow::{Context as _, Result, ensure};
use causeway_tests::harness::{
    channels::{Channels, Codec},
    node::{self, Node},
    scratch::Scratch,
    subscriber::token_with,
    wait,
};
use serde_json::{Value, json};

const SECRET: &str = "a secret of at least thirty-two bytes";

struct Scene {
    clients: Channels,
    node: Node,
    _scratch: Scratch,
}

impl Scene {
    async fn set(name: &str) -> Result<Self> {
        let scratch = Scratch::new(name)?;
        let settings = node::settings()
            .with(
                "endpoints",
                json!([{ "path": "/connection", "mode": "channels" }]),
            )
            .with(
                "auth.keys",
                json!([{ "algorithm": "HS256", "key": SECRET }]),
            )
            .with("channels.namespaces", json!([{ "name": "secret" }]));
        let node = Node::start("n1", settings, scratch.path()).await?;
        Ok(Self {
            clients: Channels::start(scratch.path())?,
            node,
            _scratch: scratch,
        })
    }

    async fn open(&mut self, client: &str, token: &str) -> Result<Result<Value>> {
        let url = format!("ws://{}/connection/websocket", self.node.address);
        let options = json!({ "token": token });
        Ok(self.clients.open(client, &url, Codec::Json, options).await)
    }

    /// The lines of the node's log about tokens that were refused.
    fn refusals(&self) -> Vec<Value> {
        let log = self.node.process.log();
        let lines = log
            .lines()
            .filter_map(|line| serde_json::from_str(line).ok());
        lines
            .filter(|line: &Value| line["fields"]["message"] == "token rejected")
            .collect()
    }
}

#[tokio::test]
async fn empty_claims_and_fractions_of_a_second_are_taken() -> Result<()> {
    let mut scene = Scene::set("tokens-taken").await?;
    for (number, claims) in [
        json!({ "info": null, "b64info": null, "meta": null, "aud": null, "iss": null, "nbf": null }),
        json!({ "channels": [], "subs": [], "override": [], "aud": [], "iss": "", "iat": 0, "nbf": 0 }),
        json!({ "channel": "", "client": "", "b64info": "", "channels": ["", null] }),
        json!({ "exp": 4_000_000_000.5_f64, "iat": 1_700_000_000.25_f64, "nbf": 1_700_000_000.75_f64 }),
        json!({ "expire_at": 4_000_000_000.5_f64 }),
        json!({ "exp": "4000000000" }),
    ]
    .into_iter()
    .enumerate()
    {
        let token = token_with(SECRET, "ann", claims.clone());
        let opened = scene.open(&number.to_string(), &token).await?;
        opened.with_context(|| format!("{claims}"))?;
    }
    ensure!(scene.refusals().is_empty());
    Ok(())
}

#[tokio::test]
async fn why_a_token_was_refused_is_a_line_for_the_operator() -> Result<()> {
    let mut scene = Scene::set("tokens-refused").await?;
    let cases = [
        (json!({ "sub": 42 }), "the claim `sub` is not a string"),
        (
            json!({ "channel": "secret:a" }),
            "expected a connection token, found a subscription token (it has `channel`)",
        ),
        (
            json!({ "exp": "soon" }),
            "the claim `exp` is not a number of seconds",
        ),
    ];
    for (number, (claims, reason)) in cases.into_iter().enumerate() {
        let (name, token) = (number.to_string(), token_with(SECRET, "ann", claims));
        // One line a second, whoever comes how often: so it comes again until it is told.
        wait::until(reason, wait::SOON, async || {
            let opened = scene.open(&name, &token).await.ok()?;
            let is_final = opened.err()?.to_string().contains("3500");
            let refusals = scene.refusals();
            let line = refusals
                .iter()
                .find(|line| line["fields"]["reason"] == reason)?;
            let is_info = line["level"] == "INFO" && line["fields"]["client"].is_string();
            (is_final && is_info).then_some(())
        })
        .await?;
    }
    let token = token_with(SECRET, "ann", json!({}));
    scene.open("ann", &token).await??;
    let other = token_with(SECRET, "bob", json!({ "channel": "secret:a" }));
    let refusal = wait::until(
        "a subscription's token to be told",
        wait::SOON,
        async || {
            let order = json!({ "channel": "secret:a", "options": { "token": other } });
            let refused = scene
                .clients
                .refused("ann", "subscribe", order)
                .await
                .ok()?;
            ensure_code(&refused.message, refused.code).ok()?;
            let refusals = scene.refusals().into_iter();
            refusals
                .into_iter()
                .find(|line| line["fields"]["channel"] == "secret:a")
        },
    )
    .await?;
    ensure!(refusal["fields"]["user"] == "ann", "{refusal}");
    let reason = "`sub` is not the user of this connection";
    ensure!(refusal["fields"]["reason"] == reason, "{refusal}");
    ensure!(
        !scene.node.process.log().contains(&other[..20]),
        "a token is in the log"
    );
    Ok(())
}

fn ensure_code(message: &str, code: u64) -> Result<()> {
    ensure!(code == 103, "{code} {message}");
    Ok(())
}
