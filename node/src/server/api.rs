//! The server API for an application's backend: Centrifugo's HTTP API, so that its SDKs work unchanged, and
//! session values.
//!
//! Knows no sockets: a request is the name of a method and a body, a response is a status and JSON. A
//! malformed request gets an HTTP error status; a request that cannot be fulfilled gets an error in a 200, as
//! SDKs expect it. [`request`] and [`reply`] are the wire format.
//!
//! Invariant: no request is parsed without one of the keys.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use causeway_conf::Secret;
use futures_util::StreamExt as _;
use futures_util::stream;
use http::HeaderMap;
use http::StatusCode;
use serde::Serialize;
use serde_json::value::RawValue;

use crate::broker::history;
use crate::broker::history::Retention;
use crate::cluster::control::Control;
use crate::cluster::directory::ControlCommand;
use crate::cluster::directory::Lifetime;
use crate::cluster::directory::Since;
use crate::cluster::directory::SubscribeCommand;
use crate::cluster::directory::Target;
use crate::cluster::presence::Presence;
use crate::cluster::values::Put;
use crate::cluster::values::Values;
use crate::config;
use crate::config::ChannelOptions;
use crate::config::Live;
use crate::config::Namespaces;
use crate::protocol::ErrorCode;
use crate::protocol::Position;
use crate::protocol::UnsubscribeCode;
use crate::protocol::channel::ChannelName;
use crate::stream::ChannelStreams;

mod key;
mod publish;
mod reply;
mod request;

pub(crate) use reply::ApiError;

use key::Keys;
use reply::NodeInfo;
use reply::Outcome;
use reply::Response;
use reply::Subscribers;
use request::Request;

/// Commands of a batch.
const COMMANDS_MAX: usize = 1000;

/// Requests of a batch, or channels of a broadcast, that are under way at a time.
const CONCURRENCY: usize = 64;

/// The disconnect code and reason where the request gives none.
const DISCONNECT: (u32, &str) = (3503, "force disconnect");

/// Close codes that an application may use.
const DISCONNECT_CODES: std::ops::RangeInclusive<u32> = 3000..=4999;

/// The longest reason that fits a close frame.
const REASON_BYTES_MAX: usize = 123;

/// What an [`Api`] works on.
pub(crate) struct Parts {
    pub(crate) streams: Arc<ChannelStreams>,
    pub(crate) presence: Arc<Presence>,
    pub(crate) control: Arc<Control>,
    pub(crate) values: Arc<Values>,
}

/// Responds to an application's requests.
pub(crate) struct Api {
    parts: Parts,
    namespaces: Live<Namespaces>,
    keys: Live<Keys>,
    /// For publications without an `ack` of their own.
    ack: config::Ack,
    history_page: usize,
}

/// A response: its status, and JSON.
pub(crate) type ApiResponse = (StatusCode, Bytes);

impl Api {
    pub(crate) fn new(config: &config::Api, namespaces: Namespaces, parts: Parts) -> Self {
        Self {
            parts,
            namespaces: Live::new(namespaces),
            keys: Live::new(Keys::new(&config.keys)),
            ack: config.ack,
            history_page: config.history_page,
        }
    }

    /// Whether a request with these headers carries one of the keys.
    pub(crate) fn admit(&self, headers: &HeaderMap) -> bool {
        self.keys.get().admit(headers)
    }

    /// Replaces the keys and the namespaces.
    pub(crate) fn reload(&self, keys: &[Secret], namespaces: Namespaces) {
        self.keys.set(Keys::new(keys));
        self.namespaces.set(namespaces);
    }

    /// Responds to a request that was admitted.
    ///
    /// # Cancel safety
    ///
    /// Dropping this future leaves it open whether the request was carried out.
    pub(crate) async fn respond(&self, method: &str, body: &[u8]) -> ApiResponse {
        if method == "batch" {
            return self.batch(body).await;
        }
        match Request::parse(method, body) {
            Ok(request) => {
                let outcome = self.carry_out(request).await;
                json(StatusCode::OK, &Response::from(outcome))
            }
            Err(error) => refuse(error),
        }
    }

