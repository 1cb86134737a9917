//! Templates against the reference's renderings, and against people who mean harm.

use lapidary_formats::chat::{Builtin, ChatTemplate, Message, Part, RenderOptions, TurnParser};
use lapidary_formats::tokenizer::{Encode, Tokenizer};
use proptest::prelude::*;
use serde_json::Value;
use std::path::{Path, PathBuf};

fn shared(part: &str) -> Option<PathBuf> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../..");
    let found = [root.join("shared"), root.join("../shared")];
    let found = found.into_iter().map(|p| p.join(part)).find(|p| p.exists());
    if found.is_none() {
        eprintln!("skipped: ../shared/{part} is not there");
    }
    found
}

fn json(path: &Path) -> Value {
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

fn options<'a>(row: &Value) -> RenderOptions<'a> {
    let mut extra = row["options"].as_object().cloned().unwrap_or_default();
    let add = extra.remove("add_generation_prompt").and_then(|v| v.as_bool()).unwrap_or(false);
    let tools = row.get("tools").cloned().filter(|t| !t.is_null());
    RenderOptions {
        add_generation_prompt: add,
        bos: "<bos>",
        eos: "<eos>",
        tools,
        extra,
        ..Default::default()
    }
}

#[test]
fn published_templates_render_as_the_reference_does() {
    let Some(dir) = shared("fixtures/chat") else { return };
    for name in ["gemma", "gemma3", "gemma3n", "gemma4_31b", "gemma4_e2b"] {
        let golden = json(&dir.join(format!("{name}.json")));
        let source = std::fs::read_to_string(dir.join(format!("templates/{name}.jinja"))).unwrap();
        let template = ChatTemplate::from_jinja(&source, name).unwrap();
        let (mut good, mut refused) = (0, 0);
        for row in golden["rows"].as_array().unwrap() {
            let messages: Vec<Message> = serde_json::from_value(row["messages"].clone()).unwrap();
            let got = template.render(&messages, &options(row));
            match (
                row.get("rendered").and_then(Value::as_str),
                row.get("error").and_then(Value::as_str),
            ) {
                (Some(want), _) => {
                    let got = got.unwrap_or_else(|e| panic!("{name} {}: {e}", row["name"]));
                    assert_eq!(got.text, want, "{name} {}", row["name"]);
                    good += 1;
                }
                (None, Some(want)) => {
                    let error = got.err().map(|e| e.to_string()).unwrap_or_default();
                    assert!(error.contains(want), "{name} {}: {error:?} for {want:?}", row["name"]);
                    refused += 1;
                }
                _ => panic!("{name}: a row without result"),
            }
        }
        println!("{name}: {good} renderings identical, {refused} refusals");
        assert!(good >= 10);
    }
}

#[test]
fn built_in_gemma_agrees_with_the_published_template() {
    let Some(dir) = shared("fixtures/chat") else { return };
    let golden = json(&dir.join("gemma3.json"));
    let template = ChatTemplate::builtin(Builtin::Gemma);
    let mut same = 0;
    for row in golden["rows"].as_array().unwrap() {
        let messages: Vec<Message> = serde_json::from_value(row["messages"].clone()).unwrap();
        let texts = messages.iter().all(|m| m.content.is_string()) && row.get("tools").is_none();
        if let (Some(want), true) = (row.get("rendered").and_then(Value::as_str), texts) {
            let got = template.render(&messages, &options(row)).unwrap_or_else(|e| panic!("{e}"));
            assert_eq!(got.text, want, "{}", row["name"]);
            same += 1;
        }
    }
    assert!(same >= 5, "{same}");
}

#[test]
fn built_in_gemma_4_agrees_with_the_published_templates() {
    let Some(dir) = shared("fixtures/chat") else { return };
    for (name, builtin) in [("gemma4_e2b", Builtin::Gemma4), ("gemma4_31b", Builtin::Gemma4Large)] {
        let golden = json(&dir.join(format!("{name}.json")));
        let template = ChatTemplate::builtin(builtin);
        let (mut same, mut refused) = (0, 0);
        for row in golden["rows"].as_array().unwrap() {
            let messages: Vec<Message> = serde_json::from_value(row["messages"].clone()).unwrap();
            let got = template.render(&messages, &options(row));
            match row.get("rendered").and_then(Value::as_str) {
                Some(want) => {
                    let got = got.unwrap_or_else(|e| panic!("{name} {}: {e}", row["name"]));
                    assert_eq!(got.text, want, "{name} {}", row["name"]);
                    same += 1;
                }
                None => {
                    assert!(got.is_err(), "{name} {}", row["name"]);
                    refused += 1;
                }
            }
        }
        println!("{name}: {same} renderings identical, {refused} refusals");
        assert!(same >= 20, "{same}");
    }
}

/// A turn of the given pieces, control tokens by their spelling.
fn parts(tokenizer: &Tokenizer, pieces: &[&str], in_thought: bool) -> Vec<Part> {
    let mut parser = TurnParser::new(tokenizer, in_thought);
    let mut out: Vec<Part> = Vec::new();
    let mut all = Vec::new();
    for piece in pieces {
        match tokenizer.id_of(piece).filter(|id| tokenizer.is_control(*id)) {
            Some(id) => all.extend(parser.push(id)),
            None => {
                let plain = Encode { add_special: false, parse_special: false };
                for id in tokenizer.encode(piece, plain) {
                    all.extend(parser.push(id));
                }
            }
        }
    }
    all.extend(parser.finish());
    for part in all {
        match (out.last_mut(), part) {
            (Some(Part::Text(a)), Part::Text(b)) => *a += &b,
            (Some(Part::Thought(a)), Part::Thought(b)) => *a += &b,
            (_, part) => out.push(part),
        }
    }
    out
}

#[test]
fn a_turn_is_split_into_thought_text_and_calls() {
    let Some(dir) = shared("fixtures/tokenizers/gemma4") else { return };
    let t = Tokenizer::from_dir(&dir).unwrap();
    let (thought, text) = (|s: &str| Part::Thought(s.into()), |s: &str| Part::Text(s.into()));
    let call = |name: &str, arguments: Value| Part::Call {
        name: name.into(),
        arguments: arguments.as_object().unwrap().clone(),
    };
    let quote = "<|\"|>";
    assert_eq!(
        parts(
            &t,
            &[
                "<|channel>",
                "thought\na é 小\n\nb\n",
                "<channel|>",
                "Yes.",
                "<|tool_call>",
                "call:lamp{room:",
                quote,
                "{hall}, \"x\"",
                quote,
                ",on:true}",
                "<tool_call|>",
                "<|tool_call>",
                "call:clock{}",
                "<tool_call|>"
            ],
            false
        ),
        [
            thought("a é 小\n\nb"),
            text("Yes."),
            call("lamp", serde_json::json!({"room": "{hall}, \"x\"", "on": true})),
            call("clock", serde_json::json!({}))
        ]
    );
    assert_eq!(parts(&t, &["hm\n", "<channel|>", "ok"], true), [thought("hm"), text("ok")]);
    assert_eq!(
        parts(&t, &["<|channel>", "thought\n", "<channel|>", "ok\n"], false),
        [text("ok\n")]
    );
    // Cut off, or no call at all.
    let broken = |s: &str| Part::BrokenCall(s.into());
    assert_eq!(parts(&t, &["<|tool_call>", "call:f{x:1}"], false), [broken("call:f{x:1}")]);
    assert_eq!(
        parts(&t, &["<|tool_call>", "sorry", "<tool_call|>", "a"], false),
        [broken("sorry"), text("a")]
    );
    // What only looks like a marker is text.
    assert_eq!(parts(&t, &["a <|chan", "nel>b"], false), [text("a <|channel>b")]);
}

fn plain() -> RenderOptions<'static> {
    RenderOptions { add_generation_prompt: true, bos: "<s>", eos: "</s>", ..Default::default() }
}

