//! Inotify with its watches through a whole update with a carrier that copies.

mod common;

use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};

use common::{Before, Copier, across, refusal};
use luo_core::{Errno, Event, Handler};
use luo_files::InotifyHandler;
use rustix::fs::inotify::{self, CreateFlags, WatchFlags, add_watch, remove_watch};
use rustix::fs::{Mode, OFlags};

/// What an event says.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Told(i32, u32, String);

const OVERFLOW: Told = Told(-1, 0x4000, String::new());

fn watcher() -> OwnedFd {
    inotify::init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK).unwrap()
}

fn opened(path: &Path) -> OwnedFd {
    rustix::fs::open(path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty()).unwrap()
}

/// The events that are there now.
fn told(watcher: &OwnedFd) -> Vec<Told> {
    let mut buffer = [std::mem::MaybeUninit::uninit(); 4096];
    let mut reader = inotify::Reader::new(watcher, &mut buffer);
    let mut all = Vec::new();
    while let Ok(event) = reader.next() {
        let name = event.file_name().map_or_else(String::new, |name| name.to_str().unwrap().into());
        all.push(Told(event.wd(), event.events().bits(), name));
    }
    all
}

/// Number, inode and mask of each watch, as the kernel lists them.
fn watches(watcher: &OwnedFd) -> Vec<String> {
    let path = format!("/proc/self/fdinfo/{}", watcher.as_fd().as_raw_fd());
    let text = std::fs::read_to_string(path).unwrap();
    let mut all: Vec<String> = text
        .lines()
        .filter(|line| line.starts_with("inotify"))
        .map(|line| line.split(" ignored").next().unwrap().to_owned())
        .collect();
    all.sort();
    all
}

/// A directory with two in it, and a file.
struct Place(tempfile::TempDir);

impl Place {
    fn new() -> Self {
        // On a disk: in memory nothing has a handle everywhere.
        let place = Self(tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap());
        std::fs::create_dir(place.path("one")).unwrap();
        std::fs::create_dir(place.path("other with a blank")).unwrap();
        std::fs::write(place.path("file"), "x").unwrap();
        place
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }
}

/// Whether files can be found by their handles here.
fn has_handles(place: &Place) -> bool {
    let watcher = watcher();
    add_watch(&watcher, place.path("one"), WatchFlags::CREATE).unwrap();
    let Err(reason) = Before::new(vec![watcher]).unwrap().keep() else { return true };
    let reason = reason.to_string();
    assert!(reason.contains("watch 1 ") && reason.contains("O_PATH"), "{reason}");
    eprintln!("SKIPPED: no CAP_DAC_READ_SEARCH here: {reason}");
    false
}

#[test]
fn watches_have_their_numbers_and_masks_and_the_first_event_says_that_some_were_missed() {
    let place = Place::new();
    let watcher = watcher();
    let (one, other, file) =
        (place.path("one"), place.path("other with a blank"), place.path("file"));
    let gone = add_watch(&watcher, &one, WatchFlags::CREATE).unwrap();
    let second = add_watch(&watcher, &other, WatchFlags::CREATE | WatchFlags::EXCL_UNLINK).unwrap();
    let third = add_watch(&watcher, &file, WatchFlags::ATTRIB | WatchFlags::ONESHOT).unwrap();
    remove_watch(&watcher, gone).unwrap();
    let fourth = add_watch(&watcher, &one, WatchFlags::CREATE | WatchFlags::DELETE).unwrap();
    assert_eq!((second, third, fourth), (2, 3, 4));
    std::fs::write(one.join("unread"), "").unwrap();
    let expected = watches(&watcher);
    let files = vec![watcher, opened(&one), opened(&other), opened(&file)];
    let again = across(files);
    assert_eq!(watches(&again[0]), expected);
    assert!(rustix::fs::fcntl_getfl(&again[0]).unwrap().contains(OFlags::NONBLOCK));
    assert!(rustix::io::fcntl_getfd(&again[0]).unwrap().contains(rustix::io::FdFlags::CLOEXEC));
    std::fs::write(other.join("new"), "").unwrap();
    std::fs::remove_file(one.join("unread")).unwrap();
    for _ in 0..2 {
        rustix::fs::chmod(&file, Mode::RUSR).unwrap();
    }
    assert_eq!(
        told(&again[0]),
        [
            OVERFLOW,
            Told(second, 0x100, "new".into()),
            Told(fourth, 0x200, "unread".into()),
            Told(third, 4, String::new()),
            // It was for one event alone.
            Told(third, 0x8000, String::new())
        ]
    );
    remove_watch(&again[0], second).unwrap();
    // A new one has a number that none had.
    assert_eq!(add_watch(&again[0], "/", WatchFlags::DELETE_SELF), Ok(5));
}

