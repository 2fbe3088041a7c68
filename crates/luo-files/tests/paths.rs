//! Files, directories and devices through a whole update with a carrier that copies.

mod common;

use std::fs::{self, File};
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use common::{Before, across, refusal};
use luo_core::Errno;
use rustix::fs::{FlockOperation, Mode, OFlags, fcntl_getfl, flock, fstat, open, tell};

fn opened(path: &Path, flags: OFlags) -> OwnedFd {
    open(path, flags | OFlags::CLOEXEC, Mode::empty()).unwrap()
}

fn one(file: OwnedFd) -> OwnedFd {
    across(vec![file]).remove(0)
}

fn place(content: &[u8]) -> (tempfile::TempDir, std::path::PathBuf) {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("state");
    fs::write(&path, content).unwrap();
    (directory, path)
}

fn inode(file: impl AsFd) -> (u64, u64) {
    let stat = fstat(file).unwrap();
    (stat.st_dev, stat.st_ino)
}

#[test]
fn a_file_is_the_same_one_at_the_same_position_and_open_in_the_same_way() {
    let (_directory, path) = place(b"0123456789");
    for flags in [
        OFlags::RDONLY,
        OFlags::WRONLY | OFlags::APPEND,
        OFlags::RDWR | OFlags::NONBLOCK | OFlags::NOATIME,
        OFlags::RDWR | OFlags::SYNC,
        OFlags::RDWR | OFlags::DSYNC,
    ] {
        let mut file = File::from(opened(&path, flags));
        file.seek(SeekFrom::Start(4)).unwrap();
        let expected = (fcntl_getfl(&file).unwrap(), inode(&file));
        let again = one(file.into());
        assert_eq!((fcntl_getfl(&again).unwrap(), inode(&again)), expected);
        assert_eq!(tell(&again), Ok(4));
        let closed = rustix::io::fcntl_getfd(&again).unwrap();
        assert!(closed.contains(rustix::io::FdFlags::CLOEXEC));
        let mut file = File::from(again);
        if flags & OFlags::RWMODE == OFlags::RDONLY {
            let mut text = String::new();
            file.read_to_string(&mut text).unwrap();
            assert_eq!(text, "456789");
        }
        if flags.contains(OFlags::APPEND) {
            file.write_all(b"!").unwrap();
            assert_eq!(fs::read(&path).unwrap(), b"0123456789!");
            fs::write(&path, b"0123456789").unwrap();
        }
    }
}

#[test]
fn two_descriptions_of_one_file_have_a_position_each() {
    let (_directory, path) = place(b"0123456789");
    let files: Vec<OwnedFd> = [3, 7]
        .into_iter()
        .map(|at| {
            let mut file = File::open(&path).unwrap();
            file.seek(SeekFrom::Start(at)).unwrap();
            file.into()
        })
        .collect();
    let again = across(files);
    assert_eq!((tell(&again[0]), tell(&again[1])), (Ok(3), Ok(7)));
    assert_eq!(inode(&again[0]), inode(&again[1]));
}

#[test]
fn directories_and_bare_paths_come_back() {
    let (directory, path) = place(b"content");
    let names = |file: &OwnedFd| -> Vec<String> {
        let mut names: Vec<String> = rustix::fs::Dir::read_from(file)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned())
            .collect();
        names.sort();
        names
    };
    let opened_directory = opened(directory.path(), OFlags::DIRECTORY);
    let bare = opened(&path, OFlags::PATH);
    let expected = (names(&opened_directory), inode(&bare));
    let again = across(vec![opened(directory.path(), OFlags::DIRECTORY), bare]);
    assert_eq!((names(&again[0]), inode(&again[1])), expected);
    assert!(fcntl_getfl(&again[1]).unwrap().contains(OFlags::PATH));
    assert!(rustix::io::read(&again[1], &mut [0; 1]).is_err());
}

#[test]
fn locks_of_the_description_are_had_again() {
    let (_directory, path) = place(b"0123456789");
    let other = File::options().read(true).write(true).open(&path).unwrap();
    for exclusive in [true, false] {
        let file = opened(&path, OFlags::RDWR);
        let how = match exclusive {
            true => FlockOperation::LockExclusive,
            false => FlockOperation::LockShared,
        };
        flock(&file, how).unwrap();
        luo_sys::lock_range(&file, 2, 5, true).unwrap();
        luo_sys::lock_range(&file, 8, u64::MAX, exclusive).unwrap();
        let again = one(file);
        let taken = flock(&other, FlockOperation::NonBlockingLockShared).is_err();
        assert_eq!(taken, exclusive);
        assert!(flock(&other, FlockOperation::NonBlockingLockExclusive).is_err());
        let taken = |first, last, write| luo_sys::lock_range(&other, first, last, write).is_err();
        assert!(taken(2, 2, false) && taken(5, 5, false) && taken(99, 99, true));
        assert_eq!(taken(9, 9, false), exclusive);
        assert!(!taken(6, 7, true) && !taken(0, 1, true));
        drop(again);
        flock(&other, FlockOperation::Unlock).unwrap();
    }
}

