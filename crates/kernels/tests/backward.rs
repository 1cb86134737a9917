//! Products for training and the backward of every kernel: against f64 and finite differences in
//! f64, and the same bits on every instruction set, for any number of threads.

use lapidary_kernels::backward::{
    AttendGradients, Gemm, Operand, Precision, activation_backward, attend_backward,
    attend_forward, cross_entropy, gated_backward, layer_norm_backward, log_probability,
    match_rms_backward, mix_backward, rms_norm_backward, rope_backward, softcap_backward,
    sparsify_backward,
};
use lapidary_kernels::blocks::{self, BlockType};
use lapidary_kernels::{
    Activation, AttentionSpec, FloatRows, Isa, Packed, Pool, RopePairs, Rows, product_f32,
};
use std::ops::Range;
use std::sync::Arc;

/// Values from -`size` to `size` that look random.
fn values(len: usize, seed: u64, size: f32) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    (0..len)
        .map(|_| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            ((state >> 40) as f32 / (1 << 23) as f32 - 1.0) * size
        })
        .collect()
}

fn f64s(x: &[f32]) -> Vec<f64> {
    x.iter().map(|x| f64::from(*x)).collect()
}

fn bits(x: &[f32]) -> Vec<u32> {
    x.iter().map(|x| x.to_bits()).collect()
}

/// Every instruction set with one and with three threads.
fn machines() -> Vec<Gemm> {
    let sets = Isa::available().into_iter();
    sets.flat_map(|isa| [1, 3].map(|t| Gemm::new(isa, Arc::new(Pool::new(t))))).collect()
}

/// Runs `f` on all machines; the results must agree to the bit, and with `want`.
fn check(name: &str, f: impl Fn(&Gemm) -> Vec<f32>, want: &[f64], tolerance: f64) {
    let mut first: Option<Vec<u32>> = None;
    let size = want.iter().fold(0.0f64, |a, b| a.max(b.abs()));
    for gemm in machines() {
        let got = f(&gemm);
        assert_eq!(got.len(), want.len(), "{name}");
        for (i, (got, want)) in got.iter().zip(want).enumerate() {
            let error = (f64::from(*got) - want).abs();
            assert!(error <= tolerance * size, "{name} {:?} [{i}]: {got} {want}", gemm.isa());
        }
        assert_eq!(*first.get_or_insert_with(|| bits(&got)), bits(&got), "{name} {:?}", gemm.isa());
    }
}

/// The slope of `f` in every direction.
fn slopes(x: &[f64], f: impl Fn(&[f64]) -> f64) -> Vec<f64> {
    let mut x = x.to_vec();
    (0..x.len())
        .map(|i| {
            let (old, h) = (x[i], 1e-6);
            x[i] = old + h;
            let above = f(&x);
            x[i] = old - h;
            let below = f(&x);
            x[i] = old;
            (above - below) / (2.0 * h)
        })
        .collect()
}

fn weighted(y: &[f64], w: &[f32]) -> f64 {
    y.iter().zip(w).map(|(y, w)| y * f64::from(*w)).sum()
}

#[test]
fn products() {
    for [m, n, k] in [[1, 1, 1], [13, 33, 17], [30, 100, 530], [250, 70, 64], [5, 40, 4200]] {
        let (a, b, c) = (values(m * k, 1, 1.0), values(n * k, 2, 1.0), values(m * n, 3, 1.0));
        let turn = |x: &[f32], rows: usize| -> Vec<f32> {
            (0..k).flat_map(|p| (0..rows).map(move |i| x[i * k + p])).collect()
        };
        let (at, bt) = (turn(&a, m), turn(&b, n));
        for add in [false, true] {
            let want: Vec<f64> = (0..m * n)
                .map(|i| {
                    let (row, column) = (i / n * k, i % n * k);
                    let dot: f64 =
                        (0..k).map(|p| f64::from(a[row + p]) * f64::from(b[column + p])).sum();
                    dot + if add { f64::from(c[i]) } else { 0.0 }
                })
                .collect();
            let sides = [
                (Operand::Rows(&a, k), Operand::Rows(&b, k)),
                (Operand::Columns(&at, m), Operand::Rows(&b, k)),
                (Operand::Rows(&a, k), Operand::Columns(&bt, n)),
                (Operand::Columns(&at, m), Operand::Columns(&bt, n)),
            ];
            for (a, b) in sides {
                let run = |gemm: &Gemm| {
                    let mut out = c.clone();
                    gemm.product([m, n, k], a, b, &mut out, add);
                    out
                };
                check(&format!("product {m} {n} {k}"), run, &want, 1e-5);
            }
        }
    }
}

