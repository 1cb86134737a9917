//! The trainer: micro-batches to gradients to new weights.
//!
//! A model is loaded onto a [`Tape`] and asked for `embed`, `block` and `head`, as in inference.
//! Going forward the first blocks are recorded, as many as the memory for activations holds; of the
//! others only the inputs are kept, and going back each runs again, recorded, to pull its gradient. The head sees a chunk of rows at a time, so that logits
//! never fill a `[tokens, vocabulary]` array.
//!
//! Same seed, same data: same bits, for any number of threads, with any memory for activations, in one
//! run or in several.

use crate::optimizer::Optimizer;
use crate::{Method, Pair, Sequence, StepReport, TrainOptions};
use lapidary_formats::{Checkpoint, FormatError, Source};
use lapidary_model::Model;
use lapidary_ops::{
    Isa, KvCache, KvType, LoraSpec, Ops, Pass, Pool, Rows, Span, Tape, Tensor, Trained,
};
use std::fmt;
use std::sync::Arc;

/// Logits that exist at a time: 64 MiB.
const LOGITS: usize = 16 << 20;
/// Rows of logits at least: for fewer, packing the head's weights takes longer than it saves.
const LOGIT_ROWS: usize = 256;
/// Tokens that an evaluation computes at a time.
const EVALUATE: usize = 4096;
/// The families whose operations all have a gradient.
const FAMILIES: [&str; 8] =
    ["gemma", "gemma2", "gemma3", "gemma3n", "gemma4", "llama", "gpt2", "gpt_neo"];
/// The projections of their blocks: what an empty list of targets stands for.
const PROJECTIONS: [&str; 11] = [
    "q_proj",
    "k_proj",
    "v_proj",
    "o_proj",
    "gate_proj",
    "up_proj",
    "down_proj",
    "c_attn",
    "c_proj",
    "c_fc",
    "out_proj",
];

/// Why a step can't be done. The weights are unchanged.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TrainError {
    /// Sequences that don't fit the model.
    Data(String),
    /// The gradient holds a NaN or an infinity.
    NotFinite {
        /// Steps done before.
        step: u64,
    },
    /// The method does not allow it.
    Method(String),
}

impl fmt::Display for TrainError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            TrainError::Data(problem) | TrainError::Method(problem) => f.write_str(problem),
            TrainError::NotFinite { step } => write!(
                f,
                "after {step} steps the gradient is not finite: a smaller learning rate or clipping may help"
            ),
        }
    }
}

impl std::error::Error for TrainError {}

/// A model that learns.
pub struct Trainer {
    pub(crate) model: Box<dyn Model>,
    pub(crate) tape: Tape,
    pub(crate) optimizer: Optimizer,
    pub(crate) options: TrainOptions,
    /// Steps done.
    pub(crate) steps: u64,
    notes: Vec<String>,
    /// Bytes of what a block records for each row; 0 before the first.
    row_bytes: usize,
    /// What `block` asks for; whole sequences need none.
    cache: KvCache,
}

/// Sequences as rows.
struct Batch {
    rows: Rows,
    /// For each row the token after it.
    targets: Vec<u32>,
    /// Rows whose target counts, in order.
    learnt: Vec<u32>,
    /// For each sequence its part of `learnt`.
    parts: Vec<std::ops::Range<usize>>,
}

impl Batch {
    fn new(sequences: &[&Sequence]) -> Self {
        let mut batch = Self {
            rows: Rows::default(),
            targets: Vec::new(),
            learnt: Vec::new(),
            parts: Vec::new(),
        };
        for s in sequences {
            let (row, first) = (batch.targets.len(), batch.learnt.len());
            // The last token predicts nothing.
            let count = s.ids.len().saturating_sub(1);
            if count > 0 {
                let rows = row..row + count;
                batch.rows.spans.push(Span { rows, position: 0, tables: Vec::new() });
                batch.rows.ids.extend(&s.ids[..count]);
                batch.targets.extend(&s.ids[1..]);
                let learnt = (0..count).filter(|i| s.learn[i + 1]).map(|i| (row + i) as u32);
                batch.learnt.extend(learnt);
            }
            batch.parts.push(first..batch.learnt.len());
        }
        batch
    }
}

