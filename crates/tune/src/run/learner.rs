//! The trainer in a run, and what is left of it at the end: `model/` or `adapter/`.

use super::train::Learner;
use crate::gguf_names::{self, Change};
use crate::merge::copy_settings;
use crate::{Method, Pair, Sequence, StepReport, TensorValues, Trainer};
use lapidary_engine::{Limits, Sampler, Sampling, Session, Stops, generate};
use lapidary_formats::atomic::write_file;
use lapidary_formats::gguf::{self, Metadata};
use lapidary_formats::{
    Checkpoint, DType, FormatError, Result, Source, TensorSpec, TensorView, safetensors,
};
use lapidary_model::block_type;
use lapidary_ops::{KvType, blocks};
use serde_json::json;
use std::collections::{BTreeMap, HashMap};
use std::fmt::Display;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

fn wrong(e: impl Display) -> FormatError {
    FormatError::new("training", "", e)
}

impl Learner for Trainer {
    fn step(&mut self, batch: &[Vec<Sequence>], lr: f32) -> Result<StepReport> {
        Trainer::step(self, batch, lr).map_err(wrong)
    }

    fn step_pairs(&mut self, batch: &[Vec<Pair>], lr: f32) -> Result<StepReport> {
        self.step_dpo(batch, lr).map_err(wrong)
    }

    fn evaluate(&mut self, sequences: &[Sequence]) -> Result<(f64, usize)> {
        Trainer::evaluate(self, sequences).map_err(wrong)
    }

    fn answer(&mut self, prompt: &[u32], stops: &[u32], most: usize) -> Result<Vec<u32>> {
        let (model, ops) = self.generator();
        let info = model.info();
        let limits = Limits { context: info.context, chunk: 256, kv: KvType::F32 };
        let mut session = Session::new(&info.kv, limits);
        let mut sampler = Sampler::new(Sampling::default()).map_err(wrong)?;
        let stops = Stops { ids: stops.to_vec(), max_tokens: most, ..Stops::default() };
        let listen = &mut |_| ControlFlow::Continue(());
        let done = generate(model, ops, &mut session, prompt, &mut sampler, &stops, listen);
        Ok(done.map_err(wrong)?.ids)
    }

    fn notes(&self) -> Vec<String> {
        Trainer::notes(self).to_vec()
    }

    fn save(&mut self, path: &Path) -> Result<()> {
        self.save_state(path)
    }

    fn load(&mut self, path: &Path) -> Result<()> {
        self.load_state(path)
    }

    fn write_result(&mut self, base: &Checkpoint, run: &Path) -> Result<PathBuf> {
        let name = if self.options().method == Method::Full { "model" } else { "adapter" };
        let (part, place) = (run.join(format!(".{name}.part")), run.join(name));
        let _ = std::fs::remove_dir_all(&part);
        let io = |e: std::io::Error| FormatError::new(place.display(), "", e);
        std::fs::create_dir(&part).map_err(io)?;
        match (name, base.source()) {
            ("adapter", _) => write_adapter(self, base, &part)?,
            (_, Source::Hf { dir, .. }) => write_hf(self, base, dir, &part)?,
            (_, Source::Gguf(metadata)) => write_gguf(self, base, metadata, &part)?,
        }
        // A result of the same run, from before a resume.
        let _ = std::fs::remove_dir_all(&place);
        std::fs::rename(&part, &place).map_err(io)?;
        Ok(place)
    }
}

/// The trained weights by their Hugging Face names; averaged ones where there is an average.
fn weights(trainer: &Trainer) -> HashMap<String, TensorValues> {
    let named = |t: TensorValues| (t.name.clone(), t);
    match trainer.ema_weights() {
        Some(averaged) => averaged.map(named).collect(),
        None => trainer.weights().map(named).collect(),
    }
}

fn encode(values: &[f32], dtype: DType, of: &TensorView) -> Result<Vec<u8>> {
    let ty = block_type(dtype).map_err(|e| of.wrong(e))?;
    let mut bytes = vec![0; values.len() / ty.block_len() * ty.block_bytes()];
    blocks::quantize(ty, values, &mut bytes);
    Ok(bytes)
}

