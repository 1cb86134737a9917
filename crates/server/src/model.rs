//! A model that serves: its words, its engine, and what is known of it.

use crate::failure::{Failure, Kind};
use crate::pictures::{SEEN_BYTES, Sight};
use lapidary_engine::{Embedder, Engine, EngineOptions, Parts, Plan, PlanError, Text};
use lapidary_formats::{Checkpoint, Source};
use lapidary_model::{Adapters, Info, Slice, Sliced};
use lapidary_ops::{Cpu, Isa, KvType, Pool, Precision};
use sha2::{Digest, Sha256};
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};
use tokio::sync::{Mutex, Semaphore};

/// Where a model is from, and what is made of it.
#[derive(Debug, Clone)]
pub struct Origin {
    /// Its weights and words.
    pub files: Files,
    /// The vision tower of a GGUF model: an "mmproj" file of llama.cpp.
    pub projector: Option<PathBuf>,
    /// A smaller model inside it.
    pub slice: Option<Slice>,
}

/// A model's files.
#[derive(Debug, Clone)]
pub enum Files {
    /// A Hugging Face directory or a file.
    Path(PathBuf),
    /// A GGUF file inside the program.
    BuiltIn(&'static [u8]),
}

/// What an origin holds.
struct Opened {
    checkpoint: Checkpoint,
    projector: Option<Checkpoint>,
}

/// An adapter of a model: requests name it `MODEL+NAME`.
#[derive(Debug, Clone)]
pub struct AdapterOrigin {
    /// The model's name.
    pub model: String,
    /// Its own.
    pub name: String,
    /// Where it is.
    pub path: PathBuf,
    /// Reads what is there.
    pub open: fn(&Path) -> Result<Adapters>,
}

/// How models compute.
#[derive(Debug, Clone)]
pub struct Machine {
    /// Instruction set.
    pub isa: Isa,
    /// Threads.
    pub threads: usize,
    /// Precision of products.
    pub precision: Precision,
    /// Type of keys and values.
    pub kv: KvType,
    /// Tokens of a sequence; without it the model's, at most 8192.
    pub context: Option<usize>,
    /// Tokens that one pass takes.
    pub chunk: usize,
    /// Requests that are computed at once.
    pub max_sequences: usize,
    /// Requests that may wait.
    pub max_queue: usize,
    /// Whether models that can think do, where a request does not say; without it, what their
    /// templates do.
    pub think: Option<bool>,
    /// How long a model that nobody asks for stays in memory; without it, for ever.
    pub idle: Option<Duration>,
}

/// What is known of a model that is not loaded.
#[derive(Debug, Clone)]
pub struct Card {
    /// The family.
    pub family: &'static str,
    /// Parameters.
    pub parameters: u64,
    /// Bytes of its files.
    pub file_bytes: u64,
    /// Bytes of its weights in memory.
    pub weight_bytes: u64,
    /// The type of most of its weights, as GGUF names it.
    pub quantisation: String,
    /// Tokens of a sequence.
    pub context: usize,
    /// Tokens that it was made for.
    pub trained_context: usize,
    /// Width of its hidden states.
    pub width: usize,
    /// Blocks.
    pub layers: usize,
    /// Entries of the vocabulary.
    pub vocab: usize,
    /// Its licence, as its files name it.
    pub license: Option<String>,
    /// When its files were changed.
    pub modified: SystemTime,
    /// A name for its weights: a hash of every tensor's name, type, shape, and first and last bytes.
    pub digest: String,
    /// Whether it has a chat template.
    pub chats: bool,
    /// Whether it can think apart from its answer.
    pub thinks: bool,
    /// Rows of a picture at most; 0: it reads text alone.
    pub picture_rows: usize,
    /// Bytes that it is to have for keys and values.
    pub kv_bytes: u64,
    info: Info,
}

/// What a loaded model does.
enum Work {
    /// It continues texts; others get pooled hidden states of it as vectors.
    Text(Box<Engine>),
    /// It makes vectors, and nothing else.
    Vectors(Arc<Vectors>),
}

/// A model that makes vectors, and its device, which takes one pass at a time.
pub struct Vectors {
    /// The model.
    pub embedder: Embedder,
    /// The device.
    pub cpu: Arc<Mutex<Cpu>>,
}

/// A loaded model, perhaps as an adapter changes it.
pub struct Model {
    /// The name that requests know it by.
    pub name: String,
    /// Tokenizer, template, stops, recommended sampling.
    pub text: Arc<Text>,
    work: Work,
    /// What looks at pictures, if it can.
    pub sight: Option<Arc<Sight>>,
    /// The number of the adapter.
    pub adapter: Option<u32>,
    /// What is known of it.
    pub card: Card,
    /// Whether it thinks where a request does not say.
    pub think: Option<bool>,
    /// Names weights, precision, cache type and version: the same fingerprint, the same bytes.
    pub fingerprint: String,
    seeds: AtomicU64,
    /// Work beside the engine's that may run at once.
    aside: Arc<Semaphore>,
}

/// Prompts of one model that are encoded at once: long ones take a while, and the engine needs the
/// cores more.
const ASIDE: usize = 2;

/// Context where neither the user nor a small model says less: a larger one costs memory.
const DEFAULT_CONTEXT: usize = 8192;
/// Sequences that fill the context and fit into a model's memory for keys and values, if there is
/// enough.
const SEQUENCES: u64 = 4;
/// What it gets as well, if all requests that are computed together could use it: so much, or this part
/// of the server's memory.
const LEAST_KV: u64 = 256 << 20;
const PART_KV: u64 = 8;

type Result<T, E = Box<dyn std::error::Error + Send + Sync>> = std::result::Result<T, E>;

impl Files {
    fn open(&self, name: &str) -> Result<Checkpoint> {
        Ok(match self {
            Files::Path(path) => Checkpoint::open(path)?,
            Files::BuiltIn(bytes) => Checkpoint::from_static_gguf(name, bytes)?,
        })
    }
}

impl Origin {
    /// A model as its files have it.
    pub fn new(files: Files) -> Self {
        Self { files, projector: None, slice: None }
    }