/// What a pass forward keeps.
struct Forward {
    /// What entered each block that was not recorded: the last ones.
    inputs: Vec<Tensor>,
    /// The number of what entered the first block.
    first: u64,
    /// What left the last one.
    last: Tensor,
}

impl Trainer {
    /// Loads a model to train.
    ///
    /// # Errors
    /// If it can't be loaded, its family does not train, or the method does not fit it.
    pub fn new(checkpoint: &Checkpoint, options: TrainOptions) -> Result<Self, FormatError> {
        let wrong =
            |field: &str, problem: String| FormatError::new(checkpoint.name(), field, problem);
        let info = lapidary_model::describe(checkpoint)?;
        if info.prefix {
            let problem = "PaliGemma, whose prompts see themselves, can't be trained yet";
            return Err(wrong("model_type", problem.into()));
        }
        if !FAMILIES.contains(&info.family) {
            let known = FAMILIES.join(", ");
            let problem = format!("{} can't be trained yet; there are {known}", info.family);
            return Err(wrong("architecture", problem));
        }
        let in_gguf = matches!(checkpoint.source(), Source::Gguf(_));
        if in_gguf && info.family == "gemma3n" && options.method == Method::Full {
            let problem = "whole weights of gemma3n are trained from Hugging Face files; adapters \
                           from GGUF too";
            return Err(wrong("general.architecture", problem.into()));
        }
        if options.muon.is_some() && options.method != Method::Full {
            let problem = "muon is for whole weights; adapters are trained with adamw".to_owned();
            return Err(wrong("optimizer.kind", problem));
        }
        let trained = match &options.method {
            Method::Full => Trained::All,
            Method::Lora(lora) => {
                let targets = if lora.targets.is_empty() {
                    PROJECTIONS.map(str::to_owned).to_vec()
                } else {
                    lora.targets.clone()
                };
                let (rank, dropout, seed) = (lora.rank, lora.dropout, options.seed);
                Trained::Lora(LoraSpec { rank, factor: lora.factor(), dropout, targets, seed })
            }
        };
        let pool = Arc::new(Pool::new(options.threads.max(1)));
        let mut tape = Tape::new(Isa::detect(), pool, trained, options.precision);
        let loaded = lapidary_model::load(checkpoint, &mut tape)?;
        if let Method::Lora(lora) = &options.method {
            let matched = |t: &String| {
                let spec = LoraSpec {
                    rank: 1,
                    factor: 1.0,
                    dropout: 0.0,
                    targets: vec![t.clone()],
                    seed: 0,
                };
                tape.adapters().iter().any(|a| spec.takes(&a.module))
            };
            if let Some(target) = lora.targets.iter().find(|t| !matched(t)) {
                return Err(wrong("lora.targets", format!("no projection is called {target}")));
            }
        }
        let optimizer = Optimizer::new(&tape, &options);
        let cache = KvCache::new(&loaded.model.info().kv, KvType::F32);
        let notes = loaded.notes;
        Ok(Self {
            model: loaded.model,
            tape,
            optimizer,
            options,
            steps: 0,
            notes,
            row_bytes: 0,
            cache,
        })
    }

    /// Things that the user should know.
    pub fn notes(&self) -> &[String] {
        &self.notes
    }

    /// Steps done.
    pub fn steps(&self) -> u64 {
        self.steps
    }

    /// How it trains.
    pub fn options(&self) -> &TrainOptions {
        &self.options
    }

    /// Values that are trained.
    pub fn trained(&self) -> usize {
        self.tape.params().iter().map(|p| p.values.len()).sum()
    }

    /// The model and the device that it is on, for generating text: as it is now, adapters
    /// included, nothing dropped.
    pub fn generator(&mut self) -> (&dyn Model, &mut dyn Ops) {
        self.tape.set_pass(Pass::default());
        (&*self.model, &mut self.tape)
    }