fn missing(t: &TensorView, left: &HashMap<String, TensorValues>) -> Result<()> {
    match left.keys().next() {
        Some(name) => Err(t.wrong(format!("{name} was trained and is not in the base"))),
        None => Ok(()),
    }
}

/// Hugging Face files, each tensor in the type that it had.
fn write_hf(trainer: &Trainer, base: &Checkpoint, dir: &Path, out: &Path) -> Result<()> {
    let mut trained = weights(trainer);
    let specs: Vec<TensorSpec> =
        base.tensors().map(|t| TensorSpec::new(&*t.name, t.dtype, t.shape.clone())).collect();
    let metadata = BTreeMap::from([("format".to_owned(), "pt".to_owned())]);
    let mut file = safetensors::create(&out.join("model.safetensors"), &specs, &metadata)?;
    for t in base.tensors() {
        match trained.remove(&*t.name) {
            // A matrix of experts has their number and their outputs apart there.
            Some(new) if new.shape == t.shape || new.shape == flat(&t.shape) => {
                file.write(&t.name, &encode(&new.values, t.dtype, t)?)?;
            }
            Some(new) => return Err(t.wrong(format!("{:?} was trained", new.shape))),
            // Parts that the family has no use for, and copies of tied weights.
            None => file.write(&t.name, &t.bytes)?,
        }
        t.bytes.advise_dontneed();
    }
    if let Some(t) = base.tensors().next() {
        missing(t, &trained)?;
    }
    copy_settings(dir, out)?;
    file.finish()
}

/// The shape of a tensor as one matrix.
fn flat(shape: &[usize]) -> Vec<usize> {
    match shape {
        [rows @ .., columns] => vec![rows.iter().product(), *columns],
        [] => Vec::new(),
    }
}

/// A GGUF file; what was quantised is BF16 afterwards.
fn write_gguf(trainer: &Trainer, base: &Checkpoint, from: &Metadata, out: &Path) -> Result<()> {
    let path = out.join("model.gguf");
    let architecture = from.str("general.architecture")?;
    let mut metadata = Metadata::new(path.display().to_string());
    for (key, value) in from.iter().filter(|(k, _)| *k != "general.file_type") {
        metadata.insert(key, value.clone())?;
    }
    metadata.insert("general.file_type", 32u32)?;
    let mut trained = HashMap::new();
    for (name, values) in weights(trainer) {
        // GGUF's own order of rows is asked for with one head: none of these families has any.
        let (gguf, change) = gguf_names::rename(architecture, &name, (1, 1))
            .ok_or_else(|| FormatError::new(path.display(), &name, "has no name in GGUF"))?;
        trained.insert(gguf, (change, values));
    }
    let dtype = |t: &TensorView| if t.dtype.is_quantised() { DType::BF16 } else { t.dtype };
    let specs: Vec<TensorSpec> =
        base.tensors().map(|t| TensorSpec::new(&*t.name, dtype(t), t.shape.clone())).collect();
    let mut file = gguf::create(&path, &metadata, &specs)?;
    for t in base.tensors() {
        match trained.remove(&*t.name) {
            Some((change, new)) => {
                file.write(&t.name, &encode(&moved(change, new), dtype(t), t)?)?
            }
            None if t.dtype.is_quantised() => {
                let ty = block_type(t.dtype).map_err(|e| t.wrong(e))?;
                let mut values = vec![0.0; t.elements()];
                blocks::dequantize(ty, &t.bytes, &mut values);
                file.write(&t.name, &encode(&values, dtype(t), t)?)?;
            }
            None => file.write(&t.name, &t.bytes)?,
        }
    }
    file.finish()
}

