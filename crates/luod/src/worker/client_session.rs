//! Kernel sessions that the owners of luo's sessions fill by themselves.
//!
//! ```text
//! GetKernelSession ─▶ made ─▶ slot CLIENT, answered ─▶ … ─▶ depart: also in slot LEAVES ─▶ kexec
//!                              │ ReleaseKernelSession, or the end of luo's session
//!                              ▼
//!                            undone by the kernel, once the client has closed its own descriptor
//! ```
//!
//! Invariants:
//! - The store has a kernel session before its owner has it.
//! - Who has no right to a session of luo's gets no kernel session of its owner: its name has the uid.

use std::rc::Rc;

use luo_abi::liveupdate::ioctl::Name;
use luo_carriers::liveupdate::{LiveUpdateCarrier, client_name};
use luo_carriers::{HostFile, Slots};
use luo_core::{Errno, Failure, SessionId, SessionInfo, State};
use std::os::fd::OwnedFd;
use zerocopy::IntoBytes;

use super::custody::space;
use super::host::Host;
use super::kernel::{adopt, sessions};
use super::refusal::Refusal;
use crate::store::Table;

fn refusal(failure: &Failure) -> Refusal {
    Refusal::new(failure.errno(), failure.reason().to_owned())
}

fn copied(error: &std::io::Error) -> Refusal {
    Refusal::new(Errno::MFile, format!("the kernel session cannot be duplicated: {error}"))
}

/// Those of the worker before, into the carrier.
pub(super) fn take_up(table: &Table, carrier: &LiveUpdateCarrier) {
    for (name, key, file) in sessions(table, space::CLIENT) {
        match adopt(&file) {
            Ok(session) => carrier.adopt_client(name, session),
            Err(error) => {
                tracing::warn!(?name, %error, "a client's kernel session is not there any more");
                table.forget(key);
            }
        }
    }
}

impl Host {
    fn client_name(&self, id: SessionId) -> Result<Name, Refusal> {
        let info = self.session_info(id)?;
        client_name(info.owner.uid, &info.name).map_err(|failure| refusal(&failure))
    }

    /// The kernel session for the next kernel that the owner of a session fills, and its name.
    ///
    /// # Errors
    /// EOPNOTSUPP where luod does not have `/dev/liveupdate`, EBUSY while the machine is frozen.
    pub(crate) async fn kernel_session(
        self: &Rc<Self>,
        id: SessionId,
    ) -> Result<(Name, OwnedFd), Refusal> {
        let name = self.client_name(id)?;
        let carrier = self.open_liveupdate().map_err(|why| unsupported(&why))?;
        if self.core.borrow().status().state == State::Frozen {
            let reason = "the machine is frozen: what is to go along is known already; ask again \
                          after the update, or after it was cancelled";
            return Err(Refusal::new(Errno::Busy, reason));
        }
        let (session, made) = carrier.client(name).map_err(|failure| refusal(&failure))?;
        let descriptor = session.descriptor().map_err(|error| copied(&error))?;
        if made {
            let copy = session.descriptor().map_err(|error| copied(&error))?;
            let key = self.custody.allocate(space::CLIENT);
            self.custody.put(key, name.as_bytes(), &[&HostFile::from(copy)]);
            if let Err(refusal) = self.commit().await {
                carrier.forget_client(&name);
                self.custody.forget(key);
                return Err(refusal);
            }
        } else {
            // Whoever has had it made may still wait for the store.
            self.commit().await?;
        }
        Ok((name, descriptor))
    }

    /// The kernel session that the owner of a session has filled in the kernel before.
    ///
    /// # Errors
    /// EOPNOTSUPP where luod does not have `/dev/liveupdate`, ENOENT where none came.
    pub(crate) fn arrived_kernel_session(&self, id: SessionId) -> Result<(Name, OwnedFd), Refusal> {
        let name = self.client_name(id)?;
        let none = || unsupported(&self.carriers.no_liveupdate());
        let carrier = self.carriers.liveupdate().ok_or_else(none)?;
        let session = carrier.came_for_client(&name).map_err(|failure| refusal(&failure))?;
        Ok((name, session.descriptor().map_err(|error| copied(&error))?))
    }

    /// Lets go of the kernel session that the owner of a session fills, where there is one.
    pub(crate) async fn release_kernel_session(
        self: &Rc<Self>,
        id: SessionId,
    ) -> Result<(), Refusal> {
        let name = self.client_name(id)?;
        self.forget_kernel_session(&name);
        self.commit().await
    }

    /// As above, at once.
    pub(crate) fn forget_kernel_session(&self, name: &Name) {
        for (other, key, _) in sessions(self.custody.table(), space::CLIENT) {
            if other == *name {
                self.custody.forget(key);
            }
        }
        if let Some(carrier) = self.carriers.liveupdate() {
            carrier.forget_client(name);
        }
    }

    /// Whether the owner of a session has a kernel session for the next kernel, and whether one came
    /// from the kernel before and has not been finished.
    pub(crate) fn has_kernel_session(&self, info: &SessionInfo) -> (bool, bool) {
        let Some(carrier) = self.carriers.liveupdate() else { return (false, false) };
        client_name(info.owner.uid, &info.name)
            .map_or((false, false), |name| carrier.has_client(&name))
    }

    /// Takes the name of a session's kernel session before the session is gone.
    pub(crate) fn note_kernel_session(&self, id: SessionId) -> Option<Name> {
        let any = !self.custody.keys(space::CLIENT).is_empty();
        any.then(|| self.client_name(id).ok()).flatten()
    }

    /// An update that the kernel's sessions do not go along with would lose what is in those of
    /// clients.
    ///
    /// # Errors
    /// EOPNOTSUPP, where there are any.
    pub(crate) fn no_kernel_sessions(&self) -> Result<(), Refusal> {
        if self.carriers.liveupdate().is_some_and(|carrier| carrier.has_clients()) {
            let reason = "a client has put files into a kernel session of its own, which no arena \
                          takes along: update through `liveupdate`, or have it release that session";
            return Err(Refusal::new(Errno::OpNotSupp, reason));
        }
        Ok(())
    }
}

fn unsupported(why: &Failure) -> Refusal {
    let reason = format!(
        "a client has a kernel session of its own only through /dev/liveupdate, which this luod does \
         not have: {}. Preserve the files in luo's session instead",
        why.reason()
    );
    Refusal::new(Errno::OpNotSupp, reason)
}
