//! Causal attention over a blocked cache: windows, soft caps, grouped heads, any head size.
//!
//! Positions are taken in segments of 256 that begin at multiples of 256. A segment's scores,
//! maximum, exponentials and weighted sum of values are computed by themselves, and the segments
//! are merged from the first to the last. Which keys a row sees follows from its position alone, so
//! its bits are the same in a prompt of any chunking, in a decoding step, and whether segments ran
//! on one thread or on many.

use crate::buffer::SharedMut;
use crate::element::{Element, F16, F32, I8};
use crate::kv::{GROUP, KV_BLOCK, KvLayer, KvType};
use crate::pool::Pool;
use crate::rowwise;
use crate::simd::{Isa, Kernel, PANEL, Simd};
use std::ops::Range;

/// Positions of a segment.
const SEGMENT: usize = 256;
/// Query rows (row, head) that share a pass over keys and values.
const TILE: usize = 16;

/// The shape and the rules of a layer's attention.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct AttentionSpec {
    /// Query heads.
    pub heads: usize,
    /// Key and value heads; each serves `heads / kv_heads` query heads.
    pub kv_heads: usize,
    /// Elements of a head.
    pub head_dim: usize,
    /// Factor of the scores.
    pub scale: f32,
    /// How many positions a row sees, its own included; `None`: all before it.
    pub window: Option<usize>,
    /// How many positions after its own a row sees, among those of its part of `Span::together`;
    /// `usize::MAX`: the part sees itself whole, wider than the window too.
    pub ahead: usize,
    /// `cap * tanh(score / cap)`, before the mask.
    pub softcap: Option<f32>,
}

/// Consecutive rows of one sequence.
#[derive(Debug, Clone)]
pub struct Span<'a> {
    /// Where they are among the rows of the batch.
    pub rows: Range<usize>,
    /// Position of the first one; its keys and values, and those of all rows, are in the cache.
    pub position: usize,
    /// Physical block of each logical block of 32 positions (those in sight must be there).
    pub table: &'a [u32],
    /// Ranges of positions that may see what comes after them, as far as the range goes (an image,
    /// a text to embed): sorted, apart, and written to the cache as a whole.
    pub together: &'a [Range<usize>],
}

/// A few rows of a span times a few heads of a group.
struct Tile<'a> {
    span: &'a Span<'a>,
    rows: Range<usize>,
    /// Query heads.
    heads: Range<usize>,
    kv_head: usize,
}

impl Tile<'_> {
    fn queries(&self) -> usize {
        self.rows.len() * self.heads.len()
    }

    fn position(&self, row: usize) -> usize {
        self.span.position + row - self.span.rows.start
    }
}

/// The positions that a row of `span` at `position` sees.
fn sight(spec: &AttentionSpec, span: &Span, position: usize) -> Range<usize> {
    let end = position + 1;
    let start = spec.window.map_or(0, |w| end.saturating_sub(w));
    match span.together.iter().find(|r| r.contains(&position)) {
        Some(part) if spec.ahead == usize::MAX => start.min(part.start)..part.end,
        Some(part) if spec.ahead > 0 => start..part.end.min(end.saturating_add(spec.ahead)),
        _ => start..end,
    }
}

