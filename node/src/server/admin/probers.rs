//! The probers of `/ready`: how often they probe, and which of them got the response that the node is stopping.
//!
//! No I/O, time is passed in. A stopping node waits until every regular prober got that response once, so that no edge
//! mistakes its closed listener for a restart in place. A prober that is gone, or that probes too rarely, is not waited
//! for.

use std::collections::HashMap;
use std::fmt;
use std::net::IpAddr;
use std::time::Duration;
use std::time::Instant;

use http::HeaderMap;
use http::HeaderName;
use http::header;

/// The header with an edge's name in its probes, to distinguish several edges behind one address.
const EDGE: HeaderName = HeaderName::from_static("causeway-edge");

/// The most probers that are tracked; beyond that the least recent one is dropped.
const PROBERS_MAX: usize = 256;

/// The longest name of a prober that is kept, in bytes.
const NAME_BYTES_MAX: usize = 64;

/// The expected interval of an edge that has probed once: its default with jitter.
const EDGE_PAUSE: Duration = Duration::from_millis(2400);

/// How late a prober may be before it counts as gone, besides half of its pause.
const LATE_MAX: Duration = Duration::from_secs(1);

/// The identity of a prober, by its requests.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) enum ProberId {
    /// An edge, which sends its name.
    Edge(Box<str>),
    /// Anything else: its address and its User-Agent.
    Other(IpAddr, Box<str>),
}

impl ProberId {
    /// The sender of a request with these headers.
    pub(crate) fn of(headers: &HeaderMap, peer: IpAddr) -> Self {
        let text = |name| {
            let value = headers.get(name).and_then(|value| value.to_str().ok());
            let value = value.filter(|value| !value.is_empty());
            value.map(|value| value[..value.len().min(NAME_BYTES_MAX)].into())
        };
        match text(EDGE) {
            Some(name) => Self::Edge(name),
            None => Self::Other(peer, text(header::USER_AGENT).unwrap_or_default()),
        }
    }
}

impl fmt::Display for ProberId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Edge(name) => write!(f, "edge {name}"),
            Self::Other(address, agent) if agent.is_empty() => write!(f, "{address}"),
            Self::Other(address, agent) => write!(f, "{address} ({agent})"),
        }
    }
}

/// The response that a prober got.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Told {
    /// Anything but a drain.
    Other,
    /// That the node is stopping.
    Draining,
}

/// All recent probers.
#[derive(Debug, Default)]
pub(crate) struct Probers(HashMap<ProberId, Prober>);

#[derive(Debug, Clone, Copy)]
struct Prober {
    asked_at: Instant,
    /// The longest of its recent intervals; `None` after a single probe.
    pause: Option<Duration>,
    is_told: bool,
}

impl Probers {
    /// Records a probe of `id` and its response.
    pub(crate) fn asked(&mut self, id: ProberId, told: Told, now: Instant) {
        if let Some(prober) = self.0.get_mut(&id) {
            let pause = now.saturating_duration_since(prober.asked_at);
            // A longer interval counts at once, an old one decays.
            let before = prober.pause.unwrap_or_default();
            prober.pause = Some(pause.max(before * 3 / 4));
            prober.asked_at = now;
            prober.is_told |= told == Told::Draining;
            return;
        }
        if PROBERS_MAX <= self.0.len() {
            let oldest = self.0.iter().min_by_key(|(_, prober)| prober.asked_at);
            if let Some(oldest) = oldest.map(|(id, _)| id.clone()) {
                self.0.remove(&oldest);
            }
        }
        let prober = Prober {
            asked_at: now,
            pause: None,
            is_told: told == Told::Draining,
        };
        self.0.insert(id, prober);
    }

    /// Until when to wait for a prober that has not got the response, `end` at the latest. `None`: there is none.
    pub(crate) fn wait_until(&self, now: Instant, end: Instant) -> Option<Instant> {
        let pending = self.0.iter().filter(|(_, prober)| !prober.is_told);
        let awaited = pending.filter_map(|(id, prober)| {
            let pause = prober.usual_pause(id)?;
            let gone_at = prober.gone_at(pause);
            let is_awaited = now < gone_at && prober.asked_at + pause <= end;
            is_awaited.then_some(gone_at.min(end))
        });
        awaited.max().filter(|until| now < *until)
    }

    /// How many have got the response.
    pub(crate) fn told(&self) -> usize {
        self.0.values().filter(|prober| prober.is_told).count()
    }

    /// Regular probers that are not gone and have not got the response.
    pub(crate) fn pending(&self, now: Instant) -> Vec<String> {
        let pending = self.0.iter().filter(|(id, prober)| {
            let pause = prober.usual_pause(id);
            !prober.is_told && pause.is_some_and(|pause| now < prober.gone_at(pause))
        });
        let mut pending: Vec<String> = pending.map(|(id, _)| id.to_string()).collect();
        pending.sort_unstable();
        pending
    }
}

