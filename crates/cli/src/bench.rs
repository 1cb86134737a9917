//! `lapidary bench`: prefill and decode, beside what the machine can do.

use crate::args::{BenchArgs, PrecisionArg};
use crate::model::Weights;
use crate::run::rate;
use crate::together::Together;
use crate::{Outcome, show};
use lapidary_engine::Session;
use lapidary_ops::{BlockType, bf16_peak, f32_peak, int8_peak, read_bandwidth};
use std::io::{Write, stdout};
use std::time::{Duration, Instant};

/// Medians and extremes of some measurements, in tokens for each second.
struct Figures(Vec<f64>);

impl Figures {
    fn new(mut all: Vec<f64>) -> Self {
        all.sort_by(f64::total_cmp);
        Self(all)
    }

    fn median(&self) -> f64 {
        self.0[self.0.len() / 2]
    }

    fn json(&self) -> serde_json::Value {
        let (low, high) = (self.0[0], self.0[self.0.len() - 1]);
        serde_json::json!({"median": self.median(), "min": low, "max": high})
    }

    fn text(&self) -> String {
        let (low, high) = (self.0[0], self.0[self.0.len() - 1]);
        format!("{:8.2} tokens/s   ({low:.2} to {high:.2})", self.median())
    }
}

/// Operations for each second that the processor reaches at most, on all threads.
struct Peaks {
    int8: f64,
    bf16: f64,
    f32: f64,
}

impl Peaks {
    fn measure(ready: &Weights) -> Self {
        let (isa, pool) = (ready.cpu.isa(), ready.cpu.pool());
        Self { int8: int8_peak(isa, pool), bf16: bf16_peak(isa, pool), f32: f32_peak(isa, pool) }
    }

    /// Seconds that the products of a prompt take at these rates: two operations for each weight
    /// and token, and the output projection for the last token alone.
    fn prefill(&self, ready: &Weights, exact: bool, tokens: usize) -> f64 {
        let (info, weights) = (ready.loaded.model.info(), &ready.loaded.weights);
        let all: usize = weights.iter().map(|(_, count)| count).sum();
        let head = ((info.vocab * info.width) as f64 / all as f64).min(1.0);
        let passes = tokens as f64 * (1.0 - head) + head;
        let seconds = weights.iter().map(|(ty, count)| {
            let peak = match ty {
                _ if exact => self.f32,
                BlockType::F32 | BlockType::F16 => self.f32,
                BlockType::BF16 => self.bf16,
                _ => self.int8,
            };
            2.0 * *count as f64 * passes / peak
        });
        seconds.sum()
    }
}

/// Measures and prints.
pub fn bench(args: BenchArgs) -> Outcome {
    let total = args.depth + args.prompt.max(args.depth + args.generate);
    let start = Instant::now();
    let mut model_args = args.model.clone();
    model_args.context = model_args.context.or(Some(total.max(1)));
    if args.repeat == 0 || args.prompt == 0 && args.generate == 0 {
        return Err(
            "nothing to measure: --repeat, and --prompt or --generate, must be above 0".into()
        );
    }
    let mut ready = Weights::open(&model_args)?;
    let load = start.elapsed();
    if args.sequences != 1 {
        return together(&args, &mut ready);
    }
    let mut session = ready.session();
    // A short pass wakes the threads and touches the weights.
    extend(&mut ready, &mut session, 16.min(total))?;
    let (mut prefill, mut decode) = (Vec::new(), Vec::new());
    for _ in 0..args.repeat {
        if args.prompt > 0 {
            session.reset();
            extend(&mut ready, &mut session, args.depth)?;
            prefill.push(rate(args.prompt, extend(&mut ready, &mut session, args.prompt)?));
        }
        if args.generate > 0 {
            session.reset();
            extend(&mut ready, &mut session, args.depth)?;
            let start = Instant::now();
            for _ in 0..args.generate {
                extend(&mut ready, &mut session, 1)?;
            }
            decode.push(rate(args.generate, start.elapsed()));
        }
    }
    let resident = show::peak_resident();
    let bandwidth = read_bandwidth(ready.cpu.isa(), ready.cpu.pool())?;
    let peaks = Peaks::measure(&ready);
    let prefill = (!prefill.is_empty()).then(|| Figures::new(prefill));
    let decode = (!decode.is_empty()).then(|| Figures::new(decode));
    let bound = peaks.prefill(&ready, args.model.precision == PrecisionArg::Exact, args.prompt);
    let share = prefill.as_ref().map(|p| bound * p.median() / args.prompt as f64);
    let step = ready.loaded.step_bytes as f64;
    let read = decode.as_ref().map(|d| d.median() * step);
    if args.json {
        let report = serde_json::json!({
            "model": ready.checkpoint.name(),
            "threads": ready.cpu.pool().threads(),
            "isa": ready.cpu.isa().name(),
            "prompt": args.prompt,
            "generate": args.generate,
            "depth": args.depth,
            "load_seconds": load.as_secs_f64(),
            "prefill_tokens_per_second": prefill.as_ref().map(Figures::json),
            "decode_tokens_per_second": decode.as_ref().map(Figures::json),
            "weight_bytes_per_step": ready.loaded.step_bytes,
            "decode_bytes_per_second": read,
            "read_bandwidth_bytes_per_second": bandwidth,
            "int8_peak_operations_per_second": peaks.int8,
            "bf16_peak_operations_per_second": peaks.bf16,
            "f32_peak_operations_per_second": peaks.f32,
            "prefill_share_of_peak": share,
            "decode_share_of_bandwidth": read.map(|r| r / bandwidth),
            "peak_resident_bytes": resident,
            "file_bytes": ready.checkpoint.file_bytes(),
            "cache_bytes": session.cache_bytes(),
        });
        writeln!(stdout(), "{report}")?;
        return Ok(());
    }
    writeln!(stdout(), "model      {}", ready.checkpoint.name())?;
    let (threads, isa) = (ready.cpu.pool().threads(), ready.cpu.isa().name());
    writeln!(
        stdout(),
        "machine    {threads} threads, {isa}; reads {:.1} GB/s; {:.0} GOP/s in 8 bits, {:.0} in bfloat16, {:.0} in f32",
        bandwidth / 1e9,
        peaks.int8 / 1e9,
        peaks.bf16 / 1e9,
        peaks.f32 / 1e9
    )?;
    writeln!(stdout(), "load       {:8.2} s", load.as_secs_f64())?;
    if let (Some(p), Some(share)) = (prefill, share) {
        writeln!(
            stdout(),
            "prefill    {}   {} tokens after {}",
            p.text(),
            args.prompt,
            args.depth
        )?;
        writeln!(
            stdout(),
            "           {:8.0} % of what its products do at the peak",
            100.0 * share
        )?;
    }
    if let (Some(d), Some(read)) = (decode, read) {
        writeln!(
            stdout(),
            "decode     {}   {} tokens after {}",
            d.text(),
            args.generate,
            args.depth
        )?;
        writeln!(
            stdout(),
            "           {:8.2} GB/s of weights, {:.0} % of the bandwidth",
            read / 1e9,
            100.0 * read / bandwidth
        )?;
    }
    let file = show::bytes(ready.checkpoint.file_bytes());
    let cache = show::bytes(session.cache_bytes() as u64);
    writeln!(
        stdout(),
        "memory     {} at most; file {file}, cache {cache}",
        resident.map_or("unknown".into(), show::bytes)
    )?;
    Ok(())
}

