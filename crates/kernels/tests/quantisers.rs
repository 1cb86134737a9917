//! The searched scales against those of ggml's quantisers, on the same numbers.

use lapidary_kernels::blocks::{self, BlockType};

/// Rows, and values in each.
const SHAPE: (usize, usize) = (64, 512);

/// What ggml 0.26 loses, without and with weights: `peers quantisers` prints it.
const GGML: [(&str, f64, f64); 12] = [
    ("Q2_K", 0.323214, 0.217044),
    ("Q3_K", 0.177224, 0.147015),
    ("Q4_K", 0.080954, 0.063745),
    ("Q5_K", 0.040928, 0.035009),
    ("Q6_K", 0.021596, 0.018371),
    ("Q4_0", 0.111167, 0.097037),
    ("Q5_0", 0.055619, 0.048569),
    ("Q4_1", 0.086590, 0.060970),
    ("Q5_1", 0.042364, 0.029988),
    ("IQ4_NL", 0.090337, 0.076518),
    ("IQ4_XS", 0.091605, 0.078768),
    ("MXFP4", 0.127654, 0.127107),
];

/// Weights like a trained matrix's, and mean squares of inputs.
fn data() -> (Vec<f32>, Vec<f32>) {
    let mut state = 0x9e37_79b9_7f4a_7c15u64;
    let mut uniform = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        (state >> 40) as f32 / (1 << 24) as f32 - 0.5
    };
    let mut weight = || {
        let sum: f32 = (0..6).map(|_| uniform()).sum();
        if uniform() > 0.49 { 0.15 * sum } else { 0.03 * sum }
    };
    let x: Vec<f32> = (0..SHAPE.0 * SHAPE.1).map(|_| weight()).collect();
    let w: Vec<f32> = (0..SHAPE.1).map(|_| 40.0 * weight()).map(|v| v * v + 0.01).collect();
    (x, w)
}

/// The square root of the (weighted) sum of squared errors over that of squares.
fn lost(x: &[f32], back: &[f32], w: &[f32]) -> f64 {
    let (mut error, mut size) = (0.0, 0.0);
    for (i, (x, b)) in x.iter().zip(back).enumerate() {
        let w = f64::from(w[i % w.len()]);
        error += w * f64::from(x - b).powi(2);
        size += w * f64::from(*x).powi(2);
    }
    (error / size).sqrt()
}

#[test]
fn no_more_is_lost_than_ggml_loses() {
    let (x, w) = data();
    let even = vec![1.0; SHAPE.1];
    let mut report = String::new();
    let mut worse = Vec::new();
    for (name, plain, weighted) in GGML {
        let ty = BlockType::ALL.into_iter().find(|t| t.name() == name).unwrap();
        let mut bytes = vec![0; x.len() / ty.block_len() * ty.block_bytes()];
        let mut back = vec![0.0; x.len()];
        blocks::quantize(ty, &x, &mut bytes);
        blocks::dequantize(ty, &bytes, &mut back);
        let ours = lost(&x, &back, &even);
        blocks::quantize_weighted(ty, &x, &w, &mut bytes);
        blocks::dequantize(ty, &bytes, &mut back);
        let ours_weighted = lost(&x, &back, &w);
        report += &format!("{name}: {ours:.6} {plain:.6}, {ours_weighted:.6} {weighted:.6}\n");
        // Without weights the plain formats are rounded as ggml rounds them.
        if ours > plain * 1.0001 || ours_weighted > weighted * 1.0001 {
            worse.push(name);
        }
    }
    assert!(worse.is_empty(), "{worse:?}\n{report}");
}
