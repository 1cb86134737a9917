//! Weights for files that are only measured.

/// Endless numbers between -0.05 and 0.05.
pub fn weights(seed: u64) -> impl Iterator<Item = f32> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    std::iter::repeat_with(move || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        ((state >> 40) as f32 / (1 << 24) as f32 - 0.5) * 0.1
    })
}
