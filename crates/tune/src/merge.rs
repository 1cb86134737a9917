//! An adapter in PEFT's layout (`adapter_config.json`, `adapter_model.safetensors`) put into the
//! weights of its base: `W + factor * B A` (<https://arxiv.org/abs/2106.09685>).

use crate::gguf_names::{self, Change};
use lapidary_formats::atomic::write_file;
use lapidary_formats::gguf::{self, Metadata};
use lapidary_formats::{
    Checkpoint, DType, FormatError, Result, Source, TensorSpec, TensorView, json, safetensors,
};
use lapidary_model::block_type;
use lapidary_ops::{Pool, blocks};
use std::collections::{BTreeMap, HashMap};
use std::path::Path;
use std::sync::Mutex;

/// The two factors of one projection.
struct Factors {
    /// `[rank, in]`
    a: Vec<f32>,
    /// `[out, rank]`
    b: Vec<f32>,
    rank: usize,
    inner: usize,
    out: usize,
}

/// An adapter that was read.
pub struct Adapter {
    /// By the name of the projection, such as `model.layers.0.self_attn.q_proj`.
    factors: BTreeMap<String, Factors>,
    factor: f32,
    file: String,
}

/// What a merge did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Merged {
    /// Tensors that changed.
    pub changed: usize,
    /// Tensors in all.
    pub tensors: usize,
    /// Whether weights were quantised anew, which loses a little.
    pub quantised: bool,
}

const CONFIG: &str = "adapter_config.json";
const WEIGHTS: &str = "adapter_model.safetensors";

impl Adapter {
    /// Reads an adapter's folder.
    ///
    /// # Errors
    /// If a file is missing or damaged, or asks for something other than plain LoRA.
    pub fn open(folder: &Path) -> Result<Self> {
        let path = folder.join(CONFIG);
        let value = json::read_object(&path)?;
        let name = path.display().to_string();
        let config = lapidary_formats::Config::new(&name, &value)?;
        for key in ["rank_pattern", "alpha_pattern", "modules_to_save", "trainable_token_indices"] {
            let empty = match config.get(key) {
                None => true,
                Some(v) => {
                    v.is_null()
                        || v.as_object().is_some_and(|o| o.is_empty())
                        || v.as_array().is_some_and(Vec::is_empty)
                }
            };
            if !empty {
                return Err(config.wrong(key, "only plain LoRA can be merged"));
            }
        }
        if config.opt_bool("use_dora")?.unwrap_or(false) {
            return Err(config.wrong("use_dora", "DoRA is not supported"));
        }
        if let Some(bias) = config.opt_str("bias")?.filter(|b| *b != "none") {
            return Err(config.wrong("bias", format!("\"{bias}\": \"none\" was expected")));
        }
        let missing = |key: &str| config.wrong(key, "missing; a number was expected");
        let rank = config.opt_usize("r")?.filter(|r| *r > 0).ok_or_else(|| missing("r"))?;
        let alpha = config.opt_f64("lora_alpha")?.ok_or_else(|| missing("lora_alpha"))? as f32;
        let rslora = config.opt_bool("use_rslora")?.unwrap_or(false);
        let divisor = if rslora { (rank as f32).sqrt() } else { rank as f32 };
        let file = folder.join(WEIGHTS);
        let factors = factors(&file, rank)?;
        Ok(Self { factors, factor: alpha / divisor, file: file.display().to_string() })
    }

    /// The adapter to load a model with (`lapidary_model::load_adapted`).
    pub fn into_adapters(self) -> lapidary_model::Adapters {
        let modules = self.factors.into_iter().map(|(module, f)| {
            let Factors { a, b, rank, .. } = f;
            (module, lapidary_model::AdapterFactors { a, b, rank })
        });
        lapidary_model::Adapters {
            modules: modules.collect(),
            factor: self.factor,
            file: self.file,
        }
    }

    /// Adds the adapter to the values of a matrix `[out, in]` (or `[in, out]`, if `transposed`).
    fn add(&self, f: &Factors, values: &mut [f32], transposed: bool, pool: &Pool) {
        let (inner, out) = (f.inner, f.out);
        let delta = |o: usize, row: &mut [f32]| {
            for r in 0..f.rank {
                let b = self.factor * f.b[o * f.rank + r];
                let a = &f.a[r * inner..(r + 1) * inner];
                row.iter_mut().zip(a).for_each(|(x, a)| *x += b * a);
            }
        };
        if transposed {
            let mut row = vec![0.0; inner];
            for o in 0..out {
                row.fill(0.0);
                delta(o, &mut row);
                row.iter().enumerate().for_each(|(i, d)| values[i * out + o] += d);
            }
            return;
        }
        let rows: Vec<_> = values.chunks_mut(inner).map(Mutex::new).collect();
        pool.run(out, &|o| delta(o, &mut rows[o].lock().unwrap_or_else(|e| e.into_inner())));
    }

