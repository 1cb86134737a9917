//! Which tokens of which requests the next pass computes. Knows token ids and blocks; touches no
//! tensor, no clock and no channel.
//!
//! Every running request that only lacks its latest token gets a row; what the budget leaves goes
//! to prompts, chunk by chunk, and to requests that can start. The more requests there are, the
//! larger the pass may be: prompts would queue behind so many answers otherwise, and never catch up.
//! Turns go by priority, then to the client that has had least, then by arrival. When memory is short the request whose turn would
//! come last loses its blocks and is computed again later: invariant 3 says that it can't tell.
//!
//! The rows of a picture see each other: they go through one pass, even if they are more than the
//! budget, and no prefix ends among them. All of them have the same token id, so in prefixes they
//! stand by a name that is the picture's own: a number that no token id can be. A prompt that sees
//! itself whole goes through one pass too, and shares nothing.

use crate::blocks::{Blocks, Full, Held, Space};
use crate::session::Digest;
use lapidary_ops::KV_BLOCK;
use std::cmp::Reverse;
use std::collections::{HashMap, HashSet};
use std::ops::Range;

/// What a new token counts beside one of a prompt, when turns are given: it needs a pass of its own.
const NEW_TOKEN: u64 = 4;

/// Rows that a pass may have for each request, if that is more than the budget: one for its answer, and
/// seven for the prompts of those that come in the place of who is done. That is enough where prompts
/// are up to seven times as long as answers; more only makes those wait who are being answered.
const ROWS_EACH: usize = 8;

/// Rows of a pass of `requests` at most, without those of a picture.
pub(crate) fn pass_rows(budget: usize, requests: usize) -> usize {
    budget.max(requests * ROWS_EACH)
}

/// A request, as the scheduler sees it.
pub(crate) struct Sequence {
    /// Its number; later ones have higher numbers.
    pub id: u64,
    /// Prompt and answer so far.
    pub tokens: Vec<u32>,
    /// What they are called in prefixes: themselves, or the picture that they are rows of.
    names: Vec<u32>,
    /// What goes through one pass: rows of pictures, or the prompt that sees itself.
    pictures: Vec<Range<usize>>,
    /// Whether others may begin with what it has computed.
    offered: bool,
    /// Tokens whose keys and values are there.
    pub computed: usize,
    /// Higher ones first.
    pub priority: i32,
    /// Who shares its turns.
    pub client: u64,
    /// Whether it may begin with what others have computed.
    pub reuse: bool,
    /// Those others.
    pub space: Space,
    /// Tokens of the prompt.
    prompt: usize,
    held: Held,
}

impl Sequence {
    /// Where a chunk of `left` rows ends: not inside a picture.
    fn chunk_end(&self, left: usize) -> usize {
        let end = self.tokens.len().min(self.computed + left);
        match self.pictures.iter().find(|p| p.start < end && end < p.end) {
            Some(p) if p.start > self.computed => p.start,
            Some(p) => p.end,
            None => end,
        }
    }
}

/// A request that comes.
pub(crate) struct New {
    /// As in [`Sequence`].
    pub id: u64,
    /// Its tokens.
    pub prompt: Vec<u32>,
    /// Which of them are rows of which pictures; sorted and apart.
    pub pictures: Vec<(Range<usize>, Digest)>,
    /// Whether all of the prompt sees itself.
    pub whole: bool,
    /// As in [`Sequence`].
    pub priority: i32,
    /// As in [`Sequence`].
    pub client: u64,
    /// As in [`Sequence`].
    pub reuse: bool,
    /// As in [`Sequence`].
    pub space: Space,
}

/// Tokens of a sequence that a pass computes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Part {
    /// The sequence.
    pub id: u64,
    /// Its tokens.
    pub tokens: Range<usize>,
    /// They are the last that are known: the next one can be chosen.
    pub last: bool,
}

