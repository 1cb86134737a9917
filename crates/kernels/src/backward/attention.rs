//! Attention over whole sequences and its gradient, without a square matrix.
//!
//! A task takes one query head of one sequence. Queries go in blocks of 64: their scores against
//! the keys in sight are one strip, whose softmax is exact, and everything else is small products
//! on packed keys and values. Memory is a few strips for each thread, and grows with the length of
//! a sequence, not with its square. The heads of a group add to the gradients of their keys and
//! values in the order of the heads.

use super::gemm::{Gemm, tile};
use super::pack::Operand;
use super::rowwise::{Each, Map, dot, exponentials};
use crate::attention::AttentionSpec;
use crate::buffer::SharedMut;
use crate::rowwise::tanh;
use crate::simd::{Kernel, Simd};
use std::ops::Range;

/// Queries of a strip.
const QUERIES: usize = 64;

/// Where the gradients go: matrices like q, k and v, overwritten.
pub struct AttendGradients<'a> {
    /// `[rows][heads * head_dim]`
    pub dq: &'a mut [f32],
    /// `[rows][kv_heads * head_dim]`
    pub dk: &'a mut [f32],
    /// `[rows][kv_heads * head_dim]`
    pub dv: &'a mut [f32],
}

/// Attends within each of `spans`, whose first rows have position 0. `q` and `out` are
/// `[rows][heads * head_dim]`, `k` and `v` `[rows][kv_heads * head_dim]`.
///
/// # Panics
/// If shapes disagree.
pub fn attend_forward(
    gemm: &Gemm,
    spec: &AttentionSpec,
    spans: &[Range<usize>],
    [q, k, v]: [&[f32]; 3],
    out: &mut [f32],
) {
    check(spec, spans, [q, k, v]);
    assert_eq!(q.len(), out.len(), "an output for each query");
    let out = SharedMut(out.as_mut_ptr());
    gemm.pool().run(spans.len() * spec.heads, &|i| {
        let (span, head) = (&spans[i / spec.heads], i % spec.heads);
        let part = Head { spec, q, k, v, rows: span.clone(), head };
        let mut scratch = gemm.scratch(part.forward_room());
        gemm.isa().run(Forward { head: part, out, scratch: &mut scratch });
    });
}

/// The gradient of [`attend_forward`], from that of its output.
///
/// # Panics
/// If shapes disagree.
pub fn attend_backward(
    gemm: &Gemm,
    spec: &AttentionSpec,
    spans: &[Range<usize>],
    [q, k, v]: [&[f32]; 3],
    dout: &[f32],
    to: AttendGradients,
) {
    check(spec, spans, [q, k, v]);
    assert!(dout.len() == q.len() && to.dq.len() == q.len(), "a gradient for each query");
    assert!(to.dk.len() == k.len() && to.dv.len() == v.len(), "gradients of keys and values");
    let (dim, group) = (spec.head_dim, spec.heads / spec.kv_heads);
    let dq = SharedMut(to.dq.as_mut_ptr());
    // Each query head's share of dk and dv: `[2][heads][rows][head_dim]`.
    let rows = q.len() / (spec.heads * dim);
    let size = spec.heads * rows * dim;
    let mut shares = gemm.scratch(2 * size);
    shares[..2 * size].fill(0.0);
    let own = SharedMut(shares.as_mut_ptr());
    gemm.pool().run(spans.len() * spec.heads, &|i| {
        let (span, head) = (&spans[i / spec.heads], i % spec.heads);
        let part = Head { spec, q, k, v, rows: span.clone(), head };
        let mut scratch = gemm.scratch(part.backward_room());
        let at = (head * rows + span.start) * dim;
        // SAFETY: rows of one head and one span, which are this task's alone.
        let (dk, dv) = unsafe { (own.at(at), own.at(size + at)) };
        let (dk, dv) = (SharedMut(dk), SharedMut(dv));
        gemm.isa().run(Backward { head: part, dout, dq, dk, dv, scratch: &mut scratch });
    });
    let width = spec.kv_heads * dim;
    for (out, shares) in [(to.dk, &shares[..size]), (to.dv, &shares[size..2 * size])] {
        let parts: Vec<_> = out.chunks_mut(64 * width).map(std::sync::Mutex::new).collect();
        gemm.pool().run(parts.len(), &|i| {
            let mut part = parts[i].lock().unwrap_or_else(|e| e.into_inner());
            for (r, row) in part.chunks_exact_mut(width).enumerate() {
                for (kv, out) in row.chunks_exact_mut(dim).enumerate() {
                    for h in 0..group {
                        let at = ((kv * group + h) * rows + i * 64 + r) * dim;
                        for (o, s) in out.iter_mut().zip(&shares[at..at + dim]) {
                            *o = if h == 0 { *s } else { *o + *s };
                        }
                    }
                }
            }
        });
    }
}

