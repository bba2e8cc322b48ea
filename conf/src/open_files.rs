//! How many descriptors the process may have: as many as it is allowed to ask for.

use std::io;

/// Raises the soft limit of open files to the hard one and returns it.
///
/// # Errors
///
/// What the system says, if it does not let us.
#[expect(unsafe_code, reason = "the standard library has no resource limits")]
pub fn raise_open_files() -> io::Result<u64> {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_limit_becomes_the_hard_one_and_stays_there() {
        let first = raise_open_files().unwrap();
        assert_eq!(raise_open_files().unwrap(), first);
    }
}
