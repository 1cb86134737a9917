//! Products of f32 matrices whose operands are packed on the way in.
//!
//! `c[i][j] (+)= sum over p of a[i][p] b[j][p]`. Each output is one chain of fused multiply-adds in
//! the order of p that goes on from the value in c, so blocks, threads and instruction sets leave
//! no trace in the bits, and a product of activations with weights equals the forward kernel's.
//!
//! The inner loop holds 12 x 32 outputs in registers (6 x 16 with eight lanes). A chunk of b is
//! packed once by all threads; each task packs its rows of a, which stay in its second-level cache.

use super::pack::Operand;
use crate::buffer::SharedMut;
use crate::pool::Pool;
use crate::simd::{Isa, Kernel, Simd};
use std::sync::{Arc, Mutex};

/// Places of the contraction that the packed rows of a task span: with `MC` rows about half of a
/// second-level cache.
const KC: usize = 512;
/// Rows of a task at most; a multiple of both heights of the inner loop.
const MC: usize = 240;
/// Places of the contraction of a packed chunk of b.
const KB: usize = 4096;
/// Values of a packed chunk of b.
const CHUNK: usize = 2 << 20;
/// Multiply-adds below which a second thread does not pay.
const SMALL: usize = 1 << 18;

/// Products on the threads of a pool.
pub struct Gemm {
    isa: Isa,
    pool: Arc<Pool>,
    scratch: Scratch,
}

/// Buffers for packed operands, to be used again.
#[derive(Default)]
pub(super) struct Scratch(Mutex<Vec<Vec<f32>>>);

impl Scratch {
    pub fn take(&self, len: usize) -> Vec<f32> {
        let mut free = self.0.lock().unwrap_or_else(|e| e.into_inner());
        // The largest that was given back: sizes repeat.
        let best = (0..free.len()).max_by_key(|i| free[*i].len());
        let mut v = best.map_or_else(Vec::new, |i| free.swap_remove(i));
        drop(free);
        if v.len() < len {
            v.resize(len, 0.0);
        }
        v
    }

    pub fn give(&self, v: Vec<f32>) {
        self.0.lock().unwrap_or_else(|e| e.into_inner()).push(v);
    }
}

/// Width of a strip of b, and how many places its last vectors may spill.
pub(super) fn strip_width(isa: Isa) -> usize {
    struct Width;
    impl Kernel for Width {
        type Output = usize;
        #[inline(always)]
        unsafe fn run<S: Simd>(self) -> usize {
            2 * S::LANES
        }
    }
    isa.run(Width)
}

impl Gemm {
    /// Products with instruction set `isa` on `pool`.
    pub fn new(isa: Isa, pool: Arc<Pool>) -> Self {
        Self { isa, pool, scratch: Scratch::default() }
    }

    /// The instruction set.
    pub fn isa(&self) -> Isa {
        self.isa
    }

    /// The threads.
    pub fn pool(&self) -> &Pool {
        &self.pool
    }

    /// The threads, to keep.
    pub fn shared_pool(&self) -> Arc<Pool> {
        self.pool.clone()
    }

    pub(super) fn scratch(&self) -> &Scratch {
        &self.scratch
    }

