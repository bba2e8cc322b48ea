//! What is no mistake by itself and cannot work: the node starts with it, and says so.

use super::Checker;
use crate::config::AllowedOrigins;
use crate::config::Config;
use crate::config::Mode;
use crate::config::Protocol;

/// The endpoint that the chat page connects to.
const PAGE_ENDPOINT: &str = "/ws";

/// A hook that a namespace leaves a decision to.
#[derive(Debug, Clone, Copy)]
pub(super) enum NeededHook {
    Subscribe,
    Publish,
}

/// Whether the chat page can connect.
pub(super) fn has_what_the_page_needs(config: &Config) -> bool {
    let mut endpoints = config.endpoints.iter();
    endpoints
        .any(|endpoint| endpoint.path == PAGE_ENDPOINT && endpoint.protocol == Protocol::Websocket)
}

impl Checker<'_> {
    pub(super) fn can_work(&mut self, config: &Config, is_page_given: bool) {
        self.channels_have_clients(config);
        self.hooks_are_there(config);
        self.lifecycle_has_a_reader(config);
        for (index, endpoint) in config.endpoints.iter().enumerate() {
            if let AllowedOrigins::Listed(origins) = &endpoint.allowed_origins {
                self.origins_are_whole(&format!("endpoints[{index}].allowed_origins"), origins);
            }
        }
        if is_page_given && config.page && !has_what_the_page_needs(config) {
            self.warn(
                "page",
                format!("the page is not served: it connects to an endpoint {PAGE_ENDPOINT} with `protocol: websocket`, and there is none"),
            );
        }
    }

    fn channels_have_clients(&mut self, config: &Config) {
        let is_channels = |mode: &Mode| *mode == Mode::Channels;
        let first = config
            .endpoints
            .iter()
            .position(|endpoint| is_channels(&endpoint.mode));
        let auth = &config.auth;
        let nobody_connects = auth.keys.is_empty()
            && auth.key_set.is_none()
            && !auth.anonymous
            && config.hooks.connect.is_none();
        if let Some(index) = first.filter(|_| nobody_connects) {
            self.warn(
                &format!("endpoints[{index}].mode"),
                "no client can connect: this needs `auth.keys` or `auth.key_set` for tokens, `hooks.connect`, or `auth.anonymous: true`",
            );
        }
    }

    fn hooks_are_there(&mut self, config: &Config) {
        for (key, hook) in std::mem::take(&mut self.hooks_needed) {
            let (is_there, message) = match hook {
                NeededHook::Subscribe => (
                    config.hooks.subscribe.is_some(),
                    "no client can subscribe without a token: `hook` needs the address `hooks.subscribe`",
                ),
                NeededHook::Publish => (
                    config.hooks.publish.is_some(),
                    "no client can publish: `hook` needs the address `hooks.publish`",
                ),
            };
            if !is_there {
                self.warn(&key, message);
            }
        }
    }

    fn origins_are_whole(&mut self, key: &str, origins: &[String]) {
        for (index, origin) in origins.iter().enumerate() {
            if origin.contains('*') {
                self.warn(
                    &format!("{key}[{index}]"),
                    format!("no browser has this origin: \"*\" stands for every origin if it stands alone, and for nothing within one, found {origin:?}"),
                );
            }
        }
    }
}