/// Rounded operands against f64, and the same bits from every instruction set.
#[test]
fn products_of_bfloat16() {
    let round = |x: &f32| -> f64 {
        let exact = f64::from(*x);
        if exact.abs() < 2f64.powi(-50) {
            return 0.0;
        }
        // Eight bits of fraction in all, ties to even: what is left of a multiple of 2^(e - 7).
        let unit = 2f64.powi(exact.abs().log2().floor() as i32 - 7);
        (exact / unit).round_ties_even() * unit
    };
    for [m, n, k] in [[1, 1, 1], [13, 33, 17], [30, 100, 530], [250, 70, 64], [5, 40, 4201]] {
        let (mut a, b, c) = (values(m * k, 1, 1.0), values(n * k, 2, 1.0), values(m * n, 3, 1.0));
        a[0] = 3e-20;
        for add in [false, true] {
            let want: Vec<f64> = (0..m * n)
                .map(|i| {
                    let (row, column) = (i / n * k, i % n * k);
                    let dot: f64 = (0..k).map(|p| round(&a[row + p]) * round(&b[column + p])).sum();
                    dot + if add { f64::from(c[i]) } else { 0.0 }
                })
                .collect();
            for precision in [Precision::Bf16, Precision::Bf16Amx] {
                let run = |gemm: &Gemm| {
                    let gemm = Gemm::new(gemm.isa(), gemm.shared_pool()).with_precision(precision);
                    let (mut out, a, b) = (c.clone(), Operand::Rows(&a, k), Operand::Rows(&b, k));
                    gemm.product([m, n, k], a, b, &mut out, add);
                    out
                };
                check(&format!("{precision:?} {m} {n} {k}"), run, &want, 1e-5);
            }
        }
    }
}

#[test]
fn bfloat16_keeps_what_is_not_a_number() {
    for gemm in machines() {
        for (precision, bad) in [Precision::Bf16, Precision::Bf16Amx].into_iter().flat_map(|p| {
            [f32::NAN, f32::from_bits(0xffff_ffff), f32::INFINITY].map(|bad| (p, bad))
        }) {
            let gemm = Gemm::new(gemm.isa(), gemm.shared_pool()).with_precision(precision);
            let (a, b, mut out) = ([1.0, bad], [1.0, 1.0], [0.0]);
            gemm.product([1, 1, 2], Operand::Rows(&a, 2), Operand::Rows(&b, 2), &mut out, false);
            assert!(!out[0].is_finite(), "{bad} gave {}", out[0]);
        }
    }
}

#[test]
fn products_with_weights_of_every_layout() {
    let (m, n, k) = (20, 90, 512);
    let pool = Pool::new(1);
    let raw = values(n * k, 4, 0.5);
    use BlockType::*;
    for ty in [F32, F16, BF16, Q8_0, Q4_0, Q4_1, Q5_0, Q5_1] {
        let mut bytes = vec![0; n * k / ty.block_len() * ty.block_bytes()];
        blocks::quantize(ty, &raw, &mut bytes);
        let rows = Rows { ty, n, k, bytes: &bytes };
        let w = Packed::new(rows, &pool, &|_| {}).unwrap();
        let mut plain = vec![0.0; n * k];
        blocks::dequantize(ty, &bytes, &mut plain);
        // Forward: the bits of the exact forward kernel.
        let x = values(m * k, 5, 1.0);
        let mut want = vec![0.0; m * n];
        product_f32(Isa::Scalar, &pool, &FloatRows::new(&x, k), &w, &mut want);
        for gemm in machines() {
            let mut got = vec![0.0; m * n];
            gemm.product([m, n, k], Operand::Rows(&x, k), Operand::Weights(&w), &mut got, false);
            assert_eq!(bits(&got), bits(&want), "{} {:?}", ty.name(), gemm.isa());
        }
        // Backward: dy times the matrix.
        let dy = values(m * n, 6, 1.0);
        let want: Vec<f64> = (0..m * k)
            .map(|i| {
                let product =
                    |p: usize| f64::from(dy[i / k * n + p]) * f64::from(plain[p * k + i % k]);
                (0..n).map(product).sum()
            })
            .collect();
        let run = |gemm: &Gemm| {
            let mut dx = vec![0.0; m * k];
            let w = Operand::WeightsTransposed(&w);
            gemm.product([m, k, n], Operand::Rows(&dy, n), w, &mut dx, false);
            dx
        };
        check(ty.name(), run, &want, 1e-5);
    }
}

