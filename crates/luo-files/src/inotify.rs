//! `inotify-v1`: inotify with its watches.
//!
//! Kept: each watch's number (the watch descriptor), what it watches, its mask with IN_ONESHOT and
//! IN_EXCL_UNLINK; O_NONBLOCK. What a watch is on is found as a file of the same session that is on the same inode (one
//! open with O_PATH will do), or else by the file handle that the kernel lists, for which luod needs
//! CAP_DAC_READ_SEARCH, and is watched by its path after the update.
//!
//! Reset: FD_CLOEXEC (it is set), what `F_SETOWN` and its like have set. Events: those that were not read yet, and
//! those of the time in between. So the first event that is read afterwards is the kernel's own IN_Q_OVERFLOW, which
//! says that events were missed, and that whoever wants to know has to look. What has gone by
//! then is told by IN_IGNORED for its watch, as if it went just now.
//!
//! To overflow a queue takes as many events as fit (`fs.inotify.max_queued_events`, 16384 where nobody has changed it),
//! with two system calls each: about 0.1 s in `retrieve`, for each inotify.
//!
//! Refused, with a reason that names the watch: what cannot be found in one of the two ways, or may not be watched by luod;
//! kernels that do not let watches be numbered (without CONFIG_CHECKPOINT_RESTORE).
//!
//! Invariants:
//! - Nothing is watched that is not known to be the same inode.
//! - Looking at an inotify reads no event of it.

use std::cell::{OnceCell, RefCell};
use std::cmp::Ordering;
use std::ffi::{OsStr, OsString};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::{OsStrExt, OsStringExt};

use luo_abi::record::{INOTIFY_COMPATIBLE, InotifyRecord, WatchRecord, WatchTarget};
use luo_carriers::{FileKind, HostFile};
use luo_core::{Bond, Caps, Errno, Failure, Handle, Handler, Keep, Recall, Token};
use rustix::fs::inotify::{self, CreateFlags, WatchFlags};
use rustix::fs::{Mode, OFlags};
use rustix::io::ioctl_fionread;

use crate::anew::{damaged, indescribable};
use crate::fail::{system, unsupported};
use crate::fdinfo::{FdInfo, device_number, is_nonblocking, untold};
use crate::open;
use crate::place::Place;

/// An event without a name: `struct inotify_event`.
const EVENT: u64 = 16;
/// Events that are queued between two looks at how many there are.
const STEP: u64 = 256;
/// The most events that a queue may take (`max_queued_events`).
const QUEUE_MAX: u64 = 1 << 22;
/// What to do about a watch that is not found.
const ADVICE: &str = "preserve a descriptor of what is watched in the same session (O_PATH will do), \
     or give luod CAP_DAC_READ_SEARCH";

/// Takes inotify.
#[derive(Debug, Clone, Copy, Default)]
pub struct InotifyHandler;

impl Handler<HostFile> for InotifyHandler {
    fn compatible(&self) -> &str {
        INOTIFY_COMPATIBLE
    }

    fn requires(&self) -> Caps {
        Caps::BYTES
    }

    fn can_preserve(&self, file: &HostFile) -> bool {
        file.kind() == FileKind::Inotify
    }

    fn refers(&self) -> bool {
        true
    }

    fn prepare(&self, file: &HostFile, keep: &dyn Keep<HostFile>) -> Result<u64, Failure> {
        // What could not be watched again is found while there is still time.
        let trial = new_inotify()?;
        number_next(&trial, 1)?;
        describe(file, keep, Some(&trial)).map(|_| 0)
    }

    fn freeze(
        &self,
        file: &HostFile,
        _data: u64,
        keep: &dyn Keep<HostFile>,
    ) -> Result<u64, Failure> {
        let bytes = describe(file, keep, None)?.encode().map_err(indescribable("the inotify"))?;
        keep.keep_bytes(&bytes).map(|handle| handle.0)
    }

