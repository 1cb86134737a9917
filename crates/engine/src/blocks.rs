//! Who holds which block of keys and values: tables of sequences, reference counts, prefixes that
//! are kept for requests to come, and eviction. Bookkeeping alone: the cache itself follows the
//! [`Change`]s.
//!
//! Prefixes are a tree of whole blocks: a node stands for 32 tokens after its parent's, and is
//! found by the parent and the tokens themselves, so that no collision of hashes can mix up texts.
//! The rows of a picture stand there by the picture's name ([`crate::scheduler`]).
//! A node may have a block in each group of layers. Layers that see all before them need the blocks
//! of every node on the way; a prefix ends for them where one is missing. Layers with a window need
//! only the last ones, and those are often handed on while a sequence moves: they are kept apart
//! in two classes, so that windows at the ends of prompts and where texts have parted outlive those
//! in between.

use lapidary_ops::{KV_BLOCK, KvLayout, KvType};
use std::collections::{BTreeSet, HashMap};
use std::ops::Range;

/// What the cache has to do before the next pass.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Change {
    /// Memory for a block of a group.
    Provide(usize, u32),
    /// A block's memory goes back to the system.
    Release(usize, u32),
}

/// There is no memory for another block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Full;

/// The blocks of a sequence in one group of layers.
#[derive(Debug, Clone, Default)]
struct Table {
    /// Physical block of each logical block; stale below `first`.
    blocks: Vec<u32>,
    /// Logical blocks below this have left the window and were handed on.
    first: usize,
}

/// What a sequence holds.
#[derive(Debug, Default)]
pub(crate) struct Held {
    tables: Vec<Table>,
    /// Whose it is.
    space: Space,
    /// The nodes of its whole blocks, as far as they were published.
    chain: Vec<u32>,
    /// Numbers of blocks after which a prefix may well be looked for again.
    keep: Vec<usize>,
}

impl Held {
    /// For each group the physical block of each logical one.
    pub fn tables(&self) -> Vec<Vec<u32>> {
        self.tables.iter().map(|t| t.blocks.clone()).collect()
    }

    /// Notes that prefixes of `blocks` blocks may be looked for.
    pub fn keep(&mut self, blocks: usize) {
        if !self.keep.contains(&blocks) {
            self.keep.push(blocks);
        }
    }
}

/// The first logical block that a row at `position` sees.
fn sight(window: Option<usize>, position: usize) -> usize {
    window.map_or(0, |w| (position + 1).saturating_sub(w) / KV_BLOCK)
}

/// How a prompt begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Match {
    /// Blocks that need not be computed.
    pub blocks: usize,
    /// Blocks that could have been reused, had their windows been kept.
    pub known: usize,
    /// Bytes of the former, of layers that see everything, that no sequence is using.
    pub idle_bytes: usize,
}

struct Group {
    window: Option<usize>,
    bytes: usize,
    blocks: Vec<Block>,
    /// Blocks with memory and without content.
    free: Vec<u32>,
    /// Numbers of blocks without memory.
    absent: Vec<u32>,
}

#[derive(Clone, Copy, Default)]
struct Block {
    /// Sequences that read it.
    users: u32,
    /// The node whose tokens it holds.
    node: Option<u32>,
    /// Its place among idle ones, when it has no users.
    idle: Option<(bool, u64)>,
}

/// Who may share prefixes: sequences of one space alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub(crate) struct Space {
    /// The adapter, which changes keys and values.
    pub adapter: Option<u32>,
    /// Whose requests these are: how long an answer takes must not tell others what was asked.
    pub owner: u64,
}

/// What a node comes after.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Parent {
    /// Nothing: texts of a space begin here.
    Root(Space),
    /// Another node.
    Node(u32),
}

type Ids = [u32; KV_BLOCK];

struct Node {
    parent: Parent,
    ids: Ids,
    /// Its block in each group.
    blocks: Vec<Option<u32>>,
    children: u32,
    /// Sequences whose chains it is part of.
    users: u32,
}

/// All blocks of an engine.
pub(crate) struct Blocks {
    groups: Vec<Group>,
    /// Bytes that blocks may have.
    memory: usize,
    /// Bytes that blocks have.
    resident: usize,
    /// Bytes that sequences hold.
    used: usize,
    /// Blocks with content and no users, the next to go first: whether it was kept on purpose,
    /// when it was last used, group and number.
    idle: BTreeSet<(bool, u64, usize, u32)>,
    nodes: Vec<Node>,
    free_nodes: Vec<u32>,
    index: HashMap<(Parent, Ids), u32>,
    clock: u64,
    changes: Vec<Change>,
}

