//! Files of each type, as many as are wanted.

use std::fs::File;
use std::io::Write as _;
use std::net::{TcpListener, UdpSocket};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::Path;

use rustix::event::{EventfdFlags, eventfd};
use rustix::fs::{CWD, FileType, MemfdFlags, Mode, OFlags, memfd_create, mknodat};
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create,
    timerfd_settime,
};

use crate::failure::{Context as _, Failed, Result};

/// The types, as helpers and rows call them.
pub(super) const KINDS: [&str; 11] = [
    "memfd",
    "eventfd",
    "timerfd",
    "pipe",
    "fifo",
    "file",
    "deleted file",
    "device",
    "unix pair",
    "udp socket",
    "tcp listener",
];

/// So many descriptors of that type; of those that come in pairs one more where it is an odd number.
pub(super) fn make(kind: &str, count: usize, dir: &Path) -> Result<Vec<OwnedFd>> {
    let mut files = Vec::with_capacity(count + 1);
    while files.len() < count {
        add(kind, &dir.join(files.len().to_string()), &mut files)
            .context(|| format!("make a {kind}"))?;
    }
    Ok(files)
}

fn add(kind: &str, path: &Path, files: &mut Vec<OwnedFd>) -> std::io::Result<()> {
    match kind {
        "memfd" => {
            let file = memfd_create("bench", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)?;
            rustix::io::write(&file, &[1; 4096])?;
            files.push(file);
        }
        "eventfd" => files.push(eventfd(7, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?),
        "timerfd" => {
            let timer = timerfd_create(TimerfdClockId::Monotonic, TimerfdFlags::CLOEXEC)?;
            let time = |seconds| Timespec { tv_sec: seconds, tv_nsec: 0 };
            let value = Itimerspec { it_interval: time(60), it_value: time(3600) };
            timerfd_settime(&timer, TimerfdTimerFlags::empty(), &value)?;
            files.push(timer);
        }
        "pipe" => {
            let (reader, writer) = pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK)?;
            rustix::io::write(&writer, b"unread")?;
            files.extend([reader, writer]);
        }
        "fifo" => {
            let mode = Mode::RUSR | Mode::WUSR;
            match mknodat(CWD, path, FileType::Fifo, mode, 0) {
                Ok(()) | Err(rustix::io::Errno::EXIST) => {}
                Err(error) => return Err(error.into()),
            }
            let flags = OFlags::RDWR | OFlags::NONBLOCK | OFlags::CLOEXEC;
            let fifo = rustix::fs::open(path, flags, Mode::empty())?;
            rustix::io::write(&fifo, b"unread")?;
            files.push(fifo);
        }
        "file" => files.push(File::create(path)?.into()),
        "deleted file" => {
            let mut file = File::create(path)?;
            file.write_all(&[1; 4096])?;
            std::fs::remove_file(path)?;
            files.push(file.into());
        }
        "device" => files.push(File::open("/dev/null")?.into()),
        "unix pair" => {
            let (one, other) = UnixStream::pair()?;
            (&one).write_all(b"unread")?;
            files.extend([one.into(), other.into()]);
        }
        "udp socket" => files.push(UdpSocket::bind("127.0.0.1:0")?.into()),
        "tcp listener" => files.push(TcpListener::bind("127.0.0.1:0")?.into()),
        _ => return Err(std::io::Error::other(Failed::new("no such type").chain())),
    }
    Ok(())
}
