//! Who holds duplicates of the connections, so that they outlive this process even if it is killed.
//!
//! The server gives a connection to its [`Custody`] when it accepts it and serves it once that has settled, and
//! takes it out when the connection ends. The server must never wait for another process, so a custody only
//! queues; [`Background`] turns a [`Keeper`], which may block, into one.
//!
//! Invariants:
//! - What is asked about one token takes effect in the order it was asked.
//! - Every `preserve` settles exactly once, with success or the reason, unless the custody is dropped first.

use std::collections::VecDeque;
use std::error::Error;
use std::fmt;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::mpsc::{self, Receiver, Sender};
use std::thread;
use std::time::Instant;

use crate::wake::Waker;

/// The token of the memfd with all data.
pub const MEMORY: u64 = 1;
/// The token of the listening socket.
pub const LISTENER: u64 = 2;

/// The most descriptors that go in one batch: what one message on a socket can carry.
const BATCH: usize = 253;

/// Why a connection could not be given into custody; it is served all the same.
pub type CustodyError = Box<dyn Error + Send + Sync>;

/// How a `preserve` ended.
#[derive(Debug)]
pub struct Settled {
    /// The connection's token.
    pub token: u64,
    /// Whether a duplicate is held now.
    pub result: Result<(), CustodyError>,
}

/// Holds duplicates of connections. No method but [`drain`](Self::drain) blocks.
pub trait Custody: fmt::Debug + Send {
    /// Asks to hold a duplicate of a connection; [`settled`](Self::settled) tells the end.
    fn preserve(&mut self, token: u64, connection: BorrowedFd<'_>);

    /// Asks to let go of a connection that ended.
    fn forget(&mut self, token: u64);

    /// Sends what was asked since the last call, as one batch. Called once a turn of the server's loop.
    fn flush(&mut self);

    /// What settled since the last call.
    fn settled(&mut self) -> Vec<Settled>;

    /// Waits until all that was asked has been done, at most until `deadline`; whether it has.
    fn drain(&mut self, deadline: Instant) -> bool;
}

/// Holds nothing: connections last as long as the process, or are handed over by it.
#[derive(Debug, Default)]
pub struct NoCustody {
    settled: Vec<Settled>,
}

impl Custody for NoCustody {
    fn preserve(&mut self, token: u64, _connection: BorrowedFd<'_>) {
        self.settled.push(Settled { token, result: Ok(()) });
    }

    fn forget(&mut self, _token: u64) {}

    fn flush(&mut self) {}

    fn settled(&mut self) -> Vec<Settled> {
        std::mem::take(&mut self.settled)
    }

    fn drain(&mut self, _deadline: Instant) -> bool {
        true
    }
}

/// Holds duplicates, one batch at a time; may block. This is what a luo session is behind.
pub trait Keeper: Send + 'static {
    /// Holds duplicates of up to 253 connections, all or none.
    ///
    /// # Errors
    /// The keeper's own; the connections are served without custody.
    fn preserve(&mut self, connections: &[(u64, OwnedFd)]) -> Result<(), CustodyError>;

    /// Lets go of connections; tokens it does not hold are no error.
    ///
    /// # Errors
    /// The keeper's own; it is logged, and the duplicates stay until the session ends.
    fn forget(&mut self, tokens: &[u64]) -> Result<(), CustodyError>;
}

#[derive(Debug)]
enum Order {
    Preserve(u64, OwnedFd),
    Forget(u64),
    /// Answered once all before is done.
    Mark(Sender<()>),
}

/// A [`Keeper`] in a thread of its own, so that a keeper that is slow or restarting delays no request.
#[derive(Debug)]
pub struct Background {
    queued: Vec<Order>,
    orders: Sender<Vec<Order>>,
    settled: Receiver<Settled>,
    failed: Vec<Settled>,
}

impl Background {
    /// Starts the thread. It wakes the server by `waker` when something settled, and ends when this is dropped.
    ///
    /// # Errors
    /// What the kernel says where no thread can be started.
    pub fn start(keeper: impl Keeper, waker: &Waker) -> std::io::Result<Self> {
        let (orders, inbox) = mpsc::channel();
        let (outbox, settled) = mpsc::channel();
        let waker = waker.clone();
        thread::Builder::new()
            .name("custody".into())
            .spawn(move || work(keeper, &inbox, &outbox, &waker))?;
        Ok(Self { queued: Vec::new(), orders, settled, failed: Vec::new() })
    }
}

impl Custody for Background {
    fn preserve(&mut self, token: u64, connection: BorrowedFd<'_>) {
        match connection.try_clone_to_owned() {
            Ok(duplicate) => self.queued.push(Order::Preserve(token, duplicate)),
            Err(error) => self.failed.push(Settled { token, result: Err(error.into()) }),
        }
    }

    fn forget(&mut self, token: u64) {
        self.queued.push(Order::Forget(token));
    }

    fn flush(&mut self) {
        if self.queued.is_empty() {
            return;
        }
        // The thread is gone only if the keeper panicked: then nothing is in custody any more.
        if let Err(mpsc::SendError(orders)) = self.orders.send(std::mem::take(&mut self.queued)) {
            self.failed.extend(orders.into_iter().filter_map(|order| match order {
                Order::Preserve(token, _) => {
                    Some(Settled { token, result: Err("the keeper's thread ended".into()) })
                }
                Order::Forget(_) | Order::Mark(_) => None,
            }));
        }
    }

    fn settled(&mut self) -> Vec<Settled> {
        let mut settled = std::mem::take(&mut self.failed);
        settled.extend(self.settled.try_iter());
        settled
    }

