//! `lapidary bench`: prefill and decode, beside what the machine can do.

use crate::args::BenchArgs;
use crate::model::Weights;
use crate::run::rate;
use crate::together::Together;
use crate::{Outcome, show};
use lapidary_engine::Session;
use lapidary_ops::{int8_peak, read_bandwidth};
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
    let peak = int8_peak(ready.cpu.isa(), ready.cpu.pool());
    let prefill = (!prefill.is_empty()).then(|| Figures::new(prefill));
    let decode = (!decode.is_empty()).then(|| Figures::new(decode));
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
            "int8_peak_operations_per_second": peak,
            "decode_share_of_bandwidth": read.map(|r| r / bandwidth),
            "peak_resident_bytes": resident,
            "file_bytes": ready.checkpoint.file_bytes(),
            "cache_bytes": session.cache_bytes(),
        });
        println!("{report}");
        return Ok(());
    }
    println!("model      {}", ready.checkpoint.name());
    let (threads, isa) = (ready.cpu.pool().threads(), ready.cpu.isa().name());
    println!(
        "machine    {threads} threads, {isa}; reads {:.1} GB/s, {:.0} GOP/s in 8 bits",
        bandwidth / 1e9,
        peak / 1e9
    );
    println!("load       {:8.2} s", load.as_secs_f64());
    if let Some(p) = prefill {
        println!("prefill    {}   {} tokens after {}", p.text(), args.prompt, args.depth);
    }
    if let (Some(d), Some(read)) = (decode, read) {
        println!("decode     {}   {} tokens after {}", d.text(), args.generate, args.depth);
        println!(
            "           {:8.2} GB/s of weights, {:.0} % of the bandwidth",
            read / 1e9,
            100.0 * read / bandwidth
        );
    }
    let file = show::bytes(ready.checkpoint.file_bytes());
    let cache = show::bytes(session.cache_bytes() as u64);
    println!(
        "memory     {} at most; file {file}, cache {cache}",
        resident.map_or("unknown".into(), show::bytes)
    );
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
        println!("{report}");
        return Ok(());
    }
    println!("model      {}", ready.checkpoint.name());
    println!(
        "decode     {}   {} sequences together, {} tokens each after {}",
        decode.text(),
        args.sequences,
        args.generate,
        args.depth
    );
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
