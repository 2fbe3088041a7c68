//! An exchange with luod: several calls in order, their answers, and what to send again when the
//! connection breaks between. Nothing here does I/O; the blocking and the asynchronous API drive
//! the same exchange.
//!
//! Invariants:
//! - A reply that no call waits for is an error, whatever it says.
//! - Calls are answered in the order in which they were sent; at most [`WINDOW`] are on their way.
//! - A call that had no answer when the connection broke is sent again as it was, with the same
//!   request number, so that luod can tell a repetition from a new request.
//! - Who wants the answers one by one may stop after each: the exchange knows how much of a call
//!   has been sent, and goes on there.

use std::os::fd::{BorrowedFd, OwnedFd};

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::error::{Error, Refusal};
use crate::protocol::{self, Call};
use crate::wire::{Frame, WireError};

/// Calls that may be on their way at once: enough to keep luod and its keeper busy.
pub(crate) const WINDOW: usize = 4;
/// Bytes of an answer that comes in parts, all together.
const ANSWER_BYTES: usize = 256 * 1024 * 1024;
/// Characters of an unknown error's parameters that its message shows.
const SHOWN: usize = 200;

/// One call, ready to be sent any number of times.
#[derive(Debug)]
pub(crate) struct Prepared<'fd> {
    pub(crate) method: String,
    /// The frame with its zero byte.
    pub(crate) bytes: Vec<u8>,
    pub(crate) descriptors: Vec<BorrowedFd<'fd>>,
    /// Whether replies come in parts.
    more: bool,
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
        let mut bytes = serde_json::to_vec(&call)
            .map_err(|error| Error::protocol(&method, error.to_string()))?;
        bytes.push(0);
        Ok(Self { method, bytes, descriptors, more })
    }
}

/// What came back for one call.
#[derive(Debug)]
pub(crate) struct Answer {
    method: String,
    /// One reply, or all of a call whose replies come in parts.
    parts: Vec<Frame>,
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

impl<'a> Envelope<'a> {
    fn read(method: &str, frame: &'a Frame) -> Result<Self, Error> {
        serde_json::from_slice(&frame.text).map_err(|bad| Error::protocol(method, bad.to_string()))
    }
}

/// One reply's parameters, and whether more replies follow.
pub(crate) fn read<R: DeserializeOwned>(method: &str, frame: &Frame) -> Result<(R, bool), Error> {
    let envelope = Envelope::read(method, frame)?;
    let parameters = envelope.parameters.map_or("{}", |raw| raw.get());
    match envelope.error {
        None => Ok((parse(method, parameters)?, envelope.continues)),
        Some(error) => Err(refused(method, &error, parameters)?),
    }
}

fn parse<R: DeserializeOwned>(method: &str, parameters: &str) -> Result<R, Error> {
    serde_json::from_str(parameters).map_err(|bad| Error::protocol(method, bad.to_string()))
}

/// What an error reply says; `Err` if it cannot be understood itself.
fn refused(method: &str, error: &str, parameters: &str) -> Result<Error, Error> {
    Ok(match error {
        "io.luo.Failed" => {
            let failed: protocol::Failed = parse(method, parameters)?;
            Error::Refused(failed.failure.into())
        }
        "io.luo.Session.Failed" => {
            let failed: protocol::SessionFailed = parse(method, parameters)?;
            Error::Refused(Refusal {
                errno: failed.errno,
                reason: failed.reason,
                token: failed.token,
                failure: None,
            })
        }
        "io.luo.WorkerFailed" => {
            let failed: protocol::WorkerFailed = parse(method, parameters)?;
            Error::WorkerFailed { reason: failed.reason }
        }
        other => {
            let shown: String = parameters.chars().take(SHOWN).collect();
            Error::protocol(method, format!("error {other} {shown}"))
        }
    })
}

impl Answer {
    /// The reply's parameters and descriptors.
    pub(crate) fn decode<R: DeserializeOwned>(self) -> Result<(R, Vec<OwnedFd>), Error> {
        let mut parts = self.parts.into_iter();
        let (Some(frame), None) = (parts.next(), parts.next()) else {
            return Err(Error::protocol(&self.method, "it came in parts"));
        };
        match read(&self.method, &frame)? {
            (_, true) => Err(Error::protocol(&self.method, "it came in parts")),
            (reply, false) => Ok((reply, frame.descriptors)),
        }
    }

    /// The parameters of all replies.
    pub(crate) fn decode_parts<R: DeserializeOwned>(self) -> Result<Vec<R>, Error> {
        self.parts.iter().map(|frame| read(&self.method, frame).map(|(reply, _)| reply)).collect()
    }

    pub(crate) fn method(&self) -> &str {
        &self.method
    }
}

/// Several calls and how far they are.
#[derive(Debug)]
pub(crate) struct Exchange<'fd> {
    calls: Vec<Prepared<'fd>>,
    sent: usize,
    /// Bytes of the next call that are sent.
    begun: usize,
    /// Calls that have their answer, whether or not it was taken.
    answered: usize,
    /// Answers after which nobody waits for more.
    wanted: usize,
    /// The most that was sent whole on a connection that broke: beyond it nothing is a repetition,
    /// as a call of which luod has only a part has no effect.
    repeated: usize,
    answers: Vec<Answer>,
    /// Of the answer that comes now, what is here.
    parts: Vec<Frame>,
    part_bytes: usize,
}

