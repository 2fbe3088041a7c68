//! A client for the lab's tests: keeps files in sessions, takes them back in whatever kernel, and
//! compares each byte; or takes part in updates, and refuses the first.
//!
//! Invariants: what a file holds follows from its session's name and its token alone, so that a
//! process in another kernel knows it; one byte that differs is a failure that names the file.

use std::fs::File;
use std::io::Write as _;
use std::net::SocketAddr;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use clap::Parser;
use luo::protocol::ParticipantPhase;
use luo::{Options, Participant, ParticipantOptions, Record, Session, Unclaimed};
use rustix::fs::{MemfdFlags, memfd_create};

mod agent;
mod count;

/// How long any call may take: processors in the lab are emulated.
const DEADLINE: Duration = Duration::from_secs(300);
/// How long a claim waits that is to be refused.
const MOMENT: Duration = Duration::from_millis(200);
const PAGE: usize = 4096;

#[derive(Debug, Parser)]
#[command(about)]
enum Command {
    /// Makes sessions, preserves files in each, and leaves them to luod.
    Keep {
        #[command(flatten)]
        what: What,
    },
    /// Claims the sessions, compares every byte, and ends their update.
    Take {
        #[command(flatten)]
        what: What,
    },
    /// Counts by INCR on one connection to kv, without a pause: an answer that is not the next number
    /// is a failure.
    Count {
        /// Of kv.
        address: SocketAddr,
        /// Where the last answer is to be found, now and then.
        counted: PathBuf,
        /// Ends when this is there.
        stop: PathBuf,
    },
    /// Makes a session, and fills its own kernel session beside it.
    KeepOwn {
        /// The session.
        session: String,
        /// Files in the kernel session.
        files: u64,
    },
    /// Claims that session in the next kernel, and compares what its kernel session has.
    TakeOwn {
        /// The session.
        session: String,
        /// Files in the kernel session.
        files: u64,
    },
    /// Changes one byte of a file's content where it lies on a device or in a file, which nobody may
    /// use meanwhile; says where.
    Damage {
        /// The device or file.
        path: PathBuf,
        /// The session.
        session: String,
        /// The file.
        token: u64,
    },
    /// Is the agent of /dev/liveupdate between two luods: hands everything on, with damage.
    Relay {
        /// Which tokens of the kernel session luod are damaged, every byte of them.
        damaged: Vec<u64>,
        /// A session and a token, whose record is damaged wherever luod has laid it down.
        #[arg(long, num_args = 2, value_names = ["SESSION", "TOKEN"])]
        record: Vec<String>,
    },
    /// Preserves so many memory files in one kernel session, and says how many microseconds each
    /// took.
    Bare {
        /// Files.
        files: u64,
    },
    /// Lays out a trap of the kernel's for the next one.
    SetTrap {
        /// Which.
        trap: agent::Trap,
    },
    /// Walks into it.
    WalkTrap {
        /// Which.
        trap: agent::Trap,
    },
    /// Tries what preserving does to a memory file in this kernel.
    Freezes,
    /// Has a pidfd in a session, which no carrier beyond this kernel takes.
    KeepProcess {
        /// The session.
        session: String,
    },
    /// Ends a session, whatever it has.
    Release {
        /// The session.
        session: String,
    },
    /// Fails unless luod refuses to give this session with this errno.
    Refused {
        /// The session.
        session: String,
        /// What luod has to answer.
        errno: String,
    },
    /// Takes part in updates; vetoes the first freeze, and agrees to everything after it. A line
    /// for each call.
    Veto {
        /// Under which name.
        name: String,
    },
}

#[derive(Debug, clap::Args)]
struct What {
    /// What the names of the sessions begin with; their number follows.
    prefix: String,
    /// The first number.
    #[arg(long, default_value_t = 0)]
    from: u64,
    /// The number after the last.
    #[arg(long)]
    to: u64,
    /// Files in each session.
    #[arg(long)]
    files: u64,
    /// The token of a file in each session that is to be refused as damaged (EIO).
    #[arg(long)]
    damaged: Option<u64>,
}

