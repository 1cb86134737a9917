//! Mixture of experts against f64, and the promise that a row's bits depend on that row alone.

use lapidary_ops::{
    Activation, BlockType, Cpu, Isa, Linear, Ops, Pool, Precision, RawMatrix, Vector, Weight,
};
use std::sync::Arc;

const WIDTH: usize = 32;
const FFN: usize = 20;
const EXPERTS: usize = 5;
const K: usize = 2;

fn values(seed: u32, count: usize) -> Vec<f32> {
    let mut state = seed;
    (0..count)
        .map(|_| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 8) as f32 / (1 << 23) as f32 - 1.0
        })
        .collect()
}

fn raw(values: &[f32], n: usize, k: usize) -> RawMatrix<'static> {
    let bytes: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
    RawMatrix {
        name: Default::default(),
        ty: BlockType::F32,
        n,
        k,
        bytes: Arc::new(bytes),
        done: &|_| {},
    }
}

fn linear(ops: &mut dyn Ops, values: &[f32], n: usize, k: usize) -> Linear {
    let weight = ops.matrix(raw(values, n, k)).unwrap_or_else(|e| panic!("{e}"));
    Linear { weight, bias: None, adapters: Vec::new() }
}

fn table(ops: &mut dyn Ops, values: &[f32], n: usize, k: usize) -> Weight {
    ops.table(raw(values, n, k)).unwrap_or_else(|e| panic!("{e}"))
}

/// Scores of each row for each expert; what a row weighs and where it goes, in f64.
fn oracle(x: &[f32], scores: &[f32], scale: &[f32], gate_up: &[f32], down: &[f32]) -> Vec<f64> {
    let dot =
        |w: &[f32], x: &[f64]| -> f64 { w.iter().zip(x).map(|(w, x)| f64::from(*w) * x).sum() };
    let gelu = |x: f64| 0.5 * x * (1.0 + (0.797_884_560_8 * (x + 0.044_715 * x.powi(3))).tanh());
    let mut out = Vec::new();
    for (x, scores) in x.chunks(WIDTH).zip(scores.chunks(EXPERTS)) {
        let x: Vec<f64> = x.iter().map(|x| f64::from(*x)).collect();
        let mut order: Vec<usize> = (0..EXPERTS).collect();
        order.sort_by(|a, b| scores[*b].total_cmp(&scores[*a]));
        let total: f64 = order[..K].iter().map(|e| f64::from(scores[*e]).exp()).sum();
        let mut row = vec![0.0; WIDTH];
        for &e in &order[..K] {
            let weight = f64::from(scores[e]).exp() / total * f64::from(scale[e]);
            let w = &gate_up[e * 2 * FFN * WIDTH..(e + 1) * 2 * FFN * WIDTH];
            let h: Vec<f64> = (0..FFN)
                .map(|i| {
                    let at = |i: usize| dot(&w[i * WIDTH..(i + 1) * WIDTH], &x);
                    gelu(at(i)) * at(FFN + i)
                })
                .collect();
            let w = &down[e * WIDTH * FFN..(e + 1) * WIDTH * FFN];
            for (i, r) in row.iter_mut().enumerate() {
                *r += weight * dot(&w[i * FFN..(i + 1) * FFN], &h);
            }
        }
        out.extend(row);
    }
    out
}

#[test]
fn rows_go_through_their_experts_whatever_else_is_in_the_batch() {
    let rows = 7;
    let (x, scores) = (values(1, rows * WIDTH), values(2, rows * EXPERTS));
    let scale: Vec<f32> = values(3, EXPERTS).iter().map(|s| s + 1.5).collect();
    let (up, down) = (values(4, EXPERTS * 2 * FFN * WIDTH), values(5, EXPERTS * WIDTH * FFN));
    let want = oracle(&x, &scores, &scale, &up, &down);
    let mut bits: Option<Vec<u32>> = None;
    for isa in Isa::available() {
        for (threads, batch) in [(1, rows), (2, rows), (1, 1), (2, 3)] {
            let mut cpu = Cpu::new(isa, Arc::new(Pool::new(threads)), Precision::Exact);
            let cut = |all: &[f32], e: usize| {
                let size = all.len() / EXPERTS;
                all[e * size..(e + 1) * size].to_vec()
            };
            let gate_up: Vec<Linear> =
                (0..EXPERTS).map(|e| linear(&mut cpu, &cut(&up, e), 2 * FFN, WIDTH)).collect();
            let downs: Vec<Linear> =
                (0..EXPERTS).map(|e| linear(&mut cpu, &cut(&down, e), WIDTH, FFN)).collect();
            let (xs, ss) =
                (table(&mut cpu, &x, rows, WIDTH), table(&mut cpu, &scores, rows, EXPERTS));
            let mut got = Vec::new();
            for first in (0..rows).step_by(batch) {
                let ids: Vec<u32> = (first..(first + batch).min(rows)).map(|r| r as u32).collect();
                let (x, s) = (cpu.embed(&xs, &ids, 1.0), cpu.embed(&ss, &ids, 1.0));
                let routes = cpu.route(&s, K, &Vector::new(scale.clone()));
                let y = cpu.experts(&x, &routes, &gate_up, &downs, Activation::GeluTanh);
                got.extend(cpu.read(&y));
            }
            for (g, w) in got.iter().zip(&want) {
                assert!((f64::from(*g) - w).abs() < 1e-5 * (1.0 + w.abs()), "{g} {w}");
            }
            let got: Vec<u32> = got.iter().map(|x| x.to_bits()).collect();
            assert_eq!(bits.get_or_insert(got.clone()), &got, "{isa:?} {threads} {batch}");
        }
    }
}

#[test]
fn columns_of_a_table_are_tables() {
    let mut cpu = Cpu::new(Isa::detect(), Arc::new(Pool::new(1)), Precision::Exact);
    let x = values(9, 4 * 48);
    let all = table(&mut cpu, &x, 4, 48);
    let part = all.columns(16..48).and_then(|p| p.columns(8..24)).unwrap_or_else(|| panic!("cut"));
    assert_eq!((part.n(), part.k(), part.bytes()), (4, 16, 0));
    let rows = cpu.embed(&part, &[3, 0], 2.0);
    let want = [&x[3 * 48 + 24..3 * 48 + 40], &x[24..40]].concat();
    assert!(cpu.read(&rows).iter().zip(&want).all(|(g, w)| *g == 2.0 * w));
    assert!(all.columns(40..50).is_none());
    // Blocks are not cut.
    let raw = RawMatrix {
        name: Default::default(),
        ty: BlockType::Q8_0,
        n: 1,
        k: 64,
        bytes: Arc::new(vec![0; 68]),
        done: &|_| {},
    };
    let q8 = cpu.table(raw).unwrap_or_else(|e| panic!("{e}"));
    assert!(q8.columns(16..48).is_none() && q8.columns(32..64).is_some());
}
