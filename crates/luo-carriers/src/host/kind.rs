//! What kind of file a descriptor is of.
//!
//! Invariants: asked for once in a file's life; of what has a type of its own, the look that was
//! taken before tells it, without a system call.

use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::ffi::OsStrExt;

use rustix::fs::FileType;

use super::HostFile;

/// What kind of file it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum FileKind {
    /// A regular file, a memory file among them.
    Regular,
    /// A directory.
    Directory,
    /// A pipe or FIFO.
    Pipe,
    /// A socket.
    Socket,
    /// A character device.
    CharDevice,
    /// An event counter.
    Eventfd,
    /// A timer.
    Timerfd,
    /// What signals are read from.
    Signalfd,
    /// A set of files to wait for.
    Epoll,
    /// Watches on files.
    Inotify,
    /// Anything else, or what cannot be looked at.
    Other,
}

impl HostFile {
    /// What kind of file it is. The first look counts; of a file without a type of its own it
    /// reads a link of `/proc`.
    #[must_use]
    pub fn kind(&self) -> FileKind {
        *self.0.kind.get_or_init(|| match self.look() {
            Err(_) => FileKind::Other,
            Ok(look) => match FileType::from_raw_mode(look.mode.into()) {
                FileType::RegularFile => FileKind::Regular,
                FileType::Directory => FileKind::Directory,
                FileType::Fifo => FileKind::Pipe,
                FileType::Socket => FileKind::Socket,
                FileType::CharacterDevice => FileKind::CharDevice,
                _ => self.anonymous_kind(),
            },
        })
    }

    fn anonymous_kind(&self) -> FileKind {
        let link = format!("/proc/self/fd/{}", self.as_fd().as_raw_fd());
        let Ok(name) = std::fs::read_link(link) else { return FileKind::Other };
        match name.as_os_str().as_bytes() {
            b"anon_inode:[eventfd]" => FileKind::Eventfd,
            b"anon_inode:[timerfd]" => FileKind::Timerfd,
            b"anon_inode:[signalfd]" => FileKind::Signalfd,
            b"anon_inode:[eventpoll]" => FileKind::Epoll,
            b"anon_inode:inotify" => FileKind::Inotify,
            _ => FileKind::Other,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::OwnedFd;

    use rustix::event::{EventfdFlags, epoll, eventfd};
    use rustix::fs::inotify;
    use rustix::time::{TimerfdClockId, TimerfdFlags, timerfd_create};

    use super::*;

    #[test]
    fn each_kind_is_told_from_the_others() {
        let open = |path: &str| OwnedFd::from(std::fs::File::open(path).unwrap());
        let timer = timerfd_create(TimerfdClockId::Monotonic, TimerfdFlags::CLOEXEC).unwrap();
        for (file, kind) in [
            (open("/proc/self/status"), FileKind::Regular),
            (open("/"), FileKind::Directory),
            (open("/dev/null"), FileKind::CharDevice),
            (rustix::pipe::pipe().unwrap().0, FileKind::Pipe),
            (std::os::unix::net::UnixStream::pair().unwrap().0.into(), FileKind::Socket),
            (eventfd(0, EventfdFlags::CLOEXEC).unwrap(), FileKind::Eventfd),
            (timer, FileKind::Timerfd),
            (epoll::create(epoll::CreateFlags::CLOEXEC).unwrap(), FileKind::Epoll),
            (inotify::init(inotify::CreateFlags::CLOEXEC).unwrap(), FileKind::Inotify),
        ] {
            let file = HostFile::from(file);
            assert_eq!(file.kind(), kind);
            assert_eq!(file.clone().kind(), kind);
        }
    }
}
