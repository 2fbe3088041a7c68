//! The carrier on the double: what comes back, what every failure leaves, and the kernel's traps.

use luo_abi::liveupdate::{
    AGENT_SESSION, BYTES_COPY_TOKEN, BYTES_TOKEN, CATALOGUE_COPY_TOKEN, CATALOGUE_TOKEN,
    KERNEL_NAME_MAX, OWN_TOKENS, ioctl::Name,
};
use luo_core::SessionName;
use rustix::fs::{MemfdFlags, fstat, ftruncate, memfd_create};
use rustix::io::Errno as Raw;

use super::double::{Device, Double};
use super::outgoing::candidate;
use super::*;
use crate::HostFile;
use luo_core::{Carrier, Errno, Handle, Keep, Recall};
use std::os::fd::AsFd;
use std::sync::Arc;

fn memfd(bytes: &[u8]) -> HostFile {
    let fd = memfd_create("test", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING).unwrap();
    assert_eq!(rustix::io::pwrite(&fd, bytes, 0).unwrap(), bytes.len());
    HostFile::from(fd)
}

fn content(file: &HostFile) -> Vec<u8> {
    let mut bytes = vec![0; fstat(file).unwrap().st_size as usize];
    assert_eq!(rustix::io::pread(file, &mut bytes, 0).unwrap(), bytes.len());
    bytes
}

fn carrier(kernel: &Double) -> LiveUpdateCarrier {
    LiveUpdateCarrier::new(kernel.open().unwrap(), None)
}

fn shop() -> SessionName {
    SessionName::new("shop").unwrap()
}

fn keep_in(
    carrier: &LiveUpdateCarrier,
    session: &str,
    file: &HostFile,
) -> Result<Handle, luo_core::Failure> {
    let session = SessionName::new(session).unwrap();
    let len = fstat(file).unwrap().st_size as u64;
    carrier.for_session(&session).unwrap().keep_memory(file, len)
}

fn name(text: &str) -> Name {
    Name::new(text.as_bytes()).unwrap()
}

/// Takes up what came, as the agent of the next kernel does.
fn arrive(device: Arc<Device>) -> Result<LiveUpdateCarrier, luo_core::Failure> {
    let mut arrived = Arrived::new(device.retrieve(name(AGENT_SESSION)).unwrap())?;
    for number in 0..arrived.catalogue.sessions.len() {
        let session = device.retrieve(arrived.catalogue.sessions[number]);
        arrived.retrieved(number, session);
    }
    Ok(LiveUpdateCarrier::new(device, Some(arrived)))
}

/// Two sessions, memory and bytes, committed.
fn departed() -> (Double, LiveUpdateCarrier, [Handle; 4]) {
    let kernel = Double::default();
    let carrier = carrier(&kernel);
    let one = keep_in(&carrier, "shop", &memfd(&[7; 10_000])).unwrap();
    let two = keep_in(&carrier, "till", &memfd(b"second")).unwrap();
    let bytes = carrier.keep_bytes(b"a record").unwrap();
    let none = carrier.keep_bytes(b"").unwrap();
    carrier.commit(b"the handover").unwrap();
    (kernel, carrier, [one, two, bytes, none])
}

#[test]
fn everything_kept_comes_back_in_the_next_kernel() {
    let (kernel, _carrier, [one, two, bytes, none]) = departed();
    let next = kernel.kexec();
    let carrier = arrive(next.open().unwrap()).unwrap();
    assert_eq!(carrier.committed().unwrap().unwrap(), b"the handover");
    assert_eq!(content(&carrier.memory(one).unwrap()), [7; 10_000]);
    assert_eq!(content(&carrier.memory(two).unwrap()), b"second");
    assert_eq!(carrier.bytes(bytes).unwrap(), b"a record");
    assert_eq!(carrier.bytes(none).unwrap(), b"");
    // As often as it is asked for.
    assert_eq!(content(&carrier.memory(two).unwrap()), b"second");
    for (wrong, errno) in [(Handle(1), Errno::NoEnt), (bytes, Errno::NoEnt)] {
        assert_eq!(carrier.memory(wrong).unwrap_err().errno(), errno);
    }
    assert_eq!(carrier.bytes(one).unwrap_err().errno(), Errno::NoEnt);
}