#[test]
fn a_file_without_a_path_is_refused() {
    let (directory, path) = place(b"content");
    let file = opened(&path, OFlags::RDONLY);
    // It has another name, which nothing tells: a file without any is `deleted-v1`'s.
    fs::hard_link(&path, directory.path().join("other")).unwrap();
    fs::remove_file(&path).unwrap();
    let reason = refusal(file.try_clone().unwrap());
    assert!(reason.contains("OpNotSupp") && reason.contains("has no path"), "{reason}");
    // Another file of that name is not it.
    fs::write(&path, b"other").unwrap();
    assert!(refusal(file).contains("has no path"));
    let leased = opened(&path, OFlags::RDONLY);
    let moved = directory.path().join("moved");
    fs::rename(&path, moved).unwrap();
    assert_eq!(inode(one(leased.try_clone().unwrap())), inode(&leased));
}

#[test]
fn what_has_taken_the_place_of_a_file_is_not_opened() {
    type Change = fn(&Path);
    let changes: [(Change, &str); 6] = [
        (|path| fs::remove_file(path).unwrap(), "cannot be opened"),
        (
            |path| {
                fs::rename(path, path.with_extension("old")).unwrap();
                fs::write(path, b"0123456789").unwrap();
            },
            "not the file",
        ),
        (
            |path| {
                fs::rename(path, path.with_extension("old")).unwrap();
                std::os::unix::fs::symlink(path.with_extension("old"), path).unwrap();
            },
            "not the file",
        ),
        (
            |path| {
                fs::rename(path, path.with_extension("old")).unwrap();
                fs::create_dir(path).unwrap();
            },
            "not the file",
        ),
        (
            // Opened, it would wait for somebody who writes.
            |path| {
                fs::rename(path, path.with_extension("old")).unwrap();
                let kind = rustix::fs::FileType::Fifo;
                rustix::fs::mknodat(rustix::fs::CWD, path, kind, Mode::RUSR, 0).unwrap();
            },
            "not the file",
        ),
        (|path| File::options().write(true).open(path).unwrap().set_len(9).unwrap(), "9 bytes"),
    ];
    for (change, says) in changes {
        let (_directory, path) = place(b"0123456789");
        let mut before = Before::new(vec![opened(&path, OFlags::RDWR)]).unwrap();
        before.keep().unwrap();
        change(&path);
        let mut after = before.depart();
        let error = after.retrieve(1).unwrap_err();
        assert_eq!(error.errno(), Errno::NoEnt, "{error}");
        assert!(error.to_string().contains(says), "{error}");
    }
}

#[test]
fn a_lock_that_somebody_has_taken_meanwhile_is_that_files_error() {
    let (_directory, path) = place(b"0123456789");
    let file = opened(&path, OFlags::RDWR);
    flock(&file, FlockOperation::LockExclusive).unwrap();
    let mut before = Before::new(vec![file]).unwrap();
    before.keep().unwrap();
    let mut after = before.depart();
    let other = File::open(&path).unwrap();
    flock(&other, FlockOperation::NonBlockingLockShared).unwrap();
    let error = after.retrieve(1).unwrap_err();
    assert!(error.to_string().contains("lock"), "{error}");
    flock(&other, FlockOperation::NonBlockingLockExclusive).unwrap();
}

#[test]
fn devices_without_a_state_are_opened_again_and_others_are_not_taken() {
    for (path, flags) in [
        ("/dev/null", OFlags::WRONLY),
        ("/dev/zero", OFlags::RDWR | OFlags::NONBLOCK),
        ("/dev/full", OFlags::RDWR | OFlags::APPEND),
        ("/dev/urandom", OFlags::RDONLY),
    ] {
        let file = opened(Path::new(path), flags);
        let expected = (fcntl_getfl(&file).unwrap(), fstat(&file).unwrap().st_rdev);
        let again = one(file);
        let found = (fcntl_getfl(&again).unwrap(), fstat(&again).unwrap().st_rdev);
        assert_eq!(found, expected);
    }
    match open("/dev/ptmx", OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC, Mode::empty()) {
        Ok(file) => assert!(refusal(file).contains("no handler takes")),
        Err(error) => eprintln!("SKIPPED: no pseudoterminals here: {error}"),
    }
}
