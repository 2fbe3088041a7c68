//! `mqueue-v1`: POSIX message queues.
//!
//! Kept: the queue's name, what it has room for, owner, group and permissions; the messages that
//! nobody has received, with their priorities, in their order; of each descriptor access mode and
//! O_NONBLOCK. Over an update within one boot the queue is where it is, in the kernel, with what is in
//! it; in another kernel it is made anew.
//!
//! Reset: FD_CLOEXEC (it is set), who is to be told of a message (`mq_notify`), times, whose limit
//! (`RLIMIT_MSGQUEUE`) it counts for: luod's.
//!
//! Refused, with a reason: queues whose name is removed, or that are in another IPC namespace than
//! luod's; one that is full, since somebody may wait to send to it; one with messages of which
//! somebody wants to be told, who would be told once more; O_PATH.
//!
//! Messages can only be looked at by receiving them. In `freeze` they are received and at once sent
//! again, in their order, so that the queue is what it was in a cancelled update, and in one that
//! stays in this boot. Who uses the queue stands still by then: what is sent or received meanwhile
//! is the failure of this file, and no message is lost by it as long as there is room for all of them.
//!
//! Invariants:
//! - Of the open file descriptions of one queue in one session the one with the smallest token has
//!   the messages, and is retrieved first.
//! - A message that was received here is in the queue again before anything else is done.

use std::ffi::CString;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;
use std::time::Duration;

use luo_abi::record::{MQUEUE_COMPATIBLE, MqueueRecord, OpenFlags};
use luo_carriers::{FileKind, HostFile, boot_id};
use luo_core::{Caps, Errno, Failure, Handle, Handler, Keep, Recall};
use luo_sys::{QueueAttributes, QueueMessage};
use rustix::fs::{Gid, Mode, Uid, fchmod, fchown, fstat, fstatfs};

use crate::anew::{damaged, indescribable};
use crate::fail::{system, unsupported};
use crate::{open, siblings};

/// `MQUEUE_MAGIC` of the kernel's `ipc/mqueue.c`.
const MAGIC: u64 = 0x1980_0202;
/// The most open file descriptions of one queue in one session.
const ENDS_MAX: usize = 4096;
/// How long a message waits for room when it is put back, where somebody has taken that.
const PATIENCE: Duration = Duration::from_secs(2);

/// Takes POSIX message queues.
#[derive(Debug, Clone, Copy, Default)]
pub struct MqueueHandler;

impl Handler<HostFile> for MqueueHandler {
    fn compatible(&self) -> &str {
        MQUEUE_COMPATIBLE
    }

    fn requires(&self) -> Caps {
        Caps::BYTES
    }

    fn can_preserve(&self, file: &HostFile) -> bool {
        file.kind() == FileKind::Regular
            && fstatfs(file).is_ok_and(|system| system.f_type as u64 == MAGIC)
    }

    fn refers(&self) -> bool {
        true
    }

    fn prepare(&self, file: &HostFile, keep: &dyn Keep<HostFile>) -> Result<u64, Failure> {
        let others = siblings::others(file, keep, ENDS_MAX)?;
        Queue::find(file)?.check()?;
        siblings::tie(&others, keep)?;
        Ok(0)
    }

    fn freeze(
        &self,
        file: &HostFile,
        _data: u64,
        keep: &dyn Keep<HostFile>,
    ) -> Result<u64, Failure> {
        let others = siblings::others(file, keep, ENDS_MAX)?;
        let queue = Queue::find(file)?;
        let (maker, messages) = match siblings::maker(&others, keep) {
            Some(maker) => (maker.0, Vec::new()),
            None => (0, queue.look()?),
        };
        let stat = fstat(file).map_err(failed())?;
        let record = MqueueRecord {
            maker,
            boot: boot_id(),
            uid: stat.st_uid,
            gid: stat.st_gid,
            mode: stat.st_mode & 0o7777,
            most: queue.attributes.most,
            largest: queue.attributes.largest,
            open: queue.open,
            name: queue.name.into_bytes(),
            messages: messages.into_iter().map(|one| (one.priority, one.bytes)).collect(),
        };
        let bytes = record.encode().map_err(indescribable("the message queue"))?;
        keep.keep_bytes(&bytes).map(|handle| handle.0)
    }

