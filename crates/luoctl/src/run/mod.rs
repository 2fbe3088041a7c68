//! `luoctl run`: a program that knows nothing of luod, and speaks to the descriptor store of a service
//! manager, has that store in a session.
//!
//! ```text
//!               NOTIFY_SOCKET                    a channel
//!   program ──────────────────▶ this process ───────────────▶ the store's thread ──▶ luod
//!      ▲                          │      │
//!      │  signals, LISTEN_FDS     │      └── what is not for the store ──▶ an outer service manager
//!      └──────────────────────────┘
//! ```
//!
//! The program's end is seen, signals are passed on and messages are read by one thread; only the
//! store's thread waits for luod. So neither a signal nor a watchdog's message is ever late because
//! luod is being replaced.
//!
//! Invariants: the session is not taken up for good before the program has begun; when the program has
//! ended, what it sent before is still carried out; its status is luoctl's.

mod arguments;
mod listen;
mod message;
mod names;
mod notify;
mod start;
mod store;
mod supervise;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::{self, Sender};
use std::thread::{self, JoinHandle};

use luo::{OnClose, Options, Policy};
use rustix::process::{getpid, set_child_subreaper};

pub(crate) use arguments::{Arguments, StartArguments};
pub(crate) use start::become_program;

use crate::cli::Global;
use crate::failure::Failure;
use crate::output::complain;
use arguments::{Finish, Limits};
use notify::{Notify, Outer};
use start::Setup;
use store::{Op, Store};
use supervise::Supervisor;

/// The store's thread, and the way to it.
#[derive(Debug)]
struct Line {
    ops: Sender<Op>,
    /// How many it has not done yet.
    waiting: Arc<AtomicUsize>,
    ended: Arc<AtomicBool>,
    thread: JoinHandle<Store>,
}

impl Line {
    fn open(mut store: Store, ended: Arc<AtomicBool>) -> std::io::Result<Self> {
        let (ops, asked) = mpsc::channel();
        let waiting = Arc::new(AtomicUsize::new(0));
        let done = Arc::clone(&waiting);
        let thread = thread::Builder::new().name("store".into()).spawn(move || {
            while let Ok(op) = asked.recv() {
                store.run(op);
                done.fetch_sub(1, Ordering::Relaxed);
            }
            store
        })?;
        Ok(Self { ops, waiting, ended, thread })
    }

    fn send(&self, op: Op) {
        self.waiting.fetch_add(1, Ordering::Relaxed);
        if self.ops.send(op).is_err() {
            complain("a descriptor is not kept: the store has failed");
        }
    }

    fn waiting(&self) -> usize {
        self.waiting.load(Ordering::Relaxed)
    }

    /// Has everything done that was sent; gives the store back. Nothing if it has failed.
    fn close(self) -> Option<Store> {
        self.ended.store(true, Ordering::Relaxed);
        drop(self.ops);
        self.thread.join().ok()
    }
}

pub(crate) fn run(arguments: &Arguments, global: &Global) -> Result<(), Failure> {
    // Before anything is opened: these have no owner yet.
    let mut files =
        start::passed_in().map_err(Failure::program("what LISTEN_FDS names cannot be taken"))?;
    check_names(arguments)?;
    let open_files = start::raise_open_files();
    let limits = Limits {
        files: arguments.store_max as usize,
        required: !arguments.optional,
        deadline: global.deadline,
    };
    let ended = Arc::new(AtomicBool::new(false));
    let mut store =
        Store::open(&arguments.session, options(arguments, global), limits, Arc::clone(&ended))?;
    let mut new = Vec::new();
    for listen in arguments.listen.iter().filter(|listen| !store.has(&listen.name)) {
        let listener = listen.bind().map_err(|source| Failure::Step {
            sentence: format!("nobody can listen at {listen}: {source}; name another address"),
            exit: crate::exit::Exit::Failed,
            source: Some(source),
        })?;
        new.push((listen.name.as_str(), listener));
    }
    let doubled = Failure::program("descriptors cannot be passed on");
    files.extend(store.stored().map_err(doubled)?);
    for (name, listener) in &new {
        let file =
            listener.try_clone().map_err(Failure::program("a listener cannot be passed on"))?;
        files.push(store::Stored { name: (*name).to_owned(), file });
    }
    let notify = Notify::open().map_err(Failure::program("a NOTIFY_SOCKET cannot be made"))?;
    let outer = Outer::from_environment()
        .map_err(Failure::program("the NOTIFY_SOCKET of luoctl itself cannot be used"))?;
    set_child_subreaper(Some(getpid()))
        .map_err(|error| Failure::program("processes cannot be taken up")(error.into()))?;
    let mut supervisor = Supervisor::new(notify, outer, store.watch())?;
    let setup = Setup {
        command: &arguments.command,
        notify: &supervisor.notify_path(),
        store_max: arguments.store_max,
        open_files,
    };
    supervisor.watch_over(start::start(&setup, files)?);
    store.begin()?;
    for (name, listener) in new {
        store.store(listener, name, false);
    }
    let line = Line::open(store, ended).map_err(Failure::program("the store cannot be begun"))?;
    let status = supervisor.run(&line)?;
    let store = line.close();
    let is_over = match arguments.finish {
        Finish::Never => false,
        Finish::Success => status == 0,
        Finish::Always => true,
    };
    if let (true, Some(store)) = (is_over, store) {
        store.release()?;
    }
    if status == 0 { Ok(()) } else { Err(Failure::Ended(status)) }
}

fn options(arguments: &Arguments, global: &Global) -> Options {
    let policy = Policy { on_close: OnClose::Keep, ttl_seconds: arguments.ttl };
    global.options().policy(policy)
}

fn check_names(arguments: &Arguments) -> Result<(), Failure> {
    let names: BTreeSet<&str> = arguments.listen.iter().map(|its| its.name.as_str()).collect();
    if names.len() == arguments.listen.len() {
        return Ok(());
    }
    Err(Failure::Step {
        sentence: "two listeners have one name; give each with --listen NAME=ADDRESS".into(),
        exit: crate::exit::Exit::Usage,
        source: None,
    })
}
