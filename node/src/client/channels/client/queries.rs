//! The commands `presence`, `presence_stats` and `history`.

use tracing::debug;

use crate::broker::history;
use crate::broker::history::Query;
use crate::broker::history::Retention;
use crate::client::channels::access;
use crate::client::channels::client::ChannelClient;
use crate::client::channels::failure::Failure;
use crate::cluster::registry::Unavailable;
use crate::protocol::ErrorCode;
use crate::protocol::HistoryRequest;
use crate::protocol::HistoryResult;
use crate::protocol::Outcome;
use crate::protocol::Position;
use crate::protocol::PresenceRequest;
use crate::protocol::PresenceResult;
use crate::protocol::PresenceStatsRequest;
use crate::protocol::PresenceStatsResult;
use crate::protocol::channel::ChannelName;

impl ChannelClient {
    pub(super) async fn presence(&self, id: u32, request: &PresenceRequest) -> Result<(), Failure> {
        let channel = self.may_see_presence(&request.channel)?;
        let presence = self.clients.presence.list(&channel).await;
        let presence = presence.map_err(|error| self.away(&channel, &error))?;
        self.reply(id, Outcome::Presence(PresenceResult { presence }));
        Ok(())
    }

    pub(super) async fn presence_stats(
        &self,
        id: u32,
        request: &PresenceStatsRequest,
    ) -> Result<(), Failure> {
        let channel = self.may_see_presence(&request.channel)?;
        let stats = self.clients.presence.stats(&channel).await;
        let stats = stats.map_err(|error| self.away(&channel, &error))?;
        let count = |count: usize| u32::try_from(count).unwrap_or(u32::MAX);
        let stats = PresenceStatsResult {
            num_clients: count(stats.clients),
            num_users: count(stats.users),
        };
        self.reply(id, Outcome::PresenceStats(stats));
        Ok(())
    }

    fn may_see_presence(&self, channel: &str) -> Result<ChannelName, Failure> {
        let (channel, options) = self.options(channel)?;
        self.decide(&channel, |subject| access::presence(&options, subject))??;
        Ok(channel)
    }

    fn away(&self, channel: &ChannelName, error: &Unavailable) -> Failure {
        debug!(client = %self.id, %channel, %error, "cannot read presence");
        ErrorCode::Internal.into()
    }

    pub(super) async fn history(&self, id: u32, request: HistoryRequest) -> Result<(), Failure> {
        let (channel, options) = self.options(&request.channel)?;
        self.decide(&channel, |subject| access::history(&options, subject))??;
        access::codec(&options, self.member.codec())?;
        let retention = Retention::of(&options).ok_or(ErrorCode::NotAvailable)?;
        let page_max = self.clients.config.get().limits.history_page;
        let bytes_max = self.clients.streams.reply_bytes_max();
        let query = query(&request, page_max, bytes_max);
        let since = query.since.clone();
        let history = self.read_history(&channel, retention, query).await?;
        if since.is_some_and(|since| !history.continues(&since)) {
            return Err(ErrorCode::UnrecoverablePosition.into());
        }
        let result = HistoryResult {
            publications: history.publications,
            epoch: history.position.epoch.to_string(),
            offset: history.position.offset,
        };
        self.reply(id, Outcome::History(result));
        Ok(())
    }

    async fn read_history(
        &self,
        channel: &ChannelName,
        retention: Retention,
        query: Query,
    ) -> Result<crate::stream::History, Failure> {
        let history = self
            .clients
            .streams
            .history(channel, retention, query)
            .await;
        history.map_err(|error| {
            debug!(client = %self.id, %channel, %error, "cannot read history");
            ErrorCode::Internal.into()
        })
    }
}

/// The query for a client's request, limited to `page_max` publications and `bytes_max`.
fn query(request: &HistoryRequest, page_max: usize, bytes_max: usize) -> Query {
    let since = request.since.as_ref().map(|since| Position {
        epoch: since.epoch.as_str().into(),
        offset: since.offset,
    });
    Query {
        since,
        limit: usize::try_from(request.limit).map_or(page_max, |limit| limit.min(page_max)),
        bytes_max,
        order: if request.reverse {
            history::Order::NewestFirst
        } else {
            history::Order::OldestFirst
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::StreamPosition;

    #[test]
    fn a_page_is_never_larger_than_the_limit() {
        for (asked, limit) in [(0, 0), (1, 1), (10, 10), (11, 10), (-1, 10), (i32::MIN, 10)] {
            let request = HistoryRequest {
                limit: asked,
                ..HistoryRequest::default()
            };
            assert_eq!(query(&request, 10, 1).limit, limit, "{asked}");
        }
    }

    #[test]
    fn a_position_and_a_direction_are_passed_on() {
        let request = HistoryRequest {
            since: Some(StreamPosition {
                offset: 7,
                epoch: "e".to_owned(),
            }),
            reverse: true,
            ..HistoryRequest::default()
        };
        let query = query(&request, 10, 1);
        let since = query.since.unwrap();
        assert_eq!((since.offset, since.epoch.as_str()), (7, "e"));
        assert_eq!(query.order, history::Order::NewestFirst);
    }
}
