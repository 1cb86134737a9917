//! A learnt vocabulary as the files that the reference libraries read: `tokenizer.model`
//! (SentencePiece's protocol buffer) and `tokenizer.json` (Hugging Face `tokenizers`), with
//! `tokenizer_config.json` beside them.

use super::{CONTROL, LINE_ENDS, Trained};
use lapidary_formats::Result;
use lapidary_formats::atomic::write_file;
use serde_json::{Map, Value, json};
use std::collections::HashMap;
use std::path::Path;

/// The kinds of `sentencepiece_model.proto`.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Normal = 1,
    Unknown = 2,
    Control = 3,
    UserDefined = 4,
    Byte = 6,
}

struct Piece {
    text: String,
    score: f32,
    kind: Kind,
}

/// Gemma's turns as a template: a system message joins the first user turn.
const TEMPLATE: &str = "{{ bos_token }}\
{% if messages[0].role == 'system' %}\
{% set before = messages[0].content | trim + '\n\n' %}{% set turns = messages[1:] %}\
{% else %}{% set before = '' %}{% set turns = messages %}{% endif %}\
{% for turn in turns %}\
{{ '<start_of_turn>' + ('model' if turn.role == 'assistant' else turn.role) + '\n' }}\
{{ before if loop.first else '' }}{{ turn.content | trim }}{{ '<end_of_turn>\n' }}\
{% endfor %}\
{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}";

impl Trained {
    /// Entries of the vocabulary.
    pub fn vocab(&self) -> usize {
        CONTROL.len() + self.unused + LINE_ENDS + 256 + self.merges.len() + self.characters.len()
    }

    /// Writes `tokenizer.model`, `tokenizer.json` and `tokenizer_config.json` into `dir`, which is
    /// made if it isn't there.
    ///
    /// # Errors
    /// If a file can't be written.
    pub fn write(&self, dir: &Path) -> Result<()> {
        std::fs::create_dir_all(dir).map_err(|e| {
            let problem = format!("cannot be made: {e}");
            lapidary_formats::FormatError::new(dir.display(), "", problem)
        })?;
        let pieces = self.pieces();
        write_file(&dir.join("tokenizer.model"), &self.model(&pieces))?;
        let text = |v: &Value| serde_json::to_vec_pretty(v).unwrap_or_default();
        write_file(&dir.join("tokenizer.json"), &text(&huggingface(&pieces)))?;
        write_file(&dir.join("tokenizer_config.json"), &text(&config()))
    }

    /// The vocabulary in the order of ids: control tokens, runs of line ends, bytes, pieces made
    /// of others, characters.
    fn pieces(&self) -> Vec<Piece> {
        let piece = |text: &str, score: f32, kind| Piece { text: text.to_owned(), score, kind };
        let mut all: Vec<Piece> = Vec::with_capacity(self.vocab());
        for text in CONTROL {
            // As Gemma's file has it: what a person may meet in text is user-defined.
            let kind = match text {
                "<unk>" => Kind::Unknown,
                "<pad>" | "<eos>" | "<bos>" => Kind::Control,
                _ => Kind::UserDefined,
            };
            all.push(piece(text, 0.0, kind));
        }
        all.extend(
            (0..self.unused).map(|i| piece(&format!("<unused{i}>"), 0.0, Kind::UserDefined)),
        );
        all.extend((1..=LINE_ENDS).map(|n| piece(&"\n".repeat(n), 0.0, Kind::UserDefined)));
        all.extend((0..=255u8).map(|b| piece(&format!("<0x{b:02X}>"), 0.0, Kind::Byte)));
        let characters = self.characters.iter().map(char::to_string);
        let learnt = self.merges.iter().cloned().chain(characters);
        all.extend(learnt.enumerate().map(|(i, text)| Piece {
            text,
            score: -(i as f32),
            kind: Kind::Normal,
        }));
        all
    }

    fn model(&self, pieces: &[Piece]) -> Vec<u8> {
        let mut out = Message::default();
        for p in pieces {
            let mut piece = Message::default();
            piece.bytes(1, p.text.as_bytes());
            piece.float(2, p.score);
            piece.number(3, p.kind as u64);
            out.bytes(1, &piece.0);
        }
        let mut trainer = Message::default();
        trainer.number(3, 2); // model_type: BPE
        trainer.number(4, pieces.len() as u64); // vocab_size
        trainer.number(25, 1); // split_digits
        trainer.number(26, 1); // allow_whitespace_only_pieces
        trainer.number(35, 1); // byte_fallback
        let id = |text: &str| CONTROL.iter().position(|c| *c == text).unwrap_or(0) as u64;
        let special = [("<unk>", 40, 45), ("<bos>", 41, 46), ("<eos>", 42, 47), ("<pad>", 43, 48)];
        special.iter().for_each(|(text, number, _)| trainer.number(*number, id(text)));
        special.iter().for_each(|(text, _, name)| trainer.bytes(*name, text.as_bytes()));
        out.bytes(2, &trainer.0);
        let mut normalizer = Message::default();
        normalizer.bytes(1, b"identity");
        normalizer.number(3, 0); // add_dummy_prefix
        normalizer.number(4, 0); // remove_extra_whitespaces
        normalizer.number(5, 1); // escape_whitespaces
        out.bytes(3, &normalizer.0);
        out.0
    }
}

