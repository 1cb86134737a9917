//! Half-precision numbers, and what quantising loses: properties of every format.

use lapidary_kernels::blocks::{
    BlockType, bf16_to_f32, dequantize, f16_to_f32, f32_to_bf16, f32_to_f16, quantize,
    quantize_weighted,
};
use proptest::prelude::*;

/// The value of half bits in f64, by the definition.
fn oracle(bits: u16) -> f64 {
    let sign = if bits >> 15 == 1 { -1.0 } else { 1.0 };
    let (e, f) = (i32::from(bits >> 10 & 31), f64::from(bits & 1023));
    sign * if e == 0 { f * 2f64.powi(-24) } else { (1024.0 + f) * 2f64.powi(e - 25) }
}

#[test]
fn every_half_comes_back() {
    for bits in 0..=u16::MAX {
        let x = f16_to_f32(bits);
        if bits & 0x7c00 == 0x7c00 {
            assert!(!x.is_finite() && x.is_nan() == (bits & 1023 != 0));
        } else {
            assert_eq!(f64::from(x), oracle(bits), "{bits:#x}");
            assert_eq!(f32_to_f16(x), bits);
        }
    }
}

#[test]
fn rounding_is_to_the_nearest_even() {
    // Between each two neighbours: the middle goes to the even one, a hair off to the nearer.
    for bits in 0..0x7bffu16 {
        let (a, b) = (f16_to_f32(bits), f16_to_f32(bits + 1));
        let middle = ((f64::from(a) + f64::from(b)) / 2.0) as f32;
        assert_eq!(f32_to_f16(middle), if bits % 2 == 0 { bits } else { bits + 1 });
        assert_eq!(f32_to_f16(f32::from_bits(middle.to_bits() - 1)), bits);
        assert_eq!(f32_to_f16(f32::from_bits(middle.to_bits() + 1)), bits + 1);
    }
    assert_eq!(f32_to_f16(65519.99), 0x7bff);
    assert_eq!(f32_to_f16(65520.0), 0x7c00);
    assert_eq!(f32_to_f16(f32::NAN) & 0x7e00, 0x7e00);
    for high in 0..=u16::MAX {
        let x = bf16_to_f32(high);
        if x.is_nan() {
            assert!(bf16_to_f32(f32_to_bf16(x)).is_nan());
            continue;
        }
        assert_eq!(f32_to_bf16(x), high);
        if x.is_finite() {
            let middle = f32::from_bits(u32::from(high) << 16 | 0x8000);
            assert_eq!(f32_to_bf16(middle), high + high % 2);
        }
    }
}

/// Every type, and half a step (for searched types: a whole one) of it as a part of the largest
/// weight in a block.
const STEPS: [(BlockType, f32); 15] = [
    (BlockType::F16, 1.0 / 2048.0),
    (BlockType::BF16, 1.0 / 256.0),
    (BlockType::Q8_0, 1.0 / 254.0),
    // The signed extremum leaves out the other end.
    (BlockType::Q4_0, 1.0 / 8.0),
    (BlockType::Q5_0, 1.0 / 16.0),
    (BlockType::Q4_1, 1.0 / 15.0),
    (BlockType::Q5_1, 1.0 / 31.0),
    (BlockType::Q2_K, 2.0 / 3.0),
    (BlockType::Q3_K, 1.0 / 3.0),
    (BlockType::Q4_K, 2.0 / 15.0),
    (BlockType::Q5_K, 2.0 / 31.0),
    (BlockType::Q6_K, 1.0 / 31.0),
    (BlockType::IQ4_NL, 24.0 / 113.0),
    (BlockType::IQ4_XS, 24.0 / 113.0),
    (BlockType::MXFP4, 1.0 / 3.0),
];

/// Types from here on are searched.
const SEARCHED: usize = 7;

fn there_and_back(ty: BlockType, x: &[f32], w: Option<&[f32]>) -> (Vec<u8>, Vec<f32>) {
    let mut bytes = vec![0xff; x.len() / ty.block_len() * ty.block_bytes()];
    match w {
        Some(w) => quantize_weighted(ty, x, w, &mut bytes),
        None => quantize(ty, x, &mut bytes),
    }
    let mut back = vec![1.0; x.len()];
    dequantize(ty, &bytes, &mut back);
    (bytes, back)
}

fn loss(x: &[f32], back: &[f32], w: &[f32]) -> f64 {
    let errors = x.iter().zip(back).zip(w);
    errors.map(|((x, b), w)| f64::from(*w) * f64::from(x - b).powi(2)).sum()
}

