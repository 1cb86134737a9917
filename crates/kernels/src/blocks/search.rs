//! Scales by weighted least squares: which steps and offsets lose least, when each weight's squared
//! error counts by the mean square of the input that it multiplies.
//!
//! The formats' own arithmetic is in `pack.rs`; here are only real numbers. Everything rounds in one
//! fixed order, so that the same weights give the same blocks on every machine.

use crate::integers::{FP4, IQ4};

/// Rounds to the nearest integer, ties to even, for |x| < 2^22: in vector registers, without a call.
#[inline(always)]
pub(super) fn nearest(x: f32) -> f32 {
    const SHIFT: f32 = 12_582_912.0;
    (x + SHIFT) - SHIFT
}

/// `n / d`, or 0 where that is no number.
#[inline(always)]
pub(super) fn ratio(n: f32, d: f32) -> f32 {
    let r = n / d;
    if d != 0.0 && r.is_finite() { r } else { 0.0 }
}

/// Sums over `x` of what `f` makes of each index, in eight lanes and then in order.
#[inline(always)]
fn sums<const N: usize>(len: usize, f: impl Fn(usize) -> [f32; N]) -> [f32; N] {
    let mut lanes = [[0.0f32; 8]; N];
    for i in (0..len).step_by(8) {
        for l in 0..8 {
            let values = f(i + l);
            for (lane, v) in lanes.iter_mut().zip(values) {
                lane[l] += v;
            }
        }
    }
    lanes.map(|l| l.iter().sum())
}

/// The values that a weight divided by its scale may take.
pub(super) trait Levels {
    /// The least.
    const LOW: f32;
    /// The greatest.
    const HIGH: f32;
    /// How far to look beyond and within the ends, in levels.
    const REACH: f32;
    /// The level nearest to `x`.
    fn nearest(x: f32) -> f32;
}

/// The integers from `-ZERO` to `ZERO - 1`.
pub(super) struct Integer<const ZERO: i32>;

impl<const ZERO: i32> Levels for Integer<ZERO> {
    const LOW: f32 = -(ZERO as f32);
    const HIGH: f32 = (ZERO - 1) as f32;
    const REACH: f32 = 1.0;
    #[inline(always)]
    fn nearest(x: f32) -> f32 {
        nearest(x.clamp(Self::LOW, Self::HIGH))
    }
}

/// The table of IQ4_NL and IQ4_XS.
pub(super) struct Table;

impl Levels for Table {
    const LOW: f32 = -127.0;
    const HIGH: f32 = 113.0;
    const REACH: f32 = 14.0;
    #[inline(always)]
    fn nearest(x: f32) -> f32 {
        let mut level = f32::from(IQ4[0]);
        for pair in IQ4.windows(2) {
            let (a, b) = (f32::from(pair[0]), f32::from(pair[1]));
            level = if x > (a + b) / 2.0 { b } else { level };
        }
        level
    }
}

/// Twice the values of FP4.
pub(super) struct Fp4;

impl Levels for Fp4 {
    const LOW: f32 = -12.0;
    const HIGH: f32 = 12.0;
    const REACH: f32 = 0.0;
    #[inline(always)]
    fn nearest(x: f32) -> f32 {
        let mut level = 0.0;
        for pair in FP4[..8].windows(2) {
            let (a, b) = (f32::from(pair[0]), f32::from(pair[1]));
            level = if x.abs() > (a + b) / 2.0 { b } else { level };
        }
        if x < 0.0 { -level } else { level }
    }
}

/// Candidates on each side of where an extremum meets the last level.
const STEPS: i32 = 8;

/// The scale with which `x` is nearest to its levels.
pub(super) fn scale<L: Levels>(x: &[f32], w: &[f32]) -> f32 {
    let extremum = x.iter().fold(0.0f32, |e, x| if x.abs() > e.abs() { *x } else { e });
    if extremum == 0.0 {
        return 0.0;
    }
    // (what is gained over zeros, the scale)
    let mut best = (0.0, ratio(extremum, L::LOW));
    let attempt = |inverse: f32, best: &mut (f32, f32)| {
        let [xq, qq] = sums(x.len(), |i| {
            let q = L::nearest(x[i] * inverse);
            [w[i] * x[i] * q, w[i] * q * q]
        });
        let gain = ratio(xq, qq) * xq;
        let better = gain > best.0;
        if better {
            *best = (gain, ratio(xq, qq));
        }
        better
    };
    for end in [L::LOW, L::HIGH] {
        for step in -STEPS..=STEPS {
            let reach = L::REACH * step as f32 / STEPS as f32;
            attempt(ratio(end + reach, extremum), &mut best);
        }
    }
    for _ in 0..3 {
        if !attempt(ratio(1.0, best.1), &mut best) {
            break;
        }
    }
    best.1
}

