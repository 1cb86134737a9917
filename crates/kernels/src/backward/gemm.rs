//! Products of f32 matrices whose operands are packed on the way in.
//!
//! `c[i][j] (+)= sum over p of a[i][p] b[j][p]`. Each output is one chain of fused multiply-adds in
//! the order of p that goes on from the value in c, so blocks, threads and instruction sets leave
//! no trace in the bits, and a product of activations with weights equals the forward kernel's.
//!
//! The inner loop holds 12 x 32 outputs in registers (6 x 16 with eight lanes). A chunk of b is
//! packed once by all threads; each task packs its rows of a, which stay in its second-level cache.
//!
//! With [`Precision::Bf16`] operands are rounded to bfloat16 as they are packed, two places of the
//! contraction in each 32 bits, for `vdpbf16ps`: twice the places in an instruction, half the bytes.
//! The sums stay f32. Without that instruction the same bits come from two multiply-adds.

use super::pack::Operand;
use super::tiles;
use crate::activations::to_bf16;
use crate::buffer::SharedMut;
use crate::heap::{Heap, Run};
use crate::pool::Pool;
use crate::simd::{Isa, Kernel, Simd, prefetch};
use std::mem::MaybeUninit;
use std::ops::Range;
use std::sync::Arc;

/// Places of the contraction that the packed rows of a task span: with `MC` rows about half of a
/// second-level cache.
const KC: usize = 512;
/// Rows of a task at most; a multiple of both heights of the inner loop.
const MC: usize = 240;
/// Places of the contraction of a packed chunk of b.
pub(super) const KB: usize = 4096;
/// How many values of a strip of b ahead the inner loop asks: a strip is longer than the first-level cache.
const AHEAD: usize = 1024;
/// Values of a packed chunk of b.
const CHUNK: usize = 2 << 20;
/// Multiply-adds below which a second thread does not pay.
pub(super) const SMALL: usize = 1 << 18;

/// 2^-50 as a bfloat16; see [`Precision::Bf16`].
pub(super) const SMALLEST: u32 = (127 - 50) << 7;

/// How operands are rounded before they are multiplied; sums are f32.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Precision {
    /// Not at all.
    #[default]
    F32,
    /// To bfloat16, ties to even; values below 2^-50 become zero, so that no sum of products is
    /// subnormal (`vdpbf16ps` would flush it, multiply-adds would not).
    Bf16,
    /// The same, with sums in the order of AMX's tiles (see `tiles.rs`).
    Bf16Amx,
}

/// Products on the threads of a pool.
pub struct Gemm {
    isa: Isa,
    precision: Precision,
    pool: Arc<Pool>,
    heap: Arc<Heap>,
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
        Self { isa, precision: Precision::F32, pool, heap: Arc::default() }
    }

    /// The same with operands of `precision`.
    pub fn with_precision(self, precision: Precision) -> Self {
        Self { precision, ..self }
    }

    /// The same with packed operands in `heap`.
    pub fn with_heap(self, heap: Arc<Heap>) -> Self {
        Self { heap, ..self }
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

    /// A buffer, to be used as long as it is held.
    pub(super) fn scratch(&self, len: usize) -> Run {
        self.heap.take(len)
    }

    /// `c[m][n] = a b`, or `c += a b` with `add`; the contraction has `k` places.
    ///
    /// # Panics
    /// If an operand is too small.
    pub fn product(&self, size: [usize; 3], a: Operand, b: Operand, c: &mut [f32], add: bool) {
        let [m, n, k] = size;
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
        match self.precision {
            Precision::F32 => self.product_of::<false>(size, a, b, c, add),
            Precision::Bf16 => self.product_of::<true>(size, a, b, c, add),
            Precision::Bf16Amx => tiles::product(self, size, a, b, c, add),
        }
    }

    /// Runs a kernel with the instructions that its operands want.
    #[inline]
    fn start<K: Kernel<Output = ()>, const BF16: bool>(&self, kernel: K) {
        if BF16 { self.isa.run_bf16(kernel) } else { self.isa.run(kernel) }
    }

    fn product_of<const BF16: bool>(
        &self,
        [m, n, k]: [usize; 3],
        a: Operand,
        b: Operand,
        c: &mut [f32],
        add: bool,
    ) {
        let width = strip_width(self.isa);
        let strips = n.div_ceil(width);
        let most = (CHUNK / (k.min(KB) * width)).clamp(1, strips);
        // Chunks alike: each packs a anew, which a rest of a few strips would not pay for.
        let each = strips.div_ceil(strips.div_ceil(most));
        let mut packed = self.scratch(each * width * k.min(KB) + 16);
        let c = SharedMut(c.as_mut_ptr());
        for k0 in (0..k).step_by(KB) {
            let k1 = (k0 + KB).min(k);
            for s0 in (0..strips).step_by(each) {
                let s1 = (s0 + each).min(strips);
                let to = SharedMut(packed.as_mut_ptr());
                let grain = (16384 / (width * (k1 - k0))).max(1);
                self.pool.split(s1 - s0, grain, &|part| {
                    let strips = PackStrips::<BF16> { b, n, k0, k1, s0, part, to };
                    self.start::<_, BF16>(strips);
                });
                let job = Job { a, packed: to, c, m, n, k0, k1, s0, s1, load: add || k0 > 0 };
                self.multiply::<BF16>(&job);
            }
        }
    }

    /// Shares the outputs of a packed chunk out to the threads.
    fn multiply<const BF16: bool>(&self, job: &Job) {
        let strips = job.s1 - job.s0;
        let work = job.m * strips * strip_width(self.isa) * (job.k1 - job.k0);
        let threads = if work < SMALL { 1 } else { self.pool.threads() };
        let [rows, wide] = cut(job.m, strips, strip_width(self.isa), threads);
        let (blocks, groups) = (job.m.div_ceil(rows), strips.div_ceil(wide));
        let task = |i: usize| {
            let (block, group) = (i % blocks, i / blocks);
            let mut own = self.scratch((rows + 12) * KC + 16);
            self.start::<_, BF16>(Multiply::<BF16> {
                job,
                rows: block * rows..((block + 1) * rows).min(job.m),
                strips: group * wide..((group + 1) * wide).min(strips),
                own: own.as_mut_ptr(),
            });
        };
        if threads == 1 {
            (0..blocks * groups).for_each(task);
        } else {
            self.pool.run(blocks * groups, &task);
        }
    }
}

