//! FIFOs through a whole update with a carrier that copies.

mod common;

use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;

use common::{Before, across, refusal};
use luo_core::{Errno, Event};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::fs::{CWD, FileType, Mode, OFlags, fcntl_getfl, fcntl_setfl, fstat, mknodat};
use rustix::io::{Errno as Raw, ioctl_fionread, read, write};
use rustix::pipe::{fcntl_getpipe_size, fcntl_setpipe_size};
use rustix::time::Timespec;

struct Fifo {
    _directory: tempfile::TempDir,
    path: PathBuf,
}

impl Fifo {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("fifo");
        make(&path);
        Self { _directory: directory, path }
    }

    fn open(&self, flags: OFlags) -> OwnedFd {
        let flags = flags | OFlags::NONBLOCK | OFlags::CLOEXEC;
        rustix::fs::open(&self.path, flags, Mode::empty()).unwrap()
    }

    fn both(&self) -> (OwnedFd, OwnedFd) {
        (self.open(OFlags::RDONLY), self.open(OFlags::WRONLY))
    }
}

fn make(path: &Path) {
    mknodat(CWD, path, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0).unwrap();
}

fn text(file: impl AsFd) -> Result<Vec<u8>, Raw> {
    let mut bytes = vec![0; 1 << 17];
    let len = read(file, &mut bytes)?;
    bytes.truncate(len);
    Ok(bytes)
}

fn is_hung_up(file: impl AsFd) -> bool {
    let mut polled = [PollFd::new(&file, PollFlags::empty())];
    poll(&mut polled, Some(&Timespec { tv_sec: 0, tv_nsec: 0 })).unwrap();
    polled[0].revents().contains(PollFlags::HUP)
}

#[test]
fn both_ends_of_a_fifo_come_back_at_its_path_with_what_was_in_it() {
    let fifo = Fifo::new();
    let (reader, writer) = fifo.both();
    fcntl_setpipe_size(&reader, 16 << 12).unwrap();
    fcntl_setfl(&writer, OFlags::empty()).unwrap();
    let content: Vec<u8> = (0..30_000_u32).map(|at| (at % 251) as u8).collect();
    write(&writer, &content).unwrap();
    let inode = fstat(&reader).unwrap().st_ino;
    let flags = (fcntl_getfl(&reader).unwrap(), fcntl_getfl(&writer).unwrap());
    let again = across(vec![writer, reader]);
    let (writer, reader) = (&again[0], &again[1]);
    assert_eq!((fcntl_getfl(reader).unwrap(), fcntl_getfl(writer).unwrap()), flags);
    assert_eq!(fcntl_getpipe_size(writer).unwrap(), 16 << 12);
    assert_eq!(fstat(reader).unwrap().st_ino, inode);
    assert_eq!(text(reader).unwrap(), content);
    // Whoever opens the path is at the same FIFO.
    write(fifo.open(OFlags::WRONLY), b"from another one").unwrap();
    assert_eq!(text(reader).unwrap(), b"from another one");
}

#[test]
fn an_end_that_waits_for_its_first_writer_goes_on_waiting() {
    let fifo = Fifo::new();
    let reader = fifo.open(OFlags::RDONLY);
    let mut again = across(vec![reader, fifo.open(OFlags::RDONLY)]);
    for reader in &again {
        assert!(!is_hung_up(reader));
        assert_eq!(text(reader).unwrap(), b"");
    }
    let writer = fifo.open(OFlags::WRONLY);
    write(&writer, b"hello").unwrap();
    assert_eq!(text(again.pop().unwrap()).unwrap(), b"hello");
    assert_eq!(text(&again[0]), Err(Raw::AGAIN));
    drop(writer);
    assert!(is_hung_up(&again[0]));
}

#[test]
fn an_end_whose_other_one_is_nobodys_comes_back_alone() {
    let (heard, unheard) = (Fifo::new(), Fifo::new());
    let (reader, writer) = heard.both();
    write(&writer, b"the last words").unwrap();
    drop(writer);
    let (gone, lonely) = unheard.both();
    drop(gone);
    let again = across(vec![reader, lonely]);
    assert!(is_hung_up(&again[0]));
    assert_eq!(text(&again[0]).unwrap(), b"the last words");
    assert_eq!(text(&again[0]).unwrap(), b"");
    assert_eq!(write(&again[1], b"x"), Err(Raw::PIPE));
    let _reader = unheard.open(OFlags::RDONLY);
    assert_eq!(write(&again[1], b"x"), Ok(1));
}

