//! Text to token ids and back: SentencePiece BPE (Gemma, Llama 2) and byte-level BPE (GPT-2), from
//! `tokenizer.json`, `tokenizer.model`, `vocab.json` with `merges.txt`, or a GGUF vocabulary.
//!
//! A control token that is spelt in a text is text, unless the caller asks for it to be parsed.

mod bpe;
mod bytelevel;
mod decode;
mod gguf;
mod hash;
mod huggingface;
mod sentencepiece;
mod trie;

use crate::{FormatError, Result};
use bpe::Bpe;
pub use decode::Detokenizer;
pub use gguf::GgufVocab;
use hash::Index;
use std::ops::Range;
use std::path::Path;
use trie::Trie;

/// What a piece of the vocabulary is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Normal,
    Unknown,
    Control,
    /// Matched as a whole before anything is merged.
    UserDefined,
    Unused,
    Byte(u8),
}

/// One entry of the vocabulary.
#[derive(Debug, Clone)]
pub(crate) struct Piece {
    pub text: Box<str>,
    pub kind: Kind,
    /// White space before it is taken in.
    pub lstrip: bool,
    /// White space behind it is taken in.
    pub rstrip: bool,
}

impl Piece {
    pub(crate) fn new(text: impl Into<Box<str>>, kind: Kind) -> Self {
        Self { text: text.into(), kind, lstrip: false, rstrip: false }
    }
}

/// How text becomes what is merged, and how pieces become text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Scheme {
    /// Spaces are written `▁`.
    Spaces {
        /// A space is put before each stretch of text.
        prefix: bool,
        /// Runs of spaces count as one, and those at the ends as none.
        squeeze: bool,
        /// How bytes that are no UTF-8 come out; see [`decode`].
        bytes: decode::Bytes,
    },
    /// Bytes are written as printable characters; words are split by GPT-2's pattern.
    ByteLevel {
        /// A space is put before the text.
        prefix: bool,
        /// Whether the pattern splits words at all.
        words: bool,
        /// Each digit is a word of its own.
        digits: bool,
    },
}

/// What [`Tokenizer::encode`] does beyond the text itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Encode {
    /// Add the tokens that a text begins and ends with.
    pub add_special: bool,
    /// Turn control tokens that the text spells into those tokens.
    pub parse_special: bool,
}

/// A vocabulary and the rules of its use.
#[derive(Debug, Clone)]
pub struct Tokenizer {
    pieces: Vec<Piece>,
    ids: Index,
    bpe: Bpe,
    scheme: Scheme,
    /// Pieces that are matched as a whole in any text.
    user_defined: Trie,
    /// Control tokens.
    control: Trie,
    /// What [`Encode::add_special`] adds before and after.
    before: Vec<u32>,
    after: Vec<u32>,
    special: SpecialIds,
}

/// Ids with a role.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct SpecialIds {
    pub bos: Option<u32>,
    pub eos: Option<u32>,
    pub unk: Option<u32>,
    pub pad: Option<u32>,
}

/// Turn and media markers that some vocabularies declare as ordinary user-defined pieces: what a
/// person writes must not become one of them.
const MARKERS: [&str; 17] = [
    "<start_of_turn>",
    "<end_of_turn>",
    "<start_of_image>",
    "<end_of_image>",
    "<image_soft_token>",
    "<|turn>",
    "<turn|>",
    "<|channel>",
    "<channel|>",
    "<|think|>",
    "<|image|>",
    "<|audio|>",
    "<|tool_call>",
    "<tool_call|>",
    "<|tool_response>",
    "<tool_response|>",
    "<|\"|>",
];

/// Entries of a vocabulary; far above any published one.
const MAX_PIECES: usize = 1 << 22;

impl Tokenizer {
    /// Puts the parts together; the matched pieces are found by their kinds.
    pub(crate) fn new(
        file: &str,
        mut pieces: Vec<Piece>,
        bpe: Bpe,
        scheme: Scheme,
        special: SpecialIds,
    ) -> Result<Self> {
        if pieces.is_empty() || pieces.len() > MAX_PIECES {
            let problem = format!("{} pieces; 1 to {MAX_PIECES} were expected", pieces.len());
            return Err(FormatError::new(file, "vocabulary", problem));
        }
        for id in [special.bos, special.eos, special.unk, special.pad].into_iter().flatten() {
            if id as usize >= pieces.len() {
                let problem = format!("{id} is not below the {} pieces", pieces.len());
                return Err(FormatError::new(file, "special token id", problem));
            }
        }
        let (mut user_defined, mut control) = (Trie::default(), Trie::default());
        for (id, piece) in pieces.iter_mut().enumerate() {
            let id = id as u32;
            if piece.kind == Kind::UserDefined && MARKERS.contains(&&*piece.text) {
                piece.kind = Kind::Control;
            }
            match piece.kind {
                Kind::UserDefined => user_defined.insert(piece.text.as_bytes(), id),
                Kind::Control | Kind::Unknown => control.insert(piece.text.as_bytes(), id),
                _ => {}
            }
        }
        let count = pieces.len();
        let ids = Index::new(count, 0..count as u32, |id| &pieces[id as usize].text);
        let (before, after) = (Vec::new(), Vec::new());
        Ok(Self { pieces, ids, bpe, scheme, user_defined, control, before, after, special })
    }