/// Attends: `q` and `out` are `[rows][heads * head_dim]`.
///
/// # Panics
/// If shapes disagree or a block in sight is missing.
pub fn attend(
    isa: Isa,
    pool: &Pool,
    spec: &AttentionSpec,
    spans: &[Span],
    q: &[f32],
    kv: &KvLayer,
    out: &mut [f32],
) {
    assert!(spec.heads.is_multiple_of(spec.kv_heads), "query heads are shared out evenly");
    assert!(kv.heads == spec.kv_heads && kv.head_dim == spec.head_dim, "the cache's shape");
    let width = spec.heads * spec.head_dim;
    let rows = spans.iter().map(|s| s.rows.end).max().unwrap_or(0);
    assert!(q.len() == out.len() && q.len() >= rows * width, "rows of {width}");
    let tiles = tiles(spec, spans);
    let out = SharedMut(out.as_mut_ptr());
    let pass = Pass { isa, spec, q, kv };
    let segments = |t: &Tile| {
        let sights = t.rows.clone().map(|r| sight(spec, t.span, t.position(r)));
        let all = sights.reduce(|a, b| a.start.min(b.start)..a.end.max(b.end)).unwrap_or(0..0);
        all.start / SEGMENT..all.end.div_ceil(SEGMENT)
    };
    let longest = tiles.iter().map(|t| segments(t).len()).max().unwrap_or(0);
    if longest > 1 && tiles.len() < 2 * pool.threads() {
        // Few rows and a long context: the segments are shared out, then merged in order.
        let work: Vec<(usize, usize)> = (tiles.iter().enumerate())
            .flat_map(|(i, t)| segments(t).map(move |s| (i, s)))
            .collect();
        let parts: Vec<std::sync::OnceLock<Partial>> =
            work.iter().map(|_| Default::default()).collect();
        pool.run(work.len(), &|i| {
            let _ = parts[i].set(pass.segment(&tiles[work[i].0], work[i].1));
        });
        let mut all: Vec<Option<Partial>> = tiles.iter().map(|_| None).collect();
        for ((tile, _), part) in work.into_iter().zip(parts) {
            let part = part.into_inner().unwrap_or_else(|| unreachable!("every part was computed"));
            merge(&mut all[tile], part, spec.head_dim);
        }
        for (tile, total) in tiles.iter().zip(all) {
            pass.write(tile, total, out);
        }
    } else {
        pool.run(tiles.len(), &|i| {
            let mut total = None;
            for s in segments(&tiles[i]) {
                merge(&mut total, pass.segment(&tiles[i], s), spec.head_dim);
            }
            pass.write(&tiles[i], total, out);
        });
    }
}

fn tiles<'a>(spec: &AttentionSpec, spans: &'a [Span<'a>]) -> Vec<Tile<'a>> {
    let group = spec.heads / spec.kv_heads;
    let (heads_each, rows_each) = (group.min(TILE), (TILE / group).max(1));
    let mut tiles = Vec::new();
    for span in spans {
        for kv_head in 0..spec.kv_heads {
            for h in (0..group).step_by(heads_each) {
                let first = kv_head * group + h;
                let heads = first..first + heads_each.min(group - h);
                for row in span.rows.clone().step_by(rows_each) {
                    let rows = row..(row + rows_each).min(span.rows.end);
                    tiles.push(Tile { span, rows, heads: heads.clone(), kv_head });
                }
            }
        }
    }
    tiles
}

/// A segment's share of a tile's result: for each query the largest score, the sum of the
/// exponentials, and the weighted sum of the values.
struct Partial {
    top: Vec<f32>,
    sum: Vec<f32>,
    out: Vec<f32>,
}

/// Folds the next segment into the total.
fn merge(total: &mut Option<Partial>, next: Partial, dim: usize) {
    let Some(t) = total else {
        *total = Some(next);
        return;
    };
    for m in 0..t.top.len() {
        // A row that sees nothing of a segment is not touched by it.
        if next.top[m] == f32::NEG_INFINITY {
            continue;
        }
        let out = &mut t.out[m * dim..(m + 1) * dim];
        let new = &next.out[m * dim..(m + 1) * dim];
        if t.top[m] == f32::NEG_INFINITY {
            (t.top[m], t.sum[m]) = (next.top[m], next.sum[m]);
            out.copy_from_slice(new);
            continue;
        }
        let top = t.top[m].max(next.top[m]);
        // One of the factors is exactly 1. The scalar set's `exp` is the same function on all.
        let mut factors = [t.top[m], next.top[m]];
        rowwise::exp_minus(Isa::Scalar, &mut factors, top);
        let [a, b] = factors;
        t.top[m] = top;
        t.sum[m] = t.sum[m] * a + next.sum[m] * b;
        for (o, n) in out.iter_mut().zip(new) {
            *o = *o * a + *n * b;
        }
    }
}

/// What all segments of a call share.
struct Pass<'a> {
    isa: Isa,
    spec: &'a AttentionSpec,
    q: &'a [f32],
    kv: &'a KvLayer,
}

