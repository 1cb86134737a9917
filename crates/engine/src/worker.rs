//! The engine thread's side of requests: each is a sequence of its own that takes its turn.

use crate::engine::{EngineOptions, Parts, Place, Stats, Submitted};
use crate::generate::Finish;
use crate::request::{Canceller, Event, Kind, Pooling, Request, Sink, Summary, Timings};
use crate::sampler::Sampler;
use crate::session::{Limits, Session};
use std::collections::VecDeque;
use std::ops::ControlFlow;
use std::time::Instant;

/// A request with its state.
struct Sequence {
    request: Request,
    sink: Sink,
    canceller: Canceller,
    arrived: Instant,
    place: Option<Place>,
    session: Option<Session>,
    sampler: Sampler,
    /// Prompt and answer.
    tokens: Vec<u32>,
    /// Sums of hidden states.
    pooled: Vec<f64>,
    started: Option<Instant>,
    answered: Option<Instant>,
}

/// The requests, and what computes them.
pub(crate) struct Worker {
    parts: Parts,
    options: EngineOptions,
    waiting: VecDeque<Sequence>,
    running: VecDeque<Sequence>,
    stats: Stats,
}

impl Worker {
    pub fn new(parts: Parts, options: EngineOptions) -> Self {
        let stats = Stats { kv_total: options.memory, ..Stats::default() };
        Self { parts, options, waiting: VecDeque::new(), running: VecDeque::new(), stats }
    }

    pub fn is_idle(&self) -> bool {
        self.waiting.is_empty() && self.running.is_empty()
    }

    pub fn stats(&self) -> Stats {
        Stats { running: self.running.len(), ..self.stats }
    }

    pub fn push(&mut self, s: Submitted) {
        let sampler = Sampler::new(s.request.sampling.clone());
        let Submitted { request, mut sink, canceller, arrived, place } = s;
        let sampler = match sampler {
            Ok(sampler) => sampler,
            Err(e) => {
                let _ = sink(Event::Failed(e.to_string()));
                return;
            }
        };
        self.waiting.push_back(Sequence {
            tokens: request.prompt.clone(),
            request,
            sink,
            canceller,
            arrived,
            place: Some(place),
            session: None,
            sampler,
            pooled: Vec::new(),
            started: None,
            answered: None,
        });
    }

    pub fn cancel_all(&mut self) {
        self.waiting.iter().chain(&self.running).for_each(|s| s.canceller.cancel());
    }

    /// Bytes that a sequence may come to need.
    fn needs(&self, s: &Sequence) -> usize {
        let tokens = (s.request.prompt.len() + s.request.max_tokens).min(self.options.context);
        let info = self.parts.model.info();
        info.kv.bytes(tokens, self.options.token_budget, self.options.kv)
    }

    /// Starts what fits, and moves one sequence on.
    pub fn step(&mut self) {
        while let Some(next) = self.waiting.front() {
            let needs = self.needs(next);
            let full = self.running.len() >= self.options.max_sequences
                || self.stats.kv_used + needs > self.options.memory;
            let gone = ended(next);
            if full && gone.is_none() {
                break;
            }
            let Some(mut s) = self.waiting.pop_front() else { break };
            s.place = None;
            if let Some(why) = gone {
                self.finish(s, why);
                continue;
            }
            let o = self.options;
            let limits = Limits { context: o.context, chunk: o.token_budget, kv: o.kv };
            s.session = Some(Session::new(&self.parts.model.info().kv, limits));
            s.started = Some(Instant::now());
            self.stats.kv_used += needs;
            self.running.push_back(s);
        }
        let Some(mut s) = self.running.pop_front() else { return };
        self.stats.steps += 1;
        let why = ended(&s).or_else(|| self.advance(&mut s));
        match why {
            None => self.running.push_back(s),
            Some(why) => {
                self.stats.kv_used -= self.needs(&s);
                self.finish(s, why);
            }
        }
    }