impl<'fd> Exchange<'fd> {
    pub(crate) fn new(calls: Vec<Prepared<'fd>>) -> Self {
        let wanted = calls.len();
        Self {
            calls,
            sent: 0,
            begun: 0,
            answered: 0,
            wanted,
            repeated: 0,
            answers: Vec::new(),
            parts: Vec::new(),
            part_bytes: 0,
        }
    }

    /// From now on only the next answer is waited for, if there is one that nobody has taken yet.
    pub(crate) fn want_next(&mut self) {
        let taken = self.answered - self.answers.len();
        self.wanted = self.calls.len().min(taken + 1);
    }

    /// The call to send now, if any may be sent, and how many of its bytes are sent already.
    pub(crate) fn next_to_send(&mut self) -> Option<(&Prepared<'fd>, &mut usize)> {
        if self.sent.saturating_sub(self.answered) >= WINDOW {
            return None;
        }
        self.calls.get(self.sent).map(|call| (call, &mut self.begun))
    }

    /// A call was sent whole.
    pub(crate) fn sent(&mut self) {
        self.sent += 1;
        self.begun = 0;
    }

    /// Whether an answer is still to come that is waited for.
    pub(crate) fn is_waiting(&self) -> bool {
        self.answered < self.wanted
    }

    /// Whether every call has its answer.
    pub(crate) fn is_over(&self) -> bool {
        self.answered == self.calls.len()
    }

    /// How many calls have their answer.
    pub(crate) fn answered_count(&self) -> usize {
        self.answered
    }

    /// Whether a call may have taken effect without its answer having come.
    pub(crate) fn is_repeated(&self) -> bool {
        self.repeated > 0
    }

    /// The method whose answer comes next, for messages.
    pub(crate) fn waiting_for(&self) -> &str {
        self.calls.get(self.answered).map_or("", |call| &call.method)
    }

    /// Takes a reply in.
    ///
    /// # Errors
    /// A reply to nothing, or in parts without end: the connection is not to be used any more.
    pub(crate) fn answered(&mut self, mut frame: Frame) -> Result<(), Error> {
        let index = self.answered;
        let unasked = || Error::protocol(self.waiting_for(), "a reply came that nobody asked for");
        let Some(call) = self.calls.get(index) else {
            return Err(unasked());
        };
        let method = call.method.clone();
        if index >= self.sent {
            // luod refuses a connection before it has read anything; that is the answer to what
            // was to be asked.
            if Envelope::read(&method, &frame)?.error.is_none() {
                return Err(unasked());
            }
            self.sent = index + 1;
            self.begun = 0;
        }
        if call.more && Envelope::read(&method, &frame)?.continues {
            self.part_bytes = self.part_bytes.saturating_add(frame.text.len());
            if self.part_bytes > ANSWER_BYTES {
                return Err(WireError::TooLong { limit: ANSWER_BYTES }.into());
            }
            // Only a reply that comes whole brings descriptors.
            frame.descriptors.clear();
            self.parts.push(frame);
            return Ok(());
        }
        let mut parts = std::mem::take(&mut self.parts);
        parts.push(frame);
        self.part_bytes = 0;
        self.answered += 1;
        self.answers.push(Answer { method, parts, repeated: index < self.repeated });
        Ok(())
    }

    /// The connection broke: what was not answered is sent again.
    pub(crate) fn lost(&mut self) {
        self.repeated = self.repeated.max(self.sent);
        self.sent = self.answered;
        self.begun = 0;
        self.parts.clear();
        self.part_bytes = 0;
    }

    pub(crate) fn take_answers(&mut self) -> Vec<Answer> {
        std::mem::take(&mut self.answers)
    }

