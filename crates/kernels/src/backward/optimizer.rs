//! AdamW on slices, with moments in f32 or in 8 bits, and the length of a gradient.

use crate::heap::{Heap, Run};
use crate::simd::{Isa, Kernel, Simd};
use std::sync::Arc;

/// The figures of one step.
#[derive(Debug, Clone, Copy)]
pub struct Adam {
    /// Learning rate.
    pub lr: f32,
    /// Memory of the first moment.
    pub beta1: f32,
    /// Memory of the second moment.
    pub beta2: f32,
    /// Added to the root of the second moment.
    pub eps: f32,
    /// What a weight loses, times the learning rate.
    pub decay: f32,
    /// Factor of the gradient (clipping).
    pub scale: f32,
    /// `1 - beta1^step`
    pub correction1: f32,
    /// `1 - beta2^step`
    pub correction2: f32,
}

/// Values that share a scale.
const BLOCK: usize = 256;

/// The moments of a parameter.
#[derive(Debug, Clone, PartialEq)]
pub enum Moments {
    /// First and second, as they are.
    F32(Run, Run),
    /// First (signed) and second as 8-bit floats, with a scale of each for every 256.
    Bits8 {
        /// First moments.
        m: Vec<u8>,
        /// Second moments.
        v: Vec<u8>,
        /// `[block][2]`
        scales: Vec<f32>,
    },
}

/// A part of the moments, to change; it begins at a multiple of 256.
pub enum MomentsMut<'a> {
    /// First and second.
    F32(&'a mut [f32], &'a mut [f32]),
    /// As in [`Moments::Bits8`].
    Bits8(&'a mut [u8], &'a mut [u8], &'a mut [f32]),
}

impl Moments {
    /// Zeros for `len` values, f32 in `heap`.
    pub fn new(heap: &Arc<Heap>, len: usize, bits8: bool) -> Self {
        if bits8 {
            let scales = vec![0.0; 2 * len.div_ceil(BLOCK)];
            Moments::Bits8 { m: vec![0; len], v: vec![0; len], scales }
        } else {
            Moments::F32(heap.zeros(len), heap.zeros(len))
        }
    }

    /// Parts of `each` values (a multiple of 256).
    pub fn parts(&mut self, each: usize) -> Vec<MomentsMut<'_>> {
        match self {
            Moments::F32(m, v) => (m.chunks_mut(each).zip(v.chunks_mut(each)))
                .map(|(m, v)| MomentsMut::F32(m, v))
                .collect(),
            Moments::Bits8 { m, v, scales } => (m.chunks_mut(each))
                .zip(v.chunks_mut(each))
                .zip(scales.chunks_mut(2 * each / BLOCK))
                .map(|((m, v), s)| MomentsMut::Bits8(m, v, s))
                .collect(),
        }
    }
}

/// A float of 8 bits, at most 1: three bits of fraction, and exponents down to `1 - BIAS / 8`.
/// 0 is zero.
#[inline(always)]
fn decode<const BIAS: u32>(code: u32) -> f32 {
    let x = f32::from_bits((code + BIAS) << 20);
    if code == 0 { 0.0 } else { x }
}

/// The nearest code; a value above 0 becomes at least `LEAST`.
#[inline(always)]
fn encode<const BIAS: u32, const LEAST: u32>(x: f32) -> u32 {
    let bits = (x.to_bits() + (1 << 19)) >> 20;
    let code = bits.max(BIAS + LEAST) - BIAS;
    if x > 0.0 { code } else { 0 }
}

/// First moments: seven bits beside the sign, down to 2^-15.
const FIRST: u32 = (127 - 15) << 3;
/// Second moments: eight bits, down to 2^-31.
const SECOND: u32 = (127 - 31) << 3;

/// One value's new moments and weight.
#[inline(always)]
fn update(a: &Adam, w: &mut f32, g: f32, m: f32, v: f32) -> (f32, f32) {
    let g = g * a.scale;
    let m = a.beta1 * m + (1.0 - a.beta1) * g;
    let v = a.beta2 * v + (1.0 - a.beta2) * g * g;
    let root = (v / a.correction2).sqrt() + a.eps;
    *w = *w - a.lr * a.decay * *w - a.lr * (m / a.correction1) / root;
    (m, v)
}

struct Step<'a, 'b> {
    adam: &'a Adam,
    w: &'a mut [f32],
    g: &'a [f32],
    moments: MomentsMut<'b>,
}