impl What {
    fn names(&self) -> impl Iterator<Item = String> {
        (self.from..self.to).map(|number| format!("{}{number}", self.prefix))
    }

    fn tokens(&self) -> Vec<u64> {
        (1..=self.files).collect()
    }
}

/// What went wrong.
#[derive(Debug, thiserror::Error)]
enum Failed {
    #[error("{what}: {source}")]
    Luo { what: String, source: luo::Error },
    #[error("{what}: {source}")]
    System { what: String, source: std::io::Error },
    #[error("{0}")]
    Wrong(String),
}

fn luo(what: impl Into<String>) -> impl FnOnce(luo::Error) -> Failed {
    let what = what.into();
    |source| Failed::Luo { what, source }
}

fn system<E: Into<std::io::Error>>(what: impl Into<String>) -> impl FnOnce(E) -> Failed {
    let what = what.into();
    |source| Failed::System { what, source: source.into() }
}

fn main() -> ExitCode {
    let done = match Command::parse() {
        Command::Keep { what } => keep(&what),
        Command::Take { what } => take(&what),
        Command::Count { address, counted, stop } => count::count(address, &counted, &stop),
        Command::KeepOwn { session, files } => keep_own(&session, files),
        Command::TakeOwn { session, files } => take_own(&session, files),
        Command::Damage { path, session, token } => damage(&path, &session, token),
        Command::Relay { damaged, record } => agent::relay(&damaged, &record),
        Command::Bare { files } => agent::bare(files),
        Command::SetTrap { trap } => agent::set(trap),
        Command::WalkTrap { trap } => agent::walk(trap),
        Command::Freezes => agent::freezes(),
        Command::KeepProcess { session } => keep_process(&session),
        Command::Release { session } => release(&session),
        Command::Refused { session, errno } => refused(&session, &errno),
        Command::Veto { name } => veto(&name),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(failed) => {
            eprintln!("{failed}");
            ExitCode::FAILURE
        }
    }
}

fn options() -> Options {
    Options::new().deadline(DEADLINE)
}

/// The content of a file: up to three pages, or a few bytes where it is a record.
fn content(session: &str, token: u64) -> Vec<u8> {
    let seed = session.bytes().fold(token, |seed, byte| {
        seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(u64::from(byte))
    });
    let bytes = (0_u64..).flat_map(|word| {
        let mixed = (seed ^ word).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        (mixed ^ (mixed >> 29)).to_le_bytes()
    });
    let len = if is_record(token) { 100 } else { (seed % 3) as usize * PAGE + 17 };
    bytes.take(len).collect()
}

/// Every fifth file is a record.
const fn is_record(token: u64) -> bool {
    token.is_multiple_of(5)
}

fn file(session: &str, token: u64) -> Result<OwnedFd, Failed> {
    let content = content(session, token);
    if is_record(token) {
        let record = Record::new(&content).map_err(luo("a record"))?;
        return record.as_fd().try_clone_to_owned().map_err(system("a record's descriptor"));
    }
    memory(&content)
}

fn memory(content: &[u8]) -> Result<OwnedFd, Failed> {
    let memory = memfd_create("lab", MemfdFlags::CLOEXEC).map_err(system("a memfd"))?;
    let mut memory = File::from(memory);
    memory.write_all(content).map_err(system("a memfd's content"))?;
    Ok(memory.into())
}

fn keep(what: &What) -> Result<(), Failed> {
    for name in what.names() {
        let session = Session::create_with(&name, options()).map_err(luo(&name))?;
        let files: Vec<_> = what
            .tokens()
            .into_iter()
            .map(|token| Ok((token, file(&name, token)?)))
            .collect::<Result<_, Failed>>()?;
        session.preserve_all(&files).map_err(luo(&name))?;
    }
    let sessions = what.to.saturating_sub(what.from);
    println!("{} files in {sessions} sessions", sessions * what.files);
    Ok(())
}

