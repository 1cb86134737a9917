//! What ggml's quantisers lose: the yardstick of `crates/kernels/tests/quantisers.rs`.

use llama_cpp_sys_2 as sys;

/// Rows, and values in each.
const SHAPE: (usize, usize) = (64, 512);

/// The test's numbers: weights like a trained matrix's, and mean squares of inputs.
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

/// Prints a line for each type: the loss without weights, and with.
pub fn print() {
    let (x, w) = data();
    let types = [
        ("Q2_K", sys::GGML_TYPE_Q2_K),
        ("Q3_K", sys::GGML_TYPE_Q3_K),
        ("Q4_K", sys::GGML_TYPE_Q4_K),
        ("Q5_K", sys::GGML_TYPE_Q5_K),
        ("Q6_K", sys::GGML_TYPE_Q6_K),
        ("Q4_0", sys::GGML_TYPE_Q4_0),
        ("Q5_0", sys::GGML_TYPE_Q5_0),
        ("Q4_1", sys::GGML_TYPE_Q4_1),
        ("Q5_1", sys::GGML_TYPE_Q5_1),
        ("IQ4_NL", sys::GGML_TYPE_IQ4_NL),
        ("IQ4_XS", sys::GGML_TYPE_IQ4_XS),
        ("MXFP4", sys::GGML_TYPE_MXFP4),
    ];
    let even = vec![1.0; SHAPE.1];
    for (name, ty) in types {
        let back = |weights: Option<&[f32]>| {
            let mut back = vec![0.0f32; x.len()];
            // SAFETY: the buffers hold the rows that are named; ggml's tables are made first.
            unsafe {
                sys::ggml_quantize_init(ty);
                let mut bytes = vec![0u8; sys::ggml_row_size(ty, x.len() as i64)];
                let weights = weights.map_or(std::ptr::null(), <[f32]>::as_ptr);
                let out = bytes.as_mut_ptr().cast();
                let (rows, k) = (SHAPE.0 as i64, SHAPE.1 as i64);
                sys::ggml_quantize_chunk(ty, x.as_ptr(), out, 0, rows, k, weights);
                if let Some(read) = (*sys::ggml_get_type_traits(ty)).to_float {
                    read(bytes.as_ptr().cast(), back.as_mut_ptr(), x.len() as i64);
                }
            }
            back
        };
        let plain = lost(&x, &back(None), &even);
        println!("(\"{name}\", {plain:.6}, {:.6}),", lost(&x, &back(Some(&w)), &w));
    }
}
