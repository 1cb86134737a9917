//! Row by row: norms, activations, rotary positions, caps. In f32, each output with one fixed order
//! of operations; `exp` and `tanh` are ours, so that every machine gives the same bits.

use crate::simd::{Isa, Kernel, Simd};

/// e^x for x <= 88, to about 1 ulp; 0 below -87.
///
/// Cody-Waite reduction by ln 2 in two parts and a degree-6 polynomial (coefficients: Taylor's with
/// the last ones fitted over |r| <= ln 2 / 2, as in Cephes' `expf`).
#[inline(always)]
pub(crate) unsafe fn exp<S: Simd>(x: S::F) -> S::F {
    // SAFETY: arithmetic only.
    unsafe {
        let c = |v: f32| S::splat(v);
        let clamped = S::min(S::max(x, c(-87.0)), c(88.0));
        let n = S::round(S::mul(clamped, c(std::f32::consts::LOG2_E)));
        let r = S::fma(n, c(-0.693_359_4), clamped);
        let r = S::fma(n, c(2.121_944_4e-4), r);
        let mut p = c(1.987_569_1e-4);
        for k in [1.398_199_9e-3, 8.333_452e-3, 4.166_579_6e-2, 1.666_666_5e-1, 0.5, 1.0, 1.0] {
            p = S::fma(p, r, c(k));
        }
        S::select_lt(x, c(-87.0), c(0.0), S::mul(p, S::pow2(n)))
    }
}

/// tanh, to about 2 ulp: 1 - 2 / (e^2|x| + 1), and below 0.625, where that would cancel, x plus an
/// odd polynomial (coefficients of Cephes' `tanhf`).
#[inline(always)]
pub(crate) unsafe fn tanh<S: Simd>(x: S::F) -> S::F {
    // SAFETY: arithmetic only.
    unsafe {
        let x = S::min(S::max(x, S::splat(-20.0)), S::splat(20.0));
        let e = exp::<S>(S::add(x, x));
        let one = S::splat(1.0);
        let far = S::sub(one, S::div(S::splat(2.0), S::add(e, one)));
        let z = S::mul(x, x);
        let mut p = S::splat(-5.704_988_7e-3);
        for k in [2.063_909e-2, -5.373_971_6e-2, 1.333_144_2e-1, -3.333_328e-1] {
            p = S::fma(p, z, S::splat(k));
        }
        let near = S::fma(S::mul(p, z), x, x);
        S::select_lt(S::abs(x), S::splat(0.625), near, far)
    }
}

/// The non-linearity of a feed-forward layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Activation {
    /// GELU by its tanh approximation (`gelu_pytorch_tanh`, `gelu_new`).
    GeluTanh,
    /// x * sigmoid(x).
    Silu,
}

#[inline(always)]
unsafe fn activate<S: Simd>(kind: Activation, x: S::F) -> S::F {
    // SAFETY: arithmetic only.
    unsafe {
        match kind {
            Activation::GeluTanh => {
                let cube = S::mul(S::mul(x, x), x);
                let inner = S::fma(cube, S::splat(0.044715), x);
                let t = tanh::<S>(S::mul(inner, S::splat(0.797_884_6)));
                S::mul(S::mul(S::splat(0.5), x), S::add(S::splat(1.0), t))
            }
            Activation::Silu => {
                let e = exp::<S>(S::min(S::sub(S::splat(0.0), x), S::splat(88.0)));
                S::div(x, S::add(S::splat(1.0), e))
            }
        }
    }
}

/// Applies `$f` to whole vectors of `$x`, and to a padded copy of what is left over.
macro_rules! for_vectors {
    ($S:ident, $x:expr, |$v:ident, $i:ident| $f:expr) => {{
        let x: &mut [f32] = $x;
        let whole = x.len() / $S::LANES * $S::LANES;
        let mut $i = 0;
        while $i < whole {
            // SAFETY: `i + LANES <= len`.
            unsafe {
                let $v = $S::load(x.as_ptr().add($i));
                let y = $f;
                $S::store(x.as_mut_ptr().add($i), y);
            }
            $i += $S::LANES;
        }
        if $i < x.len() {
            let mut rest = [0.0f32; 16];
            rest[..x.len() - $i].copy_from_slice(&x[$i..]);
            // SAFETY: the copy has room for a vector.
            unsafe {
                let $v = $S::load(rest.as_ptr());
                let y = $f;
                $S::store(rest.as_mut_ptr(), y);
            }
            let n = x.len() - $i;
            x[$i..].copy_from_slice(&rest[..n]);
        }
    }};
}

struct Activate<'a>(Activation, &'a mut [f32]);

impl Kernel for Activate<'_> {
    type Output = ();
    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        for_vectors!(S, self.1, |v, i| activate::<S>(self.0, v));
    }
}

/// `x = act(x)`.
pub fn activation(isa: Isa, kind: Activation, x: &mut [f32]) {
    isa.run(Activate(kind, x));
}

/// `gate = act(gate) * up`, element by element.
///
/// # Panics
/// If the lengths differ.
pub fn gated(isa: Isa, kind: Activation, gate: &mut [f32], up: &[f32]) {
    assert_eq!(gate.len(), up.len(), "gate and up");
    // In parts that stay in the first-level cache between the two passes.
    for (gate, up) in gate.chunks_mut(2048).zip(up.chunks(2048)) {
        activation(isa, kind, gate);
        gate.iter_mut().zip(up).for_each(|(g, u)| *g *= u);
    }
}

struct Softcap<'a>(f32, &'a mut [f32]);

