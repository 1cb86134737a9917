//! Products with float weights, by tiles of rows and vectors of outputs.

use crate::activations::{BLOCK, FloatRows, PairRows, Tile};
use crate::element::Element;
use crate::product::{Job, by_rows};
use crate::simd::{Kernel, PANEL, Simd, prefetch};
use std::ops::Range;

/// Blocks of k of a product of floats that all tiles of rows meet before the next ones.
const CHUNK: usize = 16;

/// A product of float weights, by tiles of rows and vectors.
trait Tiled {
    /// What is computed, and where it goes.
    fn job(&self) -> &Job<'_>;

    /// Adds what some blocks of k give to the sums of rows `m0 ..` of a tile of `M` rows and of `V` vectors of
    /// outputs, from those of `panel` on.
    ///
    /// # Safety
    /// As for [`Tiled::tile`].
    unsafe fn sum<S: Simd, const M: usize, const MM: usize, const V: usize>(
        &self,
        panel: usize,
        tile: Tile,
        m0: usize,
        blocks: &Range<usize>,
        acc: &mut [[S::F; V]; MM],
    );

    /// `V` vectors of output rows, from those of `panel` on, for a tile of `M` rows, `MM` at a time, over some
    /// blocks of k; sums go on from the outputs if there were earlier blocks.
    ///
    /// # Safety
    /// The features of `S`; panels, tile and blocks are parts of the operands.
    #[inline(always)]
    unsafe fn tile<S: Simd, const M: usize, const MM: usize, const V: usize>(
        &self,
        panel: usize,
        tile: Tile,
        blocks: &Range<usize>,
    ) {
        for m0 in (0..M).step_by(MM) {
            // SAFETY: the caller's promise; the rows are the tile's.
            unsafe {
                let mut acc = [[S::splat(0.0); V]; MM];
                if blocks.start > 0 {
                    self.job().load_all::<S, MM, V>(tile.row + m0, panel, &mut acc);
                }
                self.sum::<S, M, MM, V>(panel, tile, m0, blocks, &mut acc);
                self.job().store_all::<S, MM, V>(tile.row + m0, panel, acc);
            }
        }
    }

    /// Some panels, `V` vectors at a time as long as there are so many.
    ///
    /// # Safety
    /// As for [`Tiled::tile`].
    #[inline(always)]
    unsafe fn some<S: Simd, const M: usize, const MM: usize, const V: usize>(
        &self,
        panels: &Range<usize>,
        tile: Tile,
        blocks: &Range<usize>,
    ) {
        let (mut panel, each) = (panels.start, V * S::LANES / PANEL);
        // SAFETY: the panels are the operand's.
        unsafe {
            while panel + each <= panels.end {
                self.tile::<S, M, MM, V>(panel, tile, blocks);
                panel += each;
            }
            while panel < panels.end {
                if S::LANES == PANEL {
                    self.tile::<S, M, MM, 1>(panel, tile, blocks);
                } else {
                    self.tile::<S, M, MM, 2>(panel, tile, blocks);
                }
                panel += 1;
            }
        }
    }

    /// The job's panels for all tiles of f32 activations. Of many tiles some k at a time: what a tile of rows
    /// and two panels have of them stays in the first-level cache.
    ///
    /// # Safety
    /// The features of `S`.
    #[inline(always)]
    unsafe fn all<S: Simd>(&self, x: &FloatRows, job: &Job) {
        let blocks = x.k.div_ceil(BLOCK);
        let chunks = if x.tiles.len() == 1 { 1 } else { blocks.div_ceil(CHUNK).max(1) };
        for panels in job.groups(job.most(x.tiles.len(), chunks)) {
            for i in 0..chunks {
                let chunk = i * blocks / chunks..(i + 1) * blocks / chunks;
                for &tile in &x.tiles {
                    // SAFETY: tile, panels and blocks are parts of the operands.
                    unsafe { self.floats::<S>(&panels, tile, &chunk) };
                }
            }
        }
    }

    /// A tile of f32 activations: at least eight chains of additions, so that none waits for itself,
    /// and whole panels, whose other half would be read anew.
    ///
    /// # Safety
    /// As for [`Tiled::tile`].
    #[inline(always)]
    unsafe fn floats<S: Simd>(&self, panels: &Range<usize>, tile: Tile, blocks: &Range<usize>) {
        // SAFETY: the caller's promise.
        unsafe {
            match tile.rows {
                16 if S::LANES == PANEL => self.some::<S, 16, 8, 2>(panels, tile, blocks),
                8 if S::LANES == PANEL => self.some::<S, 8, 8, 1>(panels, tile, blocks),
                1 if S::LANES == PANEL => self.some::<S, 1, 1, 4>(panels, tile, blocks),
                16 => self.some::<S, 16, 4, 2>(panels, tile, blocks),
                8 => self.some::<S, 8, 4, 2>(panels, tile, blocks),
                4 => self.some::<S, 4, 4, 2>(panels, tile, blocks),
                2 => self.some::<S, 2, 2, 4>(panels, tile, blocks),
                _ => self.some::<S, 1, 1, 8>(panels, tile, blocks),
            }
        }
    }
}

