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
    /// The model ended its turn, or a stop string came.
    Stop,
    /// The limit of new tokens was reached.
    Length,
    /// The context is full.
    Context,
    /// The receiver wanted no more.
    Cancelled,
    /// The request's time was over.
    Deadline,
}

impl Finish {
    /// The name that results carry.
    pub fn name(self) -> &'static str {
        match self {
            Finish::Stop => "stop",
            Finish::Length => "length",
            Finish::Context => "context",
            Finish::Cancelled => "cancelled",
            Finish::Deadline => "deadline",
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
    /// When the context is full, forget the older half and go on, instead of ending; a prompt that
    /// is too long loses its older part. What remains is computed anew, as if the text began there.
    pub context_shift: bool,
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
    /// Tokens, of the prompt first, that were forgotten ([`Stops::context_shift`]).
    pub forgotten: usize,
    /// The time that took.
    pub prefill_time: Duration,
    /// Passes of one token each, after the prompt.
    pub steps: usize,
    /// The time that they took.
    pub decode_time: Duration,
}

/// Continues `prompt`. What the session has of it already is not computed again. `listen` hears
/// each event and may break the loop, with the reason.
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
    listen: &mut dyn FnMut(Event) -> ControlFlow<Finish>,
) -> Result<Generation, SessionError> {
    let context = session.limits().context;
    let kept;
    let (prompt, forgotten) = if prompt.len() <= context {
        (prompt, 0)
    } else if stops.context_shift {
        kept = recent(prompt, context);
        (&kept[..], prompt.len() - kept.len())
    } else {
        return Err(SessionError::ContextFull { wanted: prompt.len(), context });
    };
    let start = Instant::now();
    let prefix = model.info().prefix;
    if prefix {
        // What was computed of it saw another rest.
        session.reset();
    }
    let reused = session.keep_prefix(prompt);
    let mut out = Generation {
        ids: Vec::new(),
        finish: Finish::Length,
        reused,
        prefilled: prompt.len() - reused,
        forgotten,
        prefill_time: Duration::ZERO,
        steps: 0,
        decode_time: Duration::ZERO,
    };
    // Chunk by chunk, so that a long prompt can be cancelled.
    let mut logits = Vec::new();
    let mut next = reused;
    while next < prompt.len() {
        let end = if prefix { prompt.len() } else { session.chunk_end(next, prompt.len()) };
        logits = session.extend(model, ops, &prompt[next..end], false)?;
        next = end;
        if let ControlFlow::Break(why) = listen(Event::Prefilled(session.tokens().len())) {
            out.finish = why;
            out.prefill_time = start.elapsed();
            return Ok(out);
        }
    }
    if logits.is_empty() {
        return Err(SessionError::Empty);
    }
    out.prefill_time = start.elapsed();
    let start = Instant::now();
    out.finish = decode(model, ops, session, logits, sampler, stops, listen, &mut out)?;
    out.decode_time = start.elapsed();
    Ok(out)
}

/// A token at a time, from the logits after the prompt to the end.
#[allow(clippy::too_many_arguments)]
fn decode(
    model: &dyn Model,
    ops: &mut dyn Ops,
    session: &mut Session,
    mut logits: Vec<f32>,
    sampler: &mut Sampler,
    stops: &Stops,
    listen: &mut dyn FnMut(Event) -> ControlFlow<Finish>,
    out: &mut Generation,
) -> Result<Finish, SessionError> {
    while out.ids.len() < stops.max_tokens {
        let id = sampler.sample(&mut logits, session.tokens());
        if stops.ids.contains(&id) {
            return Ok(Finish::Stop);
        }
        out.ids.push(id);
        if let ControlFlow::Break(why) = listen(Event::Token(id)) {
            return Ok(why);
        }
        if out.ids.len() >= stops.max_tokens {
            break;
        }
        let context = session.limits().context;
        if session.tokens().len() < context {
            logits = session.extend(model, ops, &[id], false)?;
        } else if stops.context_shift {
            let mut tokens = recent(session.tokens(), context);
            out.forgotten += session.tokens().len() - tokens.len();
            tokens.push(id);
            session.reset();
            logits = session.extend(model, ops, &tokens, false)?;
        } else {
            return Ok(Finish::Context);
        }
        out.steps += 1;
    }
    Ok(Finish::Length)
}

/// The first token, which often begins a text, and the latest ones: at most half of the context.
fn recent(tokens: &[u32], context: usize) -> Vec<u32> {
    let half = (context / 2).max(1).min(tokens.len());
    let mut kept = vec![tokens[0]];
    kept.extend(&tokens[tokens.len() - (half - 1)..]);
    kept
}
