//! The run itself: data in, steps, measurements, checkpoints, the result.

use super::checkpoint::{Checkpoints, RunState, TRAINER};
use super::config::{MethodConfig, TrainConfig};
use super::log::{Entry, Log};
use super::{init, report};
use crate::data::{Encoder, HeldOut, Stream, StreamSpec, held_out};
use crate::{Pair, Sequence, StepReport, TrainOptions};
use lapidary_engine::Text;
use lapidary_formats::atomic::write_file;
use lapidary_formats::chat::Message;
use lapidary_formats::{Checkpoint, FormatError, Result};
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// What a run tells while it goes on.
pub enum Event<'a> {
    /// Something that the user should know.
    Note(String),
    /// The run begins or goes on: steps done, steps in all.
    Begin {
        /// Steps done before.
        done: u64,
        /// Steps in all.
        steps: u64,
    },
    /// A step, a measurement or a sample.
    Entry(&'a Entry),
    /// A checkpoint was written.
    Saved(&'a Path),
}

/// What a run needs of a trainer.
pub trait Learner {
    /// One step of the optimiser over the micro-batches of `batch`.
    ///
    /// # Errors
    /// If the batch does not fit the model.
    fn step(&mut self, batch: &[Vec<Sequence>], lr: f32) -> Result<StepReport>;

    /// One step of direct preference optimisation.
    ///
    /// # Errors
    /// If the batch does not fit the model.
    fn step_pairs(&mut self, batch: &[Vec<Pair>], lr: f32) -> Result<StepReport>;

    /// The loss of the learnt tokens, in nats, and how many they are.
    ///
    /// # Errors
    /// If a sequence does not fit the model.
    fn evaluate(&mut self, sequences: &[Sequence]) -> Result<(f64, usize)>;

    /// The likeliest tokens after `prompt`, up to one of `stops`.
    ///
    /// # Errors
    /// If the prompt does not fit the model.
    fn answer(&mut self, prompt: &[u32], stops: &[u32], most: usize) -> Result<Vec<u32>>;

    /// Things that the user should know of the model.
    fn notes(&self) -> Vec<String>;

    /// Writes everything from which training goes on to the bit.
    ///
    /// # Errors
    /// If the file can't be written.
    fn save(&mut self, path: &Path) -> Result<()>;

    /// Reads what [`Learner::save`] wrote.
    ///
    /// # Errors
    /// If it can't be read, or belongs to another run.
    fn load(&mut self, path: &Path) -> Result<()>;

    /// Writes what was learnt into the run's folder, and tells where it is.
    ///
    /// # Errors
    /// If it can't be written.
    fn write_result(&mut self, base: &Checkpoint, run: &Path) -> Result<PathBuf>;
}

/// Makes the trainer of a checkpoint.
pub type MakeLearner<'a> = &'a dyn Fn(&Checkpoint, TrainOptions) -> Result<Box<dyn Learner>>;

/// What a run needs from outside.
pub struct Hooks<'a> {
    /// Hears what happens.
    pub listen: &'a mut dyn FnMut(Event),
    /// Set from outside to stop after the current step, with a checkpoint.
    pub stop: &'a AtomicBool,
}

/// How a run ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finished {
    /// Steps done.
    pub steps: u64,
    /// The folder with the result; none where the run was stopped before its end.
    pub result: Option<PathBuf>,
    /// The report.
    pub report: PathBuf,
}

const LOCK: &str = ".lock";
const RESOLVED: &str = "config.toml";
const REPORT: &str = "report.html";
const INIT: &str = "init";

/// A run between two steps.
struct Run<'a> {
    config: &'a TrainConfig,
    hooks: Hooks<'a>,
    learner: Box<dyn Learner>,
    text: Arc<Text>,
    stream: Stream,
    held_out: Vec<HeldOut>,
    log: Log,
    checkpoints: Checkpoints,
    /// Steps done, steps in all.
    step: u64,
    steps: u64,
    saved: Instant,
    /// The step of the last checkpoint.
    saved_step: Option<u64>,
}

