//! One sequence: its tokens, its cache blocks, and the passes that extend it.

use crate::batch;
use crate::blocks::{Blocks, Full, Held, Space};
use lapidary_model::Model;
use lapidary_ops::{KvCache, KvLayout, KvType, Media, Ops, OutOfMemory, Rows, Span};
use sha2::{Digest as _, Sha256};
use std::fmt;
use std::ops::Range;
use std::sync::Arc;

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

/// A sequence of tokens whose keys and values are kept.
pub struct Session {
    limits: Limits,
    cache: KvCache,
    blocks: Blocks,
    held: Held,
    tokens: Vec<u32>,
    pictures: Vec<Picture>,
}

/// Rows of a sequence that a picture takes.
#[derive(Debug, Clone, PartialEq)]
pub struct Picture {
    /// Their positions.
    pub rows: Range<usize>,
    /// Their embeddings, row by row.
    pub features: Arc<Vec<f32>>,
    /// What tells it from others.
    pub digest: Digest,
}

/// SHA-256 of a picture's embeddings: all that a model sees of it.
pub type Digest = [u8; 32];

impl Picture {
    /// The picture whose embeddings stand in these rows.
    pub fn new(rows: Range<usize>, features: Arc<Vec<f32>>) -> Self {
        let mut hash = Sha256::new();
        for part in features.chunks(1024) {
            let bytes: Vec<u8> = part.iter().flat_map(|x| x.to_le_bytes()).collect();
            hash.update(bytes);
        }
        Self { rows, features, digest: hash.finalize().into() }
    }

    /// Puts what of it lies at `positions` of its sequence into the rows of a batch, of which
    /// `first` is that at the first of the positions.
    pub(crate) fn lay(&self, positions: &Range<usize>, first: usize, rows: &mut Rows) {
        let inside = self.rows.start.max(positions.start)..self.rows.end.min(positions.end);
        if inside.is_empty() {
            return;
        }
        let at = |position: usize| position - positions.start + first;
        let range = at(inside.start)..at(inside.end);
        rows.together.push(range.clone());
        let (features, from) = (self.features.clone(), inside.start - self.rows.start);
        rows.media.push(Media { rows: range, features, first: from });
    }
}

impl Session {
    /// An empty sequence for a model of this layout.
    pub fn new(layout: &KvLayout, limits: Limits) -> Self {
        let blocks = Blocks::new(layout, limits.kv, usize::MAX);
        let held = blocks.hold_nothing(Space::default());
        let cache = KvCache::new(layout, limits.kv);
        Self { limits, cache, blocks, held, tokens: Vec::new(), pictures: Vec::new() }
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
        let mut len = same.min(tokens.len().saturating_sub(1));
        // The rows of a picture see each other: they are computed together.
        if let Some(p) = self.pictures.iter().find(|p| p.rows.contains(&len)) {
            len = p.rows.start;
        }
        // A window that has moved on can't be moved back: then all is computed anew.
        if self.blocks.rewind(&mut self.held, len) {
            self.tokens.truncate(len);
        } else {
            self.reset();
        }
        self.tokens.len()
    }

    /// Says which positions are parts of pictures, those of the whole sequence. What was computed
    /// of others before is forgotten.
    pub fn show(&mut self, pictures: Vec<Picture>) {
        let same = self.pictures.iter().zip(&pictures).take_while(|(a, b)| a == b).count();
        let changed = [self.pictures.get(same), pictures.get(same)];
        let first = changed.into_iter().flatten().map(|p| p.rows.start).min();
        if let Some(first) = first.filter(|f| *f < self.tokens.len()) {
            self.pictures.truncate(same);
            let kept = self.tokens[..first].to_vec();
            if !self.blocks.rewind(&mut self.held, first) {
                self.reset();
            } else {
                self.tokens = kept;
            }
        }
        self.pictures = pictures;
    }

    /// Where a chunk of the prompt that begins at `start` ends, `end` at the latest: never inside
    /// a picture.
    pub fn chunk_end(&self, start: usize, end: usize) -> usize {
        let cut = start + self.limits.chunk.max(1);
        let inside = self.pictures.iter().find(|p| p.rows.start < cut && cut < p.rows.end);
        inside.map_or(cut, |p| p.rows.end).min(end)
    }

    /// Forgets all tokens; the memory is kept.
    pub fn reset(&mut self) {
        self.tokens.clear();
        let held = std::mem::replace(&mut self.held, self.blocks.hold_nothing(Space::default()));
        self.blocks.release(held);
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
        let first = self.tokens.len();
        while self.tokens.len() < wanted {
            let start = self.tokens.len();
            // A prompt that sees itself is computed at once.
            let prefix = info.prefix && start == 0;
            let end = if prefix { wanted } else { self.chunk_end(start, wanted) };
            let chunk = &ids[start - first..end - first];
            let mut rows = self.rows(chunk)?;
            if prefix {
                rows.together.clear();
                rows.together.push(0..chunk.len());
            }
            let wanted: Vec<u32> = match (all, end == wanted) {
                (true, _) => (0..chunk.len() as u32).collect(),
                (false, true) => vec![chunk.len() as u32 - 1],
                (false, false) => vec![],
            };
            let wanted = batch::Wanted { logits: &wanted, states: &[], adapters: None };
            let out = batch::pass(model, ops, &rows, wanted, &mut self.cache);
            logits.extend(out.logits);
            self.tokens.extend(chunk);
        }
        Ok(logits)
    }

    /// The batch that extends the sequence by `ids`.
    fn rows(&mut self, ids: &[u32]) -> Result<Rows, SessionError> {
        let position = self.tokens.len();
        // Memory without bound is never full; the system may still refuse it.
        let extended = self.blocks.extend(&mut self.held, position, position + ids.len());
        let followed = batch::follow(&mut self.cache, &mut self.blocks);
        followed.map_err(SessionError::OutOfMemory)?;
        extended.map_err(|Full| SessionError::OutOfMemory(OutOfMemory(self.cache.bytes())))?;
        let span = Span { rows: 0..ids.len(), position, tables: self.held.tables() };
        let mut rows = Rows::new(ids.to_vec(), vec![span]);
        let positions = position..position + ids.len();
        self.pictures.iter().for_each(|p| p.lay(&positions, 0, &mut rows));
        Ok(rows)
    }
}
