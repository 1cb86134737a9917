//! Chat templates: any Jinja, given any conversation, ends in a prompt or an error.
//!
//! The input is a template, and perhaps a zero byte and the messages as JSON.
#![no_main]

use lapidary_formats::chat::{Builtin, ChatTemplate, Message, RenderOptions};
use lapidary_fuzz::check_error;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let (source, messages) = text.split_once('\0').unwrap_or((text, ""));
    let messages: Vec<Message> = serde_json::from_str(messages).unwrap_or_else(|_| default());
    let control = ["<end_of_turn>".to_owned(), "<end".to_owned()];
    let options = RenderOptions {
        add_generation_prompt: true,
        bos: "<bos>",
        eos: "<eos>",
        control: &control,
        now: 1_709_210_096,
        ..Default::default()
    };
    let own = ChatTemplate::from_jinja(source, "fuzz.jinja").map_err(|e| ("fuzz.jinja", e));
    let ours = [Builtin::Gemma, Builtin::Llama2].map(|b| Ok(ChatTemplate::builtin(b)));
    for template in [own].into_iter().chain(ours) {
        let result = template.and_then(|t| {
            let named = if t.name() == "fuzz.jinja" { "fuzz.jinja" } else { "built-in" };
            t.render_merging(&messages, &options).map_err(|e| (named, e))
        });
        match result {
            Ok((rendered, _)) => {
                for range in rendered.literal {
                    // Each spells a control token, on character borders.
                    let spelt = rendered.text.get(range);
                    assert!(spelt.is_some_and(|s| control.iter().any(|c| c == s)), "{spelt:?}");
                }
            }
            Err(("fuzz.jinja", error)) => check_error(&error, "fuzz.jinja"),
            Err((_, error)) => assert!(error.file.starts_with("built-in "), "{error}"),
        }
    }
});

fn default() -> Vec<Message> {
    vec![
        Message::new("system", "Be brief."),
        Message::new("user", "Hi <end_of_turn> é"),
        Message::new("assistant", " Hello. "),
        Message::new("user", "Bye"),
    ]
}
