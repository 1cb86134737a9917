//! A training configuration: a TOML file of which every key is known.

use super::schedule::ScheduleConfig;
use crate::data::{Format, Learn, SourceSpec};
use crate::{AdamW, LoraOptions, Method, Muon, ProductPrecision, StatePrecision, TrainOptions};
use lapidary_formats::{FormatError, Result};
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};

/// Everything about a run. Paths are relative to the configuration's file.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TrainConfig {
    /// The run's directory.
    pub output: PathBuf,
    /// Which values change, and by what loss.
    pub method: MethodConfig,
    /// The order of the data, fresh weights, dropout.
    #[serde(default = "one")]
    pub seed: u64,
    /// Threads; the result does not depend on them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub threads: Option<usize>,
    /// Stop at the first broken line or unfit example.
    #[serde(default)]
    pub strict: bool,
    /// MiB for what blocks compute and their gradients need; blocks that do not fit are computed
    /// again.
    #[serde(default = "gibibyte")]
    pub activation_memory: usize,
    /// How matrices are rounded before they are multiplied: `f32` (not at all), `bf16` or `bf16-amx`.
    #[serde(default)]
    pub precision: PrecisionConfig,
    /// What is trained.
    #[serde(default)]
    pub model: ModelConfig,
    /// What it is trained on.
    pub data: DataConfig,
    /// How long, and how fast.
    pub schedule: ScheduleConfig,
    /// How weights follow their gradients.
    #[serde(default)]
    pub optimizer: OptimizerConfig,
    /// Adapters, for the methods `lora` and `dpo`.
    #[serde(default)]
    pub lora: LoraConfig,
    /// For the method `dpo`.
    #[serde(default)]
    pub dpo: DpoConfig,
    /// The held-out loss.
    #[serde(default)]
    pub evaluate: EvaluateConfig,
    /// Checkpoints.
    #[serde(default)]
    pub save: SaveConfig,
    /// What the model says on the way.
    #[serde(default)]
    pub sample: SampleConfig,
}

/// `method`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum MethodConfig {
    /// All weights.
    Full,
    /// Low-rank adapters.
    Lora,
    /// Low-rank adapters, by direct preference optimisation.
    Dpo,
}

/// `precision`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum PrecisionConfig {
    /// As they are.
    #[default]
    F32,
    /// To bfloat16; weights, sums, gradients and moments stay f32.
    Bf16,
    /// The same, summed in the order of AMX's tiles: fast where there is AMX.
    #[serde(rename = "bf16-amx")]
    Bf16Amx,
}

/// `[model]`: a checkpoint, or a shape for fresh weights; without either the built-in model.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ModelConfig {
    /// A Hugging Face directory or a GGUF file.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub path: Option<PathBuf>,
    /// A shape.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub init: Option<InitConfig>,
}

/// `[model.init]`: the shape of a model that is made from nothing.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct InitConfig {
    /// `gemma3`, `llama` or `gpt2`.
    pub family: String,
    /// The folder with the tokenizer; the vocabulary is its own.
    pub tokenizer: PathBuf,
    /// Width of the residual stream.
    pub width: usize,
    /// Blocks.
    pub layers: usize,
    /// Query heads.
    pub heads: usize,
    /// Heads of keys and values [default: as many as query heads].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kv_heads: Option<usize>,
    /// Size of a head [default: width / heads].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub head_dim: Option<usize>,
    /// Width of the feed-forward layers.
    pub ffn: usize,
    /// Positions.
    pub context: usize,
    /// Gemma 3: positions that a local layer sees.
    #[serde(default = "window")]
    pub window: usize,
    /// Gemma 3: every so manyth layer is global.
    #[serde(default = "six")]
    pub global_every: usize,
    /// Spread of the fresh weights.
    #[serde(default = "spread")]
    pub std: f64,
}

/// `[data]`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DataConfig {
    /// Tokens of a sequence at most: text is cut there, other examples are left out.
    pub sequence: usize,
    /// Tokens of one step.
    pub batch_tokens: usize,
    /// Tokens computed at once: what a step needs in memory [default: batch_tokens].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub micro_tokens: Option<usize>,
    /// Documents from which the next one is drawn; 1: the files' order.
    #[serde(default = "shuffle")]
    pub shuffle: usize,
    /// Share of the documents that is kept to measure on.
    #[serde(default)]
    pub held_out: f64,
    /// What of a conversation is learnt.
    #[serde(default)]
    pub learn: Learn,
    /// The sources.
    pub source: Vec<SourceConfig>,
}

