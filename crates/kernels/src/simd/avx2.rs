//! AVX2 with FMA and F16C: eight lanes, so a panel takes two passes. Sums of bytes by `vpmaddubsw`, or
//! by `vpdpbusd` on 256 bits where the processor has that (AVX-VNNI, or AVX-512 VNNI with VL).

use super::{Kernel, Simd};
use std::arch::x86_64::*;
use std::marker::PhantomData;

/// Compiles `kernel` with the features of this set.
///
/// # Safety
/// The processor must have them.
#[target_feature(enable = "avx2,fma,f16c,bmi2")]
pub(super) unsafe fn run<K: Kernel>(kernel: K) -> K::Output {
    // SAFETY: the caller has checked the features; the pointers are the kernel's own contract.
    unsafe { kernel.run::<Avx2<Maddubs>>() }
}

/// The same with AVX-VNNI.
///
/// # Safety
/// The processor must have the features.
#[target_feature(enable = "avx2,fma,f16c,bmi2,avxvnni")]
pub(super) unsafe fn run_vnni<K: Kernel>(kernel: K) -> K::Output {
    // SAFETY: as above.
    unsafe { kernel.run::<Avx2<Vnni>>() }
}

/// The same where `vpdpbusd` on 256 bits exists in AVX-512's encoding only.
///
/// # Safety
/// The processor must have the features.
#[target_feature(enable = "avx2,fma,f16c,bmi2,avx512f,avx512vl,avx512vnni")]
pub(super) unsafe fn run_vnni_evex<K: Kernel>(kernel: K) -> K::Output {
    // SAFETY: as above.
    unsafe { kernel.run::<Avx2<VnniEvex>>() }
}

/// How the sums of [`Simd::dot`] are made.
pub(super) trait Dot: Copy + 'static {
    /// See [`Simd::dot`].
    ///
    /// # Safety
    /// The processor's features; `x` has 4 V values.
    unsafe fn dot<const V: usize, const MAX: i32, const ALONE: bool>(
        init: __m256i,
        w: &[__m256i; 8],
        first: usize,
        x: *const i8,
    ) -> __m256i;
}

/// `vpmaddubsw`: pairs in 16 bits.
#[derive(Clone, Copy)]
pub(super) struct Maddubs;
/// `vpdpbusd` in the encoding of AVX.
#[derive(Clone, Copy)]
struct Vnni;
/// `vpdpbusd` in the encoding of AVX-512.
#[derive(Clone, Copy)]
struct VnniEvex;

#[derive(Clone, Copy)]
pub(super) struct Avx2<D>(PhantomData<D>);

const NEAREST: i32 = _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC;

/// Four bytes of `x` in every lane.
#[inline(always)]
unsafe fn splat(x: *const i8, v: usize) -> __m256i {
    // SAFETY: the caller has 4 v + 4 bytes at `x`.
    unsafe { _mm256_set1_epi32(x.add(4 * v).cast::<i32>().read_unaligned()) }
}

// SAFETY (all the blocks below): the trait's contract gives the processor features and valid
// pointers; every load and store used here is the unaligned form.
#[allow(clippy::undocumented_unsafe_blocks)]
impl<D: Dot> Simd for Avx2<D> {
    const LANES: usize = 8;
    type F = __m256;
    type I = __m256i;
    type W = __m256i;