    async fn batch(&self, body: &[u8]) -> ApiResponse {
        let batch = match serde_json::from_slice::<request::Batch>(body) {
            Ok(batch) if batch.commands.len() <= COMMANDS_MAX => batch,
            Ok(batch) => {
                let found = batch.commands.len();
                let error = format!("expected at most {COMMANDS_MAX} commands, found {found}");
                return refuse(ApiError::bad_request(error));
            }
            Err(error) => return refuse(ApiError::malformed(error)),
        };
        let at_a_time = if batch.parallel { CONCURRENCY } else { 1 };
        let replies = batch.commands.iter().map(|command| self.command(command));
        let replies: Vec<_> = replies.collect();
        let replies: Vec<_> = stream::iter(replies).buffered(at_a_time).collect().await;
        #[derive(Serialize)]
        struct Replies {
            replies: Vec<Box<RawValue>>,
        }
        json(StatusCode::OK, &Replies { replies })
    }

    /// Carries out one command of a batch; its reply is an object with its method, or with its error.
    async fn command(&self, command: &RawValue) -> Box<RawValue> {
        let (key, reply) = match serde_json::from_str::<Request>(command.get()) {
            Err(error) => ("error", to_raw(&ApiError::malformed(error))),
            Ok(request) => {
                let method = request.method();
                match Box::pin(self.carry_out(request)).await {
                    Ok(outcome) => (method, to_raw(&outcome)),
                    Err(error) => ("error", to_raw(&error)),
                }
            }
        };
        to_raw(&std::collections::BTreeMap::from([(key, reply)]))
    }

    async fn carry_out(&self, request: Request) -> Result<Outcome, ApiError> {
        match request {
            Request::Publish(publish) => self.publish(publish).await.map(Outcome::Published),
            Request::Broadcast(publish) => self.broadcast(publish).await,
            Request::Subscribe(subscribe) => self.subscribe(subscribe).await,
            Request::Unsubscribe(unsubscribe) => self.unsubscribe(unsubscribe).await,
            Request::Disconnect(disconnect) => self.disconnect(disconnect).await,
            Request::Refresh(refresh) => self.refresh(refresh).await,
            Request::Presence(of) => self.presence(&of.channel).await,
            Request::PresenceStats(of) => self.presence_stats(&of.channel).await,
            Request::History(history) => self.history(history).await,
            Request::HistoryRemove(of) => self.history_remove(&of.channel).await,
            Request::Channels(channels) => self.channels(&channels.pattern).await,
            Request::Info(_) => self.info().await,
            Request::ValuePut(put) => self.value_put(put).await,
            Request::ValueGet(named) => self.value_get(named).await,
            Request::ValueDelete(named) => self.value_delete(named).await,
            Request::ValueList(owner) => self.value_list(owner).await,
        }
    }

    async fn subscribe(&self, subscribe: request::Subscribe) -> Result<Outcome, ApiError> {
        let (channel, _) = self.channel(&subscribe.channel)?;
        let info =
            request::json_or_base64("b64info", subscribe.info.as_deref(), &subscribe.b64info);
        let data =
            request::json_or_base64("b64data", subscribe.data.as_deref(), &subscribe.b64data);
        let command = SubscribeCommand {
            channel,
            info: info?,
            data: data?,
            recover_since: subscribe.recover_since.map(|since| Since {
                offset: since.offset,
                epoch: since.epoch,
            }),
            overrides: subscribe.overrides.unwrap_or_default().into(),
        };
        let target = request::ClientTarget {
            user: subscribe.user,
            client: subscribe.client,
            session: subscribe.session,
        };
        self.send_command(
            target.target(Vec::new())?,
            ControlCommand::Subscribe(Box::new(command)),
        )
        .await
    }

    async fn unsubscribe(&self, unsubscribe: request::Unsubscribe) -> Result<Outcome, ApiError> {
        let (channel, _) = self.channel(&unsubscribe.channel)?;
        let code = UnsubscribeCode::Server;
        let command = ControlCommand::Unsubscribe {
            channel,
            code: code as u32,
            reason: code.reason().to_owned(),
        };
        self.send_command(unsubscribe.target.target(Vec::new())?, command)
            .await
    }

