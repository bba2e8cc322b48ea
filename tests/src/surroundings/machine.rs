//! The machine as the programs see it, where it can be changed without harm to others: in namespaces for the network and for mounts.

use std::{
    fs::{self, File},
    net::SocketAddr,
    os::fd::AsRawFd as _,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, ensure};
use tokio::{
    net::{TcpStream, UdpSocket},
    process::Command,
    task::JoinSet,
};

use crate::harness::namespace;

/// Below the names of everything that has one.
const DOMAIN: &str = "causeway.test";

/// From which ports connections leave.
const PORT_RANGE: &str = "/proc/sys/net/ipv4/ip_local_port_range";

/// From which they leave while there are few.
const FEW_PORTS: &str = "61000 61039";

/// Room on the disk for logs.
const DISK_BYTES: i64 = 64 << 20;

/// Where a DNS server that never replies listens.
const SILENT_SERVER: &str = "127.0.0.53:53";

/// A machine of our own. The mounts of `/etc` end with the namespace.
#[derive(Debug)]
pub struct Machine {
    /// A small file system.
    pub disk: PathBuf,
    hosts: PathBuf,
    known: String,
    /// The DNS server that never replies.
    _silent: JoinSet<()>,
}

impl Machine {
    /// Sets it up with its files in `directory`; `None` outside of a namespace.
    ///
    /// # Errors
    ///
    /// The system refuses something.
    pub async fn set_up(directory: &Path) -> Result<Option<Self>> {
        if !namespace::is_inside() {
            return Ok(None);
        }
        let disk = directory.join("disk");
        fs::create_dir(&disk)?;
        let size = format!("size={DISK_BYTES}");
        namespace::mount(&["-t", "tmpfs", "-o", &size, "tmpfs", text(&disk)?]).await?;
        let (hosts, resolver) = (directory.join("hosts"), directory.join("resolv.conf"));
        let known = "127.0.0.1 localhost\n".to_owned();
        fs::write(&hosts, &known)?;
        let (server, _) = SILENT_SERVER.rsplit_once(':').context("it has a port")?;
        fs::write(&resolver, format!("nameserver {server}\n"))?;
        namespace::mount(&["--bind", text(&hosts)?, "/etc/hosts"]).await?;
        namespace::mount(&["--bind", text(&resolver)?, "/etc/resolv.conf"]).await?;
        let silent = UdpSocket::bind(SILENT_SERVER).await?;
        let mut tasks = JoinSet::new();
        tasks.spawn(async move {
            let mut query = [0; 512];
            while silent.recv(&mut query).await.is_ok() {}
        });
        Ok(Some(Self {
            disk,
            hosts,
            known,
            _silent: tasks,
        }))
    }

    /// Gives an address a name; the address that a program is told.
    ///
    /// # Errors
    ///
    /// The name cannot be written down.
    pub fn name(&mut self, host: &str, address: SocketAddr) -> Result<String> {
        let name = format!("{host}.{DOMAIN}");
        self.known.push_str(&format!("{} {name}\n", address.ip()));
        self.restore_names()?;
        Ok(format!("{name}:{}", address.port()))
    }

    /// No name is known any more: whoever looks one up asks the DNS server, which never replies.
    ///
    /// # Errors
    ///
    /// The file cannot be written.
    pub fn forget_names(&self) -> Result<()> {
        // Written in place: the mount is of this file.
        Ok(fs::write(&self.hosts, "127.0.0.1 localhost\n")?)
    }

    /// All names are known.
    ///
    /// # Errors
    ///
    /// The file cannot be written.
    pub fn restore_names(&self) -> Result<()> {
        Ok(fs::write(&self.hosts, &self.known)?)
    }

    /// Takes all room that is left on the disk, until the result is dropped.
    ///
    /// # Errors
    ///
    /// The disk refuses something else than more.
    pub fn fill_disk(&self) -> Result<Filler> {
        let path = self.disk.join("filler");
        let file = File::create(&path)?;
        let filler = Filler(path);
        let mut end = 0;
        let mut step = DISK_BYTES;
        while 0 < step {
            if allocate(&file, end, step) {
                end += step;
            } else {
                step /= 2;
            }
        }
        Ok(filler)
    }

    /// Takes all local ports from which these addresses could be connected to, until the result is dropped. Some are taken when
    /// this returns; those that are on their way to be free are taken by [`TakenPorts::take`].
    ///
    /// # Errors
    ///
    /// The system refuses another range.
    pub async fn take_ports(&self, addresses: Vec<SocketAddr>) -> Result<TakenPorts> {
        let before = fs::read_to_string(PORT_RANGE)?;
        fs::write(PORT_RANGE, FEW_PORTS)?;
        let mut taken = TakenPorts {
            addresses,
            streams: Vec::new(),
            before,
        };
        taken.take().await;
        Ok(taken)
    }

    /// Unmounts the disk.
    ///
    /// # Errors
    ///
    /// Something still uses it.
    pub async fn take_down(&self) -> Result<()> {
        let status = Command::new("umount").arg(&self.disk).status().await?;
        ensure!(status.success(), "cannot unmount {}", self.disk.display());
        Ok(())
    }
}

/// A file without which there is room on the disk.
#[derive(Debug)]
pub struct Filler(PathBuf);

impl Drop for Filler {
    fn drop(&mut self) {
        fs::remove_file(&self.0).unwrap_or_default();
    }
}

/// Ports that others cannot use.
#[derive(Debug)]
pub struct TakenPorts {
    addresses: Vec<SocketAddr>,
    streams: Vec<TcpStream>,
    before: String,
}

impl TakenPorts {
    /// Takes those that have become free.
    pub async fn take(&mut self) {
        for address in &self.addresses {
            while let Ok(stream) = TcpStream::connect(*address).await {
                self.streams.push(stream);
            }
        }
    }
}

impl Drop for TakenPorts {
    fn drop(&mut self) {
        fs::write(PORT_RANGE, &self.before).unwrap_or_default();
    }
}

fn text(path: &Path) -> Result<&str> {
    path.to_str().context("it is UTF-8")
}

#[expect(
    unsafe_code,
    reason = "the standard library does not allocate room in files"
)]
fn allocate(file: &File, offset: i64, length: i64) -> bool {
    // SAFETY: the descriptor is open, and the call touches no memory of ours.
    unsafe { libc::fallocate(file.as_raw_fd(), 0, offset, length) == 0 }
}