    fn drain(&mut self, deadline: Instant) -> bool {
        let (mark, reached) = mpsc::channel();
        self.queued.push(Order::Mark(mark));
        self.flush();
        reached.recv_timeout(deadline.saturating_duration_since(Instant::now())).is_ok()
    }
}

/// The thread: does the orders in their order, neighbours of one kind together.
fn work(
    mut keeper: impl Keeper,
    inbox: &Receiver<Vec<Order>>,
    outbox: &Sender<Settled>,
    waker: &Waker,
) {
    while let Ok(orders) = inbox.recv() {
        // Whatever queued up while the keeper was busy goes in the same batches.
        let mut orders: VecDeque<Order> = orders.into();
        orders.extend(inbox.try_iter().flatten());
        while let Some(order) = orders.pop_front() {
            match order {
                Order::Preserve(token, connection) => {
                    let mut batch = vec![(token, connection)];
                    while batch.len() < BATCH {
                        match orders.pop_front() {
                            Some(Order::Preserve(token, connection)) => {
                                batch.push((token, connection))
                            }
                            Some(other) => {
                                orders.push_front(other);
                                break;
                            }
                            None => break,
                        }
                    }
                    preserve_batch(&mut keeper, &batch, outbox);
                    waker.wake();
                }
                Order::Forget(token) => {
                    let mut tokens = vec![token];
                    while let Some(Order::Forget(token)) = orders.front() {
                        tokens.push(*token);
                        orders.pop_front();
                    }
                    if let Err(error) = keeper.forget(&tokens) {
                        tracing::warn!(count = tokens.len(), %error, "ended connections stay in custody");
                    }
                }
                // Whoever waited may have given up.
                Order::Mark(reached) => drop(reached.send(())),
            }
        }
    }
}

fn preserve_batch(keeper: &mut impl Keeper, batch: &[(u64, OwnedFd)], outbox: &Sender<Settled>) {
    let failure = keeper.preserve(batch).err().map(|error| error.to_string());
    for (token, _) in batch {
        let result = failure.as_ref().map_or(Ok(()), |failure| Err(failure.clone().into()));
        // The server may be gone; then nobody waits for the answer.
        let _ = outbox.send(Settled { token: *token, result });
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::os::fd::AsFd;
    use std::os::unix::net::UnixStream;
    use std::time::Duration;

    use super::*;
    use crate::wake::wake_pair;

    struct Recorder {
        log: Sender<String>,
        gate: Receiver<()>,
        fail: bool,
    }

    impl Keeper for Recorder {
        fn preserve(&mut self, connections: &[(u64, OwnedFd)]) -> Result<(), CustodyError> {
            self.gate.recv()?;
            let tokens: Vec<u64> = connections.iter().map(|(token, _)| *token).collect();
            self.log.send(format!("preserve {tokens:?}"))?;
            if self.fail { Err("no room".into()) } else { Ok(()) }
        }

        fn forget(&mut self, tokens: &[u64]) -> Result<(), CustodyError> {
            self.log.send(format!("forget {tokens:?}"))?;
            Ok(())
        }
    }

    fn background(fail: bool) -> (Background, Sender<()>, Receiver<String>) {
        let (log, logged) = mpsc::channel();
        let (open, gate) = mpsc::channel();
        let (waker, _source) = wake_pair().unwrap();
        (Background::start(Recorder { log, gate, fail }, &waker).unwrap(), open, logged)
    }

    fn soon() -> Instant {
        Instant::now() + Duration::from_secs(20)
    }

    #[test]
    fn orders_are_done_in_order_and_neighbours_together() {
        let (socket, _peer) = UnixStream::pair().unwrap();
        let (mut custody, open, logged) = background(false);
        for token in 20..22 {
            custody.preserve(token, socket.as_fd());
        }
        custody.forget(20);
        custody.forget(21);
        custody.preserve(22, socket.as_fd());
        custody.flush();
        assert!(custody.settled().is_empty(), "the keeper is still blocked");
        open.send(()).unwrap();
        open.send(()).unwrap();
        assert!(custody.drain(soon()));
        assert_eq!(
            logged.try_iter().collect::<Vec<_>>(),
            ["preserve [20, 21]", "forget [20, 21]", "preserve [22]"]
        );
        let settled: Vec<u64> =
            custody.settled().into_iter().map(|settled| settled.token).collect();
        assert_eq!(settled, [20, 21, 22]);
    }

    #[test]
    fn a_keeper_that_refuses_tells_so_for_each_connection() {
        let (socket, _peer) = UnixStream::pair().unwrap();
        let (mut custody, open, _logged) = background(true);
        custody.preserve(20, socket.as_fd());
        custody.preserve(21, socket.as_fd());
        open.send(()).unwrap();
        assert!(custody.drain(soon()));
        let settled = custody.settled();
        assert_eq!(settled.len(), 2);
        assert!(
            settled
                .iter()
                .all(|settled| settled.result.as_ref().unwrap_err().to_string() == "no room")
        );
    }

    #[test]
    fn a_keeper_that_hangs_does_not_block_but_to_the_deadline() {
        let (socket, mut peer) = UnixStream::pair().unwrap();
        let (mut custody, open, _logged) = background(false);
        custody.preserve(20, socket.as_fd());
        drop(socket);
        assert!(!custody.drain(Instant::now() + Duration::from_millis(1)));
        drop(open);
        drop(custody);
        // The thread lets go of the duplicate.
        assert_eq!(peer.read(&mut [0]).unwrap(), 0);
    }
}
