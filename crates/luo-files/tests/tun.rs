//! Interfaces of tun and tap through a whole update with a carrier that copies, each test in a network
//! namespace of its own. Needs `/dev/net/tun`, and privilege: without it says SKIPPED.

mod common;
mod namespace;

use std::net::UdpSocket;
use std::os::fd::{AsFd, OwnedFd};
use std::process::Command;
use std::sync::atomic::Ordering;

use common::{Before, Copier, across, refusal};
use luo_abi::record::TunRecord;
use luo_core::{Errno, Event, Handler, Keep};
use luo_files::{Anew, Tun};
use luo_sys::{Tun as Device, TunNumber, TunSetting};
use namespace::in_network_namespace;
use rustix::fs::{Mode, OFlags, fcntl_getfl};
use rustix::io::{Errno as Raw, read};

const TUN: u16 = 1;
const TAP: u16 = 2;
const NO_PI: u16 = 0x1000;
const HEADER: u16 = 0x4000;
const QUEUES: u16 = 0x100;

/// Runs it where there is such a device and it may be used.
fn with_device(name: &str, body: impl FnOnce()) {
    in_network_namespace(name, || match try_open() {
        Ok(file) if device(&file).attach(b"probe", TUN).is_ok() => {
            drop(file);
            body();
        }
        other => println!("SKIPPED: no interface of tun can be made: {other:?}"),
    });
}

fn try_open() -> Result<OwnedFd, Raw> {
    let flags = OFlags::RDWR | OFlags::NONBLOCK | OFlags::CLOEXEC;
    rustix::fs::open("/dev/net/tun", flags, Mode::empty())
}

fn device(file: &OwnedFd) -> Device<'_> {
    Device::new(file.as_fd()).unwrap()
}

fn attached(name: &str, flags: u16) -> OwnedFd {
    let file = try_open().unwrap();
    device(&file).attach(name.as_bytes(), flags).unwrap();
    file
}

fn ip(arguments: &str) {
    let ran = Command::new("ip").args(arguments.split(' ')).output().unwrap();
    assert!(ran.status.success(), "{}", String::from_utf8_lossy(&ran.stderr));
}

/// Everything that is kept of one.
fn record(file: &OwnedFd) -> TunRecord {
    let carrier = Copier::default();
    let handler = Anew::<Tun>::new();
    let file = luo_carriers::HostFile::from(file.try_clone().unwrap());
    assert!(handler.can_preserve(&file));
    let data = handler.freeze(&file, 0, &carrier).unwrap();
    TunRecord::decode(&carrier.get(luo_core::Handle(data)).unwrap()).unwrap()
}

#[test]
fn a_tun_comes_back_under_its_name_and_packets_are_read_from_it() {
    with_device("a_tun_comes_back_under_its_name_and_packets_are_read_from_it", || {
        let file = attached("vpn%d", TUN | NO_PI);
        assert_eq!(device(&file).interface().unwrap().unwrap().0, b"vpn0");
        device(&file).set_number(TunNumber::SendBuffer, 100_000).unwrap();
        device(&file).set(TunSetting::Link, 512).unwrap();
        let flags = fcntl_getfl(&file).unwrap();
        let before = record(&file);
        assert_eq!(
            (before.flags, before.send_buffer),
            (TunRecord::TUN | TunRecord::NO_PI, 100_000)
        );
        assert_eq!((before.owner, before.group, before.link), (u32::MAX, u32::MAX, 512));
        let again = across(vec![file]).pop().unwrap();
        assert_eq!(record(&again), before);
        assert_eq!(fcntl_getfl(&again).unwrap(), flags);
        ip("addr add 10.9.8.7/24 dev vpn0");
        ip("link set vpn0 up");
        let socket = UdpSocket::bind("10.9.8.7:0").unwrap();
        socket.send_to(b"through the tunnel", "10.9.8.8:9").unwrap();
        let mut packet = [0; 2000];
        loop {
            // The kernel has words of its own (router solicitations) to say.
            let len = read(&again, &mut packet).unwrap();
            if packet[..len].ends_with(b"through the tunnel") {
                break;
            }
        }
        // No information is before it: an Internet header is first.
        assert_eq!(packet[0], 0x45);
    });
}

