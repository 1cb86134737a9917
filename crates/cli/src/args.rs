//! The command line.

use clap::{Args, Parser, Subcommand, ValueEnum};
use std::path::PathBuf;

/// The workshop for open models.
#[derive(Parser)]
#[command(
    name = "lapidary",
    version,
    about = "Run, chat with, inspect and measure open models: Gemma, Llama 2, GPT-2 and GPT-3's shape",
    after_help = "Examples:\n  lapidary chat\n  lapidary run \"Who are you?\"\n  \
                  lapidary chat --model ~/models/gemma-3-1b-it\n  \
                  lapidary inspect model-Q4_0.gguf"
)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// The commands.
#[derive(Subcommand)]
pub enum Command {
    /// Chat with a model in the terminal
    Chat(ChatArgs),
    /// Answer one prompt, from the argument or from standard input
    Run(RunArgs),
    /// Serve models over HTTP, to clients of OpenAI, Gemini, Anthropic and Ollama
    Serve(Box<ServeArgs>),
    /// Show what a checkpoint holds and what it needs
    Inspect(InspectArgs),
    /// Text to token ids, a JSON string a line in, a JSON array a line out
    Tokenize(TokenizeArgs),
    /// Show the prompt that a conversation becomes
    Template(TemplateArgs),
    /// Compute logits of given token ids into a safetensors file
    Logits(LogitsArgs),
    /// Turn texts into vectors with an embedding model
    Embed(EmbedArgs),
    /// Measure prefill and decode speed against the machine's limits
    Bench(BenchArgs),
    /// Convert a checkpoint to a GGUF file of another precision
    Quantize(QuantizeArgs),
    /// Train a model: from nothing, all weights, adapters, preferences
    Train(TrainArgs),
    /// Write what a run learnt as Hugging Face files or GGUF
    Export(ExportArgs),
    /// Put an adapter (PEFT's layout) into the weights of its base
    Merge(MergeArgs),
    /// Make a tokenizer from a corpus: tokenizer.model and tokenizer.json
    TrainTokenizer(TrainTokenizerArgs),
    /// Print a completion script for a shell
    Completions {
        /// The shell
        shell: clap_complete::Shell,
    },
}

/// Which model, and on what.
#[derive(Args, Clone, Default)]
pub struct ModelArgs {
    /// A Hugging Face directory, a .gguf or .safetensors file, or a name such as
    /// google/gemma-3-1b-it that is in the Hugging Face cache; without it the built-in model runs
    #[arg(long, short, value_name = "PATH")]
    pub model: Option<PathBuf>,
    /// A LoRA adapter in PEFT's layout (a folder) to apply beside the model's weights
    #[arg(long, value_name = "DIR")]
    pub adapter: Option<PathBuf>,
    /// A smaller model inside Gemma 3n E4B: e2b, or a JSON file with "skip" (layers) and "ffn" (a
    /// feed-forward width for all layers that stay, or a list)
    #[arg(long, value_name = "SLICE", conflicts_with = "adapter", hide_short_help = true)]
    pub matformer: Option<String>,
    /// Threads that compute [default: one for each core]
    #[arg(long, short, value_name = "N")]
    pub threads: Option<usize>,
    /// Activations of products
    #[arg(long, value_enum, default_value_t)]
    pub precision: PrecisionArg,
    /// Type of keys and values in the cache
    #[arg(long, value_enum, default_value_t)]
    pub kv: KvArg,
    /// Tokens that fit, prompt and answer [default: the model's, at most 8192]
    #[arg(long, value_name = "N")]
    pub context: Option<usize>,
    /// Tokens of a prompt that one pass takes
    #[arg(long, value_name = "N", default_value_t = 256)]
    pub chunk: usize,
    /// Instruction set [default: the best of this machine]
    #[arg(long, value_enum, hide_short_help = true)]
    pub isa: Option<IsaArg>,
}

