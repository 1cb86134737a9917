//! `lapidary quantize`: a checkpoint to a GGUF file of another precision.

use crate::args::QuantizeArgs;
use crate::{Outcome, show};
use indicatif::{ProgressBar, ProgressStyle};
use lapidary_engine::Text;
use lapidary_formats::Checkpoint;
use lapidary_ops::{Pool, Precision};
use lapidary_tune::{Importance, Options, Recipe, Report, Written, agreement, passages};
use std::io::{Write, stdout};
use std::path::Path;
use std::sync::Arc;

/// Tokens of a passage of the texts that `--calibrate` and `--kl` name.
const PASSAGE: usize = 256;

/// Converts.
pub fn quantize(args: QuantizeArgs) -> Outcome {
    let recipe = Recipe::named(&args.ty).ok_or_else(|| {
        let known: Vec<&str> = Recipe::names().collect();
        format!("--type {}: one of {} was expected", args.ty, known.join(", "))
    })?;
    let recipe = Recipe { pure: args.pure, ..recipe };
    let checkpoint = Checkpoint::open(&args.input)?;
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let pool = Arc::new(Pool::new(args.threads.unwrap_or(cores).clamp(1, 1024)));
    let importance =
        args.calibrate.as_ref().map(|f| calibrate(&checkpoint, f, &args, &pool)).transpose()?;
    let bar = bar("tensors");
    let options = Options { recipe, importance };
    let report =
        lapidary_tune::quantize(&checkpoint, &args.output, &options, &pool, &mut |i, n| {
            bar.set_length(n as u64);
            bar.set_position(i as u64);
        })?;
    bar.finish_and_clear();
    print(&report, &args, options.importance.is_some())?;
    if let Some(file) = &args.kl {
        compare(&checkpoint, file, &args, &pool)?;
    }
    Ok(())
}

fn bar(what: &str) -> ProgressBar {
    let bar = ProgressBar::new(0);
    let template = format!("{{bar:40}} {{pos}}/{{len}} {what}, {{eta}} left");
    if let Ok(style) = ProgressStyle::with_template(&template) {
        bar.set_style(style);
    }
    bar
}

fn calibrate(
    checkpoint: &Checkpoint,
    file: &Path,
    args: &QuantizeArgs,
    pool: &Arc<Pool>,
) -> Result<Importance, Box<dyn std::error::Error>> {
    let text = Text::open(checkpoint)?;
    let passages = passages(file, &text, PASSAGE, args.tokens)?;
    let bar = bar("passages");
    let importance = Importance::measure(checkpoint, &passages, pool, &mut |i, n| {
        bar.set_length(n as u64);
        bar.set_position(i as u64);
    })?;
    bar.finish_and_clear();
    show::note(&format!("calibrated on {} tokens of {}", importance.tokens, file.display()));
    Ok(importance)
}

fn print(report: &Report, args: &QuantizeArgs, calibrated: bool) -> std::io::Result<()> {
    for name in &report.left_out {
        show::note(&format!("left out: {name} (no part of the text model)"));
    }
    let mut types: Vec<(&str, usize)> = Vec::new();
    for (_, ty) in &report.fallen_back {
        match types.iter_mut().find(|t| t.0 == ty.name()) {
            Some(t) => t.1 += 1,
            None => types.push((ty.name(), 1)),
        }
    }
    for (ty, count) in types {
        show::note(&format!(
            "{count} matrices became {ty}: their rows are no multiple of the block of the type \
             that {} has for them",
            args.ty
        ));
    }
    let without: Vec<&Written> = (report.matrices.iter())
        .filter(|m| calibrated && !m.weighted && m.ty.block_len() > 1 && m.ty.name() != "Q8_0")
        .collect();
    if let Some(first) = without.first() {
        let count = without.len();
        show::note(&format!("{count} matrices were not calibrated, the first: {}", first.name));
    }
    if args.tensors {
        for m in &report.matrices {
            let bits = 8.0 * m.ty.block_bytes() as f64 / m.ty.block_len() as f64;
            let error = 100.0 * m.error;
            writeln!(
                stdout(),
                "{:40} {:7} {bits:6.3} bits  error {error:7.3} %",
                m.name,
                m.ty.name()
            )?;
        }
    }
    let (from, to) = (show::bytes(report.bytes.0), show::bytes(report.bytes.1));
    let values: usize = report.matrices.iter().map(|m| m.values).sum();
    let bits = 8.0 * report.bytes.1 as f64 / values.max(1) as f64;
    writeln!(stdout(), "{}: {from} to {to}, {bits:.2} bits a weight", args.output.display())?;
    if let Some(worst) = report.matrices.iter().max_by(|a, b| a.error.total_cmp(&b.error)) {
        let mean = report.matrices.iter().map(|m| m.error).sum::<f64>();
        writeln!(
            stdout(),
            "relative error of the weights: {:.3} % on average, {:.3} % at most ({})",
            100.0 * mean / report.matrices.len() as f64,
            100.0 * worst.error,
            worst.name
        )?;
    }
    Ok(())
}

/// Source against result, both with f32 activations: what the weights alone have lost.
fn compare(source: &Checkpoint, file: &Path, args: &QuantizeArgs, pool: &Arc<Pool>) -> Outcome {
    let passages = passages(file, &Text::open(source)?, PASSAGE, args.tokens)?;
    let result = Checkpoint::open(&args.output)?;
    let exact = Precision::Exact;
    let a = agreement((source, exact), (&result, exact), &passages, pool)?;
    writeln!(
        stdout(),
        "against the source on {} tokens: KL divergence {:.5} on average, {:.3} at most; the same \
         likeliest token for {:.2} %",
        a.divergences.len(),
        a.mean(),
        a.most(),
        100.0 * a.top()
    )?;
    Ok(())
}
