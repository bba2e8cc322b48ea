//! Signals whose default would end the process for no reason of its own.

/// Ignores each of `signals`, until somebody handles it.
///
/// What is ignored here and by the standard library (SIGPIPE) becomes an error of the write that caused it.
#[expect(unsafe_code, reason = "the standard library has no signals")]
pub fn ignore_signals(signals: &[i32]) {
    for signal in signals {
        // SAFETY: no handler is installed that could run in the middle of anything. A number that is no signal is an error that changes nothing.
        unsafe { libc::signal(*signal, libc::SIG_IGN) };
    }
}
