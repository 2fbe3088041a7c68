//! Unix sockets that are connected, through a whole update with a carrier that copies.

mod common;

use std::io::{IoSlice, IoSliceMut, Read, Write};
use std::mem::MaybeUninit;
use std::net::Shutdown;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::atomic::Ordering;

use common::{Before, across, refusal};
use luo_core::{Errno, Event};
use luo_sys::{SOCKET_OPTIONS, SocketOption};
use rustix::event::{EventfdFlags, eventfd};
use rustix::fs::{OFlags, fcntl_getfl};
use rustix::io::{Errno as Raw, read, write};
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketFlags, SocketType, recv, recvmsg, sendmsg, shutdown,
    socketpair, sockopt,
};

fn pair(kind: SocketType) -> (OwnedFd, OwnedFd) {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    socketpair(AddressFamily::UNIX, kind, flags, None).unwrap()
}

fn send(file: &OwnedFd, bytes: &[u8], files: &[BorrowedFd<'_>]) {
    let mut room = [MaybeUninit::uninit(); 2048];
    let mut control = SendAncillaryBuffer::new(&mut room);
    if !files.is_empty() {
        assert!(control.push(SendAncillaryMessage::ScmRights(files)));
    }
    let sent = sendmsg(file, &[IoSlice::new(bytes)], &mut control, SendFlags::empty()).unwrap();
    assert_eq!(sent, bytes.len());
}

/// The next message, or bytes of a stream, and the descriptors that come with them.
fn receive(file: &OwnedFd, len: usize) -> Result<(Vec<u8>, Vec<OwnedFd>), Raw> {
    let mut bytes = vec![0; len];
    let mut room = [MaybeUninit::uninit(); 2048];
    let mut control = RecvAncillaryBuffer::new(&mut room);
    let flags = RecvFlags::CMSG_CLOEXEC;
    let received = recvmsg(file, &mut [IoSliceMut::new(&mut bytes)], &mut control, flags)?;
    let mut files = Vec::new();
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(rights) = message {
            files.extend(rights);
        }
    }
    bytes.truncate(received.bytes);
    Ok((bytes, files))
}

fn text(file: &OwnedFd) -> Result<Vec<u8>, Raw> {
    receive(file, 1 << 20).map(|(bytes, _)| bytes)
}

fn options(socket: impl AsFd) -> Vec<(&'static str, Vec<u8>)> {
    let socket = socket.as_fd();
    SOCKET_OPTIONS
        .iter()
        .filter_map(|option| Some((option.label(), option.get(socket).unwrap()?)))
        .collect()
}

fn set(socket: impl AsFd, label: &str, value: i32) {
    let option: &SocketOption = SOCKET_OPTIONS.iter().find(|o| o.label() == label).unwrap();
    option.set(&socket, &value.to_ne_bytes()).unwrap();
}

#[test]
fn both_ends_of_a_stream_come_back_with_what_was_in_both_queues() {
    for turned in [false, true] {
        let (one, other) = pair(SocketType::STREAM);
        rustix::io::ioctl_fionbio(&other, false).unwrap();
        set(&one, "SO_PASSCRED", 1);
        set(&one, "SO_RCVLOWAT", 3);
        let content: Vec<u8> = (0..50_000_u32).map(|at| (at % 251) as u8).collect();
        for part in content.chunks(3333) {
            write(&one, part).unwrap();
        }
        write(&other, b"back").unwrap();
        // Partly read: the rest is what is kept.
        let mut begun = [0; 500];
        read(&other, &mut begun).unwrap();
        // Less room than it has used already.
        set(&one, "SO_SNDBUF", 20_000);
        let look = |file: &OwnedFd| (options(file), fcntl_getfl(file).unwrap());
        let expected = (look(&one), look(&other));
        let files = if turned { vec![other, one] } else { vec![one, other] };
        let mut again = across(files);
        if turned {
            again.reverse();
        }
        let [one, other] = <[OwnedFd; 2]>::try_from(again).unwrap();
        assert_eq!((look(&one), look(&other)), expected);
        assert!(rustix::io::fcntl_getfd(&one).unwrap().contains(rustix::io::FdFlags::CLOEXEC));
        let mut rest = vec![0; content.len() - 500];
        UnixStream::from(other.try_clone().unwrap()).read_exact(&mut rest).unwrap();
        assert!(rest == content[500..]);
        assert_eq!(text(&one).unwrap(), b"back");
        assert_eq!(text(&one), Err(Raw::AGAIN));
        write(&one, b"more").unwrap();
        assert_eq!(text(&other).unwrap(), b"more");
        drop(other);
        assert_eq!(text(&one).unwrap(), b"");
    }
}

