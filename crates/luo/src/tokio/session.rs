//! Sessions, for tokio.

use std::os::fd::{AsFd, OwnedFd};

use super::drive::Tokio;
use crate::calls::{self, Recalled, Verdict};
use crate::client;
use crate::error::{Error, Refusal};
use crate::kernel_session::{ArrivedKernelSession, KernelSession};
use crate::options::Options;
use crate::protocol::{Info, Unclaimed};
use luo_sys::Memory;

/// A session. Its methods are those of [`luo::Session`](crate::Session), as futures; what they do,
/// their errors and deadlines are told there.
///
/// Calls of several tasks run side by side, each on a connection of its own. A future that is
/// dropped closes its connection: the request may have taken effect or not, and no other call ever
/// sees its answer.
#[derive(Debug)]
pub struct Session {
    client: client::Session<Tokio>,
}

impl Session {
    /// The session of this name: taken over from the process before, then it is
    /// [`updated`](Self::is_updated), or made anew. See
    /// [`luo::Session::open`](crate::Session::open).
    ///
    /// # Errors
    /// As there.
    pub async fn open(name: &str) -> Result<Self, Error> {
        Self::open_with(name, Options::default()).await
    }

    /// As [`luo::Session::open_with`](crate::Session::open_with).
    ///
    /// # Errors
    /// As there.
    pub async fn open_with(name: &str, options: Options) -> Result<Self, Error> {
        let client = client::Session::open(name, options).await?;
        Ok(Self { client })
    }

    /// As [`luo::Session::connect_or_none`](crate::Session::connect_or_none).
    ///
    /// # Errors
    /// As there.
    pub async fn connect_or_none(name: &str) -> Result<Option<Self>, Error> {
        Self::connect_or_none_with(name, Options::default()).await
    }

    /// As [`luo::Session::connect_or_none_with`](crate::Session::connect_or_none_with).
    ///
    /// # Errors
    /// As there.
    pub async fn connect_or_none_with(name: &str, options: Options) -> Result<Option<Self>, Error> {
        let client = client::Session::open_or_none(name, options).await?;
        Ok(client.map(|client| Self { client }))
    }

    /// Makes a session. See [`luo::Session::create_with`](crate::Session::create_with).
    ///
    /// # Errors
    /// As there.
    pub async fn create_with(name: &str, options: Options) -> Result<Self, Error> {
        let client = client::Session::create(name, options).await?;
        Ok(Self { client })
    }

    /// Takes over a session that nobody holds any more. See
    /// [`luo::Session::claim_with`](crate::Session::claim_with).
    ///
    /// # Errors
    /// As there.
    pub async fn claim_with(name: &str, options: Options) -> Result<Self, Error> {
        let client = client::Session::claim(name, options).await?;
        Ok(Self { client })
    }

    /// A session whose descriptor another process has passed on. See
    /// [`luo::Session::from_descriptor`](crate::Session::from_descriptor).
    ///
    /// # Errors
    /// As there.
    pub async fn from_descriptor(descriptor: OwnedFd) -> Result<Self, Error> {
        Self::from_descriptor_with(descriptor, Options::default()).await
    }

    /// As [`luo::Session::from_descriptor_with`](crate::Session::from_descriptor_with).
    ///
    /// # Errors
    /// As there.
    pub async fn from_descriptor_with(
        descriptor: OwnedFd,
        options: Options,
    ) -> Result<Self, Error> {
        let client = client::Session::from_descriptor(descriptor, options).await?;
        Ok(Self { client })
    }

    /// The session's name. See [`luo::Session::name`](crate::Session::name).
    #[must_use]
    pub fn name(&self) -> &str {
        self.client.name()
    }

    /// A copy of the session's descriptor, to be passed to another process: whoever has it may use
    /// the session. See [`luo::Session::descriptor`](crate::Session::descriptor).
    ///
    /// # Errors
    /// As there.
    pub fn descriptor(&self) -> Result<OwnedFd, Error> {
        self.client.descriptor()
    }

    /// Where the session is in the cycle, and its tokens. See
    /// [`luo::Session::info`](crate::Session::info).
    ///
    /// # Errors
    /// As there.
    pub async fn info(&self) -> Result<Info, Error> {
        self.client.info().await
    }

