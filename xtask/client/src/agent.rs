//! What only the one agent of `/dev/liveupdate` can do, without luod: hand everything on with damage in
//! it, and walk into the kernel's traps.
//!
//! Invariants: what is to outlive the kernel is held by this process, which says so and then sleeps.

use std::fs::File;
use std::io::Write as _;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{FileExt, MetadataExt};

use luo_abi::liveupdate::{
    AGENT_SESSION, BYTES_COPY_TOKEN, BYTES_TOKEN, CATALOGUE_COPY_TOKEN, CATALOGUE_TOKEN, Catalogue,
    Place, ioctl::Name,
};
use luo_sys::{LIVEUPDATE_DEVICE, LiveUpdateDevice, LiveUpdateSession};
use rustix::fs::{FallocateFlags, fallocate};
use rustix::io::Errno;

use super::{Failed, PAGE, content, memory, system};

/// Says that everything is held, and holds it until the kernel ends.
const HELD: &str = "held";

/// What the traps are tried with.
const TOKEN: u64 = 7;
/// Who may not have more files open than the system allows.
const ORDINARY: u32 = 1001;
const FILE_MAX: &str = "/proc/sys/fs/file-max";

fn name(text: &str) -> Result<Name, Failed> {
    Name::new(text.as_bytes()).ok_or_else(|| Failed::Wrong(format!("{text} is no name")))
}

fn device() -> Result<LiveUpdateDevice, Failed> {
    LiveUpdateDevice::open(LIVEUPDATE_DEVICE).map_err(system(LIVEUPDATE_DEVICE))
}

fn hold() -> ! {
    println!("{HELD}");
    loop {
        std::thread::park();
    }
}

fn must(holds: bool, what: &str) -> Result<(), Failed> {
    if holds { Ok(()) } else { Err(Failed::Wrong(what.to_owned())) }
}

/// Fails unless it was refused so.
fn refused<T>(done: std::io::Result<T>, errno: Errno, what: &str) -> Result<(), Failed> {
    match done {
        Err(error) if error.raw_os_error() == Some(errno.raw_os_error()) => Ok(()),
        Err(error) => Err(Failed::Wrong(format!("{what}: {error}, and not {errno}"))),
        Ok(_) => Err(Failed::Wrong(format!("{what} was done, and not refused with {errno}"))),
    }
}

/// Takes everything that luod left, inverts every byte of these tokens of the session `luod`, and
/// leaves it to the next kernel as it was otherwise.
///
/// `record`: a session and the token of a record, which is damaged where it lies as well.
pub(crate) fn relay(damaged: &[u64], record: &[String]) -> Result<(), Failed> {
    let device = device()?;
    let retrieve = |name: Name| {
        let text = String::from_utf8_lossy(name.as_bytes_without_nul()).into_owned();
        device.retrieve(name).map_err(system(text))
    };
    let agent_name = name(AGENT_SESSION)?;
    let agent = retrieve(agent_name)?;
    let mut files = Vec::new();
    for token in [BYTES_TOKEN, BYTES_COPY_TOKEN, CATALOGUE_COPY_TOKEN, CATALOGUE_TOKEN] {
        files.push((token, fetch(&agent, token)?));
    }
    let catalogue = files.last().map(|(_, file)| whole(file)).transpose()?.unwrap_or_default();
    let catalogue = Catalogue::decode(&catalogue)
        .map_err(|error| Failed::Wrong(format!("the catalogue: {error}")))?;
    if let [session, token] = record {
        let token = token.parse().map_err(|_| Failed::Wrong(format!("{token} is no token")))?;
        let wanted = content(session, token);
        for (_, file) in &files {
            let bytes = whole(file)?;
            let at = bytes.windows(wanted.len()).position(|bytes| bytes == wanted);
            if let (Some(at), Some(byte)) = (at, wanted.first()) {
                file.write_all_at(&[!byte], at as u64).map_err(system("a record"))?;
            }
        }
    }
    for (token, file) in files.iter().filter(|(token, _)| damaged.contains(token)) {
        let inverted: Vec<u8> = whole(file)?.iter().map(|byte| !byte).collect();
        file.write_all_at(&inverted, 0).map_err(system(format!("token {token}")))?;
    }
    let mut sessions = vec![(agent_name, agent, files)];
    for (number, name) in catalogue.sessions.iter().enumerate() {
        let session = retrieve(*name)?;
        let mut files = Vec::new();
        for object in &catalogue.objects {
            match object.place {
                Place::Memory { session: of, token, .. } | Place::Live { session: of, token }
                    if of as usize == number =>
                {
                    files.push((token, fetch(&session, token)?));
                }
                _ => {}
            }
        }
        sessions.push((*name, session, files));
    }
    let mut held = Vec::new();
    for (name, session, files) in sessions {
        session.finish().map_err(system("finish"))?;
        let next = device.create(name).map_err(system("create"))?;
        for (token, file) in files {
            next.preserve(token, &file).map_err(system(format!("preserve token {token}")))?;
        }
        held.push(next);
    }
    hold()
}

fn fetch(session: &LiveUpdateSession, token: u64) -> Result<File, Failed> {
    session.fetch(token).map(File::from).map_err(system(format!("fetch token {token}")))
}

fn whole(file: &File) -> Result<Vec<u8>, Failed> {
    let len = file.metadata().map_err(system("a file's length"))?.len();
    let mut bytes = vec![0; len as usize];
    file.read_exact_at(&mut bytes, 0).map_err(system("a file"))?;
    Ok(bytes)
}