/// `--precision`.
#[derive(ValueEnum, Clone, Copy, Default, PartialEq, Eq)]
pub enum PrecisionArg {
    /// 8 bits with a scale for each 32 values for quantised weights, bfloat16 for BF16 ones
    #[default]
    Fast,
    /// f32, against exactly dequantised weights
    Exact,
}

/// `--kv`.
#[derive(ValueEnum, Clone, Copy, Default, PartialEq, Eq)]
pub enum KvArg {
    /// Half precision
    #[default]
    F16,
    /// What the reference implementations compute with
    F32,
    /// 8 bits and a factor for each 32: nearly half of f16's memory
    Q8,
}

/// `--isa`.
#[derive(ValueEnum, Clone, Copy, PartialEq, Eq)]
pub enum IsaArg {
    /// Plain Rust
    Scalar,
    /// AVX2, FMA, F16C
    Avx2,
    /// The same with VNNI on 256 bits
    #[value(name = "avxvnni")]
    AvxVnni,
    /// AVX-512 with VNNI
    Avx512,
    /// AVX-512 with VNNI and BF16
    #[value(name = "avx512bf16")]
    Avx512Bf16,
    /// The same with AMX
    Amx,
    /// AArch64's NEON
    Neon,
    /// The same with sdot
    #[value(name = "neondot")]
    NeonDot,
    /// The same with usdot
    #[value(name = "neoni8mm")]
    NeonI8mm,
}

/// How tokens are chosen.
#[derive(Args, Clone, Default)]
pub struct SamplingArgs {
    /// 0 takes the likeliest token [default: what the checkpoint recommends]
    #[arg(long, value_name = "T")]
    pub temperature: Option<f32>,
    /// Only the likeliest K tokens; 0: all
    #[arg(long, value_name = "K")]
    pub top_k: Option<usize>,
    /// Only the likeliest tokens whose probabilities reach P
    #[arg(long, value_name = "P")]
    pub top_p: Option<f32>,
    /// Only tokens at least P times as likely as the likeliest
    #[arg(long, value_name = "P")]
    pub min_p: Option<f32>,
    /// Only tokens about as surprising as expected, until their probabilities reach P
    #[arg(long, value_name = "P")]
    pub typical_p: Option<f32>,
    /// Above 1: tokens that have occurred become less likely
    #[arg(long, value_name = "R")]
    pub repetition_penalty: Option<f32>,
    /// Taken from the logits of tokens that occur in the answer
    #[arg(long, value_name = "X", allow_negative_numbers = true)]
    pub presence_penalty: Option<f32>,
    /// Taken from the logits of tokens as often as they occur in the answer
    #[arg(long, value_name = "X", allow_negative_numbers = true)]
    pub frequency_penalty: Option<f32>,
    /// Added to the logit of a token, as often as given; -100 bars it
    #[arg(long, value_name = "ID=X", value_parser = bias)]
    pub logit_bias: Vec<(u32, f32)>,
    /// The same seed gives the same answer [default: from the clock]
    #[arg(long, value_name = "N")]
    pub seed: Option<u64>,
}

/// `--logit-bias`: a token's id and what is added to its logit.
fn bias(text: &str) -> Result<(u32, f32), String> {
    let parts = text.split_once('=').and_then(|(id, x)| Some((id.parse().ok()?, x.parse().ok()?)));
    parts.ok_or_else(|| "a token id and a number were expected, such as 1234=-100".into())
}

/// When an answer ends, apart from the model's own end.
#[derive(Args, Clone, Default)]
pub struct StopArgs {
    /// End the answer before this text, as often as given
    #[arg(long, value_name = "TEXT")]
    pub stop: Vec<String>,
    /// When the context is full, forget the older half and go on; a prompt that is too long loses
    /// its older part
    #[arg(long)]
    pub context_shift: bool,
}

