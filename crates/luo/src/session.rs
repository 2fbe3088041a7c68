//! Sessions: named containers of files that outlive the process that made them.

use std::os::fd::{AsFd, OwnedFd};

use crate::blocking::{Blocking, now};
use crate::calls::{self, Recalled, Verdict};
use crate::client;
use crate::error::{Error, Refusal};
use crate::kernel_session::{ArrivedKernelSession, KernelSession};
use crate::options::Options;
use crate::protocol::{Info, Unclaimed};
use luo_sys::Memory;

/// A session, with an API that blocks.
///
/// Every call has a deadline ([`Options::deadline`]), within which a luod that is restarted or
/// upgraded is waited for: the caller does not notice. The session lives as long as any process
/// holds a copy of its descriptor, and after that as its policy says; dropping this value closes
/// one copy.
///
/// It can be used from several threads at once: each call under way has a connection of its own, so
/// none waits for another's. Files that come in great numbers are better given in batches.
///
/// # Errors
/// Every call can fail with [`Error::DeadlineExceeded`], [`Error::SessionGone`],
/// [`Error::WorkerFailed`] and the other ways in which luod cannot be talked to. What luod itself
/// refuses is [`Error::Refused`] with the errno that is named at each call. A request whose answer
/// was lost is sent again by itself; where it then turns out that it had taken effect the first
/// time, that is a success.
#[derive(Debug)]
pub struct Session {
    client: client::Session<Blocking>,
}

impl Session {
    /// The session of this name: taken over from the process before, then it is
    /// [`updated`](Self::is_updated), or made anew. If another process holds it, this waits until
    /// that one has closed it.
    ///
    /// # Errors
    /// [`Error::Unavailable`] where no luod runs, [`Error::Unreachable`] where its socket is closed
    /// to this user; EPERM if another user owns the session; EBUSY if another process still holds
    /// it at the deadline; ENOSPC if a limit is reached; EINVAL or ENAMETOOLONG for a name that is
    /// not 1 to 63 printable bytes without `/`.
    pub fn open(name: &str) -> Result<Self, Error> {
        Self::open_with(name, Options::default())
    }

    /// As [`open`](Self::open), with options.
    ///
    /// # Errors
    /// As [`open`](Self::open).
    pub fn open_with(name: &str, options: Options) -> Result<Self, Error> {
        let client = now(client::Session::open(name, options))?;
        Ok(Self { client })
    }

    /// As [`open`](Self::open), or `None` where no luod runs, so that a service can do without. A
    /// luod that is there but cannot be used is an error, so that nobody goes without by mistake.
    ///
    /// # Errors
    /// As [`open`](Self::open), but for [`Error::Unavailable`].
    pub fn connect_or_none(name: &str) -> Result<Option<Self>, Error> {
        Self::connect_or_none_with(name, Options::default())
    }

    /// As [`connect_or_none`](Self::connect_or_none), with options.
    ///
    /// # Errors
    /// As [`connect_or_none`](Self::connect_or_none).
    pub fn connect_or_none_with(name: &str, options: Options) -> Result<Option<Self>, Error> {
        let client = now(client::Session::open_or_none(name, options))?;
        Ok(client.map(|client| Self { client }))
    }

    /// Makes a session.
    ///
    /// # Errors
    /// EEXIST if the name is taken, and as [`open`](Self::open).
    pub fn create_with(name: &str, options: Options) -> Result<Self, Error> {
        let client = now(client::Session::create(name, options))?;
        Ok(Self { client })
    }

    /// Takes over a session that nobody holds any more.
    ///
    /// # Errors
    /// ENOENT if there is none, and as [`open`](Self::open).
    pub fn claim_with(name: &str, options: Options) -> Result<Self, Error> {
        let client = now(client::Session::claim(name, options))?;
        Ok(Self { client })
    }

    /// A session whose descriptor another process has passed on. It needs no other right, and makes
    /// connections of its own.
    ///
    /// # Errors
    /// [`Error::NotASession`] if the descriptor is not a session's; [`Error::SessionGone`].
    pub fn from_descriptor(descriptor: OwnedFd) -> Result<Self, Error> {
        Self::from_descriptor_with(descriptor, Options::default())
    }

