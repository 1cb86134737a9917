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
