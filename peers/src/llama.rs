//! llama.cpp through its C interface, with the settings of its own `llama-bench`.

use llama_cpp_sys_2 as sys;
use std::ffi::{CStr, CString, c_char, c_void};
use std::ptr::null_mut;

type Result<T> = std::result::Result<T, String>;

/// A loaded model and a context.
pub struct Llama {
    model: *mut sys::llama_model,
    context: *mut sys::llama_context,
    vocab: *const sys::llama_vocab,
    batch: usize,
}

/// A token on its way: id, position, sequence, whether its logits are wanted.
pub type Entry = (u32, usize, usize, bool);

unsafe extern "C" fn silent(level: sys::ggml_log_level, text: *const c_char, _: *mut c_void) {
    if level == sys::GGML_LOG_LEVEL_ERROR {
        // SAFETY: llama.cpp passes a string that ends with a zero.
        eprint!("llama.cpp: {}", unsafe { CStr::from_ptr(text) }.to_string_lossy());
    }
}

/// What llama.cpp was built for, in its words.
pub fn system() -> String {
    // SAFETY: a static string that ends with a zero.
    unsafe { CStr::from_ptr(sys::llama_print_system_info()) }.to_string_lossy().into_owned()
}

impl Llama {
    /// Loads `file` with room for `tokens` in each of `sequences`.
    pub fn load(file: &str, threads: usize, tokens: usize, sequences: usize) -> Result<Self> {
        let path = CString::new(file).map_err(|e| e.to_string())?;
        // SAFETY: the calls follow llama.h; the pointers are checked before they are used, and
        // `drop` frees them once.
        unsafe {
            sys::llama_log_set(Some(silent), null_mut());
            sys::llama_backend_init();
            let model =
                sys::llama_model_load_from_file(path.as_ptr(), sys::llama_model_default_params());
            if model.is_null() {
                return Err(format!("llama.cpp does not load {file}"));
            }
            let mut p = sys::llama_context_default_params();
            p.n_ctx = (tokens.next_multiple_of(256) * sequences) as u32;
            p.n_seq_max = sequences as u32;
            p.n_threads = threads as i32;
            p.n_threads_batch = threads as i32;
            p.n_outputs_max_per_seq = 0;
            // As its tools set it: the local layers' cache keeps the window alone.
            p.swa_full = false;
            let batch = p.n_batch as usize;
            let context = sys::llama_init_from_model(model, p);
            if context.is_null() {
                sys::llama_model_free(model);
                return Err(format!("llama.cpp makes no context of {tokens} tokens for {file}"));
            }
            Ok(Self { model, context, vocab: sys::llama_model_get_vocab(model), batch })
        }
    }

    /// Entries of the vocabulary.
    pub fn vocab(&self) -> usize {
        // SAFETY: the vocabulary lives as long as the model.
        unsafe { sys::llama_vocab_n_tokens(self.vocab) as usize }
    }

    /// The tokens of a text, with the one that a prompt begins with.
    pub fn tokenize(&self, text: &str) -> Result<Vec<u32>> {
        let mut ids = vec![0i32; text.len() + 8];
        // SAFETY: both buffers are as long as said.
        let n = unsafe {
            sys::llama_tokenize(
                self.vocab,
                text.as_ptr().cast(),
                text.len() as i32,
                ids.as_mut_ptr(),
                ids.len() as i32,
                true,
                false,
            )
        };
        let n = usize::try_from(n).map_err(|_| "llama.cpp does not tokenize the prompt")?;
        Ok(ids[..n].iter().map(|i| *i as u32).collect())
    }

    /// Computes `entries`, in passes of the batch's size; then [`logits`](Self::logits) has those of
    /// the last pass.
    pub fn decode(&mut self, entries: &[Entry]) -> Result<()> {
        for part in entries.chunks(self.batch) {
            // SAFETY: the batch has room for the part, each token has one sequence, and the batch is
            // freed before it goes.
            let status = unsafe {
                let mut batch = sys::llama_batch_init(part.len() as i32, 0, 1);
                batch.n_tokens = part.len() as i32;
                for (i, &(id, position, sequence, wanted)) in part.iter().enumerate() {
                    *batch.token.add(i) = id as i32;
                    *batch.pos.add(i) = position as i32;
                    *batch.n_seq_id.add(i) = 1;
                    **batch.seq_id.add(i) = sequence as i32;
                    *batch.logits.add(i) = i8::from(wanted);
                }
                let status = sys::llama_decode(self.context, batch);
                sys::llama_batch_free(batch);
                status
            };
            if status != 0 {
                return Err(format!("llama_decode: {status}"));
            }
        }
        Ok(())
    }

    /// The logits of entry `i` of the last pass, which were wanted.
    pub fn logits(&mut self, i: usize) -> Result<&[f32]> {
        // SAFETY: the pointer is checked; its vocabulary's worth of values live until the next pass.
        unsafe {
            let p = sys::llama_get_logits_ith(self.context, i as i32);
            if p.is_null() {
                return Err(format!("llama.cpp has no logits of row {i}"));
            }
            Ok(std::slice::from_raw_parts(p, self.vocab()))
        }
    }

    /// Forgets all sequences.
    pub fn clear(&mut self) {
        // SAFETY: the context is alive.
        unsafe { sys::llama_memory_clear(sys::llama_get_memory(self.context), true) }
    }
}

impl Drop for Llama {
    fn drop(&mut self) {
        // SAFETY: both are alive and freed once, the context first.
        unsafe {
            sys::llama_free(self.context);
            sys::llama_model_free(self.model);
        }
    }
}