/// 256 weights like a trained row's: most small, a few large.
fn weights() -> impl Strategy<Value = Vec<f32>> {
    let one = (-1.0f32..1.0, 0u32..20).prop_map(
        |(x, large)| {
            if large == 0 { 4.0 * x } else { x * x * x }
        },
    );
    (proptest::collection::vec(one, 256), -8i32..4)
        .prop_map(|(x, e)| x.iter().map(|x| x * 2f32.powi(e)).collect())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn the_error_is_within_a_step(x in proptest::collection::vec(-100.0f32..100.0, 256)) {
        for (i, (ty, step)) in STEPS.into_iter().enumerate() {
            // A search makes the sum of the squares small: one weight may lose more than a step.
            let step = if i < SEARCHED { 1.001 * step } else { 1.5 * step };
            let (_, back) = there_and_back(ty, &x, None);
            let top = x.iter().fold(0.0f32, |t, x| t.max(x.abs()));
            for (x, back) in x.iter().zip(&back) {
                let most = top * (step + 0.001);
                prop_assert!((x - back).abs() <= most, "{ty:?}: {x} {back}");
            }
        }
    }

    /// Nothing that a file can hold makes NaN or infinity.
    #[test]
    fn the_result_is_finite(
        bits in proptest::collection::vec(any::<u32>(), 256),
        w in proptest::collection::vec(any::<u32>(), 256),
    ) {
        // Any size up to what a half can scale; weights are anything at all.
        let x: Vec<f32> = (bits.iter().map(|b| f32::from_bits(*b)))
            .map(|x| if x.abs() < 6e4 { x } else { 0.0 })
            .collect();
        let w: Vec<f32> = w.iter().map(|b| f32::from_bits(*b)).collect();
        for (ty, _) in STEPS.iter().skip(2) {
            for w in [None, Some(&w[..])] {
                let (_, back) = there_and_back(*ty, &x, w);
                prop_assert!(back.iter().all(|b| b.is_finite()), "{ty:?}");
            }
        }
    }

    /// A search under weights loses hardly more in any block, by these weights, than one without
    /// (and less on the whole: `tests/quantisers.rs`).
    #[test]
    fn weights_are_heeded(x in weights(), w in proptest::collection::vec(0.01f32..10.0, 256)) {
        for (ty, _) in STEPS.iter().skip(2) {
            let plain = loss(&x, &there_and_back(*ty, &x, None).1, &w);
            let heeded = loss(&x, &there_and_back(*ty, &x, Some(&w)).1, &w);
            prop_assert!(heeded <= plain * 1.5 + 1e-12, "{ty:?}: {heeded} {plain}");
        }
    }

    #[test]
    fn quantisation_aware_q4_0_survives(
        q in proptest::collection::vec(0i32..16, 32),
        scale in 1u16..0x7000,
        negative: bool,
        w in proptest::collection::vec(0.0f32..10.0, 32),
    ) {
        // The extremum of a trained block is its -8.
        let mut q = q;
        q[7] = 0;
        let d = f16_to_f32(scale | if negative { 0x8000 } else { 0 });
        let x: Vec<f32> = q.iter().map(|q| d * (q - 8) as f32).collect();
        for w in [None, Some(&w[..])] {
            let (bytes, back) = there_and_back(BlockType::Q4_0, &x, w);
            prop_assert_eq!(f16_to_f32(u16::from_le_bytes([bytes[0], bytes[1]])), d);
            prop_assert_eq!(&x[..], &back[..]);
        }
    }

    /// What a format can hold comes back as it was, or very nearly.
    #[test]
    fn blocks_survive(seed in any::<u64>()) {
        let mut state = seed | 1;
        let mut next = || {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            (state >> 24) as u8
        };
        for (ty, _) in STEPS.iter().skip(SEARCHED) {
            let mut block: Vec<u8> = (0..ty.block_bytes()).map(|_| next()).collect();
            for at in ty.scale_places() {
                block[*at..*at + 2].copy_from_slice(&0x1c00u16.to_le_bytes());
            }
            if *ty == BlockType::MXFP4 {
                block[0] = 120;
            }
            let mut x = vec![0.0; ty.block_len()];
            dequantize(*ty, &block, &mut x);
            let (_, back) = there_and_back(*ty, &x, None);
            let (lost, size) = (loss(&x, &back, &[1.0; 256]), loss(&x, &[0.0; 256], &[1.0; 256]));
            // Of two or three bits little can be told with certainty.
            let most = if matches!(ty, BlockType::Q2_K | BlockType::Q3_K) { 0.1 } else { 0.08 };
            prop_assert!((lost / size).sqrt() <= most, "{ty:?}: {}", (lost / size).sqrt());
        }
    }
}

#[test]
fn zeros_stay_zeros() {
    for (ty, _) in STEPS {
        for w in [None, Some(&[0.0; 256][..])] {
            let (_, back) = there_and_back(ty, &[0.0; 256], w);
            assert_eq!(back, [0.0; 256], "{ty:?}");
        }
    }
}
