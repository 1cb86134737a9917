//! Vision towers as "mmproj" files, made of the fixtures' Hugging Face directories. Also for the tests
//! of other crates, by its path.

use lapidary_formats::gguf::{self, Array, Metadata, Value};
use lapidary_formats::{Checkpoint, DType, TensorSpec};
use std::path::Path;

/// The name in an "mmproj" file of a tensor of a vision tower, as llama.cpp's converter gives it.
fn projector_name(hf: &str) -> Option<String> {
    let rest = hf.strip_prefix("model.").unwrap_or(hf);
    let whole = [
        ("multi_modal_projector.mm_input_projection_weight", "mm.input_projection.weight"),
        ("vision_tower.patch_embedder.position_embedding_table", "v.position_embd.weight"),
        ("vision_embedder.pos_embedding", "v.position_embd.weight"),
        ("vision_tower.std_bias", "v.std_bias"),
        ("vision_tower.std_scale", "v.std_scale"),
    ];
    if let Some((_, gguf)) = whole.iter().find(|(name, _)| *name == rest) {
        return Some((*gguf).to_owned());
    }
    let (stem, end) = rest.rsplit_once('.')?;
    let tops = [
        ("multi_modal_projector.mm_soft_emb_norm", "mm.soft_emb_norm"),
        ("embed_vision.embedding_projection", "mm.input_projection"),
        ("vision_tower.embeddings.patch_embedding", "v.patch_embd"),
        ("vision_tower.embeddings.position_embedding", "v.position_embd"),
        ("vision_tower.patch_embedder.input_proj", "v.patch_embd"),
        ("vision_tower.post_layernorm", "v.post_ln"),
        ("vision_embedder.patch_dense", "v.patch_embd"),
        ("vision_embedder.patch_ln1", "v.patch_norm.1"),
        ("vision_embedder.patch_ln2", "v.patch_norm.2"),
        ("vision_embedder.pos_norm", "v.patch_norm.3"),
    ];
    if let Some((_, gguf)) = tops.iter().find(|(name, _)| *name == stem) {
        return Some(format!("{gguf}.{end}"));
    }
    let (layer, part) = stem.strip_prefix("vision_tower.encoder.layers.")?.split_once('.')?;
    let parts = [
        ("layer_norm1", "ln1"),
        ("layer_norm2", "ln2"),
        ("input_layernorm", "ln1"),
        ("post_attention_layernorm", "attn_post_norm"),
        ("pre_feedforward_layernorm", "ln2"),
        ("post_feedforward_layernorm", "ffn_post_norm"),
        ("self_attn.q_proj", "attn_q"),
        ("self_attn.k_proj", "attn_k"),
        ("self_attn.v_proj", "attn_v"),
        ("self_attn.o_proj", "attn_out"),
        ("self_attn.out_proj", "attn_out"),
        ("self_attn.q_norm", "attn_q_norm"),
        ("self_attn.k_norm", "attn_k_norm"),
        ("mlp.fc1", "ffn_up"),
        ("mlp.fc2", "ffn_down"),
        ("mlp.gate_proj", "ffn_gate"),
        ("mlp.up_proj", "ffn_up"),
        ("mlp.down_proj", "ffn_down"),
    ];
    let part = part.strip_suffix(".linear").unwrap_or(part);
    let (_, gguf) = parts.iter().find(|(name, _)| *name == part)?;
    Some(format!("v.blk.{layer}.{gguf}.{end}"))
}

/// Patches pixel after pixel to colour after colour.
pub fn by_colour(values: &[f32], len: usize) -> Vec<f32> {
    let pixels = len / 3;
    let patch =
        |p: &[f32]| -> Vec<f32> { (0..len).map(|i| p[i % pixels * 3 + i / pixels]).collect() };
    values.chunks(len).flat_map(patch).collect()
}

/// Writes the tower of a Hugging Face directory as llama.cpp's converter does, in F32.
pub fn write_projector(checkpoint: &Checkpoint, kind: &str, path: &Path) {
    let config = std::fs::read(Path::new(checkpoint.name()).join("config.json")).unwrap();
    let config: serde_json::Value = serde_json::from_slice(&config).unwrap();
    let vision = &config["vision_config"];
    let number = |key: &str| vision[key].as_u64().unwrap_or(0) as u32;
    let unified = kind == "gemma4uv";
    let patch = number("patch_size") as usize * if unified { 3 } else { 1 };
    let mut metadata = Metadata::new("mmproj");
    let mut put = |key: &str, value: Value| metadata.insert(key, value).unwrap();
    put("general.architecture", Value::Str("clip".into()));
    put("clip.vision.projector_type", Value::Str(kind.into()));
    put(
        "clip.vision.image_size",
        number("image_size").max(224 * u32::from(kind != "gemma3")).into(),
    );
    put("clip.vision.patch_size", number("patch_size").into());
    let width = number(if unified { "mm_embed_dim" } else { "hidden_size" });
    put("clip.vision.embedding_length", width.into());
    put("clip.vision.feed_forward_length", number("intermediate_size").into());
    put("clip.vision.block_count", number("num_hidden_layers").into());
    put("clip.vision.attention.head_count", number("num_attention_heads").into());
    put("clip.vision.attention.layer_norm_epsilon", 1e-6f32.into());
    let (mean, std) = if kind == "gemma3" { (0.5, 0.5) } else { (0.0, 1.0) };
    put("clip.vision.image_mean", Value::Array(Array::F32(vec![mean; 3])));
    put("clip.vision.image_std", Value::Array(Array::F32(vec![std; 3])));
    if kind == "gemma3" {
        // 6 x 6 patches become 9 rows.
        put("clip.vision.projector.scale_factor", 2u32.into());
    }
    let mut tensors = Vec::new();
    for view in checkpoint.tensors() {
        let Some(name) = projector_name(&view.name) else { continue };
        let size = if view.dtype == DType::BF16 { 2 } else { 4 };
        let float = |c: &[u8]| {
            let mut bytes = [0; 4];
            bytes[4 - size..].copy_from_slice(c);
            f32::from_le_bytes(bytes)
        };
        let mut values: Vec<f32> = view.bytes.chunks_exact(size).map(float).collect();
        let mut shape = view.shape.clone();
        if shape.is_empty() {
            shape = vec![1];
        }
        let len = 3 * patch * patch;
        match &*name {
            "mm.soft_emb_norm.weight" => values.iter_mut().for_each(|x| *x += 1.0),
            "v.patch_embd.weight" if shape.len() == 2 => {
                values = by_colour(&values, len);
                if !unified {
                    shape = vec![shape[0], 3, patch, patch];
                }
            }
            "v.patch_norm.1.weight" | "v.patch_norm.1.bias" => values = by_colour(&values, len),
            "v.position_embd.weight" if unified => {
                let (places, width) = (shape[0], shape[2]);
                let at = |axis: usize, place: usize| (2 * place + axis) * width;
                values = (0..2 * places)
                    .flat_map(|i| values[at(i / places, i % places)..][..width].to_vec())
                    .collect();
                shape = vec![2, places, width];
            }
            _ => {}
        }
        tensors.push((TensorSpec::new(name, DType::F32, shape), values));
    }
    let specs: Vec<TensorSpec> = tensors.iter().map(|t| t.0.clone()).collect();
    let mut writer = gguf::create(path, &metadata, &specs).unwrap();
    for (spec, values) in &tensors {
        let bytes: Vec<u8> = values.iter().flat_map(|x| x.to_le_bytes()).collect();
        writer.write(&spec.name, &bytes).unwrap();
    }
    writer.finish().unwrap();
}