    fn retrieve(&self, data: u64, recall: &dyn Recall<HostFile>) -> Result<HostFile, Failure> {
        let bytes = recall.bytes(Handle(data))?;
        make(&InotifyRecord::decode(&bytes).map_err(damaged("the inotify"))?, recall)
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

/// The watches as they are now; notes the files of the session that they need.
fn describe(
    file: &HostFile,
    keep: &dyn Keep<HostFile>,
    trial: Option<&OwnedFd>,
) -> Result<InotifyRecord, Failure> {
    let info = FdInfo::read(file)?;
    let mounts = OnceCell::new();
    let mut needed = 0;
    let mut watches = Vec::new();
    for line in info.lines("inotify wd") {
        let listed = Listed::parse(line).ok_or_else(|| untold("inotify wd"))?;
        let in_session = listed.in_session(keep).filter(|_| needed < Bond::MAX);
        let (target, anchor) = match in_session {
            Some((token, file)) => {
                keep.need(token)?;
                needed += 1;
                (WatchTarget::File { token: token.0 }, file)
            }
            None => listed.by_handle(mounts.get_or_init(Mounts::read))?,
        };
        let watch = WatchRecord { number: listed.number, mask: listed.mask, target };
        if let Some(trial) = trial {
            add(trial, &anchor, &watch)?;
        }
        watches.push(watch);
    }
    watches.sort_unstable_by_key(|watch| watch.number);
    let unread = ioctl_fionread(file).map_err(system("the inotify cannot be looked at"))?;
    let mut flags = 0;
    if is_nonblocking(file)? {
        flags |= InotifyRecord::NONBLOCK;
    }
    if unread > 0 || !watches.is_empty() {
        flags |= InotifyRecord::MISSED;
    }
    Ok(InotifyRecord { flags, watches })
}

/// A watch, as `fdinfo` lists it.
struct Listed {
    number: u32,
    inode: u64,
    /// As in [`HostFile::identities`].
    device: u64,
    mask: u32,
    /// Type and bytes.
    handle: Option<(i32, Vec<u8>)>,
}

impl Listed {
    /// `1 ino:b6903 sdev:fe00000 mask:100 ignored_mask:0 fhandle-bytes:8 fhandle-type:1 f_handle:03…`
    fn parse(line: &str) -> Option<Self> {
        let mut words = line.split_ascii_whitespace();
        let number = u32::from_str_radix(words.next()?, 16).ok()?;
        let mut fields = std::collections::HashMap::new();
        for word in words {
            let (name, value) = word.split_once(':')?;
            fields.insert(name, value);
        }
        let hex = |name| u64::from_str_radix(fields.get(name)?, 16).ok();
        let handle = fields.get("f_handle").and_then(|text| {
            let bytes: Option<Vec<u8>> = text
                .as_bytes()
                .chunks(2)
                .map(|pair| u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok())
                .collect();
            Some((i32::try_from(hex("fhandle-type")?).ok()?, bytes?))
        });
        Some(Self {
            number,
            inode: hex("ino")?,
            device: device_number(fields.get("sdev")?)?,
            mask: u32::try_from(hex("mask")?).ok()?,
            handle,
        })
    }

    /// A file of the session on the same inode. While the watch is there, the inode is.
    fn in_session(&self, keep: &dyn Keep<HostFile>) -> Option<(Token, HostFile)> {
        let found = RefCell::new(None);
        let any = |file: &HostFile| {
            found.replace(Some(file.clone()));
            Ordering::Equal
        };
        let token = HostFile::identities(self.device, self.inode)
            .filter(|identities| identities.start() == identities.end())
            .find_map(|identities| keep.find(*identities.start(), &any))?;
        Some((token, found.into_inner()?))
    }

    /// What the kernel's handle leads to.
    fn by_handle(&self, mounts: &Mounts) -> Result<(WatchTarget, HostFile), Failure> {
        let mut failure =
            self.lost("its file system is not mounted where luod sees it, or has no handles");
        let Some((kind, bytes)) = &self.handle else { return Err(failure) };
        for mount in mounts.of(self.device) {
            let file = match luo_sys::open_by_handle(&mount, *kind, bytes) {
                Ok(file) => HostFile::from(file),
                Err(error) => {
                    failure = self.lost(&error.to_string());
                    continue;
                }
            };
            match Place::of(&file, ADVICE) {
                Ok((place, _)) => {
                    let target = WatchTarget::Path {
                        device: place.device,
                        inode: place.inode,
                        filesystem: place.filesystem,
                        born: place.born,
                        path: place.path,
                    };
                    return Ok((target, file));
                }
                Err(error) => failure = self.lost(error.reason()),
            }
        }
        Err(failure)
    }

    fn lost(&self, why: &str) -> Failure {
        let (number, inode) = (self.number, self.inode);
        unsupported(format!(
            "what watch {number} is on (inode {inode}) is not in the session, and cannot be found by \
             its handle: {why}; {ADVICE}"
        ))
    }
}

/// Which file system is mounted where.
struct Mounts(Vec<(u64, OsString)>);

impl Mounts {
    /// Those that luod sees; none where that cannot be read.
    fn read() -> Self {
        let text = std::fs::read("/proc/self/mountinfo").unwrap_or_default();
        let mut mounts: Vec<_> = text.split(|byte| *byte == b'\n').filter_map(mount).collect();
        // Those of whole file systems first: everything has a path there.
        mounts.sort_by_key(|(whole, ..)| !whole);
        Self(mounts.into_iter().map(|(_, device, path)| (device, path)).collect())
    }

    fn of(&self, device: u64) -> impl Iterator<Item = OwnedFd> + '_ {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        self.0
            .iter()
            .filter(move |(of, _)| *of == device)
            .filter_map(move |(_, path)| rustix::fs::open(path, flags, Mode::empty()).ok())
    }
}

/// `36 35 98:0 /root /mnt/point rw,noatime …`: whether it is a whole file system, which, and where.
fn mount(line: &[u8]) -> Option<(bool, u64, OsString)> {
    let mut words = line.split(|byte| *byte == b' ');
    let (major, minor) = std::str::from_utf8(words.nth(2)?).ok()?.split_once(':')?;
    let device = major.parse::<u64>().ok()? << 32 | minor.parse::<u64>().ok()?;
    let whole = words.next()? == b"/";
    // Blanks and the like are there as \040.
    let mut path = Vec::new();
    let mut rest = words.next()?;
    while let Some((byte, behind)) = rest.split_first() {
        let octal = behind.get(..3).filter(|_| *byte == b'\\');
        let escaped =
            octal.and_then(|digits| u8::from_str_radix(std::str::from_utf8(digits).ok()?, 8).ok());
        path.push(escaped.unwrap_or(*byte));
        rest = if escaped.is_some() { behind.get(3..)? } else { behind };
    }
    Some((whole, device, OsString::from_vec(path)))
}

fn new_inotify() -> Result<OwnedFd, Failure> {
    inotify::init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK).map_err(system("no new inotify"))
}

