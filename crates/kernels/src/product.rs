//! Products of activations with packed weights: `y[m][n] = sum over k of x[m][k] * w[n][k]`.
//!
//! Every output is accumulated in f32 in the order of k, in one lane, by fused multiply-adds;
//! with quantised weights and 8-bit activations one step is a block of 32 k, whose integer sum is
//! exact. So an output's bits depend on its row and its weights alone: not on the other rows, the
//! threads, or the instruction set.

use crate::activations::{BLOCK, ByteBlock, ByteRows, FloatRows, PairRows, Tile};
use crate::buffer::SharedMut;
use crate::element::{F16, F32};
use crate::floats::{Floats, Pairs, Unpaired};
use crate::panel::{Layout, Packed};
use crate::pool::Pool;
use crate::simd::{self, Isa, Kernel, PANEL, Simd};
use crate::tiled;
use crate::unpack::{self, Format};
use std::ops::Range;

/// `out[m][n] = x * w`, in f32 throughout (weights are dequantised exactly).
///
/// # Panics
/// If the shapes disagree.
pub fn product_f32(isa: Isa, pool: &Pool, x: &FloatRows, w: &Packed, out: &mut [f32]) {
    assert!(x.k == w.k && out.len() == x.rows * w.n, "shapes of a product");
    each_panel(pool, w, out, &|job| match w.layout {
        Layout::F32 => isa.run(Floats::<F32> { x, job, of: F32 }),
        Layout::F16 => isa.run(Floats::<F16> { x, job, of: F16 }),
        Layout::Bf16 => isa.run(Unpaired::<0> { x, job }),
        Layout::Q8_0 => isa.run(Exact { x, job, of: unpack::Q8_0 }),
        Layout::Q4_0 => isa.run(Exact { x, job, of: unpack::Q4_0 }),
        Layout::Q5_0 => isa.run(Exact { x, job, of: unpack::Q5_0 }),
        Layout::Q4K => isa.run(Exact { x, job, of: unpack::Q4K }),
        Layout::Q5K => isa.run(Exact { x, job, of: unpack::Q5K }),
        Layout::Q6K => isa.run(Exact { x, job, of: unpack::Q6K }),
        Layout::Bytes => isa.run(Exact { x, job, of: unpack::Bytes }),
    });
}

/// `out[m][n] = x * w` with quantised weights and 8-bit activations.
///
/// # Panics
/// If the shapes disagree or the weights are floats.
pub fn product_i8(isa: Isa, pool: &Pool, x: &ByteRows, w: &Packed, out: &mut [f32]) {
    assert!(x.k == w.k && out.len() == x.rows * w.n, "shapes of a product");
    each_panel(pool, w, out, &|job| {
        let amx = isa == Isa::Amx && x.tiles.first().is_some_and(|t| t.rows == tiled::ROWS);
        match w.layout {
            Layout::Q8_0 => isa.run_dot(Integers { x, job, amx, of: unpack::Q8_0 }),
            Layout::Q4_0 => isa.run_dot(Integers { x, job, amx, of: unpack::Q4_0 }),
            Layout::Q5_0 => isa.run_dot(Integers { x, job, amx, of: unpack::Q5_0 }),
            Layout::Q4K => isa.run_dot(Integers { x, job, amx, of: unpack::Q4K }),
            Layout::Q5K => isa.run_dot(Integers { x, job, amx, of: unpack::Q5K }),
            Layout::Q6K => isa.run_dot(Integers { x, job, amx, of: unpack::Q6K }),
            Layout::Bytes => isa.run_dot(Integers { x, job, amx, of: unpack::Bytes }),
            Layout::F32 | Layout::F16 | Layout::Bf16 => {
                unreachable!("float weights take float activations")
            }
        }
    });
}

/// `out[m][n] = x * w` with both in bfloat16 and sums in f32: of each pair of k the second product
/// is added first, each by a fused multiply-add, as `vdpbf16ps` does.
///
/// # Panics
/// If the shapes disagree or the weights are of another type.
pub fn product_bf16(isa: Isa, pool: &Pool, x: &PairRows, w: &Packed, out: &mut [f32]) {
    assert!(x.k == w.k && out.len() == x.rows * w.n, "shapes of a product");
    assert_eq!(w.layout, Layout::Bf16, "weights for activations in bfloat16");
    each_panel(pool, w, out, &|job| match isa.multiplies_bf16() {
        true => isa.run_bf16(Pairs { x, job }),
        false => isa.run(Unpaired::<1> { x: &x.floats, job }),
    });
}

