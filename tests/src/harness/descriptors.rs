//! The limit of open files, which every program that this one starts inherits.

use std::io;

use anyhow::{Context as _, Result};

/// How many files this process may have open.
///
/// # Errors
///
/// The system does not tell.
#[expect(unsafe_code, reason = "the standard library knows no resource limits")]
pub fn limit() -> Result<usize> {
    let mut limit = libc::rlimit {
        rlim_cur: 0,
        rlim_max: 0,
    };
    // SAFETY: `limit` is a valid place for the response, and the call writes nothing else.
    if unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit) } != 0 {
        return Err(io::Error::last_os_error()).context("cannot tell the limit of open files");
    }
    Ok(usize::try_from(limit.rlim_cur).unwrap_or(usize::MAX))
}

/// Raises the limit of open files to what the system allows this process.
///
/// # Errors
///
/// The system refuses.
#[expect(unsafe_code, reason = "the standard library knows no resource limits")]
pub fn raise_limit() -> Result<()> {
    let mut limit = libc::rlimit {
        rlim_cur: 0,
        rlim_max: 0,
    };
    // SAFETY: `limit` is a valid place for the response, and the call writes nothing else.
    let got = unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit) };
    limit.rlim_cur = limit.rlim_max;
    // SAFETY: the call reads `limit`, which lives until it returns.
    if got != 0 || unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit) } != 0 {
        return Err(io::Error::last_os_error()).context("cannot raise the limit of open files");
    }
    Ok(())
}
