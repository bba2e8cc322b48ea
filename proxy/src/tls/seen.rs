//! What files look like from outside: whether it is worth to read them again.

use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::time::SystemTime;

use causeway_conf::file_metadata;

/// What some files were at one moment: where they lie on the disk (a file that is put in another's place may have its time),
/// their lengths and times.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Seen(Vec<(PathBuf, Option<Look>)>);

#[derive(Debug, PartialEq, Eq)]
struct Look {
    device: u64,
    inode: u64,
    length: u64,
    modified: SystemTime,
}

impl Seen {
    /// Looks at `paths`. A file that is not there is a look too.
    pub(super) fn look(paths: impl IntoIterator<Item = PathBuf>) -> Self {
        let look = |path: PathBuf| {
            let file = file_metadata(&path).ok();
            let seen = file.and_then(|file| {
                Some(Look {
                    device: file.dev(),
                    inode: file.ino(),
                    length: file.len(),
                    modified: file.modified().ok()?,
                })
            });
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

    #[test]
    fn a_file_in_the_place_of_another_looks_different_even_with_its_length_and_time() {
        let folder = folder("seen-place");
        let (path, other) = (folder.path().join("file"), folder.path().join("other"));
        let time = SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(1_000_000_000);
        for (path, content) in [(&path, "one"), (&other, "two")] {
            std::fs::write(path, content).unwrap();
            let file = std::fs::File::options().append(true).open(path).unwrap();
            file.set_modified(time).unwrap();
        }
        let look = || Seen::look([path.clone()]);
        let before = look();
        std::fs::rename(&other, &path).unwrap();
        assert_ne!(before, look());
    }
}
