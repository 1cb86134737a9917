//! Weights packed in panels: sixteen output rows side by side, one vector lane each.
//!
//! A product then needs no horizontal sum, the order of accumulation is that of k, and one row or
//! five hundred rows of activations take the same steps for each output. Floats are stored as
//! `[k][16]`, bfloat16s as `[k / 2][16][2]`. Quantised weights keep their bits: for each block of
//! 32 k a panel holds "quads", 64 bytes with four consecutive bytes of each of the sixteen rows.
//! The scales of the sixteen rows stand beside the quads that they belong to, so that a product
//! reads a panel as one stream from its first byte to its last: two streams, quads and then
//! scales, took half as long again from memory.
//!
//! | format | a group | has |
//! |---|---|---|
//! | Q8_0 | 64 k | 2 x f16 d, then 2 x 512 bytes of quads (w + 128) |
//! | Q4_0 | 64 k | 2 x f16 d, 2 x 256 (low nibbles k 0-15, high 16-31) |
//! | Q5_0 | 64 k | 2 x f16 d, 2 x (256 + 64: bit v of byte j is the fifth of k = 4 v + j) |
//! | Q4_K | 256 k | f16 d, f16 dmin, 8 x u8 scale, 8 x u8 min, 2048 |
//! | Q5_K | 256 k | the same, 2048, 512 (fifth bits) |
//! | Q6_K | 256 k | f16 d, 16 x i8 scale, 2 x (512 of upper bits, 1024) |
//! | Bytes | 32 k | 2 x f32 scale, 2 x f32 min (halves of 16 k), 512 (w + 128) |
//!
//! `Bytes` takes every other GGUF format without loss, at 12 bits a weight.

use crate::activations::SMALLEST;
use crate::blocks::{self, BlockType};
use crate::buffer::{Buffer, OutOfMemory, SharedMut};
use crate::pool::Pool;
use crate::simd::{Isa, PANEL};

/// How the weights of a [`Packed`] matrix are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Layout {
    F32,
    F16,
    Bf16,
    Q8_0,
    Q4_0,
    Q5_0,
    Q4K,
    Q5K,
    Q6K,
    /// Signed bytes with a scale and a minimum for each 16: any other block format, losslessly.
    Bytes,
}

impl Layout {
    /// The layout that takes `ty`.
    pub fn of(ty: BlockType) -> Self {
        match ty {
            BlockType::F32 => Layout::F32,
            BlockType::F16 => Layout::F16,
            BlockType::BF16 => Layout::Bf16,
            BlockType::Q8_0 => Layout::Q8_0,
            BlockType::Q4_0 => Layout::Q4_0,
            BlockType::Q5_0 => Layout::Q5_0,
            BlockType::Q4_K => Layout::Q4K,
            BlockType::Q5_K => Layout::Q5K,
            BlockType::Q6_K => Layout::Q6K,
            _ => Layout::Bytes,
        }
    }

    /// Bytes of a panel for `k` inputs.
    pub(crate) fn panel_bytes(self, k: usize) -> usize {
        match self {
            Layout::F32 => k * PANEL * 4,
            Layout::F16 => k * PANEL * 2,
            Layout::Bf16 => k.next_multiple_of(2) * PANEL * 2,
            Layout::Q8_0 => k.div_ceil(64) * two_blocks(Q8_QUADS),
            Layout::Q4_0 => k.div_ceil(64) * two_blocks(Q4_QUADS),
            Layout::Q5_0 => k.div_ceil(64) * two_blocks(Q5_QUADS),
            Layout::Q4K => k / 256 * Q4K_BYTES,
            Layout::Q5K => k / 256 * Q5K_BYTES,
            Layout::Q6K => k / 256 * Q6K_BYTES,
            Layout::Bytes => k / 32 * BYTES_BYTES,
        }
    }

    /// Whether products quantise the activations to 8 bits (unless exactness is asked for).
    pub fn is_quantised(self) -> bool {
        !matches!(self, Layout::F32 | Layout::F16 | Layout::Bf16)
    }
}