fn check(spec: &AttentionSpec, spans: &[Range<usize>], [q, k, v]: [&[f32]; 3]) {
    assert!(spec.heads.is_multiple_of(spec.kv_heads), "query heads are shared out evenly");
    let rows = spans.iter().map(|s| s.end).max().unwrap_or(0);
    let (wide, narrow) = (spec.heads * spec.head_dim, spec.kv_heads * spec.head_dim);
    assert!(q.len() == rows * wide && k.len() == rows * narrow, "{rows} rows of {wide}");
    assert_eq!(k.len(), v.len(), "a value for each key");
    let ordered = spans.windows(2).all(|s| s[0].end <= s[1].start);
    assert!(ordered && spans.iter().all(|s| !s.is_empty()), "spans in order, none empty");
}

/// One query head of one sequence.
struct Head<'a> {
    spec: &'a AttentionSpec,
    q: &'a [f32],
    k: &'a [f32],
    v: &'a [f32],
    rows: Range<usize>,
    head: usize,
}

/// Room for strips of any width of the inner loop, and for what packing spills.
fn strips(outer: usize, inner: usize) -> usize {
    outer.next_multiple_of(32) * inner + 64
}

impl<'a> Head<'a> {
    fn len(&self) -> usize {
        self.rows.len()
    }

    /// Widest strip of scores.
    fn sight(&self) -> usize {
        let seen = self.spec.window.map_or(self.len(), |w| (w + QUERIES + 32).min(self.len()));
        seen.next_multiple_of(32) + 32
    }

    fn forward_room(&self) -> usize {
        let (len, dim) = (self.len(), self.spec.head_dim);
        strips(len, dim) + strips(dim, len) + self.own_room() + QUERIES * self.sight()
    }

    fn backward_room(&self) -> usize {
        let (len, dim) = (self.len(), self.spec.head_dim);
        let packed = 2 * strips(len, dim) + strips(dim, len) + 2 * strips(dim, QUERIES);
        packed + self.own_room() + 3 * QUERIES * self.sight()
    }

    /// Room for one packed strip of the left operand.
    fn own_room(&self) -> usize {
        16 * self.sight().max(self.spec.head_dim).max(QUERIES) + 64
    }

    fn query_stride(&self) -> usize {
        self.spec.heads * self.spec.head_dim
    }

    fn key_stride(&self) -> usize {
        self.spec.kv_heads * self.spec.head_dim
    }

