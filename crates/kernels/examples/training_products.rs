//! How fast training's products run, as a share of the machine's peak:
//!
//!     cargo run --release -p lapidary-kernels --example training_products

use lapidary_kernels::backward::{Gemm, Operand};
use lapidary_kernels::{Isa, Pool, f32_peak};
use std::sync::Arc;
use std::time::Instant;

fn main() {
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let pool = Arc::new(Pool::new(threads));
    let isa = Isa::detect();
    let peak = f32_peak(isa, &pool);
    println!("{} threads, {}: {:.0} GFLOP/s", threads, isa.name(), peak / 1e9);
    let gemm = Gemm::new(isa, pool);
    for [rows, n, k] in [[2048, 2048, 768], [2048, 768, 2048], [512, 16384, 2048], [2048, 256, 256]]
    {
        let (x, w) = (vec![1.0; rows * k], vec![1.0; n * k]);
        let dy = vec![1.0; rows * n];
        let mut out = vec![0.0; rows * n];
        let (mut dx, mut dw) = (vec![0.0; rows * k], vec![0.0; n * k]);
        for name in ["forward", "dx", "dw"] {
            let mut best = f64::MAX;
            for _ in 0..5 {
                let start = Instant::now();
                match name {
                    "forward" => {
                        let (a, b) = (Operand::Rows(&x, k), Operand::Rows(&w, k));
                        gemm.product([rows, n, k], a, b, &mut out, false);
                    }
                    "dx" => {
                        let (a, b) = (Operand::Rows(&dy, n), Operand::Columns(&w, k));
                        gemm.product([rows, k, n], a, b, &mut dx, false);
                    }
                    _ => {
                        let (a, b) = (Operand::Columns(&dy, n), Operand::Columns(&x, k));
                        gemm.product([n, k, rows], a, b, &mut dw, true);
                    }
                }
                best = best.min(start.elapsed().as_secs_f64());
            }
            let rate = 2.0 * (rows * n * k) as f64 / best;
            println!(
                "{rows} x {n} x {k} {name}: {:.0} GFLOP/s, {:.0} % of the peak",
                rate / 1e9,
                100.0 * rate / peak
            );
        }
    }
}
