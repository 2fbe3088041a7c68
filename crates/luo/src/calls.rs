//! What each operation on a session or on luod sends and how its answer is read, for the blocking
//! and the asynchronous API alike.
//!
//! Invariants: an answer speaks of each file that was asked about exactly once, or it is an error
//! of the protocol; what an answer brought and nobody takes is closed.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use serde::de::DeserializeOwned;

use crate::error::{Error, Refusal};
use crate::exchange::{Answer, Prepared};
use crate::options::Options;
use crate::protocol::{
    Allocate, Allocated, ClaimSession, CreateSession, Duplicate, Duplicated, Finish,
    GetKernelSession, KernelSessionGiven, MANAGER, MAX_DESCRIPTORS, Nothing, Preserve, Preserved,
    Refused, Retrieve, Retrieved, SESSION, SessionGiven, Unclaimed, Unpreserve, Unpreserved,
};
use crate::request;

/// Tokens in one `Unpreserve`. Few enough that the calls of a window fit into a socket's buffer:
/// the sender never waits for a receiver that waits for it.
const MAX_TOKENS: usize = 4 * MAX_DESCRIPTORS;

/// A file's verdict: its token, or why it was refused.
pub type Verdict = Result<u64, Refusal>;

/// A file that came back, or why it did not.
pub type Recalled = Result<OwnedFd, Refusal>;

/// With luod's end of the session's first connection.
pub(crate) fn create<'fd>(
    name: &str,
    options: &Options,
    connection: BorrowedFd<'fd>,
) -> Result<Prepared<'fd>, Error> {
    let parameters = CreateSession {
        name: name.to_owned(),
        policy: Some(options.policy),
        request: Some(request::next()),
    };
    Prepared::new(MANAGER, "CreateSession", &parameters, vec![connection])
}

/// With luod's end of the session's first connection. Waiting on luod's side ends a little before
/// the caller's deadline, so that its reason arrives.
pub(crate) fn claim<'fd>(
    name: &str,
    left: Duration,
    connection: BorrowedFd<'fd>,
) -> Result<Prepared<'fd>, Error> {
    let parameters = ClaimSession {
        name: name.to_owned(),
        wait_milliseconds: Some(milliseconds(left.saturating_sub(left / 8))),
        request: Some(request::next()),
    };
    Prepared::new(MANAGER, "ClaimSession", &parameters, vec![connection])
}

/// As a number that any Varlink peer can hold.
pub(crate) fn milliseconds(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX).min(u64::MAX >> 1)
}

/// The descriptor of the session that a reply gives.
pub(crate) fn given(answer: Answer) -> Result<OwnedFd, Error> {
    let method = answer.method().to_owned();
    let (_, descriptors) = answer.decode::<SessionGiven>()?;
    sole(&method, descriptors)
}

/// The one descriptor of a reply that brings one.
pub(crate) fn sole(method: &str, mut descriptors: Vec<OwnedFd>) -> Result<OwnedFd, Error> {
    match (descriptors.pop(), descriptors.is_empty()) {
        (Some(descriptor), true) => Ok(descriptor),
        _ => Err(Error::protocol(method, "it did not bring exactly one descriptor")),
    }
}

/// Reads a reply that brings no descriptors.
pub(crate) fn reply<R: DeserializeOwned>(answer: Answer) -> Result<R, Error> {
    Ok(answer.decode()?.0)
}

/// Reads a reply that says nothing.
pub(crate) fn done(answer: Answer) -> Result<(), Error> {
    reply::<Nothing>(answer).map(|_| ())
}

/// A batch of files to preserve, split so that each call has what one message can carry.
pub(crate) fn preserve<'fd>(
    files: &[BorrowedFd<'fd>],
    tokens: Option<&[u64]>,
    required: bool,
) -> Result<Vec<Prepared<'fd>>, Error> {
    let mut tokens = tokens.map(|tokens| tokens.chunks(MAX_DESCRIPTORS));
    files
        .chunks(MAX_DESCRIPTORS)
        .map(|part| {
            let parameters = Preserve {
                count: part.len(),
                tokens: tokens.as_mut().and_then(Iterator::next).map(<[u64]>::to_vec),
                required: Some(required),
                request: Some(request::next()),
            };
            Prepared::new(SESSION, "Preserve", &parameters, part.to_vec())
        })
        .collect()
}