    /// A Hugging Face directory or a file.
    pub fn path(path: impl Into<PathBuf>) -> Self {
        Self::new(Files::Path(path.into()))
    }

    fn open(&self, name: &str) -> Result<Opened> {
        let projector = self.projector.as_deref().map(Checkpoint::open).transpose()?;
        Ok(Opened { checkpoint: self.files.open(name)?, projector })
    }

    fn modified(&self) -> SystemTime {
        let changed = match &self.files {
            Files::Path(path) => std::fs::metadata(path).and_then(|m| m.modified()).ok(),
            Files::BuiltIn(_) => None,
        };
        changed.unwrap_or(SystemTime::UNIX_EPOCH)
    }
}

impl Opened {
    /// The text model's figures, and parameters and bytes of all.
    fn measure(&self, slice: Option<&Slice>) -> Result<Sliced> {
        let checkpoint = &self.checkpoint;
        let mut all = match slice {
            Some(slice) => lapidary_model::describe_slice(checkpoint, slice)?,
            None => Sliced {
                info: lapidary_model::describe(checkpoint)?,
                parameters: checkpoint.elements(),
                bytes: checkpoint.tensor_bytes(),
            },
        };
        if let Some(projector) = &self.projector {
            all.parameters += projector.elements();
            all.bytes += projector.tensor_bytes();
        }
        Ok(all)
    }

    /// All checkpoints.
    fn all(&self) -> impl Iterator<Item = &Checkpoint> {
        [&self.checkpoint].into_iter().chain(&self.projector)
    }