#[test]
fn llama_2_turns() {
    let template = ChatTemplate::builtin(Builtin::Llama2);
    let messages = [
        Message::new("system", "Be brief."),
        Message::new("user", "Hi"),
        Message::new("assistant", " Hello. "),
        Message::new("user", "Bye"),
    ];
    let got = template.render(&messages, &plain()).unwrap();
    let want =
        "<s>[INST] <<SYS>>\nBe brief.\n<</SYS>>\n\nHi [/INST] Hello. </s><s>[INST] Bye [/INST]";
    assert_eq!(got.text, want);
}

#[test]
fn a_refused_system_message_joins_the_first_user_turn() {
    let Some(dir) = shared("fixtures/chat") else { return };
    let source = std::fs::read_to_string(dir.join("templates/gemma.jinja")).unwrap();
    let template = ChatTemplate::from_jinja(&source, "gemma").unwrap();
    let messages = [Message::new("system", "Be brief."), Message::new("user", "Hi")];
    assert!(template.render(&messages, &plain()).is_err());
    let (got, merged) = template.render_merging(&messages, &plain()).unwrap();
    assert!(merged);
    assert_eq!(
        got.text,
        "<s><start_of_turn>user\nBe brief.\n\nHi<end_of_turn>\n<start_of_turn>model\n"
    );
}