/// The weights of output row `r` as f32; see [`Packed::row`].
pub(crate) fn dequantize_row(isa: Isa, w: &Packed, r: usize, out: &mut [f32]) {
    assert!(r < w.n && out.len() == w.k, "row {r} of {} x {}", w.n, w.k);
    match w.layout {
        Layout::Q8_0 => isa.run(Row { w, r, out, of: unpack::Q8_0 }),
        Layout::Q4_0 => isa.run(Row { w, r, out, of: unpack::Q4_0 }),
        Layout::Q5_0 => isa.run(Row { w, r, out, of: unpack::Q5_0 }),
        Layout::Q4K => isa.run(Row { w, r, out, of: unpack::Q4K }),
        Layout::Q5K => isa.run(Row { w, r, out, of: unpack::Q5K }),
        Layout::Q6K => isa.run(Row { w, r, out, of: unpack::Q6K }),
        Layout::Bytes => isa.run(Row { w, r, out, of: unpack::Bytes }),
        Layout::F32 | Layout::F16 | Layout::Bf16 => unreachable!("floats are read in place"),
    }
}

/// Shares the panels of `w`, and the outputs that they give, out to the threads.
fn each_panel(pool: &Pool, w: &Packed, out: &mut [f32], task: &(dyn Fn(Job) + Sync)) {
    let (out, ask) = (SharedMut(out.as_mut_ptr()), simd::foresight_is_short());
    let panels = w.n.div_ceil(PANEL);
    // Less than 32 KiB of weights are not worth a thread.
    let grain = (32 * 1024 * panels).div_ceil(w.bytes().max(1));
    pool.split(panels.div_ceil(SIDE_BY_SIDE), grain.div_ceil(SIDE_BY_SIDE), &|range| {
        let range = range.start * SIDE_BY_SIDE..(range.end * SIDE_BY_SIDE).min(panels);
        task(Job { w, panels: range, out, ask });
    });
}

/// Panels that are shared out to the threads together; the most that a product takes side by side.
const SIDE_BY_SIDE: usize = 4;

/// The panels that one call computes, and where the results go.
pub(crate) struct Job<'a> {
    pub(crate) w: &'a Packed,
    panels: Range<usize>,
    pub(crate) out: SharedMut<f32>,
    /// Whether one row too asks for its weights ahead of time.
    pub(crate) ask: bool,
}

impl Job<'_> {
    /// The bytes of a panel.
    pub(crate) fn panel(&self, p: usize) -> &[u8] {
        self.w.panel(p)
    }

    /// The most panels of which one of `chunks` chunks stays in the second-level cache with a tile of
    /// activations, so that each of `tiles` tiles is read once for all of them; a single tile takes all at once.
    pub(crate) fn most(&self, tiles: usize, chunks: usize) -> usize {
        match tiles {
            1 => usize::MAX,
            _ => ((384 << 10) * chunks / self.w.panel(0).len()).clamp(1, 8),
        }
    }

    /// The panels in groups as long as one another, of at most `most`.
    pub(crate) fn groups(&self, most: usize) -> impl Iterator<Item = Range<usize>> + use<> {
        let Range { start, end } = self.panels;
        let count = (end - start).div_ceil(most).max(1);
        let each = (end - start).div_ceil(count).max(1);
        (start..end).step_by(each).map(move |p| p..(p + each).min(end))
    }

    /// Stores the lanes `lane0 ..` of panel `panel` for row `row`.
    ///
    /// # Safety
    /// `row` is a row of the output; the features of `S`.
    #[inline(always)]
    pub(crate) unsafe fn store<S: Simd>(&self, row: usize, panel: usize, lane0: usize, y: S::F) {
        let (n, at) = (self.w.n, panel * PANEL + lane0);
        // SAFETY: columns beyond n are cut off; other threads have other panels.
        unsafe {
            if at + S::LANES <= n {
                S::store(self.out.at(row * n + at), y);
            } else if at < n {
                let mut lanes = [0.0f32; PANEL];
                S::store(lanes.as_mut_ptr(), y);
                self.out.at(row * n + at).copy_from_nonoverlapping(lanes.as_ptr(), n - at);
            }
        }
    }
}

