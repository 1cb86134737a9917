//! `lapidary quantize`: a checkpoint to a GGUF file of another precision, some rows at a time.

use crate::gguf_gemma4;
use crate::gguf_names::{self, Change};
use crate::importance::Importance;
use crate::recipe::{Place, Recipe};
use lapidary_formats::gguf::{self, Metadata};
use lapidary_formats::tokenizer::GgufVocab;
use lapidary_formats::{Checkpoint, DType, Result, Source, TensorSpec, TensorView, TensorWriter};
use lapidary_model::block_type;
use lapidary_ops::{BlockType, Pool, blocks};
use std::ops::Range;
use std::path::Path;
use std::sync::Mutex;

/// What to make.
pub struct Options {
    /// Types of the matrices; norms, biases and position tables become F32.
    pub recipe: Recipe,
    /// What each column's error counts.
    pub importance: Option<Importance>,
}

/// A tensor that was written.
#[derive(Debug, Clone)]
pub struct Written {
    /// Its name in GGUF.
    pub name: String,
    /// Its type.
    pub ty: BlockType,
    /// Values in it.
    pub values: usize,
    /// The root mean square of the error, relative to that of the values.
    pub error: f64,
    /// Whether the importance of its columns was known.
    pub weighted: bool,
}

/// What was made.
#[derive(Debug, Default)]
pub struct Report {
    /// Bytes of the tensors before and after.
    pub bytes: (u64, u64),
    /// Tensors with rows that are no multiple of their type's blocks, and the type they got.
    pub fallen_back: Vec<(String, BlockType)>,
    /// Every matrix.
    pub matrices: Vec<Written>,
    /// Tensors that were left out.
    pub left_out: Vec<String>,
}

/// A tensor on its way.
struct Plan {
    from: TensorView,
    name: String,
    change: Change,
    source: BlockType,
    ty: BlockType,
    shape: Vec<usize>,
}

/// Rows that one task converts.
const ROWS: usize = 64;
/// Tasks between two writes: what is in memory at a time stays small, whatever the tensor.
const TASKS: usize = 32;

/// Matrices that keep their precision: they are small, and much hangs on them (as in llama.cpp).
const KEPT: [&str; 5] =
    ["position_embd", "ffn_gate_inp", "altup", "laurel", "per_layer_model_proj"];

/// Writes `checkpoint` to `path`. `progress` hears the tensors done and to do. The result does not
/// depend on the number of threads.
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
    let mut report = Report::default();
    let (metadata, plans) = plan(checkpoint, path, &options.recipe, &mut report)?;
    let specs: Vec<TensorSpec> =
        (plans.iter()).map(|p| TensorSpec::new(&p.name, dtype(p.ty), p.shape.clone())).collect();
    let mut file = gguf::create(path, &metadata, &specs)?;
    for (i, p) in plans.iter().enumerate() {
        progress(i, plans.len());
        let k = p.shape.last().copied().unwrap_or(1);
        let importance = options.importance.as_ref().and_then(|m| m.of(&p.from.name, k));
        let error = convert(p, importance, pool, &mut file)?;
        let values = p.from.elements();
        report.bytes.0 += p.from.bytes.len() as u64;
        report.bytes.1 += (values / p.ty.block_len() * p.ty.block_bytes()) as u64;
        if p.shape.len() > 1 {
            let weighted = importance.is_some() && p.ty.block_len() > 1 && p.ty != BlockType::Q8_0;
            let (name, ty) = (p.name.clone(), p.ty);
            report.matrices.push(Written { name, ty, values, error, weighted });
        }
        p.from.bytes.advise_dontneed();
    }
    progress(plans.len(), plans.len());
    file.finish()?;
    Ok(report)
}

