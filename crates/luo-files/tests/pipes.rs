//! Pipes through a whole update with a carrier that copies.

mod common;

use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::sync::atomic::Ordering;

use common::{Before, across, refusal};
use luo_core::{Errno, Event};
use rustix::fs::{Mode, OFlags, fcntl_getfl, fcntl_setfl};
use rustix::io::{Errno as Raw, ioctl_fionread, read, write};
use rustix::pipe::{PipeFlags, fcntl_getpipe_size, fcntl_setpipe_size, pipe_with};

fn pipe(flags: PipeFlags) -> (OwnedFd, OwnedFd) {
    pipe_with(flags | PipeFlags::CLOEXEC).unwrap()
}

fn opened(file: impl AsFd, flags: OFlags) -> OwnedFd {
    let path = format!("/proc/self/fd/{}", file.as_fd().as_raw_fd());
    rustix::fs::open(path, flags | OFlags::CLOEXEC, Mode::empty()).unwrap()
}

fn text(file: impl AsFd) -> Result<Vec<u8>, Raw> {
    let mut bytes = vec![0; 1 << 17];
    let len = read(file, &mut bytes)?;
    bytes.truncate(len);
    Ok(bytes)
}

#[test]
fn both_ends_of_a_pipe_come_back_as_ends_of_one_with_what_was_in_it() {
    for turned in [false, true] {
        let (reader, writer) = pipe(PipeFlags::NONBLOCK);
        fcntl_setpipe_size(&reader, 16 << 12).unwrap();
        fcntl_setfl(&writer, OFlags::empty()).unwrap();
        let content: Vec<u8> = (0..30_000_u32).map(|at| (at % 251) as u8).collect();
        for part in content.chunks(1000) {
            write(&writer, part).unwrap();
        }
        let flags = (fcntl_getfl(&reader).unwrap(), fcntl_getfl(&writer).unwrap());
        let files = if turned { vec![writer, reader] } else { vec![reader, writer] };
        let mut again = across(files);
        if turned {
            again.reverse();
        }
        let (reader, writer) = (&again[0], &again[1]);
        assert_eq!((fcntl_getfl(reader).unwrap(), fcntl_getfl(writer).unwrap()), flags);
        assert_eq!(fcntl_getpipe_size(writer).unwrap(), 16 << 12);
        assert_eq!(ioctl_fionread(reader).unwrap(), 30_000);
        assert_eq!(text(reader).unwrap(), content);
        assert_eq!(text(reader), Err(Raw::AGAIN));
        write(writer, b"more").unwrap();
        assert_eq!(text(reader).unwrap(), b"more");
        drop(again.pop());
        assert_eq!(text(&again[0]).unwrap(), b"");
    }
}

#[test]
fn an_end_whose_other_one_is_nobodys_comes_back_alone() {
    let (reader, writer) = pipe(PipeFlags::NONBLOCK);
    write(&writer, b"the last words").unwrap();
    drop(writer);
    let (gone, lonely) = pipe(PipeFlags::NONBLOCK);
    write(&lonely, b"unheard").unwrap();
    drop(gone);
    let again = across(vec![reader, lonely]);
    assert_eq!(text(&again[0]).unwrap(), b"the last words");
    assert_eq!(text(&again[0]).unwrap(), b"");
    assert_eq!(write(&again[1], b"x"), Err(Raw::PIPE));
}

#[test]
fn an_end_whose_other_one_is_elsewhere_is_refused_and_nothing_is_lost() {
    let (reader, writer) = pipe(PipeFlags::NONBLOCK);
    write(&writer, b"still here").unwrap();
    let reason = refusal(reader.try_clone().unwrap());
    assert!(reason.contains("OpNotSupp") && reason.contains("for writing is open"), "{reason}");
    let reason = refusal(writer.try_clone().unwrap());
    assert!(reason.contains("for reading is open"), "{reason}");
    assert_eq!(text(&reader).unwrap(), b"still here");
}

#[test]
fn packets_come_back_as_packets() {
    for packets in [vec![&b"one"[..], b"other", b"!"], vec![b"alone"], vec![b"x"]] {
        let (reader, writer) = pipe(PipeFlags::NONBLOCK | PipeFlags::DIRECT);
        for packet in &packets {
            write(&writer, packet).unwrap();
        }
        let again = across(vec![reader, writer]);
        assert!(fcntl_getfl(&again[1]).unwrap().contains(OFlags::DIRECT));
        for packet in &packets {
            // The rest of a packet goes with its first byte.
            let mut byte = [0];
            assert_eq!(read(&again[0], &mut byte), Ok(1));
            assert_eq!(byte[0], packet[0]);
        }
        if packets.iter().all(|packet| packet.len() > 1) || packets.len() > 1 {
            assert_eq!(text(&again[0]), Err(Raw::AGAIN));
        }
        write(&again[1], b"a").unwrap();
        write(&again[1], b"b").unwrap();
        assert_eq!(text(&again[0]).unwrap(), b"a");
    }
    let (reader, writer) = pipe(PipeFlags::NONBLOCK);
    // A whole page, to which nothing is added.
    write(&writer, &[1; 4096]).unwrap();
    fcntl_setfl(&writer, OFlags::DIRECT).unwrap();
    write(&writer, b"packet").unwrap();
    write(&writer, b"packet").unwrap();
    drop(writer);
    assert!(refusal(reader).contains("in one of the two ways"));
}

#[test]
fn a_pipe_that_is_open_many_times_has_as_many_descriptions_again() {
    let (reader, writer) = pipe(PipeFlags::NONBLOCK);
    write(&writer, b"abc").unwrap();
    let second = opened(&writer, OFlags::WRONLY | OFlags::NONBLOCK);
    let both = opened(&reader, OFlags::RDWR);
    let again = across(vec![second, both, writer, reader]);
    let access: Vec<_> =
        again.iter().map(|file| fcntl_getfl(file).unwrap() & OFlags::RWMODE).collect();
    assert_eq!(access, [OFlags::WRONLY, OFlags::RDWR, OFlags::WRONLY, OFlags::RDONLY]);
    for (at, bytes) in [(0, b"0"), (1, b"1"), (2, b"2")] {
        write(&again[at], bytes).unwrap();
    }
    assert_eq!(text(&again[3]).unwrap(), b"abc012");
    // A description of its own: what one is set to, the other is not.
    fcntl_setfl(&again[0], OFlags::empty()).unwrap();
    assert!(fcntl_getfl(&again[2]).unwrap().contains(OFlags::NONBLOCK));
}

#[test]
fn what_is_written_between_prepare_and_freeze_is_kept_and_a_full_carrier_changes_nothing() {
    let (reader, writer) = pipe(PipeFlags::NONBLOCK);
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
fn damage_to_the_makers_record_is_the_error_of_all_ends_and_nothing_stays_open() {
    let (reader, writer) = pipe(PipeFlags::NONBLOCK);
    write(&writer, b"content").unwrap();
    let mut before = Before::new(vec![reader, writer]).unwrap();
    before.keep().unwrap();
    let maker = {
        let kept = before.carrier.kept.lock().unwrap();
        kept.iter().find(|(_, bytes)| bytes.ends_with(b"content")).map(|(key, _)| *key).unwrap()
    };
    before.carrier.kept.lock().unwrap().get_mut(&maker).unwrap().pop();
    let mut after = before.depart();
    for token in [2, 1] {
        assert_eq!(after.retrieve(token).unwrap_err().errno(), Errno::Inval);
    }
}
