//! The CPU time of the current thread.

use std::time::Duration;

/// CPU time that this thread has used. Not wall time: the load of other processes must not lengthen the window.
#[expect(unsafe_code, reason = "std has no clock for the time of a thread")]
pub(super) fn thread_time() -> Duration {
    let mut time = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: the pointer is to a local timespec, which the call fills in and does not keep.
    let failed = unsafe { libc::clock_gettime(libc::CLOCK_THREAD_CPUTIME_ID, &raw mut time) };
    debug_assert_eq!(failed, 0, "the clock is there since Linux 2.6.12");
    Duration::new(time.tv_sec.unsigned_abs(), time.tv_nsec as u32)
}
