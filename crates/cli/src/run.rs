//! `lapidary run`: one prompt, one answer.

use crate::args::RunArgs;
use crate::model::{self, Ready};
use crate::pictures::{self, Pictures};
use crate::turn::Screen;
use crate::{Outcome, show};
use lapidary_engine::{
    Event, Finish, Generation, Picture, Sampler, StopStrings, Stops, Turn, generate,
};
use lapidary_formats::chat::Message;
use std::io::{Read, Write};
use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// Runs the command.
pub fn run(args: RunArgs) -> Outcome {
    if !args.json {
        model::introduce(args.model.model.as_deref());
    }
    let mut ready = Ready::open(&args.model)?;
    ready.set_thinking(&args.think)?;
    let (prompt, pictures) = prompt(&args, &mut ready)?;
    let sampling = ready.sampling(&args.sampling)?;
    let mut sampler = Sampler::new(sampling.clone())?;
    let ids = if args.ignore_eos { vec![] } else { ready.text.stops.clone() };
    let context_shift = args.stops.context_shift;
    let stops = Stops { ids, max_tokens: args.max_tokens, context_shift };
    let stop = interrupt()?;
    let mut session = ready.weights.session();
    session.show(pictures);
    let mut out = std::io::stdout().lock();
    let strings = StopStrings::new(args.stops.stop.iter().cloned());
    let mut turn = Turn::new(&ready.text.tokenizer, strings);
    let mut screen = Screen::default();
    let mut broken = None;
    let mut listen = |event| {
        if let Event::Token(id) = event {
            let pieces = turn.push(id);
            if !args.json {
                broken = screen.show(&pieces, &mut out).err();
            }
        }
        if turn.stopped_by().is_some() {
            ControlFlow::Break(Finish::Stop)
        } else if stop.load(Ordering::Relaxed) || broken.is_some() {
            ControlFlow::Break(Finish::Cancelled)
        } else {
            ControlFlow::Continue(())
        }
    };
    let model = &*ready.weights.loaded.model;
    let done = generate(
        model,
        &mut ready.weights.cpu,
        &mut session,
        &prompt,
        &mut sampler,
        &stops,
        &mut listen,
    )?;
    if let Some(e) = broken {
        return Err(e.into());
    }
    let rest = turn.finish();
    if args.json {
        writeln!(out, "{}", report(&prompt, &turn, &done, sampling.seed))?;
    } else {
        screen.show(&rest, &mut out)?;
        writeln!(out)?;
    }
    if done.forgotten > 0 && !args.json {
        show::note(&show::forgotten(done.forgotten));
    }
    Ok(())
}

/// The prompt's token ids, and the pictures among them.
fn prompt(
    args: &RunArgs,
    ready: &mut Ready,
) -> Result<(Vec<u32>, Vec<Picture>), Box<dyn std::error::Error>> {
    if let Some(ids) = &args.ids {
        return serde_json::from_str(ids)
            .map(|ids| (ids, vec![]))
            .map_err(|e| format!("--ids: a JSON array of token ids was expected: {e}").into());
    }
    if args.prompt.is_none() && args.image.iter().any(|i| i == "-") {
        return Err("--image -: standard input holds the prompt; give it as an argument".into());
    }
    let text = match &args.prompt {
        Some(text) => text.clone(),
        None => {
            let mut text = String::new();
            std::io::stdin()
                .read_to_string(&mut text)
                .map_err(|e| format!("the prompt on standard input: {e}"))?;
            text
        }
    };
    if args.raw {
        return Ok((ready.text.encode_plain(&text), vec![]));
    }
    // A base model has no turns.
    if ready.text.template.is_none() && args.image.is_empty() {
        return Ok((ready.text.encode_plain(&text), vec![]));
    }
    let mut messages = Vec::new();
    messages.extend(args.system.as_deref().map(|s| Message::new("system", s)));
    let mut message = Message::new("user", &text);
    if !args.image.is_empty() {
        message.content = pictures::content(&args.image, &text);
    }
    messages.push(message);
    Pictures::new(args.mmproj.clone()).prompt(ready, &messages)
}

/// Whether Ctrl-C was pressed: the answer ends, and what there is of it is kept.
fn interrupt() -> Result<Arc<AtomicBool>, Box<dyn std::error::Error>> {
    let stop = Arc::new(AtomicBool::new(false));
    let flag = stop.clone();
    ctrlc::set_handler(move || {
        if flag.swap(true, Ordering::Relaxed) {
            // A second time: at once.
            std::process::exit(130);
        }
    })?;
    Ok(stop)
}

/// Tokens for each second; 0 for no time.
pub fn rate(tokens: usize, time: std::time::Duration) -> f64 {
    if time.is_zero() { 0.0 } else { tokens as f64 / time.as_secs_f64() }
}

fn report(prompt: &[u32], turn: &Turn, done: &Generation, seed: u64) -> serde_json::Value {
    serde_json::json!({
        "text": turn.text(),
        "thought": turn.thought(),
        "ids": done.ids,
        "prompt_ids": prompt,
        "finish_reason": done.finish.name(),
        "seed": seed,
        "counts": {
            "prompt": prompt.len(),
            "generated": done.ids.len(),
            "forgotten": done.forgotten,
        },
        "timings": {
            "prefill_seconds": done.prefill_time.as_secs_f64(),
            "prefill_tokens_per_second": rate(done.prefilled, done.prefill_time),
            "decode_seconds": done.decode_time.as_secs_f64(),
            "decode_tokens_per_second": rate(done.steps, done.decode_time),
        },
        "peak_resident_bytes": show::peak_resident(),
    })
}
