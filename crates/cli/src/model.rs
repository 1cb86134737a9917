//! From `--model` to something that answers.

use crate::args::{IsaArg, KvArg, ModelArgs, PrecisionArg, SamplingArgs, ThinkArgs};
use crate::show;
use lapidary_engine::{Limits, Sampling, Session, Text};
use lapidary_formats::chat::THINKING;
use lapidary_formats::{Checkpoint, Config};
use lapidary_model::{Loaded, Slice};
use lapidary_ops::{Cpu, Isa, KvType, Pool, Precision};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// The model that the program carries: a Gemma 3 of 4.7 million parameters, in Q8_0 (docs/default-model.md).
pub static DEFAULT_MODEL: &[u8] = include_bytes!("../../../models/default-Q8_0.gguf");

/// Tokens of context where neither the user nor a small model says less: a larger one costs memory.
const DEFAULT_CONTEXT: usize = 8192;

/// A model that computes: all but its words.
pub struct Weights {
    /// The files.
    pub checkpoint: Checkpoint,
    /// Weights.
    pub loaded: Loaded,
    /// The processor.
    pub cpu: Cpu,
    /// What a sequence may use.
    pub limits: Limits,
}

/// A model that answers.
pub struct Ready {
    /// Tokenizer and template.
    pub text: Text,
    /// The rest.
    pub weights: Weights,
    /// Whether it was asked to think, or not to.
    pub think: Option<bool>,
}

/// The checkpoint that `--model` names, or the built-in one.
pub fn checkpoint(model: Option<&Path>) -> Result<Checkpoint, Box<dyn std::error::Error>> {
    let Some(path) = model else {
        return Ok(Checkpoint::from_static_gguf("the built-in model", DEFAULT_MODEL)?);
    };
    Ok(Checkpoint::open(&resolve(path)?)?)
}

/// Says what the built-in model is, once, where a person may read it.
pub fn introduce(model: Option<&Path>) {
    if model.is_none() {
        show::note(
            "The built-in model is tiny (4.7 million parameters): small talk, simple facts and \
             stories. A real checkpoint does much better: lapidary chat --model ~/models/gemma-3-1b-it",
        );
    }
}

/// A path, or a name such as google/gemma-3-1b-it in the Hugging Face cache.
pub fn resolve(path: &Path) -> Result<PathBuf, String> {
    if path.exists() {
        return Ok(path.to_owned());
    }
    let missing = format!("{}: no such file or directory", path.display());
    let name = path.to_str().unwrap_or_default();
    let parts: Vec<&str> = name.split('/').collect();
    let [owner, model] = parts[..] else { return Err(missing) };
    let word = |s: &str| {
        !s.is_empty()
            && !s.starts_with('.')
            && s.chars().all(|c| c.is_alphanumeric() || "-_.".contains(c))
    };
    if !word(owner) || !word(model) {
        return Err(missing);
    }
    let home = std::env::var_os("HF_HOME")
        .map(PathBuf::from)
        .or_else(|| std::env::home_dir().map(|h| h.join(".cache/huggingface")));
    let repository = home.unwrap_or_default().join(format!("hub/models--{owner}--{model}"));
    let snapshot = std::fs::read_to_string(repository.join("refs/main"))
        .map(|r| repository.join("snapshots").join(r.trim()))
        .unwrap_or_default();
    if snapshot.is_dir() {
        return Ok(snapshot);
    }
    Err(format!(
        "{missing}, and {name} is not in the Hugging Face cache ({}); get it with: hf download {name}",
        repository.display()
    ))
}

impl Weights {
    /// Opens and loads what the arguments name.
    pub fn open(args: &ModelArgs) -> Result<Self, Box<dyn std::error::Error>> {
        let checkpoint = checkpoint(args.model.as_deref())?;
        let (loaded, cpu, limits) = load(&checkpoint, args)?;
        Ok(Self { checkpoint, loaded, cpu, limits })
    }