#[test]
fn messages_come_back_as_messages_those_without_a_byte_too() {
    for kind in [SocketType::SEQPACKET, SocketType::DGRAM] {
        let (one, other) = pair(kind);
        let large = vec![7; 150_000];
        let messages: [&[u8]; 5] = [b"", b"one", b"", &large, b"last"];
        messages.iter().for_each(|message| send(&one, message, &[]));
        send(&other, b"back", &[]);
        let [one, other] = <[OwnedFd; 2]>::try_from(across(vec![one, other])).unwrap();
        for message in messages {
            assert!(text(&other).unwrap() == message, "{kind:?}");
        }
        assert_eq!(text(&other), Err(Raw::AGAIN));
        assert_eq!(text(&one).unwrap(), b"back");
        send(&one, b"more", &[]);
        assert_eq!(text(&other).unwrap(), b"more");
    }
}

#[test]
fn a_message_without_a_byte_that_cannot_be_seen_again_is_refused_and_never_lost() {
    let (one, other) = pair(SocketType::SEQPACKET);
    for message in [&b"a"[..], b"", b"b"] {
        send(&one, message, &[]);
    }
    let copies = vec![one.try_clone().unwrap(), other.try_clone().unwrap()];
    let mut before = Before::new(copies).unwrap();
    before.keep().unwrap();
    before.event(Event::Cancel).unwrap();
    let error = before.keep().unwrap_err();
    assert!(error.to_string().contains("without a byte"), "{error}");
    for message in [&b"a"[..], b"", b"b"] {
        assert_eq!(text(&other).unwrap(), message);
    }
    // The same without one is no reason to refuse.
    send(&one, b"c", &[]);
    for _ in 0..2 {
        before.keep().unwrap();
        before.event(Event::Cancel).unwrap();
    }
}

#[test]
fn descriptors_in_a_queue_come_back_at_their_byte_as_those_of_the_session() {
    for kind in [SocketType::STREAM, SocketType::SEQPACKET, SocketType::DGRAM] {
        let (one, other) = pair(kind);
        let counter = eventfd(41, EventfdFlags::NONBLOCK).unwrap();
        let (reader, writer) = rustix::pipe::pipe().unwrap();
        send(&one, b"before", &[]);
        send(&one, b"with", &[counter.as_fd(), writer.as_fd()]);
        send(&one, b"again", &[counter.as_fd()]);
        send(&one, b"behind", &[]);
        let files = vec![one, other, counter, reader, writer];
        let again = across(files);
        assert_eq!(receive(&again[1], 6).unwrap().0, b"before");
        let (bytes, files) = receive(&again[1], 4).unwrap();
        assert_eq!((bytes.as_slice(), files.len()), (&b"with"[..], 2), "{kind:?}");
        let [counter, writer] = <[OwnedFd; 2]>::try_from(files).unwrap();
        assert!(luo_sys::same_description(&counter, &again[2]).unwrap());
        let (bytes, files) = receive(&again[1], 5).unwrap();
        assert_eq!((bytes.as_slice(), files.len()), (&b"again"[..], 1));
        let (bytes, files) = receive(&again[1], 6).unwrap();
        assert_eq!((bytes.as_slice(), files.len()), (&b"behind"[..], 0));
        write(&counter, &1_u64.to_ne_bytes()).unwrap();
        let mut number = [0; 8];
        read(&again[2], &mut number).unwrap();
        assert_eq!(u64::from_ne_bytes(number), 42);
        write(&writer, b"through").unwrap();
        let mut bytes = [0; 7];
        read(&again[3], &mut bytes).unwrap();
        assert_eq!(&bytes, b"through");
    }
}

