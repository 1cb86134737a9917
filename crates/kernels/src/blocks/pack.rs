//! f32 to the block formats whose scales are worth a search: K-quants, IQ4, MXFP4, and, when the
//! inputs' mean squares are known, the plain formats too. Layouts as in ggml's `ggml-common.h`.

use super::search::{
    Affine, Fp4, Integer, Levels, Table, error, factor, factors, nearest, ratio, scale,
};
use super::{BlockType, f16_to_f32, f32_to_f16};
use crate::integers::{FP4, IQ4, half_power};

/// Writes one block.
///
/// # Panics
/// For types without a search, and if the lengths are not those of a block.
pub(super) fn block(ty: BlockType, x: &[f32], w: &[f32], out: &mut [u8]) {
    match ty {
        BlockType::Q4_0 => plain::<8>(x, w, out),
        BlockType::Q5_0 => plain::<16>(x, w, out),
        BlockType::Q4_1 => with_minimum(x, w, 15.0, out),
        BlockType::Q5_1 => with_minimum(x, w, 31.0, out),
        BlockType::Q2_K => q2_k(x, w, out),
        BlockType::Q3_K => q3_k(x, w, out),
        BlockType::Q4_K | BlockType::Q5_K => q45_k(x, w, out),
        BlockType::Q6_K => q6_k(x, w, out),
        BlockType::IQ4_NL => iq4_nl(x, w, out),
        BlockType::IQ4_XS => iq4_xs(x, w, out),
        BlockType::MXFP4 => mxfp4(x, w, out),
        _ => unreachable!("{} is rounded, not searched", ty.name()),
    }
}

/// The nearest half, kept finite.
fn half(x: f32) -> f32 {
    f16_to_f32(f32_to_f16(x.clamp(-65504.0, 65504.0)))
}

fn put_half(out: &mut [u8], x: f32) {
    out[..2].copy_from_slice(&f32_to_f16(x).to_le_bytes());
}

/// Nibbles of 32 values, the first 16 in the low halves.
fn put_nibbles(out: &mut [u8], q: impl Fn(usize) -> u8) {
    for (i, byte) in out.iter_mut().enumerate() {
        *byte = (q(i) & 15) | (q(i + 16) & 15) << 4;
    }
}

fn put_fifths(out: &mut [u8], q: impl Fn(usize) -> u8) {
    let bits = (0..32).fold(0u32, |b, i| b | u32::from(q(i) >> 4 & 1) << i);
    out[..4].copy_from_slice(&bits.to_le_bytes());
}

/// Q4_0 and Q5_0.
fn plain<const ZERO: i32>(x: &[f32], w: &[f32], out: &mut [u8]) {
    // What the plain rounding does is a candidate: it imports quantisation-aware weights exactly.
    let extremum = x.iter().fold(0.0f32, |e, x| if x.abs() > e.abs() { *x } else { e });
    let first = half(extremum / -(ZERO as f32));
    let found = half(scale::<Integer<ZERO>>(x, w));
    let better = error::<Integer<ZERO>>(x, w, found) < error::<Integer<ZERO>>(x, w, first);
    let d = if better { found } else { first };
    let inverse = ratio(1.0, d);
    let q = |i: usize| (Integer::<ZERO>::nearest(x[i] * inverse) + ZERO as f32) as u8;
    put_half(out, d);
    let rest = if ZERO == 16 {
        put_fifths(&mut out[2..], q);
        6
    } else {
        2
    };
    put_nibbles(&mut out[rest..], q);
}

/// Q4_1 and Q5_1.
fn with_minimum(x: &[f32], w: &[f32], most: f32, out: &mut [u8]) {
    let fit = Affine::fit(x, w, most, false);
    let fit = Affine { scale: half(fit.scale), offset: half(fit.offset) };
    let inverse = ratio(1.0, fit.scale);
    let q = |i: usize| fit.q(x[i], inverse, most) as u8;
    put_half(out, fit.scale);
    put_half(&mut out[2..], fit.offset);
    let rest = if most > 15.0 {
        put_fifths(&mut out[4..], q);
        8
    } else {
        4
    };
    put_nibbles(&mut out[rest..], q);
}

