//! What is written is read back, and is what the Python packages `gguf` and `safetensors` write.

#[path = "../src/scratch.rs"]
mod scratch;

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use lapidary_formats::gguf::{self, Array, Metadata, Value};
use lapidary_formats::{Bytes, Checkpoint, DType, Source, TensorSpec, TensorView, safetensors};
use scratch::Scratch;

/// Written by Python `gguf` 0.8: keys of many types, an F32 tensor [2, 3] counting from 0, and a
/// Q8_0 tensor [2, 32] of 0 to 63.
const GGUF: &str = "\
474755460300000002000000000000000c00000000000000140000000000000067656e6572616c2e617263686974656374757265080000000500000000000000\
6c6c616d6105000000000000006b2e753332040000000700000004000000000000006b2e693801000000fd05000000000000006b2e663332060000000000003f\
06000000000000006b2e626f6f6c070000000105000000000000006b2e73747208000000060000000000000068c3a96c6c6f06000000000000006b2e73747273\
0900000008000000030000000000000001000000000000006102000000000000006263000000000000000006000000000000006b2e696e747309000000050000\
00030000000000000001000000feffffff0300000006000000000000006b2e66333273090000000600000002000000000000000000003f0000c03f0500000000\
0000006b2e7536340a000000000000000001000005000000000000006b2e6636340c0000009a9999999999b93f06000000000000006b2e6e6573740900000009\
000000020000000000000005000000020000000000000001000000020000000500000001000000000000000300000008000000000000006d2e77656967687402\
000000030000000000000002000000000000000000000000000000000000000800000000000000712e7765696768740200000020000000000000000200000000\
0000000800000020000000000000000000000000000000000000000000000000000000000000803f0000004000004040000080400000a0400000000000000000\
d0330004080c1014191d2125292d3135393d42464a4e52565a5e62666b6f73777b7ff03741434547494b4d4f51535557595b5d5f61636567696b6d6f71737577\
797b7d7f00000000000000000000000000000000000000000000000000000000";

/// Written by Python `safetensors`: its header, and the data below.
const SAFETENSORS_HEADER: &str = "{\"__metadata__\":{\"format\":\"pt\"},\
\"n\":{\"dtype\":\"I64\",\"shape\":[],\"data_offsets\":[0,8]},\
\"a\":{\"dtype\":\"F32\",\"shape\":[2,3],\"data_offsets\":[8,32]},\
\"b.c\":{\"dtype\":\"F16\",\"shape\":[2],\"data_offsets\":[32,36]},\
\"e\":{\"dtype\":\"U8\",\"shape\":[0,4],\"data_offsets\":[36,36]}}   ";
const SAFETENSORS_DATA: &str =
    "07000000000000000000803f0000004000004040000080400000a0400000c040003e00c0";

fn unhex(hex: &str) -> Vec<u8> {
    (0..hex.len()).step_by(2).map(|i| u8::from_str_radix(&hex[i..i + 2], 16).unwrap()).collect()
}

fn python_safetensors() -> Vec<u8> {
    let mut bytes = (SAFETENSORS_HEADER.len() as u64).to_le_bytes().to_vec();
    bytes.extend(SAFETENSORS_HEADER.as_bytes());
    bytes.extend(unhex(SAFETENSORS_DATA));
    bytes
}

fn floats(tensor: &TensorView) -> Vec<f32> {
    tensor.bytes.as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)).collect()
}

fn specs<'a>(tensors: impl Iterator<Item = &'a TensorView>) -> Vec<TensorSpec> {
    tensors.map(|t| TensorSpec::new(&*t.name, t.dtype, t.shape.clone())).collect()
}