/// `lapidary chat`.
#[derive(Args)]
#[command(
    after_help = "Examples:\n  lapidary chat --model ~/models/gemma-3-1b-it\n  lapidary chat --model model-Q4_0.gguf --system \"Answer in one sentence.\""
)]
pub struct ChatArgs {
    /// Which model, and on what.
    #[command(flatten)]
    pub model: ModelArgs,
    /// How tokens are chosen.
    #[command(flatten)]
    pub sampling: SamplingArgs,
    /// When an answer ends.
    #[command(flatten)]
    pub stops: StopArgs,
    /// How the model should behave
    #[arg(long, value_name = "TEXT")]
    pub system: Option<String>,
    /// Whether it thinks.
    #[command(flatten)]
    pub think: ThinkArgs,
    /// The vision tower of a GGUF model [default: the mmproj file beside it]
    #[arg(long, value_name = "FILE")]
    pub mmproj: Option<PathBuf>,
    /// Tokens of an answer at most
    #[arg(long, value_name = "N", default_value_t = 2048)]
    pub max_tokens: usize,
}

/// Whether a model thinks before it answers.
#[derive(Args, Clone, Default)]
pub struct ThinkArgs {
    /// Have the model think before it answers (Gemma 4); thoughts go to standard error
    #[arg(long)]
    pub think: bool,
    /// Have it answer at once [default: what the template does]
    #[arg(long, conflicts_with = "think")]
    pub no_think: bool,
}

/// `lapidary run`.
#[derive(Args)]
#[command(
    after_help = "Examples:\n  lapidary run --model model.gguf \"Why is the sky blue?\"\n  cat letter.txt | lapidary run --model model.gguf --system \"Summarise the letter.\"\n  lapidary run --model model.gguf --ids '[2,4521]' --temperature 0 --json"
)]
pub struct RunArgs {
    /// Which model, and on what.
    #[command(flatten)]
    pub model: ModelArgs,
    /// How tokens are chosen.
    #[command(flatten)]
    pub sampling: SamplingArgs,
    /// When an answer ends.
    #[command(flatten)]
    pub stops: StopArgs,
    /// The prompt [default: standard input]
    pub prompt: Option<String>,
    /// How the model should behave
    #[arg(long, value_name = "TEXT", conflicts_with_all = ["raw", "ids"])]
    pub system: Option<String>,
    /// A picture before the prompt: a PNG, JPEG or WebP file, a data: URL, or - for standard input;
    /// may be given several times
    #[arg(long, value_name = "FILE", conflicts_with_all = ["raw", "ids", "context_shift"])]
    pub image: Vec<String>,
    /// The vision tower of a GGUF model [default: the mmproj file beside it]
    #[arg(long, value_name = "FILE", requires = "image")]
    pub mmproj: Option<PathBuf>,
    /// Whether it thinks.
    #[command(flatten)]
    pub think: ThinkArgs,
    /// Continue the text as it is, without the chat template
    #[arg(long, conflicts_with_all = ["ids", "think", "no_think"])]
    pub raw: bool,
    /// Token ids instead of a prompt, as a JSON array
    #[arg(long, value_name = "[ID,…]", conflicts_with_all = ["prompt", "think", "no_think"])]
    pub ids: Option<String>,
    /// Tokens of the answer at most
    #[arg(long, value_name = "N", default_value_t = 512)]
    pub max_tokens: usize,
    /// Print one JSON object: text, token ids, counts, timings, finish reason
    #[arg(long)]
    pub json: bool,
    /// Go on after the tokens that end a turn
    #[arg(long)]
    pub ignore_eos: bool,
}

