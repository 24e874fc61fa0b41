//! The layering of the source: every file imports only what stands before it in the table of the crate's documentation.
//! The table there is the one truth; this reads it, and every `crate::`, `super::` and `self::` path of every file.
#![allow(missing_docs)]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

/// Files in the order of the table: `error/send`, `wake/mod`, `message`.
fn table(crate_docs: &str) -> Vec<String> {
    let rows = crate_docs.lines().filter_map(|line| line.strip_prefix("//! |"));
    let rows = rows.skip_while(|row| !row.starts_with(" room ")).skip(2).take_while(|row| row.contains('|'));
    let ticked = |cell: &str| cell.split('`').skip(1).step_by(2).map(str::to_owned).collect::<Vec<_>>();
    let mut files = vec![];
    for row in rows.take_while(|row| !row.starts_with(" where ")) {
        let cells: Vec<_> = row.split('|').collect();
        let room = ticked(cells[0]).pop().unwrap_or_default();
        files.extend(ticked(cells[1]).into_iter().map(|file| format!("{room}{file}")));
    }
    files
}

fn sources(folder: &Path, into: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).unwrap().flatten() {
        let path = entry.path();
        match path.is_dir() {
            true => sources(&path, into),
            false if path.extension().is_some_and(|ending| ending == "rs") => into.push(path),
            false => {}
        }
    }
}

/// The name that the table has for a file; `None` for those that stand above everything or are tests.
fn name(src: &Path, path: &Path) -> Option<String> {
    let name = path.strip_prefix(src).unwrap().with_extension("").to_string_lossy().replace('\\', "/");
    let exempt = name == "lib" || name.starts_with("testing/") || name.starts_with("bin/") || name.ends_with("_tests");
    (!exempt).then_some(name)
}

/// Paths into the crate, each with its line: what tests import does not count, nor what comments say.
fn imports(text: &str) -> Vec<(usize, Vec<String>)> {
    let mut found = vec![];
    let mut tree: Option<(usize, String)> = None;
    for (index, line) in text.lines().enumerate() {
        if line.starts_with("#[cfg(test)]") || line.starts_with("#[cfg(all(test") {
            break;
        }
        let line = line.split("//").next().unwrap_or_default();
        let trimmed = line.trim_start().trim_start_matches("pub(crate) ").trim_start_matches("pub ");
        if let Some(begun) = trimmed.strip_prefix("use ") {
            tree = Some((index + 1, String::new()));
            tree.as_mut().unwrap().1 += begun;
        } else if let Some((_, rest)) = &mut tree {
            *rest += trimmed;
        } else {
            for word in line.split(|c: char| !(c.is_alphanumeric() || c == '_' || c == ':')) {
                if ["crate::", "super::", "self::"].iter().any(|start| word.starts_with(start)) {
                    found.push((index + 1, word.split("::").map(str::to_owned).collect()));
                }
            }
        }
        if let Some((number, whole)) = tree.take_if(|(_, whole)| whole.contains(';')) {
            expand(whole.trim_end_matches(';'), &mut |leaf| {
                let path = leaf.split(" as ").next().unwrap_or_default();
                found.push((number, path.split("::").map(|part| part.trim().to_owned()).collect()));
            });
        }
    }
    found
}

/// `a::{b, c::d}` is `a::b` and `a::c::d`.
fn expand(tree: &str, leaf: &mut impl FnMut(&str)) {
    let Some(open) = tree.find('{') else { return leaf(tree) };
    let (mut depth, mut from) = (0, open + 1);
    for (at, character) in tree.char_indices().skip_while(|(at, _)| *at < open) {
        let ends = matches!((character, depth), (',' | '}', 1));
        if ends && !tree[from..at].trim().is_empty() {
            expand(&format!("{}{}", &tree[..open], tree[from..at].trim()), leaf);
        }
        if ends {
            from = at + 1;
        }
        depth += match character {
            '{' => 1,
            '}' => -1,
            _ => 0,
        };
    }
}

