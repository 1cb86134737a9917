//! One algorithm, many instruction sets.
//!
//! A kernel is written once, over the [`Simd`] trait, as a value that implements [`Kernel`];
//! [`Isa::run`] compiles it for each instruction set and picks one at run time. Every operation of
//! the trait is an IEEE operation with one rounding (or exact, for integers), and every kernel fixes
//! its order of accumulation, so **all instruction sets give the same bits**; that is what the tests
//! compare.

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
#[cfg(all(target_arch = "aarch64", target_endian = "little"))]
mod neon;
mod scalar;

pub use scalar::Scalar;

#[cfg(target_arch = "x86_64")]
use crate::amx;
use std::sync::OnceLock;

/// Output rows that share a panel; see [`crate::panel`]. A multiple of every [`Simd::LANES`].
pub const PANEL: usize = 16;

/// An instruction set that this machine can run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Isa {
    /// Plain Rust, for any machine; the oracle of the others.
    Scalar,
    /// x86-64 with AVX2, FMA and F16C.
    Avx2,
    /// The same with `vpdpbusd` on 256 bits: AVX-VNNI, or AVX-512 VNNI with VL.
    AvxVnni,
    /// x86-64 with AVX-512 F/BW/DQ/VL and VNNI.
    Avx512,
    /// The same with AVX-512 BF16.
    Avx512Bf16,
    /// The same with AMX's tiles of bytes and bfloat16.
    Amx,
    /// AArch64 with NEON.
    Neon,
    /// The same with `sdot`.
    NeonDot,
    /// The same with `usdot`.
    NeonI8mm,
}

impl Isa {
    /// The best instruction set of this machine.
    pub fn detect() -> Self {
        *Self::available().last().unwrap_or(&Isa::Scalar)
    }

    /// All that this machine can run, the best one last.
    pub fn available() -> Vec<Self> {
        static ALL: OnceLock<Vec<Isa>> = OnceLock::new();
        ALL.get_or_init(Self::look).clone()
    }

    fn look() -> Vec<Self> {
        #[allow(unused_mut)]
        let mut all = vec![Isa::Scalar];
        #[cfg(target_arch = "x86_64")]
        {
            let avx2 = is_x86_feature_detected!("avx2")
                && is_x86_feature_detected!("fma")
                && is_x86_feature_detected!("f16c");
            if avx2 {
                all.push(Isa::Avx2);
            }
            if avx2 && (is_x86_feature_detected!("avxvnni") || vnni_evex()) {
                all.push(Isa::AvxVnni);
            }
            if avx2
                && is_x86_feature_detected!("avx512f")
                && is_x86_feature_detected!("avx512bw")
                && is_x86_feature_detected!("avx512dq")
                && is_x86_feature_detected!("avx512vl")
                && is_x86_feature_detected!("avx512vnni")
            {
                all.push(Isa::Avx512);
                // SAFETY: the features are there, which is what the second call needs.
                if is_x86_feature_detected!("avx512bf16") && unsafe { avx512::bf16_adds_in_order() }
                {
                    all.push(Isa::Avx512Bf16);
                    if amx::available() {
                        all.push(Isa::Amx);
                    }
                }
            }
        }
        #[cfg(all(target_arch = "aarch64", target_endian = "little"))]
        {
            use std::arch::is_aarch64_feature_detected;
            all.push(Isa::Neon);
            if is_aarch64_feature_detected!("dotprod") {
                all.push(Isa::NeonDot);
                if is_aarch64_feature_detected!("i8mm") {
                    all.push(Isa::NeonI8mm);
                }
            }
        }
        all
    }

