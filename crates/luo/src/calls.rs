//! What each operation on a session or on luod sends and how its answer is read, for the blocking
//! and the asynchronous API alike.

use std::os::fd::{BorrowedFd, OwnedFd};

use crate::error::{Error, Refusal};
use crate::exchange::{Answer, Prepared};
use crate::options::Options;
use crate::protocol::{
    ClaimSession, CreateSession, Finish, MANAGER, MAX_DESCRIPTORS, Nothing, Preserve, Preserved,
    Retrieve, Retrieved, SESSION, SessionGiven, Unclaimed, Unpreserve, Unpreserved,
};
use crate::request;

/// A file's verdict: its token, or why it was refused.
pub type Verdict = Result<u64, Refusal>;

/// A file that came back, or why it did not.
pub type Recalled = Result<OwnedFd, Refusal>;

pub(crate) fn create(name: &str, options: &Options) -> Result<Prepared<'static>, Error> {
    let parameters = CreateSession {
        name: name.to_owned(),
        policy: Some(options.policy),
        request: Some(request::next()),
    };
    Prepared::new(MANAGER, "CreateSession", &parameters, Vec::new())
}

pub(crate) fn claim(name: &str, wait_milliseconds: u64) -> Result<Prepared<'static>, Error> {
    let parameters = ClaimSession {
        name: name.to_owned(),
        wait_milliseconds: Some(wait_milliseconds),
        request: Some(request::next()),
    };
    Prepared::new(MANAGER, "ClaimSession", &parameters, Vec::new())
}

/// The session that a reply gives, and its descriptor.
pub(crate) fn given(answer: Answer) -> Result<(SessionGiven, OwnedFd), Error> {
    let (given, mut descriptors, _) = answer.decode::<SessionGiven>()?;
    match (descriptors.pop(), descriptors.is_empty()) {
        (Some(descriptor), true) => Ok((given, descriptor)),
        _ => Err(Error::Protocol {
            method: "CreateSession".to_owned(),
            reason: "it did not bring exactly one descriptor".to_owned(),
        }),
    }
}

/// A batch of files to preserve, split so that each call has what one message can carry.
pub(crate) fn preserve<'fd>(
    files: &[BorrowedFd<'fd>],
    tokens: Option<&[u64]>,
    required: bool,
) -> Result<Vec<Prepared<'fd>>, Error> {
    let mut calls = Vec::with_capacity(files.len().div_ceil(MAX_DESCRIPTORS));
    let mut done = 0;
    for part in files.chunks(MAX_DESCRIPTORS) {
        let parameters = Preserve {
            count: part.len(),
            tokens: tokens.map(|tokens| tokens[done..done + part.len()].to_vec()),
            required: Some(required),
            request: Some(request::next()),
        };
        calls.push(Prepared::new(SESSION, "Preserve", &parameters, part.to_vec())?);
        done += part.len();
    }
    Ok(calls)
}

pub(crate) fn preserved(answers: Vec<Answer>) -> Result<Vec<Verdict>, Error> {
    let mut verdicts = Vec::new();
    for answer in answers {
        let (reply, _, _) = answer.decode::<Preserved>()?;
        let start = verdicts.len();
        verdicts.extend(reply.tokens.into_iter().map(Ok));
        for refused in reply.refused {
            if let Some(verdict) = verdicts.get_mut(start + refused.index) {
                *verdict = Err(refused.into());
            }
        }
    }
    Ok(verdicts)
}

pub(crate) fn unpreserve(tokens: &[u64]) -> Result<Vec<Prepared<'static>>, Error> {
    tokens
        .chunks(MAX_DESCRIPTORS * 16)
        .map(|part| {
            let parameters = Unpreserve { tokens: part.to_vec(), request: Some(request::next()) };
            Prepared::new(SESSION, "Unpreserve", &parameters, Vec::new())
        })
        .collect()
}

/// The refusals among the answers. What a repeated request does not find, the first one took.
pub(crate) fn unpreserved(answers: Vec<Answer>) -> Result<Vec<Refusal>, Error> {
    let mut refusals = Vec::new();
    for answer in answers {
        let repeated = answer.repeated;
        let (reply, _, _) = answer.decode::<Unpreserved>()?;
        refusals.extend(
            reply
                .refused
                .into_iter()
                .filter(|refused| !(repeated && refused.errno == "ENOENT"))
                .map(Refusal::from),
        );
    }
    Ok(refusals)
}

pub(crate) fn retrieve(tokens: &[u64]) -> Result<Vec<Prepared<'static>>, Error> {
    tokens
        .chunks(MAX_DESCRIPTORS)
        .map(|part| {
            let parameters = Retrieve { tokens: part.to_vec() };
            Prepared::new(SESSION, "Retrieve", &parameters, Vec::new())
        })
        .collect()
}

pub(crate) fn retrieved(tokens: &[u64], answers: Vec<Answer>) -> Result<Vec<Recalled>, Error> {
    let mut files = Vec::with_capacity(tokens.len());
    for (part, answer) in tokens.chunks(MAX_DESCRIPTORS).zip(answers) {
        let protocol = |reason: &str| Error::Protocol {
            method: "io.luo.Session.Retrieve".to_owned(),
            reason: reason.to_owned(),
        };
        let (reply, descriptors, _) = answer.decode::<Retrieved>()?;
        let mut refused = reply.refused.into_iter().peekable();
        let mut given = reply.tokens.into_iter().zip(descriptors);
        for (index, token) in part.iter().enumerate() {
            if refused.peek().is_some_and(|refused| refused.index == index) {
                files.extend(refused.next().map(|refused| Err(refused.into())));
                continue;
            }
            match given.next() {
                Some((named, descriptor)) if named == *token => files.push(Ok(descriptor)),
                Some(_) => return Err(protocol("files came in another order than asked")),
                None => return Err(protocol("fewer files came than asked")),
            }
        }
    }
    Ok(files)
}

pub(crate) fn finish(
    unclaimed: Unclaimed,
    carry_reclaimed: bool,
) -> Result<Prepared<'static>, Error> {
    let parameters = Finish {
        unclaimed: Some(unclaimed),
        carry_reclaimed: Some(carry_reclaimed),
        request: Some(request::next()),
    };
    Prepared::new(SESSION, "Finish", &parameters, Vec::new())
}

pub(crate) fn plain(method: &str) -> Result<Prepared<'static>, Error> {
    Prepared::new(SESSION, method, &Nothing {}, Vec::new())
}

/// Reads the answer to an event. A repeated event that finds the state it wanted has taken place.
pub(crate) fn done(answer: Answer) -> Result<(), Error> {
    answer.decode::<Nothing>().map(|_| ())
}
