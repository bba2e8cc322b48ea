//! Publishing for an application: into one channel, or into many.

use std::time::Duration;

use futures_util::StreamExt as _;
use futures_util::stream;

use super::Api;
use super::ApiError;
use super::CONCURRENCY;
use super::reply::Outcome;
use super::reply::Published;
use super::reply::Response;
use super::request;
use crate::broker::Idempotency;
use crate::broker::history::Retention;
use crate::config::Ack;
use crate::config::DataKind;
use crate::protocol;
use crate::protocol::Publication;
use crate::stream::PublishOptions;

/// The longest idempotency key, in bytes.
const KEY_BYTES_MAX: usize = 255;

/// How long a repetition is detected: longer than any client retries.
const KEY_TTL: Duration = Duration::from_secs(5 * 60);

impl Api {
    pub(super) async fn publish(&self, publish: request::Publish) -> Result<Published, ApiError> {
        self.publish_to(&publish.channel, &publish).await
    }

    /// Publishes the same into each channel, independently.
    pub(super) async fn broadcast(&self, publish: request::Publish) -> Result<Outcome, ApiError> {
        if publish.channels.is_empty() {
            return Err(ApiError::bad_request("expected `channels`, at least one"));
        }
        let each = publish.channels.iter();
        let responses = each.map(|channel| self.publish_to(channel, &publish));
        let responses: Vec<_> = responses.collect();
        let responses = stream::iter(responses).buffered(CONCURRENCY);
        Ok(Outcome::Broadcast {
            responses: responses.map(Response::from).collect().await,
        })
    }

    async fn publish_to(
        &self,
        channel: &str,
        publish: &request::Publish,
    ) -> Result<Published, ApiError> {
        let (channel, options) = self.channel(channel)?;
        if publish.delta {
            return Err(ApiError::not_available("`delta`"));
        }
        let data = publish.data()?;
        if options.data == DataKind::Json {
            let checked = protocol::check_json(&data);
            checked.map_err(|error| ApiError::bad_request(error.to_string()))?;
        }
        if KEY_BYTES_MAX < publish.idempotency_key.len() {
            let why = format!("expected an `idempotency_key` of at most {KEY_BYTES_MAX} bytes");
            return Err(ApiError::bad_request(why));
        }
        let retention = Retention::of(&options).filter(|_| !publish.skip_history);
        let publish_options = PublishOptions {
            ack: ack(publish.ack, self.ack, retention.is_some()),
            retention,
            idempotency: idempotency(&publish.idempotency_key),
        };
        let publication = Publication {
            data,
            tags: publish.tags.clone(),
            ..Publication::default()
        };
        let stored = self
            .parts
            .streams
            .publish(&channel, publication, publish_options)
            .await?;
        let position = stored.position;
        Ok(
            position.map_or_else(Published::default, |position| Published {
                offset: position.offset,
                epoch: position.epoch.to_string(),
            }),
        )
    }
}

/// The acknowledgement that a publication waits for. The request's own `ack` is used as it is; the configured
/// default is lowered to what the channel supports.
fn ack(asked: Option<Ack>, configured: Ack, is_kept: bool) -> Ack {
    match (asked, configured) {
        (Some(Ack::Fast), _) => Ack::Fast,
        (Some(Ack::Stored), _) => Ack::Stored,
        (Some(Ack::Replicated), _) => Ack::Replicated,
        (None, Ack::Fast) if !is_kept => Ack::Fast,
        (None, Ack::Replicated) if is_kept => Ack::Replicated,
        (None, _) => Ack::Stored,
    }
}

fn idempotency(key: &str) -> Option<Idempotency> {
    (!key.is_empty()).then(|| Idempotency {
        key: key.into(),
        ttl: KEY_TTL,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_is_used_as_it_is_and_the_setting_is_adapted() {
        for (asked, configured, is_kept, expected) in [
            (Some(Ack::Fast), Ack::Stored, true, Ack::Fast),
            (Some(Ack::Replicated), Ack::Fast, false, Ack::Replicated),
            (Some(Ack::Stored), Ack::Fast, false, Ack::Stored),
            (None, Ack::Fast, false, Ack::Fast),
            (None, Ack::Fast, true, Ack::Stored),
            (None, Ack::Stored, true, Ack::Stored),
            (None, Ack::Replicated, true, Ack::Replicated),
            (None, Ack::Replicated, false, Ack::Stored),
        ] {
            let found = ack(asked, configured, is_kept);
            assert_eq!(found, expected, "{asked:?} {configured:?} {is_kept}");
        }
    }
}