/// Bytes of quads of a block of 32.
pub(crate) const Q8_QUADS: usize = 512;
pub(crate) const Q4_QUADS: usize = 256;
pub(crate) const Q5_QUADS: usize = 320;
/// Scale bytes of a Q4_K or Q5_K superblock of a panel: d, dmin, scales, mins.
pub(crate) const K_SCALES: usize = 32 + 32 + 8 * 16 + 8 * 16;
/// Scale bytes of a Q6_K superblock of a panel.
pub(crate) const Q6_SCALES: usize = 32 + 16 * 16;
/// Scale bytes of a block of 32 in [`Layout::Bytes`].
pub(crate) const BYTES_SCALES: usize = 4 * 64;
/// Bytes of a group, scales and quads.
pub(crate) const Q4K_BYTES: usize = K_SCALES + 2048;
pub(crate) const Q5K_BYTES: usize = K_SCALES + 2560;
pub(crate) const Q6K_BYTES: usize = Q6_SCALES + 3072;
pub(crate) const BYTES_BYTES: usize = BYTES_SCALES + 512;

/// Bytes of a group of two blocks with `quads` bytes of quads each, and a half for each row.
pub(crate) const fn two_blocks(quads: usize) -> usize {
    2 * (quads + 2 * PANEL)
}

/// A weight matrix of `n` output rows and `k` inputs, ready for products.
pub struct Packed {
    /// Output rows.
    pub n: usize,
    /// Inputs of each row.
    pub k: usize,
    /// The type that the weights came in.
    pub source: BlockType,
    /// How they are stored.
    pub layout: Layout,
    data: Buffer,
}

/// Where the rows of a matrix are, before packing.
#[derive(Clone, Copy)]
pub struct Rows<'a> {
    /// The type of the elements.
    pub ty: BlockType,
    /// Output rows.
    pub n: usize,
    /// Inputs.
    pub k: usize,
    /// The data, row after row.
    pub bytes: &'a [u8],
}

/// Why a matrix can't be packed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PackError {
    /// The bytes are not n x k elements, or k is no multiple of the block.
    Shape(String),
    /// A NaN or an infinity in this row.
    NotFinite {
        /// The output row.
        row: usize,
    },
    /// No memory.
    OutOfMemory(OutOfMemory),
}

impl std::fmt::Display for PackError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            PackError::Shape(s) => f.write_str(s),
            PackError::NotFinite { row } => {
                write!(f, "row {row} holds a NaN or an infinity (a damaged file?)")
            }
            PackError::OutOfMemory(e) => e.fmt(f),
        }
    }
}

impl std::error::Error for PackError {}

impl Packed {
    /// Packs `rows` with the threads of `pool`. `done` is told of each range of source bytes that
    /// is no longer needed, so that a mapped file's pages can leave memory.
    ///
    /// # Errors
    /// [`PackError`].
    pub fn new(
        rows: Rows,
        pool: &Pool,
        done: &(dyn Fn(std::ops::Range<usize>) + Sync),
    ) -> Result<Self, PackError> {
        let Rows { ty, n, k, bytes } = rows;
        let row_bytes = check_shape(&rows)?;
        let layout = Layout::of(ty);
        let panel_bytes = layout.panel_bytes(k);
        let panels = n.div_ceil(PANEL);
        let size = panel_bytes.checked_mul(panels);
        let size = size.ok_or(PackError::OutOfMemory(OutOfMemory(usize::MAX)))?;
        let mut data = Buffer::zeroed(size).map_err(PackError::OutOfMemory)?;
        let out = SharedMut(data.as_mut_ptr());
        let bad = std::sync::atomic::AtomicUsize::new(usize::MAX);
        // Tasks of about a megabyte, so that mapped pages leave soon after they were read.
        let each = ((1 << 20) / (PANEL * row_bytes)).max(1);
        pool.run(panels.div_ceil(each), &|task| {
            let range = task * each..((task + 1) * each).min(panels);
            for panel in range.clone() {
                let rows = panel * PANEL..((panel + 1) * PANEL).min(n);
                // SAFETY: each panel is packed by one task, and the buffer holds all of them.
                let dst = unsafe {
                    std::slice::from_raw_parts_mut(out.at(panel * panel_bytes), panel_bytes)
                };
                let src = &bytes[rows.start * row_bytes..rows.end * row_bytes];
                let result = pack_panel(ty, src, row_bytes, dst);
                if let Err(lane) = result {
                    bad.fetch_min(rows.start + lane, std::sync::atomic::Ordering::Relaxed);
                }
            }
            done(range.start * PANEL * row_bytes..(range.end * PANEL).min(n) * row_bytes);
        });
        match bad.into_inner() {
            usize::MAX => Ok(Self { n, k, source: ty, layout, data }),
            row => Err(PackError::NotFinite { row }),
        }
    }