    async fn disconnect(&self, disconnect: request::Disconnect) -> Result<Outcome, ApiError> {
        let except = disconnect.whitelist.iter();
        let except: Result<Vec<_>, _> = except.map(|client| request::client_id(client)).collect();
        let (code, reason) = match disconnect.disconnect {
            None => (DISCONNECT.0, DISCONNECT.1.to_owned()),
            Some(ending) => (ending.code, ending.reason),
        };
        if !DISCONNECT_CODES.contains(&code) || REASON_BYTES_MAX < reason.len() {
            let (first, last) = (DISCONNECT_CODES.start(), DISCONNECT_CODES.end());
            return Err(ApiError::bad_request(format!(
                "expected a disconnect code of {first} to {last} and a reason of at most \
                 {REASON_BYTES_MAX} bytes, found {code} and {} bytes",
                reason.len()
            )));
        }
        let target = disconnect.target.target(except?)?;
        self.send_command(target, ControlCommand::Disconnect { code, reason })
            .await
    }

    async fn refresh(&self, refresh: request::Refresh) -> Result<Outcome, ApiError> {
        let lifetime = match refresh.expire_at {
            _ if refresh.expired => Lifetime::Expired,
            0 => Lifetime::Endless,
            until => Lifetime::Until(until),
        };
        self.send_command(
            refresh.target.target(Vec::new())?,
            ControlCommand::Refresh(lifetime),
        )
        .await
    }

    async fn send_command(
        &self,
        target: Target,
        command: ControlCommand,
    ) -> Result<Outcome, ApiError> {
        let given = self.parts.control.command(target, command).await?;
        if 0 < given.busy {
            let message = format!("internal server error: {} clients are too busy", given.busy);
            return Err(ApiError::new(ErrorCode::Internal, message));
        }
        Ok(Outcome::Done {})
    }

    async fn presence(&self, channel: &str) -> Result<Outcome, ApiError> {
        let channel = self.channel_with_presence(channel)?;
        let presence = self.parts.presence.list(&channel).await?;
        Ok(Outcome::Presence { presence })
    }

    async fn presence_stats(&self, channel: &str) -> Result<Outcome, ApiError> {
        let channel = self.channel_with_presence(channel)?;
        let stats = self.parts.presence.stats(&channel).await?;
        Ok(Outcome::PresenceStats {
            num_clients: stats.clients,
            num_users: stats.users,
        })
    }

    async fn history(&self, history: request::History) -> Result<Outcome, ApiError> {
        let (channel, retention) = self.channel_with_history(&history.channel)?;
        let limit = history.page(self.history_page);
        let since = history.since.map(|since| Position {
            epoch: since.epoch.as_str().into(),
            offset: since.offset,
        });
        let query = history::Query {
            since: since.clone(),
            limit,
            bytes_max: self.parts.streams.reply_bytes_max(),
            order: match history.reverse {
                true => history::Order::NewestFirst,
                false => history::Order::OldestFirst,
            },
        };
        let read = self.parts.streams.history(&channel, retention, query).await;
        let page = read.map_err(|error| ApiError::internal(&error))?;
        if since.is_some_and(|since| !page.continues(&since)) {
            let code = ErrorCode::UnrecoverablePosition;
            return Err(ApiError::new(code, code.message()));
        }
        Ok(Outcome::History {
            publications: page.publications,
            offset: page.position.offset,
            epoch: page.position.epoch.to_string(),
        })
    }

    async fn history_remove(&self, channel: &str) -> Result<Outcome, ApiError> {
        let (channel, _) = self.channel_with_history(channel)?;
        let removed = self.parts.streams.remove_history(&channel).await;
        removed.map_err(|error| ApiError::internal(&error))?;
        Ok(Outcome::Done {})
    }

    async fn channels(&self, pattern: &str) -> Result<Outcome, ApiError> {
        let channels = self.parts.control.channels(pattern).await?;
        if channels.is_cut {
            return Err(ApiError::new(
                ErrorCode::LimitExceeded,
                "limit exceeded: too many channels for one response, expected a narrower `pattern`",
            ));
        }
        let channels = channels.subscribers.into_iter();
        let channels =
            channels.map(|(channel, num_clients)| (channel, Subscribers { num_clients }));
        Ok(Outcome::Channels {
            channels: channels.collect(),
        })
    }

