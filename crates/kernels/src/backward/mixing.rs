//! The backward of what Gemma 3n mixes row by row (see `crate::mixing`).

use super::rowwise::dot;
use crate::rowwise::{sum, sum_of_squares};
use crate::simd::{Isa, Kernel, Simd};

/// The product of two rows.
struct Dot<'a>(&'a [f32], &'a [f32]);

impl Kernel for Dot<'_> {
    type Output = f32;

    #[inline(always)]
    unsafe fn run<S: Simd>(self) -> f32 {
        assert_eq!(self.0.len(), self.1.len(), "rows of one length");
        // SAFETY: the caller's promise; both rows have as many values.
        unsafe { dot::<S>(self.0.as_ptr(), self.1.as_ptr(), self.0.len()) }
    }
}

/// The gradients of one row of [`crate::mix`] from `dy`, that of its output: `dx` is overwritten, and
/// so is `dcoefs`, `[outputs][inputs]`, where it is asked for beside the row's input `x`.
///
/// # Panics
/// If the coefficients do not suit the parts.
pub fn mix_backward(
    isa: Isa,
    coefs: &[f32],
    width: usize,
    dy: &[f32],
    dx: &mut [f32],
    more: Option<(&[f32], &mut [f32])>,
) {
    let (inputs, outputs) = (dx.len() / width, dy.len() / width);
    assert!(inputs * outputs == coefs.len() && inputs * width == dx.len(), "parts of {width}");
    dx.fill(0.0);
    for (dy, coefs) in dy.chunks_exact(width).zip(coefs.chunks_exact(inputs)) {
        for (dx, &c) in dx.chunks_exact_mut(width).zip(coefs) {
            // Parts that are not taken may hold anything.
            if c != 0.0 {
                dx.iter_mut().zip(dy).for_each(|(d, g)| *d = g.mul_add(c, *d));
            }
        }
    }
    let Some((x, dcoefs)) = more else { return };
    for (dy, dcoefs) in dy.chunks_exact(width).zip(dcoefs.chunks_exact_mut(inputs)) {
        for (x, d) in x.chunks_exact(width).zip(dcoefs) {
            *d = isa.run(Dot(dy, x));
        }
    }
}

/// The gradients of one row of [`crate::match_rms`]: `dy`, that of its output, becomes that of `x`;
/// `dlike` is overwritten.
pub fn match_rms_backward(isa: Isa, x: &[f32], like: &[f32], dy: &mut [f32], dlike: &mut [f32]) {
    let n = x.len() as f32;
    let square = sum_of_squares(isa, x) / n;
    let is = square.max(1e-5).sqrt();
    let wanted = (sum_of_squares(isa, like) / n).sqrt();
    let along = isa.run(Dot(dy, x));
    // The size of `like` counts by its direction; where it is zero it has none.
    let of_like = if wanted > 0.0 { along / (is * wanted * n) } else { 0.0 };
    dlike.iter_mut().zip(like).for_each(|(d, l)| *d = l * of_like);
    // Below the least mean square the divisor is constant.
    let of_x = if square > 1e-5 { along * wanted / (is * is * is * n) } else { 0.0 };
    dy.iter_mut().zip(x).for_each(|(d, x)| *d = *d * (wanted / is) - x * of_x);
}

/// The gradient of one row of [`crate::sparsify`]: `dy`, that of its output, becomes that of `x`.
pub fn sparsify_backward(isa: Isa, x: &[f32], deviations: f32, dy: &mut [f32]) {
    let n = x.len() as f32;
    let mean = sum(isa, x) / n;
    let centred: Vec<f32> = x.iter().map(|x| x - mean).collect();
    let deviation = (sum_of_squares(isa, &centred) / n).sqrt();
    let cutoff = deviation * deviations;
    for (d, c) in dy.iter_mut().zip(&centred) {
        *d = if *c > cutoff { *d } else { 0.0 };
    }
    // What is above feels the mean and the deviation of all.
    let total = sum(isa, dy) / n;
    let slope = if deviation > 0.0 { deviations * total / deviation } else { 0.0 };
    dy.iter_mut().zip(&centred).for_each(|(d, c)| *d -= total + slope * c);
}
