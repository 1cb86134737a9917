//! AVX-512 with VNNI: sixteen lanes.

use super::{Kernel, Simd};
use std::arch::x86_64::*;

/// Compiles `kernel` with the features of this set.
///
/// # Safety
/// The processor must have them.
#[target_feature(enable = "avx2,fma,f16c,bmi2,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
pub(super) unsafe fn run<K: Kernel>(kernel: K) -> K::Output {
    // SAFETY: the caller has checked the features; the pointers are the kernel's own contract.
    unsafe { kernel.run::<Avx512>() }
}

#[derive(Clone, Copy)]
pub(super) struct Avx512;

const NEAREST: i32 = _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC;

// SAFETY (all the blocks below): the trait's contract gives the processor features and valid
// pointers; every load and store used here is the unaligned form.
#[allow(clippy::undocumented_unsafe_blocks)]
impl Simd for Avx512 {
    const LANES: usize = 16;
    type F = __m512;
    type I = __m512i;
    type W = __m512i;

    #[inline(always)]
    unsafe fn splat(x: f32) -> Self::F {
        unsafe { _mm512_set1_ps(x) }
    }
    #[inline(always)]
    unsafe fn load(p: *const f32) -> Self::F {
        unsafe { _mm512_loadu_ps(p) }
    }
    #[inline(always)]
    unsafe fn store(p: *mut f32, x: Self::F) {
        unsafe { _mm512_storeu_ps(p, x) }
    }
    #[inline(always)]
    unsafe fn load_bf16(p: *const u16) -> Self::F {
        unsafe {
            let v = _mm512_cvtepu16_epi32(_mm256_loadu_si256(p.cast()));
            _mm512_castsi512_ps(_mm512_slli_epi32::<16>(v))
        }
    }
    #[inline(always)]
    unsafe fn load_f16(p: *const u16) -> Self::F {
        unsafe { _mm512_cvtph_ps(_mm256_loadu_si256(p.cast())) }
    }
    #[inline(always)]
    unsafe fn load_u8(p: *const u8) -> Self::F {
        unsafe { _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(_mm_loadu_si128(p.cast()))) }
    }
    #[inline(always)]
    unsafe fn load_i8(p: *const i8) -> Self::F {
        unsafe { _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(p.cast()))) }
    }
    #[inline(always)]
    unsafe fn add(a: Self::F, b: Self::F) -> Self::F {
        unsafe { _mm512_add_ps(a, b) }
    }
    #[inline(always)]
    unsafe fn sub(a: Self::F, b: Self::F) -> Self::F {
        unsafe { _mm512_sub_ps(a, b) }
    }
    #[inline(always)]
    unsafe fn mul(a: Self::F, b: Self::F) -> Self::F {
        unsafe { _mm512_mul_ps(a, b) }
    }
    #[inline(always)]
    unsafe fn div(a: Self::F, b: Self::F) -> Self::F {
        unsafe { _mm512_div_ps(a, b) }
    }
    #[inline(always)]
    unsafe fn fma(a: Self::F, b: Self::F, c: Self::F) -> Self::F {
        unsafe { _mm512_fmadd_ps(a, b, c) }
    }
    #[inline(always)]
    unsafe fn max(a: Self::F, b: Self::F) -> Self::F {
        unsafe { _mm512_max_ps(a, b) }
    }
    #[inline(always)]
    unsafe fn min(a: Self::F, b: Self::F) -> Self::F {
        unsafe { _mm512_min_ps(a, b) }
    }
    #[inline(always)]
    unsafe fn abs(a: Self::F) -> Self::F {
        unsafe { _mm512_abs_ps(a) }
    }
    #[inline(always)]
    unsafe fn round(a: Self::F) -> Self::F {
        unsafe { _mm512_roundscale_ps::<NEAREST>(a) }
    }
    #[inline(always)]
    unsafe fn select_lt(a: Self::F, b: Self::F, t: Self::F, f: Self::F) -> Self::F {
        unsafe { _mm512_mask_blend_ps(_mm512_cmp_ps_mask::<_CMP_LT_OQ>(a, b), f, t) }
    }
    #[inline(always)]
    unsafe fn pow2(n: Self::F) -> Self::F {
        unsafe {
            let i = _mm512_add_epi32(_mm512_cvtps_epi32(n), _mm512_set1_epi32(127));
            _mm512_castsi512_ps(_mm512_slli_epi32::<23>(i))
        }
    }
    #[inline(always)]
    unsafe fn transpose(rows: &[*const f32], at: usize, out: *mut f32, stride: usize) {
        unsafe {
            let zero = _mm512_setzero_ps();
            // Pairs, then fours of rows: `u[4 g + j]` has column 4 l + j of rows 4 g .. in lane l.
            let (mut t, mut u) = ([zero; 16], [zero; 16]);
            for i in 0..8 {
                let a = _mm512_loadu_ps(rows[2 * i].add(at));
                let b = _mm512_loadu_ps(rows[2 * i + 1].add(at));
                t[2 * i] = _mm512_unpacklo_ps(a, b);
                t[2 * i + 1] = _mm512_unpackhi_ps(a, b);
            }
            for i in 0..8 {
                let (a, b) = (t[i / 2 * 4 + i % 2], t[i / 2 * 4 + i % 2 + 2]);
                let (a, b) = (_mm512_castps_pd(a), _mm512_castps_pd(b));
                u[2 * i] = _mm512_castpd_ps(_mm512_unpacklo_pd(a, b));
                u[2 * i + 1] = _mm512_castpd_ps(_mm512_unpackhi_pd(a, b));
            }
            for j in 0..4 {
                let a = _mm512_shuffle_f32x4::<0x88>(u[j], u[4 + j]);
                let b = _mm512_shuffle_f32x4::<0x88>(u[8 + j], u[12 + j]);
                let c = _mm512_shuffle_f32x4::<0xdd>(u[j], u[4 + j]);
                let d = _mm512_shuffle_f32x4::<0xdd>(u[8 + j], u[12 + j]);
                t[j] = _mm512_shuffle_f32x4::<0x88>(a, b);
                t[4 + j] = _mm512_shuffle_f32x4::<0x88>(c, d);
                t[8 + j] = _mm512_shuffle_f32x4::<0xdd>(a, b);
                t[12 + j] = _mm512_shuffle_f32x4::<0xdd>(c, d);
            }
            for (p, t) in t.into_iter().enumerate() {
                _mm512_storeu_ps(out.add(p * stride), t);
            }
        }
    }
    #[inline(always)]
    unsafe fn splat_i(x: i32) -> Self::I {
        unsafe { _mm512_set1_epi32(x) }
    }
    #[inline(always)]
    unsafe fn to_f32(x: Self::I) -> Self::F {
        unsafe { _mm512_cvtepi32_ps(x) }
    }
    #[inline(always)]
    unsafe fn store_i8(p: *mut i8, x: Self::F) {
        unsafe { _mm_storeu_si128(p.cast(), _mm512_cvtepi32_epi8(_mm512_cvtps_epi32(x))) }
    }
    #[inline(always)]
    unsafe fn load_w(p: *const u8) -> Self::W {
        unsafe { _mm512_loadu_si512(p.cast()) }
    }
    #[inline(always)]
    unsafe fn splat_w(x: u8) -> Self::W {
        unsafe { _mm512_set1_epi8(x as i8) }
    }
    #[inline(always)]
    unsafe fn and(a: Self::W, b: Self::W) -> Self::W {
        unsafe { _mm512_and_si512(a, b) }
    }
    #[inline(always)]
    unsafe fn or(a: Self::W, b: Self::W) -> Self::W {
        unsafe { _mm512_or_si512(a, b) }
    }
    #[inline(always)]
    unsafe fn shr(a: Self::W, n: i32) -> Self::W {
        unsafe { _mm512_srl_epi16(a, _mm_cvtsi32_si128(n)) }
    }
    #[inline(always)]
    unsafe fn shl(a: Self::W, n: i32) -> Self::W {
        unsafe { _mm512_sll_epi16(a, _mm_cvtsi32_si128(n)) }
    }
    #[inline(always)]
    unsafe fn byte<const J: u32>(a: Self::W) -> Self::F {
        unsafe {
            let v = match J {
                0 => a,
                1 => _mm512_srli_epi32::<8>(a),
                2 => _mm512_srli_epi32::<16>(a),
                _ => _mm512_srli_epi32::<24>(a),
            };
            _mm512_cvtepi32_ps(_mm512_and_si512(v, _mm512_set1_epi32(255)))
        }
    }
    #[inline(always)]
    unsafe fn dot<const V: usize, const MAX: i32>(
        init: Self::I,
        w: &[Self::W; 8],
        first: usize,
        x: *const i8,
    ) -> Self::I {
        let mut acc = init;
        for v in 0..V {
            unsafe {
                let x = _mm512_set1_epi32(x.add(4 * v).cast::<i32>().read_unaligned());
                acc = _mm512_dpbusd_epi32(acc, w[first + v], x);
            }
        }
        acc
    }
}
