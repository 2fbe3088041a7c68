//! Files without a name through a whole update with a carrier that copies.

mod common;

use std::fs::{File, Permissions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt};
use std::path::Path;

use common::{Before, across, refusal};
use luo_core::{Errno, Event};
use rustix::fs::{FlockOperation, Mode, OFlags, fcntl_getfl, flock};

/// A directory on a disk: a deleted file of tmpfs is memory, and `memfd-v1`'s.
fn directory() -> tempfile::TempDir {
    tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap()
}

fn deleted(directory: &Path, content: &[u8]) -> File {
    let path = directory.join("deleted");
    let mut options = File::options();
    let mut file = options.read(true).write(true).create_new(true).open(&path).unwrap();
    file.write_all(content).unwrap();
    std::fs::remove_file(path).unwrap();
    file
}

fn again(file: impl AsFd, flags: OFlags) -> OwnedFd {
    let path = format!("/proc/self/fd/{}", file.as_fd().as_raw_fd());
    rustix::fs::open(path, flags | OFlags::CLOEXEC, Mode::empty()).unwrap()
}

#[test]
fn a_deleted_file_has_its_content_position_flags_and_attributes() {
    let directory = directory();
    let mut file = deleted(directory.path(), b"hello, world");
    file.set_permissions(Permissions::from_mode(0o640)).unwrap();
    file.seek(SeekFrom::Start(7)).unwrap();
    let append = again(&file, OFlags::WRONLY | OFlags::APPEND | OFlags::NONBLOCK);
    let before = file.metadata().unwrap();
    let flags = (fcntl_getfl(&file).unwrap(), fcntl_getfl(&append).unwrap());
    let [file, append] = <[OwnedFd; 2]>::try_from(across(vec![file.into(), append])).unwrap();
    assert_eq!((fcntl_getfl(&file).unwrap(), fcntl_getfl(&append).unwrap()), flags);
    let (mut file, mut append) = (File::from(file), File::from(append));
    let after = file.metadata().unwrap();
    assert_eq!(
        (after.mode(), after.uid(), after.gid(), after.size(), after.nlink()),
        (before.mode(), before.uid(), before.gid(), before.size(), 0)
    );
    assert_eq!((after.mtime(), after.mtime_nsec()), (before.mtime(), before.mtime_nsec()));
    let mut rest = String::new();
    file.read_to_string(&mut rest).unwrap();
    assert_eq!(rest, "world");
    // Of one file still.
    append.write_all(b"!").unwrap();
    file.read_to_string(&mut rest).unwrap();
    assert_eq!(rest, "world!");
    assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 0);
}

#[test]
fn holes_stay_holes() {
    let directory = directory();
    let file = deleted(directory.path(), b"");
    for at in [0, 8 << 20, 900 << 20] {
        file.write_all_at(&[7; 5000], at).unwrap();
    }
    file.set_len(1 << 30).unwrap();
    let nothing = deleted(directory.path(), b"");
    nothing.set_len(12345).unwrap();
    let blocks = file.metadata().unwrap().blocks();
    let files = across(vec![file.into(), nothing.into(), deleted(directory.path(), b"").into()]);
    let [file, nothing, empty] = <[OwnedFd; 3]>::try_from(files).unwrap().map(File::from);
    assert_eq!(
        (file.metadata().unwrap().len(), nothing.metadata().unwrap().len()),
        (1 << 30, 12345)
    );
    assert!(file.metadata().unwrap().blocks() <= blocks + 16);
    assert_eq!((nothing.metadata().unwrap().blocks(), empty.metadata().unwrap().len()), (0, 0));
    let mut bytes = [1; 6000];
    for (at, expected) in [(0, 7), (4999, 7), (5000, 0), (8 << 20, 7), ((900 << 20) + 4999, 7)] {
        file.read_exact_at(&mut bytes[..1], at).unwrap();
        assert_eq!(bytes[0], expected, "{at}");
    }
    file.read_exact_at(&mut bytes, 100 << 20).unwrap();
    assert_eq!(bytes, [0; 6000]);
}

#[test]
fn locks_of_the_description_are_held_again_and_a_file_made_without_a_name_is_one_too() {
    let directory = directory();
    let flags = OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC;
    let file = rustix::fs::open(directory.path(), flags, Mode::RUSR | Mode::WUSR).unwrap();
    flock(&file, FlockOperation::LockExclusive).unwrap();
    let other = again(&file, OFlags::RDWR);
    let files = across(vec![other, file]);
    let taken = flock(&files[0], FlockOperation::NonBlockingLockExclusive);
    assert_eq!(taken, Err(rustix::io::Errno::WOULDBLOCK));
    flock(&files[1], FlockOperation::Unlock).unwrap();
    flock(&files[0], FlockOperation::NonBlockingLockExclusive).unwrap();
}

#[test]
fn a_file_whose_directory_is_gone_is_refused_before_and_an_error_after() {
    let directory = directory();
    let inner = directory.path().join("inner");
    std::fs::create_dir(&inner).unwrap();
    let file = deleted(&inner, b"content");
    let mut before = Before::new(vec![file.try_clone().unwrap().into()]).unwrap();
    before.keep().unwrap();
    let mut after = before.depart();
    std::fs::remove_dir(&inner).unwrap();
    let reason = refusal(file.into());
    assert!(reason.contains("cannot be found"), "{reason}");
    let error = after.retrieve(1).unwrap_err();
    assert_eq!(error.errno(), Errno::NoEnt, "{error}");
    let deleted = deleted(directory.path(), b"x");
    let path = again(&deleted, OFlags::PATH);
    assert!(refusal(path).contains("O_PATH"));
}

#[test]
fn what_is_written_between_prepare_and_freeze_is_kept_and_a_cancelled_update_changes_nothing() {
    let directory = directory();
    let mut file = deleted(directory.path(), b"before ");
    let mut before = Before::new(vec![file.try_clone().unwrap().into()]).unwrap();
    before.carrier.refuse_after.store(1, std::sync::atomic::Ordering::Relaxed);
    assert_eq!(before.keep().unwrap_err().errno(), Errno::NoSpc);
    before.keep().unwrap();
    before.event(Event::Cancel).unwrap();
    assert_eq!(file.stream_position().unwrap(), 7);
    before.event(Event::Prepare).unwrap();
    file.write_all(b"and after").unwrap();
    before.event(Event::Freeze).unwrap();
    drop(file);
    let mut after = before.depart();
    let mut file = File::from(after.retrieve(1).unwrap());
    let mut text = String::new();
    file.rewind().unwrap();
    file.read_to_string(&mut text).unwrap();
    assert_eq!(text, "before and after");
    after.finish();
}

#[test]
fn damage_to_the_makers_record_is_the_error_of_all_descriptions() {
    let directory = directory();
    let file = deleted(directory.path(), b"content");
    let other = again(&file, OFlags::RDONLY);
    let mut before = Before::new(vec![file.into(), other]).unwrap();
    before.keep().unwrap();
    for bytes in before.carrier.kept.lock().unwrap().values_mut() {
        if bytes.len() > 72 && bytes.get(68) == Some(&1) {
            // Its role, which no version of this record has.
            bytes[68] = 9;
        }
    }
    let mut after = before.depart();
    for token in [2, 1] {
        assert_eq!(after.retrieve(token).unwrap_err().errno(), Errno::Inval);
    }
}