impl Blocks {
    /// No blocks yet, and at most `memory` bytes of them.
    pub fn new(layout: &KvLayout, ty: KvType, memory: usize) -> Self {
        let group = |(g, window): (usize, &Option<usize>)| Group {
            window: *window,
            bytes: layout.block_bytes(g, ty),
            blocks: Vec::new(),
            free: Vec::new(),
            absent: Vec::new(),
        };
        Self {
            groups: layout.groups.iter().enumerate().map(group).collect(),
            memory,
            resident: 0,
            used: 0,
            idle: BTreeSet::new(),
            nodes: Vec::new(),
            free_nodes: Vec::new(),
            index: HashMap::new(),
            clock: 0,
            changes: Vec::new(),
        }
    }

    /// Bytes that sequences hold.
    pub fn used(&self) -> usize {
        self.used
    }

    /// Bytes of prefixes that no sequence holds.
    pub fn cached(&self) -> usize {
        let free: usize = self.groups.iter().map(|g| g.free.len() * g.bytes).sum();
        self.resident - self.used - free
    }

    /// What the cache has to do, in this order.
    pub fn take_changes(&mut self) -> Vec<Change> {
        std::mem::take(&mut self.changes)
    }

    /// Bytes of a block in every group: what a sequence takes at once when it grows.
    pub fn step_bytes(&self) -> usize {
        self.groups.iter().map(|g| g.bytes).sum()
    }

    /// Bytes that a sequence of `tokens` takes at most when `start` of them are reused and the
    /// rest is computed by chunks of `chunk`; in layers with a window the reused ones count too.
    pub fn needs(&self, start: usize, tokens: usize, chunk: usize) -> usize {
        let blocks = |g: &Group| {
            // Windows of the first row and of the last chunk; what is between comes and goes.
            let all = tokens.div_ceil(KV_BLOCK);
            let windowed = g.window.map_or(all, |w| (w + chunk).div_ceil(KV_BLOCK) + 1);
            all.min(windowed) - if g.window.is_none() { start / KV_BLOCK } else { 0 }
        };
        self.groups.iter().map(|g| blocks(g) * g.bytes).sum()
    }

    /// Whether `bytes` more could be held.
    pub fn has_room(&self, bytes: usize) -> bool {
        self.used.saturating_add(bytes) <= self.memory
    }

    /// An empty sequence.
    pub fn hold_nothing(&self, space: Space) -> Held {
        Held { tables: vec![Table::default(); self.groups.len()], space, ..Held::default() }
    }

    /// How much of `tokens` is there already: whole blocks, and never all of them, so that there is
    /// something to compute. None of `whole`, sorted ranges of them, is cut.
    pub fn find(&self, space: Space, tokens: &[u32], whole: &[Range<usize>]) -> Match {
        let most = tokens.len().saturating_sub(1) / KV_BLOCK;
        let chain = self.walk(space, tokens, most);
        // For each group, how many blocks in a row end at the node before.
        let mut runs = vec![0; self.groups.len()];
        let (mut best, mut known) = (0, 0);
        for (i, &node) in chain.iter().enumerate() {
            let node = &self.nodes[node as usize];
            for ((run, block), g) in runs.iter_mut().zip(&node.blocks).zip(&self.groups) {
                *run = if block.is_some() { *run + 1 } else { 0 };
                if block.is_none() && g.window.is_none() {
                    return self.weigh(&chain, best, known);
                }
            }
            let end = (i + 1) * KV_BLOCK;
            if whole.iter().any(|r| r.start < end && end < r.end) {
                continue;
            }
            known = i + 1;
            let needed = |g: &Group| known - sight(g.window, end).min(known);
            if runs.iter().zip(&self.groups).all(|(run, g)| *run >= needed(g)) {
                best = known;
            }
        }
        self.weigh(&chain, best, known)
    }

    /// The nodes that `tokens` begins with, at most so many.
    fn walk(&self, space: Space, tokens: &[u32], most: usize) -> Vec<u32> {
        let mut chain = Vec::new();
        let mut parent = Parent::Root(space);
        for ids in tokens.as_chunks::<KV_BLOCK>().0.iter().take(most) {
            let Some(&node) = self.index.get(&(parent, *ids)) else { break };
            chain.push(node);
            parent = Parent::Node(node);
        }
        chain
    }

