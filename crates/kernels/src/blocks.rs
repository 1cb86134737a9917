//! temp, replaced by blocks/
#![allow(missing_docs, non_camel_case_types)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
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
    pub fn block_len(self) -> usize {
        match self {
            F32 | F16 | BF16 => 1,
            Q8_0 | Q4_0 | Q4_1 | Q5_0 | Q5_1 | IQ4_NL | MXFP4 => 32,
            _ => 256,
        }
    }
    pub fn block_bytes(self) -> usize {
        match self {
            F32 => 4,
            F16 | BF16 => 2,
            Q8_0 => 34,
            Q4_0 => 18,
            Q4_1 => 20,
            Q5_0 => 22,
            Q5_1 => 24,
            IQ4_NL => 18,
            MXFP4 => 17,
            Q2_K => 84,
            Q3_K => 110,
            Q4_K => 144,
            Q5_K => 176,
            Q6_K => 210,
            IQ4_XS => 136,
        }
    }
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
            IQ4_NL => "IQ4_NL",
            MXFP4 => "MXFP4",
            Q2_K => "Q2_K",
            Q3_K => "Q3_K",
            Q4_K => "Q4_K",
            Q5_K => "Q5_K",
            Q6_K => "Q6_K",
            IQ4_XS => "IQ4_XS",
        }
    }
}
pub fn bf16_to_f32(x: u16) -> f32 {
    f32::from_bits(u32::from(x) << 16)
}
pub fn f16_to_f32(h: u16) -> f32 {
    let (s, e, m) = (u32::from(h >> 15) << 31, u32::from(h >> 10 & 31), u32::from(h & 1023));
    match e {
        0 => {
            let v = m as f32 * 2f32.powi(-24);
            if s != 0 { -v } else { v }
        }
        31 => f32::from_bits(s | 0x7f80_0000 | m << 13),
        _ => f32::from_bits(s | (e + 112) << 23 | m << 13),
    }
}
pub fn f32_to_f16(x: f32) -> u16 {
    let b = x.to_bits();
    let s = (b >> 16 & 0x8000) as u16;
    let a = f32::from_bits(b & 0x7fff_ffff);
    if a.is_nan() {
        return s | 0x7e00;
    }
    if a >= 65520.0 {
        return s | 0x7c00;
    }
    if a < 2f32.powi(-14) {
        return s | ((a * 2f32.powi(24)).round_ties_even() as u16);
    }
    let u = a.to_bits();
    let r = u + 0xfff + (u >> 13 & 1);
    s | ((r >> 13) - (112 << 10)) as u16
}
pub fn check_finite(t: BlockType, b: &[u8]) -> Result<(), usize> {
    let h = |i: usize| f16_to_f32(u16::from_le_bytes([b[i], b[i + 1]])).is_finite();
    match t {
        F32 => b
            .chunks_exact(4)
            .position(|c| !f32::from_le_bytes(c.try_into().unwrap()).is_finite())
            .map_or(Ok(()), Err),
        BF16 => b
            .chunks_exact(2)
            .position(|c| c[1] & 0x7f == 0x7f && c[0] & 0x80 != 0)
            .map_or(Ok(()), Err),
        F16 => b.chunks_exact(2).position(|c| c[1] & 0x7c == 0x7c).map_or(Ok(()), Err),
        _ => {
            let offs: &[usize] = match t {
                Q4_1 | Q5_1 | Q4_K | Q5_K => &[0, 2],
                Q2_K => &[80, 82],
                Q3_K => &[108],
                Q6_K => &[208],
                MXFP4 => &[],
                _ => &[0],
            };
            (0..b.len() / t.block_bytes())
                .position(|i| offs.iter().any(|o| !h(i * t.block_bytes() + o)))
                .map_or(Ok(()), Err)
        }
    }
}
pub fn dequantize(t: BlockType, b: &[u8], o: &mut [f32]) {
    let h = |b: &[u8], i: usize| f16_to_f32(u16::from_le_bytes([b[i], b[i + 1]]));
    match t {
        F32 => {
            for (o, c) in o.iter_mut().zip(b.chunks_exact(4)) {
                *o = f32::from_le_bytes(c.try_into().unwrap())
            }
        }
        F16 => {
            for (o, c) in o.iter_mut().zip(b.chunks_exact(2)) {
                *o = h(c, 0)
            }
        }
        BF16 => {
            for (o, c) in o.iter_mut().zip(b.chunks_exact(2)) {
                *o = bf16_to_f32(u16::from_le_bytes([c[0], c[1]]))
            }
        }
        Q8_0 => {
            for (o, c) in o.chunks_exact_mut(32).zip(b.chunks_exact(34)) {
                for i in 0..32 {
                    o[i] = f32::from(c[2 + i] as i8) * h(c, 0)
                }
            }
        }
        Q4_0 => {
            for (o, c) in o.chunks_exact_mut(32).zip(b.chunks_exact(18)) {
                for i in 0..16 {
                    o[i] = (f32::from(c[2 + i] & 15) - 8.0) * h(c, 0);
                    o[i + 16] = (f32::from(c[2 + i] >> 4) - 8.0) * h(c, 0);
                }
            }
        }
        Q4_K | Q5_K => {
            for (o, c) in o.chunks_exact_mut(256).zip(b.chunks_exact(t.block_bytes())) {
                let (d, m) = (h(c, 0), h(c, 2));
                let qs = &c[c.len() - 128..];
                let s = &c[4..16];
                for j in 0..8 {
                    let (sc, mn) = if j < 4 {
                        (s[j] & 63, s[j + 4] & 63)
                    } else {
                        (
                            (s[j + 4] & 15) | ((s[j - 4] >> 6) << 4),
                            (s[j + 4] >> 4) | ((s[j] >> 6) << 4),
                        )
                    };
                    for l in 0..32 {
                        let mut q = qs[j / 2 * 32 + l] >> (4 * (j % 2)) & 15;
                        if t == Q5_K {
                            q |= (c[16 + l] >> j & 1) << 4
                        }
                        o[j * 32 + l] = d * f32::from(sc) * f32::from(q) - m * f32::from(mn);
                    }
                }
            }
        }
        Q6_K => {
            for (o, c) in o.chunks_exact_mut(256).zip(b.chunks_exact(210)) {
                let d = h(c, 208);
                for i in 0..256 {
                    let (n, r) = (i / 128, i % 128);
                    let (j, l) = (r / 32, r % 32);
                    let lo = c[n * 64 + (j % 2) * 32 + l] >> (4 * (j / 2)) & 15;
                    let hi = c[128 + n * 32 + l] >> (2 * j) & 3;
                    o[i] = d * f32::from(c[192 + i / 16] as i8) * (f32::from(lo | hi << 4) - 32.0);
                }
            }
        }
        _ => {
            for kb in 0..o.len() / 32 {
                let p = crate::integers::integers(t, b, kb);
                for i in 0..32 {
                    o[kb * 32 + i] = p.scale[i / 16] * f32::from(p.q[i]) + p.min[i / 16];
                }
            }
        }
    }
}