    /// Rows `block` of this head in a matrix like q.
    fn queries(&self, of: &'a [f32], block: &Range<usize>) -> &'a [f32] {
        let stride = self.query_stride();
        let first = (self.rows.start + block.start) * stride + self.head * self.spec.head_dim;
        &of[first..first + (block.len() - 1) * stride + self.spec.head_dim]
    }

    /// All rows of this head's keys or values.
    fn keys(&self, of: &'a [f32]) -> &'a [f32] {
        let (stride, dim) = (self.key_stride(), self.spec.head_dim);
        let head = self.head * self.spec.kv_heads / self.spec.heads;
        let first = self.rows.start * stride + head * dim;
        &of[first..first + (self.len() - 1) * stride + dim]
    }

    /// The keys that the queries `block` see, from a multiple of the strips' width on.
    fn seen(&self, block: &Range<usize>, width: usize) -> Range<usize> {
        let first = self.spec.window.map_or(0, |w| (block.start + 1).saturating_sub(w));
        first / width * width..block.end
    }

    /// Probabilities of the queries `block` over the keys `seen`, `[queries][stride]`, zero out of
    /// sight; with a soft cap, `capped` gets the capped scores.
    ///
    /// # Safety
    /// The features of `S`; `keys` are packed strips; room.
    #[inline(always)]
    #[allow(clippy::too_many_arguments)]
    unsafe fn probabilities<S: Simd, const MR: usize>(
        &self,
        block: &Range<usize>,
        seen: &Range<usize>,
        keys: *const f32,
        own: *mut f32,
        stride: usize,
        p: *mut f32,
        capped: Option<*mut f32>,
    ) {
        // SAFETY: the caller's promise.
        unsafe {
            let (spec, width) = (self.spec, 2 * S::LANES);
            let shape = [block.len(), seen.len(), spec.head_dim];
            let a = Operand::Rows(self.queries(self.q, block), self.query_stride());
            let b = keys.add(seen.start / width * width * spec.head_dim);
            multiply::<S, MR>(shape, &a, b, width * spec.head_dim, own, p, stride, false);
            for (i, query) in block.clone().enumerate() {
                let row = p.add(i * stride);
                let first = spec.window.map_or(0, |w| (query + 1).saturating_sub(w));
                let first = first.max(seen.start) - seen.start;
                let last = query + 1 - seen.start;
                let sight = row.add(first);
                for j in 0..last - first {
                    *sight.add(j) *= spec.scale;
                }
                if let Some(cap) = spec.softcap {
                    let (input, output) = ([sight.cast_const()], [sight]);
                    Each { f: Cap(cap), input, output, len: last - first }.run::<S>();
                    if let Some(capped) = capped {
                        capped.add(i * stride).copy_from_nonoverlapping(row, seen.len());
                    }
                }
                let (_, sum) = exponentials::<S>(sight, last - first);
                let factor = 1.0 / sum;
                for j in 0..last - first {
                    *sight.add(j) *= factor;
                }
                row.write_bytes(0, first);
                row.add(last).write_bytes(0, seen.len() - last);
            }
        }
    }
}

struct Cap(f32);

impl Map<1, 1> for Cap {
    #[inline(always)]
    unsafe fn map<S: Simd>(&self, [x]: [S::F; 1]) -> [S::F; 1] {
        // SAFETY: arithmetic only.
        unsafe { [S::mul(tanh::<S>(S::div(x, S::splat(self.0))), S::splat(self.0))] }
    }
}

/// `c[m][n] (+)= a b` with packed strips of b, `between` apart.
///
/// # Safety
/// The features of `S`; operands and outputs that are there; room for a strip of a at `own`.
#[inline(always)]
#[allow(clippy::too_many_arguments)]
unsafe fn multiply<S: Simd, const MR: usize>(
    [m, n, k]: [usize; 3],
    a: &Operand,
    b: *const f32,
    between: usize,
    own: *mut f32,
    c: *mut f32,
    stride: usize,
    load: bool,
) {
    // SAFETY: the caller's promise.
    unsafe {
        let width = 2 * S::LANES;
        for row in (0..m).step_by(MR) {
            a.pack::<S, MR>(row, m, 0..k, own);
            for column in (0..n).step_by(width) {
                let rest = [MR.min(m - row), width.min(n - column)];
                let b = b.add(column / width * between);
                tile::<S, MR, false>(k, own, b, c.add(row * stride + column), stride, rest, load);
            }
        }
    }
}

/// Packs all strips of an operand; `out` moves behind them.
///
/// # Safety
/// As [`Operand::pack`].
#[inline(always)]
unsafe fn pack_all<S: Simd>(
    b: &Operand,
    outer: usize,
    inner: usize,
    out: &mut *mut f32,
) -> *const f32 {
    let (width, start) = (2 * S::LANES, *out);
    // SAFETY: the caller's promise; `strips` gave the room.
    unsafe {
        for s in (0..outer).step_by(width) {
            let to = start.add(s * inner);
            if width == 32 {
                b.pack::<S, 32>(s, outer, 0..inner, to);
            } else {
                b.pack::<S, 16>(s, outer, 0..inner, to);
            }
        }
        *out = start.add(strips(outer, inner));
    }
    start
}

struct Forward<'a> {
    head: Head<'a>,
    out: SharedMut<f32>,
    scratch: &'a mut [f32],
}

impl Kernel for Forward<'_> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        // SAFETY: as in `go`.
        unsafe { if S::LANES == 16 { self.go::<S, 12>() } else { self.go::<S, 6>() } }
    }
}

