//! Deciding what a program reads at once: what is sent here is read by the other side before more is sent.
//!
//! The kernel is asked how many bytes the socket at the other end of a connection of this machine holds unread (`sock_diag(7)`),
//! so that a test splits a message by a condition and not by a pause.
//!
//! Two things would make that response wrong. What is sent may not have arrived yet: the count of received bytes is compared with
//! that of written ones first. And the queue is empty while the `read(2)` that empties it still runs, which would then return
//! what is sent next as well: the question asks for `INET_DIAG_INFO`, for which the kernel takes the lock of the socket after it
//! has read the queue, and so responds once that call has returned.

use std::{
    io::{Read as _, Write as _},
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use anyhow::{Context as _, Result, bail};
use socket2::{Domain, Protocol, Socket, Type};
use tokio::time::{Instant, sleep};

/// How long a program may leave bytes unread before it counts as one that does not want them.
const UNWANTED: Duration = Duration::from_millis(400);

/// How often the kernel is asked while bytes are unread.
const PAUSE: Duration = Duration::from_micros(200);

/// Both ends of a connection between two programs of this machine.
#[derive(Clone, Copy, Debug)]
pub struct Ends {
    /// The end that sends.
    pub near: SocketAddr,
    /// The end that reads.
    pub far: SocketAddr,
}

impl Ends {
    /// The ends of `stream`, which is the near one.
    ///
    /// # Errors
    ///
    /// It is not connected.
    pub fn of(stream: &tokio::net::TcpStream) -> Result<Self> {
        Ok(Self {
            near: stream.local_addr()?,
            far: stream.peer_addr()?,
        })
    }

    /// Waits until the program at the far end has read all that was sent. False if it does not read on, or is gone.
    pub async fn drained(self) -> bool {
        let Ok(kernel) = SocketQueues::open() else {
            return false;
        };
        let end = Instant::now() + UNWANTED;
        loop {
            match kernel.unread(self) {
                Ok(0) => return true,
                Err(_) => return false,
                Ok(_) if end < Instant::now() => return false,
                Ok(_) => sleep(PAUSE).await,
            }
        }
    }
}

/// The receive and send queues of this machine's sockets, as the kernel counts them.
#[derive(Debug)]
pub struct SocketQueues(Socket);

/// What the kernel counts of one socket, in bytes.
#[derive(Clone, Copy, Debug)]
struct Counts {
    /// Received and not yet read by the program.
    unread: u64,
    /// Received since the connection was made.
    received: u64,
    /// Written by the program since then.
    written: u64,
}

const NETLINK_SOCK_DIAG: i32 = 4;
const SOCK_DIAG_BY_FAMILY: u16 = 20;
const NLM_F_REQUEST: u16 = 1;
const ANY_STATE: u32 = u32::MAX;
const NO_COOKIE: u32 = u32::MAX;

/// The state of a socket that no program has any more.
const TIME_WAIT: u8 = 6;

/// `struct nlmsghdr`, where the state and the receive queue are in the `struct inet_diag_msg` behind it, and where that ends.
const HEADER_BYTES: usize = 16;
const REQUEST_BYTES: usize = 56;
const STATE_AT: usize = HEADER_BYTES + 1;
const UNREAD_AT: usize = HEADER_BYTES + 4 + 48 + 4;
const ATTRIBUTES_AT: usize = HEADER_BYTES + 72;

/// The attribute that holds a `struct tcp_info`, and the bit that asks for it.
const INET_DIAG_INFO: u16 = 2;
const ASK_FOR_INFO: u8 = 1 << (INET_DIAG_INFO - 1);

/// Where `struct tcp_info` has `tcpi_bytes_received`, `tcpi_notsent_bytes`, `tcpi_bytes_sent` and `tcpi_bytes_retrans`.
const RECEIVED_AT: usize = 128;
const UNSENT_AT: usize = 144;
const SENT_AT: usize = 200;
const SENT_AGAIN_AT: usize = 208;

impl SocketQueues {
    /// Opens a socket to the kernel's socket diagnostics.
    ///
    /// # Errors
    ///
    /// The kernel has none.
    pub fn open() -> Result<Self> {
        let kernel = Socket::new(
            Domain::from(libc::AF_NETLINK),
            Type::RAW,
            Some(Protocol::from(NETLINK_SOCK_DIAG)),
        )?;
        kernel.set_read_timeout(Some(Duration::from_secs(1)))?;
        Ok(Self(kernel))
    }

    /// How many bytes the near end has written that the program at the far end has not read.
    ///
    /// # Errors
    ///
    /// An end is closed.
    pub fn unread(&self, ends: Ends) -> Result<u64> {
        let written = self.of(ends.near, ends.far)?.written;
        let received = self.of(ends.far, ends.near)?.received;
        if received < written {
            return Ok(written - received);
        }
        Ok(self.of(ends.far, ends.near)?.unread)
    }

    /// The counts of the socket at `local` that is connected to `remote`.
    fn of(&self, local: SocketAddr, remote: SocketAddr) -> Result<Counts> {
        (&self.0).write_all(&question(local, remote)?)?;
        let mut response = [0; 2_048];
        let length = (&self.0).read(&mut response)?;
        let response = &response[..length];
        let is_open = response.get(4..6) == Some(&SOCK_DIAG_BY_FAMILY.to_ne_bytes())
            && response.get(STATE_AT) != Some(&TIME_WAIT);
        if !is_open {
            bail!("there is no connection of {local} to {remote}");
        }
        counts(response).context("a short response of the kernel")
    }
}

/// The counts in a response of the kernel, if all of them are in it.
fn counts(response: &[u8]) -> Option<Counts> {
    let info = tcp_info(response.get(ATTRIBUTES_AT..)?)?;
    let sent_once = u64_at(info, SENT_AT)?.checked_sub(u64_at(info, SENT_AGAIN_AT)?)?;
    Some(Counts {
        unread: u32_at(response, UNREAD_AT)?.into(),
        received: u64_at(info, RECEIVED_AT)?,
        written: sent_once + u64::from(u32_at(info, UNSENT_AT)?),
    })
}

/// The `struct tcp_info` among the attributes (`struct rtattr`: length, type, value, padded to four bytes).
fn tcp_info(mut attributes: &[u8]) -> Option<&[u8]> {
    loop {
        let (head, _) = attributes.split_first_chunk::<4>()?;
        let length = usize::from(u16::from_ne_bytes([head[0], head[1]]));
        let value = attributes.get(head.len()..length)?;
        if u16::from_ne_bytes([head[2], head[3]]) == INET_DIAG_INFO {
            return Some(value);
        }
        attributes = attributes.get(length.next_multiple_of(4)..)?;
    }
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(*bytes.get(at..)?.first_chunk()?))
}

fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_ne_bytes(*bytes.get(at..)?.first_chunk()?))
}

/// `struct nlmsghdr` and `struct inet_diag_req_v2` for one TCP socket.
fn question(local: SocketAddr, remote: SocketAddr) -> Result<Vec<u8>> {
    let (IpAddr::V4(near), IpAddr::V4(far)) = (local.ip(), remote.ip()) else {
        bail!("only IPv4 is known here");
    };
    let mut question = Vec::with_capacity(HEADER_BYTES + REQUEST_BYTES);
    question.extend(((HEADER_BYTES + REQUEST_BYTES) as u32).to_ne_bytes());
    question.extend(SOCK_DIAG_BY_FAMILY.to_ne_bytes());
    question.extend(NLM_F_REQUEST.to_ne_bytes());
    question.extend([0; 8]);
    question.extend([
        libc::AF_INET as u8,
        libc::IPPROTO_TCP as u8,
        ASK_FOR_INFO,
        0,
    ]);
    question.extend(ANY_STATE.to_ne_bytes());
    question.extend(local.port().to_be_bytes());
    question.extend(remote.port().to_be_bytes());
    for address in [near, far] {
        question.extend(address.octets());
        question.extend([0; 12]);
    }
    question.extend([0; 4]);
    question.extend(NO_COOKIE.to_ne_bytes());
    question.extend(NO_COOKIE.to_ne_bytes());
    Ok(question)
}

#[cfg(test)]
mod tests {
    use tokio::{
        io::{AsyncReadExt as _, AsyncWriteExt as _},
        net::{TcpListener, TcpStream},
    };

    use super::*;

    #[tokio::test]
    async fn what_the_other_side_has_not_read_is_seen() -> Result<()> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let mut near = TcpStream::connect(listener.local_addr()?).await?;
        let (mut far, _) = listener.accept().await?;
        let ends = Ends::of(&near)?;
        assert!(ends.drained().await);
        near.write_all(b"hello").await?;
        assert!(!ends.drained().await);
        far.read_exact(&mut [0; 5]).await?;
        assert!(ends.drained().await);
        drop((far, near));
        assert!(!ends.drained().await);
        Ok(())
    }
}
