//! safetensors: any bytes end in a file that holds together or in an error that names the field.
#![no_main]

use lapidary_formats::{Bytes, safetensors};
use lapidary_fuzz::{check_error, check_tensors};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    match safetensors::read("fuzz.safetensors".into(), Bytes::from(data.to_vec())) {
        Ok(file) => check_tensors(&file.tensors),
        Err(error) => check_error(&error, "fuzz.safetensors"),
    }
});
