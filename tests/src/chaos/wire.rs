//! A wire to Redis that can be cut, slowed down and half-closed, and that can lead to another server.

use std::{
    net::{Ipv4Addr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use anyhow::Result;
use parking_lot::Mutex;
use socket2::SockRef;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{
        TcpListener, TcpStream,
        tcp::{OwnedReadHalf, OwnedWriteHalf},
    },
    sync::watch,
    task::JoinSet,
    time::sleep,
};

use crate::harness::loopback;

/// How much is carried at a time.
const CHUNK_BYTES: usize = 64 << 10;

/// What a wire does to new connections, and to those that are open.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Condition {
    /// It carries everything at once.
    Whole,
    /// Each chunk of bytes takes this long, in both directions.
    Slow(Duration),
    /// It keeps what it is given, and accepts more.
    Held,
    /// It resets every connection.
    Cut,
}

/// What becomes of one direction of the connections that are open.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Half {
    /// The receiver is told that no more will come; the sender is told nothing.
    Closed,
    /// Nobody is told anything, and nothing comes.
    Mute,
}

/// A direction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// To Redis.
    There,
    /// From Redis.
    Back,
}

/// A wire to a server.
#[derive(Debug)]
pub struct Wire {
    /// Where it begins.
    pub address: SocketAddr,
    target: Arc<Mutex<SocketAddr>>,
    state: watch::Sender<State>,
    /// The accepting task, which owns the carrying ones.
    _tasks: JoinSet<()>,
}

#[derive(Clone, Copy, Debug)]
struct State {
    condition: Condition,
    /// How often everything that was open was reset.
    resets: u64,
    /// How often everything that was open was half-closed, and how the last time.
    halves: u64,
    half: (Direction, Half),
}

impl Wire {
    /// A whole wire to `target`.
    ///
    /// # Errors
    ///
    /// There is no port.
    pub async fn start(target: SocketAddr) -> Result<Self> {
        Self::start_on(loopback::own(), target, Vec::new()).await
    }

    /// The same that begins on `host`, and on which texts of what comes back are replaced by others of the same length.
    ///
    /// # Errors
    ///
    /// There is no port.
    pub async fn start_on(
        host: Ipv4Addr,
        target: SocketAddr,
        replaced: Vec<(String, String)>,
    ) -> Result<Self> {
        let listener = TcpListener::bind((host, 0)).await?;
        let replaced: Arc<[_]> = replaced.into();
        let address = listener.local_addr()?;
        let target = Arc::new(Mutex::new(target));
        let (state, watched) = watch::channel(State {
            condition: Condition::Whole,
            resets: 0,
            halves: 0,
            half: (Direction::Back, Half::Closed),
        });
        let mut tasks = JoinSet::new();
        let leads_to = Arc::clone(&target);
        tasks.spawn(async move {
            let mut carried = JoinSet::new();
            loop {
                tokio::select! {
                    Some(_) = carried.join_next() => {}
                    accepted = listener.accept() => {
                        let Ok((stream, _)) = accepted else { return };
                        let (target, watched) = (*leads_to.lock(), watched.clone());
                        let replaced = Arc::clone(&replaced);
                        // An error ends the connection, which is all that it means.
                        carried.spawn(async move {
                            carry(stream, target, watched, &replaced).await.unwrap_or_default();
                        });
                    }
                }
            }
        });
        Ok(Self {
            address,
            target,
            state,
            _tasks: tasks,
        })
    }

    /// The URL that a node takes.
    #[must_use]
    pub fn url(&self) -> String {
        format!("redis://{}", self.address)
    }

    /// Changes what it does from now on, for connections that are open too.
    pub fn set(&self, condition: Condition) {
        self.state.send_modify(|state| state.condition = condition);
    }

    /// Resets every connection that is open.
    pub fn reset(&self) {
        self.state.send_modify(|state| state.resets += 1);
    }

    /// Half-closes every connection that is open. New ones are whole.
    pub fn half_close(&self, direction: Direction, half: Half) {
        self.state.send_modify(|state| {
            state.halves += 1;
            state.half = (direction, half);
        });
    }

    /// Lets new connections lead to another server.
    pub fn lead_to(&self, target: SocketAddr) {
        *self.target.lock() = target;
    }
}

