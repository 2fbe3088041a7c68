//! The real luod's worker is killed at random moments under load, and nothing is lost.
//!
//! Each client has a model of its sessions: what must be there after every operation that luod has
//! acknowledged. Files are pipes whose reading end stays with the test: that a file was kept shows
//! when something written into what came back is read there, that it was let go when the pipe ends.
//!
//! The moments are random microseconds after the beginning of an operation. The seed is printed;
//! `LUO_CHAOS_SEED` repeats it, as far as threads and processes can be repeated, and
//! `LUO_CHAOS_KILLS` says how many kills there are.

mod common;

use std::collections::BTreeMap;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use common::{Luod, PATIENCE, pipe};
use luo::{Session, State, Unclaimed};
use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::process::{Pid, Signal, kill_process};

/// Deaths do not count, however quick: the end state has a test of its own.
const CONFIG: &str = "[worker]\nquick_death_milliseconds = 0\nquick_deaths = 1000000";
const CLIENTS: u64 = 4;
const SESSIONS: usize = 2;

/// A small generator of random numbers (splitmix64): a seed gives the same numbers everywhere.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }

    fn one_in(&mut self, bound: u64) -> bool {
        self.below(bound) == 0
    }

    /// Short ones as likely as long ones: 1 us to about 4 ms.
    fn moment(&mut self) -> Duration {
        let most = 1 << self.below(13);
        Duration::from_micros(self.below(most) + 1)
    }
}

fn number(variable: &str, default: u64) -> u64 {
    std::env::var(variable).ok().and_then(|text| text.parse().ok()).unwrap_or(default)
}

fn seed() -> u64 {
    let clock = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
    let seed = number("LUO_CHAOS_SEED", u64::from(clock.subsec_nanos()));
    println!("LUO_CHAOS_SEED={seed}");
    seed
}

/// The processes that a keeper has started and that still run.
fn children(keeper: Pid) -> Vec<Pid> {
    let keeper = keeper.as_raw_nonzero();
    let listed = std::fs::read_to_string(format!("/proc/{keeper}/task/{keeper}/children"));
    let listed = listed.unwrap_or_default();
    listed.split_whitespace().filter_map(|pid| Pid::from_raw(pid.parse().ok()?)).collect()
}

/// What clients and the killer tell each other.
#[derive(Default)]
struct Load {
    /// Operations begun so far.
    begun: AtomicU64,
    stop: AtomicBool,
    failed: AtomicBool,
}

impl Load {
    fn goes_on(&self) -> bool {
        !self.stop.load(Ordering::Relaxed) && !self.failed.load(Ordering::Relaxed)
    }
}

/// Ends the others' loops where one of them panics.
struct Alarm<'a>(&'a Load);

impl Drop for Alarm<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.failed.store(true, Ordering::Relaxed);
        }
    }
}

fn spin(duration: Duration) {
    let start = Instant::now();
    while start.elapsed() < duration {
        std::hint::spin_loop();
    }
}

/// Kills workers at random moments: after the beginning of an operation, or, one in sixteen, after
/// the beginning of a worker, which then restores what the one before it held.
fn kill(luod: &Luod, load: &Load, random: &mut Random, kills: u64) {
    let _alarm = Alarm(load);
    let start = Instant::now();
    let mut killed = 0;
    let mut last = None;
    while killed < kills && load.goes_on() {
        assert!(start.elapsed() < 10 * PATIENCE, "{killed} of {kills} kills\n{}", luod.log());
        let restoring = random.one_in(16);
        if !restoring {
            let before = load.begun.load(Ordering::Relaxed);
            while load.begun.load(Ordering::Relaxed) == before && load.goes_on() {
                std::thread::yield_now();
            }
        }
        let Some(worker) = children(luod.keeper()).into_iter().find(|pid| Some(*pid) != last)
        else {
            std::thread::yield_now();
            continue;
        };
        spin(random.moment());
        if kill_process(worker, Signal::KILL).is_ok() {
            killed += 1;
            last = Some(worker);
        }
    }
}

/// A file that luod has, or had: the end of its pipe that stays here.
struct Kept {
    reader: OwnedFd,
}

impl Kept {
    fn new() -> (Self, OwnedFd) {
        let (reader, writer) = pipe();
        (Self { reader }, writer)
    }

