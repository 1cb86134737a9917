//! A checkpoint's settings, by their names in config.json and in GGUF metadata.

use lapidary_formats::gguf::{Metadata, Value};
use lapidary_formats::{Checkpoint, Config, FormatError, Result, Source};
use lapidary_ops::Activation;
use std::ops::RangeInclusive;

/// Where settings are looked up.
pub enum Settings<'a> {
    /// config.json: the text model's part of it.
    Hf {
        /// The object with the text model's settings.
        text: Config<'a>,
        /// The whole file.
        root: Config<'a>,
        /// `model_type` of the whole checkpoint.
        architecture: &'a str,
        /// Counts that the reference assumes where the file is silent.
        defaults: &'static [(&'static str, usize)],
    },
    /// GGUF metadata; keys are prefixed by the architecture.
    Gguf {
        /// All metadata.
        metadata: &'a Metadata,
        /// `general.architecture`.
        architecture: &'a str,
    },
}

/// Bounds of settings: far above any published model, far below what could exhaust memory.
pub const LAYERS: RangeInclusive<usize> = 1..=1024;
/// Heads of a layer.
pub const HEADS: RangeInclusive<usize> = 1..=1024;
/// Elements of a head.
pub const HEAD_DIM: RangeInclusive<usize> = 1..=1024;
/// Widths of the residual stream and of feed-forward layers.
pub const WIDTH: RangeInclusive<usize> = 1..=1 << 20;
/// Vocabulary entries.
pub const VOCAB: RangeInclusive<usize> = 1..=1 << 24;
/// Positions.
pub const CONTEXT: RangeInclusive<usize> = 1..=1 << 24;

impl<'a> Settings<'a> {
    /// The settings of `checkpoint`.
    ///
    /// # Errors
    /// If it doesn't say what it is.
    pub fn new(checkpoint: &'a Checkpoint) -> Result<Self> {
        match checkpoint.source() {
            Source::Hf { .. } => {
                let config = checkpoint.config().unwrap_or_else(|| unreachable!("a directory"))?;
                let architecture = config.str("model_type")?;
                let text = config.opt_object("text_config")?.unwrap_or(config.clone());
                Ok(Settings::Hf { text, root: config, architecture, defaults: &[] })
            }
            Source::Gguf(metadata) => {
                let architecture = metadata.str("general.architecture")?;
                Ok(Settings::Gguf { metadata, architecture })
            }
        }
    }