/// Calls `$f` with the number of rows of `$tile` as its constant.
macro_rules! by_rows {
    ($tile:expr, $rows:ident => $body:expr) => {
        match $tile.rows {
            16 => {
                const $rows: usize = 16;
                $body
            }
            8 => {
                const $rows: usize = 8;
                $body
            }
            4 => {
                const $rows: usize = 4;
                $body
            }
            2 => {
                const $rows: usize = 2;
                $body
            }
            _ => {
                const $rows: usize = 1;
                $body
            }
        }
    };
}
pub(crate) use by_rows;

/// 8-bit activations times quantised weights.
struct Integers<'a, F: Format> {
    x: &'a ByteRows,
    job: Job<'a>,
    /// Tiles of sixteen rows are multiplied as tiles of AMX.
    amx: bool,
    #[allow(dead_code)]
    of: F,
}

impl<F: Format> Kernel for Integers<'_, F> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let amx = self.amx && S::LANES == PANEL;
        let most = if amx { tiled::PANELS } else { self.job.most(self.x.tiles.len(), 1) };
        for panels in self.job.groups(most) {
            if amx {
                // SAFETY: an `Isa` comes out of `available` alone, which asked for the tiles.
                unsafe { tiled::multiply::<S, F>(self.x, &self.job, panels.clone()) };
            }
            let several = self.job.ask && S::LANES == PANEL;
            for &tile in self.x.tiles.iter().filter(|t| !amx || t.rows < tiled::ROWS) {
                // SAFETY: tile and panels are parts of the operands.
                unsafe {
                    match tile.rows {
                        16 => self.some::<S, 16, 1, false>(&panels, tile),
                        8 if several => self.some::<S, 8, 2, false>(&panels, tile),
                        8 => self.some::<S, 8, 1, false>(&panels, tile),
                        4 if several => self.some::<S, 4, SIDE_BY_SIDE, false>(&panels, tile),
                        4 => self.some::<S, 4, 1, false>(&panels, tile),
                        2 if several => self.some::<S, 2, SIDE_BY_SIDE, false>(&panels, tile),
                        2 => self.some::<S, 2, 1, false>(&panels, tile),
                        _ if self.job.ask => self.some::<S, 1, SIDE_BY_SIDE, true>(&panels, tile),
                        _ => self.some::<S, 1, 1, true>(&panels, tile),
                    }
                }
            }
        }
    }
}

