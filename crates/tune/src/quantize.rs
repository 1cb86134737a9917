//! `lapidary quantize`: a checkpoint to a GGUF file of another precision, a tensor at a time.

use crate::gguf_names::{self, Change};
use lapidary_formats::gguf::{self, Metadata};
use lapidary_formats::tokenizer::GgufVocab;
use lapidary_formats::{Checkpoint, DType, FormatError, Result, Source, TensorSpec, TensorView};
use lapidary_model::block_type;
use lapidary_ops::{BlockType, Pool, blocks};
use std::path::Path;
use std::sync::Mutex;

/// What to make.
pub struct Options {
    /// Type of the matrices; norms, biases and position tables stay F32.
    pub ty: BlockType,
}

/// What was made.
pub struct Report {
    /// Bytes of the tensors before and after.
    pub bytes: (u64, u64),
    /// Tensors that kept another type, because their rows are no multiple of a block.
    pub kept: Vec<String>,
    /// For each quantised tensor the root mean square of the error, relative to that of its values.
    pub errors: Vec<(String, f64)>,
    /// Tensors that were left out.
    pub left_out: Vec<String>,
}

/// A tensor on its way.
struct Plan {
    from: TensorView,
    name: String,
    change: Change,
    ty: BlockType,
    shape: Vec<usize>,
}

/// Rows that one task converts.
const ROWS: usize = 64;

/// Writes `checkpoint` to `path`. `progress` hears the tensors done and to do.
///
/// # Errors
/// If the checkpoint can't be read or has no GGUF form, or the file can't be written; a file that
/// was there is not touched then.
pub fn quantize(
    checkpoint: &Checkpoint,
    path: &Path,
    options: &Options,
    pool: &Pool,
    progress: &mut dyn FnMut(usize, usize),
) -> Result<Report> {
    if !blocks::can_quantize(options.ty) {
        let problem = format!("{} can be read but not written", options.ty.name());
        return Err(FormatError::new(path.display(), "type", problem));
    }
    let mut report = Report { bytes: (0, 0), kept: vec![], errors: vec![], left_out: vec![] };
    let (metadata, plans) = plan(checkpoint, path, options, &mut report)?;
    let specs: Vec<TensorSpec> =
        (plans.iter()).map(|p| TensorSpec::new(&p.name, dtype(p.ty), p.shape.clone())).collect();
    let mut file = gguf::create(path, &metadata, &specs)?;
    for (i, p) in plans.iter().enumerate() {
        progress(i, plans.len());
        let values = changed(p)?;
        let (bytes, error) = convert(&values, p, pool);
        report.bytes.0 += p.from.bytes.len() as u64;
        report.bytes.1 += bytes.len() as u64;
        if let Some(error) = error {
            report.errors.push((p.name.clone(), error));
        }
        file.write(&p.name, &bytes)?;
        p.from.bytes.advise_dontneed();
    }
    progress(plans.len(), plans.len());
    file.finish()?;
    Ok(report)
}

fn plan(
    checkpoint: &Checkpoint,
    path: &Path,
    options: &Options,
    report: &mut Report,
) -> Result<(Metadata, Vec<Plan>)> {
    let mut metadata = Metadata::new(path.display().to_string());
    let names: Vec<(TensorView, String, Change)> = match checkpoint.source() {
        Source::Gguf(old) => {
            for (key, value) in old.iter().filter(|(k, _)| *k != "general.file_type") {
                metadata.insert(key, value.clone())?;
            }
            checkpoint.tensors().map(|t| (t.clone(), t.name.to_string(), Change::None)).collect()
        }
        Source::Hf { dir, .. } => {
            let config = checkpoint.config().unwrap_or_else(|| unreachable!("a directory"))?;
            let model_type = config.str("model_type")?;
            let architecture = gguf_names::architecture(model_type).ok_or_else(|| {
                config.wrong("model_type", format!("\"{model_type}\" has no GGUF form here"))
            })?;
            gguf_names::metadata(checkpoint, &config, architecture, &mut metadata)?;
            text(checkpoint, dir, &mut metadata)?;
            let heads = |key: &str| metadata.opt_u32(&format!("{architecture}.attention.{key}"));
            let query = heads("head_count")?.unwrap_or(1) as usize;
            let heads = (query, heads("head_count_kv")?.unwrap_or(query as u32) as usize);
            let mut all = Vec::new();
            for t in checkpoint.tensors() {
                match gguf_names::rename(architecture, &t.name, heads) {
                    Some((name, change)) => all.push((t.clone(), name, change)),
                    None => report.left_out.push(t.name.to_string()),
                }
            }
            all
        }
    };
    metadata.insert("general.file_type", file_type(options.ty))?;
    let mut plans = Vec::new();
    for (from, name, change) in names {
        let source = block_type(from.dtype).map_err(|e| from.wrong(e))?;
        let mut shape = from.shape.clone();
        if change == Change::Transpose {
            shape.reverse();
        }
        let matrix =
            shape.len() == 2 && name.ends_with(".weight") && !name.starts_with("position_embd");
        let ty = match shape.last() {
            _ if !matrix => BlockType::F32,
            Some(k) if k.is_multiple_of(options.ty.block_len()) => options.ty,
            _ => {
                report.kept.push(name.clone());
                if source.block_len() == 1 { source } else { BlockType::F16 }
            }
        };
        plans.push(Plan { from, name, change, ty, shape });
    }
    Ok((metadata, plans))
}

