//! NEON: eight lanes in pairs of registers, so a panel takes two passes. Sums of bytes by products in
//! 16 bits, by `sdot` (dotprod), or by `usdot` (i8mm).
//!
//! NEON itself is part of the target, so that closures lose nothing here. The two dot products, which
//! the standard library doesn't offer yet, are assembly, and stand in none.

use super::{Kernel, Simd};
use std::arch::aarch64::*;
use std::arch::asm;
use std::marker::PhantomData;

/// Compiles `kernel` for NEON.
///
/// # Safety
/// The pointers are the kernel's own contract.
pub(super) unsafe fn run<K: Kernel>(kernel: K) -> K::Output {
    // SAFETY: every processor of the target has NEON.
    unsafe { kernel.run::<Neon<Widening>>() }
}

/// The same with `sdot`.
///
/// # Safety
/// The processor must have the features.
#[target_feature(enable = "dotprod")]
pub(super) unsafe fn run_sdot<K: Kernel>(kernel: K) -> K::Output {
    // SAFETY: the caller has checked the features.
    unsafe { kernel.run::<Neon<Sdot>>() }
}

/// The same with `usdot`.
///
/// # Safety
/// The processor must have the features.
#[target_feature(enable = "dotprod,i8mm")]
pub(super) unsafe fn run_usdot<K: Kernel>(kernel: K) -> K::Output {
    // SAFETY: as above.
    unsafe { kernel.run::<Neon<Usdot>>() }
}

type Floats = [float32x4_t; 2];
type Sums = [int32x4_t; 2];
type Bytes = [uint8x16_t; 2];

/// How the sums of [`Simd::dot`] are made. Two registers of lanes are two chains of additions, so it
/// makes no difference whether a sum is computed alone.
pub(super) trait Dot: Copy + 'static {
    /// See [`Simd::dot`]; `MAX` is at most 127.
    ///
    /// # Safety
    /// The processor's features; `x` has 4 V values.
    unsafe fn dot<const V: usize, const MAX: i32>(
        init: Sums,
        w: &[Bytes; 8],
        first: usize,
        x: *const i8,
    ) -> Sums;

    /// See [`Simd::dot_centred`]. What is done to `w` alone is done once for all rows.
    ///
    /// # Safety
    /// As for [`Dot::dot`].
    unsafe fn centred<const V: usize>(
        minus: i32,
        w: &[Bytes; 8],
        first: usize,
        x: *const i8,
    ) -> Sums;
}

/// Products and their sums in 16 bits.
#[derive(Clone, Copy)]
struct Widening;
/// `sdot`: signed by signed.
#[derive(Clone, Copy)]
struct Sdot;
/// `usdot`: unsigned by signed.
#[derive(Clone, Copy)]
struct Usdot;

#[derive(Clone, Copy)]
struct Neon<D>(PhantomData<D>);

/// Applies `f` to both registers of `a`.
#[inline(always)]
fn each<A: Copy, B>(a: [A; 2], f: impl Fn(A) -> B) -> [B; 2] {
    [f(a[0]), f(a[1])]
}

/// Applies `f` to both registers of `a` and `b`.
#[inline(always)]
fn zip<A: Copy, B: Copy, C>(a: [A; 2], b: [B; 2], f: impl Fn(A, B) -> C) -> [C; 2] {
    [f(a[0], b[0]), f(a[1], b[1])]
}

/// Bytes less 128, as signed ones.
#[inline(always)]
fn signed(w: Bytes) -> Bytes {
    // SAFETY: NEON is part of the target.
    unsafe { each(w, |w| veorq_u8(w, vdupq_n_u8(128))) }
}

/// Four f32 at `p`, twice.
#[inline(always)]
unsafe fn load(p: *const f32) -> Floats {
    // SAFETY: the caller has eight values at `p`.
    unsafe { [vld1q_f32(p), vld1q_f32(p.add(4))] }
}

/// Eight 16-bit integers as f32.
#[inline(always)]
fn from_u16(a: uint16x8_t) -> Floats {
    // SAFETY: as above.
    unsafe { [vcvtq_f32_u32(vmovl_u16(vget_low_u16(a))), vcvtq_f32_u32(vmovl_high_u16(a))] }
}

