//! Fault injection, to prove that `make continuity` detects handoffs that lose or repeat messages. Debug builds only.
//!
//! `CAUSEWAY_SABOTAGE` is one of the names of [`Fault`]. Marks are published later than usual, so that there is something to lose.

use std::env;
use std::sync::OnceLock;
use std::time::Duration;

use tracing::error;

use crate::cluster::control::CutAt;

/// The environment variable that turns it on.
const VARIABLE: &str = "CAUSEWAY_SABOTAGE";

/// How long each wrong moment lasts.
pub(super) const WRONG_FOR: Duration = Duration::from_millis(400);

/// What is done wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fault {
    /// `mark-ignored`: the first node stops delivering before the mark.
    MarkIgnored,
    /// `b-early`: the other node begins before the mark.
    BeginsEarly,
    /// `a-late`: the first node continues after the mark.
    StopsLate,
    /// `state-early`: the positions of channels are those before the last publication that the first node has delivered.
    StateEarly,
}

/// The fault that is injected, if any.
pub(super) fn fault() -> Option<Fault> {
    static FAULT: OnceLock<Option<Fault>> = OnceLock::new();
    *FAULT.get_or_init(|| {
        let fault = match env::var(VARIABLE).ok()?.as_str() {
            "mark-ignored" => Fault::MarkIgnored,
            "b-early" => Fault::BeginsEarly,
            "a-late" => Fault::StopsLate,
            "state-early" => Fault::StateEarly,
            _ => return None,
        };
        error!(
            ?fault,
            "faults are injected into handoffs, because {VARIABLE} is set"
        );
        Some(fault)
    })
}

/// `cut`, made older if that is the fault.
pub(super) fn aged(mut cut: Vec<CutAt>) -> Vec<CutAt> {
    if fault() == Some(Fault::StateEarly) {
        let positions = cut.iter_mut().filter_map(|cut| cut.position.as_mut());
        positions.for_each(|position| position.offset = position.offset.saturating_sub(1));
    }
    cut
}
