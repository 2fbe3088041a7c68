//! Who holds duplicates of the connections, so that they outlive this process even if it is killed.
//!
//! The server gives a connection to its [`Custody`] when it accepts it and serves it once that has settled, and
//! takes it out when the connection ends. The server must never wait for another process, so a custody only
//! queues; [`Background`] turns a [`Keeper`], which may block, into one.
//!
//! Invariants:
//! - What is asked about one token takes effect in the order it was asked.
//! - Every `preserve` settles exactly once, with success or the reason, unless the custody is dropped first.
//! - What a keeper is too busy for is *owed*: it is asked again when the keeper says that it is free, not before,
//!   and not of a connection that has ended meanwhile.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::error::Error;
use std::fmt;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::mpsc::{self, Receiver, Sender};
use std::sync::{Arc, Weak};
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
    /// Holds duplicates of up to 253 connections. Gives the tokens of those that it is too busy for: they are
    /// asked again later, and served without custody until then.
    ///
    /// # Errors
    /// The keeper's own; the connections are served without custody.
    fn preserve(&mut self, connections: &[(u64, OwnedFd)]) -> Result<Vec<u64>, CustodyError>;

    /// Lets go of connections; tokens it does not hold are no error. Gives those that it is too busy for.
    ///
    /// # Errors
    /// The keeper's own; it is logged, and the duplicates stay until the session ends.
    fn forget(&mut self, tokens: &[u64]) -> Result<Vec<u64>, CustodyError>;

    /// Has `then` called when it is worth while to ask again, from any thread. Asked for after it was too busy
    /// for something, and then not again before the call; `times` says how often in a row, from 1.
    fn when_free(&mut self, times: u32, then: Box<dyn FnOnce() + Send>);
}

#[derive(Debug)]
enum Order {
    Preserve(u64, OwnedFd),
    Forget(u64),
    /// The keeper may be free for what is owed.
    Again,
    /// Answered once all before is done.
    Mark(Sender<()>),
}