/// Trains as `config` says. `built_in` gives the model for configurations that name none.
///
/// # Errors
/// If something can't be read or written, or the data does not fit the model. Checkpoints that were
/// written stay whole.
pub fn train<'a>(
    config: &'a TrainConfig,
    resume: bool,
    built_in: &dyn Fn() -> Result<Checkpoint>,
    make: MakeLearner,
    mut hooks: Hooks<'a>,
) -> Result<Finished> {
    let _lock = claim(config, resume, &mut hooks)?;
    let checkpoints = Checkpoints::open(&config.output, config.save.keep)?;
    // Without a checkpoint a run that is resumed begins anew.
    let last = if resume { checkpoints.last()? } else { None };
    let base = base(config, built_in, last.is_some())?;
    let log = Log::open(&config.output, last.as_ref().map(|(_, state)| state.step))?;
    let mut run = Run::begin(config, &base, make, (checkpoints, log), hooks)?;
    if let Some((folder, state)) = last {
        run.restore(&folder, &state)?;
    }
    let done = run.step;
    run.learner.notes().into_iter().for_each(|n| (run.hooks.listen)(Event::Note(n)));
    (run.hooks.listen)(Event::Begin { done, steps: run.steps });
    let stopped = run.go()?;
    let result = if stopped { None } else { Some(run.finish(&base)?) };
    let report = run.report()?;
    Ok(Finished { steps: run.step, result, report })
}

/// Makes the run's directory this process's own.
fn claim(config: &TrainConfig, resume: bool, hooks: &mut Hooks) -> Result<File> {
    let output = &config.output;
    let wrong = |what: &str, e: std::io::Error| {
        FormatError::new(output.display(), "", format!("{what}: {e}"))
    };
    fs::create_dir_all(output).map_err(|e| wrong("cannot be made", e))?;
    let lock = File::create(output.join(LOCK)).map_err(|e| wrong("cannot be written", e))?;
    lock.try_lock()
        .map_err(|_| FormatError::new(output.display(), "", "another process is training here"))?;
    let resolved = output.join(RESOLVED);
    // What failed before its first step is no run.
    if !resume && Log::holds_steps(output) {
        let problem = "holds a run already: --resume goes on with it; for a new one choose another \
                       output";
        return Err(FormatError::new(output.display(), "", problem));
    }
    if resume && resolved.exists() {
        let before = fs::read_to_string(&resolved).map_err(|e| wrong("cannot be read", e))?;
        match TrainConfig::parse(&before, &resolved.display().to_string()) {
            Ok(before) => {
                let changed = config.changed_keys(&before);
                if !changed.is_empty() {
                    let keys = changed.join(", ");
                    (hooks.listen)(Event::Note(format!("changed since the run began: {keys}")));
                }
            }
            // Keys of another version of the program.
            Err(e) => (hooks.listen)(Event::Note(format!("the run began otherwise: {e}"))),
        }
    }
    write_file(&resolved, config.resolved().as_bytes())?;
    Ok(lock)
}

/// The checkpoint that the run begins with.
fn base(
    config: &TrainConfig,
    built_in: &dyn Fn() -> Result<Checkpoint>,
    begun: bool,
) -> Result<Checkpoint> {
    if let Some(path) = &config.model.path {
        return Checkpoint::open(path);
    }
    let Some(shape) = &config.model.init else { return built_in() };
    let folder = config.output.join(INIT);
    // Fresh weights that no checkpoint goes on from may be of another configuration.
    if !begun || !folder.exists() {
        let part = config.output.join(".init.part");
        let _ = fs::remove_dir_all(&part);
        let made = fs::create_dir(&part)
            .map_err(|e| FormatError::new(part.display(), "", e))
            .and_then(|()| init::write(shape, config.seed, &part));
        let named = made.and_then(|()| {
            let _ = fs::remove_dir_all(&folder);
            fs::rename(&part, &folder).map_err(|e| FormatError::new(folder.display(), "", e))
        });
        if let Err(e) = named {
            let _ = fs::remove_dir_all(&part);
            return Err(e);
        }
    }
    Checkpoint::open(&folder)
}

