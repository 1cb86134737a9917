use super::*;
use crate::blocks::Change;
use lapidary_ops::{KvLayout, KvType};
use proptest::prelude::*;
use std::collections::BTreeMap;

const CONTEXT: usize = 400;
/// Rows of a picture at most.
const PICTURE: usize = 50;

/// Rows of a prompt, and a number for what they show.
type Shown = Vec<(Range<usize>, u8)>;

/// A cache that knows for each slot which text its position ended.
struct World {
    layout: KvLayout,
    scheduler: Scheduler,
    memory: usize,
    budget: usize,
    /// Rows of a pass at most, without those of pictures.
    rows: usize,
    /// Rows that go through one pass at most: of a picture, or of prompts that see themselves.
    largest: usize,
    slots: HashMap<(usize, u32), [u64; KV_BLOCK]>,
    /// New tokens that are still wanted.
    live: BTreeMap<u64, usize>,
    /// The pictures of all requests.
    shown: HashMap<u64, Shown>,
    done: Vec<(Vec<u32>, Shown)>,
    preempted: usize,
    reused: usize,
}

/// A value for each beginning of a text; rows of a picture stand for what it shows.
fn beginnings(tokens: &[u32], shown: &Shown) -> Vec<u64> {
    let step = |h: &mut u64, (i, t): (usize, &u32)| {
        let picture = shown.iter().find(|p| p.0.contains(&i));
        let t = picture.map_or(u64::from(*t), |p| (1 << 40) + u64::from(p.1));
        *h = (*h ^ t).wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(29);
        Some(*h)
    };
    tokens.iter().enumerate().scan(1, step).collect()
}

impl World {
    fn new(windows: &[Option<usize>], budget: usize, max_running: usize, spare: usize) -> Self {
        Self::with(windows, budget, max_running, spare, PICTURE)
    }

    fn with(
        windows: &[Option<usize>],
        budget: usize,
        max_running: usize,
        spare: usize,
        largest: usize,
    ) -> Self {
        let layout = KvLayout::new(1, 16, windows);
        let memory = layout.bytes(CONTEXT, budget.max(largest), KvType::F16) + spare;
        let blocks = Blocks::new(&layout, KvType::F16, memory);
        let scheduler = Scheduler::new(blocks, budget, max_running, largest);
        Self {
            layout,
            scheduler,
            memory,
            budget,
            rows: pass_rows(budget, max_running.min(budget)),
            largest,
            slots: HashMap::new(),
            live: BTreeMap::new(),
            shown: HashMap::new(),
            done: Vec::new(),
            preempted: 0,
            reused: 0,
        }
    }

    fn push(&mut self, id: u64, prompt: Vec<u32>, new: usize, priority: i32, client: u64) {
        self.push_shown(id, (prompt, vec![]), new, priority, client);
    }

    fn push_shown(
        &mut self,
        id: u64,
        (prompt, mut shown): (Vec<u32>, Shown),
        new: usize,
        priority: i32,
        client: u64,
    ) {
        let whole = self.largest == CONTEXT;
        if whole {
            // For what is checked here, such a prompt is as one picture.
            shown = vec![(0..prompt.len(), 0)];
        }
        let new = new.min(CONTEXT - prompt.len());
        self.live.insert(id, new);
        let pictures = shown.iter().map(|(rows, n)| (rows.clone(), [*n; 32])).collect();
        self.shown.insert(id, shown);
        let (reuse, space) = (!id.is_multiple_of(7), Space::default());
        self.scheduler.push(New { id, prompt, pictures, whole, priority, client, reuse, space });
    }

    /// A value for each beginning of a request's text.
    fn texts(&self, id: u64) -> Vec<u64> {
        self.scheduler.get(id).map_or(vec![], |s| beginnings(&s.tokens, &self.shown[&id]))
    }

    fn cancel(&mut self, id: u64) {
        if self.live.remove(&id).is_some() {
            self.scheduler.remove(id);
        }
    }

    fn follow(&mut self) {
        for change in self.scheduler.blocks.take_changes() {
            match change {
                Change::Provide(g, b) => {
                    let new = self.slots.insert((g, b), [0; KV_BLOCK]);
                    assert!(new.is_none(), "provided twice");
                }
                Change::Release(g, b) => assert!(self.slots.remove(&(g, b)).is_some()),
            }
            let bytes = |(g, _): &(usize, u32)| self.layout.block_bytes(*g, KvType::F16);
            let total: usize = self.slots.keys().map(bytes).sum();
            assert!(total <= self.memory, "{total} bytes of {}", self.memory);
        }
    }

