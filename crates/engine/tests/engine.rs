//! The engine against the plain loop: the same bits, whatever else it does at the time.

mod tiny;

use lapidary_engine::request::{Event, Kind, Pooling, Refusal, Request, Ticket};
use lapidary_engine::{
    Engine, EngineOptions, Finish, Limits, LogProbabilities, Parts, PlanError, Sampler, Sampling,
    Session, Stats,
};
use lapidary_formats::Checkpoint;
use lapidary_model::{Adapters, Loaded, load_adapted};
use lapidary_ops::{Cpu, Isa, KvType, Pool, Precision};
use proptest::prelude::*;
use std::path::Path;
use std::sync::Arc;

/// The context of every engine here.
const CONTEXT: usize = 320;

/// A model and its device.
struct Bench {
    loaded: Loaded,
    cpu: Cpu,
    adapters: u32,
}

impl Bench {
    /// "default", a family of [`tiny`], or a path.
    fn open(model: &str, threads: usize) -> Self {
        let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../models/default-Q8_0.gguf");
        let open = |path: &Path| Checkpoint::open(path).unwrap_or_else(|e| panic!("{e}"));
        let checkpoint = match model {
            "default" => open(&file),
            path if path.contains('/') => open(Path::new(path)),
            family => tiny::checkpoint(family),
        };
        Self::load(&checkpoint, threads, &[])
    }

    fn load(checkpoint: &Checkpoint, threads: usize, adapters: &[Adapters]) -> Self {
        let mut cpu = Cpu::new(Isa::detect(), Arc::new(Pool::new(threads)), Precision::Fast);
        let loaded = load_adapted(checkpoint, &mut cpu, adapters).unwrap_or_else(|e| panic!("{e}"));
        Self { loaded, cpu, adapters: adapters.len() as u32 }
    }

    fn engine(self, options: EngineOptions) -> Engine {
        let Self { loaded, cpu, adapters } = self;
        let weight_bytes = loaded.step_bytes;
        let parts = Parts { model: loaded.model, ops: Box::new(cpu), weight_bytes, adapters };
        Engine::start(parts, options).unwrap_or_else(|e| panic!("{e}"))
    }

    /// Bytes of one sequence that fills the context.
    fn sequence(&self, options: &EngineOptions) -> usize {
        self.loaded.model.info().kv.bytes(options.context, options.token_budget, options.kv)
    }

    /// What the plain loop makes of a request.
    fn plain(&mut self, request: &Request, kv: KvType) -> Answer {
        let limits = Limits { context: CONTEXT, chunk: 512, kv };
        let mut session = Session::new(&self.loaded.model.info().kv, limits);
        let mut sampler = Sampler::new(request.sampling.clone()).unwrap_or_else(|e| panic!("{e}"));
        let mut shown = Vec::new();
        let mut ids = request.prompt.clone();
        while shown.len() < request.max_tokens {
            let mut logits = session
                .extend(&*self.loaded.model, &mut self.cpu, &ids, false)
                .unwrap_or_else(|e| panic!("{e}"));
            let raw = logits.clone();
            let id = sampler.sample(&mut logits, session.tokens());
            if request.stop_ids.contains(&id) {
                return (shown, Finish::Stop);
            }
            let log = LogProbabilities::new(&raw);
            let top = log.top(3).into_iter().map(|(id, p)| (id, p.to_bits())).collect();
            shown.push((id, log.of(id).to_bits(), top));
            if shown.len() < request.max_tokens && session.tokens().len() == CONTEXT {
                return (shown, Finish::Context);
            }
            ids = vec![id];
        }
        (shown, Finish::Length)
    }
}

fn options() -> EngineOptions {
    EngineOptions { context: CONTEXT, ..EngineOptions::default() }
}

/// A token with the bits of its log-probabilities.
type Shown = (u32, u32, Vec<(u32, u32)>);
type Answer = (Vec<Shown>, Finish);

/// Texts that often begin alike, and sampling of every kind.
fn request(i: u32, len: usize, max_tokens: usize) -> Request {
    let prompt = (0..len as u32).map(|j| (j * 37 + (i % 3) * (j / 64)) % 90 + 3).collect();
    Request {
        sampling: Sampling {
            temperature: (i % 3) as f32 * 0.6,
            top_k: (i % 4) as usize * 20,
            repetition_penalty: 1.0 + (i % 2) as f32 * 0.2,
            presence_penalty: (i % 5) as f32 * 0.1,
            seed: u64::from(i),
            ..Sampling::default()
        },
        logprobs: Some(3),
        client: u64::from(i % 5),
        priority: (i % 4 == 3).into(),
        stop_ids: vec![i % 90],
        ..Request::new(prompt, max_tokens)
    }
}