impl<F: Format> Integers<'_, F> {
    /// Some panels, `P` of them side by side as long as there are so many: Intel's processors read that
    /// many streams from memory half as fast again as one.
    #[inline(always)]
    unsafe fn some<S: Simd, const M: usize, const P: usize, const ALONE: bool>(
        &self,
        panels: &Range<usize>,
        tile: Tile,
    ) {
        let mut panel = panels.start;
        // SAFETY: the caller's promise.
        unsafe {
            while panel + P <= panels.end {
                self.panels::<S, M, P, ALONE>(panel, tile);
                panel += P;
            }
            while panel < panels.end {
                self.panels::<S, M, 1, ALONE>(panel, tile);
                panel += 1;
            }
        }
    }

    /// `P` panels from `panel` on.
    #[inline(always)]
    unsafe fn panels<S: Simd, const M: usize, const P: usize, const ALONE: bool>(
        &self,
        panel: usize,
        tile: Tile,
    ) {
        // SAFETY: the caller's promise.
        unsafe {
            if S::LANES < PANEL && M <= 4 {
                // With few rows weights come from memory, which would rest during a second pass.
                debug_assert_eq!(2 * S::LANES, PANEL);
                return self.pass::<S, M, P, 2, ALONE>(panel, tile, 0);
            }
            for lane0 in (0..PANEL).step_by(S::LANES) {
                self.pass::<S, M, P, 1, ALONE>(panel, tile, lane0);
            }
        }
    }

    /// `H` vectors of rows, from `lane0` on, of each of `P` panels.
    #[inline(always)]
    unsafe fn pass<S: Simd, const M: usize, const P: usize, const H: usize, const ALONE: bool>(
        &self,
        panel: usize,
        tile: Tile,
        lane0: usize,
    ) {
        let blocks = self.x.k / BLOCK;
        let x = self.x.block(tile.row * blocks);
        let weights: [&[u8]; P] = std::array::from_fn(|p| self.job.w.panel(panel + p));
        let size = weights[0].len();
        let bytes = size / blocks;
        // With one row and little to unpack a product on AMD's processors reads as fast as memory gives, and
        // asking costs; else it computes between reads, so long that neither the processor's own foresight
        // nor its reordering reach the next block.
        let ask = M > 1 || self.job.ask || F::HALVES || F::MINS && S::LANES < PANEL;
        let distance = if M <= 4 && P == 1 { 12 } else { 6 };
        // SAFETY: every block of the panels and of the tile is in bounds: `x` has
        // M * blocks blocks from the tile's first row on.
        unsafe {
            let mut acc = [[[S::splat(0.0); M]; H]; P];
            for kb in 0..blocks {
                let mut later = (kb + distance) * bytes;
                if kb + distance >= blocks {
                    // What this panel's turn is followed by.
                    later += (P - 1) * size;
                }
                for (p, acc) in acc.iter_mut().enumerate() {
                    let weights = weights[p].as_ptr();
                    if lane0 == 0 && ask {
                        simd::ahead(weights.wrapping_add(later), bytes);
                    }
                    for (h, acc) in acc.iter_mut().enumerate() {
                        let b = F::block::<S>(weights, kb, lane0 + h * S::LANES);
                        for (m, acc) in acc.iter_mut().enumerate() {
                            *acc = step::<S, F, ALONE>(*acc, &b, x.at(kb * M + m));
                        }
                    }
                }
            }
            // By reference: `into_iter` would copy the accumulators, 3 % of a prefill.
            for (p, acc) in acc.iter().enumerate() {
                for (h, acc) in acc.iter().enumerate() {
                    for (m, acc) in acc.iter().enumerate() {
                        let lane = lane0 + h * S::LANES;
                        self.job.store::<S>(tile.row + m, panel + p, lane, *acc);
                    }
                }
            }
        }
    }
}

/// Adds one block of 32 k to an accumulator.
#[inline(always)]
unsafe fn step<S: Simd, F: Format, const ALONE: bool>(
    acc: S::F,
    b: &unpack::Block<S>,
    x: ByteBlock,
) -> S::F {
    // SAFETY: `x` is a block of activations; the rest is arithmetic.
    unsafe {
        let d = S::splat(*x.scale);
        let mut acc = if F::HALVES {
            // |sum| <= 16 * 255 * 127 < 2^24: both conversions are exact.
            let halves = *x.halves;
            let lo = half::<S, F>(b, 0, x.values, halves[0]);
            let hi = half::<S, F>(b, 4, x.values.add(16), halves[1]);
            let sum = S::fma(lo, b.scale[0], S::mul(hi, b.scale[1]));
            S::fma(sum, d, acc)
        } else {
            let sum = match F::MAX {
                15 => S::dot::<8, 15, ALONE>(offset::<S, F>(*x.minus), &b.w, 0, x.values),
                31 => S::dot::<8, 31, ALONE>(offset::<S, F>(*x.minus), &b.w, 0, x.values),
                _ => S::dot_centred::<8, ALONE>(*x.minus, &b.w, 0, x.values),
            };
            S::fma(S::to_f32(sum), S::mul(b.scale[0], d), acc)
        };
        if F::MINS && F::HALVES {
            let [lo, hi] = *x.halves;
            acc = S::fma(b.min[0], S::splat(-*x.scale * lo as f32), acc);
            acc = S::fma(b.min[1], S::splat(-*x.scale * hi as f32), acc);
        } else if F::MINS {
            acc = S::fma(b.min[0], S::splat(*x.sum), acc);
        }
        acc
    }
}

/// What the offset of the weights adds to an integer sum: `minus` is minus the activations' sum.
#[inline(always)]
unsafe fn offset<S: Simd, F: Format>(minus: i32) -> S::I {
    // SAFETY: arithmetic only.
    unsafe {
        match F::OFFSET {
            0 => S::splat_i(0),
            8 => S::shl_i::<3>(S::splat_i(minus)),
            16 => S::shl_i::<4>(S::splat_i(minus)),
            _ => {
                debug_assert_eq!(F::OFFSET, 32);
                S::shl_i::<5>(S::splat_i(minus))
            }
        }
    }
}