#[test]
fn reads_what_python_gguf_writes() {
    let file = gguf::read("py.gguf".into(), Bytes::from(unhex(GGUF))).unwrap();
    assert_eq!(file.version, 3);
    let m = &file.metadata;
    assert_eq!((m.str("general.architecture"), m.u32("k.u32")), (Ok("llama"), Ok(7)));
    assert_eq!((m.i64("k.i8"), m.f32("k.f32"), m.bool("k.bool")), (Ok(-3), Ok(0.5), Ok(true)));
    assert_eq!((m.str("k.str"), m.u64("k.u64")), (Ok("héllo"), Ok(1 << 40)));
    assert_eq!(m.strs("k.strs").unwrap(), ["a", "bc", ""]);
    assert_eq!((m.i32s("k.ints"), m.ints("k.ints")), (Ok(vec![1, -2, 3]), Ok(vec![1, -2, 3])));
    assert_eq!(m.f32s("k.f32s").unwrap(), [0.5, 1.5]);
    assert_eq!(m.get("k.f64"), Some(&Value::F64(0.1)));
    let nested = Array::Array(vec![Array::I32(vec![1, 2]), Array::I32(vec![3])]);
    assert_eq!(m.get("k.nest"), Some(&Value::Array(nested)));
    assert_eq!((m.len(), m.opt_u32("absent")), (12, Ok(None)));

    let [plain, quantised] = &file.tensors[..] else { panic!("{:?}", file.tensors) };
    assert_eq!(
        (&*plain.name, plain.dtype, &plain.shape[..]),
        ("m.weight", DType::F32, &[2, 3][..])
    );
    assert_eq!(floats(plain), [0.0, 1.0, 2.0, 3.0, 4.0, 5.0]);
    assert_eq!((quantised.dtype, &quantised.shape[..]), (DType::Q8_0, &[2, 32][..]));
    // The largest of each row of 32 is stored as 127.
    assert_eq!((quantised.bytes[33], quantised.bytes[67], quantised.bytes.len()), (127, 127, 68));
}

#[test]
fn writes_gguf_as_python_does() {
    let dir = Scratch::new("gguf-python");
    let path = dir.path().join("out.gguf");
    let python = unhex(GGUF);
    let file = gguf::read("py.gguf".into(), Bytes::from(python.clone())).unwrap();
    let specs = specs(file.tensors.iter());
    let mut writer = gguf::create(&path, &file.metadata, &specs).unwrap();
    // In another order than declared, and in pieces.
    for tensor in file.tensors.iter().rev() {
        for piece in tensor.bytes.chunks(7) {
            writer.write(&tensor.name, piece).unwrap();
        }
    }
    assert!(!path.exists(), "the file must appear only when it is whole");
    writer.finish().unwrap();
    assert_eq!(fs::read(&path).unwrap(), python);
}

#[test]
fn reads_and_writes_safetensors_as_python_does() {
    let python = python_safetensors();
    let file = safetensors::read("py".into(), Bytes::from(python.clone())).unwrap();
    assert_eq!(file.metadata, [("format".to_string(), "pt".to_string())]);
    let names: Vec<&str> = file.tensors.iter().map(|t| &*t.name).collect();
    assert_eq!(names, ["n", "a", "b.c", "e"]);
    assert_eq!(floats(&file.tensors[1]), [1.0, 2.0, 3.0, 4.0, 5.0, 6.0]);
    assert_eq!((file.tensors[0].shape.len(), file.tensors[0].elements()), (0, 1));
    assert_eq!((&file.tensors[3].shape[..], file.tensors[3].bytes.len()), (&[0, 4][..], 0));

    let dir = Scratch::new("safetensors-python");
    let path = dir.path().join("out.safetensors");
    let specs = specs(file.tensors.iter().rev());
    let metadata: BTreeMap<String, String> = file.metadata.iter().cloned().collect();
    let mut writer = safetensors::create(&path, &specs, &metadata).unwrap();
    for tensor in file.tensors.iter().rev() {
        writer.write(&tensor.name, &tensor.bytes).unwrap();
    }
    writer.finish().unwrap();
    assert_eq!(fs::read(&path).unwrap(), python);
}

#[test]
fn every_type_survives_both_formats() {
    let dir = Scratch::new("every-type");
    let all: Vec<TensorSpec> =
        DType::ALL.iter().map(|d| TensorSpec::new(d.name(), *d, [3, 512])).collect();
    let fill = |t: &TensorSpec| -> Vec<u8> {
        let len = t.dtype.bytes_for(&t.shape).unwrap();
        (0..len).map(|i| (i * 31 + t.name.len()) as u8).collect()
    };
    let (plain, quantised) = (dir.path().join("a.safetensors"), dir.path().join("a.gguf"));
    let in_safetensors: Vec<_> = all.iter().filter(|t| !t.dtype.is_quantised()).cloned().collect();
    let in_gguf: Vec<_> = all.iter().filter(|t| t.dtype.ggml_id().is_some()).cloned().collect();
    let mut metadata = Metadata::new("new");
    metadata.insert("general.alignment", 4096u32).unwrap();
    let mut writers = [
        (safetensors::create(&plain, &in_safetensors, &BTreeMap::new()).unwrap(), &in_safetensors),
        (gguf::create(&quantised, &metadata, &in_gguf).unwrap(), &in_gguf),
    ];
    for (writer, tensors) in &mut writers {
        tensors.iter().for_each(|t| writer.write(&t.name, &fill(t)).unwrap());
    }
    writers.into_iter().for_each(|(writer, _)| writer.finish().unwrap());

    let safetensors = safetensors::open(&plain).unwrap().tensors;
    let gguf = gguf::open(&quantised).unwrap().tensors;
    assert_eq!((safetensors.len(), gguf.len()), (15, 21));
    for tensor in safetensors.iter().chain(&gguf) {
        let spec = all.iter().find(|t| *t.name == *tensor.name).unwrap();
        assert_eq!((tensor.dtype, &tensor.shape), (spec.dtype, &spec.shape));
        assert_eq!(tensor.bytes[..], fill(spec), "{}", spec.name);
    }
    let start = gguf[0].bytes.as_ptr() as usize;
    assert!(gguf.iter().all(|t| (t.bytes.as_ptr() as usize - start).is_multiple_of(4096)));
}

