//! SentencePiece's `tokenizer.model`: a protocol buffer (`sentencepiece_model.proto`), of which the
//! few fields that a BPE model needs are read.

use super::bpe::Bpe;
use super::decode::Bytes;
use super::hash::Index;
use super::{Kind, Piece, Scheme, SpecialIds, Tokenizer};
use crate::{FormatError, Result};

/// A BPE model in SentencePiece's terms.
pub(super) struct Spm {
    pub pieces: Vec<Piece>,
    pub scores: Vec<f32>,
    pub prefix: bool,
    pub squeeze: bool,
    pub byte_fallback: bool,
    pub special: SpecialIds,
}

impl Spm {
    pub(super) fn build(self, file: &str) -> Result<Tokenizer> {
        let mut bpe = Bpe::new(false);
        bpe.byte_fallback = true;
        bpe.unk = self.special.unk;
        let mergeable = |k: Kind| matches!(k, Kind::Normal | Kind::UserDefined | Kind::Unused);
        // Of pieces that stand twice the last one counts.
        let count = self.pieces.len();
        let text = |id: u32| &*self.pieces[id as usize].text;
        let known = (0..count as u32).rev().filter(|id| mergeable(self.pieces[*id as usize].kind));
        let ids = Index::new(count, known, text);
        bpe.reserve(2 * count);
        for (i, piece) in self.pieces.iter().enumerate() {
            let id = i as u32;
            match piece.kind {
                Kind::Byte(b) => bpe.bytes[b as usize] = id,
                kind if mergeable(kind) => {
                    if kind == Kind::Unused {
                        bpe.unused.insert(u64::from(id), ());
                    }
                    let mut chars = piece.text.chars();
                    match (chars.next(), chars.next()) {
                        (Some(c), None) => bpe.add_char(c, id),
                        // User-defined pieces are matched, never merged into.
                        _ if kind == Kind::UserDefined => {}
                        _ => bpe.add_splits(&piece.text, id, self.scores[i], |s| ids.get(s, text)),
                    }
                }
                _ => {}
            }
        }
        let scheme =
            Scheme::Spaces { prefix: self.prefix, squeeze: self.squeeze, bytes: Bytes::Singly };
        Tokenizer::new(file, self.pieces, bpe, scheme, self.special)
    }
}

/// The byte of a piece such as `<0x0A>`.
pub(super) fn byte_of(piece: &str) -> Option<u8> {
    let hex = piece.strip_prefix("<0x")?.strip_suffix('>')?;
    (hex.len() == 2).then(|| u8::from_str_radix(hex, 16).ok()).flatten()
}

/// A value of a protocol buffer.
enum Field<'a> {
    Number(u64),
    Bytes(&'a [u8]),
    Fixed32(u32),
}

/// Reads fields one after the other; `None` at the end.
struct Reader<'a> {
    rest: &'a [u8],
    file: &'a str,
    whole: usize,
}

impl<'a> Reader<'a> {
    fn new(bytes: &'a [u8], file: &'a str) -> Self {
        Self { rest: bytes, file, whole: bytes.len() }
    }

    fn wrong<T>(&self, problem: &str) -> Result<T> {
        let at = self.whole - self.rest.len();
        Err(FormatError::new(self.file, format!("byte {at} of a message"), problem))
    }

    fn varint(&mut self) -> Result<u64> {
        let mut value = 0u64;
        for i in 0..10 {
            let Some((&b, rest)) = self.rest.split_first() else {
                return self.wrong("the file ends inside a number");
            };
            self.rest = rest;
            value |= u64::from(b & 0x7f) << (7 * i).min(63);
            if b & 0x80 == 0 {
                return Ok(value);
            }
        }
        self.wrong("a number of more than ten bytes")
    }

    fn take(&mut self, n: u64) -> Result<&'a [u8]> {
        let split = usize::try_from(n).ok().and_then(|n| self.rest.split_at_checked(n));
        let Some((head, rest)) = split else {
            return self.wrong("a field is longer than the file (not a SentencePiece model?)");
        };
        self.rest = rest;
        Ok(head)
    }

    /// The next field's number and value.
    fn next(&mut self) -> Result<Option<(u64, Field<'a>)>> {
        if self.rest.is_empty() {
            return Ok(None);
        }
        let key = self.varint()?;
        let field = match key & 7 {
            0 => Field::Number(self.varint()?),
            1 => {
                self.take(8)?;
                Field::Number(0)
            }
            2 => {
                let n = self.varint()?;
                Field::Bytes(self.take(n)?)
            }
            5 => {
                let b = self.take(4)?;
                Field::Fixed32(u32::from_le_bytes([b[0], b[1], b[2], b[3]]))
            }
            _ => return self.wrong("an unknown kind of field (not a SentencePiece model?)"),
        };
        Ok(Some((key >> 3, field)))
    }
}