/// Rows and strips of a task, of `m` rows times `strips` strips, so that the last thread is done soonest.
fn cut(m: usize, strips: usize, width: usize, threads: usize) -> [usize; 2] {
    // The height of the inner loop.
    let height = width * 3 / 8;
    let least = m.div_ceil(MC).max(1);
    if threads == 1 {
        return [m.div_ceil(least).next_multiple_of(height), strips];
    }
    let mut best = (f64::MAX, [0, 0]);
    for blocks in least..=m.div_ceil(height).min(least + 4 * threads) {
        let rows = m.div_ceil(blocks).next_multiple_of(height);
        let blocks = m.div_ceil(rows);
        for groups in 1..=strips.min((8 * threads).div_ceil(blocks)) {
            let wide = strips.div_ceil(groups);
            let rounds = (blocks * strips.div_ceil(wide)).div_ceil(threads);
            // Cycles for each place of the contraction: a step of the inner loop for a row and a strip;
            // about half a one to pack a value of a; two to fetch a step of b. And a quarter of a task
            // that a thread waits for others whose core is shared.
            let task = (rows * wide) as f64 + 0.6 * rows as f64 + 2.0 * wide as f64;
            let cost = (rounds as f64 + 0.25) * task;
            if cost < best.0 {
                best = (cost, [rows, wide]);
            }
        }
    }
    best.1
}

/// Packs strips `part` of a chunk of b.
struct PackStrips<'a, const BF16: bool> {
    b: Operand<'a>,
    n: usize,
    k0: usize,
    k1: usize,
    s0: usize,
    part: Range<usize>,
    to: SharedMut<f32>,
}

impl<const BF16: bool> Kernel for PackStrips<'_, BF16> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        // SAFETY: as in `go`.
        unsafe { if S::LANES == 16 { self.go::<S, 32>() } else { self.go::<S, 16>() } }
    }
}

impl<const BF16: bool> PackStrips<'_, BF16> {
    #[inline(always)]
    unsafe fn go<S: Simd, const W: usize>(&self) {
        let inner = self.k0..self.k1;
        let mut wide: Wide = [MaybeUninit::uninit(); _];
        for s in self.part.clone() {
            let first = (self.s0 + s) * W;
            // SAFETY: the buffer has room for every strip of the chunk, and each is packed once.
            unsafe {
                let out = self.to.at(s * W * steps::<BF16>(inner.len()));
                pack::<S, W, BF16>(&self.b, first, self.n, inner.clone(), out, &mut wide);
            }
        }
    }
}

/// Steps of the inner loop for `places` of the contraction.
#[inline(always)]
fn steps<const BF16: bool>(places: usize) -> usize {
    if BF16 { places.div_ceil(2) } else { places }
}

/// Room for a strip in f32 on its way to bfloat16.
pub(super) type Wide = [MaybeUninit<f32>; KC * 32 + 16];

