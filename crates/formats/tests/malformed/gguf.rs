//! Wrong GGUF files, made by a writer of our own that can lie about everything.

use std::path::Path;

use lapidary_formats::gguf::{Metadata, open, read};
use lapidary_formats::{Bytes, Checkpoint, Result};

use crate::scratch::Scratch;
use crate::{Case, HUGE, check_all, refused};

/// A piece of a file: plain bytes, or a count that can be made to lie.
#[derive(Clone)]
pub enum Piece {
    Plain(Vec<u8>),
    Count(u64),
}

use Piece::{Count, Plain};

fn u32_piece(n: u32) -> Piece {
    Plain(n.to_le_bytes().to_vec())
}

fn text(s: &[u8]) -> Vec<Piece> {
    vec![Count(s.len() as u64), Plain(s.to_vec())]
}

#[derive(Clone)]
pub struct Key {
    name: Vec<u8>,
    id: u32,
    value: Vec<Piece>,
}

#[derive(Clone)]
struct Tensor {
    name: Vec<u8>,
    dim_count: u32,
    dims: Vec<u64>,
    id: u32,
    offset: u64,
}

/// Everything that a file says, right or wrong.
#[derive(Clone)]
pub struct Spec {
    magic: [u8; 4],
    version: u32,
    tensor_count: u64,
    key_count: u64,
    keys: Vec<Key>,
    tensors: Vec<Tensor>,
    /// Where the data really starts: a multiple of this.
    alignment: usize,
    data: usize,
}

/// A file, where its parts begin and end, and where its counts are.
pub struct Built {
    pub bytes: Vec<u8>,
    marks: Vec<usize>,
    counts: Vec<usize>,
}

const SIZES: [(u32, usize); 12] = [
    (0, 1),
    (1, 1),
    (2, 2),
    (3, 2),
    (4, 4),
    (5, 4),
    (6, 4),
    (7, 1),
    (10, 8),
    (11, 8),
    (12, 8),
    (8, 0),
];

impl Spec {
    /// A right file: a key of each type, an array of each type, an array of arrays, three tensors.
    pub fn valid() -> Spec {
        let mut keys =
            vec![Key { name: b"general.architecture".into(), id: 8, value: text(b"llama") }];
        for (id, size) in SIZES {
            let one = |n: u8| match id {
                8 => text(&[b'a' + n, b'z']),
                _ => vec![Plain((0..size).map(|i| if i == 0 { n } else { 0 }).collect())],
            };
            keys.push(Key { name: format!("scalar.{id}").into(), id, value: one(1) });
            let mut value = vec![u32_piece(id), Count(2)];
            value.extend(one(0).into_iter().chain(one(1)));
            keys.push(Key { name: format!("array.{id}").into(), id: 9, value });
        }
        let nested = vec![u32_piece(9), Count(1), u32_piece(0), Count(2), Plain(vec![1, 2])];
        keys.push(Key { name: b"array.nested".into(), id: 9, value: nested });
        let tensor = |name: &str, dims: &[u64], id, offset| Tensor {
            name: name.into(),
            dim_count: dims.len() as u32,
            dims: dims.into(),
            id,
            offset,
        };
        let tensors = vec![
            tensor("first", &[4, 2], 0, 0),
            tensor("second", &[32, 2], 8, 32),
            tensor("third", &[2, 2, 2, 1], 1, 128),
        ];
        Spec {
            magic: *b"GGUF",
            version: 3,
            tensor_count: 3,
            key_count: keys.len() as u64,
            keys,
            tensors,
            alignment: 32,
            data: 128 + 16,
        }
    }

