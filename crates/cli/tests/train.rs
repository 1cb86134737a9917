//! `lapidary train` as a user runs it: from nothing to a model that answers, through kills.

use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::Duration;

fn run(dir: &Path, args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_lapidary")).args(args).current_dir(dir).output().unwrap()
}

fn good(dir: &Path, args: &[&str]) -> String {
    let out = run(dir, args);
    assert!(out.status.success(), "{args:?}: {}", String::from_utf8_lossy(&out.stderr));
    String::from_utf8(out.stdout).unwrap()
}

fn bad(dir: &Path, args: &[&str]) -> String {
    let out = run(dir, args);
    assert!(!out.status.success(), "{args:?} succeeded");
    let said = String::from_utf8(out.stderr).unwrap();
    assert!(!said.contains("panicked"), "{said}");
    said
}

/// A folder of one test, removed with it.
struct Folder(PathBuf);

impl Folder {
    fn new(name: &str) -> Self {
        let path =
            std::env::temp_dir().join(format!("lapidary-train-{name}-{}", std::process::id()));
        let _ = std::fs::remove_dir_all(&path);
        std::fs::create_dir_all(&path).unwrap();
        Self(path)
    }

    fn write(&self, name: &str, text: &str) {
        std::fs::write(self.0.join(name), text).unwrap();
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// Text, a tokenizer, and a configuration that trains a model of some 60,000 parameters for 40 steps.
fn prepare(dir: &Folder) {
    let animals = ["cat", "dog", "hen", "fox", "owl"];
    let text: String = (0..400)
        .map(|i| {
            format!("{{\"text\": \"The {} sat on the mat {} times.\"}}\n", animals[i % 5], i % 9)
        })
        .collect();
    dir.write("text.jsonl", &text);
    good(&dir.0, &["train-tokenizer", "text.jsonl", "--vocab", "320", "--out", "tokenizer"]);
}

fn config(dir: &Folder, output: &str) -> String {
    let text = format!(
        "output = \"{output}\"\nmethod = \"full\"\n[model.init]\nfamily = \"gemma3\"\n\
         tokenizer = \"tokenizer\"\nwidth = 32\nlayers = 2\nheads = 2\nhead_dim = 16\nkv_heads = 1\n\
         ffn = 64\ncontext = 64\nwindow = 16\nglobal_every = 2\n[data]\nsequence = 32\n\
         batch_tokens = 256\nshuffle = 100\nheld_out = 0.05\n[[data.source]]\npath = \"text.jsonl\"\n\
         [schedule]\nsteps = 40\nlr = 1e-2\nwarmup = 5\n[evaluate]\nevery = 20\n[save]\n\
         every_steps = 3\nkeep = 2\n[sample]\nevery = 20\nprompts = [\"The cat\"]\nchat = false\n\
         max_tokens = 8\n"
    );
    let name = format!("{output}.toml");
    dir.write(&name, &text);
    name
}

fn weights(dir: &Folder, output: &str) -> Vec<u8> {
    std::fs::read(dir.0.join(output).join("model/model.safetensors")).unwrap()
}

/// Killed three times at moments of its own choice, and resumed: the same bits as without.
#[test]
fn a_killed_run_ends_with_the_same_bits() {
    let dir = Folder::new("kill");
    prepare(&dir);
    let whole = config(&dir, "whole");
    let start = std::time::Instant::now();
    good(&dir.0, &["train", &whole]);
    let time = start.elapsed();
    let killed = config(&dir, "killed");
    let mut kills = 0;
    for share in [0.35, 0.3, 0.45] {
        let mut child = Command::new(env!("CARGO_BIN_EXE_lapidary"))
            .args(["train", &killed, "--resume"])
            .current_dir(&dir.0)
            .stderr(Stdio::null())
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        std::thread::sleep(Duration::from_secs_f64(time.as_secs_f64() * share));
        // SIGKILL; a run that was faster than expected has ended.
        kills += usize::from(child.try_wait().unwrap().is_none());
        child.kill().unwrap();
        child.wait().unwrap();
    }
    good(&dir.0, &["train", &killed, "--resume"]);
    assert!(kills > 0, "no run was killed");
    assert!(weights(&dir, "whole") == weights(&dir, "killed"), "the weights differ");
    let losses = |run: &str| -> Vec<String> {
        let table = std::fs::read_to_string(dir.0.join(run).join("log.csv")).unwrap();
        // All columns but the seconds.
        table.lines().map(|l| l.rsplit_once(',').unwrap().0.to_owned()).collect()
    };
    assert_eq!(losses("whole"), losses("killed"));
    assert_eq!(losses("whole").len(), 41);
}

#[test]
fn what_was_trained_answers_and_can_be_exported() {
    let dir = Folder::new("export");
    prepare(&dir);
    let config = config(&dir, "run");
    let said = bad(&dir.0, &["export", "run", "out", "--format", "hf"]);
    assert!(said.contains("neither model nor adapter"), "{said}");
    good(&dir.0, &["train", &config]);
    let report = std::fs::read_to_string(dir.0.join("run/report.html")).unwrap();
    assert!(report.contains("<svg") && report.contains("The cat"));
    let ask = |model: &str| {
        let args =
            ["run", "--raw", "The dog", "--temperature", "0", "--max-tokens", "6", "--precision"];
        good(&dir.0, &[&args[..], &["exact", "--kv", "f32", "--model", model]].concat())
    };
    let answer = ask("run/model");
    assert!(answer.contains("sat on the mat"), "{answer}");
    good(&dir.0, &["export", "run", "out", "--format", "hf"]);
    good(&dir.0, &["export", "run", "out.gguf", "--format", "gguf", "--type", "f32"]);
    assert_eq!(ask("out"), answer);
    assert_eq!(ask("out.gguf"), answer);
    assert!(bad(&dir.0, &["export", "run", "out", "--format", "hf"]).contains("there already"));
    assert!(bad(&dir.0, &["train", &config]).contains("--resume"));
}

#[test]
fn configurations_are_written_and_wrong_ones_refused() {
    let dir = Folder::new("init");
    for kind in ["pretrain", "sft", "lora", "dpo"] {
        assert_eq!(good(&dir.0, &["train", "--init", kind]).trim(), format!("{kind}.toml"));
    }
    assert!(bad(&dir.0, &["train", "--init", "lora"]).contains("there already"));
    assert!(bad(&dir.0, &["train", "--init", "other"]).contains("pretrain, sft, lora, dpo"));
    assert!(bad(&dir.0, &["train"]).contains("--init"));
    let text = std::fs::read_to_string(dir.0.join("lora.toml")).unwrap();
    dir.write("wrong.toml", &text.replace("alpha = 32.0", "alhpa = 32.0"));
    let said = bad(&dir.0, &["train", "wrong.toml"]);
    assert!(said.contains("wrong.toml: line") && said.contains("unknown field `alhpa`"), "{said}");
    let said = bad(&dir.0, &["train", "lora.toml"]);
    assert!(said.contains("examples.jsonl: cannot be opened"), "{said}");
}

/// A run that failed before its first step does not stand in the way of the next try, nor do the
/// fresh weights that it made; one that took steps does.
#[test]
fn a_failed_start_is_no_run() {
    let dir = Folder::new("failed");
    prepare(&dir);
    let name = config(&dir, "run");
    let text =
        std::fs::read_to_string(dir.0.join(&name)).unwrap().replace("steps = 40", "steps = 2");
    dir.write(&name, &text.replace("path = \"text.jsonl\"", "path = \"texts.jsonl\""));
    assert!(bad(&dir.0, &["train", &name]).contains("texts.jsonl: cannot be opened"));
    dir.write(&name, &text.replace("width = 32", "width = 48"));
    good(&dir.0, &["train", &name]);
    let model = std::fs::read_to_string(dir.0.join("run/model/config.json")).unwrap();
    assert!(model.contains("\"hidden_size\": 48"), "{model}");
    let said = bad(&dir.0, &["train", &name]);
    assert!(said.contains("holds a run already: --resume"), "{said}");
}

/// The model of the program itself, by adapters, and the adapter merged into it.
#[test]
fn the_built_in_model_is_tuned_and_merged() {
    let dir = Folder::new("lora");
    let line = |q: &str, a: &str| {
        format!(
            "{{\"messages\": [{{\"role\": \"user\", \"content\": \"{q}\"}}, \
             {{\"role\": \"assistant\", \"content\": \"{a}\"}}]}}\n"
        )
    };
    dir.write("data.jsonl", &line("Who are you?", "I am a stone cutter.").repeat(8));
    let text = "output = \"run\"\nmethod = \"lora\"\n[lora]\nrank = 8\nalpha = 16.0\n[data]\n\
        sequence = 64\nbatch_tokens = 128\n[[data.source]]\npath = \"data.jsonl\"\n[schedule]\n\
        steps = 12\nlr = 1e-2\n";
    dir.write("lora.toml", text);
    good(&dir.0, &["train", "lora.toml"]);
    good(&dir.0, &["merge", "default", "run/adapter", "mine.gguf"]);
    let ask = ["chat", "--model", "mine.gguf", "--temperature", "0", "--max-tokens", "20"];
    let mut child = Command::new(env!("CARGO_BIN_EXE_lapidary"))
        .args(ask)
        .current_dir(&dir.0)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    std::io::Write::write_all(&mut child.stdin.take().unwrap(), b"Who are you?\n").unwrap();
    let said = String::from_utf8(child.wait_with_output().unwrap().stdout).unwrap();
    assert!(said.contains("I am a stone cutter."), "{said}");
    assert!(bad(&dir.0, &["merge", "default", "run/adapter", "mine"]).contains(".gguf"));
}