    /// Rows of a picture at most; 0: it reads text alone.
    fn picture_rows(&self) -> Result<usize> {
        Ok(match &self.projector {
            Some(projector) => lapidary_model::projector_rows(&self.checkpoint, projector)?,
            None => lapidary_model::picture_rows(&self.checkpoint)?.unwrap_or(0),
        })
    }
}

impl Machine {
    fn options(&self, card: &Card) -> EngineOptions {
        EngineOptions {
            memory: card.kv_bytes as usize,
            token_budget: self.chunk,
            max_sequences: self.max_sequences,
            max_queue: self.max_queue,
            kv: self.kv,
            context: card.context,
            picture_rows: card.picture_rows,
        }
    }
}

impl Card {
    /// Reads the headers of a checkpoint, for a server that may use `memory` bytes.
    ///
    /// # Errors
    /// If it is damaged or unsupported, or the context does not suit it.
    pub fn read(name: &str, origin: &Origin, machine: &Machine, memory: u64) -> Result<Self> {
        let opened = origin.open(name)?;
        let checkpoint = &opened.checkpoint;
        let Sliced { info, parameters, bytes } = opened.measure(origin.slice.as_ref())?;
        let text = Text::open(checkpoint)?;
        let context = machine.context.unwrap_or(info.context.min(DEFAULT_CONTEXT));
        if !(1..=info.context).contains(&context) {
            let most = info.context;
            return Err(format!("{name} takes a context from 1 to {most}, not {context}").into());
        }
        Ok(Self {
            family: info.family,
            parameters,
            file_bytes: opened.all().map(Checkpoint::file_bytes).sum(),
            weight_bytes: bytes,
            quantisation: quantisation(checkpoint),
            context,
            trained_context: info.context,
            width: info.width,
            layers: info.layers,
            vocab: info.vocab,
            license: checkpoint.license().map(str::to_owned),
            modified: origin.modified(),
            digest: digest(&opened, origin.slice.as_ref()),
            chats: text.template.is_some() && !info.encoder,
            thinks: text.thinks() && !info.encoder,
            picture_rows: opened.picture_rows()?,
            kv_bytes: if info.encoder {
                encoder_bytes(&info, context)
            } else {
                kv_bytes(&info, context, machine, memory)
            },
            info,
        })
    }

    /// Checks that one sequence fits.
    ///
    /// # Errors
    /// What is too large, with numbers.
    pub fn check(&self, machine: &Machine) -> Result<(), PlanError> {
        if self.info.encoder {
            let (context, needed) = (self.context, encoder_bytes(&self.info, self.context));
            let memory = self.kv_bytes as usize;
            let fits = context * memory / (needed as usize).max(1);
            return match needed > self.kv_bytes {
                true => Err(PlanError::Memory { context, needed: needed as usize, memory, fits }),
                false => Ok(()),
            };
        }
        Plan::new(&self.info, self.weight_bytes as usize, &machine.options(self)).map(drop)
    }

    /// Bytes that it needs in memory: weights, keys and values, and what it has seen.
    pub fn memory(&self) -> u64 {
        self.weight_bytes + self.kv_bytes + if self.sees() { SEEN_BYTES as u64 } else { 0 }
    }

    /// Whether pictures can be shown to it.
    pub fn sees(&self) -> bool {
        self.picture_rows > 0 && self.chats
    }

    /// Whether it thinks where a request does not say; without it, what its template does.
    pub fn thinking(&self, machine: &Machine) -> Option<bool> {
        machine.think.filter(|_| self.thinks)
    }

    /// Whether its prompts see themselves: it answers a question, and takes no turns.
    pub fn answers_once(&self) -> bool {
        self.info.prefix
    }

    /// Whether it continues texts; otherwise it makes vectors.
    pub fn generates(&self) -> bool {
        !self.info.encoder
    }

