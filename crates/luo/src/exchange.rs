//! An exchange with luod: several calls in order, their answers, and what to send again when the
//! connection breaks between. Nothing here does I/O; the blocking and the asynchronous API drive
//! the same exchange.
//!
//! Invariants:
//! - Calls are answered in the order in which they were sent; at most [`WINDOW`] are on their way.
//! - A call that had no answer when the connection broke is sent again as it was, with the same
//!   request number, so that luod can tell a repetition from a new request.

use std::os::fd::{BorrowedFd, OwnedFd};

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::error::{Error, Refusal};
use crate::protocol::{self, Call};
use crate::wire::Frame;

/// Calls that may be on their way at once: enough to keep luod and its keeper busy.
pub(crate) const WINDOW: usize = 4;

/// One call, ready to be sent any number of times.
#[derive(Debug)]
pub(crate) struct Prepared<'fd> {
    pub(crate) method: String,
    /// The frame with its zero byte.
    pub(crate) bytes: Vec<u8>,
    pub(crate) descriptors: Vec<BorrowedFd<'fd>>,
}

impl<'fd> Prepared<'fd> {
    pub(crate) fn new(
        interface: &str,
        method: &str,
        parameters: &impl Serialize,
        descriptors: Vec<BorrowedFd<'fd>>,
    ) -> Result<Self, Error> {
        Self::build(interface, method, parameters, descriptors, false)
    }

    /// A call whose replies come in parts.
    pub(crate) fn streaming(
        interface: &str,
        method: &str,
        parameters: &impl Serialize,
    ) -> Result<Self, Error> {
        Self::build(interface, method, parameters, Vec::new(), true)
    }

    fn build(
        interface: &str,
        method: &str,
        parameters: &impl Serialize,
        descriptors: Vec<BorrowedFd<'fd>>,
        more: bool,
    ) -> Result<Self, Error> {
        let method = format!("{interface}.{method}");
        let call = Call { method: &method, parameters, more, oneway: false };
        let mut bytes = serde_json::to_vec(&call).map_err(|error| Error::Protocol {
            method: method.clone(),
            reason: error.to_string(),
        })?;
        bytes.push(0);
        Ok(Self { method, bytes, descriptors })
    }
}

/// What came back for one call.
#[derive(Debug)]
pub(crate) struct Answer {
    method: String,
    frame: Frame,
    /// Whether the call was sent more than once.
    pub(crate) repeated: bool,
}

/// The envelope of a reply; its parameters are decoded once it is known what they are.
#[derive(serde::Deserialize)]
struct Envelope<'a> {
    #[serde(default, borrow)]
    parameters: Option<&'a serde_json::value::RawValue>,
    #[serde(default)]
    continues: bool,
    #[serde(default, borrow)]
    error: Option<std::borrow::Cow<'a, str>>,
}

impl Answer {
    pub(crate) fn new(method: &str, frame: Frame) -> Self {
        Self { method: method.to_owned(), frame, repeated: false }
    }

    /// The reply's parameters and descriptors, and whether more replies follow.
    pub(crate) fn decode<R: DeserializeOwned>(self) -> Result<(R, Vec<OwnedFd>, bool), Error> {
        let method = self.method;
        let bad = |error: serde_json::Error| Error::Protocol {
            method: method.clone(),
            reason: error.to_string(),
        };
        let envelope: Envelope<'_> = serde_json::from_slice(&self.frame.text).map_err(bad)?;
        let parameters = envelope.parameters.map_or("{}", |raw| raw.get());
        let Some(error) = envelope.error else {
            let reply = serde_json::from_str(parameters).map_err(bad)?;
            return Ok((reply, self.frame.descriptors, envelope.continues));
        };
        Err(match error.as_ref() {
            "io.luo.Failed" => {
                let failed: protocol::Failed = serde_json::from_str(parameters).map_err(bad)?;
                Error::Refused(failed.failure.into())
            }
            "io.luo.Session.Failed" => {
                let failed: protocol::SessionFailed =
                    serde_json::from_str(parameters).map_err(bad)?;
                Error::Refused(Refusal {
                    errno: failed.errno,
                    reason: failed.reason,
                    token: failed.token,
                    failure: None,
                })
            }
            "io.luo.WorkerFailed" => {
                let failed: protocol::WorkerFailed =
                    serde_json::from_str(parameters).map_err(bad)?;
                Error::WorkerFailed { reason: failed.reason }
            }
            other => Error::Protocol { method, reason: format!("error {other} {parameters}") },
        })
    }
}

