//! What several tests of the fixtures need.

use std::path::{Path, PathBuf};

/// The fixtures' folder; says so when it is not there.
pub fn fixtures() -> Option<PathBuf> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../..");
    let found = [root.join("shared/fixtures"), root.join("../shared/fixtures")];
    let found = found.into_iter().find(|p| p.is_dir());
    if found.is_none() {
        eprintln!("skipped: ../shared/fixtures is not there");
    }
    found
}
