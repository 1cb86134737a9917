//! Row by row: sums of parts of a row, and sizes matched to another row's. Each output with one
//! fixed order of operations.

use crate::rowwise::{sum, sum_of_squares};
use crate::simd::Isa;

/// In parts of `width`: part i of `out` is the sum over p of `coefs[i][p]` times part p of `x`, in
/// the order of p.
///
/// # Panics
/// If the coefficients do not suit the parts.
pub fn mix(x: &[f32], coefs: &[f32], width: usize, out: &mut [f32]) {
    let (inputs, outputs) = (x.len() / width, out.len() / width);
    assert!(inputs * outputs == coefs.len() && inputs * width == x.len(), "parts of {width}");
    for (out, coefs) in out.chunks_exact_mut(width).zip(coefs.chunks_exact(inputs)) {
        out.fill(0.0);
        for (x, &c) in x.chunks_exact(width).zip(coefs) {
            // Parts that are not taken may hold anything.
            if c != 0.0 {
                out.iter_mut().zip(x).for_each(|(o, x)| *o = x.mul_add(c, *o));
            }
        }
    }
}

/// Scales `x` to the root mean square of `like`; the mean square of `x` counts as 1e-5 at least.
pub fn match_rms(isa: Isa, x: &mut [f32], like: &[f32]) {
    let n = x.len() as f32;
    let is = (sum_of_squares(isa, x) / n).max(1e-5).sqrt();
    let wanted = (sum_of_squares(isa, like) / n).sqrt();
    x.iter_mut().for_each(|x| *x = *x * wanted / is);
}

/// What each element has above the mean plus `deviations` standard deviations, else 0
/// (Spark Transformer's Gaussian top-k, <https://arxiv.org/abs/2506.06644>).
pub fn sparsify(isa: Isa, x: &mut [f32], deviations: f32) {
    let n = x.len() as f32;
    let mean = sum(isa, x) / n;
    x.iter_mut().for_each(|x| *x -= mean);
    let deviation = (sum_of_squares(isa, x) / n).sqrt();
    let cutoff = deviation * deviations;
    x.iter_mut().for_each(|x| *x = (*x - cutoff).max(0.0));
}