impl Prober {
    /// Its expected interval; `None` for a single probe that is not from an edge: it may be manual.
    fn usual_pause(&self, id: &ProberId) -> Option<Duration> {
        match id {
            ProberId::Edge(_) => Some(self.pause.unwrap_or(EDGE_PAUSE)),
            ProberId::Other(..) => self.pause,
        }
    }

    /// When it counts as gone unless it probes before.
    fn gone_at(&self, pause: Duration) -> Instant {
        self.asked_at + pause + pause / 2 + LATE_MAX
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);
    const END: Duration = Duration::from_secs(105);

    fn edge(name: &str) -> ProberId {
        ProberId::Edge(name.into())
    }

    fn other(agent: &str) -> ProberId {
        ProberId::Other(IpAddr::from([127, 0, 0, 1]), agent.into())
    }

    /// Probers that have asked at these times, in tenths of a second, and the start.
    fn probers(asked: &[(ProberId, &[u64])]) -> (Probers, Instant) {
        let (mut probers, start) = (Probers::default(), Instant::now());
        for (id, tenths) in asked {
            for tenth in *tenths {
                let at = start + Duration::from_millis(100 * tenth);
                probers.asked(id.clone(), Told::Other, at);
            }
        }
        (probers, start)
    }

    #[test]
    fn without_probers_there_is_no_wait() {
        let (probers, start) = probers(&[]);
        assert_eq!(probers.wait_until(start, start + END), None);
    }

    #[test]
    fn every_edge_is_waited_for_until_it_has_the_response() {
        let asked: &[u64] = &[960, 980, 1000];
        let (mut probers, start) = probers(&[(edge("a"), asked), (edge("b"), asked)]);
        let now = start + 101 * SECOND;
        let (end, gone_at) = (start + END, start + 104 * SECOND);
        assert_eq!(probers.wait_until(now, end), Some(gone_at));
        probers.asked(edge("a"), Told::Draining, now);
        assert_eq!(probers.wait_until(now, end), Some(gone_at));
        assert_eq!(probers.pending(now), ["edge b"]);
        probers.asked(edge("b"), Told::Draining, now);
        assert_eq!(probers.wait_until(now, end), None);
        assert_eq!((probers.told(), probers.pending(now).len()), (2, 0));
    }

    #[test]
    fn an_edge_is_waited_for_after_its_first_probe_and_a_manual_request_is_not() {
        let (probers, start) = probers(&[(edge("a"), &[1000]), (other("curl"), &[1000])]);
        let now = start + 101 * SECOND;
        assert_eq!(probers.pending(now), ["edge a"]);
        assert!(probers.wait_until(now, start + END).is_some());
    }

    #[test]
    fn a_balancer_that_names_itself_by_address_and_agent_is_waited_for_from_its_second_question_on()
    {
        let (probers, start) = probers(&[(other("lb"), &[980, 1000])]);
        let now = start + 101 * SECOND;
        assert_eq!(probers.pending(now), ["127.0.0.1 (lb)"]);
    }

    #[test]
    fn one_that_is_gone_is_not_waited_for() {
        let (probers, start) = probers(&[(edge("a"), &[960, 980, 1000])]);
        let gone_at = start + 104 * SECOND;
        let just_before = gone_at - Duration::from_millis(1);
        assert!(probers.wait_until(just_before, start + END).is_some());
        assert_eq!(probers.wait_until(gone_at, start + END), None);
        assert_eq!(probers.pending(gone_at).len(), 0);
    }

    #[test]
    fn a_rare_prober_is_not_waited_for_and_is_named() {
        let (probers, start) = probers(&[(edge("a"), &[400, 700, 1000])]);
        let now = start + 101 * SECOND;
        assert_eq!(probers.wait_until(now, start + END), None);
        assert_eq!(probers.pending(now), ["edge a"]);
    }

    #[test]
    fn a_flood_of_names_is_bounded_and_forgets_the_oldest() {
        let (mut probers, start) = (Probers::default(), Instant::now());
        for number in 0..1000_u32 {
            let at = start + Duration::from_millis(number.into());
            probers.asked(edge(&number.to_string()), Told::Other, at);
        }
        assert_eq!(probers.0.len(), PROBERS_MAX);
        assert!(probers.0.contains_key(&edge("999")) && !probers.0.contains_key(&edge("0")));
    }

    #[test]
    fn a_prober_is_known_by_what_it_sends() {
        let peer = IpAddr::from([127, 0, 0, 1]);
        let mut headers = HeaderMap::new();
        assert_eq!(ProberId::of(&headers, peer), other(""));
        headers.insert(header::USER_AGENT, "lb".parse().unwrap());
        assert_eq!(ProberId::of(&headers, peer), other("lb"));
        headers.insert(EDGE, "a".repeat(1000).parse().unwrap());
        assert_eq!(
            ProberId::of(&headers, peer),
            edge(&"a".repeat(NAME_BYTES_MAX))
        );
    }
}
