//! Namespaces and the limits of their clients.

use std::collections::HashMap;
use std::time::Duration;

use causeway_conf::Span;

use super::Checker;
use super::NeededHook;
use super::fits_node_id;
use crate::config::Ack;
use crate::config::ChannelOptions;
use crate::config::ChannelStreams;
use crate::config::Channels;
use crate::config::ClientLimits;
use crate::config::HistoryOptions;
use crate::config::Namespaces;
use crate::config::PublishAccess;
use crate::config::SlowReader;
use crate::config::SubscribeAccess;
use crate::config::namespace;
use crate::config::namespace::RawHistory;
use crate::config::namespace::RawNamespace;
use crate::config::raw;
use crate::config::settings;

/// The longest name of a namespace, in bytes.
const NAMESPACE_BYTES_MAX: usize = 64;

impl Checker<'_> {
    pub(super) fn channels(&mut self, raw: raw::Channels) -> Channels {
        let limits = raw.limits.unwrap_or_default();
        Channels {
            namespaces: self.namespaces(raw.namespaces.unwrap_or_default()),
            streams: ChannelStreams {
                linger: self.span("channels.linger", raw.linger, &settings::LINGER),
                join_timeout: settings::STREAM_JOIN_TIMEOUT,
                gap_timeout: settings::STREAM_GAP_TIMEOUT,
                ring_bytes_max: settings::STREAM_RING_BYTES_MAX,
                recovery_max: self.count(
                    "channels.limits.recovery",
                    limits.recovery,
                    &settings::RECOVERY_PUBLICATIONS,
                ),
                reply_bytes_max: self.size(
                    "channels.limits.history_bytes",
                    limits.history_bytes,
                    &settings::HISTORY_BYTES,
                ),
            },
            limits: self.client_limits(limits),
        }
    }

    fn client_limits(&mut self, raw: raw::ChannelLimits) -> ClientLimits {
        ClientLimits {
            connect_timeout: self.span(
                "channels.limits.connect_timeout",
                raw.connect_timeout,
                &settings::CHANNELS_CONNECT_TIMEOUT,
            ),
            channels_per_client: self.count(
                "channels.limits.channels_per_client",
                raw.channels_per_client,
                &settings::CHANNELS_PER_CLIENT,
            ),
            commands_per_client: self.count(
                "channels.limits.commands_per_client",
                raw.commands_per_client,
                &settings::COMMANDS_PER_CLIENT,
            ),
            connections_per_user: self.count_or_auto(
                "channels.limits.connections_per_user",
                raw.connections_per_user,
                settings::CONNECTIONS_MAX,
            ),
            connections_per_user_policy: raw
                .connections_per_user_policy
                .unwrap_or(settings::CONNECTIONS_PER_USER_POLICY),
            history_page: self.count(
                "channels.limits.history_page",
                raw.history_page,
                &settings::HISTORY_PAGE,
            ),
        }
    }

    fn namespaces(&mut self, raw: Vec<RawNamespace>) -> Namespaces {
        let mut seen = HashMap::new();
        let mut namespaces = Vec::new();
        for (index, raw) in raw.into_iter().enumerate() {
            let at = format!("channels.namespaces[{index}]");
            let options = self.namespace(&at, raw);
            if let Some(first) = seen.insert(options.namespace.clone(), index) {
                let name = &options.namespace;
                self.error(
                    &format!("{at}.name"),
                    format!(
                        "duplicate name \"{name}\", channels.namespaces[{first}] has it already"
                    ),
                );
            }
            namespaces.push(options);
        }
        Namespaces::new(namespaces)
    }

    fn namespace(&mut self, at: &str, raw: RawNamespace) -> ChannelOptions {
        let history = raw
            .history
            .map(|history| self.history(&format!("{at}.history"), &history));
        let ack = raw.ack.unwrap_or(match history {
            Some(_) => namespace::ACK_WITH_HISTORY,
            None => namespace::ACK_WITHOUT_HISTORY,
        });
        let options = ChannelOptions {
            namespace: self.namespace_name(&format!("{at}.name"), raw.name),
            subscribe: raw.subscribe.unwrap_or(namespace::SUBSCRIBE),
            user_limited: raw.user_limited.unwrap_or(namespace::USER_LIMITED),
            publish: raw.publish.unwrap_or(namespace::PUBLISH),
            read_presence: raw.read_presence.unwrap_or(namespace::READ_PRESENCE),
            read_history: raw.read_history.unwrap_or(namespace::READ_HISTORY),
            history,
            recovery: raw.recovery.unwrap_or(namespace::RECOVERY),
            presence: raw.presence.unwrap_or(namespace::PRESENCE),
            join_leave: raw.join_leave.unwrap_or(namespace::JOIN_LEAVE),
            force_push_join_leave: raw
                .force_push_join_leave
                .unwrap_or(namespace::FORCE_PUSH_JOIN_LEAVE),
            lifecycle: raw.lifecycle.unwrap_or(namespace::LIFECYCLE),
            data: raw.data.unwrap_or(namespace::DATA),
            slow: raw.slow.unwrap_or(namespace::SLOW),
            ack,
        };
        if options.subscribe == SubscribeAccess::Hook {
            let needed = (format!("{at}.subscribe"), NeededHook::Subscribe);
            self.hooks_needed.push(needed);
        }
        if options.publish == PublishAccess::Hook {
            let needed = (format!("{at}.publish"), NeededHook::Publish);
            self.hooks_needed.push(needed);
        }
        let contradictions = [
            (
                "recovery",
                options.recovery && history.is_none(),
                "clients can only recover what is kept: this needs `history`",
            ),
            (
                "join_leave",
                options.join_leave && !options.presence,
                "the members of a node that failed are known from presence: this needs `presence: true`",
            ),
            (
                "force_push_join_leave",
                options.force_push_join_leave && !options.join_leave,
                "without join and leave events there is nothing to push: this needs `join_leave: true`",
            ),
            (
                "slow",
                options.slow == SlowReader::Latest && options.recovery,
                "with `recovery: true` a client gets every publication: expected `disconnect`",
            ),
            (
                "ack",
                options.ack == Ack::Fast && history.is_some(),
                "with `history` a publication is acknowledged once it is kept: expected `stored` or `replicated`",
            ),
        ];
        for (key, _, message) in contradictions.into_iter().filter(|(_, is_so, _)| *is_so) {
            self.error(&format!("{at}.{key}"), message);
        }
        options
    }

    fn namespace_name(&mut self, key: &str, name: Option<String>) -> String {
        let Some(name) = name else {
            self.error(
                key,
                "expected a name, such as `chat` for channels like `chat:room1`; \"\" is for those without a namespace",
            );
            return String::new();
        };
        if NAMESPACE_BYTES_MAX < name.len() || !name.chars().all(fits_node_id) {
            self.error(
                key,
                format!("expected up to {NAMESPACE_BYTES_MAX} of letters, digits, `-`, `_` and `.`, found {name:?}"),
            );
        }
        name
    }

    fn history(&mut self, key: &str, raw: &RawHistory) -> HistoryOptions {
        let lifetime = self.span(
            &format!("{key}.lifetime"),
            Some(raw.lifetime),
            &settings::HISTORY_LIFETIME,
        );
        let meta_lifetime = self.span(
            &format!("{key}.meta_lifetime"),
            raw.meta_lifetime,
            &settings::HISTORY_META_LIFETIME,
        );
        self.meta_outlives_history(key, raw.meta_lifetime, meta_lifetime, lifetime);
        HistoryOptions {
            size: self.count(
                &format!("{key}.size"),
                Some(raw.size),
                &settings::HISTORY_SIZE,
            ),
            lifetime,
            meta_lifetime: meta_lifetime.max(lifetime),
        }
    }

    fn meta_outlives_history(
        &mut self,
        key: &str,
        given: Option<Span>,
        meta_lifetime: Duration,
        lifetime: Duration,
    ) {
        if given.is_some() && meta_lifetime < lifetime {
            let found = Span(meta_lifetime);
            self.error(
                &format!("{key}.meta_lifetime"),
                format!(
                    "expected at least lifetime ({}), found {found}",
                    Span(lifetime)
                ),
            );
        }
    }
}
