//! `lapidary embed`: texts to vectors, a JSON array of numbers a line.

use crate::args::EmbedArgs;
use crate::{Outcome, model, show};
use lapidary_engine::Embedder;
use std::io::{BufRead, Write};

/// Lines that are computed together.
const TOGETHER: usize = 32;

/// Writes the vector of each text to standard output.
pub fn embed(args: EmbedArgs) -> Outcome {
    if args.model.model.is_none() {
        return Err("an embedding model is needed: --model ~/models/embeddinggemma-300m".into());
    }
    if args.model.adapter.is_some() || args.model.matformer.is_some() {
        return Err("--adapter and --matformer: models for embeddings take neither".into());
    }
    let checkpoint = model::checkpoint(args.model.model.as_deref())?;
    let mut cpu = model::cpu(&args.model)?;
    let embedder = Embedder::open(&checkpoint, &mut cpu)?;
    embedder.notes().for_each(|line| show::note(&format!("note: {line}")));
    let prompt = match (&args.prompt, &args.task) {
        (Some(prompt), _) => prompt.clone(),
        (None, Some(task)) => embedder.prompt(task)?.to_owned(),
        (None, None) => String::new(),
    };
    let mut out = std::io::BufWriter::new(std::io::stdout().lock());
    let mut write = |texts: &[String]| -> Outcome {
        let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
        for e in embedder.embed(&mut cpu, &prompt, &texts, args.dimensions)? {
            writeln!(out, "{}", serde_json::to_string(&e.vector)?)?;
        }
        Ok(out.flush()?)
    };
    if !args.texts.is_empty() {
        return write(&args.texts);
    }
    let mut lines = Vec::new();
    for line in std::io::stdin().lock().lines() {
        lines.push(line?);
        if lines.len() == TOGETHER {
            write(&lines)?;
            lines.clear();
        }
    }
    write(&lines)
}
