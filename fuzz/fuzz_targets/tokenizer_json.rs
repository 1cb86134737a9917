//! tokenizer.json: any bytes end in a tokenizer that encodes and decodes, or in an error that names the field.
#![no_main]

use lapidary_formats::tokenizer::Tokenizer;
use lapidary_fuzz::{check_error, check_tokenizer};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    match Tokenizer::from_json(data, "fuzz") {
        Ok(tokenizer) => check_tokenizer(&tokenizer),
        Err(error) => check_error(&error, "fuzz"),
    }
});
