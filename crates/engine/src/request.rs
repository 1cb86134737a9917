//! What a client asks of the engine, and what it hears back.

use crate::generate::Finish;
use crate::sampling::{Sampling, SamplingError};
use crate::session::Picture;
use std::fmt;
use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;
use std::time::{Duration, Instant};

/// A prompt and what is to be done with it.
#[derive(Debug, Clone)]
pub struct Request {
    /// Token ids; at least one.
    pub prompt: Vec<u32>,
    /// Pictures, which stand in the places of some of those; sorted and apart.
    pub pictures: Vec<Picture>,
    /// What is wanted.
    pub kind: Kind,
    /// How tokens are chosen. The n-th choice depends on the seed, n and the logits alone.
    pub sampling: Sampling,
    /// Tokens that end the answer; they are not shown.
    pub stop_ids: Vec<u32>,
    /// New tokens at most.
    pub max_tokens: usize,
    /// With each token its log-probability and those of so many of the likeliest.
    pub logprobs: Option<usize>,
    /// The adapter that changes the model for this request, by its number; without it, none does.
    pub adapter: Option<u32>,
    /// Only requests of the same owner share what they begin with: that a prompt takes less time
    /// could tell others that it was asked before.
    pub owner: u64,
    /// Higher ones are served first.
    pub priority: i32,
    /// Clients share the engine evenly; requests with the same number share one client's part.
    pub client: u64,
    /// When the answer is of no more use: what is there by then ends with [`Finish::Deadline`].
    pub deadline: Option<Instant>,
}

/// What a request is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Kind {
    /// New tokens.
    #[default]
    Generate,
    /// One vector for the prompt: its hidden states after the last norm, pooled.
    Embed(Pooling),
}

/// How the hidden states of a prompt become one vector.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pooling {
    /// The mean over all tokens.
    Mean,
    /// That of the last token.
    Last,
}

impl Request {
    /// The likeliest continuation of `prompt`, `max_tokens` at most.
    pub fn new(prompt: Vec<u32>, max_tokens: usize) -> Self {
        Self {
            prompt,
            pictures: Vec::new(),
            kind: Kind::Generate,
            sampling: Sampling::default(),
            stop_ids: Vec::new(),
            max_tokens,
            logprobs: None,
            adapter: None,
            owner: 0,
            priority: 0,
            client: 0,
            deadline: None,
        }
    }

    /// A vector for `prompt`.
    pub fn embed(prompt: Vec<u32>, pooling: Pooling) -> Self {
        Self { kind: Kind::Embed(pooling), ..Self::new(prompt, 0) }
    }
}

/// What a client hears of its request. `Done` and `Failed` are the last.
#[derive(Debug, Clone, PartialEq)]
pub enum Event {
    /// More of the prompt has been computed.
    Prefilled {
        /// Tokens of the prompt that are in the cache now.
        done: usize,
        /// Tokens of the prompt.
        total: usize,
        /// Of those done, how many were found in the cache.
        reused: usize,
    },
    /// A token was chosen.
    Token {
        /// Its id.
        id: u32,
        /// Its log-probability before bias, penalties and temperature, if that was asked for.
        logprob: Option<f32>,
        /// The likeliest tokens, the likeliest first, as many as were asked for.
        top: Vec<(u32, f32)>,
    },
    /// The vector of an [`Kind::Embed`] request, `[width]`, not normalised.
    Embedding(Vec<f32>),
    /// The request has ended as it should.
    Done(Summary),
    /// The request has failed through no fault of its own; what was wrong.
    Failed(String),
}

/// What a request came to.
#[derive(Debug, Clone, PartialEq)]
pub struct Summary {
    /// Why it ended.
    pub finish: Finish,
    /// Tokens of the prompt that were found in the cache.
    pub reused: usize,
    /// Tokens of the prompt that were computed.
    pub prefilled: usize,
    /// Tokens that were chosen and shown.
    pub generated: usize,
    /// How often it lost its place in memory and was computed again.
    pub preempted: usize,
    /// How long that took.
    pub timings: Timings,
}