    /// The name that the command line uses.
    pub fn name(self) -> &'static str {
        match self {
            Isa::Scalar => "scalar",
            Isa::Avx2 => "avx2",
            Isa::AvxVnni => "avxvnni",
            Isa::Avx512 => "avx512",
            Isa::Avx512Bf16 => "avx512bf16",
            Isa::Amx => "amx",
            Isa::Neon => "neon",
            Isa::NeonDot => "neondot",
            Isa::NeonI8mm => "neoni8mm",
        }
    }

    /// Whether there is an instruction for products of bfloat16s that is quicker than two multiply-adds:
    /// on the Xeons that have AMX `vdpbf16ps` takes more than twice as long (measured: 150 and 347 GOP/s).
    pub(crate) fn multiplies_bf16(self) -> bool {
        self == Isa::Avx512Bf16
    }

    /// Runs `kernel` with this instruction set.
    ///
    /// # Panics
    /// If the machine lacks the instruction set (values from [`Isa::available`] never do).
    #[inline]
    pub(crate) fn run<K: Kernel>(self, kernel: K) -> K::Output {
        match self {
            // SAFETY: the scalar implementation needs no processor feature; the kernel's own
            // contract on its pointers is upheld by whoever built it.
            Isa::Scalar => unsafe { kernel.run::<Scalar>() },
            #[cfg(target_arch = "x86_64")]
            // SAFETY: an `Isa` comes out of `available` alone, which checked these features.
            Isa::Avx2 | Isa::AvxVnni => unsafe { avx2::run(kernel) },
            #[cfg(target_arch = "x86_64")]
            // SAFETY: as above.
            Isa::Avx512 | Isa::Avx512Bf16 | Isa::Amx => unsafe { avx512::run(kernel) },
            #[cfg(all(target_arch = "aarch64", target_endian = "little"))]
            // SAFETY: NEON is part of the target.
            Isa::Neon | Isa::NeonDot | Isa::NeonI8mm => unsafe { neon::run(kernel) },
            other => panic!("{} does not exist on this architecture", other.name()),
        }
    }

    /// Runs a kernel that uses [`Simd::dot`]: with an instruction for it where there is one.
    #[inline]
    pub(crate) fn run_dot<K: Kernel>(self, kernel: K) -> K::Output {
        match self {
            #[cfg(target_arch = "x86_64")]
            // SAFETY: as above; one of the two encodings is there.
            Isa::AvxVnni if is_x86_feature_detected!("avxvnni") => unsafe {
                avx2::run_vnni(kernel)
            },
            #[cfg(target_arch = "x86_64")]
            // SAFETY: as above.
            Isa::AvxVnni => unsafe { avx2::run_vnni_evex(kernel) },
            #[cfg(all(target_arch = "aarch64", target_endian = "little"))]
            // SAFETY: as above.
            Isa::NeonDot => unsafe { neon::run_sdot(kernel) },
            #[cfg(all(target_arch = "aarch64", target_endian = "little"))]
            // SAFETY: as above.
            Isa::NeonI8mm => unsafe { neon::run_usdot(kernel) },
            other => other.run(kernel),
        }
    }

    /// Runs a kernel that uses [`Simd::dot_bf16`]: with its own instruction where there is a quick one.
    #[inline]
    pub(crate) fn run_bf16<K: Kernel>(self, kernel: K) -> K::Output {
        match self {
            #[cfg(target_arch = "x86_64")]
            // SAFETY: as above.
            Isa::Avx512Bf16 => unsafe { avx512::run_bf16(kernel) },
            other => other.run(kernel),
        }
    }
}

/// Whether `vpdpbusd` on 256 bits exists in AVX-512's encoding.
#[cfg(target_arch = "x86_64")]
fn vnni_evex() -> bool {
    is_x86_feature_detected!("avx512f")
        && is_x86_feature_detected!("avx512vl")
        && is_x86_feature_detected!("avx512vnni")
}

/// Whether the processor, left to itself, waits for memory while one row is multiplied: Intel's read at half
/// of their bandwidth then, AMD's at nearly all of it.
pub(crate) fn foresight_is_short() -> bool {
    #[cfg(target_arch = "x86_64")]
    {
        static INTEL: OnceLock<bool> = OnceLock::new();
        *INTEL.get_or_init(|| {
            let id = std::arch::x86_64::__cpuid(0);
            // "GenuineIntel", in the order of the registers.
            [id.ebx, id.edx, id.ecx] == [b"Genu", b"ineI", b"ntel"].map(|s| u32::from_le_bytes(*s))
        })
    }
    #[cfg(not(target_arch = "x86_64"))]
    false
}

