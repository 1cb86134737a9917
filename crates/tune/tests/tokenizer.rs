//! A tokenizer made here, read back by our readers in both of its forms. That the reference
//! libraries read them and encode alike is checked by `tools/check_tokenizer.py`.

use lapidary_formats::chat::{ChatTemplate, Message, RenderOptions};
use lapidary_formats::tokenizer::{Encode, Tokenizer};
use lapidary_tune::data::Rng;
use lapidary_tune::tokenizer::{TokenizerOptions, Trained, train_tokenizer};
use std::path::PathBuf;

const PLAIN: Encode = Encode { add_special: false, parse_special: false };

/// A text of words that follow a Zipf-like distribution, the same every time.
fn corpus(name: &str) -> PathBuf {
    let mut rng = Rng::new(1, 1);
    let syllables =
        ["ka", "lo", "mi", "ter", "en", "sto", "ry", "é", "un", "ing", "ed", "the", "x"];
    let words: Vec<String> = (0..400)
        .map(|_| (0..1 + rng.below(4)).map(|_| syllables[rng.below(13)]).collect())
        .collect();
    let mut text = String::new();
    for i in 0..30_000 {
        let draw = rng.unit() * rng.unit() * rng.unit();
        text += &words[(draw * 400.0) as usize];
        text += match i % 23 {
            0 => ".\n",
            7 => ", ",
            11 => " 42 ",
            13 => "  ",
            _ => " ",
        };
    }
    text += "日本 🙂";
    let path = std::env::temp_dir().join(format!("lapidary-tok-{name}-{}.txt", std::process::id()));
    std::fs::write(&path, text).unwrap();
    path
}

fn trained(name: &str, threads: usize) -> Trained {
    let path = corpus(name);
    let options = TokenizerOptions { vocab: 500, threads, ..TokenizerOptions::default() };
    let trained = train_tokenizer(std::slice::from_ref(&path), None, &options).unwrap();
    std::fs::remove_file(path).unwrap();
    trained
}

#[test]
fn the_result_does_not_depend_on_threads() {
    let one = trained("one", 1);
    assert_eq!(one.vocab(), 500);
    assert_eq!(one, trained("many", 5));
}

#[test]
fn both_forms_encode_alike_and_give_the_text_back() {
    let dir = std::env::temp_dir().join(format!("lapidary-tok-out-{}", std::process::id()));
    trained("forms", 2).write(&dir).unwrap();
    let json = Tokenizer::from_dir(&dir).unwrap();
    let model = std::fs::read(dir.join("tokenizer.model")).unwrap();
    let model = Tokenizer::from_sentencepiece(&model, "made").unwrap();
    assert_eq!((json.vocab_size(), model.vocab_size()), (500, 500));
    assert_eq!(json.piece(105 - 100), Some("<start_of_turn>"));
    let mut fewer = 0;
    for text in [
        "kalomi the story  unending.\n\n\n\n\nx",
        "   spaces   and\ttabs 1234567",
        "日本語 and emoji 🙂🙂 é e\u{301}",
        "",
        " ",
        "<start_of_turn>user",
        "\n\nkaka lolo ▁ under_score",
    ] {
        let ids = json.encode(text, PLAIN);
        assert_eq!(model.encode(text, PLAIN), ids, "{text:?}");
        assert_eq!(json.decode(&ids, false), text.replace('▁', " "), "{text:?}");
        assert_eq!(model.decode(&ids, false), text.replace('▁', " "), "{text:?}");
        fewer += usize::from(ids.len() < text.chars().count());
    }
    assert!(fewer >= 2, "nothing was merged");
    // Digits stand alone, and no piece crosses from one word into the next.
    for id in 0..500 {
        let piece = json.piece(id).unwrap();
        let digits = piece.chars().filter(char::is_ascii_digit).count();
        let control = json.is_control(id) || piece.starts_with("<0x");
        assert!(control || digits == 0 || piece.chars().count() == 1, "{piece}");
        assert!(control || piece.trim_start_matches('▁').find('▁').is_none(), "{piece}");
    }
    let template = ChatTemplate::from_dir(&dir, "gemma3_text").unwrap().unwrap();
    let messages = [
        Message::new("system", "Be brief."),
        Message::new("user", "Hi"),
        Message::new("assistant", " Ho "),
        Message::new("user", "?"),
    ];
    let options =
        RenderOptions { add_generation_prompt: true, bos: "<bos>", ..RenderOptions::default() };
    let want = "<bos><start_of_turn>user\nBe brief.\n\nHi<end_of_turn>\n<start_of_turn>model\nHo\
                <end_of_turn>\n<start_of_turn>user\n?<end_of_turn>\n<start_of_turn>model\n";
    assert_eq!(template.render(&messages, &options).unwrap().text, want);
    std::fs::remove_dir_all(dir).unwrap();
}

#[test]
fn impossible_sizes_say_what_is_possible() {
    let path = corpus("sizes");
    let with = |vocab| {
        let options = TokenizerOptions { vocab, ..TokenizerOptions::default() };
        train_tokenizer(std::slice::from_ref(&path), None, &options).unwrap_err().to_string()
    };
    assert!(with(200).contains("already take"), "{}", with(200));
    assert!(with(1_000_000).contains("ask for fewer"), "{}", with(1_000_000));
    std::fs::remove_file(path).unwrap();
}
