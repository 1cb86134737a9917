//! Hugging Face's `tokenizer.json` and the files around it. BPE models in the forms that published
//! checkpoints of our families have; any other component is refused by its name.

use super::bpe::Bpe;
use super::decode::Bytes;
use super::{GgufVocab, Kind, Piece, Scheme, SpecialIds, Tokenizer, bytelevel, sentencepiece};
use crate::names::{quote, shorten};
use crate::{FormatError, Result};
use serde::Deserialize;
use serde_json::Value;
use std::collections::HashMap;
use std::path::Path;

#[derive(Deserialize)]
struct File {
    #[serde(default)]
    added_tokens: Vec<Added>,
    normalizer: Option<Value>,
    pre_tokenizer: Option<Value>,
    post_processor: Option<Value>,
    decoder: Option<Value>,
    model: Model,
}

#[derive(Deserialize)]
struct Added {
    id: u32,
    content: String,
    #[serde(default)]
    single_word: bool,
    #[serde(default)]
    lstrip: bool,
    #[serde(default)]
    rstrip: bool,
    #[serde(default)]
    special: bool,
}

#[derive(Deserialize)]
struct Model {
    #[serde(rename = "type")]
    kind: Option<String>,
    unk_token: Option<String>,
    dropout: Option<f32>,
    continuing_subword_prefix: Option<String>,
    end_of_word_suffix: Option<String>,
    #[serde(default)]
    fuse_unk: bool,
    #[serde(default)]
    byte_fallback: bool,
    #[serde(default)]
    ignore_merges: bool,
    vocab: HashMap<String, u32>,
    merges: Vec<Merge>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Merge {
    Pair(String, String),
    Line(String),
}

impl Merge {
    fn pair(&self) -> Option<(&str, &str)> {
        match self {
            Merge::Pair(a, b) => Some((a, b)),
            Merge::Line(s) => s.split_once(' '),
        }
    }
}

/// Where the JSON breaks off or does not fit, in one printable line.
fn json_error(file: &str, e: &serde_json::Error) -> FormatError {
    FormatError::new(
        file,
        format!("line {} column {}", e.line(), e.column()),
        shorten(e.to_string().replace(char::is_control, " ")),
    )
}

/// Bytes of a tokenizer file.
const MAX_FILE: u64 = 256 << 20;

pub(super) fn read(path: &Path) -> Result<Vec<u8>> {
    let wrong = |e: &dyn std::fmt::Display| FormatError::new(path.display(), "", e);
    let size = std::fs::metadata(path).map_err(|e| wrong(&e))?.len();
    if size > MAX_FILE {
        return Err(wrong(&format!(
            "{size} bytes; a tokenizer of at most {MAX_FILE} was expected"
        )));
    }
    std::fs::read(path).map_err(|e| wrong(&e))
}

pub(super) fn from_dir(dir: &Path) -> Result<Tokenizer> {
    let has = |name: &str| dir.join(name).is_file();
    let name = |n: &str| dir.join(n).display().to_string();
    let mut tokenizer = if has("tokenizer.json") {
        from_json(&read(&dir.join("tokenizer.json"))?, &name("tokenizer.json"))?
    } else if has("tokenizer.model") {
        sentencepiece::load(&read(&dir.join("tokenizer.model"))?, &name("tokenizer.model"))?
    } else if let Some((vocab, merges)) =
        [("vocab.json", "merges.txt"), ("encoder.json", "vocab.bpe")]
            .into_iter()
            .find(|(v, m)| has(v) && has(m))
    {
        let text = String::from_utf8(read(&dir.join(merges))?)
            .map_err(|_| FormatError::new(name(merges), "", "is not UTF-8"))?;
        from_vocab_and_merges(&read(&dir.join(vocab))?, &text, &name(vocab))?
    } else {
        return Err(FormatError::new(
            dir.display(),
            "tokenizer",
            "no tokenizer.json, tokenizer.model, or vocab.json with merges.txt",
        ));
    };
    let config = dir.join("tokenizer_config.json");
    if config.is_file() {
        let value = crate::json::read_object(&config)?;
        apply_config(&mut tokenizer, &value, !has("tokenizer.json"));
    }
    Ok(tokenizer)
}

/// What tokenizer_config.json says of special tokens. `whole`: no tokenizer.json has said it.
fn apply_config(tokenizer: &mut Tokenizer, config: &Value, whole: bool) {
    let id = |key: &str| {
        let token = config.get(key)?;
        let text = token.as_str().or_else(|| token.get("content").and_then(Value::as_str))?;
        tokenizer.id_of(text)
    };
    let found = [id("bos_token"), id("eos_token"), id("unk_token"), id("pad_token")];
    let s = &mut tokenizer.special;
    for (slot, id) in [&mut s.bos, &mut s.eos, &mut s.unk, &mut s.pad].into_iter().zip(found) {
        *slot = id.or(*slot);
    }
    if whole {
        let flag = |key: &str| config.get(key).and_then(Value::as_bool);
        let bos = flag("add_bos_token").unwrap_or(tokenizer.add_bos());
        tokenizer.set_added(bos, flag("add_eos_token").unwrap_or(false));
    }
}

pub(super) fn from_json(bytes: &[u8], file: &str) -> Result<Tokenizer> {
    let parsed: File = serde_json::from_slice(bytes).map_err(|e| json_error(file, &e))?;
    let refuse = |field: &str, problem: String| Err(FormatError::new(file, field, problem));
    let model = &parsed.model;
    if let Some(kind) = model.kind.as_deref().filter(|k| *k != "BPE") {
        return refuse("model.type", format!("{} is not supported; BPE is", quote(kind)));
    }
    if model.dropout.is_some_and(|d| d != 0.0) {
        return refuse("model.dropout", "is for training and not supported".into());
    }
    for (field, value) in [
        ("model.continuing_subword_prefix", &model.continuing_subword_prefix),
        ("model.end_of_word_suffix", &model.end_of_word_suffix),
    ] {
        if let Some(v) = value.as_deref().filter(|v| !v.is_empty()) {
            return refuse(field, format!("{} is not supported", quote(v)));
        }
    }
    let mut scheme = scheme(&parsed, file)?;
    // Without dummy spaces and replacement there is nothing to undo when decoding.
    if let Scheme::Spaces { bytes, .. } = &mut scheme {
        *bytes = Bytes::InRuns;
    }
    let pieces = pieces(&parsed, &scheme, file)?;
    let level = matches!(scheme, Scheme::ByteLevel { .. });
    let mut bpe = Bpe::new(level);
    let pairs = parsed.model.merges.iter().map(Merge::pair);
    if level {
        byte_level(&mut bpe, &pieces, pairs, file)?;
    } else {
        let id = |text: &str| parsed.model.vocab.get(text).copied();
        let vocab = parsed.model.vocab.iter().map(|(text, id)| (text.as_str(), *id));
        characters(&mut bpe, &pieces, vocab, &id, pairs, file)?;
        bpe.byte_fallback = parsed.model.byte_fallback;
    }
    let id = |text: &str| parsed.model.vocab.get(text).copied();
    bpe.unk = parsed.model.unk_token.as_deref().and_then(id);
    bpe.fuse_unk = parsed.model.fuse_unk;
    if parsed.model.ignore_merges {
        for (i, p) in pieces.iter().enumerate().filter(|(_, p)| p.kind == Kind::Normal) {
            let bytes =
                if level { bytelevel::to_bytes(&p.text) } else { p.text.as_bytes().to_vec() };
            bpe.whole.insert(bytes.into(), i as u32);
        }
    }
    let special = SpecialIds { unk: bpe.unk, ..SpecialIds::default() };
    let mut tokenizer = Tokenizer::new(file, pieces, bpe, scheme, special)?;
    (tokenizer.before, tokenizer.after) = added_around(&parsed.post_processor, file)?;
    for id in tokenizer.before.iter().chain(&tokenizer.after) {
        if *id as usize >= tokenizer.pieces.len() {
            return refuse("post_processor", format!("token {id} is not in the vocabulary"));
        }
    }
    let named = |names: &[&str]| names.iter().find_map(|n| tokenizer.id_of(n));
    let bos = tokenizer.before.first().copied().or(named(&["<bos>", "<s>", "<|endoftext|>"]));
    let (eos, pad) = (named(&["<eos>", "</s>", "<|endoftext|>"]), named(&["<pad>"]));
    tokenizer.special = SpecialIds { bos, eos, pad, ..tokenizer.special };
    Ok(tokenizer)
}

/// The vocabulary in the order of ids.
fn pieces(parsed: &File, scheme: &Scheme, file: &str) -> Result<Vec<Piece>> {
    let highest =
        parsed.model.vocab.values().chain(parsed.added_tokens.iter().map(|a| &a.id)).max();
    let count = highest.map_or(0, |h| *h as usize + 1);
    // Ids far apart would make a small file take much memory.
    let known = parsed.model.vocab.len() + parsed.added_tokens.len();
    if count > 2 * known + 4096 {
        let problem = format!("ids go up to {} for {known} tokens", count - 1);
        return Err(FormatError::new(file, "model.vocab", problem));
    }
    let mut pieces = vec![Piece::new("", Kind::Unused); count];
    let bytes = parsed.model.byte_fallback && matches!(scheme, Scheme::Spaces { .. });
    for (text, id) in &parsed.model.vocab {
        let byte = sentencepiece::byte_of(text).filter(|_| bytes);
        pieces[*id as usize] = Piece::new(text.as_str(), byte.map_or(Kind::Normal, Kind::Byte));
    }
    for a in &parsed.added_tokens {
        if a.single_word {
            let problem = format!("single_word of {} is not supported", quote(&a.content));
            return Err(FormatError::new(file, "added_tokens", problem));
        }
        let kind = if a.special { Kind::Control } else { Kind::UserDefined };
        let mut piece = Piece::new(&*a.content, kind);
        (piece.lstrip, piece.rstrip) = (a.lstrip, a.rstrip);
        pieces[a.id as usize] = piece;
    }
    Ok(pieces)
}

/// Gemma 4's control tokens that llama.cpp shows: its converter makes them user-defined.
const SHOWN: [&str; 7] = [
    "<|channel>",
    "<channel|>",
    "<|tool_call>",
    "<tool_call|>",
    "<|tool_response>",
    "<tool_response|>",
    "<|\"|>",
];

/// A `tokenizer.json` in GGUF's terms: byte-level as "gpt2", merges of characters as "gemma4".
pub(super) fn gguf_vocab(dir: &Path) -> Result<GgufVocab> {
    let path = dir.join("tokenizer.json");
    let file = path.display().to_string();
    let parsed: File = serde_json::from_slice(&read(&path)?).map_err(|e| json_error(&file, &e))?;
    let scheme = scheme(&parsed, &file)?;
    let spaces = match scheme {
        Scheme::ByteLevel { prefix: false, words: true, digits: false } => false,
        Scheme::Spaces { prefix: false, .. } if parsed.model.byte_fallback => true,
        _ => {
            let problem =
                "without a tokenizer.model only GPT-2's and Gemma 4's forms can be written to GGUF";
            return Err(FormatError::new(file, "pre_tokenizer", problem));
        }
    };
    let pieces = pieces(&parsed, &scheme, &file)?;
    let kind = |p: &Piece| match p.kind {
        Kind::Control if spaces && SHOWN.contains(&&*p.text) => 4,
        Kind::Control => 3,
        Kind::Byte(_) => 6,
        Kind::UserDefined => 4,
        Kind::Unused => 5,
        _ => 1,
    };
    let merges = parsed.model.merges.iter().filter_map(Merge::pair);
    let (model, pre) = if spaces { ("gemma4", None) } else { ("gpt2", Some("gpt-2".into())) };
    Ok(GgufVocab {
        model: model.into(),
        pre,
        // Readers want some.
        scores: spaces.then(|| vec![-1000.0; pieces.len()]),
        add_space_prefix: spaces.then_some(false),
        tokens: pieces.iter().map(|p| p.text.to_string()).collect(),
        token_types: Some(pieces.iter().map(kind).collect()),
        merges: Some(merges.map(|(a, b)| format!("{a} {b}")).collect()),
        ..GgufVocab::default()
    })
}

/// A component's `type`, and the components of a `Sequence`.
fn kind(value: &Value) -> &str {
    value.get("type").and_then(Value::as_str).unwrap_or("")
}

fn parts<'a>(value: &'a Option<Value>, list: &str) -> Vec<&'a Value> {
    match value {
        None => Vec::new(),
        Some(v) if kind(v) == "Sequence" => {
            v.get(list).and_then(Value::as_array).map_or(Vec::new(), |a| a.iter().collect())
        }
        Some(v) => vec![v],
    }
}

