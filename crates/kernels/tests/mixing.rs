//! Sums of parts, sizes, sparse activations and the choice of experts, against f64.

use lapidary_kernels::{Isa, match_rms, mix, sparsify, top_experts};

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
        let rms =
            |x: &[f32]| (x.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>() / n as f64).sqrt();
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
