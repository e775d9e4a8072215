//! Joins.
fn main() {}