fn number_next(inotify: &OwnedFd, number: u32) -> Result<(), Failure> {
    let number = i32::try_from(number).unwrap_or(1);
    luo_sys::set_next_watch(inotify, number).map_err(system(
        "watches cannot be given their numbers (the kernel needs CONFIG_CHECKPOINT_RESTORE)",
    ))
}

fn add(inotify: &OwnedFd, file: &HostFile, watch: &WatchRecord) -> Result<u32, Failure> {
    let flags = WatchFlags::from_bits_retain(watch.mask);
    let number = inotify::add_watch(inotify, open::link(file), flags)
        .map_err(system(format_args!("watch {} cannot be set", watch.number).to_string()))?;
    Ok(number as u32)
}

fn make(record: &InotifyRecord, recall: &dyn Recall<HostFile>) -> Result<HostFile, Failure> {
    let mut found = Vec::with_capacity(record.watches.len());
    for watch in &record.watches {
        found.push(match &watch.target {
            WatchTarget::File { token } => Some(recall.file(Token(*token))?),
            WatchTarget::Path { device, inode, filesystem, born, path } => {
                let (device, inode, filesystem, born) = (*device, *inode, *filesystem, *born);
                let place = Place { device, inode, filesystem, born, path: path.clone() };
                match place.find_any() {
                    Ok((file, _)) => Some(file),
                    Err(failure) if failure.errno() == Errno::NoEnt => None,
                    Err(failure) => return Err(failure),
                }
            }
        });
    }
    let inotify = new_inotify()?;
    if record.flags & InotifyRecord::MISSED != 0 {
        overflow(&inotify)?;
    }
    let mut next = 1;
    // What is not there any more first: it is told by a watch on something else for a moment.
    for (watch, _) in record.watches.iter().zip(&found).filter(|(_, file)| file.is_none()) {
        number_next(&inotify, watch.number)?;
        ignored(&inotify)?;
        next = next.max(watch.number.saturating_add(1));
    }
    for (watch, file) in record.watches.iter().zip(&found) {
        let Some(file) = file else { continue };
        number_next(&inotify, watch.number)?;
        let number = add(&inotify, file, watch)?;
        if number != watch.number {
            let wanted = watch.number;
            let reason = format!("watch {wanted} has the number {number}: two are on one file");
            return Err(Failure::new(Errno::Inval, reason));
        }
        next = next.max(watch.number.saturating_add(1));
    }
    // New ones have numbers after these.
    if i32::try_from(next).is_ok() {
        number_next(&inotify, next)?;
    }
    rustix::io::ioctl_fionbio(&inotify, record.flags & InotifyRecord::NONBLOCK != 0)
        .map_err(system("the inotify's flags cannot be set"))?;
    Ok(HostFile::from(inotify))
}