/// The integer sum of half a block.
#[inline(always)]
unsafe fn half<S: Simd, F: Format>(
    b: &unpack::Block<S>,
    first: usize,
    x: *const i8,
    minus: i32,
) -> S::F {
    // SAFETY: `x` has 16 values.
    unsafe {
        S::to_f32(match F::MAX {
            63 => S::dot::<4, 63, false>(offset::<S, F>(minus), &b.w, first, x),
            _ => S::dot_centred::<4, false>(minus, &b.w, first, x),
        })
    }
}

/// f32 activations times quantised weights, dequantised on the way.
struct Exact<'a, F: Format> {
    x: &'a FloatRows,
    job: Job<'a>,
    #[allow(dead_code)]
    of: F,
}

impl<F: Format> Kernel for Exact<'_, F> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        for panel in self.job.panels.clone() {
            for &tile in &self.x.tiles {
                // SAFETY: tile and panel are parts of the operands.
                by_rows!(tile, M => unsafe { self.tile::<S, M>(panel, tile) });
            }
        }
    }
}

impl<F: Format> Exact<'_, F> {
    #[inline(always)]
    unsafe fn tile<S: Simd, const M: usize>(&self, panel: usize, tile: Tile) {
        let weights = self.job.w.panel(panel);
        let x = self.x.values[tile.row * self.x.k..].as_ptr();
        for lane0 in (0..PANEL).step_by(S::LANES) {
            // SAFETY: as in `Integers::tile`; the k of quantised weights is a multiple of 32.
            unsafe {
                let mut acc = [S::splat(0.0); M];
                for kb in 0..self.x.k / BLOCK {
                    let b = F::block::<S>(weights.as_ptr(), kb, lane0);
                    let w = unpacked::<S, F>(&b);
                    let x = x.add(kb * M * BLOCK);
                    for (k, &w) in w.iter().enumerate() {
                        for (m, acc) in acc.iter_mut().enumerate() {
                            *acc = S::fma(w, S::splat(*x.add(m * BLOCK + k)), *acc);
                        }
                    }
                }
                for (m, acc) in acc.into_iter().enumerate() {
                    self.job.store::<S>(tile.row + m, panel, lane0, acc);
                }
            }
        }
    }
}

/// The 32 weights of a block as f32, rounded as the formats' reference rounds them: the product
/// with the scale, then the addition of the minimum.
#[inline(always)]
pub(crate) unsafe fn unpacked<S: Simd, F: Format>(b: &unpack::Block<S>) -> [S::F; BLOCK] {
    // SAFETY: arithmetic only.
    unsafe {
        let mut out = [S::splat(0.0); BLOCK];
        for v in 0..8 {
            let w = b.w[v];
            let bytes = [S::byte::<0>(w), S::byte::<1>(w), S::byte::<2>(w), S::byte::<3>(w)];
            for (j, q) in bytes.into_iter().enumerate() {
                let q = S::sub(q, S::splat(F::OFFSET as f32));
                let value = S::mul(q, b.scale[v / 4]);
                out[4 * v + j] = if F::MINS { S::add(value, b.min[v / 4]) } else { value };
            }
        }
        out
    }
}

/// One row of quantised weights as f32.
struct Row<'a, F: Format> {
    w: &'a Packed,
    r: usize,
    out: &'a mut [f32],
    #[allow(dead_code)]
    of: F,
}

impl<F: Format> Kernel for Row<'_, F> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let weights = self.w.panel(self.r / PANEL);
        let lane0 = self.r % PANEL / S::LANES * S::LANES;
        let lane = self.r % PANEL - lane0;
        for (kb, out) in self.out.chunks_exact_mut(BLOCK).enumerate() {
            // SAFETY: `out` has one chunk for each block of the panel.
            unsafe {
                let b = F::block::<S>(weights.as_ptr(), kb, lane0);
                for (out, w) in out.iter_mut().zip(unpacked::<S, F>(&b)) {
                    let mut lanes = [0.0f32; PANEL];
                    S::store(lanes.as_mut_ptr(), w);
                    *out = lanes[lane];
                }
            }
        }
    }
}