impl Pass<'_> {
    fn segment(&self, tile: &Tile, segment: usize) -> Partial {
        let (spec, count, dim) = (self.spec, tile.queries(), self.spec.head_dim);
        let first = segment * SEGMENT;
        let sights: Vec<Range<usize>> = (tile.rows.clone())
            .flat_map(|row| {
                let s = sight(spec, tile.span, tile.position(row));
                let s = s.start.clamp(first, first + SEGMENT)..s.end.clamp(first, first + SEGMENT);
                std::iter::repeat_n(s, tile.heads.len())
            })
            .collect();
        let seen = sights.iter().map(|s| s.start).min().unwrap_or(first)
            ..sights.iter().map(|s| s.end).max().unwrap_or(first);
        let queries: Vec<*const f32> = (tile.rows.clone())
            .flat_map(|r| tile.heads.clone().map(move |h| (r * spec.heads + h) * dim))
            .map(|at| self.q[at..at + dim].as_ptr())
            .collect();
        let mut scores = vec![0.0f32; count * SEGMENT];
        let blocks = seen.start / KV_BLOCK..seen.end.div_ceil(KV_BLOCK);
        for b in blocks.clone() {
            let (keys, _) = self.kv.head(tile.span.table[b] as usize, tile.kv_head);
            let scores = scores[b * KV_BLOCK - first..].as_mut_ptr();
            let (row, queries) = (self.kv.ty.row_bytes(dim), &queries[..]);
            match self.kv.ty {
                KvType::F32 => self.isa.run(Scores { keys, row, queries, dim, scores, of: F32 }),
                KvType::F16 => self.isa.run(Scores { keys, row, queries, dim, scores, of: F16 }),
                KvType::Q8 => self.isa.run(Scores { keys, row, queries, dim, scores, of: I8 }),
            }
        }
        let mut part = Partial {
            top: vec![f32::NEG_INFINITY; count],
            sum: vec![0.0; count],
            out: vec![0.0; count * dim],
        };
        for (m, sight) in sights.iter().enumerate() {
            let row = &mut scores[m * SEGMENT..(m + 1) * SEGMENT];
            (part.top[m], part.sum[m]) = self.softmax(row, sight.start - first..sight.end - first);
        }
        for b in blocks {
            let (_, values) = self.kv.head(tile.span.table[b] as usize, tile.kv_head);
            let base = b * KV_BLOCK;
            let slots = seen.start.max(base) - base..seen.end.min(base + KV_BLOCK) - base;
            let weights = scores[base - first..].as_ptr();
            let out = part.out.as_mut_ptr();
            let row = self.kv.ty.row_bytes(dim);
            match self.kv.ty {
                KvType::F32 => {
                    self.isa.run(Values { values, row, weights, slots, count, dim, out, of: F32 })
                }
                KvType::F16 => {
                    self.isa.run(Values { values, row, weights, slots, count, dim, out, of: F16 })
                }
                KvType::Q8 => {
                    self.isa.run(Values { values, row, weights, slots, count, dim, out, of: I8 })
                }
            }
        }
        part
    }

    /// Turns raw scores into exponentials in sight and zeros elsewhere; returns the largest score
    /// and the sum.
    fn softmax(&self, row: &mut [f32], sight: Range<usize>) -> (f32, f32) {
        let (start, end) = (sight.start, sight.end);
        if start >= end {
            row.fill(0.0);
            return (f32::NEG_INFINITY, 0.0);
        }
        row[..start].fill(0.0);
        row[end..].fill(0.0);
        let seen = &mut row[start..end];
        seen.iter_mut().for_each(|s| *s *= self.spec.scale);
        if let Some(cap) = self.spec.softcap {
            rowwise::softcap(self.isa, cap, seen);
        }
        let top = seen.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        rowwise::exp_minus(self.isa, seen, top);
        (top, rowwise::sum(self.isa, row))
    }

    fn write(&self, tile: &Tile, total: Option<Partial>, out: SharedMut<f32>) {
        let Some(total) = total else { return };
        let dim = self.spec.head_dim;
        let places = (tile.rows.clone())
            .flat_map(|r| tile.heads.clone().map(move |h| (r * self.spec.heads + h) * dim));
        for (m, at) in places.enumerate() {
            for (d, o) in total.out[m * dim..(m + 1) * dim].iter().enumerate() {
                // SAFETY: each (row, head) is in one tile, and `attend` checked the length.
                unsafe { *out.at(at + d) = o / total.sum[m] };
            }
        }
    }
}

