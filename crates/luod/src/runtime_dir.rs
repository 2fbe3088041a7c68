//! The directory of luod's socket, and the socket itself.
//!
//! Invariants: a socket that a luod before has left behind is replaced, one on which somebody
//! listens is not; a lock in the directory keeps two that start at once apart.

use std::fs::{DirBuilder, OpenOptions, Permissions};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use rustix::fs::FlockOperation;

/// The socket's name in its directory.
pub const SOCKET_NAME: &str = "io.luo.sock";
const LOCK_NAME: &str = "luod.lock";

/// Why the socket cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum RuntimeDirError {
    /// The directory or a file in it.
    #[error("{}: {source}; name another directory with --runtime-dir", path.display())]
    Path {
        /// What it is about.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// Another luod is there.
    #[error("another luod runs in {}; stop it, or name another directory with --runtime-dir", .0.display())]
    InUse(PathBuf),
}

/// A bound socket.
#[derive(Debug)]
pub struct RuntimeDir {
    /// The listening socket.
    pub listener: OwnedFd,
    /// Its path.
    pub socket: PathBuf,
}

/// Makes the directory if need be, and binds the socket in it.
///
/// # Errors
/// If another luod is there, or the system refuses.
pub fn bind(directory: &Path, mode: u32) -> Result<RuntimeDir, RuntimeDirError> {
    let failed = |path: &Path| {
        let path = path.to_owned();
        move |source| RuntimeDirError::Path { path, source }
    };
    DirBuilder::new().recursive(true).mode(0o755).create(directory).map_err(failed(directory))?;
    let lock_path = directory.join(LOCK_NAME);
    let lock = OpenOptions::new()
        .create(true)
        .truncate(false)
        .write(true)
        .mode(0o600)
        .open(&lock_path)
        .map_err(failed(&lock_path))?;
    match rustix::fs::flock(&lock, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => {}
        Err(rustix::io::Errno::WOULDBLOCK) => {
            return Err(RuntimeDirError::InUse(directory.to_owned()));
        }
        Err(error) => return Err(failed(&lock_path)(error.into())),
    }
    let socket = directory.join(SOCKET_NAME);
    match UnixStream::connect(&socket) {
        Ok(_) => return Err(RuntimeDirError::InUse(directory.to_owned())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        // Nobody listens: it was left behind.
        Err(_) => std::fs::remove_file(&socket).map_err(failed(&socket))?,
    }
    let listener = UnixListener::bind(&socket).map_err(failed(&socket))?;
    std::fs::set_permissions(&socket, Permissions::from_mode(mode)).map_err(failed(&socket))?;
    drop(lock);
    Ok(RuntimeDir { listener: listener.into(), socket })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_luod_is_refused_and_a_left_socket_is_replaced() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("a/b");
        let first = bind(&path, 0o600).unwrap();
        let mode = std::fs::metadata(&first.socket).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        assert!(matches!(bind(&path, 0o600), Err(RuntimeDirError::InUse(_))));
        drop(first);
        bind(&path, 0o600).unwrap();
    }
}
