//! Other programs in the place of the edge, before the same nodes, which are replaced as their manuals say.

use std::{
    fs,
    net::SocketAddr,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context as _, Result};
use tokio::{
    net::TcpStream,
    time::{Instant, sleep},
};

use crate::{
    continuity::former::{Former, LOOK_AFTER},
    harness::{process_group, process_group::ProcessGroup, programs, wait},
};

mod haproxy;
mod nginx;

use haproxy::Haproxy;
use nginx::Nginx;

/// When old processes close what they still have, if they do: a common setting in production.
const CLOSE_AFTER: Duration = Duration::from_secs(10);

/// How much later than that the last of them may end.
const END_WAIT: Duration = Duration::from_secs(20);

/// Threads of HAProxy, worker processes of nginx: as many as the machine has cores, at most.
const THREADS_MAX: usize = 2;

/// A program.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Program {
    /// HAProxy with a master, which starts a new worker for SIGUSR2: its seamless reload.
    Haproxy,
    /// nginx, whose master starts a new one for SIGUSR2: its binary upgrade.
    Nginx,
}

/// What becomes of connections that old processes have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OldConnections {
    /// Old processes serve them as long as they last: the default of both programs.
    Kept,
    /// Old processes close them after 10 s.
    Closed,
}

/// A program with its settings.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Setup {
    /// Which program.
    pub program: Program,
    /// What becomes of old connections.
    pub old: OldConnections,
}

/// Where it stands.
#[derive(Clone, Copy, Debug)]
pub struct Place<'a> {
    /// Where it listens without TLS.
    pub plain: SocketAddr,
    /// Where it listens with TLS.
    pub secure: SocketAddr,
    /// Has `site.crt` and `site.key`.
    pub certificates: &'a Path,
    /// The nodes.
    pub nodes: &'a [(&'a str, SocketAddr)],
    /// For its configuration, its logs and its sockets.
    pub directory: &'a Path,
}

/// A running one.
#[derive(Debug)]
pub struct Other {
    setup: Setup,
    listeners: [SocketAddr; 2],
    /// Processes that others took the place of.
    former: Vec<i32>,
    server: Server,
}

#[derive(Debug)]
enum Server {
    Haproxy(Box<Haproxy>),
    Nginx(Nginx),
}

/// Whether a signal was obeyed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Reload {
    /// New processes take the connections.
    Done,
    /// For a reason.
    Ignored(&'static str),
}

impl Setup {
    /// In the order of the report.
    pub const ALL: [Self; 4] = {
        use OldConnections::{Closed, Kept};
        use Program::{Haproxy, Nginx};
        [
            Self::new(Haproxy, Kept),
            Self::new(Haproxy, Closed),
            Self::new(Nginx, Kept),
            Self::new(Nginx, Closed),
        ]
    };

    const fn new(program: Program, old: OldConnections) -> Self {
        Self { program, old }
    }

    /// What it is called in the report.
    #[must_use]
    pub fn name(self) -> &'static str {
        match (self.program, self.old) {
            (Program::Haproxy, OldConnections::Kept) => "haproxy",
            (Program::Haproxy, OldConnections::Closed) => "haproxy-10s",
            (Program::Nginx, OldConnections::Kept) => "nginx",
            (Program::Nginx, OldConnections::Closed) => "nginx-10s",
        }
    }

    /// The setting for old connections, as it is in the configuration.
    #[must_use]
    pub fn setting(self) -> &'static str {
        match (self.program, self.old) {
            (Program::Haproxy, OldConnections::Kept) => "no `hard-stop-after`",
            (Program::Haproxy, OldConnections::Closed) => "`hard-stop-after 10s`",
            (Program::Nginx, OldConnections::Kept) => "no `worker_shutdown_timeout`",
            (Program::Nginx, OldConnections::Closed) => "`worker_shutdown_timeout 10s`",
        }
    }

    /// The version that is installed.
    ///
    /// # Errors
    ///
    /// None is; the error says what to do about it.
    pub fn version(self) -> Result<String> {
        programs::version_line(&programs::installed(&[self.program.name()])?, "-v")
    }
}

impl Program {
    /// As it is installed.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Haproxy => haproxy::NAME,
            Self::Nginx => nginx::NAME,
        }
    }
}

impl Other {
    /// Starts it and waits until it accepts connections.
    ///
    /// # Errors
    ///
    /// It is not installed, refuses its configuration, or does not listen soon.
    pub async fn start(setup: Setup, place: &Place<'_>) -> Result<Self> {
        let server = match setup.program {
            Program::Haproxy => Server::Haproxy(Box::new(Haproxy::start(place, setup.old)?)),
            Program::Nginx => Server::Nginx(Nginx::start(place, setup.old).await?),
        };
        let name = setup.name();
        wait::until(&format!("{name} to listen"), wait::SOON, async || {
            TcpStream::connect(place.plain).await.ok()
        })
        .await?;
        let listeners = [place.plain, place.secure];
        Ok(Self {
            setup,
            listeners,
            former: Vec::new(),
            server,
        })
    }

    /// All its processes.
    #[must_use]
    pub fn processes(&self) -> Vec<i32> {
        self.group().running()
    }

    fn group(&self) -> &ProcessGroup {
        match &self.server {
            Server::Haproxy(server) => &server.group,
            Server::Nginx(server) => &server.group,
        }
    }

    /// Replaces its processes and waits until the old ones have ended, if they are to. Returns what happened and what was left of
    /// all former processes 5 s after new ones had taken their place.
    ///
    /// # Errors
    ///
    /// New processes do not start.
    pub async fn reload(&mut self) -> Result<(String, Former)> {
        let began = Instant::now();
        let mut old = self.processes();
        let reload = match &self.server {
            Server::Haproxy(server) => {
                old.retain(|pid| *pid != server.master());
                server.reload().await?
            }
            Server::Nginx(server) => server.reload().await?,
        };
        if let Reload::Ignored(reason) = reload {
            let former = Former::of(&self.former, &self.listeners);
            return Ok((format!("ignored: {reason}"), former));
        }
        self.former = old;
        sleep(LOOK_AFTER).await;
        let former = Former::of(&self.former, &self.listeners);
        let end = match self.setup.old {
            OldConnections::Kept => Duration::ZERO,
            OldConnections::Closed => CLOSE_AFTER + END_WAIT,
        };
        let ended = wait::until("old processes to end", end, async || {
            let mut former = self.former.iter();
            (!former.any(|pid| process_group::is_running(*pid))).then_some(())
        });
        let line = match ended.await {
            Ok(()) => format!("the old processes ended after {:.1?}", began.elapsed()),
            Err(_) => format!("old processes run after {:.1?}", began.elapsed()),
        };
        Ok((line, former))
    }
}

fn threads() -> usize {
    std::thread::available_parallelism().map_or(1, |cores| cores.get().min(THREADS_MAX))
}

/// Writes a certificate with its key to one file.
fn both_in_one(place: &Place<'_>) -> Result<PathBuf> {
    let read = |name: &str| {
        let path = place.certificates.join(name);
        fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))
    };
    let path = place.directory.join("site.pem");
    fs::write(&path, read("site.crt")? + &read("site.key")?)?;
    Ok(path)
}