    /// What came back is the other end of this pipe.
    fn assert_is(&self, writer: &OwnedFd, token: u64) {
        let text = token.to_le_bytes();
        rustix::io::write(writer, &text).expect("the pipe takes it");
        let mut buffer = [0; 8];
        rustix::io::read(&self.reader, &mut buffer).expect("the pipe gives it");
        assert_eq!(buffer, text, "another pipe came back");
    }

    fn ended(&self) -> bool {
        let mut poll = [PollFd::new(&self.reader, PollFlags::IN)];
        rustix::event::poll(&mut poll, Some(&Timespec { tv_sec: 0, tv_nsec: 0 })).unwrap();
        poll[0].revents().contains(PollFlags::HUP)
    }
}

/// One session and what must be true of it.
struct Model<'a> {
    luod: &'a Luod,
    load: &'a Load,
    name: String,
    session: Option<Session>,
    state: State,
    outgoing: BTreeMap<u64, Kept>,
    incoming: BTreeMap<u64, Kept>,
    /// Tokens that were retrieved since the session was claimed.
    retrieved: Vec<u64>,
    /// Let go: these pipes end, sooner or later.
    released: Vec<Kept>,
    next_token: u64,
    /// What was done, for the message of a failure.
    past: Vec<String>,
    slowest: Duration,
}

impl<'a> Model<'a> {
    fn new(luod: &'a Luod, load: &'a Load, name: String) -> Self {
        let session = Some(luod.session(&name));
        Self {
            luod,
            load,
            name,
            session,
            state: State::Normal,
            outgoing: BTreeMap::new(),
            incoming: BTreeMap::new(),
            retrieved: Vec::new(),
            released: Vec::new(),
            next_token: 0,
            past: Vec::new(),
            slowest: Duration::ZERO,
        }
    }

    /// Runs one operation, within which a kill may come.
    fn run<T>(&mut self, what: String, operation: impl FnOnce(&Session) -> T) -> T {
        self.past.push(what);
        let session = self.session.as_ref().expect("it is held");
        self.load.begun.fetch_add(1, Ordering::Relaxed);
        let start = Instant::now();
        let result = operation(session);
        self.slowest = self.slowest.max(start.elapsed());
        result
    }

    fn fail(&self, what: &str) -> ! {
        let from = self.past.len().saturating_sub(12);
        panic!("session {}: {what}\nafter {:#?}", self.name, &self.past[from..]);
    }

    fn must<T, E: std::fmt::Display>(&self, result: Result<T, E>) -> T {
        result.unwrap_or_else(|error| self.fail(&error.to_string()))
    }

    fn must_refuse<T>(&self, errno: &str, result: Result<T, luo::Error>) {
        match result {
            Err(error) if error.errno() == Some(errno) => {}
            Err(error) => self.fail(&format!("not {errno}: {error}")),
            Ok(_) => self.fail(&format!("not refused with {errno}")),
        }
    }

    fn step(&mut self, random: &mut Random) {
        match random.below(10) {
            0..=2 => self.preserve(random),
            3 => self.unpreserve(random),
            4 => self.forward(),
            5 => self.cancel(),
            6 => self.claim(),
            7 => self.retrieve(random),
            8 => self.finish(random),
            _ if random.one_in(10) => self.release(),
            _ => self.check(),
        }
        if random.one_in(3) {
            self.check();
        }
    }

    fn preserve(&mut self, random: &mut Random) {
        let count = if random.one_in(20) { 300 } else { 1 + random.below(4) };
        let files: Vec<(u64, (Kept, OwnedFd))> = (0..count)
            .map(|_| {
                self.next_token += 1;
                (self.next_token, Kept::new())
            })
            .collect();
        let given: Vec<_> =
            files.iter().map(|(token, (_, writer))| (*token, writer.as_fd())).collect();
        let verdicts =
            self.run(format!("preserve {count}"), |session| session.preserve_many(&given));
        let verdicts = self.must(verdicts);
        assert_eq!(verdicts.len(), files.len());
        let taken = matches!(self.state, State::Normal | State::Updated);
        for ((token, (kept, _)), verdict) in files.into_iter().zip(verdicts) {
            match verdict {
                Ok(at) if at == token && taken => _ = self.outgoing.insert(token, kept),
                Err(refusal) if refusal.errno == "EBUSY" && !taken => self.released.push(kept),
                verdict => self.fail(&format!("token {token}: {verdict:?}")),
            }
        }
        if random.one_in(4) {
            // Too many files would make the test one of their number.
            while self.outgoing.len() > 400 && taken {
                self.unpreserve(random);
            }
        }
    }

