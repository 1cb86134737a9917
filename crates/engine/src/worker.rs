//! The engine thread's side of requests: plans become passes, and passes become events.

use crate::batch;
use crate::blocks::{Blocks, Space};
use crate::engine::{EngineOptions, Parts, Place, Stats, Submitted};
use crate::generate::Finish;
use crate::request::{Canceller, Event, Kind, Pooling, Request, Sink, Summary, Timings};
use crate::sampler::{LogProbabilities, Sampler};
use crate::scheduler::{New, Part, Plan, Scheduler};
use lapidary_ops::{KvCache, OutOfMemory, Rows};
use std::collections::{BTreeMap, HashMap};
use std::ops::ControlFlow;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Mutex;
use std::time::Instant;

/// Logits of all requests from which on sampling is worth a second thread.
const SHARED: usize = 16 * 1024;

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
            scheduler: Scheduler::new(
                blocks,
                options.token_budget,
                options.max_sequences,
                options.picture_rows,
            ),
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
        let (priority, client) = (request.priority, request.client);
        let space = Space { adapter: request.adapter, owner: request.owner };
        let pictures = request.pictures.iter().map(|p| (p.rows.clone(), p.digest)).collect();
        let whole = self.parts.model.info().prefix;
        self.scheduler.push(New { id, prompt, pictures, whole, priority, client, reuse, space });
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
        let rows = self.rows(&plan);
        let adapters = (self.parts.adapters > 0).then(|| self.adapters(&plan));
        let compute = Instant::now();
        let (model, ops) = (&*self.parts.model, &mut *self.parts.ops);
        let wanted = batch::Wanted { logits: &logits, states: &states, adapters };
        let out = batch::pass(model, ops, &rows, wanted, &mut self.cache);
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

    /// The rows of all parts, with what stands for pictures.
    fn rows(&self, plan: &Plan) -> Rows {
        let mut rows = batch::rows(plan, &self.scheduler);
        let whole = self.parts.model.info().prefix;
        let mut first = 0;
        for part in &plan.parts {
            let pictures = self.live.get(&part.id).map_or(&[][..], |l| &l.request.pictures);
            pictures.iter().for_each(|p| p.lay(&part.tokens, first, &mut rows));
            if let Some(live) = self.live.get(&part.id).filter(|_| whole && part.tokens.start == 0)
            {
                rows.together.retain(|r| r.start < first);
                rows.together.push(first..first + live.request.prompt.len());
            }
            first += part.tokens.len();
        }
        rows
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

    /// The adapter of each row.
    fn adapters(&self, plan: &Plan) -> Vec<Option<u32>> {
        let mut out = Vec::new();
        for part in &plan.parts {
            let adapter = self.live.get(&part.id).and_then(|l| l.request.adapter);
            out.resize(out.len() + part.tokens.len(), adapter);
        }
        out
    }

    /// The next token of every request whose logits are there, in the order of the parts.
    fn choose(&mut self, plan: &Plan, logits: &mut [f32]) -> Vec<Option<Choice>> {
        let vocab = self.parts.model.info().vocab;
        let mut rows = logits.chunks_exact_mut(vocab);
        // Borrowed once each, in the order of their numbers.
        let mut lives: HashMap<u64, &mut Live> =
            self.live.iter_mut().map(|(id, live)| (*id, live)).collect();
        let tasks: Vec<_> = (plan.parts.iter())
            .map(|part| {
                let live = lives.remove(&part.id).filter(|l| part.last && l.generates())?;
                let tokens = &*self.scheduler.get(part.id)?.tokens;
                let (row, chosen) = (rows.next()?, None);
                Some(Mutex::new(Task { live, tokens, row, chosen }))
            })
            .collect();
        let busy: Vec<_> = tasks.iter().flatten().collect();
        let run = |i: usize| busy[i].lock().unwrap_or_else(|e| e.into_inner()).run();
        if busy.len() * vocab < SHARED {
            (0..busy.len()).for_each(run);
        } else {
            self.parts.ops.share(busy.len(), &run);
        }
        let chosen = |t: Mutex<Task>| t.into_inner().unwrap_or_else(|e| e.into_inner()).chosen;
        tasks.into_iter().map(|t| t.and_then(chosen)).collect()
    }

    /// Events of every part of a pass, and the tokens that follow from it.
    fn tell(&mut self, plan: &Plan, mut out: batch::Output) {
        let chosen = self.choose(plan, &mut out.logits);
        let width = self.parts.model.info().width;
        let mut states = out.states.chunks_exact(width);
        for (part, choice) in plan.parts.iter().zip(chosen) {
            let Some(l) = self.live.get_mut(&part.id) else { continue };
            let (prompt, rows) = (l.request.prompt.len(), part.tokens.len());
            if rows > 1 || part.tokens.start < prompt {
                self.stats.prefill_tokens += rows as u64;
            }
            l.collect(part, &mut states, width);
            let mut end = l.tell_progress(part.tokens.end);
            if part.last && end.is_none() {
                l.answered.get_or_insert_with(Instant::now);
                end = match (l.request.kind, choice) {
                    (Kind::Embed(pooling), _) => Some(l.tell_vector(pooling)),
                    (Kind::Generate, None) => Some(Finish::Length),
                    (Kind::Generate, Some(c)) if l.request.stop_ids.contains(&c.id) => {
                        Some(Finish::Stop)
                    }
                    (Kind::Generate, Some(c)) => {
                        let full = part.tokens.end >= self.options.context;
                        self.stats.decode_tokens += 1;
                        self.scheduler.append(part.id, c.id);
                        l.tell_token(c, full)
                    }
                };
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

/// A token as it was chosen.
struct Choice {
    id: u32,
    logprob: Option<f32>,
    top: Vec<(u32, f32)>,
}

/// The choice of one token.
struct Task<'a> {
    live: &'a mut Live,
    /// Prompt and answer so far.
    tokens: &'a [u32],
    /// Its logits, `[vocab]`.
    row: &'a mut [f32],
    chosen: Option<Choice>,
}

impl Task<'_> {
    fn run(&mut self) {
        let l = &mut *self.live;
        if l.generated >= l.request.max_tokens {
            return;
        }
        // The sampler changes what it reads; log-probabilities are those of the model.
        let raw = l.request.logprobs.map(|n| (n, self.row.to_vec()));
        let id = l.sampler.sample(self.row, self.tokens);
        let (logprob, top) = match &raw {
            Some((n, raw)) => {
                let log = LogProbabilities::new(raw);
                (Some(log.of(id)), log.top(*n))
            }
            None => (None, Vec::new()),
        };
        self.chosen = Some(Choice { id, logprob, top });
    }
}

impl Live {
    fn generates(&self) -> bool {
        self.request.kind == Kind::Generate
    }

    /// Tells how much of the prompt is done, if that is news.
    fn tell_progress(&mut self, end: usize) -> Option<Finish> {
        let total = self.request.prompt.len();
        let done = end.min(total);
        if done <= self.told {
            return None;
        }
        self.told = done;
        (self.sink)(Event::Prefilled { done, total, reused: self.reused }).break_value()
    }

    /// Shows a token; why the answer ends with it. `full`: it is the last that the context takes.
    fn tell_token(&mut self, choice: Choice, full: bool) -> Option<Finish> {
        let Choice { id, logprob, top } = choice;
        self.generated += 1;
        match (self.sink)(Event::Token { id, logprob, top }) {
            ControlFlow::Break(why) => Some(why),
            ControlFlow::Continue(()) if self.generated >= self.request.max_tokens => {
                Some(Finish::Length)
            }
            ControlFlow::Continue(()) => full.then_some(Finish::Context),
        }
    }

    /// Takes its hidden states out of those of a pass.
    fn collect<'a>(
        &mut self,
        part: &Part,
        states: &mut impl Iterator<Item = &'a [f32]>,
        width: usize,
    ) {
        match self.request.kind {
            Kind::Embed(Pooling::Mean) => {
                pool(&mut self.pooled, states.take(part.tokens.len()), width)
            }
            Kind::Embed(Pooling::Last) if part.last => {
                pool(&mut self.pooled, states.take(1), width)
            }
            _ => {}
        }
    }

    fn tell_vector(&mut self, pooling: Pooling) -> Finish {
        let rows = if pooling == Pooling::Mean { self.request.prompt.len() } else { 1 };
        let vector = self.pooled.iter().map(|x| (x / rows as f64) as f32).collect();
        (self.sink)(Event::Embedding(vector)).break_value().unwrap_or(Finish::Stop)
    }
}

/// Adds hidden states row by row: the sum does not depend on how they came.
fn pool<'a>(sum: &mut Vec<f64>, states: impl Iterator<Item = &'a [f32]>, width: usize) {
    sum.resize(width, 0.0);
    for row in states {
        sum.iter_mut().zip(row).for_each(|(s, x)| *s += f64::from(*x));
    }
}