/// Carries one connection until it is reset, or both directions have ended.
async fn carry(
    near: TcpStream,
    target: SocketAddr,
    mut watched: watch::Receiver<State>,
    replaced: &[(String, String)],
) -> Result<()> {
    let begun = *watched.borrow_and_update();
    if begun.condition == Condition::Cut {
        return Ok(SockRef::from(&near).set_linger(Some(Duration::ZERO))?);
    }
    let far = TcpStream::connect(target).await?;
    for stream in [&near, &far] {
        stream.set_nodelay(true)?;
        // However it ends, it ends with a reset: both sides have been told already if they were to be told.
        SockRef::from(stream).set_linger(Some(Duration::ZERO))?;
    }
    let (from_near, to_near) = near.into_split();
    let (from_far, to_far) = far.into_split();
    let there = pump(from_near, to_far, Direction::There, watched.clone(), &[]);
    let back = pump(
        from_far,
        to_near,
        Direction::Back,
        watched.clone(),
        replaced,
    );
    let is_reset =
        watched.wait_for(|state| state.condition == Condition::Cut || state.resets != begun.resets);
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
    replaced: &[(String, String)],
) -> Result<()> {
    let halves = watched.borrow().halves;
    let mut bytes = vec![0; CHUNK_BYTES];
    let mut is_over = false;
    loop {
        let state = *watched.borrow_and_update();
        if state.halves != halves && state.half.0 == direction && !is_over {
            is_over = true;
            if state.half.1 == Half::Closed {
                to.shutdown().await?;
            }
        }
        let count = tokio::select! {
            read = from.read(&mut bytes) => read?,
            changed = watched.changed() => {
                changed?;
                continue;
            }
        };
        if count == 0 {
            // Some connections end in the middle of it, which tells the other side as well.
            to.shutdown().await.unwrap_or_default();
            return Ok(());
        }
        if is_over {
            continue;
        }
        let condition = watched.borrow().condition;
        match condition {
            Condition::Slow(delay) => sleep(delay).await,
            Condition::Held => {
                watched
                    .wait_for(|state| state.condition != Condition::Held)
                    .await?;
            }
            Condition::Whole | Condition::Cut => {}
        }
        for (old, new) in replaced {
            replace(&mut bytes[..count], old.as_bytes(), new.as_bytes());
        }
        to.write_all(&bytes[..count]).await?;
    }
}

/// Puts `new` wherever `old`, which is as long, is.
fn replace(bytes: &mut [u8], old: &[u8], new: &[u8]) {
    debug_assert_eq!(old.len(), new.len());
    for at in 0..bytes.len().saturating_sub(old.len() - 1) {
        if bytes[at..].starts_with(old) {
            bytes[at..at + new.len()].copy_from_slice(new);
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::timeout;

    use super::*;
    use crate::harness::wait;

    /// Both ends of a connection over a wire.
    async fn connected() -> (Wire, TcpListener, TcpStream, TcpStream) {
        let server = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let wire = Wire::start(server.local_addr().unwrap()).await.unwrap();
        let near = TcpStream::connect(wire.address).await.unwrap();
        let (far, _) = server.accept().await.unwrap();
        (wire, server, near, far)
    }

    async fn next(stream: &mut TcpStream) -> Option<u8> {
        let mut byte = [0];
        let read = timeout(wait::SOON, stream.read(&mut byte)).await;
        let read = read.expect("something comes");
        (read.ok()? == 1).then_some(byte[0])
    }

    #[tokio::test]
    async fn a_cut_resets_what_is_open_and_refuses_what_comes() {
        let (wire, _server, mut near, mut far) = connected().await;
        near.write_all(b"a").await.unwrap();
        assert_eq!(next(&mut far).await, Some(b'a'));
        wire.set(Condition::Cut);
        assert_eq!(next(&mut near).await, None);
        assert_eq!(next(&mut far).await, None);
        let mut refused = TcpStream::connect(wire.address).await.unwrap();
        assert_eq!(next(&mut refused).await, None);
    }

    #[tokio::test]
    async fn a_closed_half_ends_in_one_direction_and_goes_on_in_the_other() {
        let (wire, _server, mut near, mut far) = connected().await;
        far.write_all(b"a").await.unwrap();
        assert_eq!(next(&mut near).await, Some(b'a'));
        wire.half_close(Direction::Back, Half::Closed);
        assert_eq!(next(&mut near).await, None);
        near.write_all(b"b").await.unwrap();
        assert_eq!(next(&mut far).await, Some(b'b'));
        far.write_all(b"c").await.unwrap();
        near.write_all(b"d").await.unwrap();
        assert_eq!(next(&mut far).await, Some(b'd'));
    }

    #[test]
    fn each_text_is_replaced_and_all_else_stays() {
        let mut bytes = *b"a $2 bb $2 b";
        replace(&mut bytes, b"$2 b", b"$2 c");
        assert_eq!(&bytes, b"a $2 cb $2 c");
        replace(&mut bytes, b"longer than it is", b"longer than it IS");
        assert_eq!(&bytes, b"a $2 cb $2 c");
    }

    #[tokio::test]
    async fn what_is_held_comes_when_it_is_let_go_and_elsewhere_leads_a_new_connection() {
        let (wire, _server, mut near, mut far) = connected().await;
        wire.set(Condition::Held);
        near.write_all(b"a").await.unwrap();
        let other = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        wire.lead_to(other.local_addr().unwrap());
        let second = TcpStream::connect(wire.address).await.unwrap();
        let (mut elsewhere, _) = other.accept().await.unwrap();
        wire.set(Condition::Whole);
        assert_eq!(next(&mut far).await, Some(b'a'));
        drop(second);
        assert_eq!(next(&mut elsewhere).await, None);
    }
}