/// The weighted squared error of `x` as `scale` times its levels.
pub(super) fn error<L: Levels>(x: &[f32], w: &[f32], scale: f32) -> f32 {
    let inverse = ratio(1.0, scale);
    let [e] = sums(x.len(), |i| {
        let e = x[i] - scale * L::nearest(x[i] * inverse);
        [w[i] * e * e]
    });
    e
}

/// Weights as `scale * q + offset`, q from 0.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Affine {
    pub scale: f32,
    pub offset: f32,
}

impl Affine {
    /// q of a weight, at most `most`.
    #[inline(always)]
    pub fn q(self, x: f32, inverse: f32, most: f32) -> f32 {
        nearest(((x - self.offset) * inverse).clamp(0.0, most))
    }

    /// The weighted squared error.
    pub fn error(self, x: &[f32], w: &[f32], most: f32) -> f32 {
        let inverse = ratio(1.0, self.scale);
        let [e] = sums(x.len(), |i| {
            let e = x[i] - (self.scale * self.q(x[i], inverse, most) + self.offset);
            [w[i] * e * e]
        });
        e
    }

    /// The best scale and offset for the q that `self` gives. `below`: the offset may not be
    /// positive.
    fn refit(self, x: &[f32], w: &[f32], most: f32, below: bool) -> Option<Self> {
        let inverse = ratio(1.0, self.scale);
        let [sw, sx, sq, sqq, sxq] = sums(x.len(), |i| {
            let q = self.q(x[i], inverse, most);
            let (wx, wq) = (w[i] * x[i], w[i] * q);
            [w[i], wx, wq, wq * q, wx * q]
        });
        let determinant = sw * sqq - sq * sq;
        let scale = ratio(sw * sxq - sq * sx, determinant);
        let offset = ratio(sqq * sx - sq * sxq, determinant);
        let fit = if below && offset > 0.0 || determinant <= 0.0 {
            Self { scale: ratio(sxq, sqq), offset: if below { 0.0 } else { self.offset } }
        } else {
            Self { scale, offset }
        };
        (fit.scale > 0.0).then_some(fit)
    }

    /// Scale and offset with which `x` is nearest to integers from 0 to `most`.
    pub fn fit(x: &[f32], w: &[f32], most: f32, below: bool) -> Self {
        let start = if below { 0.0 } else { f32::MAX };
        let low = x.iter().fold(start, |l, x| l.min(*x));
        let high = x.iter().fold(if below { 0.0 } else { f32::MIN }, |h, x| h.max(*x));
        let first = Self { scale: ratio(high - low, most), offset: low };
        if first.scale == 0.0 {
            return first;
        }
        let mut best = (first.error(x, w, most), first);
        let attempt = |from: Self, best: &mut (f32, Self)| {
            let Some(fit) = from.refit(x, w, most, below) else { return false };
            let error = fit.error(x, w, most);
            let better = error < best.0;
            if better {
                *best = (error, fit);
            }
            better
        };
        for step in -STEPS..=STEPS {
            let levels = most + step as f32 / STEPS as f32;
            attempt(Self { scale: ratio(high - low, levels), offset: low }, &mut best);
        }
        for _ in 0..3 {
            let from = best.1;
            if !attempt(from, &mut best) {
                break;
            }
        }
        best.1
    }
}

/// The factor of `u` that comes nearest to `x`.
pub(super) fn factor(x: &[f32], w: &[f32], u: &[f32]) -> f32 {
    let [xu, uu] = sums(x.len(), |i| [w[i] * x[i] * u[i], w[i] * u[i] * u[i]]);
    ratio(xu, uu)
}

/// The factors of `u` and `v` that together come nearest to `x`.
pub(super) fn factors(x: &[f32], w: &[f32], u: &[f32], v: &[f32]) -> Option<(f32, f32)> {
    let [xu, xv, uu, uv, vv] = sums(x.len(), |i| {
        let (wu, wv) = (w[i] * u[i], w[i] * v[i]);
        [wu * x[i], wv * x[i], wu * u[i], wu * v[i], wv * v[i]]
    });
    let determinant = uu * vv - uv * uv;
    let (a, b) = (xu * vv - xv * uv, xv * uu - xu * uv);
    (determinant > 0.0).then(|| (ratio(a, determinant), ratio(b, determinant)))
}
