//! What the machine can do at most, measured: the yardstick of every claim about speed.

use crate::buffer::{Buffer, OutOfMemory};
use crate::pool::Pool;
use crate::simd::{Isa, Kernel, Simd};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

/// Bytes that each measurement of bandwidth reads: more than any cache holds.
const STREAM: usize = 256 << 20;

struct Sum<'a>(&'a [u8]);

impl Kernel for Sum<'_> {
    type Output = f32;

    #[inline(always)]
    unsafe fn run<S: Simd>(self) -> f32 {
        let (p, step) = (self.0.as_ptr(), 4 * S::LANES);
        // SAFETY: whole groups of eight vectors inside the slice.
        unsafe {
            let mut acc = [S::splat(0.0); 8];
            for at in (0..self.0.len() / (8 * step) * (8 * step)).step_by(8 * step) {
                for (i, acc) in acc.iter_mut().enumerate() {
                    *acc = S::add(*acc, S::load(p.add(at + i * step).cast()));
                }
            }
            let mut lanes = [0.0; 16];
            let mut total = 0.0;
            for acc in acc {
                S::store(lanes.as_mut_ptr(), acc);
                total += lanes.iter().sum::<f32>();
            }
            total
        }
    }
}

/// Bytes for each second that all threads of `pool` together read from memory: the best of five.
///
/// # Errors
/// If there is no memory for the stream.
pub fn read_bandwidth(isa: Isa, pool: &Pool) -> Result<f64, OutOfMemory> {
    let mut stream = Buffer::zeroed(STREAM)?;
    // Untouched pages are all one page of zeros, which would sit in the cache; and sums of
    // subnormals, which small integers would be, are slow to add.
    stream.bytes_mut().iter_mut().skip(3).step_by(4096).for_each(|b| *b = 0x3f);
    let (bytes, sink) = (stream.bytes(), AtomicU32::new(0));
    let mut best = f64::MAX;
    for _ in 0..5 {
        let start = Instant::now();
        pool.split(STREAM / 65536, 16, &|range| {
            let sum = isa.run(Sum(&bytes[range.start * 65536..range.end * 65536]));
            sink.fetch_xor(sum.to_bits(), Ordering::Relaxed);
        });
        best = best.min(start.elapsed().as_secs_f64());
    }
    std::hint::black_box(sink.into_inner());
    Ok(STREAM as f64 / best)
}

struct Multiply(usize);

impl Kernel for Multiply {
    type Output = f32;

    #[inline(always)]
    unsafe fn run<S: Simd>(self) -> f32 {
        // SAFETY: arithmetic only.
        unsafe {
            let (a, b) = (S::splat(0.999), S::splat(1e-6));
            let mut acc = [S::splat(1.0); 10];
            for _ in 0..self.0 {
                for acc in &mut acc {
                    // On the addend, which is the only operand that every set can overwrite.
                    *acc = S::fma(a, b, *acc);
                }
            }
            let mut lanes = [0.0; 16];
            let mut total = 0.0;
            for acc in acc {
                S::store(lanes.as_mut_ptr(), acc);
                total += lanes[0];
            }
            total
        }
    }
}

struct Dots(usize);

impl Kernel for Dots {
    type Output = f32;

    #[inline(always)]
    unsafe fn run<S: Simd>(self) -> f32 {
        let x = [1i8; 32];
        // SAFETY: `x` has the 32 values of eight quads.
        unsafe {
            let w = [S::splat_w(3); 8];
            let mut acc = [S::splat_i(0); 8];
            for _ in 0..self.0 {
                for acc in &mut acc {
                    *acc = S::dot::<8, 15, false>(*acc, &w, 0, std::hint::black_box(x.as_ptr()));
                }
            }
            let mut lanes = [0.0; 16];
            let mut total = 0.0;
            for acc in acc {
                S::store(lanes.as_mut_ptr(), S::to_f32(acc));
                total += lanes[0];
            }
            total
        }
    }
}

/// The best rate of `operations` over a quarter of a second on all threads: two that have just
/// begun may share a core for some hundredths of one.
fn rate(pool: &Pool, operations: f64, work: &(dyn Fn() -> f32 + Sync)) -> f64 {
    let (mut best, begin) = (f64::MAX, Instant::now());
    while begin.elapsed() < Duration::from_millis(250) {
        let start = Instant::now();
        pool.run(pool.threads(), &|_| {
            std::hint::black_box(work());
        });
        best = best.min(start.elapsed().as_secs_f64());
    }
    operations * pool.threads() as f64 / best
}

/// f32 operations for each second (a fused multiply-add is two) on all threads.
pub fn f32_peak(isa: Isa, pool: &Pool) -> f64 {
    let rounds = 400_000;
    rate(pool, (rounds * 10 * lanes(isa) * 2) as f64, &|| isa.run(Multiply(rounds)))
}

struct PairDots(usize);

impl Kernel for PairDots {
    type Output = f32;

    #[inline(always)]
    unsafe fn run<S: Simd>(self) -> f32 {
        // 0.5 and 0.25, twice.
        let (w, x) = ([0x3f00_3e80u32; 16], 0x3e80_3f00u32);
        // SAFETY: sixteen lanes of pairs, and one pair.
        unsafe {
            let w = S::load_w(w.as_ptr().cast());
            let mut acc = [S::splat(1.0); 12];
            for _ in 0..self.0 {
                for acc in &mut acc {
                    *acc = S::dot_bf16(*acc, w, std::hint::black_box(&x));
                }
            }
            let mut lanes = [0.0; 16];
            let mut total = 0.0;
            for acc in acc {
                S::store(lanes.as_mut_ptr(), acc);
                total += lanes[0];
            }
            total
        }
    }
}

/// bfloat16 operations for each second (a multiply-add is two) on all threads; without an instruction
/// for them, those of f32, which stand in.
pub fn bf16_peak(isa: Isa, pool: &Pool) -> f64 {
    if !isa.multiplies_bf16() {
        return f32_peak(isa, pool);
    }
    let rounds = 400_000;
    let operations = (rounds * 12 * lanes(isa) * 4) as f64;
    rate(pool, operations, &|| isa.run_bf16(PairDots(rounds)))
}

/// 8-bit integer operations for each second (a multiply-add is two) on all threads, by the
/// instructions that the products with 4-bit weights use.
pub fn int8_peak(isa: Isa, pool: &Pool) -> f64 {
    let rounds = 60_000;
    rate(pool, (rounds * 8 * lanes(isa) * 32 * 2) as f64, &|| isa.run_dot(Dots(rounds)))
}

fn lanes(isa: Isa) -> usize {
    struct Lanes;
    impl Kernel for Lanes {
        type Output = usize;
        #[inline(always)]
        unsafe fn run<S: Simd>(self) -> usize {
            S::LANES
        }
    }
    isa.run(Lanes)
}
