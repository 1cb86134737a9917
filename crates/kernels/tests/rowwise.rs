//! Norms, activations and rotations against f64, the same bits on every instruction set.

use lapidary_kernels::{
    Activation, Isa, RopePairs, activation, gated, layer_norm, rms_norm, rope, softcap,
};

/// Values from -`size` to `size`, some exact zeros among them.
fn values(len: usize, size: f32) -> Vec<f32> {
    (0..len).map(|i| ((i * 7919) % 2001) as f32 / 1000.0 * size - size).collect()
}

/// Runs `f` on every instruction set, checks each result against `want` and all against the first.
fn check(name: &str, f: impl Fn(Isa) -> Vec<f32>, want: &[f64], relative: f64, absolute: f64) {
    let mut first: Option<Vec<u32>> = None;
    for isa in Isa::available() {
        let got = f(isa);
        for (i, (got, want)) in got.iter().zip(want).enumerate() {
            let error = (f64::from(*got) - want).abs();
            assert!(
                error <= want.abs() * relative + absolute,
                "{name} {isa:?} [{i}]: {got} {want}"
            );
        }
        let bits: Vec<u32> = got.iter().map(|x| x.to_bits()).collect();
        assert_eq!(*first.get_or_insert_with(|| bits.clone()), bits, "{name} {isa:?}");
    }
}

#[test]
fn activations() {
    for len in [1, 15, 16, 1000] {
        for size in [0.1, 4.0, 100.0] {
            let x = values(len, size);
            let gelu = |x: f64| {
                0.5 * x
                    * (1.0
                        + ((2.0 / std::f64::consts::PI).sqrt() * (x + 0.044715 * x * x * x)).tanh())
            };
            let silu = |x: f64| x / (1.0 + (-x).exp());
            let kinds: [(Activation, &dyn Fn(f64) -> f64); 2] =
                [(Activation::GeluTanh, &gelu), (Activation::Silu, &silu)];
            for (kind, oracle) in kinds {
                let want: Vec<f64> = x.iter().map(|x| oracle(f64::from(*x))).collect();
                let run = |isa| {
                    let mut y = x.clone();
                    activation(isa, kind, &mut y);
                    y
                };
                check("activation", run, &want, 3e-7, 2e-7 * f64::from(size));
                let up = values(len, 2.0);
                let want: Vec<f64> = want.iter().zip(&up).map(|(a, b)| a * f64::from(*b)).collect();
                let run = |isa| {
                    let mut y = x.clone();
                    gated(isa, kind, &mut y, &up);
                    y
                };
                check("gated", run, &want, 4e-7, 4e-7 * f64::from(size));
            }
            let want: Vec<f64> = x.iter().map(|x| 30.0 * (f64::from(*x) / 30.0).tanh()).collect();
            let run = |isa| {
                let mut y = x.clone();
                softcap(isa, 30.0, &mut y);
                y
            };
            check("softcap", run, &want, 4e-7, 1e-9);
        }
    }
}

#[test]
fn norms() {
    for (rows, width) in [(1, 1), (3, 16), (2, 100), (5, 2304)] {
        let x = values(rows * width, 3.0);
        let (w, b) = (values(width, 1.5), values(width, 0.5));
        let eps = 1e-6;
        let mut rms = Vec::new();
        let mut layer = Vec::new();
        for row in x.chunks(width) {
            let n = width as f64;
            let mean = row.iter().map(|x| f64::from(*x)).sum::<f64>() / n;
            let square = row.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>() / n;
            let variance = row.iter().map(|x| (f64::from(*x) - mean).powi(2)).sum::<f64>() / n;
            for (i, x) in row.iter().enumerate() {
                let (x, w, b) = (f64::from(*x), f64::from(w[i]), f64::from(b[i]));
                rms.push(x / (square + f64::from(eps)).sqrt() * w);
                layer.push((x - mean) / (variance + f64::from(eps)).sqrt() * w + b);
            }
        }
        let run = |isa| {
            let mut out = vec![0.0; x.len()];
            rms_norm(isa, &x, &w, eps, &mut out);
            out
        };
        check("rms_norm", run, &rms, 1e-6, 1e-6);
        if width > 1 {
            let run = |isa| {
                let mut out = vec![0.0; x.len()];
                layer_norm(isa, &x, &w, &b, eps, &mut out);
                out
            };
            check("layer_norm", run, &layer, 2e-6, 2e-6);
        }
    }
}

#[test]
fn rotations_turn_pairs() {
    let (cos, sin) = ([0.6f32, 1.0], [0.8f32, 0.0]);
    let mut halves = vec![1.0, 2.0, 3.0, 4.0];
    rope(&mut halves, &cos, &sin, RopePairs::Halves);
    assert_eq!(halves, [0.6 - 3.0 * 0.8, 2.0, 3.0 * 0.6 + 0.8, 4.0]);
    let mut adjacent = vec![1.0, 3.0, 2.0, 4.0];
    rope(&mut adjacent, &cos, &sin, RopePairs::Adjacent);
    assert_eq!(adjacent, [0.6 - 3.0 * 0.8, 3.0 * 0.6 + 0.8, 2.0, 4.0]);
}