/// The verdicts on a batch of `count` files, which have these tokens.
pub(crate) fn preserved(
    count: usize,
    tokens: Option<&[u64]>,
    answers: Vec<Answer>,
) -> Result<Vec<Verdict>, Error> {
    let mut verdicts = batch(count, MAX_DESCRIPTORS, answers, |size, answer| {
        let method = answer.method().to_owned();
        let (reply, _) = answer.decode::<Preserved>()?;
        if reply.tokens.len() != size {
            return Err(Error::protocol(&method, "it does not speak of each file once"));
        }
        let mut refused = by_index(&method, size, reply.refused)?;
        let verdicts = reply.tokens.into_iter().zip(refused.iter_mut());
        Ok(verdicts.map(|(token, refused)| refused.take().map_or(Ok(token), Err)).collect())
    })?;
    for (verdict, token) in verdicts.iter_mut().zip(tokens.unwrap_or_default()) {
        if let Err(refusal) = verdict {
            refusal.token = Some(*token);
        }
    }
    Ok(verdicts)
}

pub(crate) fn duplicate(original: u64, token: Option<u64>) -> Result<Prepared<'static>, Error> {
    let request = Some(request::next());
    let parameters = Duplicate { original, token, required: None, request };
    Prepared::new(SESSION, "Duplicate", &parameters, Vec::new())
}

/// The token of a duplicate.
pub(crate) fn duplicated(answer: Answer) -> Result<u64, Error> {
    reply::<Duplicated>(answer).map(|reply| reply.token)
}

pub(crate) fn allocate(token: u64, length: u64) -> Result<Prepared<'static>, Error> {
    let request = Some(request::next());
    let parameters = Allocate { token, length, required: None, request };
    Prepared::new(SESSION, "Allocate", &parameters, Vec::new())
}

/// The descriptor of memory in the arena, or `None` where there is none for this process.
pub(crate) fn allocated(answer: Answer) -> Result<Option<OwnedFd>, Error> {
    let method = answer.method().to_owned();
    let (reply, descriptors) = answer.decode::<Allocated>()?;
    match reply.range {
        Some(_) => sole(&method, descriptors).map(Some),
        None => Ok(None),
    }
}

pub(crate) fn kernel_session(arrived: bool) -> Result<Prepared<'static>, Error> {
    let parameters = GetKernelSession { arrived: Some(arrived) };
    Prepared::new(SESSION, "GetKernelSession", &parameters, Vec::new())
}

/// A kernel session's descriptor, and the client's last token in it.
pub(crate) fn kernel_session_given(answer: Answer) -> Result<(OwnedFd, u64), Error> {
    let method = answer.method().to_owned();
    let (reply, descriptors) = answer.decode::<KernelSessionGiven>()?;
    Ok((sole(&method, descriptors)?, reply.last_token))
}

pub(crate) fn unpreserve(tokens: &[u64]) -> Result<Vec<Prepared<'static>>, Error> {
    tokens
        .chunks(MAX_TOKENS)
        .map(|part| {
            let parameters = Unpreserve { tokens: part.to_vec(), request: Some(request::next()) };
            Prepared::new(SESSION, "Unpreserve", &parameters, Vec::new())
        })
        .collect()
}

/// The refusals of a batch. What a repeated request does not find, the first one took.
pub(crate) fn unpreserved(tokens: &[u64], answers: Vec<Answer>) -> Result<Vec<Refusal>, Error> {
    let verdicts = batch(tokens.len(), MAX_TOKENS, answers, |size, answer| {
        let (method, repeated) = (answer.method().to_owned(), answer.repeated);
        let (reply, _) = answer.decode::<Unpreserved>()?;
        let refused = by_index(&method, size, reply.refused)?.into_iter();
        Ok(refused
            .map(|refused| match refused {
                Some(refusal) if !(repeated && refusal.errno == "ENOENT") => Err(refusal),
                _ => Ok(()),
            })
            .collect())
    })?;
    let named = tokens.iter().zip(verdicts).filter_map(|(token, verdict)| {
        verdict.err().map(|refusal| Refusal { token: Some(*token), ..refusal })
    });
    Ok(named.collect())
}