    /// The tokenizer of a Hugging Face directory: `tokenizer.json`, else `tokenizer.model`, else
    /// `vocab.json` with `merges.txt` (or `encoder.json` with `vocab.bpe`), with what
    /// `tokenizer_config.json` says of special tokens.
    ///
    /// # Errors
    /// If there is none, or it is damaged or unsupported.
    pub fn from_dir(dir: &Path) -> Result<Self> {
        huggingface::from_dir(dir)
    }

    /// A `tokenizer.json`.
    ///
    /// # Errors
    /// If it is damaged, or uses a component that is not supported; the error names it.
    pub fn from_json(bytes: &[u8], file: &str) -> Result<Self> {
        huggingface::from_json(bytes, file)
    }

    /// A SentencePiece `tokenizer.model`.
    ///
    /// # Errors
    /// If it is damaged or not a BPE model.
    pub fn from_sentencepiece(bytes: &[u8], file: &str) -> Result<Self> {
        sentencepiece::load(bytes, file)
    }

    /// GPT-2's `vocab.json` and `merges.txt`.
    ///
    /// # Errors
    /// If they are damaged.
    pub fn from_vocab_and_merges(vocab: &[u8], merges: &str, file: &str) -> Result<Self> {
        huggingface::from_vocab_and_merges(vocab, merges, file)
    }

    /// The vocabulary of a GGUF file.
    ///
    /// # Errors
    /// If its parts disagree, or the model is not supported.
    pub fn from_gguf(vocab: GgufVocab, file: &str) -> Result<Self> {
        gguf::load(vocab, file)
    }

    /// The tokens of `text`.
    pub fn encode(&self, text: &str, options: Encode) -> Vec<u32> {
        self.encode_with_literals(text, options, &[])
    }

    /// As [`Tokenizer::encode`]; control tokens that overlap a range of `literal` stay text.
    pub fn encode_with_literals(
        &self,
        text: &str,
        options: Encode,
        literal: &[Range<usize>],
    ) -> Vec<u32> {
        let mut out = Vec::with_capacity(text.len() / 3 + 2);
        if options.add_special {
            out.extend(&self.before);
        }
        let (mut start, mut at) = (0, 0);
        // SentencePiece looks for user-defined pieces in normalised text, spaces and all.
        let whole_pieces = self.matches_before_normalising();
        while at < text.len() {
            let mut found =
                if whole_pieces { self.user_defined.longest(&text.as_bytes()[at..]) } else { None };
            if options.parse_special
                && let Some((len, id)) = self.control.longest(&text.as_bytes()[at..])
                && found.is_none_or(|(l, _)| len >= l)
                && !literal.iter().any(|r| r.start < at + len && at < r.end)
            {
                found = Some((len, id));
            }
            let Some((len, id)) = found else {
                at += text[at..].chars().next().map_or(1, char::len_utf8);
                continue;
            };
            let piece = &self.pieces[id as usize];
            let mut stretch = &text[start..at];
            if piece.lstrip {
                stretch = stretch.trim_end();
            }
            self.encode_stretch(stretch, start == 0, &mut out);
            out.push(id);
            at += len;
            if piece.rstrip {
                at += text[at..].len() - text[at..].trim_start().len();
            }
            start = at;
        }
        self.encode_stretch(&text[start..], start == 0, &mut out);
        if options.add_special {
            out.extend(&self.after);
        }
        out
    }

    fn matches_before_normalising(&self) -> bool {
        !matches!(self.scheme, Scheme::Spaces { bytes: decode::Bytes::Singly, .. })
    }