#[test]
fn norms() {
    for (rows, n) in [(3, 7), (2, 16), (4, 50)] {
        let (x, w) = (values(rows * n, 7, 2.0), values(n, 8, 1.5));
        let (b, dy) = (values(n, 9, 1.0), values(rows * n, 10, 1.0));
        let rms = |x: &[f64], w: &[f64]| -> f64 {
            let y: Vec<f64> = (x.chunks(n))
                .flat_map(|x| {
                    let f = 1.0 / (x.iter().map(|x| x * x).sum::<f64>() / n as f64 + 1e-5).sqrt();
                    x.iter().zip(w).map(move |(x, w)| x * f * w).collect::<Vec<_>>()
                })
                .collect();
            weighted(&y, &dy)
        };
        let mut want = slopes(&f64s(&x), |x| rms(x, &f64s(&w)));
        want.extend(slopes(&f64s(&w), |w| rms(&f64s(&x), w)));
        let run = |gemm: &Gemm| {
            let (mut dx, mut dw) = (vec![0.0; x.len()], vec![0.0; n]);
            rms_norm_backward(gemm.isa(), &x, &w, 1e-5, &dy, &mut dx, &mut dw);
            [dx, dw].concat()
        };
        check("rms_norm", run, &want, 1e-5);
        let layer = |x: &[f64], w: &[f64], b: &[f64]| -> f64 {
            let y: Vec<f64> = (x.chunks(n))
                .flat_map(|x| {
                    let mean = x.iter().sum::<f64>() / n as f64;
                    let square: f64 = x.iter().map(|x| (x - mean).powi(2)).sum();
                    let f = 1.0 / (square / n as f64 + 1e-5).sqrt();
                    let y = x.iter().zip(w).zip(b).map(move |((x, w), b)| (x - mean) * f * w + b);
                    y.collect::<Vec<_>>()
                })
                .collect();
            weighted(&y, &dy)
        };
        let (wide, narrow, bias) = (f64s(&x), f64s(&w), f64s(&b));
        let mut want = slopes(&wide, |x| layer(x, &narrow, &bias));
        want.extend(slopes(&narrow, |w| layer(&wide, w, &bias)));
        want.extend(slopes(&bias, |b| layer(&wide, &narrow, b)));
        let run = |gemm: &Gemm| {
            let (mut dx, mut dw, mut db) = (vec![0.0; x.len()], vec![0.0; n], vec![0.0; n]);
            layer_norm_backward(gemm.isa(), &x, &w, 1e-5, &dy, &mut dx, &mut dw, &mut db);
            [dx, dw, db].concat()
        };
        check("layer_norm", run, &want, 1e-5);
    }
}

#[test]
fn element_by_element() {
    let n = 101;
    let (x, up, dy) = (values(n, 11, 6.0), values(n, 12, 2.0), values(n, 13, 1.0));
    let gelu = |x: f64| {
        0.5 * x * (1.0 + ((2.0 / std::f64::consts::PI).sqrt() * (x + 0.044715 * x.powi(3))).tanh())
    };
    let silu = |x: f64| x / (1.0 + (-x).exp());
    let kinds: [(Activation, &dyn Fn(f64) -> f64); 2] =
        [(Activation::GeluTanh, &gelu), (Activation::Silu, &silu)];
    for (kind, act) in kinds {
        let sum = |x: &[f64]| weighted(&x.iter().map(|x| act(*x)).collect::<Vec<_>>(), &dy);
        let run = |gemm: &Gemm| {
            let mut dx = dy.clone();
            activation_backward(gemm.isa(), kind, &x, &mut dx);
            dx
        };
        check("activation", run, &slopes(&f64s(&x), sum), 1e-5);
        let sum =
            |x: &[f64]| weighted(&(0..n).map(|i| act(x[i]) * x[n + i]).collect::<Vec<_>>(), &dy);
        let run = |gemm: &Gemm| {
            let (mut dgate, mut dup) = (dy.clone(), vec![0.0; n]);
            gated_backward(gemm.isa(), kind, &x, &up, &mut dgate, &mut dup);
            [dgate, dup].concat()
        };
        check("gated", run, &slopes(&f64s(&[&x[..], &up].concat()), sum), 1e-5);
    }
    let sum =
        |x: &[f64]| weighted(&x.iter().map(|x| 5.0 * (x / 5.0).tanh()).collect::<Vec<_>>(), &dy);
    let y: Vec<f32> = x.iter().map(|x| (5.0 * (f64::from(*x) / 5.0).tanh()) as f32).collect();
    let run = |gemm: &Gemm| {
        let mut dx = dy.clone();
        softcap_backward(gemm.isa(), 5.0, &y, &mut dx);
        dx
    };
    check("softcap", run, &slopes(&f64s(&x), sum), 1e-5);
}

