//! 8-bit activations times quantised weights with AMX, for products of many rows.
//!
//! A panel is unpacked once for all rows: signed bytes in quads, which is what a tile of the right
//! operand looks like, and its scales in f32. A block of activations of sixteen rows is a tile of
//! the left operand as it lies. One tile product gives the integer sums of 16 rows and 16 outputs
//! over a block (or half a block); from there on every output takes the steps that
//! [`crate::product`] takes, and the sums are exact, so the bits are the same.

use crate::activations::{BLOCK, ByteRows};
use crate::amx::Tiles;
use crate::product::Job;
use crate::simd::{PANEL, Simd};
use crate::unpack::Format;
use std::cell::RefCell;
use std::ops::Range;

/// Rows of activations in a tile.
pub(crate) const ROWS: usize = 16;

/// A block of a panel, unpacked.
#[repr(C, align(64))]
#[derive(Clone, Copy)]
struct Block {
    /// `[4 k][16 outputs][4]`
    quads: [i8; BLOCK * PANEL],
    scale: [[f32; PANEL]; 2],
    min: [[f32; PANEL]; 2],
}

thread_local! {
    /// Unpacked panels: fresh pages would cost as much as the unpacking.
    static UNPACKED: RefCell<Vec<Block>> = const { RefCell::new(Vec::new()) };
}

/// Computes `panels` for all tiles of sixteen rows.
///
/// # Safety
/// The features of `S`, of sixteen lanes, and AMX; the panels are the job's.
#[inline(always)]
pub(crate) unsafe fn multiply<S: Simd, F: Format>(x: &ByteRows, job: &Job, panels: Range<usize>) {
    let blocks = x.k / BLOCK;
    // Taken and put back: in a closure nothing would be compiled for the instruction set.
    let mut unpacked = UNPACKED.take();
    unpacked.clear();
    unpacked.reserve(blocks * panels.len());
    // SAFETY: the caller's promise; `unpack` writes every block; tile and panel are parts of the
    // operands.
    unsafe {
        for (i, panel) in panels.clone().enumerate() {
            let out = unpacked.as_mut_ptr().add(i * blocks);
            unpack::<S, F>(job.panel(panel), blocks, out);
        }
        unpacked.set_len(blocks * panels.len());
        let tiles = Tiles::of_bytes(F::HALVES);
        let mut sums = [const { Sums([[[0; PANEL]; ROWS]; 2]) }; 2];
        for &tile in x.tiles.iter().filter(|t| t.rows == ROWS) {
            for (i, panel) in panels.clone().enumerate() {
                let w = &unpacked[i * blocks..(i + 1) * blocks];
                let mut sixteen =
                    Sixteen { tiles: &tiles, x, first: tile.row * blocks, w, sums: &mut sums };
                let acc = sixteen.run::<S, F>();
                for (m, acc) in acc.iter().enumerate() {
                    job.store::<S>(tile.row + m, panel, 0, *acc);
                }
            }
        }
    }
    UNPACKED.set(unpacked);
}

/// Unpacks a panel.
#[inline(always)]
unsafe fn unpack<S: Simd, F: Format>(panel: &[u8], blocks: usize, out: *mut Block) {
    for kb in 0..blocks {
        // SAFETY: the caller's panel has `blocks` blocks, and there is room for them at `out`.
        unsafe {
            let block = F::block::<S>(panel.as_ptr(), kb, 0);
            let offset = S::splat_w(F::OFFSET as u8);
            let out = &raw mut *out.add(kb);
            for (v, w) in block.w.into_iter().enumerate() {
                S::store_w((&raw mut (*out).quads).cast::<u8>().add(64 * v), S::sub_w(w, offset));
            }
            for h in 0..2 {
                S::store((&raw mut (*out).scale[h]).cast(), block.scale[h]);
                S::store((&raw mut (*out).min[h]).cast(), block.min[h]);
            }
        }
    }
}

/// Integer sums of a block: 16 rows of 16 outputs, for each half or for the whole.
#[repr(align(64))]
struct Sums([[[i32; PANEL]; ROWS]; 2]);

/// The outputs of a panel for sixteen rows.
struct Sixteen<'a> {
    tiles: &'a Tiles,
    x: &'a ByteRows,
    /// The first block of the rows.
    first: usize,
    /// The panel.
    w: &'a [Block],
    /// Sums of this block and of the next one.
    sums: &'a mut [Sums; 2],
}