#[test]
fn one_that_is_open_for_both_needs_no_other_end_and_does_not_block() {
    let fifo = Fifo::new();
    let both = fifo.open(OFlags::RDWR);
    write(&both, b"kept").unwrap();
    fcntl_setfl(&both, OFlags::empty()).unwrap();
    let again = across(vec![both]);
    assert_eq!(fcntl_getfl(&again[0]).unwrap() & OFlags::RWMODE, OFlags::RDWR);
    assert!(!fcntl_getfl(&again[0]).unwrap().contains(OFlags::NONBLOCK));
    assert_eq!(text(&again[0]).unwrap(), b"kept");
}

#[test]
fn what_is_still_in_a_fifo_that_others_hold_open_is_not_there_twice() {
    let fifo = Fifo::new();
    let outside = fifo.open(OFlags::RDWR);
    let both = fifo.open(OFlags::RDWR);
    write(&both, b"once").unwrap();
    let again = across(vec![both]);
    assert_eq!(ioctl_fionread(&again[0]).unwrap(), 4);
    assert_eq!(text(&again[0]).unwrap(), b"once");
    drop(outside);
}

#[test]
fn what_cannot_be_found_again_or_is_open_elsewhere_is_refused_and_nothing_is_lost() {
    let fifo = Fifo::new();
    let (reader, writer) = fifo.both();
    let reason = refusal(reader.try_clone().unwrap());
    assert!(reason.contains("OpNotSupp") && reason.contains("for writing is open"), "{reason}");
    write(&writer, b"still here").unwrap();
    let reason = refusal(reader.try_clone().unwrap());
    assert!(reason.contains("for writing is open"), "{reason}");
    let reason = refusal(writer.try_clone().unwrap());
    assert!(reason.contains("for reading is open"), "{reason}");
    assert!(refusal(fifo.open(OFlags::PATH)).contains("O_PATH"));
    let both = fifo.open(OFlags::RDWR);
    std::fs::remove_file(&fifo.path).unwrap();
    assert!(refusal(both.try_clone().unwrap()).contains("no path"));
    make(&fifo.path);
    assert!(refusal(both).contains("no path"));
    assert_eq!(text(&reader).unwrap(), b"still here");
}

#[test]
fn a_full_carrier_and_a_cancelled_update_change_nothing_and_freeze_has_the_last_word() {
    let fifo = Fifo::new();
    let (reader, writer) = fifo.both();
    write(&writer, b"before ").unwrap();
    let copies = vec![reader.try_clone().unwrap(), writer.try_clone().unwrap()];
    let mut before = Before::new(copies).unwrap();
    let mut failures = 0;
    loop {
        before.carrier.refuse_after.store(failures + 1, Ordering::Relaxed);
        match before.keep() {
            Err(error) => assert_eq!(error.errno(), Errno::NoSpc, "{error}"),
            Ok(()) => break,
        }
        failures += 1;
    }
    before.carrier.refuse_after.store(0, Ordering::Relaxed);
    assert!(failures >= 2, "{failures}");
    before.event(Event::Cancel).unwrap();
    before.event(Event::Prepare).unwrap();
    write(&writer, b"and after").unwrap();
    before.event(Event::Freeze).unwrap();
    drop((reader, writer));
    let mut after = before.depart();
    // Asked for the other one first: the maker is retrieved before it.
    let writer = after.retrieve(2).unwrap();
    let reader = after.retrieve(1).unwrap();
    drop(writer);
    assert_eq!(text(&reader).unwrap(), b"before and after");
    after.finish();
}

#[test]
fn damage_or_another_fifo_at_the_path_is_the_error_of_all_ends() {
    for damage in [true, false] {
        let fifo = Fifo::new();
        let (reader, writer) = fifo.both();
        write(&writer, b"content").unwrap();
        let mut before = Before::new(vec![reader, writer]).unwrap();
        before.keep().unwrap();
        if damage {
            let mut kept = before.carrier.kept.lock().unwrap();
            kept.values_mut().find(|bytes| bytes.ends_with(b"content")).unwrap().pop();
        } else {
            // Another one from the beginning: an inode's number may be had again at once.
            let other = fifo.path.with_extension("other");
            make(&other);
            std::fs::rename(other, &fifo.path).unwrap();
        }
        let mut after = before.depart();
        let expected = if damage { Errno::Inval } else { Errno::NoEnt };
        for token in [2, 1] {
            assert_eq!(after.retrieve(token).unwrap_err().errno(), expected);
        }
    }
}
