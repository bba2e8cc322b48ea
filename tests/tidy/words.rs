//! Words that are no longer written: each has a term of the field that stands in its place.
//!
//! Names are taken apart first, so that `lane_bytes`, `LaneBytes` and "lanes" are one word.

use std::fs;
use std::path::{Path, PathBuf};

use crate::{assert_none, read, root, shown};

/// A word, and what is written instead.
struct Gone {
    words: &'static [&'static str],
    instead: &'static str,
}

const GONE: &[Gone] = &[
    gone(
        &["answer", "answers"],
        "response (HTTP), reply (Redis, commands)",
    ),
    gone(&["carrier", "carriers"], "downstream connection"),
    gone(&["seam", "seams"], "chunk boundaries"),
    gone(&["entrance", "entrances"], "acceptor"),
    gone(&["errand", "errands"], "request, background task"),
    gone(&["patience", "impatient"], "max wait"),
    gone(&["heed", "heeds", "heeded"], "control command"),
    gone(&["seldom"], "throttled log"),
    gone(&["shortage", "shortages"], "descriptor or port exhaustion"),
    gone(&["haste"], "shutdown mode"),
    gone(&["dress", "dressed"], "finalize headers"),
    gone(&["census"], "channel counts"),
    gone(&["untold"], "pending"),
    gone(&["feed", "feeds"], "channel stream"),
    gone(&["heard", "hear", "hears"], "subscribed, received"),
    gone(&["seat", "seats"], "slot"),
    gone(&["wish", "wishes", "wished"], "request, wanted"),
    gone(&["keeper", "keepers"], "lease task"),
    gone(&["ledger", "ledgers"], "desired state"),
    gone(&["lane", "lanes"], "publish queue"),
    gone(&["whereabouts"], "primary check"),
    gone(&["garbled"], "protocol error"),
    gone(&["strange"], "unexpected reply"),
    gone(&["unasked"], "unexpected confirmation"),
    gone(&["farewell", "farewells"], "disconnect message"),
    gone(&["whom"], "target"),
];

const fn gone(words: &'static [&'static str], instead: &'static str) -> Gone {
    Gone { words, instead }
}

/// A place where a word stands for something else.
struct Exception {
    /// What the path of the file begins with.
    path: &'static str,
    word: &'static str,
    /// What the line has; empty: anything.
    line: &'static str,
    #[expect(dead_code, reason = "it is for the reader of the table")]
    reason: &'static str,
}

const EXCEPTIONS: &[Exception] = &[
    exception("", "whom", "--kill-whom", "an option of systemctl"),
    exception("tests/tidy/words.rs", "", "", "this table"),
    exception(
        "CHANGELOG.md",
        "",
        "| `",
        "the old names of settings and metrics",
    ),
    exception(
        "node/src/config.rs",
        "",
        "old: \"",
        "the old names of settings",
    ),
    exception(
        "node/src/config/tests.rs",
        "",
        "",
        "tests of the old names of settings",
    ),
    exception(
        "node/src/metrics.rs",
        "",
        "old: \"",
        "the old names of metrics",
    ),
    exception(
        "node/src/metrics/tests.rs",
        "",
        "causeway_node_",
        "the old names of metrics",
    ),
    exception("conf/src/metrics.rs", "", "lanes", "tests of old names"),
    exception("conf/src/renamed", "lane", "", "tests of old names"),
    exception(
        "tests/tests/e2e/ops/check.rs",
        "",
        "answer_timeout",
        "a test of old names",
    ),
    exception("", "feed", "line feed", "the character"),
    exception("", "feed", "form feed", "the character"),
    exception("tests/src/bench", "feed", "", "`SinkExt::feed`"),
    exception(
        "tests/",
        "hear",
        "",
        "the clients of a test hear each other",
    ),
    exception("tests/", "patience", "", "how long a test waits"),
    exception(
        "tests/",
        "impatient",
        "",
        "a client of a test that does not wait long",
    ),
    exception(
        "tests/src/chaos",
        "ledger",
        "",
        "what was sent, as the checker knows it",
    ),
];

