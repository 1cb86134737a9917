//! Wrong Hugging Face directories, and paths that hold no model.

use std::fs;
use std::path::Path;

use lapidary_formats::Checkpoint;

use crate::safetensors::{file, valid};
use crate::scratch::Scratch;
use crate::{gguf, refused};

const INDEX: &str = "model.safetensors.index.json";

/// A right directory: settings, an index, and two files of one tensor each.
fn write_valid(dir: &Scratch) {
    dir.file("config.json", b"{\"hidden_size\": 2}");
    dir.file("generation_config.json", b"{}");
    for name in ["a", "b"] {
        let header = format!(r#"{{"{name}":{{"dtype":"U8","shape":[2],"data_offsets":[0,2]}}}}"#);
        dir.file(&format!("w-{name}.safetensors"), &file(header, 2));
    }
    dir.file(INDEX, &index(&[("a", "w-a.safetensors"), ("b", "w-b.safetensors")]));
}

fn index(map: &[(&str, &str)]) -> Vec<u8> {
    let text = |s: &str| serde_json::Value::from(s).to_string();
    let pairs: Vec<String> =
        map.iter().map(|(name, file)| format!("{}:{}", text(name), text(file))).collect();
    format!("{{\"weight_map\":{{{}}}}}", pairs.join(",")).into()
}

pub fn check() -> usize {
    let mut count = 0;
    let mut case = |label: &str, change: &dyn Fn(&Scratch), file: &str, field: &str, text: &str| {
        let dir = Scratch::new("hf-case");
        write_valid(&dir);
        assert_eq!(Checkpoint::open(dir.path()).unwrap().tensors().len(), 2);
        change(&dir);
        refused(label, Checkpoint::open(dir.path()), file, field, text);
        count += 1;
    };
    settings_cases(&mut case);
    index_cases(&mut case);
    weights_cases(&mut case);
    count + check_paths()
}

type Run<'a> = dyn FnMut(&str, &dyn Fn(&Scratch), &str, &str, &str) + 'a;

fn remove(dir: &Scratch, name: &str) {
    fs::remove_file(dir.path().join(name)).unwrap();
}

fn settings_cases(case: &mut Run<'_>) {
    for name in ["config.json", "generation_config.json"] {
        for (text, says) in [
            (&b""[..], "is not valid JSON"),
            (b"{", "is not valid JSON"),
            (b"{\"a\": 1", "is not valid JSON"),
            (b"{\"a\": NaN}", "is not valid JSON"),
            (b"{\"a\": \"\xff\"}", "is not valid JSON"),
            (b"{} {}", "is not valid JSON"),
            (b"[]", "an array of 0"),
            (b"null", "found null"),
            (b"\"x\"", "the string \"x\""),
            (b"\"\\u001b[2J\"", "\\u{1b}"),
            (b"12", "the number 12"),
        ] {
            case(name, &|d| drop(d.file(name, text)), name, "", says);
        }
        let deep = |d: &Scratch| drop(d.file(name, "[".repeat(1 << 20).as_bytes()));
        case("deep", &deep, name, "", "recursion limit");
        let large = |d: &Scratch| drop(d.file(name, &vec![b' '; 5 << 20]));
        case("large", &large, name, "", "is larger than");
        let directory = |d: &Scratch| {
            remove(d, name);
            fs::create_dir(d.path().join(name)).unwrap();
        };
        case("a directory", &directory, name, "", "is not a file");
    }
    case("no config", &|d| remove(d, "config.json"), "config.json", "", "cannot be read");
}

fn index_cases(case: &mut Run<'_>) {
    for outside in [
        "../w-a.safetensors",
        "/etc/w.safetensors",
        "./w-a.safetensors",
        "sub/w-a.safetensors",
        "..\\w-a.safetensors",
        "C:\\w.safetensors",
        "C:w.safetensors",
        "",
        ".",
        "..",
        ".safetensors",
        ".hidden.safetensors",
        "w-a.bin",
        "config.json",
        "pytorch_model.bin",
        "w\0.safetensors",
        "\u{1b}[2J.safetensors",
        "a\n.safetensors",
        "/dev/zero",
        "w-a.safetensors/",
    ] {
        let bytes = index(&[("a", outside), ("b", "w-b.safetensors")]);
        let text = "expected the name of a .safetensors file in this directory";
        case(outside, &|d| drop(d.file(INDEX, &bytes)), INDEX, "weight_map", text);
    }
    for (text, says) in [
        (&b""[..], "EOF"),
        (b"{", "EOF"),
        (b"[]", ""),
        (b"{}", "missing field"),
        (b"{\"weight_map\":[]}", "expected an object"),
        (b"{\"weight_map\":null}", "expected an object"),
        (b"{\"weight_map\":\"w-a.safetensors\"}", "expected an object"),
        (b"{\"weight_map\":{}}", "is empty"),
        (b"{\"weight_map\":{\"a\":1}}", "\"a\": invalid type"),
        (b"{\"weight_map\":{\"a\":[\"w-a.safetensors\"]}}", "\"a\": invalid type"),
        (b"{\"weight_map\":{\"a\":\"w-a.safetensors\"}", "EOF"),
        (b"{\"weight_map\":{\"a\":\"w-a.safetensors\"},\"weight_map\":{}}", "duplicate field"),
        (b"{\"weight_map\":{\"a\":\"w-a.safetensors\",\"a\":\"w-b.safetensors\"}}", "stands twice"),
        (b"{\"weight_map\":{\"\xff\":\"w-a.safetensors\"}}", ""),
    ] {
        case("index", &|d| drop(d.file(INDEX, text)), INDEX, "weight_map", says);
    }
    for (map, field) in [
        (&[("a", "w-b.safetensors"), ("b", "w-b.safetensors")][..], "\"a\""),
        (&[("a", "w-a.safetensors"), ("b", "w-a.safetensors")], "\"b\""),
        (&[("a", "w-b.safetensors"), ("b", "w-a.safetensors")], "\"a\""),
        (&[("a", "w-a.safetensors"), ("c", "w-b.safetensors")], "\"c\""),
    ] {
        let bytes = index(map);
        let text = "where the index has it";
        case("elsewhere", &|d| drop(d.file(INDEX, &bytes)), INDEX, field, text);
    }
    let directory = |d: &Scratch| {
        remove(d, INDEX);
        fs::create_dir(d.path().join(INDEX)).unwrap();
    };
    case("an index that is a directory", &directory, INDEX, "", "is not a file");
}

fn weights_cases(case: &mut Run<'_>) {
    let name = "w-b.safetensors";
    case("missing", &|d| remove(d, name), name, "", "cannot be read");
    case("empty", &|d| drop(d.file(name, b"")), name, "header length", "needs 8 bytes");
    let directory = |d: &Scratch| {
        remove(d, name);
        fs::create_dir(d.path().join(name)).unwrap();
    };
    case("a directory", &directory, name, "", "is not a file");
    let copy = |d: &Scratch| drop(fs::copy(d.path().join("w-a.safetensors"), d.path().join(name)));
    case("the same tensor in two files", &copy, name, "tensor \"a\"", "is also in");
    let bytes = valid();
    for cut in (0..bytes.len()).step_by(9) {
        case("cut", &|d| drop(d.file(name, &bytes[..cut])), name, "", "");
        let single = |d: &Scratch| drop(d.file("model.safetensors", &bytes[..cut]));
        case("cut", &single, "model.safetensors", "", "");
    }
    #[cfg(unix)]
    {
        let cycle = |d: &Scratch| {
            remove(d, name);
            std::os::unix::fs::symlink(name, d.path().join(name)).unwrap();
        };
        case("a link to itself", &cycle, name, "", "cannot be read");
    }
}

/// Paths that are not a model at all.
fn check_paths() -> usize {
    let dir = Scratch::new("paths");
    let model = gguf::Spec::valid().build().bytes;
    let open = |path: &Path| Checkpoint::open(path);
    let at = |name: &str| dir.path().join(name);
    for name in ["empty", "pickles", "ggufs", "parts"] {
        fs::create_dir(at(name)).unwrap();
    }
    dir.file("pickles/pytorch_model.bin", b"x");
    dir.file("ggufs/a.gguf", &model);
    dir.file("ggufs/b.gguf", &model);
    dir.file("parts/a-00002-of-00002.gguf", &model);
    dir.file("weights.bin", &model);
    dir.file("lone.safetensors", &valid());
    dir.file("named.gguf", &valid());
    let cases = [
        ("nothing", "nothing", "cannot be opened"),
        ("empty", "empty", "holds no model"),
        ("pickles", "pickles", "pickle files, which can run code"),
        ("ggufs", "ggufs", "several GGUF models"),
        ("parts", "parts", "holds no model"),
        ("weights.bin", "weights.bin", "expected a .gguf file"),
        ("lone.safetensors", "config.json", "cannot be read"),
        ("named.gguf", "named.gguf", "not a GGUF file"),
    ];
    for (name, file, text) in cases {
        refused(name, open(&at(name)), file, "", text);
    }
    fs::remove_file(at("ggufs/b.gguf")).unwrap();
    assert_eq!(open(&at("ggufs")).unwrap().tensors().len(), 3);
    cases.len()
}