impl Sixteen<'_> {
    /// While the sums of one block are scaled, those of the next are stored and those of the one after
    /// it multiplied: a product of tiles takes some fifty cycles to its end, but the next may begin after
    /// sixteen.
    #[inline(always)]
    unsafe fn run<S: Simd, F: Format>(&mut self) -> [S::F; ROWS] {
        let blocks = self.w.len();
        // SAFETY: `x` has a block of each of the rows for every block of the panel.
        unsafe {
            let mut acc = [S::splat(0.0); ROWS];
            self.multiply::<F, 0>(0);
            self.store::<F, 0>();
            self.multiply::<F, 1>(1);
            for kb in (0..blocks).step_by(2) {
                self.multiply::<F, 0>(kb + 2);
                self.store::<F, 1>();
                self.scale::<S, F, 0>(kb, &mut acc);
                if kb + 1 < blocks {
                    self.multiply::<F, 1>(kb + 3);
                    self.store::<F, 0>();
                    self.scale::<S, F, 1>(kb + 1, &mut acc);
                }
            }
            acc
        }
    }

    /// Begins the product of block `kb`, if there is one.
    #[inline(always)]
    unsafe fn multiply<F: Format, const ODD: usize>(&self, kb: usize) {
        let Some(w) = self.w.get(kb) else { return };
        let w = w.quads.as_ptr();
        // SAFETY: as in `run`.
        unsafe {
            let x = self.x.values.as_ptr().add((self.first + kb * ROWS) * BLOCK);
            match (F::HALVES, ODD) {
                (false, 0) => self.tiles.multiply::<0, 4, 6>(x, w),
                (false, _) => self.tiles.multiply::<1, 5, 7>(x, w),
                (true, 0) => {
                    self.tiles.multiply::<0, 4, 6>(x, w);
                    self.tiles.multiply::<2, 5, 7>(x.add(16), w.add(4 * 64));
                }
                (true, _) => {
                    self.tiles.multiply::<1, 4, 6>(x, w);
                    self.tiles.multiply::<3, 5, 7>(x.add(16), w.add(4 * 64));
                }
            }
        }
    }

    /// Stores the sums of the last even or odd block.
    #[inline(always)]
    unsafe fn store<F: Format, const ODD: usize>(&mut self) {
        let [whole, second] = self.sums[ODD].0.each_mut().map(|s| s.as_mut_ptr().cast::<i32>());
        // SAFETY: room for sixteen times sixteen sums.
        unsafe {
            match ODD {
                0 => self.tiles.store::<0>(whole),
                _ => self.tiles.store::<1>(whole),
            }
            match (F::HALVES, ODD) {
                (false, _) => {}
                (true, 0) => self.tiles.store::<2>(second),
                (true, _) => self.tiles.store::<3>(second),
            }
        }
    }

    /// Adds the stored sums of block `kb`, scaled, to the accumulators.
    #[inline(always)]
    unsafe fn scale<S: Simd, F: Format, const ODD: usize>(
        &self,
        kb: usize,
        acc: &mut [S::F; ROWS],
    ) {
        let (x, w, sums) = (self.x, &self.w[kb], &self.sums[ODD].0);
        let at = self.first + kb * ROWS;
        // SAFETY: as in `run`.
        unsafe {
            let scale = [S::load(w.scale[0].as_ptr()), S::load(w.scale[1].as_ptr())];
            let min = [S::load(w.min[0].as_ptr()), S::load(w.min[1].as_ptr())];
            for (m, acc) in acc.iter_mut().enumerate() {
                let d = *x.scales.as_ptr().add(at + m);
                let lo = S::to_f32(S::load_i(sums[0][m].as_ptr()));
                if F::HALVES {
                    let hi = S::to_f32(S::load_i(sums[1][m].as_ptr()));
                    let sum = S::fma(lo, scale[0], S::mul(hi, scale[1]));
                    *acc = S::fma(sum, S::splat(d), *acc);
                } else {
                    *acc = S::fma(lo, S::mul(scale[0], S::splat(d)), *acc);
                }
                if F::MINS && F::HALVES {
                    let [lo, hi] = *x.halves.as_ptr().add(at + m);
                    *acc = S::fma(min[0], S::splat(-d * lo as f32), *acc);
                    *acc = S::fma(min[1], S::splat(-d * hi as f32), *acc);
                } else if F::MINS {
                    *acc = S::fma(min[0], S::splat(*x.sums.as_ptr().add(at + m)), *acc);
                }
            }
        }
    }
}
