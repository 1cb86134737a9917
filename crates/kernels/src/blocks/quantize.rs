//! f32 to blocks. Plain formats are rounded as the formats' reference rounds (ggml's
//! `quantize_row_*_ref`); the others, and all of them under weights, have their scales searched
//! (`search.rs`).

use super::{BlockType, f32_to_bf16, f32_to_f16, pack};

/// Writes `src` as blocks of `ty`.
///
/// # Panics
/// If the lengths disagree.
pub fn quantize(ty: BlockType, src: &[f32], out: &mut [u8]) {
    assert!(
        src.len().is_multiple_of(ty.block_len())
            && out.len() == src.len() / ty.block_len() * ty.block_bytes(),
        "{} bytes for {} weights of {}",
        out.len(),
        src.len(),
        ty.name()
    );
    let blocks = src.chunks_exact(ty.block_len()).zip(out.chunks_exact_mut(ty.block_bytes()));
    match ty {
        BlockType::F32 => blocks.for_each(|(x, b)| b.copy_from_slice(&x[0].to_le_bytes())),
        BlockType::F16 => {
            blocks.for_each(|(x, b)| b.copy_from_slice(&f32_to_f16(x[0]).to_le_bytes()))
        }
        BlockType::BF16 => {
            blocks.for_each(|(x, b)| b.copy_from_slice(&f32_to_bf16(x[0]).to_le_bytes()))
        }
        BlockType::Q8_0 => blocks.for_each(|(x, b)| q8_0(x, b)),
        BlockType::Q4_0 => blocks.for_each(|(x, b)| symmetric::<8>(x, b)),
        BlockType::Q5_0 => blocks.for_each(|(x, b)| symmetric::<16>(x, b)),
        BlockType::Q4_1 => blocks.for_each(|(x, b)| with_minimum::<15>(x, b)),
        BlockType::Q5_1 => blocks.for_each(|(x, b)| with_minimum::<31>(x, b)),
        _ => {
            let even = [1.0; 256];
            blocks.for_each(|(x, b)| pack::block(ty, x, &even[..x.len()], b));
        }
    }
}

/// Writes rows of `weights.len()` as blocks of `ty` so that the sum of the squared errors, each
/// times its column's weight, is small. Weights are the mean squares of a projection's inputs; what
/// is no positive number counts as little as may be.
///
/// # Panics
/// If the lengths disagree.
pub fn quantize_weighted(ty: BlockType, src: &[f32], weights: &[f32], out: &mut [u8]) {
    if matches!(ty, BlockType::F32 | BlockType::F16 | BlockType::BF16 | BlockType::Q8_0) {
        return quantize(ty, src, out);
    }
    let (k, len) = (weights.len(), ty.block_len());
    assert!(
        k > 0
            && k.is_multiple_of(len)
            && src.len().is_multiple_of(k)
            && out.len() == src.len() / len * ty.block_bytes(),
        "{} bytes for {} weights of {} in rows of {k}",
        out.len(),
        src.len(),
        ty.name()
    );
    let usable = |w: f32| if w.is_finite() { w.max(0.0) } else { 0.0 };
    let mean = weights.iter().map(|w| f64::from(usable(*w))).sum::<f64>() / k as f64;
    // Columns that the text never used keep a little weight: another text may use them.
    let even = |w: f32| {
        if mean > 0.0 { (f64::from(usable(w)) / mean).clamp(1e-3, 1e6) as f32 } else { 1.0 }
    };
    let weights: Vec<f32> = weights.iter().map(|w| even(*w)).collect();
    let row_bytes = k / len * ty.block_bytes();
    for (row, out) in src.chunks_exact(k).zip(out.chunks_exact_mut(row_bytes)) {
        let parts = row.chunks_exact(len).zip(weights.chunks_exact(len));
        for ((x, w), out) in parts.zip(out.chunks_exact_mut(ty.block_bytes())) {
            pack::block(ty, x, w, out);
        }
    }
}

fn put_half(out: &mut [u8], x: f32) {
    out[..2].copy_from_slice(&f32_to_f16(x).to_le_bytes());
}

fn inverse(d: f32) -> f32 {
    if d == 0.0 { 0.0 } else { 1.0 / d }
}

fn q8_0(x: &[f32], out: &mut [u8]) {
    let top = x.iter().fold(0.0f32, |t, x| t.max(x.abs()));
    let d = top / 127.0;
    let id = inverse(d);
    put_half(out, d);
    for (q, x) in out[2..].iter_mut().zip(x) {
        // Half away from zero, as C's `roundf`.
        *q = (x * id).round().clamp(-127.0, 127.0) as i8 as u8;
    }
}

/// Q4_0 (`ZERO` 8) and Q5_0 (16): the extremum, with its sign, becomes -`ZERO` exactly.
fn symmetric<const ZERO: i32>(x: &[f32], out: &mut [u8]) {
    let extremum = x.iter().fold(0.0f32, |e, x| if x.abs() > e.abs() { *x } else { e });
    let d = extremum / -(ZERO as f32);
    let id = inverse(d);
    put_half(out, d);
    let most = (2 * ZERO - 1) as f32;
    let q = |x: f32| (x * id + (ZERO as f32 + 0.5)).clamp(0.0, most) as u8;
    pack(&mut out[2..], x, q, ZERO == 16);
}

/// Q4_1 (`MOST` 15) and Q5_1 (31).
fn with_minimum<const MOST: i32>(x: &[f32], out: &mut [u8]) {
    let (low, high) = x.iter().fold((f32::MAX, f32::MIN), |(l, h), x| (l.min(*x), h.max(*x)));
    let d = (high - low) / MOST as f32;
    let id = inverse(d);
    put_half(out, d);
    put_half(&mut out[2..], low);
    let q = |x: f32| ((x - low) * id + 0.5).clamp(0.0, MOST as f32) as u8;
    pack(&mut out[4..], x, q, MOST == 31);
}

/// 32 integers: the fifth bits, if there are any, then the nibbles, 16 low ones and 16 high ones.
fn pack(out: &mut [u8], x: &[f32], q: impl Fn(f32) -> u8, fifth: bool) {
    let nibbles = if fifth {
        let bits =
            (x.iter().enumerate()).fold(0u32, |b, (i, x)| b | u32::from(q(*x) >> 4 & 1) << i);
        out[..4].copy_from_slice(&bits.to_le_bytes());
        &mut out[4..]
    } else {
        out
    };
    for (i, byte) in nibbles.iter_mut().enumerate() {
        *byte = (q(x[i]) & 15) | (q(x[i + 16]) & 15) << 4;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::blocks::{dequantize, f16_to_f32, half_at};
    use proptest::prelude::*;

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
            for (ty, step) in STEPS {
                let (_, back) = there_and_back(ty, &x, None);
                let top = x.iter().fold(0.0f32, |t, x| t.max(x.abs()));
                for (x, back) in x.iter().zip(&back) {
                    let most = top * (step * 1.001 + 0.001);
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
                prop_assert_eq!(half_at(&bytes, 0), d);
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
            for (ty, _) in STEPS.iter().skip(7) {
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
                let most = if matches!(ty, BlockType::Q2_K | BlockType::Q3_K) { 0.1 } else { 0.04 };
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
}
