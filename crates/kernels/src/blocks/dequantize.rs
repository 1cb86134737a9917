//! Blocks to f32, each product and sum rounded in the order of the format's reference (ggml's
//! `ggml-quants.c` and the `gguf` Python package), so that the bits agree.

use super::{BlockType, bf16_to_f32, f16_to_f32, half_at};
use crate::integers::{Integers, integers};

/// The weights of whole blocks.
///
/// # Panics
/// If `bytes` are not exactly the blocks of `out.len()` weights.
pub fn dequantize(ty: BlockType, bytes: &[u8], out: &mut [f32]) {
    assert!(
        out.len().is_multiple_of(ty.block_len())
            && bytes.len() == out.len() / ty.block_len() * ty.block_bytes(),
        "{} bytes for {} weights of {}",
        bytes.len(),
        out.len(),
        ty.name()
    );
    let blocks = bytes.chunks_exact(ty.block_bytes()).zip(out.chunks_exact_mut(ty.block_len()));
    match ty {
        BlockType::F32 => {
            blocks.for_each(|(b, o)| o[0] = f32::from_le_bytes([b[0], b[1], b[2], b[3]]))
        }
        BlockType::F16 => {
            blocks.for_each(|(b, o)| o[0] = f16_to_f32(u16::from_le_bytes([b[0], b[1]])))
        }
        BlockType::BF16 => {
            blocks.for_each(|(b, o)| o[0] = bf16_to_f32(u16::from_le_bytes([b[0], b[1]])))
        }
        BlockType::Q8_0 => blocks.for_each(|(b, o)| {
            let d = half_at(b, 0);
            o.iter_mut().zip(&b[2..]).for_each(|(o, q)| *o = f32::from(*q as i8) * d);
        }),
        BlockType::Q4_0 => blocks.for_each(|(b, o)| {
            let d = half_at(b, 0);
            for (i, q) in b[2..].iter().enumerate() {
                o[i] = (f32::from(q & 15) - 8.0) * d;
                o[i + 16] = (f32::from(q >> 4) - 8.0) * d;
            }
        }),
        BlockType::Q5_0 => blocks.for_each(|(b, o)| {
            let d = half_at(b, 0);
            let fifth = u32::from_le_bytes([b[2], b[3], b[4], b[5]]);
            for (i, o) in o.iter_mut().enumerate() {
                let low = if i < 16 { b[6 + i] & 15 } else { b[6 + i - 16] >> 4 };
                *o = (f32::from(low | ((fifth >> i & 1) as u8) << 4) - 16.0) * d;
            }
        }),
        BlockType::Q4_K | BlockType::Q5_K => blocks.for_each(|(b, o)| q45_k(b, o)),
        BlockType::Q6_K => blocks.for_each(|(b, o)| q6_k(b, o)),
        _ => {
            for (kb, out) in out.chunks_exact_mut(32).enumerate() {
                let Integers { q, scale, min } = integers(ty, bytes, kb);
                for (i, out) in out.iter_mut().enumerate() {
                    *out = f32::from(q[i]) * scale[i / 16] + min[i / 16];
                }
            }
        }
    }
}

/// Scale and minimum, of 6 bits each, of sub-block `j` of a Q4_K or Q5_K block.
pub(crate) fn scale_min(j: usize, s: &[u8]) -> (u8, u8) {
    if j < 4 {
        (s[j] & 63, s[j + 4] & 63)
    } else {
        ((s[j + 4] & 15) | (s[j - 4] >> 6 << 4), (s[j + 4] >> 4) | (s[j] >> 6 << 4))
    }
}

fn q45_k(b: &[u8], out: &mut [f32]) {
    let (d, dmin) = (half_at(b, 0), half_at(b, 2));
    let (fifth, nibbles) = b[16..].split_at(b.len() - 144);
    for (j, out) in out.chunks_exact_mut(32).enumerate() {
        let (scale, min) = scale_min(j, &b[4..16]);
        let (d, min) = (d * f32::from(scale), dmin * f32::from(min));
        for (l, out) in out.iter_mut().enumerate() {
            let low = nibbles[j / 2 * 32 + l] >> (4 * (j % 2)) & 15;
            let high = fifth.get(l).map_or(0, |f| (f >> j & 1) << 4);
            *out = d * f32::from(low | high) - min;
        }
    }
}

fn q6_k(b: &[u8], out: &mut [f32]) {
    let d = half_at(b, 208);
    for (i, out) in out.iter_mut().enumerate() {
        // Halves of 128; in each, four runs of 32 share 64 bytes of nibbles and 32 of upper bits.
        let (half, run, l) = (i / 128, i % 128 / 32, i % 32);
        let low = b[64 * half + 32 * (run % 2) + l] >> (4 * (run / 2)) & 15;
        let high = b[128 + 32 * half + l] >> (2 * run) & 3;
        let scale = d * f32::from(b[192 + i / 16] as i8);
        *out = scale * (f32::from(low | high << 4) - 32.0);
    }
}
