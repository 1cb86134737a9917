//! Processes that measure, in turn.

use crate::work::{self, PROMPT, ROWS, Work};
use crate::{Cli, candle, llama};
use serde_json::{Value, json};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Instant;

type Result<T> = std::result::Result<T, String>;

/// Measures what the command line asks for; prints and logs it.
pub fn all(cli: &Cli) -> Result<()> {
    let rows = rows(&cli.row)?;
    let known = ["lapidary", "llama", "candle"];
    if let Some(p) = cli.programs.iter().find(|p| !known.contains(&p.as_str())) {
        return Err(format!("--programs {p}: one of {} was expected", known.join(", ")));
    }
    let ours = match &cli.lapidary {
        Some(path) => path.clone(),
        None if cli.programs.iter().any(|p| p == "lapidary") => build()?,
        None => PathBuf::new(),
    };
    eprintln!("llama.cpp: {}", llama::system());
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let mut records = Vec::new();
    for file in &cli.files {
        let name = file.to_str().ok_or("a file's name is not UTF-8")?;
        let weights = candle::layer_weights(name).map_err(|e| format!("{name}: {e}"))?;
        // Into the page cache.
        std::io::copy(
            &mut std::fs::File::open(file).map_err(|e| format!("{name}: {e}"))?,
            &mut std::io::sink(),
        )
        .map_err(|e| format!("{name}: {e}"))?;
        for row in &rows {
            let threads = row.threads.or(cli.threads).unwrap_or(cores);
            for turn in 0..cli.repeat {
                for program in &cli.programs {
                    let result = match (&**program, row.name) {
                        ("lapidary", "first") => first(&ours_first(&ours, name, threads, cli)),
                        ("lapidary", _) => lapidary(&ours, row, name, threads, cli),
                        (_, "first") => first(&own(program, row, name, threads)?),
                        _ => json_of(&mut command(&own(program, row, name, threads)?)),
                    };
                    let mut record = result.unwrap_or_else(|e| json!({"error": e}));
                    for (key, value) in [
                        ("program", json!(program)),
                        ("row", json!(row.name)),
                        ("file", json!(file.file_stem().and_then(|f| f.to_str()))),
                        ("threads", json!(threads)),
                        ("turn", json!(turn)),
                        ("layer_weights", json!(weights)),
                        ("file_bytes", json!(std::fs::metadata(file).map(|m| m.len()).ok())),
                    ] {
                        record[key] = value;
                    }
                    eprintln!("{} {} {program}: {}", record["file"], row.name, brief(&record));
                    log(cli.log.as_deref(), &record)?;
                    records.push(record);
                }
            }
        }
    }
    crate::table::print(&records);
    Ok(())
}

fn brief(record: &Value) -> String {
    let shown = ["error", "rate", "seconds", "peak_resident_bytes"];
    let parts = shown.iter().filter(|k| !record[**k].is_null());
    parts.map(|k| format!("{k} {}", record[*k])).collect::<Vec<_>>().join(", ")
}

fn rows(names: &[String]) -> Result<Vec<Work>> {
    let find = |name: &String| {
        let known: Vec<&str> = ROWS.iter().map(|r| r.name).collect();
        let row = ROWS.iter().find(|r| r.name == name).copied();
        row.ok_or_else(|| format!("--row {name}: one of {} was expected", known.join(", ")))
    };
    if names.is_empty() { Ok(ROWS.to_vec()) } else { names.iter().map(find).collect() }
}

fn log(file: Option<&Path>, record: &Value) -> Result<()> {
    let Some(path) = file else { return Ok(()) };
    let mut file = std::fs::OpenOptions::new().create(true).append(true).open(path);
    let write = file
        .as_mut()
        .map_err(|e| e.to_string())
        .and_then(|f| writeln!(f, "{record}").map_err(|e| e.to_string()));
    write.map_err(|e| format!("{}: {e}", path.display()))
}

/// The records of a log.
pub fn read_log(path: &Path) -> Result<Vec<Value>> {
    let name = path.display();
    let text = std::fs::read_to_string(path).map_err(|e| format!("{name}: {e}"))?;
    let parse = |line: &str| serde_json::from_str(line).map_err(|e| format!("{name}: {e}"));
    text.lines().map(parse).collect()
}

/// Builds the program with its own settings, not with those of this crate.
fn build() -> Result<PathBuf> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().ok_or("no folder above")?;
    let status = Command::new("cargo")
        .args(["build", "--release", "--locked", "-p", "lapidary"])
        .current_dir(root)
        .env_remove("RUSTFLAGS")
        .env_remove("CARGO_ENCODED_RUSTFLAGS")
        .env_remove("CARGO_TARGET_DIR")
        .status();
    match status {
        Ok(s) if s.success() => Ok(root.join("target/release/lapidary")),
        Ok(s) => Err(format!("cargo build of lapidary: {s}")),
        Err(e) => Err(format!("cargo: {e}")),
    }
}

