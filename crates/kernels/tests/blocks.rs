//! Block formats against the reference: `data/blocks.bin`, made by `tools/make_block_goldens.py`.

use lapidary_kernels::blocks::{self, BlockType};

struct Record {
    /// Weights to blocks; else blocks to weights.
    quantises: bool,
    ty: BlockType,
    blocks: Vec<u8>,
    weights: Vec<f32>,
}

fn records() -> Vec<Record> {
    let mut rest: &[u8] = include_bytes!("data/blocks.bin");
    let mut take = move |n: usize| {
        let (head, tail) = rest.split_at_checked(n)?;
        rest = tail;
        Some(head)
    };
    let mut all = Vec::new();
    while let Some(head) = take(2) {
        let (quantises, len) = (head[0] == 1, head[1] as usize);
        let name = take(len).unwrap();
        let ty = BlockType::ALL.into_iter().find(|t| t.name().as_bytes() == name).unwrap();
        let size = u32::from_le_bytes(take(4).unwrap().try_into().unwrap()) as usize;
        let blocks = take(size).unwrap().to_vec();
        let size = u32::from_le_bytes(take(4).unwrap().try_into().unwrap()) as usize;
        let weights = take(4 * size).unwrap().chunks_exact(4);
        let weights = weights.map(|c| f32::from_le_bytes(c.try_into().unwrap())).collect();
        all.push(Record { quantises, ty, blocks, weights });
    }
    all
}

#[test]
fn weights_have_the_references_bits() {
    let mut types = Vec::new();
    for r in records().iter().filter(|r| !r.quantises) {
        let mut got = vec![0.0; r.weights.len()];
        blocks::dequantize(r.ty, &r.blocks, &mut got);
        for (i, (got, want)) in got.iter().zip(&r.weights).enumerate() {
            let same = got.to_bits() == want.to_bits() || got.is_nan() && want.is_nan();
            assert!(same, "{} weight {i}: {got:e} {want:e}", r.ty.name());
        }
        types.push(r.ty.name());
    }
    assert_eq!(types.len(), 13, "{types:?}");
}

#[test]
fn blocks_have_the_references_bytes() {
    let mut types = Vec::new();
    for r in records().iter().filter(|r| r.quantises) {
        let mut got = vec![0; r.blocks.len()];
        blocks::quantize(r.ty, &r.weights, &mut got);
        assert_eq!(got, r.blocks, "{}", r.ty.name());
        types.push(r.ty.name());
    }
    assert_eq!(types.len(), 7, "{types:?}");
}
