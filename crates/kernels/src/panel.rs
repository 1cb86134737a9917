//! Weights packed in panels: sixteen output rows side by side, one vector lane each.
//!
//! A product then needs no horizontal sum, the order of accumulation is that of k, and one row or
//! five hundred rows of activations take the same steps for each output. Floats are stored as
//! `[k][16]`, bfloat16s as `[k / 2][16][2]`. Quantised weights keep their bits: for each block of 32 k a panel holds "quads", 64
//! bytes with four consecutive bytes of each of the sixteen rows, and the scales of the sixteen
//! rows stand together after all the quads of the panel.
//!
//! | format | quad bytes | scale bytes | per |
//! |---|---|---|---|
//! | Q8_0 | 512 (w + 128) | f16 d | 32 k |
//! | Q4_0 | 256 (low nibbles k 0-15, high 16-31) | f16 d | 32 k |
//! | Q5_0 | 256 + 64 (fifth bits: bit v of byte j is that of k = 4 v + j) | f16 d | 32 k |
//! | Q4_K | 2048 | f16 d, f16 dmin, 8 x u8 scale, 8 x u8 min | 256 k |
//! | Q5_K | 2048 + 512 (fifth bits) | as Q4_K | 256 k |
//! | Q6_K | 2048 + 1024 (upper bits) | f16 d, 16 x i8 scale | 256 k |
//! | Bytes | 512 (w + 128) | 2 x f32 scale, 2 x f32 min (halves of 16 k) | 32 k |
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

    /// Bytes of quads and of scales that one panel takes for `k` inputs.
    pub(crate) fn panel_bytes(self, k: usize) -> (usize, usize) {
        match self {
            Layout::F32 => (k * PANEL * 4, 0),
            Layout::F16 => (k * PANEL * 2, 0),
            Layout::Bf16 => (k.next_multiple_of(2) * PANEL * 2, 0),
            Layout::Q8_0 => (k / 32 * 512, k / 32 * 32),
            Layout::Q4_0 => (k / 32 * 256, k / 32 * 32),
            Layout::Q5_0 => (k / 32 * 320, k / 32 * 32),
            Layout::Q4K => (k / 256 * 2048, k / 256 * K_SCALES),
            Layout::Q5K => (k / 256 * 2560, k / 256 * K_SCALES),
            Layout::Q6K => (k / 256 * 3072, k / 256 * Q6_SCALES),
            Layout::Bytes => (k / 32 * 512, k / 32 * BYTES_SCALES),
        }
    }

    /// Whether products quantise the activations to 8 bits (unless exactness is asked for).
    pub fn is_quantised(self) -> bool {
        !matches!(self, Layout::F32 | Layout::F16 | Layout::Bf16)
    }
}

