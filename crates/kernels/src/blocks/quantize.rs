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
