//! kv: placeholder until the server is there.
fn main() {}
