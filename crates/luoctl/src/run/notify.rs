//! The socket on which a program speaks to its service manager, and the way on to an outer one.
//!
//! Invariants: a message counts only if its sender is this user's, root's, or a process that came out
//! of the program, whatever user that is now; descriptors of one that does not count are closed.

use std::io::{self, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::path::{Path, PathBuf};
use std::time::Duration;
use std::{env, fs};

use luo::protocol::MAX_DESCRIPTORS;
use rustix::net::sockopt::set_socket_passcred;
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, recvmsg};
use rustix::process::{Pid, geteuid, getpid};

use super::message::{MESSAGE_MAX, Message};

/// The variable that names the socket.
pub(crate) const NOTIFY_SOCKET: &str = "NOTIFY_SOCKET";

/// How many parents of a sender are looked at.
const DEPTH: usize = 64;

/// How long an outer service manager may leave a message unread.
const OUTER_PATIENCE: Duration = Duration::from_secs(1);

/// What came.
pub(crate) enum Came {
    /// A message, and who sent it.
    Message(Message, Vec<OwnedFd>),
    /// Something that does not count, and why.
    Ignored(String),
    /// There is nothing more at the moment.
    Nothing,
}

/// The socket.
#[derive(Debug)]
pub(crate) struct Notify {
    socket: UnixDatagram,
    directory: PathBuf,
}

impl Notify {
    /// A socket that only whoever is told can find; any user may write to it.
    pub(crate) fn open() -> io::Result<Self> {
        let mut random = [0; 8];
        rustix::rand::getrandom(&mut random, rustix::rand::GetRandomFlags::empty())?;
        let directory = base().join(format!("luoctl-run-{:016x}", u64::from_ne_bytes(random)));
        fs::DirBuilder::new().mode(0o711).create(&directory)?;
        let path = directory.join("notify");
        let made = UnixDatagram::bind(&path).and_then(|socket| {
            // Whatever the umask is.
            fs::set_permissions(&directory, fs::Permissions::from_mode(0o711))?;
            fs::set_permissions(&path, fs::Permissions::from_mode(0o666))?;
            socket.set_nonblocking(true)?;
            set_socket_passcred(&socket, true)?;
            Ok(socket)
        });
        match made {
            Ok(socket) => Ok(Self { socket, directory }),
            Err(error) => {
                let _ = fs::remove_dir_all(&directory);
                Err(error)
            }
        }
    }

    pub(crate) fn path(&self) -> PathBuf {
        self.directory.join("notify")
    }

    /// The next message. Never blocks.
    pub(crate) fn next(&self) -> io::Result<Came> {
        let mut bytes = [0; MESSAGE_MAX];
        let mut space = [MaybeUninit::uninit();
            rustix::cmsg_space!(ScmRights(MAX_DESCRIPTORS), ScmCredentials(1))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let flags = RecvFlags::CMSG_CLOEXEC | RecvFlags::DONTWAIT;
        let received =
            match recvmsg(&self.socket, &mut [IoSliceMut::new(&mut bytes)], &mut control, flags) {
                Ok(received) => received,
                Err(rustix::io::Errno::AGAIN) => return Ok(Came::Nothing),
                Err(rustix::io::Errno::INTR) => return Ok(Came::Ignored("interrupted".into())),
                Err(error) => return Err(error.into()),
            };
        let (mut files, mut sender) = (Vec::new(), None);
        for part in control.drain() {
            match part {
                RecvAncillaryMessage::ScmRights(rights) => files.extend(rights),
                RecvAncillaryMessage::ScmCredentials(ucred) => sender = Some(ucred),
                _ => {}
            }
        }
        let Some(sender) = sender else {
            return Ok(Came::Ignored("a message whose sender is not known".into()));
        };
        if received.flags.intersects(ReturnFlags::TRUNC | ReturnFlags::CTRUNC) {
            let why = "it is too long, or this process may not open as many files";
            return Ok(Came::Ignored(format!("a message of process {}: {why}", pid(sender.pid))));
        }
        let own = sender.uid == geteuid() || sender.uid.is_root();
        if !own && !descends(sender.pid) {
            let (pid, uid) = (pid(sender.pid), sender.uid.as_raw());
            return Ok(Came::Ignored(format!("a message of process {pid} of user {uid}")));
        }
        Ok(match bytes.get(..received.bytes).and_then(Message::read) {
            Some(message) => Came::Message(message, files),
            None => Came::Ignored(format!("process {}: that is no text", pid(sender.pid))),
        })
    }
}

fn pid(pid: Pid) -> i32 {
    pid.as_raw_nonzero().get()
}

impl AsFd for Notify {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl Drop for Notify {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.directory);
    }
}

