//! `lapidary inspect`: what a checkpoint holds and what it needs.

use crate::args::InspectArgs;
use crate::{Outcome, show};
use lapidary_engine::Text;
use lapidary_formats::Checkpoint;
use lapidary_model::{Settings, describe};
use lapidary_ops::{BlockType, KvType};
use serde_json::{Value, json};
use std::io::{Write, stdout};

/// Prints it.
pub fn inspect(args: InspectArgs) -> Outcome {
    let checkpoint = Checkpoint::open(&args.path)?;
    let settings = Settings::new(&checkpoint)?;
    let info = describe(&checkpoint);
    let text = Text::open(&checkpoint);
    let tensors: Vec<Value> = (checkpoint.tensors())
        .map(|t| json!({"name": *t.name, "shape": t.shape, "type": t.dtype.name(), "bytes": t.bytes.len()}))
        .collect();
    let memory = info.as_ref().ok().map(|info| {
        let context = args.context.unwrap_or(info.context);
        let cache = info.kv.bytes(context, 512, KvType::F16);
        (context, checkpoint.tensor_bytes(), cache as u64)
    });
    if args.json {
        let text = text.as_ref().map_err(ToString::to_string);
        let report = json!({
            "path": checkpoint.name(),
            "files": checkpoint.files().iter().map(|f| &**f).collect::<Vec<_>>(),
            "file_bytes": checkpoint.file_bytes(),
            "architecture": settings.architecture(),
            "family": info.as_ref().ok().map(|i| i.family),
            "problem": info.as_ref().err().map(ToString::to_string),
            "parameters": checkpoint.elements(),
            "layers": info.as_ref().ok().map(|i| i.layers),
            "width": info.as_ref().ok().map(|i| i.width),
            "context": info.as_ref().ok().map(|i| i.context),
            "license": checkpoint.license(),
            "tokenizer": text.as_ref().ok().map(|t| json!({"vocabulary": t.tokenizer.vocab_size(), "bos": t.tokenizer.bos(), "stops": t.stops})),
            "tokenizer_problem": text.as_ref().err(),
            "template": text.as_ref().ok().and_then(|t| t.template.as_ref().map(|t| t.name())),
            "memory": memory.map(|(context, weights, cache)| json!({"context": context, "weight_bytes": weights, "cache_bytes": cache, "total_bytes": weights + cache})),
            "tensors": tensors,
        });
        writeln!(stdout(), "{report}")?;
        return Ok(());
    }
    let bold = |s: &str| show::style(s, show::Style::Bold);
    writeln!(stdout(), "{}        {}", bold("path"), checkpoint.name())?;
    writeln!(
        stdout(),
        "{}       {} in {} file(s)",
        bold("files"),
        show::bytes(checkpoint.file_bytes()),
        checkpoint.files().len()
    )?;
    writeln!(stdout(), "{}      {}", bold("family"), settings.architecture())?;
    writeln!(stdout(), "{}  {}", bold("parameters"), show::count(checkpoint.elements()))?;
    writeln!(stdout(), "{}       {}", bold("types"), types(&checkpoint))?;
    match &info {
        Ok(i) => {
            writeln!(
                stdout(),
                "{}       {} layers, width {}, vocabulary {}, context {}",
                bold("shape"),
                i.layers,
                i.width,
                i.vocab,
                i.context
            )?;
        }
        Err(e) => writeln!(stdout(), "{}     {e}", bold("problem"))?,
    }
    if let Some((context, weights, cache)) = memory {
        let sum = show::bytes(weights + cache);
        writeln!(
            stdout(),
            "{}      {sum} for {context} tokens: weights {}, cache {}",
            bold("memory"),
            show::bytes(weights),
            show::bytes(cache)
        )?;
    }
    match &text {
        Ok(t) => {
            writeln!(
                stdout(),
                "{}   {} entries, turns end with {:?}",
                bold("tokenizer"),
                t.tokenizer.vocab_size(),
                t.stops
            )?;
            writeln!(
                stdout(),
                "{}    {}",
                bold("template"),
                t.template.as_ref().map_or("none: a base model", |t| t.name())
            )?;
        }
        Err(e) => writeln!(stdout(), "{}   {e}", bold("tokenizer"))?,
    }
    writeln!(
        stdout(),
        "{}     {}",
        bold("licence"),
        checkpoint.license().unwrap_or("not stated in the files")
    )?;
    writeln!(stdout(), "{}     {}", bold("tensors"), checkpoint.tensors().len())?;
    for t in checkpoint.tensors() {
        writeln!(stdout(), "  {:<60} {:>8} {:?}", t.name, t.dtype.name(), t.shape)?;
    }
    Ok(())
}

/// How many tensors there are of each type.
fn types(checkpoint: &Checkpoint) -> String {
    let mut counts: Vec<(&str, usize)> = Vec::new();
    for t in checkpoint.tensors() {
        match counts.iter_mut().find(|(name, _)| *name == t.dtype.name()) {
            Some((_, n)) => *n += 1,
            None => counts.push((t.dtype.name(), 1)),
        }
    }
    let known = |name: &str| BlockType::ALL.iter().any(|b| b.name() == name);
    let parts = counts
        .iter()
        .map(|(name, n)| format!("{n} {name}{}", if known(name) { "" } else { " (not weights)" }));
    parts.collect::<Vec<_>>().join(", ")
}
