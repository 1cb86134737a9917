//! The house's walls: which crate may know which, and where `unsafe` may stand.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

/// Each crate and the crates of the house that it may depend on. A new crate states its edges here.
const ALLOWED: [(&str, &[&str]); 8] = [
    ("formats", &[]),
    ("kernels", &[]),
    ("ops", &["kernels"]),
    ("model", &["ops", "formats"]),
    ("engine", &["model", "ops", "formats"]),
    ("tune", &["engine", "model", "ops", "formats"]),
    ("server", &["engine", "model", "ops", "formats"]),
    ("cli", &["server", "engine", "tune", "model", "ops", "formats"]),
];

/// The crates that may hold `unsafe`, each site with a SAFETY note.
const UNSAFE: [&str; 1] = ["kernels"];

/// Files with one SAFETY note for all their blocks: each is a single list of intrinsics.
const NOTED_AS_A_WHOLE: [&str; 3] = [
    "crates/kernels/src/simd/avx2.rs",
    "crates/kernels/src/simd/avx512.rs",
    "crates/kernels/src/simd/neon.rs",
];

/// How far above an `unsafe` its note may begin, in lines.
const NOTE_WITHIN: usize = 8;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

/// The crates in `crates/`, by the name of their folder.
fn crates() -> Vec<String> {
    let mut names: Vec<String> = fs::read_dir(root().join("crates"))
        .unwrap()
        .map(|entry| entry.unwrap())
        .filter(|entry| entry.path().join("Cargo.toml").is_file())
        .map(|entry| entry.file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

fn read(path: &Path) -> String {
    fs::read_to_string(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

/// The crates of the house that a manifest names in any table of dependencies, dev-dependencies
/// too: a test that reached upwards would need the wall to have a door.
fn edges(manifest: &str) -> Vec<String> {
    let mut found = Vec::new();
    let mut in_dependencies = false;
    for line in manifest.lines().map(str::trim) {
        if let Some(table) = line.strip_prefix('[') {
            in_dependencies = table.contains("dependencies");
        }
        // `lapidary-ops.workspace = true`, `x = { path = "../ops" }`, `[dependencies.lapidary-ops]`.
        let names = line.split("lapidary-").skip(1).chain(line.split("\"../").skip(1));
        if in_dependencies && !line.starts_with('#') {
            let word =
                |rest: &str| rest.split(['.', ' ', '"', ']', '=', '/']).next().map(str::to_owned);
            found.extend(names.filter_map(word));
        }
    }
    found.sort();
    found.dedup();
    found
}

/// All Rust files below a folder.
fn sources(dir: &Path) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(dir) else { return Vec::new() };
    let mut found = Vec::new();
    for path in entries.map(|entry| entry.unwrap().path()) {
        if path.is_dir() {
            found.extend(sources(&path));
        } else if path.extension().is_some_and(|e| e == "rs") {
            found.push(path);
        }
    }
    found.sort();
    found
}

/// Whether a line of code opens an unsafe block or implements an unsafe trait. Declarations of
/// unsafe functions state their contract, and hold their blocks inside.
fn opens_unsafe(line: &str) -> bool {
    let code = line.split("//").next().unwrap_or("");
    let mut words = code.split(|c: char| !(c.is_alphanumeric() || c == '_' || c == '{'));
    words.any(|w| w == "unsafe") && (code.contains("unsafe {") || code.contains("unsafe impl"))
}

/// Lines, counted from 1, with an `unsafe` that has no SAFETY note shortly above.
fn without_note(source: &str) -> Vec<usize> {
    let lines: Vec<&str> = source.lines().collect();
    let noted = |at: usize| {
        let from = at.saturating_sub(NOTE_WITHIN);
        lines[from..=at].iter().any(|l| l.contains("// SAFETY"))
    };
    (0..lines.len()).filter(|&at| opens_unsafe(lines[at]) && !noted(at)).map(|at| at + 1).collect()
}

#[test]
fn dependencies_point_one_way() {
    let allowed = BTreeMap::from(ALLOWED);
    let crates = crates();
    assert!(crates.contains(&"formats".to_owned()), "{crates:?}");
    for name in &crates {
        let may = allowed.get(name.as_str()).unwrap_or_else(|| {
            panic!("crates/{name} is new: state in ALLOWED which crates it may depend on")
        });
        let manifest = read(&root().join("crates").join(name).join("Cargo.toml"));
        for edge in edges(&manifest) {
            assert!(
                may.contains(&edge.as_str()),
                "{name} may not depend on {edge}, only on {may:?}"
            );
        }
    }
    println!("{} crates, every edge allowed", crates.len());
}

#[test]
fn unsafe_is_walled_in() {
    for name in crates().iter().filter(|n| !UNSAFE.contains(&n.as_str())) {
        let dir = root().join("crates").join(name);
        // `formats` maps files, in mapped.rs alone.
        let attribute =
            if name == "formats" { "#![deny(unsafe_code)]" } else { "#![forbid(unsafe_code)]" };
        let roots = ["src/lib.rs", "src/main.rs"].map(|f| dir.join(f));
        let roots: Vec<_> = roots.iter().filter(|p| p.is_file()).collect();
        assert!(!roots.is_empty(), "crates/{name} has neither lib.rs nor main.rs");
        for path in roots {
            assert!(read(path).contains(attribute), "{} lacks {attribute}", path.display());
        }
        for path in sources(&dir.join("src")) {
            let text = read(&path);
            let allows = text.contains("allow(unsafe_code)");
            let mapped = name == "formats" && path.ends_with("src/mapped.rs");
            assert!(!allows || mapped, "{} allows unsafe code", path.display());
            assert_eq!(without_note(&text), [0; 0], "{}", path.display());
        }
    }
}

#[test]
fn every_unsafe_has_a_safety_note() {
    let mut sites = 0;
    for name in UNSAFE {
        for path in sources(&root().join("crates").join(name)) {
            let text = read(&path);
            sites += text.lines().filter(|l| opens_unsafe(l)).count();
            if NOTED_AS_A_WHOLE.iter().any(|whole| path.ends_with(whole)) {
                assert!(text.contains("// SAFETY (all the blocks below)"), "{}", path.display());
                continue;
            }
            let bare = without_note(&text);
            assert!(bare.is_empty(), "{}: no SAFETY note above lines {bare:?}", path.display());
        }
    }
    println!("{sites} unsafe sites, each with its note");
    assert!(sites > 50, "only {sites} sites were found: is the search broken?");
}

#[test]
fn the_checks_see_what_they_look_for() {
    let manifest = "[package]\nname = \"lapidary-x\"\n[dependencies]\nlapidary-ops.workspace = true\n\
        # lapidary-tune = \"1\"\ny = { path = \"../model\" }\n[dev-dependencies.lapidary-engine]\n";
    assert_eq!(edges(manifest), ["engine", "model", "ops"]);
    assert_eq!(without_note("let a = unsafe { f() };"), [1]);
    assert_eq!(without_note("// SAFETY: fine.\nlet a = unsafe { f() };"), [0; 0]);
    assert_eq!(
        without_note(&format!("// SAFETY: far.{}unsafe impl Send for X {{}}", "\n".repeat(9))),
        [10]
    );
    assert_eq!(without_note("// an unsafe { block }\nunsafe fn f();\nforbid(unsafe_code)"), [0; 0]);
}
