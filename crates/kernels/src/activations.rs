//! Rows of activations, arranged once for the products that follow.
//!
//! Rows are taken in tiles of 16, 8, 4, 2 or 1; inside a tile, block of 32 k by block, the rows lie
//! side by side, so that a kernel reads one stream. For quantised weights each block of 32 becomes
//! signed bytes with one f32 scale (largest magnitude / 127), as well as the sums that correct for
//! unsigned weights. Nothing of a row depends on its neighbours.

use crate::buffer::{Buffer, SharedMut};
use crate::pool::Pool;
use crate::simd::{Isa, Kernel, PANEL, Simd};

/// Inputs that share one scale.
pub const BLOCK: usize = 32;

/// Consecutive rows that a kernel takes together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Tile {
    /// The first row.
    pub row: usize,
    /// 16, 8, 4, 2 or 1.
    pub rows: usize,
}

/// Cuts `rows` rows into tiles.
pub(crate) fn tiles(rows: usize) -> Vec<Tile> {
    let mut tiles = Vec::with_capacity(rows / 16 + 4);
    let mut row = 0;
    while row < rows {
        let left = rows - row;
        let size = if left >= 16 { 16 } else { 1 << left.ilog2() };
        tiles.push(Tile { row, rows: size });
        row += size;
    }
    tiles
}

/// Activations in f32, for products with float weights and for exact products with quantised ones.
#[derive(Default)]
pub struct FloatRows {
    pub(crate) rows: usize,
    pub(crate) k: usize,
    pub(crate) tiles: Vec<Tile>,
    /// `[tile][k block][row][32]`; zero beyond `k`.
    pub(crate) values: Vec<f32>,
}

/// Activations in 8 bits, for products with quantised weights.
#[derive(Default)]
pub struct ByteRows {
    pub(crate) rows: usize,
    pub(crate) k: usize,
    pub(crate) tiles: Vec<Tile>,
    /// `[tile][k block][row][32]`, and more after larger batches. From a cache line on: tiles of AMX
    /// take twice as long to load from lines that their rows straddle.
    values: Buffer,
    /// `[tile][k block][row]`
    pub(crate) scales: Vec<f32>,
    /// Negated sums of the values of each half block: `[tile][k block][row][2]`.
    pub(crate) halves: Vec<[i32; 2]>,
    /// Negated sums of the values, `[tile][k block][row]`.
    pub(crate) minus: Vec<i32>,
    /// Sums of the values times the scale, `[tile][k block][row]`.
    pub(crate) sums: Vec<f32>,
}

/// 32 activations in 8 bits.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct QuantisedBlock {
    /// From -127 to 127; times the scale they are the activations.
    pub values: [i8; BLOCK],
    /// A 127th of the largest magnitude.
    pub scale: f32,
    /// Sums of the values of each half.
    pub halves: [i32; 2],
    /// The sum of all values.
    pub whole: i32,
    /// That sum times the scale.
    pub sum: f32,
}

/// Activations in bfloat16, for products with weights of that type.
#[derive(Default)]
pub struct PairRows {
    pub(crate) rows: usize,
    pub(crate) k: usize,
    pub(crate) tiles: Vec<Tile>,
    /// `[tile][k block][row][16]`: pairs, the first one in the low half; zero beyond `k`. Empty where
    /// the processor does not multiply bfloat16s.
    pub(crate) values: Vec<u32>,
    /// The rounded values in f32, there.
    pub(crate) floats: FloatRows,
}

impl FloatRows {
    /// Arranges `x`, rows of `k`.
    pub fn new(x: &[f32], k: usize) -> Self {
        let rows = x.len() / k;
        let (tiles, blocks) = (tiles(rows), k.div_ceil(BLOCK));
        let mut values = vec![0.0; rows * blocks * BLOCK];
        for t in &tiles {
            let tile = &mut values[t.row * blocks * BLOCK..(t.row + t.rows) * blocks * BLOCK];
            for m in 0..t.rows {
                let row = &x[(t.row + m) * k..(t.row + m + 1) * k];
                for (kb, src) in row.chunks(BLOCK).enumerate() {
                    let at = (kb * t.rows + m) * BLOCK;
                    tile[at..at + src.len()].copy_from_slice(src);
                }
            }
        }
        Self { rows, k, tiles, values }
    }
}

