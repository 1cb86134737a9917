//! Activations in 8 bits against their definition.

use lapidary_kernels::{ByteRows, Isa, Pool};

const BLOCK: usize = 32;

/// Blocks in number no multiple of any vector's lanes, and those whose magnitudes are at the ends of f32.
#[test]
fn a_block_is_rounded_to_its_largest_magnitude() {
    let (rows, blocks) = (19, 37);
    let k = blocks * BLOCK;
    let mut x: Vec<f32> =
        (0..rows * k).map(|i| ((i * 7919 + i / 977) % 2003) as f32 / 700.0 - 1.4).collect();
    x[..BLOCK].fill(0.0);
    x[BLOCK..2 * BLOCK].fill(f32::from_bits(1));
    x[2 * BLOCK] = f32::INFINITY;
    x[3 * BLOCK..4 * BLOCK].iter_mut().for_each(|x| *x *= 1e38);
    for isa in Isa::available() {
        let y = ByteRows::new(isa, &Pool::new(1), &x, k);
        for (row, kb) in (0..rows).flat_map(|row| (0..blocks).map(move |kb| (row, kb))) {
            let block = &x[row * k + kb * BLOCK..][..BLOCK];
            let top = block.iter().fold(0.0f32, |top, x| top.max(x.abs()));
            let zero = top < 1e-36 || top == f32::INFINITY;
            let inverse = if zero { 0.0 } else { 127.0 / top };
            let (got, what) = (y.quantised(row, kb), format!("{isa:?}, row {row}, block {kb}"));
            if top < f32::INFINITY {
                let want: Vec<i8> =
                    block.iter().map(|x| (x * inverse).round_ties_even() as i8).collect();
                assert_eq!(got.values[..], want, "{what}");
                let sum = |values: &[i8]| values.iter().map(|v| i32::from(*v)).sum::<i32>();
                assert_eq!(got.halves, [sum(&want[..16]), sum(&want[16..])], "{what}");
                assert_eq!(got.whole, sum(&want), "{what}");
                assert_eq!(got.sum, got.scale * sum(&want) as f32, "{what}");
            }
            assert_eq!(got.scale, if zero { 0.0 } else { top / 127.0 }, "{what}");
        }
    }
}