#[test]
fn the_writer_refuses_what_it_cannot_keep() {
    let dir = Scratch::new("refuses");
    let path = dir.path().join("x.bin");
    let gguf = |t: &[TensorSpec]| gguf::create(&path, &Metadata::new("m"), t).map(|_| ());
    let safe = |t: &[TensorSpec]| safetensors::create(&path, t, &BTreeMap::new()).map(|_| ());
    let w = |name: &str, d, shape: &[usize]| TensorSpec::new(name, d, shape);
    let cases = [
        (safe(&[w("q", DType::Q8_0, &[32])]), "write a GGUF file"),
        (gguf(&[w("q", DType::Q8_0, &[33])]), "blocks of 32"),
        (gguf(&[w("u", DType::U64, &[1])]), "no place in GGUF"),
        (gguf(&[w("d", DType::F32, &[1; 5])]), "5 dimensions"),
        (gguf(&[w(&"n".repeat(64), DType::F32, &[1])]), "1 to 63 bytes"),
        (gguf(&[w("", DType::F32, &[1])]), "1 to 63 bytes"),
        (gguf(&[w("t", DType::F32, &[1]), w("t", DType::F32, &[1])]), "declared twice"),
        (safe(&[w("t", DType::F32, &[1]), w("t", DType::F32, &[1])]), "declared twice"),
        (safe(&[w("__metadata__", DType::F32, &[1])]), "__metadata__"),
        (safe(&[w("l", DType::F32, &[usize::MAX, 2])]), "too large"),
    ];
    for (result, text) in cases {
        let error = result.unwrap_err().to_string();
        assert!(error.contains("x.bin: tensor ") && error.contains(text), "{error}");
    }
    let two = [w("a", DType::F32, &[2]), w("b", DType::F32, &[1])];
    let mut writer = gguf::create(&path, &Metadata::new("m"), &two).unwrap();
    assert!(writer.write("c", &[0]).unwrap_err().to_string().contains("not declared"));
    assert!(writer.write("b", &[0; 5]).unwrap_err().to_string().contains("given 5"));
    writer.write("a", &[0; 8]).unwrap();
    writer.write("b", &[0; 3]).unwrap();
    let error = writer.finish().unwrap_err().to_string();
    assert!(error.contains("\"b\": has 4 bytes and was given only 3"), "{error}");
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0, "a file was left");
}

/// Three parts of one tensor each, in the form of llama.cpp's gguf-split.
fn write_split(dir: &Path) {
    for no in 0..3u16 {
        let mut m = Metadata::new("part");
        if no == 0 {
            m.insert("general.architecture", "llama").unwrap();
            m.insert("general.license", "apache-2.0").unwrap();
        }
        m.insert("split.no", no).unwrap();
        m.insert("split.count", 3u16).unwrap();
        m.insert("split.tensors.count", 3i32).unwrap();
        let path = dir.join(format!("m-{:05}-of-00003.gguf", no + 1));
        let spec = [TensorSpec::new(format!("t{no}"), DType::I8, [4])];
        let mut writer = gguf::create(&path, &m, &spec).unwrap();
        writer.write(&spec[0].name, &[no as u8; 4]).unwrap();
        writer.finish().unwrap();
    }
}

