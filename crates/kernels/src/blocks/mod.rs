//! The block formats of weights: what GGUF files hold, in plain scalar code. It is the oracle of
//! the packed layouts, and what quantises.
//!
//! | type | weights | bytes | a weight is |
//! |---|---|---|---|
//! | F32, F16, BF16 | 1 | 4, 2, 2 | itself |
//! | Q8_0 | 32 | 34 | d q |
//! | Q4_0, Q5_0 | 32 | 18, 22 | d (q - 8), d (q - 16) |
//! | Q4_1, Q5_1 | 32 | 20, 24 | d q + m |
//! | Q2_K | 256 | 84 | d s q - dmin m, s and m of 4 bits for each 16 |
//! | Q3_K | 256 | 110 | d (s - 32) (q - 4), s of 6 bits for each 16 |
//! | Q4_K, Q5_K | 256 | 144, 176 | d s q - dmin m, s and m of 6 bits for each 32 |
//! | Q6_K | 256 | 210 | d s (q - 32), s of 8 bits for each 16 |
//! | IQ4_NL, IQ4_XS | 32, 256 | 18, 136 | d table\[q\]; d (s - 32) table\[q\] |
//! | MXFP4 | 32 | 17 | 2^(e - 127) times an E2M1 float |

mod dequantize;
mod half;
mod pack;
mod quantize;
mod search;

pub use dequantize::dequantize;
pub(crate) use dequantize::scale_min;
pub use half::{bf16_to_f32, f16_to_f32, f32_to_bf16, f32_to_f16};
pub use quantize::{quantize, quantize_weighted};

/// A type of weights.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[allow(missing_docs, non_camel_case_types)]
pub enum BlockType {
    F32,
    F16,
    BF16,
    Q8_0,
    Q4_0,
    Q4_1,
    Q5_0,
    Q5_1,
    Q2_K,
    Q3_K,
    Q4_K,
    Q5_K,
    Q6_K,
    IQ4_NL,
    IQ4_XS,
    MXFP4,
}

use BlockType::*;

impl BlockType {
    /// Every type.
    pub const ALL: [BlockType; 16] = [
        F32, F16, BF16, Q8_0, Q4_0, Q4_1, Q5_0, Q5_1, Q2_K, Q3_K, Q4_K, Q5_K, Q6_K, IQ4_NL, IQ4_XS,
        MXFP4,
    ];

    /// Weights in a block.
    pub fn block_len(self) -> usize {
        match self {
            F32 | F16 | BF16 => 1,
            Q8_0 | Q4_0 | Q4_1 | Q5_0 | Q5_1 | IQ4_NL | MXFP4 => 32,
            Q2_K | Q3_K | Q4_K | Q5_K | Q6_K | IQ4_XS => 256,
        }
    }

    /// Bytes of a block.
    pub fn block_bytes(self) -> usize {
        match self {
            F32 => 4,
            F16 | BF16 => 2,
            Q8_0 => 34,
            Q4_0 | IQ4_NL => 18,
            Q4_1 => 20,
            Q5_0 => 22,
            Q5_1 => 24,
            MXFP4 => 17,
            Q2_K => 84,
            Q3_K => 110,
            Q4_K => 144,
            Q5_K => 176,
            Q6_K => 210,
            IQ4_XS => 136,
        }
    }

    /// The name that the field uses.
    pub fn name(self) -> &'static str {
        match self {
            F32 => "F32",
            F16 => "F16",
            BF16 => "BF16",
            Q8_0 => "Q8_0",
            Q4_0 => "Q4_0",
            Q4_1 => "Q4_1",
            Q5_0 => "Q5_0",
            Q5_1 => "Q5_1",
            Q2_K => "Q2_K",
            Q3_K => "Q3_K",
            Q4_K => "Q4_K",
            Q5_K => "Q5_K",
            Q6_K => "Q6_K",
            IQ4_NL => "IQ4_NL",
            IQ4_XS => "IQ4_XS",
            MXFP4 => "MXFP4",
        }
    }

    /// Where the half-precision scales stand in a block.
    pub fn scale_places(self) -> &'static [usize] {
        match self {
            F32 | F16 | BF16 | MXFP4 => &[],
            Q8_0 | Q4_0 | Q5_0 | IQ4_NL | IQ4_XS => &[0],
            Q4_1 | Q5_1 | Q4_K | Q5_K => &[0, 2],
            Q2_K => &[80, 82],
            Q3_K => &[108],
            Q6_K => &[208],
        }
    }
}

/// The half at `at`.
pub(crate) fn half_at(bytes: &[u8], at: usize) -> f32 {
    f16_to_f32(u16::from_le_bytes([bytes[at], bytes[at + 1]]))
}

/// Looks for NaN and infinity: in the values of float types, in the scales of the others.
///
/// # Errors
/// The first block (float types: element) that has one.
pub fn check_finite(ty: BlockType, bytes: &[u8]) -> Result<(), usize> {
    let found = match ty {
        F32 => first_bad::<4>(bytes, |c| u32::from_le_bytes(*c) & 0x7f80_0000 == 0x7f80_0000),
        BF16 => first_bad::<2>(bytes, |c| u16::from_le_bytes(*c) & 0x7f80 == 0x7f80),
        F16 => first_bad::<2>(bytes, |c| c[1] & 0x7c == 0x7c),
        Q8_0 => first_bad::<34>(bytes, |c| c[1] & 0x7c == 0x7c),
        Q4_0 | IQ4_NL => first_bad::<18>(bytes, |c| c[1] & 0x7c == 0x7c),
        Q5_0 => first_bad::<22>(bytes, |c| c[1] & 0x7c == 0x7c),
        _ => (bytes.chunks_exact(ty.block_bytes()))
            .position(|block| ty.scale_places().iter().any(|at| block[at + 1] & 0x7c == 0x7c)),
    };
    found.map_or(Ok(()), Err)
}

/// The first block of `SIZE` bytes whose exponent has all bits set. A file hardly ever has one: all
/// are looked at without a branch, many at a time, before the search for the place.
fn first_bad<const SIZE: usize>(bytes: &[u8], bad: impl Fn(&[u8; SIZE]) -> bool) -> Option<usize> {
    let blocks = bytes.as_chunks::<SIZE>().0;
    let any = blocks.iter().fold(false, |any, block| any | bad(block));
    any.then(|| blocks.iter().position(bad)).flatten()
}