/// What the next pass computes.
#[derive(Debug, Default)]
pub(crate) struct Plan {
    /// Rows, sequence by sequence.
    pub parts: Vec<Part>,
    /// Sequences that start or start again, and how many of their tokens were found in the cache.
    pub started: Vec<(u64, usize)>,
    /// Sequences that lost their blocks and wait again.
    pub preempted: Vec<u64>,
}

impl Plan {
    fn rows(&self) -> usize {
        self.parts.iter().map(|p| p.tokens.len()).sum()
    }
}

/// Names of pictures. None is given twice, even if what it stood for is forgotten.
#[derive(Default)]
struct Names {
    known: HashMap<Digest, u32>,
    given: u32,
}

impl Names {
    /// Token ids are below.
    const FIRST: u32 = 1 << 31;
    /// Pictures whose names are known at most: those before are not found again.
    const MOST: usize = 1 << 14;

    /// The name of a picture; `None` when there are no more.
    fn of(&mut self, digest: Digest) -> Option<u32> {
        if let Some(name) = self.known.get(&digest) {
            return Some(*name);
        }
        let name = Self::FIRST.checked_add(self.given)?;
        self.given += 1;
        if self.known.len() >= Self::MOST {
            self.known.clear();
        }
        self.known.insert(digest, name);
        Some(name)
    }
}

/// The requests and their blocks.
pub(crate) struct Scheduler {
    /// Public to the batch, which makes the cache follow.
    pub blocks: Blocks,
    /// Rows of a pass, if few requests share it.
    budget: usize,
    /// Rows of one sequence in a pass at most.
    chunk: usize,
    names: Names,
    max_running: usize,
    waiting: Vec<Sequence>,
    running: Vec<Sequence>,
    /// Tokens that active clients have had.
    served: HashMap<u64, u64>,
}

impl Scheduler {
    /// No requests yet; at most `budget` rows of a sequence a pass and `max_running` requests at
    /// once, and pictures of at most `picture` rows.
    pub fn new(blocks: Blocks, budget: usize, max_running: usize, picture: usize) -> Self {
        Self {
            blocks,
            budget,
            chunk: budget.max(picture),
            names: Names::default(),
            // A running request may always have its row.
            max_running: max_running.min(budget),
            waiting: Vec::new(),
            running: Vec::new(),
            served: HashMap::new(),
        }
    }

    /// Requests that have a place.
    pub fn running(&self) -> usize {
        self.running.len()
    }

    /// A new request.
    pub fn push(&mut self, new: New) {
        let New { id, prompt, pictures, whole, priority, client, reuse, space } = new;
        // A client that comes back does not get the turns that it did not want meanwhile.
        let least = self.served.values().copied().min().unwrap_or(0);
        self.served.entry(client).or_insert(least);
        let held = self.blocks.hold_nothing(space);
        let (mut names, mut offered) = (prompt.clone(), true);
        for (rows, digest) in &pictures {
            match self.names.of(*digest) {
                Some(name) => names[rows.clone()].fill(name),
                None => offered = false,
            }
        }
        let (computed, count) = (0, prompt.len());
        let mut pictures: Vec<Range<usize>> = pictures.into_iter().map(|p| p.0).collect();
        if whole {
            pictures.clear();
            pictures.push(0..count);
        }
        // What a row of such a prompt is depends on all of it.
        offered &= !whole;
        let tokens = prompt;
        self.waiting.push(Sequence {
            id,
            tokens,
            names,
            pictures,
            offered,
            computed,
            priority,
            client,
            reuse: reuse && offered,
            space,
            prompt: count,
            held,
        });
    }

    /// The request has ended, for whatever reason.
    pub fn remove(&mut self, id: u64) {
        let from =
            |list: &mut Vec<Sequence>| list.iter().position(|s| s.id == id).map(|i| list.remove(i));
        let Some(s) = from(&mut self.running).or_else(|| from(&mut self.waiting)) else { return };
        self.blocks.release(s.held);
        let active = |list: &[Sequence]| list.iter().any(|o| o.client == s.client);
        if !active(&self.running) && !active(&self.waiting) {
            self.served.remove(&s.client);
        }
    }