/// `[[data.source]]`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SourceConfig {
    /// A file, or a folder of files.
    pub path: PathBuf,
    /// Its share of the documents, beside those of the others.
    #[serde(default = "weight")]
    pub weight: f64,
    /// `jsonl`, `text` or `parquet`, where the name doesn't say it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub format: Option<Format>,
    /// The line that ends a document of plain text.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub separator: Option<String>,
}

/// `[optimizer]`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct OptimizerConfig {
    /// `adamw` or `muon`.
    pub kind: OptimizerKind,
    /// Muon: memory of the momentum.
    pub momentum: f32,
    /// Memory of the first moment.
    pub beta1: f32,
    /// Memory of the second moment.
    pub beta2: f32,
    /// Added to the root of the second moment.
    pub eps: f32,
    /// Decay of matrices.
    pub weight_decay: f32,
    /// Longest gradient; 0: any.
    pub clip: f32,
    /// Memory of an average of the weights; 0: none.
    pub ema: f32,
    /// `f32`, `8bit` or `factored`.
    pub state: StateConfig,
}

/// `optimizer.kind`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OptimizerKind {
    /// AdamW for all values.
    Adamw,
    /// Muon for the matrices of the blocks, AdamW for the rest.
    Muon,
}

/// `optimizer.state`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum StateConfig {
    /// Eight bytes a value.
    #[serde(rename = "f32")]
    F32,
    /// Two bytes a value.
    #[serde(rename = "8bit")]
    Bits8,
    /// Four bytes a value.
    #[serde(rename = "factored")]
    Factored,
}

impl Default for OptimizerConfig {
    fn default() -> Self {
        let adam = AdamW::default();
        Self {
            kind: OptimizerKind::Adamw,
            momentum: 0.95,
            beta1: adam.beta1,
            beta2: adam.beta2,
            eps: adam.eps,
            weight_decay: adam.weight_decay,
            clip: 1.0,
            ema: 0.0,
            state: StateConfig::F32,
        }
    }
}

/// `[lora]`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct LoraConfig {
    /// Rank of each adapter.
    pub rank: usize,
    /// The adapters count alpha / rank times.
    pub alpha: f32,
    /// Share of the adapters' inputs that is left out at random.
    pub dropout: f32,
    /// Projections by the ends of their names; empty: all of the blocks.
    pub targets: Vec<String>,
    /// alpha / sqrt(rank) instead.
    pub rslora: bool,
}

impl Default for LoraConfig {
    fn default() -> Self {
        Self { rank: 16, alpha: 32.0, dropout: 0.0, targets: Vec::new(), rslora: false }
    }
}

/// `[dpo]`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct DpoConfig {
    /// How much the model holds on to what it was.
    pub beta: f32,
}

impl Default for DpoConfig {
    fn default() -> Self {
        Self { beta: 0.1 }
    }
}

/// `[evaluate]`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct EvaluateConfig {
    /// Steps between measurements; 0: only at the end.
    pub every: u64,
    /// Held-out tokens of each source at most.
    pub tokens: usize,
}

impl Default for EvaluateConfig {
    fn default() -> Self {
        Self { every: 100, tokens: 20_000 }
    }
}

/// `[save]`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct SaveConfig {
    /// Steps between checkpoints; 0: not by steps.
    pub every_steps: u64,
    /// Minutes between checkpoints; 0: not by time.
    pub every_minutes: f64,
    /// Checkpoints that are kept.
    pub keep: usize,
}

impl Default for SaveConfig {
    fn default() -> Self {
        Self { every_steps: 0, every_minutes: 10.0, keep: 2 }
    }
}

/// `[sample]`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct SampleConfig {
    /// Steps between samples; 0: only at the end.
    pub every: u64,
    /// What is asked, or continued.
    pub prompts: Vec<String>,
    /// Whether prompts go through the chat template.
    pub chat: bool,
    /// Tokens of an answer at most.
    pub max_tokens: usize,
}

impl Default for SampleConfig {
    fn default() -> Self {
        Self { every: 200, prompts: Vec::new(), chat: true, max_tokens: 80 }
    }
}

fn one() -> u64 {
    1
}
fn gibibyte() -> usize {
    1024
}
fn weight() -> f64 {
    1.0
}
fn window() -> usize {
    512
}
fn six() -> usize {
    6
}
fn spread() -> f64 {
    0.02
}
fn shuffle() -> usize {
    10_000
}