    fn weigh(&self, chain: &[u32], blocks: usize, known: usize) -> Match {
        let idle = |g: usize, i: usize| {
            let block = self.nodes[chain[i] as usize].blocks[g];
            block.is_some_and(|b| self.groups[g].blocks[b as usize].users == 0)
        };
        let idle_bytes = (self.groups.iter().enumerate())
            .filter(|(_, group)| group.window.is_none())
            .map(|(g, group)| (0..blocks).filter(|i| idle(g, *i)).count() * group.bytes)
            .sum();
        Match { blocks, known, idle_bytes }
    }

    /// A sequence that begins with the first `blocks` blocks of `tokens`, as found.
    pub fn reuse(&mut self, space: Space, tokens: &[u32], blocks: usize) -> Held {
        let mut held = self.hold_nothing(space);
        held.chain = self.walk(space, tokens, blocks);
        debug_assert_eq!(held.chain.len(), blocks);
        for &node in &held.chain {
            self.nodes[node as usize].users += 1;
        }
        for (g, table) in held.tables.iter_mut().enumerate() {
            table.first = sight(self.groups[g].window, blocks * KV_BLOCK).min(blocks);
            for (i, &node) in held.chain.iter().enumerate() {
                let block = self.nodes[node as usize].blocks[g].filter(|_| i >= table.first);
                if let Some(block) = block {
                    self.acquire(g, block);
                }
                table.blocks.push(block.unwrap_or(0));
            }
        }
        held
    }

    /// Blocks for positions up to `end`, when `start` is the next to be computed. What was had
    /// before it was full stays with the sequence.
    pub fn extend(&mut self, held: &mut Held, start: usize, end: usize) -> Result<(), Full> {
        let Held { tables, keep, .. } = held;
        for (g, table) in tables.iter_mut().enumerate() {
            let window = self.groups[g].window;
            // The row at `start` sees from here on; no later row sees further back.
            let seen = sight(window, start).min(table.blocks.len());
            for i in table.first..seen {
                let in_sight = |b: &usize| (sight(window, b * KV_BLOCK)..*b).contains(&i);
                self.drop_block(g, table.blocks[i], keep.iter().any(in_sight));
            }
            table.first = table.first.max(seen);
        }
        for (g, table) in tables.iter_mut().enumerate() {
            while table.blocks.len() * KV_BLOCK < end {
                table.blocks.push(self.allocate(g)?);
            }
        }
        Ok(())
    }

    /// Offers the whole blocks among the first `computed` tokens of the sequence to others. A block
    /// that another has published meanwhile is given up for that one: they hold the same bits.
    pub fn publish(&mut self, held: &mut Held, tokens: &[u32], computed: usize) {
        for i in held.chain.len()..computed / KV_BLOCK {
            let Some(&ids) = tokens[i * KV_BLOCK..].first_chunk() else { return };
            let parent = held.chain.last().map_or(Parent::Root(held.space), |n| Parent::Node(*n));
            let node = self.node(parent, ids);
            self.nodes[node as usize].users += 1;
            held.chain.push(node);
            for (g, table) in held.tables.iter_mut().enumerate() {
                if i < table.first {
                    continue;
                }
                let mine = table.blocks[i];
                match self.nodes[node as usize].blocks[g] {
                    Some(theirs) => {
                        self.acquire(g, theirs);
                        self.drop_block(g, mine, false);
                        table.blocks[i] = theirs;
                    }
                    None => {
                        self.nodes[node as usize].blocks[g] = Some(mine);
                        self.groups[g].blocks[mine as usize].node = Some(node);
                    }
                }
            }
        }
    }

    /// Forgets positions from `len` on of a sequence that has published nothing; whether what
    /// remains in sight is still there.
    pub fn rewind(&mut self, held: &mut Held, len: usize) -> bool {
        let groups = self.groups.iter().zip(&held.tables);
        if groups.into_iter().any(|(g, t)| sight(g.window, len) < t.first) {
            return false;
        }
        for (g, table) in held.tables.iter_mut().enumerate() {
            while table.blocks.len() > len.div_ceil(KV_BLOCK) {
                if let Some(block) = table.blocks.pop() {
                    self.drop_block(g, block, false);
                }
            }
        }
        true
    }

    /// A sequence ends: what it published stays as long as there is room.
    pub fn release(&mut self, held: Held) {
        // The later ones are to go first: an earlier one is of use without them.
        let longest = held.tables.iter().map(|t| t.blocks.len()).max().unwrap_or(0);
        for i in (0..longest).rev() {
            for (g, table) in held.tables.iter().enumerate() {
                if (table.first..table.blocks.len()).contains(&i) {
                    self.drop_block(g, table.blocks[i], true);
                }
            }
        }
        for &node in held.chain.iter().rev() {
            self.nodes[node as usize].users -= 1;
            self.prune(node);
        }
    }

