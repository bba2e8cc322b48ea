//! Which connections a process has, as the kernel counts them.

use std::{
    collections::HashSet,
    fs,
    net::{Ipv4Addr, SocketAddr},
};

/// How many established connections to one of the `local` addresses these processes have open, each counted once.
#[must_use]
pub fn held_by(pids: &[i32], local: &[SocketAddr]) -> usize {
    let sockets: HashSet<String> = pids.iter().flat_map(|pid| sockets(*pid)).collect();
    let table = fs::read_to_string("/proc/net/tcp").unwrap_or_default();
    let established = table.lines().filter_map(established);
    let held = established.filter(|(address, inode)| {
        local.contains(address) && sockets.contains(&format!("socket:[{inode}]"))
    });
    held.count()
}

/// The names of the sockets of a process; none if it has ended.
fn sockets(pid: i32) -> Vec<String> {
    let files = fs::read_dir(format!("/proc/{pid}/fd"))
        .into_iter()
        .flatten();
    let targets = files.filter_map(|file| fs::read_link(file.ok()?.path()).ok());
    let names = targets.filter_map(|target| Some(target.to_str()?.to_owned()));
    names.filter(|name| name.starts_with("socket:")).collect()
}

/// The local address and the inode in a line of `/proc/net/tcp` (proc(5)) about an established connection.
fn established(line: &str) -> Option<(SocketAddr, &str)> {
    const ESTABLISHED: &str = "01";
    let mut fields = line.split_ascii_whitespace();
    let (address, port) = fields.nth(1)?.split_once(':')?;
    let address = u32::from_str_radix(address, 16).ok()?.to_ne_bytes();
    let port = u16::from_str_radix(port, 16).ok()?;
    let state = fields.nth(1)?;
    let inode = fields.nth(5)?;
    let address = SocketAddr::from((Ipv4Addr::from(address), port));
    (state == ESTABLISHED).then_some((address, inode))
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, TcpStream};

    use super::*;

    #[test]
    fn connections_of_this_process_are_counted_and_its_listeners_are_not() {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let address = listener.local_addr().unwrap();
        let this = std::process::id().cast_signed();
        assert_eq!(held_by(&[this], &[address]), 0);
        let near = TcpStream::connect(address).unwrap();
        let far = listener.accept().unwrap();
        assert_eq!(held_by(&[this, this], &[address]), 1);
        assert_eq!(held_by(&[], &[address]), 0);
        drop((near, far));
    }
}
