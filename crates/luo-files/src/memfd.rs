//! `memfd-v1`: memory files of `memfd_create(2)`, by keeping their memory.
//!
//! Kept: content, size, seals, file position, access mode (read-write or read-only), the status
//! flags O_APPEND, O_NONBLOCK and O_NOATIME.
//!
//! Reset: FD_CLOEXEC (it is set), owner, mode and times, locks, leases, what `F_SETOWN` and its
//! like have set, mappings. The name (`/proc/PID/fd` shows it) where the carrier makes the memory
//! anew: it is recorded, and given to a file that was empty.
//!
//! Refused, with a reason: huge pages (no carrier of another kernel keeps them), files open for
//! writing only, seals that this version does not know.
//!
//! Invariants:
//! - `prepare` keeps the memory, and its data is the handle of that, or zero for an empty file;
//!   `freeze` brings the memory up to date and keeps the record, and its data is the record's
//!   handle.
//! - What is retrieved has the recorded size and seals, no more and no fewer, or it is an error.

use std::fs::File as StdFile;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;

use luo_abi::record::{MEMFD_COMPATIBLE, MEMFD_KNOWN_SEALS, MEMFD_NAME_MAX, MemfdRecord};
use luo_carriers::{HostFile, MemoryKind};
use luo_core::{Caps, Errno, Failure, Handle, Handler, Keep, Recall};
use rustix::fs::{
    MemfdFlags, Mode, OFlags, SealFlags, SeekFrom, fcntl_add_seals, fcntl_get_seals, fcntl_getfl,
    fcntl_setfl, fstat, ftruncate, memfd_create, open, seek, tell,
};

/// The status flags that are kept, with the record's.
const STATUS: [(OFlags, u32); 3] = [
    (OFlags::APPEND, MemfdRecord::APPEND),
    (OFlags::NONBLOCK, MemfdRecord::NONBLOCK),
    (OFlags::NOATIME, MemfdRecord::NOATIME),
];

/// Takes memfds, where the carrier can keep memory.
#[derive(Debug, Clone, Copy, Default)]
pub struct MemfdHandler;

impl Handler<HostFile> for MemfdHandler {
    fn compatible(&self) -> &str {
        MEMFD_COMPATIBLE
    }

    fn requires(&self) -> Caps {
        Caps::MEMORY | Caps::BYTES
    }

    /// Memory files without a path: memfds, and files of tmpfs that have been unlinked, which are
    /// the same. Those of huge pages are taken too, to be refused with a reason.
    fn can_preserve(&self, file: &HostFile) -> bool {
        matches!(file.memory(), Ok(Some(_)))
            && fstat(file).is_ok_and(|stat| stat.st_nlink == 0)
            && fcntl_get_seals(file).is_ok()
    }

    fn prepare(&self, file: &HostFile, keep: &dyn Keep<HostFile>) -> Result<u64, Failure> {
        // Whatever freeze would refuse is refused here, while nothing has stopped yet.
        let size = describe(file)?.size;
        if size == 0 { Ok(0) } else { keep.keep_memory(file, size).map(|handle| handle.0) }
    }

    fn freeze(
        &self,
        file: &HostFile,
        data: u64,
        keep: &dyn Keep<HostFile>,
    ) -> Result<u64, Failure> {
        let mut record = describe(file)?;
        record.memory = match (data, record.size) {
            (0, 0) => 0,
            (0, size) => keep.keep_memory(file, size)?.0,
            (handle, 0) => {
                keep.forget(Handle(handle));
                0
            }
            (handle, size) => {
                keep.refresh_memory(Handle(handle), file, size)?;
                handle
            }
        };
        let bytes = record.encode().map_err(|error| {
            Failure::new(Errno::Inval, "the memfd cannot be described").because(error)
        })?;
        keep.keep_bytes(&bytes).map(|handle| handle.0)
    }

    fn retrieve(&self, data: u64, recall: &dyn Recall<HostFile>) -> Result<HostFile, Failure> {
        let record = read(data, recall)?;
        let memory = match record.memory {
            0 => HostFile::from(empty(&record)?),
            handle => recall.memory(Handle(handle))?,
        };
        restore(memory, &record)
    }

    fn finish(
        &self,
        _file: Option<&HostFile>,
        data: u64,
        _reclaimed: bool,
        recall: &dyn Recall<HostFile>,
    ) {
        // A record that cannot be read names no memory; the rest of the carrier is not harmed.
        if let Ok(record) = read(data, recall)
            && record.memory != 0
        {
            recall.release(Handle(record.memory));
        }
        recall.release(Handle(data));
    }
}

fn system(what: &'static str) -> impl Fn(rustix::io::Errno) -> Failure {
    move |errno| {
        let error = std::io::Error::from(errno);
        Failure::new(Errno::from_raw(errno.raw_os_error()), format!("{what}: {error}"))
            .because(error)
    }
}