    /// The first answer that nobody has taken yet.
    pub(crate) fn take_next(&mut self) -> Option<Answer> {
        (!self.answers.is_empty()).then(|| self.answers.remove(0))
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

    fn send(exchange: &mut Exchange<'_>) {
        assert!(exchange.next_to_send().is_some());
        exchange.sent();
    }

    fn repeated(exchange: &mut Exchange<'_>) -> Vec<bool> {
        exchange.take_answers().iter().map(|answer| answer.repeated).collect()
    }

    #[test]
    fn no_more_than_a_window_is_on_its_way() {
        let mut exchange = exchange(WINDOW + 1);
        for _ in 0..WINDOW {
            send(&mut exchange);
        }
        assert!(exchange.next_to_send().is_none());
        exchange.answered(frame("{}")).unwrap();
        assert!(exchange.next_to_send().is_some());
    }

    #[test]
    fn only_what_had_no_answer_is_sent_again_and_known_as_repeated() {
        let mut exchange = exchange(3);
        send(&mut exchange);
        send(&mut exchange);
        exchange.answered(frame("{}")).unwrap();
        exchange.lost();
        send(&mut exchange);
        send(&mut exchange);
        exchange.answered(frame("{}")).unwrap();
        exchange.answered(frame("{}")).unwrap();
        assert!(!exchange.is_waiting());
        assert_eq!(repeated(&mut exchange), [false, true, false]);
    }

    #[test]
    fn answers_that_are_wanted_one_by_one_are_waited_for_one_by_one() {
        let mut exchange = exchange(3);
        assert!(exchange.take_next().is_none());
        for round in 0..3 {
            exchange.want_next();
            assert_eq!(exchange.is_waiting(), round != 1);
            while exchange.next_to_send().is_some() {
                exchange.sent();
            }
            // The second answer comes together with the first.
            for _ in 0..[2, 0, 1][round] {
                exchange.answered(frame("{}")).unwrap();
            }
            assert!(!exchange.is_waiting());
            assert!(exchange.take_next().is_some());
            assert_eq!(exchange.is_over(), round == 2);
        }
        exchange.want_next();
        assert!(!exchange.is_waiting() && exchange.take_next().is_none());
    }

    #[test]
    fn what_was_taken_is_not_sent_again_and_half_a_call_is_sent_anew() {
        let mut exchange = exchange(3);
        exchange.want_next();
        send(&mut exchange);
        send(&mut exchange);
        exchange.answered(frame("{}")).unwrap();
        assert!(!exchange.take_next().unwrap().repeated);
        *exchange.next_to_send().unwrap().1 = 5;
        exchange.lost();
        assert_eq!(*exchange.next_to_send().unwrap().1, 0);
        send(&mut exchange);
        send(&mut exchange);
        assert!(exchange.next_to_send().is_none());
        for repeated in [true, false] {
            exchange.want_next();
            exchange.answered(frame("{}")).unwrap();
            assert_eq!(exchange.take_next().unwrap().repeated, repeated);
        }
        assert!(exchange.is_over());
    }

    #[test]
    fn a_call_that_was_not_sent_whole_is_no_repetition() {
        let mut exchange = exchange(1);
        exchange.lost();
        send(&mut exchange);
        exchange.answered(frame("{}")).unwrap();
        assert_eq!(repeated(&mut exchange), [false]);
    }

    #[test]
    fn a_reply_to_nothing_is_an_error_also_while_calls_wait_to_be_sent() {
        let mut exchange = exchange(WINDOW + 1);
        assert!(matches!(exchange.answered(frame("{}")), Err(Error::Protocol { .. })));
        send(&mut exchange);
        exchange.answered(frame("{}")).unwrap();
        assert!(matches!(exchange.answered(frame("{}")), Err(Error::Protocol { .. })));
    }

    #[test]
    fn parts_are_gathered_and_forgotten_when_the_connection_breaks() {
        let call = || Prepared::streaming("io.luo", "ListFiles", &Nothing {}).unwrap();
        let mut exchange = Exchange::new(vec![call()]);
        let part = || frame(r#"{"continues":true}"#);
        send(&mut exchange);
        exchange.answered(part()).unwrap();
        exchange.answered(part()).unwrap();
        exchange.lost();
        send(&mut exchange);
        exchange.answered(part()).unwrap();
        assert!(exchange.is_waiting());
        exchange.answered(frame("{}")).unwrap();
        let answer = exchange.take_answers().pop().unwrap();
        assert_eq!(answer.decode_parts::<Nothing>().unwrap().len(), 2);
    }

    #[test]
    fn an_error_reply_keeps_errno_and_reason() {
        let text = r#"{"error":"io.luo.Failed","parameters":{"failure":{"errno":"EBUSY","reason":"no","token":7}}}"#;
        match read::<Nothing>("m", &frame(text)) {
            Err(Error::Refused(refusal)) => {
                assert_eq!((refusal.errno.as_str(), refusal.token), ("EBUSY", Some(7)));
            }
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn nonsense_is_a_protocol_error() {
        for text in ["", "{", "7", r#"{"error":"x.Y"}"#, "\u{0}\u{1}"] {
            assert!(matches!(read::<Nothing>("m", &frame(text)), Err(Error::Protocol { .. })));
        }
    }

    #[test]
    fn a_reply_that_says_more_follows_is_no_answer_to_a_plain_call() {
        let mut exchange = exchange(1);
        send(&mut exchange);
        exchange.answered(frame(r#"{"continues":true}"#)).unwrap();
        let answer = exchange.take_answers().pop().unwrap();
        assert!(matches!(answer.decode::<Nothing>(), Err(Error::Protocol { .. })));
    }

    #[test]
    fn a_refusal_before_the_call_is_its_answer_and_anything_else_is_not() {
        let refusal = r#"{"error":"io.luo.Failed","parameters":{"failure":{"errno":"ENOSPC","reason":"no"}}}"#;
        let mut refused = exchange(1);
        refused.answered(frame(refusal)).unwrap();
        assert!(!refused.is_waiting());
        assert!(exchange(1).answered(frame("{}")).is_err());
        assert!(exchange(0).answered(frame(refusal)).is_err());
    }
}
