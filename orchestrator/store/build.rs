//! A new file in the migrations folder must rebuild the crate that embeds them.

fn main() {
    println!("cargo:rerun-if-changed=../../migrations");
}
