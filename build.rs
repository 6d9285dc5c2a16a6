//! Migrations are embedded at compile time; cargo has to know when one changes.

fn main() {
    println!("cargo:rerun-if-changed=migrations");
}
