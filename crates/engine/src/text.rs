//! A checkpoint's words: tokenizer, chat template, the tokens that end a turn, and the sampling
//! that its makers recommend.

use crate::Sampling;
use lapidary_formats::chat::{ChatTemplate, Message, RenderOptions, Rendered};
use lapidary_formats::gguf::Metadata;
use lapidary_formats::tokenizer::{Encode, GgufVocab, Tokenizer};
use lapidary_formats::{Checkpoint, Config, FormatError, Result, Source};
use serde_json::{Map, Value};

/// Everything about a checkpoint that is text.
pub struct Text {
    /// Its tokenizer.
    pub tokenizer: Tokenizer,
    /// Its chat template, or the one built in for its family; base models may have none.
    pub template: Option<ChatTemplate>,
    /// Tokens that end an answer.
    pub stops: Vec<u32>,
    /// The sampling that its makers recommend; greedy where they say nothing.
    pub defaults: Sampling,
    /// Things that the user should know.
    pub notes: Vec<String>,
    /// Spellings of control tokens.
    control: Vec<String>,
    bos: String,
    eos: String,
}

/// Pieces that end a turn in the families' templates.
const TURN_ENDS: [&str; 4] = ["<end_of_turn>", "<turn|>", "<|eot_id|>", "<|im_end|>"];

impl Text {
    /// The text side of `checkpoint`.
    ///
    /// # Errors
    /// If the tokenizer is missing, damaged or unsupported, or the template is broken.
    pub fn open(checkpoint: &Checkpoint) -> Result<Self> {
        let mut notes = Vec::new();
        let (tokenizer, template, mut stops, defaults) = match checkpoint.source() {
            Source::Hf { dir, .. } => {
                let config = checkpoint.config().unwrap_or_else(|| unreachable!("a directory"))?;
                let architecture = config.opt_str("model_type")?.unwrap_or("");
                let tokenizer = Tokenizer::from_dir(dir)?;
                let template = ChatTemplate::from_dir(dir, architecture)?;
                let mut stops = config.opt_ids("eos_token_id")?.unwrap_or_default();
                let generation = checkpoint.generation().transpose()?;
                if let Some(g) = &generation {
                    stops.extend(g.opt_ids("eos_token_id")?.unwrap_or_default());
                }
                let defaults = generation.map(|g| hf_defaults(&g, &mut notes)).transpose()?;
                (tokenizer, template, stops, defaults.unwrap_or_default())
            }
            Source::Gguf(metadata) => {
                let architecture = metadata.str("general.architecture")?;
                let own = metadata.opt_str("tokenizer.chat_template")?;
                let name = metadata.file().to_string();
                let template = ChatTemplate::for_model(own.map(|t| (t, &*name)), architecture)?;
                let tokenizer = Tokenizer::from_gguf(gguf_vocab(metadata)?, metadata.file())?;
                let stops = metadata.opt_u32("tokenizer.ggml.eot_token_id")?.into_iter().collect();
                (tokenizer, template, stops, gguf_defaults(metadata)?)
            }
        };
        stops.extend(tokenizer.eos());
        stops.extend(TURN_ENDS.iter().filter_map(|piece| tokenizer.id_of(piece)));
        stops.retain(|id| (*id as usize) < tokenizer.vocab_size());
        stops.sort_unstable();
        stops.dedup();
        let spelling =
            |id: Option<u32>| id.and_then(|id| tokenizer.piece(id)).unwrap_or_default().to_owned();
        let (bos, eos) = (spelling(tokenizer.bos()), spelling(tokenizer.eos()));
        let control = tokenizer.control_pieces().map(str::to_owned).collect();
        Ok(Self { tokenizer, template, stops, defaults, notes, control, bos, eos })
    }

    /// A conversation as the model's template writes it; a system message works with every
    /// template. `now`: seconds since 1970.
    ///
    /// # Errors
    /// If there is no template, or it refuses the conversation.
    pub fn render(
        &self,
        messages: &[Message],
        add_generation_prompt: bool,
        now: i64,
    ) -> Result<Rendered> {
        self.render_with(messages, add_generation_prompt, now, Map::new())
    }

    /// As [`Text::render`], with further variables of the template, such as `enable_thinking`.
    ///
    /// # Errors
    /// As there.
    pub fn render_with(
        &self,
        messages: &[Message],
        add_generation_prompt: bool,
        now: i64,
        extra: Map<String, Value>,
    ) -> Result<Rendered> {
        let template = self.template.as_ref().ok_or_else(|| {
            FormatError::new(
                "this model",
                "chat template",
                "has none: it is a base model; give it text to continue (run --raw)",
            )
        })?;
        let options = RenderOptions {
            add_generation_prompt,
            bos: &self.bos,
            eos: &self.eos,
            control: &self.control,
            extra,
            now,
            ..RenderOptions::default()
        };
        Ok(template.render_merging(messages, &options)?.0)
    }

