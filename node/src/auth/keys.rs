//! The keys in use: those of the configuration, and those of files, which may change while the node runs.

use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use parking_lot::RwLock;
use tokio::task;
use tokio::time;
use tokio::time::MissedTickBehavior;
use tokio_util::sync::CancellationToken;
use tracing::error;
use tracing::info;

use crate::auth::Verifier;
use crate::config::Auth;
use crate::config::KeyFile;
use crate::config::KeySetFile;
use crate::jwt::Key;

/// How often the files are read: often enough for a provider that publishes a key before it signs with it.
const LOOK: Duration = Duration::from_secs(2);

/// The current keys.
pub(super) struct Keys {
    sources: Mutex<Sources>,
    current: RwLock<Arc<[Key]>>,
}

/// The sources of keys, each with the keys of its last successful read.
#[derive(Debug)]
struct Sources {
    fixed: Vec<Key>,
    files: Vec<KeyFile>,
    set: Option<KeySetFile>,
}

/// The result of reading the files again.
#[derive(Debug, Default, PartialEq, Eq)]
struct Found {
    /// How many keys there are now, if they have changed.
    changed: Option<usize>,
    /// Files that failed to load, with their errors: their previous keys stay in use.
    errors: Vec<(String, String)>,
}

impl Sources {
    fn of(rules: &Auth) -> Self {
        Self {
            fixed: rules.keys.clone(),
            files: rules.key_files.clone(),
            set: rules.key_set.clone(),
        }
    }

    fn all(&self) -> Arc<[Key]> {
        let of_set = self.set.iter().flat_map(|set| &set.keys);
        self.fixed.iter().chain(of_set).cloned().collect()
    }

    /// Reads all files; returns those that failed to load, with their errors.
    fn read(&mut self) -> Vec<(String, String)> {
        let mut errors = Vec::new();
        for file in &self.files {
            match file.read() {
                Ok(key) => self.fixed[file.index] = key,
                Err(error) => errors.push((file.path.display().to_string(), error)),
            }
        }
        if let Some(set) = &mut self.set {
            match Key::set_in_file(&set.path) {
                Ok(keys) => set.keys = keys,
                Err(error) => errors.push((set.path.display().to_string(), error.to_string())),
            }
        }
        errors
    }
}

impl Keys {
    /// Those that `rules` name.
    pub(super) fn new(rules: &Auth) -> Self {
        let sources = Sources::of(rules);
        Self {
            current: RwLock::new(sources.all()),
            sources: Mutex::new(sources),
        }
    }

    /// Replaces them with those that `rules` name.
    pub(super) fn reload(&self, rules: &Auth) {
        let mut sources = self.sources.lock();
        *sources = Sources::of(rules);
        *self.current.write() = sources.all();
    }

    /// Those that tokens are checked with now.
    pub(super) fn current(&self) -> Arc<[Key]> {
        Arc::clone(&self.current.read())
    }

    /// Whether any of them comes from a file.
    fn has_files(&self) -> bool {
        let sources = self.sources.lock();
        sources.set.is_some() || !sources.files.is_empty()
    }

    /// Reads the files again.
    fn look(&self) -> Found {
        let mut sources = self.sources.lock();
        let errors = sources.read();
        let all = sources.all();
        let is_same = *self.current() == *all;
        let changed = (!is_same).then(|| {
            let count = all.len();
            *self.current.write() = all;
            count
        });
        Found { changed, errors }
    }
}

/// Reads key files again when they change, until `shutdown`. A file that fails to load is logged once, and its previous keys
/// stay in use.
pub(crate) async fn watch(verifier: Arc<Verifier>, shutdown: CancellationToken) {
    let mut last_errors = Vec::new();
    let mut looks = time::interval(LOOK);
    looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            biased;
            () = shutdown.cancelled() => return,
            _ = looks.tick() => {}
        }
        if !verifier.keys.has_files() {
            continue;
        }
        let looking = Arc::clone(&verifier);
        let Ok(found) = task::spawn_blocking(move || looking.keys.look()).await else {
            continue; // The runtime is shutting down.
        };
        if let Some(keys) = found.changed {
            info!(keys, "reloaded the keys for tokens");
        }
        for failure @ (path, error) in &found.errors {
            if !last_errors.contains(failure) {
                error!(
                    path,
                    error, "key file reload failed, still using its previous keys"
                );
            }
        }
        last_errors = found.errors;
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::config::Config;
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
    fn a_changed_file_replaces_the_keys_and_an_invalid_one_does_not() {
        let (set, secret) = (scratch("set"), scratch("secret"));
        fs::write(&set.0, testing::key_set(&[("a", 2)])).unwrap();
        fs::write(&secret.0, "s".repeat(32)).unwrap();
        let (set_path, secret_path) = (set.0.display(), secret.0.display());
        let text = format!(
            "auth: {{keys: [{{id: fixed, algorithm: HS256, key: {}}}, {{id: filed, algorithm: HS256, key: {{file: {secret_path}}}}}], key_set: {set_path}}}",
            "f".repeat(32)
        );
        let keys = Keys::new(&Config::parse("test", &text).unwrap().auth);
        let ids = || {
            let keys = keys.current();
            let ids = keys.iter().map(|key| key.id().unwrap().to_owned());
            ids.collect::<Vec<_>>()
        };
        assert_eq!(ids(), ["fixed", "filed", "a"]);
        assert_eq!(keys.look(), Found::default());

        fs::write(&set.0, testing::key_set(&[("b", 3), ("c", 4)])).unwrap();
        assert_eq!(keys.look().changed, Some(4));
        assert_eq!(ids(), ["fixed", "filed", "b", "c"]);
        let before = keys.current();
        fs::write(&secret.0, "t".repeat(32)).unwrap();
        assert_eq!(keys.look().changed, Some(4));
        assert_ne!(*keys.current(), *before, "the secret is another one");

        let before = keys.current();
        for wrong in ["", "{}", "{\"keys\": []}"] {
            fs::write(&set.0, wrong).unwrap();
            fs::write(&secret.0, wrong).unwrap();
            let found = keys.look();
            assert_eq!((found.changed, found.errors.len()), (None, 2), "{wrong}");
            assert_eq!(*keys.current(), *before);
        }
        fs::remove_file(&set.0).unwrap();
        fs::remove_file(&secret.0).unwrap();
        assert_eq!(keys.look().errors.len(), 2);
        assert_eq!(*keys.current(), *before);
        fs::write(&secret.0, "u".repeat(32)).unwrap();
        let found = keys.look();
        assert_eq!((found.changed, found.errors.len()), (Some(4), 1));
    }
}
