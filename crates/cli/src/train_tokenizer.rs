//! `lapidary train-tokenizer`: a vocabulary from a corpus.

use crate::args::TrainTokenizerArgs;
use crate::{Outcome, show};
use lapidary_tune::data::Format;
use lapidary_tune::tokenizer::{TokenizerOptions, train_tokenizer};
use std::time::Instant;

/// Runs the command.
pub fn run(args: &TrainTokenizerArgs) -> Outcome {
    let defaults = TokenizerOptions::default();
    if args.threads.is_some_and(|t| !(1..=1024).contains(&t)) {
        return Err("--threads: a number from 1 to 1024 was expected".into());
    }
    if !(args.coverage > 0.0 && args.coverage <= 1.0) {
        return Err("--coverage: a share above 0 and at most 1 was expected".into());
    }
    if args.max_length < 2 {
        return Err("--max-length: at least 2 was expected".into());
    }
    let options = TokenizerOptions {
        vocab: args.vocab,
        coverage: args.coverage,
        max_length: args.max_length,
        unused: args.unused,
        threads: args.threads.unwrap_or(defaults.threads),
    };
    let format = args.format.as_deref().map(format).transpose()?;
    let start = Instant::now();
    let trained = train_tokenizer(&args.corpus, format, &options)?;
    if let (count, Some(first)) = &trained.broken {
        if args.strict {
            return Err(first.clone().into());
        }
        show::note(&format!("left out {count} broken records, the first: {first}"));
    }
    trained.write(&args.out)?;
    println!(
        "{}: {} entries from {} documents, {} of text, in {:.1} s",
        args.out.display(),
        show::count(trained.vocab() as u64),
        show::count(trained.documents),
        show::bytes(trained.bytes),
        start.elapsed().as_secs_f64()
    );
    Ok(())
}

fn format(name: &str) -> Result<Format, String> {
    match name {
        "jsonl" => Ok(Format::Jsonl),
        "text" => Ok(Format::Text),
        "parquet" => Ok(Format::Parquet),
        other => Err(format!("--format {other}: jsonl, text or parquet was expected")),
    }
}
