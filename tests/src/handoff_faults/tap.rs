//! A node's wire to Redis that stops at a chosen step of a handoff, and that can be slow, held or reset.
//!
//! A [`Trap`] waits for the bytes of one step, such as the mark of a handoff on its way to Redis, and holds them back until the
//! fault has been made. What is behind them waits as well, so the order stays.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use anyhow::Result;
use memchr::memmem;
use parking_lot::Mutex;
use socket2::SockRef;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{
        TcpListener, TcpStream,
        tcp::{OwnedReadHalf, OwnedWriteHalf},
    },
    sync::{oneshot, watch},
    task::JoinSet,
    time::sleep,
};

use crate::harness::loopback;

/// How much is carried at a time.
const CHUNK_BYTES: usize = 64 << 10;

/// A direction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// To Redis.
    There,
    /// From Redis.
    Back,
}

/// What is done to the bytes of a snapshot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mangle {
    /// Another version.
    Version,
    /// An undecodable field.
    Damage,
}

/// What is waited for.
#[derive(Debug)]
pub struct Trap {
    /// In which direction.
    pub direction: Direction,
    /// Bytes of the step.
    pub needle: &'static [u8],
    /// How many such chunks pass before.
    pub skip: usize,
    /// What is done to the bytes.
    pub mangle: Option<Mangle>,
    /// Told when it is there.
    pub sprung: oneshot::Sender<()>,
    /// The bytes go on when the other end is dropped.
    pub held: oneshot::Receiver<()>,
}

/// What the wire does with everything.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct State {
    /// How long everything takes, in each direction.
    delay: Duration,
    /// Whether nothing passes.
    is_held: bool,
    /// How often all connections were reset.
    resets: u64,
}

/// A wire from one node to Redis.
#[derive(Debug)]
pub struct Tap {
    /// Where it begins.
    pub address: SocketAddr,
    state: watch::Sender<State>,
    trap: Arc<Mutex<Option<Trap>>>,
    /// The accepting task, which owns the carrying ones.
    _tasks: JoinSet<()>,
}

impl Tap {
    /// A wire to `target`.
    ///
    /// # Errors
    ///
    /// There is no port.
    pub async fn start(target: SocketAddr) -> Result<Self> {
        let listener = TcpListener::bind(loopback::own_any_port()).await?;
        let address = listener.local_addr()?;
        let (state, watched) = watch::channel(State::default());
        let trap = Arc::new(Mutex::new(None));
        let mut tasks = JoinSet::new();
        let shared = Arc::clone(&trap);
        tasks.spawn(async move {
            let mut carried = JoinSet::new();
            loop {
                tokio::select! {
                    Some(_) = carried.join_next() => {}
                    accepted = listener.accept() => {
                        let Ok((stream, _)) = accepted else { return };
                        let (watched, trap) = (watched.clone(), Arc::clone(&shared));
                        // An error ends the connection, which is all that it means.
                        carried.spawn(async move { carry(stream, target, watched, trap).await.unwrap_or_default() });
                    }
                }
            }
        });
        Ok(Self {
            address,
            state,
            trap,
            _tasks: tasks,
        })
    }

    /// The URL that a node takes.
    #[must_use]
    pub fn url(&self) -> String {
        format!("redis://{}", self.address)
    }

    /// Waits for a step. One at a time.
    pub fn arm(&self, trap: Trap) {
        *self.trap.lock() = Some(trap);
    }

    /// Waits no more.
    pub fn disarm(&self) {
        drop(self.trap.lock().take());
    }

    /// Everything takes so long from now on, in each direction.
    pub fn slow(&self, delay: Duration) {
        self.state.send_modify(|state| state.delay = delay);
    }

    /// Nothing passes until it is released.
    pub fn hold(&self, is_held: bool) {
        self.state.send_modify(|state| state.is_held = is_held);
    }

    /// Resets every connection that is open.
    pub fn reset(&self) {
        self.state.send_modify(|state| state.resets += 1);
    }
}