#[test]
fn what_is_watched_is_found_by_its_handle_where_the_session_does_not_have_it() {
    let place = Place::new();
    if !has_handles(&place) {
        return;
    }
    let watcher = watcher();
    for name in ["one", "other with a blank", "file"] {
        add_watch(&watcher, place.path(name), WatchFlags::ATTRIB | WatchFlags::CREATE).unwrap();
    }
    let expected = watches(&watcher);
    let again = across(vec![watcher]);
    assert_eq!(watches(&again[0]), expected);
    std::fs::write(place.path("one").join("new"), "").unwrap();
    assert_eq!(told(&again[0]), [OVERFLOW, Told(1, 0x100, "new".into())]);
}

#[test]
fn what_has_gone_in_between_is_told_as_gone() {
    let place = Place::new();
    if !has_handles(&place) {
        return;
    }
    let watcher = watcher();
    for name in ["one", "other with a blank", "file"] {
        add_watch(&watcher, place.path(name), WatchFlags::ATTRIB | WatchFlags::CREATE).unwrap();
    }
    let mut before = Before::new(vec![watcher]).unwrap();
    before.keep().unwrap();
    let mut after = before.depart();
    std::fs::remove_dir(place.path("one")).unwrap();
    // Another one in its place is not the one that was watched.
    std::fs::rename(place.path("file"), place.path("moved")).unwrap();
    std::fs::write(place.path("file"), "another").unwrap();
    let again = after.retrieve(1).unwrap();
    let gone = |watch| Told(watch, 0x8000, String::new());
    assert_eq!(told(&again), [OVERFLOW, gone(1), gone(3)]);
    assert_eq!(watches(&again).len(), 1);
    std::fs::write(place.path("other with a blank").join("new"), "").unwrap();
    assert_eq!(told(&again), [Told(2, 0x100, "new".into())]);
    after.finish();
}

#[test]
fn one_that_watches_nothing_has_missed_nothing_unless_something_was_unread() {
    let (idle, busy) = (watcher(), watcher());
    let watch = add_watch(&busy, "/", WatchFlags::DELETE_SELF).unwrap();
    remove_watch(&busy, watch).unwrap();
    let again = across(vec![idle, busy]);
    assert_eq!(told(&again[0]), []);
    assert_eq!(told(&again[1]), [OVERFLOW]);
    assert_eq!(add_watch(&again[0], "/", WatchFlags::DELETE_SELF), Ok(1));
}

#[test]
fn a_watch_on_what_cannot_be_found_again_is_named() {
    let place = Place::new();
    let watcher = watcher();
    let file = std::fs::File::open(place.path("file")).unwrap();
    add_watch(&watcher, place.path("file"), WatchFlags::MODIFY).unwrap();
    std::fs::remove_file(place.path("file")).unwrap();
    let reason = refusal(watcher);
    for words in ["OpNotSupp", "watch 1 ", "not in the session", "O_PATH"] {
        assert!(reason.contains(words), "{reason}");
    }
    drop(file);
}

