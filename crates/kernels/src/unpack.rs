//! How each quantised layout yields a block of 32 k for the lanes of a vector.

use crate::panel::{
    BYTES_BYTES, BYTES_SCALES, K_SCALES, Q4_QUADS, Q4K_BYTES, Q5_QUADS, Q5K_BYTES, Q6_SCALES,
    Q6K_BYTES, Q8_QUADS, two_blocks,
};
use crate::simd::{PANEL, Simd};

/// 32 k of `LANES` rows. Weight (k, lane) is `scale * (byte - OFFSET) + min`, where k = 4 v + j is
/// byte j of the lane in `w[v]`; the second scale and minimum are those of k 16 to 31.
pub(crate) struct Block<S: Simd> {
    pub w: [S::W; 8],
    pub scale: [S::F; 2],
    pub min: [S::F; 2],
}

/// A quantised layout.
pub(crate) trait Format {
    /// What is taken from a stored byte to get the integer weight.
    const OFFSET: i32;
    /// The largest stored byte.
    const MAX: i32;
    /// Whether k 0-15 and k 16-31 have scales (and minima) of their own.
    const HALVES: bool;
    /// Whether there are minima.
    const MINS: bool;

    /// Block `kb` for the rows `lane0 .. lane0 + LANES` of a panel.
    ///
    /// # Safety
    /// The features of `S`; `panel` is one of this layout that has the block.
    unsafe fn block<S: Simd>(panel: *const u8, kb: usize, lane0: usize) -> Block<S>;
}

pub(crate) struct Q8_0;
pub(crate) struct Q4_0;
pub(crate) struct Q5_0;
pub(crate) struct Q4K;
pub(crate) struct Q5K;
pub(crate) struct Q6K;
pub(crate) struct Bytes;

/// The quads and the half of block `kb` where two blocks make a group.
#[inline(always)]
unsafe fn of_two<S: Simd, const QUADS: usize>(
    panel: *const u8,
    kb: usize,
    lane0: usize,
) -> (*const u8, S::F) {
    // SAFETY: the panel has the block.
    unsafe {
        let group = panel.add(kb / 2 * two_blocks(QUADS));
        let d = group.add(2 * PANEL * (kb % 2) + 2 * lane0);
        (group.add(4 * PANEL + kb % 2 * QUADS), S::load_f16(d.cast()))
    }
}

// No closures below: they would not be compiled with the features of the instruction set.

/// Eight quads from `quads` on.
#[inline(always)]
unsafe fn load8<S: Simd>(quads: *const u8, lane0: usize) -> [S::W; 8] {
    // SAFETY: the callers pass the address of eight quads.
    unsafe {
        let mut w = [S::splat_w(0); 8];
        for (v, w) in w.iter_mut().enumerate() {
            *w = S::load_w(quads.add(64 * v + 4 * lane0));
        }
        w
    }
}

/// `(w >> shift) & mask`, byte by byte.
#[inline(always)]
unsafe fn bits8<S: Simd>(mut w: [S::W; 8], shift: usize, mask: u8) -> [S::W; 8] {
    // SAFETY: arithmetic only.
    unsafe {
        let mask = S::splat_w(mask);
        for w in &mut w {
            *w = S::and(S::shr(*w, shift as i32), mask);
        }
        w
    }
}

impl Format for Q8_0 {
    const OFFSET: i32 = 128;
    const MAX: i32 = 255;
    const HALVES: bool = false;
    const MINS: bool = false;

    #[inline(always)]
    unsafe fn block<S: Simd>(p: *const u8, kb: usize, lane0: usize) -> Block<S> {
        // SAFETY: block `kb` lies inside the panel, see `panel`'s table.
        unsafe {
            let (q, d) = of_two::<S, Q8_QUADS>(p, kb, lane0);
            Block { w: load8::<S>(q, lane0), scale: [d; 2], min: [S::splat(0.0); 2] }
        }
    }
}

impl Format for Q4_0 {
    const OFFSET: i32 = 8;
    const MAX: i32 = 15;
    const HALVES: bool = false;
    const MINS: bool = false;

    #[inline(always)]
    unsafe fn block<S: Simd>(p: *const u8, kb: usize, lane0: usize) -> Block<S> {
        // SAFETY: block `kb` lies inside the panel, see `panel`'s table.
        unsafe {
            let (q, d) = of_two::<S, Q4_QUADS>(p, kb, lane0);
            let nibble = S::splat_w(15);
            let mut w = [nibble; 8];
            for v in 0..4 {
                let both = S::load_w(q.add(64 * v + 4 * lane0));
                w[v] = S::and(both, nibble);
                w[v + 4] = S::and(S::shr(both, 4), nibble);
            }
            Block { w, scale: [d; 2], min: [S::splat(0.0); 2] }
        }
    }
}

impl Format for Q5_0 {
    const OFFSET: i32 = 16;
    const MAX: i32 = 31;
    const HALVES: bool = false;
    const MINS: bool = false;

    #[inline(always)]
    unsafe fn block<S: Simd>(p: *const u8, kb: usize, lane0: usize) -> Block<S> {
        // SAFETY: block `kb` lies inside the panel, see `panel`'s table.
        unsafe {
            let (q, d) = of_two::<S, Q5_QUADS>(p, kb, lane0);
            let q = q.add(4 * lane0);
            let (nibble, fifth) = (S::splat_w(15), S::splat_w(16));
            let high = S::load_w(q.add(256));
            let mut w = [nibble; 8];
            for v in 0..4 {
                let both = S::load_w(q.add(64 * v));
                // Bit v to bit 4, bit v + 4 down to it.
                let (up, down) = (S::shl(high, 4 - v as i32), S::shr(high, v as i32));
                w[v] = S::or(S::and(both, nibble), S::and(up, fifth));
                w[v + 4] = S::or(S::and(S::shr(both, 4), nibble), S::and(down, fifth));
            }
            Block { w, scale: [d; 2], min: [S::splat(0.0); 2] }
        }
    }
}