/// `lapidary serve`.
#[derive(Args)]
pub struct ServeArgs {
    /// A model, as NAME=PATH or PATH; may be repeated. PATH is what --model is elsewhere; without
    /// any the built-in model is served
    #[arg(long, short, value_name = "NAME=PATH", help_heading = "Models")]
    pub model: Vec<String>,
    /// Serve every .gguf file and every Hugging Face directory in DIR, each by its name
    #[arg(long, value_name = "DIR", help_heading = "Models")]
    pub models_dir: Option<PathBuf>,
    /// An adapter of a model, in PEFT's layout; may be repeated. Requests name it MODEL+NAME; MODEL may
    /// be left out here if there is only one
    #[arg(long, value_name = "[MODEL+]NAME=DIR", help_heading = "Models")]
    pub adapter: Vec<String>,
    /// The vision tower of a GGUF model; may be repeated. MODEL may be left out if there is only one
    /// [default: the mmproj file beside the model that fits it]
    #[arg(long, value_name = "[MODEL=]FILE", help_heading = "Models")]
    pub mmproj: Vec<String>,
    /// A smaller model inside a Gemma 3n E4B, as run takes it; may be repeated, as --mmproj
    #[arg(long, value_name = "[MODEL=]SLICE", help_heading = "Models")]
    pub matformer: Vec<String>,
    /// Have models think before they answer (Gemma 4) where a request does not say
    #[arg(long, help_heading = "Models")]
    pub think: bool,
    /// Have them answer at once there [default: what their templates do]
    #[arg(long, conflicts_with = "think", help_heading = "Models")]
    pub no_think: bool,
    /// Memory for weights, keys and values, such as 8GiB [default: 80 % of what is available]
    #[arg(long, value_name = "SIZE", help_heading = "Models")]
    pub memory: Option<String>,
    /// Unload a model that nobody has asked for during so many seconds; 0: never
    #[arg(long, value_name = "SECONDS", default_value_t = 900, help_heading = "Models")]
    pub idle: u64,
    /// Load all models that fit at the start, instead of each when it is asked for
    #[arg(long, help_heading = "Models")]
    pub preload: bool,
    /// Threads that compute [default: one for each core]
    #[arg(long, short, value_name = "N", help_heading = "Computing")]
    pub threads: Option<usize>,
    /// Activations of products with quantised weights
    #[arg(long, value_enum, default_value_t, help_heading = "Computing")]
    pub precision: PrecisionArg,
    /// Type of keys and values in the cache
    #[arg(long, value_enum, default_value_t, help_heading = "Computing")]
    pub kv: KvArg,
    /// Tokens of a sequence, prompt and answer [default: the model's, at most 8192]
    #[arg(long, value_name = "N", help_heading = "Computing")]
    pub context: Option<usize>,
    /// Tokens that one pass takes; eight for each request that is computed, if that is more
    #[arg(long, value_name = "N", default_value_t = 256, help_heading = "Computing")]
    pub chunk: usize,
    /// Requests that are computed together
    #[arg(long, value_name = "N", default_value_t = 64, help_heading = "Computing")]
    pub batch: usize,
    /// Instruction set [default: the best of this machine]
    #[arg(long, value_enum, hide_short_help = true, help_heading = "Computing")]
    pub isa: Option<IsaArg>,
    /// Where to listen; port 0: any free one
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:8080", help_heading = "Access")]
    pub listen: std::net::SocketAddr,
    /// A key that clients must present; may be repeated. Others can see a command line: prefer
    /// --api-keys-file
    #[arg(long, value_name = "KEY", help_heading = "Access")]
    pub api_key: Vec<String>,
    /// Keys as lines of NAME SHA256 [scopes=generate,embed,read,metrics] [rate=N] [priority=N]; read
    /// again when it changes
    #[arg(long, value_name = "FILE", help_heading = "Access")]
    pub api_keys_file: Option<PathBuf>,
    /// Requests in a minute for each key [default: any number]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..), help_heading = "Access")]
    pub rate: Option<u32>,
    /// A page that may ask, such as https://example.org; may be repeated; *: all pages
    #[arg(long, value_name = "ORIGIN", help_heading = "Access")]
    pub allow_origin: Vec<String>,
    /// A name that the server may be called by; may be repeated. On loopback, localhost is
    #[arg(long, value_name = "NAME", help_heading = "Access")]
    pub allow_host: Vec<String>,
    /// Certificate chain, PEM: serve HTTPS
    #[arg(long, value_name = "FILE", requires = "tls_key", help_heading = "Access")]
    pub tls_cert: Option<PathBuf>,
    /// The certificate's private key, PEM
    #[arg(long, value_name = "FILE", requires = "tls_cert", help_heading = "Access")]
    pub tls_key: Option<PathBuf>,
    /// Ignore fields that are not supported, and say so in a header, instead of refusing the request
    #[arg(long, help_heading = "Limits")]
    pub lenient: bool,
    /// Size of a request at most
    #[arg(long, value_name = "SIZE", default_value = "16MiB", help_heading = "Limits")]
    pub max_body: String,
    /// Requests that may wait for a model; more are refused
    #[arg(long, value_name = "N", default_value_t = 1024, help_heading = "Limits")]
    pub max_queue: usize,
    /// Connections at once; more wait
    #[arg(long, value_name = "N", default_value_t = 1024, help_heading = "Limits")]
    pub max_connections: usize,
    /// Seconds that an answer may take
    #[arg(long, value_name = "SECONDS", default_value_t = 600, help_heading = "Limits")]
    pub timeout: u64,
    /// Seconds that answers get to come to their end when the server is told to stop
    #[arg(long, value_name = "SECONDS", default_value_t = 30, help_heading = "Limits")]
    pub drain: u64,
    /// What goes to standard error
    #[arg(long, value_enum, default_value_t, help_heading = "Log")]
    pub log: LogArg,
    /// A JSON object a line
    #[arg(long, help_heading = "Log")]
    pub log_json: bool,
    /// Write what people send into the log
    #[arg(long, help_heading = "Log")]
    pub log_prompts: bool,
}