fn text<'a>(value: &'a Value, path: &[&str]) -> Option<&'a str> {
    path.iter().try_fold(value, |v, key| v.get(key)).and_then(Value::as_str)
}

fn flag(value: &Value, key: &str, default: bool) -> bool {
    value.get(key).and_then(Value::as_bool).unwrap_or(default)
}

/// Reads normaliser, pre-tokenizer and decoder as one of the schemes that we know.
fn scheme(parsed: &File, file: &str) -> Result<Scheme> {
    let refuse = |field: &str, v: &Value| {
        let short = shorten(v.to_string());
        Err(FormatError::new(file, field, format!("{short} is not supported")))
    };
    let (mut prefix, mut replaced) = (false, false);
    for n in parts(&parsed.normalizer, "normalizers") {
        match kind(n) {
            "Prepend" if text(n, &["prepend"]) == Some("▁") => prefix = true,
            "Replace"
                if text(n, &["pattern", "String"]) == Some(" ")
                    && text(n, &["content"]) == Some("▁") =>
            {
                replaced = true;
            }
            _ => return refuse("normalizer", n),
        }
    }
    let mut level: Option<(bool, bool)> = None;
    let mut digits = false;
    for p in parts(&parsed.pre_tokenizer, "pretokenizers") {
        match kind(p) {
            // Nothing is left to split once spaces are replaced.
            "Split" if replaced && text(p, &["pattern", "String"]) == Some(" ") => {}
            "ByteLevel" => {
                level = Some((flag(p, "add_prefix_space", true), flag(p, "use_regex", true)))
            }
            "Digits" if flag(p, "individual_digits", false) => digits = true,
            "Metaspace" if text(p, &["replacement"]) == Some("▁") && !flag(p, "split", true) => {
                replaced = true;
                prefix = text(p, &["prepend_scheme"]).unwrap_or("always") != "never";
                if text(p, &["prepend_scheme"]) == Some("first") {
                    return refuse("pre_tokenizer", p);
                }
            }
            _ => return refuse("pre_tokenizer", p),
        }
    }
    for d in parts(&parsed.decoder, "decoders") {
        match kind(d) {
            "Replace" | "ByteFallback" | "Fuse" | "ByteLevel" | "Metaspace" => {}
            "Strip" if text(d, &["content"]) == Some(" ") => {}
            _ => return refuse("decoder", d),
        }
    }
    match level {
        Some((prefix, words)) => Ok(Scheme::ByteLevel { prefix, words, digits }),
        None if replaced && !digits => {
            Ok(Scheme::Spaces { prefix, squeeze: false, bytes: Bytes::InRuns })
        }
        None => Err(FormatError::new(
            file,
            "pre_tokenizer",
            "neither byte-level (GPT-2) nor with spaces replaced by ▁ (Gemma, Llama)",
        )),
    }
}