/// A square of 4 x 4, turned round.
#[inline(always)]
fn turn(rows: [float32x4_t; 4]) -> [float32x4_t; 4] {
    // SAFETY: as above.
    unsafe {
        let wide = |a| vreinterpretq_f64_f32(a);
        let (a, b) = (vtrn1q_f32(rows[0], rows[1]), vtrn2q_f32(rows[0], rows[1]));
        let (c, d) = (vtrn1q_f32(rows[2], rows[3]), vtrn2q_f32(rows[2], rows[3]));
        let (a, b, c, d) = (wide(a), wide(b), wide(c), wide(d));
        [vtrn1q_f64(a, c), vtrn1q_f64(b, d), vtrn2q_f64(a, c), vtrn2q_f64(b, d)]
            .map(|a| vreinterpretq_f32_f64(a))
    }
}

// SAFETY (all the blocks below): the trait's contract gives the processor features and valid
// pointers; no load or store used here needs an alignment.
#[allow(clippy::undocumented_unsafe_blocks)]
impl<D: Dot> Simd for Neon<D> {
    const LANES: usize = 8;
    type F = Floats;
    type I = Sums;
    type W = Bytes;

    #[inline(always)]
    unsafe fn splat(x: f32) -> Self::F {
        unsafe { [vdupq_n_f32(x); 2] }
    }
    #[inline(always)]
    unsafe fn load(p: *const f32) -> Self::F {
        unsafe { load(p) }
    }
    #[inline(always)]
    unsafe fn store(p: *mut f32, x: Self::F) {
        unsafe {
            vst1q_f32(p, x[0]);
            vst1q_f32(p.add(4), x[1]);
        }
    }
    #[inline(always)]
    unsafe fn load_f16(p: *const u16) -> Self::F {
        unsafe {
            let h = vreinterpretq_f16_u16(vld1q_u16(p));
            [vcvt_f32_f16(vget_low_f16(h)), vcvt_high_f32_f16(h)]
        }
    }
    #[inline(always)]
    unsafe fn load_u8(p: *const u8) -> Self::F {
        unsafe { from_u16(vmovl_u8(vld1_u8(p))) }
    }
    #[inline(always)]
    unsafe fn load_i8(p: *const i8) -> Self::F {
        unsafe {
            let a = vmovl_s8(vld1_s8(p));
            [vcvtq_f32_s32(vmovl_s16(vget_low_s16(a))), vcvtq_f32_s32(vmovl_high_s16(a))]
        }
    }
    #[inline(always)]
    unsafe fn add(a: Self::F, b: Self::F) -> Self::F {
        unsafe { zip(a, b, |a, b| vaddq_f32(a, b)) }
    }
    #[inline(always)]
    unsafe fn sub(a: Self::F, b: Self::F) -> Self::F {
        unsafe { zip(a, b, |a, b| vsubq_f32(a, b)) }
    }
    #[inline(always)]
    unsafe fn mul(a: Self::F, b: Self::F) -> Self::F {
        unsafe { zip(a, b, |a, b| vmulq_f32(a, b)) }
    }
    #[inline(always)]
    unsafe fn div(a: Self::F, b: Self::F) -> Self::F {
        unsafe { zip(a, b, |a, b| vdivq_f32(a, b)) }
    }
    #[inline(always)]
    unsafe fn fma(a: Self::F, b: Self::F, c: Self::F) -> Self::F {
        unsafe { [vfmaq_f32(c[0], a[0], b[0]), vfmaq_f32(c[1], a[1], b[1])] }
    }
    /// `fmax` would give the NaN.
    #[inline(always)]
    unsafe fn max(a: Self::F, b: Self::F) -> Self::F {
        unsafe { zip(a, b, |a, b| vbslq_f32(vcgtq_f32(a, b), a, b)) }
    }
    #[inline(always)]
    unsafe fn min(a: Self::F, b: Self::F) -> Self::F {
        unsafe { zip(a, b, |a, b| vbslq_f32(vcltq_f32(a, b), a, b)) }
    }
    #[inline(always)]
    unsafe fn abs(a: Self::F) -> Self::F {
        unsafe { each(a, |a| vabsq_f32(a)) }
    }
    #[inline(always)]
    unsafe fn round(a: Self::F) -> Self::F {
        unsafe { each(a, |a| vrndnq_f32(a)) }
    }
    #[inline(always)]
    unsafe fn select_lt(a: Self::F, b: Self::F, t: Self::F, f: Self::F) -> Self::F {
        unsafe {
            let less = zip(a, b, |a, b| vcltq_f32(a, b));
            [vbslq_f32(less[0], t[0], f[0]), vbslq_f32(less[1], t[1], f[1])]
        }
    }
    #[inline(always)]
    unsafe fn pow2(n: Self::F) -> Self::F {
        unsafe {
            each(n, |n| {
                let i = vaddq_s32(vcvtnq_s32_f32(n), vdupq_n_s32(127));
                vreinterpretq_f32_s32(vshlq_n_s32::<23>(i))
            })
        }
    }
    #[inline(always)]
    unsafe fn transpose(rows: &[*const f32], at: usize, out: *mut f32, stride: usize) {
        unsafe {
            let mut square = [[[vdupq_n_f32(0.0); 4]; 2]; 2];
            for (r, &row) in rows[..8].iter().enumerate() {
                let row = load(row.add(at));
                for (p, &part) in row.iter().enumerate() {
                    square[p][r / 4][r % 4] = part;
                }
            }
            for (p, [a, b]) in square.into_iter().enumerate() {
                let (a, b) = (turn(a), turn(b));
                for i in 0..4 {
                    Self::store(out.add((4 * p + i) * stride), [a[i], b[i]]);
                }
            }
        }
    }
    #[inline(always)]
    unsafe fn splat_i(x: i32) -> Self::I {
        unsafe { [vdupq_n_s32(x); 2] }
    }
    #[inline(always)]
    unsafe fn load_i(p: *const i32) -> Self::I {
        unsafe { [vld1q_s32(p), vld1q_s32(p.add(4))] }
    }
    #[inline(always)]
    unsafe fn to_f32(x: Self::I) -> Self::F {
        unsafe { each(x, |x| vcvtq_f32_s32(x)) }
    }
    #[inline(always)]
    unsafe fn store_i8(p: *mut i8, x: Self::F) {
        unsafe {
            let i = each(x, |x| vmovn_s32(vcvtnq_s32_f32(x)));
            vst1_s8(p, vmovn_s16(vcombine_s16(i[0], i[1])))
        }
    }
    #[inline(always)]
    unsafe fn shl_i<const N: u32>(x: Self::I) -> Self::I {
        unsafe { each(x, |x| vshlq_s32(x, vdupq_n_s32(N as i32))) }
    }
    #[inline(always)]
    unsafe fn bf16_pair(w: Self::W) -> [Self::F; 2] {
        unsafe {
            let w = each(w, |w| vreinterpretq_u32_u8(w));
            let odd = each(w, |w| vandq_u32(w, vdupq_n_u32(0xffff_0000)));
            [each(w, |w| vshlq_n_u32::<16>(w)), odd].map(|w| each(w, |w| vreinterpretq_f32_u32(w)))
        }
    }
    /// As the trait has it, without a way through the other registers: `bfmmla` and its kin round
    /// otherwise.
    #[inline(always)]
    unsafe fn dot_bf16(acc: Self::F, w: Self::W, x: *const u32) -> Self::F {
        unsafe {
            let x = vreinterpret_u16_u32(vdup_n_u32(*x));
            let x = vreinterpretq_f32_u32(vshlq_n_u32::<16>(vmovl_u16(x)));
            let [even, odd] = Self::bf16_pair(w);
            let acc = zip(acc, odd, |acc, w| vfmaq_laneq_f32::<1>(acc, w, x));
            zip(acc, even, |acc, w| vfmaq_laneq_f32::<0>(acc, w, x))
        }
    }
    #[inline(always)]
    unsafe fn load_w(p: *const u8) -> Self::W {
        unsafe { [vld1q_u8(p), vld1q_u8(p.add(16))] }
    }
    #[inline(always)]
    unsafe fn store_w(p: *mut u8, x: Self::W) {
        unsafe {
            vst1q_u8(p, x[0]);
            vst1q_u8(p.add(16), x[1]);
        }
    }
    #[inline(always)]
    unsafe fn sub_w(a: Self::W, b: Self::W) -> Self::W {
        unsafe { zip(a, b, |a, b| vsubq_u8(a, b)) }
    }
    #[inline(always)]
    unsafe fn splat_w(x: u8) -> Self::W {
        unsafe { [vdupq_n_u8(x); 2] }
    }
    #[inline(always)]
    unsafe fn and(a: Self::W, b: Self::W) -> Self::W {
        unsafe { zip(a, b, |a, b| vandq_u8(a, b)) }
    }
    #[inline(always)]
    unsafe fn or(a: Self::W, b: Self::W) -> Self::W {
        unsafe { zip(a, b, |a, b| vorrq_u8(a, b)) }
    }
    /// Byte by byte: then a mask of all the bits that are left costs nothing.
    #[inline(always)]
    unsafe fn shr(a: Self::W, n: i32) -> Self::W {
        unsafe { each(a, |a| vshlq_u8(a, vdupq_n_s8(-n as i8))) }
    }
    #[inline(always)]
    unsafe fn shl(a: Self::W, n: i32) -> Self::W {
        unsafe { each(a, |a| vshlq_u8(a, vdupq_n_s8(n as i8))) }
    }
    #[inline(always)]
    unsafe fn byte<const J: u32>(a: Self::W) -> Self::F {
        unsafe {
            each(a, |a| {
                let a = vreinterpretq_u32_u8(a);
                let a = match J {
                    0 => vandq_u32(a, vdupq_n_u32(255)),
                    1 => vandq_u32(vshrq_n_u32::<8>(a), vdupq_n_u32(255)),
                    2 => vandq_u32(vshrq_n_u32::<16>(a), vdupq_n_u32(255)),
                    _ => vshrq_n_u32::<24>(a),
                };
                vcvtq_f32_u32(a)
            })
        }
    }
    #[inline(always)]
    unsafe fn dot<const V: usize, const MAX: i32, const ALONE: bool>(
        init: Self::I,
        w: &[Self::W; 8],
        first: usize,
        x: *const i8,
    ) -> Self::I {
        const { assert!(MAX < 128, "bytes with all bits are centred") };
        unsafe { D::dot::<V, MAX>(init, w, first, x) }
    }
    #[inline(always)]
    unsafe fn dot_centred<const V: usize, const ALONE: bool>(
        minus: i32,
        w: &[Self::W; 8],
        first: usize,
        x: *const i8,
    ) -> Self::I {
        unsafe { D::centred::<V>(minus, w, first, x) }
    }
}