#[test]
fn what_a_client_has_put_into_a_kernel_session_of_its_own_comes_back_to_it() {
    let kernel = Double::default();
    let carrier = carrier(&kernel);
    let own = client_name(1001, "vm").unwrap();
    let (session, made) = carrier.client(own).unwrap();
    assert!(made && !carrier.client(own).unwrap().1, "it is made once");
    session.preserve(0, memfd(b"of the client").as_fd()).unwrap();
    // luod's own files of that session go elsewhere, so that a cancel takes them out.
    let handle = keep_in(&carrier, "vm", &memfd(b"of luod")).unwrap();
    carrier.forget(handle);
    assert_eq!(kernel.preserved(), 1);
    carrier.commit(b"x").unwrap();
    assert!(carrier.outgoing().iter().any(|(name, _)| *name == own), "the keeper holds it");
    assert_eq!(carrier.has_client(&own), (true, false));

    let next = kernel.kexec();
    let carrier = arrive(next.open().unwrap()).unwrap();
    let other = client_name(1002, "vm").unwrap();
    let refused = carrier.came_for_client(&other).err().expect("another owner's");
    assert_eq!(refused.errno(), Errno::NoEnt);
    assert_eq!(carrier.has_client(&other), (false, false));
    assert_eq!(carrier.has_client(&own), (false, true));
    let came = carrier.came_for_client(&own).unwrap();
    assert_eq!(content(&HostFile::from(came.fetch(0).unwrap())), b"of the client");
    carrier.retire().unwrap();
    assert!(carrier.end().is_empty());
    assert_eq!((next.unfinished(), next.freed()), (0, 0));
    assert_eq!(carrier.has_client(&own), (false, false));
}

#[test]
fn what_a_client_does_not_fetch_is_freed_with_the_end_of_the_update() {
    let kernel = Double::default();
    let before = carrier(&kernel);
    let own = client_name(0, "vm").unwrap();
    before.client(own).unwrap().0.preserve(7, memfd(b"forgotten").as_fd()).unwrap();
    before.commit(b"x").unwrap();
    let next = kernel.kexec();
    let carrier = arrive(next.open().unwrap()).unwrap();
    carrier.retire().unwrap();
    assert!(carrier.end().is_empty());
    assert_eq!((next.unfinished(), next.freed()), (0, 1));
    let refused = carrier.came_for_client(&own).err().expect("it is over");
    assert_eq!(refused.errno(), Errno::NoEnt);
}

#[test]
fn a_kernel_session_that_a_client_gives_back_is_undone() {
    let kernel = Double::default();
    let first = carrier(&kernel);
    let own = client_name(0, "vm").unwrap();
    let (session, _) = first.client(own).unwrap();
    session.preserve(1, memfd(b"x").as_fd()).unwrap();
    // The agent dies; the descriptor is in the keeper meanwhile.
    drop(first);
    let carrier = carrier(&kernel);
    carrier.adopt_client(own, session);
    assert!(!carrier.client(own).unwrap().1 && carrier.has_clients());
    assert!(carrier.forget_client(&own) && !carrier.forget_client(&own));
    assert_eq!((kernel.preserved(), kernel.sessions().len()), (0, 0));
    assert!(!carrier.has_clients());
}

#[test]
fn clients_kernel_sessions_have_names_of_their_own() {
    let text = |uid, session: &str| {
        let name = client_name(uid, session).unwrap();
        String::from_utf8(name.as_bytes_without_nul().to_vec()).unwrap()
    };
    assert_eq!(text(1001, "vm"), "luo-own/1001/vm");
    let (long, other) = ("x".repeat(63), format!("{}y", "x".repeat(62)));
    let names = [text(1001, &long), text(1001, &other), text(1002, &long)];
    assert!(names.iter().all(|name| name.len() <= KERNEL_NAME_MAX), "{names:?}");
    assert!(names[0] != names[1] && names[0] != names[2], "{names:?}");
}