/// A super-block of `scale * q + offset` sub-blocks of `x.len() / N`.
struct Affines<const N: usize> {
    d: f32,
    dmin: f32,
    scales: [u8; N],
    mins: [u8; N],
}

impl<const N: usize> Affines<N> {
    /// Sub-block `j` as it will be read.
    fn at(&self, j: usize) -> Affine {
        Affine {
            scale: self.d * f32::from(self.scales[j]),
            offset: -(self.dmin * f32::from(self.mins[j])),
        }
    }

    /// q of weight `i`.
    fn q(&self, x: &[f32], i: usize, most: f32) -> u8 {
        let fit = self.at(i * N / x.len());
        fit.q(x[i], ratio(1.0, fit.scale), most) as u8
    }

    fn error(&self, x: &[f32], w: &[f32], most: f32) -> f32 {
        let len = x.len() / N;
        let parts = x.chunks_exact(len).zip(w.chunks_exact(len)).enumerate();
        parts.map(|(j, (x, w))| self.at(j).error(x, w, most)).sum()
    }

    /// Integers of sub-blocks up to `most`, scales and minima up to `top`.
    fn fit(x: &[f32], w: &[f32], most: f32, top: f32) -> Self {
        let len = x.len() / N;
        let part = |j: usize| (&x[j * len..(j + 1) * len], &w[j * len..(j + 1) * len]);
        let fits: [Affine; N] =
            std::array::from_fn(|j| Affine::fit(part(j).0, part(j).1, most, true));
        let largest = |f: fn(&Affine) -> f32| fits.iter().map(f).fold(0.0, f32::max);
        let mut best = Self {
            d: half(largest(|f| f.scale) / top),
            dmin: half(largest(|f| -f.offset) / top),
            scales: [0; N],
            mins: [0; N],
        };
        for _ in 0..2 {
            for (j, fit) in fits.iter().enumerate() {
                best.choose(j, fit, part(j), (most, top));
            }
            let Some((d, dmin)) = best.refit(x, w, most) else { break };
            let next = Self { d, dmin, ..best };
            if next.error(x, w, most) >= best.error(x, w, most) {
                break;
            }
            best = next;
        }
        best
    }

    /// The scale and minimum of sub-block `j` among those near to what it would have best.
    fn choose(
        &mut self,
        j: usize,
        fit: &Affine,
        (x, w): (&[f32], &[f32]),
        (most, top): (f32, f32),
    ) {
        let s = nearest(ratio(fit.scale, self.d).clamp(0.0, top));
        let m = nearest(ratio(-fit.offset, self.dmin).clamp(0.0, top));
        let mut best = (f32::INFINITY, 0, 0);
        for ds in [0.0, -1.0, 1.0] {
            for dm in [0.0, -1.0, 1.0] {
                let near = |v: f32| v.clamp(0.0, top) as u8;
                (self.scales[j], self.mins[j]) = (near(s + ds), near(m + dm));
                let error = self.at(j).error(x, w, most);
                if error < best.0 {
                    best = (error, self.scales[j], self.mins[j]);
                }
            }
        }
        (self.scales[j], self.mins[j]) = (best.1, best.2);
    }

    /// The best d and dmin for the integers that there are.
    fn refit(&self, x: &[f32], w: &[f32], most: f32) -> Option<(f32, f32)> {
        let of = |i: usize| i * N / x.len();
        let u: Vec<f32> = (0..x.len())
            .map(|i| f32::from(self.scales[of(i)]) * f32::from(self.q(x, i, most)))
            .collect();
        let v: Vec<f32> = (0..x.len()).map(|i| -f32::from(self.mins[of(i)])).collect();
        let (d, dmin) = factors(x, w, &u, &v).unwrap_or_else(|| (factor(x, w, &u), self.dmin));
        (d > 0.0 && dmin >= 0.0).then(|| (half(d), half(dmin)))
    }
}

fn q2_k(x: &[f32], w: &[f32], out: &mut [u8]) {
    let fit = Affines::<16>::fit(x, w, 3.0, 15.0);
    for (out, (s, m)) in out.iter_mut().zip(fit.scales.iter().zip(fit.mins)) {
        *out = s | m << 4;
    }
    put_crumbs(&mut out[16..80], |i| fit.q(x, i, 3.0));
    put_half(&mut out[80..], fit.d);
    put_half(&mut out[82..], fit.dmin);
}

