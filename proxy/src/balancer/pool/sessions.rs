//! Remembers which backend has which SockJS session, for recently used sessions.
//!
//! Bounded and lock-free: a set-associative table of words, in sets of [`WAYS`] selected by a hash. A word has the rest of the hash,
//! the backend, and the age of the last use. In a full set the least recently used word is replaced; its session is then routed by
//! its cookie or the ring. There are four words for each session of the configured capacity, so that sets are rarely full before.
//!
//! Two sessions with equal hashes are not distinguished. Clients cannot provoke that; by chance it happens to about one new session
//! in a hundred million, which then starts on the backend of the other one.

use std::hash::{BuildHasher as _, RandomState};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};

use arc_swap::ArcSwap;

use crate::balancer::affinity::SessionKey;
use crate::config::backend::BackendId;

/// Words in a set: one cache line.
const WAYS: usize = 8;

/// The most sessions in one [`SessionsPart`].
const PART_MAX: usize = 100_000;

/// The table of one pool.
pub(super) struct Sessions {
    /// The keys of the hash: random, or those of the process that the table comes from.
    keys: OnceLock<[u64; 2]>,
    sessions_max: usize,
    /// Allocated at first use: many pools have no such sessions.
    words: OnceLock<Box<[AtomicU64]>>,
    /// The backends by their numbers; `None` is a free number.
    names: ArcSwap<Vec<Option<BackendId>>>,
    uses: AtomicUsize,
}

/// A part of a table, for another process.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct SessionsPart {
    /// The keys of the hash, which clients must not know.
    pub(crate) keys: [u64; 2],
    /// The capacity in sessions: a table of another one has its words elsewhere.
    pub(crate) sessions_max: u64,
    pub(crate) uses: u64,
    /// The backends by their numbers; empty for a free number.
    pub(crate) backends: Vec<String>,
    /// Words that are not empty, with their places.
    pub(crate) words: Vec<(u32, u64)>,
    /// Where the next part begins; `None` if this is the last one.
    pub(crate) next: Option<usize>,
}

/// A decoded word of the table.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Entry {
    /// The upper half of the session's hash.
    tag: u32,
    /// The age of the table when it was used last.
    age: u16,
    /// The number of the backend, counted from 1; 0 is an empty word.
    backend: u16,
}

impl Entry {
    fn of(word: u64) -> Self {
        Self {
            tag: (word >> 32) as u32,
            age: (word >> 16) as u16,
            backend: word as u16,
        }
    }

    fn word(self) -> u64 {
        u64::from(self.tag) << 32 | u64::from(self.age) << 16 | u64::from(self.backend)
    }
}

impl Sessions {
    /// An empty table for about `sessions_max` sessions.
    pub(super) fn new(sessions_max: usize) -> Self {
        Self {
            keys: OnceLock::new(),
            sessions_max: sessions_max.max(WAYS),
            words: OnceLock::new(),
            names: ArcSwap::default(),
            uses: AtomicUsize::new(0),
        }
    }

    /// The backend that has `session`, if it is remembered.
    pub(super) fn get(&self, session: &SessionKey) -> Option<BackendId> {
        self.words.get()?; // Without a session, and maybe to be filled by another process.
        let hash = self.hash(session);
        let (word, entry) = find(self.set(hash)?, hash)?;
        let age = self.age();
        if entry.age != age {
            self.uses.fetch_add(1, Ordering::Relaxed);
            // If it fails, another request has written the same or newer data.
            let used = Entry { age, ..entry }.word();
            word.compare_exchange(entry.word(), used, Ordering::Relaxed, Ordering::Relaxed)
                .ok();
        }
        let names = self.names.load();
        names.get(usize::from(entry.backend) - 1)?.clone()
    }