    /// One step on the mean loss of all learnt tokens of all micro-batches.
    ///
    /// # Errors
    /// [`TrainError`]; the weights are unchanged then.
    pub fn step(
        &mut self,
        micro_batches: &[Vec<Sequence>],
        lr: f32,
    ) -> Result<StepReport, TrainError> {
        let (loss, tokens) = self.accumulate(micro_batches)?;
        let grad_norm = self.update(lr)?;
        Ok(StepReport { loss, grad_norm, tokens, preferred: None })
    }

    /// Adds up the gradients; returns the mean loss and the tokens computed.
    fn accumulate(&mut self, micro_batches: &[Vec<Sequence>]) -> Result<(f64, usize), TrainError> {
        let all = micro_batches.iter().flatten();
        self.check(all.clone())?;
        let learnt: usize = all.map(Sequence::learnt).sum();
        if learnt == 0 {
            return Err(TrainError::Data("the batch has no token to learn".into()));
        }
        let (mut loss, mut tokens) = (0.0, 0);
        for (i, sequences) in micro_batches.iter().enumerate() {
            let batch = Batch::new(&sequences.iter().collect::<Vec<_>>());
            if batch.learnt.is_empty() {
                continue;
            }
            tokens += batch.targets.len();
            self.tape.set_pass(self.dropout(i));
            let weights = vec![1.0 / learnt as f32; batch.learnt.len()];
            let forward = self.forward(&batch.rows, true);
            let (nats, last) = self.head_back(&forward, &batch, &weights);
            loss += nats.iter().sum::<f64>();
            self.blocks_back(forward, last, &batch.rows);
        }
        Ok((loss / learnt as f64, tokens))
    }

    /// One step of direct preference optimisation (<https://arxiv.org/abs/2305.18290>). The
    /// reference is the model without its adapters.
    ///
    /// # Errors
    /// [`TrainError`]; the weights are unchanged then.
    pub fn step_dpo(
        &mut self,
        micro_batches: &[Vec<Pair>],
        lr: f32,
    ) -> Result<StepReport, TrainError> {
        if self.options.method == Method::Full {
            let problem =
                "preference optimisation needs adapters: the reference is the model without them";
            return Err(TrainError::Method(problem.into()));
        }
        let all = micro_batches.iter().flatten();
        self.check(all.clone().flat_map(|p| [&p.chosen, &p.rejected]))?;
        let pairs = all.count();
        if pairs == 0 {
            return Err(TrainError::Data("the batch has no pairs".into()));
        }
        let beta = f64::from(self.options.dpo_beta);
        let (mut loss, mut tokens, mut preferred) = (0.0, 0, 0);
        for (i, micro) in micro_batches.iter().enumerate() {
            let sequences: Vec<_> = micro.iter().flat_map(|p| [&p.chosen, &p.rejected]).collect();
            let batch = Batch::new(&sequences);
            tokens += batch.targets.len();
            self.tape.set_pass(Pass { dropout: None, base: true });
            let reference = self.forward(&batch.rows, false);
            let reference = self.sums(&reference.last, &batch);
            self.tape.set_pass(self.dropout(i));
            let forward = self.forward(&batch.rows, true);
            let policy = self.sums(&forward.last, &batch);
            let mut weights = vec![0.0f32; batch.learnt.len()];
            for pair in 0..micro.len() {
                let gain = |s: usize| policy[s] - reference[s];
                let margin = beta * (gain(2 * pair) - gain(2 * pair + 1));
                // -ln sigmoid(margin), and minus its slope.
                loss += if margin > 0.0 {
                    (-margin).exp().ln_1p()
                } else {
                    margin.exp().ln_1p() - margin
                };
                let slope = beta / (1.0 + margin.exp()) / pairs as f64;
                preferred += usize::from(margin > 0.0);
                weights[batch.parts[2 * pair].clone()].fill(slope as f32);
                weights[batch.parts[2 * pair + 1].clone()].fill(-slope as f32);
            }
            let (_, last) = self.head_back(&forward, &batch, &weights);
            self.blocks_back(forward, last, &batch.rows);
        }
        let grad_norm = self.update(lr)?;
        let preferred = Some(preferred as f64 / pairs as f64);
        Ok(StepReport { loss: loss / pairs as f64, grad_norm, tokens, preferred })
    }

