//! A call with replies without end.
//!
//! ```text
//!          connected, call sent              a reply
//! away ───────────────────────────▶ open ──────────────▶ open
//!  ▲                                  │
//!  └─ the connection broke, an error ─┘
//! ```
//!
//! Invariants: the call is made again whenever the connection broke, but nothing is asked on a call
//! that luod has ended. All of the state is here, so that a future that is dropped while it waits
//! loses no reply.

use std::time::{Duration, Instant};

use serde::de::DeserializeOwned;

use super::stream::Stream;
use super::target::{Target, is_transient};
use crate::drive::{Deadline, Drive, RETRY_PAUSE};
use crate::error::Error;
use crate::exchange::{self, Prepared};

/// A call with replies without end, made again whenever the connection breaks.
#[derive(Debug)]
pub(crate) struct Feed<D: Drive> {
    target: Target,
    call: Prepared<'static>,
    /// How long luod may be away.
    patience: Duration,
    stream: Option<Stream<D>>,
    /// Bytes of the call that were sent on this stream.
    sent: usize,
    /// Whether luod was ever reached, and whether it ever replied.
    reached: bool,
    replied: bool,
    away: Option<Deadline>,
    /// Refusals that, once luod has replied, only mean that it is not ready for the call again yet.
    not_yet: &'static [&'static str],
    remade: u64,
}

impl<D: Drive> Feed<D> {
    pub(super) fn new(
        target: Target,
        call: Prepared<'static>,
        patience: Duration,
        not_yet: &'static [&'static str],
    ) -> Self {
        Self {
            target,
            call,
            patience,
            stream: None,
            sent: 0,
            reached: false,
            replied: false,
            away: None,
            not_yet,
            remade: 0,
        }
    }

    /// How often the call was made again.
    pub(crate) fn remade(&self) -> u64 {
        self.remade
    }

    /// The next reply; `None` if none came until then, or ever where that is `None`.
    pub(crate) async fn next<R: DeserializeOwned>(
        &mut self,
        until: Option<Instant>,
    ) -> Result<Option<R>, Error> {
        loop {
            let error = match self.attempt(until).await {
                Ok(reply) => {
                    self.away = None;
                    return Ok(reply);
                }
                Err(error) => error,
            };
            self.close();
            let not_yet = self.replied && self.not_yet.iter().any(|errno| error.is(errno));
            if !not_yet && !is_transient(&error, self.reached) {
                self.away = None;
                return Err(error);
            }
            let away = *self.away.get_or_insert_with(|| Deadline::after(self.patience));
            if away.has_passed() {
                self.away = None;
                return Err(match error {
                    error @ (Error::Refused(_) | Error::Unavailable { .. }) => error,
                    error => away.exceeded(&self.call.method, Some(error)),
                });
            }
            let left = until.map(|until| until.saturating_duration_since(Instant::now()));
            if left.is_some_and(|left| left.is_zero()) {
                return Ok(None);
            }
            D::pause(left.map_or(RETRY_PAUSE, |left| left.min(RETRY_PAUSE))).await;
        }
    }

    async fn attempt<R: DeserializeOwned>(
        &mut self,
        until: Option<Instant>,
    ) -> Result<Option<R>, Error> {
        let stream = match &mut self.stream {
            Some(stream) => stream,
            none => {
                let stream = Stream::connect(&self.target)?;
                self.remade = self.remade.saturating_add(u64::from(self.reached));
                self.reached = true;
                self.sent = 0;
                none.insert(stream)
            }
        };
        let Some(frame) = stream.listen(&self.call, &mut self.sent, until).await? else {
            return Ok(None);
        };
        let (reply, more) = exchange::read(&self.call.method, &frame)?;
        self.replied = true;
        if !more {
            self.close();
        }
        Ok(Some(reply))
    }

    fn close(&mut self) {
        self.stream = None;
    }
}