    /// Text between matched pieces; `first`: nothing stands before it.
    fn encode_stretch(&self, text: &str, first: bool, out: &mut Vec<u32>) {
        if text.is_empty() {
            return;
        }
        match &self.scheme {
            Scheme::Spaces { prefix, squeeze, .. } => {
                let normal = self.normalise(text, *prefix, *squeeze);
                if self.matches_before_normalising() {
                    self.bpe.encode(&normal, out);
                } else {
                    self.encode_around_user_defined(&normal, out);
                }
            }
            Scheme::ByteLevel { prefix, words, digits } => {
                let spaced;
                let text = if *prefix && first && !text.starts_with(char::is_whitespace) {
                    spaced = format!(" {text}");
                    &spaced
                } else {
                    text
                };
                if !words && !digits {
                    return self.bpe.encode(text, out);
                }
                bytelevel::split(text, *words, *digits, |word| self.bpe.encode(word, out));
            }
        }
    }

    fn normalise(&self, text: &str, prefix: bool, squeeze: bool) -> String {
        let mut normal = String::with_capacity(text.len() + 8);
        let text = if squeeze { text.trim_matches(' ') } else { text };
        if prefix && !text.is_empty() {
            normal.push('▁');
        }
        let mut space = false;
        for c in text.chars() {
            if c == ' ' && !(squeeze && space) {
                normal.push('▁');
            } else if c != ' ' {
                normal.push(c);
            }
            space = c == ' ';
        }
        normal
    }

    fn encode_around_user_defined(&self, normal: &str, out: &mut Vec<u32>) {
        let (mut start, mut at) = (0, 0);
        while at < normal.len() {
            match self.user_defined.longest(&normal.as_bytes()[at..]) {
                Some((len, id)) => {
                    self.bpe.encode(&normal[start..at], out);
                    out.push(id);
                    at += len;
                    start = at;
                }
                None => at += normal[at..].chars().next().map_or(1, char::len_utf8),
            }
        }
        self.bpe.encode(&normal[start..], out);
    }

    /// The text of `ids`; unknown ids give nothing. With `skip_special`, control tokens give
    /// nothing either.
    pub fn decode(&self, ids: &[u32], skip_special: bool) -> String {
        let mut words = Detokenizer::new(self, skip_special);
        let mut text = String::new();
        for id in ids {
            words.push_to(*id, &mut text);
        }
        text + &words.finish()
    }

    /// The bytes that a token stands for, whatever comes before and after it.
    pub fn token_bytes(&self, id: u32) -> Vec<u8> {
        let Some(piece) = self.pieces.get(id as usize) else { return Vec::new() };
        match (&self.scheme, piece.kind) {
            (_, Kind::Byte(b)) => vec![b],
            (Scheme::ByteLevel { .. }, Kind::Normal | Kind::Unused) => {
                bytelevel::to_bytes(&piece.text)
            }
            (Scheme::Spaces { .. }, Kind::Normal | Kind::UserDefined | Kind::Unused) => {
                piece.text.replace('▁', " ").into_bytes()
            }
            _ => piece.text.as_bytes().to_vec(),
        }
    }

    /// A token as the vocabulary writes it.
    pub fn piece(&self, id: u32) -> Option<&str> {
        self.pieces.get(id as usize).map(|p| &*p.text)
    }

    /// The token of a piece.
    pub fn id_of(&self, piece: &str) -> Option<u32> {
        self.ids.get(piece, |id| &self.pieces[id as usize].text)
    }

    /// Entries of the vocabulary.
    pub fn vocab_size(&self) -> usize {
        self.pieces.len()
    }

    /// The token that begins a text.
    pub fn bos(&self) -> Option<u32> {
        self.special.bos
    }

    /// The token that ends a text.
    pub fn eos(&self) -> Option<u32> {
        self.special.eos
    }

    /// The token of what the vocabulary can't say.
    pub fn unk(&self) -> Option<u32> {
        self.special.unk
    }

    /// The token that fills up batches.
    pub fn pad(&self) -> Option<u32> {
        self.special.pad
    }

    /// Whether a token is for control and not for text.
    pub fn is_control(&self, id: u32) -> bool {
        let kind = self.pieces.get(id as usize).map(|p| p.kind);
        matches!(kind, Some(Kind::Control | Kind::Unknown))
    }

    /// The spellings of all control tokens.
    pub fn control_pieces(&self) -> impl Iterator<Item = &str> {
        let control = |p: &&Piece| matches!(p.kind, Kind::Control | Kind::Unknown);
        self.pieces.iter().filter(control).map(|p| &*p.text)
    }

    /// Whether a text begins with BOS by itself.
    pub fn add_bos(&self) -> bool {
        self.special.bos.is_some() && self.before.first().copied() == self.special.bos
    }

    /// Sets which of BOS and EOS [`Encode::add_special`] adds.
    pub(crate) fn set_added(&mut self, bos: bool, eos: bool) {
        self.before = self.special.bos.filter(|_| bos).into_iter().collect();
        self.after = self.special.eos.filter(|_| eos).into_iter().collect();
    }
}
