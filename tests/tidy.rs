//! What the repository asks of its own files: length, names, first line, `unsafe`, and lints that are silenced.

use std::fs;
use std::path::{Path, PathBuf};

/// Folders that hold our source.
const PLACES: &[&str] = &["benches", "crates", "python", "src", "tests"];

/// A file longer than this holds two things.
const LINES_MAX: usize = 450;

/// Names that say nothing about what is inside.
const EMPTY_NAMES: &[&str] =
    &["common", "helper", "helpers", "manager", "misc", "shared", "util", "utilities", "utils"];

/// Places that may say `unsafe`; each of their blocks says why it is sound, which clippy checks.
const UNSAFE_PLACES: &[&str] =
    &["crates/client/src/ring/", "crates/memory/", "crates/tier/src/disk/io/", "crates/transport-tcp/"];

/// Roots of crates with such a place inside: they deny what one module of theirs expects.
const DENYING_ROOTS: &[&str] = &["crates/client/src/lib.rs", "crates/tier/src/lib.rs"];

/// A tree of stand-ins whose paths are another project's.
const FOREIGN_NAMES: &str = "tests/fake_vllm/";

struct Source {
    /// Relative to the repository.
    path: String,
    text: String,
}

fn collect(folder: &Path, into: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).expect("a readable folder") {
        let path = entry.expect("a readable entry").path();
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        if path.is_dir() && !name.starts_with('.') && name != "target" && name != "__pycache__" {
            collect(&path, into);
        } else if matches!(path.extension().and_then(|extension| extension.to_str()), Some("rs" | "py")) {
            into.push(path);
        }
    }
}

fn sources() -> Vec<Source> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut paths = Vec::new();
    PLACES
        .iter()
        .map(|place| root.join(place))
        .filter(|place| place.is_dir())
        .for_each(|place| collect(&place, &mut paths));
    assert!(paths.len() > 50, "found {} files below {}: the walk is broken", paths.len(), root.display());
    let read = |path: PathBuf| Source {
        text: fs::read_to_string(&path).expect("a source is UTF-8"),
        path: path.strip_prefix(root).expect("below the root").to_string_lossy().into_owned(),
    };
    paths.into_iter().map(read).collect()
}

/// Fails with every file that breaks a rule, not with the first.
fn hold(rule: &str, breaks: impl Fn(&Source) -> Option<String>) {
    let broken: Vec<String> =
        sources().iter().filter_map(|source| Some(format!("{}: {}", source.path, breaks(source)?))).collect();
    assert!(broken.is_empty(), "{rule}\n  {}", broken.join("\n  "));
}

/// The lines that are code, roughly: comments and doc comments go, strings stay.
fn code_lines(source: &Source) -> impl Iterator<Item = &str> {
    source.text.lines().map(|line| line.split("//").next().unwrap_or(line))
}

fn says_word(line: &str, word: &str) -> bool {
    line.split(|letter: char| !letter.is_alphanumeric() && letter != '_').any(|found| found == word)
}

#[test]
fn files_are_short() {
    hold("a file holds one noun", |source| {
        let count = source.text.lines().count();
        (count > LINES_MAX).then(|| format!("{count} lines, {LINES_MAX} at most"))
    });
}

#[test]
fn files_are_named_for_what_they_hold() {
    hold("a name says what is inside", |source| {
        if source.path.contains(FOREIGN_NAMES) {
            return None;
        }
        let parts = source.path.split(['/', '.']);
        let empty: Vec<&str> = parts.filter(|part| EMPTY_NAMES.contains(part)).collect();
        (!empty.is_empty()).then(|| format!("{empty:?} says nothing"))
    });
}

#[test]
fn rust_files_begin_with_their_doc() {
    hold("a reader learns first what a file is", |source| {
        let exempt = !source.path.ends_with(".rs") || source.path.ends_with("/tests.rs");
        (!exempt && !source.text.starts_with("//!")).then(|| "does not begin with //!".to_owned())
    });
}

#[test]
fn unsafe_stays_in_its_crates() {
    hold("unsafe lives in memory, transport-tcp, the client's ring and the way to the disk", |source| {
        if !source.path.ends_with(".rs") || UNSAFE_PLACES.iter().any(|allowed| source.path.starts_with(allowed)) {
            return None;
        }
        // This file names the word in strings.
        if source.path != file!() && code_lines(source).any(|line| says_word(line, "unsafe")) {
            return Some("says unsafe".to_owned());
        }
        let is_crate_root = source.path == "src/main.rs" || source.path.ends_with("src/lib.rs");
        let word = if DENYING_ROOTS.contains(&source.path.as_str()) { "deny" } else { "forbid" };
        (is_crate_root && !source.text.contains(&format!("#![{word}(unsafe_code)]")))
            .then(|| format!("does not {word} it"))
    });
}

#[test]
fn silenced_lints_say_why() {
    hold("#[expect(lint, reason = \"...\")] ends with its cause; #[allow] stays for ever", |source| {
        if !source.path.ends_with(".rs") || source.path == file!() {
            return None;
        }
        let allows = |line: &str| line.contains("#[allow(") || line.contains("#![allow(");
        let count = code_lines(source).filter(|line| allows(line)).count();
        (count > 0).then(|| format!("{count} times #[allow]"))
    });
}