/// Scale and (negated) minimum of sub-block `kb % 8` of the Q4_K or Q5_K superblock at `s`.
#[inline(always)]
unsafe fn k_scales<S: Simd>(s: *const u8, kb: usize, lane0: usize) -> (S::F, S::F) {
    // SAFETY: the superblock has these scales.
    unsafe {
        let at = PANEL * (kb % 8) + lane0;
        let d = S::load_f16(s.add(2 * lane0).cast());
        let dmin = S::load_f16(s.add(32 + 2 * lane0).cast());
        let min = S::mul(dmin, S::load_u8(s.add(192 + at)));
        (S::mul(d, S::load_u8(s.add(64 + at))), S::mul(min, S::splat(-1.0)))
    }
}

/// The nibbles of sub-block `kb % 8` of a superblock: pairs of sub-blocks share bytes.
#[inline(always)]
unsafe fn k_nibbles<S: Simd>(quads: *const u8, kb: usize, lane0: usize) -> [S::W; 8] {
    // SAFETY: eight quads for each pair of sub-blocks.
    unsafe { bits8::<S>(load8::<S>(quads.add(512 * (kb % 8 / 2)), lane0), 4 * (kb % 2), 15) }
}

/// Adds `high << 4` to `low`, byte by byte; both stay within their bits.
#[inline(always)]
unsafe fn join<S: Simd>(mut low: [S::W; 8], high: [S::W; 8]) -> [S::W; 8] {
    // SAFETY: arithmetic only.
    unsafe {
        for v in 0..8 {
            low[v] = S::or(low[v], S::shl(high[v], 4));
        }
        low
    }
}

impl Format for Q4K {
    const OFFSET: i32 = 0;
    const MAX: i32 = 15;
    const HALVES: bool = false;
    const MINS: bool = true;

    #[inline(always)]
    unsafe fn block<S: Simd>(p: *const u8, kb: usize, lane0: usize) -> Block<S> {
        // SAFETY: block `kb` lies inside the panel, see `panel`'s table.
        unsafe {
            let p = p.add(kb / 8 * Q4K_BYTES);
            let (scale, min) = k_scales::<S>(p, kb, lane0);
            let w = k_nibbles::<S>(p.add(K_SCALES), kb, lane0);
            Block { w, scale: [scale; 2], min: [min; 2] }
        }
    }
}

impl Format for Q5K {
    const OFFSET: i32 = 0;
    const MAX: i32 = 31;
    const HALVES: bool = false;
    const MINS: bool = true;

    #[inline(always)]
    unsafe fn block<S: Simd>(p: *const u8, kb: usize, lane0: usize) -> Block<S> {
        // SAFETY: block `kb` lies inside the panel, see `panel`'s table.
        unsafe {
            let p = p.add(kb / 8 * Q5K_BYTES);
            let (scale, min) = k_scales::<S>(p, kb, lane0);
            let q = p.add(K_SCALES);
            let low = k_nibbles::<S>(q, kb, lane0);
            let high = bits8::<S>(load8::<S>(q.add(2048), lane0), kb % 8, 1);
            let w = join::<S>(low, high);
            Block { w, scale: [scale; 2], min: [min; 2] }
        }
    }
}

impl Format for Q6K {
    const OFFSET: i32 = 32;
    const MAX: i32 = 63;
    const HALVES: bool = true;
    const MINS: bool = false;

    /// Half a superblock (128 k) has 64 bytes of nibbles a row and 32 of pairs of upper bits.
    #[inline(always)]
    unsafe fn block<S: Simd>(p: *const u8, kb: usize, lane0: usize) -> Block<S> {
        // SAFETY: block `kb` lies inside the panel, see `panel`'s table.
        unsafe {
            let (half, j) = (kb % 8 / 4, kb % 4);
            let s = p.add(kb / 8 * Q6K_BYTES);
            let d = S::load_f16(s.add(2 * lane0).cast());
            let at = 32 + PANEL * 2 * (kb % 8) + lane0;
            let scale = [
                S::mul(d, S::load_i8(s.add(at).cast())),
                S::mul(d, S::load_i8(s.add(at + PANEL).cast())),
            ];
            let q = s.add(Q6_SCALES + 1536 * half);
            let low = load8::<S>(q.add(512 + 512 * (j % 2)), lane0);
            let high = load8::<S>(q, lane0);
            let w = join::<S>(bits8::<S>(low, 4 * (j / 2), 15), bits8::<S>(high, 2 * j, 3));
            Block { w, scale, min: [S::splat(0.0); 2] }
        }
    }
}

impl Format for Bytes {
    const OFFSET: i32 = 128;
    const MAX: i32 = 255;
    const HALVES: bool = true;
    const MINS: bool = true;

    #[inline(always)]
    unsafe fn block<S: Simd>(p: *const u8, kb: usize, lane0: usize) -> Block<S> {
        // SAFETY: block `kb` lies inside the panel, see `panel`'s table.
        unsafe {
            let (s, q) =
                (p.add(BYTES_BYTES * kb + 4 * lane0), p.add(BYTES_BYTES * kb + BYTES_SCALES));
            Block {
                w: load8::<S>(q, lane0),
                scale: [S::load(s.cast()), S::load(s.add(64).cast())],
                min: [S::load(s.add(128).cast()), S::load(s.add(192).cast())],
            }
        }
    }
}
