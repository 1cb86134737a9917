//! The engine thread's side of requests: plans become passes, and passes become events.

use crate::batch;
use crate::blocks::Blocks;
use crate::engine::{EngineOptions, Parts, Place, Stats, Submitted};
use crate::generate::Finish;
use crate::request::{Canceller, Event, Kind, Pooling, Request, Sink, Summary, Timings};
use crate::sampler::{LogProbabilities, Sampler};
use crate::scheduler::{Plan, Scheduler};
use lapidary_ops::{KvCache, OutOfMemory};
use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Instant;

/// A request with its state; its tokens are the scheduler's.
struct Live {
    request: Request,
    sink: Sink,
    canceller: Canceller,
    sampler: Sampler,
    /// Its place in the queue, until it starts.
    place: Option<Place>,
    /// Tokens of the prompt that were found in the cache when it started.
    reused: usize,
    /// Tokens of the prompt that its client was told of.
    told: usize,
    generated: usize,
    preempted: usize,
    /// Sums of hidden states, `[width]`.
    pooled: Vec<f64>,
    arrived: Instant,
    started: Option<Instant>,
    answered: Option<Instant>,
}

/// The requests, and what computes them.
pub(crate) struct Worker {
    parts: Parts,
    options: EngineOptions,
    cache: KvCache,
    scheduler: Scheduler,
    /// By number, in the order of arrival.
    live: BTreeMap<u64, Live>,
    next: u64,
    stats: Stats,
}

impl Worker {
    pub fn new(parts: Parts, options: EngineOptions) -> Self {
        let layout = &parts.model.info().kv;
        let blocks = Blocks::new(layout, options.kv, options.memory);
        Self {
            cache: KvCache::new(layout, options.kv),
            scheduler: Scheduler::new(blocks, options.token_budget, options.max_sequences),
            parts,
            options,
            live: BTreeMap::new(),
            next: 0,
            stats: Stats { kv_total: options.memory, ..Stats::default() },
        }
    }

    pub fn is_idle(&self) -> bool {
        self.live.is_empty()
    }

    pub fn stats(&self) -> Stats {
        let blocks = &self.scheduler.blocks;
        Stats {
            running: self.scheduler.running(),
            kv_used: blocks.used(),
            kv_cached: blocks.cached(),
            ..self.stats
        }
    }

    pub fn push(&mut self, s: Submitted) {
        let Submitted { request, mut sink, canceller, arrived, place } = s;
        let sampler = match Sampler::new(request.sampling.clone()) {
            Ok(sampler) => sampler,
            Err(e) => {
                let _ = sink(Event::Failed(e.to_string()));
                return;
            }
        };
        let id = self.next;
        self.next += 1;
        // A mean is over states, and the cache has none.
        let reuse = request.kind != Kind::Embed(Pooling::Mean);
        let prompt = request.prompt.clone();
        self.scheduler.push(id, prompt, request.priority, request.client, reuse);
        let live = Live {
            request,
            sink,
            canceller,
            sampler,
            place: Some(place),
            reused: 0,
            told: 0,
            generated: 0,
            preempted: 0,
            pooled: Vec::new(),
            arrived,
            started: None,
            answered: None,
        };
        self.live.insert(id, live);
    }

    pub fn cancel_all(&mut self) {
        self.live.values().for_each(|l| l.canceller.cancel());
    }

    /// One pass, and the events that it gives rise to. A panic on the way is a bug of a model or a
    /// sink: all requests are told, and the engine goes on.
    pub fn step(&mut self) {
        let result = catch_unwind(AssertUnwindSafe(|| self.try_step()));
        match result {
            Ok(Ok(())) => {}
            Ok(Err(e)) => self.fail(&format!("key-value cache: {e}")),
            Err(_) => self.fail("an error inside the engine, which is reported on its terminal"),
        }
    }