    fn retrieve(&self, data: u64, recall: &dyn Recall<HostFile>) -> Result<HostFile, Failure> {
        let bytes = recall.bytes(Handle(data))?;
        let record = MqueueRecord::decode(&bytes).map_err(damaged("the message queue"))?;
        make(record)
    }

    fn finish(
        &self,
        _file: Option<&HostFile>,
        data: u64,
        _reclaimed: bool,
        recall: &dyn Recall<HostFile>,
    ) {
        recall.release(Handle(data));
    }
}

fn failed() -> impl Fn(rustix::io::Errno) -> Failure {
    system("the message queue cannot be looked at")
}

/// A queue, found by its name.
struct Queue {
    name: CString,
    open: OpenFlags,
    /// A descriptor of luod's own, for both.
    own: OwnedFd,
    attributes: QueueAttributes,
}

impl Queue {
    fn find(file: &HostFile) -> Result<Self, Failure> {
        let open = open::flags(file)?;
        if open.has(OpenFlags::PATH) {
            return Err(unsupported(
                "a message queue that is open as a path (O_PATH): open it anew",
            ));
        }
        let path = std::fs::read_link(open::link(file))
            .map_err(system("the message queue's name cannot be read"))?;
        let unknown = || {
            unsupported(format!(
                "the message queue cannot be found under its name ({}): that was removed, or is in \
                 another IPC namespace than luod's; receive what is in it before the update",
                path.display()
            ))
        };
        // Of a file system of queues that is mounted it is the path there.
        let name = path.file_name().ok_or_else(unknown)?.to_owned().into_vec();
        let name = CString::new([b"/", &name[..]].concat()).map_err(|_| unknown())?;
        let own =
            luo_sys::open_queue(&name, true, true).map_err(|error| unknown().because(error))?;
        let number = |file: &dyn AsFd| -> Result<_, Failure> {
            let stat = fstat(file.as_fd()).map_err(failed())?;
            Ok((stat.st_dev, stat.st_ino))
        };
        if number(&own)? != number(file)? {
            return Err(unknown());
        }
        let attributes = luo_sys::queue_attributes(&own)
            .map_err(system("the message queue cannot be looked at"))?;
        Ok(Self { name, open, own, attributes })
    }

    /// Sees that its messages can be looked at.
    fn check(&self) -> Result<(), Failure> {
        if self.attributes.waiting == 0 {
            return Ok(());
        }
        if self.attributes.waiting >= self.attributes.most {
            return Err(unsupported(
                "the message queue is full, and somebody may wait to send to it: receive a message \
                 before the update",
            ));
        }
        let mut text = [0; 128];
        let len = rustix::io::pread(&self.own, &mut text, 0).map_err(failed())?;
        // QSIZE:129        NOTIFY:2     SIGNO:0     NOTIFY_PID:8260
        let text = String::from_utf8_lossy(text.get(..len).unwrap_or_default()).into_owned();
        let nobody = text.split_ascii_whitespace().any(|word| word == "NOTIFY_PID:0");
        if nobody {
            return Ok(());
        }
        Err(unsupported(
            "somebody wants to be told of messages of the queue (mq_notify), and there are some: \
             receive them before the update",
        ))
    }

    /// What is in it, which is there again afterwards.
    fn look(&self) -> Result<Vec<QueueMessage>, Failure> {
        self.check()?;
        let mut messages = Vec::new();
        let mut failure = None;
        // At most as many as there were: what is sent meanwhile stays behind them.
        for _ in 0..self.attributes.waiting {
            match luo_sys::take_message(&self.own, self.attributes.largest) {
                Ok(Some(message)) => messages.push(message),
                Ok(None) => break,
                Err(error) => {
                    failure = Some(system("a message cannot be received")(error));
                    break;
                }
            }
        }
        let lost = self.put_back(&messages);
        if lost > 0 {
            return Err(Failure::new(
                Errno::Io,
                format!(
                    "{lost} messages of the queue could not be put back, since somebody has filled it \
                     meanwhile: who uses a queue must stand still from freeze on"
                ),
            ));
        }
        if let Some(failure) = failure {
            return Err(failure);
        }
        let now = luo_sys::queue_attributes(&self.own)
            .map_err(system("the message queue cannot be looked at"))?;
        if messages.len() != self.attributes.waiting as usize
            || now.waiting != self.attributes.waiting
        {
            let reason = "the message queue changed while it was looked at: who uses it must stand \
                          still from freeze on";
            return Err(Failure::new(Errno::Busy, reason));
        }
        Ok(messages)
    }