fn submit(engine: &Engine, request: &Request) -> Ticket {
    engine.submit(request.clone()).unwrap_or_else(|e| panic!("{e}"))
}

fn answer(ticket: &Ticket) -> Answer {
    let mut shown = Vec::new();
    let mut told = 0;
    loop {
        match ticket.recv() {
            Some(Event::Token { id, logprob, top }) => {
                let top = top.into_iter().map(|(id, p)| (id, p.to_bits())).collect();
                shown.push((id, logprob.map_or(0, f32::to_bits), top));
            }
            Some(Event::Done(s)) => {
                assert_eq!(s.generated, shown.len());
                assert_eq!(s.reused + s.prefilled, told);
                assert!(ticket.recv().is_none(), "Done is the last event");
                return (shown, s.finish);
            }
            Some(Event::Prefilled { done, total, reused }) => {
                assert!(reused < done && told < done && done <= total);
                told = done;
            }
            other => panic!("{other:?}"),
        }
    }
}

/// All requests at once give what the plain loop gives; the figures at the end.
fn compare(model: &str, threads: usize, options: EngineOptions, requests: &[Request]) -> Stats {
    let mut bench = Bench::open(model, 2);
    let want: Vec<_> = requests.iter().map(|r| bench.plain(r, options.kv)).collect();
    let engine = Bench::open(model, threads).engine(options);
    let tickets: Vec<_> = requests.iter().map(|r| submit(&engine, r)).collect();
    for (i, (ticket, want)) in tickets.iter().zip(&want).enumerate() {
        assert_eq!(answer(ticket), *want, "request {i}: {options:?}");
    }
    engine.drain();
    let stats = engine.stats();
    assert_eq!((stats.queued, stats.running, stats.kv_used), (0, 0, 0));
    assert_eq!(stats.finished, requests.len() as u64);
    stats
}

#[test]
fn the_default_model_gives_the_bits_of_the_plain_loop_among_32_others() {
    let requests: Vec<Request> =
        (0..33).map(|i| request(i, 1 + (i as usize * 29) % 130, 10)).collect();
    let stats = compare("default", 2, options(), &requests);
    assert!(stats.prefix_hits > 0);
}