    /// Remembers that `id` has `session`.
    pub(super) fn insert(&self, session: &SessionKey, id: &BackendId) {
        let hash = self.hash(session);
        // Without a free number, sessions are routed by the ring alone.
        let Some(backend) = self.number(id) else {
            return;
        };
        self.words.get_or_init(|| self.empty());
        let Some(set) = self.set(hash) else { return };
        let tag = (hash >> 32) as u32;
        loop {
            let age = self.age();
            let entry = Entry { tag, age, backend };
            let (word, old) = find(set, hash).unwrap_or_else(|| least_used(set, age));
            if old == entry {
                return;
            }
            let is_new = old.tag != tag || old.age != age || old.backend == 0;
            let taken = word.compare_exchange(
                old.word(),
                entry.word(),
                Ordering::Relaxed,
                Ordering::Relaxed,
            );
            if taken.is_ok() {
                self.uses.fetch_add(usize::from(is_new), Ordering::Relaxed);
                return;
            }
        }
    }

    /// Removes the sessions of these backends, which were deleted, and frees their numbers.
    ///
    /// Scans the whole table.
    pub(super) fn forget(&self, ids: &[BackendId]) {
        let names = self.names.load();
        let is_gone = |name: &Option<BackendId>| name.as_ref().is_some_and(|id| ids.contains(id));
        let gone: Vec<bool> = names.iter().map(is_gone).collect();
        if !gone.contains(&true) {
            return;
        }
        for word in self.words.get().into_iter().flatten() {
            let entry = Entry::of(word.load(Ordering::Relaxed));
            let number = usize::from(entry.backend).checked_sub(1);
            if number.is_some_and(|number| gone.get(number) == Some(&true)) {
                // A word that was written meanwhile is of an existing backend.
                word.compare_exchange(entry.word(), 0, Ordering::Relaxed, Ordering::Relaxed)
                    .ok();
            }
        }
        self.names.rcu(|names| {
            let mut names = names.to_vec();
            names.iter_mut().for_each(|name| {
                name.take_if(|id| ids.contains(id));
            });
            names
        });
    }

    /// The part of the table that begins at the word `from`; `None` if no session is remembered.
    pub(super) fn part(&self, from: usize) -> Option<SessionsPart> {
        let words = self.words.get()?;
        let names = self.names.load();
        let name =
            |name: &Option<BackendId>| name.as_ref().map_or_else(String::new, |id| id.to_string());
        let words = words.iter().enumerate().skip(from);
        let words = words.map(|(place, word)| (place, word.load(Ordering::Relaxed)));
        let mut words = words.filter(|(_, word)| Entry::of(*word).backend != 0);
        let part = words.by_ref().take(PART_MAX);
        let part = part.filter_map(|(place, word)| Some((u32::try_from(place).ok()?, word)));
        Some(SessionsPart {
            keys: *self.keys.get()?,
            sessions_max: self.sessions_max as u64,
            uses: self.uses.load(Ordering::Relaxed) as u64,
            backends: names.iter().map(name).collect(),
            words: part.collect(),
            next: words.next().map(|(place, _)| place),
        })
    }

    /// Fills the table, which is not in use yet, with those sessions of another process whose backend is one of `backends`. How many
    /// there are: none if the table of that process had another capacity.
    pub(super) fn adopt(
        &self,
        part: &SessionsPart,
        is_known: impl Fn(&BackendId) -> bool,
    ) -> usize {
        let is_same = part.sessions_max == self.sessions_max as u64
            && *self.keys.get_or_init(|| part.keys) == part.keys;
        if !is_same {
            return 0;
        }
        let parse = |name: &String| name.parse().ok().filter(|id| is_known(id));
        let names: Vec<Option<BackendId>> = part.backends.iter().map(parse).collect();
        let table = self.words.get_or_init(|| self.empty());
        let mut adopted = 0;
        for (place, word) in &part.words {
            let number = usize::from(Entry::of(*word).backend).checked_sub(1);
            let is_named =
                number.is_some_and(|number| names.get(number).is_some_and(Option::is_some));
            if let Some(mine) = table.get(*place as usize).filter(|_| is_named) {
                mine.store(*word, Ordering::Relaxed);
                adopted += 1;
            }
        }
        self.names.store(Arc::new(names));
        let uses = usize::try_from(part.uses).unwrap_or(usize::MAX);
        self.uses.store(uses, Ordering::Relaxed);
        adopted
    }

