//! Types of the interface `io.luo.Session`.

use serde::{Deserialize, Serialize};

use super::{State, Unclaimed};

/// Reply of `GetInfo`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Info {
    /// The session's name.
    pub name: String,
    /// Where it is in the cycle.
    pub state: State,
    /// Tokens of the files that go along in the next update.
    pub files: Vec<u64>,
    /// Tokens of the files that came over.
    pub incoming: Vec<u64>,
}

/// Parameters of `Preserve`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Preserve {
    /// How many descriptors come along.
    pub count: usize,
    /// A token for each; without them they are assigned.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tokens: Option<Vec<u64>>,
    /// Whether failing to keep one of them cancels an update. Default true.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub required: Option<bool>,
    /// Names the request, so that it can be sent again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub request: Option<u64>,
}

/// One of several was refused.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Refused {
    /// Its position in the request.
    pub index: usize,
    /// Its token, where it has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub token: Option<u64>,
    /// The kernel ABI's name for it.
    pub errno: String,
    /// A sentence a person understands.
    pub reason: String,
}

/// Reply of `Preserve`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Preserved {
    /// A token for each descriptor, 0 for one that was refused without a token.
    pub tokens: Vec<u64>,
    /// Those that were refused.
    #[serde(default)]
    pub refused: Vec<Refused>,
}

/// Parameters of `Duplicate`.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub struct Duplicate {
    /// The token that the file is preserved under, or one of its duplicates.
    pub original: u64,
    /// The new token; without it, one is assigned.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub token: Option<u64>,
    /// Whether failing to keep it cancels an update. Default true.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub required: Option<bool>,
    /// Names the request, so that it can be sent again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub request: Option<u64>,
}

/// Reply of `Duplicate`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Duplicated {
    /// The new token.
    pub token: u64,
}

/// Parameters of `Allocate`.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub struct Allocate {
    /// The token under which it is preserved.
    pub token: u64,
    /// How many bytes, at least one.
    pub length: u64,
    /// Whether failing to keep it cancels an update. Default true.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub required: Option<bool>,
    /// Names the request, so that it can be sent again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub request: Option<u64>,
}

/// Where memory is in its descriptor's file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Range {
    /// Where it begins, in bytes.
    pub offset: u64,
    /// Its length in bytes.
    pub length: u64,
}

/// Reply of `Allocate`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Allocated {
    /// Where the memory is in the file whose descriptor comes along; without it, there is none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub range: Option<Range>,
    /// Why there is none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

/// Parameters of `GetKernelSession`.
#[derive(Debug, Clone, Copy, Default, Serialize, Deserialize)]
pub struct GetKernelSession {
    /// The one that came from the kernel before. Default: the one for the next kernel.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub arrived: Option<bool>,
}

/// Reply of `GetKernelSession`; its descriptor comes along.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct KernelSessionGiven {
    /// What the kernel calls it.
    pub name: String,
    /// The client's tokens are 0 to this one.
    pub last_token: u64,
}

/// Parameters of `Unpreserve`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Unpreserve {
    /// Which files.
    pub tokens: Vec<u64>,
    /// Names the request, so that it can be sent again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub request: Option<u64>,
}

/// Reply of `Unpreserve`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Unpreserved {
    /// Those that were refused.
    #[serde(default)]
    pub refused: Vec<Refused>,
}

/// Parameters of `Retrieve`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Retrieve {
    /// Which files, at most 253.
    pub tokens: Vec<u64>,
}

/// Reply of `Retrieve`; a descriptor for each token comes along.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Retrieved {
    /// The tokens of the descriptors, in their order.
    pub tokens: Vec<u64>,
    /// Those that were refused.
    #[serde(default)]
    pub refused: Vec<Refused>,
}

/// Parameters of `Finish`.
#[derive(Debug, Clone, Copy, Default, Serialize, Deserialize)]
pub struct Finish {
    /// What becomes of files that were not retrieved. Default refuse.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unclaimed: Option<Unclaimed>,
    /// Retrieved files go along in the next update without being given again. Default false.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub carry_reclaimed: Option<bool>,
    /// Names the request, so that it can be sent again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub request: Option<u64>,
}

/// Parameters of the error `io.luo.Session.Failed`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct SessionFailed {
    /// The kernel ABI's name for it.
    pub errno: String,
    /// A sentence a person understands.
    pub reason: String,
    /// The file it is about.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub token: Option<u64>,
    /// The handler it is about.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub handler: Option<String>,
}