    /// As [`from_descriptor`](Self::from_descriptor), with options, of which the deadline counts.
    ///
    /// # Errors
    /// As [`from_descriptor`](Self::from_descriptor).
    pub fn from_descriptor_with(descriptor: OwnedFd, options: Options) -> Result<Self, Error> {
        let client = now(client::Session::from_descriptor(descriptor, options))?;
        Ok(Self { client })
    }

    /// The session's name.
    #[must_use]
    pub fn name(&self) -> &str {
        self.client.name()
    }

    /// A copy of the session's descriptor, to be passed to another process: whoever has it may use
    /// the session. It is close-on-exec.
    ///
    /// # Errors
    /// [`Error::System`] if no descriptor is free (EMFILE).
    pub fn descriptor(&self) -> Result<OwnedFd, Error> {
        self.client.descriptor()
    }

    /// Where the session is in the cycle, and its tokens.
    ///
    /// # Errors
    /// See the type.
    pub fn info(&self) -> Result<Info, Error> {
        now(self.client.info())
    }

    /// Whether files came over and wait to be retrieved.
    ///
    /// # Errors
    /// See the type.
    pub fn is_updated(&self) -> Result<bool, Error> {
        now(self.client.is_updated())
    }

    /// Gives luod a file to keep under this token. The caller goes on using it; luod has a
    /// duplicate.
    ///
    /// # Errors
    /// EEXIST if the token is taken, EBUSY in a wrong state or if the same open file description
    /// is preserved already, ENOENT if no handler takes it, ENOSPC if a limit is reached.
    pub fn preserve(&self, token: u64, file: impl AsFd) -> Result<(), Error> {
        now(self.client.preserve(file.as_fd(), Some(token))).map(|_| ())
    }

    /// As [`preserve`](Self::preserve), under a token that luod chooses.
    ///
    /// # Errors
    /// As [`preserve`](Self::preserve).
    pub fn preserve_assigned(&self, file: impl AsFd) -> Result<u64, Error> {
        now(self.client.preserve(file.as_fd(), None))
    }

    /// Gives many files at once, with a verdict for each, in order. Any number: they are sent in
    /// messages of up to 253.
    ///
    /// # Errors
    /// [`Error::Refused`] if all were refused for the same reason, EBUSY for example. Of a batch that
    /// failed in another way in the middle, a part may have been taken: [`info`](Self::info) tells
    /// which.
    pub fn preserve_many<F: AsFd>(&self, files: &[(u64, F)]) -> Result<Vec<Verdict>, Error> {
        let (tokens, files) = calls::split(files);
        now(self.client.preserve_batch(&files, Some(&tokens), true))
    }

    /// As [`preserve_many`](Self::preserve_many), where one refused file is a refusal of the whole:
    /// the error names the first. The others stay preserved.
    ///
    /// # Errors
    /// As [`preserve`](Self::preserve).
    pub fn preserve_all<F: AsFd>(&self, files: &[(u64, F)]) -> Result<(), Error> {
        let (tokens, files) = calls::split(files);
        now(self.client.preserve_all(&files, &tokens))
    }

    /// As [`preserve_many`](Self::preserve_many), for files without which an update may go on.
    ///
    /// # Errors
    /// As [`preserve_many`](Self::preserve_many).
    pub fn preserve_optional<F: AsFd>(&self, files: &[(u64, F)]) -> Result<Vec<Verdict>, Error> {
        let (tokens, files) = calls::split(files);
        now(self.client.preserve_batch(&files, Some(&tokens), false))
    }

    /// Keeps a file that is preserved already under one more token: what is retrieved under both are
    /// two descriptors of one open file description, with one position and one set of flags, as
    /// `dup(2)` makes them. An original cannot be taken out before its duplicates, but along with
    /// them ([`unpreserve_many`](Self::unpreserve_many)); of a duplicate's duplicate it is the same
    /// one, and after an update any of them may be it.
    ///
    /// ```no_run
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let session = luo::Session::open("shop")?;
    /// let log = std::fs::File::options().append(true).open("/var/log/shop")?;
    /// session.preserve(1, &log)?; // standard output,
    /// session.duplicate(2, 1)?; // and standard error
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// ENOENT if nothing is preserved under `original`; else as [`preserve`](Self::preserve).
    pub fn duplicate(&self, token: u64, original: u64) -> Result<(), Error> {
        now(self.client.duplicate(original, Some(token))).map(|_| ())
    }