/// Writes the strip of outputs `first .. first + W` as the inner loop wants it.
///
/// # Safety
/// As [`Operand::pack`], with room for `steps` times `W` values (and what spills).
#[inline(always)]
pub(super) unsafe fn pack<S: Simd, const W: usize, const BF16: bool>(
    from: &Operand,
    first: usize,
    outer: usize,
    inner: Range<usize>,
    out: *mut f32,
    wide: &mut Wide,
) {
    // SAFETY: the caller's promise; `KC` is a multiple of 32, and a part of it fits `wide`.
    unsafe {
        if !BF16 {
            return from.pack::<S, W>(first, outer, inner, out);
        }
        let wide = wide.as_mut_ptr().cast::<f32>();
        for p in inner.clone().step_by(KC) {
            let len = KC.min(inner.end - p);
            from.pack::<S, W>(first, outer, p..p + len, wide);
            if len % 2 == 1 {
                wide.add(len * W).write_bytes(0, W);
            }
            let pairs = out.add((p - inner.start) / 2 * W).cast::<u32>();
            for step in 0..len.div_ceil(2) {
                for i in 0..W {
                    let (low, high) =
                        (wide.add(2 * step * W + i), wide.add((2 * step + 1) * W + i));
                    *pairs.add(step * W + i) =
                        to_bf16(*low, SMALLEST) | to_bf16(*high, SMALLEST) << 16;
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
struct Multiply<'a, const BF16: bool> {
    job: &'a Job<'a>,
    rows: Range<usize>,
    strips: Range<usize>,
    own: *mut f32,
}

impl<const BF16: bool> Kernel for Multiply<'_, BF16> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        // SAFETY: as in `go`.
        unsafe { if S::LANES == 16 { self.go::<S, 12>() } else { self.go::<S, 6>() } }
    }
}

impl<const BF16: bool> Multiply<'_, BF16> {
    #[inline(always)]
    unsafe fn go<S: Simd, const MR: usize>(&self) {
        let (job, width) = (self.job, 2 * S::LANES);
        let inner = job.k1 - job.k0;
        let mut wide: Wide = [MaybeUninit::uninit(); _];
        for p in (0..inner).step_by(KC) {
            let len = KC.min(inner - p);
            // SAFETY: `own` has room for the rows of a task, rounded up, and what a strip spills;
            // outputs are those of the task alone.
            unsafe {
                for (i, row) in self.rows.clone().step_by(MR).enumerate() {
                    let range = job.k0 + p..job.k0 + p + len;
                    let own = self.own.add(i * MR * steps::<BF16>(len));
                    pack::<S, MR, BF16>(&job.a, row, job.m, range, own, &mut wide);
                }
                for s in self.strips.clone() {
                    let b = s * steps::<BF16>(inner) + steps::<BF16>(p);
                    let b = job.packed.at(b * width);
                    let column = (job.s0 + s) * width;
                    for (i, row) in self.rows.clone().step_by(MR).enumerate() {
                        let a = self.own.add(i * MR * steps::<BF16>(len));
                        let rest = [MR.min(self.rows.end - row), width.min(job.n - column)];
                        let c = job.c.at(row * job.n + column);
                        let load = job.load || p > 0;
                        // The next rows' outputs, whose sums are waited for.
                        for r in row + MR..(row + 2 * MR).min(self.rows.end) {
                            prefetch(job.c.at(r * job.n + column).cast());
                        }
                        tile::<S, MR, BF16>(steps::<BF16>(len), a, b, c, job.n, rest, load);
                    }
                }
            }
        }
    }
}

/// `c (+)= a b` for a strip `[len][MR]` of a and a strip `[len][2 LANES]` of b, of which
/// `rest` rows and columns are stored. With `BF16` both are pairs of bfloat16.
///
/// # Safety
/// The features of `S`; strips and outputs that are there.
#[inline(always)]
pub(super) unsafe fn tile<S: Simd, const MR: usize, const BF16: bool>(
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
            return inner::<S, MR, 2, BF16>(len, a, b, c, stride, load);
        }
        let mut buffer = [0.0f32; 12 * 32];
        if load {
            for r in 0..rows {
                let to = buffer.as_mut_ptr().add(r * 32);
                to.copy_from_nonoverlapping(c.add(r * stride), columns);
            }
        }
        if columns <= S::LANES {
            inner::<S, MR, 1, BF16>(len, a, b, buffer.as_mut_ptr(), 32, load);
        } else {
            inner::<S, MR, 2, BF16>(len, a, b, buffer.as_mut_ptr(), 32, load);
        }
        for r in 0..rows {
            c.add(r * stride).copy_from_nonoverlapping(buffer.as_ptr().add(r * 32), columns);
        }
    }
}

#[inline(always)]
unsafe fn inner<S: Simd, const MR: usize, const NV: usize, const BF16: bool>(
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
            if BF16 {
                let mut y = [S::splat_w(0); NV];
                for (v, y) in y.iter_mut().enumerate() {
                    *y = S::load_w(b.add(v * S::LANES).cast());
                }
                for (r, acc) in acc.iter_mut().enumerate() {
                    for (acc, y) in acc.iter_mut().zip(y) {
                        *acc = S::dot_bf16(*acc, y, a.add(r).cast());
                    }
                }
                a = a.add(MR);
                b = b.add(2 * S::LANES);
                continue;
            }
            for line in (0..NV * S::LANES).step_by(16) {
                prefetch(b.wrapping_add(AHEAD + line).cast());
            }
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