fn take(what: &What) -> Result<(), Failed> {
    let mut compared = 0;
    for name in what.names() {
        let session = Session::claim_with(&name, options()).map_err(luo(&name))?;
        if !session.is_updated().map_err(luo(&name))? {
            return Err(Failed::Wrong(format!("{name} did not come over an update")));
        }
        // While this process has it nobody else gets it, which one wait shows; and a file comes twice
        // where it is asked for twice.
        if compared == 0 {
            refused(&name, "EBUSY")?;
        }
        let again = session.retrieve(1).map_err(luo(&name))?;
        compare(&name, 1, again)?;
        for (token, file) in session.retrieve_each(&what.tokens()).map_err(luo(&name))? {
            let named = format!("{name}, token {token}");
            match file {
                Err(error) if what.damaged == Some(token) && error.errno() == Some("EIO") => {
                    println!("{named}: {error}");
                    continue;
                }
                Ok(_) if what.damaged == Some(token) => {
                    return Err(Failed::Wrong(format!("{named} came back, and is damaged")));
                }
                file => compare(&name, token, file.map_err(luo(named))?)?,
            }
            compared += 1;
        }
        let unclaimed = what.damaged.map_or(Unclaimed::Refuse, |_| Unclaimed::Release);
        session.finish_with(unclaimed, false).map_err(luo(&name))?;
        session.release().map_err(luo(&name))?;
    }
    println!("{compared} files compared");
    Ok(())
}

/// luod's token of the one file that it keeps beside.
const BESIDE: u64 = 1;

fn keep_own(name: &str, files: u64) -> Result<(), Failed> {
    let session = Session::create_with(name, options()).map_err(luo(name))?;
    session.preserve(BESIDE, file(name, BESIDE)?).map_err(luo(name))?;
    let own = session.kernel_session().map_err(luo("the kernel session"))?;
    for token in 0..files {
        let kept = memory(&content(name, token))?;
        own.preserve(token, kept).map_err(system(format!("token {token}")))?;
    }
    let beyond = own.preserve(own.tokens().end() + 1, memory(b"x")?).map_err(|e| e.raw_os_error());
    if beyond != Err(Some(rustix::io::Errno::DOM.raw_os_error())) {
        return Err(Failed::Wrong(format!("a token of luod's gives {beyond:?}")));
    }
    println!("{files} files in a kernel session");
    Ok(())
}

fn take_own(name: &str, files: u64) -> Result<(), Failed> {
    let session = Session::claim_with(name, options()).map_err(luo(name))?;
    compare(name, BESIDE, session.retrieve(BESIDE).map_err(luo(name))?)?;
    // The end of this session's update is not that of the machine's.
    session.finish().map_err(luo(name))?;
    // A copy that is closed ends nothing: luod has others.
    drop(session.arrived_kernel_session().map_err(luo("the kernel session"))?);
    let own = session.arrived_kernel_session().map_err(luo("the kernel session"))?;
    for token in 0..files {
        let came = own.retrieve(token).map_err(system(format!("token {token}")))?;
        let expected = content(name, token);
        let mut there = vec![0; expected.len()];
        File::from(came).read_exact_at(&mut there, 0).map_err(system(format!("token {token}")))?;
        if there != expected {
            return Err(Failed::Wrong(format!("{name}, token {token}: its content differs")));
        }
    }
    match own.retrieve(files) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
        other => return Err(Failed::Wrong(format!("token {files}, of no file, gives {other:?}"))),
    }
    println!("{files} files compared");
    session.release().map_err(luo(name))
}

