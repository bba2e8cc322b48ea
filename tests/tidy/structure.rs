//! Modules and the imports between them, read from sources as text: what `make structure` prints, and where imports run in a circle.

use std::collections::BTreeMap;
use std::collections::BTreeSet;
use std::fmt::Write;
use std::path::Path;

use super::{code, is_test, read, rust_files};

/// A module by its path from the root of its crate; the root is empty.
type ModulePath = Vec<String>;

/// The modules of one crate, without its tests.
pub(super) struct Structure {
    modules: BTreeMap<ModulePath, Module>,
}

struct Module {
    lines: usize,
    /// Paths behind `crate::`, groups written out.
    imports: BTreeSet<Vec<String>>,
    /// What the module shows as its own, by the last name, and where it is from.
    reexports: BTreeMap<String, Vec<String>>,
}

impl Structure {
    pub(super) fn of(source: &Path) -> Self {
        let files = rust_files(source).into_iter().filter(|file| !is_test(file));
        let modules = files.map(|file| {
            let text = code(&read(&file));
            let inside = file.strip_prefix(source).expect("it was found there");
            let path = inside.with_extension("");
            let path = path.iter().map(|part| part.to_string_lossy().into_owned());
            let path: ModulePath = path.filter(|part| part != "lib").collect();
            let module = Module {
                lines: text.lines().filter(|line| !line.trim().is_empty()).count(),
                imports: paths(&text, &path),
                reexports: reexports(&text, &path),
            };
            (path, module)
        });
        Self {
            modules: modules.collect(),
        }
    }

    /// The module that `path` leads to, by way of re-exports.
    fn resolve(&self, path: &[String]) -> ModulePath {
        let mut path = path.to_vec();
        // A re-export of a re-export of one: no face is deeper.
        for _ in 0..8 {
            let mut depth = path.len();
            while 0 < depth && !self.modules.contains_key(&path[..depth]) {
                depth -= 1;
            }
            let face = self.modules.get(&path[..depth]);
            let shown = face.zip(path.get(depth));
            match shown.and_then(|(module, name)| module.reexports.get(name)) {
                Some(from) => path.clone_from(from),
                None => return path[..depth].to_vec(),
            }
        }
        path
    }

    /// For each module with children, which of them import which others.
    fn edges_between_siblings(&self) -> BTreeMap<ModulePath, BTreeMap<String, BTreeSet<String>>> {
        let mut edges: BTreeMap<ModulePath, BTreeMap<String, BTreeSet<String>>> = BTreeMap::new();
        for (path, module) in &self.modules {
            for import in &module.imports {
                let target = self.resolve(import);
                let common = path.iter().zip(&target).take_while(|(a, b)| a == b).count();
                if let (Some(from), Some(to)) = (path.get(common), target.get(common)) {
                    let siblings = edges.entry(path[..common].to_vec()).or_default();
                    siblings.entry(from.clone()).or_default().insert(to.clone());
                }
            }
        }
        edges
    }

    /// Siblings that import each other, by whatever way, one sentence for each circle.
    pub(super) fn circles(&self) -> Vec<String> {
        let mut found = Vec::new();
        for (parent, edges) in self.edges_between_siblings() {
            let reached: BTreeMap<&String, BTreeSet<&String>> = edges
                .keys()
                .map(|from| (from, reach(&edges, from)))
                .collect();
            let mut told = BTreeSet::new();
            for (from, reached_from) in &reached {
                let circle: BTreeSet<&String> = reached_from
                    .iter()
                    .copied()
                    .filter(|to| reached.get(to).is_some_and(|back| back.contains(from)))
                    .collect();
                if !circle.is_empty() && told.insert(circle.clone()) {
                    let names: Vec<&str> = circle.iter().map(|name| name.as_str()).collect();
                    let parent = if parent.is_empty() {
                        "the crate".to_owned()
                    } else {
                        format!("`{}`", parent.join("::"))
                    };
                    found.push(format!(
                        "in {parent} import each other: {}",
                        names.join(", ")
                    ));
                }
            }
        }
        found
    }

    /// Rooms with their lines and the rooms that they import, and the sums.
    pub(super) fn report(&self) -> String {
        let mut lines: BTreeMap<&str, (usize, usize)> = BTreeMap::new();
        for (path, module) in &self.modules {
            let room = path.first().map_or("lib", String::as_str);
            let sum = lines.entry(room).or_default();
            *sum = (sum.0 + module.lines, sum.1 + 1);
        }
        let edges = self.edges_between_siblings();
        let none = BTreeMap::new();
        let between = edges.get(&Vec::new()).unwrap_or(&none);
        let mut text = String::new();
        for (room, (lines, files)) in &lines {
            let imports = between.get(*room).map(|to| to.iter().map(String::as_str));
            let imports: Vec<&str> = imports.into_iter().flatten().collect();
            let imports = imports.join(" ");
            writeln!(
                text,
                "  {room:<12} {lines:>6} lines {files:>3} files  {imports}"
            )
            .expect("it is memory");
        }
        let all_lines: usize = lines.values().map(|(lines, _)| lines).sum();
        let imports: usize = between.values().map(BTreeSet::len).sum();
        let circles = self.circles();
        writeln!(
            text,
            "  {} rooms, {all_lines} lines without tests, {imports} imports between rooms, {} circles",
            lines.len(),
            circles.len(),
        )
        .expect("it is memory");
        for circle in circles {
            writeln!(text, "  {circle}").expect("it is memory");
        }
        text
    }
}

