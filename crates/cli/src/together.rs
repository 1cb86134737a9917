//! Sequences that take every step together, for `lapidary bench --sequences`: the passes alone,
//! without a scheduler.

use lapidary_model::{Model, forward};
use lapidary_ops::{Cpu, KV_BLOCK, KvCache, KvType, Ops, OutOfMemory, Rows, Span};

/// Sequences of equal length.
pub struct Together {
    cache: KvCache,
    sequences: usize,
    /// Blocks that each sequence has in each group.
    blocks: usize,
    position: usize,
}

impl Together {
    /// Room for `tokens` in each of `sequences`; windows are not made use of.
    ///
    /// # Errors
    /// If there is no memory.
    pub fn new(
        model: &dyn Model,
        kv: KvType,
        sequences: usize,
        tokens: usize,
    ) -> Result<Self, OutOfMemory> {
        let layout = &model.info().kv;
        let blocks = tokens.div_ceil(KV_BLOCK);
        let mut cache = KvCache::new(layout, kv);
        for group in 0..layout.groups.len() {
            cache.grow(group, sequences * blocks)?;
        }
        Ok(Self { cache, sequences, blocks, position: 0 })
    }

    /// Forgets all tokens.
    pub fn reset(&mut self) {
        self.position = 0;
    }

    /// Bytes of the cache.
    pub fn cache_bytes(&self) -> usize {
        self.cache.bytes()
    }

    /// One pass that extends every sequence by `count` tokens, whatever they are.
    pub fn extend(&mut self, model: &dyn Model, cpu: &mut Cpu, count: usize) {
        let (vocab, groups) = (model.info().vocab, self.cache.layout.groups.len());
        let mut rows = Rows::default();
        for s in 0..self.sequences {
            let first = (s * self.blocks) as u32;
            let table: Vec<u32> = (first..first + self.blocks as u32).collect();
            rows.ids.extend((0..count).map(|i| {
                let i = self.position + i + 31 * s;
                ((i * 7919 + 13) % vocab) as u32
            }));
            rows.spans.push(Span {
                rows: s * count..(s + 1) * count,
                position: self.position,
                tables: vec![table; groups],
            });
        }
        let last: Vec<u32> = (1..=self.sequences).map(|s| (s * count - 1) as u32).collect();
        let logits = forward(model, cpu, &rows, &last, &mut self.cache);
        assert_eq!(cpu.read(&logits).len(), self.sequences * vocab, "logits of each sequence");
        self.position += count;
    }
}