pub(crate) fn retrieve(tokens: &[u64]) -> Result<Vec<Prepared<'static>>, Error> {
    tokens.chunks(MAX_DESCRIPTORS).map(|part| retrieve_part(part.to_vec())).collect()
}

pub(crate) fn retrieve_one(token: u64) -> Result<Prepared<'static>, Error> {
    retrieve_part(vec![token])
}

fn retrieve_part(tokens: Vec<u64>) -> Result<Prepared<'static>, Error> {
    Prepared::new(SESSION, "Retrieve", &Retrieve { tokens }, Vec::new())
}

/// The files of a batch, in the order asked for.
pub(crate) fn retrieved(tokens: &[u64], answers: Vec<Answer>) -> Result<Vec<Recalled>, Error> {
    let mut asked = tokens.chunks(MAX_DESCRIPTORS);
    batch(tokens.len(), MAX_DESCRIPTORS, answers, |size, answer| {
        let method = answer.method().to_owned();
        let (reply, descriptors) = answer.decode::<Retrieved>()?;
        let mut refused = by_index(&method, size, reply.refused)?;
        if reply.tokens.len() != descriptors.len() {
            return Err(Error::protocol(&method, "it names other files than it brings"));
        }
        let mut given = reply.tokens.into_iter().zip(descriptors);
        let mut files = Vec::with_capacity(size);
        for (token, refused) in asked.next().unwrap_or_default().iter().zip(refused.iter_mut()) {
            files.push(match refused.take() {
                Some(refusal) => Err(refusal),
                None => match given.next() {
                    Some((named, file)) if named == *token => Ok(file),
                    _ => return Err(Error::protocol(&method, "it brings other files than asked")),
                },
            });
        }
        match given.next() {
            None => Ok(files),
            Some(_) => Err(Error::protocol(&method, "it brings more files than asked")),
        }
    })
}

/// What became of each file of a batch that was split into calls of `most` files. A call that was
/// refused whole is a refusal of each of its files; a batch that was refused whole is an error.
fn batch<T>(
    count: usize,
    most: usize,
    answers: Vec<Answer>,
    mut read: impl FnMut(usize, Answer) -> Result<Vec<Result<T, Refusal>>, Error>,
) -> Result<Vec<Result<T, Refusal>>, Error> {
    let mut verdicts = Vec::with_capacity(count);
    let mut taken = false;
    let mut whole = None;
    for (start, answer) in (0..count).step_by(most).zip(answers) {
        let size = most.min(count - start);
        match read(size, answer) {
            Ok(part) => {
                verdicts.extend(part);
                taken = true;
            }
            Err(Error::Refused(refusal)) => {
                verdicts.extend((0..size).map(|_| Err(refusal.clone())));
                whole.get_or_insert(refusal);
            }
            Err(error) => return Err(error),
        }
    }
    match whole {
        Some(refusal) if !taken => Err(refusal.into()),
        _ => Ok(verdicts),
    }
}

/// Refusals by the position they name, each once, within a request of `count` files.
fn by_index(method: &str, count: usize, list: Vec<Refused>) -> Result<Vec<Option<Refusal>>, Error> {
    let mut refusals: Vec<Option<Refusal>> = vec![None; count];
    for refused in list {
        match refusals.get_mut(refused.index) {
            Some(free @ None) => *free = Some(refused.into()),
            _ => return Err(Error::protocol(method, "it refuses a file twice, or none of these")),
        }
    }
    Ok(refusals)
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

/// A call to a session that has no parameters.
pub(crate) fn plain(method: &str) -> Result<Prepared<'static>, Error> {
    Prepared::new(SESSION, method, &Nothing {}, Vec::new())
}

/// The tokens and the descriptors of pairs.
pub(crate) fn split<F: AsFd>(files: &[(u64, F)]) -> (Vec<u64>, Vec<BorrowedFd<'_>>) {
    files.iter().map(|(token, file)| (*token, file.as_fd())).unzip()
}

/// The one verdict on a batch of one.
pub(crate) fn one<T>(verdicts: Vec<Result<T, Refusal>>) -> Result<T, Error> {
    match verdicts.into_iter().next() {
        Some(verdict) => verdict.map_err(Error::from),
        None => Err(Error::protocol(SESSION, "it does not speak of the file")),
    }
}
