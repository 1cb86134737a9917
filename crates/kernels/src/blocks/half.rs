//! 16-bit floats, converted with one rounding to nearest even.

/// bfloat16 to f32, exact.
#[inline]
pub fn bf16_to_f32(bits: u16) -> f32 {
    f32::from_bits(u32::from(bits) << 16)
}

/// f32 to bfloat16.
#[inline]
pub fn f32_to_bf16(x: f32) -> u16 {
    let bits = x.to_bits();
    if x.is_nan() {
        // Quiet, whatever the rounding would do to it.
        return (bits >> 16) as u16 | 0x40;
    }
    ((bits + 0x7fff + (bits >> 16 & 1)) >> 16) as u16
}

/// IEEE half to f32, exact.
#[inline]
pub fn f16_to_f32(bits: u16) -> f32 {
    let sign = u32::from(bits >> 15) << 31;
    let (exponent, fraction) = (u32::from(bits >> 10 & 31), u32::from(bits & 1023));
    match exponent {
        // Subnormal: the fraction counts units of 2^-24.
        0 => f32::from_bits(sign | (fraction as f32 * f32::from_bits(0x3380_0000)).to_bits()),
        31 => f32::from_bits(sign | 0x7f80_0000 | fraction << 13),
        _ => f32::from_bits(sign | (exponent + 112) << 23 | fraction << 13),
    }
}

/// f32 to IEEE half; beyond 65504 (rounded) infinity.
#[inline]
pub fn f32_to_f16(x: f32) -> u16 {
    let bits = x.to_bits();
    let sign = (bits >> 16 & 0x8000) as u16;
    let size = bits & 0x7fff_ffff;
    if size > 0x7f80_0000 {
        return sign | 0x7e00 | (bits >> 13 & 0x1ff) as u16;
    }
    // 65520 rounds to the first value that is too large.
    if size >= 0x477f_f000 {
        return sign | 0x7c00;
    }
    // Below 2^-14 the result counts units of 2^-24.
    if size < 0x3880_0000 {
        let units = f32::from_bits(size) * f32::from_bits(0x4b80_0000);
        return sign | units.round_ties_even() as u16;
    }
    sign | ((size - 0x3800_0000 + 0xfff + (size >> 13 & 1)) >> 13) as u16
}