    /// The nats that the learnt tokens lose, and their number. With `ema` in the options the
    /// weights are still those of today.
    ///
    /// # Errors
    /// If the sequences don't fit the model.
    pub fn evaluate(&mut self, sequences: &[Sequence]) -> Result<(f64, usize), TrainError> {
        self.check(sequences.iter())?;
        self.tape.set_pass(Pass::default());
        let (mut nats, mut count) = (0.0, 0);
        let mut first = 0;
        while first < sequences.len() {
            let mut end = first + 1;
            let mut tokens = sequences[first].ids.len();
            while end < sequences.len() && tokens + sequences[end].ids.len() <= EVALUATE {
                tokens += sequences[end].ids.len();
                end += 1;
            }
            let batch = Batch::new(&sequences[first..end].iter().collect::<Vec<_>>());
            first = end;
            if batch.learnt.is_empty() {
                continue;
            }
            let forward = self.forward(&batch.rows, false);
            nats -= self.log_probabilities(&forward.last, &batch).iter().sum::<f64>();
            count += batch.learnt.len();
        }
        Ok((nats, count))
    }

    /// The loss of micro-batches and the gradient of every trained tensor, under the names of
    /// Hugging Face files; nothing is changed.
    ///
    /// # Errors
    /// If the sequences don't fit the model.
    pub fn gradients(
        &mut self,
        micro_batches: &[Vec<Sequence>],
    ) -> Result<(f64, Vec<crate::TensorValues>), TrainError> {
        let (loss, _) = self.accumulate(micro_batches)?;
        for p in self.tape.params_mut() {
            // Zeros where nothing was added.
            p.grad.get_mut();
        }
        let all = self.export_gradients();
        self.optimizer.forget(&mut self.tape);
        Ok((loss, all))
    }

