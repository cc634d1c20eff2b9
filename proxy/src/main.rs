//! (not written yet)
fn main() {}
