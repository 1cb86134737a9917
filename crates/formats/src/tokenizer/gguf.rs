//! Vocabularies as GGUF metadata holds them (`tokenizer.ggml.*`).

use super::bpe::Bpe;
use super::decode::Bytes;
use super::huggingface::{self, byte_level, characters};
use super::sentencepiece::{self, Spm};
use super::{Kind, MARKERS, Piece, Scheme, SpecialIds, Tokenizer};
use crate::gguf::Metadata;
use crate::names::quote;
use crate::{FormatError, Result};
use std::collections::HashMap;
use std::path::Path;

/// The values under `tokenizer.ggml`.
#[derive(Debug, Clone, Default)]
pub struct GgufVocab {
    /// `model`: "llama" (SentencePiece), "gemma4" (merges of characters) or "gpt2" (byte-level BPE).
    pub model: String,
    /// `pre`: the way in which words are split.
    pub pre: Option<String>,
    /// `tokens`: the pieces.
    pub tokens: Vec<String>,
    /// `scores`: the higher one merges first.
    pub scores: Option<Vec<f32>>,
    /// `token_type`: 1 normal, 2 unknown, 3 control, 4 user-defined, 5 unused, 6 byte.
    pub token_types: Option<Vec<i32>>,
    /// `merges`: pairs, the first one merges first.
    pub merges: Option<Vec<String>>,
    /// `bos_token_id`
    pub bos: Option<u32>,
    /// `eos_token_id`
    pub eos: Option<u32>,
    /// `unknown_token_id`
    pub unk: Option<u32>,
    /// `padding_token_id`
    pub pad: Option<u32>,
    /// `add_bos_token`
    pub add_bos: Option<bool>,
    /// `add_eos_token`
    pub add_eos: Option<bool>,
    /// `add_space_prefix`
    pub add_space_prefix: Option<bool>,
}

impl GgufVocab {
    /// The vocabulary of a Hugging Face directory in GGUF's terms: SentencePiece's from
    /// `tokenizer.model`, a byte-level one from `tokenizer.json`.
    ///
    /// # Errors
    /// If there is neither, or a rule has no GGUF form.
    pub fn from_dir(dir: &Path) -> Result<Self> {
        let mut vocab = match Self::sentencepiece(dir)? {
            Some(vocab) => vocab,
            None => huggingface::gguf_vocab(dir)?,
        };
        let t = Tokenizer::from_dir(dir)?;
        (vocab.bos, vocab.eos, vocab.unk, vocab.pad) =
            (t.bos(), t.eos(), t.unk().or(vocab.unk), t.pad());
        vocab.add_bos = Some(t.add_bos());
        vocab.add_eos = Some(false);
        Ok(vocab)
    }

    fn sentencepiece(dir: &Path) -> Result<Option<Self>> {
        let path = dir.join("tokenizer.model");
        if !path.is_file() {
            return Ok(None);
        }
        let file = path.display().to_string();
        let spm = sentencepiece::parse(&huggingface::read(&path)?, &file)?;
        if spm.squeeze {
            let problem = "true has no form in GGUF";
            return Err(FormatError::new(
                file,
                "normalizer_spec.remove_extra_whitespaces",
                problem,
            ));
        }
        let kind = |p: &Piece| match p.kind {
            _ if MARKERS.contains(&&*p.text) => 3,
            Kind::Normal => 1,
            Kind::Unknown => 2,
            Kind::Control => 3,
            Kind::UserDefined => 4,
            Kind::Unused => 5,
            Kind::Byte(_) => 6,
        };
        let text = |p: &Piece| match p.kind {
            Kind::UserDefined => p.text.replace('▁', " "),
            _ => p.text.to_string(),
        };
        Ok(Some(Self {
            model: "llama".into(),
            pre: Some("default".into()),
            tokens: spm.pieces.iter().map(text).collect(),
            token_types: Some(spm.pieces.iter().map(kind).collect()),
            scores: Some(spm.scores),
            unk: spm.special.unk,
            add_space_prefix: Some(spm.prefix),
            ..Self::default()
        }))
    }

    /// Writes the values under their keys.
    ///
    /// # Errors
    /// If `metadata` has one of them already.
    pub fn write(self, metadata: &mut Metadata) -> Result<()> {
        let key = |name: &str| format!("tokenizer.ggml.{name}");
        metadata.insert(&key("model"), self.model)?;
        if let Some(pre) = self.pre {
            metadata.insert(&key("pre"), pre)?;
        }
        metadata.insert(&key("tokens"), self.tokens)?;
        if let Some(scores) = self.scores {
            metadata.insert(&key("scores"), scores)?;
        }
        if let Some(types) = self.token_types {
            metadata.insert(&key("token_type"), types)?;
        }
        if let Some(merges) = self.merges {
            metadata.insert(&key("merges"), merges)?;
        }
        let ids =
            [("bos", self.bos), ("eos", self.eos), ("unknown", self.unk), ("padding", self.pad)];
        for (name, id) in ids {
            if let Some(id) = id {
                metadata.insert(&key(&format!("{name}_token_id")), id)?;
            }
        }
        let flags = [
            ("add_bos_token", self.add_bos),
            ("add_eos_token", self.add_eos),
            ("add_space_prefix", self.add_space_prefix),
        ];
        for (name, flag) in flags {
            if let Some(flag) = flag {
                metadata.insert(&key(name), flag)?;
            }
        }
        Ok(())
    }
}

