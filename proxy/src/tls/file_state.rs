//! Detects changed files by their metadata, without reading them.

use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::time::SystemTime;

use causeway_conf::file_metadata;

/// The metadata of some files at one moment: inode, length and modification time. The inode detects a file that was replaced by
/// one with the same length and time.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct FileStates(Vec<(PathBuf, Option<FileState>)>);

#[derive(Debug, PartialEq, Eq)]
struct FileState {
    device: u64,
    inode: u64,
    length: u64,
    modified: SystemTime,
}

impl FileStates {
    /// Reads the metadata of `paths`. A missing file counts as a state too.
    pub(super) fn read(paths: impl IntoIterator<Item = PathBuf>) -> Self {
        let read = |path: PathBuf| {
            let file = file_metadata(&path).ok();
            let state = file.and_then(|file| {
                Some(FileState {
                    device: file.dev(),
                    inode: file.ino(),
                    length: file.len(),
                    modified: file.modified().ok()?,
                })
            });
            (path, state)
        };
        Self(paths.into_iter().map(read).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tls::testing::folder;

    #[test]
    fn a_changed_created_or_removed_file_has_another_state() {
        let folder = folder("file-state");
        let path = folder.path().join("file");
        let state = || FileStates::read([path.clone()]);
        let absent = state();
        std::fs::write(&path, "one").unwrap();
        let first = state();
        assert_ne!(absent, first);
        assert_eq!(first, state());
        std::fs::write(&path, "another").unwrap();
        assert_ne!(first, state());
        std::fs::remove_file(&path).unwrap();
        assert_eq!(absent, state());
    }

    #[test]
    fn a_replaced_file_has_another_state_even_with_the_same_length_and_time() {
        let folder = folder("file-state-replaced");
        let (path, other) = (folder.path().join("file"), folder.path().join("other"));
        let time = SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(1_000_000_000);
        for (path, content) in [(&path, "one"), (&other, "two")] {
            std::fs::write(path, content).unwrap();
            let file = std::fs::File::options().append(true).open(path).unwrap();
            file.set_modified(time).unwrap();
        }
        let state = || FileStates::read([path.clone()]);
        let before = state();
        std::fs::rename(&other, &path).unwrap();
        assert_ne!(before, state());
    }
}