    fn fail(&mut self, why: &str) {
        let layout = &self.parts.model.info().kv;
        self.cache = KvCache::new(layout, self.options.kv);
        self.scheduler.reset(Blocks::new(layout, self.options.kv, self.options.memory));
        for (_, mut live) in std::mem::take(&mut self.live) {
            self.stats.finished += 1;
            let event = Event::Failed(why.to_owned());
            // The sink itself may be what panicked.
            let _ = catch_unwind(AssertUnwindSafe(|| (live.sink)(event)));
        }
    }

    fn try_step(&mut self) -> Result<(), OutOfMemory> {
        self.drop_ended();
        let begin = Instant::now();
        let plan = self.scheduler.plan();
        self.note(&plan, begin);
        if plan.parts.is_empty() {
            return Ok(());
        }
        batch::follow(&mut self.cache, &mut self.scheduler.blocks)?;
        let (logits, states) = self.wanted(&plan);
        let rows = batch::rows(&plan, &self.scheduler);
        let compute = Instant::now();
        let (model, ops) = (&*self.parts.model, &mut *self.parts.ops);
        let out = batch::pass(model, ops, &rows, &logits, &states, &mut self.cache);
        self.stats.model_time += compute.elapsed();
        self.scheduler.commit(&plan);
        self.tell(&plan, out);
        self.stats.steps += 1;
        self.stats.step_time += begin.elapsed();
        Ok(())
    }

    /// Ends requests that were cancelled or whose time is over.
    fn drop_ended(&mut self) {
        let now = Instant::now();
        let ended = |l: &Live| {
            if l.canceller.is_cancelled() {
                return Some(Finish::Cancelled);
            }
            l.request.deadline.is_some_and(|d| now >= d).then_some(Finish::Deadline)
        };
        let ended: Vec<_> = self.live.iter().filter_map(|(id, l)| Some((*id, ended(l)?))).collect();
        ended.into_iter().for_each(|(id, why)| self.finish(id, why));
    }

    /// Writes down who has started and who has lost its place.
    fn note(&mut self, plan: &Plan, now: Instant) {
        for (id, reused) in &plan.started {
            let Some(l) = self.live.get_mut(id) else { continue };
            l.place = None;
            l.pooled.clear();
            if l.started.is_none() {
                l.started = Some(now);
                l.reused = *reused;
                l.told = *reused;
                self.stats.reused_tokens += *reused as u64;
                self.stats.prefix_hits += u64::from(*reused > 0);
            }
        }
        for id in &plan.preempted {
            self.stats.preemptions += 1;
            if let Some(l) = self.live.get_mut(id) {
                l.preempted += 1;
            }
        }
    }

    /// The rows whose logits are wanted, and those whose states are.
    fn wanted(&self, plan: &Plan) -> (Vec<u32>, Vec<u32>) {
        let (mut logits, mut states) = (Vec::new(), Vec::new());
        let mut row = 0;
        for part in &plan.parts {
            let end = row + part.tokens.len() as u32;
            match self.live.get(&part.id).map(|l| l.request.kind) {
                Some(Kind::Embed(Pooling::Mean)) => states.extend(row..end),
                Some(Kind::Embed(Pooling::Last)) if part.last => states.push(end - 1),
                Some(Kind::Generate) if part.last => logits.push(end - 1),
                _ => {}
            }
            row = end;
        }
        (logits, states)
    }