#[test]
fn a_split_model_opens_from_any_part_and_from_its_directory() {
    let dir = Scratch::new("split");
    write_split(dir.path());
    let parts = (1..=3).map(|n| dir.path().join(format!("m-{n:05}-of-00003.gguf")));
    for path in parts.chain([dir.path().to_owned()]) {
        let model = Checkpoint::open(&path).unwrap();
        let names: Vec<&str> = model.tensors().map(|t| &*t.name).collect();
        assert_eq!(names, ["t0", "t1", "t2"]);
        assert_eq!(model.tensor("t2").unwrap().bytes[..], [2; 4]);
        assert!(model.tensor("t1").unwrap().file.ends_with("m-00002-of-00003.gguf"));
        assert_eq!((model.files().len(), model.tensor_bytes()), (3, 12));
        assert_eq!(model.license(), Some("apache-2.0"));
        let Source::Gguf(metadata) = model.source() else { panic!() };
        assert_eq!(metadata.str("general.architecture"), Ok("llama"));
    }
}

#[test]
fn an_embedded_model_opens() {
    let bytes: &'static [u8] = unhex(GGUF).leak();
    let model = Checkpoint::from_static_gguf("the default model", bytes).unwrap();
    let weight = model.tensor("m.weight").unwrap();
    assert_eq!((weight.elements(), &*weight.file), (6, "the default model"));
    let range = bytes.as_ptr_range();
    assert!(range.contains(&weight.bytes.as_ptr()), "the bytes were copied");
    weight.bytes.advise_dontneed();
    assert_eq!(model.file_bytes(), bytes.len() as u64);
    let error = model.tensor("m.weigth").unwrap_err().to_string();
    let expected = "the default model: tensor \"m.weigth\": is not among the 2 tensors; \
                    there is \"m.weight\"";
    assert!(error.starts_with(expected), "{error}");
}

#[test]
fn a_hugging_face_directory_opens() {
    let dir = Scratch::new("hf");
    dir.file("config.json", b"{\"hidden_size\": 3, \"x\": {\"y\": \"z\"}}");
    let weights = dir.file("model.safetensors", &python_safetensors());
    dir.file("README.md", b"---\nlanguage: en\nlicense: 'gemma'\n---\nlicense: other\n");
    for path in [dir.path(), &weights] {
        let model = Checkpoint::open(path).unwrap();
        assert_eq!(model.config().unwrap().unwrap().usize("hidden_size"), Ok(3));
        assert!(model.generation().is_none());
        assert_eq!(model.license(), Some("gemma"));
        assert_eq!((model.elements(), model.tensor_bytes()), (1 + 6 + 2, 36));
        model.tensor("a").unwrap().expect_shape(&[2, 3]).unwrap();
        let error = model.tensor("a").unwrap().expect_shape(&[3, 2]).unwrap_err().to_string();
        assert!(
            error.contains("model.safetensors: tensor \"a\": expected shape [3, 2]"),
            "{error}"
        );
        let error = model.config().unwrap().unwrap().object("x").unwrap().bool("y").unwrap_err();
        assert!(error.to_string().contains("config.json: x.y: expected true"), "{error}");
        assert!(Path::new(&error.file).is_absolute());
        let Source::Hf { dir: found, .. } = model.source() else { panic!() };
        assert_eq!(found, dir.path());
    }
}

#[test]
fn an_index_joins_several_files() {
    let dir = Scratch::new("index");
    dir.file("config.json", b"{}");
    dir.file("generation_config.json", b"{\"top_k\": 64}");
    for (file, name, value) in [("w-2", "b", 2.5f32), ("w-1", "a", 1.5)] {
        let path = dir.path().join(format!("{file}.safetensors"));
        let spec = [TensorSpec::new(name, DType::F32, [1])];
        let license = BTreeMap::from([("license".to_string(), format!("of {file}"))]);
        let mut writer = safetensors::create(&path, &spec, &license).unwrap();
        writer.write(name, &value.to_le_bytes()).unwrap();
        writer.finish().unwrap();
    }
    let index = b"{\"metadata\": {\"total_size\": 8},
        \"weight_map\": {\"b\": \"w-2.safetensors\", \"a\": \"w-1.safetensors\"}}";
    dir.file("model.safetensors.index.json", index);
    let model = Checkpoint::open(dir.path()).unwrap();
    let found: Vec<_> = model.tensors().map(|t| (t.name.to_string(), floats(t)[0])).collect();
    assert_eq!(found, [("a".into(), 1.5), ("b".into(), 2.5)]);
    assert_eq!(model.generation().unwrap().unwrap().usize("top_k"), Ok(64));
    assert_eq!((model.files().len(), model.license()), (2, Some("of w-1")));
}