/// Carries one connection until it is reset, or both directions have ended.
async fn carry(
    near: TcpStream,
    target: SocketAddr,
    mut watched: watch::Receiver<State>,
    trap: Arc<Mutex<Option<Trap>>>,
) -> Result<()> {
    let resets = watched.borrow_and_update().resets;
    let far = TcpStream::connect(target).await;
    // However it ends, it ends with a reset.
    SockRef::from(&near).set_linger(Some(Duration::ZERO))?;
    let far = far?;
    SockRef::from(&far).set_linger(Some(Duration::ZERO))?;
    near.set_nodelay(true)?;
    far.set_nodelay(true)?;
    let (from_near, to_near) = near.into_split();
    let (from_far, to_far) = far.into_split();
    let there = pump(from_near, to_far, Direction::There, watched.clone(), &trap);
    let back = pump(from_far, to_near, Direction::Back, watched.clone(), &trap);
    let is_reset = watched.wait_for(|state| state.resets != resets);
    tokio::select! {
        _ = is_reset => {}
        (there, back) = async { tokio::join!(there, back) } => { there.and(back)?; }
    }
    Ok(())
}

/// Carries one direction to its end.
async fn pump(
    mut from: OwnedReadHalf,
    mut to: OwnedWriteHalf,
    direction: Direction,
    mut watched: watch::Receiver<State>,
    trap: &Mutex<Option<Trap>>,
) -> Result<()> {
    let mut bytes = vec![0; CHUNK_BYTES];
    loop {
        let count = from.read(&mut bytes).await?;
        if count == 0 {
            to.shutdown().await.unwrap_or_default(); // The other side may have gone.
            return Ok(());
        }
        let chunk = &mut bytes[..count];
        let trap = sprung(&mut trap.lock(), direction, chunk);
        if let Some(trap) = trap {
            if let Some(mangle) = trap.mangle {
                mangle.apply(chunk);
            }
            let _ = trap.sprung.send(()); // Nobody may wait for it any more.
            let _ = trap.held.await; // An error, as nothing is ever sent: it goes on.
        }
        let delay = watched.borrow().delay;
        sleep(delay).await;
        watched.wait_for(|state| !state.is_held).await?;
        to.write_all(chunk).await?;
    }
}

/// The trap, if this chunk is what it waits for.
fn sprung(trap: &mut Option<Trap>, direction: Direction, chunk: &[u8]) -> Option<Trap> {
    let armed = trap.as_mut()?;
    if armed.direction != direction || memmem::find(chunk, armed.needle).is_none() {
        return None;
    }
    if armed.mangle.is_some() && version_at(chunk).is_none() {
        return None;
    }
    if 0 < armed.skip {
        armed.skip -= 1;
        return None;
    }
    trap.take()
}

/// Where a snapshot has its version: the first field, with the path of the endpoint behind it.
fn version_at(chunk: &[u8]) -> Option<usize> {
    let is_snapshot = |window: &[u8]| matches!(window, [0x08, version, 0x12, length, b'/'] if (1..=3).contains(version) && *length < 64);
    chunk.windows(5).position(is_snapshot).map(|at| at + 1)
}

impl Mangle {
    fn apply(self, chunk: &mut [u8]) {
        if let Some(at) = version_at(chunk) {
            match self {
                Self::Version => chunk[at] = 9,
                // A field with a wire type that does not exist.
                Self::Damage => chunk[at + 1] = 0x17,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn trap(needle: &'static [u8], skip: usize, mangle: Option<Mangle>) -> Trap {
        Trap {
            direction: Direction::There,
            needle,
            skip,
            mangle,
            sprung: oneshot::channel().0,
            held: oneshot::channel().1,
        }
    }

    #[test]
    fn a_trap_springs_once_in_its_direction_behind_those_that_it_lets_pass() {
        let mut armed = Some(trap(b"mark", 1, None));
        assert!(sprung(&mut armed, Direction::Back, b"a mark").is_none());
        assert!(sprung(&mut armed, Direction::There, b"other").is_none());
        assert!(sprung(&mut armed, Direction::There, b"a mark").is_none());
        assert!(sprung(&mut armed, Direction::There, b"a mark").is_some());
        assert!(sprung(&mut armed, Direction::There, b"a mark").is_none());
    }

    #[test]
    fn a_snapshot_gets_another_version_and_nothing_else_is_changed() {
        let mut armed = Some(trap(b"node", 0, Some(Mangle::Version)));
        assert!(sprung(&mut armed, Direction::There, b"node: no snapshot").is_none());
        let mut chunk = b"node:\x08\x02\x12\x03/wsrest".to_vec();
        assert!(sprung(&mut armed, Direction::There, &chunk).is_some());
        Mangle::Version.apply(&mut chunk);
        assert_eq!(chunk, b"node:\x08\x09\x12\x03/wsrest");
    }
}