    fn finish(&mut self, mut s: Sequence, finish: Finish) {
        self.stats.finished += 1;
        self.stats.cancelled += u64::from(finish == Finish::Cancelled);
        let now = Instant::now();
        let started = s.started.unwrap_or(now);
        let answered = s.answered.unwrap_or(now);
        let prompt = s.request.prompt.len();
        let done = s.session.as_ref().map_or(0, |s| s.tokens().len());
        let summary = Summary {
            finish,
            reused: 0,
            prefilled: done.min(prompt),
            generated: s.tokens.len() - prompt,
            preempted: 0,
            timings: Timings {
                queued: started - s.arrived,
                prefill: answered - started,
                decode: now - answered,
            },
        };
        let _ = (s.sink)(Event::Done(summary));
    }

    /// One chunk of the prompt or one token; why the sequence has ended.
    fn advance(&mut self, s: &mut Sequence) -> Option<Finish> {
        let session = s.session.as_mut()?;
        let done = session.tokens().len();
        let chunk = &s.tokens[done..s.tokens.len().min(done + self.options.token_budget)];
        let (model, ops) = (&*self.parts.model, &mut *self.parts.ops);
        let before = done.max(s.request.prompt.len());
        self.stats.decode_tokens += (done + chunk.len()).saturating_sub(before) as u64;
        self.stats.prefill_tokens += (before.min(done + chunk.len()) - done) as u64;
        let out = match s.request.kind {
            Kind::Generate => session.extend(model, ops, chunk, false),
            Kind::Embed(_) => session.states(model, ops, chunk),
        };
        let mut out = match out {
            Ok(out) => out,
            Err(e) => {
                let _ = (s.sink)(Event::Failed(e.to_string()));
                return Some(Finish::Cancelled);
            }
        };
        let (now, total) = (done + chunk.len(), s.request.prompt.len());
        if let Kind::Embed(pooling) = s.request.kind {
            pool(&mut s.pooled, &out, model.info().width, pooling);
        }
        if now <= total {
            let told = (s.sink)(Event::Prefilled { done: now, total, reused: 0 });
            if let ControlFlow::Break(why) = told {
                return Some(why);
            }
        }
        if now < s.tokens.len() {
            return None;
        }
        s.answered.get_or_insert_with(Instant::now);
        match s.request.kind {
            Kind::Generate => choose(s, &mut out, self.options.context),
            Kind::Embed(pooling) => {
                let by = if pooling == Pooling::Mean { total as f64 } else { 1.0 };
                let vector = s.pooled.iter().map(|x| (x / by) as f32).collect();
                let told = (s.sink)(Event::Embedding(vector));
                Some(told.break_value().unwrap_or(Finish::Stop))
            }
        }
    }
}

/// Whether a request has ended for reasons outside of it.
fn ended(s: &Sequence) -> Option<Finish> {
    if s.canceller.is_cancelled() {
        return Some(Finish::Cancelled);
    }
    s.request.deadline.is_some_and(|d| Instant::now() >= d).then_some(Finish::Deadline)
}

/// The next token from its logits; why the answer ends with it.
fn choose(s: &mut Sequence, logits: &mut [f32], context: usize) -> Option<Finish> {
    let generated = |s: &Sequence| s.tokens.len() - s.request.prompt.len();
    if generated(s) >= s.request.max_tokens {
        return Some(Finish::Length);
    }
    let raw = s.request.logprobs.map(|n| (n, logits.to_vec()));
    let id = s.sampler.sample(logits, &s.tokens);
    if s.request.stop_ids.contains(&id) {
        return Some(Finish::Stop);
    }
    let computed = s.tokens.len();
    s.tokens.push(id);
    let (logprob, top) = match raw {
        Some((n, raw)) => {
            let log = crate::sampler::LogProbabilities::new(&raw);
            (Some(log.of(id)), log.top(n))
        }
        None => (None, Vec::new()),
    };
    if let ControlFlow::Break(why) = (s.sink)(Event::Token { id, logprob, top }) {
        return Some(why);
    }
    if generated(s) >= s.request.max_tokens {
        return Some(Finish::Length);
    }
    (computed >= context).then_some(Finish::Context)
}

/// Adds the hidden states of a chunk, row by row: the sum does not depend on the chunks.
fn pool(sum: &mut Vec<f64>, states: &[f32], width: usize, pooling: Pooling) {
    sum.resize(width, 0.0);
    for row in states.chunks_exact(width) {
        if pooling == Pooling::Last {
            sum.fill(0.0);
        }
        sum.iter_mut().zip(row).for_each(|(s, x)| *s += f64::from(*x));
    }
}
