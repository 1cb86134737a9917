//! What every dialect's request becomes: a prompt, settings, and limits.

use crate::failure::Failure;
use crate::pictures::Conversation;
use lapidary_engine::Sampling;
use serde::de::value::SeqAccessDeserializer;
use serde::de::{SeqAccess, Visitor};
use serde::{Deserialize, Deserializer};
use std::fmt;
use std::marker::PhantomData;
use utoipa::ToSchema;

/// Text to be continued.
#[derive(Debug, Clone, PartialEq)]
pub enum Prompt {
    /// A conversation, in the model's template. When its last turn is the assistant's, that turn is
    /// continued.
    Chat(Conversation),
    /// Plain text, in which nothing is a control token.
    Text(String),
    /// Token ids.
    Ids(Vec<u32>),
}

/// Sampling that a request asks for; the rest is what the checkpoint recommends.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Settings {
    /// See [`Sampling`].
    pub temperature: Option<f32>,
    /// See [`Sampling`].
    pub top_k: Option<usize>,
    /// See [`Sampling`].
    pub top_p: Option<f32>,
    /// See [`Sampling`].
    pub min_p: Option<f32>,
    /// See [`Sampling`].
    pub typical_p: Option<f32>,
    /// See [`Sampling`].
    pub repetition_penalty: Option<f32>,
    /// See [`Sampling`].
    pub presence_penalty: Option<f32>,
    /// See [`Sampling`].
    pub frequency_penalty: Option<f32>,
    /// See [`Sampling`].
    pub logit_bias: Vec<(u32, f32)>,
    /// See [`Sampling`]; without one, a new one for each request.
    pub seed: Option<i64>,
}

impl Settings {
    /// These settings over a checkpoint's `defaults`.
    ///
    /// # Errors
    /// The first setting that is out of its range.
    pub fn over(&self, defaults: &Sampling, seed: u64) -> Result<Sampling, Failure> {
        let sampling = Sampling {
            temperature: self.temperature.unwrap_or(defaults.temperature),
            top_k: self.top_k.unwrap_or(defaults.top_k),
            top_p: self.top_p.unwrap_or(defaults.top_p),
            min_p: self.min_p.unwrap_or(defaults.min_p),
            typical_p: self.typical_p.unwrap_or(defaults.typical_p),
            repetition_penalty: self.repetition_penalty.unwrap_or(defaults.repetition_penalty),
            presence_penalty: self.presence_penalty.unwrap_or(defaults.presence_penalty),
            frequency_penalty: self.frequency_penalty.unwrap_or(defaults.frequency_penalty),
            logit_bias: self.logit_bias.clone(),
            seed: self.seed.map_or(seed, |s| s as u64),
        };
        let wrong = |e: lapidary_engine::SamplingError| {
            Failure::field(e.field, format!("{} is not {}", e.found, e.expected))
        };
        sampling.check().map_err(wrong)?;
        Ok(sampling)
    }
}

/// One prompt to be continued, once or several times.
#[derive(Debug, Clone, PartialEq)]
pub struct Job {
    /// What to continue.
    pub prompt: Prompt,
    /// New tokens at most; without it, what the context has room for.
    pub max_tokens: Option<usize>,
    /// How tokens are chosen.
    pub settings: Settings,
    /// Strings that end the answer and are not part of it.
    pub stop: Vec<String>,
    /// Answers.
    pub choices: usize,
    /// Probabilities are wanted, with so many alternatives for each token.
    pub logprobs: Option<usize>,
}

impl Job {
    /// A job with nothing said but its prompt.
    pub fn new(prompt: Prompt) -> Self {
        Self {
            prompt,
            max_tokens: None,
            settings: Settings::default(),
            stop: Vec::new(),
            choices: 1,
            logprobs: None,
        }
    }
}

/// Answers to one request at most.
pub const MOST_CHOICES: usize = 16;
/// Alternatives of a token at most.
pub const MOST_LOGPROBS: usize = 20;
/// Stop strings of a request at most, and their bytes each.
pub const MOST_STOPS: (usize, usize) = (16, 1024);

/// One value or an array of them.
#[derive(Debug, Clone, Deserialize, ToSchema)]
#[serde(untagged, expecting = "expected one value or an array of them")]
pub enum OneOrMany<T> {
    /// One.
    One(T),
    /// An array.
    Many(Vec<T>),
}

impl<T> OneOrMany<T> {
    /// All of them.
    pub fn into_vec(self) -> Vec<T> {
        match self {
            OneOrMany::One(one) => vec![one],
            OneOrMany::Many(many) => many,
        }
    }
}

/// A text, or an array of parts.
#[derive(Debug, Clone, Deserialize, ToSchema)]
#[serde(untagged, expecting = "expected a string or an array of parts")]
pub enum Said<P> {
    /// Text.
    Text(String),
    /// Parts.
    Parts(Vec<P>),
}

/// Reads a [`Said`] so that errors name the part: of an untagged type they could not.
///
/// # Errors
/// If it is neither, or a part is wrong.
pub fn said<'de, D: Deserializer<'de>, P: Deserialize<'de>>(d: D) -> Result<Said<P>, D::Error> {
    struct Either<P>(PhantomData<P>);
    impl<'de, P: Deserialize<'de>> Visitor<'de> for Either<P> {
        type Value = Said<P>;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("a string or an array of parts")
        }

        fn visit_str<E>(self, text: &str) -> Result<Said<P>, E> {
            Ok(Said::Text(text.to_owned()))
        }

        fn visit_string<E>(self, text: String) -> Result<Said<P>, E> {
            Ok(Said::Text(text))
        }

        fn visit_seq<A: SeqAccess<'de>>(self, parts: A) -> Result<Said<P>, A::Error> {
            Vec::deserialize(SeqAccessDeserializer::new(parts)).map(Said::Parts)
        }
    }
    d.deserialize_any(Either(PhantomData))
}

/// Stop strings of a request, checked.
///
/// # Errors
/// If there are too many, or one is empty or too long.
pub fn stops(field: &str, stop: Option<OneOrMany<String>>) -> Result<Vec<String>, Failure> {
    let stops = stop.map_or_else(Vec::new, OneOrMany::into_vec);
    let (count, bytes) = MOST_STOPS;
    if stops.len() > count {
        return Err(Failure::field(field, format!("{} strings; at most {count}", stops.len())));
    }
    match stops.iter().position(|s| s.is_empty() || s.len() > bytes) {
        Some(i) => Err(Failure::field(
            format!("{field}[{i}]"),
            format!("a stop string of 1 to {bytes} bytes was expected"),
        )),
        None => Ok(stops),
    }
}

/// A count within its limits.
///
/// # Errors
/// If it is not.
pub fn within(
    field: &str,
    n: Option<u64>,
    least: u64,
    most: u64,
) -> Result<Option<usize>, Failure> {
    match n {
        Some(n) if n < least || n > most => {
            Err(Failure::field(field, format!("{n} is not between {least} and {most}")))
        }
        n => Ok(n.map(|n| n as usize)),
    }
}

/// New tokens at most: at least one, and no more than makes sense for any context.
///
/// # Errors
/// If it is 0.
pub fn token_limit(field: &str, n: Option<u64>) -> Result<Option<usize>, Failure> {
    within(field, n, 1, u64::from(u32::MAX))
}