impl ByteRows {
    /// Quantises `x`, rows of `k`; `k` must be a multiple of 32.
    pub fn new(isa: Isa, pool: &Pool, x: &[f32], k: usize) -> Self {
        let mut out = Self::default();
        out.fill(isa, pool, x, k);
        out
    }

    /// The same into the memory of earlier rows: fresh pages cost as much as what is computed.
    pub fn fill(&mut self, isa: Isa, pool: &Pool, x: &[f32], k: usize) {
        assert!(k.is_multiple_of(BLOCK) && x.len().is_multiple_of(k), "rows of {k} in {}", x.len());
        let rows = x.len() / k;
        let blocks = rows * k / BLOCK;
        (self.rows, self.k, self.tiles) = (rows, k, tiles(rows));
        if self.values.bytes().len() < rows * k {
            self.values = Buffer::zeroed(rows * k).unwrap_or_else(|e| panic!("{e}"));
        }
        self.scales.resize(blocks, 0.0);
        self.halves.resize(blocks, [0; 2]);
        self.minus.resize(blocks, 0);
        self.sums.resize(blocks, 0.0);
        let values = SharedMut(self.values.as_mut_ptr().cast::<i8>());
        let scales = SharedMut(self.scales.as_mut_ptr());
        let halves = SharedMut(self.halves.as_mut_ptr());
        let minus = SharedMut(self.minus.as_mut_ptr());
        let sums = SharedMut(self.sums.as_mut_ptr());
        let tiles = &self.tiles;
        pool.split(tiles.len(), (16384 / k / 16).max(1), &|range| {
            isa.run(Quantise { x, k, tiles: &tiles[range], values, scales, halves, minus, sums });
        });
    }

    /// A block of 32 inputs of a row, as products take it.
    ///
    /// # Panics
    /// If there is no such row or block.
    pub fn quantised(&self, row: usize, block: usize) -> QuantisedBlock {
        let blocks = self.k / BLOCK;
        assert!(row < self.rows && block < blocks, "block {block} of row {row}");
        let Some(t) = self.tiles.iter().rfind(|t| t.row <= row) else {
            unreachable!("tiles begin with row 0")
        };
        let at = t.row * blocks + block * t.rows + row - t.row;
        let values = &self.values.bytes()[at * BLOCK..(at + 1) * BLOCK];
        QuantisedBlock {
            values: std::array::from_fn(|i| values[i] as i8),
            scale: self.scales[at],
            halves: self.halves[at].map(|sum| -sum),
            whole: -self.minus[at],
            sum: self.sums[at],
        }
    }

    /// Where block `i` has its parts, counted as in `scales`.
    #[inline(always)]
    pub(crate) fn block(&self, i: usize) -> ByteBlock {
        ByteBlock {
            values: self.values.bytes()[i * BLOCK..].as_ptr().cast(),
            scale: self.scales[i..].as_ptr(),
            halves: self.halves[i..].as_ptr(),
            minus: self.minus[i..].as_ptr(),
            sum: self.sums[i..].as_ptr(),
        }
    }
}

/// Where a block of 8-bit activations has its parts.
#[derive(Clone, Copy)]
pub(crate) struct ByteBlock {
    pub(crate) values: *const i8,
    pub(crate) scale: *const f32,
    pub(crate) halves: *const [i32; 2],
    pub(crate) minus: *const i32,
    pub(crate) sum: *const f32,
}

impl ByteBlock {
    /// Block `i` from this one on.
    #[inline(always)]
    pub(crate) unsafe fn at(self, i: usize) -> Self {
        // SAFETY: the caller's rows have that block.
        unsafe {
            Self {
                values: self.values.add(i * BLOCK),
                scale: self.scale.add(i),
                halves: self.halves.add(i),
                minus: self.minus.add(i),
                sum: self.sum.add(i),
            }
        }
    }
}

struct Quantise<'a> {
    x: &'a [f32],
    k: usize,
    tiles: &'a [Tile],
    values: SharedMut<i8>,
    scales: SharedMut<f32>,
    halves: SharedMut<[i32; 2]>,
    minus: SharedMut<i32>,
    sums: SharedMut<f32>,
}

