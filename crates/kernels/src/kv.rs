//! The keys and values of one layer, in blocks of 32 positions.
//!
//! A sequence's block table says where its logical blocks lie, so that blocks can be handed out,
//! shared and freed without moving anything. Inside a block each KV head has its keys as two panels
//! `[head_dim][16 positions]` (a score is then a product with a packed matrix: no horizontal sums)
//! and its values as rows `[32 positions][head_dim]`. In 8 bits, 32 neighbouring elements of a key or
//! a value share a factor: `[head_dim / 32][16 positions]` of them follow each panel of keys, and
//! `[head_dim / 32]` each row of values.

use crate::blocks::f32_to_f16;
use crate::buffer::{Buffer, OutOfMemory};
use crate::simd::PANEL;

/// Positions in a block.
pub const KV_BLOCK: usize = 32;

/// The type that keys and values are kept in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KvType {
    /// 32-bit floats: what the reference implementations compute with.
    F32,
    /// Half precision: half the memory and half the reading.
    F16,
    /// 8-bit integers, with an f32 factor for each 32: nine bits an element.
    Q8,
}

/// Elements of a key or a value that share a factor.
pub(crate) const GROUP: usize = 32;

impl KvType {
    /// Bytes of a key or a value of `head_dim` elements.
    pub fn row_bytes(self, head_dim: usize) -> usize {
        match self {
            KvType::F32 => 4 * head_dim,
            KvType::F16 => 2 * head_dim,
            KvType::Q8 => head_dim.next_multiple_of(4) + 4 * head_dim.div_ceil(GROUP),
        }
    }
}

/// Keys and values of one layer.
pub struct KvLayer {
    /// KV heads.
    pub heads: usize,
    /// Elements of a key or a value of one head.
    pub head_dim: usize,
    /// Element type.
    pub ty: KvType,
    blocks: Vec<Buffer>,
}

impl KvLayer {
    /// A layer with no blocks yet.
    pub fn new(heads: usize, head_dim: usize, ty: KvType) -> Self {
        Self { heads, head_dim, ty, blocks: Vec::new() }
    }

    /// Bytes of one block.
    pub fn block_bytes(&self) -> usize {
        self.heads * self.head_bytes()
    }

    /// Bytes of all blocks.
    pub fn bytes(&self) -> usize {
        self.blocks.iter().map(|b| b.bytes().len()).sum()
    }

    fn head_bytes(&self) -> usize {
        2 * KV_BLOCK * self.ty.row_bytes(self.head_dim)
    }

    /// Makes sure that blocks `0..count` exist.
    ///
    /// # Errors
    /// If there is no memory.
    pub fn grow(&mut self, count: usize) -> Result<(), OutOfMemory> {
        (self.blocks.len()..count).try_for_each(|block| self.provide(block))
    }

    /// Makes sure that block `block` exists; the others stay as they are.
    ///
    /// # Errors
    /// If there is no memory.
    pub fn provide(&mut self, block: usize) -> Result<(), OutOfMemory> {
        while self.blocks.len() <= block {
            self.blocks.push(Buffer::default());
        }
        if self.blocks[block].bytes().is_empty() {
            self.blocks[block] = Buffer::zeroed(self.block_bytes())?;
        }
        Ok(())
    }

    /// Gives the memory of block `block` back; it must be provided again before it is used.
    pub fn release(&mut self, block: usize) {
        if let Some(b) = self.blocks.get_mut(block) {
            *b = Buffer::default();
        }
    }

    /// Writes the key and the value (`heads * head_dim` each) of `position` into block `block`.
    /// Half precision saturates: an infinity would poison rows that merely pass by.
    ///
    /// # Panics
    /// If the block does not exist or the lengths are wrong.
    pub fn write(&mut self, block: usize, position: usize, k: &[f32], v: &[f32]) {
        let (heads, dim, ty) = (self.heads, self.head_dim, self.ty);
        assert!(k.len() == heads * dim && v.len() == k.len(), "a key of {heads} x {dim}");
        let head_bytes = self.head_bytes();
        let slot = position % KV_BLOCK;
        let bytes = self.blocks[block].bytes_mut();
        for (head, (k, v)) in k.chunks_exact(dim).zip(v.chunks_exact(dim)).enumerate() {
            let head = &mut bytes[head * head_bytes..(head + 1) * head_bytes];
            let (keys, values) = head.split_at_mut(head_bytes / 2);
            if ty == KvType::Q8 {
                let panel = keys.len() / (KV_BLOCK / PANEL);
                let keys = &mut keys[slot / PANEL * panel..][..panel];
                quantize(k, |d| d * PANEL + slot % PANEL, keys, PANEL, slot % PANEL);
                let row = values.len() / KV_BLOCK;
                quantize(v, |d| d, &mut values[slot * row..][..row], 1, 0);
                continue;
            }
            for (d, &k) in k.iter().enumerate() {
                put(ty, keys, (slot / PANEL * dim + d) * PANEL + slot % PANEL, k);
            }
            for (d, &v) in v.iter().enumerate() {
                put(ty, values, slot * dim + d, v);
            }
        }
    }

    /// Keys (two panels) and values (32 rows) of KV head `head` in `block`.
    pub(crate) fn head(&self, block: usize, head: usize) -> (*const u8, *const u8) {
        let size = self.head_bytes();
        let bytes = &self.blocks[block].bytes()[head * size..(head + 1) * size];
        let (keys, values) = bytes.split_at(size / 2);
        (keys.as_ptr(), values.as_ptr())
    }
}

/// Writes `x` in 8 bits: element d at byte `place(d)`, the factor of its group g as number
/// `g * stride + lane` of those at the end of `bytes`. Halves are rounded to even.
fn quantize(
    x: &[f32],
    place: impl Fn(usize) -> usize,
    bytes: &mut [u8],
    stride: usize,
    lane: usize,
) {
    let factors = bytes.len() - 4 * stride * x.len().div_ceil(GROUP);
    for (g, part) in x.chunks(GROUP).enumerate() {
        let top = part.iter().fold(0.0f32, |top, x| top.max(x.abs())).min(f32::MAX);
        let inverse = if top > f32::MIN_POSITIVE * 127.0 { 127.0 / top } else { 0.0 };
        for (i, x) in part.iter().enumerate() {
            let code = (x * inverse).round_ties_even().clamp(-127.0, 127.0);
            bytes[place(g * GROUP + i)] = code as i8 as u8;
        }
        let at = factors + 4 * (g * stride + lane);
        bytes[at..at + 4].copy_from_slice(&(top / 127.0).to_le_bytes());
    }
}

#[inline]
fn put(ty: KvType, bytes: &mut [u8], at: usize, x: f32) {
    match ty {
        KvType::F32 => bytes[4 * at..4 * at + 4].copy_from_slice(&x.to_le_bytes()),
        KvType::F16 => {
            let half = f32_to_f16(x.clamp(-65504.0, 65504.0));
            bytes[2 * at..2 * at + 2].copy_from_slice(&half.to_le_bytes());
        }
        KvType::Q8 => unreachable!("written by groups"),
    }
}