fn compare(session: &str, token: u64, file: OwnedFd) -> Result<(), Failed> {
    let named = format!("{session}, token {token}");
    let expected = content(session, token);
    let file = File::from(file);
    let len = file.metadata().map_err(system(&named))?.len();
    let mut there = vec![0; expected.len()];
    if is_record(token) {
        let record = Record::try_from(OwnedFd::from(file)).map_err(luo(&named))?;
        there = record.bytes().map_err(luo(&named))?;
    } else if len == expected.len() as u64 {
        file.read_exact_at(&mut there, 0).map_err(system(&named))?;
    } else {
        return Err(Failed::Wrong(format!("{named}: {len} bytes, not {}", expected.len())));
    }
    match there == expected {
        true => Ok(()),
        false => Err(Failed::Wrong(format!("{named}: its content differs"))),
    }
}

/// Looks for the content, of which no two files have the beginning in common.
fn damage(path: &Path, session: &str, token: u64) -> Result<(), Failed> {
    const WINDOW: usize = 1 << 20;
    let named = path.display().to_string();
    let wanted: Vec<u8> = content(session, token).into_iter().take(64).collect();
    let device = File::options().read(true).write(true).open(path).map_err(system(&named))?;
    let mut window = vec![0; WINDOW + wanted.len()];
    let mut at = 0;
    loop {
        let read = device.read_at(&mut window, at).map_err(system(&named))?;
        let there = window.get(..read).unwrap_or_default();
        if let Some(place) = there.windows(wanted.len()).position(|bytes| bytes == wanted) {
            let place = at + place as u64;
            let byte = wanted.first().map_or(0, |byte| !byte);
            device.write_all_at(&[byte], place).map_err(system(&named))?;
            device.sync_all().map_err(system(&named))?;
            println!("a byte at {place:#x} is another one now");
            return Ok(());
        }
        if read <= wanted.len() {
            return Err(Failed::Wrong(format!("{session}, token {token} is not in {named}")));
        }
        at += (read - wanted.len()) as u64;
    }
}

fn keep_process(name: &str) -> Result<(), Failed> {
    let session = Session::create_with(name, options()).map_err(luo(name))?;
    let process = rustix::process::getpid();
    let process = rustix::process::pidfd_open(process, rustix::process::PidfdFlags::empty());
    session.preserve(1, process.map_err(system("a pidfd"))?).map_err(luo(name))
}

fn release(name: &str) -> Result<(), Failed> {
    Session::claim_with(name, options()).map_err(luo(name))?.release().map_err(luo(name))
}

fn refused(session: &str, errno: &str) -> Result<(), Failed> {
    match Session::claim_with(session, options().deadline(MOMENT)) {
        Err(error) if error.errno() == Some(errno) => Ok(()),
        Err(error) => Err(Failed::Wrong(format!("{session}: {error}, and not {errno}"))),
        Ok(_) => Err(Failed::Wrong(format!("{session} was given, and not refused with {errno}"))),
    }
}

fn veto(name: &str) -> Result<(), Failed> {
    let how = ParticipantOptions { options: options(), ..ParticipantOptions::default() };
    let mut participant = Participant::join(name, how).map_err(luo("the subscription"))?;
    let mut vetoed = false;
    println!("subscribed");
    loop {
        let Some(call) = participant.next_call(None).map_err(luo("the next call"))? else {
            continue;
        };
        println!("{:?}", call.phase);
        let answered = if call.phase == ParticipantPhase::Freeze && !vetoed {
            vetoed = true;
            participant.veto(&call, "the first freeze is refused")
        } else {
            participant.agree(&call, 7)
        };
        answered.map_err(luo("an answer"))?;
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn no_two_files_begin_alike() {
        let names = (0..100).flat_map(|number| [format!("one{number}"), format!("two{number}")]);
        let files = names.flat_map(|name| (1..=10).map(move |token| content(&name, token)));
        let beginnings: HashSet<Vec<u8>> = files.map(|content| content[..16].to_vec()).collect();
        assert_eq!(beginnings.len(), 2_000);
    }
}