impl TrainConfig {
    /// Reads and checks a configuration.
    ///
    /// # Errors
    /// If a key is unknown, missing or of another kind (with its line), or a value is out of range.
    pub fn open(path: &Path) -> Result<Self> {
        let name = path.display().to_string();
        let text = std::fs::read_to_string(path)
            .map_err(|e| FormatError::new(&name, "", format!("cannot be read: {e}")))?;
        let mut config = Self::parse(&text, &name)?;
        config.check().map_err(|(key, problem)| FormatError::new(&name, key, problem))?;
        config.make_absolute(path.parent().unwrap_or(Path::new("")));
        Ok(config)
    }

    /// Reads a configuration without checking its values.
    ///
    /// # Errors
    /// As [`TrainConfig::open`].
    pub fn parse(text: &str, name: &str) -> Result<Self> {
        toml::from_str(text).map_err(|e| {
            let line = e.span().map(|s| text[..s.start].matches('\n').count() + 1);
            let field = line.map_or(String::new(), |n| format!("line {n}"));
            FormatError::new(name, field, e.message())
        })
    }

    /// The configuration with every default written out.
    pub fn resolved(&self) -> String {
        toml::to_string(self).unwrap_or_else(|e| format!("# cannot be written: {e}\n"))
    }

    fn make_absolute(&mut self, folder: &Path) {
        let folder = std::path::absolute(folder).unwrap_or(folder.to_owned());
        let fix = |p: &mut PathBuf| *p = folder.join(&*p);
        fix(&mut self.output);
        self.data.source.iter_mut().for_each(|s| fix(&mut s.path));
        self.model.path.iter_mut().for_each(fix);
        self.model.init.iter_mut().for_each(|i| fix(&mut i.tokenizer));
    }

    /// The first value out of its range: its key and what was expected.
    fn check(&self) -> std::result::Result<(), (&'static str, String)> {
        let bad = |key, problem: &str| Err((key, problem.to_owned()));
        let d = &self.data;
        if !(2..=1 << 20).contains(&d.sequence) {
            return bad("data.sequence", "a number of tokens from 2 to 1048576 was expected");
        }
        // A pair is two sequences.
        let least = if self.method == MethodConfig::Dpo { 2 * d.sequence } else { d.sequence };
        if d.batch_tokens < least || d.micro_tokens.is_some_and(|m| m < least) {
            let key =
                if d.batch_tokens < least { "data.batch_tokens" } else { "data.micro_tokens" };
            return Err((
                key,
                format!("at least {least} was expected: one example of data.sequence"),
            ));
        }
        if !(0.0..=0.5).contains(&d.held_out) {
            return bad("data.held_out", "a share from 0 to 0.5 was expected");
        }
        if d.learn == Learn::All && self.method == MethodConfig::Dpo {
            return bad("data.learn", "\"answers\" was expected: dpo compares answers alone");
        }
        if d.source.is_empty() {
            return bad("data.source", "at least one was expected");
        }
        if d.source.iter().any(|s| !(s.weight > 0.0 && s.weight.is_finite())) {
            return bad("data.source.weight", "a number above 0 was expected");
        }
        if self.model.path.is_some() && self.model.init.is_some() {
            return bad("model", "either path or init was expected, not both");
        }
        if self.model.init.is_some() && self.method != MethodConfig::Full {
            return bad("method", "fresh weights are trained whole: \"full\" was expected");
        }
        if self.optimizer.kind == OptimizerKind::Muon && self.method != MethodConfig::Full {
            return bad("optimizer.kind", "\"adamw\" was expected: muon is for method \"full\"");
        }
        if self.threads.is_some_and(|t| !(1..=1024).contains(&t)) {
            return bad("threads", "a number from 1 to 1024 was expected");
        }
        if self.save.keep == 0 {
            return bad("save.keep", "at least 1 was expected");
        }
        if !(self.save.every_minutes >= 0.0 && self.save.every_minutes.is_finite()) {
            return bad("save.every_minutes", "0 or more was expected");
        }
        self.schedule.check()?;
        self.check_optimizer()
    }