/// Two bits of 256 values: 128 in 32 bytes.
fn put_crumbs(out: &mut [u8], q: impl Fn(usize) -> u8) {
    for (at, byte) in out.iter_mut().enumerate() {
        let first = at / 32 * 128 + at % 32;
        *byte = (0..4).fold(0, |b, run| b | (q(first + 32 * run) & 3) << (2 * run));
    }
}

fn q45_k(x: &[f32], w: &[f32], out: &mut [u8]) {
    let fifth = out.len() - 144;
    let most = if fifth > 0 { 31.0 } else { 15.0 };
    let fit = Affines::<8>::fit(x, w, most, 63.0);
    put_half(out, fit.d);
    put_half(&mut out[2..], fit.dmin);
    let scales = &mut out[4..16];
    for j in 0..4 {
        let (s, m) = (fit.scales[j + 4], fit.mins[j + 4]);
        scales[j] = fit.scales[j] | (s >> 4) << 6;
        scales[j + 4] = fit.mins[j] | (m >> 4) << 6;
        scales[j + 8] = (s & 15) | (m & 15) << 4;
    }
    for l in 0..fifth {
        out[16 + l] = (0..8).fold(0, |b, j| b | (fit.q(x, 32 * j + l, most) >> 4) << j);
    }
    for (at, byte) in out[16 + fifth..].iter_mut().enumerate() {
        let first = at / 32 * 64 + at % 32;
        *byte = (fit.q(x, first, most) & 15) | (fit.q(x, first + 32, most) & 15) << 4;
    }
}

/// A super-block of `d * scale * level` sub-blocks, scales from `-top` to `top - 1`.
struct Signed<const N: usize> {
    d: f32,
    scales: [i32; N],
}

impl<const N: usize> Signed<N> {
    fn at(&self, j: usize) -> f32 {
        self.d * self.scales[j] as f32
    }

    /// The level of weight `i`.
    fn level<L: Levels>(&self, x: &[f32], i: usize) -> f32 {
        L::nearest(x[i] * ratio(1.0, self.at(i * N / x.len())))
    }

    fn error<L: Levels>(&self, x: &[f32], w: &[f32]) -> f32 {
        let len = x.len() / N;
        let parts = x.chunks_exact(len).zip(w.chunks_exact(len)).enumerate();
        parts.map(|(j, (x, w))| error::<L>(x, w, self.at(j))).sum()
    }

    fn fit<L: Levels>(x: &[f32], w: &[f32], top: f32) -> Self {
        let len = x.len() / N;
        let part = |j: usize| (&x[j * len..(j + 1) * len], &w[j * len..(j + 1) * len]);
        let wanted: [f32; N] = std::array::from_fn(|j| scale::<L>(part(j).0, part(j).1));
        let extremum = wanted.iter().fold(0.0f32, |e, s| if s.abs() > e.abs() { *s } else { e });
        let mut best = Self { d: half(extremum / -top), scales: [0; N] };
        for _ in 0..2 {
            for (j, wanted) in wanted.iter().enumerate() {
                best.choose::<L>(j, *wanted, part(j), top);
            }
            let of = |i: usize| best.scales[i * N / x.len()] as f32;
            let u: Vec<f32> = (0..x.len()).map(|i| of(i) * best.level::<L>(x, i)).collect();
            let next = Self { d: half(factor(x, w, &u)), ..best };
            if next.d == 0.0 || next.error::<L>(x, w) >= best.error::<L>(x, w) {
                break;
            }
            best = next;
        }
        best
    }

    /// The scale of sub-block `j` among those near to the one it would have best.
    fn choose<L: Levels>(&mut self, j: usize, wanted: f32, (x, w): (&[f32], &[f32]), top: f32) {
        let s = nearest(ratio(wanted, self.d).clamp(-top, top - 1.0));
        let mut best = (f32::INFINITY, 0);
        for step in [0.0, -1.0, 1.0] {
            self.scales[j] = (s + step).clamp(-top, top - 1.0) as i32;
            let error = error::<L>(x, w, self.at(j));
            if error < best.0 {
                best = (error, self.scales[j]);
            }
        }
        self.scales[j] = best.1;
    }
}