/// The file that a problem of the configuration is told about.
const CONFIG: &str = "the configuration";

impl<'a> Run<'a> {
    fn begin(
        config: &'a TrainConfig,
        base: &Checkpoint,
        make: MakeLearner,
        (checkpoints, log): (Checkpoints, Log),
        hooks: Hooks<'a>,
    ) -> Result<Self> {
        let context = lapidary_model::describe(base)?.context;
        if config.data.sequence > context {
            let problem = format!("{} tokens; the model takes {context}", config.data.sequence);
            return Err(FormatError::new(CONFIG, "data.sequence", problem));
        }
        // Before the data is read, which may take long: what can't be trained is refused here.
        let learner = make(base, config.options())?;
        let text = Arc::new(Text::open(base)?);
        let encoder = Encoder::new(text.clone(), config.data.sequence).learning(config.data.learn);
        let spec = StreamSpec {
            sources: config.sources(),
            batch_tokens: config.data.batch_tokens,
            micro_tokens: config.data.micro_tokens.unwrap_or(config.data.batch_tokens),
            pairs: config.method == MethodConfig::Dpo,
            strict: config.strict,
            seed: config.seed,
        };
        let steps = match config.schedule.steps {
            Some(steps) => steps,
            None => Stream::new(spec.clone(), encoder.clone())?.count_steps()?,
        };
        if steps == 0 {
            let problem = "no source has an example that can be learnt";
            return Err(FormatError::new(CONFIG, "data.source", problem));
        }
        let held_out = match config.data.held_out > 0.0 {
            true => {
                let sources: Vec<_> = config.sources().into_iter().map(|(s, _)| s).collect();
                held_out(&sources, &encoder, &text, config.evaluate.tokens)?
            }
            false => Vec::new(),
        };
        Ok(Self {
            learner,
            stream: Stream::new(spec, encoder)?,
            log,
            checkpoints,
            config,
            hooks,
            text,
            held_out,
            step: 0,
            steps,
            saved: Instant::now(),
            saved_step: None,
        })
    }

    /// Goes to a checkpoint.
    fn restore(&mut self, folder: &Path, state: &RunState) -> Result<()> {
        self.learner.load(&folder.join(TRAINER))?;
        self.stream.restore(&state.stream)?;
        self.step = state.step;
        self.saved_step = Some(state.step);
        Ok(())
    }

    /// Steps until the end; true if the run was stopped before.
    fn go(&mut self) -> Result<bool> {
        if self.step == 0 {
            self.evaluate()?;
        }
        while self.step < self.steps {
            if self.hooks.stop.load(Ordering::Relaxed) {
                self.save()?;
                return Ok(true);
            }
            if !self.one_step()? {
                // Epochs that were counted before end here; data that changed may end sooner.
                self.steps = self.step;
                break;
            }
            let due = |every: u64| every > 0 && self.step.is_multiple_of(every);
            let (evaluate, sample) =
                (due(self.config.evaluate.every), due(self.config.sample.every));
            let save = due(self.config.save.every_steps);
            if self.step == self.steps {
                break;
            }
            if evaluate {
                self.evaluate()?;
            }
            if sample {
                self.sample()?;
            }
            let minutes = self.config.save.every_minutes;
            let old =
                minutes > 0.0 && self.saved.elapsed() >= Duration::from_secs_f64(60.0 * minutes);
            if save || old {
                self.save()?;
                self.report()?;
            }
        }
        Ok(false)
    }