/// Several calls and how far they are.
#[derive(Debug)]
pub(crate) struct Exchange<'fd> {
    calls: Vec<Prepared<'fd>>,
    sent: usize,
    /// The most that was ever sent: beyond it nothing is a repetition.
    reached: usize,
    answers: Vec<Answer>,
}

impl<'fd> Exchange<'fd> {
    pub(crate) fn new(calls: Vec<Prepared<'fd>>) -> Self {
        Self { calls, sent: 0, reached: 0, answers: Vec::new() }
    }

    /// The call to send now, if any may be sent.
    pub(crate) fn to_send(&self) -> Option<&Prepared<'fd>> {
        if self.sent - self.answers.len() >= WINDOW {
            return None;
        }
        self.calls.get(self.sent)
    }

    pub(crate) fn sent(&mut self) {
        self.sent += 1;
    }

    /// Whether an answer is still to come.
    pub(crate) fn is_waiting(&self) -> bool {
        self.answers.len() < self.calls.len()
    }

    /// The method whose answer comes next, for messages.
    pub(crate) fn waiting_for(&self) -> &str {
        self.calls.get(self.answers.len()).map_or("", |call| &call.method)
    }

    pub(crate) fn answered(&mut self, frame: Frame) {
        let index = self.answers.len();
        let method = self.waiting_for().to_owned();
        self.answers.push(Answer { method, frame, repeated: index < self.reached });
    }

    /// The connection broke: what was not answered is sent again.
    pub(crate) fn lost(&mut self) {
        self.reached = self.reached.max(self.sent);
        self.sent = self.answers.len();
    }

    pub(crate) fn into_answers(self) -> Vec<Answer> {
        self.answers
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::Nothing;

    fn exchange(count: usize) -> Exchange<'static> {
        let calls = (0..count)
            .map(|_| Prepared::new("io.luo", "GetStatus", &Nothing {}, Vec::new()).unwrap())
            .collect();
        Exchange::new(calls)
    }

    fn frame(text: &str) -> Frame {
        Frame { text: text.as_bytes().to_vec(), descriptors: Vec::new() }
    }

    #[test]
    fn no_more_than_a_window_is_on_its_way() {
        let mut exchange = exchange(WINDOW + 1);
        for _ in 0..WINDOW {
            assert!(exchange.to_send().is_some());
            exchange.sent();
        }
        assert!(exchange.to_send().is_none());
        exchange.answered(frame("{}"));
        assert!(exchange.to_send().is_some());
    }

    #[test]
    fn only_what_had_no_answer_is_sent_again_and_known_as_repeated() {
        let mut exchange = exchange(3);
        exchange.sent();
        exchange.sent();
        exchange.answered(frame("{}"));
        exchange.lost();
        assert!(exchange.to_send().is_some());
        exchange.sent();
        exchange.sent();
        exchange.answered(frame("{}"));
        exchange.answered(frame("{}"));
        assert!(!exchange.is_waiting());
        let repeated: Vec<bool> =
            exchange.into_answers().iter().map(|answer| answer.repeated).collect();
        assert_eq!(repeated, [false, true, false]);
    }

    #[test]
    fn an_error_reply_keeps_errno_and_reason() {
        let text = r#"{"error":"io.luo.Failed","parameters":{"failure":{"errno":"EBUSY","reason":"no","token":7}}}"#;
        match Answer::new("m", frame(text)).decode::<Nothing>() {
            Err(Error::Refused(refusal)) => {
                assert_eq!((refusal.errno.as_str(), refusal.token), ("EBUSY", Some(7)));
            }
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn nonsense_is_a_protocol_error() {
        for text in ["", "{", "7", r#"{"error":"x.Y"}"#] {
            assert!(matches!(
                Answer::new("m", frame(text)).decode::<Nothing>(),
                Err(Error::Protocol { .. })
            ));
        }
    }
}