/// A trap of the kernel's.
#[derive(Debug, Clone, Copy, clap::ValueEnum)]
pub(crate) enum Trap {
    /// Closing a session that was retrieved finishes it, with what nobody has fetched.
    Close,
    /// The kernel gives a session once.
    Twice,
    /// A file that could not be made again once cannot be made again.
    Final,
}

impl Trap {
    fn session(self) -> &'static str {
        match self {
            Self::Close => "trap-close",
            Self::Twice => "trap-twice",
            Self::Final => "trap-final",
        }
    }
}

/// Lays out what a trap needs in the next kernel.
pub(crate) fn set(trap: Trap) -> Result<(), Failed> {
    let device = device()?;
    let session = device.create(name(trap.session())?).map_err(system("create"))?;
    let kept = memory(&content(trap.session(), TOKEN))?;
    session.preserve(TOKEN, &kept).map_err(system("preserve"))?;
    hold()
}

/// Walks into it, in the next kernel.
pub(crate) fn walk(trap: Trap) -> Result<(), Failed> {
    let device = device()?;
    let wanted = name(trap.session())?;
    let session = device.retrieve(wanted).map_err(system("retrieve"))?;
    match trap {
        Trap::Close => {
            // As long as there is a copy, closing one ends nothing.
            drop(session.try_clone().map_err(system("a copy"))?);
            same(trap, fetch(&session, TOKEN)?)?;
            drop(session);
            refused(device.retrieve(wanted), Errno::NOENT, "retrieving what was closed")?;
        }
        Trap::Twice => {
            refused(device.retrieve(wanted), Errno::INVAL, "retrieving it again")?;
            same(trap, fetch(&session, TOKEN)?)?;
        }
        Trap::Final => {
            let first = without_room(&session)?;
            refused(first, Errno::NFILE, "making the file again where there is no room")?;
            refused(session.fetch(TOKEN), Errno::NFILE, "trying again with room for it")?;
        }
    }
    println!("as the kernel's source says");
    Ok(())
}

fn same(trap: Trap, came: File) -> Result<(), Failed> {
    must(whole(&came)? == content(trap.session(), TOKEN), "its content differs")
}

/// Fetches the file while the system has as many files open as it may, as somebody for whom that
/// counts.
fn without_room(session: &LiveUpdateSession) -> Result<std::io::Result<OwnedFd>, Failed> {
    let write = |text: &str| std::fs::write(FILE_MAX, text).map_err(system(FILE_MAX));
    let before = std::fs::read_to_string(FILE_MAX).map_err(system(FILE_MAX))?;
    write("0")?;
    let fetched = std::thread::scope(|scope| {
        let fetch = || {
            // Who a thread is it is for itself alone.
            let uid = rustix::process::Uid::from_raw(ORDINARY);
            rustix::thread::set_thread_res_uid(uid, uid, uid)?;
            session.fetch(TOKEN)
        };
        scope.spawn(fetch).join()
    });
    write(before.trim())?;
    fetched.map_err(|_| Failed::Wrong("the thread that fetches has panicked".into()))
}

/// What the kernel takes by itself for files in one session, in microseconds for each.
pub(crate) fn bare(files: u64) -> Result<(), Failed> {
    let device = device()?;
    let session = device.create(name("bare")?).map_err(system("create"))?;
    // A file is one of this process's descriptors; the usual limit is far below what is tried.
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile);
    let raised = rustix::process::Rlimit { current: limit.maximum, ..limit };
    rustix::process::setrlimit(rustix::process::Resource::Nofile, raised)
        .map_err(system("the limit of open files"))?;
    let memories: Vec<OwnedFd> =
        (0..files).map(|token| memory(&content("bare", token))).collect::<Result<_, _>>()?;
    let began = std::time::Instant::now();
    for (token, memory) in (0..).zip(&memories) {
        session.preserve(token, memory).map_err(system(format!("preserve token {token}")))?;
    }
    println!("{}", began.elapsed().as_micros() as u64 / files.max(1));
    Ok(())
}

/// What preserving does to a memory file: its size stays, and its holes are filled; both in this
/// kernel.
pub(crate) fn freezes() -> Result<(), Failed> {
    let device = device()?;
    let session = device.create(name("trap-size")?).map_err(system("create"))?;
    let mut file = File::from(memory(b"the first page")?);
    let len = 8 * PAGE as u64;
    file.set_len(len).map_err(system("its size"))?;
    let blocks = |file: &File| file.metadata().map(|is| is.blocks() * 512).map_err(system("stat"));
    must(blocks(&file)? < len, "the file has no hole")?;
    session.preserve(TOKEN, &file).map_err(system("preserve"))?;
    must(blocks(&file)? >= len, "its holes are not filled")?;
    refused(file.set_len(len + 1), Errno::PERM, "making it longer")?;
    refused(file.set_len(1), Errno::PERM, "making it shorter")?;
    let hole = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
    let punched = fallocate(file.as_fd(), hole, 0, PAGE as u64).map_err(std::io::Error::from);
    refused(punched, Errno::PERM, "making a hole")?;
    file.write_all(b"writing goes on").map_err(system("writing"))?;
    // There is no way to take one file out; with its session it is free again.
    refused(session.preserve(TOKEN + 1, &file), Errno::BUSY, "preserving it twice")?;
    drop(session);
    file.set_len(1).map_err(system("its size, once its session is gone"))?;
    println!("as the kernel's source says");
    Ok(())
}