    /// `c[m][n] = a b`, or `c += a b` with `add`; the contraction has `k` places.
    ///
    /// # Panics
    /// If an operand is too small.
    pub fn product(&self, [m, n, k]: [usize; 3], a: Operand, b: Operand, c: &mut [f32], add: bool) {
        assert_eq!(c.len(), m * n, "an output of {m} x {n}");
        if m == 0 || n == 0 {
            return;
        }
        if k == 0 {
            if !add {
                c.fill(0.0);
            }
            return;
        }
        a.check(m, k);
        b.check(n, k);
        let width = strip_width(self.isa);
        let strips = n.div_ceil(width);
        let most = (CHUNK / (k.min(KB) * width)).clamp(1, strips);
        // Chunks alike: each packs a anew, which a rest of a few strips would not pay for.
        let each = strips.div_ceil(strips.div_ceil(most));
        let mut packed = self.scratch.take(each * width * k.min(KB) + 16);
        let c = SharedMut(c.as_mut_ptr());
        for k0 in (0..k).step_by(KB) {
            let k1 = (k0 + KB).min(k);
            for s0 in (0..strips).step_by(each) {
                let s1 = (s0 + each).min(strips);
                let to = SharedMut(packed.as_mut_ptr());
                let grain = (16384 / (width * (k1 - k0))).max(1);
                self.pool.split(s1 - s0, grain, &|part| {
                    self.isa.run(PackStrips { b, n, k0, k1, s0, part, to });
                });
                let job = Job { a, packed: to, c, m, n, k0, k1, s0, s1, load: add || k0 > 0 };
                self.multiply(&job);
            }
        }
        self.scratch.give(packed);
    }

    /// Shares the outputs of a packed chunk out to the threads.
    fn multiply(&self, job: &Job) {
        let strips = job.s1 - job.s0;
        let work = job.m * strips * strip_width(self.isa) * (job.k1 - job.k0);
        let threads = if work < SMALL { 1 } else { self.pool.threads() };
        let blocks = job.m.div_ceil(MC).max(1);
        let rows = job.m.div_ceil(blocks).next_multiple_of(12);
        let blocks = job.m.div_ceil(rows);
        // Some tasks a thread even out what others take from a core; narrow ones repack too much.
        let wanted = if threads == 1 { 1 } else { (4 * threads).div_ceil(blocks) };
        let groups = wanted.clamp(1, strips.div_ceil(4));
        let wide = strips.div_ceil(groups);
        let groups = strips.div_ceil(wide);
        let task = |i: usize| {
            let (block, group) = (i % blocks, i / blocks);
            let mut own = self.scratch.take((rows + 12) * KC + 16);
            self.isa.run(Multiply {
                job,
                rows: block * rows..((block + 1) * rows).min(job.m),
                strips: group * wide..((group + 1) * wide).min(strips),
                own: own.as_mut_ptr(),
            });
            self.scratch.give(own);
        };
        if threads == 1 {
            (0..blocks * groups).for_each(task);
        } else {
            self.pool.run(blocks * groups, &task);
        }
    }
}

/// Packs strips `part` of a chunk of b.
struct PackStrips<'a> {
    b: Operand<'a>,
    n: usize,
    k0: usize,
    k1: usize,
    s0: usize,
    part: std::ops::Range<usize>,
    to: SharedMut<f32>,
}

impl Kernel for PackStrips<'_> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let (inner, width) = (self.k0..self.k1, 2 * S::LANES);
        for s in self.part {
            let first = (self.s0 + s) * width;
            // SAFETY: the buffer has room for every strip of the chunk, and each is packed once.
            unsafe {
                let out = self.to.at(s * width * inner.len());
                if S::LANES == 16 {
                    self.b.pack::<S, 32>(first, self.n, inner.clone(), out);
                } else {
                    self.b.pack::<S, 16>(first, self.n, inner.clone(), out);
                }
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
    k0: usize,
    k1: usize,
    s0: usize,
    s1: usize,
    load: bool,
}

/// Some rows of a times some strips of the chunk.
struct Multiply<'a> {
    job: &'a Job<'a>,
    rows: std::ops::Range<usize>,
    strips: std::ops::Range<usize>,
    own: *mut f32,
}

impl Kernel for Multiply<'_> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        // SAFETY: as in `go`.
        unsafe { if S::LANES == 16 { self.go::<S, 12>() } else { self.go::<S, 6>() } }
    }
}

