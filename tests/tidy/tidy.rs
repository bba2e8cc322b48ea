//! Holds what no tool holds: imports point down the layer table, files are where and how they should be.
//!
//! Reads sources as text: comments and tests are left out, and every `crate::NAME` that remains is an import of `NAME`.

mod structure;
mod words;

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
};

use crate::structure::Structure;

/// A program's modules: each row may import from the rows above it, and modules of one row not from each other.
struct Layers {
    source: &'static str,
    rows: &'static [&'static [&'static str]],
}

const PROXY: Layers = Layers {
    source: "proxy/src",
    rows: &[
        &["metrics", "http", "ctl"],
        &["config"],
        &["net"],
        &["limits", "tls"],
        &["tunnel"],
        &["balancer", "downstream"],
        &["upstream"],
        &["request"],
        &["server"],
        &["takeover"],
        &["plugin"],
        &["fuzz"],
        &["lib"],
        &["main"],
    ],
};

const NODE: Layers = Layers {
    source: "node/src",
    rows: &[
        &["jwt", "protocol"],
        &["config", "metrics"],
        &["auth", "logging"],
        &["redis"],
        &["broker", "hooks", "tokens"],
        &["cluster", "hub"],
        &["lifecycle"],
        &["stream"],
        &["client"],
        &["handoff"],
        &["transport"],
        &["server"],
        &["node"],
        &["fuzz", "pieces"],
        &["lib"],
        &["main"],
    ],
};

impl Layers {
    fn row_of(&self, module: &str) -> Option<usize> {
        self.rows.iter().position(|row| row.contains(&module))
    }

