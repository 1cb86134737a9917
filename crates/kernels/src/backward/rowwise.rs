//! The backward of each row-wise operation, and the loss.

use crate::rowwise::{Activation, RopePairs, exp, tanh, tree};
use crate::simd::{Isa, Kernel, Simd};

/// The sum of `a b` over `n` values: sixteen partial sums by index modulo 16, then a tree.
///
/// # Safety
/// The features of `S`; `n` values at both addresses.
#[inline(always)]
pub(super) unsafe fn dot<S: Simd>(a: *const f32, b: *const f32, n: usize) -> f32 {
    // SAFETY: the caller's promise.
    unsafe {
        let mut lanes = [0.0f32; 16];
        let whole = n / 16 * 16;
        for l in (0..16).step_by(S::LANES) {
            let mut acc = S::splat(0.0);
            for i in (0..whole).step_by(16) {
                acc = S::fma(S::load(a.add(i + l)), S::load(b.add(i + l)), acc);
            }
            S::store(lanes.as_mut_ptr().add(l), acc);
        }
        for i in whole..n {
            lanes[i - whole] = (*a.add(i)).mul_add(*b.add(i), lanes[i - whole]);
        }
        tree(lanes)
    }
}

/// The sum of `n` values, in the order of [`dot`].
#[inline(always)]
unsafe fn total<S: Simd>(a: *const f32, n: usize) -> f32 {
    // SAFETY: the caller has `n` values.
    unsafe {
        let mut lanes = [0.0f32; 16];
        let whole = n / 16 * 16;
        for l in (0..16).step_by(S::LANES) {
            let mut acc = S::splat(0.0);
            for i in (0..whole).step_by(16) {
                acc = S::add(S::load(a.add(i + l)), acc);
            }
            S::store(lanes.as_mut_ptr().add(l), acc);
        }
        for i in whole..n {
            lanes[i - whole] += *a.add(i);
        }
        tree(lanes)
    }
}

struct RmsNorm<'a> {
    x: &'a [f32],
    weight: &'a [f32],
    eps: f32,
    dy: &'a [f32],
    dx: &'a mut [f32],
    dw: &'a mut [f32],
}

impl Kernel for RmsNorm<'_> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let n = self.weight.len();
        let groups = self.x.chunks_exact(n).zip(self.dy.chunks_exact(n));
        for ((x, dy), dx) in groups.zip(self.dx.chunks_exact_mut(n)) {
            // SAFETY: rows of `n`.
            let square = unsafe { dot::<S>(x.as_ptr(), x.as_ptr(), n) };
            let factor = 1.0 / (square / n as f32 + self.eps).sqrt();
            for i in 0..n {
                self.dw[i] += dy[i] * x[i] * factor;
                dx[i] = dy[i] * self.weight[i];
            }
            // SAFETY: rows of `n`.
            let along = unsafe { dot::<S>(dx.as_ptr(), x.as_ptr(), n) };
            let along = along * factor * factor / n as f32;
            for i in 0..n {
                dx[i] = (dx[i] - x[i] * along) * factor;
            }
        }
    }
}

/// The gradient of [`crate::rms_norm`]: `dx` is set, `dw` grows.
///
/// # Panics
/// If the shapes disagree.
pub fn rms_norm_backward(
    isa: Isa,
    x: &[f32],
    weight: &[f32],
    eps: f32,
    dy: &[f32],
    dx: &mut [f32],
    dw: &mut [f32],
) {
    let n = weight.len();
    assert!(dw.len() == n && x.len().is_multiple_of(n), "groups of {n}");
    assert!(x.len() == dy.len() && x.len() == dx.len(), "one gradient for each value");
    isa.run(RmsNorm { x, weight, eps, dy, dx, dw });
}

struct LayerNorm<'a> {
    x: &'a [f32],
    weight: &'a [f32],
    eps: f32,
    dy: &'a [f32],
    dx: &'a mut [f32],
    dw: &'a mut [f32],
    db: &'a mut [f32],
}

