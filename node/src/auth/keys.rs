//! The keys in use: those of the configuration, and those of a file that changes while the node runs.

use std::sync::Arc;
use std::time::Duration;

use parking_lot::RwLock;
use tokio::task;
use tokio::time;
use tokio::time::MissedTickBehavior;
use tokio_util::sync::CancellationToken;
use tracing::error;
use tracing::info;

use crate::auth::Verifier;
use crate::config::KeySetFile;
use crate::jwt::BadKeySet;
use crate::jwt::Key;

/// How often the file is looked at: soon enough for a provider that publishes a key before it signs with it.
const LOOK: Duration = Duration::from_secs(2);

/// Keys, some of which may be exchanged.
pub(super) struct Keys {
    fixed: Vec<Key>,
    file: Option<KeySetFile>,
    current: RwLock<Arc<[Key]>>,
}

/// What a look at the file has found.
#[derive(Debug, PartialEq, Eq)]
enum Found {
    /// The keys that are in use.
    Same,
    /// Others, which are in use from now on; so many.
    New(usize),
}

impl Keys {
    pub(super) fn new(fixed: Vec<Key>, file: Option<KeySetFile>) -> Self {
        let of_file = file.iter().flat_map(|file| &file.keys);
        let current = fixed.iter().chain(of_file).cloned().collect();
        Self {
            fixed,
            file,
            current: RwLock::new(current),
        }
    }

    /// Those that tokens are checked with now.
    pub(super) fn current(&self) -> Arc<[Key]> {
        Arc::clone(&self.current.read())
    }

    /// Takes what the file says now.
    fn look(&self, file: &KeySetFile) -> Result<Found, BadKeySet> {
        let keys = Key::set_in_file(&file.path)?;
        let count = keys.len();
        let all: Arc<[Key]> = self.fixed.iter().cloned().chain(keys).collect();
        if *self.current() == *all {
            return Ok(Found::Same);
        }
        *self.current.write() = all;
        Ok(Found::New(count))
    }
}

/// Reads the file with the key set anew when it changes, until `shutdown`. A file that cannot be used changes nothing,
/// and the log says once what is wrong with it.
pub(crate) async fn watch(verifier: Arc<Verifier>, shutdown: CancellationToken) {
    let Some(file) = verifier.keys.file.clone() else {
        return;
    };
    let path = file.path.display().to_string();
    let mut last_error = None;
    let mut looks = time::interval(LOOK);
    looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            biased;
            () = shutdown.cancelled() => return,
            _ = looks.tick() => {}
        }
        let (verifier, file) = (Arc::clone(&verifier), file.clone());
        let Ok(looked) = task::spawn_blocking(move || verifier.keys.look(&file)).await else {
            continue; // The runtime ends.
        };
        match looked {
            Ok(Found::Same) => last_error = None,
            Ok(Found::New(keys)) => {
                last_error = None;
                info!(path, keys, "the key set has changed and is in use");
            }
            Err(error) if last_error.as_ref() == Some(&error) => {}
            Err(error) => {
                error!(path, %error, "cannot use the key set, the keys from before stay in use");
                last_error = Some(error);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::jwt::testing;

    /// A file of its own, gone at the end.
    struct Scratch(std::path::PathBuf);

    impl Drop for Scratch {
        fn drop(&mut self) {
            let _ = fs::remove_file(&self.0);
        }
    }

    fn scratch(name: &str) -> Scratch {
        let name = format!("causeway-keys-{}-{name}", std::process::id());
        Scratch(std::env::temp_dir().join(name))
    }

    #[test]
    fn a_file_that_changes_changes_the_keys_and_a_wrong_one_does_not() {
        let scratch = scratch("changes");
        let fixed = testing::secret_key(Some("fixed"), 1);
        fs::write(&scratch.0, testing::key_set(&[("a", 2)])).unwrap();
        let file = KeySetFile {
            path: scratch.0.clone(),
            keys: Key::set_in_file(&scratch.0).unwrap(),
        };
        let keys = Keys::new(vec![fixed], Some(file.clone()));
        let ids = || {
            let keys = keys.current();
            let ids = keys.iter().map(|key| key.id().unwrap().to_owned());
            ids.collect::<Vec<_>>()
        };
        assert_eq!(ids(), ["fixed", "a"]);
        assert_eq!(keys.look(&file), Ok(Found::Same));

        fs::write(&scratch.0, testing::key_set(&[("b", 3), ("c", 4)])).unwrap();
        assert_eq!(keys.look(&file), Ok(Found::New(2)));
        assert_eq!(ids(), ["fixed", "b", "c"]);

        for wrong in ["", "{}", "{\"keys\": []}"] {
            fs::write(&scratch.0, wrong).unwrap();
            assert!(keys.look(&file).is_err(), "{wrong}");
            assert_eq!(ids(), ["fixed", "b", "c"]);
        }
        fs::remove_file(&scratch.0).unwrap();
        assert!(matches!(keys.look(&file), Err(BadKeySet::Unreadable(_))));
        assert_eq!(ids(), ["fixed", "b", "c"]);
    }
}