    pub fn build(&self) -> Built {
        let mut built = Built { bytes: Vec::new(), marks: Vec::new(), counts: Vec::new() };
        built.put(&Plain(self.magic.into()));
        built.put(&u32_piece(self.version));
        built.put(&Count(self.tensor_count));
        built.put(&Count(self.key_count));
        for key in &self.keys {
            text(&key.name).iter().for_each(|p| built.put(p));
            built.put(&u32_piece(key.id));
            key.value.iter().for_each(|p| built.put(p));
        }
        for tensor in &self.tensors {
            text(&tensor.name).iter().for_each(|p| built.put(p));
            built.put(&u32_piece(tensor.dim_count));
            tensor.dims.iter().for_each(|d| built.put(&Plain(d.to_le_bytes().into())));
            built.put(&u32_piece(tensor.id));
            built.put(&Plain(tensor.offset.to_le_bytes().into()));
        }
        let start = built.bytes.len().next_multiple_of(self.alignment);
        built.marks.extend(self.tensors.iter().map(|t| start.saturating_add(t.offset as usize)));
        built.bytes.resize(start + self.data, 7);
        built
    }

    /// A right file after one change.
    fn with(change: impl Fn(&mut Spec)) -> Vec<u8> {
        let mut spec = Spec::valid();
        change(&mut spec);
        spec.build().bytes
    }

    /// A right file with one more key at the end.
    fn plus_key(name: &[u8], id: u32, value: Vec<Piece>) -> Vec<u8> {
        Spec::with(|s| {
            s.keys.push(Key { name: name.into(), id, value: value.clone() });
            s.key_count += 1;
        })
    }
}

impl Built {
    fn put(&mut self, piece: &Piece) {
        self.marks.push(self.bytes.len());
        match piece {
            Plain(bytes) => self.bytes.extend(bytes),
            Count(n) => {
                self.counts.push(self.bytes.len());
                self.bytes.extend(n.to_le_bytes());
            }
        }
    }
}

pub fn check() -> usize {
    let valid = Spec::valid().build();
    let file = read("bad.bin".into(), Bytes::from(valid.bytes.clone())).unwrap();
    assert_eq!((file.tensors.len(), file.metadata.len()), (3, 26));
    let mut cases = truncated(&valid);
    cases.extend(lying_counts(&valid));
    cases.extend(wrong_headers());
    cases.extend(wrong_keys());
    cases.extend(wrong_tensors());
    check_all(cases, |bytes| read("bad.bin".into(), Bytes::from(bytes)))
}

/// Cut where each part begins, and one byte into it.
fn truncated(valid: &Built) -> Vec<Case> {
    let cuts = valid.marks.iter().flat_map(|m| [*m, m + 1]).chain([valid.bytes.len() - 1]);
    cuts.map(|cut| {
        let bytes = valid.bytes[..cut].to_vec();
        let text = "the file ends at|it is cut or damaged";
        Case::new(&format!("cut at byte {cut}"), bytes, "", text)
    })
    .collect()
}

/// Every count in the file, larger than what follows it can be.
fn lying_counts(valid: &Built) -> Vec<Case> {
    let places = valid.counts.iter().flat_map(|at| HUGE.map(|huge| (*at, huge)));
    places
        .map(|(at, huge)| {
            let mut bytes = valid.bytes.clone();
            bytes[at..at + 8].copy_from_slice(&huge.to_le_bytes());
            Case::new(
                &format!("count {huge} at byte {at}"),
                bytes,
                "",
                &format!("is {huge}, but at most"),
            )
        })
        .collect()
}

fn wrong_headers() -> Vec<Case> {
    let mut cases = vec![Case::new("empty", vec![], "magic", "ends at 0")];
    for magic in [*b"GGUX", *b"FUGG", [0; 4], *b"PK\x03\x04", *b"\x1b[2J"] {
        let bytes = Spec::with(|s| s.magic = magic);
        cases.push(Case::new(&format!("magic {magic:?}"), bytes, "magic", "expected GGUF"));
    }
    for magic in [*b"lmgg", *b"tjgg", *b"fmgg"] {
        let bytes = Spec::with(|s| s.magic = magic);
        cases.push(Case::new(&format!("magic {magic:?}"), bytes, "magic", "before GGUF"));
    }
    for (version, text) in [
        (0, "versions 2 and 3"),
        (1, "convert"),
        (4, "versions 2 and 3"),
        (u32::MAX, "versions 2 and 3"),
        (2u32.swap_bytes(), "big-endian"),
        (3u32.swap_bytes(), "big-endian"),
    ] {
        let bytes = Spec::with(|s| s.version = version);
        cases.push(Case::new(&format!("version {version}"), bytes, "version", text));
    }
    // What follows is then read as something else than it is.
    cases.push(Case::new("a key too few", Spec::with(|s| s.key_count -= 1), "tensor", ""));
    cases.push(Case::new("a key too many", Spec::with(|s| s.key_count += 1), "tensor", ""));
    cases.push(Case::new("a tensor too many", Spec::with(|s| s.tensor_count += 1), "tensor", ""));
    cases
}

