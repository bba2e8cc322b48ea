//! Lua scripts, called by their digests.
//!
//! Redis keeps a script that it has run once, until it restarts or is told to forget it. Then the call is repeated with the
//! text ([`Link::send`](super::Link::send)).

use std::fmt::Write as _;
use std::sync::OnceLock;

use deadpool_redis::redis::Arg;
use deadpool_redis::redis::Cmd;
use deadpool_redis::redis::ServerError;
use ring::digest;

/// A script.
#[derive(Debug)]
pub(crate) struct Script {
    text: &'static str,
    digest: OnceLock<String>,
}

impl Script {
    pub(crate) const fn new(text: &'static str) -> Self {
        let digest = OnceLock::new();
        Self { text, digest }
    }

    pub(super) fn text(&self) -> &'static str {
        self.text
    }

    /// What Redis calls it: the SHA-1 of its text.
    pub(super) fn digest(&self) -> &str {
        self.digest.get_or_init(|| {
            let digest = digest::digest(&digest::SHA1_FOR_LEGACY_USE_ONLY, self.text.as_bytes());
            digest.as_ref().iter().fold(String::new(), |mut hex, byte| {
                let _ = write!(hex, "{byte:02x}"); // Writing to a string does not fail.
                hex
            })
        })
    }

    /// The same call as `call`, which names the digest, with the text in its place.
    pub(super) fn by_text(&self, call: &Cmd) -> Cmd {
        let mut command = Cmd::new();
        command.arg("EVAL").arg(self.text);
        for argument in call.args_iter().skip(2) {
            if let Arg::Simple(argument) = argument {
                command.arg(argument);
            }
        }
        command
    }
}

/// Whether `error` says that nothing was run, and the text would be: the script is not there, or the user may send scripts
/// and not call them by digest.
pub(super) fn is_missing(error: &ServerError) -> bool {
    let text = error.to_string();
    error.code() == "NOSCRIPT" || (error.code() == "NOPERM" && text.contains("'evalsha'"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_digest_is_the_one_that_redis_computes() {
        // `SCRIPT LOAD "return 1"`.
        let digest = "e0e1f9fabfc9d4800c877a703b823ac0578ff8db";
        assert_eq!(Script::new("return 1").digest(), digest);
    }
}