    /// One step; false if there is no more data.
    fn one_step(&mut self) -> Result<bool> {
        let start = Instant::now();
        let lr = self.config.schedule.lr(self.step, self.steps);
        let done = match self.config.method {
            MethodConfig::Dpo => match self.stream.next_pairs()? {
                Some(pairs) => self.learner.step_pairs(&pairs, lr as f32)?,
                None => return Ok(false),
            },
            _ => match self.stream.next_step()? {
                Some(step) => self.learner.step(&step, lr as f32)?,
                None => return Ok(false),
            },
        };
        for notice in self.stream.take_news() {
            // The first few of each kind, then ever fewer.
            if notice.count <= 3 || notice.count.is_power_of_two() {
                let text = format!("{} (number {})", notice.text, notice.count);
                (self.hooks.listen)(Event::Note(text));
            }
        }
        self.step += 1;
        if !(done.loss.is_finite() && done.grad_norm.is_finite()) {
            let problem = format!(
                "loss {} and gradient {}: the run has diverged; try a lower schedule.lr, and go \
                 on from the last checkpoint with --resume",
                done.loss, done.grad_norm
            );
            return Err(FormatError::new("training", format!("step {}", self.step), problem));
        }
        self.add(Entry::Step {
            step: self.step,
            loss: done.loss,
            lr,
            grad_norm: done.grad_norm,
            tokens: done.tokens,
            tokens_seen: self.log.tokens_seen() + done.tokens as u64,
            seconds: start.elapsed().as_secs_f64(),
            preferred: done.preferred,
        })?;
        Ok(true)
    }

    fn add(&mut self, entry: Entry) -> Result<()> {
        (self.hooks.listen)(Event::Entry(&entry));
        self.log.add(entry)
    }

    /// The loss on the held-out documents of each source.
    fn evaluate(&mut self) -> Result<()> {
        for i in 0..self.held_out.len() {
            let held = &self.held_out[i];
            let (nats, tokens) = self.learner.evaluate(&held.sequences)?;
            let bits = nats / std::f64::consts::LN_2;
            let entry = Entry::Evaluation {
                step: self.step,
                source: held.name.clone(),
                loss: nats / tokens.max(1) as f64,
                bits_per_byte: bits / held.bytes.max(1) as f64,
                tokens,
            };
            self.add(entry)?;
        }
        Ok(())
    }

    fn sample(&mut self) -> Result<()> {
        for prompt in &self.config.sample.prompts {
            let ids = match self.config.sample.chat && self.text.template.is_some() {
                true => {
                    let turn = [Message::new("user", prompt)];
                    self.text.encode_rendered(&self.text.render(&turn, true, 0)?)
                }
                false => self.text.encode_plain(prompt),
            };
            let most = self.config.sample.max_tokens;
            let answer = self.learner.answer(&ids, &self.text.stops, most)?;
            let text = self.text.tokenizer.decode(&answer, true);
            let entry = Entry::Sample { step: self.step, prompt: prompt.clone(), text };
            (self.hooks.listen)(Event::Entry(&entry));
            self.log.add(entry)?;
        }
        Ok(())
    }

    /// Writes a checkpoint, if there is something new in it.
    fn save(&mut self) -> Result<()> {
        self.saved = Instant::now();
        if self.saved_step == Some(self.step) {
            return Ok(());
        }
        let state = RunState { step: self.step, stream: self.stream.state() };
        let folder = self.checkpoints.save(&state, |path| self.learner.save(path))?;
        self.saved_step = Some(self.step);
        (self.hooks.listen)(Event::Saved(&folder));
        Ok(())
    }

    /// The end: a last measurement, a checkpoint, the result.
    fn finish(&mut self, base: &Checkpoint) -> Result<PathBuf> {
        // A run that ended before, and is resumed, has both already.
        if self.saved_step != Some(self.step) {
            self.evaluate()?;
            self.sample()?;
            self.save()?;
        }
        self.learner.write_result(base, &self.config.output)
    }

    fn report(&self) -> Result<PathBuf> {
        let path = self.config.output.join(REPORT);
        let name = self.config.output.file_name().unwrap_or_default().to_string_lossy();
        report::write_report(&path, &name, &self.config.resolved(), self.log.entries())?;
        Ok(path)
    }
}
