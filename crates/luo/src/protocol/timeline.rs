//! Types of `GetTimeline`, of the interface `io.luo`.

use serde::{Deserialize, Serialize};

/// What took how long.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Span {
    /// `prepare`, `freeze`, `shutdown`, `boot`, `arrive`, `claim`, `retrieve` or `finish`. From `shutdown`
    /// to `boot` is from the end of `freeze` to the luod that arrives; where the kernel stayed it is
    /// `restart` in place of both.
    pub phase: String,
    /// The session, where it is about one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub session: Option<String>,
    /// The participant, where it is about one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub participant: Option<String>,
    /// When it began, in microseconds since `freeze` began: negative for what came before.
    pub began: i64,
    /// How long it took, in microseconds.
    pub microseconds: u64,
}

/// How long nothing was served: from the begin of `freeze` to the first session that is ready.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Blackout {
    /// Its length.
    pub microseconds: u64,
    /// By how much that may be wrong, in either direction.
    pub error_microseconds: u64,
    /// It is a lower bound: the clock was set back between the two kernels.
    pub at_least: bool,
    /// The session that was ready first.
    pub session: String,
}

/// A live update's times.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Timeline {
    /// The live update's number.
    pub number: u64,
    /// The carrier that it went through.
    pub carrier: String,
    /// When `freeze` began, in microseconds since 1970, by the clock of the side that departed.
    pub frozen_at: u64,
    /// Whether the kernel stayed.
    pub same_kernel: bool,
    /// The id of the boot that departed, where it is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub boot_before: Option<String>,
    /// The id of the boot that arrived, where it is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub boot_after: Option<String>,
    /// `None` where no session is ready yet.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub blackout: Option<Blackout>,
    /// By how much the clock was set after the arrival; what is told takes it into account.
    pub clock_step_microseconds: i64,
    /// What took how long, by when it began.
    pub spans: Vec<Span>,
    /// Sessions and participants that there was no room for.
    pub unlisted: u64,
}

/// Reply of `GetTimeline`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LastTimeline {
    /// The last live update that arrived here, where it was measured.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeline: Option<Timeline>,
}
