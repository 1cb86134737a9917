//! `lapidary train`: a configuration to a trained model, with a live view.

use crate::args::TrainArgs;
use crate::{Outcome, model, show};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use lapidary_formats::{Checkpoint, FormatError};
use lapidary_tune::Trainer;
use lapidary_tune::run::{
    Entry, Event, Hooks, Learner, TEMPLATES, TrainConfig, duration, template, train,
};
use std::io::IsTerminal;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// Runs the command.
pub fn run(args: &TrainArgs) -> Outcome {
    if let Some(kind) = &args.init {
        return init(kind, args.config.as_deref());
    }
    let path = args
        .config
        .as_ref()
        .ok_or("which configuration? lapidary train --init lora writes one to begin with")?;
    let mut config = TrainConfig::open(path)?;
    config.strict |= args.strict;
    let stop = interrupt()?;
    let mut view = View::new();
    let built_in =
        || model::checkpoint(None).map_err(|e| FormatError::new("the built-in model", "", e));
    let finished = {
        let mut listen = |event: Event| view.hear(event);
        let make = |base: &Checkpoint, options| -> lapidary_formats::Result<Box<dyn Learner>> {
            Ok(Box::new(Trainer::new(base, options)?))
        };
        let hooks = Hooks { listen: &mut listen, stop: &stop };
        train(&config, args.resume, &built_in, &make, hooks)
    };
    view.end();
    let finished = finished?;
    match &finished.result {
        Some(folder) => println!("{}", folder.display()),
        None => show::note(&format!(
            "stopped after {} steps with a checkpoint; lapidary train {} --resume goes on",
            finished.steps,
            path.display()
        )),
    }
    show::note(&format!("report: {}", finished.report.display()));
    Ok(())
}

/// Writes a commented configuration.
fn init(kind: &str, path: Option<&Path>) -> Outcome {
    let path = path.map_or_else(|| PathBuf::from(format!("{kind}.toml")), Path::to_owned);
    let text = template(kind, &path.display().to_string())
        .ok_or_else(|| format!("--init {kind}: one of {} was expected", TEMPLATES.join(", ")))?;
    if path.exists() {
        return Err(format!("{} is there already", path.display()).into());
    }
    lapidary_formats::atomic::write_file(&path, text.as_bytes())?;
    println!("{}", path.display());
    Ok(())
}

/// Whether Ctrl-C was pressed: the run stops after its step, with a checkpoint.
fn interrupt() -> Result<Arc<AtomicBool>, Box<dyn std::error::Error>> {
    let stop = Arc::new(AtomicBool::new(false));
    let flag = stop.clone();
    ctrlc::set_handler(move || {
        if flag.swap(true, Ordering::Relaxed) {
            // A second time: at once. The last checkpoint is whole.
            std::process::exit(130);
        }
        eprintln!("\nstopping after this step, with a checkpoint; again to stop at once");
    })?;
    Ok(stop)
}

/// Losses in the sparkline.
const SPARKS: usize = 24;

/// Time between lines where there is no terminal.
const LINE_EVERY: Duration = Duration::from_secs(10);

/// What a terminal shows: a bar in place; elsewhere a line now and then.
struct View {
    bar: Option<ProgressBar>,
    losses: Vec<f64>,
    /// Steps done before and in all.
    done: u64,
    steps: u64,
    start: Instant,
    /// When the last line was written.
    line: Option<Instant>,
}

impl View {
    fn new() -> Self {
        let (losses, start) = (Vec::new(), Instant::now());
        Self { bar: None, losses, done: 0, steps: 0, start, line: None }
    }

    fn hear(&mut self, event: Event) {
        match event {
            Event::Note(text) => self.print(&text),
            Event::Saved(folder) => {
                if self.bar.is_none() {
                    self.print(&format!("checkpoint: {}", folder.display()));
                }
            }
            Event::Begin { done, steps } => {
                (self.done, self.steps, self.start) = (done, steps, Instant::now());
                if done > 0 {
                    self.print(&format!("going on after {done} of {steps} steps"));
                }
                if std::io::stderr().is_terminal() {
                    let style = "{bar:24} {pos}/{len}  {msg}";
                    let style = ProgressStyle::with_template(style)
                        .unwrap_or_else(|_| ProgressStyle::default_bar());
                    let target = ProgressDrawTarget::stderr();
                    let bar = ProgressBar::with_draw_target(Some(steps), target).with_style(style);
                    bar.set_position(done);
                    self.bar = Some(bar);
                }
            }
            Event::Entry(entry) => self.entry(entry),
        }
    }

    fn entry(&mut self, entry: &Entry) {
        match entry {
            Entry::Step { step, loss, lr, grad_norm, tokens, seconds, .. } => {
                self.losses.push(*loss);
                let speed = *tokens as f64 / seconds.max(1e-9);
                let left = self.start.elapsed().as_secs_f64() / (step - self.done).max(1) as f64
                    * (self.steps - step) as f64;
                let figures = format!(
                    "loss {loss:.4}  lr {lr:.2e}  gradient {grad_norm:.2}  {speed:.0} tokens/s  {} left",
                    duration(left)
                );
                if let Some(bar) = &self.bar {
                    bar.set_position(*step);
                    bar.set_message(format!("{}  {figures}", sparkline(&self.losses)));
                } else if self.line.is_none_or(|l| l.elapsed() >= LINE_EVERY) || *step == self.steps
                {
                    self.line = Some(Instant::now());
                    eprintln!("step {step}/{}  {figures}", self.steps);
                }
            }
            Entry::Evaluation { step, source, loss, bits_per_byte, .. } => self.print(&format!(
                "step {step}: held out {source}: loss {loss:.4}, {bits_per_byte:.4} bits per byte"
            )),
            Entry::Sample { step, prompt, text } => {
                self.print(&format!("step {step}: {prompt:?}: {text:?}"));
            }
        }
    }

    fn print(&self, text: &str) {
        match &self.bar {
            Some(bar) => bar.println(show::style(text, show::Style::Dim)),
            None => show::note(text),
        }
    }

    fn end(&self) {
        if let Some(bar) = &self.bar {
            bar.abandon();
        }
    }
}

/// The course of the losses in a few characters: means of equal stretches.
fn sparkline(losses: &[f64]) -> String {
    const BARS: [char; 8] = ['▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];
    let width = losses.len().div_ceil(SPARKS).max(1);
    let means: Vec<f64> =
        losses.chunks(width).map(|c| c.iter().sum::<f64>() / c.len() as f64).collect();
    let low = means.iter().copied().fold(f64::INFINITY, f64::min);
    let high = means.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let bar = |m: &f64| {
        let height = if high > low { (m - low) / (high - low) } else { 0.0 };
        BARS[((height * 7.0).round() as usize).min(7)]
    };
    means.iter().map(bar).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sparklines_fall_with_the_loss() {
        let falling: Vec<f64> = (0..1000).map(|i| 5.0 - f64::from(i) / 250.0).collect();
        let line = sparkline(&falling);
        assert!(line.chars().count() <= SPARKS, "{line}");
        assert!(line.starts_with('█') && line.ends_with('▁'), "{line}");
        assert_eq!(sparkline(&[2.0]), "▁");
        assert_eq!(sparkline(&[1.0, 3.0]), "▁█");
    }
}