/// A protocol buffer being written.
#[derive(Default)]
struct Message(Vec<u8>);

impl Message {
    fn varint(&mut self, mut n: u64) {
        while n >= 0x80 {
            self.0.push(n as u8 | 0x80);
            n >>= 7;
        }
        self.0.push(n as u8);
    }

    fn number(&mut self, field: u64, n: u64) {
        self.varint(field << 3);
        self.varint(n);
    }

    fn bytes(&mut self, field: u64, bytes: &[u8]) {
        self.varint(field << 3 | 2);
        self.varint(bytes.len() as u64);
        self.0.extend_from_slice(bytes);
    }

    fn float(&mut self, field: u64, x: f32) {
        self.varint(field << 3 | 5);
        self.0.extend_from_slice(&x.to_le_bytes());
    }
}

/// The same vocabulary for `tokenizers`, whose models name pairs instead of scoring pieces.
fn huggingface(pieces: &[Piece]) -> Value {
    let vocab: Map<String, Value> =
        pieces.iter().enumerate().map(|(id, p)| (p.text.clone(), id.into())).collect();
    let added: Vec<Value> = (pieces.iter().enumerate())
        .filter(|(_, p)| !matches!(p.kind, Kind::Normal | Kind::Byte))
        .map(|(id, p)| {
            let special = !p.text.starts_with('\n') && p.text != "<mask>";
            json!({"id": id, "content": p.text, "single_word": false, "lstrip": false,
                   "rstrip": false, "normalized": false, "special": special})
        })
        .collect();
    let bos = json!({"SpecialToken": {"id": "<bos>", "type_id": 0}});
    let sequence = |id: &str| json!({"Sequence": {"id": id, "type_id": 0}});
    json!({
        "version": "1.0",
        "truncation": null,
        "padding": null,
        "added_tokens": added,
        "normalizer": {"type": "Replace", "pattern": {"String": " "}, "content": "▁"},
        "pre_tokenizer": {"type": "Split", "pattern": {"String": " "},
                          "behavior": "MergedWithPrevious", "invert": false},
        "post_processor": {"type": "TemplateProcessing",
            "single": [bos, sequence("A")],
            "pair": [bos, sequence("A"), bos, sequence("B")],
            "special_tokens": {"<bos>": {"id": "<bos>", "ids": [2], "tokens": ["<bos>"]}}},
        "decoder": {"type": "Sequence", "decoders": [
            {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
            {"type": "ByteFallback"}, {"type": "Fuse"}]},
        "model": {"type": "BPE", "dropout": null, "unk_token": "<unk>",
            "continuing_subword_prefix": null, "end_of_word_suffix": null,
            "fuse_unk": true, "byte_fallback": true, "ignore_merges": false,
            "vocab": vocab, "merges": pairs(pieces)},
    })
}

/// Every pair of pieces that makes a third one, the best-scored first: SentencePiece joins any two
/// neighbours that spell a piece.
fn pairs(pieces: &[Piece]) -> Vec<[&str; 2]> {
    let normal = || pieces.iter().filter(|p| p.kind == Kind::Normal);
    let rank: HashMap<&str, usize> =
        normal().enumerate().map(|(rank, p)| (p.text.as_str(), rank)).collect();
    let mut all = Vec::new();
    for whole in normal() {
        let places = whole.text.char_indices().skip(1).map(|(at, _)| whole.text.split_at(at));
        let mut found: Vec<_> =
            places.filter_map(|(a, b)| Some((*rank.get(a)?, *rank.get(b)?, [a, b]))).collect();
        found.sort_unstable_by_key(|(a, b, _)| (*a, *b));
        all.extend(found.into_iter().map(|(_, _, pair)| pair));
    }
    all
}

fn config() -> Value {
    json!({
        "tokenizer_class": "GemmaTokenizer",
        "add_bos_token": true,
        "add_eos_token": false,
        "bos_token": "<bos>",
        "eos_token": "<eos>",
        "pad_token": "<pad>",
        "unk_token": "<unk>",
        "chat_template": TEMPLATE,
    })
}