#[test]
fn a_descriptor_in_a_queue_that_is_not_in_the_session_is_refused_and_stays() {
    let (one, other) = pair(SocketType::STREAM);
    let file = eventfd(1, EventfdFlags::NONBLOCK).unwrap();
    send(&one, b"x", &[file.as_fd()]);
    let copies = vec![one.try_clone().unwrap(), other.try_clone().unwrap()];
    let error = Before::new(copies).unwrap().keep().unwrap_err();
    assert!(error.to_string().contains("not in the session"), "{error}");
    assert_eq!(receive(&other, 9).unwrap().1.len(), 1);
    // One of the ends themselves.
    send(&one, b"x", &[other.as_fd()]);
    let copies = vec![one.try_clone().unwrap(), other.try_clone().unwrap()];
    let error = Before::new(copies).unwrap().keep().unwrap_err();
    assert!(error.to_string().contains("its own queue"), "{error}");
    assert_eq!(receive(&other, 9).unwrap().1.len(), 1);
}

#[test]
fn an_end_whose_peer_is_gone_has_its_last_words_and_then_the_end() {
    for kind in [SocketType::STREAM, SocketType::SEQPACKET] {
        let (one, other) = pair(kind);
        send(&one, b"last", &[]);
        send(&one, b"words", &[]);
        // What it did not read is an error of the other one.
        send(&other, b"unheard", &[]);
        drop(one);
        let again = across(vec![other]).remove(0);
        let mut all = Vec::new();
        while let Ok(bytes) = text(&again)
            && !bytes.is_empty()
        {
            all.extend(bytes);
        }
        assert_eq!(all, b"lastwords");
        assert_eq!(text(&again).unwrap(), b"");
        assert_eq!(write(&again, b"x"), Err(Raw::PIPE));
    }
    let (one, other) = pair(SocketType::DGRAM);
    send(&one, b"last", &[]);
    drop(one);
    let again = across(vec![other]).remove(0);
    assert_eq!(text(&again).unwrap(), b"last");
    assert_eq!(text(&again), Err(Raw::AGAIN));
    assert_eq!(write(&again, b"x"), Err(Raw::CONNREFUSED));
}

#[test]
fn a_side_that_was_shut_down_stays_so() {
    let (one, other) = pair(SocketType::STREAM);
    write(&one, b"the last").unwrap();
    shutdown(&one, rustix::net::Shutdown::Write).unwrap();
    let [one, other] = <[OwnedFd; 2]>::try_from(across(vec![one, other])).unwrap();
    assert_eq!(write(&one, b"x"), Err(Raw::PIPE));
    assert_eq!(text(&other).unwrap(), b"the last");
    assert_eq!(text(&other).unwrap(), b"");
    write(&other, b"still").unwrap();
    assert_eq!(text(&one).unwrap(), b"still");
}

#[test]
fn both_ends_of_a_connection_through_a_listener_come_back_too() {
    let directory = tempfile::tempdir().unwrap();
    let listener = UnixListener::bind(directory.path().join("socket")).unwrap();
    let mut client = UnixStream::connect(directory.path().join("socket")).unwrap();
    let (server, _) = listener.accept().unwrap();
    client.write_all(b"request").unwrap();
    let again = across(vec![server.into(), client.into(), listener.into()]);
    let mut bytes = [0; 7];
    assert_eq!(recv(&again[0], &mut bytes, RecvFlags::empty()).unwrap().0, 7);
    assert_eq!(&bytes, b"request");
    let _new = UnixStream::connect(directory.path().join("socket")).unwrap();
}

