//! The plain loop: a prompt, then one token at a time.

use crate::sampler::Sampler;
use crate::session::{Session, SessionError};
use lapidary_model::Model;
use lapidary_ops::Ops;
use std::ops::ControlFlow;
use std::time::{Duration, Instant};

/// Why a generation ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Finish {
    /// The model ended its turn.
    Stop,
    /// The limit of new tokens was reached.
    Length,
    /// The context is full.
    Context,
    /// The receiver wanted no more.
    Cancelled,
}

impl Finish {
    /// The name that results carry.
    pub fn name(self) -> &'static str {
        match self {
            Finish::Stop => "stop",
            Finish::Length => "length",
            Finish::Context => "context",
            Finish::Cancelled => "cancelled",
        }
    }
}

/// What happens during a generation.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Event {
    /// So many tokens of the prompt have been computed.
    Prefilled(usize),
    /// A token was chosen. Tokens that end the turn are not shown.
    Token(u32),
}

/// When a generation ends by itself.
#[derive(Debug, Clone, Default)]
pub struct Stops {
    /// Tokens that end the turn.
    pub ids: Vec<u32>,
    /// New tokens at most.
    pub max_tokens: usize,
}

/// What a generation did.
#[derive(Debug, Clone, PartialEq)]
pub struct Generation {
    /// The new tokens, without the one that ended the turn.
    pub ids: Vec<u32>,
    /// Why it ended.
    pub finish: Finish,
    /// Tokens of the prompt that were still in the cache.
    pub reused: usize,
    /// Tokens of the prompt that were computed.
    pub prefilled: usize,
    /// The time that took.
    pub prefill_time: Duration,
    /// Passes of one token each, after the prompt.
    pub steps: usize,
    /// The time that they took.
    pub decode_time: Duration,
}

/// Continues `prompt`. What the session has of it already is not computed again. `listen` hears
/// each event and may break the loop.
///
/// # Errors
/// If the prompt does not fit or names unknown tokens.
pub fn generate(
    model: &dyn Model,
    ops: &mut dyn Ops,
    session: &mut Session,
    prompt: &[u32],
    sampler: &mut Sampler,
    stops: &Stops,
    listen: &mut dyn FnMut(Event) -> ControlFlow<()>,
) -> Result<Generation, SessionError> {
    let context = session.limits().context;
    if prompt.len() > context {
        return Err(SessionError::ContextFull { wanted: prompt.len(), context });
    }
    let start = Instant::now();
    let reused = session.keep_prefix(prompt);
    let mut out = Generation {
        ids: Vec::new(),
        finish: Finish::Length,
        reused,
        prefilled: prompt.len() - reused,
        prefill_time: Duration::ZERO,
        steps: 0,
        decode_time: Duration::ZERO,
    };
    // Chunk by chunk, so that a long prompt can be cancelled.
    let mut logits = Vec::new();
    for chunk in prompt[reused..].chunks(session.limits().chunk.max(1)) {
        logits = session.extend(model, ops, chunk, false)?;
        if listen(Event::Prefilled(session.tokens().len())).is_break() {
            out.finish = Finish::Cancelled;
            out.prefill_time = start.elapsed();
            return Ok(out);
        }
    }
    if logits.is_empty() {
        return Err(SessionError::Empty);
    }
    out.prefill_time = start.elapsed();
    let start = Instant::now();
    out.finish = loop {
        if out.ids.len() >= stops.max_tokens {
            break Finish::Length;
        }
        let id = sampler.sample(&mut logits, session.tokens());
        if stops.ids.contains(&id) {
            break Finish::Stop;
        }
        out.ids.push(id);
        if listen(Event::Token(id)).is_break() {
            break Finish::Cancelled;
        }
        if out.ids.len() >= stops.max_tokens {
            break Finish::Length;
        }
        if session.tokens().len() >= context {
            break Finish::Context;
        }
        logits = session.extend(model, ops, &[id], false)?;
        out.steps += 1;
    };
    out.decode_time = start.elapsed();
    Ok(out)
}