impl Kernel for LayerNorm<'_> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let n = self.weight.len();
        let mut hat = vec![0.0f32; n];
        let groups = self.x.chunks_exact(n).zip(self.dy.chunks_exact(n));
        for ((x, dy), dx) in groups.zip(self.dx.chunks_exact_mut(n)) {
            // SAFETY: rows of `n`, here and below.
            let mean = unsafe { total::<S>(x.as_ptr(), n) } / n as f32;
            for i in 0..n {
                hat[i] = x[i] - mean;
            }
            // SAFETY: as above.
            let square = unsafe { dot::<S>(hat.as_ptr(), hat.as_ptr(), n) };
            let factor = 1.0 / (square / n as f32 + self.eps).sqrt();
            for i in 0..n {
                hat[i] *= factor;
                self.dw[i] += dy[i] * hat[i];
                self.db[i] += dy[i];
                dx[i] = dy[i] * self.weight[i];
            }
            // SAFETY: as above.
            let (mean, along) =
                unsafe { (total::<S>(dx.as_ptr(), n), dot::<S>(dx.as_ptr(), hat.as_ptr(), n)) };
            let (mean, along) = (mean / n as f32, along / n as f32);
            for i in 0..n {
                dx[i] = (dx[i] - mean - hat[i] * along) * factor;
            }
        }
    }
}

/// The gradient of [`crate::layer_norm`]: `dx` is set, `dw` and `db` grow.
///
/// # Panics
/// If the shapes disagree.
#[allow(clippy::too_many_arguments)]
pub fn layer_norm_backward(
    isa: Isa,
    x: &[f32],
    weight: &[f32],
    eps: f32,
    dy: &[f32],
    dx: &mut [f32],
    dw: &mut [f32],
    db: &mut [f32],
) {
    let n = weight.len();
    assert!(dw.len() == n && db.len() == n && x.len().is_multiple_of(n), "rows of {n}");
    assert!(x.len() == dy.len() && x.len() == dx.len(), "one gradient for each value");
    isa.run(LayerNorm { x, weight, eps, dy, dx, dw, db });
}

/// An activation's value and its slope.
#[inline(always)]
unsafe fn slope<S: Simd>(kind: Activation, x: S::F) -> (S::F, S::F) {
    // SAFETY: arithmetic only.
    unsafe {
        let (one, half) = (S::splat(1.0), S::splat(0.5));
        match kind {
            Activation::GeluTanh => {
                let (c, a) = (S::splat(0.797_884_6), S::splat(0.044715));
                let square = S::mul(x, x);
                let t = tanh::<S>(S::mul(S::fma(S::mul(square, x), a, x), c));
                let left = S::mul(half, S::add(one, t));
                // 0.5 x (1 - t^2) times the slope of tanh's argument.
                let inner = S::mul(c, S::fma(S::mul(square, S::splat(3.0)), a, one));
                let bend = S::mul(S::mul(half, x), S::sub(one, S::mul(t, t)));
                (S::mul(x, left), S::fma(bend, inner, left))
            }
            Activation::Silu => {
                let e = exp::<S>(S::min(S::sub(S::splat(0.0), x), S::splat(88.0)));
                let s = S::div(one, S::add(one, e));
                (S::mul(x, s), S::mul(s, S::fma(x, S::sub(one, s), one)))
            }
        }
    }
}

/// A function of `N` values that gives `M`, element by element.
pub(super) trait Map<const N: usize, const M: usize> {
    /// # Safety
    /// The features of `S`.
    unsafe fn map<S: Simd>(&self, x: [S::F; N]) -> [S::F; M];
}

/// Applies a map to `len` elements at each address.
pub(super) struct Each<F, const N: usize, const M: usize> {
    pub f: F,
    pub input: [*const f32; N],
    pub output: [*mut f32; M],
    pub len: usize,
}