/// Ids that the post-processor puts before and after a text.
fn added_around(post: &Option<Value>, file: &str) -> Result<(Vec<u32>, Vec<u32>)> {
    let (mut before, mut after) = (Vec::new(), Vec::new());
    for p in parts(post, "processors") {
        match kind(p) {
            "ByteLevel" => {}
            "TemplateProcessing" => {
                let mut seen = false;
                for part in p.get("single").and_then(Value::as_array).into_iter().flatten() {
                    if part.get("Sequence").is_some() {
                        seen = true;
                        continue;
                    }
                    let name = text(part, &["SpecialToken", "id"]).unwrap_or("");
                    let ids = p
                        .get("special_tokens")
                        .and_then(|s| s.get(name))
                        .and_then(|s| s.get("ids"));
                    for id in ids.and_then(Value::as_array).into_iter().flatten() {
                        let id =
                            id.as_u64().and_then(|id| u32::try_from(id).ok()).ok_or_else(|| {
                                FormatError::new(
                                    file,
                                    "post_processor",
                                    format!("{id} is no token id"),
                                )
                            })?;
                        if seen { after.push(id) } else { before.push(id) }
                    }
                }
            }
            other => {
                let problem = format!("{} is not supported", quote(other));
                return Err(FormatError::new(file, "post_processor", problem));
            }
        }
    }
    Ok((before, after))
}