    async fn info(&self) -> Result<Outcome, ApiError> {
        let counts = self.parts.control.counts().await?;
        let nodes = counts.into_iter().map(|(node, counts)| NodeInfo {
            uid: node.instance.to_string(),
            name: node.id,
            version: counts.version,
            num_clients: counts.clients,
            num_users: counts.users,
            num_subs: counts.subscriptions,
            num_channels: counts.channels,
            uptime: counts.uptime,
        });
        Ok(Outcome::Info {
            nodes: nodes.collect(),
        })
    }

    async fn value_put(&self, put: request::ValuePut) -> Result<Outcome, ApiError> {
        let request::ValuePut { user, client, .. } = put;
        let owner = request::ValueOwner { user, client }.owner()?;
        let value = put
            .value
            .ok_or_else(|| ApiError::bad_request("expected a `value`"))?;
        let put = Put {
            name: put.name,
            value: request::json_or_base64("value", Some(&value), "")?,
            ttl: Duration::from_secs(put.ttl),
        };
        self.parts.values.put(&owner, put).await?;
        Ok(Outcome::Done {})
    }

    async fn value_get(&self, named: request::ValueNamed) -> Result<Outcome, ApiError> {
        let owner = named.owner.owner()?;
        let value = self.parts.values.get(&owner, &named.name).await?;
        Ok(Outcome::Value {
            value: value.as_ref().and_then(reply::raw),
        })
    }

    async fn value_delete(&self, named: request::ValueNamed) -> Result<Outcome, ApiError> {
        let owner = named.owner.owner()?;
        let deleted = self.parts.values.delete(&owner, &named.name).await?;
        Ok(Outcome::Deleted { deleted })
    }

    async fn value_list(&self, owner: request::ValueOwner) -> Result<Outcome, ApiError> {
        let values = self.parts.values.all(&owner.owner()?).await?;
        let values = values.into_iter();
        let values = values.filter_map(|(name, value)| Some((name, reply::raw(&value)?)));
        Ok(Outcome::Values {
            values: values.collect(),
        })
    }

    /// The channel and what its namespace says.
    fn channel(&self, name: &str) -> Result<(ChannelName, Arc<ChannelOptions>), ApiError> {
        let channel = request::channel(name)?;
        let namespaces = self.namespaces.get();
        let options = namespaces.options(name);
        let options = options.ok_or_else(ApiError::unknown_channel)?;
        Ok((channel, Arc::clone(options)))
    }

    fn channel_with_presence(&self, name: &str) -> Result<ChannelName, ApiError> {
        let (channel, options) = self.channel(name)?;
        match options.presence {
            true => Ok(channel),
            false => Err(ApiError::not_available("this namespace has no presence")),
        }
    }

    fn channel_with_history(&self, name: &str) -> Result<(ChannelName, Retention), ApiError> {
        let (channel, options) = self.channel(name)?;
        let none = || ApiError::not_available("this namespace has no history");
        Ok((channel, Retention::of(&options).ok_or_else(none)?))
    }
}

/// The response to a request that cannot be understood.
fn refuse(error: ApiError) -> ApiResponse {
    let status = if error.is_no_method() {
        StatusCode::NOT_FOUND
    } else {
        StatusCode::BAD_REQUEST
    };
    json(status, &Response::<()>::Error(error))
}

fn json(status: StatusCode, response: &impl Serialize) -> ApiResponse {
    match serde_json::to_vec(response) {
        Ok(body) => (status, body.into()),
        // A publication of a binary namespace: its data cannot stand in JSON.
        Err(_) => {
            let message = "not available: what is asked for is no JSON";
            let error = ApiError::new(ErrorCode::NotAvailable, message);
            let body = serde_json::to_vec(&Response::<()>::Error(error));
            (StatusCode::OK, body.unwrap_or_default().into())
        }
    }
}

fn to_raw(reply: &impl Serialize) -> Box<RawValue> {
    serde_json::value::to_raw_value(reply).unwrap_or_else(|_| {
        let text = r#"{"code":108,"message":"not available: what is asked for is no JSON"}"#;
        RawValue::from_string(text.to_owned()).expect("it is JSON")
    })
}

#[cfg(test)]
mod tests;