    fn unpreserve(&mut self, random: &mut Random) {
        let count = 1 + random.below(3) as usize + self.outgoing.len() / 2;
        let skip = random.below(3) as usize;
        let tokens: Vec<u64> = self.outgoing.keys().copied().skip(skip).take(count).collect();
        if tokens.is_empty() {
            return;
        }
        let refused = self.run(format!("unpreserve {}", tokens.len()), |session| {
            session.unpreserve_many(&tokens)
        });
        let refused = self.must(refused);
        match self.state {
            State::Normal | State::Updated => {
                if let Some(refusal) = refused.first() {
                    self.fail(&format!("unpreserve: {refusal}"));
                }
                for token in tokens {
                    self.released.extend(self.outgoing.remove(&token));
                }
            }
            State::Prepared | State::Frozen => {
                assert!(refused.len() == tokens.len(), "{refused:?}");
                assert!(refused.iter().all(|refusal| refusal.errno == "EBUSY"), "{refused:?}");
            }
        }
    }

    /// The next phase.
    fn forward(&mut self) {
        match self.state {
            State::Normal => {
                let done = self.run("prepare".into(), Session::prepare);
                self.must(done);
                self.state = State::Prepared;
            }
            State::Prepared => {
                let done = self.run("freeze".into(), Session::freeze);
                self.must(done);
                self.state = State::Frozen;
            }
            State::Frozen | State::Updated => {
                let done = self.run("prepare, refused".into(), Session::prepare);
                self.must_refuse("EBUSY", done);
            }
        }
    }

    fn cancel(&mut self) {
        let done = self.run("cancel".into(), Session::cancel);
        match self.state {
            State::Prepared | State::Frozen => {
                self.must(done);
                self.state = State::Normal;
            }
            // Sent again after a kill it finds what it wanted: that is no error.
            State::Normal if done.is_ok() => {}
            State::Normal | State::Updated => self.must_refuse("EBUSY", done),
        }
    }

    /// As the next process of the service does.
    fn claim(&mut self) {
        self.past.push("claim".into());
        self.load.begun.fetch_add(1, Ordering::Relaxed);
        let start = Instant::now();
        self.session = None;
        let claimed = Session::claim_with(&self.name, self.luod.options());
        self.session = Some(self.must(claimed));
        self.slowest = self.slowest.max(start.elapsed());
        if !self.outgoing.is_empty() {
            // All of it goes over together.
            self.incoming.append(&mut self.outgoing);
        }
        self.retrieved.clear();
        self.state = if self.incoming.is_empty() && self.state != State::Updated {
            self.must(self.session.as_ref().expect("it is held").info()).state
        } else {
            State::Updated
        };
        self.check();
    }

    fn retrieve(&mut self, random: &mut Random) {
        if self.state != State::Updated {
            let refused = self.run("retrieve, refused".into(), |session| session.retrieve(1));
            return self.must_refuse("EBUSY", refused);
        }
        let count = if random.one_in(2) { usize::MAX } else { 1 + random.below(4) as usize };
        let tokens: Vec<u64> = self.incoming.keys().copied().take(count).collect();
        if tokens.is_empty() {
            return;
        }
        let files = self
            .run(format!("retrieve {}", tokens.len()), |session| session.retrieve_many(&tokens));
        let files = self.must(files);
        assert_eq!(files.len(), tokens.len());
        for (token, file) in tokens.into_iter().zip(files) {
            let writer = self.must(file);
            self.incoming[&token].assert_is(&writer, token);
            self.retrieved.push(token);
        }
    }

    fn finish(&mut self, random: &mut Random) {
        let unclaimed = match random.below(3) {
            0 => Unclaimed::Refuse,
            1 => Unclaimed::Release,
            _ => Unclaimed::Carry,
        };
        let carry = random.one_in(2);
        let done = self.run(format!("finish, {unclaimed:?}, carry {carry}"), |session| {
            session.finish_with(unclaimed, carry)
        });
        if self.state == State::Normal && done.is_ok() {
            // Sent again after a kill it finds what it wanted: that is no error.
            return;
        }
        let missing = self.incoming.keys().any(|token| !self.retrieved.contains(token));
        if self.state != State::Updated || (unclaimed == Unclaimed::Refuse && missing) {
            return self.must_refuse("EBUSY", done);
        }
        self.must(done);
        self.state = State::Normal;
        for (token, kept) in std::mem::take(&mut self.incoming) {
            let stays = match self.retrieved.contains(&token) {
                true => carry,
                false => unclaimed == Unclaimed::Carry,
            };
            match stays {
                true => _ = self.outgoing.insert(token, kept),
                false => self.released.push(kept),
            }
        }
        self.retrieved.clear();
    }

