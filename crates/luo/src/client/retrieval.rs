//! Files that come back one after the other, each as soon as it is there.
//!
//! Invariants: every token gets one verdict, in the order in which they were given, unless an error
//! ends the retrieval before; what was given is never asked for again. A future that is dropped while
//! it waits loses no token. A retrieval that is dropped in the middle closes its connection, and the
//! files that nobody has taken can be retrieved anew.

use std::os::fd::OwnedFd;
use std::slice;

use super::connections::Connections;
use super::stream::Stream;
use crate::calls;
use crate::drive::{Deadline, Drive};
use crate::error::Error;
use crate::exchange::Exchange;
use crate::options::Options;

/// A retrieval of many files, one call for each.
#[derive(Debug)]
pub(crate) struct Retrieval<'session, D: Drive> {
    connections: &'session Connections<D>,
    options: &'session Options,
    tokens: Vec<u64>,
    /// Tokens that had their verdict.
    given: usize,
    exchange: Exchange<'static>,
    /// While calls are on their way.
    stream: Option<Stream<D>>,
}

impl<'session, D: Drive> Retrieval<'session, D> {
    pub(super) fn new(
        connections: &'session Connections<D>,
        options: &'session Options,
        tokens: &[u64],
    ) -> Result<Self, Error> {
        let calls = tokens.iter().map(|token| calls::retrieve_one(*token));
        let exchange = Exchange::new(calls.collect::<Result<_, _>>()?);
        let tokens = tokens.to_vec();
        Ok(Self { connections, options, tokens, given: 0, exchange, stream: None })
    }

    /// The next token and its file, or why it has none.
    pub(crate) async fn next(&mut self) -> Option<(u64, Result<OwnedFd, Error>)> {
        let token = *self.tokens.get(self.given)?;
        let deadline = Deadline::after(self.options.deadline);
        let answer = self.connections.next(&mut self.stream, &mut self.exchange, &deadline).await;
        let file = match answer {
            Ok(answer) => calls::retrieved(slice::from_ref(&token), answer.into_iter().collect())
                .and_then(calls::one),
            Err(error) => Err(error),
        };
        if !matches!(file, Ok(_) | Err(Error::Refused(_))) {
            // Nobody knows what a peer says next that is not understood, or not there.
            self.stream = None;
            self.tokens.truncate(self.given + 1);
        }
        self.given += 1;
        Some((token, file))
    }

    /// How many tokens are still to come, if no error ends it before.
    pub(crate) fn left(&self) -> usize {
        self.tokens.len() - self.given
    }
}