/// Adds the products of sixteen pairs of bytes. As intrinsics the halves of `w` would be taken apart
/// outside of the loop over the rows, and need twice as many registers as there are.
#[inline(always)]
fn multiply(sums: [int16x8_t; 2], w: uint8x16_t, x: int8x16_t) -> [int16x8_t; 2] {
    let [mut low, mut high] = sums;
    // SAFETY: arithmetic on registers, by instructions that are part of the target.
    unsafe {
        asm!(
            "smlal {low:v}.8h, {w:v}.8b, {x:v}.8b",
            "smlal2 {high:v}.8h, {w:v}.16b, {x:v}.16b",
            low = inout(vreg) low,
            high = inout(vreg) high,
            w = in(vreg) w,
            x = in(vreg) x,
            options(pure, nomem, nostack, preserves_flags),
        );
    }
    [low, high]
}

/// `init + sum of w * x`, where no signed byte of `w` is larger than `MAX` in magnitude.
#[inline(always)]
unsafe fn widening<const V: usize, const MAX: i32>(
    init: Sums,
    w: &[Bytes; 8],
    first: usize,
    x: *const i8,
) -> Sums {
    // How many products fit into 16 bits.
    let group = (i16::MAX as i32 / (127 * MAX)) as usize;
    // SAFETY: the caller has 4 V bytes at `x`; the rest is arithmetic of NEON.
    unsafe {
        let mut wide = [[vdupq_n_s32(0); 2]; 2];
        for from in (0..V).step_by(group) {
            let mut sums = [[vdupq_n_s16(0); 2]; 2];
            for v in from..V.min(from + group) {
                let x = vdupq_n_s32(x.add(4 * v).cast::<i32>().read_unaligned());
                let x = vreinterpretq_s8_s32(x);
                sums = zip(sums, w[first + v], |sums, w| multiply(sums, w, x));
            }
            if 2 * V <= group {
                // Room for the sums of neighbours too.
                return zip(init, sums, |init, s| vpadalq_s16(init, vpaddq_s16(s[0], s[1])));
            }
            wide = zip(wide, sums, |wide, sums| zip(wide, sums, |wide, s| vpadalq_s16(wide, s)));
        }
        zip(init, wide, |init, wide| vaddq_s32(init, vpaddq_s32(wide[0], wide[1])))
    }
}

