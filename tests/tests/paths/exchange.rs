//! What is known of one request on its way: the client's side and the backend's side write it down here.

use std::sync::{
    Arc, Mutex, MutexGuard, PoisonError,
    atomic::{AtomicUsize, Ordering},
};

use tokio::sync::watch;

use crate::case::{Attempt, Step, sends};

/// The header by which the backend finds the exchange that a request belongs to.
pub(crate) const ID: &str = "x-run";

/// One request, as a backend saw it.
#[derive(Clone, Debug, Default)]
pub(crate) struct Seen {
    pub(crate) method: String,
    pub(crate) target: String,
    /// Names are lower case.
    pub(crate) headers: Vec<(String, String)>,
    pub(crate) body: Vec<u8>,
    pub(crate) trailers: Vec<(String, String)>,
    pub(crate) end: End,
    /// Whether the backend has done all that it does.
    pub(crate) done: bool,
    /// What went through the tunnel that it became.
    pub(crate) tunnel: Vec<u8>,
}

/// How far a request has come at the backend.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum End {
    /// It is still coming.
    #[default]
    Open,
    /// All of it has come, and its tunnel, if it became one, has ended.
    Whole,
    /// Its connection ended within it.
    Cut,
}

impl Seen {
    /// All values of this (lower-case) name.
    pub(crate) fn values(&self, name: &str) -> Vec<&str> {
        values(&self.headers, name)
    }
}

pub(crate) fn values<'a>(headers: &'a [(String, String)], name: &str) -> Vec<&'a str> {
    let named = headers.iter().filter(|(found, _)| found == name);
    named.map(|(_, value)| value.as_str()).collect()
}

/// One request of a client, and what became of it.
#[derive(Debug)]
pub(crate) struct Exchange {
    pub(crate) id: usize,
    attempts: Vec<Attempt>,
    seen: Mutex<Vec<Seen>>,
    faults: Mutex<Vec<String>>,
    /// How many bytes of the body the backend has; `None` while it has no request.
    backend_has: watch::Sender<Option<usize>>,
    /// How many bytes of the response's body the client has.
    client_has: watch::Sender<usize>,
}

impl Exchange {
    pub(crate) fn new(attempts: Vec<Attempt>) -> Arc<Self> {
        static NEXT: AtomicUsize = AtomicUsize::new(1);
        Arc::new(Self {
            id: NEXT.fetch_add(1, Ordering::Relaxed),
            attempts,
            seen: Mutex::default(),
            faults: Mutex::default(),
            backend_has: watch::Sender::new(None),
            client_has: watch::Sender::new(0),
        })
    }

    /// A request that is sent to see whether a connection still serves one; its response says whose it is.
    pub(crate) fn next() -> Arc<Self> {
        let mut exchange = Self::new(Vec::new());
        if let Some(exchange) = Arc::get_mut(&mut exchange) {
            let text = exchange.next_body();
            let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", text.len());
            exchange.attempts = vec![sends(&[head + &text])];
        }
        exchange
    }

    /// The body of the response to such a request.
    pub(crate) fn next_body(&self) -> String {
        format!("the response to {}", self.id)
    }

    /// Notes a request that has come; returns its number, and what the backend does with it.
    pub(crate) fn begin(&self, seen: Seen) -> (usize, Attempt) {
        let mut all = lock(&self.seen);
        all.push(seen);
        let number = all.len() - 1;
        self.backend_got(0);
        let attempt = self.attempts.get(number).or(self.attempts.last());
        (number, attempt.cloned().unwrap_or_default())
    }

    /// Whether the backend makes a tunnel of this attempt.
    pub(crate) fn becomes_tunnel(&self, number: usize) -> bool {
        let attempt = self.attempts.get(number).or(self.attempts.last());
        let steps = attempt.map_or(&[][..], |attempt| &attempt.steps);
        steps
            .iter()
            .any(|step| matches!(step, Step::Echo | Step::EchoOnly(_)))
    }

    /// Changes what was noted of a request.
    pub(crate) fn note(&self, number: usize, change: impl FnOnce(&mut Seen)) {
        if let Some(seen) = lock(&self.seen).get_mut(number) {
            change(seen);
            self.backend_got(seen.body.len());
        }
    }

    pub(crate) fn complain(&self, fault: impl Into<String>) {
        lock(&self.faults).push(fault.into());
    }

    pub(crate) fn faults(&self) -> Vec<String> {
        lock(&self.faults).clone()
    }

    pub(crate) fn seen(&self) -> Vec<Seen> {
        lock(&self.seen).clone()
    }

    /// Whether nothing of it is still under way at the backend.
    pub(crate) fn is_over(&self) -> bool {
        lock(&self.seen)
            .iter()
            .all(|seen| seen.end != End::Open && seen.done)
    }

    fn backend_got(&self, bytes: usize) {
        self.backend_has.send_if_modified(|most| {
            let more = *most < Some(bytes);
            *most = (*most).max(Some(bytes));
            more
        });
    }

    pub(crate) fn backend_has(&self) -> watch::Receiver<Option<usize>> {
        self.backend_has.subscribe()
    }

    pub(crate) fn client_has(&self) -> watch::Receiver<usize> {
        self.client_has.subscribe()
    }

    pub(crate) fn client_got(&self, bytes: usize) {
        self.client_has.send_modify(|most| *most = bytes.max(*most));
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