#[test]
fn queues_header_offload_owner_and_address_of_a_tap_come_back() {
    with_device("queues_header_offload_owner_and_address_of_a_tap_come_back", || {
        let flags = TAP | NO_PI | HEADER | QUEUES;
        let (one, other) = (attached("tap7", flags), attached("tap7", flags));
        let device = device(&one);
        device.set_number(TunNumber::Header, 12).unwrap();
        device.set_number(TunNumber::LittleEndian, 1).unwrap();
        device.set(TunSetting::Offload, 0b111).unwrap();
        device.set(TunSetting::Owner, 1234).unwrap();
        device.set(TunSetting::Persist, 1).unwrap();
        device.set_address(1, [2, 0, 0, 1, 2, 3]).unwrap();
        Device::new(other.as_fd()).unwrap().detach_queue().unwrap();
        let before = (record(&one), record(&other));
        assert_eq!((before.0.header, before.0.offload, before.0.owner), (12, 0b111, 1234));
        assert_eq!(before.0.address, [2, 0, 0, 1, 2, 3]);
        assert_ne!(before.0.flags & TunRecord::PERSIST, 0);
        assert_eq!(before.0.flags | TunRecord::DETACHED, before.1.flags);
        let mut kept = Before::new(vec![other, one]).unwrap();
        kept.keep().unwrap();
        let mut after = kept.depart();
        // As in another kernel, where nothing is there.
        ip("link del tap7");
        let again = (after.retrieve(2).unwrap(), after.retrieve(1).unwrap());
        assert_eq!((record(&again.0), record(&again.1)), before);
        after.finish();
        drop(again);
        // Nobody has it open, and it is there.
        ip("link show tap7");
    });
}

#[test]
fn one_that_is_attached_to_nothing_comes_back_so() {
    with_device("one_that_is_attached_to_nothing_comes_back_so", || {
        let again = across(vec![try_open().unwrap()]).pop().unwrap();
        assert_eq!(device(&again).interface().unwrap(), None);
        assert_eq!(record(&again).name, b"");
        device(&again).attach(b"late", TUN).unwrap();
    });
}

#[test]
fn an_interface_in_another_network_namespace_is_refused() {
    with_device("an_interface_in_another_network_namespace_is_refused", || {
        let file = attached("moved", TUN);
        let child = Command::new("unshare").args(["--net", "sleep", "60"]).spawn().unwrap();
        struct Ended(std::process::Child);
        impl Drop for Ended {
            fn drop(&mut self) {
                let _ = self.0.kill();
                let _ = self.0.wait();
            }
        }
        let child = Ended(child);
        let own = std::fs::read_link("/proc/self/ns/net").unwrap();
        let path = format!("/proc/{}/ns/net", child.0.id());
        while std::fs::read_link(&path).unwrap() == own {
            std::thread::yield_now();
        }
        ip(&format!("link set moved netns {}", child.0.id()));
        let reason = refusal(file);
        assert!(reason.contains("another network namespace"), "{reason}");
    });
}

#[test]
fn a_full_carrier_and_a_cancelled_update_leave_it_as_it_was() {
    with_device("a_full_carrier_and_a_cancelled_update_leave_it_as_it_was", || {
        let file = attached("stays", TUN | NO_PI);
        let was = record(&file);
        let mut before = Before::new(vec![file.try_clone().unwrap()]).unwrap();
        before.carrier.refuse_after.store(1, Ordering::Relaxed);
        assert_eq!(before.keep().unwrap_err().errno(), Errno::NoSpc);
        before.carrier.refuse_after.store(0, Ordering::Relaxed);
        before.keep().unwrap();
        before.event(Event::Cancel).unwrap();
        assert_eq!(record(&file), was);
    });
}

#[test]
fn a_damaged_record_or_a_taken_name_is_an_error_and_leaves_no_interface() {
    with_device("a_damaged_record_or_a_taken_name_is_an_error_and_leaves_no_interface", || {
        let carrier = Copier::default();
        let handler = Anew::<Tun>::new();
        let file = attached("mine", TUN | NO_PI);
        let record = record(&file);
        let handle = carrier.keep_bytes(&record.encode().unwrap()).unwrap();
        // It is attached elsewhere.
        assert_eq!(handler.retrieve(handle.0, &carrier).unwrap_err().errno(), Errno::Busy);
        drop(file);
        common::wait_until_closed();
        let whole = carrier.get(handle).unwrap();
        for cut in 0..whole.len() {
            let damaged = carrier.keep_bytes(&whole[..cut]).unwrap();
            assert_eq!(handler.retrieve(damaged.0, &carrier).unwrap_err().errno(), Errno::Inval);
        }
        assert!(luo_sys::interface_features(b"mine").is_err());
        handler.retrieve(handle.0, &carrier).unwrap();
    });
}