    /// An empty sequence.
    pub fn session(&self) -> Session {
        Session::new(&self.loaded.model.info().kv, self.limits)
    }
}

/// The weights of `checkpoint` on a processor, and what a sequence may use.
fn load(
    checkpoint: &Checkpoint,
    args: &ModelArgs,
) -> Result<(Loaded, Cpu, Limits), Box<dyn std::error::Error>> {
    let mut cpu = cpu(args)?;
    let adapter = args.adapter.as_deref().map(lapidary_tune::Adapter::open).transpose()?;
    let adapters = Vec::from_iter(adapter.map(lapidary_tune::Adapter::into_adapters));
    let loaded = match &args.matformer {
        Some(slice) => lapidary_model::load_slice(checkpoint, &mut cpu, &matformer(slice)?)?,
        None => lapidary_model::load_adapted(checkpoint, &mut cpu, &adapters)?,
    };
    loaded.notes.iter().for_each(|line| show::note(&format!("note: {line}")));
    let limits = limits(args, &loaded)?;
    Ok((loaded, cpu, limits))
}

/// The slice that `--matformer` names.
///
/// # Errors
/// If it names no slice.
pub fn matformer(given: &str) -> Result<Slice, Box<dyn std::error::Error>> {
    if given == "e2b" {
        return Ok(Slice::e2b());
    }
    let value = lapidary_formats::json::read_object(Path::new(given))
        .map_err(|e| format!("--matformer: e2b or a JSON file was expected: {e}"))?;
    let config = Config::new(given, &value)?;
    if let Some((key, _)) = config.entries().find(|(k, _)| !["skip", "ffn"].contains(k)) {
        return Err(config.wrong(key, "\"skip\" and \"ffn\" were expected").into());
    }
    let ffn = match config.get("ffn") {
        Some(one) if one.is_number() => vec![config.usize("ffn")?],
        _ => config.opt_usizes("ffn")?.unwrap_or_default(),
    };
    Ok(Slice { skip: config.opt_usizes("skip")?.unwrap_or_default(), ffn })
}

impl Ready {
    /// Opens and loads what the arguments name.
    pub fn open(args: &ModelArgs) -> Result<Self, Box<dyn std::error::Error>> {
        let checkpoint = checkpoint(args.model.as_deref())?;
        // A vocabulary of 262 144 pieces takes a third as long as the weights of a small model: both
        // at once.
        let (loaded, text) = std::thread::scope(|scope| {
            let text = scope.spawn(|| Text::open(&checkpoint));
            (load(&checkpoint, args), text.join())
        });
        let (loaded, cpu, limits) = loaded?;
        let text = text.unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
        let weights = Weights { checkpoint, loaded, cpu, limits };
        text.notes.iter().for_each(|line| show::note(&format!("note: {line}")));
        Ok(Self { text, weights, think: None })
    }

    /// Has the model think, or not, as the flags say.
    ///
    /// # Errors
    /// If it can't.
    pub fn set_thinking(&mut self, args: &ThinkArgs) -> Result<(), String> {
        self.think = args.think.then_some(true).or(args.no_think.then_some(false));
        let flag = if args.think { "--think" } else { "--no-think" };
        match self.think {
            Some(_) if !self.text.thinks() => {
                Err(format!("{flag}: this model has no thinking (its template does not know it)"))
            }
            _ => Ok(()),
        }
    }

    /// Variables of the chat template beside the conversation.
    pub fn template(&self) -> serde_json::Map<String, serde_json::Value> {
        self.think.map(|on| (THINKING.to_owned(), on.into())).into_iter().collect()
    }

