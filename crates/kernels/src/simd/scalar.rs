//! The plain twin of the vector instruction sets.

use super::Simd;
use crate::blocks::f16_to_f32;

const L: usize = 16;

/// Sixteen lanes of plain Rust.
#[derive(Debug, Clone, Copy)]
pub struct Scalar;

#[inline(always)]
fn map(f: impl FnMut(usize) -> f32) -> [f32; L] {
    std::array::from_fn(f)
}

#[inline(always)]
fn words(a: &[u8; 64], f: impl Fn(u16) -> u16) -> [u8; 64] {
    let mut out = [0; 64];
    for i in 0..32 {
        let w = f(u16::from_le_bytes([a[2 * i], a[2 * i + 1]]));
        out[2 * i..2 * i + 2].copy_from_slice(&w.to_le_bytes());
    }
    out
}

impl Simd for Scalar {
    const LANES: usize = L;
    type F = [f32; L];
    type I = [i32; L];
    type W = [u8; 64];

    #[inline(always)]
    unsafe fn splat(x: f32) -> Self::F {
        [x; L]
    }
    #[inline(always)]
    unsafe fn load(p: *const f32) -> Self::F {
        // SAFETY: the caller vouches for sixteen values at `p`.
        unsafe { p.cast::<Self::F>().read_unaligned() }
    }
    #[inline(always)]
    unsafe fn store(p: *mut f32, x: Self::F) {
        // SAFETY: the caller vouches for sixteen places at `p`.
        unsafe { p.cast::<Self::F>().write_unaligned(x) }
    }
    #[inline(always)]
    unsafe fn load_f16(p: *const u16) -> Self::F {
        // SAFETY: the caller vouches for sixteen values at `p`.
        let v = unsafe { p.cast::<[u16; L]>().read_unaligned() };
        map(|i| f16_to_f32(v[i]))
    }
    #[inline(always)]
    unsafe fn load_u8(p: *const u8) -> Self::F {
        // SAFETY: the caller vouches for sixteen bytes at `p`.
        unsafe { p.cast::<[u8; L]>().read() }.map(f32::from)
    }
    #[inline(always)]
    unsafe fn load_i8(p: *const i8) -> Self::F {
        // SAFETY: the caller vouches for sixteen bytes at `p`.
        unsafe { p.cast::<[i8; L]>().read() }.map(f32::from)
    }
    #[inline(always)]
    unsafe fn add(a: Self::F, b: Self::F) -> Self::F {
        map(|i| a[i] + b[i])
    }
    #[inline(always)]
    unsafe fn sub(a: Self::F, b: Self::F) -> Self::F {
        map(|i| a[i] - b[i])
    }
    #[inline(always)]
    unsafe fn mul(a: Self::F, b: Self::F) -> Self::F {
        map(|i| a[i] * b[i])
    }
    #[inline(always)]
    unsafe fn div(a: Self::F, b: Self::F) -> Self::F {
        map(|i| a[i] / b[i])
    }
    #[inline(always)]
    unsafe fn fma(a: Self::F, b: Self::F, c: Self::F) -> Self::F {
        map(|i| a[i].mul_add(b[i], c[i]))
    }
    #[inline(always)]
    unsafe fn max(a: Self::F, b: Self::F) -> Self::F {
        map(|i| if a[i] > b[i] { a[i] } else { b[i] })
    }
    #[inline(always)]
    unsafe fn min(a: Self::F, b: Self::F) -> Self::F {
        map(|i| if a[i] < b[i] { a[i] } else { b[i] })
    }
    #[inline(always)]
    unsafe fn abs(a: Self::F) -> Self::F {
        a.map(f32::abs)
    }
    #[inline(always)]
    unsafe fn round(a: Self::F) -> Self::F {
        a.map(f32::round_ties_even)
    }
    #[inline(always)]
    unsafe fn select_lt(a: Self::F, b: Self::F, t: Self::F, f: Self::F) -> Self::F {
        map(|i| if a[i] < b[i] { t[i] } else { f[i] })
    }
    #[inline(always)]
    unsafe fn pow2(n: Self::F) -> Self::F {
        n.map(|n| f32::from_bits(((n as i32 + 127) as u32) << 23))
    }
    #[inline(always)]
    unsafe fn splat_i(x: i32) -> Self::I {
        [x; L]
    }
    #[inline(always)]
    unsafe fn load_i(p: *const i32) -> Self::I {
        // SAFETY: the caller vouches for sixteen values at `p`.
        unsafe { p.cast::<[i32; L]>().read_unaligned() }
    }
    #[inline(always)]
    unsafe fn to_f32(x: Self::I) -> Self::F {
        x.map(|x| x as f32)
    }
    #[inline(always)]
    unsafe fn store_i8(p: *mut i8, x: Self::F) {
        // SAFETY: the caller vouches for sixteen bytes at `p`.
        unsafe { p.cast::<[i8; L]>().write(x.map(|x| x as i8)) }
    }
    #[inline(always)]
    unsafe fn shl_i<const N: u32>(x: Self::I) -> Self::I {
        x.map(|x| x << N)
    }
    #[inline(always)]
    unsafe fn bf16_pair(w: Self::W) -> [Self::F; 2] {
        let half = |i: usize| f32::from_bits(u32::from(u16::from_le_bytes([w[i], w[i + 1]])) << 16);
        [map(|i| half(4 * i)), map(|i| half(4 * i + 2))]
    }
    #[inline(always)]
    unsafe fn load_w(p: *const u8) -> Self::W {
        // SAFETY: the caller vouches for 64 bytes at `p`.
        unsafe { p.cast::<[u8; 64]>().read() }
    }
    #[inline(always)]
    unsafe fn splat_w(x: u8) -> Self::W {
        [x; 64]
    }
    #[inline(always)]
    unsafe fn store_w(p: *mut u8, x: Self::W) {
        // SAFETY: the caller vouches for 64 bytes at `p`.
        unsafe { p.cast::<Self::W>().write_unaligned(x) }
    }
    #[inline(always)]
    unsafe fn sub_w(a: Self::W, b: Self::W) -> Self::W {
        std::array::from_fn(|i| a[i].wrapping_sub(b[i]))
    }
    #[inline(always)]
    unsafe fn and(a: Self::W, b: Self::W) -> Self::W {
        std::array::from_fn(|i| a[i] & b[i])
    }
    #[inline(always)]
    unsafe fn or(a: Self::W, b: Self::W) -> Self::W {
        std::array::from_fn(|i| a[i] | b[i])
    }
    #[inline(always)]
    unsafe fn shr(a: Self::W, n: i32) -> Self::W {
        words(&a, |w| w >> n)
    }
    #[inline(always)]
    unsafe fn shl(a: Self::W, n: i32) -> Self::W {
        words(&a, |w| w << n)
    }
    #[inline(always)]
    unsafe fn byte<const J: u32>(a: Self::W) -> Self::F {
        map(|i| f32::from(a[4 * i + J as usize]))
    }
    #[inline(always)]
    unsafe fn dot<const V: usize, const MAX: i32, const ALONE: bool>(
        init: Self::I,
        w: &[Self::W; 8],
        first: usize,
        x: *const i8,
    ) -> Self::I {
        let mut acc = init;
        for v in 0..V {
            // SAFETY: the caller vouches for 4 V bytes at `x`.
            let x = unsafe { x.add(4 * v).cast::<[i8; 4]>().read() };
            for (i, acc) in acc.iter_mut().enumerate() {
                for (j, &x) in x.iter().enumerate() {
                    let w = i32::from(w[first + v][4 * i + j]);
                    debug_assert!(w <= MAX);
                    *acc += w * i32::from(x);
                }
            }
        }
        acc
    }
}
