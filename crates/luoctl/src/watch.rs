//! `luoctl watch`.
//!
//! Events and signals come from threads of their own into one channel, so that none waits for the
//! other. The threads end with the process.
//!
//! Invariants: signals are caught before luod is asked, so none that comes later is missed; every
//! event that was printed is written out before the next one is waited for.

use std::io;
use std::sync::mpsc::{self, Sender};
use std::thread;

use luo::protocol::{Event, Watched};
use luo::{Manager, Watch};
use tokio::runtime::{Builder, Runtime};
use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::failure::{Context, Failure};
use crate::output::Output;

/// What the command waits for.
enum Came {
    Event(Result<Event, luo::Error>),
    Signal,
}

pub(crate) fn run(
    manager: &Manager,
    count: Option<u64>,
    output: &mut Output,
) -> Result<(), Failure> {
    let (sender, receiver) = mpsc::channel();
    let signals = Signals::catch().map_err(Failure::Signals)?;
    let at_signal = sender.clone();
    spawn("signals", move || signals.wait(&at_signal))?;
    let events = manager.watch().map_err(Failure::luod(Context::Watch))?;
    spawn("events", move || forward(events, &sender))?;
    let mut left = count;
    while left != Some(0) {
        match receiver.recv() {
            Ok(Came::Event(event)) => {
                print(event.map_err(Failure::luod(Context::Watch))?, output)?;
                left = left.map(|left| left - 1);
            }
            Ok(Came::Signal) | Err(mpsc::RecvError) => break,
        }
    }
    Ok(())
}

fn spawn(name: &str, run: impl FnOnce() + Send + 'static) -> Result<(), Failure> {
    thread::Builder::new().name(name.to_owned()).spawn(run).map(|_| ()).map_err(Failure::Signals)
}

fn forward(mut events: Watch, to: &Sender<Came>) {
    loop {
        let event = match events.next_event(None) {
            Ok(Some(event)) => Ok(event),
            // Without a time limit there is always one.
            Ok(None) => continue,
            Err(error) => Err(error),
        };
        let last = event.is_err();
        if to.send(Came::Event(event)).is_err() || last {
            return;
        }
    }
}

/// The signals that end a command.
pub(crate) struct Signals {
    runtime: Runtime,
    interrupt: Signal,
    terminate: Signal,
}

impl Signals {
    /// From here on they end nothing by themselves.
    pub(crate) fn catch() -> io::Result<Self> {
        let runtime = Builder::new_current_thread().enable_io().build()?;
        let (interrupt, terminate) = {
            let _inside = runtime.enter();
            (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?)
        };
        Ok(Self { runtime, interrupt, terminate })
    }

    fn wait(self, to: &Sender<Came>) {
        self.come();
        // Where nobody listens any more the command has ended already.
        let _ = to.send(Came::Signal);
    }

    /// Waits for one of them.
    pub(crate) fn come(self) {
        let Self { runtime, mut interrupt, mut terminate } = self;
        runtime.block_on(async {
            tokio::select! {
                _ = interrupt.recv() => {}
                _ = terminate.recv() => {}
            }
        });
    }
}

fn print(event: Event, output: &mut Output) -> Result<(), Failure> {
    if output.is_json() {
        return output.reply_line(&Watched { event });
    }
    let session = event.session.as_deref().unwrap_or("-");
    output
        .line(&format!("{:<8}  {:<11}  {session:<16}  {}", event.state, event.kind, event.text))?;
    output.finish()
}