    /// A running sequence.
    pub fn get(&self, id: u64) -> Option<&Sequence> {
        self.running.iter().find(|s| s.id == id)
    }

    /// The block tables of a running sequence, for each group.
    pub fn tables(&self, id: u64) -> Vec<Vec<u32>> {
        self.get(id).map(|s| s.held.tables()).unwrap_or_default()
    }

    /// The next token of a running sequence.
    pub fn append(&mut self, id: u64, token: u32) {
        if let Some(s) = self.running.iter_mut().find(|s| s.id == id) {
            s.tokens.push(token);
            s.names.push(token);
        }
    }

    /// The place of a sequence in the order of turns; the first is served first.
    fn turn(&self, s: &Sequence) -> (Reverse<i32>, u64, u64) {
        (Reverse(s.priority), self.served.get(&s.client).copied().unwrap_or(0), s.id)
    }

    /// What to compute next. The blocks of all parts are there.
    pub fn plan(&mut self) -> Plan {
        let mut plan = Plan::default();
        let mut turns: Vec<_> = self.running.iter().map(|s| (self.turn(s), s.id)).collect();
        turns.sort_unstable();
        let lacks = |s: &Self, id| s.get(id).map_or(0, |s| s.tokens.len() - s.computed);
        // Answers go on first, whatever prompts there are.
        let (answers, prompts): (Vec<_>, Vec<_>) =
            turns.into_iter().map(|t| t.1).partition(|&id| lacks(self, id) == 1);
        for id in answers.into_iter().chain(prompts) {
            self.add(&mut plan, id);
        }
        self.start(&mut plan);
        plan
    }

    /// Rows of the next pass at most.
    fn pass_rows(&self) -> usize {
        let requests = self.running.len() + self.waiting.len();
        pass_rows(self.budget, requests.min(self.max_running))
    }

    /// Gives a running sequence rows, and takes blocks from others if it must; from itself if its
    /// turn is the last.
    fn add(&mut self, plan: &mut Plan, id: u64) {
        loop {
            let left = self.pass_rows().saturating_sub(plan.rows()).min(self.budget);
            let Some(i) = self.running.iter().position(|s| s.id == id) else { return };
            let s = &mut self.running[i];
            let end = s.chunk_end(left);
            if s.computed == end {
                return;
            }
            match self.blocks.extend(&mut s.held, s.computed, end) {
                Ok(()) => {
                    let last = end == s.tokens.len();
                    plan.parts.push(Part { id, tokens: s.computed..end, last });
                    return;
                }
                Err(Full) => {
                    let victim = self.last_in_turn();
                    self.preempt(plan, victim.unwrap_or(id));
                }
            }
        }
    }

    /// The running sequence that can be missed most.
    fn last_in_turn(&self) -> Option<u64> {
        // By arrival, not by what clients had: the oldest one is never a victim, and gets done.
        self.running.iter().max_by_key(|s| (Reverse(s.priority), s.id)).map(|s| s.id)
    }

    fn preempt(&mut self, plan: &mut Plan, id: u64) {
        let Some(i) = self.running.iter().position(|s| s.id == id) else { return };
        let mut s = self.running.remove(i);
        plan.parts.retain(|p| p.id != id);
        self.blocks.release(std::mem::replace(&mut s.held, self.blocks.hold_nothing(s.space)));
        s.computed = 0;
        self.waiting.push(s);
        // One that started in this very plan has not been told of yet.
        let started = plan.started.len();
        plan.started.retain(|(other, _)| *other != id);
        if plan.started.len() == started {
            plan.preempted.push(id);
        }
    }