    fn acquire(&mut self, g: usize, block: u32) {
        let b = &mut self.groups[g].blocks[block as usize];
        if let Some((kept, stamp)) = b.idle.take() {
            self.idle.remove(&(kept, stamp, g, block));
        }
        if b.users == 0 {
            self.used += self.groups[g].bytes;
        }
        self.groups[g].blocks[block as usize].users += 1;
    }

    /// One user less; `keep`: it is likely to be looked for.
    fn drop_block(&mut self, g: usize, block: u32, keep: bool) {
        let group = &mut self.groups[g];
        let b = &mut group.blocks[block as usize];
        b.users -= 1;
        if b.users > 0 {
            return;
        }
        self.used -= group.bytes;
        if b.node.is_none() {
            group.free.push(block);
            return;
        }
        self.clock += 1;
        b.idle = Some((keep, self.clock));
        self.idle.insert((keep, self.clock, g, block));
    }

    /// A block for one user: a free one, a new one, or one that is taken from a prefix.
    fn allocate(&mut self, g: usize) -> Result<u32, Full> {
        let bytes = self.groups[g].bytes;
        let block = match self.groups[g].free.pop() {
            Some(block) => block,
            None if !self.has_room(bytes) => return Err(Full),
            None => self.make_room(g).unwrap_or_else(|| self.provide(g)),
        };
        self.groups[g].blocks[block as usize].users = 1;
        self.used += bytes;
        Ok(block)
    }

    /// Evicts until another block of group `g` fits; one of that group itself is handed over.
    fn make_room(&mut self, g: usize) -> Option<u32> {
        while self.resident.saturating_add(self.groups[g].bytes) > self.memory {
            let useless = self.groups.iter().position(|g| !g.free.is_empty());
            if let Some(other) = useless {
                let block = self.groups[other].free.pop();
                block.into_iter().for_each(|b| self.return_memory(other, b));
                continue;
            }
            let (_, _, other, block) = self.idle.pop_first()?;
            self.forget(other, block);
            if other == g {
                return Some(block);
            }
            self.return_memory(other, block);
        }
        None
    }

    fn provide(&mut self, g: usize) -> u32 {
        let group = &mut self.groups[g];
        let block = group.absent.pop().unwrap_or_else(|| {
            group.blocks.push(Block::default());
            group.blocks.len() as u32 - 1
        });
        self.resident = self.resident.saturating_add(group.bytes);
        self.changes.push(Change::Provide(g, block));
        block
    }

    fn return_memory(&mut self, g: usize, block: u32) {
        self.resident -= self.groups[g].bytes;
        self.groups[g].absent.push(block);
        self.changes.push(Change::Release(g, block));
    }

    /// Takes an idle block from its node.
    fn forget(&mut self, g: usize, block: u32) {
        let b = &mut self.groups[g].blocks[block as usize];
        b.idle = None;
        if let Some(node) = b.node.take() {
            self.nodes[node as usize].blocks[g] = None;
            self.prune(node);
        }
    }

    fn node(&mut self, parent: Parent, ids: Ids) -> u32 {
        if let Some(&node) = self.index.get(&(parent, ids)) {
            return node;
        }
        let new =
            Node { parent, ids, blocks: vec![None; self.groups.len()], children: 0, users: 0 };
        let node = match self.free_nodes.pop() {
            Some(node) => {
                self.nodes[node as usize] = new;
                node
            }
            None => {
                self.nodes.push(new);
                self.nodes.len() as u32 - 1
            }
        };
        if let Parent::Node(parent) = parent {
            self.nodes[parent as usize].children += 1;
        }
        self.index.insert((parent, ids), node);
        node
    }

    /// Removes a node that nothing needs, and its parents likewise.
    fn prune(&mut self, mut node: u32) {
        loop {
            let n = &self.nodes[node as usize];
            if n.users > 0 || n.children > 0 || n.blocks.iter().any(Option::is_some) {
                return;
            }
            let parent = n.parent;
            self.index.remove(&(parent, n.ids));
            self.free_nodes.push(node);
            let Parent::Node(parent) = parent else { return };
            self.nodes[parent as usize].children -= 1;
            node = parent;
        }
    }
}

#[cfg(test)]
mod tests;