    /// Bytes in memory.
    pub fn bytes(&self) -> usize {
        self.data.bytes().len()
    }

    /// Panel `p`.
    #[inline]
    pub(crate) fn panel(&self, p: usize) -> &[u8] {
        let bytes = self.layout.panel_bytes(self.k);
        &self.data.bytes()[p * bytes..(p + 1) * bytes]
    }

    /// The weights of output row `r` as f32: `out` has `k` places.
    ///
    /// # Panics
    /// If `r` or the length of `out` is out of range.
    pub fn row(&self, isa: Isa, r: usize, out: &mut [f32]) {
        assert!(r < self.n && out.len() == self.k, "row {r} of {} x {}", self.n, self.k);
        let panel = self.panel(r / PANEL);
        let lane = r % PANEL;
        match self.layout {
            Layout::F32 => {
                for (k, out) in out.iter_mut().enumerate() {
                    let at = (k * PANEL + lane) * 4;
                    *out = f32::from_le_bytes(panel[at..at + 4].try_into().unwrap_or_default());
                }
            }
            Layout::F16 | Layout::Bf16 => {
                for (k, out) in out.iter_mut().enumerate() {
                    let at = match self.layout {
                        Layout::F16 => (k * PANEL + lane) * 2,
                        _ => (k / 2 * PANEL + lane) * 4 + k % 2 * 2,
                    };
                    let bits = u16::from_le_bytes([panel[at], panel[at + 1]]);
                    *out = match self.layout {
                        Layout::F16 => blocks::f16_to_f32(bits),
                        _ => blocks::bf16_to_f32(bits),
                    };
                }
            }
            _ => crate::product::dequantize_row(isa, self, r, out),
        }
    }
}

fn check_shape(rows: &Rows) -> Result<usize, PackError> {
    let Rows { ty, n, k, bytes } = *rows;
    let shape = |s: String| Err(PackError::Shape(s));
    if n == 0 || k == 0 {
        return shape(format!("a matrix of {n} x {k} is empty"));
    }
    if !k.is_multiple_of(ty.block_len()) {
        return shape(format!(
            "rows of {k} are no multiple of {}'s block of {}",
            ty.name(),
            ty.block_len()
        ));
    }
    let row_bytes = (k / ty.block_len()).checked_mul(ty.block_bytes());
    match row_bytes.and_then(|b| b.checked_mul(n)) {
        Some(total) if total == bytes.len() => Ok(total / n),
        _ => shape(format!("{} bytes are not {n} x {k} of {}", bytes.len(), ty.name())),
    }
}

/// Packs up to sixteen rows; `Err` is the first row with a value that is not finite.
fn pack_panel(ty: BlockType, src: &[u8], row_bytes: usize, out: &mut [u8]) -> Result<(), usize> {
    for (lane, row) in src.chunks_exact(row_bytes).enumerate() {
        if blocks::check_finite(ty, row).is_err() {
            return Err(lane);
        }
    }
    let rows = (src, row_bytes);
    match ty {
        BlockType::F32 => interleave::<4>(src, row_bytes, out),
        BlockType::F16 => interleave::<2>(src, row_bytes, out),
        BlockType::BF16 => interleave_pairs(src, row_bytes, out),
        BlockType::Q8_0 => each_block::<34>(rows, |kb, lane, block| {
            let quads = pack_half::<Q8_QUADS>(block, kb, lane, out);
            scatter_quads(&block[2..], lane, quads, 0x8080_8080);
        }),
        BlockType::Q4_0 => each_block::<18>(rows, |kb, lane, block| {
            let quads = pack_half::<Q4_QUADS>(block, kb, lane, out);
            scatter_quads(&block[2..], lane, quads, 0);
        }),
        BlockType::Q5_0 => each_block::<22>(rows, |kb, lane, block| {
            pack_fifths(block, lane, pack_half::<Q5_QUADS>(block, kb, lane, out));
        }),
        BlockType::Q4_K => each_block::<144>(rows, |kb, lane, block| {
            pack_q45_k(block, lane, &mut out[kb * Q4K_BYTES..(kb + 1) * Q4K_BYTES]);
        }),
        BlockType::Q5_K => each_block::<176>(rows, |kb, lane, block| {
            pack_q45_k(block, lane, &mut out[kb * Q5K_BYTES..(kb + 1) * Q5K_BYTES]);
        }),
        BlockType::Q6_K => each_block::<210>(rows, |kb, lane, block| {
            pack_q6_k(block, lane, &mut out[kb * Q6K_BYTES..(kb + 1) * Q6K_BYTES]);
        }),
        _ => {
            for (lane, row) in src.chunks_exact(row_bytes).enumerate() {
                for (kb, out) in out.chunks_exact_mut(BYTES_BYTES).enumerate() {
                    pack_bytes(ty, row, kb, lane, out);
                }
            }
        }
    }
    Ok(())
}

