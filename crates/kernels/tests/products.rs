//! Every product, on every instruction set of this machine, against f64 and against each other.

use lapidary_kernels::blocks::{self, BlockType};
use lapidary_kernels::{
    ByteRows, FloatRows, Isa, Packed, PairRows, Pool, Rows, product_bf16, product_f32, product_i8,
};

/// SplitMix64.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn float(&mut self) -> f32 {
        (self.next() >> 40) as f32 / (1 << 23) as f32 - 1.0
    }
}

/// `n` rows of `k` weights of `ty`: random bits, with scales that are finite.
fn weights(ty: BlockType, n: usize, k: usize, random: &mut Random) -> Vec<u8> {
    let mut bytes = Vec::new();
    while bytes.len() < n * k / ty.block_len() * ty.block_bytes() {
        if ty == BlockType::F32 {
            bytes.extend(random.float().to_le_bytes());
            continue;
        }
        let mut block: Vec<u8> = (0..ty.block_bytes()).map(|_| random.next() as u8).collect();
        if ty == BlockType::MXFP4 {
            block[0] = 120 + block[0] % 8;
        } else {
            // Halves and bfloat16s with a small exponent wherever a scale may stand.
            let places: &[usize] = match ty {
                BlockType::Q2_K => &[80, 82],
                BlockType::Q3_K => &[108],
                BlockType::Q6_K => &[208],
                BlockType::Q4_1 | BlockType::Q5_1 | BlockType::Q4_K | BlockType::Q5_K => &[0, 2],
                _ => &[0],
            };
            for &p in places {
                block[p + 1] = match ty {
                    BlockType::BF16 => 0x3c + block[p + 1] % 3,
                    _ => 0x20 + block[p + 1] % 8 + (block[p + 1] & 0x80),
                };
            }
        }
        bytes.extend(block);
    }
    bytes
}

fn bits(v: &[f32]) -> Vec<u32> {
    v.iter().map(|x| x.to_bits()).collect()
}

fn packed(ty: BlockType, n: usize, k: usize, bytes: &[u8]) -> Packed {
    let rows = Rows { ty, n, k, bytes };
    Packed::new(rows, &Pool::new(1), &|_| {}).unwrap_or_else(|e| panic!("{}: {e}", ty.name()))
}

fn shapes(ty: BlockType) -> Vec<(usize, usize, usize)> {
    let k = ty.block_len().max(if ty.block_len() == 1 { 1 } else { 32 });
    let mut shapes =
        vec![(1, 16, 2 * k), (3, 17, k), (5, 100, 3 * k), (33, 48, k), (40, 33, 5 * k)];
    if ty.block_len() == 1 {
        shapes.extend([(7, 5, 1), (16, 96, 77), (2, 64, 300)]);
    }
    shapes
}

#[test]
fn rows_come_back_as_they_went_in() {
    let mut random = Random(1);
    for ty in BlockType::ALL {
        for (_, n, k) in shapes(ty) {
            let bytes = weights(ty, n, k, &mut random);
            let w = packed(ty, n, k, &bytes);
            let row_bytes = bytes.len() / n;
            for isa in Isa::available() {
                for r in 0..n {
                    let (mut got, mut want) = (vec![0.0; k], vec![0.0; k]);
                    w.row(isa, r, &mut got);
                    blocks::dequantize(ty, &bytes[r * row_bytes..(r + 1) * row_bytes], &mut want);
                    assert_eq!(bits(&got), bits(&want), "{} {isa:?} row {r}", ty.name());
                }
            }
        }
    }
}

/// The product in f64, and the sum of magnitudes that bounds its rounding.
fn oracle(x: &[f32], w: &[f32], m: usize, n: usize, k: usize) -> Vec<(f64, f64)> {
    (0..m * n)
        .map(|i| {
            let terms = (0..k).map(|j| f64::from(x[i / n * k + j]) * f64::from(w[i % n * k + j]));
            terms.fold((0.0, 0.0), |(sum, size), t| (sum + t, size + t.abs()))
        })
        .collect()
}

