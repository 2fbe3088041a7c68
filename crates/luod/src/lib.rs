//! The daemon of luo: the keeper process, and the store through which its worker keeps things.

pub mod keeper;
pub mod store;