    /// Sends them again; gives how many had no room.
    fn put_back(&self, messages: &[QueueMessage]) -> usize {
        let mut lost = 0;
        // The one description of luod's own may wait.
        let _ = rustix::fs::fcntl_setfl(&self.own, rustix::fs::OFlags::empty());
        for message in messages {
            // One that found no room leaves no patience for the next.
            let patience = if lost == 0 { PATIENCE } else { Duration::ZERO };
            lost += usize::from(luo_sys::put_message(&self.own, message, patience).is_err());
        }
        lost
    }
}

fn make(record: MqueueRecord) -> Result<HostFile, Failure> {
    let shown = String::from_utf8_lossy(&record.name).into_owned();
    let name = CString::new(&record.name[..])
        .map_err(|_| Failure::new(Errno::Inval, "a queue's name has a zero byte"))?;
    let failed = not_again(&shown);
    let made = match record.maker {
        0 => luo_sys::make_queue(&name, record.mode, record.most, record.largest).map(Some),
        _ => Ok(None),
    };
    let made = match made {
        Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => None,
        made => made.map_err(system(format!(
            "the message queue {shown} cannot be made again (see /proc/sys/fs/mqueue, and \
             LimitMSGQUEUE= of luod's unit)"
        )))?,
    };
    let is_new = made.is_some();
    let queue = match made {
        Some(queue) => queue,
        None => luo_sys::open_queue(&name, true, true).map_err(&failed)?,
    };
    if let Err(failure) = fill(&queue, is_new, &record, &shown) {
        if is_new {
            // Nobody else has seen it yet.
            let _ = luo_sys::remove_queue(&name);
        }
        return Err(failure);
    }
    let (read, write) = (record.open.has(OpenFlags::READ), record.open.has(OpenFlags::WRITE));
    let file = luo_sys::open_queue(&name, read, write).map_err(&failed)?;
    open::set_status(&file, record.open)?;
    Ok(HostFile::from(file))
}

fn not_again(shown: &str) -> impl Fn(std::io::Error) -> Failure {
    system(format!("the message queue {shown} cannot be made again"))
}

/// Sees that it is that queue, and puts into it what was in it where it is not there still.
fn fill(queue: &OwnedFd, is_new: bool, record: &MqueueRecord, shown: &str) -> Result<(), Failure> {
    let found = luo_sys::queue_attributes(queue).map_err(not_again(shown))?;
    // Another user's would be given what was in it.
    let stranger = !is_new && fstat(queue).map_err(failed())?.st_uid != record.uid;
    if stranger || (found.most, found.largest) != (record.most, record.largest) {
        let reason = format!("{shown} is another message queue than the one that was kept");
        return Err(Failure::new(Errno::NoEnt, reason));
    }
    if is_new {
        let refused = system(format!("the message queue {shown} cannot have its owner again"));
        let (uid, gid) = (Uid::from_raw(record.uid), Gid::from_raw(record.gid));
        fchown(queue, Some(uid), Some(gid)).map_err(&refused)?;
        fchmod(queue, Mode::from_raw_mode(record.mode)).map_err(&refused)?;
    }
    // In the same boot it has never been away.
    let stayed = !is_new && record.boot == boot_id() && record.boot != [0; 16];
    if stayed || record.maker != 0 {
        return Ok(());
    }
    for (priority, bytes) in &record.messages {
        let message = QueueMessage { priority: *priority, bytes: bytes.clone() };
        luo_sys::put_message(queue, &message, Duration::ZERO).map_err(not_again(shown))?;
    }
    Ok(())
}
