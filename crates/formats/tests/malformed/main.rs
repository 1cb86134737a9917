//! Files that are wrong in one way each: every one gives an error that names the file and the field,
//! without a panic and without much memory.

mod arbitrary;
mod gguf;
mod hf;
mod safetensors;
#[path = "../../src/scratch.rs"]
mod scratch;

use lapidary_formats::Result;

/// Counts that lie, from just too many to all bits set.
const HUGE: [u64; 5] = [1 << 20, 1 << 32, 1 << 62, 1 << 63, u64::MAX];

/// One wrong file held in memory, and what its error must say.
struct Case {
    label: String,
    bytes: Vec<u8>,
    /// A part of the error's field; the field is never empty.
    field: String,
    /// A part of the problem; `|` stands between alternatives.
    text: String,
}

impl Case {
    fn new(label: &str, bytes: Vec<u8>, field: &str, text: &str) -> Case {
        Case { label: label.into(), bytes, field: field.into(), text: text.into() }
    }
}

/// Checks that something was refused by naming `file` and `field`, and saying `text`, or one of
/// several texts with `|` between.
fn refused<T>(label: &str, result: Result<T>, file: &str, field: &str, text: &str) {
    let Err(error) = result else { panic!("{label}: was accepted") };
    let message = error.to_string();
    assert!(error.file.contains(file) && !file.is_empty(), "{label}: file {file:?} in: {message}");
    assert!(error.field.contains(field), "{label}: field {field:?} in: {message}");
    assert!(text.split('|').any(|t| error.problem.contains(t)), "{label}: {text:?} in: {message}");
    assert!(message.chars().count() < 1000, "{label}: a message of {} bytes", message.len());
    assert!(!message.contains(char::is_control), "{label}: control characters in {message:?}");
}

/// Runs cases through a reader of bytes; gives how many there were.
fn check_all<T>(cases: Vec<Case>, read: impl Fn(Vec<u8>) -> Result<T>) -> usize {
    let count = cases.len();
    for case in cases {
        let result = read(case.bytes);
        if let Err(error) = &result {
            assert!(!error.field.is_empty(), "{}: no field in: {error}", case.label);
        }
        refused(&case.label, result, "bad.bin", &case.field, &case.text);
    }
    count
}

/// The most memory that this process has had, in bytes, where the system tells.
fn peak_memory() -> Option<usize> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find(|l| l.starts_with("VmHWM:"))?;
    Some(line.split_whitespace().nth(1)?.parse::<usize>().ok()? * 1024)
}

#[test]
fn malformed_files_are_refused() {
    let counts = [
        ("GGUF", gguf::check()),
        ("split GGUF", gguf::check_split()),
        ("GGUF keys of another type", gguf::check_types()),
        ("safetensors", safetensors::check()),
        ("Hugging Face directories", hf::check()),
    ];
    for (kind, count) in counts {
        println!("{kind}: {count} malformed cases refused");
    }
    let all: usize = counts.iter().map(|(_, count)| count).sum();
    println!("{all} in all");
    assert!(all >= 600, "only {all} cases were built");
    if let Some(peak) = peak_memory() {
        println!("peak memory {} MiB", peak >> 20);
        assert!(peak < 128 << 20, "peak memory was {} MiB", peak >> 20);
    }
}