/// Tokenizer, template and sampling of a Hugging Face directory.
fn text(checkpoint: &Checkpoint, dir: &Path, metadata: &mut Metadata) -> Result<()> {
    if let Some(name) = dir.file_name().and_then(|n| n.to_str()) {
        metadata.insert("general.name", name.to_owned())?;
    }
    if let Some(licence) = checkpoint.license() {
        metadata.insert("general.license", licence.to_owned())?;
    }
    GgufVocab::from_dir(dir)?.write(metadata)?;
    if let Some(source) = lapidary_formats::chat::template_source(dir)? {
        metadata.insert("tokenizer.chat_template", source)?;
    }
    let Some(generation) = checkpoint.generation().transpose()? else { return Ok(()) };
    if generation.opt_bool("do_sample")?.unwrap_or(false) {
        for (key, gguf) in [("temperature", "temp"), ("top_p", "top_p"), ("min_p", "min_p")] {
            if let Some(x) = generation.opt_f64(key)? {
                metadata.insert(&format!("general.sampling.{gguf}"), x as f32)?;
            }
        }
        if let Some(k) = generation.opt_usize("top_k")? {
            metadata.insert("general.sampling.top_k", k as u32)?;
        }
    }
    Ok(())
}

/// A tensor's values after its change.
fn changed(p: &Plan) -> Result<Vec<f32>> {
    let ty = block_type(p.from.dtype).map_err(|e| p.from.wrong(e))?;
    let mut values = vec![0.0; p.from.elements()];
    blocks::dequantize(ty, &p.from.bytes, &mut values);
    if let Some(i) = values.iter().position(|v| !v.is_finite()) {
        return Err(p.from.wrong(format!("element {i} is {}", values[i])));
    }
    let k = p.from.shape.last().copied().unwrap_or(1);
    match p.change {
        Change::None => {}
        Change::PlusOne => values.iter_mut().for_each(|v| *v += 1.0),
        Change::PairRows(heads) => {
            let rows = values.len() / k;
            let half = rows / heads / 2;
            if half == 0 || rows != heads * half * 2 {
                return Err(p
                    .from
                    .wrong(format!("{rows} rows are not {heads} heads of an even size")));
            }
            // Row (head, side, i) goes to (head, i, side).
            let old = std::mem::take(&mut values);
            values = (0..rows)
                .flat_map(|r| {
                    let (head, i, side) = (r / (2 * half), r % (2 * half) / 2, r % 2);
                    let from = head * 2 * half + side * half + i;
                    &old[from * k..(from + 1) * k]
                })
                .copied()
                .collect();
        }
        Change::Transpose => {
            let rows = values.len() / k;
            let old = std::mem::take(&mut values);
            values = (0..k)
                .flat_map(|c| (0..rows).map(move |r| (r, c)))
                .map(|(r, c)| old[r * k + c])
                .collect();
        }
    }
    Ok(values)
}

/// The blocks, and the error where something was lost.
fn convert(values: &[f32], p: &Plan, pool: &Pool) -> (Vec<u8>, Option<f64>) {
    let k = p.shape.last().copied().unwrap_or(1).max(1);
    let row_bytes = k / p.ty.block_len() * p.ty.block_bytes();
    let mut bytes = vec![0; values.len() / k * row_bytes];
    let parts: Vec<_> = (bytes.chunks_mut(ROWS * row_bytes).zip(values.chunks(ROWS * k)))
        .map(|(bytes, values)| Mutex::new((bytes, values, (0.0f64, 0.0f64))))
        .collect();
    pool.run(parts.len(), &|i| {
        let mut part = parts[i].lock().unwrap_or_else(|e| e.into_inner());
        let (bytes, values, sums) = &mut *part;
        blocks::quantize(p.ty, values, bytes);
        if p.ty != BlockType::F32 {
            let mut back = vec![0.0; values.len()];
            blocks::dequantize(p.ty, bytes, &mut back);
            for (v, b) in values.iter().zip(&back) {
                sums.0 += f64::from(v - b).powi(2);
                sums.1 += f64::from(*v).powi(2);
            }
        }
    });
    let sums = parts.iter().map(|p| p.lock().unwrap_or_else(|e| e.into_inner()).2);
    let (error, size) = sums.fold((0.0, 0.0), |a, b| (a.0 + b.0, a.1 + b.1));
    drop(parts);
    (bytes, (error > 0.0).then(|| (error / size).sqrt()))
}

fn dtype(ty: BlockType) -> DType {
    DType::from_name(ty.name()).unwrap_or_else(|| unreachable!("every block type is a file type"))
}

/// llama.cpp's number for a file whose matrices are mostly of this type (`llama_ftype`).
fn file_type(ty: BlockType) -> u32 {
    match ty {
        BlockType::F32 => 0,
        BlockType::F16 => 1,
        BlockType::Q4_0 => 2,
        BlockType::Q4_1 => 3,
        BlockType::Q8_0 => 7,
        BlockType::Q5_0 => 8,
        BlockType::Q5_1 => 9,
        BlockType::BF16 => 32,
        _ => 1024,
    }
}
