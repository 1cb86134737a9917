//! The element types that checkpoints store, and how many bytes a tensor of each takes.
//!
//! Layouts of the quantised types: ggml's `block_*` structures; a block is the smallest unit that
//! can be read on its own.

use std::fmt;

/// How the values of a tensor are stored. The names are the field's own.
#[allow(non_camel_case_types)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum DType {
    /// IEEE 754 binary32.
    F32,
    /// IEEE 754 binary16.
    F16,
    /// The upper half of a binary32.
    BF16,
    /// IEEE 754 binary64.
    F64,
    /// Eight-bit float, 4 bits of exponent (safetensors).
    F8_E4M3,
    /// Eight-bit float, 5 bits of exponent (safetensors).
    F8_E5M2,
    /// Signed byte.
    I8,
    /// Signed 16-bit integer.
    I16,
    /// Signed 32-bit integer.
    I32,
    /// Signed 64-bit integer.
    I64,
    /// Unsigned byte (safetensors).
    U8,
    /// Unsigned 16-bit integer (safetensors).
    U16,
    /// Unsigned 32-bit integer (safetensors).
    U32,
    /// Unsigned 64-bit integer (safetensors).
    U64,
    /// One byte, 0 or 1 (safetensors).
    Bool,
    /// 32 values: f16 scale, 32 signed bytes.
    Q8_0,
    /// 32 values: f16 scale, 4 bits each.
    Q4_0,
    /// 32 values: f16 scale, f16 minimum, 4 bits each.
    Q4_1,
    /// 32 values: f16 scale, 5 bits each.
    Q5_0,
    /// 32 values: f16 scale, f16 minimum, 5 bits each.
    Q5_1,
    /// 256 values in sub-blocks of 16, 2 bits each.
    Q2_K,
    /// 256 values in sub-blocks of 16, 3 bits each.
    Q3_K,
    /// 256 values in sub-blocks of 32, 4 bits each.
    Q4_K,
    /// 256 values in sub-blocks of 32, 5 bits each.
    Q5_K,
    /// 256 values in sub-blocks of 16, 6 bits each.
    Q6_K,
    /// 32 values: f16 scale, 4-bit indices into a table of 16 levels.
    IQ4_NL,
    /// 256 values in sub-blocks of 32, 4-bit indices into the same table.
    IQ4_XS,
    /// 32 values: power-of-two scale, 4-bit floats (OCP microscaling).
    MXFP4,
}

impl DType {
    /// Every type that this crate reads.
    pub const ALL: [DType; 28] = [
        DType::F32,
        DType::F16,
        DType::BF16,
        DType::F64,
        DType::F8_E4M3,
        DType::F8_E5M2,
        DType::I8,
        DType::I16,
        DType::I32,
        DType::I64,
        DType::U8,
        DType::U16,
        DType::U32,
        DType::U64,
        DType::Bool,
        DType::Q8_0,
        DType::Q4_0,
        DType::Q4_1,
        DType::Q5_0,
        DType::Q5_1,
        DType::Q2_K,
        DType::Q3_K,
        DType::Q4_K,
        DType::Q5_K,
        DType::Q6_K,
        DType::IQ4_NL,
        DType::IQ4_XS,
        DType::MXFP4,
    ];

    /// Name, values in a block, bytes of a block, ggml's number where ggml has the type.
    const fn row(self) -> (&'static str, usize, usize, Option<u32>) {
        match self {
            DType::F32 => ("F32", 1, 4, Some(0)),
            DType::F16 => ("F16", 1, 2, Some(1)),
            DType::BF16 => ("BF16", 1, 2, Some(30)),
            DType::F64 => ("F64", 1, 8, Some(28)),
            DType::F8_E4M3 => ("F8_E4M3", 1, 1, None),
            DType::F8_E5M2 => ("F8_E5M2", 1, 1, None),
            DType::I8 => ("I8", 1, 1, Some(24)),
            DType::I16 => ("I16", 1, 2, Some(25)),
            DType::I32 => ("I32", 1, 4, Some(26)),
            DType::I64 => ("I64", 1, 8, Some(27)),
            DType::U8 => ("U8", 1, 1, None),
            DType::U16 => ("U16", 1, 2, None),
            DType::U32 => ("U32", 1, 4, None),
            DType::U64 => ("U64", 1, 8, None),
            DType::Bool => ("BOOL", 1, 1, None),
            DType::Q8_0 => ("Q8_0", 32, 34, Some(8)),
            DType::Q4_0 => ("Q4_0", 32, 18, Some(2)),
            DType::Q4_1 => ("Q4_1", 32, 20, Some(3)),
            DType::Q5_0 => ("Q5_0", 32, 22, Some(6)),
            DType::Q5_1 => ("Q5_1", 32, 24, Some(7)),
            DType::Q2_K => ("Q2_K", 256, 84, Some(10)),
            DType::Q3_K => ("Q3_K", 256, 110, Some(11)),
            DType::Q4_K => ("Q4_K", 256, 144, Some(12)),
            DType::Q5_K => ("Q5_K", 256, 176, Some(13)),
            DType::Q6_K => ("Q6_K", 256, 210, Some(14)),
            DType::IQ4_NL => ("IQ4_NL", 32, 18, Some(20)),
            DType::IQ4_XS => ("IQ4_XS", 256, 136, Some(23)),
            DType::MXFP4 => ("MXFP4", 32, 17, Some(39)),
        }
    }

