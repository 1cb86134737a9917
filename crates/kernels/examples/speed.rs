use lapidary_kernels::blocks::BlockType;
use lapidary_kernels::*;
use std::time::Instant;
fn main() {
    let threads: usize = std::env::args().nth(1).and_then(|s| s.parse().ok()).unwrap_or(2);
    let pool = Pool::new(threads);
    let (k, n) = (2048usize, 16384usize);
    for isa in Isa::available().into_iter().skip(1) {
        for ty in [
            BlockType::Q4_0,
            BlockType::Q8_0,
            BlockType::Q4_K,
            BlockType::Q5_K,
            BlockType::Q6_K,
            BlockType::IQ4_NL,
            BlockType::BF16,
            BlockType::F32,
        ] {
            let size = n * k / ty.block_len() * ty.block_bytes();
            let bytes: Vec<u8> = (0..size)
                .map(|i| {
                    if ty.block_len() == 1 {
                        0
                    } else {
                        (i as u32).wrapping_mul(2654435761u32.wrapping_add(i as u32)).to_le_bytes()
                            [2]
                            & 0x3f
                    }
                })
                .collect();
            let t = Instant::now();
            let w = Packed::new(Rows { ty, n, k, bytes: &bytes }, &pool, &|_| {}).unwrap();
            let pack = t.elapsed().as_secs_f64();
            print!("{isa:?} {:6} pack {:5.2} GB/s |", ty.name(), size as f64 / pack / 1e9);
            let copies: Vec<Packed> = (0..(400_000_000 / size).max(1))
                .map(|_| Packed::new(Rows { ty, n, k, bytes: &bytes }, &pool, &|_| {}).unwrap())
                .collect();
            for m in [1usize, 4, 16, 512] {
                let x: Vec<f32> = (0..m * k).map(|i| (i % 17) as f32 * 0.1 - 0.7).collect();
                let mut out = vec![0.0; m * n];
                let mut best = f64::MAX;
                for round in 0..(if m == 512 { 4 } else { 8 }) {
                    let w = &copies[round % copies.len()];
                    let t = Instant::now();
                    if w.layout.is_quantised() {
                        let x = ByteRows::new(isa, &pool, &x, k);
                        product_i8(isa, &pool, &x, w, &mut out);
                    } else {
                        let x = FloatRows::new(&x, k);
                        product_f32(isa, &pool, &x, w, &mut out);
                    }
                    best = best.min(t.elapsed().as_secs_f64());
                }
                print!(
                    " m={m}: {:6.1} GB/s {:6.1} GOP/s |",
                    w.bytes() as f64 / best / 1e9,
                    2.0 * (m * n * k) as f64 / best / 1e9
                );
            }
            println!();
        }
    }
}