    /// As [`duplicate`](Self::duplicate), under a token that luod chooses.
    ///
    /// # Errors
    /// As [`duplicate`](Self::duplicate).
    pub fn duplicate_assigned(&self, original: u64) -> Result<u64, Error> {
        now(self.client.duplicate(original, None))
    }

    /// Memory of at least `len` zero bytes (exactly as many, unless it lies on huge pages), preserved
    /// under this token, that no update copies if that can be: where luod has an arena, this process
    /// is root's or of luod's own user, and there is room, the memory lies in the arena
    /// ([`Memory::is_resident`]). Otherwise it is an ordinary memory file, which an update through an
    /// arena copies. What is different is the time that takes, and that resident memory does not
    /// [grow](Memory::grow).
    ///
    /// Resident memory is this process's own until its last descriptor and mapping are gone, in
    /// whatever process. After an update [`retrieve_memory`](Self::retrieve_memory) gives the same
    /// bytes. Its content has no checksum, and once it was retrieved, what comes after a loss of power
    /// is what was written last: state must be whole at every moment, as for a crash.
    ///
    /// # Errors
    /// As [`preserve`](Self::preserve), and [`Error::Memory`] where no memory can be had.
    pub fn allocate(&self, token: u64, len: u64) -> Result<Memory, Error> {
        now(self.client.allocate(token, len))
    }

    /// Takes memory back, and maps it: what [`allocate`](Self::allocate) gave, or any memfd.
    ///
    /// # Errors
    /// As [`retrieve`](Self::retrieve); EPERM for memory in the arena where this process may not
    /// reach that; [`Error::Memory`] where the file is no memory or cannot be mapped.
    pub fn retrieve_memory(&self, token: u64) -> Result<Memory, Error> {
        now(self.client.retrieve_memory(token))
    }

    /// A kernel session that the caller fills by itself, for what cannot go through luod: descriptors
    /// that cannot be passed on, and memory that is to be charged to the caller's own cgroup. It is
    /// made the first time, and goes along in every update through `/dev/liveupdate` until it is
    /// [released](Self::release_kernel_session), the session itself is, or an update has arrived.
    /// `cancel` takes nothing out of it; an update through an arena is refused while it is there.
    ///
    /// luod does not know what is in it: what has to be in it is there before the machine freezes,
    /// and whoever relies on that is a participant.
    ///
    /// # Errors
    /// EOPNOTSUPP where luod does not have `/dev/liveupdate`; the error says why. EBUSY while the
    /// machine is frozen; EEXIST where somebody else has a kernel session of that name.
    pub fn kernel_session(&self) -> Result<KernelSession, Error> {
        now(self.client.kernel_session())
    }

    /// The kernel session that this session's owner has filled in the kernel before; until the end of
    /// the machine's update ([`Manager::finish`](crate::Manager::finish)), which frees what was not
    /// retrieved by then. The end of this session's own update does not touch it. It is found by the
    /// name of the session and its owner: where nothing but that crossed, the session is made anew.
    ///
    /// # Errors
    /// ENOENT where none came; EOPNOTSUPP as [`kernel_session`](Self::kernel_session).
    pub fn arrived_kernel_session(&self) -> Result<ArrivedKernelSession, Error> {
        now(self.client.arrived_kernel_session())
    }

    /// luod lets go of the kernel session that [`kernel_session`](Self::kernel_session) made, if any:
    /// the kernel takes out what is in it when the caller has dropped its own.
    ///
    /// # Errors
    /// See the type.
    pub fn release_kernel_session(&self) -> Result<(), Error> {
        now(self.client.release_kernel_session())
    }

    /// Takes a file out: luod closes its duplicate.
    ///
    /// # Errors
    /// ENOENT if there is no such token, EBUSY in a wrong state.
    pub fn unpreserve(&self, token: u64) -> Result<(), Error> {
        now(self.client.unpreserve(token))
    }

    /// Takes many files out; gives those that were refused, each with its token.
    ///
    /// # Errors
    /// As [`preserve_many`](Self::preserve_many).
    pub fn unpreserve_many(&self, tokens: &[u64]) -> Result<Vec<Refusal>, Error> {
        now(self.client.unpreserve_many(tokens))
    }