/// Queues IN_IGNORED for the watch that is added next.
fn ignored(inotify: &OwnedFd) -> Result<(), Failure> {
    let failed = system("a watch cannot be set for a moment");
    // Nothing but its own end can happen to this one.
    let root = OsStr::from_bytes(b"/");
    let watch = inotify::add_watch(inotify, root, WatchFlags::DELETE_SELF).map_err(&failed)?;
    inotify::remove_watch(inotify, watch).map_err(&failed)
}

/// Has IN_Q_OVERFLOW queued in a new inotify, and nothing else: the kernel does that when the queue is
/// full, and what it was full of is read.
fn overflow(inotify: &OwnedFd) -> Result<(), Failure> {
    let failed = system("the inotify's queue cannot be looked at");
    let mut queued = 0;
    loop {
        for _ in 0..STEP {
            ignored(inotify)?;
        }
        let now = ioctl_fionread(inotify).map_err(&failed)?;
        if now < queued + STEP * EVENT {
            queued = now;
            break;
        }
        queued = now;
        if queued > QUEUE_MAX * EVENT {
            let reason = "fs.inotify.max_queued_events is larger than 4194304: lower it";
            return Err(Failure::new(Errno::NoSpc, reason));
        }
    }
    // The last one stays.
    let mut left = queued.saturating_sub(EVENT);
    let mut bytes = vec![0; 1 << 16];
    while left > 0 {
        let most = usize::try_from(left).map_or(bytes.len(), |left| left.min(bytes.len()));
        let room = bytes.get_mut(..most).unwrap_or_default();
        let read = rustix::io::read(inotify, room).map_err(&failed)?;
        left = left.saturating_sub(read as u64);
    }
    match ioctl_fionread(inotify).map_err(&failed)? {
        EVENT => Ok(()),
        rest => {
            let reason = format!("{rest} bytes of events where one event was expected");
            Err(Failure::new(Errno::Io, reason))
        }
    }
}