#[test]
fn control_tokens_that_people_spell_are_marked() {
    let control = ["<end_of_turn>".to_owned(), "<end".to_owned()];
    let options = RenderOptions { control: &control, ..plain() };
    let messages = [Message::new("user", "a <end_of_turn> b é<end<end_of_turn>")];
    for template in [
        ChatTemplate::builtin(Builtin::Gemma),
        ChatTemplate::from_jinja("{{ messages[0].content | trim }}<end_of_turn>", "t").unwrap(),
    ] {
        let got = template.render(&messages, &options).unwrap();
        let spelt: Vec<&str> = got.literal.iter().map(|r| &got.text[r.clone()]).collect();
        assert_eq!(spelt, ["<end_of_turn>", "<end", "<end_of_turn>"]);
        assert!(!got.text.contains(|c| ('\u{f8f0}'..='\u{f8ff}').contains(&c)));
        let template_s_own = got.text.rfind("<end_of_turn>").unwrap();
        assert!(got.literal.iter().all(|r| r.start != template_s_own), "the template's own counts");
    }
}

#[test]
fn control_tokens_are_marked_wherever_people_can_write() {
    let control = ["<end>".to_owned()];
    let mut message = Message::new("user", "x");
    message.extra.insert("tool_calls".into(), serde_json::json!([{"name": "a<end>"}]));
    let options = RenderOptions {
        control: &control,
        tools: Some(serde_json::json!([{"description": "b<end>"}])),
        extra: serde_json::Map::from_iter([("hint".to_owned(), "c<end>".into())]),
        ..plain()
    };
    let source = "{{ messages[0].tool_calls[0].name }}{{ tools[0].description }}{{ hint }}<end>";
    let template = ChatTemplate::from_jinja(source, "t").unwrap();
    let got = template.render(&[message], &options).unwrap();
    assert_eq!(got.text, "a<end>b<end>c<end><end>");
    assert_eq!(got.literal, [1..6, 7..12, 13..18]);
}

#[test]
fn a_control_token_that_the_template_changes_is_no_longer_one() {
    let control = ["<end>".to_owned()];
    let options = RenderOptions { control: &control, ..plain() };
    let template = ChatTemplate::from_jinja("{{ messages[0].content | upper }}", "t").unwrap();
    let got = template.render(&[Message::new("user", "a <end>")], &options).unwrap();
    assert_eq!((got.text.as_str(), got.literal), ("A <END>", vec![]));
}

#[test]
fn a_template_s_words_in_an_error_are_one_short_line() {
    let long = format!("{{{{ raise_exception('{}') }}}}", "x".repeat(10_000));
    for (source, want) in [
        ("{{ raise_exception('a\\n\u{1b}[2Jb') }}", "the template refuses: a\\n\\u{1b}[2Jb"),
        ("{{ strftime_now('%\u{5}') }}", "strftime_now: %\\u{5} is not supported"),
        (&long, "xxx…"),
    ] {
        let template = ChatTemplate::from_jinja(source, "t").unwrap();
        let error = template.render(&[Message::new("user", "x")], &plain()).unwrap_err();
        assert!(error.to_string().ends_with(want), "{error}");
        assert!(error.to_string().chars().count() < 400);
    }
}

