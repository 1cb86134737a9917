//! f32 to blocks, rounded as the formats' reference rounds (ggml's `quantize_row_*_ref`).

use super::{BlockType, f32_to_bf16, f32_to_f16};

/// Whether [`quantize`] writes this type.
pub fn can_quantize(ty: BlockType) -> bool {
    use BlockType::*;
    matches!(ty, F32 | F16 | BF16 | Q8_0 | Q4_0 | Q4_1 | Q5_0 | Q5_1)
}

/// Writes `src` as blocks of `ty`.
///
/// # Panics
/// If the lengths disagree or [`can_quantize`] says no.
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
        _ => panic!("{} is not written", ty.name()),
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

    const TYPES: [BlockType; 7] = [
        BlockType::F16,
        BlockType::BF16,
        BlockType::Q8_0,
        BlockType::Q4_0,
        BlockType::Q4_1,
        BlockType::Q5_0,
        BlockType::Q5_1,
    ];

    proptest! {
        #[test]
        fn the_error_is_within_a_step(x in proptest::collection::vec(-100.0f32..100.0, 32)) {
            let top = x.iter().fold(0.0f32, |t, x| t.max(x.abs()));
            for ty in TYPES {
                let mut bytes = vec![0; 32 / ty.block_len() * ty.block_bytes()];
                quantize(ty, &x, &mut bytes);
                let mut back = vec![0.0; 32];
                dequantize(ty, &bytes, &mut back);
                // Half a step, or a whole one at the end that the signed extremum leaves out; the
                // scale itself is rounded to 11 bits.
                let step = match ty {
                    BlockType::F16 => top / 2048.0,
                    BlockType::BF16 => top / 256.0,
                    BlockType::Q8_0 => top / 254.0,
                    BlockType::Q4_0 => top / 8.0,
                    BlockType::Q5_0 => top / 16.0,
                    BlockType::Q4_1 => top / 15.0,
                    _ => top / 31.0,
                };
                for (x, back) in x.iter().zip(&back) {
                    prop_assert!((x - back).abs() <= step * 1.001 + top / 1000.0, "{ty:?}: {x} {back}");
                }
            }
        }

        #[test]
        fn quantisation_aware_q4_0_survives(
            q in proptest::collection::vec(0i32..16, 32),
            scale in 1u16..0x7000,
            negative: bool,
        ) {
            // The extremum of a trained block is its -8.
            let mut q = q;
            q[7] = 0;
            let d = f16_to_f32(scale | if negative { 0x8000 } else { 0 });
            let x: Vec<f32> = q.iter().map(|q| d * (q - 8) as f32).collect();
            let mut bytes = [0; 18];
            quantize(BlockType::Q4_0, &x, &mut bytes);
            let mut back = [0.0; 32];
            dequantize(BlockType::Q4_0, &bytes, &mut back);
            prop_assert_eq!(half_at(&bytes, 0), d);
            prop_assert_eq!(&x[..], &back[..]);
        }
    }

    #[test]
    fn zeros_stay_zeros() {
        for ty in TYPES {
            let mut bytes = vec![0xff; 32 / ty.block_len() * ty.block_bytes()];
            quantize(ty, &[0.0; 32], &mut bytes);
            let mut back = [1.0; 32];
            dequantize(ty, &bytes, &mut back);
            assert_eq!(back, [0.0; 32], "{ty:?}");
        }
    }
}
