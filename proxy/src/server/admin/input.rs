//! The input of actions: bodies in JSON, and the query of the list of tunnels.

use std::net::IpAddr;

use causeway_conf::Span;
use serde::Deserialize;
use serde::de::DeserializeOwned;

use crate::tunnel::TunnelFilter;

/// The largest body of an action.
pub(super) const BODY_BYTES_MAX: usize = 16 << 10;

/// The tunnels on one page: default, and most.
const PAGE: usize = 100;
const PAGE_MAX: usize = 1000;

/// The longest time over which an action may close tunnels.
const SPREAD_MAX: Span = Span(std::time::Duration::from_secs(3600));

/// The input is not valid; the text says what is wrong and what is expected.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("{0}")]
pub(super) struct BadInput(String);

impl BadInput {
    /// A close code that tunnels are not closed with.
    pub(super) fn code(code: u16) -> Self {
        Self(format!(
            "code: {code} is not possible, expected 1012 (the client is to reconnect) or 1001 (going away)"
        ))
    }
}

/// For actions without settings.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Nothing {}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Drain {
    pub(super) tunnels: Option<Tunnels>,
    pub(super) spread: Option<Span>,
    #[serde(default)]
    pub(super) force: bool,
}

/// What becomes of the tunnels of a drained backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Tunnels {
    Close,
    Keep,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Maintenance {
    #[serde(default)]
    pub(super) force: bool,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Weight {
    pub(super) weight: u64,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Close {
    pub(super) code: Option<u16>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Rebalance {
    pub(super) pool: Option<String>,
    pub(super) spread: Option<Span>,
    #[serde(default)]
    pub(super) dry_run: bool,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Reload {
    #[serde(default)]
    pub(super) dry_run: bool,
}

/// The settings in `body`; an empty one is `{}`.
pub(super) fn body<T: DeserializeOwned>(body: &[u8]) -> Result<T, BadInput> {
    let json = if body.trim_ascii().is_empty() {
        b"{}"
    } else {
        body
    };
    serde_json::from_slice(json).map_err(|error| {
        BadInput(format!(
            "the body is not valid JSON of this action: {error}"
        ))
    })
}

/// Checks a time over which tunnels are closed.
pub(super) fn spread(spread: Option<Span>) -> Result<Option<std::time::Duration>, BadInput> {
    match spread {
        Some(spread) if SPREAD_MAX < spread => Err(BadInput(format!(
            "spread: {spread} is out of range, expected 0s to {SPREAD_MAX}"
        ))),
        spread => Ok(spread.map(|spread| spread.0)),
    }
}

/// The number of a tunnel in a path.
pub(super) fn tunnel(text: &str) -> Result<u64, BadInput> {
    text.parse().map_err(|_| {
        let text: String = text.chars().take(32).collect();
        BadInput(format!(
            "\"{}\" is not the number of a tunnel, as \"id\" in /tunnels",
            text.escape_debug()
        ))
    })
}

/// Which tunnels a query asks for, and how many at most.
pub(super) fn page(query: Option<&str>) -> Result<(TunnelFilter, usize), BadInput> {
    let (mut filter, mut limit) = (TunnelFilter::default(), PAGE);
    let pairs = query.unwrap_or_default().split('&');
    for pair in pairs.filter(|pair| !pair.is_empty()) {
        let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
        let value = decoded(value).ok_or_else(|| bad(name, "valid percent-encoding"))?;
        match name {
            "pool" => filter.pool = Some(value),
            "backend" => filter.backend = Some(value),
            "client" => {
                let address: Result<IpAddr, _> = value.parse();
                filter.client = Some(address.map_err(|_| bad(name, "an IP address"))?);
            }
            "after" => {
                let after = value.parse();
                filter.after = Some(after.map_err(|_| bad(name, "the number of a tunnel"))?);
            }
            "limit" => {
                let number = value.parse().ok();
                let valid = number.filter(|number| (1..=PAGE_MAX).contains(number));
                limit = valid.ok_or_else(|| bad(name, "a number from 1 to 1000"))?;
            }
            _ => {
                return Err(bad(
                    name,
                    "one of pool, backend, client, after and limit as its name",
                ));
            }
        }
    }
    Ok((filter, limit))
}

fn bad(name: &str, expected: &str) -> BadInput {
    let name: String = name.chars().take(32).collect();
    BadInput(format!(
        "query parameter \"{}\": expected {expected}",
        name.escape_debug()
    ))
}

/// `text` without percent-encoding.
fn decoded(text: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((first, after)) = rest.split_first() {
        rest = after;
        if *first != b'%' {
            bytes.push(*first);
            continue;
        }
        let (digits, after) = rest.split_at_checked(2)?;
        let digits = std::str::from_utf8(digits).ok()?;
        bytes.push(u8::from_str_radix(digits, 16).ok()?);
        rest = after;
    }
    String::from_utf8(bytes).ok()
}

#[cfg(test)]
mod tests {
    use expect_test::{Expect, expect};

    use super::*;

    #[test]
    fn a_body_is_json_of_its_action_or_empty() {
        assert!(!body::<Reload>(b"").unwrap().dry_run);
        assert!(body::<Reload>(b" {\"dry_run\": true}").unwrap().dry_run);
        let drain: Drain = body(br#"{"tunnels": "keep", "spread": "5m", "force": true}"#).unwrap();
        assert_eq!(drain.tunnels, Some(Tunnels::Keep));
        assert_eq!(spread(drain.spread), Ok(Some(SPREAD_MAX.0 / 12)));
        assert!(drain.force);
    }

    #[test]
    fn what_is_wrong_with_a_body_is_said() {
        let check = |error: BadInput, expected: Expect| expected.assert_eq(&error.to_string());
        check(
            body::<Drain>(b"{\"spread\": 5}").unwrap_err(),
            expect![[
                r#"the body is not valid JSON of this action: invalid type: integer `5`, expected a duration with its unit, such as "250ms", "10s", "5m" or "1h" at line 1 column 12"#
            ]],
        );
        check(
            body::<Reload>(b"{\"dry\": 1}").unwrap_err(),
            expect![
                "the body is not valid JSON of this action: unknown field `dry`, expected `dry_run` at line 1 column 6"
            ],
        );
        check(
            body::<Weight>(b"").unwrap_err(),
            expect![
                "the body is not valid JSON of this action: missing field `weight` at line 1 column 2"
            ],
        );
        check(
            spread(Some(Span(2 * SPREAD_MAX.0))).unwrap_err(),
            expect!["spread: 2h is out of range, expected 0s to 1h"],
        );
        check(
            tunnel("a\"b").unwrap_err(),
            expect![[r#""a\"b" is not the number of a tunnel, as "id" in /tunnels"#]],
        );
    }

    #[test]
    fn a_query_filters_and_bounds_the_list() {
        let (filter, limit) = page(None).unwrap();
        assert_eq!((filter.after, limit), (None, PAGE));
        let (filter, limit) =
            page(Some("backend=n1&client=%3A%3A1&after=5&limit=1000&pool=p")).unwrap();
        assert_eq!(filter.backend.as_deref(), Some("n1"));
        assert_eq!(filter.client, "::1".parse().ok());
        assert_eq!((filter.after, limit), (Some(5), PAGE_MAX));
        for wrong in [
            "limit=0",
            "limit=1001",
            "limit=x",
            "client=example.com",
            "after=-1",
            "node=n1",
            "backend=%4",
            "backend=%zz",
        ] {
            assert!(page(Some(wrong)).is_err(), "{wrong}");
        }
    }
}