    /// One pass, with everything that must hold around it.
    fn step(&mut self) -> Plan {
        let plan = self.scheduler.plan();
        self.follow();
        let pictures = plan.parts.iter().any(|p| !self.shown[&p.id].is_empty());
        let most = self.rows + if pictures { self.largest - 1 } else { 0 };
        assert!(plan.rows() <= most, "{plan:?}");
        let longest = plan.parts.iter().map(|p| p.tokens.len()).max().unwrap_or(0);
        assert!(pictures || longest <= self.budget, "{plan:?}");
        assert!(self.live.is_empty() || !plan.parts.is_empty(), "nothing moves: {plan:?}");
        self.preempted += plan.preempted.len();
        self.reused += plan.started.iter().map(|s| s.1).sum::<usize>();
        let mut seen = HashSet::new();
        for part in &plan.parts {
            assert!(seen.insert(part.id) && !part.tokens.is_empty());
            self.compute(part);
        }
        // No part may have written where another reads.
        for part in &plan.parts {
            self.verify(part.id, part.tokens.end);
        }
        self.scheduler.commit(&plan);
        for part in plan.parts.iter().filter(|p| p.last) {
            self.answer(part.id);
        }
        plan
    }

    fn compute(&mut self, part: &Part) {
        let s = self.scheduler.get(part.id).unwrap_or_else(|| panic!("{part:?}"));
        assert_eq!(part.tokens.start, s.computed);
        assert_eq!(part.last, part.tokens.end == s.tokens.len());
        let cut = |at: usize| self.shown[&part.id].iter().any(|(p, _)| p.start < at && at < p.end);
        assert!(!cut(part.tokens.start) && !cut(part.tokens.end), "{part:?}");
        let texts = self.texts(part.id);
        self.verify(part.id, part.tokens.start);
        for (g, table) in self.scheduler.tables(part.id).into_iter().enumerate() {
            for p in part.tokens.clone() {
                let key = (g, table[p / KV_BLOCK]);
                let block = self.slots.get_mut(&key).unwrap_or_else(|| panic!("no {key:?}"));
                block[p % KV_BLOCK] = texts[p];
            }
        }
    }

    /// All that a row at `position` sees before it is there.
    fn verify(&self, id: u64, position: usize) {
        let texts = self.texts(id);
        if texts.is_empty() {
            return;
        }
        for (g, table) in self.scheduler.tables(id).into_iter().enumerate() {
            let first = self.layout.groups[g].map_or(0, |w| (position + 1).saturating_sub(w));
            for p in first..position {
                let block = self.slots.get(&(g, table[p / KV_BLOCK]));
                let found = block.map(|b| b[p % KV_BLOCK]);
                assert_eq!(found, Some(texts[p]), "request {id}, group {g}, position {p}");
            }
        }
    }

    fn answer(&mut self, id: u64) {
        let Some(left) = self.live.get_mut(&id) else { panic!("{id} is gone") };
        if *left == 0 {
            self.live.remove(&id);
            let tokens = self.scheduler.get(id).map(|s| s.tokens.clone());
            self.done.extend(tokens.map(|t| (t, self.shown[&id].clone())));
            self.scheduler.remove(id);
            return;
        }
        *left -= 1;
        let token = self.texts(id).last().map_or(0, |t| t % 3) as u32;
        self.scheduler.append(id, token);
    }

    fn finish(&mut self) {
        let mut steps = 0;
        while !self.live.is_empty() {
            self.step();
            steps += 1;
            assert!(steps < 50_000, "no end");
        }
        assert_eq!(self.scheduler.blocks.used(), 0);
    }
}

/// Texts that often begin alike: blocks of three kinds and a rest.
fn text(kinds: &[u8], rest: usize) -> Vec<u32> {
    let block =
        |k: &u8| (0..KV_BLOCK as u32).map(move |i| i % 3 + u32::from(*k)).collect::<Vec<_>>();
    let mut out: Vec<u32> = kinds.iter().flat_map(block).collect();
    out.extend((0..rest as u32).map(|i| i % 2));
    out
}

/// A text that begins with pictures, each behind some tokens.
fn illustrated(pictures: &[(usize, usize, u8)], text: Vec<u32>) -> (Vec<u32>, Shown) {
    let (mut out, mut shown) = (Vec::new(), Vec::new());
    for &(gap, rows, number) in pictures {
        out.resize(out.len() + gap, 7);
        // What a picture shows says how many rows it has.
        let rows = if number == 0 { 9 } else { rows };
        shown.push((out.len()..out.len() + rows, number * 64 + rows as u8));
        out.resize(out.len() + rows, 1);
    }
    out.extend(text);
    (out, shown)
}

