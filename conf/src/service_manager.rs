//! Tells systemd, or another service manager with the same protocol (`sd_notify`), what the process does.
//!
//! Each message is one datagram to the socket in `NOTIFY_SOCKET`. Without that variable nothing is sent, so a program started by
//! hand behaves as before.

use std::env;
use std::ffi::OsStr;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::process;
use std::time::Duration;

/// How long one message may wait for room in the service manager's queue. The queue is full only if the manager itself is stuck.
const SEND_TIMEOUT: Duration = Duration::from_millis(100);

/// What the process reports about itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ServiceState {
    /// It serves: at the start, and after each reload, whether or not the reload succeeded.
    Ready,
    /// It reads its configuration again.
    Reloading,
    /// It drains, or ends.
    Stopping,
    /// It still works, for the watchdog.
    Alive,
    /// The process with this id goes on in its place.
    MainProcess(u32),
}

/// The service manager that started this process, if there is one. By default there is none.
#[derive(Debug, Default)]
pub struct ServiceManager {
    socket: Option<(UnixDatagram, SocketAddr)>,
    watchdog_timeout: Option<Duration>,
}

impl ServiceManager {
    /// Reads `NOTIFY_SOCKET`, `WATCHDOG_USEC` and `WATCHDOG_PID`.
    ///
    /// A socket that cannot be used counts as none: the service manager then reports that the start timed out.
    #[must_use]
    pub fn from_environment() -> Self {
        let notify_socket = env::var_os("NOTIFY_SOCKET");
        let watchdog_usec = env::var("WATCHDOG_USEC").ok();
        let watchdog_pid = env::var("WATCHDOG_PID").ok();
        Self {
            socket: notify_socket.as_deref().and_then(open),
            watchdog_timeout: watchdog_timeout(watchdog_usec.as_deref(), watchdog_pid.as_deref()),
        }
    }

    /// Sends `state`. A message that cannot be sent is lost; the service manager notices that it is missing.
    pub fn notify(&self, state: ServiceState) {
        let Some((socket, address)) = &self.socket else {
            return;
        };
        let message = match state {
            ServiceState::Ready => "READY=1".to_owned(),
            ServiceState::Reloading => {
                format!("RELOADING=1\nMONOTONIC_USEC={}", monotonic().as_micros())
            }
            ServiceState::Stopping => "STOPPING=1".to_owned(),
            ServiceState::Alive => "WATCHDOG=1".to_owned(),
            ServiceState::MainProcess(process) => format!("MAINPID={process}"),
        };
        drop(socket.send_to_addr(message.as_bytes(), address));
    }

    /// How often [`ServiceState::Alive`] has to be sent, or nothing if there is no watchdog: half the watchdog's timeout.
    #[must_use]
    pub fn watchdog_interval(&self) -> Option<Duration> {
        self.socket.as_ref()?;
        self.watchdog_timeout.map(|timeout| timeout / 2)
    }
}

/// A socket to send from, and the address in `name`: a path, or `@` and the name of an abstract socket.
fn open(name: &OsStr) -> Option<(UnixDatagram, SocketAddr)> {
    let address = match name.as_bytes() {
        [b'/', ..] => SocketAddr::from_pathname(name),
        [b'@', abstract_name @ ..] => SocketAddr::from_abstract_name(abstract_name),
        _ => return None,
    };
    let socket = UnixDatagram::unbound().ok()?;
    socket.set_write_timeout(Some(SEND_TIMEOUT)).ok()?;
    Some((socket, address.ok()?))
}

/// The watchdog's timeout in microseconds, if it is meant for this process.
fn watchdog_timeout(usec: Option<&str>, pid: Option<&str>) -> Option<Duration> {
    let is_for_this = pid.is_none_or(|pid| pid.parse() == Ok(process::id()));
    let usec: u64 = usec?.parse().ok()?;
    (is_for_this && usec > 0).then(|| Duration::from_micros(usec))
}

/// The time of the monotonic clock, which [`std::time::Instant`] does not show.
#[expect(
    unsafe_code,
    reason = "the standard library does not show the monotonic clock"
)]
fn monotonic() -> Duration {
    let mut time = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: `time` is a valid place for the result and outlives the call. The clock exists on every Linux.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &raw mut time) };
    Duration::new(
        u64::try_from(time.tv_sec).unwrap_or_default(),
        u32::try_from(time.tv_nsec).unwrap_or_default(),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What `receiver` gets when each state is sent to `name`.
    fn received(name: &str, receiver: &UnixDatagram) -> Vec<String> {
        let manager = ServiceManager {
            socket: open(OsStr::new(name)),
            watchdog_timeout: None,
        };
        let states = [
            ServiceState::Ready,
            ServiceState::Reloading,
            ServiceState::Stopping,
            ServiceState::Alive,
            ServiceState::MainProcess(4711),
        ];
        let messages = states.map(|state| {
            manager.notify(state);
            let mut buffer = [0; 256];
            let length = receiver.recv(&mut buffer).unwrap();
            String::from_utf8(buffer[..length].to_vec()).unwrap()
        });
        messages.into()
    }

    #[test]
    fn messages_reach_abstract_sockets_and_sockets_in_the_file_system() {
        let name = format!("causeway-notify-{}", process::id());
        let address = SocketAddr::from_abstract_name(&name).unwrap();
        let receiver = UnixDatagram::bind_addr(&address).unwrap();
        let messages = received(&format!("@{name}"), &receiver);
        assert_eq!(messages[0], "READY=1");
        let time = messages[1].strip_prefix("RELOADING=1\nMONOTONIC_USEC=");
        assert!(time.unwrap().parse::<u64>().unwrap() > 0);
        assert_eq!(messages[2..], ["STOPPING=1", "WATCHDOG=1", "MAINPID=4711"]);

        let path = env::temp_dir().join(&name);
        let receiver = UnixDatagram::bind(&path).unwrap();
        assert_eq!(received(path.to_str().unwrap(), &receiver).len(), 5);
        std::fs::remove_file(path).unwrap();
    }

    #[test]
    fn a_socket_that_is_missing_or_of_another_kind_is_no_error() {
        for name in ["/nowhere/notify", "vsock:2:1", "", "@"] {
            let manager = ServiceManager {
                socket: open(OsStr::new(name)),
                watchdog_timeout: None,
            };
            manager.notify(ServiceState::Ready);
        }
    }

    #[test]
    fn the_watchdog_of_another_process_is_ignored() {
        let this = process::id().to_string();
        let second = Some(Duration::from_secs(1));
        assert_eq!(watchdog_timeout(Some("1000000"), None), second);
        assert_eq!(watchdog_timeout(Some("1000000"), Some(&this)), second);
        assert_eq!(watchdog_timeout(Some("1000000"), Some("1")), None);
        assert_eq!(watchdog_timeout(Some("0"), None), None);
        assert_eq!(watchdog_timeout(Some("soon"), None), None);
        assert_eq!(watchdog_timeout(None, Some(&this)), None);
    }
}
