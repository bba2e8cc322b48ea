//! npm centrifuge, unmodified, told what to do: `tests/clients/channels.mjs`.

use std::{collections::HashMap, net::SocketAddr, path::Path, process::Stdio};

use anyhow::{Context as _, Result, anyhow, bail};
use serde_json::{Value, json};
use tokio::io::AsyncWriteExt as _;

use crate::harness::{clients, process::Process, wait};

/// What a client writes its commands in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Codec {
    /// The build of the package that most pages use.
    Json,
    /// `centrifuge/build/protobuf`.
    Protobuf,
}

impl Codec {
    /// Both.
    pub const ALL: [Self; 2] = [Self::Json, Self::Protobuf];

    fn name(self) -> &'static str {
        match self {
            Self::Json => "json",
            Self::Protobuf => "protobuf",
        }
    }
}

/// How a client is connected, as the package calls it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transport {
    /// `websocket`.
    WebSocket,
    /// `http_stream`.
    HttpStream,
    /// `sse`.
    Sse,
}

impl Transport {
    /// Each, in the codec that all of them have.
    pub const ALL: [Self; 3] = [Self::WebSocket, Self::HttpStream, Self::Sse];

    fn endpoint(self, node: SocketAddr) -> Value {
        let (scheme, transport) = match self {
            Self::WebSocket => ("ws", "websocket"),
            Self::HttpStream => ("http", "http_stream"),
            Self::Sse => ("http", "sse"),
        };
        let endpoint = format!("{scheme}://{node}/connection/{transport}");
        json!([{ "transport": transport, "endpoint": endpoint }])
    }
}

/// Why a client's request was not granted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refused {
    /// An error code, or the code of a disconnect or of an unsubscribe.
    pub code: u64,
    /// What goes with it.
    pub message: String,
}

/// Something that a client has begun.
#[derive(Debug)]
pub struct Begun {
    id: u64,
    what: String,
}

/// A process with clients in it.
#[derive(Debug)]
pub struct Channels {
    process: Process,
    orders: u64,
    /// By client and name of an event, where to look for the next one.
    seen: HashMap<(String, String), usize>,
}

impl Channels {
    /// Starts it without a client.
    ///
    /// # Errors
    ///
    /// Node or the npm packages are not there.
    pub fn start(directory: &Path) -> Result<Self> {
        let mut command = clients::command("channels.mjs", &json!({}))?;
        command.stdin(Stdio::piped());
        let process = Process::spawn("channels", command, directory)?;
        Ok(Self {
            process,
            orders: 0,
            seen: HashMap::new(),
        })
    }

    /// Connects a client.
    ///
    /// # Errors
    ///
    /// It has not been connected soon.
    pub async fn open(
        &mut self,
        client: &str,
        url: &str,
        codec: Codec,
        options: Value,
    ) -> Result<Value> {
        self.granted(
            client,
            "open",
            json!({ "url": url, "codec": codec.name(), "options": options }),
        )
        .await
    }

    /// Connects a client to the endpoint `/connection` of `node` by this transport and no other, in JSON. What it says beside a
    /// stream goes there too, unless the options have an `emulationEndpoint`.
    ///
    /// # Errors
    ///
    /// It has not been connected soon.
    pub async fn open_over(
        &mut self,
        client: &str,
        transport: Transport,
        node: SocketAddr,
        mut options: Value,
    ) -> Result<Value> {
        if options["emulationEndpoint"].is_null() {
            options["emulationEndpoint"] = json!(format!("http://{node}/connection/emulation"));
        }
        let url = transport.endpoint(node);
        let order = json!({ "url": url, "codec": "json", "options": options });
        self.granted(client, "open", order).await
    }

    /// Lets `client` do something, and returns what came of it.
    ///
    /// # Errors
    ///
    /// It was refused, or there was no response soon.
    pub async fn granted(&mut self, client: &str, what: &str, order: Value) -> Result<Value> {
        let outcome = self.ask(client, what, order).await?;
        outcome.map_err(|refused| anyhow!("{client}: {what}: {} {}", refused.code, refused.message))
    }

    /// Lets `client` do something that must not be granted, and returns why it was not.
    ///
    /// # Errors
    ///
    /// It was granted, or there was no response soon.
    pub async fn refused(&mut self, client: &str, what: &str, order: Value) -> Result<Refused> {
        match self.ask(client, what, order).await? {
            Err(refused) => Ok(refused),
            Ok(granted) => bail!("{client}: {what}: a refusal was expected, not {granted}"),
        }
    }

    /// Lets `client` do something.
    ///
    /// # Errors
    ///
    /// There was no response soon.
    pub async fn ask(
        &mut self,
        client: &str,
        what: &str,
        order: Value,
    ) -> Result<Result<Value, Refused>> {
        let begun = self.begin(client, what, order).await?;
        self.outcome(begun).await
    }

    /// Lets `client` begin something; what comes of it is for [`outcome`](Self::outcome).
    ///
    /// # Errors
    ///
    /// The clients have ended.
    pub async fn begin(&mut self, client: &str, what: &str, mut order: Value) -> Result<Begun> {
        self.orders += 1;
        let id = self.orders;
        order["id"] = json!(id);
        order["client"] = json!(client);
        order["do"] = json!(what);
        let stdin = self.process.stdin().context("its input is piped")?;
        stdin
            .write_all(format!("{order}\n").as_bytes())
            .await
            .context("the clients have ended")?;
        Ok(Begun {
            id,
            what: format!("{client} to {what}"),
        })
    }

    /// What came of something that was begun.
    ///
    /// # Errors
    ///
    /// There was no response soon.
    pub async fn outcome(&mut self, begun: Begun) -> Result<Result<Value, Refused>> {
        let Begun { id, what } = begun;
        let (_, response) = self.line(&what, 0, |line| line["id"] == id).await?;
        let error = &response["error"];
        if error.is_null() {
            return Ok(Ok(response["result"].clone()));
        }
        Ok(Err(Refused {
            code: error["code"].as_u64().unwrap_or_default(),
            message: error["message"].as_str().unwrap_or_default().to_owned(),
        }))
    }

    /// Waits for the next event of `client` with this name.
    ///
    /// # Errors
    ///
    /// It did not come soon.
    pub async fn event(&mut self, client: &str, name: &str) -> Result<Value> {
        let wanted = |line: &Value| line["client"] == client && line["event"] == name;
        let key = (client.to_owned(), name.to_owned());
        let from = self.seen.get(&key).copied().unwrap_or_default();
        let (at, event) = self
            .line(&format!("`{name}` of {client}"), from, wanted)
            .await?;
        self.seen.insert(key, at + 1);
        Ok(event)
    }

    /// All events of `client` with this name so far, in order.
    pub fn events(&mut self, client: &str, name: &str) -> Vec<Value> {
        let lines = self.process.output_lines();
        lines
            .into_iter()
            .filter(|line| line["client"] == client && line["event"] == name)
            .collect()
    }

    async fn line(
        &mut self,
        what: &str,
        from: usize,
        wanted: impl Fn(&Value) -> bool,
    ) -> Result<(usize, Value)> {
        let found = wait::until(what, wait::SOON, async || {
            let lines = self.process.output_lines();
            let found = lines
                .into_iter()
                .enumerate()
                .skip(from)
                .find(|(_, line)| wanted(line));
            match found {
                Some(found) => Some(Ok(found)),
                None if self.process.is_running() => None,
                None => Some(Err(anyhow!("the clients have ended"))),
            }
        });
        found
            .await
            .and_then(|found| found)
            .with_context(|| self.process.tail())
    }
}