#[derive(Debug, Clone)]
enum Action {
    Push {
        pictures: Vec<(usize, usize, u8)>,
        kinds: Vec<u8>,
        rest: usize,
        new: usize,
        priority: i32,
        client: u64,
    },
    /// The text of a request that is done, and more.
    Continue {
        which: usize,
        more: usize,
        new: usize,
    },
    Cancel(u64),
    Steps(usize),
}

fn action() -> impl Strategy<Value = Action> {
    let kinds = proptest::collection::vec(0u8..3, 0..8);
    let picture = (0usize..3, 1usize..PICTURE + 1, 0u8..3);
    let picture = picture.prop_map(|(gap, rows, number)| (gap * 20, rows, number));
    let pictures = proptest::collection::vec(picture, 0..2);
    prop_oneof![
        4 => (pictures, kinds, 1usize..40, 0usize..90, -1i32..2, 0u64..3).prop_map(
            |(pictures, kinds, rest, new, priority, client)| {
                Action::Push { pictures, kinds, rest, new, priority, client }
            }
        ),
        2 => (0usize..100, 1usize..50, 0usize..40)
            .prop_map(|(which, more, new)| Action::Continue { which, more, new }),
        1 => (0u64..40).prop_map(Action::Cancel),
        3 => (1usize..30).prop_map(Action::Steps),
    ]
}

fn windows() -> impl Strategy<Value = Vec<Option<usize>>> {
    prop_oneof![
        Just(vec![None]),
        Just(vec![Some(50)]),
        Just(vec![Some(33), None]),
        Just(vec![Some(64), Some(1), None, None]),
        Just(vec![Some(100), Some(20), None]),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 150, failure_persistence: None, ..ProptestConfig::default() })]

    /// Whatever comes and goes, every row finds what it sees, memory is not exceeded, and every
    /// request gets done.
    #[test]
    fn every_row_finds_what_it_sees(
        windows in windows(),
        budget in 1usize..150,
        max_running in 1usize..9,
        spare in 0usize..60_000,
        actions in proptest::collection::vec(action(), 1..30),
    ) {
        let mut world = World::new(&windows, budget, max_running, spare);
        let mut next = 0;
        for action in actions {
            match action {
                Action::Push { pictures, kinds, rest, new, priority, client } => {
                    let prompt = illustrated(&pictures, text(&kinds, rest));
                    world.push_shown(next, prompt, new, priority, client);
                    next += 1;
                }
                Action::Continue { which, more, new } => {
                    let Some(old) = world.done.get(which % world.done.len().max(1)) else { continue };
                    let (mut prompt, shown) = old.clone();
                    prompt.extend((0..more as u32).map(|i| i % 3));
                    prompt.truncate(CONTEXT);
                    world.push_shown(next, (prompt, shown), new, 0, 1);
                    next += 1;
                }
                Action::Cancel(id) => world.cancel(id),
                Action::Steps(n) => (0..n).for_each(|_| { world.step(); }),
            }
        }
        world.finish();
    }
}

#[test]
fn memory_that_is_short_preempts_and_nothing_is_lost() {
    let mut world = World::new(&[None, Some(64)], 64, 8, 20_000);
    for id in 0..8 {
        world.push(id * 7, text(&[(id % 3) as u8, id as u8], 20), 200, 0, id);
    }
    world.finish();
    assert!(world.preempted > 0, "this test must preempt");
    assert_eq!(world.done.len(), 8);
    assert!(world.done.iter().all(|(t, _)| t.len() == 284));
}

#[test]
fn a_prompt_that_many_begin_with_is_computed_once() {
    let mut world = World::new(&[None, Some(64)], 64, 16, 1 << 20);
    for id in 1..7 {
        world.push(id, text(&[0, 1, 2, 0, 1, 2], id as usize), 3, 0, 0);
    }
    world.finish();
    assert_eq!(world.reused, 5 * 6 * KV_BLOCK);
    // And after all of them are gone.
    world.push(8, text(&[0, 1, 2, 0, 1, 2], 30), 3, 0, 0);
    world.finish();
    assert_eq!(world.reused, 6 * 6 * KV_BLOCK);
}

#[test]
fn prompts_that_see_themselves_go_through_one_pass_and_share_nothing() {
    for (budget, spare) in [(16, 40_000), (150, 0), (32, 1 << 20)] {
        let mut world = World::with(&[None, Some(64)], budget, 8, spare, CONTEXT);
        for id in 1..14 {
            world.push(id, text(&[0, 1, (id % 3) as u8], 20), 200, 0, id);
        }
        world.finish();
        assert_eq!((world.done.len(), world.reused), (13, 0));
        assert!(spare != 40_000 || world.preempted > 0, "this one must preempt");
    }
}