/// The ways of splitting words that mean GPT-2's pattern.
const GPT2_PRE: [&str; 4] = ["gpt-2", "gpt2", "default", "phi-2"];

pub(super) fn load(v: GgufVocab, file: &str) -> Result<Tokenizer> {
    let wrong = |key: &str, problem: String| {
        Err(FormatError::new(file, format!("tokenizer.ggml.{key}"), problem))
    };
    let count = v.tokens.len();
    let lengths = [
        ("scores", v.scores.as_ref().map(Vec::len)),
        ("token_type", v.token_types.as_ref().map(Vec::len)),
    ];
    for (key, len) in lengths {
        if let Some(len) = len.filter(|l| *l != count) {
            return wrong(key, format!("{len} entries for {count} tokens"));
        }
    }
    let types = v.token_types;
    let kind = |i: usize, text: &str| match types.as_ref().map_or(1, |t| t[i]) {
        2 => Kind::Unknown,
        3 => Kind::Control,
        4 => Kind::UserDefined,
        5 => Kind::Unused,
        6 => sentencepiece::byte_of(text).map_or(Kind::Normal, Kind::Byte),
        _ => Kind::Normal,
    };
    // llama.cpp's converter writes user-defined pieces with spaces where the model has `▁`.
    let spaced = v.model == "llama";
    let pieces: Vec<Piece> = (v.tokens.into_iter().enumerate())
        .map(|(i, t)| match kind(i, &t) {
            Kind::UserDefined if spaced => Piece::new(t.replace(' ', "▁"), Kind::UserDefined),
            kind => Piece::new(t, kind),
        })
        .collect();
    // llama.cpp leaves out ids that are beyond the vocabulary, and so do we.
    let within = |id: Option<u32>| id.filter(|id| (*id as usize) < count);
    let special = SpecialIds {
        bos: within(v.bos),
        eos: within(v.eos),
        unk: within(v.unk),
        pad: within(v.pad),
    };
    match &*v.model {
        "llama" => {
            let Some(scores) = v.scores else {
                return wrong("scores", "missing; this model merges by them".into());
            };
            if scores.iter().any(|s| s.is_nan()) {
                return wrong("scores", "one of them is NaN".into());
            }
            let spm = Spm {
                pieces,
                scores,
                prefix: v.add_space_prefix.unwrap_or(true),
                squeeze: false,
                byte_fallback: true,
                special,
            };
            let mut tokenizer = spm.build(file)?;
            tokenizer.set_added(v.add_bos.unwrap_or(true), v.add_eos.unwrap_or(false));
            Ok(tokenizer)
        }
        "gemma4" => {
            let Some(merges) = v.merges else {
                return wrong("merges", "missing; this model merges by them".into());
            };
            let mut bpe = Bpe::new(false);
            let pairs = merges.iter().map(|m| m.split_once(' '));
            let ids: HashMap<&str, u32> =
                (pieces.iter().zip(0..)).map(|(p, id)| (&*p.text, id)).collect();
            let vocab = ids.iter().map(|(text, id)| (*text, *id));
            characters(&mut bpe, &pieces, vocab, &|s| ids.get(s).copied(), pairs, file)?;
            (bpe.byte_fallback, bpe.unk, bpe.fuse_unk) = (true, special.unk, true);
            let scheme = Scheme::Spaces {
                prefix: v.add_space_prefix.unwrap_or(false),
                squeeze: false,
                bytes: Bytes::InRuns,
            };
            let mut tokenizer = Tokenizer::new(file, pieces, bpe, scheme, special)?;
            tokenizer.set_added(v.add_bos.unwrap_or(true), v.add_eos.unwrap_or(false));
            Ok(tokenizer)
        }
        "gpt2" => {
            if let Some(pre) = v.pre.as_deref().filter(|p| !GPT2_PRE.contains(p)) {
                return wrong(
                    "pre",
                    format!("{} is not supported; {} are", quote(pre), GPT2_PRE.join(", ")),
                );
            }
            let Some(merges) = v.merges else {
                return wrong("merges", "missing; this model merges by them".into());
            };
            let mut bpe = Bpe::new(true);
            let pairs = merges.iter().map(|m| m.split_once(' '));
            byte_level(&mut bpe, &pieces, pairs, file)?;
            let scheme = Scheme::ByteLevel {
                prefix: v.add_space_prefix.unwrap_or(false),
                words: true,
                digits: false,
            };
            let mut tokenizer = Tokenizer::new(file, pieces, bpe, scheme, special)?;
            tokenizer.set_added(v.add_bos.unwrap_or(false), v.add_eos.unwrap_or(false));
            Ok(tokenizer)
        }
        other => {
            let problem = "is not supported; \"llama\", \"gemma4\" and \"gpt2\" are";
            wrong("model", format!("{} {problem}", quote(other)))
        }
    }
}