#[allow(clippy::undocumented_unsafe_blocks)]
impl Dot for Widening {
    #[inline(always)]
    unsafe fn dot<const V: usize, const MAX: i32>(
        init: Sums,
        w: &[Bytes; 8],
        first: usize,
        x: *const i8,
    ) -> Sums {
        unsafe { widening::<V, MAX>(init, w, first, x) }
    }
    #[inline(always)]
    unsafe fn centred<const V: usize>(_: i32, w: &[Bytes; 8], first: usize, x: *const i8) -> Sums {
        let w = w.map(signed);
        unsafe { widening::<V, 128>([vdupq_n_s32(0); 2], &w, first, x) }
    }
}

/// `$name(sums, w, first, x)` adds four quads of bytes by the sixteen at `x`, with `$op`, which takes
/// the four of a quad as an element of one register.
macro_rules! four_quads {
    ($name:ident, $op:literal) => {
        #[inline(always)]
        unsafe fn $name(sums: Sums, w: &[Bytes; 8], first: usize, x: *const i8) -> Sums {
            let [mut a, mut b] = sums;
            // SAFETY: arithmetic on registers, by an instruction that the caller vouches for, as for
            // the sixteen bytes.
            unsafe {
                asm!(
                    concat!($op, " {a:v}.4s, {w0:v}.16b, {x:v}.4b[0]"),
                    concat!($op, " {b:v}.4s, {v0:v}.16b, {x:v}.4b[0]"),
                    concat!($op, " {a:v}.4s, {w1:v}.16b, {x:v}.4b[1]"),
                    concat!($op, " {b:v}.4s, {v1:v}.16b, {x:v}.4b[1]"),
                    concat!($op, " {a:v}.4s, {w2:v}.16b, {x:v}.4b[2]"),
                    concat!($op, " {b:v}.4s, {v2:v}.16b, {x:v}.4b[2]"),
                    concat!($op, " {a:v}.4s, {w3:v}.16b, {x:v}.4b[3]"),
                    concat!($op, " {b:v}.4s, {v3:v}.16b, {x:v}.4b[3]"),
                    a = inout(vreg) a,
                    b = inout(vreg) b,
                    w0 = in(vreg) w[first][0],
                    v0 = in(vreg) w[first][1],
                    w1 = in(vreg) w[first + 1][0],
                    v1 = in(vreg) w[first + 1][1],
                    w2 = in(vreg) w[first + 2][0],
                    v2 = in(vreg) w[first + 2][1],
                    w3 = in(vreg) w[first + 3][0],
                    v3 = in(vreg) w[first + 3][1],
                    x = in(vreg) vld1q_s8(x),
                    options(pure, nomem, nostack, preserves_flags),
                );
            }
            [a, b]
        }
    };
}
four_quads!(sdot, "sdot");
four_quads!(usdot, "usdot");

