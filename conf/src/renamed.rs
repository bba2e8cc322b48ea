//! Settings that have another name now, and are still read under the old one.
//!
//! A program has one table of them. Reading replaces the old names in the tree of the file and in the paths of variables, before
//! anything is checked: what comes after that, from the checks to `--print-config`, knows the new names alone.

use crate::error::ConfError;
use crate::tree::Content;
use crate::tree::Entry;
use crate::tree::Node;
use crate::tree::join;

/// A setting that has another name now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RenamedSetting {
    /// The path that it had, such as `broker.lanes`; `[]` behind a name stands for each item of a list.
    pub old: &'static str,
    /// The last name of its path now.
    pub new: &'static str,
}

/// All of a program.
pub type RenamedSettings = &'static [RenamedSetting];

impl RenamedSetting {
    /// The old path but for its last name, and that name.
    fn parent_and_name(&self) -> (&'static str, &'static str) {
        self.old.rsplit_once('.').unwrap_or(("", self.old))
    }
}

/// What became of the old names in a file.
#[derive(Debug, Default)]
pub(crate) struct Renamed {
    /// One for each setting under its old name.
    pub(crate) warnings: Vec<ConfError>,
    /// One for each setting under both names.
    pub(crate) errors: Vec<ConfError>,
}

impl Renamed {
    /// Replaces the old names of `settings` in `root`. `file` is how the file is named in messages.
    pub(crate) fn replace(&mut self, root: &mut Node, settings: RenamedSettings, file: &str) {
        for setting in settings {
            let (parent, name) = setting.parent_and_name();
            self.below(root, parent, "", &mut |renamed, path, entries| {
                renamed.rename(entries, path, name, setting.new, file);
            });
        }
    }

    /// Calls `rename` with each mapping to which `rest` leads from `node`, which is at `path`.
    fn below(
        &mut self,
        node: &mut Node,
        rest: &str,
        path: &str,
        rename: &mut dyn FnMut(&mut Self, &str, &mut Vec<Entry>),
    ) {
        if let Some(rest) = rest.strip_prefix("[]") {
            let Content::List(items) = &mut node.content else {
                return;
            };
            let rest = rest.strip_prefix('.').unwrap_or(rest);
            for (index, item) in items.iter_mut().enumerate() {
                self.below(item, rest, &format!("{path}[{index}]"), rename);
            }
            return;
        }
        let Content::Map(entries) = &mut node.content else {
            return;
        };
        if rest.is_empty() {
            rename(self, path, entries);
            return;
        }
        let end = rest.find(['.', '[']).unwrap_or(rest.len());
        let (name, rest) = rest.split_at(end);
        let rest = rest.strip_prefix('.').unwrap_or(rest);
        if let Some(entry) = entries.iter_mut().find(|entry| entry.key == name) {
            self.below(&mut entry.value, rest, &join(path, name), rename);
        }
    }

    fn rename(
        &mut self,
        entries: &mut Vec<Entry>,
        path: &str,
        old: &'static str,
        new: &'static str,
        file: &str,
    ) {
        let Some(at) = entries.iter().position(|entry| entry.key == old) else {
            return;
        };
        let place = entries[at].place.clone();
        let message = |message: String| {
            let error = ConfError {
                file: file.to_owned(),
                position: None,
                key: join(path, old),
                message,
            };
            error.at(&place)
        };
        if let Some(other) = entries.iter().find(|entry| entry.key == new) {
            let other = other.place.shown(file);
            let both = format!("the setting is called \"{new}\" now, and {other} gives that too");
            self.errors.push(message(both));
            entries.remove(at);
            return;
        }
        let renamed = format!("the setting is called \"{new}\" now; {OLD_NAME_ENDS}");
        self.warnings.push(message(renamed));
        let entry = &mut entries[at];
        new.clone_into(&mut entry.key);
        entry.place.old_name = Some(old);
    }
}

/// What a warning about an old name ends with.
pub(crate) const OLD_NAME_ENDS: &str = "the next version does not know the old name";

#[cfg(test)]
mod tests;