/// Scale bytes of a Q4_K or Q5_K superblock of a panel: d, dmin, scales, mins.
pub(crate) const K_SCALES: usize = 32 + 32 + 8 * 16 + 8 * 16;
/// Scale bytes of a Q6_K superblock of a panel.
pub(crate) const Q6_SCALES: usize = 32 + 16 * 16;
/// Scale bytes of a block of 32 in [`Layout::Bytes`].
pub(crate) const BYTES_SCALES: usize = 4 * 64;

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
        let (quads, scales) = layout.panel_bytes(k);
        let panels = n.div_ceil(PANEL);
        let size = (quads + scales).checked_mul(panels);
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
                    std::slice::from_raw_parts_mut(out.at(panel * (quads + scales)), quads + scales)
                };
                let src = &bytes[rows.start * row_bytes..rows.end * row_bytes];
                let result = pack_panel(ty, src, row_bytes, k, dst.split_at_mut(quads));
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

    /// Quads and scales of panel `p`.
    #[inline]
    pub(crate) fn panel(&self, p: usize) -> (&[u8], &[u8]) {
        let (quads, scales) = self.layout.panel_bytes(self.k);
        let all = &self.data.bytes()[p * (quads + scales)..(p + 1) * (quads + scales)];
        all.split_at(quads)
    }

    /// The weights of output row `r` as f32: `out` has `k` places.
    ///
    /// # Panics
    /// If `r` or the length of `out` is out of range.
    pub fn row(&self, isa: Isa, r: usize, out: &mut [f32]) {
        assert!(r < self.n && out.len() == self.k, "row {r} of {} x {}", self.n, self.k);
        let (quads, _) = self.panel(r / PANEL);
        let lane = r % PANEL;
        match self.layout {
            Layout::F32 => {
                for (k, out) in out.iter_mut().enumerate() {
                    let at = (k * PANEL + lane) * 4;
                    *out = f32::from_le_bytes(quads[at..at + 4].try_into().unwrap_or_default());
                }
            }
            Layout::F16 | Layout::Bf16 => {
                for (k, out) in out.iter_mut().enumerate() {
                    let at = match self.layout {
                        Layout::F16 => (k * PANEL + lane) * 2,
                        _ => (k / 2 * PANEL + lane) * 4 + k % 2 * 2,
                    };
                    let bits = u16::from_le_bytes([quads[at], quads[at + 1]]);
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
fn pack_panel(
    ty: BlockType,
    src: &[u8],
    row_bytes: usize,
    k: usize,
    (quads, scales): (&mut [u8], &mut [u8]),
) -> Result<(), usize> {
    for (lane, row) in src.chunks_exact(row_bytes).enumerate() {
        if blocks::check_finite(ty, row).is_err() {
            return Err(lane);
        }
    }
    match ty {
        BlockType::F32 => interleave::<4>(src, row_bytes, quads),
        BlockType::F16 => interleave::<2>(src, row_bytes, quads),
        BlockType::BF16 => interleave_pairs(src, row_bytes, quads),
        _ => {
            for (lane, row) in src.chunks_exact(row_bytes).enumerate() {
                match ty {
                    BlockType::Q8_0 => pack_plain::<34>(row, lane, quads, scales, 0x8080_8080),
                    BlockType::Q4_0 => pack_plain::<18>(row, lane, quads, scales, 0),
                    BlockType::Q5_0 => pack_q5_0(row, lane, quads, scales),
                    BlockType::Q4_K => pack_q45_k::<144>(row, lane, quads, scales),
                    BlockType::Q5_K => pack_q45_k::<176>(row, lane, quads, scales),
                    BlockType::Q6_K => pack_q6_k(row, lane, quads, scales),
                    _ => pack_bytes(ty, row, k, lane, quads, scales),
                }
            }
        }
    }
    Ok(())
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
    let large = |b: &[u8]| {
        let bits = u16::from_le_bytes([b[0], b[1]]);
        if u32::from(bits & 0x7fff) < SMALLEST { 0 } else { u32::from(bits) }
    };
    for (lane, row) in src.chunks_exact(row_bytes).enumerate() {
        for (pair, dst) in row.chunks(4).zip(out.chunks_exact_mut(4 * PANEL)) {
            let second = if pair.len() == 4 { large(&pair[2..]) } else { 0 };
            let word = large(pair) | second << 16;
            dst[4 * lane..4 * lane + 4].copy_from_slice(&word.to_le_bytes());
        }
    }
}

/// The bytes of a row's block to its lane of consecutive quads, each exclusive-ored with `flip`.
fn scatter_quads(bytes: &[u8], lane: usize, quads: &mut [u8], flip: u32) {
    for (src, dst) in bytes.chunks_exact(4).zip(quads.chunks_exact_mut(64)) {
        let word = u32::from_le_bytes([src[0], src[1], src[2], src[3]]) ^ flip;
        dst[4 * lane..4 * lane + 4].copy_from_slice(&word.to_le_bytes());
    }
}

/// Q8_0 and Q4_0: blocks of `BYTES`, a half and then the integers.
fn pack_plain<const BYTES: usize>(
    row: &[u8],
    lane: usize,
    quads: &mut [u8],
    scales: &mut [u8],
    flip: u32,
) {
    let blocks = row.chunks_exact(BYTES).zip(quads.chunks_exact_mut((BYTES - 2) * PANEL));
    for ((block, quads), scales) in blocks.zip(scales.chunks_exact_mut(2 * PANEL)) {
        scales[2 * lane..2 * lane + 2].copy_from_slice(&block[..2]);
        scatter_quads(&block[2..], lane, quads, flip);
    }
}

/// Q5_0: a half, 32 fifth bits, 16 bytes of nibbles.
fn pack_q5_0(row: &[u8], lane: usize, quads: &mut [u8], scales: &mut [u8]) {
    let blocks = row.chunks_exact(22).zip(quads.chunks_exact_mut(320));
    for ((block, quads), scales) in blocks.zip(scales.chunks_exact_mut(2 * PANEL)) {
        scales[2 * lane..2 * lane + 2].copy_from_slice(&block[..2]);
        scatter_quads(&block[6..], lane, quads, 0);
        let fifth = u32::from_le_bytes([block[2], block[3], block[4], block[5]]);
        for j in 0..4 {
            let bits = (0..8).fold(0, |bits, v| bits | (fifth >> (4 * v + j) & 1) << v);
            quads[256 + 4 * lane + j] = bits as u8;
        }
    }
}

/// Q4_K (144 bytes a superblock) and Q5_K (176: 32 bytes of fifth bits before the nibbles).
fn pack_q45_k<const BYTES: usize>(row: &[u8], lane: usize, quads: &mut [u8], scales: &mut [u8]) {
    let quad_bytes = (BYTES - 16) * PANEL;
    let blocks = row.chunks_exact(BYTES).zip(quads.chunks_exact_mut(quad_bytes));
    for ((block, quads), scales) in blocks.zip(scales.chunks_exact_mut(K_SCALES)) {
        scales[2 * lane..2 * lane + 2].copy_from_slice(&block[..2]);
        scales[32 + 2 * lane..34 + 2 * lane].copy_from_slice(&block[2..4]);
        for j in 0..8 {
            let (scale, min) = blocks::scale_min(j, &block[4..16]);
            scales[64 + 16 * j + lane] = scale;
            scales[192 + 16 * j + lane] = min;
        }
        let (nibbles, fifth) = quads.split_at_mut(2048);
        scatter_quads(&block[BYTES - 128..], lane, nibbles, 0);
        scatter_quads(&block[16..BYTES - 128], lane, fifth, 0);
    }
}

fn pack_q6_k(row: &[u8], lane: usize, quads: &mut [u8], scales: &mut [u8]) {
    let blocks = row.chunks_exact(210).zip(quads.chunks_exact_mut(3072));
    for ((block, quads), scales) in blocks.zip(scales.chunks_exact_mut(Q6_SCALES)) {
        scales[2 * lane..2 * lane + 2].copy_from_slice(&block[208..]);
        for j in 0..16 {
            scales[32 + 16 * j + lane] = block[192 + j];
        }
        scatter_quads(&block[..192], lane, quads, 0);
    }
}

/// Any other format: recovers the integers of each 16 weights from the dequantised values.
fn pack_bytes(
    ty: BlockType,
    row: &[u8],
    k: usize,
    lane: usize,
    quads: &mut [u8],
    scales: &mut [u8],
) {
    for kb in 0..k / 32 {
        let parts = crate::integers::integers(ty, row, kb);
        let scales = &mut scales[kb * BYTES_SCALES..(kb + 1) * BYTES_SCALES];
        let values = [parts.scale[0], parts.scale[1], parts.min[0], parts.min[1]];
        for (i, v) in values.into_iter().enumerate() {
            scales[64 * i + 4 * lane..64 * i + 4 * lane + 4].copy_from_slice(&v.to_le_bytes());
        }
        let bytes = parts.q.map(|q| (q as u8) ^ 0x80);
        scatter_quads(&bytes, lane, &mut quads[kb * 512..(kb + 1) * 512], 0);
    }
}