impl Kernel for Softcap<'_> {
    type Output = ();
    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let cap = self.0;
        for_vectors!(S, self.1, |v, i| {
            S::mul(tanh::<S>(S::div(v, S::splat(cap))), S::splat(cap))
        });
    }
}

/// `x = cap * tanh(x / cap)`.
pub fn softcap(isa: Isa, cap: f32, x: &mut [f32]) {
    isa.run(Softcap(cap, x));
}

struct Sum<'a>(&'a [f32], bool);

impl Kernel for Sum<'_> {
    type Output = f32;
    /// Sixteen partial sums by index modulo 16, then a tree, whatever the width of the vectors.
    #[inline(always)]
    unsafe fn run<S: Simd>(self) -> f32 {
        let Sum(x, squares) = self;
        let mut lanes = [0.0f32; 16];
        let whole = x.len() / 16 * 16;
        for l in (0..16).step_by(S::LANES) {
            // SAFETY: `i + l + LANES <= len`.
            unsafe {
                let mut acc = S::splat(0.0);
                for i in (0..whole).step_by(16) {
                    let v = S::load(x.as_ptr().add(i + l));
                    acc = if squares { S::fma(v, v, acc) } else { S::add(v, acc) };
                }
                S::store(lanes.as_mut_ptr().add(l), acc);
            }
        }
        for (lane, &v) in lanes.iter_mut().zip(&x[whole..]) {
            *lane = if squares { v.mul_add(v, *lane) } else { v + *lane };
        }
        tree(lanes)
    }
}

/// The sum of sixteen lanes, in pairs eight apart, four apart, and so on.
#[inline(always)]
pub(crate) fn tree(mut lanes: [f32; 16]) -> f32 {
    for half in [8, 4, 2, 1] {
        for i in 0..half {
            lanes[i] += lanes[i + half];
        }
    }
    lanes[0]
}

/// RMSNorm of each group of `weight.len()` elements: `x / sqrt(mean(x^2) + eps) * weight`.
///
/// # Panics
/// If `x` is not made of such groups.
pub fn rms_norm(isa: Isa, x: &[f32], weight: &[f32], eps: f32, out: &mut [f32]) {
    let width = weight.len();
    assert!(x.len() == out.len() && x.len().is_multiple_of(width), "groups of {width}");
    for (x, out) in x.chunks_exact(width).zip(out.chunks_exact_mut(width)) {
        let mean = isa.run(Sum(x, true)) / width as f32;
        let factor = 1.0 / (mean + eps).sqrt();
        for ((out, x), w) in out.iter_mut().zip(x).zip(weight) {
            *out = x * factor * w;
        }
    }
}

/// LayerNorm of each row: `(x - mean) / sqrt(variance + eps) * weight + bias`.
///
/// # Panics
/// If `x` is not made of such rows.
pub fn layer_norm(isa: Isa, x: &[f32], weight: &[f32], bias: &[f32], eps: f32, out: &mut [f32]) {
    let width = weight.len();
    assert!(bias.len() == width && x.len() == out.len(), "rows of {width}");
    assert!(x.len().is_multiple_of(width), "rows of {width}");
    for (x, out) in x.chunks_exact(width).zip(out.chunks_exact_mut(width)) {
        let mean = isa.run(Sum(x, false)) / width as f32;
        for (out, x) in out.iter_mut().zip(x) {
            *out = x - mean;
        }
        let factor = 1.0 / (isa.run(Sum(out, true)) / width as f32 + eps).sqrt();
        for ((out, w), b) in out.iter_mut().zip(weight).zip(bias) {
            *out = (*out * factor).mul_add(*w, *b);
        }
    }
}

/// Which elements of a head turn together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RopePairs {
    /// (i, i + half): Hugging Face's and Gemma's.
    Halves,
    /// (2i, 2i + 1): Llama's weights as GGUF stores them.
    Adjacent,
}

/// Rotates each head of one row: pair i by the angle whose cosine and sine are given.
///
/// # Panics
/// If the row is not made of heads of twice as many elements as there are angles.
pub fn rope(row: &mut [f32], cos: &[f32], sin: &[f32], pairs: RopePairs) {
    let half = cos.len();
    assert!(sin.len() == half && row.len().is_multiple_of(2 * half), "heads of {}", 2 * half);
    for head in row.chunks_exact_mut(2 * half) {
        match pairs {
            RopePairs::Halves => {
                let (a, b) = head.split_at_mut(half);
                for (((a, b), c), s) in a.iter_mut().zip(b).zip(cos).zip(sin) {
                    (*a, *b) = (*a * c - *b * s, *b * c + *a * s);
                }
            }
            RopePairs::Adjacent => {
                for ((pair, c), s) in head.chunks_exact_mut(2).zip(cos).zip(sin) {
                    let (a, b) = (pair[0], pair[1]);
                    (pair[0], pair[1]) = (a * c - b * s, b * c + a * s);
                }
            }
        }
    }
}

struct Exp<'a>(&'a mut [f32], f32);

impl Kernel for Exp<'_> {
    type Output = ();
    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let top = self.1;
        for_vectors!(S, self.0, |v, i| exp::<S>(S::sub(v, S::splat(top))));
    }
}

/// `x = e^(x - top)`; `-inf` gives 0.
pub(crate) fn exp_minus(isa: Isa, x: &mut [f32], top: f32) {
    isa.run(Exp(x, top));
}

/// The sum of the squares of `x`, in the same order.
pub(crate) fn sum_of_squares(isa: Isa, x: &[f32]) -> f32 {
    isa.run(Sum(x, true))
}

/// The sum of `x` in the order of [`tree`].
pub(crate) fn sum(isa: Isa, x: &[f32]) -> f32 {
    isa.run(Sum(x, false))
}
