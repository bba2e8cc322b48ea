//! The connection between both processes: messages, and the descriptors that come with them.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::time::Duration;

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags,
};
use tokio::io::Interest;
use tokio::net::UnixStream;
use tokio::time::timeout;
use zeroize::Zeroizing;

use crate::takeover::wire;
use crate::takeover::wire::{Bytes, HEADER, Kind, MESSAGE_MAX};

/// The most descriptors of one message; the kernel allows 253.
pub(super) const DESCRIPTORS_MAX: usize = 250;

/// How long the other process may take for a message that needs no work.
pub(super) const MESSAGE_WAIT: Duration = Duration::from_secs(10);

/// Why a takeover ends early.
#[derive(Debug, thiserror::Error)]
pub(crate) enum TakeoverError {
    /// Nobody listens on the socket, or it cannot be connected to.
    #[error("cannot connect to {path}: {source}")]
    Connect {
        /// The socket.
        path: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// It may have ended, or given up.
    #[error("the other process has closed the connection")]
    Closed,
    /// It may be stuck.
    #[error("the other process does not respond within {0:?}")]
    Timeout(Duration),
    /// It may be of another version.
    #[error("the other process sent a message that does not belong here, or is damaged")]
    Malformed,
    /// Its reason.
    #[error("the other process refuses: {0}")]
    Refused(String),
    /// Why this process does not take part.
    #[error("{0}")]
    Unsuitable(String),
    /// `ulimit -n` of this process is too low.
    #[error("this process may not open as many descriptors as the other one sends")]
    TooFewDescriptors,
    /// The registry is away, or slow.
    #[error("no backends were found within {0:?} in a pool where the other process has some")]
    NoBackends(Duration),
    /// Any other failure.
    #[error(transparent)]
    Io(#[from] io::Error),
}

/// A message with its descriptors.
pub(super) struct Received {
    pub(super) kind: Kind,
    pub(super) payload: Bytes,
    /// Fewer than were sent if this process may not have so many.
    pub(super) descriptors: Vec<OwnedFd>,
}

/// A connection to the other process.
///
/// # Cancel safety
///
/// After a send or a receive that was dropped it is not known what the other process has got: the connection has to be closed.
pub(super) struct Channel(UnixStream);

impl Channel {
    pub(super) fn new(socket: UnixStream) -> Self {
        Self(socket)
    }

    /// To be moved to another runtime.
    pub(super) fn into_std(self) -> io::Result<std::os::unix::net::UnixStream> {
        self.0.into_std()
    }

    /// Sends a message with `descriptors`, of which there are at most [`DESCRIPTORS_MAX`].
    ///
    /// # Errors
    ///
    /// [`TakeoverError`]. The other process may have got a part of the message, and never the whole of it.
    pub(super) async fn send(
        &self,
        message: &[u8],
        descriptors: &[BorrowedFd<'_>],
    ) -> Result<(), TakeoverError> {
        let sending = async {
            let mut sent = 0;
            while sent < message.len() {
                // They go with the first byte.
                let descriptors = if sent == 0 { descriptors } else { &[] };
                sent += self.send_some(&message[sent..], descriptors).await?;
            }
            Ok(())
        };
        let sent = timeout(MESSAGE_WAIT, sending).await;
        sent.map_err(|_| TakeoverError::Timeout(MESSAGE_WAIT))?
    }

    async fn send_some(
        &self,
        bytes: &[u8],
        descriptors: &[BorrowedFd<'_>],
    ) -> Result<usize, TakeoverError> {
        let send = || -> io::Result<usize> {
            let mut space =
                [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS_MAX))];
            let mut control = SendAncillaryBuffer::new(&mut space);
            if !descriptors.is_empty()
                && !control.push(SendAncillaryMessage::ScmRights(descriptors))
            {
                return Err(io::ErrorKind::InvalidInput.into());
            }
            let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
            let sent = rustix::net::sendmsg(&self.0, &[IoSlice::new(bytes)], &mut control, flags)?;
            Ok(sent)
        };
        match self.0.async_io(Interest::WRITABLE, send).await {
            Ok(0) => Err(TakeoverError::Closed),
            Ok(sent) => Ok(sent),
            Err(error) if is_closed(&error) => Err(TakeoverError::Closed),
            Err(error) => Err(error.into()),
        }
    }

    /// Receives the next message, however long that takes.
    ///
    /// # Errors
    ///
    /// [`TakeoverError::Refused`] for a message that says so.
    pub(super) async fn receive(&self) -> Result<Received, TakeoverError> {
        let mut descriptors = Vec::new();
        let mut header = [0; HEADER];
        self.fill(&mut header, &mut descriptors).await?;
        let [kind, length @ ..] = header;
        let length = usize::try_from(u32::from_be_bytes(length)).unwrap_or(usize::MAX);
        let kind = Kind::of(kind).ok_or(TakeoverError::Malformed)?;
        if MESSAGE_MAX < length {
            return Err(TakeoverError::Malformed);
        }
        let mut payload = Zeroizing::new(vec![0; length]);
        self.fill(&mut payload, &mut descriptors).await?;
        if kind == Kind::Refused {
            return Err(TakeoverError::Refused(wire::read_refused(&payload)));
        }
        Ok(Received {
            kind,
            payload,
            descriptors,
        })
    }

    /// Receives the next message, which has to be of this kind.
    ///
    /// # Errors
    ///
    /// [`TakeoverError`], also if it does not arrive within `wait`.
    pub(super) async fn expect(
        &self,
        kind: Kind,
        wait: Duration,
    ) -> Result<Received, TakeoverError> {
        let received = timeout(wait, self.receive()).await;
        let received = received.map_err(|_| TakeoverError::Timeout(wait))??;
        match received.kind == kind {
            true => Ok(received),
            false => Err(TakeoverError::Malformed),
        }
    }

    /// Reads until `bytes` is full.
    async fn fill(
        &self,
        bytes: &mut [u8],
        descriptors: &mut Vec<OwnedFd>,
    ) -> Result<(), TakeoverError> {
        let mut read = 0;
        while read < bytes.len() {
            let receive = || -> io::Result<usize> {
                let mut space =
                    [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS_MAX))];
                let mut control = RecvAncillaryBuffer::new(&mut space);
                let mut rest = [IoSliceMut::new(&mut bytes[read..])];
                let flags = RecvFlags::CMSG_CLOEXEC | RecvFlags::DONTWAIT;
                let received = rustix::net::recvmsg(&self.0, &mut rest, &mut control, flags)?;
                for message in control.drain() {
                    if let RecvAncillaryMessage::ScmRights(more) = message {
                        descriptors.extend(more);
                    }
                }
                Ok(received.bytes)
            };
            match self.0.async_io(Interest::READABLE, receive).await {
                Ok(0) => return Err(TakeoverError::Closed),
                Ok(more) => read += more,
                Err(error) if is_closed(&error) => return Err(TakeoverError::Closed),
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }
}

fn is_closed(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset
    )
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    fn pair() -> (Channel, Channel) {
        let (one, other) = UnixStream::pair().unwrap();
        (Channel::new(one), Channel::new(other))
    }

    #[tokio::test]
    async fn descriptors_arrive_with_their_message_however_long_that_is() {
        let (from, to) = pair();
        let (mut near, far) = UnixStream::pair().unwrap();
        let mut message = wire::refused(&"x".repeat(3 << 20));
        message[0] = Kind::Tunnels as u8;
        let descriptors = vec![far.as_fd(); DESCRIPTORS_MAX];
        let sending = async {
            from.send(&message, &descriptors).await.unwrap();
            from.send(&wire::empty(Kind::Commit), &[]).await.unwrap();
        };
        let receiving = async {
            let first = to.expect(Kind::Tunnels, MESSAGE_WAIT).await.unwrap();
            let second = to.expect(Kind::Commit, MESSAGE_WAIT).await.unwrap();
            (first, second)
        };
        let ((), (mut first, second)) = tokio::join!(sending, receiving);
        assert!(first.payload[..] == message[HEADER..]);
        assert_eq!(
            (first.descriptors.len(), second.descriptors.len()),
            (DESCRIPTORS_MAX, 0)
        );
        let last = std::os::unix::net::UnixStream::from(first.descriptors.pop().unwrap());
        let mut last = UnixStream::from_std(last).unwrap();
        last.write_all(b"!").await.unwrap();
        assert_eq!(near.read_u8().await.unwrap(), b'!');
    }

    #[tokio::test]
    async fn what_is_no_message_is_an_error_and_takes_no_memory() {
        for bytes in [
            &[99, 0, 0, 0, 0][..],
            &[Kind::Tunnels as u8, 0xff, 0xff, 0xff, 0xff],
            b"GET / HTTP/1.1\r\n\r\n",
        ] {
            let (near, mut far) = UnixStream::pair().unwrap();
            far.write_all(bytes).await.unwrap();
            let error = Channel::new(near).receive().await.err().unwrap();
            assert!(matches!(error, TakeoverError::Malformed), "{error}");
        }
        let (near, far) = pair();
        drop(far);
        assert!(matches!(near.receive().await, Err(TakeoverError::Closed)));
        let sent = near.send(&wire::empty(Kind::Go), &[]).await;
        assert!(matches!(sent, Err(TakeoverError::Closed)));
    }
}