    /// The factors of a projection, if their shapes are those of the matrix.
    fn of(&self, module: &str, tensor: &TensorView, transposed: bool) -> Result<Option<&Factors>> {
        let Some(f) = self.factors.get(module) else { return Ok(None) };
        let shape = if transposed { [f.inner, f.out] } else { [f.out, f.inner] };
        if tensor.shape != shape {
            let problem = format!(
                "is for a matrix of {} by {}, and {} of the base has the shape {:?}",
                f.out, f.inner, tensor.name, tensor.shape
            );
            return Err(FormatError::new(&self.file, module, problem));
        }
        Ok(Some(f))
    }

    /// Names of projections that the base does not have are an error, never left out in silence.
    fn all_used(&self, used: &[String]) -> Result<()> {
        match self.factors.keys().find(|k| !used.contains(k)) {
            Some(left) => {
                Err(FormatError::new(&self.file, left, "the base has no such projection"))
            }
            None => Ok(()),
        }
    }
}

/// The pairs of factors in `adapter_model.safetensors`.
fn factors(path: &Path, rank: usize) -> Result<BTreeMap<String, Factors>> {
    let file = safetensors::open(path)?;
    let mut sides: HashMap<String, [Option<TensorView>; 2]> = HashMap::new();
    for t in file.tensors {
        let name = t.name.strip_prefix("base_model.model.").unwrap_or(&t.name);
        let ends = [".lora_A.weight", ".lora_B.weight"];
        let side = ends.iter().position(|e| name.ends_with(e));
        let Some(side) = side else {
            return Err(t.wrong("is neither lora_A nor lora_B of a projection"));
        };
        let module = name[..name.len() - ends[side].len()].to_owned();
        sides.entry(module).or_default()[side] = Some(t);
    }
    let mut all = BTreeMap::new();
    for (module, pair) in sides {
        let [Some(a), Some(b)] = pair else {
            let problem = "lora_A or lora_B is missing";
            return Err(FormatError::new(path.display(), module, problem));
        };
        let ([ra, inner], [out, rb]) = (&a.shape[..], &b.shape[..]) else {
            return Err(a.wrong("two dimensions were expected"));
        };
        if (*ra, *rb) != (rank, rank) {
            let problem = format!("ranks of {ra} and {rb}; r of {CONFIG} is {rank}");
            return Err(FormatError::new(path.display(), module, problem));
        }
        let (inner, out) = (*inner, *out);
        let (a, b) = (values(&a)?, values(&b)?);
        all.insert(module, Factors { a, b, rank, inner, out });
    }
    if all.is_empty() {
        return Err(FormatError::new(path.display(), "", "holds no adapter"));
    }
    Ok(all)
}

/// A tensor's values; none may be infinite or no number.
fn values(t: &TensorView) -> Result<Vec<f32>> {
    let ty = block_type(t.dtype).map_err(|e| t.wrong(e))?;
    let mut out = vec![0.0; t.elements()];
    blocks::dequantize(ty, &t.bytes, &mut out);
    match out.iter().position(|v| !v.is_finite()) {
        Some(i) => Err(t.wrong(format!("element {i} is {}", out[i]))),
        None => Ok(out),
    }
}

/// Writes `base` with `adapter` in it to `out`: a Hugging Face folder for a Hugging Face base, a
/// GGUF file for a GGUF one, each tensor in the type that it had.
///
/// # Errors
/// If the adapter is not for this base, or something can't be read or written.
pub fn merge(base: &Checkpoint, adapter: &Adapter, out: &Path, pool: &Pool) -> Result<Merged> {
    match base.source() {
        Source::Hf { dir, .. } => merge_hf(base, dir, adapter, out, pool),
        Source::Gguf(metadata) => merge_gguf(base, metadata, adapter, out, pool),
    }
}

fn merge_hf(
    base: &Checkpoint,
    dir: &Path,
    adapter: &Adapter,
    out: &Path,
    pool: &Pool,
) -> Result<Merged> {
    let config = base.config().unwrap_or_else(|| unreachable!("a directory"))?;
    // GPT-2's Conv1D matrices are stored the other way round.
    let transposed = config.opt_str("model_type")? == Some("gpt2");
    std::fs::create_dir_all(out)
        .map_err(|e| FormatError::new(out.display(), "", format!("cannot be made: {e}")))?;
    let specs: Vec<TensorSpec> =
        base.tensors().map(|t| TensorSpec::new(&*t.name, t.dtype, t.shape.clone())).collect();
    let metadata = BTreeMap::from([("format".to_owned(), "pt".to_owned())]);
    let mut file = safetensors::create(&out.join("model.safetensors"), &specs, &metadata)?;
    let mut used = Vec::new();
    for t in base.tensors() {
        let module = t.name.strip_suffix(".weight").unwrap_or(&t.name);
        match adapter.of(module, t, transposed)? {
            Some(f) => {
                let mut all = values(t)?;
                adapter.add(f, &mut all, transposed, pool);
                file.write(&t.name, &encode(&all, t.dtype, t)?)?;
                used.push(module.to_owned());
            }
            None => file.write(&t.name, &t.bytes)?,
        }
        t.bytes.advise_dontneed();
    }
    adapter.all_used(&used)?;
    copy_settings(dir, out)?;
    file.finish()?;
    Ok(Merged { changed: used.len(), tensors: specs.len(), quantised: false })
}