    fn release(&mut self) {
        self.past.push("release".into());
        self.load.begun.fetch_add(1, Ordering::Relaxed);
        let session = self.session.take().expect("it is held");
        self.must(session.release());
        self.released.extend(std::mem::take(&mut self.outgoing).into_values());
        self.released.extend(std::mem::take(&mut self.incoming).into_values());
        self.retrieved.clear();
        self.state = State::Normal;
        self.past.push("create".into());
        self.load.begun.fetch_add(1, Ordering::Relaxed);
        let made = Session::create_with(&self.name, self.luod.options());
        self.session = Some(self.must(made));
    }

    fn check(&mut self) {
        let info = self.run("info".into(), Session::info);
        let info = self.must(info);
        let outgoing: Vec<u64> = self.outgoing.keys().copied().collect();
        let incoming: Vec<u64> = self.incoming.keys().copied().collect();
        if info.state != self.state || info.files != outgoing || info.incoming != incoming {
            self.fail(&format!(
                "{:?}, files {outgoing:?}, incoming {incoming:?} must be there, not {info:?}",
                self.state
            ));
        }
        for (token, kept) in self.outgoing.iter().chain(&self.incoming) {
            assert!(!kept.ended(), "luod has lost token {token}");
        }
        self.released.retain(|kept| !kept.ended());
    }

    /// Everything comes back, and what was let go is let go.
    fn settle(mut self) -> Duration {
        self.check();
        self.claim();
        if self.state == State::Updated {
            let tokens: Vec<u64> = self.incoming.keys().copied().collect();
            let files = self.must(self.session.as_ref().unwrap().retrieve_many(&tokens));
            for (token, file) in tokens.iter().zip(files) {
                self.incoming[token].assert_is(&self.must(file), *token);
            }
            self.must(self.session.as_ref().unwrap().finish());
        }
        self.released.extend(std::mem::take(&mut self.incoming).into_values());
        let released = std::mem::take(&mut self.released);
        self.luod.wait("what was let go is closed", || released.iter().all(Kept::ended));
        self.slowest
    }
}

/// Runs clients with a model each until `disturb` comes back, and then sees whether all is there.
fn under_load(luod: &Luod, seed: u64, disturb: impl FnOnce(&Load, &mut Random)) {
    let load = Load::default();
    std::thread::scope(|scope| {
        let clients: Vec<_> = (0..CLIENTS)
            .map(|client| {
                let load = &load;
                scope.spawn(move || {
                    let _alarm = Alarm(load);
                    let mut random = Random(seed ^ (client + 1) << 32);
                    let mut models: Vec<_> = (0..SESSIONS)
                        .map(|number| Model::new(luod, load, format!("c{client}-s{number}")))
                        .collect();
                    while load.goes_on() {
                        let at = random.below(SESSIONS as u64) as usize;
                        models[at].step(&mut random);
                    }
                    models
                })
            })
            .collect();
        disturb(&load, &mut Random(seed));
        load.stop.store(true, Ordering::Relaxed);
        let mut models = Vec::new();
        for client in clients {
            match client.join() {
                Ok(of) => models.extend(of),
                Err(panic) => std::panic::resume_unwind(panic),
            }
        }
        let slowest = models.into_iter().map(Model::settle).max();
        println!("{} operations, the slowest {slowest:?}", load.begun.load(Ordering::Relaxed));
    });
}

#[test]
fn a_worker_killed_at_a_thousand_moments_loses_nothing() {
    let seed = seed();
    let kills = number("LUO_CHAOS_KILLS", 1_000);
    let binary = env!("CARGO_BIN_EXE_luod").into();
    let luod = Luod::start_binary(binary, CONFIG, &[("LUOD_LOG", "warn")]);
    let start = Instant::now();
    under_load(&luod, seed, |load, random| kill(&luod, load, random, kills));
    let started = luod.manager().status().unwrap().incarnation;
    println!("{kills} kills, {started} workers, {:?}", start.elapsed());
    assert!(started > kills, "{started}");
}