    /// The name as checkpoints and their tools write it: `F32`, `BF16`, `Q4_K`.
    pub const fn name(self) -> &'static str {
        self.row().0
    }

    /// Values in one block; 1 for types that are not quantised.
    pub const fn block_len(self) -> usize {
        self.row().1
    }

    /// Bytes of one block.
    pub const fn block_bytes(self) -> usize {
        self.row().2
    }

    /// Whether values share a scale, so that only whole blocks can be read.
    pub const fn is_quantised(self) -> bool {
        self.block_len() > 1
    }

    /// ggml's number for the type, as a GGUF file has it.
    pub const fn ggml_id(self) -> Option<u32> {
        self.row().3
    }

    /// The type with this ggml number, if it can be read.
    pub fn from_ggml_id(id: u32) -> Option<DType> {
        DType::ALL.into_iter().find(|d| d.ggml_id() == Some(id))
    }

    /// The type of this name in a safetensors header, which knows no quantised types.
    pub fn from_safetensors(name: &str) -> Option<DType> {
        DType::ALL.into_iter().find(|d| !d.is_quantised() && d.name() == name)
    }

    /// The type of this name, in any case.
    pub fn from_name(name: &str) -> Option<DType> {
        DType::ALL.into_iter().find(|d| d.name().eq_ignore_ascii_case(name))
    }

    /// Bytes of a tensor of this shape (outermost first; the last dimension is contiguous).
    ///
    /// The error is the problem in words: a row that is not whole blocks, or a size beyond `usize`.
    pub fn bytes_for(self, shape: &[usize]) -> Result<usize, String> {
        let (name, block, bytes, _) = self.row();
        let row = shape.last().copied().unwrap_or(1);
        if !row.is_multiple_of(block) {
            return Err(format!("rows of {row} values are not whole {name} blocks of {block}"));
        }
        // A dimension of 0 makes the product 0 only if nothing before it overflowed, so a shape
        // such as [2^63, 2^63, 0] is refused rather than taken for an empty tensor.
        let too_large = || format!("shape {shape:?} of {name} is too large for this machine");
        let count = shape.iter().try_fold(1usize, |n, d| n.checked_mul(*d));
        count.and_then(|n| (n / block).checked_mul(bytes)).ok_or_else(too_large)
    }
}

impl fmt::Display for DType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// ggml's name for a type number, also of the types that are not read here; for messages.
pub fn ggml_type_name(id: u32) -> &'static str {
    match id {
        4 => "Q4_2",
        5 => "Q4_3",
        9 => "Q8_1",
        15 => "Q8_K",
        16 => "IQ2_XXS",
        17 => "IQ2_XS",
        18 => "IQ3_XXS",
        19 => "IQ1_S",
        21 => "IQ3_S",
        22 => "IQ2_S",
        29 => "IQ1_M",
        31 => "Q4_0_4_4",
        32 => "Q4_0_4_8",
        33 => "Q4_0_8_8",
        34 => "TQ1_0",
        35 => "TQ2_0",
        36 => "IQ4_NL_4_4",
        37 => "IQ4_NL_4_8",
        38 => "IQ4_NL_8_8",
        40 => "NVFP4",
        41 => "Q1_0",
        _ => DType::from_ggml_id(id).map_or("unknown", DType::name),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_ids_go_both_ways() {
        for d in DType::ALL {
            assert_eq!(DType::from_name(&d.name().to_lowercase()), Some(d));
            if let Some(id) = d.ggml_id() {
                assert_eq!(DType::from_ggml_id(id), Some(d), "{d}");
                assert_eq!(ggml_type_name(id), d.name());
            }
            assert_eq!(DType::from_safetensors(d.name()).is_some(), !d.is_quantised(), "{d}");
        }
        assert_eq!(DType::from_ggml_id(16), None);
        assert_eq!(ggml_type_name(16), "IQ2_XXS");
        assert_eq!(ggml_type_name(4_000_000_000), "unknown");
    }

    /// Sizes as `gguf.constants.GGML_QUANT_SIZES` of the Python package `gguf` 0.8 has them:
    /// (ggml id, values, bytes).
    #[test]
    fn block_sizes_are_those_of_the_gguf_package() {
        let sizes = [
            (0, 1, 4),
            (1, 1, 2),
            (2, 32, 18),
            (3, 32, 20),
            (6, 32, 22),
            (7, 32, 24),
            (8, 32, 34),
            (10, 256, 84),
            (11, 256, 110),
            (12, 256, 144),
            (13, 256, 176),
            (14, 256, 210),
            (20, 32, 18),
            (23, 256, 136),
            (24, 1, 1),
            (25, 1, 2),
            (26, 1, 4),
            (27, 1, 8),
            (28, 1, 8),
            (30, 1, 2),
            (39, 32, 17),
        ];
        for (id, len, bytes) in sizes {
            let d = DType::from_ggml_id(id).unwrap();
            assert_eq!((d.block_len(), d.block_bytes()), (len, bytes), "{d}");
        }
        assert_eq!(DType::ALL.iter().filter(|d| d.ggml_id().is_some()).count(), sizes.len());
    }

    #[test]
    fn bytes_are_checked() {
        assert_eq!(DType::F32.bytes_for(&[]), Ok(4));
        assert_eq!(DType::BF16.bytes_for(&[3, 5]), Ok(30));
        assert_eq!(DType::Q8_0.bytes_for(&[2, 64]), Ok(2 * 2 * 34));
        assert_eq!(DType::Q6_K.bytes_for(&[0, 256]), Ok(0));
        assert_eq!(DType::U8.bytes_for(&[usize::MAX]), Ok(usize::MAX));
        assert!(DType::Q8_0.bytes_for(&[64, 33]).unwrap_err().contains("blocks of 32"));
        assert!(DType::Q8_0.bytes_for(&[]).is_err());
        for shape in [&[1 << 62, 4][..], &[1 << 62, 2], &[1 << 63, 1 << 63, 0]] {
            assert!(DType::F32.bytes_for(shape).unwrap_err().contains("too large"), "{shape:?}");
        }
    }
}