    /// Starts waiting sequences, as far as rows, places and memory go.
    fn start(&mut self, plan: &mut Plan) {
        let mut order: Vec<_> = self.waiting.iter().map(|s| (self.turn(s), s.id)).collect();
        order.sort_unstable();
        for (_, id) in order {
            if plan.preempted.contains(&id) {
                continue;
            }
            if plan.rows() >= self.pass_rows() {
                return;
            }
            let Some(i) = self.waiting.iter().position(|s| s.id == id) else { continue };
            let (start, known) = self.prefix(&self.waiting[i]);
            if self.is_underway(&self.waiting[i], start) {
                continue;
            }
            while !self.fits(i, start) {
                if !self.make_way(plan, self.waiting[i].priority) {
                    return;
                }
            }
            // Victims are at the end of the list: `i` has not moved.
            let mut s = self.waiting.remove(i);
            if s.reuse {
                s.held = self.blocks.reuse(s.space, &s.names, start / KV_BLOCK);
                s.held.keep(known);
                s.held.keep(s.prompt / KV_BLOCK);
                s.held.keep((s.prompt - 1) / KV_BLOCK);
            }
            s.computed = start;
            plan.started.push((id, start));
            self.running.push(s);
            self.add(plan, id);
        }
    }

    /// Tokens that need not be computed, and blocks that almost were there.
    fn prefix(&self, s: &Sequence) -> (usize, usize) {
        if !s.reuse {
            return (0, 0);
        }
        let found = self.blocks.find(s.space, &s.names, &s.pictures);
        (found.blocks * KV_BLOCK, found.known)
    }

    /// Whether a running sequence is about to compute more of what this one begins with: then it is
    /// better to wait for it.
    fn is_underway(&self, s: &Sequence, start: usize) -> bool {
        let most = (s.tokens.len() - 1) / KV_BLOCK * KV_BLOCK;
        let prefilling =
            self.running.iter().filter(|r| r.tokens.len() - r.computed > 1 && r.space == s.space);
        s.reuse
            && prefilling.into_iter().any(|r| {
                let same = r.names.iter().zip(&s.names).take_while(|(a, b)| a == b).count();
                let same = same.min(most) / KV_BLOCK * KV_BLOCK;
                same > start && same > r.computed
            })
    }

    /// Whether there is a place, and memory for all that waiting sequence `i` has, beside what the
    /// running ones may need soon.
    fn fits(&self, i: usize, start: usize) -> bool {
        // One alone always fits: the plan of the engine saw to it.
        if self.running.is_empty() {
            return true;
        }
        let s = &self.waiting[i];
        let find = || self.blocks.find(s.space, &s.names, &s.pictures);
        let idle = if s.reuse { find().idle_bytes } else { 0 };
        let needs = self.blocks.needs(start, s.tokens.len() + 1, self.chunk) + idle;
        let soon = self.running.len() * self.blocks.step_bytes();
        self.running.len() < self.max_running && self.blocks.has_room(needs + soon)
    }

    /// Takes the place of a running sequence of lower priority; whether there was one.
    fn make_way(&mut self, plan: &mut Plan, priority: i32) -> bool {
        let victim = self.last_in_turn().and_then(|id| self.get(id));
        let Some(id) = victim.filter(|s| s.priority < priority).map(|s| s.id) else { return false };
        self.preempt(plan, id);
        true
    }

    /// The parts of `plan` have been computed.
    pub fn commit(&mut self, plan: &Plan) {
        for part in &plan.parts {
            let Some(s) = self.running.iter_mut().find(|s| s.id == part.id) else { continue };
            s.computed = part.tokens.end;
            if s.offered {
                self.blocks.publish(&mut s.held, &s.names, s.computed);
            }
            let new = part.tokens.end.saturating_sub(part.tokens.start.max(s.prompt)) as u64;
            let cost = (part.tokens.len() as u64 - new) + NEW_TOKEN * new;
            *self.served.entry(s.client).or_default() += cost;
        }
    }

    /// Forgets every block: what the cache holds is of no use any more.
    pub fn reset(&mut self, blocks: Blocks) -> Vec<u64> {
        self.blocks = blocks;
        self.served.clear();
        let all: HashSet<u64> =
            self.waiting.drain(..).chain(self.running.drain(..)).map(|s| s.id).collect();
        all.into_iter().collect()
    }
}

#[cfg(test)]
mod tests;