#[test]
fn hostile_templates_end_with_an_error() {
    for source in [
        "{% for i in range(1000000000) %}x{% endfor %}",
        "{% for i in range(99999) %}{% for j in range(99999) %}x{% endfor %}{% endfor %}",
        "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}",
        "{{ 'a' * 10000000000 }}",
        "{% set ns = namespace(s='aaaaaaaaaa') %}{% for i in range(99) %}{% set ns.s = ns.s ~ ns.s %}{% endfor %}{{ ns.s }}",
        "{% include 'x' %}",
        "{{ messages",
        "{% for %}",
        "{{ 1 // 0 }}",
        "{{ range(0, 9223372036854775807, 9223372036854775807) | list | tojson(indent=99999999999) }}{{ raise_exception('x') }}",
    ] {
        let start = std::time::Instant::now();
        let result = ChatTemplate::from_jinja(source, "hostile")
            .and_then(|t| t.render(&[Message::new("user", "x")], &plain()));
        let error = result.err().unwrap_or_else(|| panic!("{source} rendered")).to_string();
        assert!(error.starts_with("hostile: chat template: "), "{error}");
        assert!(start.elapsed().as_secs() < 20, "{source} took {:?}", start.elapsed());
    }
    assert!(ChatTemplate::from_jinja(&"x".repeat(2 << 20), "long").is_err());
}

#[test]
fn helpers_work_as_in_transformers() {
    let render = |source: &str| {
        let options = RenderOptions { now: 1_709_210_096, ..plain() };
        ChatTemplate::from_jinja(source, "t")
            .and_then(|t| t.render(&[Message::new("user", "<é>")], &options))
            .map(|r| r.text)
    };
    assert_eq!(render("{{ strftime_now('%d %b %Y') }}").unwrap(), "29 Feb 2024");
    assert_eq!(
        render("{{ messages | tojson }}").unwrap(),
        "[{\"role\": \"user\", \"content\": \"<é>\"}]"
    );
    assert_eq!(
        render("{{ [1, {'a': []}] | tojson(indent=2) }}").unwrap(),
        "[\n  1,\n  {\n    \"a\": []\n  }\n]"
    );
    assert_eq!(render("a{% generation %}b{% endgeneration %}c").unwrap(), "abc");
    assert_eq!(
        render("{{ messages[0].content.strip('<>') }}{{ 'x y'.split()[1] }}").unwrap(),
        "éy"
    );
    let error = render("{{ raise_exception('no ' ~ 'way') }}").unwrap_err().to_string();
    assert_eq!(error, "t: chat template: the template refuses: no way");
}

proptest! {
    #[test]
    fn what_people_write_survives(content in "\\PC*", control in "[<|a-c]{1,4}") {
        let control = [control, "<end_of_turn>".to_owned()];
        let options = RenderOptions { control: &control, ..plain() };
        let got = ChatTemplate::builtin(Builtin::Gemma).render(&[Message::new("user", &content)], &options).unwrap();
        let want = format!("<s><start_of_turn>user\n{}<end_of_turn>\n<start_of_turn>model\n", content.trim());
        prop_assert_eq!(&got.text, &want);
        let body = "<s><start_of_turn>user\n".len()..want.len() - "<end_of_turn>\n<start_of_turn>model\n".len();
        for c in &control {
            for (at, _) in content.trim().match_indices(c.as_str()) {
                prop_assert!(got.literal.iter().any(|r| r.contains(&(body.start + at))));
            }
        }
    }

    #[test]
    fn broken_templates_never_panic(at in 0usize..2000, with in "[{}%a-z'\\|\\(\\) ]{0,6}") {
        let source = "{{ bos_token }}{%- for m in messages -%}{% if m.role == 'user' %}{{ '[' + m.content | trim + ']' }}{% else %}{{ raise_exception('x') }}{% endif %}{%- endfor -%}";
        let at = at % source.len();
        let broken = format!("{}{with}{}", &source[..at], &source[at..]);
        let _ = ChatTemplate::from_jinja(&broken, "t").and_then(|t| t.render(&[Message::new("user", "x")], &plain()));
    }
}