/// This program as a worker.
fn own(program: &str, row: &Work, file: &str, threads: usize) -> Result<Vec<String>> {
    let me = std::env::current_exe().map_err(|e| e.to_string())?;
    let me = me.to_str().ok_or("this program's path is not UTF-8")?;
    Ok([me, "work", program, row.name, file, &threads.to_string()].map(String::from).to_vec())
}

fn command(words: &[String]) -> Command {
    let mut command = Command::new(&words[0]);
    command.args(&words[1..]);
    // candle's threads are rayon's.
    if words.get(2).is_some_and(|p| p == "candle") {
        command.env("RAYON_NUM_THREADS", words.last().map_or("", String::as_str));
    }
    command
}

/// One process that prints a JSON object.
fn json_of(command: &mut Command) -> Result<Value> {
    let out = command.output().map_err(|e| format!("{command:?}: {e}"))?;
    if !out.status.success() {
        let text = String::from_utf8_lossy(&out.stderr);
        let last = text.lines().rev().find(|l| !l.is_empty());
        return Err(last.map_or_else(|| out.status.to_string(), str::to_owned));
    }
    serde_json::from_slice(&out.stdout).map_err(|e| format!("{command:?}: {e}"))
}

/// `lapidary bench` for a row.
fn lapidary(ours: &Path, row: &Work, file: &str, threads: usize, cli: &Cli) -> Result<Value> {
    let mut command = Command::new(ours);
    command.args(["bench", "--json", "--repeat", "1", "--model", file]);
    for (flag, n) in [
        ("--threads", threads),
        ("--prompt", row.prompt),
        ("--generate", row.generate),
        ("--depth", row.depth),
        ("--sequences", row.sequences),
    ] {
        if flag != "--sequences" || n > 1 {
            command.args([flag, &n.to_string()]);
        }
    }
    command.args(cli.lapidary_args.split_whitespace());
    let mut record = json_of(&mut command)?;
    let part = if row.generate == 0 { "prefill" } else { "decode" };
    record["rate"] = record[format!("{part}_tokens_per_second")]["median"].clone();
    Ok(record)
}

fn ours_first(ours: &Path, file: &str, threads: usize, cli: &Cli) -> Vec<String> {
    let threads = threads.to_string();
    let mut words: Vec<String> = [
        &*ours.to_string_lossy(),
        "run",
        "--raw",
        "--ignore-eos",
        "--max-tokens",
        "1",
        "--temperature",
        "0",
        "--threads",
        &threads,
        "--model",
        file,
    ]
    .map(String::from)
    .to_vec();
    words.extend(cli.lapidary_args.split_whitespace().map(String::from));
    words.push(PROMPT.into());
    words
}

/// Seconds until a process has written its first byte, or has ended.
fn first(words: &[String]) -> Result<Value> {
    let start = Instant::now();
    let child = command(words).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn();
    let mut child = child.map_err(|e| format!("{}: {e}", words[0]))?;
    if let Some(out) = &mut child.stdout {
        let mut byte = [0];
        out.read(&mut byte).map_err(|e| e.to_string())?;
    }
    let seconds = start.elapsed().as_secs_f64();
    let out = child.wait_with_output().map_err(|e| e.to_string())?;
    if !out.status.success() {
        return Err(String::from_utf8_lossy(&out.stderr).trim().to_owned());
    }
    Ok(json!({"seconds": seconds}))
}

/// One measurement in this process.
pub fn worker(program: &str, row: &str, file: &str, threads: usize) -> Result<()> {
    let row = *rows(&[row.to_owned()])?.first().ok_or("no row")?;
    if row.name == "first" {
        let id = match program {
            "llama" => work::llama_first(file, threads)?,
            _ => return Err("not measured: candle's examples bring their own tokenizer".into()),
        };
        println!("{id}");
        // What follows is taking down, not starting up.
        return std::io::stdout().flush().map_err(|e| e.to_string());
    }
    let rate = match program {
        "llama" => row.llama(file, threads)?,
        _ if row.sequences > 1 => return Err("candle's model has no batches of sequences".into()),
        _ => row.candle(file, 32_000).map_err(|e| e.to_string())?,
    };
    println!("{}", json!({"rate": rate, "peak_resident_bytes": work::peak_resident()}));
    Ok(())
}
