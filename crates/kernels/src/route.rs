//! Mixture of experts: which of them a row goes to.

use crate::rowwise;
use crate::simd::Isa;

/// The `k` likeliest of `scores` under a softmax, the likeliest first (among equals the lower
/// index), with their probabilities scaled to sum to 1.
///
/// # Panics
/// If there are fewer than `k` scores.
pub fn top_experts(isa: Isa, scores: &[f32], k: usize) -> Vec<(u32, f32)> {
    assert!((1..=scores.len()).contains(&k), "{k} experts of {}", scores.len());
    let mut order: Vec<u32> = (0..scores.len() as u32).collect();
    order.sort_by(|a, b| scores[*b as usize].total_cmp(&scores[*a as usize]).then(a.cmp(b)));
    order.truncate(k);
    let mut weights: Vec<f32> = order.iter().map(|i| scores[*i as usize]).collect();
    let top = weights[0];
    // The sum over all experts cancels out.
    rowwise::exp_minus(isa, &mut weights, top);
    let sum: f32 = weights.iter().sum();
    order.into_iter().zip(weights.iter().map(|w| w / sum)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_likeliest_experts_with_probabilities_that_sum_to_one() {
        let mut state = 3u32;
        for (n, k) in [(1, 1), (8, 2), (128, 8), (128, 128)] {
            let scores: Vec<f32> = (0..n)
                .map(|_| {
                    state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                    // Few distinct values, so that there are equals.
                    (state >> 26) as f32 / 8.0 - 4.0
                })
                .collect();
            let total: f64 = scores.iter().map(|s| f64::from(*s).exp()).sum();
            let mut want: Vec<(usize, f64)> =
                scores.iter().map(|s| f64::from(*s).exp() / total).enumerate().collect();
            want.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
            let share: f64 = want[..k].iter().map(|w| w.1).sum();
            let got = top_experts(Isa::Scalar, &scores, k);
            for (got, want) in got.iter().zip(&want) {
                assert_eq!(got.0 as usize, want.0);
                assert!((f64::from(got.1) - want.1 / share).abs() < 1e-6, "{got:?} {want:?}");
            }
            for isa in Isa::available() {
                assert_eq!(top_experts(isa, &scores, k), got);
            }
        }
    }
}