    fn empty(&self) -> Box<[AtomicU64]> {
        let sets = (self.sessions_max * 4).div_ceil(WAYS).next_power_of_two();
        let words = std::iter::repeat_with(AtomicU64::default);
        words.take(sets * WAYS).collect()
    }

    fn hash(&self, session: &SessionKey) -> u64 {
        // The hash of a constant by a hasher with random keys is random.
        let random = || RandomState::new().hash_one(0);
        session.hash(*self.keys.get_or_init(|| [random(), random()]))
    }

    /// The current age: it advances by one with each quarter of the capacity in uses.
    fn age(&self) -> u16 {
        (self.uses.load(Ordering::Relaxed) / self.sessions_max.div_ceil(4)) as u16
    }

    fn set(&self, hash: u64) -> Option<&[AtomicU64]> {
        let words = self.words.get()?;
        let first = (hash as usize & (words.len() / WAYS - 1)) * WAYS;
        Some(&words[first..first + WAYS])
    }

    /// The number of `id`, which is assigned at first use.
    fn number(&self, id: &BackendId) -> Option<u16> {
        let position = |names: &[Option<BackendId>]| {
            let is_it = |name: &Option<BackendId>| name.as_ref() == Some(id);
            names.iter().position(is_it)
        };
        let mut found = position(&self.names.load());
        if found.is_none() {
            self.names.rcu(|names| {
                let mut names = names.to_vec();
                if position(&names).is_some() {
                    return names;
                }
                match names.iter().position(Option::is_none) {
                    Some(free) => names[free] = Some(id.clone()),
                    None if names.len() < usize::from(u16::MAX) => names.push(Some(id.clone())),
                    None => {}
                }
                names
            });
            found = position(&self.names.load());
        }
        u16::try_from(found? + 1).ok()
    }
}

/// The word of the session with this hash.
fn find(set: &[AtomicU64], hash: u64) -> Option<(&AtomicU64, Entry)> {
    let tag = (hash >> 32) as u32;
    set.iter()
        .map(|word| (word, Entry::of(word.load(Ordering::Relaxed))))
        .find(|(_, entry)| entry.tag == tag && entry.backend != 0)
}