    /// Whether files came over and wait to be retrieved. See
    /// [`luo::Session::is_updated`](crate::Session::is_updated).
    ///
    /// # Errors
    /// As there.
    pub async fn is_updated(&self) -> Result<bool, Error> {
        self.client.is_updated().await
    }

    /// Gives luod a file to keep under this token. See
    /// [`luo::Session::preserve`](crate::Session::preserve).
    ///
    /// # Errors
    /// As there.
    pub async fn preserve(&self, token: u64, file: impl AsFd) -> Result<(), Error> {
        self.client.preserve(file.as_fd(), Some(token)).await.map(|_| ())
    }

    /// As [`luo::Session::preserve_assigned`](crate::Session::preserve_assigned).
    ///
    /// # Errors
    /// As there.
    pub async fn preserve_assigned(&self, file: impl AsFd) -> Result<u64, Error> {
        self.client.preserve(file.as_fd(), None).await
    }

    /// Keeps a file that is preserved already under one more token. See
    /// [`luo::Session::duplicate`](crate::Session::duplicate).
    ///
    /// # Errors
    /// As there.
    pub async fn duplicate(&self, token: u64, original: u64) -> Result<(), Error> {
        self.client.duplicate(original, Some(token)).await.map(|_| ())
    }

    /// As [`luo::Session::duplicate_assigned`](crate::Session::duplicate_assigned).
    ///
    /// # Errors
    /// As there.
    pub async fn duplicate_assigned(&self, original: u64) -> Result<u64, Error> {
        self.client.duplicate(original, None).await
    }

    /// Gives many files at once, with a verdict for each, in order. See
    /// [`luo::Session::preserve_many`](crate::Session::preserve_many).
    ///
    /// # Errors
    /// As there.
    pub async fn preserve_many<F: AsFd>(&self, files: &[(u64, F)]) -> Result<Vec<Verdict>, Error> {
        let (tokens, files) = calls::split(files);
        self.client.preserve_batch(&files, Some(&tokens), true).await
    }

    /// As [`luo::Session::preserve_all`](crate::Session::preserve_all).
    ///
    /// # Errors
    /// As there.
    pub async fn preserve_all<F: AsFd>(&self, files: &[(u64, F)]) -> Result<(), Error> {
        let (tokens, files) = calls::split(files);
        self.client.preserve_all(&files, &tokens).await
    }

    /// As [`luo::Session::preserve_optional`](crate::Session::preserve_optional).
    ///
    /// # Errors
    /// As there.
    pub async fn preserve_optional<F: AsFd>(
        &self,
        files: &[(u64, F)],
    ) -> Result<Vec<Verdict>, Error> {
        let (tokens, files) = calls::split(files);
        self.client.preserve_batch(&files, Some(&tokens), false).await
    }

    /// Memory that no update copies if that can be. See
    /// [`luo::Session::allocate`](crate::Session::allocate).
    ///
    /// # Errors
    /// As there.
    pub async fn allocate(&self, token: u64, len: u64) -> Result<Memory, Error> {
        self.client.allocate(token, len).await
    }

    /// Takes memory back, and maps it. See
    /// [`luo::Session::retrieve_memory`](crate::Session::retrieve_memory).
    ///
    /// # Errors
    /// As there.
    pub async fn retrieve_memory(&self, token: u64) -> Result<Memory, Error> {
        self.client.retrieve_memory(token).await
    }

    /// A kernel session that the caller fills by itself. See
    /// [`luo::Session::kernel_session`](crate::Session::kernel_session).
    ///
    /// # Errors
    /// As there.
    pub async fn kernel_session(&self) -> Result<KernelSession, Error> {
        self.client.kernel_session().await
    }

    /// The one that was filled in the kernel before. See
    /// [`luo::Session::arrived_kernel_session`](crate::Session::arrived_kernel_session).
    ///
    /// # Errors
    /// As there.
    pub async fn arrived_kernel_session(&self) -> Result<ArrivedKernelSession, Error> {
        self.client.arrived_kernel_session().await
    }

    /// luod lets go of the kernel session. See
    /// [`luo::Session::release_kernel_session`](crate::Session::release_kernel_session).
    ///
    /// # Errors
    /// As there.
    pub async fn release_kernel_session(&self) -> Result<(), Error> {
        self.client.release_kernel_session().await
    }

    /// Takes a file out: luod closes its duplicate. See
    /// [`luo::Session::unpreserve`](crate::Session::unpreserve).
    ///
    /// # Errors
    /// As there.
    pub async fn unpreserve(&self, token: u64) -> Result<(), Error> {
        self.client.unpreserve(token).await
    }