const fn exception(
    path: &'static str,
    word: &'static str,
    line: &'static str,
    reason: &'static str,
) -> Exception {
    Exception {
        path,
        word,
        line,
        reason,
    }
}

impl Exception {
    fn covers(&self, path: &str, word: &str, line: &str) -> bool {
        path.starts_with(self.path)
            && (self.word.is_empty() || word.starts_with(self.word))
            && line.contains(self.line)
    }
}

#[test]
fn no_word_is_written_that_has_a_term_of_the_field() {
    let mut found = Vec::new();
    for file in text_files() {
        let path = shown(&file);
        for (number, line) in read(&file).lines().enumerate() {
            for word in words(line) {
                let Some(gone) = GONE.iter().find(|gone| gone.words.contains(&&*word)) else {
                    continue;
                };
                if !EXCEPTIONS
                    .iter()
                    .any(|exception| exception.covers(&path, &word, line))
                {
                    let number = number + 1;
                    found.push(format!(
                        "{path}:{number}: \"{word}\", expected {}",
                        gone.instead
                    ));
                }
            }
        }
    }
    assert_none(&found);
}

#[test]
fn each_exception_is_needed() {
    let files: Vec<(String, String)> = text_files()
        .iter()
        .map(|file| (shown(file), read(file)))
        .collect();
    let is_needed = |exception: &&Exception| {
        files.iter().any(|(path, text)| {
            let mut lines = text.lines();
            lines.any(|line| {
                let mut words = words(line).into_iter();
                words.any(|word| {
                    let is_gone = GONE.iter().any(|gone| gone.words.contains(&&*word));
                    is_gone && exception.covers(path, &word, line)
                })
            })
        })
    };
    let unneeded = EXCEPTIONS.iter().filter(|exception| !is_needed(exception));
    let unneeded = unneeded.map(|it| format!("{} {:?}: no line needs it", it.path, it.word));
    assert_none(&unneeded.collect::<Vec<_>>());
}

#[test]
fn names_are_taken_apart() {
    assert_eq!(
        words("let LaneBytes = lane_wait - \"MAX_LANES\";"),
        ["let", "lane", "bytes", "lane", "wait", "max", "lanes"]
    );
}

/// The words of `line` in lower case.
fn words(line: &str) -> Vec<String> {
    let mut words = vec![String::new()];
    let mut before = ' ';
    for c in line.chars() {
        let begins = c.is_ascii_uppercase() && before.is_ascii_lowercase();
        if begins || !c.is_ascii_alphabetic() {
            words.push(String::new());
        }
        if let Some(word) = words.last_mut().filter(|_| c.is_ascii_alphabetic()) {
            word.push(c.to_ascii_lowercase());
        }
        before = c;
    }
    words.retain(|word| !word.is_empty());
    words
}

/// The files of the repository that have words of ours.
fn text_files() -> Vec<PathBuf> {
    let mut files = Vec::new();
    let top = [".github", "conf", "node", "proxy", "tests"];
    let mut folders: Vec<PathBuf> = top.iter().map(|name| root().join(name)).collect();
    files.extend(["README.md", "CHANGELOG.md", "Makefile"].map(|name| root().join(name)));
    while let Some(folder) = folders.pop() {
        let entries = fs::read_dir(&folder).expect("the folder is part of the repository");
        for entry in entries {
            let path = entry.expect("the folder can be read").path();
            let name = path.file_name().unwrap_or_default();
            if path.is_dir() {
                let is_built = ["target", "node_modules", ".venv"]
                    .iter()
                    .any(|built| name == *built);
                folders.extend((!is_built).then_some(path));
            } else if is_text(&path) {
                files.push(path);
            }
        }
    }
    files.sort();
    files
}

fn is_text(path: &Path) -> bool {
    let kinds = [
        "rs", "md", "yaml", "yml", "toml", "json", "sh", "js", "html", "service",
    ];
    let is_lock = path.ends_with("package-lock.json");
    !is_lock
        && path
            .extension()
            .is_some_and(|kind| kinds.iter().any(|other| kind == *other))
}
