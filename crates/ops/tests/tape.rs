//! What a recording holds.

use lapidary_ops::{
    Activation, BlockType, Isa, Linear, Ops, Pool, ProductPrecision, RawMatrix, Tape, Trained,
};
use std::sync::Arc;

const ROWS: usize = 64;
const WIDTH: usize = 32;
const FFN: usize = 48;

fn linear(tape: &mut Tape, n: usize, k: usize) -> Linear {
    let bytes: Vec<u8> = (0..n * k).flat_map(|i| (i as f32 * 0.37).sin().to_le_bytes()).collect();
    let (name, ty, bytes) = (Default::default(), BlockType::F32, Arc::new(bytes));
    let weight = tape.matrix(RawMatrix { name, ty, n, k, bytes, done: &|_| {} });
    let weight = weight.unwrap_or_else(|e| panic!("{e}"));
    Linear { weight, bias: None, adapters: Vec::new() }
}

/// Of a feed-forward block stay its input and the outputs of products; what norms and activations make
/// of them is made again, and the gradient comes out as a difference of losses says.
#[test]
fn norms_and_activations_are_not_kept() {
    let pool = Arc::new(Pool::new(2));
    let mut tape = Tape::new(Isa::detect(), pool, Trained::All, ProductPrecision::F32);
    let norm = tape.vector(Default::default(), vec![1.1; WIDTH]);
    let (gate, up) = (linear(&mut tape, FFN, WIDTH), linear(&mut tape, FFN, WIDTH));
    let down = linear(&mut tape, WIDTH, FFN);
    let values: Vec<f32> = (0..ROWS * WIDTH).map(|i| (i as f32 * 0.73).cos()).collect();
    let forward = |tape: &mut Tape, values: &[f32]| {
        let x = tape.tensor(values, WIDTH);
        let h = tape.rms_norm(&x, &norm, 1e-6);
        let (g, u) = (tape.linear(&h, &gate), tape.linear(&h, &up));
        drop(h);
        let h = tape.gated(g, &u, Activation::GeluTanh);
        drop(u);
        (x, tape.linear(&h, &down))
    };

    let before = tape.live_bytes();
    tape.record(true);
    let (x, y) = forward(&mut tape, &values);
    tape.record(false);
    assert_eq!(tape.live_bytes() - before, 4 * ROWS * (2 * WIDTH + 2 * FFN));

    // The loss is the sum of all outputs.
    let ones = tape.tensor(&[1.0; ROWS * WIDTH], WIDTH);
    let (output, input) = (tape.id_of(&y), tape.id_of(&x));
    let gradient = tape.backward(output, ones, input, 0).expect("the input was used");
    let gradient = tape.read(&gradient);
    let mut sum = |at: usize, change: f32| {
        let mut values = values.clone();
        values[at] += change;
        let (_, y) = forward(&mut tape, &values);
        tape.read(&y).into_iter().map(f64::from).sum::<f64>()
    };
    for at in [0, 77, ROWS * WIDTH - 1] {
        let slope = (sum(at, 1e-2) - sum(at, -1e-2)) / 2e-2;
        let found = f64::from(gradient[at]);
        assert!((slope - found).abs() < 1e-2 * (1.0 + slope.abs()), "{at}: {found}, not {slope}");
    }
}