    /// Takes many files out; gives those that were refused, each with its token. See
    /// [`luo::Session::unpreserve_many`](crate::Session::unpreserve_many).
    ///
    /// # Errors
    /// As there.
    pub async fn unpreserve_many(&self, tokens: &[u64]) -> Result<Vec<Refusal>, Error> {
        self.client.unpreserve_many(tokens).await
    }

    /// Takes a file back. See [`luo::Session::retrieve`](crate::Session::retrieve).
    ///
    /// # Errors
    /// As there.
    pub async fn retrieve(&self, token: u64) -> Result<OwnedFd, Error> {
        self.client.retrieve(token).await
    }

    /// Takes many files back, in the order of the tokens: each or the reason why not. See
    /// [`luo::Session::retrieve_many`](crate::Session::retrieve_many).
    ///
    /// # Errors
    /// As there.
    pub async fn retrieve_many(&self, tokens: &[u64]) -> Result<Vec<Recalled>, Error> {
        self.client.retrieve_many(tokens).await
    }

    /// Takes many files back one after the other, each as soon as it is there. See
    /// [`luo::Session::retrieve_each`](crate::Session::retrieve_each).
    ///
    /// # Errors
    /// As there.
    pub fn retrieve_each(&self, tokens: &[u64]) -> Result<Retrieval<'_>, Error> {
        Ok(Retrieval { client: self.client.retrieve_each(tokens)? })
    }

    /// Keeps all that can be kept while the workload runs, ahead of the machine. See
    /// [`luo::Session::prepare`](crate::Session::prepare).
    ///
    /// # Errors
    /// As there.
    pub async fn prepare(&self) -> Result<(), Error> {
        self.client.prepare().await
    }

    /// Keeps the rest: from here nothing of the session's files may change. See
    /// [`luo::Session::freeze`](crate::Session::freeze).
    ///
    /// # Errors
    /// As there.
    pub async fn freeze(&self) -> Result<(), Error> {
        self.client.freeze().await
    }

    /// Undoes [`prepare`](Self::prepare) and [`freeze`](Self::freeze). See
    /// [`luo::Session::cancel`](crate::Session::cancel).
    ///
    /// # Errors
    /// As there.
    pub async fn cancel(&self) -> Result<(), Error> {
        self.client.cancel().await
    }

    /// Ends the live update: what was retrieved belongs to this process alone again. See
    /// [`luo::Session::finish`](crate::Session::finish).
    ///
    /// # Errors
    /// As there.
    pub async fn finish(&self) -> Result<(), Error> {
        self.finish_with(Unclaimed::Refuse, false).await
    }

    /// Ends the live update; the files that were retrieved are preserved for the next one under
    /// their tokens, without being given again. See
    /// [`luo::Session::finish_and_carry`](crate::Session::finish_and_carry).
    ///
    /// # Errors
    /// As there.
    pub async fn finish_and_carry(&self) -> Result<(), Error> {
        self.finish_with(Unclaimed::Refuse, true).await
    }

    /// As [`luo::Session::finish_with`](crate::Session::finish_with).
    ///
    /// # Errors
    /// As there.
    pub async fn finish_with(
        &self,
        unclaimed: Unclaimed,
        carry_reclaimed: bool,
    ) -> Result<(), Error> {
        self.client.finish(unclaimed, carry_reclaimed).await
    }

    /// Ends the session at once: luod lets go of its files. See
    /// [`luo::Session::release`](crate::Session::release).
    ///
    /// # Errors
    /// As there.
    pub async fn release(self) -> Result<(), Error> {
        self.client.release().await
    }
}

/// Files that come back one by one, from [`Session::retrieve_each`]. See
/// [`luo::Retrieval`](crate::Retrieval).
#[derive(Debug)]
pub struct Retrieval<'session> {
    client: client::Retrieval<'session, Tokio>,
}

impl Retrieval<'_> {
    /// The next token and its file, or why it has none; `None` after the last. If the future is
    /// dropped, the next call goes on with the same token.
    pub async fn next(&mut self) -> Option<(u64, Result<OwnedFd, Error>)> {
        self.client.next().await
    }

    /// How many files are still to come, if no error ends it before.
    #[must_use]
    pub fn left(&self) -> usize {
        self.client.left()
    }
}