impl Kernel for Quantise<'_> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let blocks = self.k / BLOCK;
        for t in self.tiles {
            for kb in (0..blocks).step_by(S::LANES) {
                for m in 0..t.rows {
                    let at = |b: usize| t.row * blocks + (kb + b) * t.rows + m;
                    let from = (t.row + m) * self.k + kb * BLOCK;
                    let count = S::LANES.min(blocks - kb);
                    debug_assert!(from + count * BLOCK <= self.x.len());
                    // SAFETY: the source blocks lie in `x`, the targets in the vectors, whose
                    // lengths follow from the same shape; tiles are disjoint.
                    unsafe {
                        let (x, to) = (self.x.as_ptr().add(from), self.values.at(at(0) * BLOCK));
                        let done = quantise::<S>(x, count, to, t.rows * BLOCK);
                        for b in 0..count {
                            let [lo, hi] = [done.halves[0][b] as i32, done.halves[1][b] as i32];
                            *self.scales.at(at(b)) = done.scale[b];
                            *self.halves.at(at(b)) = [-lo, -hi];
                            *self.minus.at(at(b)) = -(lo + hi);
                            *self.sums.at(at(b)) = done.scale[b] * (lo + hi) as f32;
                        }
                    }
                }
            }
        }
    }
}

/// What belongs to the values of some blocks, a lane for each block.
#[derive(Default)]
struct Quantised {
    scale: [f32; PANEL],
    /// Sums of the values of both halves: integers.
    halves: [[f32; PANEL]; 2],
}

/// Quantises `count` blocks, at most a vector of them, to places `apart` bytes apart. What is looked for across a
/// block, the largest magnitude and the sums, is turned, so that a vector has it for all blocks.
#[inline(always)]
unsafe fn quantise<S: Simd>(x: *const f32, count: usize, out: *mut i8, apart: usize) -> Quantised {
    // SAFETY: the caller's promise; every square has a row for each lane.
    unsafe {
        let mut square = [[0.0f32; PANEL]; PANEL];
        for (b, row) in square.iter_mut().enumerate().take(count) {
            let mut top = S::splat(0.0);
            for i in (0..BLOCK).step_by(S::LANES) {
                top = S::max(S::abs(S::load(x.add(b * BLOCK + i))), top);
            }
            S::store(row.as_mut_ptr(), top);
        }
        let turned = turn::<S>(&square);
        let mut top = S::load(turned[0].as_ptr());
        for row in &turned[1..S::LANES] {
            top = S::max(S::load(row.as_ptr()), top);
        }
        let zero = S::splat(0.0);
        let inverse = S::select_lt(zero, top, S::div(S::splat(127.0), top), zero);
        // 127 / top overflows for the smallest subnormals: such a block counts as zeros.
        let inverse = S::select_lt(inverse, S::splat(f32::INFINITY), inverse, zero);
        let scale = S::select_lt(zero, inverse, S::div(top, S::splat(127.0)), zero);
        let (mut inverses, mut done) = ([0.0f32; PANEL], Quantised::default());
        S::store(inverses.as_mut_ptr(), inverse);
        S::store(done.scale.as_mut_ptr(), scale);
        for (half, sums) in done.halves.iter_mut().enumerate() {
            for (b, row) in square.iter_mut().enumerate().take(count) {
                let mut total = S::splat(0.0);
                for i in (16 * half..16 * half + 16).step_by(S::LANES) {
                    let v = S::load(x.add(b * BLOCK + i));
                    let v = S::round(S::mul(v, S::splat(inverses[b])));
                    S::store_i8(out.add(b * apart + i), v);
                    total = S::add(total, v);
                }
                S::store(row.as_mut_ptr(), total);
            }
            let turned = turn::<S>(&square);
            let mut sum = S::load(turned[0].as_ptr());
            for row in &turned[1..S::LANES] {
                sum = S::add(sum, S::load(row.as_ptr()));
            }
            S::store(sums.as_mut_ptr(), sum);
        }
        done
    }
}

