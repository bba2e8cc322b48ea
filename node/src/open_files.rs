//! How many descriptors this process may have: as many as it is allowed to ask for.

use std::io;

/// Descriptors that are not clients: the listener, the runtime, connections to Redis.
const RESERVED: u64 = 128;

/// Raises the soft limit of open files to the hard one and returns it.
///
/// # Errors
///
/// What the system says, if it does not let us.
#[expect(unsafe_code, reason = "the standard library has no resource limits")]
pub(crate) fn raise_limit() -> io::Result<u64> {
    let mut limit = libc::rlimit {
        rlim_cur: 0,
        rlim_max: 0,
    };
    // SAFETY: `limit` is a valid place for the answer and outlives the call.
    if unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit) } != 0 {
        return Err(io::Error::last_os_error());
    }
    limit.rlim_cur = limit.rlim_max;
    // SAFETY: `limit` is a valid limit and outlives the call.
    if unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit) } != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(limit.rlim_cur)
}

/// How many clients fit into `files`: each takes one descriptor.
pub(crate) fn clients_in(files: u64) -> usize {
    usize::try_from(files.saturating_sub(RESERVED))
        .unwrap_or(usize::MAX)
        .max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_limit_becomes_the_hard_one_and_stays_there() {
        let first = raise_limit().unwrap();
        assert_eq!(raise_limit().unwrap(), first);
    }

    #[test]
    fn a_client_takes_one_descriptor() {
        assert_eq!(clients_in(RESERVED + 1000), 1000);
        assert_eq!(clients_in(10), 1);
    }
}