/// The word for a new session: an empty one, or the least recently used.
fn least_used(set: &[AtomicU64], age: u16) -> (&AtomicU64, Entry) {
    let unused_for = |entry: &Entry| match entry.backend {
        0 => u32::MAX,
        _ => u32::from(age.wrapping_sub(entry.age)),
    };
    let entries = set
        .iter()
        .map(|word| (word, Entry::of(word.load(Ordering::Relaxed))));
    entries
        .max_by_key(|(_, entry)| unused_for(entry))
        .expect("a set has words")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(name: &str) -> BackendId {
        name.parse().unwrap()
    }

    #[test]
    fn the_last_insert_of_a_session_counts() {
        let sessions = Sessions::new(1024);
        let session = SessionKey::new("abc");
        assert_eq!(sessions.get(&session), None);
        sessions.insert(&session, &id("n1"));
        sessions.insert(&session, &id("n2"));
        assert_eq!(sessions.get(&session), Some(id("n2")));
    }

    #[test]
    fn the_table_is_bounded_and_keeps_used_sessions() {
        let sessions = Sessions::new(1024);
        let used = SessionKey::new("used");
        sessions.insert(&used, &id("n1"));
        for other in 0..100_000 {
            sessions.insert(&SessionKey::new(&format!("s{other}")), &id("n2"));
            assert_eq!(sessions.get(&used), Some(id("n1")));
        }
        assert_eq!(sessions.words.get().unwrap().len(), 4096);
        assert_eq!(sessions.get(&SessionKey::new("s0")), None);
    }

    #[test]
    fn nearly_all_sessions_up_to_the_capacity_are_kept() {
        let sessions = Sessions::new(10_000);
        let keys: Vec<SessionKey> = (0..10_000)
            .map(|number| SessionKey::new(&format!("s{number}")))
            .collect();
        for (number, key) in keys.iter().enumerate() {
            sessions.insert(key, &id(&format!("n{}", number % 7)));
        }
        let kept = keys
            .iter()
            .enumerate()
            .filter(|(number, key)| sessions.get(key) == Some(id(&format!("n{}", number % 7))));
        assert!(9_980 < kept.count());
    }

    #[test]
    fn a_deleted_backend_frees_its_number_and_leaves_no_sessions() {
        let sessions = Sessions::new(1024);
        let key = |number: usize| SessionKey::new(&format!("s{number}"));
        sessions.insert(&key(0), &id("stays"));
        for number in 1..100_000 {
            let name = id(&format!("n{number}"));
            sessions.insert(&key(number), &name);
            assert_eq!(sessions.get(&key(number)).as_ref(), Some(&name));
            sessions.forget(std::slice::from_ref(&name));
            assert_eq!(sessions.get(&key(number)), None);
            assert_eq!(sessions.get(&key(0)), Some(id("stays")));
        }
        assert_eq!(sessions.names.load().len(), 2);
    }

    #[test]
    fn another_process_finds_the_sessions_of_backends_that_it_has() {
        // Some ten are lost in full sets, which differ with the keys of the hash.
        const COUNT: usize = 2 * PART_MAX + 1000;
        let key = |number: usize| SessionKey::new(&format!("s{number}"));
        let sessions = Sessions::new(COUNT);
        assert_eq!(sessions.part(0), None);
        for number in 0..COUNT {
            sessions.insert(&key(number), &id(["stays", "goes"][number % 2]));
        }
        let other = Sessions::new(COUNT);
        assert_eq!(other.get(&key(0)), None);
        let another_size = Sessions::new(1024);
        let (mut from, mut parts, mut adopted) = (Some(0), 0, 0);
        while let Some(place) = from {
            let part = sessions.part(place).unwrap();
            adopted += other.adopt(&part, |id| id.as_str() == "stays");
            assert_eq!(another_size.adopt(&part, |_| true), 0);
            (from, parts) = (part.next, parts + 1);
        }
        assert_eq!(parts, 3);
        let lost = (0..COUNT).filter(|number| sessions.get(&key(*number)).is_none());
        let (lost, found) = (lost.count(), |number: usize| other.get(&key(number)));
        assert!(
            adopted.abs_diff(COUNT / 2) <= lost,
            "{adopted}, {lost} lost"
        );
        for number in 0..COUNT {
            let expected = sessions
                .get(&key(number))
                .filter(|id| id.as_str() == "stays");
            assert_eq!(found(number), expected, "{number}");
        }
        other.insert(&key(1), &id("new"));
        assert_eq!(found(1), Some(id("new")));
        assert_eq!(found(0), sessions.get(&key(0)));
    }

    #[test]
    fn a_damaged_table_of_another_process_is_no_session() {
        let sessions = Sessions::new(1024);
        sessions.insert(&SessionKey::new("a"), &id("n1"));
        let mut part = sessions.part(0).unwrap();
        let other = Sessions::new(1024);
        part.words.extend([(u32::MAX, u64::MAX), (0, 7), (1, 0)]);
        part.backends.push("not a name".to_owned());
        assert_eq!(other.adopt(&part, |_| true), 1);
        assert_eq!(other.get(&SessionKey::new("a")), Some(id("n1")));
    }

    #[test]
    fn sessions_inserted_concurrently_are_all_kept() {
        let sessions = Sessions::new(10_000);
        let key = |thread: usize, number: usize| SessionKey::new(&format!("{thread}-{number}"));
        std::thread::scope(|scope| {
            for thread in 0..4 {
                let sessions = &sessions;
                scope.spawn(move || {
                    for number in 0..500 {
                        sessions.insert(&key(thread, number), &id(&format!("n{thread}")));
                    }
                });
            }
        });
        for thread in 0..4 {
            let home = id(&format!("n{thread}"));
            assert!(
                (0..500).all(|number| sessions.get(&key(thread, number)).as_ref() == Some(&home))
            );
        }
    }
}