#[test]
fn three_kernels_in_a_row_lose_nothing() {
    let mut kernel = Double::default();
    let mut now = carrier(&kernel);
    let mut file = memfd(&[42; 5_000]);
    for round in 0..3_u8 {
        let handle = keep_in(&now, "shop", &file).unwrap();
        let note = now.keep_bytes(&[round]).unwrap();
        now.commit(b"x").unwrap();
        kernel = kernel.kexec();
        now = arrive(kernel.open().unwrap()).unwrap();
        file = now.memory(handle).unwrap();
        assert_eq!(now.bytes(note).unwrap(), [round]);
        assert_eq!(content(&file), [42; 5_000]);
        now.retire().unwrap();
        assert!(now.end().is_empty());
        assert_eq!((kernel.unfinished(), kernel.freed()), (0, 0));
        assert_eq!(content(&file), [42; 5_000]);
    }
}

#[test]
fn each_session_has_its_kernel_session_and_they_go_with_the_last_of_their_objects() {
    let kernel = Double::default();
    let carrier = carrier(&kernel);
    let (file, other) = (memfd(b"1"), memfd(b"2"));
    let one = keep_in(&carrier, "shop", &file).unwrap();
    let two = keep_in(&carrier, "shop", &other).unwrap();
    let three = carrier.keep_memory(&memfd(b"3"), 1).unwrap();
    assert_eq!(kernel.sessions(), ["luo/shop", "luo/"]);
    carrier.forget(one);
    // One file cannot be taken out of a session.
    assert_eq!(kernel.preserved(), 3);
    carrier.forget(two);
    assert_eq!(kernel.sessions(), ["luo/"]);
    carrier.forget(three);
    carrier.forget(three);
    assert_eq!((kernel.sessions().len(), kernel.preserved()), (0, 0));
}

#[test]
fn a_file_that_was_forgotten_is_taken_up_again_where_the_kernel_still_has_it() {
    let kernel = Double::default();
    let carrier = carrier(&kernel);
    let file = memfd(b"again");
    let stays = keep_in(&carrier, "shop", &memfd(b"stays")).unwrap();
    let first = keep_in(&carrier, "shop", &file).unwrap();
    carrier.forget(first);
    let again = keep_in(&carrier, "shop", &file).unwrap();
    assert_ne!(first, again);
    carrier.commit(b"x").unwrap();
    let next = arrive(kernel.kexec().open().unwrap()).unwrap();
    assert_eq!(content(&next.memory(again).unwrap()), b"again");
    assert_eq!(content(&next.memory(stays).unwrap()), b"stays");
    assert_eq!(next.memory(first).unwrap_err().errno(), Errno::NoEnt);
}

#[test]
fn a_preserved_file_keeps_its_size_and_has_no_holes_until_it_is_forgotten() {
    let kernel = Double::default();
    let carrier = carrier(&kernel);
    let file = memfd(b"x");
    ftruncate(&file, 1 << 20).unwrap();
    let handle = keep_in(&carrier, "shop", &file).unwrap();
    assert_eq!(fstat(&file).unwrap().st_blocks, (1 << 20) / 512);
    assert_eq!(kernel.truncate(&file, 1).unwrap_err().raw_os_error(), Some(1));
    // Writing goes on, and what is written is what arrives.
    rustix::io::pwrite(&file, b"later", 4096).unwrap();
    carrier.refresh_memory(handle, &file, 1 << 20).unwrap();
    assert_eq!(carrier.refresh_memory(handle, &file, 2 << 20).unwrap_err().errno(), Errno::Inval);
    carrier.commit(b"x").unwrap();
    let next = arrive(kernel.kexec().open().unwrap()).unwrap();
    assert_eq!(&content(&next.memory(handle).unwrap())[4096..4101], b"later");
    assert!(carrier.retire().is_ok());
    carrier.forget(handle);
    kernel.truncate(&file, 1).unwrap();
}