/// The file that a path leads to.
fn target(of: &str, path: &[String], places: &BTreeMap<String, usize>) -> Option<String> {
    let mut at: Vec<&str> = of.trim_end_matches("/mod").split('/').collect();
    let mut rest = path;
    match path.first().map(String::as_str) {
        Some("crate") => at.clear(),
        Some("super") => drop(at.pop()),
        Some("self") => {}
        _ => return None,
    }
    rest = &rest[1..];
    while rest.first().is_some_and(|part| part == "super") {
        at.pop();
        rest = &rest[1..];
    }
    at.extend(rest.iter().map(String::as_str));
    while !at.is_empty() {
        let file = at.join("/");
        let found = [format!("{file}/mod"), file].into_iter().find(|name| places.contains_key(name));
        if found.is_some() {
            return found;
        }
        at.pop();
    }
    None
}

/// What breaks the rule, a line each.
fn violations(src: &Path) -> Vec<String> {
    let table = table(&fs::read_to_string(src.join("lib.rs")).unwrap());
    let places: BTreeMap<_, _> = table.iter().cloned().enumerate().map(|(place, file)| (file, place)).collect();
    let mut broken = vec![];
    let mut paths = vec![];
    sources(src, &mut paths);
    let mut seen = BTreeSet::new();
    for path in paths {
        let Some(file) = name(src, &path) else { continue };
        seen.insert(file.clone());
        let Some(place) = places.get(&file) else {
            broken.push(format!("src/{file}.rs: has no place in the table of the crate's documentation"));
            continue;
        };
        for (line, import) in imports(&fs::read_to_string(&path).unwrap()) {
            let Some(other) = target(&file, &import, &places).filter(|other| *other != file) else { continue };
            if places[&other] > *place {
                let path = import.join("::");
                broken.push(format!("src/{file}.rs:{line}: `{path}` is of `{other}`, which stands after `{file}`"));
            }
        }
    }
    broken.extend(table.iter().filter(|file| !seen.contains(*file)).map(|gone| format!("src/{gone}.rs: is not there")));
    broken
}

#[test]
fn every_file_imports_only_what_stands_before_it_in_the_map() {
    let broken = violations(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src"));
    assert!(broken.is_empty(), "imports that run upward:\n{}", broken.join("\n"));
}

#[test]
fn an_upward_import_is_found_wherever_it_stands_and_named_with_its_line() {
    let folder = std::env::temp_dir().join(format!("layers-{}", std::process::id()));
    fs::create_dir_all(folder.join("high")).unwrap();
    let docs =
        "//! | room | files | what |\n//! |---|---|---|\n//! | | `low` | |\n//! | `high/` | `one` `two` `three` | |\n";
    fs::write(folder.join("lib.rs"), docs).unwrap();
    fs::write(folder.join("high/one.rs"), "use super::two::X;\n").unwrap();
    fs::write(folder.join("high/two.rs"), "use crate::low;\nuse super::one;\n").unwrap();
    let low = "use std::{\n    fmt,\n};\n// crate::high::one\nuse crate::{\n    high::{one::A, two},\n    low,\n};\nfn f() { crate::high::two::g(); }\n#[cfg(test)]\nuse crate::high::one;\n";
    fs::write(folder.join("low.rs"), low).unwrap();
    fs::write(folder.join("stray.rs"), "").unwrap();
    let mut broken = violations(&folder);
    fs::remove_dir_all(&folder).unwrap();
    broken.sort();
    let expected = [
        "src/high/one.rs:1: `super::two::X` is of `high/two`, which stands after `high/one`",
        "src/high/three.rs: is not there",
        "src/low.rs:5: `crate::high::one::A` is of `high/one`, which stands after `low`",
        "src/low.rs:5: `crate::high::two` is of `high/two`, which stands after `low`",
        "src/low.rs:9: `crate::high::two::g` is of `high/two`, which stands after `low`",
        "src/stray.rs: has no place in the table of the crate's documentation",
    ];
    assert_eq!(broken, expected);
}
