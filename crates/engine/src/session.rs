//! One sequence: its tokens, its cache blocks, and the passes that extend it.

use lapidary_model::{Model, forward};
use lapidary_ops::{KV_BLOCK, KvCache, KvLayout, KvType, Ops, OutOfMemory, Rows, Span};
use std::fmt;

/// What a sequence may use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Tokens in all, prompt and answer.
    pub context: usize,
    /// Tokens of a prompt that one pass takes.
    pub chunk: usize,
    /// The type of keys and values.
    pub kv: KvType,
}

/// Why a sequence can't be extended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SessionError {
    /// The tokens would not fit.
    ContextFull {
        /// Tokens that there would be.
        wanted: usize,
        /// Tokens that there may be.
        context: usize,
    },
    /// A token id beyond the vocabulary.
    UnknownToken {
        /// The id.
        id: u32,
        /// Its place among the tokens given.
        index: usize,
        /// Entries of the vocabulary.
        vocab: usize,
    },
    /// No tokens to compute.
    Empty,
    /// No memory for the cache.
    OutOfMemory(OutOfMemory),
}

impl fmt::Display for SessionError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            SessionError::ContextFull { wanted, context } => {
                write!(f, "{wanted} tokens do not fit in a context of {context}; nothing was cut")
            }
            SessionError::UnknownToken { id, index, vocab } => {
                write!(f, "token {id} (number {index}) is not below the vocabulary's {vocab}")
            }
            SessionError::Empty => f.write_str("the prompt has no tokens"),
            SessionError::OutOfMemory(e) => write!(f, "key-value cache: {e}"),
        }
    }
}

impl std::error::Error for SessionError {}

/// The blocks of one group of layers.
struct Table {
    /// Positions that a row sees.
    window: Option<usize>,
    /// Physical block of each logical block; stale below `first`.
    blocks: Vec<u32>,
    /// Logical blocks below this have left the window and were handed on.
    first: usize,
    /// Physical blocks that wait for their next use.
    free: Vec<u32>,
    /// Physical blocks that exist.
    count: usize,
}

impl Table {
    /// Blocks for positions up to `end`, when `start` is the next to be computed.
    fn extend(&mut self, start: usize, end: usize) {
        if let Some(window) = self.window {
            // The row at `start` sees from here on; no later row sees further back.
            let seen = (start + 1).saturating_sub(window) / KV_BLOCK;
            while self.first < seen.min(self.blocks.len()) {
                self.free.push(self.blocks[self.first]);
                self.first += 1;
            }
        }
        while self.blocks.len() * KV_BLOCK < end {
            let block = self.free.pop().unwrap_or_else(|| {
                self.count += 1;
                self.count as u32 - 1
            });
            self.blocks.push(block);
        }
    }

    /// Forgets positions from `len` on; whether what remains in sight is still there.
    fn rewind(&mut self, len: usize) -> bool {
        let seen = self.window.map_or(0, |w| (len + 1).saturating_sub(w) / KV_BLOCK);
        if seen < self.first {
            return false;
        }
        while self.blocks.len() > len.div_ceil(KV_BLOCK) {
            self.free.extend(self.blocks.pop());
        }
        true
    }
}

/// A sequence of tokens whose keys and values are kept.
pub struct Session {
    limits: Limits,
    cache: KvCache,
    tables: Vec<Table>,
    tokens: Vec<u32>,
}

impl Session {
    /// An empty sequence for a model of this layout.
    pub fn new(layout: &KvLayout, limits: Limits) -> Self {
        let table = |window: &Option<usize>| Table {
            window: *window,
            blocks: Vec::new(),
            first: 0,
            free: Vec::new(),
            count: 0,
        };
        Self {
            limits,
            cache: KvCache::new(layout, limits.kv),
            tables: layout.groups.iter().map(table).collect(),
            tokens: Vec::new(),
        }
    }

    /// The tokens so far.
    pub fn tokens(&self) -> &[u32] {
        &self.tokens
    }

    /// What it may use.
    pub fn limits(&self) -> Limits {
        self.limits
    }

    /// Bytes of the cache in memory.
    pub fn cache_bytes(&self) -> usize {
        self.cache.bytes()
    }

    /// Keeps as much of the cache as `tokens` begins with, and forgets the rest. Returns how many
    /// tokens need not be computed again: always fewer than `tokens` has, so that there is
    /// something to compute.
    pub fn keep_prefix(&mut self, tokens: &[u32]) -> usize {
        let same = self.tokens.iter().zip(tokens).take_while(|(a, b)| a == b).count();
        let len = same.min(tokens.len().saturating_sub(1));
        // A window that has moved on can't be moved back: then all is computed anew.
        let kept = self.tables.iter_mut().filter_map(|t| t.rewind(len).then_some(())).count();
        if kept == self.tables.len() {
            self.tokens.truncate(len);
        } else {
            self.reset();
        }
        self.tokens.len()
    }

    /// Forgets all tokens; the memory is kept.
    pub fn reset(&mut self) {
        self.tokens.clear();
        for t in &mut self.tables {
            t.free = (0..t.count as u32).rev().collect();
            t.blocks.clear();
            t.first = 0;
        }
    }

