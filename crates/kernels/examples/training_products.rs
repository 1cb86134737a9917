//! How fast training's products run, as a share of the machine's peak:
//!
//!     cargo run --release -p lapidary-kernels --example training_products

use lapidary_kernels::backward::{Gemm, Operand};
use lapidary_kernels::{Heap, Isa, Pool, f32_peak};
use std::sync::Arc;
use std::time::Instant;

/// The best of so many counts.
const TIMES: usize = 10;
/// Rows, outputs and inputs: of models with 10, 124 and 2000 million weights.
const SHAPES: [[usize; 3]; 8] = [
    [1024, 256, 256],
    [1024, 64, 256],
    [1024, 1024, 256],
    [1024, 256, 1024],
    [1024, 8192, 256],
    [2048, 2816, 768],
    [2048, 768, 2816],
    [512, 16384, 2048],
];

fn main() {
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let pool = Arc::new(Pool::new(threads));
    let isa = Isa::detect();
    println!("{threads} threads, {}", isa.name());
    let gemm = Gemm::new(isa, pool.clone());
    let heap = Arc::<Heap>::default();
    for [rows, n, k] in SHAPES {
        let [x, w, dy] = [rows * k, n * k, rows * n].map(|len| heap.zeros(len));
        let [mut out, mut dx, mut dw] = [rows * n, rows * k, n * k].map(|len| heap.zeros(len));
        for name in ["forward", "dx", "dw"] {
            let mut best = f64::MAX;
            let before = f32_peak(isa, &pool);
            for _ in 0..TIMES {
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
            // The machine's speed changes with its neighbours: the peak is of the same moment.
            let peak = before.max(f32_peak(isa, &pool));
            let rate = 2.0 * (rows * n * k) as f64 / best;
            println!(
                "{rows} x {n} x {k} {name}: {:.0} GFLOP/s, {:.0} % of the peak",
                rate / 1e9,
                100.0 * rate / peak
            );
        }
    }
}