/// Merges of a model over characters; `id` finds what `vocab` holds.
pub(super) fn characters<'a>(
    bpe: &mut Bpe,
    pieces: &[Piece],
    vocab: impl Iterator<Item = (&'a str, u32)>,
    id: &dyn Fn(&str) -> Option<u32>,
    pairs: impl Iterator<Item = Option<(&'a str, &'a str)>>,
    file: &str,
) -> Result<()> {
    for (text, id) in vocab {
        let mut chars = text.chars();
        if let (Some(c), None) = (chars.next(), chars.next()) {
            bpe.add_char(c, id);
        }
    }
    for (i, p) in pieces.iter().enumerate() {
        if let Kind::Byte(b) = p.kind {
            bpe.bytes[b as usize] = i as u32;
        }
    }
    merges(bpe, id, pairs, file)
}

/// Bytes and merges of a byte-level model.
pub(super) fn byte_level<'a>(
    bpe: &mut Bpe,
    pieces: &[Piece],
    pairs: impl Iterator<Item = Option<(&'a str, &'a str)>>,
    file: &str,
) -> Result<()> {
    let ids: HashMap<&str, u32> = (pieces.iter().enumerate())
        .filter(|(_, p)| matches!(p.kind, Kind::Normal | Kind::Unused))
        .map(|(i, p)| (&*p.text, i as u32))
        .collect();
    for b in 0..=255u8 {
        let mut buffer = [0; 4];
        if let Some(&id) = ids.get(&*bytelevel::to_char(b).encode_utf8(&mut buffer)) {
            bpe.bytes[b as usize] = id;
        }
    }
    merges(bpe, &|s| ids.get(s).copied(), pairs, file)
}