    /// What is wrong with the imports of this program, one sentence each.
    fn violations(&self) -> Vec<String> {
        let source = root().join(self.source);
        let mut found = Vec::new();
        let mut seen = BTreeSet::new();
        for file in rust_files(&source)
            .into_iter()
            .filter(|file| !is_test(file))
        {
            let module = module_of(&source, &file);
            seen.insert(module.clone());
            let Some(row) = self.row_of(&module) else {
                found.push(format!(
                    "{}: `{module}` has no row in the layer table",
                    shown(&file)
                ));
                continue;
            };
            for import in imports(&code(&read(&file))) {
                let allowed =
                    import == module || self.row_of(&import).is_some_and(|below| below < row);
                if !allowed {
                    found.push(format!(
                        "{}: `{module}` imports `{import}`, which is not below it",
                        shown(&file)
                    ));
                }
            }
        }
        let gone = self
            .rows
            .iter()
            .copied()
            .flatten()
            .filter(|row| !seen.contains(**row));
        found.extend(gone.map(|row| format!("{}: there is no `{row}`", self.source)));
        found
    }
}

#[test]
fn imports_of_the_edge_point_down() {
    assert_none(&PROXY.violations());
}

#[test]
fn imports_of_the_node_point_down() {
    assert_none(&NODE.violations());
}

#[test]
fn no_modules_import_each_other() {
    for program in [PROXY, NODE] {
        let circles = Structure::of(&root().join(program.source)).circles();
        assert_none(&circles);
    }
}

/// What `make structure` prints.
#[test]
fn the_structure_is_printed() {
    for program in [PROXY, NODE] {
        let report = Structure::of(&root().join(program.source)).report();
        println!("{}\n{report}", program.source);
        assert!(report.contains(" rooms, "));
    }
}

#[test]
fn every_file_says_what_it_is() {
    let silent = all_files()
        .into_iter()
        .filter(|file| !file.ends_with("tests.rs") && !read(file).starts_with("//!"));
    let found: Vec<String> = silent
        .map(|file| format!("{}: no module doc on its first line", shown(&file)))
        .collect();
    assert_none(&found);
}

#[test]
fn no_file_is_called_mod_rs() {
    let old = all_files()
        .into_iter()
        .filter(|file| file.ends_with("mod.rs"));
    assert_none(
        &old.map(|file| format!("{}: use NAME.rs beside NAME/", shown(&file)))
            .collect::<Vec<_>>(),
    );
}

#[test]
fn imports_are_found_in_groups_and_in_paths() {
    let text = "use crate::{\n    a::{x, y},\n    b,\n};\nuse crate::c::Z; // crate::not_this\nfn f() { crate::d::g(); crate::Root }\n\
                #[cfg(test)]\nmod tests { use crate::e; }";
    assert_eq!(
        imports(&code(text)),
        BTreeSet::from(["a", "b", "c", "d", "lib"].map(String::from))
    );
}

fn assert_none(found: &[String]) {
    assert!(found.is_empty(), "\n{}", found.join("\n"));
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .expect("the crate is in a folder of the repository")
        .to_owned()
}

fn all_files() -> Vec<PathBuf> {
    [
        "conf/src",
        "proxy/src",
        "proxy/examples",
        "node/src",
        "tests/src",
        "tests/tests",
    ]
    .iter()
    .flat_map(|part| rust_files(&root().join(part)))
    .collect()
}

fn rust_files(directory: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(directory).expect("the directory is part of the repository");
    let mut files = Vec::new();
    for entry in entries {
        let path = entry.expect("the directory can be read").path();
        if path.is_dir() {
            files.extend(rust_files(&path));
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            files.push(path);
        }
    }
    files.sort();
    files
}

/// Test code may reach for whatever it needs.
fn is_test(file: &Path) -> bool {
    let inside = file.strip_prefix(root()).unwrap_or(file);
    inside
        .components()
        .any(|part| part.as_os_str() == "tests" || part.as_os_str() == "tests.rs")
}

/// `hub` for `src/hub.rs` and for all below `src/hub/`.
fn module_of(source: &Path, file: &Path) -> String {
    let inside = file.strip_prefix(source).expect("the file was found there");
    let first = inside
        .components()
        .next()
        .expect("a file has a name")
        .as_os_str()
        .to_string_lossy()
        .into_owned();
    first.trim_end_matches(".rs").to_owned()
}

fn shown(file: &Path) -> String {
    file.strip_prefix(root())
        .unwrap_or(file)
        .display()
        .to_string()
}

fn read(file: &Path) -> String {
    fs::read_to_string(file).expect("sources are UTF-8")
}

/// The text without comments and without the tests, which are last.
fn code(text: &str) -> String {
    let before_tests = text
        .split("#[cfg(test)]\nmod tests {")
        .next()
        .unwrap_or_default();
    before_tests
        .lines()
        .map(|line| line.split("//").next().unwrap_or_default())
        .collect::<Vec<_>>()
        .join("\n")
}

/// The top-level modules named after `crate::`; an item of the root counts as `lib`.
fn imports(code: &str) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    for (at, _) in code.match_indices("crate::") {
        let standing_alone = !code[..at]
            .ends_with(|before: char| before.is_alphanumeric() || before == '_' || before == '$');
        if standing_alone {
            let rest = &code[at + "crate::".len()..];
            let names = rest
                .strip_prefix('{')
                .map_or_else(|| vec![name(rest)], group);
            found.extend(names.into_iter().filter(|name| !name.is_empty()));
        }
    }
    found
}

/// The first names of `a::{x, y}, b}`.
fn group(text: &str) -> Vec<String> {
    let mut depth = 1;
    let mut names = vec![name(text)];
    for (at, character) in text.char_indices() {
        match character {
            '{' => depth += 1,
            '}' => depth -= 1,
            ',' if depth == 1 => names.push(name(&text[at + 1..])),
            _ => {}
        }
        if depth == 0 {
            break;
        }
    }
    names
}

fn name(text: &str) -> String {
    let text = text.trim_start();
    let end = text
        .find(|character: char| !character.is_alphanumeric() && character != '_')
        .unwrap_or(text.len());
    let name = &text[..end];
    if name.starts_with(char::is_uppercase) {
        "lib".to_owned()
    } else {
        name.to_owned()
    }
}
