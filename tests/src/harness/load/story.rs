//! What a load saw while something struck one backend, and what must hold of it.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use tokio::time::Instant;

use crate::harness::load::{Journal, Kind, Load, Place, Record};

/// The journal of a load that has ended, and who was concerned.
///
/// Newcomers are nobody's clients: a fault may strike any of their requests, as long as the edge does not know of it.
#[derive(Debug)]
pub struct Story {
    /// All of it.
    pub journal: Arc<Journal>,
    /// Every request.
    pub records: Vec<Record>,
    /// The clients that belonged to the backend.
    pub struck: BTreeSet<usize>,
    kinds: BTreeMap<usize, Kind>,
}

/// Those of `places` that belong to `node`.
#[must_use]
pub fn clients_of(places: &[Place], node: &str) -> BTreeSet<usize> {
    let there = places
        .iter()
        .filter(|place| place.kind != Kind::Newcomer && place.node.as_deref() == Some(node));
    there.map(|place| place.client).collect()
}

impl Story {
    /// Stops the load.
    pub async fn of(load: Load, struck: BTreeSet<usize>) -> Self {
        let journal = load.stop().await;
        let places = journal.places();
        Self {
            records: journal.records(),
            journal,
            struck,
            kinds: places
                .iter()
                .map(|place| (place.client, place.kind))
                .collect(),
        }
    }

    fn is_newcomer(&self, record: &Record) -> bool {
        self.kinds.get(&record.client) == Some(&Kind::Newcomer)
    }

    fn unconcerned(&self) -> impl Iterator<Item = &Record> {
        self.records
            .iter()
            .filter(|record| !self.struck.contains(&record.client) && !self.is_newcomer(record))
    }

    /// The longest that an unconcerned client waited for a response that is not parked on purpose: how slow the machine is.
    #[must_use]
    pub fn lag(&self) -> Duration {
        let prompt = self
            .unconcerned()
            .filter(|record| !record.path.ends_with("/xhr"));
        prompt.map(Record::took).max().unwrap_or_default()
    }

    /// How many requests failed.
    #[must_use]
    pub fn failed(&self) -> usize {
        self.records.iter().filter(|record| record.failed()).count()
    }

    /// Clients of other backends: every response good, no move, no loss.
    ///
    /// # Errors
    ///
    /// One that was not.
    pub fn nobody_else_noticed(&self) -> Result<()> {
        let bad = self.unconcerned().find(|record| !record.good);
        ensure!(bad.is_none(), "an unconcerned client got {bad:?}");
        let moved = self.unconcerned().find(|record| record.moved);
        ensure!(moved.is_none(), "unconcerned, and bound anew: {moved:?}");
        let losses = self.journal.losses();
        let lost = losses
            .iter()
            .find(|loss| !self.struck.contains(&loss.client));
        ensure!(lost.is_none(), "unconcerned: {lost:?}");
        Ok(())
    }

    /// Of what was sent after `since` nothing failed, but for what `may_fail`.
    ///
    /// # Errors
    ///
    /// One that did.
    pub fn nothing_fails_after(
        &self,
        since: Instant,
        may_fail: impl Fn(&Record) -> bool,
    ) -> Result<()> {
        let mut later = self.records.iter().filter(|record| since < record.begun);
        let failed = later.find(|record| record.failed() && !may_fail(record));
        let after = failed.map(|record| record.begun - since);
        ensure!(failed.is_none(), "{after:?} later: {failed:?}");
        Ok(())
    }

    /// No GET, no upgrade and nothing that was sent after `gone` failed; a POST in flight got 502 and nothing else. How many
    /// did.
    ///
    /// # Errors
    ///
    /// One that failed otherwise.
    pub fn only_posts_in_flight_failed(&self, gone: Instant) -> Result<usize> {
        let mut in_flight = 0;
        for record in self.records.iter().filter(|record| record.failed()) {
            ensure!(
                record.method == "POST" && self.struck.contains(&record.client),
                "{record:?}"
            );
            // The kernel has closed the backend's idle connections; the edge hears of it when it next looks.
            let late = record.begun.saturating_duration_since(gone);
            ensure!(
                late <= self.lag(),
                "sent {late:?} after the end of its backend: {record:?}"
            );
            ensure!(record.outcome == Ok(502), "{record:?}");
            in_flight += 1;
        }
        Ok(in_flight)
    }

    /// How long it took from `since` until the last struck client was served by another node than `left`.
    ///
    /// # Errors
    ///
    /// One never was.
    pub fn all_elsewhere_after(&self, since: Instant, left: &str) -> Result<Duration> {
        let mut longest = Duration::ZERO;
        for client in &self.struck {
            let mut elsewhere = self.records.iter().filter(|record| {
                record.client == *client
                    && since < record.begun
                    && record.good
                    && record.node.as_deref() != Some(left)
            });
            let first = elsewhere
                .next()
                .with_context(|| format!("client {client} was not served elsewhere"))?;
            longest = longest.max(first.ended - since);
        }
        Ok(longest)
    }

    /// No cookie came to name another backend.
    ///
    /// # Errors
    ///
    /// One that did.
    pub fn nobody_moved(&self) -> Result<()> {
        let moved = self.records.iter().find(|record| record.moved);
        ensure!(moved.is_none(), "bound elsewhere: {moved:?}");
        Ok(())
    }

    /// No cookie came to name another backend more than once by what was asked after `since`.
    ///
    /// # Errors
    ///
    /// One that did.
    pub fn nobody_moved_twice(&self, since: Instant) -> Result<()> {
        let moves = self.journal.moves(since);
        let twice = moves.iter().find(|(_, count)| 1 < **count);
        ensure!(twice.is_none(), "client, and how often: {twice:?}");
        Ok(())
    }

    /// No newcomer waited as if a backend were his, for half of `hold`, the machine's own slowness apart.
    ///
    /// # Errors
    ///
    /// One that did.
    pub fn no_newcomer_waited(&self, hold: Duration) -> Result<()> {
        let mut newcomers = self
            .records
            .iter()
            .filter(|record| self.is_newcomer(record));
        let most = hold / 2 + self.lag() * 3;
        let waited = newcomers.find(|record| most < record.took());
        ensure!(waited.is_none(), "a newcomer waited: {waited:?}");
        Ok(())
    }
}
