//! 8-bit activations times quantised weights with AMX, for products of many rows.
//!
//! A panel is unpacked once for all rows: signed bytes in quads, which is what a tile of the right
//! operand looks like, and its scales in f32. A block of activations of sixteen rows is a tile of
//! the left operand as it lies. One tile product gives the integer sums of 16 rows and 16 outputs
//! over a block (or half a block); from there on every output takes the steps that
//! [`crate::product`] takes, and the sums are exact, so the bits are the same.

use crate::activations::{BLOCK, ByteRows, Tile};
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
        for &tile in x.tiles.iter().filter(|t| t.rows == ROWS) {
            for (i, panel) in panels.clone().enumerate() {
                let w = &unpacked[i * blocks..(i + 1) * blocks];
                let acc = sixteen::<S, F>(&tiles, x, tile, w);
                for (m, acc) in acc.into_iter().enumerate() {
                    job.store::<S>(tile.row + m, panel, 0, acc);
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
#[inline(always)]
unsafe fn sixteen<S: Simd, F: Format>(
    tiles: &Tiles,
    x: &ByteRows,
    tile: Tile,
    w: &[Block],
) -> [S::F; ROWS] {
    let first = tile.row * w.len();
    // SAFETY: `x` has a block of each of the tile's rows for every block of the panel.
    unsafe {
        let values = x.values.as_ptr().add(first * BLOCK);
        let mut sums = [const { Sums([[[0; PANEL]; ROWS]; 2]) }; 2];
        let start = |kb: usize, to: &mut Sums| {
            let (x, w) = (values.add(kb * ROWS * BLOCK), w[kb].quads.as_ptr());
            tiles.sums(x, w, to.0[0].as_mut_ptr().cast());
            if F::HALVES {
                tiles.sums(x.add(16), w.add(4 * 64), to.0[1].as_mut_ptr().cast());
            }
        };
        start(0, &mut sums[0]);
        let mut acc = [S::splat(0.0); ROWS];
        for (kb, w_block) in w.iter().enumerate() {
            // The tiles of the next block are multiplied while this one's sums are scaled.
            if kb + 1 < w.len() {
                start(kb + 1, &mut sums[(kb + 1) % 2]);
            }
            let sums = &sums[kb % 2].0;
            let at = first + kb * ROWS;
            let scale = [S::load(w_block.scale[0].as_ptr()), S::load(w_block.scale[1].as_ptr())];
            let min = [S::load(w_block.min[0].as_ptr()), S::load(w_block.min[1].as_ptr())];
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
        acc
    }
}
