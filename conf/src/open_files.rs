//! How many descriptors the process may have: as many as it is allowed to ask for.

use std::io;

/// The limit of open files leaves a program no room to work in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "the limit of open files is {limit}, and at least {needed} are needed: raise it (ulimit -n, or LimitNOFILE of systemd)"
)]
pub struct TooFewOpenFiles {
    /// How many there may be.
    pub limit: u64,
    /// How many the program needs for itself and a few clients.
    pub needed: u64,
}

impl TooFewOpenFiles {
    /// `limit`, if it is enough.
    ///
    /// # Errors
    ///
    /// It is less than `needed`.
    pub fn check(limit: u64, needed: u64) -> Result<u64, Self> {
        if limit < needed {
            return Err(Self { limit, needed });
        }
        Ok(limit)
    }
}

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
    // SAFETY: `limit` is a valid place for the result and outlives the call.
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
    fn too_few_are_an_error_that_names_both_numbers() {
        assert_eq!(TooFewOpenFiles::check(64, 64), Ok(64));
        let error = TooFewOpenFiles::check(24, 64).unwrap_err().to_string();
        assert!(
            error.contains("is 24, and at least 64 are needed"),
            "{error}"
        );
    }

    #[test]
    fn the_limit_becomes_the_hard_one_and_stays_there() {
        let first = raise_open_files().unwrap();
        assert_eq!(raise_open_files().unwrap(), first);
    }
}
