//! GGUF: any bytes end in a file that holds together or in an error that names the field.
#![no_main]

use lapidary_formats::{Bytes, gguf};
use lapidary_fuzz::{check_error, check_tensors};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    match gguf::read("fuzz.gguf".into(), Bytes::from(data.to_vec())) {
        Ok(file) => {
            check_tensors(&file.tensors);
            for (key, value) in file.metadata.iter() {
                assert!(file.metadata.get(key).is_some_and(|v| std::ptr::eq(v, value)), "{key}");
            }
        }
        Err(error) => check_error(&error, "fuzz.gguf"),
    }
});