/// Where a socket's directory may be made.
fn base() -> PathBuf {
    let run = Path::new("/run");
    if geteuid().is_root() && run.is_dir() {
        return run.to_owned();
    }
    match env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from) {
        Some(directory) if directory.is_dir() => directory,
        _ => env::temp_dir(),
    }
}

/// Whether a process came out of this one. What came out of the program stays below this process,
/// which takes up orphans.
pub(crate) fn descends(from: Pid) -> bool {
    let me = getpid();
    let mut at = Some(from);
    for _ in 0..DEPTH {
        match at {
            Some(pid) if pid == me => return true,
            Some(pid) => at = parent(pid),
            None => return false,
        }
    }
    false
}

fn parent(of: Pid) -> Option<Pid> {
    let stat = fs::read_to_string(format!("/proc/{}/stat", pid(of))).ok()?;
    // The name of the program may contain anything, so what follows it is found from behind.
    let parent = stat.rsplit_once(')')?.1.split_ascii_whitespace().nth(1)?;
    parent.parse().ok().and_then(Pid::from_raw)
}

/// The service manager that luoctl itself was started by.
#[derive(Debug)]
pub(crate) struct Outer {
    socket: UnixDatagram,
    address: SocketAddr,
}

impl Outer {
    /// The one that the environment names, where there is one.
    pub(crate) fn from_environment() -> io::Result<Option<Self>> {
        let Some(named) = env::var_os(NOTIFY_SOCKET).filter(|named| !named.is_empty()) else {
            return Ok(None);
        };
        let address = match named.as_bytes() {
            [b'@', name @ ..] => SocketAddr::from_abstract_name(name)?,
            [b'/', ..] => SocketAddr::from_pathname(Path::new(&named))?,
            _ => {
                let text = format!("{} is no address of a Unix socket", named.display());
                return Err(io::Error::new(io::ErrorKind::Unsupported, text));
            }
        };
        let socket = UnixDatagram::unbound()?;
        socket.set_write_timeout(Some(OUTER_PATIENCE))?;
        Ok(Some(Self { socket, address }))
    }

    pub(crate) fn send(&self, text: &str) -> io::Result<()> {
        self.socket.send_to_addr(text.as_bytes(), &self.address).map(|_| ())
    }
}

#[cfg(test)]
mod tests {
    use rustix::net::{SendAncillaryBuffer, SendFlags, sendmsg};

    use super::*;
    use crate::run::message::Asked;

    #[test]
    fn what_this_user_sends_comes_with_its_descriptors_and_the_socket_goes_with_its_owner() {
        let notify = Notify::open().unwrap();
        let path = notify.path();
        let sender = UnixDatagram::unbound().unwrap();
        sender.connect(&path).unwrap();
        let file = fs::File::open("/dev/null").unwrap();
        let rights = [file.as_fd()];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        assert!(control.push(rustix::net::SendAncillaryMessage::ScmRights(&rights)));
        let text = [io::IoSlice::new(b"FDSTORE=1\nFDNAME=x")];
        sendmsg(&sender, &text, &mut control, SendFlags::empty()).unwrap();
        let Came::Message(message, files) = notify.next().unwrap() else { panic!() };
        assert_eq!(message.asked, Asked::Store { name: "x".into(), watched: true });
        assert_eq!(files.len(), 1);
        sender.send(&[b'x'; MESSAGE_MAX + 1]).unwrap();
        assert!(matches!(notify.next().unwrap(), Came::Ignored(_)));
        assert!(matches!(notify.next().unwrap(), Came::Nothing));
        drop(notify);
        assert!(!path.exists() && !path.parent().unwrap().exists());
    }

    #[test]
    fn children_descend_and_parents_do_not() {
        let mut child = std::process::Command::new("sleep").arg("60").spawn().unwrap();
        assert!(descends(Pid::from_child(&child)));
        assert!(descends(getpid()));
        assert!(!rustix::process::getppid().is_some_and(descends));
        child.kill().unwrap();
        child.wait().unwrap();
    }
}