    /// Events of every part of a pass, and the tokens that follow from it.
    fn tell(&mut self, plan: &Plan, mut out: batch::Output) {
        let info = self.parts.model.info();
        let (vocab, width) = (info.vocab, info.width);
        let mut logits = out.logits.chunks_exact_mut(vocab);
        let mut states = out.states.chunks_exact(width);
        for part in &plan.parts {
            let Some(l) = self.live.get_mut(&part.id) else { continue };
            let prompt = l.request.prompt.len();
            let rows = part.tokens.len();
            if rows > 1 || part.tokens.start < prompt {
                self.stats.prefill_tokens += rows as u64;
            }
            let mut end = match l.request.kind {
                Kind::Embed(Pooling::Mean) => {
                    pool(&mut l.pooled, states.by_ref().take(rows), width);
                    None
                }
                _ => None,
            };
            let done = part.tokens.end.min(prompt);
            if done > l.told {
                l.told = done;
                let event = Event::Prefilled { done, total: prompt, reused: l.reused };
                end = (l.sink)(event).break_value();
            }
            if part.last {
                l.answered.get_or_insert_with(Instant::now);
                let last = match l.request.kind {
                    Kind::Generate => {
                        let Some(row) = logits.next() else { continue };
                        let Some(s) = self.scheduler.get(part.id) else { continue };
                        match end {
                            None => choose(l, row, &s.tokens, self.options.context),
                            Some(why) => (None, Some(why)),
                        }
                    }
                    Kind::Embed(pooling) => {
                        if pooling == Pooling::Last {
                            pool(&mut l.pooled, states.by_ref().take(1), width);
                        }
                        let by = if pooling == Pooling::Mean { prompt as f64 } else { 1.0 };
                        let vector = l.pooled.iter().map(|x| (x / by) as f32).collect();
                        let told = (l.sink)(Event::Embedding(vector));
                        (None, Some(told.break_value().unwrap_or(Finish::Stop)))
                    }
                };
                end = end.or(last.1);
                if let Some(id) = last.0 {
                    self.stats.decode_tokens += 1;
                    self.scheduler.append(part.id, id);
                }
            }
            if let Some(why) = end {
                self.finish(part.id, why);
            }
        }
    }

    fn finish(&mut self, id: u64, finish: Finish) {
        self.scheduler.remove(id);
        let Some(mut l) = self.live.remove(&id) else { return };
        self.stats.finished += 1;
        self.stats.cancelled += u64::from(finish == Finish::Cancelled);
        let now = Instant::now();
        let started = l.started.unwrap_or(now);
        let answered = l.answered.unwrap_or(now);
        let timings = Timings {
            queued: started - l.arrived,
            prefill: answered - started,
            decode: now - answered,
        };
        let _ = (l.sink)(Event::Done(Summary {
            finish,
            reused: l.reused,
            prefilled: l.told - l.reused,
            generated: l.generated,
            preempted: l.preempted,
            timings,
        }));
    }
}

/// The next token from its logits, and why the answer ends with it.
fn choose(
    l: &mut Live,
    logits: &mut [f32],
    before: &[u32],
    context: usize,
) -> (Option<u32>, Option<Finish>) {
    let max = l.request.max_tokens;
    if l.generated >= max {
        return (None, Some(Finish::Length));
    }
    let raw = l.request.logprobs.map(|n| (n, logits.to_vec()));
    let id = l.sampler.sample(logits, before);
    if l.request.stop_ids.contains(&id) {
        return (None, Some(Finish::Stop));
    }
    l.generated += 1;
    let (logprob, top) = match &raw {
        Some((n, raw)) => {
            let log = LogProbabilities::new(raw);
            (Some(log.of(id)), log.top(*n))
        }
        None => (None, Vec::new()),
    };
    let end = match (l.sink)(Event::Token { id, logprob, top }) {
        ControlFlow::Break(why) => Some(why),
        ControlFlow::Continue(()) if l.generated >= max => Some(Finish::Length),
        ControlFlow::Continue(()) => (before.len() >= context).then_some(Finish::Context),
    };
    (Some(id), end)
}

/// Adds hidden states row by row: the sum does not depend on how they came.
fn pool<'a>(sum: &mut Vec<f64>, states: impl Iterator<Item = &'a [f32]>, width: usize) {
    sum.resize(width, 0.0);
    for row in states {
        sum.iter_mut().zip(row).for_each(|(s, x)| *s += f64::from(*x));
    }
}
