//! luo's file handlers.
pub const LIVE_COMPATIBLE: &str = "live-v1";