/// Asks for the cache line at `p`, which need not be an address of anything.
#[inline(always)]
pub(crate) fn prefetch(p: *const u8) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: a hint, which never faults; SSE is part of x86-64.
    unsafe {
        std::arch::x86_64::_mm_prefetch::<{ std::arch::x86_64::_MM_HINT_T0 }>(p.cast())
    }
    #[cfg(target_arch = "aarch64")]
    // SAFETY: as above.
    unsafe {
        std::arch::asm!("prfm pldl1keep, [{}]", in(reg) p, options(nostack, preserves_flags, readonly))
    }
    #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
    let _ = p;
}

/// Asks for the cache lines of `bytes` bytes from `p` on.
#[inline(always)]
pub(crate) fn ahead(p: *const u8, bytes: usize) {
    for line in (0..bytes).step_by(64) {
        prefetch(p.wrapping_add(line));
    }
}

/// A computation written over [`Simd`]: the value holds the arguments.
pub(crate) trait Kernel {
    /// What the computation returns.
    type Output;
    /// Runs it. Implementations are `#[inline(always)]`, so that the whole body is compiled with
    /// the instruction set's features.
    ///
    /// # Safety
    /// The processor must have the features of `S`; pointers inside the value must be valid for
    /// what the kernel documents.
    unsafe fn run<S: Simd>(self) -> Self::Output;
}