fn wrong_keys() -> Vec<Case> {
    let mut cases = Vec::new();
    let scalar = |bytes: &[u8]| vec![Plain(bytes.into())];
    for id in [13, 14, 255, 1 << 31, u32::MAX] {
        let bytes = Spec::plus_key(b"odd", id, scalar(&[0; 8]));
        cases.push(Case::new(&format!("value type {id}"), bytes, "key \"odd\"", "value type is"));
        let value = vec![u32_piece(id), Count(1), Plain(vec![0; 8])];
        let bytes = Spec::plus_key(b"odd", 9, value);
        cases.push(Case::new(
            &format!("element type {id}"),
            bytes,
            "key \"odd\"",
            "element type is",
        ));
    }
    for byte in [2, 7, 255] {
        let bytes = Spec::plus_key(b"flag", 7, scalar(&[byte]));
        cases.push(Case::new("bool", bytes, "key \"flag\"", "bool of 0 or 1"));
        let bytes = Spec::plus_key(b"flags", 9, vec![u32_piece(7), Count(2), Plain(vec![1, byte])]);
        cases.push(Case::new("bools", bytes, "key \"flags\"", "bool of 0 or 1"));
    }
    for bad in [&b"\xff"[..], b"\xc3", b"ok\xed\xa0\x80"] {
        let bytes = Spec::plus_key(b"note", 8, text(bad));
        cases.push(Case::new("UTF-8 in a value", bytes, "key \"note\"", "not valid UTF-8"));
        let bytes = Spec::plus_key(bad, 0, scalar(&[0]));
        cases.push(Case::new("UTF-8 in a key", bytes, "key 26 of 27", "not valid UTF-8"));
        let value = [vec![u32_piece(8), Count(1)], text(bad)].concat();
        let bytes = Spec::plus_key(b"notes", 9, value);
        cases.push(Case::new("UTF-8 in an array", bytes, "key \"notes\"", "not valid UTF-8"));
    }
    cases.push(Case::new(
        "no key",
        Spec::plus_key(b"", 0, scalar(&[0])),
        "key 26 of 27",
        "0 bytes",
    ));
    let long = vec![b'k'; 65536];
    cases.push(Case::new("long key", Spec::plus_key(&long, 0, scalar(&[0])), "key 26", "65536"));
    for i in 0..Spec::valid().keys.len() {
        let name = Spec::valid().keys[i].name.clone();
        let bytes = Spec::plus_key(&name, 0, scalar(&[0]));
        let field = format!("key {:?}", String::from_utf8_lossy(&name));
        cases.push(Case::new("a key twice", bytes, &field, "stands twice"));
    }
    for depth in [9, 100, 20_000] {
        let level = [u32_piece(9), Count(1)];
        let value = std::iter::repeat_n(level, depth).flatten().chain([u32_piece(0), Count(0)]);
        let bytes = Spec::plus_key(b"deep", 9, value.collect());
        cases.push(Case::new(&format!("{depth} deep"), bytes, "key \"deep\"", "deeper than 8"));
    }
    let aligned = |id, value: &[u8]| Spec::plus_key(b"general.alignment", id, scalar(value));
    for n in [0u32, 3, 24, 33, 1 << 21, 1 << 31, u32::MAX] {
        let case = Case::new(
            &format!("alignment {n}"),
            aligned(4, &n.to_le_bytes()),
            "key \"general.alignment\"",
            &format!("found u32 {n}"),
        );
        cases.push(case);
    }
    for (id, value, found) in [
        (5, &[32, 0, 0, 0][..], "i32 32"),
        (10, &[32, 0, 0, 0, 0, 0, 0, 0], "u64 32"),
        (6, &[0, 0, 0, 0x42], "f32 32"),
        (7, &[1], "bool true"),
        (8, &[2, 0, 0, 0, 0, 0, 0, 0, b'3', b'2'], "str \"32\""),
        (9, &[4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0], "array of 0 u32"),
    ] {
        cases.push(Case::new("alignment's type", aligned(id, value), "general.alignment", found));
    }
    cases
}