/// The record of a file as it is now, without its memory.
fn describe(file: &HostFile) -> Result<MemfdRecord, Failure> {
    let failed = system("the memfd cannot be looked at");
    let unsupported = |reason: String| Err(Failure::new(Errno::OpNotSupp, reason));
    match file.memory() {
        Ok(Some(MemoryKind::Shmem)) => {}
        Ok(Some(MemoryKind::Hugetlb)) => {
            return unsupported(
                "the memfd is made of huge pages (MFD_HUGETLB), which memfd-v1 does not keep: use \
                 ordinary pages with transparent huge pages, or a carrier that holds live \
                 descriptors"
                    .into(),
            );
        }
        Ok(None) => return Err(Failure::new(Errno::Inval, "not a memory file")),
        Err(error) => return Err(Failure::new(Errno::Io, "not readable").because(error)),
    }
    let stat = fstat(file).map_err(&failed)?;
    let status = fcntl_getfl(file).map_err(&failed)?;
    let seals = fcntl_get_seals(file).map_err(&failed)?.bits();
    if seals & !MEMFD_KNOWN_SEALS != 0 {
        return unsupported(format!("the memfd has seals that memfd-v1 does not know: {seals:#x}"));
    }
    let mut flags = match status & OFlags::RWMODE {
        OFlags::RDONLY => MemfdRecord::READ_ONLY,
        OFlags::WRONLY => {
            return unsupported("the memfd is open for writing only: give one that reads".into());
        }
        _ => 0,
    };
    for (flag, recorded) in STATUS {
        if status.contains(flag) {
            flags |= recorded;
        }
    }
    Ok(MemfdRecord {
        size: u64::try_from(stat.st_size).unwrap_or(0),
        position: tell(file).map_err(&failed)?,
        memory: 0,
        seals,
        flags,
        name: name(file),
    })
}

/// The name that the file was created with; empty where it cannot be told.
fn name(file: &HostFile) -> Vec<u8> {
    let link = format!("/proc/self/fd/{}", file.as_fd().as_raw_fd());
    let path = std::fs::read_link(link).unwrap_or_default();
    let name = path.as_os_str().as_bytes().strip_prefix(b"/memfd:").unwrap_or_default();
    let name = name.strip_suffix(b" (deleted)").unwrap_or(name);
    name.get(..MEMFD_NAME_MAX).unwrap_or(name).to_vec()
}

fn read(data: u64, recall: &dyn Recall<HostFile>) -> Result<MemfdRecord, Failure> {
    let bytes = recall.bytes(Handle(data))?;
    MemfdRecord::decode(&bytes).map_err(|error| {
        Failure::new(Errno::Inval, format!("the memfd's record is damaged: {error}")).because(error)
    })
}

/// A new empty file under the recorded name.
fn empty(record: &MemfdRecord) -> Result<OwnedFd, Failure> {
    let mut flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    if record.seals & SealFlags::EXEC.bits() != 0 {
        // Sealed against execution from the start; on an executable file that seal adds others.
        flags |= MemfdFlags::NOEXEC_SEAL;
    }
    memfd_create(record.name.as_slice(), flags).map_err(system("no new memfd"))
}

/// Gives the memory what the record says.
fn restore(memory: HostFile, record: &MemfdRecord) -> Result<HostFile, Failure> {
    let failed = system("the memfd cannot be restored");
    let differs = |what: &str| {
        Err(Failure::new(Errno::Inval, format!("the memory that came back differs: {what}")))
    };
    let size = u64::try_from(fstat(&memory).map_err(&failed)?.st_size).unwrap_or(0);
    if size < record.size {
        return differs(&format!("{size} bytes instead of {}", record.size));
    }
    if size > record.size {
        // A carrier may round up to pages.
        ftruncate(&memory, record.size).map_err(&failed)?;
    }
    let present = fcntl_get_seals(&memory).map_err(&failed)?.bits();
    if present & !record.seals != 0 {
        return differs(&format!("seals {present:#x} instead of {:#x}", record.seals));
    }
    let missing = SealFlags::from_bits_retain(record.seals & !present);
    if !missing.is_empty() {
        fcntl_add_seals(&memory, missing).map_err(&failed)?;
    }
    let seals = fcntl_get_seals(&memory).map_err(&failed)?.bits();
    if seals != record.seals {
        return differs(&format!("seals {seals:#x} instead of {:#x}", record.seals));
    }
    let status = fcntl_getfl(&memory).map_err(&failed)?;
    let read_only = record.flags & MemfdRecord::READ_ONLY != 0;
    let access = if read_only { OFlags::RDONLY } else { OFlags::RDWR };
    let file = if status & OFlags::RWMODE == access {
        memory
    } else {
        let path = format!("/proc/self/fd/{}", memory.as_fd().as_raw_fd());
        let again = open(path, access | OFlags::CLOEXEC, Mode::empty()).map_err(&failed)?;
        HostFile::from(OwnedFd::from(StdFile::from(again)))
    };
    let mut wanted = fcntl_getfl(&file).map_err(&failed)?;
    for (flag, recorded) in STATUS {
        wanted.set(flag, record.flags & recorded != 0);
    }
    fcntl_setfl(&file, wanted).map_err(&failed)?;
    seek(&file, SeekFrom::Start(record.position)).map_err(&failed)?;
    Ok(file)
}