/// The panel and the first lane of vector `v` from those of `panel` on.
#[inline(always)]
fn place<S: Simd>(panel: usize, v: usize) -> (usize, usize) {
    let each = PANEL / S::LANES;
    (panel + v / each, v % each * S::LANES)
}

impl Job<'_> {
    /// The weights of `V` vectors, of `bytes` for each lane.
    #[inline(always)]
    fn vectors<S: Simd, const V: usize>(&self, panel: usize, bytes: usize) -> [*const u8; V] {
        std::array::from_fn(|v| {
            let (panel, lane0) = place::<S>(panel, v);
            self.w.panel(panel)[lane0 * bytes..].as_ptr()
        })
    }

    /// Loads what [`Job::store_all`] has stored.
    ///
    /// # Safety
    /// As for [`Job::store`].
    #[inline(always)]
    unsafe fn load_all<S: Simd, const MM: usize, const V: usize>(
        &self,
        row: usize,
        panel: usize,
        acc: &mut [[S::F; V]; MM],
    ) {
        let n = self.w.n;
        for (m, acc) in acc.iter_mut().enumerate() {
            for (v, acc) in acc.iter_mut().enumerate() {
                let (panel, lane0) = place::<S>(panel, v);
                let at = panel * PANEL + lane0;
                let mut lanes = [0.0f32; PANEL];
                // SAFETY: the caller's promise; columns beyond n are not read.
                unsafe {
                    if at + S::LANES <= n {
                        *acc = S::load(self.out.at((row + m) * n + at));
                    } else if at < n {
                        let from = self.out.at((row + m) * n + at);
                        lanes.as_mut_ptr().copy_from_nonoverlapping(from, n - at);
                        *acc = S::load(lanes.as_ptr());
                    }
                }
            }
        }
    }

    /// Stores `V` vectors for each of `MM` rows.
    ///
    /// # Safety
    /// As for [`Job::store`].
    #[inline(always)]
    unsafe fn store_all<S: Simd, const MM: usize, const V: usize>(
        &self,
        row: usize,
        panel: usize,
        acc: [[S::F; V]; MM],
    ) {
        for (m, acc) in acc.into_iter().enumerate() {
            for (v, acc) in acc.into_iter().enumerate() {
                let (panel, lane0) = place::<S>(panel, v);
                // SAFETY: the caller's promise.
                unsafe { self.store::<S>(row + m, panel, lane0, acc) };
            }
        }
    }
}

/// Activations in bfloat16 times weights in bfloat16, with an instruction for that.
pub(crate) struct Pairs<'a> {
    pub(crate) x: &'a PairRows,
    pub(crate) job: Job<'a>,
}

impl Kernel for Pairs<'_> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let blocks = 0..self.x.k.div_ceil(BLOCK);
        for panels in self.job.groups(self.job.most(self.x.tiles.len(), 1)) {
            for &tile in &self.x.tiles {
                // SAFETY: tile and panels are parts of the operands.
                by_rows!(tile, M => unsafe { self.some::<S, M, M, 1>(&panels, tile, &blocks) });
            }
        }
    }
}

impl Tiled for Pairs<'_> {
    fn job(&self) -> &Job<'_> {
        &self.job
    }

    #[inline(always)]
    unsafe fn sum<S: Simd, const M: usize, const MM: usize, const V: usize>(
        &self,
        panel: usize,
        tile: Tile,
        m0: usize,
        blocks: &Range<usize>,
        acc: &mut [[S::F; V]; MM],
    ) {
        const PAIRS: usize = BLOCK / 2;
        let pairs = self.x.k.div_ceil(2);
        let x = self.x.values[tile.row * self.x.k.div_ceil(BLOCK) * PAIRS..].as_ptr();
        let vectors = self.job.vectors::<S, V>(panel, 4);
        // SAFETY: pairs run over the panel's; `x` has M rows of k, blocked by 32.
        unsafe {
            for kb in blocks.clone() {
                let x = x.add((kb * M + m0) * PAIRS);
                for i in 0..PAIRS.min(pairs - kb * PAIRS) {
                    let at = (kb * PAIRS + i) * PANEL * 4;
                    let mut w = [S::splat_w(0); V];
                    for (w, p) in w.iter_mut().zip(vectors) {
                        if (M > 1 || self.job.ask) && m0 == 0 {
                            prefetch(p.wrapping_add(at + if M <= 4 { 4096 } else { 2048 }));
                        }
                        *w = S::load_w(p.add(at));
                    }
                    for (m, acc) in acc.iter_mut().enumerate() {
                        for (v, acc) in acc.iter_mut().enumerate() {
                            *acc = S::dot_bf16(*acc, w[v], x.add(m * PAIRS + i));
                        }
                    }
                }
            }
        }
    }
}

