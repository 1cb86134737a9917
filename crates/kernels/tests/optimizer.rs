//! AdamW against f64, and its moments in 8 bits.

use lapidary_kernels::Isa;
use lapidary_kernels::backward::{Adam, Moments, adamw};
use std::sync::Arc;

/// What an 8-bit code stands for, in f64: three bits of fraction, exponents from -15 (first moments)
/// or -31 (second) on.
fn code(bias: i32, code: u8) -> f64 {
    let (exponent, fraction) = (i32::from(code >> 3) - bias, f64::from(code & 7));
    if code == 0 { 0.0 } else { 2f64.powi(exponent) * (1.0 + fraction / 8.0) }
}

/// The codes of first and second moments that are `x` and its square: the largest is 1.
fn codes(x: &[f32]) -> (Vec<u8>, Vec<u8>) {
    let adam = Adam {
        lr: 0.0,
        beta1: 0.0,
        beta2: 0.0,
        eps: 1e-8,
        decay: 0.0,
        scale: 1.0,
        correction1: 1.0,
        correction2: 1.0,
    };
    let mut moments = Moments::new(&Arc::default(), x.len(), true);
    let part = moments.parts(256).remove(0);
    adamw(Isa::detect(), &adam, &mut vec![0.0; x.len()], x, part);
    match moments {
        Moments::Bits8 { m, v, .. } => (m, v),
        Moments::F32(..) => unreachable!("8 bits were asked for"),
    }
}

#[test]
fn codes_of_moments_are_the_nearest() {
    for c in 1..120u8 {
        let (a, b) = (code(15, c), code(15, c + 1));
        assert!(a < b);
        let x =
            [1.0, (a + (b - a) * 0.49) as f32, (a + (b - a) * 0.51) as f32, -a as f32, 1e-30, 0.0];
        let (first, second) = codes(&x);
        // Seven bits beside the sign; what is tiny vanishes.
        assert_eq!(first, [120, c, c + 1, 128 + c, 0, 0], "{c}");
        assert_eq!((second[0], second[5]), (248, 0));
        let got = code(31, second[3]);
        assert!((got / (a * a) - 1.0).abs() < 0.07, "{c}: {got} {}", a * a);
        // A second moment does not vanish, or a weight would jump.
        assert_eq!(codes(&[1.0, 1e-18]).1[1], 1);
    }
}

/// 50 steps against f64; the gradient falls into three sizes.
#[test]
fn steps_follow_the_definition() {
    let n = 700;
    let gradient = |t: usize, i: usize| {
        ((i * 31 + t * 17) % 13) as f64 / 6.0 - 1.0 + 10f64.powi(-((i % 3) as i32))
    };
    for (bits8, tolerance) in [(false, 2e-6), (true, 2e-2)] {
        let mut all: Vec<Vec<u32>> = Vec::new();
        for isa in Isa::available() {
            let mut w: Vec<f32> = (0..n).map(|i| (i as f32 * 0.37).sin()).collect();
            let mut want: Vec<f64> = w.iter().map(|w| f64::from(*w)).collect();
            let (mut m, mut v) = (vec![0.0f64; n], vec![0.0f64; n]);
            let mut moments = Moments::new(&Arc::default(), n, bits8);
            for t in 1..=50 {
                let g: Vec<f32> = (0..n).map(|i| gradient(t, i) as f32).collect();
                let (b1, b2) = (0.9f64, 0.95f64);
                let adam = Adam {
                    lr: 0.01,
                    beta1: 0.9,
                    beta2: 0.95,
                    eps: 1e-8,
                    decay: 0.1,
                    scale: 0.5,
                    correction1: (1.0 - b1.powi(t as i32)) as f32,
                    correction2: (1.0 - b2.powi(t as i32)) as f32,
                };
                let parts = moments.parts(256);
                for ((w, g), part) in w.chunks_mut(256).zip(g.chunks(256)).zip(parts) {
                    adamw(isa, &adam, w, g, part);
                }
                for i in 0..n {
                    let g = gradient(t, i) * 0.5;
                    m[i] = b1 * m[i] + (1.0 - b1) * g;
                    v[i] = b2 * v[i] + (1.0 - b2) * g * g;
                    let (mh, vh) =
                        (m[i] / (1.0 - b1.powi(t as i32)), v[i] / (1.0 - b2.powi(t as i32)));
                    want[i] -= 0.01 * 0.1 * want[i] + 0.01 * mh / (vh.sqrt() + 1e-8);
                }
            }
            for (i, (w, want)) in w.iter().zip(&want).enumerate() {
                assert!((f64::from(*w) - want).abs() < tolerance, "{isa:?} {i}: {w} {want}");
            }
            all.push(w.iter().map(|w| w.to_bits()).collect());
        }
        assert!(all.windows(2).all(|p| p[0] == p[1]), "the same bits on all sets");
    }
}