/// What trainer_spec and normalizer_spec say.
struct Specs {
    model_type: u64,
    byte_fallback: bool,
    prefix: bool,
    squeeze: bool,
    escape: bool,
    charsmap: usize,
    /// unk, bos, eos, pad; -1 means none.
    ids: [i64; 4],
}

pub(super) fn load(bytes: &[u8], file: &str) -> Result<Tokenizer> {
    let spm = parse(bytes, file)?;
    let byte_fallback = spm.byte_fallback;
    let mut tokenizer = spm.build(file)?;
    tokenizer.bpe.byte_fallback = byte_fallback;
    tokenizer.set_added(true, false);
    Ok(tokenizer)
}

/// Reads the parts of a `tokenizer.model`.
pub(super) fn parse(bytes: &[u8], file: &str) -> Result<Spm> {
    let mut specs = Specs {
        model_type: 1,
        byte_fallback: false,
        prefix: true,
        squeeze: true,
        escape: true,
        charsmap: 0,
        ids: [0, 1, 2, -1],
    };
    let (mut pieces, mut scores) = (Vec::new(), Vec::new());
    let mut reader = Reader::new(bytes, file);
    while let Some((number, field)) = reader.next()? {
        let Field::Bytes(part) = field else { continue };
        match number {
            1 => {
                let (piece, score) = piece(part, file, pieces.len())?;
                pieces.push(piece);
                scores.push(score);
            }
            2 => trainer_spec(part, file, &mut specs)?,
            3 => normalizer_spec(part, file, &mut specs)?,
            _ => {}
        }
    }
    let wrong = |field: &str, problem: &str| Err(FormatError::new(file, field, problem));
    if specs.model_type != 2 {
        let kind = ["", "a unigram", "a BPE", "a word", "a character"];
        let found = kind.get(specs.model_type as usize).unwrap_or(&"an unknown");
        let problem = format!("{found} model; BPE models are supported");
        return wrong("trainer_spec.model_type", &problem);
    }
    if specs.charsmap > 0 {
        return wrong(
            "normalizer_spec.precompiled_charsmap",
            "rules that rewrite characters are not supported",
        );
    }
    if !specs.escape {
        return wrong("normalizer_spec.escape_whitespaces", "false is not supported");
    }
    let id = |i: usize| u32::try_from(specs.ids[i]).ok().filter(|id| (*id as usize) < pieces.len());
    let special = SpecialIds { unk: id(0), bos: id(1), eos: id(2), pad: id(3) };
    Ok(Spm {
        pieces,
        scores,
        prefix: specs.prefix,
        squeeze: specs.squeeze,
        byte_fallback: specs.byte_fallback,
        special,
    })
}

fn piece(bytes: &[u8], file: &str, index: usize) -> Result<(Piece, f32)> {
    let name = format!("piece {index}");
    let (mut text, mut score, mut kind) = ("", 0.0, 1);
    let mut reader = Reader::new(bytes, file);
    while let Some((number, field)) = reader.next()? {
        match (number, field) {
            (1, Field::Bytes(b)) => {
                text = std::str::from_utf8(b)
                    .map_err(|_| FormatError::new(file, &name, "its text is not UTF-8"))?;
            }
            (2, Field::Fixed32(bits)) => score = f32::from_bits(bits),
            (3, Field::Number(n)) => kind = n,
            _ => {}
        }
    }
    if score.is_nan() {
        return Err(FormatError::new(file, name, "its score is NaN"));
    }
    let kind = match kind {
        1 => Kind::Normal,
        2 => Kind::Unknown,
        3 => Kind::Control,
        4 => Kind::UserDefined,
        5 => Kind::Unused,
        6 => match byte_of(text) {
            Some(b) => Kind::Byte(b),
            None => return Err(FormatError::new(file, name, "a byte piece that names no byte")),
        },
        other => {
            let problem = format!("type {other}; 1 to 6 were expected");
            return Err(FormatError::new(file, name, problem));
        }
    };
    Ok((Piece::new(text, kind), score))
}

fn trainer_spec(bytes: &[u8], file: &str, specs: &mut Specs) -> Result<()> {
    let mut reader = Reader::new(bytes, file);
    while let Some((number, field)) = reader.next()? {
        if let Field::Number(n) = field {
            match number {
                3 => specs.model_type = n,
                35 => specs.byte_fallback = n != 0,
                // Negative int32s are written as 64 bits.
                40..=43 => specs.ids[number as usize - 40] = n as i64,
                _ => {}
            }
        }
    }
    Ok(())
}

fn normalizer_spec(bytes: &[u8], file: &str, specs: &mut Specs) -> Result<()> {
    let mut reader = Reader::new(bytes, file);
    while let Some((number, field)) = reader.next()? {
        match (number, field) {
            (2, Field::Bytes(b)) => specs.charsmap = b.len(),
            (3, Field::Number(n)) => specs.prefix = n != 0,
            (4, Field::Number(n)) => specs.squeeze = n != 0,
            (5, Field::Number(n)) => specs.escape = n != 0,
            _ => {}
        }
    }
    Ok(())
}
