//! What files look like from outside: whether it is worth to read them again.

use std::path::PathBuf;
use std::time::SystemTime;

/// Lengths and times of some files, as they were at one moment.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Seen(Vec<(PathBuf, Option<(u64, SystemTime)>)>);

impl Seen {
    /// Looks at `paths`. A file that is not there is a look too.
    pub(super) fn look(paths: impl IntoIterator<Item = PathBuf>) -> Self {
        let look = |path: PathBuf| {
            let file = std::fs::metadata(&path).ok();
            let seen = file.and_then(|file| Some((file.len(), file.modified().ok()?)));
            (path, seen)
        };
        Self(paths.into_iter().map(look).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tls::testing::folder;

    #[test]
    fn a_file_that_changes_comes_or_goes_looks_different() {
        let folder = folder("seen");
        let path = folder.path().join("file");
        let look = || Seen::look([path.clone()]);
        let absent = look();
        std::fs::write(&path, "one").unwrap();
        let first = look();
        assert_ne!(absent, first);
        assert_eq!(first, look());
        std::fs::write(&path, "another").unwrap();
        assert_ne!(first, look());
        std::fs::remove_file(&path).unwrap();
        assert_eq!(absent, look());
    }
}