fn wrong_tensors() -> Vec<Case> {
    let mut cases = Vec::new();
    let mut case = |label: &str, change: &dyn Fn(&mut Tensor), field: &str, text: &str| {
        let bytes = Spec::with(|s| change(&mut s.tensors[1]));
        cases.push(Case::new(label, bytes, field, text));
    };
    let second = "tensor \"second\"";
    for id in [4, 5, 9, 15, 16, 17, 18, 19, 21, 22, 29, 31, 33, 34, 35, 36, 40, 42, 1 << 31] {
        case("type", &|t| t.id = id, second, &format!("type {id} ("));
    }
    case("IQ2_XXS", &|t| t.id = 16, second, "(IQ2_XXS), which Lapidary does not read");
    for count in [5, 6, 1 << 16, 1 << 31, u32::MAX] {
        case("dimensions", &|t| t.dim_count = count, second, &format!("has {count} dimensions"));
    }
    let top = 1u64 << 63;
    for dims in [
        &[top, top][..],
        &[top, 2],
        &[1 << 32, 1 << 32],
        &[1 << 40, 1 << 40, 1 << 40],
        &[0, top, top],
        &[u64::MAX - 31; 4],
    ] {
        let set = |t: &mut Tensor| (t.dims, t.dim_count) = (dims.into(), dims.len() as u32);
        case(&format!("dimensions {dims:?}"), &set, second, "too large");
    }
    for dims in [&[1 << 20, 2][..], &[32, 1 << 50], &[32, 4], &[top]] {
        let set = |t: &mut Tensor| (t.dims, t.dim_count) = (dims.into(), dims.len() as u32);
        case(&format!("dimensions {dims:?}"), &set, second, "go beyond the file's");
    }
    for dims in [&[33, 1][..], &[1, 32], &[16], &[]] {
        let set = |t: &mut Tensor| (t.dims, t.dim_count) = (dims.into(), dims.len() as u32);
        case(&format!("rows {dims:?}"), &set, second, "blocks of 32");
    }
    for offset in [1, 31, 33, u64::MAX, top + 1] {
        case("offset", &|t| t.offset = offset, second, "not a multiple of the alignment 32");
    }
    for offset in [160, 1 << 40, top, u64::MAX - 31] {
        case("offset", &|t| t.offset = offset, second, "go beyond the file's");
    }
    case("overlap", &|t| t.offset = 0, "tensor \"", "overlaps tensor");
    case("overlap", &|t| t.offset = 64, "tensor \"third\"", "overlaps tensor \"second\" by 4");
    case("overlap", &|t| t.dims = vec![32, 3], "tensor \"third\"", "overlaps tensor \"second\"");
    case("a tensor twice", &|t| t.name = b"first".into(), "tensor \"first\"", "stands twice");
    case("no name", &|t| t.name = vec![], "tensor 1 of 3", "0 bytes");
    case("a long name", &|t| t.name = vec![b'n'; 70_000], "tensor 1 of 3", "70000");
    case("UTF-8 in a name", &|t| t.name = vec![0xff], "tensor 1 of 3", "not valid UTF-8");
    case(
        "a name to hurt terminals",
        &|t| (t.name, t.id) = (b"\x1b[2J\r\n".into(), 99),
        "\\u{1b}",
        "99",
    );
    cases.push(Case::new("no data", Spec::with(|s| s.data = 0), "tensor \"first\"", "beyond"));
    cases
}