#[test]
fn what_this_kernel_cannot_keep_is_found_out_by_trying_and_told_in_a_sentence() {
    let kernel = Double::default();
    let carrier = carrier(&kernel);
    let (reader, _writer) = rustix::pipe::pipe().unwrap();
    let pipe = HostFile::from(reader);
    carrier.probe(None).unwrap();
    let refused = carrier.probe(Some(&pipe)).unwrap_err();
    assert_eq!(refused.errno(), Errno::NoEnt);
    assert!(refused.reason().contains("cannot keep an open file of this type"), "{refused}");
    let shop = shop();
    let refused = carrier.for_session(&shop).unwrap().keep_live(&pipe).unwrap_err();
    assert_eq!(refused.errno(), Errno::NoEnt);
    assert_eq!((kernel.sessions().len(), kernel.preserved()), (0, 0));
    // A file that it can keep is kept live too.
    let file = memfd(b"live");
    let handle = carrier.for_session(&shop).unwrap().keep_live(&file).unwrap();
    carrier.commit(b"x").unwrap();
    let next = arrive(kernel.kexec().open().unwrap()).unwrap();
    assert_eq!(content(&next.live(handle).unwrap()), b"live");
    assert_eq!(next.memory(handle).unwrap_err().errno(), Errno::NoEnt);
}

#[test]
fn a_file_that_somebody_else_has_preserved_is_refused() {
    let kernel = Double::default();
    let carrier = carrier(&kernel);
    let file = memfd(b"x");
    let _one = keep_in(&carrier, "shop", &file).unwrap();
    let refused = keep_in(&carrier, "till", &file).unwrap_err();
    assert_eq!(refused.errno(), Errno::Busy);
    assert_eq!(kernel.sessions(), ["luo/shop"]);
}

#[test]
fn names_that_are_taken_or_too_long_get_others_and_all_fit() {
    let long = "n".repeat(63);
    let other = format!("{}m", &long[..62]);
    for number in 0..3 {
        for session in [long.as_str(), "x"] {
            let name = candidate(session, number);
            assert!(name.len() <= KERNEL_NAME_MAX && name.starts_with("luo/"), "{name}");
        }
        assert_ne!(candidate(&long, number), candidate(&other, number));
    }
    let kernel = Double::default();
    let device = kernel.open().unwrap();
    let _foreign = device.create(name("luo/shop")).unwrap();
    let carrier = LiveUpdateCarrier::new(device, None);
    let handle = keep_in(&carrier, "shop", &memfd(b"mine")).unwrap();
    let long = keep_in(&carrier, &long, &memfd(b"long")).unwrap();
    carrier.commit(b"x").unwrap();
    assert_eq!(kernel.sessions().len(), 4);
    let next = arrive(kernel.kexec().open().unwrap()).unwrap();
    assert_eq!(content(&next.memory(handle).unwrap()), b"mine");
    assert_eq!(content(&next.memory(long).unwrap()), b"long");
}

#[test]
fn a_second_agent_is_told_that_there_is_one() {
    let kernel = Double::default();
    let first = kernel.open().unwrap();
    let refused = kernel.open().err().unwrap();
    let failure = open_failed("/dev/liveupdate", refused);
    assert_eq!(failure.errno(), Errno::Busy);
    assert!(failure.reason().contains("another agent"), "{failure}");
    drop(first);
    kernel.open().unwrap();
}

#[test]
fn errors_of_open_say_what_to_do() {
    let told = |errno: Raw| open_failed("/dev/liveupdate", errno.into());
    for (errno, word, given) in [
        (Raw::NOENT, "liveupdate=on", Errno::NoEnt),
        (Raw::BUSY, "another agent", Errno::Busy),
        (Raw::IO, "dmesg", Errno::Io),
        (Raw::ACCESS, "root", Errno::Perm),
        (Raw::NODEV, "cannot be opened", Errno::Io),
    ] {
        let failure = told(errno);
        assert!(failure.reason().contains(word), "{failure}");
        assert_eq!(failure.errno(), given);
    }
}