    fn check_optimizer(&self) -> std::result::Result<(), (&'static str, String)> {
        let (o, l) = (&self.optimizer, &self.lora);
        let share = |x: f32| (0.0..1.0).contains(&x);
        let positive = |x: f32| x > 0.0 && x.is_finite();
        let checks = [
            ("optimizer.momentum", share(o.momentum), "a number from 0 to below 1 was expected"),
            ("optimizer.beta1", share(o.beta1), "a number from 0 to below 1 was expected"),
            ("optimizer.beta2", share(o.beta2), "a number from 0 to below 1 was expected"),
            ("optimizer.eps", positive(o.eps), "a number above 0 was expected"),
            (
                "optimizer.weight_decay",
                o.weight_decay >= 0.0 && o.weight_decay.is_finite(),
                "0 or more was expected",
            ),
            ("optimizer.clip", o.clip >= 0.0 && o.clip.is_finite(), "0 or more was expected"),
            ("optimizer.ema", share(o.ema), "a number from 0 to below 1 was expected"),
            ("lora.rank", (1..=4096).contains(&l.rank), "a number from 1 to 4096 was expected"),
            ("lora.alpha", positive(l.alpha), "a number above 0 was expected"),
            ("lora.dropout", share(l.dropout), "a share from 0 to below 1 was expected"),
            ("dpo.beta", positive(self.dpo.beta), "a number above 0 was expected"),
        ];
        match checks.iter().find(|c| !c.1) {
            Some((key, _, problem)) => Err((key, (*problem).to_owned())),
            None => Ok(()),
        }
    }

    /// What the trainer is told.
    pub fn options(&self) -> TrainOptions {
        let o = &self.optimizer;
        let lora = || LoraOptions {
            rank: self.lora.rank,
            alpha: self.lora.alpha,
            dropout: self.lora.dropout,
            targets: self.lora.targets.clone(),
            rslora: self.lora.rslora,
        };
        let threads = std::thread::available_parallelism().map_or(1, usize::from);
        TrainOptions {
            method: match self.method {
                MethodConfig::Full => Method::Full,
                MethodConfig::Lora | MethodConfig::Dpo => Method::Lora(lora()),
            },
            optimizer: AdamW {
                beta1: o.beta1,
                beta2: o.beta2,
                eps: o.eps,
                weight_decay: o.weight_decay,
            },
            state: match o.state {
                StateConfig::F32 => StatePrecision::F32,
                StateConfig::Bits8 => StatePrecision::Bits8,
                StateConfig::Factored => StatePrecision::Factored,
            },
            precision: match self.precision {
                PrecisionConfig::F32 => ProductPrecision::F32,
                PrecisionConfig::Bf16 => ProductPrecision::Bf16,
                PrecisionConfig::Bf16Amx => ProductPrecision::Bf16Amx,
            },
            muon: (o.kind == OptimizerKind::Muon).then_some(Muon { momentum: o.momentum }),
            clip: (o.clip > 0.0).then_some(o.clip),
            ema: (o.ema > 0.0).then_some(o.ema),
            dpo_beta: self.dpo.beta,
            activation_memory: self.activation_memory.saturating_mul(1 << 20),
            seed: self.seed,
            threads: self.threads.unwrap_or(threads),
        }
    }

    /// The sources with their weights.
    pub fn sources(&self) -> Vec<(SourceSpec, f64)> {
        let spec = |s: &SourceConfig| SourceSpec {
            paths: vec![s.path.clone()],
            format: s.format,
            separator: s.separator.clone(),
            epochs: self.schedule.epochs,
            shuffle: self.data.shuffle,
            held_out: self.data.held_out,
            only_held_out: false,
            strict: self.strict,
        };
        self.data.source.iter().map(|s| (spec(s), s.weight)).collect()
    }

    /// Keys whose values differ from those of `other`, for the user who changed them during a run.
    pub fn changed_keys(&self, other: &Self) -> Vec<String> {
        let value = |c: &Self| serde_json::to_value(c).unwrap_or_default();
        let mut keys = Vec::new();
        differences("", &value(self), &value(other), &mut keys);
        keys
    }
}

fn differences(at: &str, a: &serde_json::Value, b: &serde_json::Value, out: &mut Vec<String>) {
    if let (Some(x), Some(y)) = (a.as_object(), b.as_object()) {
        let keys = x.keys().chain(y.keys().filter(|k| !x.contains_key(*k)));
        for key in keys {
            let name = if at.is_empty() { key.clone() } else { format!("{at}.{key}") };
            let null = serde_json::Value::Null;
            differences(&name, x.get(key).unwrap_or(&null), y.get(key).unwrap_or(&null), out);
        }
    } else if a != b {
        out.push(at.to_owned());
    }
}
