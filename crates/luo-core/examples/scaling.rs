//! What one more costs when there are many: preserves 100,000 files, retrieves and looks up, and
//! makes 10,000 sessions, and compares the last tenth with the first.
//!
//! `cargo run --release -p luo-core --example scaling`. Nothing but the framework is measured: the
//! files are numbers.

use std::{cmp::Ordering, error::Error, hint::black_box, sync::Arc, time::Instant};

use luo_core::{
    Caps, Criticality, Event, Failure, File, Handler, Identity, Keep, Limits, Orchestrator,
    Outcome, Owner, Policy, Recall, Scope, SessionId, Token,
};

const FILES: u64 = 100_000;
const SESSIONS: u64 = 10_000;
const ROUNDS: usize = 15;

/// A file that is a number; consecutive ones have unrelated identities, which is the worst case.
#[derive(Clone)]
struct Number(Arc<u64>);

impl File for Number {
    fn identity(&self) -> Identity {
        Identity([8, self.0.wrapping_mul(0x9e37_79b9_7f4a_7c15)])
    }
    fn order(&self, other: &Self) -> Ordering {
        self.0.cmp(&other.0)
    }
    fn pinned(&self) -> u64 {
        4096
    }
}

/// A file whose identity counts up, as the inode numbers of sockets and memfds do.
#[derive(Clone)]
struct Counted(Arc<u64>);

impl File for Counted {
    fn identity(&self) -> Identity {
        Identity([8, *self.0])
    }
    fn order(&self, other: &Self) -> Ordering {
        self.0.cmp(&other.0)
    }
    fn pinned(&self) -> u64 {
        4096
    }
}

struct Plain;

impl<F: File> Handler<F> for Plain {
    fn compatible(&self) -> &str {
        "plain-v1"
    }
    fn requires(&self) -> Caps {
        Caps::empty()
    }
    fn can_preserve(&self, _: &F) -> bool {
        true
    }
    fn prepare(&self, _: &F, _: &dyn Keep<F>) -> Result<u64, Failure> {
        Ok(1)
    }
    fn retrieve(&self, _: u64, _: &dyn Recall<F>) -> Result<F, Failure> {
        Err(Failure::new(luo_core::Errno::OpNotSupp, "numbers do not come back"))
    }
    fn finish(&self, _: Option<&F>, _: u64, _: bool, _: &dyn Recall<F>) {}
}

const OWNER: Owner = Owner { uid: 1000, gid: 1000 };

/// Nanoseconds for each of ten tenths.
type Tenths = [f64; 10];

/// Runs a step `count` times; how long each tenth took, for one step.
fn tenths<E: Error>(count: u64, mut step: impl FnMut(u64) -> Result<(), E>) -> Result<Tenths, E> {
    let mut times = [0.0; 10];
    let tenth = count / 10;
    for (i, time) in times.iter_mut().enumerate() {
        let start = Instant::now();
        for n in 0..tenth {
            step(i as u64 * tenth + n)?;
        }
        *time = start.elapsed().as_nanos() as f64 / tenth as f64;
    }
    Ok(times)
}

/// The median round of each tenth.
fn median(mut rounds: Vec<Tenths>) -> Tenths {
    let mut out = [0.0; 10];
    for (i, time) in out.iter_mut().enumerate() {
        rounds.sort_by(|a, b| a[i].total_cmp(&b[i]));
        *time = rounds[rounds.len() / 2][i];
    }
    out
}

fn print(what: &str, rounds: Vec<Tenths>) {
    let times = median(rounds);
    let ratio = times[9] / times[0];
    println!("{what:44} {:8.0} ns {:8.0} ns {ratio:6.2}", times[0], times[9]);
}

fn preserve<F: File>(make: impl Fn(u64) -> F) -> Result<(Tenths, Tenths, Tenths), luo_core::Error> {
    let mut core = Orchestrator::new(Caps::LIVE, Limits::default());
    core.register_handler(Arc::new(Plain))?;
    let session = core.create_session("s", OWNER, Policy::default())?;
    let files: Vec<F> = (0..FILES).map(make).collect();
    let mut files = files.into_iter();
    let preserve = tenths(FILES, |_| match files.next() {
        Some(file) => core.preserve(session, None, file, Criticality::Required).map(drop),
        None => Ok(()),
    })?;
    core.take_dirty();
    core.begin(Scope::Machine, Event::Prepare)?;
    let prepare = tenths(FILES, |_| match core.next_call() {
        Some(call) => core.complete(call.id(), Outcome::data(1)),
        None => Ok(()),
    })?;
    core.begin(Scope::Machine, Event::Cancel)?;
    while let Some(call) = core.next_call() {
        core.complete(call.id(), Outcome::done())?;
    }
    let unpreserve = tenths(FILES, |n| core.unpreserve(session, Token(n + 1)))?;
    Ok((preserve, prepare, unpreserve))
}

fn sessions() -> Result<(Tenths, Tenths), luo_core::Error> {
    let mut core: Orchestrator<Number> = Orchestrator::new(Caps::LIVE, Limits::default());
    let names: Vec<String> = (0..SESSIONS).map(|n| format!("session-{n:05}")).collect();
    let create = tenths(SESSIONS, |n| {
        core.create_session(&names[n as usize], OWNER, Policy::default()).map(drop)
    })?;
    let find = tenths(SESSIONS, |n| {
        black_box(core.session_by_name(&names[n as usize]));
        black_box(core.session(SessionId(n + 1)));
        Ok::<(), luo_core::Error>(())
    })?;
    Ok((create, find))
}

fn main() -> Result<(), Box<dyn Error>> {
    println!("{:44} {:>11} {:>11} {:>6}", "", "first tenth", "last tenth", "ratio");
    for (identities, unrelated) in [("counting", false), ("unrelated", true)] {
        let (mut a, mut b, mut c) = (Vec::new(), Vec::new(), Vec::new());
        for _ in 0..ROUNDS {
            let (preserve, prepare, unpreserve) = if unrelated {
                preserve(|n| Number(Arc::new(n)))?
            } else {
                preserve(|n| Counted(Arc::new(n)))?
            };
            a.push(preserve);
            b.push(prepare);
            c.push(unpreserve);
        }
        print(&format!("preserve, {identities} identities"), a);
        print(&format!("prepare (call and completion), {identities}"), b);
        print(&format!("unpreserve, {identities}"), c);
    }
    let (mut a, mut b) = (Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        let (create, find) = sessions()?;
        a.push(create);
        b.push(find);
    }
    print("create a session", a);
    print("look a session up by name and by id", b);
    Ok(())
}