#[test]
fn a_session_that_is_closed_unfetched_is_lost_and_one_that_is_held_elsewhere_is_not() {
    let (kernel, _old, [one, two, ..]) = departed();
    let next = kernel.kexec();
    let device = next.open().unwrap();
    // The keeper's copies.
    let held: Vec<Session> = ["luod", "luo/shop", "luo/till"]
        .map(|session| device.retrieve(name(session)).unwrap())
        .into();
    assert_eq!(device.retrieve(name("luod")).err().unwrap().raw_os_error(), Some(22));
    // Workers come and die, each after something else.
    for fetched in 0..3 {
        let mut arrived = Arrived::new(Arc::clone(&held[0])).unwrap();
        for number in 0..2 {
            let text = arrived.catalogue.sessions[number];
            let at = if text == name("luo/shop") { 1 } else { 2 };
            arrived.retrieved(number, Ok(Arc::clone(&held[at])));
        }
        let worker = LiveUpdateCarrier::new(Arc::clone(&device) as Arc<_>, Some(arrived));
        if fetched > 0 {
            assert_eq!(content(&worker.memory(one).unwrap()), [7; 10_000]);
        }
        if fetched > 1 {
            assert_eq!(content(&worker.memory(two).unwrap()), b"second");
            worker.retire().unwrap();
        }
        drop(worker);
        assert_eq!((next.unfinished(), next.freed()), (3, 0));
    }
    // Without the copies: shop's file and till's were fetched, the kept bytes were not.
    drop(held);
    assert_eq!((next.unfinished(), next.freed()), (0, 1));
}

#[test]
fn nothing_is_finished_before_the_handover_is_retired_and_all_of_it_at_the_end() {
    let (kernel, _old, [one, ..]) = departed();
    let next = kernel.kexec();
    let carrier = arrive(next.open().unwrap()).unwrap();
    carrier.release(one);
    assert!(carrier.end().is_empty());
    assert_eq!(next.unfinished(), 3);
    assert_eq!(content(&carrier.memory(one).unwrap()), [7; 10_000]);
    carrier.retire().unwrap();
    assert!(carrier.is_retired() && carrier.committed().unwrap().is_none());
    assert_eq!(next.unfinished(), 3);
    assert!(carrier.end().is_empty());
    assert_eq!((next.unfinished(), next.freed()), (0, 2));
    assert_eq!(carrier.memory(one).unwrap_err().errno(), Errno::NoEnt);
}

#[test]
fn a_failed_fetch_is_that_files_error_and_final() {
    let (kernel, _old, [one, two, bytes, _]) = departed();
    let next = kernel.kexec();
    next.break_file("luo/shop", OWN_TOKENS, Raw::IO);
    let carrier = arrive(next.open().unwrap()).unwrap();
    for _ in 0..2 {
        let failure = carrier.memory(one).unwrap_err();
        assert_eq!(failure.errno(), Errno::Io);
        assert!(failure.reason().contains("final"), "{failure}");
    }
    assert_eq!(content(&carrier.memory(two).unwrap()), b"second");
    assert_eq!(carrier.bytes(bytes).unwrap(), b"a record");
}

#[test]
fn a_kernel_session_that_did_not_come_is_the_error_of_what_was_in_it() {
    let (kernel, _old, [one, two, ..]) = departed();
    let next = kernel.kexec();
    let device = next.open().unwrap();
    let _thief = device.retrieve(name("luo/shop")).unwrap();
    let carrier = arrive(device).unwrap();
    let failure = carrier.memory(one).unwrap_err();
    assert_eq!(failure.errno(), Errno::Inval);
    assert!(failure.reason().contains("somebody has retrieved"), "{failure}");
    assert_eq!(content(&carrier.memory(two).unwrap()), b"second");
}

#[test]
fn damage_is_found_and_spares_what_is_not_damaged() {
    let (kernel, carrier, [one, ..]) = departed();
    let record = carrier.for_session(&shop()).unwrap().keep_bytes(&[5; 5_000]).unwrap();
    carrier.commit(b"the handover").unwrap();
    let next = kernel.kexec();
    // Behind the eight bytes that lie down twice.
    next.damage(AGENT_SESSION, BYTES_TOKEN, 8 + 3);
    let carrier = arrive(next.open().unwrap()).unwrap();
    let failure = carrier.bytes(record).unwrap_err();
    assert_eq!(failure.errno(), Errno::Io);
    assert!(failure.reason().contains("token 1") && failure.reason().contains("damaged"));
    assert_eq!(content(&carrier.memory(one).unwrap()), [7; 10_000]);
    assert!(carrier.take_mended().is_empty());
}