#[test]
fn kills_during_upgrades_lose_nothing() {
    let seed = seed();
    let upgrades = number("LUO_CHAOS_UPGRADES", 30);
    let binary = env!("CARGO_BIN_EXE_luod");
    let luod = Luod::start_binary(binary.into(), CONFIG, &[("LUOD_LOG", "warn")]);
    let (mut done, mut undone) = (0, 0);
    under_load(&luod, seed, |load, random| {
        let _alarm = Alarm(load);
        for round in 0..upgrades {
            let keeper = round % 3 == 2;
            let program = std::fs::File::open(Path::new(binary)).unwrap();
            std::thread::scope(|scope| {
                let luod = &luod;
                let asked = scope.spawn(move || {
                    luod.manager().upgrade(Some(program.as_fd()), Duration::from_secs(5), keeper)
                });
                // In between: the old worker, or the new one, or the one that checks for the keeper.
                for _ in 0..random.below(3) {
                    spin(4 * random.moment());
                    let children = children(luod.keeper());
                    if let Some(at) = random.next().checked_rem(children.len() as u64) {
                        let _ = kill_process(children[at as usize], Signal::KILL);
                    }
                }
                // It took place, or luod says why not, or does not know any more: all are well as
                // long as nothing is lost.
                match asked.join().unwrap() {
                    Ok(_) => done += 1,
                    Err(luo::Error::Refused(_)) => undone += 1,
                    Err(error) => panic!("{error}"),
                }
            });
            if !load.goes_on() {
                return;
            }
        }
    });
    println!("{done} upgrades took place, {undone} did not");
    assert!(done > 0);
}

#[test]
fn kills_during_the_departure_and_arrival_of_the_machine_lose_nothing() {
    let seed = seed();
    let rounds = number("LUO_CHAOS_DEPARTURES", 20);
    let binary = env!("CARGO_BIN_EXE_luod").into();
    let luod = Luod::start_binary(binary, CONFIG, &[("LUOD_LOG", "warn")]);
    let manager = luod.manager();
    let names = ["one", "two", "three"];
    let mut files = BTreeMap::new();
    for (number, name) in names.iter().enumerate() {
        let session = luod.session(name);
        for token in 0..5 {
            let (kept, writer) = Kept::new();
            session.preserve(token, &writer).unwrap();
            files.insert((number, token), kept);
        }
    }
    let load = Load::default();
    std::thread::scope(|scope| {
        let killer = scope.spawn(|| kill(&luod, &load, &mut Random(seed), u64::MAX));
        let _alarm = Alarm(&load);
        let begin = || load.begun.fetch_add(1, Ordering::Relaxed);
        for round in 0..rounds {
            let past = format!("round {round}");
            begin();
            manager.prepare().expect(&past);
            begin();
            manager.freeze().expect(&past);
            if round % 4 == 3 {
                begin();
                manager.cancel().expect(&past);
                continue;
            }
            begin();
            manager.depart().expect(&past);
            begin();
            luod.wait("arrival", || manager.status().expect(&past).state == State::Updated);
            for (number, name) in names.iter().enumerate() {
                begin();
                let session = luod.session(name);
                let info = session.info().expect(&past);
                assert_eq!((info.state, info.incoming), (State::Updated, vec![0, 1, 2, 3, 4]));
                begin();
                let came = session.retrieve_many(&[0, 1, 2, 3, 4]).expect(&past);
                for (token, file) in came.into_iter().enumerate() {
                    files[&(number, token as u64)].assert_is(&file.expect(&past), token as u64);
                }
                begin();
                session.finish_and_carry().expect(&past);
                assert_eq!(session.info().expect(&past).files, [0, 1, 2, 3, 4]);
            }
            begin();
            manager.finish(Unclaimed::Refuse).expect(&past);
        }
        load.stop.store(true, Ordering::Relaxed);
        killer.join().unwrap();
    });
    let status = manager.status().unwrap();
    println!("{} live updates, {} workers", status.liveupdate_number, status.incarnation);
    assert_eq!(status.state, State::Normal);
    assert!(files.values().all(|kept| !kept.ended()));
}