    /// Takes a file back. Any number of times, in any order, until [`finish`](Self::finish).
    ///
    /// # Errors
    /// EBUSY if the session is not updated, ENOENT if no such file came over, and the error of a
    /// file that could not be restored: it is the same each time, and harms no other file.
    pub fn retrieve(&self, token: u64) -> Result<OwnedFd, Error> {
        now(self.client.retrieve(token))
    }

    /// Takes many files back, in the order of the tokens: each or the reason why not. Any number:
    /// they come in messages of up to 253. They are close-on-exec.
    ///
    /// # Errors
    /// [`Error::Refused`] if all were refused for the same reason. After another error the files that
    /// had come are closed again; they can be retrieved anew. [`Error::Wire`] if this process may
    /// not open as many.
    pub fn retrieve_many(&self, tokens: &[u64]) -> Result<Vec<Recalled>, Error> {
        now(self.client.retrieve_many(tokens))
    }

    /// Takes many files back one after the other, in the order of the tokens, each as soon as it is
    /// there. Where memory has to be copied back, the first file can be used while those after it
    /// are still being copied; files that are quick come faster with
    /// [`retrieve_many`](Self::retrieve_many).
    ///
    /// # Errors
    /// [`Error::Protocol`] where a request cannot be written; everything else comes with its file.
    pub fn retrieve_each(&self, tokens: &[u64]) -> Result<Retrieval<'_>, Error> {
        Ok(Retrieval { client: self.client.retrieve_each(tokens)? })
    }

    /// Keeps all that can be kept while the workload runs, ahead of the machine.
    ///
    /// # Errors
    /// EBUSY in a wrong state, and what a handler says; everything is then as it was before.
    pub fn prepare(&self) -> Result<(), Error> {
        now(self.client.prepare())
    }

    /// Keeps the rest: from here nothing of the session's files may change.
    ///
    /// # Errors
    /// As [`prepare`](Self::prepare); the session is `normal` then.
    pub fn freeze(&self) -> Result<(), Error> {
        now(self.client.freeze())
    }

    /// Undoes [`prepare`](Self::prepare) and [`freeze`](Self::freeze).
    ///
    /// # Errors
    /// EBUSY in a wrong state.
    pub fn cancel(&self) -> Result<(), Error> {
        now(self.client.cancel())
    }

    /// Ends the live update: what was retrieved belongs to this process alone again. To have it
    /// kept over the next update as well, use [`finish_and_carry`](Self::finish_and_carry).
    ///
    /// # Errors
    /// EBUSY if a file was not retrieved, or a handler cannot finish yet; nothing was finished
    /// then.
    pub fn finish(&self) -> Result<(), Error> {
        self.finish_with(Unclaimed::Refuse, false)
    }

    /// Ends the live update; the files that were retrieved are preserved for the next one under
    /// their tokens, without being given again.
    ///
    /// # Errors
    /// As [`finish`](Self::finish).
    pub fn finish_and_carry(&self) -> Result<(), Error> {
        self.finish_with(Unclaimed::Refuse, true)
    }

    /// As [`finish`](Self::finish), and says what becomes of files that were not retrieved.
    ///
    /// # Errors
    /// As [`finish`](Self::finish).
    pub fn finish_with(&self, unclaimed: Unclaimed, carry_reclaimed: bool) -> Result<(), Error> {
        now(self.client.finish(unclaimed, carry_reclaimed))
    }

    /// Ends the session at once: luod lets go of its files.
    ///
    /// # Errors
    /// EBUSY while the machine's update holds it.
    pub fn release(self) -> Result<(), Error> {
        now(self.client.release())
    }
}

/// Files that come back one by one, from [`Session::retrieve_each`]: each with its token, or the
/// reason why it has not come.
///
/// Every wait for the next file has the deadline of the session. Of a file that was refused the
/// error is [`Error::Refused`], as from [`Session::retrieve`], and the next one follows; any other
/// error is the last item, and the files that have not come can be retrieved anew.
#[derive(Debug)]
pub struct Retrieval<'session> {
    client: client::Retrieval<'session, Blocking>,
}

impl Iterator for Retrieval<'_> {
    type Item = (u64, Result<OwnedFd, Error>);

    fn next(&mut self) -> Option<Self::Item> {
        now(self.client.next())
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        // An error may end it with the next one.
        let left = self.client.left();
        (left.min(1), Some(left))
    }
}

impl std::iter::FusedIterator for Retrieval<'_> {}
