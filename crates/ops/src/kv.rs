//! What a batch consists of, and the cache of keys and values that it reads and writes.

use lapidary_kernels::{KV_BLOCK, KvLayer, KvType, OutOfMemory};
use std::ops::Range;
use std::sync::Arc;

/// One layer's place in the cache.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct KvLayerShape {
    /// KV heads.
    pub heads: usize,
    /// Elements of a head.
    pub head_dim: usize,
    /// Which block table its blocks are found by: index into [`KvLayout::groups`].
    pub group: usize,
}

/// What a model keeps for each token: its layers, in groups that see equally far back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KvLayout {
    /// Every layer with a cache.
    pub layers: Vec<KvLayerShape>,
    /// For each group how many positions a row sees, its own included; `None`: all.
    pub groups: Vec<Option<usize>>,
    /// Whether later layers read the keys and values of the last of each group.
    pub lent: bool,
}

impl KvLayout {
    /// Layers of one shape whose windows are given one by one.
    pub fn new(heads: usize, head_dim: usize, windows: &[Option<usize>]) -> Self {
        let layers: Vec<_> = windows.iter().map(|w| (heads, head_dim, *w)).collect();
        Self::mixed(&layers)
    }

    /// Layers of any shapes: KV heads, elements of a head, window.
    pub fn mixed(layers: &[(usize, usize, Option<usize>)]) -> Self {
        let mut groups: Vec<Option<usize>> = Vec::new();
        let layers = (layers.iter())
            .map(|&(heads, head_dim, window)| {
                let found = groups.iter().position(|g| *g == window);
                let group = found.unwrap_or_else(|| {
                    groups.push(window);
                    groups.len() - 1
                });
                KvLayerShape { heads, head_dim, group }
            })
            .collect();
        Self { layers, groups, lent: false }
    }

    /// The same, whose last layers of each group are read by later ones.
    pub fn lent(self, lent: bool) -> Self {
        Self { lent, ..self }
    }

    /// Bytes of a block of 32 positions in all the layers of `group`.
    pub fn block_bytes(&self, group: usize, ty: KvType) -> usize {
        (self.layers.iter())
            .filter(|l| l.group == group)
            .map(|l| 2 * KV_BLOCK * l.heads * ty.row_bytes(l.head_dim))
            .sum()
    }

    /// Blocks of `group` that a sequence of `tokens` holds at most, when it is extended by chunks
    /// of `chunk` tokens.
    pub fn blocks(&self, group: usize, tokens: usize, chunk: usize) -> usize {
        let all = tokens.div_ceil(KV_BLOCK);
        // A window may begin and end inside a block.
        self.groups[group].map_or(all, |w| all.min((w + chunk).div_ceil(KV_BLOCK) + 1))
    }

    /// Bytes that one sequence of `tokens` needs.
    pub fn bytes(&self, tokens: usize, chunk: usize, ty: KvType) -> usize {
        (0..self.groups.len())
            .map(|g| self.blocks(g, tokens, chunk) * self.block_bytes(g, ty))
            .sum()
    }
}

/// Keys and values of all layers; sequences find their blocks through tables that the engine keeps.
pub struct KvCache {
    pub(crate) layers: Vec<KvLayer>,
    /// What it was made for.
    pub layout: KvLayout,
}

impl KvCache {
    /// An empty cache.
    pub fn new(layout: &KvLayout, ty: KvType) -> Self {
        let layers = layout.layers.iter().map(|l| KvLayer::new(l.heads, l.head_dim, ty)).collect();
        Self { layers, layout: layout.clone() }
    }

    /// Makes sure that blocks `0..count` of `group` exist.
    ///
    /// # Errors
    /// If there is no memory.
    pub fn grow(&mut self, group: usize, count: usize) -> Result<(), OutOfMemory> {
        self.of_group(group).try_for_each(|layer| layer.grow(count))
    }

    /// Makes sure that block `block` of `group` exists.
    ///
    /// # Errors
    /// If there is no memory.
    pub fn provide(&mut self, group: usize, block: u32) -> Result<(), OutOfMemory> {
        self.of_group(group).try_for_each(|layer| layer.provide(block as usize))
    }

    /// Gives the memory of block `block` of `group` back.
    pub fn release(&mut self, group: usize, block: u32) {
        self.of_group(group).for_each(|layer| layer.release(block as usize));
    }

    fn of_group(&mut self, group: usize) -> impl Iterator<Item = &mut KvLayer> {
        let layers = self.layers.iter_mut().zip(&self.layout.layers);
        layers.filter(move |(_, shape)| shape.group == group).map(|(layer, _)| layer)
    }

    /// Bytes in memory.
    pub fn bytes(&self) -> usize {
        self.layers.iter().map(KvLayer::bytes).sum()
    }
}

/// Consecutive tokens of one sequence in a batch.
#[derive(Debug, Clone)]
pub struct Span {
    /// Rows of the batch.
    pub rows: Range<usize>,
    /// Position of the first of them.
    pub position: usize,
    /// For each group of the layout: the physical block of each logical block (those out of sight
    /// may hold anything).
    pub tables: Vec<Vec<u32>>,
}

/// The rows of a batch: which token of which sequence each one is.
#[derive(Debug, Clone, Default)]
pub struct Rows {
    /// Token ids, a row each.
    pub ids: Vec<u32>,
    /// The sequences' parts, in the order of their rows, without gaps.
    pub spans: Vec<Span>,
    /// Rows that may see those after them as far as the range goes: sorted and apart, each inside
    /// one span. Layers take it or leave it ([`crate::AttentionSpec::ahead`]).
    pub together: Vec<Range<usize>>,
    /// Rows that are no tokens but parts of images.
    pub media: Vec<Media>,
}

/// Consecutive rows whose embeddings come from elsewhere.
#[derive(Debug, Clone)]
pub struct Media {
    /// Rows of the batch.
    pub rows: Range<usize>,
    /// Their embeddings, row by row.
    pub features: Arc<Vec<f32>>,
    /// Where in the features the first of these rows is.
    pub first: usize,
}

impl Rows {
    /// Tokens alone.
    pub fn new(ids: Vec<u32>, spans: Vec<Span>) -> Self {
        Self { ids, spans, together: Vec::new(), media: Vec::new() }
    }

    /// Whole sequences, each of which sees all of itself, with an empty cache of `layout` for them.
    ///
    /// # Errors
    /// If there is no memory for the cache.
    pub fn whole(
        sequences: &[Vec<u32>],
        layout: &KvLayout,
    ) -> Result<(Self, KvCache), OutOfMemory> {
        let mut rows = Self::default();
        let mut block = 0;
        for ids in sequences {
            let range = rows.ids.len()..rows.ids.len() + ids.len();
            let blocks = ids.len().div_ceil(KV_BLOCK) as u32;
            let table: Vec<u32> = (block..block + blocks).collect();
            block += blocks;
            rows.ids.extend(ids);
            let tables = vec![table; layout.groups.len()];
            rows.spans.push(Span { rows: range.clone(), position: 0, tables });
            rows.together.push(range);
        }
        let mut cache = KvCache::new(layout, KvType::F32);
        for group in 0..layout.groups.len() {
            cache.grow(group, block as usize)?;
        }
        Ok((rows, cache))
    }

    /// The position of every row.
    pub fn positions(&self) -> impl Iterator<Item = usize> + '_ {
        self.spans.iter().flat_map(|s| (0..s.rows.len()).map(|i| s.position + i))
    }
}
