//! Writes the vision tower of Gemma 3 4B as a llama.cpp "mmproj" file with random weights in F16, to
//! measure speed and memory with a text model of `random_model gemma-3-4b`:
//!
//!     cargo run --release -p lapidary-tune --example random_siglip -- mmproj.gguf

#[path = "shared/random.rs"]
mod random;

use lapidary_formats::gguf::{self, Array, Metadata, Value};
use lapidary_formats::{DType, TensorSpec};
use lapidary_ops::blocks;
use std::path::Path;

// SigLIP so400m at 896 pixels (the model card of Gemma 3), and the width of the 4B text model.
const LAYERS: usize = 27;
const WIDTH: usize = 1152;
const HEADS: usize = 16;
const FFN: usize = 4304;
const SIDE: usize = 896;
const PATCH: usize = 14;
const TEXT: usize = 2560;

fn metadata(file: &str) -> lapidary_formats::Result<Metadata> {
    let mut m = Metadata::new(file.to_owned());
    m.insert("general.architecture", "clip")?;
    m.insert("general.name", "gemma-3-4b's tower (random weights)")?;
    m.insert("clip.has_vision_encoder", true)?;
    m.insert("clip.vision.projector_type", "gemma3")?;
    let counts = [
        ("image_size", SIDE),
        ("patch_size", PATCH),
        ("embedding_length", WIDTH),
        ("feed_forward_length", FFN),
        ("block_count", LAYERS),
        ("attention.head_count", HEADS),
        ("projection_dim", TEXT),
    ];
    for (key, n) in counts {
        m.insert(&format!("clip.vision.{key}"), n as u32)?;
    }
    m.insert("clip.vision.attention.layer_norm_epsilon", 1e-6f32)?;
    for key in ["image_mean", "image_std"] {
        m.insert(&format!("clip.vision.{key}"), Value::Array(Array::F32(vec![0.5; 3])))?;
    }
    m.insert("clip.use_gelu", true)?;
    Ok(m)
}

/// Names and shapes: matrices are F16, vectors F32.
fn tensors() -> Vec<(String, Vec<usize>)> {
    let patches = (SIDE / PATCH) * (SIDE / PATCH);
    let mut all: Vec<(String, Vec<usize>)> = vec![
        ("v.patch_embd.weight".into(), vec![WIDTH, 3, PATCH, PATCH]),
        ("v.patch_embd.bias".into(), vec![WIDTH]),
        ("v.position_embd.weight".into(), vec![patches, WIDTH]),
        ("v.post_ln.weight".into(), vec![WIDTH]),
        ("v.post_ln.bias".into(), vec![WIDTH]),
        ("mm.soft_emb_norm.weight".into(), vec![WIDTH]),
        ("mm.input_projection.weight".into(), vec![WIDTH, TEXT]),
    ];
    for i in 0..LAYERS {
        let mut add = |name: &str, shape: &[usize]| {
            all.push((format!("v.blk.{i}.{name}.weight"), shape.to_vec()));
            all.push((format!("v.blk.{i}.{name}.bias"), vec![shape[0]]));
        };
        add("ln1", &[WIDTH]);
        for name in ["attn_q", "attn_k", "attn_v", "attn_out"] {
            add(name, &[WIDTH, WIDTH]);
        }
        add("ln2", &[WIDTH]);
        add("ffn_up", &[FFN, WIDTH]);
        add("ffn_down", &[WIDTH, FFN]);
    }
    all
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let file = std::env::args().nth(1).ok_or("random_siglip FILE.gguf")?;
    let tensors = tensors();
    let dtype = |shape: &[usize]| if shape.len() > 1 { DType::F16 } else { DType::F32 };
    let specs = tensors.iter().map(|(name, s)| TensorSpec::new(name, dtype(s), s.clone()));
    let mut out = gguf::create(Path::new(&file), &metadata(&file)?, &specs.collect::<Vec<_>>())?;
    for (i, (name, shape)) in tensors.iter().enumerate() {
        let values = random::weights(i as u64 + 1).take(shape.iter().product());
        let bytes: Vec<u8> = match shape[..] {
            [_] => values.flat_map(|x| (1.0 + x).to_le_bytes()).collect(),
            _ => values.flat_map(|x| blocks::f32_to_f16(x).to_le_bytes()).collect(),
        };
        out.write(name, &bytes)?;
    }
    out.finish()?;
    Ok(())
}
