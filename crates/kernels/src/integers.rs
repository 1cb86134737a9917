//! Block formats as plain integers: what [`crate::panel::Layout::Bytes`] stores.
//!
//! Every GGUF format is `scale * q + min` with a small integer q and one scale and minimum for each
//! 16 weights at the finest, so this form loses nothing. Layouts as in ggml's `ggml-common.h`.

use crate::blocks::{BlockType, f16_to_f32};

/// 32 weights of a row: weight i is `scale[i / 16] * q[i] + min[i / 16]`.
pub(crate) struct Integers {
    pub q: [i8; 32],
    pub scale: [f32; 2],
    pub min: [f32; 2],
}

/// No minimum: adding it changes no bit, not even the sign of a zero.
const NONE: f32 = -0.0;

/// The values that IQ4_NL and IQ4_XS index.
pub(crate) const IQ4: [i8; 16] =
    [-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113];
/// Twice the values of FP4 (E2M1).
pub(crate) const FP4: [i8; 16] = [0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12];

/// Weights `32 kb .. 32 kb + 32` of `row`, whose blocks are of type `ty`.
///
/// # Panics
/// For types with a layout of their own, and if the row is too short.
pub(crate) fn integers(ty: BlockType, row: &[u8], kb: usize) -> Integers {
    let block = |per: usize| {
        let size = ty.block_bytes();
        &row[kb / per * size..(kb / per + 1) * size]
    };
    match ty {
        BlockType::Q4_1 => {
            let b = block(1);
            plain(|i| nibble(&b[4..], i), half(b), half(&b[2..]))
        }
        BlockType::Q5_1 => {
            let b = block(1);
            plain(|i| nibble(&b[8..], i) | fifth(&b[4..], i), half(b), half(&b[2..]))
        }
        BlockType::IQ4_NL => {
            let b = block(1);
            plain(|i| IQ4[nibble(&b[2..], i) as usize], half(b), NONE)
        }
        BlockType::MXFP4 => {
            let b = block(1);
            plain(|i| FP4[nibble(&b[1..], i) as usize], half_power(b[0]), NONE)
        }
        BlockType::IQ4_XS => iq4_xs(block(8), kb % 8),
        BlockType::Q2_K => q2_k(block(8), kb % 8),
        BlockType::Q3_K => q3_k(block(8), kb % 8),
        _ => unreachable!("{} has a layout of its own", ty.name()),
    }
}

fn half(b: &[u8]) -> f32 {
    f16_to_f32(u16::from_le_bytes([b[0], b[1]]))
}

/// 2^(e - 128), the scale of doubled FP4 values under an E8M0 exponent.
pub(crate) fn half_power(e: u8) -> f32 {
    f32::from_bits(if e < 2 { 0x0020_0000 << e } else { u32::from(e - 1) << 23 })
}

/// Value i of 32 nibbles, the low ones first.
fn nibble(qs: &[u8], i: usize) -> i8 {
    (if i < 16 { qs[i] & 15 } else { qs[i - 16] >> 4 }) as i8
}

/// Bit i of four bytes, as a fifth bit.
fn fifth(qh: &[u8], i: usize) -> i8 {
    ((qh[i / 8] >> (i % 8) & 1) << 4) as i8
}

fn plain(q: impl Fn(usize) -> i8, scale: f32, min: f32) -> Integers {
    Integers { q: std::array::from_fn(q), scale: [scale; 2], min: [min; 2] }
}

fn iq4_xs(b: &[u8], ib: usize) -> Integers {
    let high = u16::from_le_bytes([b[2], b[3]]);
    let low = b[4 + ib / 2] >> (4 * (ib % 2)) & 15;
    let scale = i32::from(low) | i32::from(high >> (2 * ib) & 3) << 4;
    let qs = &b[8 + 16 * ib..];
    plain(|i| IQ4[nibble(qs, i) as usize], half(b) * (scale - 32) as f32, NONE)
}

/// Two bits of weight i of sub-block `j` of 32; both Q2_K and Q3_K pack 128 weights in 32 bytes.
fn crumb(qs: &[u8], j: usize, i: usize) -> i8 {
    (qs[j / 4 * 32 + i] >> (2 * (j % 4)) & 3) as i8
}

fn q2_k(b: &[u8], j: usize) -> Integers {
    let (scales, qs, d, dmin) = (&b[..16], &b[16..80], half(&b[80..]), half(&b[82..]));
    let two = [scales[2 * j], scales[2 * j + 1]];
    Integers {
        q: std::array::from_fn(|i| crumb(qs, j, i)),
        scale: two.map(|s| d * f32::from(s & 15)),
        min: two.map(|s| -(dmin * f32::from(s >> 4))),
    }
}

fn q3_k(b: &[u8], j: usize) -> Integers {
    let (mask, qs, scales, d) = (&b[..32], &b[32..96], &b[96..108], half(&b[108..]));
    let scale = |s: usize| {
        let low = if s < 8 { scales[s] & 15 } else { scales[s - 8] >> 4 };
        let high = scales[8 + s % 4] >> (2 * (s / 4)) & 3;
        d * f32::from((low | high << 4) as i8 - 32)
    };
    Integers {
        q: std::array::from_fn(|i| crumb(qs, j, i) - if mask[i] >> j & 1 == 1 { 0 } else { 4 }),
        scale: [scale(2 * j), scale(2 * j + 1)],
        min: [NONE; 2],
    }
}