#[test]
fn a_deleted_file_of_the_session_is_watched_again() {
    let place = Place::new();
    let watcher = watcher();
    let file = std::fs::File::options().read(true).write(true).open(place.path("file")).unwrap();
    add_watch(&watcher, place.path("file"), WatchFlags::MODIFY).unwrap();
    std::fs::remove_file(place.path("file")).unwrap();
    let again = across(vec![watcher, file.into()]);
    rustix::io::write(&again[1], b"y").unwrap();
    assert_eq!(told(&again[0]), [OVERFLOW, Told(1, 2, String::new())]);
}

#[test]
fn watches_are_those_at_freeze_and_a_cancel_changes_nothing() {
    let place = Place::new();
    let (one, other) = (place.path("one"), place.path("other with a blank"));
    let watcher = watcher();
    let mine = watcher.try_clone().unwrap();
    add_watch(&watcher, &one, WatchFlags::CREATE).unwrap();
    let mut before = Before::new(vec![watcher, opened(&one), opened(&other)]).unwrap();
    std::fs::write(one.join("unread"), "").unwrap();
    before.keep().unwrap();
    before.event(Event::Cancel).unwrap();
    // Nobody has read it.
    assert_eq!(told(&mine), [Told(1, 0x100, "unread".into())]);
    before.event(Event::Prepare).unwrap();
    add_watch(&mine, &other, WatchFlags::DELETE).unwrap();
    let expected = watches(&mine);
    before.event(Event::Freeze).unwrap();
    drop(mine);
    let mut after = before.depart();
    for token in [2, 3] {
        after.retrieve(token).unwrap();
    }
    assert_eq!(watches(&after.retrieve(1).unwrap()), expected);
    after.finish();
}

#[test]
fn damaged_and_unknown_records_are_refused_and_nothing_is_made() {
    use luo_abi::record::{InotifyRecord, WatchRecord, WatchTarget};
    let carrier = Copier::default();
    let target = WatchTarget::Path {
        device: 1,
        inode: 2,
        filesystem: 3,
        born: 4,
        path: b"/nowhere".to_vec(),
    };
    let watches = vec![WatchRecord { number: 9, mask: 0x100, target }];
    let record = InotifyRecord { flags: InotifyRecord::NONBLOCK, watches }.encode().unwrap();
    let open = || std::fs::read_dir("/proc/self/fd").unwrap().count();
    let before = open();
    for cut in 0..record.len() {
        let handle = carrier.put(record[..cut].to_vec());
        let error = InotifyHandler.retrieve(handle.0, &carrier).unwrap_err();
        assert_eq!(error.errno(), Errno::Inval);
    }
    for (at, value) in [(4, 8), (0, 2), (58, 3), (60, 1)] {
        let mut bytes = record.clone();
        bytes[at] = value;
        let handle = carrier.put(bytes);
        let error = InotifyHandler.retrieve(handle.0, &carrier).unwrap_err();
        assert_eq!(error.errno(), Errno::Inval, "{at}");
    }
    assert_eq!(InotifyHandler.retrieve(12345, &carrier).unwrap_err().errno(), Errno::NoEnt);
    assert_eq!(open(), before);
    let handle = carrier.put(record);
    let made = InotifyHandler.retrieve(handle.0, &carrier).unwrap();
    assert_eq!(told(&made.try_clone_fd().unwrap()), [Told(9, 0x8000, String::new())]);
}

#[test]
fn a_record_of_a_later_version_is_nobodys_and_says_so() {
    let mut before = Before::new(vec![watcher()]).unwrap();
    before.keep().unwrap();
    let mut after = {
        let mut kept = before.carrier.kept.lock().unwrap();
        for bytes in kept.values_mut() {
            let name = b"inotify-v1";
            if let Some(at) = bytes.windows(name.len()).position(|part| part == name) {
                bytes[at + name.len() - 1] = b'2';
            }
        }
        drop(kept);
        before.depart()
    };
    let error = after.retrieve(1).unwrap_err();
    assert_eq!(error.errno(), Errno::NoEnt, "{error}");
    assert!(error.to_string().contains("inotify-v2"), "{error}");
}
