//! Operands of a product, and how a strip of one is laid out for the inner loop: for each place of
//! the contraction the values of `W` neighbouring outputs.

use crate::element::{Element, F16, F32};
use crate::panel::{Layout, Packed};
use crate::product::unpacked;
use crate::simd::{PANEL, Simd};
use crate::unpack::{self, Format};
use std::ops::Range;

/// One side of a product: element (i, p) belongs to output i and place p of the contraction.
#[derive(Clone, Copy)]
pub enum Operand<'a> {
    /// `data[i * stride + p]`
    Rows(&'a [f32], usize),
    /// `data[p * stride + i]`
    Columns(&'a [f32], usize),
    /// Output row i, input p of a weight matrix.
    Weights(&'a Packed),
    /// Output row p, input i of a weight matrix.
    WeightsTransposed(&'a Packed),
}

/// Calls `$body` with `$F` as the reader of a layout.
macro_rules! each_layout {
    ($w:expr, $F:ident => $body:expr) => {
        match $w.layout {
            Layout::F32 => {
                type $F = Floats<F32>;
                $body
            }
            Layout::F16 => {
                type $F = Floats<F16>;
                $body
            }
            Layout::Bf16 => {
                type $F = Pairs;
                $body
            }
            Layout::Q8_0 => {
                type $F = Blocks<unpack::Q8_0>;
                $body
            }
            Layout::Q4_0 => {
                type $F = Blocks<unpack::Q4_0>;
                $body
            }
            Layout::Q5_0 => {
                type $F = Blocks<unpack::Q5_0>;
                $body
            }
            Layout::Q4K => {
                type $F = Blocks<unpack::Q4K>;
                $body
            }
            Layout::Q5K => {
                type $F = Blocks<unpack::Q5K>;
                $body
            }
            Layout::Q6K => {
                type $F = Blocks<unpack::Q6K>;
                $body
            }
            Layout::Bytes => {
                type $F = Blocks<unpack::Bytes>;
                $body
            }
        }
    };
}

impl Operand<'_> {
    /// Panics unless all of `outer` times `inner` elements are there.
    pub(super) fn check(&self, outer: usize, inner: usize) {
        let fits = match *self {
            Operand::Rows(data, stride) => {
                stride >= inner && data.len() >= (outer - 1) * stride + inner
            }
            Operand::Columns(data, stride) => {
                stride >= outer && data.len() >= (inner - 1) * stride + outer
            }
            Operand::Weights(w) => w.n >= outer && w.k >= inner,
            Operand::WeightsTransposed(w) => w.k >= outer && w.n >= inner,
        };
        assert!(fits, "an operand of {outer} x {inner}");
    }

    /// Writes the strip of outputs `first .. first + W` as `[inner][W]`. Lanes beyond `outer` hold
    /// anything. For a `W` that is no multiple of the lanes, up to fifteen values behind the strip
    /// are overwritten.
    ///
    /// # Safety
    /// The features of `S`; [`Operand::check`] has passed; room at `out`. For weights `inner`
    /// begins at a multiple of 32 and `first` of 16.
    #[inline(always)]
    pub(super) unsafe fn pack<S: Simd, const W: usize>(
        &self,
        first: usize,
        outer: usize,
        inner: Range<usize>,
        out: *mut f32,
    ) {
        // SAFETY: the caller's promise.
        unsafe {
            match *self {
                Operand::Rows(data, stride) => {
                    let last = outer - 1;
                    let mut rows = [data.as_ptr(); 48];
                    for (r, row) in rows.iter_mut().enumerate().take(W.next_multiple_of(S::LANES)) {
                        // Rows that don't exist are a second view of the last one.
                        let i = (first + r.min(W - 1)).min(last);
                        *row = data.as_ptr().add(i * stride + inner.start);
                    }
                    transpose_rows::<S, W>(&rows, inner.len(), out);
                }
                Operand::Columns(data, stride) => {
                    let valid = W.min(outer - first);
                    for (at, p) in inner.enumerate() {
                        let (from, to) = (data.as_ptr().add(p * stride + first), out.add(at * W));
                        if valid == W {
                            to.copy_from_nonoverlapping(from, W);
                        } else {
                            to.copy_from_nonoverlapping(from, valid);
                        }
                    }
                }
                Operand::Weights(w) => {
                    each_layout!(w, F => straight::<S, F, W>(w, first, inner, out))
                }
                Operand::WeightsTransposed(w) => {
                    each_layout!(w, F => turned::<S, F, W>(w, first, inner, out))
                }
            }
        }
    }
}

/// Reads inputs `32 kb ..` of the rows of a panel as `[k][16]`.
trait Reader {
    /// # Safety
    /// The features of `S`; `p` is a panel of the reader's layout; `out` has 32 x 16 places, of
    /// which those of `min(32, k - 32 kb)` inputs are written.
    unsafe fn read<S: Simd>(w: &Packed, p: usize, kb: usize, out: *mut f32);
}

struct Floats<E>(std::marker::PhantomData<E>);
/// bfloat16s.
struct Pairs;
struct Blocks<F>(std::marker::PhantomData<F>);

impl<E: Element> Reader for Floats<E> {
    #[inline(always)]
    unsafe fn read<S: Simd>(w: &Packed, p: usize, kb: usize, out: *mut f32) {
        // SAFETY: inputs below `w.k` of an existing panel.
        unsafe {
            let quads = w.panel(p).as_ptr().add(kb * 32 * PANEL * E::BYTES);
            for i in (0..32.min(w.k - 32 * kb) * PANEL).step_by(S::LANES) {
                S::store(out.add(i), E::load::<S>(quads.add(i * E::BYTES)));
            }
        }
    }
}

impl Reader for Pairs {
    #[inline(always)]
    unsafe fn read<S: Simd>(w: &Packed, p: usize, kb: usize, out: *mut f32) {
        // SAFETY: inputs below `w.k` of an existing panel, which is padded to whole pairs.
        unsafe {
            let (pairs, count) = (w.panel(p).as_ptr().add(kb * 32 * PANEL * 2), w.k - 32 * kb);
            for k in (0..32.min(count)).step_by(2) {
                for lane0 in (0..PANEL).step_by(S::LANES) {
                    let two = S::bf16_pair(S::load_w(pairs.add((k / 2 * PANEL + lane0) * 4)));
                    S::store(out.add(k * PANEL + lane0), two[0]);
                    if k + 1 < count {
                        S::store(out.add((k + 1) * PANEL + lane0), two[1]);
                    }
                }
            }
        }
    }
}

impl<F: Format> Reader for Blocks<F> {
    #[inline(always)]
    unsafe fn read<S: Simd>(w: &Packed, p: usize, kb: usize, out: *mut f32) {
        // SAFETY: an existing block of an existing panel.
        unsafe {
            let panel = w.panel(p).as_ptr();
            for lane0 in (0..PANEL).step_by(S::LANES) {
                let b = F::block::<S>(panel, kb, lane0);
                for (k, v) in unpacked::<S, F>(&b).into_iter().enumerate() {
                    S::store(out.add(k * PANEL + lane0), v);
                }
            }
        }
    }
}

/// A strip of `W` output rows: whole panels side by side.
#[inline(always)]
unsafe fn straight<S: Simd, F: Reader, const W: usize>(
    w: &Packed,
    first: usize,
    inner: Range<usize>,
    out: *mut f32,
) {
    let mut block = [0.0f32; 32 * PANEL];
    let panels = w.n.div_ceil(PANEL);
    for half in 0..W / PANEL {
        // A panel that does not exist: its lanes are never stored.
        let panel = (first / PANEL + half).min(panels - 1);
        for k in inner.clone().step_by(32) {
            // SAFETY: `k` is a multiple of 32 below `w.k`; the strip has room for all of `inner`.
            unsafe {
                F::read::<S>(w, panel, k / 32, block.as_mut_ptr());
                for kk in 0..32.min(inner.end - k) {
                    let to = out.add((k - inner.start + kk) * W + half * PANEL);
                    to.copy_from_nonoverlapping(block.as_ptr().add(kk * PANEL), PANEL);
                }
            }
        }
    }
}

/// A strip of `W` inputs, the contraction running over output rows.
#[inline(always)]
unsafe fn turned<S: Simd, F: Reader, const W: usize>(
    w: &Packed,
    first: usize,
    inner: Range<usize>,
    out: *mut f32,
) {
    let mut block = [0.0f32; 32 * PANEL];
    let mut rows = [block.as_ptr(); 48];
    for p in inner.clone().step_by(PANEL) {
        // SAFETY: `first` is below `w.k`, `p` below `w.n`; a strip lies within a block of 32.
        unsafe {
            F::read::<S>(w, p / PANEL, first / 32, block.as_mut_ptr());
            for (r, row) in rows.iter_mut().enumerate().take(W) {
                *row = block.as_ptr().add((first % 32 + r) * PANEL);
            }
            let count = PANEL.min(inner.end - p);
            transpose_rows::<S, W>(&rows, count, out.add((p - inner.start) * W));
        }
    }
}

/// `out[p][r] = rows[r][p]` for `W` rows of `len`.
#[inline(always)]
unsafe fn transpose_rows<S: Simd, const W: usize>(
    rows: &[*const f32; 48],
    len: usize,
    out: *mut f32,
) {
    // SAFETY: the caller has rows of `len` and room for the strip and fifteen values more.
    unsafe {
        let whole = len / S::LANES * S::LANES;
        for p in (0..whole).step_by(S::LANES) {
            for r in (0..W).step_by(S::LANES) {
                S::transpose(&rows[r..], p, out.add(p * W + r), W);
            }
        }
        for p in whole..len {
            for (r, row) in rows.iter().enumerate().take(W) {
                *out.add(p * W + r) = *row.add(p);
            }
        }
    }
}
