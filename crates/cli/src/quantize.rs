//! `lapidary quantize`: a checkpoint to a GGUF file of another precision.

use crate::args::QuantizeArgs;
use crate::{Outcome, show};
use indicatif::{ProgressBar, ProgressStyle};
use lapidary_formats::Checkpoint;
use lapidary_ops::{BlockType, Pool, blocks};
use lapidary_tune::Options;

/// Converts.
pub fn quantize(args: QuantizeArgs) -> Outcome {
    let wanted =
        |t: &BlockType| t.name().eq_ignore_ascii_case(&args.ty) && blocks::can_quantize(*t);
    let ty = BlockType::ALL.into_iter().find(wanted).ok_or_else(|| {
        let known = BlockType::ALL.into_iter().filter(|t| blocks::can_quantize(*t));
        let known: Vec<String> = known.map(|t| t.name().to_lowercase()).collect();
        format!("--type {}: one of {} was expected", args.ty, known.join(", "))
    })?;
    let checkpoint = Checkpoint::open(&args.input)?;
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let pool = Pool::new(args.threads.unwrap_or(cores).clamp(1, 1024));
    let bar = ProgressBar::new(0);
    if let Ok(style) = ProgressStyle::with_template("{bar:40} {pos}/{len} tensors, {eta} left") {
        bar.set_style(style);
    }
    let options = Options { ty };
    let mut progress = |done: usize, all: usize| {
        bar.set_length(all as u64);
        bar.set_position(done as u64);
    };
    let report =
        lapidary_tune::quantize(&checkpoint, &args.output, &options, &pool, &mut progress)?;
    bar.finish_and_clear();
    for name in &report.left_out {
        show::note(&format!("left out: {name} (no part of the text model)"));
    }
    for name in &report.kept {
        show::note(&format!("not {}: the rows of {name} are no multiple of a block", ty.name()));
    }
    let worst = report.errors.iter().max_by(|a, b| a.1.total_cmp(&b.1));
    let (from, to) = (show::bytes(report.bytes.0), show::bytes(report.bytes.1));
    println!("{}: {from} to {to}", args.output.display());
    if let Some((name, error)) = worst {
        let mean = report.errors.iter().map(|e| e.1).sum::<f64>() / report.errors.len() as f64;
        println!(
            "relative error of the weights: {:.3} % on average, {:.3} % at most ({name})",
            100.0 * mean,
            100.0 * error
        );
    }
    Ok(())
}