impl Forward<'_> {
    #[inline(always)]
    unsafe fn go<S: Simd, const MR: usize>(self) {
        let (h, width) = (&self.head, 2 * S::LANES);
        let (len, dim, stride) = (h.len(), h.spec.head_dim, h.sight());
        // SAFETY: `forward_room` counts the parts; the output's columns are this head's.
        unsafe {
            let mut at = self.scratch.as_mut_ptr();
            let keys = Operand::Rows(h.keys(h.k), h.key_stride());
            let keys = pack_all::<S>(&keys, len, dim, &mut at);
            let values = Operand::Columns(h.keys(h.v), h.key_stride());
            let values = pack_all::<S>(&values, dim, len, &mut at);
            let own = at;
            let p = own.add(h.own_room());
            for first in (0..len).step_by(QUERIES) {
                let block = first..(first + QUERIES).min(len);
                let seen = h.seen(&block, width);
                h.probabilities::<S, MR>(&block, &seen, keys, own, stride, p, None);
                let strip = std::slice::from_raw_parts(p, QUERIES * stride);
                let a = Operand::Rows(strip, stride);
                let shape = [block.len(), dim, seen.len()];
                let row = (h.rows.start + first) * h.query_stride() + h.head * dim;
                let out = self.out.at(row);
                let b = values.add(seen.start * width);
                multiply::<S, MR>(shape, &a, b, len * width, own, out, h.query_stride(), false);
            }
        }
    }
}

struct Backward<'a> {
    head: Head<'a>,
    dout: &'a [f32],
    dq: SharedMut<f32>,
    /// `[rows of the span][head_dim]`, zeros
    dk: SharedMut<f32>,
    dv: SharedMut<f32>,
    scratch: &'a mut [f32],
}

impl Kernel for Backward<'_> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        // SAFETY: as in `go`.
        unsafe { if S::LANES == 16 { self.go::<S, 12>() } else { self.go::<S, 6>() } }
    }
}