/// Calls `f` with the index, the lane and the bytes of each block of `SIZE` bytes, the same block of
/// all rows before the next one.
fn each_block<const SIZE: usize>(
    (src, row_bytes): (&[u8], usize),
    mut f: impl FnMut(usize, usize, &[u8; SIZE]),
) {
    for kb in 0..row_bytes / SIZE {
        for (lane, row) in src.chunks_exact(row_bytes).enumerate() {
            if let Some((block, _)) = row[kb * SIZE..].split_first_chunk() {
                f(kb, lane, block);
            }
        }
    }
}

/// Elements of `SIZE` bytes: `[row][k]` to `[k][16]`.
fn interleave<const SIZE: usize>(src: &[u8], row_bytes: usize, out: &mut [u8]) {
    if src.len() < PANEL * row_bytes {
        for (lane, row) in src.chunks_exact(row_bytes).enumerate() {
            for (src, dst) in row.chunks_exact(SIZE).zip(out.chunks_exact_mut(SIZE * PANEL)) {
                dst[lane * SIZE..(lane + 1) * SIZE].copy_from_slice(src);
            }
        }
        return;
    }
    let rows: [&[u8]; PANEL] = std::array::from_fn(|r| &src[r * row_bytes..(r + 1) * row_bytes]);
    for (k, dst) in out.chunks_exact_mut(SIZE * PANEL).enumerate() {
        for (row, dst) in rows.iter().zip(dst.chunks_exact_mut(SIZE)) {
            dst.copy_from_slice(&row[k * SIZE..(k + 1) * SIZE]);
        }
    }
}

/// bfloat16s: `[row][k]` to `[k / 2][16][2]`. Magnitudes below 2^-56 become zero, see
/// [`crate::PairRows`].
fn interleave_pairs(src: &[u8], row_bytes: usize, out: &mut [u8]) {
    if src.len() == PANEL * row_bytes && row_bytes.is_multiple_of(4) {
        // A pair of all rows before the next one: what is written is written once, in order.
        let rows: [&[[u8; 4]]; PANEL] =
            std::array::from_fn(|r| src[r * row_bytes..(r + 1) * row_bytes].as_chunks().0);
        let (words, _) = out.as_chunks_mut::<4>();
        for (p, dst) in words.as_chunks_mut::<PANEL>().0.iter_mut().enumerate() {
            for (row, dst) in rows.iter().zip(dst) {
                *dst = large_pair(row[p]);
            }
        }
        return;
    }
    for (lane, row) in src.chunks_exact(row_bytes).enumerate() {
        for (pair, dst) in row.chunks(4).zip(out.chunks_exact_mut(4 * PANEL)) {
            let mut both = [0; 4];
            both[..pair.len()].copy_from_slice(pair);
            dst[4 * lane..4 * lane + 4].copy_from_slice(&large_pair(both));
        }
    }
}

/// Two bfloat16s, those below 2^-56 as zero.
#[inline(always)]
fn large_pair(pair: [u8; 4]) -> [u8; 4] {
    let both = u32::from_le_bytes(pair);
    let low = if both & 0x7fff < SMALLEST { 0 } else { both & 0xffff };
    let high = if both >> 16 & 0x7fff < SMALLEST { 0 } else { both & 0xffff_0000 };
    (low | high).to_le_bytes()
}