/// Values in a GGUF file's order, from those under the Hugging Face name. Llama's rotated rows were
/// read from such a file, and have never left its order.
fn moved(change: Change, new: TensorValues) -> Vec<f32> {
    match change {
        Change::PlusOne => new.values.iter().map(|v| v + 1.0).collect(),
        Change::Transpose => {
            let columns = new.shape[1];
            let column = |c: usize| new.values.iter().skip(c).step_by(columns).copied();
            (0..columns).flat_map(column).collect()
        }
        Change::None | Change::PairRows(_) => new.values,
    }
}

/// The rows of B for Llama's queries and keys in Hugging Face order, from a GGUF file's, where
/// rotating pairs are neighbours.
fn unpaired(values: &[f32], rank: usize, heads: usize) -> Vec<f32> {
    let rows = values.len() / rank;
    let half = rows / heads.max(1) / 2;
    (0..rows)
        .flat_map(|row| {
            // Row (head, side, i) there is row (head, i, side) here.
            let (head, side, i) = (row / (2 * half), row % (2 * half) / half, row % half);
            let from = head * 2 * half + i * 2 + side;
            values[from * rank..(from + 1) * rank].iter().copied()
        })
        .collect()
}

/// PEFT's files.
fn write_adapter(trainer: &Trainer, base: &Checkpoint, out: &Path) -> Result<()> {
    let Method::Lora(lora) = &trainer.options().method else {
        return Err(wrong("has no adapters"));
    };
    let heads = match base.source() {
        Source::Gguf(metadata) => gguf_names::paired_heads(metadata)?,
        Source::Hf { .. } => None,
    };
    let mut tensors = Vec::new();
    let (mut modules, mut transposed) = (Vec::new(), false);
    for adapter in trainer.adapters() {
        let name = |side| format!("base_model.model.{}.lora_{side}.weight", adapter.module);
        let mut b = adapter.b;
        if let Some((query, key)) = heads {
            let count = match adapter.module.rsplit('.').next() {
                Some("q_proj") => Some(query),
                Some("k_proj") => Some(key),
                _ => None,
            };
            if let Some(heads) = count {
                b.values = unpaired(&b.values, lora.rank, heads);
            }
        }
        tensors.push(TensorValues { name: name("A"), ..adapter.a });
        tensors.push(TensorValues { name: name("B"), ..b });
        modules.push(adapter.module);
        transposed |= adapter.transposed;
    }
    let config = json!({
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base.name(),
        "r": lora.rank,
        "lora_alpha": lora.alpha,
        "lora_dropout": lora.dropout,
        "use_rslora": lora.rslora,
        "use_dora": false,
        "bias": "none",
        "fan_in_fan_out": transposed,
        "inference_mode": true,
        "target_modules": modules,
    });
    let config = serde_json::to_vec_pretty(&config).unwrap_or_default();
    write_file(&out.join("adapter_config.json"), &config)?;
    let specs: Vec<TensorSpec> =
        tensors.iter().map(|t| TensorSpec::new(&t.name, DType::F32, t.shape.clone())).collect();
    let metadata = BTreeMap::from([("format".to_owned(), "pt".to_owned())]);
    let mut file = safetensors::create(&out.join("adapter_model.safetensors"), &specs, &metadata)?;
    for t in &tensors {
        let bytes: Vec<u8> = t.values.iter().flat_map(|v| v.to_le_bytes()).collect();
        file.write(&t.name, &bytes)?;
    }
    file.finish()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_come_back_to_their_order() {
        // Two heads of four rows, rank 1: GGUF has 0 2 1 3 of each head.
        let gguf = [0.0, 2.0, 1.0, 3.0, 10.0, 12.0, 11.0, 13.0];
        assert_eq!(unpaired(&gguf, 1, 2), [0.0, 1.0, 2.0, 3.0, 10.0, 11.0, 12.0, 13.0]);
    }

    #[test]
    fn conv1d_is_turned() {
        let shape = vec![2, 3];
        let t = TensorValues { name: "x".into(), shape, values: vec![1., 2., 3., 4., 5., 6.] };
        assert_eq!(moved(Change::Transpose, t.clone()), [1., 4., 2., 5., 3., 6.]);
        assert_eq!(moved(Change::PlusOne, t)[0], 2.0);
    }
}