/// `--log`.
#[derive(ValueEnum, Clone, Copy, Default, PartialEq, Eq)]
pub enum LogArg {
    /// What broke
    Error,
    /// And what is odd
    Warn,
    /// And a line for each request
    #[default]
    Info,
    /// And why connections ended
    Debug,
}

/// `lapidary inspect`.
#[derive(Args)]
#[command(
    after_help = "Examples:\n  lapidary inspect ~/models/gemma-3-1b-it --context 32768\n  lapidary inspect model.gguf --json"
)]
pub struct InspectArgs {
    /// The checkpoint
    pub path: PathBuf,
    /// Print one JSON object
    #[arg(long)]
    pub json: bool,
    /// Tokens for which the memory is computed [default: the model's context]
    #[arg(long, value_name = "N")]
    pub context: Option<usize>,
}

/// `lapidary tokenize`.
#[derive(Args)]
#[command(
    after_help = "Examples:\n  echo '\"Hello, world\"' | lapidary tokenize --model model.gguf\n  echo '[2,4521]' | lapidary tokenize --model model.gguf --decode"
)]
pub struct TokenizeArgs {
    /// The checkpoint whose tokenizer is used
    #[arg(long, short, value_name = "PATH")]
    pub model: Option<PathBuf>,
    /// The reverse: arrays of ids in, strings out
    #[arg(long)]
    pub decode: bool,
    /// Turn control tokens that the text spells into control tokens
    #[arg(long)]
    pub special: bool,
    /// Add the tokens that a prompt begins and ends with
    #[arg(long)]
    pub add_special: bool,
}

/// `lapidary template`.
#[derive(Args)]
#[command(
    after_help = "Example:\n  lapidary template --model ~/models/gemma-3-1b-it --messages talk.json"
)]
pub struct TemplateArgs {
    /// The checkpoint whose template is used
    #[arg(long, short, value_name = "PATH")]
    pub model: Option<PathBuf>,
    /// A JSON array of {"role", "content"}
    #[arg(long, value_name = "FILE")]
    pub messages: PathBuf,
    /// Leave out the beginning of the model's turn
    #[arg(long)]
    pub no_generation_prompt: bool,
}