    #[inline(always)]
    unsafe fn splat(x: f32) -> Self::F {
        unsafe { _mm256_set1_ps(x) }
    }
    #[inline(always)]
    unsafe fn load(p: *const f32) -> Self::F {
        unsafe { _mm256_loadu_ps(p) }
    }
    #[inline(always)]
    unsafe fn store(p: *mut f32, x: Self::F) {
        unsafe { _mm256_storeu_ps(p, x) }
    }
    #[inline(always)]
    unsafe fn load_f16(p: *const u16) -> Self::F {
        unsafe { _mm256_cvtph_ps(_mm_loadu_si128(p.cast())) }
    }
    #[inline(always)]
    unsafe fn load_u8(p: *const u8) -> Self::F {
        unsafe { _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(_mm_loadl_epi64(p.cast()))) }
    }
    #[inline(always)]
    unsafe fn load_i8(p: *const i8) -> Self::F {
        unsafe { _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64(p.cast()))) }
    }
    #[inline(always)]
    unsafe fn add(a: Self::F, b: Self::F) -> Self::F {
        unsafe { _mm256_add_ps(a, b) }
    }
    #[inline(always)]
    unsafe fn sub(a: Self::F, b: Self::F) -> Self::F {
        unsafe { _mm256_sub_ps(a, b) }
    }
    #[inline(always)]
    unsafe fn mul(a: Self::F, b: Self::F) -> Self::F {
        unsafe { _mm256_mul_ps(a, b) }
    }
    #[inline(always)]
    unsafe fn div(a: Self::F, b: Self::F) -> Self::F {
        unsafe { _mm256_div_ps(a, b) }
    }
    #[inline(always)]
    unsafe fn fma(a: Self::F, b: Self::F, c: Self::F) -> Self::F {
        unsafe { _mm256_fmadd_ps(a, b, c) }
    }
    #[inline(always)]
    unsafe fn max(a: Self::F, b: Self::F) -> Self::F {
        unsafe { _mm256_max_ps(a, b) }
    }
    #[inline(always)]
    unsafe fn min(a: Self::F, b: Self::F) -> Self::F {
        unsafe { _mm256_min_ps(a, b) }
    }
    #[inline(always)]
    unsafe fn abs(a: Self::F) -> Self::F {
        unsafe { _mm256_andnot_ps(_mm256_set1_ps(-0.0), a) }
    }
    #[inline(always)]
    unsafe fn round(a: Self::F) -> Self::F {
        unsafe { _mm256_round_ps::<NEAREST>(a) }
    }
    #[inline(always)]
    unsafe fn select_lt(a: Self::F, b: Self::F, t: Self::F, f: Self::F) -> Self::F {
        unsafe { _mm256_blendv_ps(f, t, _mm256_cmp_ps::<_CMP_LT_OQ>(a, b)) }
    }
    #[inline(always)]
    unsafe fn pow2(n: Self::F) -> Self::F {
        unsafe {
            let i = _mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127));
            _mm256_castsi256_ps(_mm256_slli_epi32::<23>(i))
        }
    }
    #[inline(always)]
    unsafe fn transpose(rows: &[*const f32], at: usize, out: *mut f32, stride: usize) {
        unsafe {
            let zero = _mm256_setzero_ps();
            // As in the AVX-512 set, with two lanes of 128 bits.
            let (mut t, mut u) = ([zero; 8], [zero; 8]);
            for i in 0..4 {
                let a = _mm256_loadu_ps(rows[2 * i].add(at));
                let b = _mm256_loadu_ps(rows[2 * i + 1].add(at));
                t[2 * i] = _mm256_unpacklo_ps(a, b);
                t[2 * i + 1] = _mm256_unpackhi_ps(a, b);
            }
            for i in 0..4 {
                let (a, b) = (t[i / 2 * 4 + i % 2], t[i / 2 * 4 + i % 2 + 2]);
                let (a, b) = (_mm256_castps_pd(a), _mm256_castps_pd(b));
                u[2 * i] = _mm256_castpd_ps(_mm256_unpacklo_pd(a, b));
                u[2 * i + 1] = _mm256_castpd_ps(_mm256_unpackhi_pd(a, b));
            }
            for j in 0..4 {
                t[j] = _mm256_permute2f128_ps::<0x20>(u[j], u[4 + j]);
                t[4 + j] = _mm256_permute2f128_ps::<0x31>(u[j], u[4 + j]);
            }
            for (p, t) in t.into_iter().enumerate() {
                _mm256_storeu_ps(out.add(p * stride), t);
            }
        }
    }
    #[inline(always)]
    unsafe fn splat_i(x: i32) -> Self::I {
        unsafe { _mm256_set1_epi32(x) }
    }
    #[inline(always)]
    unsafe fn load_i(p: *const i32) -> Self::I {
        unsafe { _mm256_loadu_si256(p.cast()) }
    }
    #[inline(always)]
    unsafe fn to_f32(x: Self::I) -> Self::F {
        unsafe { _mm256_cvtepi32_ps(x) }
    }
    #[inline(always)]
    unsafe fn store_i8(p: *mut i8, x: Self::F) {
        unsafe {
            let i = _mm256_cvtps_epi32(x);
            let (lo, hi) = (_mm256_castsi256_si128(i), _mm256_extracti128_si256::<1>(i));
            let words = _mm_packs_epi32(lo, hi);
            _mm_storel_epi64(p.cast(), _mm_packs_epi16(words, words));
        }
    }
    #[inline(always)]
    unsafe fn shl_i<const N: u32>(x: Self::I) -> Self::I {
        unsafe { _mm256_sll_epi32(x, _mm_cvtsi32_si128(N as i32)) }
    }
    #[inline(always)]
    unsafe fn bf16_pair(w: Self::W) -> [Self::F; 2] {
        unsafe {
            let odd = _mm256_and_si256(w, _mm256_set1_epi32(0xffff_0000_u32 as i32));
            [_mm256_castsi256_ps(_mm256_slli_epi32::<16>(w)), _mm256_castsi256_ps(odd)]
        }
    }
    #[inline(always)]
    unsafe fn load_w(p: *const u8) -> Self::W {
        unsafe { _mm256_loadu_si256(p.cast()) }
    }
    #[inline(always)]
    unsafe fn splat_w(x: u8) -> Self::W {
        unsafe { _mm256_set1_epi8(x as i8) }
    }
    #[inline(always)]
    unsafe fn store_w(p: *mut u8, x: Self::W) {
        unsafe { _mm256_storeu_si256(p.cast(), x) }
    }
    #[inline(always)]
    unsafe fn sub_w(a: Self::W, b: Self::W) -> Self::W {
        unsafe { _mm256_sub_epi8(a, b) }
    }
    #[inline(always)]
    unsafe fn and(a: Self::W, b: Self::W) -> Self::W {
        unsafe { _mm256_and_si256(a, b) }
    }
    #[inline(always)]
    unsafe fn or(a: Self::W, b: Self::W) -> Self::W {
        unsafe { _mm256_or_si256(a, b) }
    }
    #[inline(always)]
    unsafe fn shr(a: Self::W, n: i32) -> Self::W {
        unsafe { _mm256_srl_epi16(a, _mm_cvtsi32_si128(n)) }
    }
    #[inline(always)]
    unsafe fn shl(a: Self::W, n: i32) -> Self::W {
        unsafe { _mm256_sll_epi16(a, _mm_cvtsi32_si128(n)) }
    }
    #[inline(always)]
    unsafe fn byte<const J: u32>(a: Self::W) -> Self::F {
        unsafe {
            let v = match J {
                0 => a,
                1 => _mm256_srli_epi32::<8>(a),
                2 => _mm256_srli_epi32::<16>(a),
                _ => _mm256_srli_epi32::<24>(a),
            };
            _mm256_cvtepi32_ps(_mm256_and_si256(v, _mm256_set1_epi32(255)))
        }
    }
    #[inline(always)]
    unsafe fn dot<const V: usize, const MAX: i32, const ALONE: bool>(
        init: Self::I,
        w: &[Self::W; 8],
        first: usize,
        x: *const i8,
    ) -> Self::I {
        unsafe { D::dot::<V, MAX, ALONE>(init, w, first, x) }
    }
}