/// A [`Keeper`] in a thread of its own, so that a keeper that is slow or restarting delays no request.
#[derive(Debug)]
pub struct Background {
    queued: Vec<Order>,
    /// The only one that lasts: the thread ends with it.
    orders: Arc<Sender<Vec<Order>>>,
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
        let orders = Arc::new(orders);
        let (outbox, settled) = mpsc::channel();
        let worker = Worker {
            keeper,
            outbox,
            waker: waker.clone(),
            orders: Arc::downgrade(&orders),
            owed: BTreeMap::new(),
            owed_ends: BTreeSet::new(),
            asked: false,
            times: 0,
        };
        thread::Builder::new().name("custody".into()).spawn(move || worker.work(&inbox))?;
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
                Order::Forget(_) | Order::Again | Order::Mark(_) => None,
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

/// The thread.
struct Worker<K> {
    keeper: K,
    outbox: Sender<Settled>,
    waker: Waker,
    orders: Weak<Sender<Vec<Order>>>,
    /// Connections that the keeper was too busy for, and those that have ended in its custody.
    owed: BTreeMap<u64, OwnedFd>,
    owed_ends: BTreeSet<u64>,
    /// The keeper is to say when it is free.
    asked: bool,
    /// How often in a row it was too busy.
    times: u32,
}

impl<K: Keeper> Worker<K> {
    /// Does the orders in their order, neighbours of one kind together.
    fn work(mut self, inbox: &Receiver<Vec<Order>>) {
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
                        self.preserve(batch);
                        self.waker.wake();
                    }
                    Order::Forget(token) => {
                        let mut tokens = vec![token];
                        while let Some(Order::Forget(token)) = orders.front() {
                            tokens.push(*token);
                            orders.pop_front();
                        }
                        // What was never in custody needs no end there.
                        tokens.retain(|token| self.owed.remove(token).is_none());
                        self.forget(&tokens);
                    }
                    Order::Again => {
                        self.asked = false;
                        self.settle_debts();
                    }
                    Order::Mark(reached) => {
                        self.settle_debts();
                        // Whoever waited may have given up.
                        let _ = reached.send(());
                    }
                }
            }
            self.ask();
        }
    }

    fn preserve(&mut self, batch: Vec<(u64, OwnedFd)>) {
        let (busy, failure) = match self.keeper.preserve(&batch) {
            Ok(busy) => (busy, None),
            Err(error) => (Vec::new(), Some(error.to_string())),
        };
        for (token, connection) in batch {
            let result = match &failure {
                Some(failure) => Err(failure.clone().into()),
                None if busy.contains(&token) => {
                    self.owed.insert(token, connection);
                    Err("there is an update of the machine; it is given again after that".into())
                }
                None => Ok(()),
            };
            // The server may be gone; then nobody waits for the answer.
            let _ = self.outbox.send(Settled { token, result });
        }
    }

    fn forget(&mut self, tokens: &[u64]) {
        match self.keeper.forget(tokens) {
            Ok(busy) => self.owed_ends.extend(busy),
            Err(error) => {
                tracing::warn!(count = tokens.len(), %error, "ended connections stay in custody");
            }
        }
    }

    /// Asks again for what the keeper was too busy for.
    fn settle_debts(&mut self) {
        let ends: Vec<u64> = std::mem::take(&mut self.owed_ends).into_iter().collect();
        if !ends.is_empty() {
            self.forget(&ends);
        }
        let mut owed: VecDeque<(u64, OwnedFd)> =
            std::mem::take(&mut self.owed).into_iter().collect();
        while !owed.is_empty() {
            let batch: Vec<(u64, OwnedFd)> = owed.drain(..owed.len().min(BATCH)).collect();
            match self.keeper.preserve(&batch) {
                Ok(busy) => {
                    let kept = batch.len() - busy.len();
                    if kept > 0 {
                        tracing::info!(count = kept, "connections are in custody after all");
                    }
                    self.owed.extend(batch.into_iter().filter(|(token, _)| busy.contains(token)));
                }
                Err(error) => {
                    tracing::warn!(count = batch.len(), %error, "connections stay without custody");
                }
            }
        }
        if !self.is_in_debt() {
            self.times = 0;
        }
    }

    fn is_in_debt(&self) -> bool {
        !self.owed.is_empty() || !self.owed_ends.is_empty()
    }

    /// Has the keeper say when it is free, where something is owed.
    fn ask(&mut self) {
        if self.asked || !self.is_in_debt() {
            return;
        }
        self.asked = true;
        self.times = self.times.saturating_add(1);
        let orders = Weak::clone(&self.orders);
        let then = move || {
            if let Some(orders) = orders.upgrade() {
                // The thread may have ended meanwhile.
                let _ = orders.send(vec![Order::Again]);
            }
        };
        self.keeper.when_free(self.times, Box::new(then));
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
        fn preserve(&mut self, connections: &[(u64, OwnedFd)]) -> Result<Vec<u64>, CustodyError> {
            self.gate.recv()?;
            let tokens: Vec<u64> = connections.iter().map(|(token, _)| *token).collect();
            self.log.send(format!("preserve {tokens:?}"))?;
            if self.fail { Err("no room".into()) } else { Ok(Vec::new()) }
        }

        fn forget(&mut self, tokens: &[u64]) -> Result<Vec<u64>, CustodyError> {
            self.log.send(format!("forget {tokens:?}"))?;
            Ok(Vec::new())
        }

        fn when_free(&mut self, _times: u32, _then: Box<dyn FnOnce() + Send>) {
            unreachable!("it is never busy");
        }
    }

    /// Too busy for everything while it is told so; `free` gets what is to be called then.
    struct Busy {
        log: Sender<String>,
        busy: Arc<std::sync::atomic::AtomicBool>,
        free: Sender<(u32, Box<dyn FnOnce() + Send>)>,
    }

    impl Busy {
        fn answer(&self, what: &str, tokens: Vec<u64>) -> Result<Vec<u64>, CustodyError> {
            let busy = self.busy.load(std::sync::atomic::Ordering::SeqCst);
            self.log.send(format!("{what} {tokens:?}{}", if busy { ": busy" } else { "" }))?;
            Ok(if busy { tokens } else { Vec::new() })
        }
    }

    impl Keeper for Busy {
        fn preserve(&mut self, connections: &[(u64, OwnedFd)]) -> Result<Vec<u64>, CustodyError> {
            self.answer("preserve", connections.iter().map(|(token, _)| *token).collect())
        }

        fn forget(&mut self, tokens: &[u64]) -> Result<Vec<u64>, CustodyError> {
            self.answer("forget", tokens.to_vec())
        }

        fn when_free(&mut self, times: u32, then: Box<dyn FnOnce() + Send>) {
            self.free.send((times, then)).unwrap();
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

    #[test]
    fn what_a_keeper_is_too_busy_for_is_asked_again_when_it_is_free_and_not_of_what_has_ended() {
        use std::sync::atomic::{AtomicBool, Ordering};
        let (log, logged) = mpsc::channel();
        let (free, when_free) = mpsc::channel();
        let busy = Arc::new(AtomicBool::new(false));
        let keeper = Busy { log, busy: Arc::clone(&busy), free };
        let (waker, _source) = wake_pair().unwrap();
        let mut custody = Background::start(keeper, &waker).unwrap();
        let (socket, _peer) = UnixStream::pair().unwrap();
        let next = || logged.recv_timeout(Duration::from_secs(20)).unwrap();
        let freed = || when_free.recv_timeout(Duration::from_secs(20)).unwrap();

        custody.preserve(20, socket.as_fd());
        custody.flush();
        assert_eq!(next(), "preserve [20]");
        busy.store(true, Ordering::SeqCst);
        custody.preserve(21, socket.as_fd());
        custody.preserve(22, socket.as_fd());
        custody.forget(20);
        custody.forget(21);
        custody.flush();
        assert_eq!(next(), "preserve [21, 22]: busy");
        // 21 has ended before it was in custody.
        assert_eq!(next(), "forget [20]: busy");
        let (times, then) = freed();
        assert_eq!(times, 1);
        // It is not so yet: it is asked for once more.
        then();
        assert_eq!(next(), "forget [20]: busy");
        assert_eq!(next(), "preserve [22]: busy");
        let (times, then) = freed();
        assert_eq!(times, 2);
        busy.store(false, Ordering::SeqCst);
        then();
        assert_eq!(next(), "forget [20]");
        assert_eq!(next(), "preserve [22]");
        assert!(custody.drain(soon()));
        assert!(logged.try_recv().is_err() && when_free.try_recv().is_err());
        let settled: Vec<(u64, bool)> =
            custody.settled().into_iter().map(|one| (one.token, one.result.is_ok())).collect();
        assert_eq!(settled, [(20, true), (21, false), (22, false)]);
    }
}
