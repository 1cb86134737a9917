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
    unsafe { kernel.run::<Avx512<false>>() }
}

/// The same for kernels of bfloat16 products.
///
/// # Safety
/// The processor must have the features.
#[target_feature(
    enable = "avx2,fma,f16c,bmi2,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx512bf16"
)]
pub(super) unsafe fn run_bf16<K: Kernel>(kernel: K) -> K::Output {
    // SAFETY: the caller has checked the features; the pointers are the kernel's own contract.
    unsafe { kernel.run::<Avx512<true>>() }
}

/// Whether `vdpbf16ps` does what [`Simd::dot_bf16`] says, bit for bit: Zen 4 does. A processor that
/// rounds otherwise takes the multiply-adds instead.
///
/// # Safety
/// The processor must have AVX-512 BF16.
pub(super) unsafe fn bf16_adds_in_order() -> bool {
    struct Compare;
    impl Kernel for Compare {
        type Output = bool;
        #[inline(always)]
        unsafe fn run<S: Simd>(self) -> bool {
            let (mut state, mut words) = (1u64, [0u32; 18]);
            for _ in 0..4096 {
                for word in &mut words {
                    state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                    // Two bfloat16s of magnitudes from 2^-8 to 2^8.
                    *word = ((state >> 32) as u32 & 0x87ff_87ff) + 0x3b80_3b80;
                }
                let (mut got, mut want) = ([0.0f32; 16], [0.0f32; 16]);
                let x = words[16];
                // SAFETY: sixteen lanes at each address; the features are the caller's promise.
                unsafe {
                    let acc = S::splat(f32::from_bits(words[17]));
                    let w = S::load_w(words.as_ptr().cast());
                    S::store(got.as_mut_ptr(), S::dot_bf16(acc, w, &x));
                    let w = S::bf16_pair(w);
                    let acc = S::fma(w[1], S::splat(f32::from_bits(x & 0xffff_0000)), acc);
                    let acc = S::fma(w[0], S::splat(f32::from_bits(x << 16)), acc);
                    S::store(want.as_mut_ptr(), acc);
                }
                if got.map(f32::to_bits) != want.map(f32::to_bits) {
                    return false;
                }
            }
            true
        }
    }
    // SAFETY: the caller's promise.
    unsafe { run_bf16(Compare) }
}

/// `BF16`: with the instructions for bfloat16.
#[derive(Clone, Copy)]
pub(super) struct Avx512<const BF16: bool>;

const NEAREST: i32 = _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC;

// SAFETY (all the blocks below): the trait's contract gives the processor features and valid
// pointers; every load and store used here is the unaligned form.
#[allow(clippy::undocumented_unsafe_blocks)]
impl<const BF16: bool> Simd for Avx512<BF16> {
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
    unsafe fn load_i(p: *const i32) -> Self::I {
        unsafe { _mm512_loadu_si512(p.cast()) }
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
    unsafe fn shl_i<const N: u32>(x: Self::I) -> Self::I {
        unsafe { _mm512_slli_epi32::<N>(x) }
    }
    #[inline(always)]
    unsafe fn bf16_pair(w: Self::W) -> [Self::F; 2] {
        unsafe {
            let odd = _mm512_and_si512(w, _mm512_set1_epi32(0xffff_0000_u32 as i32));
            [_mm512_castsi512_ps(_mm512_slli_epi32::<16>(w)), _mm512_castsi512_ps(odd)]
        }
    }
    #[inline(always)]
    unsafe fn dot_bf16(acc: Self::F, w: Self::W, x: *const u32) -> Self::F {
        unsafe {
            if BF16 {
                // The same bits under the type that the intrinsic wants.
                let x = _mm512_set1_epi32(x.cast::<i32>().read());
                let w = std::mem::transmute::<__m512i, __m512bh>(w);
                return _mm512_dpbf16_ps(acc, w, std::mem::transmute::<__m512i, __m512bh>(x));
            }
            let (w, x) = (Self::bf16_pair(w), *x);
            let odd = Self::splat(f32::from_bits(x & 0xffff_0000));
            Self::fma(w[0], Self::splat(f32::from_bits(x << 16)), Self::fma(w[1], odd, acc))
        }
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
    unsafe fn store_w(p: *mut u8, x: Self::W) {
        unsafe { _mm512_storeu_si512(p.cast(), x) }
    }
    #[inline(always)]
    unsafe fn sub_w(a: Self::W, b: Self::W) -> Self::W {
        unsafe { _mm512_sub_epi8(a, b) }
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
    unsafe fn dot<const V: usize, const MAX: i32, const ALONE: bool>(
        init: Self::I,
        w: &[Self::W; 8],
        first: usize,
        x: *const i8,
    ) -> Self::I {
        unsafe {
            let mut acc = [init, _mm512_setzero_si512()];
            for v in 0..V {
                let x = _mm512_set1_epi32(x.add(4 * v).cast::<i32>().read_unaligned());
                let chain = if ALONE { v % 2 } else { 0 };
                acc[chain] = _mm512_dpbusd_epi32(acc[chain], w[first + v], x);
            }
            if ALONE { _mm512_add_epi32(acc[0], acc[1]) } else { acc[0] }
        }
    }
}
