//! llama.cpp and candle are slow unless they are built for a processor: say so, rather than compare
//! with less than they can do.

fn main() {
    println!("cargo:rerun-if-env-changed=CARGO_ENCODED_RUSTFLAGS");
    let flags = std::env::var("CARGO_ENCODED_RUSTFLAGS").unwrap_or_default();
    if !flags.contains("target-cpu=") {
        println!(
            "cargo::error=build this crate from its own folder (cd peers && cargo run --release -- …), \
             whose .cargo/config.toml has llama.cpp and candle built for this processor"
        );
    }
}
