//! Durations and sizes, always written with their unit, and moments.

use std::fmt;
use std::str::FromStr;
use std::time::{Duration, SystemTime};

use serde::Deserialize;
use serde::de::{self, Deserializer, Unexpected, Visitor};

/// A duration as the file has it: `250ms`, `10s`, `5m`, `1h`, `1h 30m`.
///
/// A number without a unit is rejected: 10 could mean seconds or milliseconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Span(pub Duration);

impl<'de> Deserialize<'de> for Span {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct SpanVisitor;
        impl Visitor<'_> for SpanVisitor {
            type Value = Span;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(
                    "a duration with its unit, such as \"250ms\", \"10s\", \"5m\" or \"1h\"",
                )
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<Span, E> {
                text.parse()
                    .map_err(|BadSpan| E::invalid_value(Unexpected::Str(text), &self))
            }
        }
        deserializer.deserialize_any(SpanVisitor)
    }
}

impl FromStr for Span {
    type Err = BadSpan;

    fn from_str(text: &str) -> Result<Self, BadSpan> {
        humantime::parse_duration(text)
            .map(Self)
            .map_err(|_| BadSpan)
    }
}

/// The text is no duration.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("expected a duration with its unit, such as \"250ms\", \"10s\", \"5m\" or \"1h\"")]
pub struct BadSpan;

impl fmt::Display for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", humantime::format_duration(self.0))
    }
}

/// A number of bytes as the file has it: `512B`, `64KiB`, `1MiB`, `2GiB`.
///
/// Only units of 1,024 are accepted, because KB could mean 1,000 or 1,024 bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct ByteSize(pub u64);

const UNITS: [(&str, u64); 4] = [
    ("KiB", 1 << 10),
    ("MiB", 1 << 20),
    ("GiB", 1 << 30),
    ("B", 1),
];

impl ByteSize {
    fn parse(text: &str) -> Option<Self> {
        let (number, factor) = UNITS
            .iter()
            .find_map(|(unit, factor)| Some((text.strip_suffix(unit)?.trim_end(), factor)))?;
        if number.is_empty() || !number.bytes().all(|byte| byte.is_ascii_digit()) {
            return None;
        }
        number.parse::<u64>().ok()?.checked_mul(*factor).map(Self)
    }
}

impl<'de> Deserialize<'de> for ByteSize {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct SizeVisitor;
        impl Visitor<'_> for SizeVisitor {
            type Value = ByteSize;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a size with its unit, such as \"512B\", \"64KiB\" or \"1MiB\"")
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<ByteSize, E> {
                ByteSize::parse(text).ok_or_else(|| E::invalid_value(Unexpected::Str(text), &self))
            }
        }
        deserializer.deserialize_any(SizeVisitor)
    }
}

impl fmt::Display for ByteSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let exact = [UNITS[2], UNITS[1], UNITS[0]]
            .into_iter()
            .find(|(_, factor)| 0 < self.0 && self.0.is_multiple_of(*factor));
        match exact {
            Some((unit, factor)) => write!(f, "{}{unit}", self.0 / factor),
            None => write!(f, "{}B", self.0),
        }
    }
}

/// A moment as the file has it: `2026-12-31` (its beginning, in UTC) or `2026-12-31T18:00:00Z` (RFC 3339, in UTC).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Timestamp(pub SystemTime);

impl<'de> Deserialize<'de> for Timestamp {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct TimestampVisitor;
        impl Visitor<'_> for TimestampVisitor {
            type Value = Timestamp;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(
                    "a date, such as \"2026-12-31\", or a time in UTC, such as \"2026-12-31T18:00:00Z\"",
                )
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<Timestamp, E> {
                let whole = match text.len() {
                    10 => format!("{text}T00:00:00Z"),
                    _ => text.to_owned(),
                };
                humantime::parse_rfc3339(&whole)
                    .map(Timestamp)
                    .map_err(|_| E::invalid_value(Unexpected::Str(text), &self))
            }
        }
        deserializer.deserialize_str(TimestampVisitor)
    }
}

impl fmt::Display for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        humantime::format_rfc3339_seconds(self.0).fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn span(text: &str) -> Option<Duration> {
        serde_yaml::from_str::<Span>(text).ok().map(|span| span.0)
    }

    fn size(text: &str) -> Option<u64> {
        serde_yaml::from_str::<ByteSize>(text)
            .ok()
            .map(|size| size.0)
    }

    #[test]
    fn durations_need_a_unit() {
        assert_eq!(span("10s"), Some(Duration::from_secs(10)));
        assert_eq!(span("250ms"), Some(Duration::from_millis(250)));
        assert_eq!(span("1h 30m"), Some(Duration::from_secs(5400)));
        assert_eq!(span("0s"), Some(Duration::ZERO));
        for wrong in ["10", "-1s", "s", "''", "ten seconds", "[1s]"] {
            assert_eq!(span(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn sizes_need_a_unit_of_1024() {
        assert_eq!(size("512B"), Some(512));
        assert_eq!(size("64KiB"), Some(65536));
        assert_eq!(size("64 KiB"), Some(65536));
        assert_eq!(size("2GiB"), Some(2 << 30));
        for wrong in [
            "64",
            "64KB",
            "64k",
            "KiB",
            "-1B",
            "1.5MiB",
            "99999999999GiB",
            "+1B",
        ] {
            assert_eq!(size(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn a_moment_is_a_date_or_a_time_in_utc() {
        let moment = |text: &str| {
            let moment = serde_yaml::from_str::<Timestamp>(text).ok();
            moment.map(|moment| moment.to_string())
        };
        for (text, expected) in [
            ("2026-12-31", "2026-12-31T00:00:00Z"),
            ("'2026-12-31'", "2026-12-31T00:00:00Z"),
            ("2026-12-31T18:00:00Z", "2026-12-31T18:00:00Z"),
        ] {
            assert_eq!(moment(text).as_deref(), Some(expected), "{text}");
        }
        for wrong in [
            "2026-13-01",
            "31.12.2026",
            "2026-12-31T18:00:00+01:00",
            "tomorrow",
            "1",
            "1800000000",
        ] {
            assert_eq!(moment(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn a_size_is_shown_in_the_largest_unit_that_is_exact() {
        assert_eq!(ByteSize(65536).to_string(), "64KiB");
        assert_eq!(ByteSize(1 << 20).to_string(), "1MiB");
        assert_eq!(ByteSize(1500).to_string(), "1500B");
        assert_eq!(ByteSize(0).to_string(), "0B");
    }
}
