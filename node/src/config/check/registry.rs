//! What nodes tell of themselves, and how often.

use causeway_conf::Span;

use super::Checker;
use super::NODE_ID_BYTES_MAX;
use super::fits_node_id;
use crate::config::Registry;
use crate::config::raw;
use crate::config::settings;

/// How many renewals may fail before a lease ends.
const RENEWALS_MIN: u32 = 3;

impl Checker<'_> {
    pub(super) fn registry(&mut self, raw: raw::Registry) -> Registry {
        let registry = Registry {
            renew: self.span("registry.renew", raw.renew, &settings::LEASE_RENEW),
            lease: self.span("registry.lease", raw.lease, &settings::LEASE),
            verify: self.span("registry.verify", raw.verify, &settings::VERIFY),
        };
        let lease_min = registry.renew * RENEWALS_MIN;
        if registry.lease < lease_min {
            self.error(
                "registry.lease",
                format!(
                    "expected at least {RENEWALS_MIN} times registry.renew ({}), found {}",
                    Span(lease_min),
                    Span(registry.lease)
                ),
            );
        }
        registry
    }

    /// An address as a backend of the edge has it: `host:port`.
    pub(super) fn advertise(&mut self, address: Option<String>) -> Option<String> {
        let address = address?;
        let parts = address.rsplit_once(':');
        let is_whole = parts.is_some_and(|(host, port)| {
            let is_bare_ipv6 = host.contains(':') && !host.starts_with('[');
            let is_host = !host.is_empty() && !host.contains(char::is_whitespace) && !is_bare_ipv6;
            is_host && port.parse::<u16>().is_ok_and(|port| port != 0)
        });
        if !is_whole {
            self.error(
                "node.advertise",
                format!("expected an address and a port, such as \"10.0.0.1:9000\" or \"[fd00::1]:9000\", found {address:?}"),
            );
        }
        Some(address)
    }

    pub(super) fn zone(&mut self, zone: Option<String>) -> Option<String> {
        let zone = zone?;
        if zone.is_empty() || NODE_ID_BYTES_MAX < zone.len() || !zone.chars().all(fits_node_id) {
            self.error(
                "node.zone",
                format!("expected 1 to {NODE_ID_BYTES_MAX} of letters, digits, `-`, `_` and `.`, found {zone:?}"),
            );
        }
        Some(zone)
    }

    pub(super) fn generation(&mut self, generation: Option<u64>) -> Option<u64> {
        let generation = generation?;
        if !(1..=settings::GENERATION_MAX).contains(&generation) {
            self.error(
                "node.generation",
                format!(
                    "expected a number from 1 to {}, found {generation}",
                    settings::GENERATION_MAX
                ),
            );
        }
        Some(generation)
    }
}