/// Where the time of a request went.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Timings {
    /// From its arrival to its first pass.
    pub queued: Duration,
    /// From its first pass to the first token.
    pub prefill: Duration,
    /// From the first token to the end.
    pub decode: Duration,
}

/// Why a request is not taken. Nothing of it was computed.
#[derive(Debug, Clone, PartialEq)]
pub enum Refusal {
    /// The prompt has no tokens.
    Empty,
    /// A token id beyond the vocabulary.
    UnknownToken {
        /// The id.
        id: u32,
        /// Its place in the prompt.
        index: usize,
        /// Entries of the vocabulary.
        vocab: usize,
    },
    /// The prompt is longer than the context.
    Context {
        /// Tokens of the prompt.
        prompt: usize,
        /// Tokens that fit.
        context: usize,
    },
    /// An adapter that the model was not loaded with.
    UnknownAdapter {
        /// Its number.
        adapter: u32,
        /// How many there are.
        adapters: u32,
    },
    /// Pictures overlap, lie outside of the prompt, have other rows than places, or more than a
    /// pass was planned for.
    Picture {
        /// Which of them.
        index: usize,
        /// Rows that it may have.
        most: usize,
    },
    /// A sampling setting is out of its range.
    Sampling(SamplingError),
    /// Too many requests wait.
    Busy {
        /// Requests that wait.
        queued: usize,
        /// How many may.
        limit: usize,
    },
    /// The engine takes no more requests: it is being stopped.
    Stopping,
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Refusal::Empty => f.write_str("the prompt has no tokens"),
            Refusal::UnknownToken { id, index, vocab } => {
                write!(f, "token {id} (number {index}) is not below the vocabulary's {vocab}")
            }
            Refusal::Context { prompt, context } => write!(
                f,
                "the prompt's {prompt} tokens do not fit in a context of {context}; nothing was cut"
            ),
            Refusal::UnknownAdapter { adapter, adapters } => {
                write!(f, "there is no adapter {adapter}: the model was loaded with {adapters}")
            }
            Refusal::Picture { index, most: 0 } => {
                write!(f, "picture {index}: the model was started to read text alone")
            }
            Refusal::Picture { index, most } => write!(
                f,
                "picture {index} does not lie in the prompt by itself with a place for each of its \
                 rows, {most} at most"
            ),
            Refusal::Sampling(e) => e.fmt(f),
            Refusal::Busy { queued, limit } => {
                write!(f, "{queued} requests wait already, of at most {limit}")
            }
            Refusal::Stopping => f.write_str("the engine is being stopped"),
        }
    }
}

impl std::error::Error for Refusal {}

/// Hears the events of a request, on the engine's thread: it must not block. Breaking ends the
/// request for the reason given; `Done` still comes.
pub type Sink = Box<dyn FnMut(Event) -> ControlFlow<Finish> + Send>;

/// Ends a request from outside, at the next step of the engine.
#[derive(Debug, Clone, Default)]
pub struct Canceller(Arc<AtomicBool>);

impl Canceller {
    /// Ends the request with [`Finish::Cancelled`]. Harmless when it has ended.
    pub fn cancel(&self) {
        self.0.store(true, Ordering::Relaxed);
    }

    /// Whether the request was cancelled.
    pub fn is_cancelled(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

/// The events of a request, for a caller that may block. Dropping it cancels the request.
#[derive(Debug)]
pub struct Ticket {
    pub(crate) events: mpsc::Receiver<Event>,
    pub(crate) canceller: Canceller,
}

impl Ticket {
    /// The next event; `None` after the last one.
    pub fn recv(&self) -> Option<Event> {
        self.events.recv().ok()
    }

    /// Ends the request.
    pub fn cancel(&self) {
        self.canceller.cancel();
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        self.canceller.cancel();
    }
}