impl<F: Map<N, M>, const N: usize, const M: usize> Kernel for Each<F, N, M> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        // SAFETY: whoever made the value vouches for `len` elements at each address; the rest goes
        // through copies with room for a vector.
        unsafe {
            let whole = self.len / S::LANES * S::LANES;
            for i in (0..whole).step_by(S::LANES) {
                let mut x = [S::splat(0.0); N];
                for (x, p) in x.iter_mut().zip(self.input) {
                    *x = S::load(p.add(i));
                }
                for (y, p) in self.f.map::<S>(x).into_iter().zip(self.output) {
                    S::store(p.add(i), y);
                }
            }
            let rest = self.len - whole;
            if rest > 0 {
                let mut x = [S::splat(0.0); N];
                let mut buffer = [0.0f32; 16];
                for (x, p) in x.iter_mut().zip(self.input) {
                    buffer.as_mut_ptr().copy_from_nonoverlapping(p.add(whole), rest);
                    *x = S::load(buffer.as_ptr());
                }
                for (y, p) in self.f.map::<S>(x).into_iter().zip(self.output) {
                    S::store(buffer.as_mut_ptr(), y);
                    p.add(whole).copy_from_nonoverlapping(buffer.as_ptr(), rest);
                }
            }
        }
    }
}

struct Slope(Activation);

impl Map<2, 1> for Slope {
    #[inline(always)]
    unsafe fn map<S: Simd>(&self, [x, dy]: [S::F; 2]) -> [S::F; 1] {
        // SAFETY: arithmetic only.
        unsafe { [S::mul(dy, slope::<S>(self.0, x).1)] }
    }
}

/// The gradient of [`crate::activation`]: `dy` becomes `dx`; `x` is what went in.
///
/// # Panics
/// If the lengths differ.
pub fn activation_backward(isa: Isa, kind: Activation, x: &[f32], dy: &mut [f32]) {
    assert_eq!(x.len(), dy.len(), "one gradient for each value");
    let (input, output) = ([x.as_ptr(), dy.as_ptr()], [dy.as_mut_ptr()]);
    isa.run(Each { f: Slope(kind), input, output, len: x.len() });
}

struct Gated(Activation);

impl Map<3, 2> for Gated {
    #[inline(always)]
    unsafe fn map<S: Simd>(&self, [gate, up, dy]: [S::F; 3]) -> [S::F; 2] {
        // SAFETY: arithmetic only.
        unsafe {
            let (value, slope) = slope::<S>(self.0, gate);
            [S::mul(S::mul(dy, up), slope), S::mul(dy, value)]
        }
    }
}

/// The gradient of [`crate::gated`]: `dy` becomes that of the gate, `dup` is set.
///
/// # Panics
/// If the lengths differ.
pub fn gated_backward(
    isa: Isa,
    kind: Activation,
    gate: &[f32],
    up: &[f32],
    dy: &mut [f32],
    dup: &mut [f32],
) {
    let len = gate.len();
    assert!(up.len() == len && dy.len() == len && dup.len() == len, "gate and up");
    let input = [gate.as_ptr(), up.as_ptr(), dy.as_ptr()];
    isa.run(Each { f: Gated(kind), input, output: [dy.as_mut_ptr(), dup.as_mut_ptr()], len });
}

struct Softcap(f32);

impl Map<2, 1> for Softcap {
    #[inline(always)]
    unsafe fn map<S: Simd>(&self, [y, dy]: [S::F; 2]) -> [S::F; 1] {
        // SAFETY: arithmetic only.
        unsafe {
            let t = S::mul(y, S::splat(1.0 / self.0));
            [S::mul(dy, S::sub(S::splat(1.0), S::mul(t, t)))]
        }
    }
}

/// The gradient of [`crate::softcap`]: `dy` becomes `dx`; `y` is what came out.
///
/// # Panics
/// If the lengths differ.
pub fn softcap_backward(isa: Isa, cap: f32, y: &[f32], dy: &mut [f32]) {
    assert_eq!(y.len(), dy.len(), "one gradient for each value");
    let (input, output) = ([y.as_ptr(), dy.as_ptr()], [dy.as_mut_ptr()]);
    isa.run(Each { f: Softcap(cap), input, output, len: y.len() });
}

