//! The migrations are part of the binary: a new one has to compile it anew.

fn main() {
    println!("cargo:rerun-if-changed=migrations");
}
