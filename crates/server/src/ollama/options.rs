//! `options`, which several endpoints share.

use crate::failure::Failure;
use crate::fields::{Table, differs, no, yes};
use crate::job::{Job, OneOrMany, Prompt, Settings, stops};
use serde::Deserialize;
use utoipa::ToSchema;

const MACHINE: &str = "the machine's settings are the server's own flags";

/// The fields of `options`.
pub const TABLE: Table = &[
    yes("temperature").note("without it, what the checkpoint recommends"),
    yes("top_k"),
    yes("top_p"),
    yes("min_p"),
    yes("typical_p"),
    differs("repeat_penalty", "over the whole prompt and answer"),
    yes("presence_penalty"),
    yes("frequency_penalty"),
    yes("seed").note("the same seed, the same bytes"),
    yes("stop"),
    differs("num_predict", "-1 and -2: until the context is full"),
    differs("num_ctx", "refused when it is more than the server's context; less has no effect"),
    differs("num_keep", "has no effect: a prompt is never cut"),
    no("repeat_last_n", "penalties look at all tokens").unless(&["-1"]),
    no("tfs_z", "not a sampler of ours").unless(&["1", "1.0"]),
    no("mirostat", "not a sampler of ours").unless(&["0"]),
    no("mirostat_tau", "not a sampler of ours"),
    no("mirostat_eta", "not a sampler of ours"),
    no("penalize_newline", "newlines are tokens like others"),
    no("num_batch", MACHINE),
    no("num_gpu", MACHINE),
    no("main_gpu", MACHINE),
    no("num_thread", MACHINE),
    no("numa", MACHINE).unless(&["false"]),
    no("low_vram", MACHINE).unless(&["false"]),
    no("f16_kv", MACHINE).unless(&["true"]),
    no("logits_all", MACHINE).unless(&["false"]),
    no("vocab_only", MACHINE).unless(&["false"]),
    no("use_mmap", MACHINE).unless(&["true"]),
    no("use_mlock", MACHINE).unless(&["false"]),
    no("embedding_only", MACHINE).unless(&["false"]),
];

/// How the model answers.
#[derive(Debug, Default, Clone, Deserialize, ToSchema)]
#[schema(as = OllamaOptions)]
pub struct Options {
    /// 0 takes the likeliest token.
    pub temperature: Option<f32>,
    /// Only the likeliest so many tokens.
    pub top_k: Option<usize>,
    /// Only the likeliest tokens whose probabilities reach this sum.
    pub top_p: Option<f32>,
    /// Only tokens at least this times as likely as the likeliest.
    pub min_p: Option<f32>,
    /// Only tokens whose information is near what is expected.
    pub typical_p: Option<f32>,
    /// Divides the logits of tokens that occurred.
    pub repeat_penalty: Option<f32>,
    /// Taken from logits whose token occurred in the answer.
    pub presence_penalty: Option<f32>,
    /// Taken from logits as often as their token occurred in the answer.
    pub frequency_penalty: Option<f32>,
    /// The same seed, the same answer.
    pub seed: Option<i64>,
    /// Strings that end the answer.
    pub stop: Option<OneOrMany<String>>,
    /// Tokens of the answer at most.
    pub num_predict: Option<i64>,
    /// Tokens of a sequence.
    pub num_ctx: Option<u64>,
    /// Accepted, without effect.
    pub num_keep: Option<i64>,
}

impl Options {
    /// What is to be computed for `prompt`.
    ///
    /// # Errors
    /// If a value is out of its range.
    pub fn job(&self, prompt: Prompt) -> Result<Job, Failure> {
        let max_tokens = match self.num_predict {
            None | Some(-2 | -1) => None,
            Some(n) if (1..=i64::from(u32::MAX)).contains(&n) => Some(n as usize),
            Some(n) => {
                let message = format!("{n} is neither a number of tokens nor -1");
                return Err(Failure::field("options.num_predict", message));
            }
        };
        Ok(Job {
            max_tokens,
            settings: Settings {
                temperature: self.temperature,
                top_k: self.top_k,
                top_p: self.top_p,
                min_p: self.min_p,
                typical_p: self.typical_p,
                repetition_penalty: self.repeat_penalty,
                presence_penalty: self.presence_penalty,
                frequency_penalty: self.frequency_penalty,
                logit_bias: Vec::new(),
                seed: self.seed,
            },
            stop: stops("options.stop", self.stop.clone())?,
            ..Job::new(prompt)
        })
    }

    /// Checks what depends on the model.
    ///
    /// # Errors
    /// If a longer context is wanted than the server has.
    pub fn check(&self, context: usize) -> Result<(), Failure> {
        match self.num_ctx {
            Some(n) if n > context as u64 => Err(Failure::field(
                "options.num_ctx",
                format!("the server's context has {context} tokens, not {n} (--context)"),
            )),
            _ => Ok(()),
        }
    }
}