#[test]
fn clients_take_turns_and_priority_goes_first() {
    let order = |pushes: &[(u64, i32, u64)]| {
        let mut world = World::new(&[None], 32, 1, 0);
        for &(id, priority, client) in pushes {
            world.push(id, text(&[id as u8 + 3], 9), 2, priority, client);
        }
        let mut order = Vec::new();
        while !world.live.is_empty() {
            order.extend(world.step().started.iter().map(|s| s.0));
        }
        order
    };
    assert_eq!(order(&[(1, 0, 1), (2, 0, 1), (3, 0, 1), (4, 0, 2), (5, 0, 2)]), [1, 4, 2, 5, 3]);
    assert_eq!(order(&[(1, 0, 1), (2, 0, 1), (3, 1, 1), (4, 0, 2)]), [3, 4, 1, 2]);
}

#[test]
fn a_pass_grows_with_the_requests_and_the_part_of_each_does_not() {
    let mut world = World::new(&[None], 16, 6, 1 << 20);
    for id in 0..8 {
        world.push(id + 1, text(&[id as u8 + 3], 0), 9, 0, id);
    }
    let parts = |plan: &Plan| plan.parts.iter().map(|p| p.tokens.len()).collect::<Vec<_>>();
    assert_eq!(parts(&world.step()), [16, 16, 16], "eight for each of the six that have a place");
    assert_eq!(parts(&world.step()), [16, 16, 16]);
    // Three answer, and the prompts of the other three don't wait for them.
    assert_eq!(parts(&world.step()), [1, 1, 1, 16, 16, 13]);
    world.finish();
}

#[test]
fn answers_go_on_beside_a_long_prompt() {
    let mut world = World::new(&[None], 40, 4, 1 << 20);
    world.push(1, text(&[], 5), 30, 0, 1);
    world.step();
    world.push(2, text(&[1, 2, 0, 1, 2, 0], 10), 3, 0, 2);
    for _ in 0..4 {
        let plan = world.step();
        assert_eq!(plan.parts[0].id, 1);
        assert_eq!(plan.parts[1].tokens.len(), 39);
    }
    world.finish();
}

#[test]
fn a_higher_priority_takes_the_place_of_a_lower_one() {
    let mut world = World::new(&[None], 40, 1, 0);
    world.push(1, text(&[], 5), 30, 0, 1);
    world.step();
    world.push(2, text(&[], 6), 3, 1, 2);
    let plan = world.step();
    assert_eq!((plan.preempted, plan.started), (vec![1], vec![(2, 0)]));
    world.finish();
    assert_eq!(world.done.iter().map(|d| d.0.len()).collect::<Vec<_>>(), [9, 35]);
}

#[test]
fn a_picture_is_found_again_by_what_it_shows_and_never_cut() {
    let mut world = World::new(&[None, Some(64)], 32, 4, 1 << 20);
    // 20 tokens, 50 rows, 100 tokens: whole blocks end at 32 and 64, both inside the picture.
    let prompt = |shows| illustrated(&[(20, 50, shows)], text(&[0, 1, 2], 4));
    world.push_shown(1, prompt(1), 3, 0, 0);
    let rows: Vec<usize> = (0..3).map(|_| world.step().rows()).collect();
    assert_eq!(rows, [20, 50, 32], "the picture in one pass, though the budget is 32");
    world.finish();
    // The same again: all but what is behind the last whole block.
    world.push_shown(2, prompt(1), 3, 0, 0);
    world.finish();
    assert_eq!(world.reused, 160);
    // Another picture, the same tokens: nothing, for the first block ends inside.
    world.push_shown(3, prompt(2), 3, 0, 0);
    world.finish();
    assert_eq!(world.reused, 160);
    // The same picture and another text behind it: nothing, rather than half of it.
    world.push_shown(4, illustrated(&[(20, 50, 1)], text(&[2, 2], 9)), 3, 0, 0);
    world.finish();
    assert_eq!(world.reused, 160);
    // No names left: such a picture is computed alone, and nobody finds it.
    world.scheduler.names.given = Names::FIRST;
    for id in [5, 6] {
        world.push_shown(id, illustrated(&[(40, 30, 2)], text(&[0], 9)), 3, 0, 0);
        world.finish();
    }
    assert_eq!(world.reused, 160);
}
