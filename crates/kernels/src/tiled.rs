//! 8-bit activations times quantised weights with AMX, for products of many rows.
//!
//! A panel is unpacked [`CHUNK`] blocks at a time, for all rows: signed bytes in quads, which is what
//! a tile of the right operand looks like, and its scales in f32. A block of activations of sixteen
//! rows is a tile of the left operand as it lies. One tile product gives the integer sums of 16 rows
//! and 16 outputs over a block (or half a block); from there on every output takes the steps that
//! [`crate::product`] takes, and the sums are exact, so the bits are the same.

use crate::activations::{BLOCK, ByteBlock, ByteRows};
use crate::amx::Tiles;
use crate::product::Job;
use crate::simd::{PANEL, Simd, ahead};
use crate::unpack::Format;
use std::cell::RefCell;
use std::ops::Range;

/// Rows of activations in a tile.
pub(crate) const ROWS: usize = 16;
/// Blocks of a panel that are unpacked together: 12 KiB, which stay in the first-level cache.
const CHUNK: usize = 16;
/// Tiles of rows that a chunk of a panel meets before the next one is unpacked: 256 KiB, which stay in
/// the second-level cache for a whole group of panels.
const GROUP: usize = 32;
/// Panels of a group: their outputs so far are a mebibyte of that cache.
pub(crate) const PANELS: usize = 32;

/// A block of a panel, unpacked.
#[repr(C, align(64))]
#[derive(Clone, Copy)]
struct Block {
    /// `[4 k][16 outputs][4]`
    quads: [i8; BLOCK * PANEL],
    scale: [[f32; PANEL]; 2],
    min: [[f32; PANEL]; 2],
}

/// The outputs of a panel for a tile of rows.
#[repr(C, align(64))]
#[derive(Clone, Copy)]
struct Square([[f32; PANEL]; ROWS]);

/// What a thread works in: fresh pages would cost as much as the unpacking.
#[derive(Default)]
struct Room {
    /// Blocks of a panel.
    unpacked: Vec<Block>,
    /// Outputs so far, `[panel][tile]`.
    outputs: Vec<Square>,
}

thread_local! {
    static ROOM: RefCell<Room> = RefCell::default();
}

/// Computes `panels` for all tiles of sixteen rows.
///
/// # Safety
/// The features of `S`, of sixteen lanes, and AMX; the panels are the job's.
#[inline(always)]
pub(crate) unsafe fn multiply<S: Simd, F: Format>(x: &ByteRows, job: &Job, panels: Range<usize>) {
    let all = x.tiles.iter().filter(|t| t.rows == ROWS).count();
    // Taken and put back: in a closure nothing would be compiled for the instruction set.
    let mut room = ROOM.take();
    let mut sums = [const { Sums([[[0; PANEL]; ROWS]; 2]) }; 2];
    // SAFETY: the caller's promise.
    unsafe {
        let tiles = Tiles::of_bytes(F::HALVES);
        // A single tile of rows has no use for a chunk a second time.
        let each = if all == 1 { 1 } else { panels.len() };
        for first in (0..all).step_by(GROUP) {
            for panel in panels.clone().step_by(each) {
                let group = Group {
                    tiles: &tiles,
                    x,
                    rows: first..(first + GROUP).min(all),
                    job,
                    panels: panel..panel + each,
                    sums: &raw mut sums,
                };
                group.multiply::<S, F>(&mut room);
            }
        }
    }
    ROOM.set(room);
}

/// Some tiles of rows times some panels.
struct Group<'a> {
    tiles: &'a Tiles,
    x: &'a ByteRows,
    rows: Range<usize>,
    job: &'a Job<'a>,
    panels: Range<usize>,
    sums: *mut [Sums; 2],
}