impl Multiply<'_> {
    #[inline(always)]
    unsafe fn go<S: Simd, const MR: usize>(&self) {
        let (job, width) = (self.job, 2 * S::LANES);
        let inner = job.k1 - job.k0;
        for p in (0..inner).step_by(KC) {
            let len = KC.min(inner - p);
            // SAFETY: `own` has room for the rows of a task, rounded up, and what a strip spills;
            // outputs are those of the task alone.
            unsafe {
                for (i, row) in self.rows.clone().step_by(MR).enumerate() {
                    let range = job.k0 + p..job.k0 + p + len;
                    job.a.pack::<S, MR>(row, job.m, range, self.own.add(i * MR * len));
                }
                for s in self.strips.clone() {
                    let b = job.packed.at(s * width * inner + p * width);
                    let column = (job.s0 + s) * width;
                    for (i, row) in self.rows.clone().step_by(MR).enumerate() {
                        let a = self.own.add(i * MR * len);
                        let rest = [MR.min(self.rows.end - row), width.min(job.n - column)];
                        let c = job.c.at(row * job.n + column);
                        tile::<S, MR>(len, a, b, c, job.n, rest, job.load || p > 0);
                    }
                }
            }
        }
    }
}

/// `c (+)= a b` for a strip `[len][MR]` of a and a strip `[len][2 LANES]` of b, of which
/// `rest` rows and columns are stored.
///
/// # Safety
/// The features of `S`; strips and outputs that are there.
#[inline(always)]
pub(super) unsafe fn tile<S: Simd, const MR: usize>(
    len: usize,
    a: *const f32,
    b: *const f32,
    c: *mut f32,
    stride: usize,
    rest: [usize; 2],
    load: bool,
) {
    // SAFETY: the caller's promise; a part of a tile goes through a buffer of a whole one.
    unsafe {
        let [rows, columns] = rest;
        if rows == MR && columns == 2 * S::LANES {
            return inner::<S, MR, 2>(len, a, b, c, stride, load);
        }
        let mut buffer = [0.0f32; 12 * 32];
        if load {
            for r in 0..rows {
                let to = buffer.as_mut_ptr().add(r * 32);
                to.copy_from_nonoverlapping(c.add(r * stride), columns);
            }
        }
        if columns <= S::LANES {
            inner::<S, MR, 1>(len, a, b, buffer.as_mut_ptr(), 32, load);
        } else {
            inner::<S, MR, 2>(len, a, b, buffer.as_mut_ptr(), 32, load);
        }
        for r in 0..rows {
            c.add(r * stride).copy_from_nonoverlapping(buffer.as_ptr().add(r * 32), columns);
        }
    }
}

#[inline(always)]
unsafe fn inner<S: Simd, const MR: usize, const NV: usize>(
    len: usize,
    mut a: *const f32,
    mut b: *const f32,
    c: *mut f32,
    stride: usize,
    load: bool,
) {
    // SAFETY: the caller's promise: `MR` rows of `NV` vectors at `c`, strips of `len`.
    unsafe {
        let mut acc = [[S::splat(0.0); NV]; MR];
        if load {
            for (r, acc) in acc.iter_mut().enumerate() {
                for (v, acc) in acc.iter_mut().enumerate() {
                    *acc = S::load(c.add(r * stride + v * S::LANES));
                }
            }
        }
        for _ in 0..len {
            let mut y = [S::splat(0.0); NV];
            for (v, y) in y.iter_mut().enumerate() {
                *y = S::load(b.add(v * S::LANES));
            }
            for (r, acc) in acc.iter_mut().enumerate() {
                let x = S::splat(*a.add(r));
                for (acc, y) in acc.iter_mut().zip(y) {
                    *acc = S::fma(x, y, *acc);
                }
            }
            a = a.add(MR);
            b = b.add(2 * S::LANES);
        }
        for (r, acc) in acc.into_iter().enumerate() {
            for (v, acc) in acc.into_iter().enumerate() {
                S::store(c.add(r * stride + v * S::LANES), acc);
            }
        }
    }
}