/// `lapidary logits`.
#[derive(Args)]
#[command(
    after_help = "Example:\n  lapidary logits --model model.gguf --tokens ids.json --out logits.safetensors"
)]
pub struct LogitsArgs {
    /// Which model, and on what.
    #[command(flatten)]
    pub model: ModelArgs,
    /// A JSON array of arrays of token ids
    #[arg(long, value_name = "FILE")]
    pub tokens: PathBuf,
    /// Where `logits.0`, `logits.1`, … go, f32 `[tokens, vocabulary]`
    #[arg(long, value_name = "FILE")]
    pub out: PathBuf,
}

/// `lapidary embed`.
#[derive(Args)]
#[command(
    after_help = "Examples:\n  lapidary embed --model ~/models/embeddinggemma-300m --task query \"Who painted the door?\"\n  \
                  lapidary embed --model ~/models/embeddinggemma-300m --task document --dimensions 256 < texts.txt > vectors.jsonl"
)]
pub struct EmbedArgs {
    /// Which model, and on what.
    #[command(flatten)]
    pub model: ModelArgs,
    /// Texts; without any, each line of standard input is one
    pub texts: Vec<String>,
    /// What the vectors are for: query, document, classification, clustering, similarity, ...; the
    /// model's prompt for it is put before each text [default: no prompt]
    #[arg(long, value_name = "NAME", conflicts_with = "prompt")]
    pub task: Option<String>,
    /// Put this before each text
    #[arg(long, value_name = "TEXT")]
    pub prompt: Option<String>,
    /// Keep the first dimensions alone, made as long as 1 again [default: all]
    #[arg(long, value_name = "N")]
    pub dimensions: Option<usize>,
}

/// `lapidary bench`.
#[derive(Args)]
#[command(
    after_help = "Example:\n  lapidary bench --model model.gguf --prompt 512 --generate 128 --threads 2 --repeat 5"
)]
pub struct BenchArgs {
    /// Which model, and on what.
    #[command(flatten)]
    pub model: ModelArgs,
    /// Tokens of the prompt
    #[arg(long, value_name = "N", default_value_t = 512)]
    pub prompt: usize,
    /// Tokens generated after it
    #[arg(long, value_name = "N", default_value_t = 128)]
    pub generate: usize,
    /// Tokens in the cache before the measurement
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub depth: usize,
    /// Sequences that decode together: the sum of their tokens is measured, prefill is not
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub sequences: usize,
    /// Measurements, of which the median is printed
    #[arg(long, value_name = "N", default_value_t = 3)]
    pub repeat: usize,
    /// Print one JSON object
    #[arg(long)]
    pub json: bool,
}

/// `lapidary quantize`.
#[derive(Args)]
#[command(
    after_help = "Examples:\n  lapidary quantize ~/models/gemma-3-1b-it gemma-3-1b-it-Q8_0.gguf\n  lapidary quantize model-BF16.gguf model-Q4_0.gguf --type q4_0"
)]
pub struct QuantizeArgs {
    /// A Hugging Face directory or a GGUF file
    pub input: PathBuf,
    /// The GGUF file to write
    pub output: PathBuf,
    /// Mixture of types: f32, f16, bf16, q8_0, q6_k, q5_k_m, q5_k_s, q5_1, q5_0, q4_k_m, q4_k_s,
    /// q4_1, q4_0, iq4_nl, iq4_xs, mxfp4, q3_k_l, q3_k_m, q3_k_s, q2_k
    #[arg(long = "type", value_name = "TYPE", default_value = "q8_0")]
    pub ty: String,
    /// Give every matrix the one type that the mixture is named after
    #[arg(long)]
    pub pure: bool,
    /// A text like what the model will read (.txt, .jsonl, .parquet): where its inputs are large,
    /// weights are kept more exactly. Loads the model
    #[arg(long, value_name = "FILE")]
    pub calibrate: Option<PathBuf>,
    /// A text on which the result's predictions are compared with the source's
    #[arg(long, value_name = "FILE")]
    pub kl: Option<PathBuf>,
    /// Tokens of these texts that are read at most
    #[arg(long, value_name = "N", default_value_t = 16384)]
    pub tokens: usize,
    /// Print type, bits and error of every matrix
    #[arg(long)]
    pub tensors: bool,
    /// Threads that compute [default: one for each core]
    #[arg(long, short, value_name = "N")]
    pub threads: Option<usize>,
}