impl Group<'_> {
    #[inline(always)]
    unsafe fn multiply<S: Simd, F: Format>(&self, room: &mut Room) {
        let blocks = self.x.k / BLOCK;
        let single = self.rows.len() == 1;
        let each = blocks.div_ceil(blocks.div_ceil(CHUNK)).next_multiple_of(2);
        room.unpacked.reserve(each);
        room.outputs.reserve(self.panels.len() * self.rows.len());
        let (unpacked, outputs) = (room.unpacked.as_mut_ptr(), room.outputs.as_mut_ptr());
        // SAFETY: the caller's promise; there is room for a chunk of blocks, all written before they are
        // read, and for the outputs, which the first chunk writes.
        unsafe {
            for first in (0..blocks).step_by(each) {
                let chunk = first..(first + each).min(blocks);
                for (i, panel) in self.panels.clone().enumerate() {
                    let weights = self.job.panel(panel);
                    let bytes = weights.len() / blocks;
                    unpack::<S, F>(weights, chunk.clone(), unpacked);
                    let later = match single {
                        true => chunk.end * bytes,
                        false => weights.len() + chunk.start * bytes,
                    };
                    let walk = Walk {
                        tiles: self.tiles,
                        x: self.x.block((self.rows.start * blocks + chunk.start) * ROWS),
                        apart: blocks * ROWS,
                        w: unpacked,
                        count: self.rows.len(),
                        blocks: chunk.len(),
                        sums: self.sums,
                        later: weights.as_ptr().wrapping_add(later),
                        bytes,
                    };
                    walk.run::<S, F>(first == 0, outputs.add(i * self.rows.len()));
                }
            }
            for (t, tile) in self.rows.clone().enumerate() {
                for m in 0..ROWS {
                    for (i, panel) in self.panels.clone().enumerate() {
                        let square = &raw const *outputs.add(i * self.rows.len() + t);
                        let row = S::load((&raw const (*square).0[m]).cast());
                        self.job.store::<S>(tile * ROWS + m, panel, 0, row);
                    }
                }
            }
        }
    }
}