impl Kernel for Step<'_, '_> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let Step { adam, w, g, moments } = self;
        match moments {
            MomentsMut::F32(m, v) => {
                for (((w, g), m), v) in w.iter_mut().zip(g).zip(m).zip(v) {
                    (*m, *v) = update(adam, w, *g, *m, *v);
                }
            }
            MomentsMut::Bits8(m, v, scales) => {
                let blocks = w.chunks_mut(BLOCK).zip(g.chunks(BLOCK));
                let codes = m.chunks_mut(BLOCK).zip(v.chunks_mut(BLOCK));
                for (((w, g), (m, v)), s) in blocks.zip(codes).zip(scales.chunks_exact_mut(2)) {
                    block8(adam, w, g, m, v, s);
                }
            }
        }
    }
}

#[inline(always)]
fn block8(adam: &Adam, w: &mut [f32], g: &[f32], m: &mut [u8], v: &mut [u8], scale: &mut [f32]) {
    let (mut first, mut second) = ([0.0f32; BLOCK], [0.0f32; BLOCK]);
    let (mut top_m, mut top_v) = (0.0f32, 0.0f32);
    for (i, (w, g)) in w.iter_mut().zip(g).enumerate() {
        let size = decode::<FIRST>(u32::from(m[i] & 127)) * scale[0];
        let old = if m[i] > 127 { -size } else { size };
        let old_v = decode::<SECOND>(u32::from(v[i])) * scale[1];
        (first[i], second[i]) = update(adam, w, *g, old, old_v);
        top_m = if first[i].abs() > top_m { first[i].abs() } else { top_m };
        top_v = if second[i] > top_v { second[i] } else { top_v };
    }
    (scale[0], scale[1]) = (top_m, top_v);
    let inverse = |x: f32| if x > 0.0 && (1.0 / x).is_finite() { 1.0 / x } else { 0.0 };
    let (inverse_m, inverse_v) = (inverse(top_m), inverse(top_v));
    for i in 0..w.len() {
        let code = encode::<FIRST, 0>(first[i].abs() * inverse_m) as u8;
        m[i] = if first[i] < 0.0 { code | 128 } else { code };
        // A second moment that vanished beside a first one would make a huge step.
        v[i] = encode::<SECOND, 1>(second[i] * inverse_v) as u8;
    }
}

/// One step of AdamW.
///
/// # Panics
/// If the lengths differ.
pub fn adamw(isa: Isa, adam: &Adam, w: &mut [f32], g: &[f32], moments: MomentsMut) {
    let len = match &moments {
        MomentsMut::F32(m, v) => (m.len() == v.len()).then_some(m.len()),
        MomentsMut::Bits8(m, v, s) => {
            (m.len() == v.len() && s.len() == 2 * m.len().div_ceil(BLOCK)).then_some(m.len())
        }
    };
    assert!(len == Some(w.len()) && w.len() == g.len(), "moments for each weight");
    isa.run(Step { adam, w, g, moments });
}

struct Factored<'a> {
    adam: &'a Adam,
    w: &'a mut [f32],
    g: &'a [f32],
    m: &'a mut [f32],
    columns: &'a [f32],
    row: f32,
}

impl Kernel for Factored<'_> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let a = self.adam;
        let values = self.w.iter_mut().zip(self.g).zip(self.m).zip(self.columns);
        for (((w, g), m), c) in values {
            let g = g * a.scale;
            *m = a.beta1 * *m + (1.0 - a.beta1) * g;
            let root = (self.row * c / a.correction2).sqrt() + a.eps;
            *w = *w - a.lr * a.decay * *w - a.lr * (*m / a.correction1) / root;
        }
    }
}

/// One step of AdamW for a row of a matrix whose second moments are `row` (the row's mean over the
/// mean of all) times `columns`; these are already those of the step.
///
/// # Panics
/// If the lengths differ.
pub fn adamw_factored(
    isa: Isa,
    adam: &Adam,
    w: &mut [f32],
    g: &[f32],
    m: &mut [f32],
    columns: &[f32],
    row: f32,
) {
    let k = columns.len();
    assert!(w.len() == k && g.len() == k && m.len() == k, "a row of {k}");
    isa.run(Factored { adam, w, g, m, columns, row });
}

struct Squares<'a>(&'a [f32]);

impl Kernel for Squares<'_> {
    type Output = f64;

    #[inline(always)]
    unsafe fn run<S: Simd>(self) -> f64 {
        let mut sums = [0.0f64; 16];
        let mut chunks = self.0.chunks_exact(16);
        for x in &mut chunks {
            for (sum, x) in sums.iter_mut().zip(x) {
                *sum += f64::from(*x) * f64::from(*x);
            }
        }
        for (sum, x) in sums.iter_mut().zip(chunks.remainder()) {
            *sum += f64::from(*x) * f64::from(*x);
        }
        sums.iter().sum()
    }
}

/// The sum of the squares, in f64.
pub fn sum_of_squares(isa: Isa, x: &[f32]) -> f64 {
    isa.run(Squares(x))
}
