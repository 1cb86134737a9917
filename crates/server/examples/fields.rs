//! Prints the tables of docs/serving.md:
//! `cargo run -p lapidary-server --example fields`.

fn main() {
    print!("{}", lapidary_server::reference::document());
}