#[allow(clippy::undocumented_unsafe_blocks)]
impl Dot for Maddubs {
    /// `vpmaddubsw` adds pairs in 16 bits, so `MAX` says how many of its results may be summed
    /// before widening; bytes of more than 7 bits go through their magnitude's sign instead.
    #[inline(always)]
    unsafe fn dot<const V: usize, const MAX: i32, const ALONE: bool>(
        init: __m256i,
        w: &[__m256i; 8],
        first: usize,
        x: *const i8,
    ) -> __m256i {
        unsafe {
            let ones = _mm256_set1_epi16(1);
            let mut acc = init;
            if MAX > 128 {
                // w = 16 hi + lo: both halves are nibbles, of which eight sums fit in 16 bits.
                let nibble = _mm256_set1_epi8(15);
                let (mut lo, mut hi) = (_mm256_setzero_si256(), _mm256_setzero_si256());
                for v in 0..V {
                    let (w, x) = (w[first + v], splat(x, v));
                    let low = _mm256_and_si256(w, nibble);
                    let high = _mm256_and_si256(_mm256_srli_epi16::<4>(w), nibble);
                    lo = _mm256_add_epi16(lo, _mm256_maddubs_epi16(low, x));
                    hi = _mm256_add_epi16(hi, _mm256_maddubs_epi16(high, x));
                }
                let hi = _mm256_slli_epi32::<4>(_mm256_madd_epi16(hi, ones));
                let lo = _mm256_madd_epi16(lo, ones);
                return _mm256_add_epi32(acc, _mm256_add_epi32(lo, hi));
            }
            let group = match MAX {
                0..=15 => 8,
                16..=31 => 4,
                32..=63 => 2,
                _ => 1,
            };
            let mut v = 0;
            while v < V {
                let mut sum = _mm256_maddubs_epi16(w[first + v], splat(x, v));
                let end = if v + group < V { v + group } else { V };
                for v in v + 1..end {
                    sum = _mm256_add_epi16(sum, _mm256_maddubs_epi16(w[first + v], splat(x, v)));
                }
                acc = _mm256_add_epi32(acc, _mm256_madd_epi16(sum, ones));
                v = end;
            }
            acc
        }
    }
}

/// Two chains where nothing else fills the wait for the last sum.
macro_rules! dot_by {
    ($set:ty, $dpbusd:ident) => {
        #[allow(clippy::undocumented_unsafe_blocks)]
        impl Dot for $set {
            #[inline(always)]
            unsafe fn dot<const V: usize, const MAX: i32, const ALONE: bool>(
                init: __m256i,
                w: &[__m256i; 8],
                first: usize,
                x: *const i8,
            ) -> __m256i {
                unsafe {
                    let mut acc = [init, _mm256_setzero_si256()];
                    for v in 0..V {
                        let chain = if ALONE { v % 2 } else { 0 };
                        acc[chain] = $dpbusd(acc[chain], w[first + v], splat(x, v));
                    }
                    if ALONE { _mm256_add_epi32(acc[0], acc[1]) } else { acc[0] }
                }
            }
        }
    };
}
dot_by!(Vnni, _mm256_dpbusd_avx_epi32);
dot_by!(VnniEvex, _mm256_dpbusd_epi32);