#[test]
fn what_all_depend_on_is_there_twice() {
    let (kernel, _old, [.., bytes, none]) = departed();
    let next = kernel.kexec();
    next.damage(AGENT_SESSION, CATALOGUE_TOKEN, 70);
    next.damage(AGENT_SESSION, BYTES_TOKEN, 3);
    let device = next.open().unwrap();
    let arrived = Arrived::new(device.retrieve(name(AGENT_SESSION)).unwrap()).unwrap();
    let told = arrived.mended.clone().unwrap();
    assert!(told.contains("token 0") && told.contains("checksum"), "{told}");
    let carrier = LiveUpdateCarrier::new(device, Some(arrived));
    assert_eq!(carrier.committed().unwrap().unwrap(), b"the handover");
    assert_eq!(carrier.bytes(none).unwrap(), b"");
    assert_eq!(carrier.bytes(bytes).unwrap(), b"a record");
    let mended = carrier.take_mended();
    assert!(mended.len() == 1 && mended[0].contains("token 1"), "{mended:?}");
    assert!(carrier.take_mended().is_empty());
}

#[test]
fn where_both_are_damaged_both_are_named() {
    let (kernel, _old, [_, _, bytes, _]) = departed();
    let next = kernel.kexec();
    next.damage(AGENT_SESSION, BYTES_TOKEN, 3);
    next.damage(AGENT_SESSION, BYTES_COPY_TOKEN, 3);
    let carrier = arrive(next.open().unwrap()).unwrap();
    assert_eq!(carrier.bytes(bytes).unwrap_err().errno(), Errno::Io);
    drop(carrier);
    let (kernel, _old, _) = departed();
    let next = kernel.kexec();
    next.damage(AGENT_SESSION, CATALOGUE_TOKEN, 70);
    next.damage(AGENT_SESSION, CATALOGUE_COPY_TOKEN, 3);
    let failure = arrive(next.open().unwrap()).unwrap_err();
    assert_eq!(failure.errno(), Errno::Inval);
    for part in ["token 0", "checksum", "token 2", "next boot"] {
        assert!(failure.reason().contains(part), "{failure}");
    }
}

#[test]
fn what_an_older_luod_left_has_no_copies_and_is_read() {
    let (kernel, _old, [_, _, bytes, _]) = departed();
    let next = kernel.kexec();
    next.lose(AGENT_SESSION, CATALOGUE_COPY_TOKEN);
    next.lose(AGENT_SESSION, BYTES_COPY_TOKEN);
    let carrier = arrive(next.open().unwrap()).unwrap();
    assert_eq!(carrier.bytes(bytes).unwrap(), b"a record");
}

#[test]
fn a_failure_at_any_call_leaves_either_nothing_or_what_can_be_undone() {
    let errnos = [Raw::NOMEM, Raw::NOSPC, Raw::EXIST, Raw::BUSY, Raw::MFILE];
    let mut seen = std::collections::HashSet::new();
    for errno in errnos {
        for call in 0.. {
            let kernel = Double::default();
            let carrier = carrier(&kernel);
            kernel.fail_at(call, errno);
            let mut kept: Vec<Handle> = Vec::new();
            let files = [memfd(b"1"), memfd(b"2"), memfd(b"3")];
            let sessions = ["shop", "shop", "till"];
            let mut failed = false;
            for (file, session) in files.iter().zip(sessions) {
                match keep_in(&carrier, session, file) {
                    Ok(handle) => kept.push(handle),
                    Err(_) => failed = true,
                }
            }
            kept.push(carrier.keep_bytes(b"bytes").unwrap());
            let before = kernel.sessions();
            if carrier.commit(b"x").is_err() {
                failed = true;
                // No handover stands, and everything else does.
                assert_eq!(kernel.sessions(), before);
                carrier.commit(b"x").unwrap();
            }
            let Some(what) = kernel.failed() else {
                assert!(!failed);
                break;
            };
            seen.insert(what);
            // A name that is taken is no failure: another one is found. But for luod's own.
            let name_taken = errno == Raw::EXIST && what == "create";
            assert!(failed || name_taken, "call {call}, {what}: {errno}");
            let next = arrive(kernel.kexec().open().unwrap()).unwrap();
            for (handle, _) in kept.iter().zip(&files).take(kept.len() - 1) {
                assert_eq!(content(&next.memory(*handle).unwrap()).len(), 1);
            }
            carrier.retire().unwrap();
            kept.iter().for_each(|handle| carrier.forget(*handle));
            assert_eq!((kernel.sessions().len(), kernel.preserved()), (0, 0), "call {call}");
        }
    }
    assert_eq!(seen, ["create", "preserve"].into());
}