    /// The sampling that the flags ask for, over what the checkpoint recommends.
    pub fn sampling(&self, args: &SamplingArgs) -> Result<Sampling, Box<dyn std::error::Error>> {
        let d = &self.text.defaults;
        let sampling = Sampling {
            temperature: args.temperature.unwrap_or(d.temperature),
            top_k: args.top_k.unwrap_or(d.top_k),
            top_p: args.top_p.unwrap_or(d.top_p),
            min_p: args.min_p.unwrap_or(d.min_p),
            typical_p: args.typical_p.unwrap_or(d.typical_p),
            repetition_penalty: args.repetition_penalty.unwrap_or(d.repetition_penalty),
            presence_penalty: args.presence_penalty.unwrap_or(d.presence_penalty),
            frequency_penalty: args.frequency_penalty.unwrap_or(d.frequency_penalty),
            logit_bias: args.logit_bias.clone(),
            seed: args.seed.unwrap_or_else(seed_from_clock),
        };
        sampling.check()?;
        let vocab = self.weights.loaded.model.info().vocab;
        match sampling.logit_bias.iter().find(|(id, _)| *id as usize >= vocab) {
            Some((id, _)) => {
                Err(format!("--logit-bias {id}: the vocabulary has {vocab} entries").into())
            }
            None => Ok(sampling),
        }
    }
}

fn seed_from_clock() -> u64 {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    // 53 bits, so that the seed survives JSON.
    now.map_or(0, |d| (d.as_nanos() as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 11)
}

/// Seconds since 1970.
pub fn now() -> i64 {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    now.map_or(0, |d| d.as_secs() as i64)
}

/// The processor that the flags ask for.
pub fn cpu(args: &ModelArgs) -> Result<Cpu, String> {
    let threads = threads(args.threads)?;
    Ok(Cpu::new(isa(args.isa)?, Arc::new(Pool::new(threads)), precision(args.precision)))
}

/// `--threads`, or one for each core.
pub fn threads(wanted: Option<usize>) -> Result<usize, String> {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let threads = wanted.unwrap_or(cores);
    if !(1..=1024).contains(&threads) {
        return Err(format!("--threads {threads}: a number from 1 to 1024 was expected"));
    }
    Ok(threads)
}

/// `--isa`, or the best of this machine.
pub fn isa(wanted: Option<IsaArg>) -> Result<Isa, String> {
    let isa = match wanted {
        None => Isa::detect(),
        Some(IsaArg::Scalar) => Isa::Scalar,
        Some(IsaArg::Avx2) => Isa::Avx2,
        Some(IsaArg::AvxVnni) => Isa::AvxVnni,
        Some(IsaArg::Avx512) => Isa::Avx512,
        Some(IsaArg::Avx512Bf16) => Isa::Avx512Bf16,
        Some(IsaArg::Amx) => Isa::Amx,
        Some(IsaArg::Neon) => Isa::Neon,
        Some(IsaArg::NeonDot) => Isa::NeonDot,
        Some(IsaArg::NeonI8mm) => Isa::NeonI8mm,
    };
    if !Isa::available().contains(&isa) {
        return Err(format!("--isa {}: this machine does not have it", isa.name()));
    }
    Ok(isa)
}

/// `--precision`.
pub fn precision(wanted: PrecisionArg) -> Precision {
    match wanted {
        PrecisionArg::Fast => Precision::Fast,
        PrecisionArg::Exact => Precision::Exact,
    }
}

/// `--kv`.
pub fn kv(wanted: KvArg) -> KvType {
    match wanted {
        KvArg::F16 => KvType::F16,
        KvArg::F32 => KvType::F32,
        KvArg::Q8 => KvType::Q8,
    }
}

fn limits(args: &ModelArgs, loaded: &Loaded) -> Result<Limits, String> {
    let most = loaded.model.info().context;
    let context = args.context.unwrap_or(most.min(DEFAULT_CONTEXT));
    if !(1..=most).contains(&context) {
        return Err(format!("--context {context}: this model takes from 1 to {most} tokens"));
    }
    if args.chunk == 0 {
        return Err("--chunk 0: at least 1 was expected".into());
    }
    Ok(Limits { context, chunk: args.chunk, kv: kv(args.kv) })
}