    fn check<'a>(&self, sequences: impl Iterator<Item = &'a Sequence>) -> Result<(), TrainError> {
        let info = self.model.info();
        for (i, s) in sequences.enumerate() {
            let wrong = |problem: String| Err(TrainError::Data(format!("sequence {i}: {problem}")));
            if s.ids.len() != s.learn.len() {
                return wrong(format!("{} tokens and {} marks", s.ids.len(), s.learn.len()));
            }
            if s.ids.len() > info.context {
                let (len, most) = (s.ids.len(), info.context);
                return wrong(format!("{len} tokens do not fit in the model's context of {most}"));
            }
            if let Some(id) = s.ids.iter().find(|id| **id as usize >= info.vocab) {
                return wrong(format!("token {id} is not below the vocabulary's {}", info.vocab));
            }
        }
        Ok(())
    }

    /// The masks of a micro-batch.
    fn dropout(&self, micro_batch: usize) -> Pass {
        let place = (self.steps << 20) ^ micro_batch as u64;
        let seed = self.options.seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ place;
        Pass { dropout: Some(seed), base: false }
    }

    /// All blocks; `gradient` says whether the way back will be taken.
    fn forward(&mut self, rows: &Rows, gradient: bool) -> Forward {
        let kept = if gradient { self.kept(rows) } else { 0 };
        self.tape.record(kept > 0);
        let mut x = self.model.embed(&mut self.tape, rows);
        let first = self.tape.id_of(&x);
        let mut inputs = Vec::new();
        for layer in 0..self.model.info().layers {
            self.tape.record(layer < kept);
            if gradient && layer >= kept {
                inputs.push(self.tape.share(&x));
            }
            x = self.model.block(layer, &mut self.tape, x, rows, &mut self.cache);
        }
        self.tape.record(false);
        Forward { inputs, first, last: x }
    }

    /// Blocks whose recording the memory for activations holds.
    fn kept(&self, rows: &Rows) -> usize {
        let layers = self.model.info().layers;
        match (self.options.activation_memory, self.row_bytes * rows.ids.len()) {
            (usize::MAX, _) => layers,
            (_, 0) => 0,
            (memory, block) => (memory / block).min(layers),
        }
    }

    /// Rows that the head takes at a time.
    fn chunk(&self) -> usize {
        (LOGITS / self.model.info().vocab).max(LOGIT_ROWS)
    }

    /// For each learnt row the logarithm of its target's probability.
    fn log_probabilities(&mut self, last: &Tensor, batch: &Batch) -> Vec<f64> {
        let mut out = Vec::with_capacity(batch.learnt.len());
        for rows in batch.learnt.chunks(self.chunk()) {
            let x = self.tape.gather(last, rows);
            let logits = self.model.head(&mut self.tape, &x);
            let targets: Vec<u32> = rows.iter().map(|r| batch.targets[*r as usize]).collect();
            out.extend(self.tape.log_probabilities(logits, &targets));
        }
        out
    }

    /// The same, summed over each sequence.
    fn sums(&mut self, last: &Tensor, batch: &Batch) -> Vec<f64> {
        let all = self.log_probabilities(last, batch);
        batch.parts.iter().map(|p| all[p.clone()].iter().sum()).collect()
    }

    /// The loss of each learnt row and the gradient of what left the last block.
    fn head_back(
        &mut self,
        forward: &Forward,
        batch: &Batch,
        weights: &[f32],
    ) -> (Vec<f64>, Tensor) {
        let mut all = Vec::with_capacity(batch.learnt.len());
        let mut gradient = self.tape.zeros(forward.last.rows(), forward.last.cols());
        let chunk = self.chunk();
        for (rows, weights) in batch.learnt.chunks(chunk).zip(weights.chunks(chunk)) {
            let x = self.tape.gather(&forward.last, rows);
            let (input, mark) = (self.tape.id_of(&x), self.tape.mark());
            self.tape.record(true);
            let logits = self.model.head(&mut self.tape, &x);
            self.tape.record(false);
            let output = self.tape.id_of(&logits);
            let targets: Vec<u32> = rows.iter().map(|r| batch.targets[*r as usize]).collect();
            let (nats, logits) = self.tape.cross_entropy(logits, &targets, weights);
            all.extend(nats);
            if let Some(dx) = self.tape.backward(output, logits, input, mark) {
                self.tape.scatter_add(&mut gradient, rows, &dx);
            }
        }
        (all, gradient)
    }

    fn blocks_back(&mut self, forward: Forward, gradient: Tensor, rows: &Rows) {
        let Forward { mut inputs, first, last } = forward;
        let kept = self.model.info().layers - inputs.len();
        let (mut output, mut gradient) = (self.tape.id_of(&last), gradient);
        drop(last);
        while let Some(x) = inputs.pop() {
            let (input, mark, before) =
                (self.tape.id_of(&x), self.tape.mark(), self.tape.live_bytes());
            self.tape.record(true);
            let y = self.model.block(kept + inputs.len(), &mut self.tape, x, rows, &mut self.cache);
            self.tape.record(false);
            let output_of_block = self.tape.id_of(&y);
            drop(y);
            self.row_bytes = (self.tape.live_bytes() - before).div_ceil(rows.ids.len());
            match self.tape.backward(output_of_block, gradient, input, mark) {
                Some(g) => (output, gradient) = (input, g),
                None => return,
            }
        }
        if kept == 0 && self.options.method == Method::Full {
            self.tape.record(true);
            let x = self.model.embed(&mut self.tape, rows);
            output = self.tape.id_of(&x);
            self.tape.record(false);
        }
        self.tape.backward(output, gradient, first, 0);
    }

    /// Changes the weights by their gradients, which become zero; returns the gradients' length.
    fn update(&mut self, lr: f32) -> Result<f64, TrainError> {
        let norm = self.optimizer.norm(&self.tape);
        if !norm.is_finite() {
            self.optimizer.forget(&mut self.tape);
            return Err(TrainError::NotFinite { step: self.steps });
        }
        self.steps += 1;
        self.optimizer.step(&mut self.tape, &self.options, self.steps, lr, norm);
        Ok(norm)
    }
}
