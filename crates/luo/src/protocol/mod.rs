//! The interface between luod and its clients, as types.
//!
//! The two Varlink definitions beside this module are the contract; these types are their Rust
//! form. A test checks that every method and error of the one is in the other.
//!
//! Invariants: nothing here does I/O; a field that a peer does not know is ignored, one that it
//! does not send takes its documented default.

mod manager;
mod session;
mod timeline;

pub use manager::*;
pub use session::*;
pub use timeline::*;

use serde::{Deserialize, Serialize};

/// The interface of luod's socket.
pub const MANAGER: &str = "io.luo";
/// The interface of a session.
pub const SESSION: &str = "io.luo.Session";
/// Varlink definition of [`MANAGER`].
pub const MANAGER_IDL: &str = include_str!("io.luo.varlink");
/// Varlink definition of [`SESSION`].
pub const SESSION_IDL: &str = include_str!("io.luo.Session.varlink");

/// The most descriptors that one message carries: Linux's `SCM_MAX_FD`.
pub const MAX_DESCRIPTORS: usize = 253;
/// Where luod listens unless it is told otherwise.
pub const DEFAULT_SOCKET: &str = "/run/luod/io.luo.sock";
/// The environment variable that names another socket.
pub const SOCKET_ENV: &str = "LUO_SOCKET";
/// What a packet on a session's descriptor contains: the descriptor of the stream that comes with
/// it is to be served as one more connection of that session.
pub const CONNECT_PACKET: &[u8] = b"luo-session-v1";

/// Where the machine or a session is in the cycle.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// Nothing goes on.
    Normal,
    /// Everything that can be kept while the workload runs is kept.
    Prepared,
    /// Everything is kept; nothing may change.
    Frozen,
    /// The other side has begun; files can be retrieved.
    Updated,
}

impl State {
    /// The word for it on the wire and in reports.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Normal => "normal",
            Self::Prepared => "prepared",
            Self::Frozen => "frozen",
            Self::Updated => "updated",
        }
    }
}

/// What becomes of files that nobody retrieved when their live update is finished.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Unclaimed {
    /// Finishing is refused with EBUSY, and the error names them.
    #[default]
    Refuse,
    /// They are let go.
    Release,
    /// They go along in the next update.
    Carry,
}

/// What becomes of a session when the last copy of its descriptor is closed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OnClose {
    /// It ends and its files are let go, as in the kernel.
    Release,
    /// It waits until somebody claims it.
    #[default]
    Keep,
}

/// A session's policy. The default keeps it without a time limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
pub struct Policy {
    /// What becomes of it when nobody holds it.
    pub on_close: OnClose,
    /// With [`OnClose::Keep`]: after how many seconds it ends all the same.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ttl_seconds: Option<u64>,
}

/// A call, as it goes over the wire.
#[derive(Debug, Serialize, Deserialize)]
pub struct Call<'a, P> {
    /// The interface and method, with a dot between.
    pub method: &'a str,
    /// The method's parameters.
    #[serde(default)]
    pub parameters: P,
    /// Replies may come in parts.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub more: bool,
    /// No reply is wanted.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub oneway: bool,
}

/// A reply, as it goes over the wire.
#[derive(Debug, Serialize, Deserialize)]
pub struct Reply<'a, P> {
    /// The parameters of the reply or error.
    #[serde(default)]
    pub parameters: P,
    /// More replies to the same call follow.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub continues: bool,
    /// The error's interface and name, with a dot between.
    #[serde(default, skip_serializing_if = "Option::is_none", borrow)]
    pub error: Option<std::borrow::Cow<'a, str>>,
}

/// Parameters of a call or reply that has none.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Nothing {}

#[cfg(test)]
mod tests;