/// Decodes several sequences together: the sum of their tokens for each second.
fn together(args: &BenchArgs, ready: &mut Weights) -> Outcome {
    if args.sequences == 0 || args.generate == 0 {
        return Err("--sequences: at least 1, and --generate above 0, were expected".into());
    }
    let model = &*ready.loaded.model;
    let tokens = (args.depth + args.generate).max(16);
    let mut all = Together::new(model, ready.limits.kv, args.sequences, tokens)?;
    all.extend(model, &mut ready.cpu, 16.min(tokens));
    let mut decode = Vec::new();
    for _ in 0..args.repeat {
        all.reset();
        if args.depth > 0 {
            all.extend(model, &mut ready.cpu, args.depth);
        }
        let start = Instant::now();
        for _ in 0..args.generate {
            all.extend(model, &mut ready.cpu, 1);
        }
        decode.push(rate(args.sequences * args.generate, start.elapsed()));
    }
    let resident = show::peak_resident();
    let decode = Figures::new(decode);
    if args.json {
        let report = serde_json::json!({
            "model": ready.checkpoint.name(),
            "threads": ready.cpu.pool().threads(),
            "isa": ready.cpu.isa().name(),
            "sequences": args.sequences,
            "generate": args.generate,
            "depth": args.depth,
            "decode_tokens_per_second": decode.json(),
            "weight_bytes_per_step": ready.loaded.step_bytes,
            "read_bandwidth_bytes_per_second": read_bandwidth(ready.cpu.isa(), ready.cpu.pool())?,
            "peak_resident_bytes": resident,
            "file_bytes": ready.checkpoint.file_bytes(),
            "cache_bytes": all.cache_bytes(),
        });
        writeln!(stdout(), "{report}")?;
        return Ok(());
    }
    writeln!(stdout(), "model      {}", ready.checkpoint.name())?;
    writeln!(
        stdout(),
        "decode     {}   {} sequences together, {} tokens each after {}",
        decode.text(),
        args.sequences,
        args.generate,
        args.depth
    )?;
    Ok(())
}

/// Extends by `count` tokens, whatever they are; the time that it took.
fn extend(
    ready: &mut Weights,
    session: &mut Session,
    count: usize,
) -> Result<Duration, Box<dyn std::error::Error>> {
    if count == 0 {
        return Ok(Duration::ZERO);
    }
    let vocab = ready.loaded.model.info().vocab;
    let first = session.tokens().len();
    let ids: Vec<u32> = (first..first + count).map(|i| ((i * 7919 + 13) % vocab) as u32).collect();
    let start = Instant::now();
    session.extend(&*ready.loaded.model, &mut ready.cpu, &ids, false)?;
    Ok(start.elapsed())
}