    /// Computes `ids` as the next tokens. Returns the logits `[rows, vocab]` of the last one, or of
    /// all of them.
    ///
    /// # Errors
    /// [`SessionError`]; the sequence is unchanged then.
    pub fn extend(
        &mut self,
        model: &dyn Model,
        ops: &mut dyn Ops,
        ids: &[u32],
        all: bool,
    ) -> Result<Vec<f32>, SessionError> {
        let info = model.info();
        let wanted = self.tokens.len() + ids.len();
        if wanted > self.limits.context {
            return Err(SessionError::ContextFull { wanted, context: self.limits.context });
        }
        if let Some((index, &id)) = ids.iter().enumerate().find(|(_, i)| **i as usize >= info.vocab)
        {
            return Err(SessionError::UnknownToken { id, index, vocab: info.vocab });
        }
        if ids.is_empty() {
            return Err(SessionError::Empty);
        }
        let mut logits = Vec::new();
        let chunks = ids.len().div_ceil(self.limits.chunk.max(1));
        for (i, chunk) in ids.chunks(self.limits.chunk.max(1)).enumerate() {
            let rows = self.rows(chunk)?;
            let wanted: Vec<u32> = match (all, i + 1 == chunks) {
                (true, _) => (0..chunk.len() as u32).collect(),
                (false, true) => vec![chunk.len() as u32 - 1],
                (false, false) => vec![],
            };
            if let Some(out) = self.pass(model, ops, &rows, &wanted) {
                logits.extend(out);
            }
            self.tokens.extend(chunk);
        }
        Ok(logits)
    }

    /// Computes `ids`, one chunk, as the next tokens. Returns the hidden states after the last
    /// norm, `[ids, width]`.
    ///
    /// # Errors
    /// [`SessionError`]; the sequence is unchanged then.
    pub fn states(
        &mut self,
        model: &dyn Model,
        ops: &mut dyn Ops,
        ids: &[u32],
    ) -> Result<Vec<f32>, SessionError> {
        let rows = self.rows(ids)?;
        let mut x = model.embed(ops, &rows);
        for layer in 0..model.info().layers {
            x = model.block(layer, ops, x, &rows, &mut self.cache);
        }
        self.tokens.extend(ids);
        let x = model.norm(ops, &x);
        Ok(ops.read(&x))
    }

    /// One pass; without wanted rows the head is left out.
    fn pass(
        &mut self,
        model: &dyn Model,
        ops: &mut dyn Ops,
        rows: &Rows,
        wanted: &[u32],
    ) -> Option<Vec<f32>> {
        if wanted.is_empty() {
            let mut x = model.embed(ops, rows);
            for layer in 0..model.info().layers {
                x = model.block(layer, ops, x, rows, &mut self.cache);
            }
            return None;
        }
        let logits = forward(model, ops, rows, wanted, &mut self.cache);
        Some(ops.read(&logits))
    }

    /// The batch that extends the sequence by `ids`.
    fn rows(&mut self, ids: &[u32]) -> Result<Rows, SessionError> {
        let position = self.tokens.len();
        for (group, table) in self.tables.iter_mut().enumerate() {
            table.extend(position, position + ids.len());
            self.cache.grow(group, table.count).map_err(SessionError::OutOfMemory)?;
        }
        let tables = self.tables.iter().map(|t| t.blocks.clone()).collect();
        let span = Span { rows: 0..ids.len(), position, tables };
        Ok(Rows { ids: ids.to_vec(), spans: vec![span] })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table(window: Option<usize>) -> Table {
        Table { window, blocks: Vec::new(), first: 0, free: Vec::new(), count: 0 }
    }

    #[test]
    fn a_window_needs_few_blocks_and_never_loses_what_is_in_sight() {
        for window in [1, 31, 32, 33, 100, 512] {
            for chunk in [1, 7, 32, 200] {
                let mut t = table(Some(window));
                let mut owner = std::collections::HashMap::new();
                let mut position = 0;
                while position < 2000 {
                    t.extend(position, position + chunk);
                    for p in position..position + chunk {
                        owner.insert(t.blocks[p / KV_BLOCK], p / KV_BLOCK);
                    }
                    for p in (position + 1).saturating_sub(window)..position + chunk {
                        assert_eq!(
                            owner[&t.blocks[p / KV_BLOCK]],
                            p / KV_BLOCK,
                            "{window} {chunk} {p}"
                        );
                    }
                    position += chunk;
                }
                let most = (window + chunk).div_ceil(KV_BLOCK) + 1;
                assert!(t.count <= most, "{window} {chunk}: {} blocks", t.count);
            }
        }
    }

    #[test]
    fn rewinding_keeps_sight_or_says_no() {
        let mut t = table(Some(64));
        t.extend(0, 200);
        assert!(t.rewind(150));
        t.extend(150, 400);
        t.extend(400, 401);
        assert!(!t.rewind(100), "positions 37 to 100 have left the window");
        let mut t = table(None);
        t.extend(0, 400);
        assert!(t.rewind(3));
        assert_eq!(t.blocks.len(), 1);
    }
}
