//! From files to batches: every form, every order, and going on where a run stopped.

use lapidary_engine::Text;
use lapidary_formats::Checkpoint;
use lapidary_formats::chat::ChatTemplate;
use lapidary_tune::Sequence;
use lapidary_tune::data::{
    Document, Encoder, Example, Learn, Source, SourceSpec, Stream, StreamSpec, Unfit, held_out,
};
use std::collections::{BTreeMap, BTreeSet};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// A folder of one test, removed with it.
struct Folder(PathBuf);

impl Folder {
    fn new(name: &str) -> Self {
        let path =
            std::env::temp_dir().join(format!("lapidary-data-{name}-{}", std::process::id()));
        let _ = std::fs::remove_dir_all(&path);
        std::fs::create_dir_all(&path).unwrap();
        Self(path)
    }

    fn file(&self, name: &str, bytes: impl AsRef<[u8]>) -> PathBuf {
        std::fs::write(self.0.join(name), bytes).unwrap();
        self.0.join(name)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

fn shared(part: &str) -> Option<PathBuf> {
    let found = [root().join("shared"), root().join("../shared")];
    let found = found.into_iter().map(|p| p.join(part)).find(|p| p.exists());
    if found.is_none() {
        eprintln!("skipped: ../shared/{part} is not there");
    }
    found
}

fn spec(paths: &[&Path]) -> SourceSpec {
    SourceSpec {
        paths: paths.iter().map(|p| p.to_path_buf()).collect(),
        format: None,
        separator: None,
        epochs: Some(1),
        shuffle: 1,
        held_out: 0.0,
        only_held_out: false,
        strict: false,
    }
}

fn all(source: &mut Source) -> Vec<Document> {
    std::iter::from_fn(|| source.next_document().unwrap()).collect()
}

fn read(spec: SourceSpec) -> Vec<Document> {
    all(&mut Source::new(spec, 1, 0).unwrap())
}

fn lines(n: usize) -> String {
    (0..n).map(|i| format!("{{\"text\": \"document {i} has some words\"}}\n")).collect()
}

fn model() -> Arc<Text> {
    let checkpoint = Checkpoint::open(&root().join("models/default-Q8_0.gguf")).unwrap();
    Arc::new(Text::open(&checkpoint).unwrap())
}

#[test]
fn compressed_files_hold_what_plain_ones_do() {
    let dir = Folder::new("compressed");
    let text = lines(3000);
    let plain = read(spec(&[&dir.file("a.jsonl", &text)]));
    assert_eq!(plain.len(), 3000);
    let mut gz = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    gz.write_all(text.as_bytes()).unwrap();
    let gz = gz.finish().unwrap();
    assert_eq!(read(spec(&[&dir.file("b.jsonl.gz", &gz)])), plain);
    let zstd = |text: &str| {
        let level = ruzstd::encoding::CompressionLevel::Fastest;
        ruzstd::encoding::compress_to_vec(text.as_bytes(), level)
    };
    assert_eq!(read(spec(&[&dir.file("c.jsonl.zst", zstd(&text))])), plain);
    // Two frames, cut in the middle of a line; the name does not matter, the bytes do.
    let (a, b) = text.split_at(text.len() / 2 + 5);
    let frames = [zstd(a), zstd(b)].concat();
    assert_eq!(read(spec(&[&dir.file("d.jsonl", &frames)])), plain);
    // A cut file is an error and no shorter data set.
    for (name, bytes) in [("e.jsonl.zst", &frames), ("e.jsonl.gz", &gz)] {
        let cut = dir.file(name, &bytes[..bytes.len() - 9]);
        let mut source = Source::new(spec(&[&cut]), 1, 0).unwrap();
        let error = loop {
            match source.next_document() {
                Ok(Some(_)) => {}
                Ok(None) => panic!("{name} ended quietly"),
                Err(e) => break e.to_string(),
            }
        };
        assert!(error.contains(name) && error.contains("cannot be read"), "{error}");
    }
}

#[test]
fn broken_lines_are_told_or_stop_the_reading() {
    let dir = Folder::new("broken");
    let text = "\u{feff}{\"text\": \"a\"}\r\n\n{\"text\": \n{\"story\": \"x\"}\n{\"text\": \"b\"}";
    let file = dir.file("a.jsonl", text);
    let mut source = Source::new(SourceSpec { epochs: Some(2), ..spec(&[&file]) }, 1, 0).unwrap();
    let found = all(&mut source);
    let one = |t: &str| Document::Text(t.into());
    assert_eq!(found, [one("a"), one("b"), one("a"), one("b")]);
    let told = source.take_broken();
    assert_eq!(told.len(), 2, "once each, not once an epoch: {told:?}");
    assert!(told[0].error.to_string().contains("a.jsonl: line 3: not JSON"), "{:?}", told[0]);
    assert!(told[1].error.to_string().contains("line 4: none of the keys"), "{:?}", told[1]);
    let mut source = Source::new(SourceSpec { strict: true, ..spec(&[&file]) }, 1, 0).unwrap();
    let error =
        std::iter::from_fn(|| source.next_document().transpose()).find_map(Result::err).unwrap();
    assert!(error.to_string().contains("line 3"), "{error}");
}

#[test]
fn plain_text_is_cut_into_documents() {
    let dir = Folder::new("text");
    let story = "A line of a story.\n".repeat(300);
    let file = dir.file("a.txt", format!("{story}\n{story}\n\n{story}"));
    let pages = read(spec(&[&file]));
    assert_eq!(pages.len(), 3);
    assert!(pages.iter().all(|p| *p == Document::Text(story.trim_end().into())));
    let file = dir.file("b.txt", "one\n\ntwo\n<end>\n<end>\nthree\n");
    let parted = read(SourceSpec { separator: Some("<end>".into()), ..spec(&[&file]) });
    assert_eq!(parted, [Document::Text("one\n\ntwo".into()), Document::Text("three".into())]);
    let file = dir.file("c.txt", [b'a', 0xff]);
    let error = Source::new(spec(&[&file]), 1, 0).unwrap().next_document().unwrap_err().to_string();
    assert!(error.contains("c.txt: line 1: is not UTF-8"), "{error}");
}

#[test]
fn parquet_rows_are_examples() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data");
    let rows = read(spec(&[&folder.join("messages-snappy.parquet")]));
    assert_eq!(rows.len(), 5);
    for (i, row) in rows.iter().enumerate() {
        assert_eq!(row.words(), [format!("question {i}"), format!("answer {i}")]);
    }
    let mut source = Source::new(spec(&[&folder.join("messages-zstd.parquet")]), 1, 0).unwrap();
    let error = source.next_document().unwrap_err().to_string();
    assert!(error.contains("snappy"), "{error}");
    let dir = Folder::new("parquet");
    let bytes = std::fs::read(folder.join("messages-snappy.parquet")).unwrap();
    for cut in [0, 3, 100, bytes.len() - 3] {
        let file = dir.file("cut.parquet", &bytes[..cut]);
        assert!(Source::new(spec(&[&file]), 1, 0).is_err(), "{cut}");
    }
}

#[test]
fn every_epoch_gives_every_document_once_in_another_order() {
    let dir = Folder::new("epochs");
    let (a, b) = (dir.file("a.jsonl", lines(70)), dir.file("b.jsonl", lines(50)));
    for buffer in [1, 10, 1000] {
        let spec = SourceSpec { epochs: Some(3), shuffle: buffer, ..spec(&[&a, &b]) };
        let order = |seed| all(&mut Source::new(spec.clone(), seed, 0).unwrap());
        let got = order(1);
        assert_eq!(got.len(), 360);
        let sorted = |docs: &[Document]| {
            let mut all: Vec<String> = docs.iter().map(|d| d.words()[0].to_owned()).collect();
            all.sort();
            all
        };
        for epoch in got.chunks(120) {
            assert_eq!(sorted(epoch), sorted(&got[..120]), "buffer {buffer}");
        }
        assert_eq!(got, order(1));
        assert_eq!(buffer == 1, got[..120] == got[120..240]);
        assert_eq!(buffer == 1, got == order(2));
    }
}

#[test]
fn a_source_goes_on_where_it_stood() {
    let dir = Folder::new("resume");
    let files = [dir.file("a.jsonl", lines(33)), dir.file("b.jsonl", lines(21))];
    let spec =
        SourceSpec { epochs: Some(3), shuffle: 16, held_out: 0.1, ..spec(&[&files[0], &files[1]]) };
    let whole = read(spec.clone());
    for stop in [0, 1, 15, 16, 47, 48, 49, 50, 90, whole.len()] {
        let mut source = Source::new(spec.clone(), 1, 0).unwrap();
        for document in &whole[..stop] {
            assert_eq!(source.next_document().unwrap().as_ref(), Some(document));
        }
        let stored = serde_json::to_string(&source.state()).unwrap();
        let mut again = Source::new(spec.clone(), 1, 0).unwrap();
        again.restore(&serde_json::from_str(&stored).unwrap()).unwrap();
        assert_eq!(all(&mut again), whole[stop..], "stopped after {stop}");
    }
    let state = Source::new(spec.clone(), 1, 0).unwrap().state();
    dir.file("b.jsonl", lines(22));
    let error = Source::new(spec, 1, 0).unwrap().restore(&state).unwrap_err().to_string();
    assert!(error.contains("b.jsonl") && error.contains("changed"), "{error}");
}

#[test]
fn the_held_out_part_and_the_rest_make_the_whole() {
    let dir = Folder::new("held-out");
    let file = dir.file("a.jsonl", lines(2000));
    let of = |only_held_out| {
        let docs = read(SourceSpec { held_out: 0.1, only_held_out, ..spec(&[&file]) });
        docs.iter().map(|d| d.words()[0].to_owned()).collect::<BTreeSet<_>>()
    };
    let (rest, held) = (of(false), of(true));
    assert!(rest.is_disjoint(&held));
    assert_eq!(rest.len() + held.len(), 2000);
    assert!((140..260).contains(&held.len()), "{}", held.len());
    let text = model();
    let spec = SourceSpec { held_out: 0.1, ..spec(&[&file]) };
    let encoder = Encoder::new(text.clone(), 64);
    let measured = held_out(&[spec], &encoder, &text, 300).unwrap();
    let tokens: usize = measured[0].sequences.iter().map(|s| s.ids.len()).sum();
    assert!((200..=300).contains(&tokens), "{tokens}");
    let bytes: usize =
        (measured[0].sequences.iter()).map(|s| text.tokenizer.decode(&s.ids, true).len()).sum();
    assert_eq!(measured[0].bytes, bytes as u64);
}

fn stream(files: &[(&Path, f64)], epochs: Option<u32>, batch: usize, micro: usize) -> Stream {
    let source = |p: &Path| SourceSpec { epochs, shuffle: 20, ..spec(&[p]) };
    let spec = StreamSpec {
        sources: files.iter().map(|(p, w)| (source(p), *w)).collect(),
        batch_tokens: batch,
        micro_tokens: micro,
        pairs: false,
        strict: false,
        seed: 5,
    };
    Stream::new(spec, Encoder::new(model(), 48)).unwrap()
}

#[test]
fn steps_are_packed_mixed_and_go_on_exactly() {
    let dir = Folder::new("stream");
    let long = format!("{{\"text\": \"{}\"}}\n", "many words follow here ".repeat(40)).repeat(10);
    let (a, b) = (dir.file("a.jsonl", lines(40)), dir.file("b.jsonl", long));
    let new = || stream(&[(&a, 3.0), (&b, 1.0)], Some(2), 200, 100);
    let mut whole: Vec<Vec<Vec<Sequence>>> = Vec::new();
    let mut stream = new();
    while let Some(step) = stream.next_step().unwrap() {
        let tokens = |m: &Vec<Sequence>| m.iter().map(|s| s.ids.len()).sum::<usize>();
        assert!(step.iter().map(tokens).sum::<usize>() <= 200);
        assert!(step.iter().all(|m| tokens(m) <= 100 && !m.is_empty()));
        assert!(step.iter().flatten().all(|s| s.ids.len() <= 48 && s.ids.len() == s.learn.len()));
        whole.push(step);
    }
    assert_eq!(stream.counts().documents, 100);
    assert_eq!(new().count_steps().unwrap(), whole.len() as u64);
    for stop in [0, 1, 2, whole.len() / 2, whole.len() - 1, whole.len()] {
        let mut stream = new();
        (0..stop).for_each(|_| drop(stream.next_step().unwrap()));
        let stored = serde_json::to_string(&stream.state()).unwrap();
        let mut again = new();
        again.restore(&serde_json::from_str(&stored).unwrap()).unwrap();
        for step in &whole[stop..] {
            assert_eq!(again.next_step().unwrap().as_ref(), Some(step), "stopped after {stop}");
        }
        assert_eq!(again.next_step().unwrap(), None);
    }
}

#[test]
fn weights_are_shares_of_the_documents() {
    let dir = Folder::new("weights");
    let one = |c: char| format!("{{\"text\": \"{c}{c}\"}}\n").repeat(10);
    let files = ['x', 'y', 'z'].map(|c| dir.file(&format!("{c}.jsonl"), one(c)));
    let mix = [(&*files[0], 1.0), (&*files[1], 2.0), (&*files[2], 5.0)];
    let mut stream = stream(&mix, None, 48, 48);
    let mut counts: BTreeMap<Vec<u32>, usize> = BTreeMap::new();
    for _ in 0..800 {
        for sequence in stream.next_step().unwrap().unwrap().into_iter().flatten() {
            *counts.entry(sequence.ids).or_default() += 1;
        }
    }
    let total: usize = counts.values().sum();
    let mut shares: Vec<f64> = counts.values().map(|n| *n as f64 / total as f64).collect();
    shares.sort_by(f64::total_cmp);
    for (got, want) in shares.iter().zip([0.125, 0.25, 0.625]) {
        assert!((got - want).abs() < 0.03, "{shares:?}");
    }
}

fn turns(n: usize) -> Document {
    let turn = |role: &str, content: String| serde_json::json!({"role": role, "content": content});
    let messages: Vec<_> = (0..n)
        .flat_map(|i| {
            [turn("user", format!("Question {i}?")), turn("assistant", format!("Answer {i}."))]
        })
        .collect();
    Document::from_json(serde_json::json!({"messages": messages})).unwrap()
}

/// The text of each run of learnt tokens.
fn learnt(text: &Text, sequence: &Sequence) -> Vec<String> {
    let mut runs = Vec::new();
    let mut at = 0;
    while at < sequence.ids.len() {
        let end = at + sequence.learn[at..].iter().take_while(|l| **l).count();
        if end > at {
            runs.push(text.tokenizer.decode(&sequence.ids[at..end], false).trim().to_owned());
        }
        at = end.max(at + 1);
    }
    runs
}

fn encoded(text: &Arc<Text>, document: &Document) -> Sequence {
    match Encoder::new(text.clone(), 400).encode(document).unwrap().remove(0) {
        Example::One(one) => one,
        Example::Pair(_) => panic!("a pair"),
    }
}

/// Gemma 1 to 3 by their published templates and by ours, Llama 2 by ours: the model's own words
/// and the token that ends them, nothing else.
#[test]
fn the_assistant_s_turns_alone_are_learnt() {
    let gemma = "<end_of_turn>";
    let mut texts = vec![("built in", model(), gemma)];
    if let Some(dir) = shared("fixtures") {
        for (template, name) in [("gemma", "gemma"), ("gemma", "gemma2"), ("gemma3", "gemma3_text")]
        {
            let checkpoint = Checkpoint::open(&dir.join("models").join(name)).unwrap();
            let mut text = Text::open(&checkpoint).unwrap();
            let path = dir.join(format!("chat/templates/{template}.jinja"));
            let source = std::fs::read_to_string(path).unwrap();
            text.template = Some(ChatTemplate::from_jinja(&source, template).unwrap());
            texts.push((name, Arc::new(text), gemma));
        }
        let checkpoint = Checkpoint::open(&dir.join("models/llama_gqa")).unwrap();
        texts.push(("llama", Arc::new(Text::open(&checkpoint).unwrap()), "</s>"));
    }
    for (name, text, end) in &texts {
        for n in [1, 3] {
            let sequence = encoded(text, &turns(n));
            let runs = learnt(text, &sequence);
            let words = |run: &String| run.replace(end, "").trim().to_owned();
            let want: Vec<String> = (0..n).map(|i| format!("Answer {i}.")).collect();
            assert_eq!(runs.iter().map(words).collect::<Vec<_>>(), want, "{name}: {runs:?}");
            assert!(runs.iter().all(|r| r.ends_with(end)), "{name}: {runs:?}");
            // What comes before is what a chat would send.
            let Document::Turns { messages, .. } = turns(n) else { panic!() };
            let prompt = text.render(&messages[..2 * n - 1], true, 0).unwrap();
            let prompt = text.encode_rendered(&prompt);
            assert_eq!(sequence.ids[..prompt.len()], prompt, "{name}");
            assert!(!sequence.learn[prompt.len() - 1] && sequence.learn[prompt.len()], "{name}");
        }
    }
    println!("{} templates", texts.len());
}

/// Gemma 4's larger models are asked to go on from an empty thought, which a conversation that is over
/// does not show: the answers are learnt behind it, as a chat gets them.
#[test]
fn answers_are_learnt_behind_the_prompt_s_end() {
    let Some(dir) = shared("fixtures") else { return };
    for (model, thought) in [("gemma4_31b", true), ("gemma4_e2b", false)] {
        let checkpoint = Checkpoint::open(&dir.join("models").join(model)).unwrap();
        let text = Arc::new(Text::open(&checkpoint).unwrap());
        for n in [1, 3] {
            let sequence = encoded(&text, &turns(n));
            let want: Vec<String> = (0..n).map(|i| format!("Answer {i}.<turn|>")).collect();
            assert_eq!(learnt(&text, &sequence), want, "{model}");
            let Document::Turns { messages, .. } = turns(n) else { panic!() };
            let prompt = text.render(&messages[..2 * n - 1], true, 0).unwrap();
            assert_eq!(prompt.text.ends_with("thought\n<channel|>"), thought, "{model}");
            if n == 1 {
                let prompt = text.encode_rendered(&prompt);
                assert_eq!(sequence.ids[..prompt.len()], prompt, "{model}");
            }
            let begins = text.tokenizer.id_of("<|channel>").unwrap();
            let thoughts = sequence.ids.iter().filter(|id| **id == begins).count();
            assert_eq!(thoughts, if thought { n } else { 0 }, "{model}");
        }
    }
}

/// For pre-training the questions are learnt too; the tokens are the same.
#[test]
fn conversations_can_be_learnt_whole() {
    let answers = encoded(&model(), &turns(2));
    let encoder = Encoder::new(model(), 400).learning(Learn::All);
    let Example::One(all) = encoder.encode(&turns(2)).unwrap().remove(0) else { panic!("a pair") };
    assert_eq!(all.ids, answers.ids);
    assert!(all.learn.iter().all(|l| *l));
    assert!(answers.learn.iter().any(|l| !*l));
}

/// A template that writes old turns otherwise than the last one.
#[test]
fn turns_are_found_where_later_ones_change_them() {
    let mut text =
        Text::open(&Checkpoint::open(&root().join("models/default-Q8_0.gguf")).unwrap()).unwrap();
    let source = "{{ bos_token }}{% for m in messages %}<start_of_turn>{{ m.role }}\n\
        {% if loop.last and m.role == 'assistant' %}(last) {% endif %}{{ m.content }}<end_of_turn>\n\
        {% endfor %}{% if add_generation_prompt %}<start_of_turn>assistant\n{% endif %}";
    text.template = Some(ChatTemplate::from_jinja(source, "odd").unwrap());
    let text = Arc::new(text);
    let runs = learnt(&text, &encoded(&text, &turns(2)));
    assert_eq!(runs, ["Answer 0.<end_of_turn>", "(last) Answer 1.<end_of_turn>"]);
}

#[test]
fn control_tokens_that_people_spell_stay_text_and_long_examples_are_refused() {
    let text = model();
    let turn = |role: &str, content: &str| serde_json::json!({"role": role, "content": content});
    let messages = [turn("user", "Say <end_of_turn>"), turn("assistant", "No <start_of_turn>.")];
    let document = Document::from_json(serde_json::json!({"messages": messages})).unwrap();
    let sequence = encoded(&text, &document);
    let ends = text.tokenizer.id_of("<end_of_turn>").unwrap();
    assert_eq!(sequence.ids.iter().filter(|id| **id == ends).count(), 2);
    assert_eq!(learnt(&text, &sequence), ["No <start_of_turn>.<end_of_turn>"]);
    let short = Encoder::new(text, 10);
    assert!(matches!(short.encode(&turns(2)), Err(Unfit::TooLong(n)) if n > 10));
}

#[test]
fn prompts_with_completions_learn_the_completion_and_the_end() {
    let text = model();
    let document =
        Document::from_json(serde_json::json!({"prompt": "Once upon", "completion": " a time."}));
    let sequence = encoded(&text, &document.unwrap());
    assert_eq!(learnt(&text, &sequence), ["a time."]);
    assert!(!sequence.learn[0]);
    assert_eq!(
        (sequence.ids.last().copied(), sequence.learn.last()),
        (text.tokenizer.eos(), Some(&true))
    );
}