/// Scores of some queries against the 32 keys of a block.
struct Scores<'a, E: Element> {
    /// Two panels of keys.
    keys: *const u8,
    /// Bytes of a key.
    row: usize,
    queries: &'a [*const f32],
    dim: usize,
    /// `[query][SEGMENT]`, at the block's first column.
    scores: *mut f32,
    #[allow(dead_code)]
    of: E,
}

/// Calls `$f` for runs of 8, 4, 2 and 1 of `0..$count` (4 at most on narrow vectors).
macro_rules! in_runs {
    ($S:ident, $count:expr, $m:ident, $N:ident => $body:expr) => {{
        let mut $m = 0;
        while $m < $count {
            let left = $count - $m;
            if left >= 8 && $S::LANES >= 16 {
                const $N: usize = 8;
                $body;
                $m += 8;
            } else if left >= 4 {
                const $N: usize = 4;
                $body;
                $m += 4;
            } else {
                const $N: usize = 1;
                $body;
                $m += 1;
            }
        }
    }};
}

impl<E: Element> Kernel for Scores<'_, E> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        in_runs!(S, self.queries.len(), m, N => {
            for lane0 in (0..KV_BLOCK).step_by(2 * S::LANES) {
                // SAFETY: the run and the lanes lie inside the tile and the block.
                unsafe { self.block::<S, N>(m, lane0) }
            }
        });
    }
}

impl<E: Element> Scores<'_, E> {
    /// `N` queries against `2 * LANES` keys.
    #[inline(always)]
    unsafe fn block<S: Simd, const N: usize>(&self, m: usize, lane0: usize) {
        // SAFETY: two panels of `dim * 16` keys; queries of `dim`; scores of a whole segment.
        unsafe {
            let columns = [lane0, lane0 + S::LANES];
            let panels = columns.map(|c| self.keys.add(c / PANEL * PANEL * self.row));
            let keys: [_; 2] =
                std::array::from_fn(|i| panels[i].add(columns[i] % PANEL * E::BYTES));
            let queries: [*const f32; N] = std::array::from_fn(|i| self.queries[m + i]);
            let mut acc = [[S::splat(0.0); 2]; N];
            let group = if E::SCALED { GROUP } else { self.dim };
            for first in (0..self.dim).step_by(group) {
                let mut sum = if E::SCALED { [[S::splat(0.0); 2]; N] } else { acc };
                for d in first..self.dim.min(first + group) {
                    let at = d * PANEL * E::BYTES;
                    let k = [E::load::<S>(keys[0].add(at)), E::load::<S>(keys[1].add(at))];
                    for (sum, q) in sum.iter_mut().zip(queries) {
                        let q = S::splat(*q.add(d));
                        sum[0] = S::fma(k[0], q, sum[0]);
                        sum[1] = S::fma(k[1], q, sum[1]);
                    }
                }
                if !E::SCALED {
                    acc = sum;
                    continue;
                }
                // The factors fill the end of a panel.
                let left = self.dim.div_ceil(GROUP) - first / GROUP;
                let factors: [_; 2] = std::array::from_fn(|i| {
                    let at = panels[i].add(PANEL * (self.row - 4 * left)).cast::<f32>();
                    S::load(at.add(columns[i] % PANEL))
                });
                for (acc, sum) in acc.iter_mut().zip(sum) {
                    acc[0] = S::fma(sum[0], factors[0], acc[0]);
                    acc[1] = S::fma(sum[1], factors[1], acc[1]);
                }
            }
            for (i, acc) in acc.into_iter().enumerate() {
                for (c, acc) in columns.into_iter().zip(acc) {
                    S::store(self.scores.add((m + i) * SEGMENT + c), acc);
                }
            }
        }
    }
}

/// Adds the weighted values of a block's slots.
struct Values<E: Element> {
    values: *const u8,
    /// Bytes of a value.
    row: usize,
    /// `[query][SEGMENT]`, at the block's first column.
    weights: *const f32,
    slots: Range<usize>,
    count: usize,
    dim: usize,
    /// `[query][dim]`
    out: *mut f32,
    #[allow(dead_code)]
    of: E,
}

