//! Bodies of HTTP requests: any bytes, to any decoder, end in a job within its limits or an error
//! that a client can be shown.
//!
//! The first byte chooses the decoder and whether it is lenient; the rest is the body.
#![no_main]

use lapidary_server::failure::{Failure, Kind};
use lapidary_server::fields::Reading;
use lapidary_server::job::{Job, MOST_CHOICES, MOST_LOGPROBS, MOST_STOPS};
use lapidary_server::{anthropic, gemini, ollama, openai, own};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let Some((&first, body)) = data.split_first() else { return };
    let (which, lenient) = (first & 15, first & 16 != 0);
    let reading = Reading { lenient, either_case: (5..9).contains(&which) };
    let jobs = match which {
        0 => openai::chat::read(body, reading).map(|(_, job)| vec![job]),
        1 => openai::completions::read(body, reading).map(|(_, jobs)| jobs),
        2 => openai::responses::read(body, reading).map(|(_, job)| vec![job]),
        3 => openai::embeddings::read(body, reading).map(|_| vec![]),
        4 => anthropic::messages::read(body, reading).map(|(_, job)| vec![job]),
        5 => gemini::generate::read(body, reading).map(|(_, job)| vec![job]),
        6 => gemini::generate::read_count(body, reading).map(|_| vec![]),
        7 => gemini::embeddings::read(body, reading).map(|_| vec![]),
        8 => gemini::embeddings::read_batch(body, reading).map(|_| vec![]),
        9 => ollama::generate::read_chat(body, reading).map(|(_, job)| Vec::from_iter(job)),
        10 => ollama::generate::read_generate(body, reading).map(|(_, job)| Vec::from_iter(job)),
        11 => ollama::embed::read(body, reading).map(|_| vec![]),
        12 => ollama::models::read_show(body, reading).map(|_| vec![]),
        13 => own::read_tokenize(body, reading).map(|_| vec![]),
        14 => own::read_detokenize(body, reading).map(|_| vec![]),
        _ => anthropic::messages::read_count(body, reading).map(|_| vec![]),
    };
    match jobs {
        Ok(jobs) => jobs.iter().for_each(check_job),
        Err(failure) => check_failure(&failure),
    }
});

fn check_job(job: &Job) {
    assert!((1..=MOST_CHOICES).contains(&job.choices), "{job:?}");
    assert!(
        job.max_tokens != Some(0) && job.logprobs.is_none_or(|n| n <= MOST_LOGPROBS),
        "{job:?}"
    );
    let (count, bytes) = MOST_STOPS;
    assert!(job.stop.len() <= count, "{job:?}");
    assert!(job.stop.iter().all(|s| !s.is_empty() && s.len() <= bytes), "{job:?}");
}

fn check_failure(failure: &Failure) {
    assert_eq!(failure.kind, Kind::Invalid, "{failure:?}");
    assert!(!failure.message.is_empty());
}