#[test]
fn an_end_alone_is_refused_with_who_has_the_other_one() {
    let (one, other) = UnixStream::pair().unwrap();
    let reason = refusal(one.try_clone().unwrap().into());
    let pid = std::process::id().to_string();
    assert!(reason.contains("OpNotSupp") && reason.contains(&pid), "{reason}");
    let directory = tempfile::tempdir().unwrap();
    let _listener = UnixListener::bind(directory.path().join("socket")).unwrap();
    let waiting = UnixStream::connect(directory.path().join("socket")).unwrap();
    assert!(refusal(waiting.into()).contains("nobody has accepted"));
    set(&other, "SO_PASSPIDFD", 1);
    let error = Before::new(vec![one.into(), other.into()]).unwrap().keep().unwrap_err();
    assert!(error.to_string().contains("SO_PASSPIDFD"), "{error}");
}

#[test]
fn the_peer_is_who_it_was_and_never_luod() {
    if !rustix::process::geteuid().is_root() {
        return println!("SKIPPED: only root can make a socket in another user's name");
    }
    let (one, other) = luo_sys::as_effective(12345, 23456, || pair(SocketType::STREAM)).unwrap();
    write(&one, b"x").unwrap();
    set(&other, "SO_PASSCRED", 1);
    let again = across(vec![one, other]);
    for file in &again {
        let peer = sockopt::socket_peercred(file).unwrap();
        assert_eq!((peer.uid.as_raw(), peer.gid.as_raw()), (12345, 23456));
    }
    // What was in the queue is nobody's.
    let mut bytes = [0; 9];
    let mut room = [MaybeUninit::uninit(); 2048];
    let mut control = RecvAncillaryBuffer::new(&mut room);
    let flags = RecvFlags::empty();
    recvmsg(&again[1], &mut [IoSliceMut::new(&mut bytes)], &mut control, flags).unwrap();
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmCredentials(sender) = message {
            assert_ne!(sender.uid.as_raw(), 0);
        }
    }
}

#[test]
fn what_is_sent_between_prepare_and_freeze_is_kept_and_a_full_carrier_changes_nothing() {
    let (one, other) = pair(SocketType::STREAM);
    write(&one, b"before ").unwrap();
    luo_sys::set_peek_offset(&other, 3).unwrap();
    let copies = vec![one.try_clone().unwrap(), other.try_clone().unwrap()];
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
    assert_eq!(luo_sys::peek_offset(&other).unwrap(), 3);
    before.event(Event::Prepare).unwrap();
    write(&one, b"and after").unwrap();
    before.event(Event::Freeze).unwrap();
    drop((one, other));
    let mut after = before.depart();
    // Asked for the other one first: the maker is retrieved before it.
    let other = after.retrieve(2).unwrap();
    let one = after.retrieve(1).unwrap();
    drop(one);
    assert_eq!(text(&other).unwrap(), b"before and after");
    after.finish();
}

#[test]
fn damage_to_the_makers_record_is_the_error_of_both_ends() {
    let (one, other) = pair(SocketType::STREAM);
    write(&other, b"content").unwrap();
    let mut before = Before::new(vec![one, other]).unwrap();
    before.keep().unwrap();
    {
        let mut kept = before.carrier.kept.lock().unwrap();
        let maker = kept.values_mut().find(|bytes| bytes.len() > 28).unwrap();
        // Its role, which no version of this record has.
        maker[24] = 9;
    }
    let mut after = before.depart();
    for token in [2, 1] {
        assert_eq!(after.retrieve(token).unwrap_err().errno(), Errno::Inval);
    }
}

#[test]
fn one_of_both_that_is_gone_takes_nothing_from_the_other() {
    let (one, other) = UnixStream::pair().unwrap();
    other.shutdown(Shutdown::Both).unwrap();
    let [one, other] = <[OwnedFd; 2]>::try_from(across(vec![one.into(), other.into()])).unwrap();
    assert_eq!(text(&one).unwrap(), b"");
    assert_eq!(text(&other).unwrap(), b"");
    assert!(!fcntl_getfl(&one).unwrap().contains(OFlags::NONBLOCK));
}