/// All that is reached from `from`, which is among it if it is in a circle.
fn reach<'a>(edges: &'a BTreeMap<String, BTreeSet<String>>, from: &String) -> BTreeSet<&'a String> {
    let mut reached = BTreeSet::new();
    let mut next: Vec<&String> = edges.get(from).into_iter().flatten().collect();
    while let Some(module) = next.pop() {
        if reached.insert(module) {
            next.extend(edges.get(module).into_iter().flatten());
        }
    }
    reached
}

/// The paths from the root of the crate that `code` of the module `here` names by `crate::` or `super::`, groups written out.
fn paths(code: &str, here: &[String]) -> BTreeSet<Vec<String>> {
    let mut found = BTreeSet::new();
    for (at, prefix) in code.match_indices("crate::") {
        if stands_alone(code, at) {
            expand(&code[at + prefix.len()..], &[], &mut found);
        }
    }
    for (at, _) in code.match_indices("super::") {
        if stands_alone(code, at) {
            let (mut rest, mut parent) = (&code[at..], here);
            while let Some(behind) = rest.strip_prefix("super::") {
                rest = behind;
                parent = &parent[..parent.len().saturating_sub(1)];
            }
            expand(rest, parent, &mut found);
        }
    }
    found
}

/// Whether the path at `at` begins there.
fn stands_alone(code: &str, at: usize) -> bool {
    !code[..at].ends_with(|before: char| before.is_alphanumeric() || "_$:".contains(before))
}

/// Adds the paths that begin at the start of `text`, each behind `before`; returns what is left of the text.
fn expand<'a>(text: &'a str, before: &[String], found: &mut BTreeSet<Vec<String>>) -> &'a str {
    let mut path = before.to_vec();
    let mut text = text.trim_start();
    loop {
        if let Some(mut group) = text.strip_prefix('{') {
            loop {
                group = group.trim_start().trim_start_matches(',').trim_start();
                if let Some(rest) = group.strip_prefix('}') {
                    return rest;
                }
                if group.is_empty() {
                    return group;
                }
                let rest = expand(group, &path, found);
                // What is no path here (`*`) is passed over.
                group = if rest.len() == group.len() {
                    group.get(1..).unwrap_or_default()
                } else {
                    rest
                };
            }
        }
        let end = text
            .find(|character: char| !character.is_alphanumeric() && character != '_')
            .unwrap_or(text.len());
        let (name, rest) = text.split_at(end);
        if name == "self" {
            found.insert(path);
            return rest;
        }
        if !name.is_empty() {
            path.push(name.to_owned());
        }
        match rest.strip_prefix("::") {
            Some(more) if !name.is_empty() => text = more,
            _ => {
                if before.len() < path.len() {
                    found.insert(path);
                }
                return rest;
            }
        }
    }
}

/// The names that `pub use` shows of the crate or of children of the module `here`, `as` left out.
fn reexports(code: &str, here: &[String]) -> BTreeMap<String, Vec<String>> {
    let mut found = BTreeMap::new();
    for statement in code.split(';') {
        let Some((visibility, path)) = statement.trim_start().split_once("use ") else {
            continue;
        };
        if !visibility.starts_with("pub") || visibility.contains(['{', '=']) {
            continue;
        }
        let mut shown = paths(path, here);
        if shown.is_empty() {
            expand(path, here, &mut shown);
        }
        for path in shown {
            if let Some(name) = path.last() {
                found.insert(name.clone(), path.clone());
            }
        }
    }
    found
}

#[test]
fn paths_are_written_out_of_groups() {
    let text = "use crate::a::{B, c::{D, E}, self};\nuse crate::f;\nfn g() { crate::h::i(); super::super::k::L }";
    let expected = [
        &["a"][..],
        &["a", "B"],
        &["a", "c", "D"],
        &["a", "c", "E"],
        &["f"],
        &["h", "i"],
        &["room", "k", "L"],
    ];
    let expected: BTreeSet<Vec<String>> = expected
        .iter()
        .map(|path| path.iter().map(|&name| name.to_owned()).collect())
        .collect();
    let here = ["room", "one", "two"].map(str::to_owned);
    assert_eq!(paths(text, &here), expected);
}

#[test]
fn circles_are_found_through_reexports() {
    let module = |imports: &[&str], shown: &[(&str, &str)]| Module {
        lines: 1,
        imports: imports
            .iter()
            .flat_map(|path| paths(&format!("crate::{path}"), &[]))
            .collect(),
        reexports: shown
            .iter()
            .map(|(name, path)| {
                (
                    (*name).to_owned(),
                    path.split("::").map(String::from).collect(),
                )
            })
            .collect(),
    };
    let path = |text: &str| text.split("::").map(String::from).collect::<ModulePath>();
    let structure = Structure {
        modules: BTreeMap::from([
            (path("room"), module(&[], &[("B", "room::b::B")])),
            (path("room::a"), module(&["room::B"], &[])),
            (path("room::b"), module(&["room::c::f"], &[])),
            (path("room::c"), module(&["room::a::A"], &[])),
            (path("other"), module(&["room::B"], &[])),
        ]),
    };
    assert_eq!(
        structure.circles(),
        ["in `room` import each other: a, b, c"]
    );
}
