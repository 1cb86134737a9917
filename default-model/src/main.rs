//! How the built-in model is made: its data, its dialogues, its examination. See
//! `docs/default-model.md`.

#![forbid(unsafe_code)]

mod copies;
mod corpus;
mod examine;
mod generate;
mod prepare;
mod prompts;

use std::fmt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// What went wrong with which file.
#[derive(Debug)]
pub struct Failure(String);

impl Failure {
    /// A failure that names a file.
    pub fn new(path: &Path, problem: String) -> Self {
        Self(format!("{}: {problem}", path.display()))
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

const USAGE: &str = "usage:
  default-model prepare CORPUS STARTER_HELD_OUT.jsonl WORK   what is trained and measured on
  default-model generate CORPUS SEED WORK                    dialogues from facts, after prepare
  default-model examine WORK MODEL...                        what models know of it";

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let path = PathBuf::from;
    let done = match words[..] {
        ["prepare", corpus, starter, work] => {
            prepare::prepare(&path(corpus), &path(starter), &path(work))
        }
        ["generate", corpus, seed, work] => match seed.parse() {
            Ok(seed) => generate::generate(&path(corpus), seed, &path(work)),
            Err(_) => Err(Failure(format!("the seed {seed}: a number was expected"))),
        },
        ["examine", work, ref models @ ..] if !models.is_empty() => {
            let models: Vec<PathBuf> = models.iter().map(|m| path(m)).collect();
            examine::examine(&path(work), &models)
        }
        _ => Err(Failure(USAGE.into())),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            eprintln!("{failure}");
            ExitCode::FAILURE
        }
    }
}