/// A square of as many rows and columns as a vector has lanes, turned.
#[inline(always)]
unsafe fn turn<S: Simd>(square: &[[f32; PANEL]; PANEL]) -> [[f32; PANEL]; PANEL] {
    let mut rows = [square[0].as_ptr(); PANEL];
    for (to, row) in rows.iter_mut().zip(square) {
        *to = row.as_ptr();
    }
    let mut turned = [[0.0f32; PANEL]; PANEL];
    // SAFETY: the rows and the places are there.
    unsafe { S::transpose(&rows, 0, turned.as_mut_ptr().cast(), PANEL) };
    turned
}

impl PairRows {
    /// Rounds `x`, rows of `k`, to bfloat16 (nearest, ties to even). Magnitudes below 2^-56 become
    /// zero, as those of the weights do: then no product and no sum of products can be subnormal,
    /// which is where processors differ.
    pub fn new(isa: Isa, pool: &Pool, x: &[f32], k: usize) -> Self {
        let mut out = Self::default();
        out.fill(isa, pool, x, k);
        out
    }

    /// The same into the memory of earlier rows.
    pub fn fill(&mut self, isa: Isa, pool: &Pool, x: &[f32], k: usize) {
        assert!(x.len().is_multiple_of(k), "rows of {k} in {}", x.len());
        let (rows, blocks) = (x.len() / k, k.div_ceil(BLOCK));
        (self.rows, self.k, self.tiles) = (rows, k, tiles(rows));
        let (tiles, grain) = (&self.tiles, (16384 / k / 16).max(1));
        if isa.multiplies_bf16() {
            self.values.resize(rows * blocks * (BLOCK / 2), 0);
            let out = SharedMut(self.values.as_mut_ptr());
            pool.split(tiles.len(), grain, &|range| {
                isa.run(Round::<true> { x, k, tiles: &tiles[range], out });
            });
        } else {
            let floats = &mut self.floats;
            (floats.rows, floats.k, floats.tiles) = (rows, k, tiles.clone());
            floats.values.resize(rows * blocks * BLOCK, 0.0);
            let out = SharedMut(floats.values.as_mut_ptr().cast());
            pool.split(tiles.len(), grain, &|range| {
                isa.run(Round::<false> { x, k, tiles: &tiles[range], out });
            });
        }
    }
}

/// Rounds some tiles, to pairs or to the bits of f32s.
struct Round<'a, const PAIRS: bool> {
    x: &'a [f32],
    k: usize,
    tiles: &'a [Tile],
    out: SharedMut<u32>,
}

impl<const PAIRS: bool> Kernel for Round<'_, PAIRS> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let blocks = self.k.div_ceil(BLOCK);
        for t in self.tiles {
            for m in 0..t.rows {
                let row = &self.x[(t.row + m) * self.k..(t.row + m + 1) * self.k];
                for (kb, src) in row.chunks(BLOCK).enumerate() {
                    let words = if PAIRS { BLOCK / 2 } else { BLOCK };
                    let at = (t.row * blocks + kb * t.rows + m) * words;
                    // SAFETY: the vector has `blocks` blocks for each row; tiles are disjoint.
                    let out = unsafe { std::slice::from_raw_parts_mut(self.out.at(at), words) };
                    let mut block = [0.0f32; BLOCK];
                    block[..src.len()].copy_from_slice(src);
                    let block = block.map(|x| to_bf16(x, SMALLEST));
                    if PAIRS {
                        for (out, pair) in out.iter_mut().zip(block.chunks_exact(2)) {
                            *out = pair[0] | pair[1] << 16;
                        }
                    } else {
                        out.iter_mut().zip(block).for_each(|(out, x)| *out = x << 16);
                    }
                }
            }
        }
    }
}

/// The bits of `x` rounded to bfloat16, ties to even; a NaN stays one, and what is smaller than the
/// bfloat16 `smallest` is zero.
#[inline(always)]
pub(crate) fn to_bf16(x: f32, smallest: u32) -> u32 {
    let bits = x.to_bits();
    let size = bits & 0x7fff_ffff;
    let rounded = (bits.wrapping_add(0x7fff + (bits >> 16 & 1))) >> 16;
    let nan = bits >> 16 | 0x40;
    let kept = if size > 0x7f80_0000 { nan } else { rounded };
    if size < smallest << 16 { 0 } else { kept }
}

/// 2^-56 as a bfloat16: smaller weights and activations of bfloat16 products count as zero.
pub(crate) const SMALLEST: u32 = 0x2380;
