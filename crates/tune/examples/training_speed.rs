//! Training speed and memory, to put beside tools/training_peer.py:
//!
//!     cargo run --release -p lapidary-tune --example training_speed -- MODEL full|lora BATCH LENGTH [STEPS [MIB]] [bf16|bf16-amx] [8bit]
//!
//! MIB is the memory for activations; what does not fit is computed again. bf16 and bf16-amx: matrices
//! are multiplied in bfloat16. 8bit: the optimiser's moments take a byte each.

use lapidary_formats::Checkpoint;
use lapidary_tune::{
    LoraOptions, Method, ProductPrecision, Sequence, StatePrecision, TrainOptions, Trainer,
};
use std::path::Path;
use std::time::Instant;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut args: Vec<String> = std::env::args().skip(1).collect();
    let state = match args.pop_if(|last| last == "8bit") {
        Some(_) => StatePrecision::Bits8,
        None => StatePrecision::default(),
    };
    let precision = match args.pop_if(|last| last.starts_with("bf16")).as_deref() {
        None => ProductPrecision::F32,
        Some("bf16") => ProductPrecision::Bf16,
        Some("bf16-amx") => ProductPrecision::Bf16Amx,
        Some(other) => return Err(format!("{other}: bf16 or bf16-amx was expected").into()),
    };
    let usage = "training_speed MODEL full|lora BATCH LENGTH [STEPS [MIB]] [bf16|bf16-amx] [8bit]";
    let [model, method, batch, length, rest @ ..] = &args[..] else { return Err(usage.into()) };
    let (batch, length): (u32, u32) = (batch.parse()?, length.parse()?);
    let number = |i: usize| rest.get(i).map(|a| a.parse::<usize>()).transpose();
    let steps = number(0)?.unwrap_or(4);
    let mut options = TrainOptions { precision, state, ..TrainOptions::default() };
    if let Some(mib) = number(1)? {
        options.activation_memory = mib << 20;
    }
    let method = match &method[..] {
        "full" => Method::Full,
        "lora" => Method::Lora(LoraOptions {
            rank: 16,
            alpha: 32.0,
            dropout: 0.0,
            targets: Vec::new(),
            rslora: false,
        }),
        _ => return Err(usage.into()),
    };
    let checkpoint = Checkpoint::open(Path::new(model))?;
    let vocab = lapidary_model::describe(&checkpoint)?.vocab as u32;
    let mut trainer = Trainer::new(&checkpoint, TrainOptions { method, ..options })?;
    println!("{:.1} million values are trained", trainer.trained() as f64 / 1e6);
    let sequence = |b: u32| {
        Sequence::whole((0..length).map(|i| 5 + (i * 7 + b * 131) % (vocab - 5)).collect())
    };
    let micro_batches = vec![(0..batch).map(sequence).collect::<Vec<_>>()];
    let mut times = Vec::new();
    for step in 0..steps {
        let start = Instant::now();
        let report = trainer.step(&micro_batches, 1e-4)?;
        times.push(start.elapsed().as_secs_f64());
        println!("step {step}: loss {:.4}, {:.2} s", report.loss, times[step]);
    }
    let mut rest = times[1..].to_vec();
    rest.sort_by(f64::total_cmp);
    let rate = f64::from(batch * length) / rest[rest.len() / 2];
    println!("lapidary: {rate:.0} tokens/s, peak {:.2} GB", peak().unwrap_or(f64::NAN));
    Ok(())
}

/// The largest resident memory so far, in GB, where the system tells.
fn peak() -> Option<f64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find(|l| l.starts_with("VmHWM"))?;
    Some(line.split_whitespace().nth(1)?.parse::<f64>().ok()? / 1e6)
}