#[allow(clippy::undocumented_unsafe_blocks)]
impl Dot for Sdot {
    #[inline(always)]
    unsafe fn dot<const V: usize, const MAX: i32>(
        init: Sums,
        w: &[Bytes; 8],
        first: usize,
        x: *const i8,
    ) -> Sums {
        let mut sums = init;
        for v in (0..V).step_by(4) {
            sums = unsafe { sdot(sums, w, first + v, x.add(4 * v)) };
        }
        sums
    }
    #[inline(always)]
    unsafe fn centred<const V: usize>(_: i32, w: &[Bytes; 8], first: usize, x: *const i8) -> Sums {
        let w = w.map(signed);
        unsafe { Self::dot::<V, 127>([vdupq_n_s32(0); 2], &w, first, x) }
    }
}

#[allow(clippy::undocumented_unsafe_blocks)]
impl Dot for Usdot {
    #[inline(always)]
    unsafe fn dot<const V: usize, const MAX: i32>(
        init: Sums,
        w: &[Bytes; 8],
        first: usize,
        x: *const i8,
    ) -> Sums {
        let mut sums = init;
        for v in (0..V).step_by(4) {
            sums = unsafe { usdot(sums, w, first + v, x.add(4 * v)) };
        }
        sums
    }
    #[inline(always)]
    unsafe fn centred<const V: usize>(
        minus: i32,
        w: &[Bytes; 8],
        first: usize,
        x: *const i8,
    ) -> Sums {
        unsafe { Self::dot::<V, 127>([vshlq_n_s32::<7>(vdupq_n_s32(minus)); 2], w, first, x) }
    }
}
