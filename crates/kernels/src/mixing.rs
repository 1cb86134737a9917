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

#[cfg(test)]
mod tests {
    use super::*;

    fn values(seed: u32, count: usize) -> Vec<f32> {
        let mut state = seed;
        let mut next = || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 8) as f32 / (1 << 23) as f32 - 1.0
        };
        (0..count).map(|_| next()).collect()
    }

    #[test]
    fn parts_are_summed() {
        for (inputs, outputs, width) in [(4, 4, 20), (1, 4, 7), (4, 1, 64), (3, 2, 1)] {
            let (x, coefs) = (values(1, inputs * width), values(2, inputs * outputs));
            let mut out = vec![f32::NAN; outputs * width];
            mix(&x, &coefs, width, &mut out);
            for (at, out) in out.iter().enumerate() {
                let (i, d) = (at / width, at % width);
                let want: f64 = (0..inputs)
                    .map(|p| f64::from(coefs[i * inputs + p]) * f64::from(x[p * width + d]))
                    .sum();
                assert!((f64::from(*out) - want).abs() < 1e-6, "{out} {want}");
            }
        }
        let mut out = [0.0; 2];
        mix(&[f32::NAN, f32::INFINITY, 1.0, 2.0], &[0.0, 1.0], 2, &mut out);
        assert_eq!(out, [1.0, 2.0], "what is not taken is not touched");
    }

    #[test]
    fn sizes_are_matched_and_small_activations_dropped_on_every_instruction_set() {
        for n in [1, 5, 64, 333] {
            let (x, like) = (values(3, n), values(4, n));
            let rms = |x: &[f32]| {
                (x.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>() / n as f64).sqrt()
            };
            let mean = x.iter().map(|x| f64::from(*x)).sum::<f64>() / n as f64;
            let variance = x.iter().map(|x| (f64::from(*x) - mean).powi(2)).sum::<f64>() / n as f64;
            let mut first: Option<Vec<u32>> = None;
            for isa in Isa::available() {
                let mut matched = x.clone();
                match_rms(isa, &mut matched, &like);
                assert!((rms(&matched) - rms(&like)).abs() < 1e-6);
                let mut sparse = x.clone();
                sparsify(isa, &mut sparse, 0.5);
                for (s, x) in sparse.iter().zip(&x) {
                    let want = (f64::from(*x) - mean - 0.5 * variance.sqrt()).max(0.0);
                    assert!((f64::from(*s) - want).abs() < 1e-6, "{s} {want}");
                }
                let bits = matched.iter().chain(&sparse).map(|x| x.to_bits()).collect();
                assert_eq!(first.get_or_insert_with(|| Vec::clone(&bits)), &bits, "{isa:?} {n}");
            }
        }
        let mut tiny = [1e-4f32; 8];
        match_rms(Isa::Scalar, &mut tiny, &[1.0; 8]);
        assert!((tiny[0] - 1e-4 / 1e-5f32.sqrt()).abs() < 1e-6);
    }
}