/// The bytes of a row's block to its lane of consecutive quads, each exclusive-ored with `flip`.
fn scatter_quads(bytes: &[u8], lane: usize, quads: &mut [u8], flip: u32) {
    for (src, dst) in bytes.chunks_exact(4).zip(quads.chunks_exact_mut(64)) {
        let word = u32::from_le_bytes([src[0], src[1], src[2], src[3]]) ^ flip;
        dst[4 * lane..4 * lane + 4].copy_from_slice(&word.to_le_bytes());
    }
}

/// Writes the half that block `kb` begins with; returns the block's quads, `QUADS` bytes.
fn pack_half<'a, const QUADS: usize>(
    block: &[u8],
    kb: usize,
    lane: usize,
    out: &'a mut [u8],
) -> &'a mut [u8] {
    let size = two_blocks(QUADS);
    let group = &mut out[kb / 2 * size..(kb / 2 + 1) * size];
    let (halves, quads) = group.split_at_mut(2 * 2 * PANEL);
    let at = 2 * PANEL * (kb % 2) + 2 * lane;
    halves[at..at + 2].copy_from_slice(&block[..2]);
    &mut quads[kb % 2 * QUADS..(kb % 2 + 1) * QUADS]
}

/// Q5_0: after the half 32 fifth bits and 16 bytes of nibbles.
fn pack_fifths(block: &[u8; 22], lane: usize, quads: &mut [u8]) {
    scatter_quads(&block[6..], lane, quads, 0);
    let fifth = u32::from_le_bytes([block[2], block[3], block[4], block[5]]);
    for j in 0..4 {
        // Every fourth bit, brought together: each multiple shifts one of them into the top byte.
        let bits = u64::from(fifth >> j & 0x1111_1111);
        let even = bits & 0x0101_0101;
        let odd = bits >> 4 & 0x0101_0101;
        let gather = |b: u64| b.wrapping_mul(0x0104_1040) >> 24 & 0x55;
        quads[256 + 4 * lane + j] = (gather(even) | gather(odd) << 1) as u8;
    }
}

/// Q4_K, and Q5_K with 32 bytes of fifth bits before the nibbles.
fn pack_q45_k(block: &[u8], lane: usize, out: &mut [u8]) {
    let (scales, quads) = out.split_at_mut(K_SCALES);
    scales[2 * lane..2 * lane + 2].copy_from_slice(&block[..2]);
    scales[32 + 2 * lane..34 + 2 * lane].copy_from_slice(&block[2..4]);
    for j in 0..8 {
        let (scale, min) = blocks::scale_min(j, &block[4..16]);
        scales[64 + 16 * j + lane] = scale;
        scales[192 + 16 * j + lane] = min;
    }
    let (nibbles, fifth) = quads.split_at_mut(2048);
    scatter_quads(&block[block.len() - 128..], lane, nibbles, 0);
    scatter_quads(&block[16..block.len() - 128], lane, fifth, 0);
}

fn pack_q6_k(block: &[u8], lane: usize, out: &mut [u8]) {
    let (scales, quads) = out.split_at_mut(Q6_SCALES);
    scales[2 * lane..2 * lane + 2].copy_from_slice(&block[208..]);
    for j in 0..16 {
        scales[32 + 16 * j + lane] = block[192 + j];
    }
    for (half, quads) in quads.chunks_exact_mut(1536).enumerate() {
        let (upper, nibbles) = quads.split_at_mut(512);
        scatter_quads(&block[128 + 32 * half..160 + 32 * half], lane, upper, 0);
        scatter_quads(&block[64 * half..64 * half + 64], lane, nibbles, 0);
    }
}

/// Any other format, as integers.
fn pack_bytes(ty: BlockType, row: &[u8], kb: usize, lane: usize, out: &mut [u8]) {
    let parts = crate::integers::integers(ty, row, kb);
    let (scales, quads) = out.split_at_mut(BYTES_SCALES);
    let values = [parts.scale[0], parts.scale[1], parts.min[0], parts.min[1]];
    for (i, v) in values.into_iter().enumerate() {
        scales[64 * i + 4 * lane..64 * i + 4 * lane + 4].copy_from_slice(&v.to_le_bytes());
    }
    let bytes = parts.q.map(|q| (q as u8) ^ 0x80);
    scatter_quads(&bytes, lane, quads, 0);
}
