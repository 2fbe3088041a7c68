//! One connection, and the jobs that are done on it.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Instant;

use super::target::Target;
use crate::drive::{Drive, Job, Step};
use crate::error::Error;
use crate::exchange::{Exchange, Prepared};
use crate::wire::{self, Frame, Limits, Receiver, WireError};

/// Bytes of one message that a client takes from luod.
const LIMITS: Limits = Limits { bytes: 64 * 1024 * 1024 };

/// An open connection.
#[derive(Debug)]
pub(super) struct Stream<D: Drive> {
    socket: D::Socket,
    receiver: Receiver,
}

impl<D: Drive> Stream<D> {
    pub(super) fn connect(target: &Target) -> Result<Self, Error> {
        Self::over(target.connect()?)
    }

    /// Over our end of a connection.
    pub(super) fn over(socket: OwnedFd) -> Result<Self, Error> {
        Ok(Self { socket: D::register(socket)?, receiver: Receiver::new(LIMITS) })
    }

    /// Whether it is open and nothing came that nobody asked for.
    pub(super) fn is_quiet(&mut self) -> bool {
        !self.receiver.is_mid_frame()
            && matches!(
                self.receiver.fill(self.socket.as_fd()),
                Err(WireError::Io(error)) if error.kind() == io::ErrorKind::WouldBlock
            )
    }

    /// Sends and receives until no answer is waited for any more; `false` when `until` has passed.
    pub(super) async fn exchange(
        &mut self,
        exchange: &mut Exchange<'_>,
        until: Option<Instant>,
    ) -> Result<bool, Error> {
        let mut job = Conversation { exchange, receiver: &mut self.receiver };
        Ok(D::drive(&self.socket, until, &mut job).await?.is_some())
    }

    /// Sends what is left of a call, `sent` bytes of it being sent, then receives one frame; `None`
    /// when `until` has passed.
    pub(super) async fn listen(
        &mut self,
        call: &Prepared<'_>,
        sent: &mut usize,
        until: Option<Instant>,
    ) -> Result<Option<Frame>, Error> {
        let mut job = Listening { call, sent, receiver: &mut self.receiver };
        D::drive(&self.socket, until, &mut job).await
    }
}

/// How far sending came.
enum Sending {
    Done,
    Blocked,
    Crowded,
}

/// Sends the rest of a call, as far as the socket takes it.
fn send(
    socket: BorrowedFd<'_>,
    call: &Prepared<'_>,
    sent: &mut usize,
) -> Result<Sending, WireError> {
    while let Some(rest) = call.bytes.get(*sent..).filter(|rest| !rest.is_empty()) {
        let descriptors = if *sent == 0 { call.descriptors.as_slice() } else { &[] };
        match wire::send(socket, rest, descriptors) {
            Ok(count) => *sent += count,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(Sending::Blocked),
            Err(error) if wire::is_crowded(&error) => return Ok(Sending::Crowded),
            Err(error) => return Err(error.into()),
        }
    }
    Ok(Sending::Done)
}

/// The next frame, if it is here.
fn receive(socket: BorrowedFd<'_>, receiver: &mut Receiver) -> Result<Option<Frame>, WireError> {
    loop {
        if let Some(frame) = receiver.next_frame()? {
            return Ok(Some(frame));
        }
        match receiver.fill(socket) {
            Ok(()) => {}
            Err(WireError::Io(error)) if error.kind() == io::ErrorKind::WouldBlock => {
                return Ok(None);
            }
            Err(error) => return Err(error),
        }
    }
}

/// Calls and their answers. It reads whenever it cannot write, so that two sides never wait for
/// each other.
struct Conversation<'a, 'fd> {
    exchange: &'a mut Exchange<'fd>,
    receiver: &'a mut Receiver,
}

impl Conversation<'_, '_> {
    fn send(&mut self, socket: BorrowedFd<'_>) -> Result<Sending, WireError> {
        while let Some((call, begun)) = self.exchange.next_to_send() {
            match send(socket, call, begun)? {
                Sending::Done => self.exchange.sent(),
                other => return Ok(other),
            }
        }
        Ok(Sending::Done)
    }
}

impl Job for Conversation<'_, '_> {
    type Output = ();

    fn step(&mut self, socket: BorrowedFd<'_>) -> Result<Step<()>, Error> {
        loop {
            let sending = self.send(socket);
            // Also where nothing can be sent any more: what has its answer is not sent again.
            while self.exchange.is_waiting() {
                match receive(socket, self.receiver)? {
                    Some(frame) => self.exchange.answered(frame)?,
                    None => break,
                }
            }
            if !self.exchange.is_waiting() {
                return Ok(Step::Done(()));
            }
            match sending? {
                Sending::Blocked => return Ok(Step::Wait { writing: true }),
                Sending::Crowded => return Ok(Step::Pause),
                // Answers have made room for more calls.
                Sending::Done if self.exchange.next_to_send().is_some() => {}
                Sending::Done => return Ok(Step::Wait { writing: false }),
            }
        }
    }
}

/// A call whose replies come as they come.
struct Listening<'a, 'fd> {
    call: &'a Prepared<'fd>,
    sent: &'a mut usize,
    receiver: &'a mut Receiver,
}

impl Job for Listening<'_, '_> {
    type Output = Frame;

    fn step(&mut self, socket: BorrowedFd<'_>) -> Result<Step<Frame>, Error> {
        let sending = send(socket, self.call, self.sent);
        match receive(socket, self.receiver)? {
            Some(frame) => Ok(Step::Done(frame)),
            None => Ok(match sending? {
                Sending::Crowded => Step::Pause,
                Sending::Blocked => Step::Wait { writing: true },
                Sending::Done => Step::Wait { writing: false },
            }),
        }
    }
}