    /// "1.5B", as people name sizes.
    pub fn size(&self) -> String {
        match self.parameters as f64 {
            p if p >= 1e9 => format!("{:.1}B", p / 1e9),
            p => format!("{:.1}M", p / 1e6),
        }
    }
}

/// Keys and values of the longest text, which are there while it is computed.
fn encoder_bytes(info: &Info, context: usize) -> u64 {
    info.kv.bytes(context, context, KvType::F32) as u64
}

fn kv_bytes(info: &Info, context: usize, machine: &Machine, memory: u64) -> u64 {
    let one = info.kv.bytes(context, machine.chunk, machine.kv) as u64;
    let all = one * machine.max_sequences as u64;
    (one * SEQUENCES).max(LEAST_KV.max(memory / PART_KV).min(all))
}

/// The type that holds most of the weights.
fn quantisation(checkpoint: &Checkpoint) -> String {
    let mut bytes = std::collections::BTreeMap::<String, usize>::new();
    for t in checkpoint.tensors() {
        *bytes.entry(t.dtype.name().to_string()).or_default() += t.bytes.len();
    }
    bytes.into_iter().max_by_key(|(_, n)| *n).map_or_else(String::new, |(name, _)| name)
}

/// Bytes of each end of a tensor that go into the digest: reading all of a large checkpoint would
/// take longer than loading it.
const DIGESTED: usize = 4096;

fn digest(opened: &Opened, slice: Option<&Slice>) -> String {
    let mut hash = Sha256::new();
    for checkpoint in opened.all() {
        let mut tensors: Vec<_> = checkpoint.tensors().collect();
        tensors.sort_by(|a, b| a.name.cmp(&b.name));
        for t in tensors {
            let bytes: &[u8] = &t.bytes;
            hash.update(format!("{} {} {:?}\n", t.name, t.dtype.name(), t.shape));
            hash.update(&bytes[..bytes.len().min(DIGESTED)]);
            hash.update(&bytes[bytes.len().saturating_sub(DIGESTED)..]);
        }
    }
    if let Some(slice) = slice {
        hash.update(format!("{slice:?}"));
    }
    hex(&hash.finalize())
}

/// Bytes as hexadecimal digits.
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

impl AdapterOrigin {
    /// What requests call it.
    pub fn full_name(&self) -> String {
        format!("{}+{}", self.model, self.name)
    }

    /// Reads it; errors say which it is.
    ///
    /// # Errors
    /// If it is missing, damaged or unsupported.
    pub fn read(&self) -> Result<Adapters> {
        (self.open)(&self.path).map_err(|e| format!("adapter {}: {e}", self.full_name()).into())
    }

    /// What is known of it: its base's card with another name for the weights.
    pub fn card(&self, base: &Card, adapters: &Adapters) -> Card {
        let mut hash = Sha256::new_with_prefix(&base.digest);
        hash.update(adapters.factor.to_le_bytes());
        for (module, f) in &adapters.modules {
            hash.update(format!("{module} {}\n", f.rank));
            f.a.iter().chain(&f.b).for_each(|x| hash.update(x.to_le_bytes()));
        }
        Card { digest: hex(&hash.finalize()), ..base.clone() }
    }
}

impl Model {
    /// Loads a model and starts its engine: the model, and then as each adapter changes it, all
    /// with the same weights and the same engine.
    ///
    /// # Errors
    /// If something is damaged or does not fit.
    pub fn load(
        name: &str,
        origin: &Origin,
        card: &Card,
        machine: &Machine,
        adapters: &[AdapterOrigin],
    ) -> Result<Vec<Arc<Self>>> {
        let opened = origin.open(name)?;
        let checkpoint = &opened.checkpoint;
        let text = Arc::new(Text::open(checkpoint)?);
        let pool = Arc::new(Pool::new(machine.threads));
        let mut cpu = Cpu::new(machine.isa, pool.clone(), machine.precision);
        let warn = |note: &str| tracing::warn!(model = name, "{note}");
        let aside = Arc::new(Semaphore::new(ASIDE));
        let sight = match card.sees() {
            true => {
                let cpu = Cpu::new(machine.isa, pool, machine.precision);
                Sight::open(checkpoint, opened.projector.as_ref(), cpu)?
            }
            false => None,
        };
        let sight = sight.map(Arc::new);
        let model = |name: String, work, card: &Card, adapter| {
            let seeds = AtomicU64::new(crate::clock::nanoseconds());
            let (text, aside, sight) = (text.clone(), aside.clone(), sight.clone());
            let fingerprint = fingerprint(card, machine);
            let (card, think) = (card.clone(), card.thinking(machine));
            Arc::new(Self {
                name,
                text,
                work,
                sight,
                adapter,
                card,
                think,
                fingerprint,
                seeds,
                aside,
            })
        };
        if card.info.encoder {
            let embedder = Embedder::open(checkpoint, &mut cpu)?;
            embedder.notes().for_each(warn);
            let work = Vectors { embedder, cpu: Arc::new(Mutex::new(cpu)) };
            return Ok(vec![model(name.to_owned(), Work::Vectors(Arc::new(work)), card, None)]);
        }
        let read: Vec<Adapters> =
            adapters.iter().map(AdapterOrigin::read).collect::<Result<_>>()?;
        let loaded = match &origin.slice {
            Some(slice) => lapidary_model::load_slice(checkpoint, &mut cpu, slice)?,
            None => lapidary_model::load_adapted(checkpoint, &mut cpu, &read)?,
        };
        loaded.notes.iter().chain(&text.notes).for_each(|n| warn(n));
        let parts = Parts {
            model: loaded.model,
            ops: Box::new(cpu),
            weight_bytes: card.weight_bytes as usize,
            adapters: adapters.len() as u32,
        };
        let engine = Engine::start(parts, machine.options(card))?;
        let mut models =
            vec![model(name.to_owned(), Work::Text(Box::new(engine.clone())), card, None)];
        for (number, (origin, read)) in (0..).zip(adapters.iter().zip(&read)) {
            let card = origin.card(card, read);
            models.push(model(
                origin.full_name(),
                Work::Text(Box::new(engine.clone())),
                &card,
                Some(number),
            ));
        }
        Ok(models)
    }

