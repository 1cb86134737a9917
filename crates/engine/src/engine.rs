//! The engine: one thread that owns a model, its device and the cache, and serves many requests.

use crate::generate::Finish;
use crate::request::{Canceller, Kind, Refusal, Request, Sink, Ticket};
use crate::scheduler::pass_rows;
use crate::worker::Worker;
use lapidary_model::{Info, Model};
use lapidary_ops::{KvType, Ops};
use std::fmt;
use std::ops::ControlFlow;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::mpsc::{self, Receiver, Sender};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

/// What an engine may use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EngineOptions {
    /// Bytes for keys and values, never exceeded.
    pub memory: usize,
    /// Tokens that one pass takes: prompts are computed in chunks beside the other requests' new
    /// tokens. More is faster for prompts, and makes the others wait longer. When many requests are
    /// computed, the pass takes eight for each, if that is more; of one prompt never more than this.
    pub token_budget: usize,
    /// Requests that are computed at once.
    pub max_sequences: usize,
    /// Requests that may wait.
    pub max_queue: usize,
    /// The type of keys and values.
    pub kv: KvType,
    /// Tokens of a sequence, prompt and answer.
    pub context: usize,
    /// Rows of a picture at most: they go through one pass, whatever the budget. 0: the model does
    /// not see.
    pub picture_rows: usize,
}

impl EngineOptions {
    /// Rows of one sequence in a pass at most.
    pub fn chunk(&self) -> usize {
        self.token_budget.max(self.picture_rows)
    }

    /// The same for a model with these figures: a prompt that sees itself goes through one pass, as a
    /// picture does.
    fn for_model(self, info: &Info) -> Self {
        let picture_rows = if info.prefix { self.context } else { self.picture_rows };
        Self { picture_rows, ..self }
    }
}

impl Default for EngineOptions {
    fn default() -> Self {
        Self {
            memory: 1 << 30,
            token_budget: 256,
            max_sequences: 64,
            max_queue: 1024,
            kv: KvType::F16,
            context: 8192,
            picture_rows: 0,
        }
    }
}

/// What an engine runs.
pub struct Parts {
    /// The model.
    pub model: Box<dyn Model>,
    /// Its device.
    pub ops: Box<dyn Ops + Send>,
    /// Bytes of the weights in memory, for the plan.
    pub weight_bytes: usize,
    /// Adapters that the model was loaded with.
    pub adapters: u32,
}

/// What the engine will hold in memory, decided before it starts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    /// Bytes of weights.
    pub weights: usize,
    /// Bytes for keys and values.
    pub kv: usize,
    /// Bytes of keys and values of one sequence that fills the context.
    pub kv_sequence: usize,
    /// Bytes of activations in the largest pass; an estimate from above.
    pub activations: usize,
    /// Tokens of a sequence.
    pub context: usize,
}

impl Plan {
    /// The plan for a model with these figures.
    ///
    /// # Errors
    /// If an option is absurd, or one sequence that fills the context does not fit in the memory.
    pub fn new(info: &Info, weights: usize, options: &EngineOptions) -> Result<Self, PlanError> {
        let o = &options.for_model(info);
        for (option, value) in
            [("token_budget", o.token_budget), ("max_sequences", o.max_sequences)]
        {
            if value == 0 {
                return Err(PlanError::Zero { option });
            }
        }
        if !(1..=info.context).contains(&o.context) {
            return Err(PlanError::Context { context: o.context, most: info.context });
        }
        let bytes = |tokens| info.kv.bytes(tokens, o.chunk(), o.kv);
        let needed = bytes(o.context);
        if needed > o.memory {
            // The largest context that fits, by halving.
            let (mut fits, mut not) = (0, o.context);
            while fits + 1 < not {
                let middle = fits.midpoint(not);
                *(if bytes(middle) <= o.memory { &mut fits } else { &mut not }) = middle;
            }
            let (context, memory) = (o.context, o.memory);
            return Err(PlanError::Memory { context, needed, memory, fits });
        }
        // Residual, normed and rotated rows, and two of a feed-forward layer of eight times the
        // width; then the logits, and their copy for the sampler.
        // A picture comes on top of what is in the pass before it.
        let rows = pass_rows(o.token_budget, o.max_sequences) + o.picture_rows;
        let rows = rows * info.width * 24;
        let logits = 2 * o.max_sequences * info.vocab;
        Ok(Self {
            weights,
            kv: o.memory,
            kv_sequence: needed,
            activations: 4 * (rows + logits),
            context: o.context,
        })
    }

    /// Bytes in all.
    pub fn total(&self) -> usize {
        self.weights + self.kv + self.activations
    }
}

/// Why there is no plan.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PlanError {
    /// An option that must not be zero.
    Zero {
        /// Its name.
        option: &'static str,
    },
    /// A context that the model was not made for.
    Context {
        /// What was asked for.
        context: usize,
        /// The model's.
        most: usize,
    },
    /// The context does not fit in the memory for keys and values.
    Memory {
        /// The context that was asked for.
        context: usize,
        /// Bytes that it needs.
        needed: usize,
        /// Bytes that there are.
        memory: usize,
        /// The longest context that fits.
        fits: usize,
    },
}

