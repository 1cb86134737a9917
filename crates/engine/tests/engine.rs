//! The engine against the plain loop: the same bits, whatever else it does at the time.

use lapidary_engine::request::{Event, Kind, Pooling, Refusal, Request};
use lapidary_engine::{
    Engine, EngineOptions, Finish, Limits, LogProbabilities, Parts, Sampler, Sampling, Session,
};
use lapidary_formats::Checkpoint;
use lapidary_model::{Loaded, load};
use lapidary_ops::{Cpu, Isa, KvType, Ops, Pool, Precision};
use std::path::Path;
use std::sync::Arc;

const MODEL: &str = "../../models/default-Q8_0.gguf";

fn open(threads: usize) -> (Loaded, Cpu) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(MODEL);
    let checkpoint = Checkpoint::open(&path).unwrap_or_else(|e| panic!("{e}"));
    let mut cpu = Cpu::new(Isa::detect(), Arc::new(Pool::new(threads)), Precision::Fast);
    let loaded = load(&checkpoint, &mut cpu).unwrap_or_else(|e| panic!("{e}"));
    (loaded, cpu)
}

fn engine(threads: usize, options: EngineOptions) -> Engine {
    let (loaded, cpu) = open(threads);
    let parts = Parts { model: loaded.model, ops: Box::new(cpu), weight_bytes: loaded.step_bytes };
    Engine::start(parts, options).unwrap_or_else(|e| panic!("{e}"))
}

fn options() -> EngineOptions {
    EngineOptions { context: 512, ..EngineOptions::default() }
}

/// A token with the bits of its log-probabilities.
type Shown = (u32, u32, Vec<(u32, u32)>);

/// What the plain loop makes of a request.
fn plain(loaded: &Loaded, cpu: &mut Cpu, request: &Request) -> (Vec<Shown>, Finish) {
    let limits = Limits { context: 512, chunk: 512, kv: KvType::F16 };
    let mut session = Session::new(&loaded.model.info().kv, limits);
    let mut sampler = Sampler::new(request.sampling.clone()).unwrap_or_else(|e| panic!("{e}"));
    let mut shown = Vec::new();
    let mut ids = request.prompt.clone();
    while shown.len() < request.max_tokens {
        let mut logits = session
            .extend(&*loaded.model, cpu as &mut dyn Ops, &ids, false)
            .unwrap_or_else(|e| panic!("{e}"));
        let raw = logits.clone();
        let id = sampler.sample(&mut logits, session.tokens());
        if request.stop_ids.contains(&id) {
            return (shown, Finish::Stop);
        }
        let log = LogProbabilities::new(&raw);
        let top = log.top(3).into_iter().map(|(id, p)| (id, p.to_bits())).collect();
        shown.push((id, log.of(id).to_bits(), top));
        if shown.len() < request.max_tokens && session.tokens().len() == 512 {
            return (shown, Finish::Context);
        }
        ids = vec![id];
    }
    (shown, Finish::Length)
}

fn request(i: u32, len: usize, max_tokens: usize) -> Request {
    let prompt = (0..len as u32).map(|j| (i * 131 + j * (37 + i)) % 4000 + 10).collect();
    Request {
        sampling: Sampling {
            temperature: (i % 3) as f32 * 0.6,
            top_k: (i % 4) as usize * 20,
            repetition_penalty: 1.0 + (i % 2) as f32 * 0.2,
            seed: u64::from(i),
            ..Sampling::default()
        },
        logprobs: Some(3),
        client: u64::from(i % 5),
        ..Request::new(prompt, max_tokens)
    }
}

fn answer(ticket: &lapidary_engine::request::Ticket) -> (Vec<Shown>, Finish) {
    let mut shown = Vec::new();
    loop {
        match ticket.recv() {
            Some(Event::Token { id, logprob, top }) => {
                let top = top.into_iter().map(|(id, p)| (id, p.to_bits())).collect();
                shown.push((id, logprob.map_or(0, f32::to_bits), top));
            }
            Some(Event::Done(s)) => {
                assert_eq!(s.generated, shown.len());
                assert!(ticket.recv().is_none(), "Done is the last event");
                return (shown, s.finish);
            }
            Some(Event::Prefilled { done, total, reused }) => {
                assert!(reused <= done && done <= total);
            }
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn many_at_once_give_the_bits_of_the_plain_loop() {
    let (loaded, mut cpu) = open(2);
    let requests: Vec<Request> =
        (0..12).map(|i| request(i, 1 + (i as usize * 29) % 130, 12)).collect();
    let want: Vec<_> = requests.iter().map(|r| plain(&loaded, &mut cpu, r)).collect();
    for (threads, token_budget, max_sequences) in [(2, 256, 64), (1, 16, 5)] {
        let engine = engine(threads, EngineOptions { token_budget, max_sequences, ..options() });
        let tickets: Vec<_> = (requests.iter())
            .map(|r| engine.submit(r.clone()).unwrap_or_else(|e| panic!("{e}")))
            .collect();
        for (i, (ticket, want)) in tickets.iter().zip(&want).enumerate() {
            assert_eq!(answer(ticket), *want, "request {i}, budget {token_budget}");
        }
        engine.drain();
        let stats = engine.stats();
        assert_eq!((stats.queued, stats.running, stats.kv_used), (0, 0, 0));
        assert_eq!(stats.finished, 12);
        assert_eq!(engine.submit(requests[0].clone()).err(), Some(Refusal::Stopping));
    }
}

#[test]
fn the_context_ends_an_answer_and_refuses_a_prompt() {
    let (loaded, mut cpu) = open(2);
    let engine = engine(2, options());
    let r = request(1, 508, 50);
    let ticket = engine.submit(r.clone()).unwrap_or_else(|e| panic!("{e}"));
    let got = answer(&ticket);
    assert_eq!(got, plain(&loaded, &mut cpu, &r));
    assert_eq!((got.0.len(), got.1), (5, Finish::Context));
    let refusal = engine.submit(request(1, 513, 1)).err();
    assert_eq!(refusal, Some(Refusal::Context { prompt: 513, context: 512 }));
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
    let engine = engine(2, EngineOptions { max_sequences: 1, ..options() });
    let long = engine.submit(request(0, 20, 480)).unwrap_or_else(|e| panic!("{e}"));
    let waiting = engine.submit(request(3, 20, 480)).unwrap_or_else(|e| panic!("{e}"));
    let last = engine.submit(request(6, 20, 2)).unwrap_or_else(|e| panic!("{e}"));
    assert!(matches!(long.recv(), Some(Event::Prefilled { .. })));
    drop(long);
    waiting.cancel();
    assert_eq!(answer(&waiting).1, Finish::Cancelled);
    assert_eq!(answer(&last).0.len(), 2);
    let mut late = request(9, 20, 480);
    late.deadline = Some(std::time::Instant::now());
    let late = engine.submit(late).unwrap_or_else(|e| panic!("{e}"));
    assert_eq!(answer(&late).1, Finish::Deadline);
    engine.stop();
    assert_eq!(engine.stats().cancelled, 2);
}

#[test]
fn pooled_states_do_not_depend_on_the_chunks() {
    let pooled = |token_budget, pooling| {
        let engine = engine(2, EngineOptions { token_budget, ..options() });
        let mut r = request(4, 70, 0);
        r.kind = Kind::Embed(pooling);
        let ticket = engine.submit(r).unwrap_or_else(|e| panic!("{e}"));
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
