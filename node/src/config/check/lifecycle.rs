//! Lifecycle events.

use super::Checker;
use crate::config::Broker;
use crate::config::Channels;
use crate::config::Config;
use crate::config::Lifecycle;
use crate::config::raw;
use crate::config::settings;

impl Checker<'_> {
    pub(super) fn lifecycle(&mut self, raw: raw::Lifecycle, channels: &Channels) -> Lifecycle {
        Lifecycle {
            connections: raw.connections.unwrap_or(settings::LIFECYCLE_CONNECTIONS),
            channels: channels.namespaces.any(|options| options.lifecycle),
            coalesce: self.span(
                "lifecycle.coalesce",
                raw.coalesce,
                &settings::LIFECYCLE_COALESCE,
            ),
            keep: self.count("lifecycle.keep", raw.keep, &settings::LIFECYCLE_KEEP),
        }
    }

    /// Warns of events that nobody gets.
    pub(super) fn lifecycle_has_a_reader(&mut self, config: &Config) {
        let has_hook = config.hooks.lifecycle.is_some();
        let is_wanted = config.lifecycle.is_wanted();
        if has_hook && !is_wanted {
            self.warn(
                "hooks.lifecycle",
                "no events are sent there: this needs `lifecycle.connections: true`, or `lifecycle: true` in one of `channels.namespaces`",
            );
        }
        if is_wanted && !has_hook && config.broker == Broker::Memory {
            let key = if config.lifecycle.connections {
                "lifecycle.connections"
            } else {
                "channels.namespaces"
            };
            self.warn(
                key,
                "nobody gets lifecycle events: without Redis they need the address `hooks.lifecycle`",
            );
        }
    }
}