fn plan(
    checkpoint: &Checkpoint,
    path: &Path,
    recipe: &Recipe,
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
            let heads = gguf_names::paired_heads(&metadata)?.unwrap_or((1, 1));
            let mut all = Vec::new();
            for t in checkpoint.tensors() {
                match gguf_names::rename(architecture, &t.name, heads) {
                    Some((name, change)) => all.push((t.clone(), name, change)),
                    None => report.left_out.push(t.name.to_string()),
                }
            }
            if architecture == "gemma4" {
                let text = config.opt_object("text_config")?.unwrap_or_else(|| config.clone());
                let freqs = gguf_gemma4::rope_freqs(&lapidary_model::describe(checkpoint)?, &text)?;
                all.push((freqs.clone(), freqs.name.to_string(), Change::None));
            }
            all
        }
    };
    metadata.insert("general.file_type", recipe.file_type)?;
    let plans = types(names, &metadata, recipe, report)?;
    Ok((metadata, plans))
}

/// The type of every tensor.
fn types(
    names: Vec<(TensorView, String, Change)>,
    metadata: &Metadata,
    recipe: &Recipe,
    report: &mut Report,
) -> Result<Vec<Plan>> {
    let tied = !names.iter().any(|(_, name, _)| name == "output.weight");
    let layer = |name: &str| name.strip_prefix("blk.")?.split_once('.')?.0.parse::<usize>().ok();
    let layers = names.iter().filter_map(|n| layer(&n.1)).max().map_or(0, |last| last + 1);
    let architecture = metadata.opt_str("general.architecture")?.unwrap_or_default();
    // Some files have a list here, a number for each layer: then nothing is shared as far as we know.
    let heads = |key: &str| {
        let found = metadata.opt_u32(&format!("{architecture}.attention.{key}"));
        found.ok().flatten().unwrap_or(1).max(1) as usize
    };
    let shared = heads("head_count") / heads("head_count_kv");
    let mut plans = Vec::new();
    for (from, name, change) in names {
        let source = block_type(from.dtype).map_err(|e| from.wrong(e))?;
        let mut shape = from.shape.clone();
        if change == Change::Transpose {
            shape.reverse();
        }
        let matrix = shape.len() > 1 && name.ends_with(".weight");
        let ty = match shape.last() {
            Some(_) if matrix && KEPT.iter().any(|part| name.contains(part)) => {
                // Routers in f32, as llama.cpp's converter writes them.
                let as_it_is = source.block_len() == 1 && !name.contains("ffn_gate_inp");
                if as_it_is { source } else { BlockType::F32 }
            }
            Some(&k) if matrix => {
                let (ty, fell) = recipe.ty(Place { name: &name, k, layers, shared, tied });
                if fell {
                    report.fallen_back.push((name.clone(), ty));
                }
                ty
            }
            _ => BlockType::F32,
        };
        plans.push(Plan { from, name, change, source, ty, shape });
    }
    Ok(plans)
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

/// Row `r` of a matrix whose heads' rotating pairs become neighbours, in the matrix as it was: row
/// (head, side, i) goes to (head, i, side).
fn unpaired(r: usize, rows: usize, heads: usize) -> usize {
    let half = rows / heads / 2;
    let (head, i, side) = (r / (2 * half), r % (2 * half) / 2, r % 2);
    head * 2 * half + side * half + i
}

/// Some rows of a tensor after its change.
fn changed(p: &Plan, rows: Range<usize>) -> Result<Vec<f32>> {
    let k = p.shape.last().copied().unwrap_or(1);
    let all = p.from.elements() / k;
    let row_bytes = k / p.source.block_len() * p.source.block_bytes();
    let mut values = vec![0.0; rows.len() * k];
    if let Change::PairRows(heads) = p.change
        && (heads == 0 || all / heads < 2 || !all.is_multiple_of(2 * heads))
    {
        return Err(p.from.wrong(format!("{all} rows are not {heads} heads of an even size")));
    }
    for (r, out) in rows.clone().zip(values.chunks_exact_mut(k)) {
        match p.change {
            Change::Transpose => {
                // Columns of the file, whose elements stand `all` apart.
                let size = p.source.block_bytes();
                if p.source.block_len() != 1 {
                    return Err(p.from.wrong("this type can't be transposed"));
                }
                for (c, out) in out.iter_mut().enumerate() {
                    let at = (c * all + r) * size;
                    blocks::dequantize(
                        p.source,
                        &p.from.bytes[at..at + size],
                        std::slice::from_mut(out),
                    );
                }
            }
            _ => {
                let from = match p.change {
                    Change::PairRows(heads) => unpaired(r, all, heads),
                    _ => r,
                };
                let bytes = &p.from.bytes[from * row_bytes..(from + 1) * row_bytes];
                blocks::dequantize(p.source, bytes, out);
            }
        }
    }
    if let Some(i) = values.iter().position(|v| !v.is_finite()) {
        let at = rows.start * k + i;
        return Err(p.from.wrong(format!("element {at} is {}", values[i])));
    }
    if p.change == Change::PlusOne {
        values.iter_mut().for_each(|v| *v += 1.0);
    }
    Ok(values)
}

/// Rows as blocks, with the sums of squared errors and of squares.
fn encode(
    p: &Plan,
    rows: Range<usize>,
    importance: Option<&[f32]>,
) -> Result<(Vec<u8>, (f64, f64))> {
    let values = changed(p, rows)?;
    let mut bytes = vec![0; values.len() / p.ty.block_len() * p.ty.block_bytes()];
    match importance {
        Some(weights) => blocks::quantize_weighted(p.ty, &values, weights, &mut bytes),
        None => blocks::quantize(p.ty, &values, &mut bytes),
    }
    if blocks::check_finite(p.ty, &bytes).is_err() {
        return Err(p.from.wrong(format!("has values too large for {}", p.ty.name())));
    }
    let mut sums = (0.0, 0.0);
    let mut back = vec![0.0; values.len()];
    blocks::dequantize(p.ty, &bytes, &mut back);
    for (v, b) in values.iter().zip(&back) {
        sums.0 += f64::from(v - b).powi(2);
        sums.1 += f64::from(*v).powi(2);
    }
    Ok((bytes, sums))
}

/// Writes a tensor; the relative error of its values.
fn convert(
    p: &Plan,
    importance: Option<&[f32]>,
    pool: &Pool,
    file: &mut TensorWriter,
) -> Result<f64> {
    let k = p.shape.last().copied().unwrap_or(1).max(1);
    let all = p.from.elements() / k;
    let (mut error, mut size) = (0.0, 0.0);
    for first in (0..all).step_by(ROWS * TASKS) {
        let end = (first + ROWS * TASKS).min(all);
        let tasks = (end - first).div_ceil(ROWS);
        let done: Vec<_> = (0..tasks).map(|_| Mutex::new(None)).collect();
        pool.run(tasks, &|i| {
            let from = first + i * ROWS;
            let part = encode(p, from..(from + ROWS).min(end), importance);
            *done[i].lock().unwrap_or_else(|e| e.into_inner()) = Some(part);
        });
        for part in done {
            let part = part.into_inner().unwrap_or_else(|e| e.into_inner());
            let (bytes, sums) = part.unwrap_or_else(|| unreachable!("every task was run"))?;
            file.write(&p.name, &bytes)?;
            (error, size) = (error + sums.0, size + sums.1);
        }
        // What has been read can leave memory.
        let row_bytes = p.from.bytes.len() / all;
        if let (Change::None | Change::PlusOne, Some(read)) =
            (p.change, p.from.bytes.slice(first * row_bytes..end * row_bytes))
        {
            read.advise_dontneed();
        }
    }
    Ok(if error > 0.0 { (error / size).sqrt() } else { 0.0 })
}

fn dtype(ty: BlockType) -> DType {
    DType::from_name(ty.name()).unwrap_or_else(|| unreachable!("every block type is a file type"))
}
