//! Float types as kernels read them.

use crate::simd::Simd;

/// A float type in memory.
pub(crate) trait Element {
    /// Bytes of one element.
    const BYTES: usize;
    /// Whether groups of 32 elements have a factor that is kept beside them.
    const SCALED: bool = false;
    /// `LANES` elements as f32.
    ///
    /// # Safety
    /// `p` has `LANES` elements; the features of `S`.
    unsafe fn load<S: Simd>(p: *const u8) -> S::F;
}

pub(crate) struct F32;
pub(crate) struct F16;
pub(crate) struct I8;

impl Element for F32 {
    const BYTES: usize = 4;
    #[inline(always)]
    unsafe fn load<S: Simd>(p: *const u8) -> S::F {
        // SAFETY: the caller's promise.
        unsafe { S::load(p.cast()) }
    }
}

impl Element for F16 {
    const BYTES: usize = 2;
    #[inline(always)]
    unsafe fn load<S: Simd>(p: *const u8) -> S::F {
        // SAFETY: the caller's promise.
        unsafe { S::load_f16(p.cast()) }
    }
}

impl Element for I8 {
    const BYTES: usize = 1;
    const SCALED: bool = true;
    #[inline(always)]
    unsafe fn load<S: Simd>(p: *const u8) -> S::F {
        // SAFETY: the caller's promise.
        unsafe { S::load_i8(p.cast()) }
    }
}