/// The gradient of [`crate::rope`]: turns each head of one row back.
///
/// # Panics
/// If the row is not made of heads of twice as many elements as there are angles.
pub fn rope_backward(row: &mut [f32], cos: &[f32], sin: &[f32], pairs: RopePairs) {
    let half = cos.len();
    assert!(sin.len() == half && row.len().is_multiple_of(2 * half), "heads of {}", 2 * half);
    for head in row.chunks_exact_mut(2 * half) {
        match pairs {
            RopePairs::Halves => {
                let (a, b) = head.split_at_mut(half);
                for (((a, b), c), s) in a.iter_mut().zip(b).zip(cos).zip(sin) {
                    (*a, *b) = (*a * c + *b * s, *b * c - *a * s);
                }
            }
            RopePairs::Adjacent => {
                for ((pair, c), s) in head.chunks_exact_mut(2).zip(cos).zip(sin) {
                    let (a, b) = (pair[0], pair[1]);
                    (pair[0], pair[1]) = (a * c + b * s, b * c - a * s);
                }
            }
        }
    }
}

/// e^(x - top)
pub(super) struct ExpMinus(pub f32);

impl Map<1, 1> for ExpMinus {
    #[inline(always)]
    unsafe fn map<S: Simd>(&self, [x]: [S::F; 1]) -> [S::F; 1] {
        // SAFETY: arithmetic only.
        unsafe { [exp::<S>(S::sub(x, S::splat(self.0)))] }
    }
}

/// The largest of `n` values; it does not depend on the order.
///
/// # Safety
/// The features of `S`; `n` values.
#[inline(always)]
pub(super) unsafe fn largest<S: Simd>(x: *const f32, n: usize) -> f32 {
    // SAFETY: the caller's promise.
    unsafe {
        let whole = n / S::LANES * S::LANES;
        let mut lanes = [f32::NEG_INFINITY; 16];
        let mut top = S::splat(f32::NEG_INFINITY);
        for i in (0..whole).step_by(S::LANES) {
            top = S::max(S::load(x.add(i)), top);
        }
        S::store(lanes.as_mut_ptr(), top);
        let mut top = lanes.into_iter().take(S::LANES).fold(f32::NEG_INFINITY, f32::max);
        for i in whole..n {
            top = top.max(*x.add(i));
        }
        top
    }
}

/// Turns `n` values into exponentials after the largest was taken off; returns that and their sum.
///
/// # Safety
/// The features of `S`; `n` values.
#[inline(always)]
pub(super) unsafe fn exponentials<S: Simd>(x: *mut f32, n: usize) -> (f32, f32) {
    // SAFETY: the caller's promise.
    unsafe {
        let top = largest::<S>(x, n);
        Each { f: ExpMinus(top), input: [x.cast_const()], output: [x], len: n }.run::<S>();
        (top, total::<S>(x, n))
    }
}

struct CrossEntropy<'a> {
    logits: &'a mut [f32],
    target: usize,
    weight: f32,
}

impl Kernel for CrossEntropy<'_> {
    type Output = f64;

    #[inline(always)]
    unsafe fn run<S: Simd>(self) -> f64 {
        let (n, wanted) = (self.logits.len(), self.logits[self.target]);
        // SAFETY: `n` logits.
        let (top, sum) = unsafe { exponentials::<S>(self.logits.as_mut_ptr(), n) };
        let factor = self.weight / sum;
        self.logits.iter_mut().for_each(|p| *p *= factor);
        self.logits[self.target] -= self.weight;
        f64::from(sum).ln() + f64::from(top) - f64::from(wanted)
    }
}

/// The nats that a row of logits loses on `target`; the logits become their gradient, times
/// `weight`.
///
/// # Panics
/// If `target` is beyond the logits.
pub fn cross_entropy(isa: Isa, logits: &mut [f32], target: usize, weight: f32) -> f64 {
    isa.run(CrossEntropy { logits, target, weight })
}

struct LogProbability<'a>(&'a mut [f32], usize);

impl Kernel for LogProbability<'_> {
    type Output = f64;

    #[inline(always)]
    unsafe fn run<S: Simd>(self) -> f64 {
        let wanted = self.0[self.1];
        // SAFETY: as many logits.
        let (top, sum) = unsafe { exponentials::<S>(self.0.as_mut_ptr(), self.0.len()) };
        -(f64::from(sum).ln() + f64::from(top) - f64::from(wanted))
    }
}

/// The logarithm of the probability of `target`; the logits are used up.
///
/// # Panics
/// If `target` is beyond the logits.
pub fn log_probability(isa: Isa, logits: &mut [f32], target: usize) -> f64 {
    isa.run(LogProbability(logits, target))
}
