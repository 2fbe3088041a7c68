//! To use the file system as another user, for a moment, in one thread.
//!
//! Invariants: the thread is itself again when the work is done, or ended by a panic.

use std::io;

/// Back to who the thread was.
struct Back {
    uid: libc::c_long,
    gid: libc::c_long,
}

impl Drop for Back {
    fn drop(&mut self) {
        // The user first: only then may the group be any.
        change(libc::SYS_setfsuid, self.uid);
        change(libc::SYS_setfsgid, self.gid);
    }
}

/// Sets one of both ids of this thread, and gives the one before. An id that nobody may have, or
/// that this thread may not, changes nothing.
fn change(call: libc::c_long, id: libc::c_long) -> libc::c_long {
    // SAFETY: setfsuid and setfsgid take an integer, touch no memory of the caller, and change
    // this thread alone; they cannot fail.
    unsafe { libc::syscall(call, id) }
}

/// Does `work` with the rights that this user and group have in the file system, and no more: root
/// has none of its own then. Supplementary groups stay those of the thread.
///
/// # Errors
/// EPERM where this thread may not become that user.
pub fn as_user<T>(uid: u32, gid: u32, work: impl FnOnce() -> T) -> io::Result<T> {
    const NOBODY: libc::c_long = -1;
    let (uid, gid) = (libc::c_long::from(uid), libc::c_long::from(gid));
    let back = Back { gid: change(libc::SYS_setfsgid, gid), uid: change(libc::SYS_setfsuid, uid) };
    // Asked for nobody, which changes nothing, the kernel says who it is now.
    let now = (change(libc::SYS_setfsuid, NOBODY), change(libc::SYS_setfsgid, NOBODY));
    let result =
        if now == (uid, gid) { Ok(work()) } else { Err(io::Error::from_raw_os_error(libc::EPERM)) };
    drop(back);
    result
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn another_user_has_its_own_rights_and_this_one_has_them_back() {
        if !rustix::process::geteuid().is_root() {
            eprintln!("SKIPPED: only root can be another user");
            return;
        }
        let directory = tempfile::tempdir().unwrap();
        let secret = directory.path().join("secret");
        fs::write(&secret, "x").unwrap();
        fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o700)).unwrap();
        assert!(as_user(12345, 12345, || fs::read(&secret)).unwrap().is_err());
        fs::read(&secret).unwrap();
        let caught = std::panic::catch_unwind(|| {
            as_user(12345, 12345, || panic!("to be caught")).unwrap_or(())
        });
        assert!(caught.is_err());
        fs::read(&secret).unwrap();
    }
}