fn merges<'a>(
    bpe: &mut Bpe,
    id: &dyn Fn(&str) -> Option<u32>,
    pairs: impl Iterator<Item = Option<(&'a str, &'a str)>>,
    file: &str,
) -> Result<()> {
    let mut whole = String::new();
    for (rank, pair) in pairs.enumerate() {
        let wrong = |problem: String| FormatError::new(file, format!("merge {rank}"), problem);
        let (a, b) =
            pair.ok_or_else(|| wrong("two pieces with a space between were expected".into()))?;
        whole.clear();
        whole.push_str(a);
        whole.push_str(b);
        match (id(a), id(b), id(&whole)) {
            (Some(a), Some(b), Some(whole)) => bpe.add_pair(a, b, rank as u32, whole),
            _ => {
                return Err(wrong(format!(
                    "{} and {}: not all in the vocabulary",
                    quote(a),
                    quote(b)
                )));
            }
        }
    }
    Ok(())
}

pub(super) fn from_vocab_and_merges(vocab: &[u8], merges: &str, file: &str) -> Result<Tokenizer> {
    let vocab: HashMap<String, u32> =
        serde_json::from_slice(vocab).map_err(|e| json_error(file, &e))?;
    let lines = merges.lines().filter(|l| !l.starts_with("#version") && !l.is_empty());
    let parsed = File {
        added_tokens: Vec::new(),
        normalizer: None,
        pre_tokenizer: None,
        post_processor: None,
        decoder: None,
        model: Model {
            kind: None,
            unk_token: None,
            dropout: None,
            continuing_subword_prefix: None,
            end_of_word_suffix: None,
            fuse_unk: false,
            byte_fallback: false,
            ignore_merges: false,
            vocab,
            merges: lines.map(|l| Merge::Line(l.to_owned())).collect(),
        },
    };
    let scheme = Scheme::ByteLevel { prefix: false, words: true, digits: false };
    let mut pieces = pieces(&parsed, &scheme, file)?;
    for p in pieces.iter_mut().filter(|p| &*p.text == "<|endoftext|>") {
        p.kind = Kind::Control;
    }
    let mut bpe = Bpe::new(true);
    byte_level(&mut bpe, &pieces, parsed.model.merges.iter().map(Merge::pair), file)?;
    let end = parsed.model.vocab.get("<|endoftext|>").copied();
    let special = SpecialIds { bos: end, eos: end, ..SpecialIds::default() };
    Tokenizer::new(file, pieces, bpe, scheme, special)
}