#[test]
fn products_agree_with_f64_and_with_each_other() {
    let mut random = Random(2);
    for ty in BlockType::ALL {
        for (m, n, k) in shapes(ty) {
            let bytes = weights(ty, n, k, &mut random);
            let w = packed(ty, n, k, &bytes);
            let x: Vec<f32> = (0..m * k).map(|_| random.float()).collect();
            let mut dense = vec![0.0; n * k];
            blocks::dequantize(ty, &bytes, &mut dense);
            let want = oracle(&x, &dense, m, n, k);
            let mut first: Option<(Vec<f32>, Vec<f32>)> = None;
            for isa in Isa::available() {
                for threads in [1, 2] {
                    let pool = Pool::new(threads);
                    let mut exact = vec![f32::NAN; m * n];
                    product_f32(isa, &pool, &FloatRows::new(&x, k), &w, &mut exact);
                    let mut fast = exact.clone();
                    if w.layout.is_quantised() {
                        product_i8(isa, &pool, &ByteRows::new(isa, &pool, &x, k), &w, &mut fast);
                    }
                    if ty == BlockType::BF16 {
                        product_bf16(isa, &pool, &PairRows::new(isa, &pool, &x, k), &w, &mut fast);
                    }
                    for (i, (want, size)) in want.iter().enumerate() {
                        let case = format!("{} {isa:?} {m}x{n}x{k} [{i}]", ty.name());
                        let error = (f64::from(exact[i]) - want).abs();
                        assert!(
                            error <= size * 1e-6 * (k as f64).sqrt() + 1e-30,
                            "{case}: {error}"
                        );
                        // Half a step of 1/127 of the block's largest value, at most 1 (and half
                        // of bfloat16's step of 1/128).
                        let error = (f64::from(fast[i]) - want).abs();
                        let sum: f64 =
                            dense[i % n * k..][..k].iter().map(|w| f64::from(w.abs())).sum();
                        assert!(error <= sum / 254.0 * 1.01 + size * 1e-5, "{case} fast: {error}");
                    }
                    match &first {
                        None => first = Some((exact, fast)),
                        Some(first) => {
                            assert_eq!(bits(&exact), bits(&first.0), "{} {isa:?}", ty.name());
                            assert_eq!(bits(&fast), bits(&first.1), "{} {isa:?} fast", ty.name());
                        }
                    }
                }
            }
        }
    }
}

#[test]
fn a_row_does_not_depend_on_its_neighbours() {
    let mut random = Random(3);
    let (m, n, k) = (39, 40, 512);
    for ty in BlockType::ALL {
        let bytes = weights(ty, n, k, &mut random);
        let w = packed(ty, n, k, &bytes);
        let x: Vec<f32> = (0..m * k).map(|_| random.float()).collect();
        let pool = Pool::new(2);
        for isa in Isa::available() {
            let run = |x: &[f32]| {
                let (mut exact, mut fast) =
                    (vec![0.0; x.len() / k * n], vec![0.0; x.len() / k * n]);
                product_f32(isa, &pool, &FloatRows::new(x, k), &w, &mut exact);
                if w.layout.is_quantised() {
                    product_i8(isa, &pool, &ByteRows::new(isa, &pool, x, k), &w, &mut fast);
                }
                if ty == BlockType::BF16 {
                    product_bf16(isa, &pool, &PairRows::new(isa, &pool, x, k), &w, &mut fast);
                }
                (exact, fast)
            };
            let together = run(&x);
            for row in 0..m {
                let alone = run(&x[row * k..(row + 1) * k]);
                assert_eq!(alone.0, together.0[row * n..(row + 1) * n], "{} {isa:?}", ty.name());
                assert_eq!(alone.1, together.1[row * n..(row + 1) * n], "{} {isa:?}", ty.name());
            }
        }
    }
}

/// More rows, blocks and panels than a kernel takes at once, and odd numbers of them.
#[test]
fn a_row_does_not_depend_on_how_the_work_is_cut() {
    let (mut random, pool) = (Random(6), Pool::new(1));
    let shapes = [(530, 40, 35 * 32), (33, 2200, 3 * 32), (17, 2200, 2 * 32), (530, 40, 5 * 256)];
    let multiply = |ty, isa, x: &[f32], k, w: &Packed, out: &mut [f32]| match ty {
        BlockType::F32 | BlockType::F16 => {
            product_f32(isa, &pool, &FloatRows::new(x, k), w, out);
        }
        BlockType::BF16 => product_bf16(isa, &pool, &PairRows::new(isa, &pool, x, k), w, out),
        _ => product_i8(isa, &pool, &ByteRows::new(isa, &pool, x, k), w, out),
    };
    use BlockType::{BF16, F16, F32, Q4_0, Q4_1, Q4_K, Q6_K, Q8_0};
    for ty in [Q8_0, Q4_0, Q4_1, Q4_K, Q6_K, BF16, F16, F32] {
        for &(m, n, k) in shapes.iter().filter(|(_, _, k)| k % ty.block_len() == 0) {
            let w = packed(ty, n, k, &weights(ty, n, k, &mut random));
            let x: Vec<f32> = (0..m * k).map(|_| random.float()).collect();
            for isa in Isa::available().into_iter().filter(|isa| *isa != Isa::Scalar) {
                let mut all = vec![f32::NAN; m * n];
                multiply(ty, isa, &x, k, &w, &mut all);
                for row in
                    [0, 1, 15, 16, 32, 511, 512, 527, 528, 529].into_iter().filter(|r| *r < m)
                {
                    let mut alone = vec![0.0; n];
                    multiply(ty, isa, &x[row * k..(row + 1) * k], k, &w, &mut alone);
                    let what = format!("{} {isa:?} {m} x {n} x {k}, row {row}", ty.name());
                    assert_eq!(bits(&all[row * n..(row + 1) * n]), bits(&alone), "{what}");
                }
            }
        }
    }
}