    /// Whether the template can ask for thoughts and the tokenizer can tell them from the answer.
    pub fn thinks(&self) -> bool {
        let marks = ["<|channel>", "<channel|>"];
        self.template.as_ref().is_some_and(ChatTemplate::thinks)
            && marks.iter().all(|m| self.tokenizer.id_of(m).is_some())
    }

    /// The tokens of a rendered conversation, with one token that begins a text, whichever of
    /// template and tokenizer adds it. Control tokens that people spelt stay text.
    pub fn encode_rendered(&self, rendered: &Rendered) -> Vec<u32> {
        // PaliGemma's stands behind the pictures.
        let mut written = rendered.text.match_indices(&self.bos).map(|(at, _)| at);
        let has_bos = !self.bos.is_empty()
            && written.any(|at| !rendered.literal.iter().any(|r| r.contains(&at)));
        let options = Encode { add_special: !has_bos, parse_special: true };
        self.tokenizer.encode_with_literals(&rendered.text, options, &rendered.literal)
    }

    /// The tokens of plain text, with those that begin a text; nothing in it is a control token.
    pub fn encode_plain(&self, text: &str) -> Vec<u32> {
        self.tokenizer.encode(text, Encode { add_special: true, parse_special: false })
    }
}

/// Fields of generation_config.json that are not about how tokens are chosen, or are off.
const NEUTRAL: [&str; 13] = [
    "bos_token_id",
    "eos_token_id",
    "pad_token_id",
    "do_sample",
    "temperature",
    "top_k",
    "top_p",
    "min_p",
    "typical_p",
    "repetition_penalty",
    "transformers_version",
    "_from_model_config",
    "cache_implementation",
];

fn hf_defaults(config: &Config, notes: &mut Vec<String>) -> Result<Sampling> {
    for (key, value) in config.entries().filter(|(k, _)| !NEUTRAL.contains(k)) {
        notes
            .push(format!("{}: {key} = {value} is not supported and has no effect", config.file()));
    }
    let penalty = config.opt_f64("repetition_penalty")?.map_or(1.0, |p| p as f32);
    if !config.opt_bool("do_sample")?.unwrap_or(false) {
        return Ok(Sampling { repetition_penalty: penalty, ..Sampling::default() });
    }
    // What transformers samples with where the file says nothing.
    let number = |key: &str, default: f32| Ok(config.opt_f64(key)?.map_or(default, |x| x as f32));
    let sampling = Sampling {
        temperature: number("temperature", 1.0)?,
        top_k: config.opt_usize("top_k")?.unwrap_or(50),
        top_p: number("top_p", 1.0)?,
        min_p: number("min_p", 0.0)?,
        typical_p: number("typical_p", 1.0)?,
        repetition_penalty: penalty,
        ..Sampling::default()
    };
    sampling.check().map_err(|e| config.wrong(e.field, e))?;
    Ok(sampling)
}

fn gguf_defaults(metadata: &Metadata) -> Result<Sampling> {
    let number = |key: &str| metadata.opt_f32(&format!("general.sampling.{key}"));
    let (temperature, top_p, min_p) = (number("temp")?, number("top_p")?, number("min_p")?);
    let top_k = metadata.opt_u32("general.sampling.top_k")?;
    if temperature.is_none() && top_p.is_none() && top_k.is_none() && min_p.is_none() {
        return Ok(Sampling::default());
    }
    let sampling = Sampling {
        temperature: temperature.unwrap_or(1.0),
        top_k: top_k.unwrap_or(0) as usize,
        top_p: top_p.unwrap_or(1.0),
        min_p: min_p.unwrap_or(0.0),
        ..Sampling::default()
    };
    sampling.check().map_err(|e| metadata.wrong(&format!("general.sampling.{}", e.field), e))?;
    Ok(sampling)
}

fn gguf_vocab(metadata: &Metadata) -> Result<GgufVocab> {
    let key = |name: &str| format!("tokenizer.ggml.{name}");
    let id = |name: &str| metadata.opt_u32(&key(name));
    Ok(GgufVocab {
        model: metadata.str(&key("model"))?.to_owned(),
        pre: metadata.opt_str(&key("pre"))?.map(str::to_owned),
        tokens: metadata.strs(&key("tokens"))?.to_vec(),
        scores: metadata.opt_f32s(&key("scores"))?.map(<[f32]>::to_vec),
        token_types: metadata.opt_i32s(&key("token_type"))?,
        merges: metadata.opt_strs(&key("merges"))?.map(<[String]>::to_vec),
        bos: id("bos_token_id")?,
        eos: id("eos_token_id")?,
        unk: id("unknown_token_id")?,
        pad: id("padding_token_id")?,
        add_bos: metadata.opt_bool(&key("add_bos_token"))?,
        add_eos: metadata.opt_bool(&key("add_eos_token"))?,
        add_space_prefix: metadata.opt_bool(&key("add_space_prefix"))?,
    })
}