/// The files of a Hugging Face folder beside the weights.
///
/// # Errors
/// If one can't be read or written.
pub(crate) fn copy_settings(from: &Path, to: &Path) -> Result<()> {
    let settings = ["config.json", "generation_config.json"];
    for name in settings.iter().chain(&crate::run::TEXT_FILES) {
        let path = from.join(name);
        if path.is_file() {
            let bytes = std::fs::read(&path).map_err(|e| {
                FormatError::new(path.display(), "", format!("cannot be read: {e}"))
            })?;
            write_file(&to.join(name), &bytes)?;
        }
    }
    Ok(())
}

fn merge_gguf(
    base: &Checkpoint,
    metadata: &Metadata,
    adapter: &Adapter,
    out: &Path,
    pool: &Pool,
) -> Result<Merged> {
    if out.extension().is_none_or(|e| e != "gguf") {
        let problem = "a name that ends in .gguf was expected: the base is a GGUF file";
        return Err(FormatError::new(out.display(), "", problem));
    }
    let architecture = metadata.str("general.architecture")?;
    let heads = gguf_names::paired_heads(metadata)?.unwrap_or((1, 1));
    // Which projection of the adapter each GGUF tensor is.
    let mut modules: HashMap<String, (String, Change)> = HashMap::new();
    for module in adapter.factors.keys() {
        let name = gguf_names::rename(architecture, &format!("{module}.weight"), heads);
        if let Some((gguf, change)) = name {
            modules.insert(gguf, (module.clone(), change));
        }
    }
    let mut settings = Metadata::new(out.display().to_string());
    for (key, value) in metadata.iter() {
        settings.insert(key, value.clone())?;
    }
    let specs: Vec<TensorSpec> =
        base.tensors().map(|t| TensorSpec::new(&*t.name, t.dtype, t.shape.clone())).collect();
    let mut file = gguf::create(out, &settings, &specs)?;
    let (mut used, mut quantised) = (Vec::new(), false);
    for t in base.tensors() {
        match modules.get(&*t.name) {
            Some((module, change)) => {
                let found = adapter.of(module, t, false)?;
                let f = found.ok_or_else(|| t.wrong("has no factors"))?;
                let mut all = values(t)?;
                add_changed(adapter, f, *change, &mut all, pool);
                quantised |= t.dtype.is_quantised();
                file.write(&t.name, &encode(&all, t.dtype, t)?)?;
                used.push(module.clone());
            }
            None => file.write(&t.name, &t.bytes)?,
        }
        t.bytes.advise_dontneed();
    }
    adapter.all_used(&used)?;
    file.finish()?;
    Ok(Merged { changed: used.len(), tensors: specs.len(), quantised })
}

/// Adds the adapter to values that a converter has put into another order.
fn add_changed(adapter: &Adapter, f: &Factors, change: Change, values: &mut [f32], pool: &Pool) {
    let Change::PairRows(heads) = change else {
        return adapter.add(f, values, false, pool);
    };
    let half = f.out / heads.max(1) / 2;
    // Row (head, i, side) here is row (head, side, i) of the adapter.
    let place = |row: usize| {
        let (head, side, i) = (row / (2 * half), row % (2 * half) / half, row % half);
        head * 2 * half + i * 2 + side
    };
    let mut b = vec![0.0; f.b.len()];
    for row in 0..f.out {
        let (from, to) = (row * f.rank, place(row) * f.rank);
        b[to..to + f.rank].copy_from_slice(&f.b[from..from + f.rank]);
    }
    let moved = Factors { a: f.a.clone(), b, ..*f };
    adapter.add(&moved, values, false, pool);
}

fn encode(values: &[f32], dtype: DType, t: &TensorView) -> Result<Vec<u8>> {
    let ty = block_type(dtype).map_err(|e| t.wrong(e))?;
    let mut bytes = vec![0; values.len() / ty.block_len() * ty.block_bytes()];
    blocks::quantize(ty, values, &mut bytes);
    Ok(bytes)
}
