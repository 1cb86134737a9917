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

#[cfg(test)]
mod tests {
    use super::*;

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
}
