//! Products of bfloat16s in the order of AMX's tiles (Intel's manual of instruction set extensions,
//! `TDPBF16PS`): of each 32 places of the contraction, counted from its start, the even ones are one
//! chain of multiply-adds from zero and the odd ones another; their sum is added to the output.
//! Products of bfloat16s are exact in f32, so the same bits come from multiply-adds elsewhere.
//!
//! Outputs are computed in squares of 32 x 32, four tiles. Of b, strips of 32 outputs are packed as
//! `[pair of places][32]` by all threads; each task packs its rows of a, as tiles of `[16 rows][16
//! pairs]`. A tile product is so quick that what counts is where operands come from: of `KC` places
//! a strip of b stays in the first-level cache for all rows of a task, and these in the second.

use super::gemm::{Gemm, KB, SMALL, SMALLEST, Wide, pack};
use super::pack::Operand;
use crate::activations::to_bf16;
use crate::amx;
use crate::buffer::SharedMut;
use crate::simd::{Isa, Kernel, Simd};
use std::mem::MaybeUninit;
use std::ops::Range;

/// Rows and columns of a square of outputs.
const SIDE: usize = 32;
/// Places of the contraction that one tile holds, and pairs of them.
const STEP: usize = 32;
const PAIRS: usize = STEP / 2;
/// Rows and columns of a tile.
const TILE: usize = 16;
/// Pairs of b in a packed chunk at most.
const CHUNK: usize = 2 << 20;
/// Places of the contraction that a task takes at a time.
const KC: usize = 512;
/// Rows of a task at most.
const MC: usize = 512;

/// `c[m][n] (+)= a b`; sizes and operands are checked, none is empty.
pub(super) fn product(
    gemm: &Gemm,
    [m, n, k]: [usize; 3],
    a: Operand,
    b: Operand,
    c: &mut [f32],
    add: bool,
) {
    let strips = n.div_ceil(SIDE);
    let most = (CHUNK / (k.min(KB).div_ceil(STEP) * PAIRS * SIDE)).clamp(1, strips);
    let each = strips.div_ceil(strips.div_ceil(most));
    let mut packed = gemm.scratch(each * SIDE * PAIRS * k.min(KB).div_ceil(STEP));
    let (c, to) = (SharedMut(c.as_mut_ptr()), SharedMut(packed.as_mut_ptr()));
    for k0 in (0..k).step_by(KB) {
        let inner = k0..(k0 + KB).min(k);
        for s0 in (0..strips).step_by(each) {
            let s1 = (s0 + each).min(strips);
            let grain = (16384 / (SIDE * inner.len())).max(1);
            gemm.pool().split(s1 - s0, grain, &|part| {
                gemm.isa().run(PackStrips { b, n, inner: inner.clone(), s0, part, to });
            });
            let load = add || k0 > 0;
            multiply(gemm, &Job { a, packed: to, c, m, n, inner: inner.clone(), s0, s1, load });
        }
    }
}

/// Shares the outputs of a packed chunk out to the threads.
fn multiply(gemm: &Gemm, job: &Job) {
    let strips = job.s1 - job.s0;
    let steps = job.inner.len().min(KC).div_ceil(STEP);
    let threads =
        if job.m * strips * SIDE * job.inner.len() < SMALL { 1 } else { gemm.pool().threads() };
    let each = job.m.div_ceil(threads);
    let rows = each.div_ceil(each.div_ceil(MC)).next_multiple_of(SIDE);
    let blocks = job.m.div_ceil(rows);
    // Few rows: the columns are shared out too, for which a is packed more than once.
    let groups = if blocks < threads { threads.min(strips) } else { 1 };
    let wide = strips.div_ceil(groups);
    let groups = strips.div_ceil(wide);
    let task = |i: usize| {
        let (block, group) = (i % blocks, i / blocks);
        let mut own = gemm.scratch(rows * steps * PAIRS + TILE * PAIRS * steps);
        gemm.isa().run(Multiply {
            job,
            isa: gemm.isa(),
            rows: block * rows..((block + 1) * rows).min(job.m),
            strips: group * wide..((group + 1) * wide).min(strips),
            own: own.as_mut_ptr().cast(),
            turned: own[rows * steps * PAIRS..].as_mut_ptr(),
        });
    };
    if threads == 1 {
        (0..blocks * groups).for_each(task);
    } else {
        gemm.pool().run(blocks * groups, &task);
    }
}

/// Packs strips `part` of a chunk of b.
struct PackStrips<'a> {
    b: Operand<'a>,
    n: usize,
    inner: Range<usize>,
    s0: usize,
    part: Range<usize>,
    to: SharedMut<f32>,
}