    /// What continues texts.
    ///
    /// # Errors
    /// If it is a model for embeddings.
    pub fn engine(&self) -> Result<&Engine, Failure> {
        match &self.work {
            Work::Text(engine) => Ok(engine),
            Work::Vectors(_) => Err(Failure::field(
                "model",
                format!("{} makes embeddings and generates no text", self.name),
            )),
        }
    }

    /// What makes vectors and nothing else.
    pub fn vectors(&self) -> Option<&Arc<Vectors>> {
        match &self.work {
            Work::Text(_) => None,
            Work::Vectors(vectors) => Some(vectors),
        }
    }

    /// Dimensions of a vector.
    pub fn dimensions(&self) -> usize {
        self.vectors().map_or(self.card.width, |v| v.embedder.size())
    }

    /// Does work that takes a while where it keeps nobody waiting, in turn with others.
    ///
    /// # Errors
    /// If it panics, which would be our fault.
    pub async fn aside<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, Failure> {
        // An error: never, the semaphore is not closed.
        let _turn = self.aside.acquire().await;
        let done = tokio::task::spawn_blocking(work).await;
        done.map_err(|e| Failure::new(Kind::Internal, e.to_string()))
    }

    /// A seed for a request that brings none; 53 bits, so that it survives JSON.
    pub fn fresh_seed(&self) -> u64 {
        self.seeds.fetch_add(1, Ordering::Relaxed).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 11
    }
}

impl fmt::Debug for Model {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Model").field("name", &self.name).finish_non_exhaustive()
    }
}

/// Threads and instruction set are no part of it: they don't change a bit.
fn fingerprint(card: &Card, machine: &Machine) -> String {
    let version = env!("CARGO_PKG_VERSION");
    let mut what =
        format!("{} {:?} {:?} cpu {version}", card.digest, machine.precision, machine.kv);
    if let Some(think) = card.thinking(machine) {
        what += &format!(" think {think}");
    }
    format!("fp_{}", &hex(&Sha256::digest(what))[..16])
}

/// Whether a checkpoint is GGUF or a Hugging Face directory.
pub fn format_name(origin: &Origin) -> &'static str {
    match &origin.files {
        Files::BuiltIn(_) => "gguf",
        Files::Path(path) => {
            match Checkpoint::open(path).map(|c| matches!(c.source(), Source::Gguf(_))) {
                Ok(true) => "gguf",
                _ => "safetensors",
            }
        }
    }
}