fn q3_k(x: &[f32], w: &[f32], out: &mut [u8]) {
    let fit = Signed::<16>::fit::<Integer<4>>(x, w, 32.0);
    let q = |i: usize| (fit.level::<Integer<4>>(x, i) + 4.0) as u8;
    for (l, out) in out[..32].iter_mut().enumerate() {
        *out = (0..8).fold(0, |b, j| b | (q(32 * j + l) >> 2) << j);
    }
    put_crumbs(&mut out[32..96], q);
    let scale = |s: usize| (fit.scales[s] + 32) as u8;
    for s in 0..8 {
        out[96 + s] = (scale(s) & 15) | (scale(s + 8) & 15) << 4;
    }
    for s in 0..4 {
        out[104 + s] = (0..4).fold(0, |b, run| b | (scale(s + 4 * run) >> 4) << (2 * run));
    }
    put_half(&mut out[108..], fit.d);
}

fn q6_k(x: &[f32], w: &[f32], out: &mut [u8]) {
    let fit = Signed::<16>::fit::<Integer<32>>(x, w, 128.0);
    let q = |i: usize| (fit.level::<Integer<32>>(x, i) + 32.0) as u8;
    // Halves of 128; in each, four runs of 32 share 64 bytes of nibbles and 32 of upper bits.
    for (at, out) in out[..128].iter_mut().enumerate() {
        let first = at / 64 * 128 + at % 64;
        *out = (q(first) & 15) | (q(first + 64) & 15) << 4;
    }
    for at in 0..64 {
        let first = at / 32 * 128 + at % 32;
        out[128 + at] = (0..4).fold(0, |b, run| b | (q(first + 32 * run) >> 4) << (2 * run));
    }
    for j in 0..16 {
        out[192 + j] = fit.scales[j] as i8 as u8;
    }
    put_half(&mut out[208..], fit.d);
}

/// The index of a level in the table of IQ4.
fn index(level: f32) -> u8 {
    IQ4.iter().position(|v| f32::from(*v) == level).unwrap_or(0) as u8
}

fn iq4_nl(x: &[f32], w: &[f32], out: &mut [u8]) {
    let d = half(scale::<Table>(x, w));
    let inverse = ratio(1.0, d);
    put_half(out, d);
    put_nibbles(&mut out[2..], |i| index(Table::nearest(x[i] * inverse)));
}

fn iq4_xs(x: &[f32], w: &[f32], out: &mut [u8]) {
    let fit = Signed::<8>::fit::<Table>(x, w, 32.0);
    put_half(out, fit.d);
    let scale = |j: usize| (fit.scales[j] + 32) as u8;
    let high = (0..8).fold(0u16, |b, j| b | u16::from(scale(j) >> 4) << (2 * j));
    out[2..4].copy_from_slice(&high.to_le_bytes());
    for j in 0..4 {
        out[4 + j] = (scale(2 * j) & 15) | (scale(2 * j + 1) & 15) << 4;
    }
    for (j, out) in out[8..].chunks_exact_mut(16).enumerate() {
        put_nibbles(out, |i| index(fit.level::<Table>(x, 32 * j + i)));
    }
}

fn mxfp4(x: &[f32], w: &[f32], out: &mut [u8]) {
    let top = x.iter().fold(0.0f32, |t, x| t.max(x.abs()));
    // Twice the largest value is 12 = 1.5 * 2^3.
    let power = (top.to_bits() >> 23) as i32 - 127;
    let mut best = (f32::INFINITY, 0u8);
    for e in [power - 2, power - 3, power - 1] {
        let e = (e + 127).clamp(0, 254) as u8;
        let error = error::<Fp4>(x, w, half_power(e));
        if error < best.0 {
            best = (error, e);
        }
    }
    out[0] = if top == 0.0 { 0 } else { best.1 };
    let inverse = ratio(1.0, half_power(out[0]));
    put_nibbles(&mut out[1..], |i| {
        let level = Fp4::nearest(x[i] * inverse);
        let size = FP4[..8].iter().position(|v| f32::from(*v) == level.abs()).unwrap_or(0) as u8;
        if level < 0.0 { size | 8 } else { size }
    });
}