#[test]
fn a_failure_at_any_call_of_an_arrival_loses_nothing() {
    for call in 0.. {
        let (kernel, _old, [one, two, bytes, _]) = departed();
        let next = kernel.kexec();
        let device = next.open().unwrap();
        // Copies of everything, as a keeper has them.
        let copies = ["luod", "luo/shop", "luo/till"]
            .map(|session| (name(session), device.retrieve(name(session)).unwrap()));
        let find = |wanted: Name| {
            copies.iter().find(|(name, _)| *name == wanted).map(|(_, copy)| Arc::clone(copy))
        };
        let attempt = || -> Result<(), luo_core::Failure> {
            let mut arrived = Arrived::new(find(name("luod")).unwrap())?;
            for number in 0..2 {
                let session = find(arrived.catalogue.sessions[number]).unwrap();
                arrived.retrieved(number, Ok(session));
            }
            let carrier = LiveUpdateCarrier::new(Arc::clone(&device) as Arc<_>, Some(arrived));
            assert_eq!(content(&carrier.memory(one)?), [7; 10_000]);
            assert_eq!(content(&carrier.memory(two)?), b"second");
            assert_eq!(carrier.bytes(bytes)?, b"a record");
            Ok(())
        };
        next.fail_at(call, Raw::MFILE);
        let first = attempt();
        assert_eq!((next.unfinished(), next.freed()), (3, 0));
        if next.failed().is_none() {
            first.unwrap();
            break;
        }
        // What is there twice need not come from where it failed.
        if let Err(failure) = first {
            assert_eq!(failure.errno(), Errno::MFile);
        }
        attempt().unwrap();
    }
}

#[test]
fn a_session_that_cannot_be_finished_is_told_and_harms_no_other() {
    let (kernel, _old, _) = departed();
    let next = kernel.kexec();
    let carrier = arrive(next.open().unwrap()).unwrap();
    carrier.retire().unwrap();
    next.fail_at(1, Raw::BUSY);
    let failed = carrier.end();
    assert_eq!(failed.len(), 1);
    assert_eq!(failed[0].errno(), Errno::Busy);
    // Its last copy is closed here: the kernel finishes it then.
    assert_eq!(next.unfinished(), 0);
}

#[test]
fn a_commit_replaces_the_one_before_and_can_be_taken_back() {
    let kernel = Double::default();
    let carrier = carrier(&kernel);
    let handle = keep_in(&carrier, "shop", &memfd(b"1")).unwrap();
    carrier.commit(b"first").unwrap();
    let note = carrier.keep_bytes(b"more").unwrap();
    carrier.commit(b"second").unwrap();
    let next = arrive(kernel.kexec().open().unwrap()).unwrap();
    assert_eq!(next.committed().unwrap().unwrap(), b"second");
    assert_eq!(next.bytes(note).unwrap(), b"more");
    assert_eq!(carrier.outgoing().len(), 2);
    carrier.retire().unwrap();
    assert_eq!(kernel.sessions(), ["luo/shop"]);
    assert_eq!(carrier.outgoing().len(), 1);
    carrier.forget(handle);
    assert!(kernel.sessions().is_empty());
}

#[test]
fn keeping_that_is_cancelled_leaves_nothing() {
    let kernel = Double::default();
    let cancelled = |done: u64, _: u64| match done {
        0 => Ok(()),
        _ => Err(luo_core::Failure::new(Errno::Canceled, "cancelled")),
    };
    let carrier = carrier(&kernel).with_progress(Box::new(cancelled));
    let refused = keep_in(&carrier, "shop", &memfd(b"1")).unwrap_err();
    assert_eq!(refused.errno(), Errno::Canceled);
    assert_eq!((kernel.sessions().len(), kernel.preserved()), (0, 0));
}