/// What bfloat16 products are defined as: activations rounded to nearest, values below 2^-56 zero,
/// the second product of each pair first, each step a fused multiply-add.
#[test]
fn bfloat16_products_are_what_they_are_said_to_be() {
    let mut random = Random(5);
    let (m, n, k) = (5, 33, 301);
    let short = |x: f32| {
        let r = blocks::bf16_to_f32(blocks::f32_to_bf16(x));
        if x.abs() < 2.0f32.powi(-56) { 0.0 } else { r }
    };
    // Magnitudes from 2^-76 to 2^20, so that some are too small, and some sums cancel.
    let mut value = || {
        let sign = if random.next() & 1 == 0 { 1.0 } else { -1.0 };
        sign * (1.0 + random.float().abs()) * 2.0f32.powi((random.next() % 96) as i32 - 76)
    };
    let x: Vec<f32> = (0..m * k).map(|_| value()).collect();
    let w: Vec<u16> = (0..n * k).map(|_| blocks::f32_to_bf16(value())).collect();
    let bytes: Vec<u8> = w.iter().flat_map(|w| w.to_le_bytes()).collect();
    let packed = packed(BlockType::BF16, n, k, &bytes);
    let mut want = vec![0.0f32; m * n];
    for (i, want) in want.iter_mut().enumerate() {
        for j in (0..k).step_by(2) {
            for j in [j + 1, j] {
                if j < k {
                    let w = short(blocks::bf16_to_f32(w[i % n * k + j]));
                    *want = w.mul_add(short(x[i / n * k + j]), *want);
                }
            }
        }
    }
    let pool = Pool::new(2);
    for isa in Isa::available() {
        let mut got = vec![f32::NAN; m * n];
        product_bf16(isa, &pool, &PairRows::new(isa, &pool, &x, k), &packed, &mut got);
        assert_eq!(bits(&got), bits(&want), "{isa:?}");
    }
}

#[test]
fn damaged_weights_are_refused() {
    for ty in BlockType::ALL {
        let mut bytes = weights(ty, 20, 256, &mut Random(4));
        let row = bytes.len() / 20;
        let rows = Rows { ty, n: 20, k: 256, bytes: &bytes[1..] };
        assert!(Packed::new(rows, &Pool::new(1), &|_| {}).is_err(), "{}", ty.name());
        if ty == BlockType::MXFP4 {
            continue; // its exponent has no infinity that GGML gives a meaning to
        }
        let place = match ty {
            BlockType::Q2_K => 80,
            BlockType::Q3_K => 108,
            BlockType::Q6_K => 208,
            BlockType::F32 => 2,
            _ => 0,
        };
        bytes[17 * row + place] = 0xff;
        bytes[17 * row + place + 1] = 0x7f;
        let rows = Rows { ty, n: 20, k: 256, bytes: &bytes };
        let error = Packed::new(rows, &Pool::new(2), &|_| {}).err().map(|e| e.to_string());
        assert!(error.is_some_and(|e| e.contains("row 17")), "{}", ty.name());
    }
}

/// What every architecture gives: other tests see only the instruction sets of one machine.
#[test]
fn the_bits_are_those_of_other_architectures() {
    let mut random = Random(6);
    // FNV-1a.
    let mut hash = 0xcbf2_9ce4_8422_2325u64;
    let (isa, pool) = (Isa::detect(), Pool::new(2));
    for ty in BlockType::ALL {
        for (m, n, k) in shapes(ty) {
            let bytes = weights(ty, n, k, &mut random);
            let w = packed(ty, n, k, &bytes);
            let x: Vec<f32> = (0..m * k).map(|_| random.float()).collect();
            let (mut exact, mut fast) = (vec![0.0; m * n], vec![0.0; m * n]);
            product_f32(isa, &pool, &FloatRows::new(&x, k), &w, &mut exact);
            if w.layout.is_quantised() {
                product_i8(isa, &pool, &ByteRows::new(isa, &pool, &x, k), &w, &mut fast);
            }
            if ty == BlockType::BF16 {
                product_bf16(isa, &pool, &PairRows::new(isa, &pool, &x, k), &w, &mut fast);
            }
            for byte in exact.iter().chain(&fast).flat_map(|x| x.to_le_bytes()) {
                hash = (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3);
            }
        }
    }
    assert_eq!(hash, 0x2f47_b0bf_43bc_d594, "{hash:#018x}");
}