impl Kernel for PackStrips<'_> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let mut wide: Wide = [MaybeUninit::uninit(); _];
        let (pairs, room) = (self.inner.len().div_ceil(2), self.inner.len().div_ceil(STEP) * PAIRS);
        for s in self.part.clone() {
            let first = (self.s0 + s) * SIDE;
            // SAFETY: the buffer has room for every strip of the chunk, and each is packed once.
            unsafe {
                let out = self.to.at(s * SIDE * room);
                pack::<S, SIDE, true>(&self.b, first, self.n, self.inner.clone(), out, &mut wide);
                out.add(pairs * SIDE).write_bytes(0, (room - pairs) * SIDE);
            }
        }
    }
}

/// A product with a packed chunk of b.
struct Job<'a> {
    a: Operand<'a>,
    packed: SharedMut<f32>,
    c: SharedMut<f32>,
    m: usize,
    n: usize,
    inner: Range<usize>,
    s0: usize,
    s1: usize,
    load: bool,
}

/// Some rows of a times some strips of the chunk.
struct Multiply<'a> {
    job: &'a Job<'a>,
    isa: Isa,
    rows: Range<usize>,
    strips: Range<usize>,
    /// Room for the packed rows.
    own: *mut u32,
    /// Room for a strip of sixteen of them, places first.
    turned: *mut f32,
}

impl Kernel for Multiply<'_> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        // SAFETY: an `Isa` comes out of `available` alone, which asked for the tiles.
        let tiles = (self.isa == Isa::Amx).then(|| unsafe { amx::Tiles::of_bf16() });
        let inner = self.job.inner.clone();
        for from in inner.clone().step_by(KC) {
            // SAFETY: `own` has room for `KC` places of the rows, in whole squares.
            unsafe {
                let places = from..(from + KC).min(inner.end);
                self.pack_rows::<S>(&places);
                self.squares::<S>(tiles.as_ref(), &places);
            }
        }
    }
}

impl Multiply<'_> {
    /// Multiplies the packed rows, `places` of the contraction.
    #[inline(always)]
    unsafe fn squares<S: Simd>(&self, tiles: Option<&amx::Tiles>, places: &Range<usize>) {
        let job = self.job;
        let whole_steps = job.inner.len().div_ceil(STEP);
        let (before, steps) =
            ((places.start - job.inner.start) / STEP, places.len().div_ceil(STEP));
        let load = job.load || before > 0;
        // Squares at the edges go through a whole one.
        let mut part = [0.0f32; SIDE * SIDE];
        // SAFETY: outputs are those of the task alone; a strip has all steps of the chunk.
        unsafe {
            for s in self.strips.clone() {
                let b = job.packed.at((s * whole_steps + before) * SIDE * PAIRS);
                let b = b.cast_const().cast::<u32>();
                let column = (job.s0 + s) * SIDE;
                for row in self.rows.clone().step_by(SIDE) {
                    let a = self.own.add((row - self.rows.start) * steps * PAIRS);
                    let c = job.c.at(row * job.n + column);
                    let rest = [SIDE.min(self.rows.end - row), SIDE.min(job.n - column)];
                    let whole = rest == [SIDE; 2];
                    let (to, stride) = if whole { (c, job.n) } else { (part.as_mut_ptr(), SIDE) };
                    if !whole && load {
                        copy(c, job.n, to, SIDE, rest);
                    }
                    match tiles {
                        Some(tiles) => tiles.square_bf16(steps, a, b, to, stride, load),
                        None if S::LANES == 16 => square::<S, 4>(steps, a, b, to, stride, load),
                        None => square::<S, 2>(steps, a, b, to, stride, load),
                    }
                    if !whole {
                        copy(to, SIDE, c, job.n, rest);
                    }
                }
            }
        }
    }

    /// Packs `places` of the task's rows: for each 32 rows and each step two tiles.
    #[inline(always)]
    unsafe fn pack_rows<S: Simd>(&self, places: &Range<usize>) {
        let (job, steps) = (self.job, places.len().div_ceil(STEP));
        let mut wide: Wide = [MaybeUninit::uninit(); _];
        for (i, first) in self.rows.clone().step_by(TILE).enumerate() {
            // SAFETY: `own` has room for whole squares of rows.
            unsafe {
                let out = self.own.add((i / 2 * steps * 2 + i % 2) * TILE * PAIRS);
                if let Operand::Rows(data, stride) = job.a {
                    for r in 0..TILE {
                        let row = (first + r).min(job.m - 1) * stride;
                        let row = &data[row + places.start..row + places.end];
                        halves(row, out.add(r * PAIRS));
                    }
                    continue;
                }
                let (pairs, room) = (places.len().div_ceil(2), steps * PAIRS);
                let turned = self.turned;
                pack::<S, TILE, true>(&job.a, first, job.m, places.clone(), turned, &mut wide);
                self.turned.add(pairs * TILE).write_bytes(0, (room - pairs) * TILE);
                for step in 0..steps {
                    let from = self.turned.add(step * PAIRS * TILE);
                    let rows: [*const f32; TILE] =
                        std::array::from_fn(|p| from.add(p * TILE).cast_const());
                    let to = out.add(step * 2 * TILE * PAIRS).cast::<f32>();
                    for r in (0..TILE).step_by(S::LANES) {
                        for p in (0..PAIRS).step_by(S::LANES) {
                            S::transpose(&rows[p..], r, to.add(r * PAIRS + p), PAIRS);
                        }
                    }
                }
            }
        }
    }
}