/// Two streams of `width` from three, with coefficients of which one is zero.
#[test]
fn mixtures() {
    for width in [5, 64, 100] {
        let (x, dy) = (values(3 * width, 1, 2.0), values(2 * width, 2, 1.0));
        let coefs = [0.5, 0.0, -1.25, 2.0, 1.0, -0.75];
        let mixed = |x: &[f64], c: &[f64]| -> f64 {
            let at =
                |i: usize| (0..3).map(|p| c[i / width * 3 + p] * x[p * width + i % width]).sum();
            weighted(&(0..2 * width).map(at).collect::<Vec<f64>>(), &dy)
        };
        let mut want = slopes(&f64s(&x), |x| mixed(x, &f64s(&coefs)));
        want.extend(slopes(&f64s(&coefs), |c| mixed(&f64s(&x), c)));
        let run = |gemm: &Gemm| {
            let (mut dx, mut dc) = (vec![7.0; x.len()], vec![7.0; coefs.len()]);
            mix_backward(gemm.isa(), &coefs, width, &dy, &mut dx, Some((&x, &mut dc)));
            [dx, dc].concat()
        };
        check("mix", run, &want, 1e-5);
    }
}

#[test]
fn sizes_matched() {
    // The last row is so small that its size counts as the least.
    for (n, size) in [(7, 1.0), (130, 2.0), (64, 1e-3)] {
        let (x, like, dy) = (values(n, 1, size), values(n, 2, 3.0), values(n, 3, 1.0));
        let matched = |x: &[f64], like: &[f64]| -> f64 {
            let square = |x: &[f64]| x.iter().map(|x| x * x).sum::<f64>() / n as f64;
            let factor = (square(like) / square(x).max(1e-5)).sqrt();
            weighted(&x.iter().map(|x| x * factor).collect::<Vec<f64>>(), &dy)
        };
        let mut want = slopes(&f64s(&x), |x| matched(x, &f64s(&like)));
        let of_x = want.len();
        want.extend(slopes(&f64s(&like), |like| matched(&f64s(&x), like)));
        let run = |part: std::ops::Range<usize>| {
            let (x, like, dy) = (&x, &like, &dy);
            move |gemm: &Gemm| {
                let (mut dx, mut dlike) = (dy.clone(), vec![7.0; n]);
                match_rms_backward(gemm.isa(), x, like, &mut dx, &mut dlike);
                [dx, dlike].concat()[part.clone()].to_vec()
            }
        };
        // Apart: with small rows their gradients differ in size.
        check("match_rms, x", run(0..of_x), &want[..of_x], 1e-5);
        check("match_rms, like", run(of_x..2 * of_x), &want[of_x..], 1e-5);
    }
}

#[test]
fn sparse_activations() {
    for (n, deviations) in [(9, 0.5), (200, 1.644_853_6), (64, -0.3)] {
        let (x, dy) = (values(n, 1, 2.0), values(n, 2, 1.0));
        let sparse = |x: &[f64]| -> f64 {
            let mean = x.iter().sum::<f64>() / n as f64;
            let square = x.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / n as f64;
            let cutoff = mean + f64::from(deviations) * square.sqrt();
            weighted(&x.iter().map(|x| (x - cutoff).max(0.0)).collect::<Vec<f64>>(), &dy)
        };
        let want = slopes(&f64s(&x), sparse);
        let run = |gemm: &Gemm| {
            let mut dx = dy.clone();
            sparsify_backward(gemm.isa(), &x, deviations, &mut dx);
            dx
        };
        check("sparsify", run, &want, 1e-5);
    }
}

#[test]
fn rope_turns_back() {
    let (cos, sin): (Vec<f32>, Vec<f32>) =
        (0..4).map(|i| ((i as f32).cos(), (i as f32).sin())).unzip();
    for pairs in [RopePairs::Halves, RopePairs::Adjacent] {
        let (x, dy) = (values(16, 14, 1.0), values(16, 15, 1.0));
        // The map is linear: <rope(x), dy> = <x, back(dy)>.
        let (mut y, mut dx) = (x.clone(), dy.clone());
        lapidary_kernels::rope(&mut y, &cos, &sin, pairs);
        rope_backward(&mut dx, &cos, &sin, pairs);
        let dot = |a: &[f32], b: &[f32]| weighted(&f64s(a), b);
        assert!((dot(&y, &dy) - dot(&x, &dx)).abs() < 1e-6, "{pairs:?}");
    }
}