#[test]
fn memory_for_one_is_enough_for_many() {
    let requests: Vec<Request> =
        (0..10).map(|i| request(i, 10 + (i as usize * 29) % 90, 200)).collect();
    for kv in [KvType::F16, KvType::F32, KvType::Q8] {
        let mut options = EngineOptions { token_budget: 48, kv, ..options() };
        options.memory = Bench::open("gemma3_text", 1).sequence(&options);
        let stats = compare("gemma3_text", 2, options, &requests);
        assert!(stats.preemptions > 0, "this test must preempt: {stats:?}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 20, failure_persistence: None, ..ProptestConfig::default() })]

    /// Any requests, any budget, any number of threads, any memory.
    #[test]
    fn whatever_is_at_work_the_bits_are_the_same(
        family in prop_oneof![Just("gemma3_text"), Just("llama")],
        threads in 1usize..4,
        token_budget in 1usize..100,
        max_sequences in 1usize..12,
        spare in 0usize..200_000,
        shapes in proptest::collection::vec((0u32..50, 1usize..250, 0usize..40), 1..14),
    ) {
        let requests: Vec<Request> =
            shapes.into_iter().map(|(i, len, new)| request(i, len, new)).collect();
        let mut options = EngineOptions { token_budget, max_sequences, ..options() };
        options.memory = Bench::open(family, 1).sequence(&options) + spare;
        compare(family, threads, options, &requests);
    }
}

/// Shared keys and values, experts, per-layer embeddings, windows of every kind.
#[test]
fn every_family_gives_the_bits_of_the_plain_loop() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../..");
    let found = [root.join("shared/fixtures"), root.join("../shared/fixtures")];
    let Some(dir) = found.into_iter().find(|p| p.is_dir()) else {
        eprintln!("skipped: ../shared/fixtures is not there");
        return;
    };
    let families = ["gemma2", "gemma3n_text", "gemma4_e2b", "gemma4_26b_a4b", "gpt3"];
    for family in families {
        let model = dir.join("models").join(family);
        let model = model.to_str().unwrap_or_else(|| panic!("{}", model.display()));
        let bench = Bench::open(model, 1);
        let context = CONTEXT.min(bench.loaded.model.info().context);
        let requests: Vec<Request> =
            (0..6).map(|i| request(i, 5 + (i as usize * 17) % 50, context / 3)).collect();
        let mut options = EngineOptions { token_budget: 24, context, ..options() };
        options.memory = 2 * bench.sequence(&options);
        compare(model, 2, options, &requests);
    }
}

#[test]
fn rows_of_one_batch_have_adapters_of_their_own_and_the_bits_of_each_alone() {
    let checkpoint = tiny::checkpoint("gemma3_text");
    let open = |adapters: &[u32]| {
        let adapters: Vec<_> = adapters.iter().map(|seed| tiny::adapters(*seed)).collect();
        Bench::load(&checkpoint, 2, &adapters)
    };
    // Each alone is the plain loop over the base with that adapter and no other.
    let mut alone = [open(&[]), open(&[0]), open(&[1]), open(&[2])];
    // The same texts for all, so that a prefix of another adapter would be found.
    let requests: Vec<(usize, Request)> = (0..16)
        .map(|i| {
            let which = i as usize % 4;
            let adapter = which.checked_sub(1).map(|a| a as u32);
            (which, Request { adapter, ..request(6, 70 + i as usize / 4, 20) })
        })
        .collect();
    let options = EngineOptions { token_budget: 50, ..options() };
    let want: Vec<_> = requests.iter().map(|(w, r)| alone[*w].plain(r, options.kv)).collect();
    assert!(want[0] != want[1] && want[1] != want[2] && want[2] != want[3], "all do something");
    let engine = open(&[0, 1, 2]).engine(options);
    for round in 0..2 {
        let tickets: Vec<_> = requests.iter().map(|(_, r)| submit(&engine, r)).collect();
        for (i, (ticket, want)) in tickets.iter().zip(&want).enumerate() {
            assert_eq!(answer(ticket), *want, "round {round}, request {i}");
        }
    }
    assert!(engine.stats().prefix_hits >= 16, "{:?}", engine.stats());
    let none = Request { adapter: Some(3), ..request(1, 5, 5) };
    let refusal = engine.submit(none).err();
    assert_eq!(refusal, Some(Refusal::UnknownAdapter { adapter: 3, adapters: 3 }));
}

#[test]
fn prefixes_are_shared_by_their_owner_alone() {
    let engine = Bench::open("gemma3_text", 2).engine(options());
    let ask = |owner| {
        let before = engine.stats().prefix_hits;
        let got = answer(&submit(&engine, &Request { owner, ..request(6, 70, 4) }));
        (got, engine.stats().prefix_hits - before)
    };
    let (first, hits) = ask(1);
    assert_eq!(hits, 0);
    assert_eq!(ask(1), (first.clone(), 1));
    assert_eq!(ask(2), (first.clone(), 0), "another's prompt must not show");
    assert_eq!(ask(2), (first, 1));
}

#[test]
fn a_conversation_finds_its_past_and_gives_the_same_bits() {
    for (model, least) in [("default", 3 * 32), ("gemma3_text", 3 * 32)] {
        let mut bench = Bench::open(model, 2);
        let engine = Bench::open(model, 2).engine(options());
        let mut prompt = request(0, 50, 0).prompt;
        let mut reused = 0;
        for turn in 0..4 {
            let mut r = request(1, 0, 20);
            r.prompt = prompt.clone();
            let want = bench.plain(&r, KvType::F16);
            assert_eq!(answer(&submit(&engine, &r)), want, "{model}, turn {turn}");
            // The same again: the whole blocks of the prompt are there.
            assert_eq!(answer(&submit(&engine, &r)), want, "{model}, turn {turn}, again");
            let stats = engine.stats();
            let whole = (prompt.len() - 1) / 32 * 32;
            assert!(stats.reused_tokens - reused >= whole as u64, "{model}: {stats:?}");
            reused = stats.reused_tokens;
            prompt.extend(want.0.iter().map(|t| t.0));
            prompt.extend(request(2, 13, 0).prompt);
        }
        assert!(reused > least);
    }
}

#[test]
fn the_context_ends_an_answer_and_refuses_a_prompt() {
    let engine = Bench::open("gemma3_text", 2).engine(options());
    let r = Request { stop_ids: vec![], ..request(1, CONTEXT - 4, 50) };
    let got = answer(&submit(&engine, &r));
    assert_eq!(got, Bench::open("gemma3_text", 2).plain(&r, KvType::F16));
    assert_eq!((got.0.len(), got.1), (5, Finish::Context));
    let refusal = engine.submit(request(1, CONTEXT + 1, 1)).err();
    assert_eq!(refusal, Some(Refusal::Context { prompt: CONTEXT + 1, context: CONTEXT }));
    assert_eq!(engine.submit(Request::new(vec![], 1)).err(), Some(Refusal::Empty));
    let unknown = engine.submit(Request::new(vec![5, 1 << 30], 1)).err();
    assert!(matches!(unknown, Some(Refusal::UnknownToken { index: 1, .. })));
    let mut bad = request(1, 5, 5);
    bad.sampling.top_p = 0.0;
    assert!(matches!(engine.submit(bad).err(), Some(Refusal::Sampling(e)) if e.field == "top_p"));
    assert_eq!(engine.stats().refused, 4);
}

#[test]
fn who_goes_away_is_forgotten() {
    let bench = Bench::open("default", 2);
    let engine = bench.engine(EngineOptions { max_sequences: 1, max_queue: 2, ..options() });
    let request = |i, len, new| Request { stop_ids: vec![], ..request(i, len, new) };
    let long = submit(&engine, &request(0, 20, 290));
    while engine.stats().running == 0 {
        std::thread::yield_now();
    }
    let waiting = submit(&engine, &request(0, 20, 290));
    let last = submit(&engine, &request(6, 20, 2));
    let busy = engine.submit(request(6, 20, 2)).err();
    assert_eq!(busy, Some(Refusal::Busy { queued: 2, limit: 2 }));
    assert!(matches!(long.recv(), Some(Event::Prefilled { .. })));
    drop(long);
    waiting.cancel();
    assert_eq!(answer(&waiting).1, Finish::Cancelled);
    assert_eq!(answer(&last).0.len(), 2);
    let mut late = request(9, 20, 290);
    late.deadline = Some(std::time::Instant::now());
    assert_eq!(answer(&submit(&engine, &late)).1, Finish::Deadline);
    engine.stop();
    assert_eq!(engine.stats().cancelled, 2);
}

#[test]
fn pooled_states_do_not_depend_on_the_chunks() {
    let pooled = |token_budget, pooling| {
        let bench = Bench::open("gemma3_text", 2);
        let engine = bench.engine(EngineOptions { token_budget, ..options() });
        let r = Request { kind: Kind::Embed(pooling), ..request(4, 70, 0) };
        // A prefix in the cache must not change the mean.
        answer(&submit(&engine, &request(4, 64, 1)));
        let ticket = submit(&engine, &r);
        let mut vector = None;
        while let Some(event) = ticket.recv() {
            match event {
                Event::Embedding(v) => vector = Some(v),
                Event::Done(s) => assert_eq!(s.finish, Finish::Stop),
                Event::Prefilled { .. } => {}
                other => panic!("{other:?}"),
            }
        }
        let vector = vector.unwrap_or_else(|| panic!("no vector"));
        assert!(vector.len() == engine.info().width && vector.iter().any(|x| *x != 0.0));
        vector.into_iter().map(f32::to_bits).collect::<Vec<_>>()
    };
    assert_eq!(pooled(256, Pooling::Mean), pooled(9, Pooling::Mean));
    assert_eq!(pooled(256, Pooling::Last), pooled(9, Pooling::Last));
    assert_ne!(pooled(256, Pooling::Mean), pooled(256, Pooling::Last));
}

#[test]
fn a_sink_that_panics_fails_the_requests_and_not_the_engine() {
    let bench = Bench::open("gemma3_text", 1);
    let engine = bench.engine(options());
    let other = submit(&engine, &Request { stop_ids: vec![], ..request(1, 30, 250) });
    let sink = Box::new(|event| match event {
        Event::Token { .. } => panic!("on purpose"),
        _ => std::ops::ControlFlow::Continue(()),
    });
    engine.submit_to(request(1, 20, 5), sink).unwrap_or_else(|e| panic!("{e}"));
    let mut last = None;
    while let Some(event) = other.recv() {
        last = Some(event);
    }
    assert!(matches!(last, Some(Event::Failed(_))), "{last:?}");
    let r = request(2, 30, 5);
    let want = Bench::open("gemma3_text", 1).plain(&r, KvType::F16);
    assert_eq!(answer(&submit(&engine, &r)), want);
    engine.stop();
    assert_eq!(engine.submit(r).err(), Some(Refusal::Stopping));
}

#[test]
fn a_context_that_does_not_fit_is_refused_with_what_would() {
    let bench = Bench::open("gemma3_text", 1);
    let options = EngineOptions { memory: 100_000, token_budget: 16, ..options() };
    let parts = Parts {
        model: bench.loaded.model,
        ops: Box::new(bench.cpu),
        weight_bytes: bench.loaded.step_bytes,
        adapters: 0,
    };
    let layout = parts.model.info().kv.clone();
    let Err(PlanError::Memory { fits, needed, .. }) = Engine::start(parts, options) else {
        panic!("100 kB were enough")
    };
    let bytes = |tokens| layout.bytes(tokens, 16, KvType::F16);
    assert_eq!(needed, bytes(CONTEXT));
    assert!(bytes(fits) <= 100_000 && bytes(fits + 1) > 100_000, "{fits}");
}