/// The vector operations that kernels are made of. A vector of `LANES` f32 ([`Simd::F`]), as many
/// i32 ([`Simd::I`]), and 4 x `LANES` bytes ([`Simd::W`], four consecutive k of each lane's row).
///
/// # Safety
/// Every method needs the processor features of the implementing set, and pointers valid for as
/// many elements as the vector holds; no alignment is needed.
#[allow(clippy::missing_safety_doc, missing_docs)]
pub trait Simd: Copy + 'static {
    const LANES: usize;
    type F: Copy;
    type I: Copy;
    type W: Copy;

    unsafe fn splat(x: f32) -> Self::F;
    unsafe fn load(p: *const f32) -> Self::F;
    unsafe fn store(p: *mut f32, x: Self::F);
    /// IEEE half bits to f32, exact.
    unsafe fn load_f16(p: *const u16) -> Self::F;
    /// Unsigned bytes to f32.
    unsafe fn load_u8(p: *const u8) -> Self::F;
    /// Signed bytes to f32.
    unsafe fn load_i8(p: *const i8) -> Self::F;
    unsafe fn add(a: Self::F, b: Self::F) -> Self::F;
    unsafe fn sub(a: Self::F, b: Self::F) -> Self::F;
    unsafe fn mul(a: Self::F, b: Self::F) -> Self::F;
    unsafe fn div(a: Self::F, b: Self::F) -> Self::F;
    /// `a * b + c` with one rounding.
    unsafe fn fma(a: Self::F, b: Self::F, c: Self::F) -> Self::F;
    /// The larger; `b` if either is NaN (as x86 does).
    unsafe fn max(a: Self::F, b: Self::F) -> Self::F;
    /// The smaller; `b` if either is NaN.
    unsafe fn min(a: Self::F, b: Self::F) -> Self::F;
    unsafe fn abs(a: Self::F) -> Self::F;
    /// To the nearest integer, ties to even.
    unsafe fn round(a: Self::F) -> Self::F;
    /// Per lane: `t` where `a < b`, else `f`.
    unsafe fn select_lt(a: Self::F, b: Self::F, t: Self::F, f: Self::F) -> Self::F;
    /// 2^n for integral n in -126..=127.
    unsafe fn pow2(n: Self::F) -> Self::F;

    /// `out[p * stride + r] = rows[r][at + p]` for `LANES` rows and places, written in the order of
    /// p: a stride below `LANES` cuts off the last rows and spills behind the last place.
    #[inline(always)]
    unsafe fn transpose(rows: &[*const f32], at: usize, out: *mut f32, stride: usize) {
        for p in 0..Self::LANES {
            for (r, row) in rows.iter().enumerate().take(Self::LANES) {
                // SAFETY: the caller vouches for rows and room.
                unsafe { *out.add(p * stride + r) = *row.add(at + p) };
            }
        }
    }

    unsafe fn splat_i(x: i32) -> Self::I;
    unsafe fn load_i(p: *const i32) -> Self::I;
    /// i32 to f32, round to nearest even.
    unsafe fn to_f32(x: Self::I) -> Self::F;
    /// f32 to i8 (values must be integral and in -128..=127), `LANES` bytes at `p`.
    unsafe fn store_i8(p: *mut i8, x: Self::F);

    /// Each lane shifted left.
    unsafe fn shl_i<const N: u32>(x: Self::I) -> Self::I;

    unsafe fn load_w(p: *const u8) -> Self::W;
    unsafe fn store_w(p: *mut u8, x: Self::W);
    /// Byte by byte, modulo 256.
    unsafe fn sub_w(a: Self::W, b: Self::W) -> Self::W;
    /// Of two bfloat16s in each lane the first (the low half) and the second, as f32.
    unsafe fn bf16_pair(w: Self::W) -> [Self::F; 2];
    /// `acc + w[1] * x[1]`, then `+ w[0] * x[0]`, each a fused multiply-add, for the two bfloat16s
    /// of each lane and the two at `x`. None of them, and no sum, may be subnormal.
    #[inline(always)]
    unsafe fn dot_bf16(acc: Self::F, w: Self::W, x: *const u32) -> Self::F {
        // SAFETY: the caller has two bfloat16s at `x`.
        unsafe {
            let (w, x) = (Self::bf16_pair(w), *x);
            let odd = Self::splat(f32::from_bits(x & 0xffff_0000));
            Self::fma(w[0], Self::splat(f32::from_bits(x << 16)), Self::fma(w[1], odd, acc))
        }
    }
    unsafe fn splat_w(x: u8) -> Self::W;
    unsafe fn and(a: Self::W, b: Self::W) -> Self::W;
    unsafe fn or(a: Self::W, b: Self::W) -> Self::W;
    /// Shifts each byte right, or each 16-bit group: mask afterwards.
    unsafe fn shr(a: Self::W, n: i32) -> Self::W;
    /// Shifts each byte left, or each 16-bit group: mask before or afterwards.
    unsafe fn shl(a: Self::W, n: i32) -> Self::W;
    /// Byte `J` of each lane as f32 (unsigned).
    unsafe fn byte<const J: u32>(a: Self::W) -> Self::F;
    /// `init + sum over v < V, j < 4 of w[first + v].byte[j] * x[4 v + j]` per lane, exact in i32.
    /// Weight bytes are unsigned and at most `MAX`; `x` has 4 V values in -127..=127. `ALONE`: no
    /// other sum is computed meanwhile, so that a chain of additions would wait for itself.
    unsafe fn dot<const V: usize, const MAX: i32, const ALONE: bool>(
        init: Self::I,
        w: &[Self::W; 8],
        first: usize,
        x: *const i8,
    ) -> Self::I;
    /// The same with bytes of up to 255, less 128: `sum of (w - 128) * x`. `minus` is minus the sum
    /// of the values at `x`, for sets that take unsigned bytes.
    #[inline(always)]
    unsafe fn dot_centred<const V: usize, const ALONE: bool>(
        minus: i32,
        w: &[Self::W; 8],
        first: usize,
        x: *const i8,
    ) -> Self::I {
        // SAFETY: the caller's promise.
        unsafe {
            let init = Self::shl_i::<7>(Self::splat_i(minus));
            Self::dot::<V, 255, ALONE>(init, w, first, x)
        }
    }
}