    /// The same with a family's defaults.
    pub(crate) fn with_defaults(self, counts: &'static [(&'static str, usize)]) -> Self {
        match self {
            Settings::Hf { text, root, architecture, .. } => {
                Settings::Hf { text, root, architecture, defaults: counts }
            }
            gguf => gguf,
        }
    }

    /// What the file calls the family.
    pub fn architecture(&self) -> &'a str {
        match self {
            Settings::Hf { architecture, .. } | Settings::Gguf { architecture, .. } => architecture,
        }
    }

    /// The name that the registry knows: PaliGemma's text is a Gemma or a Gemma 2.
    ///
    /// # Errors
    /// If PaliGemma does not say which.
    pub fn family(&self) -> Result<&'a str> {
        match self {
            Settings::Hf { text, architecture: "paligemma", .. } => text.str("model_type"),
            _ => Ok(self.architecture()),
        }
    }

    /// The key that names the family.
    pub(crate) fn architecture_key(&self) -> &'static str {
        match self {
            Settings::Hf { .. } => "model_type",
            Settings::Gguf { .. } => "general.architecture",
        }
    }

    /// config.json's settings, where that is the source.
    pub fn hf(&self) -> Option<&Config<'a>> {
        match self {
            Settings::Hf { text, .. } => Some(text),
            Settings::Gguf { .. } => None,
        }
    }

    /// The whole of config.json, where that is the source.
    pub fn root(&self) -> Option<&Config<'a>> {
        match self {
            Settings::Hf { root, .. } => Some(root),
            Settings::Gguf { .. } => None,
        }
    }

    /// The token ids that config.json has under those of `keys` that are there.
    pub fn token_ids(&self, keys: &[&str]) -> Result<Vec<u32>> {
        let Some(root) = self.root() else { return Ok(Vec::new()) };
        keys.iter().filter_map(|key| root.opt_u32(key).transpose()).collect()
    }

    /// An error about `key`.
    pub fn error(&self, key: &str, problem: impl std::fmt::Display) -> FormatError {
        match self {
            Settings::Hf { text, .. } => text.wrong(key, problem),
            Settings::Gguf { metadata, .. } => metadata.wrong(key, problem),
        }
    }

    /// The key under which this source has a setting.
    fn key(&self, hf: &str, gguf: &str) -> String {
        match self {
            Settings::Hf { .. } => hf.to_owned(),
            Settings::Gguf { architecture, .. } => format!("{architecture}.{gguf}"),
        }
    }

    /// A count within `bounds`, if it is there.
    pub fn opt_count(
        &self,
        hf: &str,
        gguf: &str,
        bounds: RangeInclusive<usize>,
    ) -> Result<Option<usize>> {
        let key = self.key(hf, gguf);
        let found = match self {
            Settings::Hf { text, defaults, .. } => {
                text.opt_usize(&key)?.or_else(|| defaults.iter().find(|d| d.0 == key).map(|d| d.1))
            }
            Settings::Gguf { metadata, .. } => metadata.opt_u64(&key)?.map(|n| n as usize),
        };
        match found {
            Some(n) if !bounds.contains(&n) => {
                let (low, high) = bounds.into_inner();
                Err(self.error(&key, format!("{n} is not between {low} and {high}")))
            }
            other => Ok(other),
        }
    }

    /// A count within `bounds`.
    pub fn count(&self, hf: &str, gguf: &str, bounds: RangeInclusive<usize>) -> Result<usize> {
        let missing = || self.error(&self.key(hf, gguf), "missing; a count was expected");
        self.opt_count(hf, gguf, bounds)?.ok_or_else(missing)
    }

    /// Entries of the vocabulary: in GGUF a key, or the number of tokens.
    pub fn vocab(&self) -> Result<usize> {
        let Settings::Gguf { metadata, .. } = self else {
            return self.count("vocab_size", "", VOCAB);
        };
        match self.opt_count("", "vocab_size", VOCAB)? {
            Some(n) => Ok(n),
            None => Ok(metadata.strs("tokenizer.ggml.tokens")?.len()),
        }
    }

    /// A count for each of `layers` layers: an array of that many, or one for all of them.
    pub fn counts(
        &self,
        hf: &str,
        gguf: &str,
        layers: usize,
        bounds: RangeInclusive<usize>,
    ) -> Result<Vec<usize>> {
        let key = self.key(hf, gguf);
        let found = match self {
            Settings::Hf { text, .. } if text.get(&key).is_some_and(|v| v.is_array()) => {
                text.usizes(&key)?
            }
            Settings::Gguf { metadata, .. }
                if matches!(metadata.get(&key), Some(Value::Array(_))) =>
            {
                metadata.u32s(&key)?.into_iter().map(|n| n as usize).collect()
            }
            _ => return Ok(vec![self.count(hf, gguf, bounds)?; layers]),
        };
        if found.len() != layers {
            let problem = format!("{} values where {layers} layers have one each", found.len());
            return Err(self.error(&key, problem));
        }
        if let Some(n) = found.iter().find(|n| !bounds.contains(n)) {
            let (low, high) = bounds.into_inner();
            return Err(self.error(&key, format!("{n} is not between {low} and {high}")));
        }
        Ok(found)
    }

    /// A positive finite number, if it is there.
    pub fn opt_positive(&self, hf: &str, gguf: &str) -> Result<Option<f32>> {
        let key = self.key(hf, gguf);
        let found = match self {
            Settings::Hf { text, .. } => text.opt_f64(&key)?.map(|x| x as f32),
            Settings::Gguf { metadata, .. } => metadata.opt_f32(&key)?,
        };
        match found {
            Some(x) if !(x.is_finite() && x > 0.0) => {
                Err(self.error(&key, format!("{x} is not a positive number")))
            }
            other => Ok(other),
        }
    }

    /// A positive finite number.
    pub fn positive(&self, hf: &str, gguf: &str) -> Result<f32> {
        let missing = || self.error(&self.key(hf, gguf), "missing; a positive number was expected");
        self.opt_positive(hf, gguf)?.ok_or_else(missing)
    }

    /// The number of query heads and of KV heads, which must divide them.
    pub fn heads(&self) -> Result<(usize, usize)> {
        let heads = self.count("num_attention_heads", "attention.head_count", HEADS)?;
        let kv = self.opt_count("num_key_value_heads", "attention.head_count_kv", HEADS)?;
        let kv = kv.unwrap_or(heads);
        if !heads.is_multiple_of(kv) {
            let key = self.key("num_key_value_heads", "attention.head_count_kv");
            return Err(self.error(&key, format!("{kv} KV heads can't be shared by {heads} heads")));
        }
        Ok((heads, kv))
    }

    /// Elements of a head: even, because pairs of them rotate.
    pub fn head_dim(&self, width: usize, heads: usize) -> Result<usize> {
        let dim = self.opt_count("head_dim", "attention.key_length", HEAD_DIM)?;
        let key = self.key("head_dim", "attention.key_length");
        let values = self.opt_count("head_dim", "attention.value_length", HEAD_DIM)?;
        let dim = dim.unwrap_or(width / heads);
        if dim == 0 || !dim.is_multiple_of(2) || values.is_some_and(|v| v != dim) {
            let problem =
                format!("heads of {dim} (values of {values:?}): an even size was expected");
            return Err(self.error(&key, problem));
        }
        Ok(dim)
    }

    /// Whether config.json has a flag set.
    pub fn flag(&self, key: &str) -> Result<bool> {
        let found = self.hf().map(|c| c.opt_bool(key)).transpose()?.flatten();
        Ok(found.unwrap_or(false))
    }

    /// What `per_layer_config` of config.json says of layer `i`.
    pub fn opt_layer_config(&self, i: usize) -> Result<Option<Config<'a>>> {
        let Some(config) = self.hf() else { return Ok(None) };
        match config.opt_object("per_layer_config")? {
            Some(all) => all.opt_object(&i.to_string()),
            None => Ok(None),
        }
    }

    /// Refuses a config.json flag that asks for something other than `allowed`.
    pub fn require_flag(&self, key: &str, allowed: bool) -> Result<()> {
        match self.hf().map(|c| c.opt_bool(key)).transpose()?.flatten() {
            Some(found) if found != allowed => {
                Err(self.error(key, format!("{found} is not supported for this family")))
            }
            _ => Ok(()),
        }
    }

    /// The activation function: the first of `keys` that config.json has, else `default`.
    pub fn activation(&self, keys: &[&str], default: Activation) -> Result<Activation> {
        let Some(config) = self.hf() else { return Ok(default) };
        for key in keys {
            return match config.opt_str(key)? {
                None => continue,
                Some("gelu_pytorch_tanh" | "gelu_new" | "gelu_fast") => Ok(Activation::GeluTanh),
                Some("silu" | "swish") => Ok(Activation::Silu),
                // Gemma 1's first files said "gelu"; the reference reads that as the tanh form.
                Some("gelu") if default == Activation::GeluTanh => Ok(Activation::GeluTanh),
                Some(other) => {
                    let known = "gelu_pytorch_tanh, gelu_new and silu are supported";
                    Err(self.error(key, format!("\"{other}\": {known}")))
                }
            };
        }
        Ok(default)
    }

    /// For each of `count` layers whether it is local: `layer_types` of config.json, or GGUF's
    /// `attention.sliding_window_pattern` where that is an array.
    pub fn layer_types(&self, count: usize) -> Result<Option<Vec<bool>>> {
        if let Settings::Gguf { metadata, .. } = self {
            let key = self.key("", "attention.sliding_window_pattern");
            return match metadata.get(&key) {
                Some(Value::Array(_)) => match metadata.bools(&key)? {
                    all if all.len() == count => Ok(Some(all.to_vec())),
                    other => {
                        Err(self.error(&key, format!("{} values for {count} layers", other.len())))
                    }
                },
                _ => Ok(None),
            };
        }
        let Some(kinds) = self.hf().and_then(|c| c.get("layer_types")) else { return Ok(None) };
        let parse = |kind: &serde_json::Value| match kind.as_str() {
            Some("sliding_attention") => Ok(true),
            Some("full_attention") => Ok(false),
            _ => Err(self.error("layer_types", format!("{kind} is no kind of layer known here"))),
        };
        match kinds.as_array() {
            Some(all) if all.len() == count => {
                all.iter().map(parse).collect::<Result<_>>().map(Some)
            }
            _ => Err(self.error("layer_types", format!("an array of {count} names was expected"))),
        }
    }

    /// The windows that GPT-Neo's keys `attention_layers` and `window_size` give to `count` layers;
    /// without them all layers are global.
    pub fn attention_layers(&self, count: usize) -> Result<Vec<Option<usize>>> {
        let Some(kinds) = self.hf().and_then(|c| c.get("attention_layers")) else {
            return match self.hf() {
                Some(c) if c.has("attention_types") => {
                    Err(self.error("attention_layers", "missing beside attention_types"))
                }
                _ => Ok(vec![None; count]),
            };
        };
        let parse = |kind: &serde_json::Value| match kind.as_str() {
            Some("global") => Ok(None),
            Some("local") => self.count("window_size", "", CONTEXT).map(Some),
            _ => Err(self.error("attention_layers", format!("{kind} is neither global nor local"))),
        };
        match kinds.as_array() {
            Some(all) if all.len() == count => all.iter().map(parse).collect(),
            _ => {
                Err(self
                    .error("attention_layers", format!("an array of {count} names was expected")))
            }
        }
    }

    /// RoPE base and linear divisor of one kind of layer, as transformers 4 or 5 writes them, or
    /// GGUF. `kind` is the key of that kind in `rope_parameters` where kinds differ.
    pub fn rope(
        &self,
        base_key: (&str, &str),
        kind: Option<&str>,
        default: f32,
    ) -> Result<(f32, f32)> {
        let Settings::Hf { text, .. } = self else {
            let base = self.opt_positive("", base_key.1)?.unwrap_or(default);
            return Ok((base, self.gguf_rope_divisor()?));
        };
        let base = self.opt_positive(base_key.0, "")?;
        if let Some(all) = text.opt_object("rope_parameters")? {
            let mine = match kind {
                Some(kind) => all.opt_object(kind)?.unwrap_or(all),
                None => all,
            };
            let base = mine.opt_f64("rope_theta")?.map(|b| b as f32).or(base).unwrap_or(default);
            return Ok((base, linear_divisor(&mine)?));
        }
        let scaling = text.opt_object("rope_scaling")?;
        let divisor = scaling.map(|s| linear_divisor(&s)).transpose()?.unwrap_or(1.0);
        Ok((base.unwrap_or(default), divisor))
    }

    fn gguf_rope_divisor(&self) -> Result<f32> {
        let Settings::Gguf { metadata, architecture } = self else { return Ok(1.0) };
        let key = format!("{architecture}.rope.scaling.type");
        match metadata.opt_str(&key)? {
            None | Some("none") => Ok(1.0),
            Some("linear") => self.positive("", "rope.scaling.factor"),
            Some(other) => {
                Err(self.error(&key, format!("\"{other}\": only linear scaling is supported")))
            }
        }
    }
}

/// The factor of a `rope_scaling` or `rope_parameters` object: 1 for the default type.
fn linear_divisor(rope: &Config) -> Result<f32> {
    let (key, kind) = match rope.opt_str("rope_type")? {
        Some(kind) => ("rope_type", Some(kind)),
        None => ("type", rope.opt_str("type")?),
    };
    match kind {
        None | Some("default") => Ok(1.0),
        Some("linear") => match rope.opt_f64("factor")? {
            Some(f) if f.is_finite() && f > 0.0 => Ok(f as f32),
            other => Err(rope.wrong("factor", format!("{other:?} is not a positive number"))),
        },
        Some(other) => {
            Err(rope.wrong(key, format!("\"{other}\": only default and linear are supported")))
        }
    }
}