/// f32 activations times weights in bfloat16. Of each pair of k `FIRST` says which one's product is
/// added first: 0, or 1 as `vdpbf16ps` does with activations that are rounded to bfloat16.
pub(crate) struct Unpaired<'a, const FIRST: usize> {
    pub(crate) x: &'a FloatRows,
    pub(crate) job: Job<'a>,
}

impl<const FIRST: usize> Kernel for Unpaired<'_, FIRST> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        // SAFETY: the caller's promise.
        unsafe { self.all::<S>(self.x, &self.job) }
    }
}

impl<const FIRST: usize> Tiled for Unpaired<'_, FIRST> {
    fn job(&self) -> &Job<'_> {
        &self.job
    }

    #[inline(always)]
    unsafe fn sum<S: Simd, const M: usize, const MM: usize, const V: usize>(
        &self,
        panel: usize,
        tile: Tile,
        m0: usize,
        blocks: &Range<usize>,
        acc: &mut [[S::F; V]; MM],
    ) {
        let k = self.x.k;
        let x = self.x.values[tile.row * k.next_multiple_of(BLOCK)..].as_ptr();
        let vectors = self.job.vectors::<S, V>(panel, 4);
        // SAFETY: k runs over the panel's k; `x` has M rows of k, blocked by 32 and padded.
        unsafe {
            for kb in blocks.clone() {
                let x = x.add((kb * M + m0) * BLOCK);
                for kk in (0..BLOCK.min(k - kb * BLOCK)).step_by(2) {
                    let at = (kb * BLOCK + kk) / 2 * PANEL * 4;
                    let mut w = [[S::splat(0.0); 2]; V];
                    for v in 0..V {
                        let p = vectors[v].add(at);
                        if (M > 1 || self.job.ask) && m0 == 0 && v % (PANEL / S::LANES) == 0 {
                            prefetch(p.wrapping_add(if M <= 4 { 4096 } else { 2048 }));
                        }
                        w[v] = S::bf16_pair(S::load_w(p));
                    }
                    for (m, acc) in acc.iter_mut().enumerate() {
                        let x = x.add(m * BLOCK + kk);
                        let pair = [S::splat(*x), S::splat(*x.add(1))];
                        for v in 0..V {
                            let first = S::fma(w[v][FIRST], pair[FIRST], acc[v]);
                            acc[v] = S::fma(w[v][1 - FIRST], pair[1 - FIRST], first);
                        }
                    }
                }
            }
        }
    }
}

/// f32 activations times float weights.
pub(crate) struct Floats<'a, F: Element> {
    pub(crate) x: &'a FloatRows,
    pub(crate) job: Job<'a>,
    #[allow(dead_code)]
    pub(crate) of: F,
}

impl<F: Element> Kernel for Floats<'_, F> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        // SAFETY: the caller's promise.
        unsafe { self.all::<S>(self.x, &self.job) }
    }
}

impl<F: Element> Tiled for Floats<'_, F> {
    fn job(&self) -> &Job<'_> {
        &self.job
    }

    #[inline(always)]
    unsafe fn sum<S: Simd, const M: usize, const MM: usize, const V: usize>(
        &self,
        panel: usize,
        tile: Tile,
        m0: usize,
        blocks: &Range<usize>,
        acc: &mut [[S::F; V]; MM],
    ) {
        let k = self.x.k;
        let x = self.x.values[tile.row * k.next_multiple_of(BLOCK)..].as_ptr();
        let vectors = self.job.vectors::<S, V>(panel, F::BYTES);
        // SAFETY: k runs over the panel's k; `x` has M rows of k, blocked by 32.
        unsafe {
            for kb in blocks.clone() {
                let x = x.add((kb * M + m0) * BLOCK);
                for kk in 0..BLOCK.min(k - kb * BLOCK) {
                    let at = (kb * BLOCK + kk) * PANEL * F::BYTES;
                    let mut w = [S::splat(0.0); V];
                    for (w, p) in w.iter_mut().zip(vectors) {
                        *w = F::load::<S>(p.add(at));
                    }
                    for (m, acc) in acc.iter_mut().enumerate() {
                        let x = S::splat(*x.add(m * BLOCK + kk));
                        for (v, acc) in acc.iter_mut().enumerate() {
                            *acc = S::fma(w[v], x, *acc);
                        }
                    }
                }
            }
        }
    }
}
