//! Tokens per second of the engine at 1, 4, 16 and 64 requests at once, and what it costs beside the
//! model.
//!
//!     cargo run --release -p lapidary-engine --example throughput -- MODEL [PROMPT] [NEW] [THREADS]

use lapidary_engine::request::{Event, Request};
use lapidary_engine::{Engine, EngineOptions, Parts, Sampling};
use lapidary_formats::Checkpoint;
use lapidary_model::load;
use lapidary_ops::{Cpu, Isa, Pool, Precision};
use std::error::Error;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

fn main() -> Result<(), Box<dyn Error>> {
    let mut args = std::env::args().skip(1);
    let model = args.next().unwrap_or_else(|| "models/default-Q8_0.gguf".into());
    let mut number = |default| args.next().map_or(Ok(default), |a| a.parse::<usize>());
    let (prompt, new) = (number(128)?, number(64)?);
    let threads = number(std::thread::available_parallelism().map_or(1, usize::from))?;
    println!("{model}: prompts of {prompt}, {new} new tokens, {threads} threads");
    println!(
        "requests  sampling  tokens/s  first p50  first max  between p50   max  beside the model"
    );
    for (name, temperature) in [("greedy", 0.0), ("sampled", 1.0)] {
        for requests in [1, 4, 16, 64] {
            let engine = start(Path::new(&model), threads, prompt + new)?;
            let sampling = Sampling { temperature, top_p: 0.95, ..Sampling::default() };
            // Once to warm up, with other prompts: nothing of them is reused.
            measure(&engine, 1, requests, prompt, new.min(8), &sampling)?;
            let before = engine.stats();
            let run = measure(&engine, 2, requests, prompt, new, &sampling)?;
            let stats = engine.stats();
            let steps = (stats.steps - before.steps).max(1);
            let all = stats.step_time - before.step_time;
            let beside = all - (stats.model_time - before.model_time);
            println!(
                "{requests:8}  {name:8}  {:8.0}  {:6.1} ms  {:6.1} ms  {:8.2} ms {:6.1}  {:.1} us a step, {:.1} %",
                (requests * new) as f64 / run.wall.as_secs_f64(),
                quantile(&run.first, 0.5) * 1e3,
                quantile(&run.first, 1.0) * 1e3,
                quantile(&run.between, 0.5) * 1e3,
                quantile(&run.between, 1.0) * 1e3,
                beside.as_secs_f64() * 1e6 / steps as f64,
                beside.as_secs_f64() / all.as_secs_f64() * 100.0,
            );
        }
    }
    Ok(())
}

fn start(model: &Path, threads: usize, context: usize) -> Result<Engine, Box<dyn Error>> {
    let checkpoint = Checkpoint::open(model)?;
    let mut cpu = Cpu::new(Isa::detect(), Arc::new(Pool::new(threads)), Precision::Fast);
    let loaded = load(&checkpoint, &mut cpu)?;
    let parts = Parts {
        model: loaded.model,
        ops: Box::new(cpu),
        weight_bytes: loaded.step_bytes,
        adapters: 0,
    };
    Ok(Engine::start(parts, EngineOptions { context, ..EngineOptions::default() })?)
}

struct Run {
    wall: Duration,
    /// Seconds to the first token of each request.
    first: Vec<f64>,
    /// Seconds between tokens.
    between: Vec<f64>,
}

fn measure(
    engine: &Engine,
    round: u32,
    requests: usize,
    prompt: usize,
    new: usize,
    sampling: &Sampling,
) -> Result<Run, Box<dyn Error>> {
    let start = Instant::now();
    let times: Vec<_> = (0..requests as u32)
        .map(|i| {
            let ids = (0..prompt as u32).map(|j| (j * 31 + i * 977 + round * 5003) % 2000 + 100);
            let sampling = Sampling { seed: u64::from(i), ..sampling.clone() };
            let request = Request { sampling, ..Request::new(ids.collect(), new) };
            let (sender, times) = std::sync::mpsc::channel();
            let sink = Box::new(move |event| {
                if matches!(event, Event::Token { .. }) {
                    // The receiver outlives the request.
                    let _ = sender.send(start.elapsed().as_secs_f64());
                }
                std::ops::ControlFlow::Continue(())
            });
            engine.submit_to(request, sink).map(|_| times)
        })
        .collect::<Result<_, _>>()?;
    let (mut first, mut between) = (Vec::new(), Vec::new());
    for times in times {
        let times: Vec<f64> = times.iter().collect();
        first.extend(times.first());
        between.extend(times.windows(2).map(|w| w[1] - w[0]));
    }
    Ok(Run { wall: start.elapsed(), first, between })
}

fn quantile(values: &[f64], q: f64) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let last = sorted.len().saturating_sub(1);
    sorted.get((last as f64 * q).round() as usize).copied().unwrap_or(f64::NAN)
}