/// Unpacks blocks `chunk` of a panel.
#[inline(always)]
unsafe fn unpack<S: Simd, F: Format>(panel: &[u8], chunk: Range<usize>, out: *mut Block) {
    for (i, kb) in chunk.enumerate() {
        // SAFETY: the caller's panel has these blocks, and there is room for them at `out`.
        unsafe {
            let block = F::block::<S>(panel.as_ptr(), kb, 0);
            let offset = S::splat_w(F::OFFSET as u8);
            let out = &raw mut *out.add(i);
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

/// A chunk of a panel with tiles of rows, one after the other. Pointers, so that nothing is looked up
/// anew after each instruction that reads or writes a tile.
struct Walk<'a> {
    tiles: &'a Tiles,
    /// The first tile's first block of the chunk.
    x: ByteBlock,
    /// Blocks of activations from one tile to the next.
    apart: usize,
    w: *const Block,
    /// Tiles of rows.
    count: usize,
    blocks: usize,
    /// Sums of this block and of the next one.
    sums: *mut [Sums; 2],
    /// The chunk that is unpacked next, and the bytes of a block.
    later: *const u8,
    bytes: usize,
}

/// The next block to be multiplied.
struct Next {
    tile: usize,
    kb: usize,
}

impl Walk<'_> {
    /// While the sums of one block are scaled, those of the next are stored and those of the one after
    /// it multiplied, from one tile of rows into the next: a product of tiles takes some fifty cycles to
    /// its end, but the next may begin after sixteen. Where blocks are odd in number, one more is
    /// multiplied for nothing.
    #[inline(always)]
    unsafe fn run<S: Simd, F: Format>(&self, begins: bool, outputs: *mut Square) {
        let mut next = Next { tile: 0, kb: 0 };
        // SAFETY: `x` has a block of each of the rows for every block of the chunk; outputs for each tile.
        unsafe {
            self.multiply::<F, 0>(&mut next);
            self.store::<F, 0>();
            self.multiply::<F, 1>(&mut next);
            for tile in 0..self.count {
                let square = (&raw mut (*outputs.add(tile)).0).cast::<f32>();
                let mut acc = [S::splat(0.0); ROWS];
                if !begins {
                    for (m, acc) in acc.iter_mut().enumerate() {
                        *acc = S::load(square.add(m * PANEL));
                    }
                }
                for kb in (0..self.blocks).step_by(2) {
                    if tile == 0 {
                        ahead(self.later.wrapping_add(kb * self.bytes), 2 * self.bytes);
                    }
                    self.multiply::<F, 0>(&mut next);
                    self.store::<F, 1>();
                    self.scale::<S, F, 0>(tile, kb, &mut acc);
                    self.multiply::<F, 1>(&mut next);
                    self.store::<F, 0>();
                    if kb + 1 < self.blocks {
                        self.scale::<S, F, 1>(tile, kb + 1, &mut acc);
                    }
                }
                // Nothing else may be done with them: they would leave their registers.
                for (m, acc) in acc.iter().enumerate() {
                    S::store(square.add(m * PANEL), *acc);
                }
            }
        }
    }

    /// Begins the product of the next block; beyond the last one, of the last tile again.
    #[inline(always)]
    unsafe fn multiply<F: Format, const ODD: usize>(&self, next: &mut Next) {
        // The one more of an odd number: any will do.
        let kb = next.kb.min(self.blocks - 1);
        // SAFETY: as in `run`.
        unsafe {
            let w = (&raw const (*self.w.add(kb)).quads).cast::<i8>();
            let x = self.x.at(next.tile * self.apart + kb * ROWS).values;
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
        next.kb += 1;
        if next.kb >= self.blocks && next.kb.is_multiple_of(2) {
            *next = Next { tile: (next.tile + 1).min(self.count - 1), kb: 0 };
        }
    }

    /// Stores the sums of the last even or odd block.
    #[inline(always)]
    unsafe fn store<F: Format, const ODD: usize>(&self) {
        // SAFETY: room for sixteen times sixteen sums.
        unsafe {
            let whole = (&raw mut (*self.sums)[ODD].0).cast::<i32>();
            let second = whole.add(ROWS * PANEL);
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

    /// Adds the stored sums of block `kb` of the chunk, scaled, to the accumulators.
    #[inline(always)]
    unsafe fn scale<S: Simd, F: Format, const ODD: usize>(
        &self,
        tile: usize,
        kb: usize,
        acc: &mut [S::F; ROWS],
    ) {
        // SAFETY: as in `run`.
        unsafe {
            let (x, w) = (self.x.at(tile * self.apart + kb * ROWS), &*self.w.add(kb));
            let sums = (&raw const (*self.sums)[ODD].0).cast::<i32>();
            let scale = [S::load(w.scale[0].as_ptr()), S::load(w.scale[1].as_ptr())];
            let min = [S::load(w.min[0].as_ptr()), S::load(w.min[1].as_ptr())];
            for (m, acc) in acc.iter_mut().enumerate() {
                let d = *x.scale.add(m);
                let lo = S::to_f32(S::load_i(sums.add(m * PANEL)));
                if F::HALVES {
                    let hi = S::to_f32(S::load_i(sums.add((ROWS + m) * PANEL)));
                    let sum = S::fma(lo, scale[0], S::mul(hi, scale[1]));
                    *acc = S::fma(sum, S::splat(d), *acc);
                } else {
                    *acc = S::fma(lo, S::mul(scale[0], S::splat(d)), *acc);
                }
                if F::MINS && F::HALVES {
                    let [lo, hi] = *x.halves.add(m);
                    *acc = S::fma(min[0], S::splat(-d * lo as f32), *acc);
                    *acc = S::fma(min[1], S::splat(-d * hi as f32), *acc);
                } else if F::MINS {
                    *acc = S::fma(min[0], S::splat(*x.sum.add(m)), *acc);
                }
            }
        }
    }
}