impl<E: Element> Kernel for Values<E> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let wide = self.dim / (2 * S::LANES) * (2 * S::LANES);
        in_runs!(S, self.count, m, N => {
            for d in (0..wide).step_by(2 * S::LANES) {
                // SAFETY: columns `d .. d + 2 LANES` of queries `m .. m + N`.
                unsafe { self.block::<S, N, 2>(m, d) }
            }
            let narrow = self.dim / S::LANES * S::LANES;
            for d in (wide..narrow).step_by(S::LANES) {
                // SAFETY: as above, one vector.
                unsafe { self.block::<S, N, 1>(m, d) }
            }
            if narrow < self.dim {
                // SAFETY: as above; the last columns.
                unsafe { self.rest::<S, N>(m, narrow) }
            }
        });
    }
}

impl<E: Element> Values<E> {
    /// The weight of the elements around `d` of a slot's value for query `m`.
    #[inline(always)]
    unsafe fn weight(&self, m: usize, slot: usize, d: usize) -> f32 {
        // SAFETY: a slot of the block; its factors fill the end of its row.
        unsafe {
            let w = *self.weights.add(m * SEGMENT + slot);
            if !E::SCALED {
                return w;
            }
            let left = self.dim.div_ceil(GROUP) - d / GROUP;
            w * *self.values.add((slot + 1) * self.row - 4 * left).cast::<f32>()
        }
    }

    #[inline(always)]
    unsafe fn block<S: Simd, const N: usize, const P: usize>(&self, m: usize, d: usize) {
        // SAFETY: the caller's promise; slots are below 32.
        unsafe {
            let out = self.out.add(m * self.dim + d);
            let mut acc = [[S::splat(0.0); P]; N];
            for (i, acc) in acc.iter_mut().enumerate() {
                for (p, acc) in acc.iter_mut().enumerate() {
                    *acc = S::load(out.add(i * self.dim + p * S::LANES));
                }
            }
            for slot in self.slots.clone() {
                let row = self.values.add(slot * self.row + d * E::BYTES);
                let mut v = [S::splat(0.0); P];
                for (p, v) in v.iter_mut().enumerate() {
                    *v = E::load::<S>(row.add(p * S::LANES * E::BYTES));
                }
                for (i, acc) in acc.iter_mut().enumerate() {
                    let w = S::splat(self.weight(m + i, slot, d));
                    for (acc, v) in acc.iter_mut().zip(v) {
                        *acc = S::fma(v, w, *acc);
                    }
                }
            }
            for (i, acc) in acc.into_iter().enumerate() {
                for (p, acc) in acc.into_iter().enumerate() {
                    S::store(out.add(i * self.dim + p * S::LANES), acc);
                }
            }
        }
    }

    /// Columns from `d` on of queries `m .. m + N`, where no whole vector is left: the lanes behind
    /// them hold anything, and are not kept.
    #[inline(always)]
    unsafe fn rest<S: Simd, const N: usize>(&self, m: usize, d: usize) {
        // SAFETY: the copies have room for a vector; reads stay inside the block.
        unsafe {
            let left = self.dim - d;
            let mut acc = [S::splat(0.0); N];
            let mut lanes = [0.0f32; 16];
            for (i, acc) in acc.iter_mut().enumerate() {
                let out = self.out.add((m + i) * self.dim + d);
                out.copy_to_nonoverlapping(lanes.as_mut_ptr(), left);
                *acc = S::load(lanes.as_ptr());
            }
            for slot in self.slots.clone() {
                let at = slot * self.row + d * E::BYTES;
                let value = self.values.add(at);
                let v = if at + S::LANES * E::BYTES <= KV_BLOCK * self.row {
                    E::load::<S>(value)
                } else {
                    let mut bytes = [0u8; 64];
                    value.copy_to_nonoverlapping(bytes.as_mut_ptr(), left * E::BYTES);
                    E::load::<S>(bytes.as_ptr())
                };
                for (i, acc) in acc.iter_mut().enumerate() {
                    *acc = S::fma(v, S::splat(self.weight(m + i, slot, d)), *acc);
                }
            }
            for (i, acc) in acc.into_iter().enumerate() {
                S::store(lanes.as_mut_ptr(), acc);
                let out = self.out.add((m + i) * self.dim + d);
                out.copy_from_nonoverlapping(lanes.as_ptr(), left);
            }
        }
    }
}