impl Backward<'_> {
    #[inline(always)]
    unsafe fn go<S: Simd, const MR: usize>(self) {
        let (h, width) = (&self.head, 2 * S::LANES);
        let (len, dim, stride) = (h.len(), h.spec.head_dim, h.sight());
        // SAFETY: `backward_room` counts the parts; the outputs are this task's alone.
        unsafe {
            let mut at = self.scratch.as_mut_ptr();
            let rows = |of| Operand::Rows(h.keys(of), h.key_stride());
            let keys = pack_all::<S>(&rows(h.k), len, dim, &mut at);
            let values = pack_all::<S>(&rows(h.v), len, dim, &mut at);
            let columns = Operand::Columns(h.keys(h.k), h.key_stride());
            let key_columns = pack_all::<S>(&columns, dim, len, &mut at);
            let blocks = at;
            let own = blocks.add(2 * strips(dim, QUERIES));
            let p = own.add(h.own_room());
            let (ds, capped) = (p.add(QUERIES * stride), p.add(2 * QUERIES * stride));
            for first in (0..len).step_by(QUERIES) {
                let block = first..(first + QUERIES).min(len);
                let seen = h.seen(&block, width);
                h.probabilities::<S, MR>(&block, &seen, keys, own, stride, p, Some(capped));
                let dout = h.queries(self.dout, &block);
                let a = Operand::Rows(dout, h.query_stride());
                let b = values.add(seen.start * dim);
                let shape = [block.len(), seen.len(), dim];
                multiply::<S, MR>(shape, &a, b, width * dim, own, ds, stride, false);
                self.scores::<S>(block.len(), seen.len(), stride, [p, ds, capped]);
                let strip = |p: *mut f32| std::slice::from_raw_parts(p, QUERIES * stride);
                let row = (h.rows.start + first) * h.query_stride() + h.head * dim;
                let shape = [block.len(), dim, seen.len()];
                let b = key_columns.add(seen.start * width);
                let (a, dq) = (Operand::Rows(strip(ds), stride), self.dq.at(row));
                multiply::<S, MR>(shape, &a, b, len * width, own, dq, h.query_stride(), false);
                // Keys and values gain from every block of queries.
                let mut at = blocks;
                let queries = Operand::Columns(h.queries(h.q, &block), h.query_stride());
                let queries = pack_all::<S>(&queries, dim, block.len(), &mut at);
                let dout = Operand::Columns(dout, h.query_stride());
                let dout = pack_all::<S>(&dout, dim, block.len(), &mut at);
                let shape = [seen.len(), dim, block.len()];
                let between = width * block.len();
                let (dk, dv) = (self.dk.at(seen.start * dim), self.dv.at(seen.start * dim));
                let a = Operand::Columns(strip(ds), stride);
                multiply::<S, MR>(shape, &a, queries, between, own, dk, dim, true);
                let a = Operand::Columns(strip(p), stride);
                multiply::<S, MR>(shape, &a, dout, between, own, dv, dim, true);
            }
        }
    }

    /// Turns gradients of probabilities into those of scores before the scale.
    #[inline(always)]
    unsafe fn scores<S: Simd>(
        &self,
        rows: usize,
        len: usize,
        stride: usize,
        [p, ds, capped]: [*mut f32; 3],
    ) {
        // SAFETY: strips of `rows` times `stride`.
        unsafe {
            for i in 0..rows {
                let (p, ds, capped) =
                    (p.add(i * stride), ds.add(i * stride), capped.add(i * stride));
                let along = dot::<S>(p, ds, len);
                let (input, output) = ([p.cast_const(), ds], [ds]);
                let f = Softmax { along, scale: self.head.spec.scale };
                Each { f, input, output, len }.run::<S>();
                if let Some(cap) = self.head.spec.softcap {
                    let (input, output) = ([capped.cast_const(), ds], [ds]);
                    Each { f: CapSlope(1.0 / cap), input, output, len }.run::<S>();
                }
            }
        }
    }
}

struct Softmax {
    along: f32,
    scale: f32,
}

impl Map<2, 1> for Softmax {
    #[inline(always)]
    unsafe fn map<S: Simd>(&self, [p, dp]: [S::F; 2]) -> [S::F; 1] {
        // SAFETY: arithmetic only.
        unsafe { [S::mul(S::mul(p, S::sub(dp, S::splat(self.along))), S::splat(self.scale))] }
    }
}

struct CapSlope(f32);

impl Map<2, 1> for CapSlope {
    #[inline(always)]
    unsafe fn map<S: Simd>(&self, [y, ds]: [S::F; 2]) -> [S::F; 1] {
        // SAFETY: arithmetic only.
        unsafe {
            let t = S::mul(y, S::splat(self.0));
            [S::mul(ds, S::sub(S::splat(1.0), S::mul(t, t)))]
        }
    }
}
