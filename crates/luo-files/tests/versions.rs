//! Files that were kept by a handler of a version that this luo does not know.

mod common;

use std::ffi::CString;
use std::io::Write;
use std::net::{TcpListener, UdpSocket};
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::Path;

use common::{Before, own_ip};
use luo_carriers::HostFile;
use luo_core::{Caps, Errno};
use rustix::event::{EventfdFlags, epoll, eventfd};
use rustix::fs::{CWD, FileType, MemfdFlags, Mode, OFlags, inotify, memfd_create, mknodat};
use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
use rustix::time::{TimerfdClockId, TimerfdFlags, timerfd_create};

/// A file of each type, by the handler that has it.
fn samples(directory: &Path) -> Vec<(&'static str, Vec<OwnedFd>)> {
    let path = directory.join("file");
    let file = std::fs::File::create(&path).unwrap();
    let gone = directory.join("gone");
    let mut deleted = std::fs::File::create_new(&gone).unwrap();
    deleted.write_all(b"content").unwrap();
    std::fs::remove_file(gone).unwrap();
    // Another open file description of it, which is made along with the first.
    let along = format!("/proc/self/fd/{}", deleted.as_raw_fd());
    let along = std::fs::File::open(along).unwrap();
    let fifo = directory.join("fifo");
    mknodat(CWD, &fifo, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0).unwrap();
    let fifo = rustix::fs::open(&fifo, OFlags::RDWR | OFlags::CLOEXEC, Mode::empty()).unwrap();
    let pipe = rustix::pipe::pipe().unwrap();
    let pair = socketpair(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None);
    let pair = pair.unwrap();
    let mut samples = vec![
        ("record-v1", vec![luo_sys::seal("luo-record", b"bytes").unwrap()]),
        ("memfd-v1", vec![memfd_create("memory", MemfdFlags::ALLOW_SEALING).unwrap()]),
        ("eventfd-v1", vec![eventfd(1, EventfdFlags::empty()).unwrap()]),
        (
            "timerfd-v1",
            vec![timerfd_create(TimerfdClockId::Monotonic, TimerfdFlags::empty()).unwrap()],
        ),
        ("signalfd-v1", vec![luo_sys::signalfd(1 << 9, false).unwrap()]),
        ("epoll-v1", vec![epoll::create(epoll::CreateFlags::CLOEXEC).unwrap()]),
        ("inotify-v1", vec![inotify::init(inotify::CreateFlags::CLOEXEC).unwrap()]),
        ("pipe-v1", vec![pipe.0, pipe.1]),
        ("fifo-v1", vec![fifo]),
        ("deleted-v1", vec![deleted.into(), along.into()]),
        ("path-v1", vec![file.into()]),
        ("device-v1", vec![std::fs::File::open("/dev/null").unwrap().into()]),
        ("unix-v1", vec![pair.0, pair.1]),
        ("socket-v1", vec![UdpSocket::bind((own_ip(), 0)).unwrap().into()]),
        ("socket-v1", vec![TcpListener::bind((own_ip(), 0)).unwrap().into()]),
    ];
    let name = CString::new(format!("/luo-versions-{}", std::process::id())).unwrap();
    match luo_sys::make_queue(&name, 0o600, 2, 16) {
        Ok(queue) => {
            samples.push(("mqueue-v1", vec![queue]));
        }
        Err(error) => println!("SKIPPED: no message queues: {error}"),
    }
    match std::fs::File::options().read(true).write(true).open("/dev/net/tun") {
        Ok(file) => samples.push(("tun-v1", vec![file.into()])),
        Err(error) => println!("SKIPPED: no /dev/net/tun: {error}"),
    }
    samples
}

#[test]
fn a_file_of_an_unknown_version_is_refused_by_name_and_what_is_beside_it_comes_back() {
    // On a disk: a deleted file of tmpfs is memory.
    let directory = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    for (compatible, mut files) in samples(directory.path()) {
        let count = files.len() as u64;
        // Of another type than any of them, and not changed.
        let beside = match compatible {
            "device-v1" => eventfd(5, EventfdFlags::empty()).unwrap(),
            _ => std::fs::File::open("/dev/zero").unwrap().into(),
        };
        files.push(beside);
        let mut before = Before::new(files).unwrap();
        before.keep().unwrap();
        let newer = compatible.replace("-v1", "-v9");
        let mut after = before.depart_to(|carrier| {
            let mut found = 0;
            for bytes in carrier.kept.lock().unwrap().values_mut() {
                for at in 0..bytes.len() {
                    if bytes[at..].starts_with(compatible.as_bytes()) {
                        bytes[at..at + newer.len()].copy_from_slice(newer.as_bytes());
                        found += 1;
                    }
                }
            }
            assert_eq!(found, count, "{compatible}");
        });
        for token in 1..=count {
            let error = after.retrieve(token).unwrap_err();
            assert!(error.to_string().contains(&newer), "{compatible}: {error}");
            assert_eq!(error.errno(), Errno::NoEnt, "{error}");
        }
        after.retrieve(count + 1).unwrap();
    }
    let name = CString::new(format!("/luo-versions-{}", std::process::id())).unwrap();
    let _ = luo_sys::remove_queue(&name);
}

#[test]
fn every_handler_that_makes_files_anew_is_among_the_samples() {
    let directory = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let samples = samples(directory.path());
    for handler in luo_files::handlers() {
        let anew = (Caps::MEMORY | Caps::BYTES).contains(handler.requires());
        // What needs privilege has its own.
        let own = ["tcp-v1", "tun-v1", "mqueue-v1"].contains(&handler.compatible());
        let there = samples.iter().any(|(compatible, _)| *compatible == handler.compatible());
        assert!(!anew || own || there, "{} has no sample", handler.compatible());
    }
    for (compatible, files) in samples {
        let file = HostFile::from(files.into_iter().next().unwrap());
        let caps = Caps::MEMORY | Caps::BYTES;
        let taken = luo_files::handlers()
            .into_iter()
            .find(|handler| caps.contains(handler.requires()) && handler.can_preserve(&file));
        assert_eq!(taken.unwrap().compatible(), compatible);
    }
    let name = CString::new(format!("/luo-versions-{}", std::process::id())).unwrap();
    let _ = luo_sys::remove_queue(&name);
}