/// One part of a split model, with one `i8` tensor.
fn part(no: u64, count: u64, tensors: u64, name: &str) -> Spec {
    let number = |name: &str, n: u64| Key {
        name: name.into(),
        id: 10,
        value: vec![Plain(n.to_le_bytes().into())],
    };
    let keys = vec![
        number("split.no", no),
        number("split.count", count),
        number("split.tensors.count", tensors),
    ];
    let tensor = Tensor { name: name.into(), dim_count: 1, dims: vec![4], id: 24, offset: 0 };
    Spec { tensor_count: 1, key_count: 3, keys, tensors: vec![tensor], data: 32, ..Spec::valid() }
}

fn part_name(number: usize) -> String {
    format!("m-{number:05}-of-00003.gguf")
}

/// Writes a right model of three parts, changes one thing, and opens it by its first part.
fn split_case(label: &str, change: impl Fn(&Path), file: &str, field: &str, text: &str) {
    let dir = Scratch::new("split-case");
    for no in 0..3 {
        let bytes = part(no, 3, 3, &format!("t{no}")).build().bytes;
        dir.file(&part_name(no as usize + 1), &bytes);
    }
    let first = dir.path().join(part_name(1));
    assert_eq!(open(&first).unwrap().tensors.len(), 3);
    change(dir.path());
    refused(label, open(&first), file, field, text);
    refused(label, Checkpoint::open(&first), file, field, text);
}

pub fn check_split() -> usize {
    let mut count = 0;
    let mut case = |label: &str, change: &dyn Fn(&Path), file: &str, field: &str, text: &str| {
        split_case(label, change, file, field, text);
        count += 1;
    };
    let replace = |number: usize, spec: Spec| {
        move |dir: &Path| std::fs::write(dir.join(part_name(number)), spec.build().bytes).unwrap()
    };
    for number in [2, 3] {
        let name = part_name(number);
        let missing = format!("is missing: part {number} of 3");
        let no = number as u64 - 1;
        case("missing", &|d| std::fs::remove_file(d.join(&name)).unwrap(), &name, "", &missing);
        let copy = |d: &Path| {
            std::fs::copy(d.join(part_name(1)), d.join(&name)).unwrap();
        };
        case("a copy of the first", &copy, &name, "split.no", "is 0, but");
        case("no", &replace(number, part(7, 3, 3, "x")), &name, "split.no", "is 7, but");
        case(
            "no",
            &replace(number, part(1 << 63, 3, 3, "x")),
            &name,
            "split.no",
            "9223372036854775808",
        );
        case("count", &replace(number, part(no, 4, 3, "x")), &name, "split.count", "is 4, but");
        case("count", &replace(number, part(no, 0, 3, "x")), &name, "split.count", "is 0, but");
        case(
            "twice",
            &replace(number, part(no, 3, 3, "t0")),
            &name,
            "tensor \"t0\"",
            "earlier part",
        );
        let cut = |d: &Path| {
            std::fs::write(d.join(&name), &part(no, 3, 3, "x").build().bytes[..50]).unwrap()
        };
        case("cut", &cut, &name, "", "cut or damaged");
        let other = Spec { keys: vec![], key_count: 0, ..part(no, 3, 3, "x") };
        case("not a part", &replace(number, other), &name, "split.no", "is missing");
        let empty = |d: &Path| std::fs::write(d.join(&name), b"").unwrap();
        case("empty", &empty, &name, "magic", "ends at 0");
        let directory = |d: &Path| {
            std::fs::remove_file(d.join(&name)).unwrap();
            std::fs::create_dir(d.join(&name)).unwrap();
        };
        case("a directory", &directory, &name, "", "is not a file");
    }
    let first = part_name(1);
    case(
        "total",
        &replace(1, part(0, 3, 4, "t0")),
        &first,
        "split.tensors.count",
        "have 3 tensors",
    );
    case(
        "total",
        &replace(1, part(0, 3, u64::MAX, "t0")),
        &first,
        "split.tensors.count",
        "is 1844",
    );
    case("no", &replace(1, part(1, 3, 3, "t0")), &first, "split.no", "is 1, but");
    for n in [2, 4, 65535, 100_000, u64::from(u32::MAX)] {
        let text = format!("is {n}, so its name must end in");
        case("count", &replace(1, part(0, n, 3, "t0")), &first, "split.count", &text);
    }
    case("count", &replace(1, part(0, 1 << 63, 3, "t0")), &first, "split.count", "expected a u32");
    let mut text_count = part(0, 3, 3, "t0");
    text_count.keys[1] = Key { name: b"split.count".into(), id: 8, value: text(b"3") };
    case("count's type", &replace(1, text_count), &first, "split.count", "found str \"3\"");
    count + check_split_names()
}