#[test]
fn losses() {
    for n in [5, 16, 1003] {
        let (x, target, weight) = (values(n, 16, 8.0), n / 3, 0.25f32);
        let loss = |x: &[f64]| {
            let top = x.iter().copied().fold(f64::MIN, f64::max);
            x.iter().map(|x| (x - top).exp()).sum::<f64>().ln() + top - x[target]
        };
        let want: Vec<f64> = slopes(&f64s(&x), |x| f64::from(weight) * loss(x));
        let run = |gemm: &Gemm| {
            let mut dx = x.clone();
            let nats = cross_entropy(gemm.isa(), &mut dx, target, weight);
            assert!((nats - loss(&f64s(&x))).abs() < 1e-5);
            let mut used = x.clone();
            assert_eq!(log_probability(gemm.isa(), &mut used, target), -nats);
            dx
        };
        check("cross_entropy", run, &want, 1e-5);
    }
}

/// Attention by its definition.
fn attention(spec: &AttentionSpec, spans: &[Range<usize>], x: &[f64], rows: usize) -> Vec<f64> {
    let (d, wide, narrow) =
        (spec.head_dim, spec.heads * spec.head_dim, spec.kv_heads * spec.head_dim);
    let (q, rest) = x.split_at(rows * wide);
    let (k, v) = rest.split_at(rows * narrow);
    let mut out = vec![0.0; rows * wide];
    for span in spans {
        for row in span.clone() {
            for h in 0..spec.heads {
                let kv = h * spec.kv_heads / spec.heads * d;
                let first = spec.window.map_or(0, |w| (row + 1).saturating_sub(w)).max(span.start);
                let scores: Vec<f64> = (first..=row)
                    .map(|j| {
                        let dot: f64 = (0..d)
                            .map(|i| q[row * wide + h * d + i] * k[j * narrow + kv + i])
                            .sum();
                        let s = dot * f64::from(spec.scale);
                        spec.softcap.map_or(s, |c| f64::from(c) * (s / f64::from(c)).tanh())
                    })
                    .collect();
                let top = scores.iter().copied().fold(f64::MIN, f64::max);
                let sum: f64 = scores.iter().map(|s| (s - top).exp()).sum();
                for (j, s) in (first..=row).zip(&scores) {
                    for i in 0..d {
                        out[row * wide + h * d + i] +=
                            (s - top).exp() / sum * v[j * narrow + kv + i];
                    }
                }
            }
        }
    }
    out
}

#[test]
fn attention_without_a_square_matrix() {
    let cases = [
        (4, 2, 4, None, None, std::iter::once(0..70).collect()),
        (2, 1, 3, Some(9), None, vec![0..1, 1..30, 30..75]),
        (2, 2, 5, Some(70), Some(1.5), vec![0..5, 5..80]),
    ];
    for (heads, kv_heads, head_dim, window, softcap, spans) in cases {
        let spec =
            AttentionSpec { heads, kv_heads, head_dim, scale: 0.7, window, ahead: 0, softcap };
        let rows = spans.last().unwrap().end;
        let (wide, narrow) = (rows * heads * head_dim, rows * kv_heads * head_dim);
        let x = values(wide + 2 * narrow, 17, 1.5);
        let dout = values(wide, 18, 1.0);
        let (q, rest) = x.split_at(wide);
        let (k, v) = rest.split_at(narrow);
        let want = attention(&spec, &spans, &f64s(&x), rows);
        let run = |gemm: &Gemm| {
            let mut out = vec![0.0; wide];
            attend_forward(gemm, &spec, &spans, [q, k, v], &mut out);
            out
        };
        check("attend", run, &want, 1e-5);
        // Every seventh direction: the definition is slow.
        let all = f64s(&x);
        let some: Vec<usize> = (0..x.len()).step_by(7).collect();
        let want = slopes(&some.iter().map(|i| all[*i]).collect::<Vec<_>>(), |part| {
            let mut x = all.clone();
            some.iter().zip(part).for_each(|(i, v)| x[*i] = *v);
            weighted(&attention(&spec, &spans, &x, rows), &dout)
        });
        let run = |gemm: &Gemm| {
            let mut dq = vec![f32::NAN; wide];
            let (mut dk, mut dv) = (vec![f32::NAN; narrow], vec![f32::NAN; narrow]);
            let to = AttendGradients { dq: &mut dq, dk: &mut dk, dv: &mut dv };
            attend_backward(gemm, &spec, &spans, [q, k, v], &dout, to);
            let all = [dq, dk, dv].concat();
            some.iter().map(|i| all[*i]).collect()
        };
        check("attend_backward", run, &want, 2e-5);
    }
}
