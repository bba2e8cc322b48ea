//! The API for an application's backend, and what it may keep.

use super::Checker;
use crate::config::Api;
use crate::config::Endpoint;
use crate::config::Values;
use crate::config::raw;
use crate::config::settings;

impl Checker<'_> {
    /// Without keys there is no API: nobody could use it.
    pub(super) fn api(&mut self, raw: raw::Api, endpoints: &[Endpoint]) -> Option<Api> {
        let path = raw.path.as_deref().unwrap_or(settings::API_PATH);
        let path = self.path("api.path", Some(path));
        let keys = raw.keys.unwrap_or_default();
        for (index, key) in keys.iter().enumerate() {
            let length = key.expose().len();
            if length < settings::API_KEY_BYTES_MIN || !key.expose().is_ascii() {
                let min = settings::API_KEY_BYTES_MIN;
                self.error(
                    &format!("api.keys[{index}]"),
                    format!("expected at least {min} characters of ASCII, found {length} bytes"),
                );
            }
        }
        let history_page = self.count(
            "api.history_page",
            raw.history_page,
            &settings::HISTORY_PAGE,
        );
        if keys.is_empty() {
            return None;
        }
        if let Some(endpoint) = endpoints
            .iter()
            .find(|endpoint| overlap(&endpoint.path, &path))
        {
            self.error(
                "api.path",
                format!(
                    "expected a path apart from the endpoint \"{}\", found \"{path}\"",
                    endpoint.path
                ),
            );
        }
        Some(Api {
            path,
            keys,
            ack: raw.ack.unwrap_or(settings::API_ACK),
            history_page,
        })
    }

    pub(super) fn values(&mut self, raw: raw::Values) -> Values {
        Values {
            value_bytes_max: self.size("values.size", raw.size, &settings::VALUE_SIZE),
            memory_bytes_max: self.size("values.memory", raw.memory, &settings::VALUES_MEMORY),
        }
    }
}

/// Whether one is the other, or below it.
fn overlap(left: &str, right: &str) -> bool {
    let is_below = |path: &str, above: &str| {
        path.strip_prefix(above)
            .is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
    };
    is_below(left, right) || is_below(right, left)
}