/// Rounds a row to bfloat16 into its places of a row of tiles, two tiles apart, padded with zeros.
///
/// # Safety
/// Room at `out`.
#[inline(always)]
unsafe fn halves(row: &[f32], out: *mut u32) {
    let mut steps = row.chunks_exact(STEP);
    let mut to = out.cast::<u16>();
    // SAFETY: the caller's promise.
    unsafe {
        for step in steps.by_ref() {
            for (i, x) in step.iter().enumerate() {
                *to.add(i) = to_bf16(*x, SMALLEST) as u16;
            }
            to = to.add(2 * 2 * TILE * PAIRS);
        }
        let rest = steps.remainder();
        if !rest.is_empty() {
            to.write_bytes(0, STEP);
            for (i, x) in rest.iter().enumerate() {
                *to.add(i) = to_bf16(*x, SMALLEST) as u16;
            }
        }
    }
}

/// Copies `rows` and `columns`.
///
/// # Safety
/// They are at both places.
#[inline(always)]
unsafe fn copy(
    from: *const f32,
    from_stride: usize,
    to: *mut f32,
    to_stride: usize,
    [rows, columns]: [usize; 2],
) {
    for r in 0..rows {
        // SAFETY: the caller's promise.
        unsafe {
            to.add(r * to_stride).copy_from_nonoverlapping(from.add(r * from_stride), columns);
        }
    }
}

/// A square of outputs by multiply-adds, `R` rows of two vectors at a time.
///
/// # Safety
/// The features of `S`; `steps` tiles of a and of b; a square at `c`.
#[inline(always)]
unsafe fn square<S: Simd, const R: usize>(
    steps: usize,
    a: *const u32,
    b: *const u32,
    c: *mut f32,
    stride: usize,
    load: bool,
) {
    let across = SIDE / (2 * S::LANES);
    for i in 0..SIDE / R * across {
        let (row, column) = (i / across * R, i % across * 2 * S::LANES);
        // SAFETY: the caller's promise.
        unsafe {
            let at = |r: usize, v: usize| c.add((row + r) * stride + column + v * S::LANES);
            let mut acc = [[S::splat(0.0); 2]; R];
            if load {
                for (r, acc) in acc.iter_mut().enumerate() {
                    for (v, acc) in acc.iter_mut().enumerate() {
                        *acc = S::load(at(r, v));
                    }
                }
            }
            for step in 0..steps {
                let a = a.add(((2 * step + row / TILE) * TILE + row % TILE) * PAIRS);
                let b = b.add(step * PAIRS * SIDE + column);
                let [mut even, mut odd] = [[[S::splat(0.0); 2]; R]; 2];
                for p in 0..PAIRS {
                    for v in 0..2 {
                        let w = S::load_w(b.add(p * SIDE + v * S::LANES).cast());
                        let w = S::bf16_pair(w);
                        for r in 0..R {
                            let x = *a.add(r * PAIRS + p);
                            let low = S::splat(f32::from_bits(x << 16));
                            let high = S::splat(f32::from_bits(x & 0xffff_0000));
                            even[r][v] = S::fma(w[0], low, even[r][v]);
                            odd[r][v] = S::fma(w[1], high, odd[r][v]);
                        }
                    }
                }
                for r in 0..R {
                    for v in 0..2 {
                        acc[r][v] = S::add(acc[r][v], S::add(even[r][v], odd[r][v]));
                    }
                }
            }
            for (r, acc) in acc.into_iter().enumerate() {
                for (v, acc) in acc.into_iter().enumerate() {
                    S::store(at(r, v), acc);
                }
            }
        }
    }
}