/// A part must be named as one.
fn check_split_names() -> usize {
    let dir = Scratch::new("split-names");
    let names = [
        "model.gguf",
        "m-1-of-3.gguf",
        "m-00000-of-00003.gguf",
        "m-00004-of-00003.gguf",
        "m-00001-of-00002.gguf",
        "m-+0001-of-00003.gguf",
        "00001-of-00003.gguf",
    ];
    for name in names {
        let path = dir.file(name, &part(0, 3, 3, "t0").build().bytes);
        refused(
            name,
            open(&path),
            name,
            "split.count",
            "its name must end in -00001-of-00003.gguf",
        );
    }
    names.len()
}

/// Every typed access to every key of another type.
pub fn check_types() -> usize {
    let bytes = Spec::valid().build().bytes;
    let metadata = read("bad.bin".into(), Bytes::from(bytes)).unwrap().metadata;
    const INTS: [u32; 8] = [0, 1, 2, 3, 4, 5, 10, 11];
    type Get = fn(&Metadata, &str) -> Result<()>;
    // What asks, what it expects, and the kinds of value that it takes.
    let getters: [(Get, &str, &str, &[u32]); 12] = [
        (|m, k| m.u32(k).map(drop), "u32", "scalar", &INTS),
        (|m, k| m.u64(k).map(drop), "u64", "scalar", &INTS),
        (|m, k| m.i64(k).map(drop), "i64", "scalar", &INTS),
        (|m, k| m.f32(k).map(drop), "f32", "scalar", &[6, 12]),
        (|m, k| m.bool(k).map(drop), "bool", "scalar", &[7]),
        (|m, k| m.str(k).map(drop), "str", "scalar", &[8]),
        (|m, k| m.strs(k).map(drop), "array of str", "array", &[8]),
        (|m, k| m.f32s(k).map(drop), "array of f32", "array", &[6]),
        (|m, k| m.bools(k).map(drop), "array of bool", "array", &[7]),
        (|m, k| m.u32s(k).map(drop), "array of u32", "array", &INTS),
        (|m, k| m.i32s(k).map(drop), "array of i32", "array", &INTS),
        (|m, k| m.ints(k).map(drop), "array of integers", "array", &INTS),
    ];
    let mut count = 0;
    for (get, expected, kind, takes) in getters {
        for (key, value) in metadata.iter() {
            let right = takes.iter().any(|id| key == format!("{kind}.{id}"))
                || (key == "general.architecture" && expected == "str");
            if right {
                get(&metadata, key).unwrap();
                continue;
            }
            let found = format!("found {value}");
            refused(key, get(&metadata, key), "bad.bin", &format!("key {key:?}"), &found);
            refused(key, get(&metadata, key), "bad.bin", "", "expected a");
            count += 1;
        }
        refused("absent", get(&metadata, "absent"), "bad.bin", "key \"absent\"", expected);
        count += 1;
    }
    refused(
        "layers",
        metadata.u32_per_layer("array.4", 3),
        "bad.bin",
        "array.4",
        "3 values, found 2",
    );
    assert_eq!(metadata.u32_per_layer("array.4", 2), Ok(vec![0, 1]));
    assert_eq!(metadata.u32_per_layer("scalar.4", 3), Ok(vec![1; 3]));
    count + 1
}