/// `lapidary train-tokenizer`.
#[derive(Args)]
pub struct TrainTokenizerArgs {
    /// Files and folders: .jsonl, .txt or .parquet, also .gz and .zst
    #[arg(required = true)]
    pub corpus: Vec<PathBuf>,
    /// The folder for the tokenizer's files
    #[arg(long, short, value_name = "DIR")]
    pub out: PathBuf,
    /// Entries of the vocabulary, control tokens and bytes included
    #[arg(long, value_name = "N", default_value_t = 8192)]
    pub vocab: usize,
    /// Share of the corpus's characters that get entries of their own; the rest is written as bytes
    #[arg(long, value_name = "P", default_value_t = 0.9995)]
    pub coverage: f64,
    /// Characters of an entry at most
    #[arg(long, value_name = "N", default_value_t = 16)]
    pub max_length: usize,
    /// Control tokens to keep for later: <unused0>, <unused1>, …
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub unused: usize,
    /// What the files hold, where their names don't say it: jsonl, text or parquet
    #[arg(long, value_name = "FORMAT")]
    pub format: Option<String>,
    /// A broken line is an error, instead of being left out and counted
    #[arg(long)]
    pub strict: bool,
    /// Threads that count words; the result does not depend on them [default: one for each core]
    #[arg(long, short, value_name = "N")]
    pub threads: Option<usize>,
}

/// `lapidary merge`.
#[derive(Args)]
#[command(after_help = "Examples:\n  \
    lapidary merge gemma-3-1b-it runs/lora/adapter gemma-3-1b-mine\n  \
    lapidary merge default runs/gems/adapter gems.gguf")]
pub struct MergeArgs {
    /// The checkpoint that the adapter was trained on; `default` is the built-in model
    pub base: PathBuf,
    /// The folder with adapter_config.json and adapter_model.safetensors
    pub adapter: PathBuf,
    /// What to write: a folder for a Hugging Face base, a .gguf file for a GGUF one
    pub out: PathBuf,
}

/// `lapidary train`.
#[derive(Args)]
#[command(after_help = "Examples:\n  lapidary train --init lora my.toml\n  \
    lapidary train my.toml\n  lapidary train my.toml --resume")]
pub struct TrainArgs {
    /// The configuration, a TOML file
    pub config: Option<PathBuf>,
    /// Write a commented configuration instead: pretrain, sft, lora or dpo
    #[arg(long, value_name = "KIND", conflicts_with_all = ["resume", "strict"])]
    pub init: Option<String>,
    /// Go on from the last checkpoint of the configuration's output
    #[arg(long)]
    pub resume: bool,
    /// Stop at the first broken line or unfit example
    #[arg(long)]
    pub strict: bool,
}

/// `lapidary export`.
#[derive(Args)]
#[command(after_help = "Examples:\n  lapidary export runs/pretrain my-model --format hf\n  \
    lapidary export runs/lora mine.gguf --format gguf --type q4_0")]
pub struct ExportArgs {
    /// The output of a run that has finished
    pub run: PathBuf,
    /// What to write
    pub out: PathBuf,
    /// In which form
    #[arg(long, value_enum)]
    pub format: ExportFormat,
    /// GGUF: type of the weights, as for `quantize` [default: q8_0; a merged GGUF base keeps its own]
    #[arg(long = "type", value_name = "TYPE")]
    pub ty: Option<String>,
}

/// `--format`.
#[derive(ValueEnum, Clone, Copy, PartialEq, Eq)]
pub enum ExportFormat {
    /// A folder of Hugging Face files
    Hf,
    /// A GGUF file
    Gguf,
}
