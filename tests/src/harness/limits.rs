//! Resource limits of a process that runs, changed from outside as `prlimit` does.

use std::{io, ptr};

use anyhow::{Context as _, Result};

/// What is limited.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Resource {
    /// Open descriptors, for those that are opened from then on.
    OpenFiles,
    /// The length up to which files can be written: beyond it, a file system seems full.
    FileSize,
}

/// Sets the soft limit of a process; the hard one stays. `None`: as much as the hard one allows.
///
/// # Errors
///
/// The process is gone, or the limit is beyond the hard one.
#[expect(unsafe_code, reason = "the standard library knows no resource limits")]
pub fn set(pid: i32, resource: Resource, soft: Option<u64>) -> Result<()> {
    let resource = match resource {
        Resource::OpenFiles => libc::RLIMIT_NOFILE,
        Resource::FileSize => libc::RLIMIT_FSIZE,
    };
    let mut limit = libc::rlimit {
        rlim_cur: 0,
        rlim_max: 0,
    };
    // SAFETY: `limit` is a valid place for the response, and the call reads nothing.
    let got = unsafe { libc::prlimit(pid, resource, ptr::null(), &raw mut limit) };
    if got != 0 {
        return Err(io::Error::last_os_error()).context("cannot read a limit of a process");
    }
    limit.rlim_cur = soft.unwrap_or(limit.rlim_max);
    // SAFETY: the call reads `limit`, which lives until it returns, and writes nothing.
    let set = unsafe { libc::prlimit(pid, resource, &raw const limit, ptr::null_mut()) };
    if set != 0 {
        return Err(io::Error::last_os_error()).context("cannot limit a process");
    }
    Ok(())
}