impl fmt::Display for PlanError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            PlanError::Zero { option } => write!(f, "{option}: at least 1 was expected"),
            PlanError::Context { context, most } => {
                write!(f, "a context of {context}: this model takes from 1 to {most} tokens")
            }
            PlanError::Memory { context, needed, memory, fits } => write!(
                f,
                "the keys and values of {context} tokens need {} MiB, and {} MiB are planned for \
                 them; {fits} tokens fit: lower the context or give more memory",
                needed.div_ceil(1 << 20),
                memory >> 20
            ),
        }
    }
}

impl std::error::Error for PlanError {}

/// What the engine has done and is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Stats {
    /// Requests that wait.
    pub queued: usize,
    /// Requests that are being computed.
    pub running: usize,
    /// Bytes of keys and values that running requests hold.
    pub kv_used: usize,
    /// Bytes that are kept for prefixes to come, and can be had at any time.
    pub kv_cached: usize,
    /// Bytes planned.
    pub kv_total: usize,
    /// Passes so far.
    pub steps: u64,
    /// Tokens of prompts that were computed.
    pub prefill_tokens: u64,
    /// Tokens of prompts that were found in the cache.
    pub reused_tokens: u64,
    /// Requests that found some of their prompt in the cache.
    pub prefix_hits: u64,
    /// New tokens.
    pub decode_tokens: u64,
    /// Requests that were refused.
    pub refused: u64,
    /// Requests that have ended.
    pub finished: u64,
    /// Of those, how many were cancelled.
    pub cancelled: u64,
    /// Times that a request lost its place in memory.
    pub preemptions: u64,
    /// Time that passes took in all: planning, the model, sampling, events.
    pub step_time: Duration,
    /// Of that, the model's.
    pub model_time: Duration,
}

/// A request on its way to the engine's thread.
pub(crate) struct Submitted {
    pub request: Request,
    pub sink: Sink,
    pub canceller: Canceller,
    pub arrived: Instant,
    pub place: Place,
}

/// A place in the queue, counted as long as it is held.
pub(crate) struct Place(Arc<AtomicUsize>);

impl Drop for Place {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

enum Command {
    Submit(Box<Submitted>),
    /// Take no more; end when all is done.
    Drain,
    /// End now.
    Stop,
}

/// What the handles share with the thread.
struct Shared {
    /// As of the last step; without what is counted below.
    stats: Mutex<Stats>,
    /// Requests that were submitted and have not started.
    queued: Arc<AtomicUsize>,
    refused: AtomicU64,
    gate: Mutex<Gate>,
}

struct Gate {
    commands: Sender<Command>,
    open: bool,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Shared {
    fn stats(&self) -> MutexGuard<'_, Stats> {
        self.stats.lock().unwrap_or_else(|e| e.into_inner())
    }

    fn gate(&self) -> MutexGuard<'_, Gate> {
        self.gate.lock().unwrap_or_else(|e| e.into_inner())
    }
}

/// A handle of an engine; clones are the same engine. When the last one is dropped, the thread ends
/// what it has begun.
#[derive(Clone)]
pub struct Engine {
    shared: Arc<Shared>,
    info: Info,
    plan: Plan,
    options: EngineOptions,
    adapters: u32,
}

impl Engine {
    /// Starts the thread.
    ///
    /// # Errors
    /// If the options don't fit the model.
    pub fn start(parts: Parts, options: EngineOptions) -> Result<Self, PlanError> {
        let (info, adapters) = (parts.model.info().clone(), parts.adapters);
        let options = options.for_model(&info);
        let plan = Plan::new(&info, parts.weight_bytes, &options)?;
        let (commands, inbox) = mpsc::channel();
        let stats = Stats { kv_total: options.memory, ..Stats::default() };
        let gate = Gate { commands, open: true, thread: None };
        let shared = Arc::new(Shared {
            stats: Mutex::new(stats),
            queued: Arc::default(),
            refused: AtomicU64::new(0),
            gate: Mutex::new(gate),
        });
        // The thread must not keep the channel open that it listens to.
        let board = Arc::downgrade(&shared);
        let worker = Worker::new(parts, options);
        let thread = std::thread::Builder::new().name("lapidary-engine".into()).spawn(move || {
            run(worker, &inbox, &|stats| {
                if let Some(shared) = board.upgrade() {
                    *shared.stats() = stats;
                }
            })
        });
        shared.gate().thread = Some(thread.unwrap_or_else(|e| panic!("no thread: {e}")));
        Ok(Self { shared, info, plan, options, adapters })
    }

    /// Takes a request; its events come through the ticket.
    ///
    /// # Errors
    /// [`Refusal`], with numbers.
    pub fn submit(&self, request: Request) -> Result<Ticket, Refusal> {
        let (sender, events) = mpsc::channel();
        let sink = Box::new(move |event| match sender.send(event) {
            Ok(()) => ControlFlow::Continue(()),
            Err(_) => ControlFlow::Break(Finish::Cancelled),
        });
        let canceller = self.submit_to(request, sink)?;
        Ok(Ticket { events, canceller })
    }

    /// Takes a request; `sink` hears its events on the engine's thread.
    ///
    /// # Errors
    /// [`Refusal`], with numbers.
    pub fn submit_to(&self, request: Request, sink: Sink) -> Result<Canceller, Refusal> {
        let taken = self.check(&request).and_then(|()| self.enqueue(request, sink));
        if taken.is_err() {
            self.shared.refused.fetch_add(1, Ordering::Relaxed);
        }
        taken
    }

    fn enqueue(&self, request: Request, sink: Sink) -> Result<Canceller, Refusal> {
        let gate = self.shared.gate();
        if !gate.open {
            return Err(Refusal::Stopping);
        }
        let (queued, limit) = (self.shared.queued.load(Ordering::Relaxed), self.options.max_queue);
        if queued >= limit {
            return Err(Refusal::Busy { queued, limit });
        }
        self.shared.queued.fetch_add(1, Ordering::Relaxed);
        let place = Place(self.shared.queued.clone());
        let canceller = Canceller::default();
        let arrived = Instant::now();
        let submitted = Submitted { request, sink, canceller: canceller.clone(), arrived, place };
        match gate.commands.send(Command::Submit(Box::new(submitted))) {
            Ok(()) => Ok(canceller),
            Err(_) => Err(Refusal::Stopping),
        }
    }

    /// Whether a request could ever be served.
    ///
    /// # Errors
    /// [`Refusal`], with numbers.
    pub fn check(&self, request: &Request) -> Result<(), Refusal> {
        let r = request;
        if r.prompt.is_empty() {
            return Err(Refusal::Empty);
        }
        let vocab = self.info.vocab;
        if let Some((index, &id)) =
            r.prompt.iter().enumerate().find(|(_, id)| **id as usize >= vocab)
        {
            return Err(Refusal::UnknownToken { id, index, vocab });
        }
        if r.prompt.len() > self.options.context {
            return Err(Refusal::Context { prompt: r.prompt.len(), context: self.options.context });
        }
        if let Some(adapter) = r.adapter.filter(|a| *a >= self.adapters) {
            return Err(Refusal::UnknownAdapter { adapter, adapters: self.adapters });
        }
        self.check_pictures(r)?;
        if r.kind == Kind::Generate {
            r.sampling.check().map_err(Refusal::Sampling)?;
        }
        Ok(())
    }

    fn check_pictures(&self, r: &Request) -> Result<(), Refusal> {
        let most = self.options.picture_rows;
        let mut next = 0;
        for (index, p) in r.pictures.iter().enumerate() {
            let rows = p.rows.len();
            let in_place = next <= p.rows.start && p.rows.end <= r.prompt.len();
            if rows == 0 || rows > most || !in_place || p.features.len() != rows * self.info.width {
                return Err(Refusal::Picture { index, most });
            }
            next = p.rows.end;
        }
        Ok(())
    }

    /// The figures of the model.
    pub fn info(&self) -> &Info {
        &self.info
    }

    /// What it may use.
    pub fn options(&self) -> &EngineOptions {
        &self.options
    }

    /// What it holds in memory.
    pub fn plan(&self) -> &Plan {
        &self.plan
    }

    /// What it has done and is doing.
    pub fn stats(&self) -> Stats {
        let (queued, refused) = (&self.shared.queued, &self.shared.refused);
        Stats {
            queued: queued.load(Ordering::Relaxed),
            refused: refused.load(Ordering::Relaxed),
            ..*self.shared.stats()
        }
    }

    /// Takes no more requests, and waits until those that it has are done.
    pub fn drain(&self) {
        self.end(Command::Drain);
    }

    /// Cancels all requests, and waits until the thread has ended.
    pub fn stop(&self) {
        self.end(Command::Stop);
    }

    fn end(&self, how: Command) {
        let thread = {
            let mut gate = self.shared.gate();
            gate.open = false;
            // An error: the thread has ended already.
            let _ = gate.commands.send(how);
            gate.thread.take()
        };
        if let Some(thread) = thread {
            // A panic has been told to all requests.
            let _ = thread.join();
        }
    }
}

/// The thread: takes commands, makes steps, sleeps when there is nothing to do.
fn run(mut worker: Worker, inbox: &Receiver<Command>, publish: &dyn Fn(Stats)) {
    let mut open = true;
    loop {
        // Asleep when idle; otherwise only what has come meanwhile.
        let mut next =
            if worker.is_idle() && open { inbox.recv().ok() } else { inbox.try_recv().ok() };
        if next.is_none() && worker.is_idle() {
            break;
        }
        while let Some(command) = next {
            match command {
                Command::Submit(s) => worker.push(*s),
                Command::Drain => open = false,
                Command::Stop => {
                    open = false;
                    worker.cancel_all();
                }
            }
            next = inbox.try_recv().ok();
        }
        worker.step();
        publish(worker.stats());
    }
}
