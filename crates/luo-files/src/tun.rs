//! `tun-v1`: network interfaces of tun and tap, as descriptors of `/dev/net/tun`.
//!
//! Kept: the interface's name, whether it is a tun or a tap, whether information or a header of virtio
//! comes before packets, and its length and byte order; offload; owner and group; whether it is
//! persistent; which of several queues it is, attached or detached; the limit of what waits to be
//! sent; a tap's address, the type of a tun's link; access mode and status flags. One that is attached
//! to no interface comes back as that.
//!
//! Reset: FD_CLOEXEC (it is set), what `F_SETOWN` and its like have set, packets that wait to be read,
//! programs that steer or filter packets, the carrier (it is there). Addresses, routes, MTU and whether
//! the interface is up are the network's: who sets it up at the start of the machine does so.
//!
//! Refused, with a reason: interfaces in another network namespace than luod's, those with a filter of
//! the socket's, those that the kernel does not describe, all of them where luod has no
//! CAP_NET_ADMIN.
//!
//! Invariants: each descriptor is made by itself: the first one of an interface with several queues
//! makes the interface, the others attach to it.

use std::os::fd::{AsFd, OwnedFd};

use luo_abi::record::{OpenFlags, TUN_COMPATIBLE, TunRecord};
use luo_carriers::{FileKind, HostFile};
use luo_core::{Errno, Failure};
use luo_sys::{Tun as Device, TunNumber, TunSetting};
use rustix::fs::{Mode, fstat};

use crate::anew::{Described, damaged, indescribable};
use crate::fail::{system, unsupported};
use crate::{netlink, open};

const PATH: &str = "/dev/net/tun";

/// The flags of `TUNSETIFF`, and those of records.
const FLAGS: [(u16, u32); 6] = [
    (0x0001, TunRecord::TUN),
    (0x0002, TunRecord::TAP),
    (0x0010, TunRecord::NAPI),
    (0x0020, TunRecord::NAPI_FRAGS),
    (0x0100, TunRecord::QUEUES),
    (0x4000, TunRecord::HEADER),
];
const IFF_NO_PI: u16 = 0x1000;
const IFF_DETACH_QUEUE: u16 = 0x0400;
const IFF_PERSIST: u16 = 0x0800;

/// What a feature of the interface means for who reads its packets. Segments of UDP are one feature
/// and two bits.
const OFFLOAD: [(&str, u32); 5] = [
    ("tx-checksum-ip-generic", 1),
    ("tx-tcp-segmentation", 2),
    ("tx-tcp6-segmentation", 4),
    ("tx-tcp-ecn-segmentation", 8),
    ("tx-udp-segmentation", 0x60),
];

/// `ARPHRD_NONE`: the type that a tun has unless it is given another.
const NO_LINK: u16 = 0xfffe;
/// Nobody.
const NONE: u32 = u32::MAX;

/// Interfaces of tun and tap.
#[derive(Debug)]
pub struct Tun;

impl Described for Tun {
    const COMPATIBLE: &'static str = TUN_COMPATIBLE;

    fn takes(file: &HostFile) -> bool {
        file.kind() == FileKind::CharDevice && Device::new(file.as_fd()).is_some()
    }

    fn describe(file: &HostFile) -> Result<Vec<u8>, Failure> {
        let failed = system("the interface cannot be looked at");
        let open = open::flags(file)?;
        if open.has(OpenFlags::PATH) {
            return Err(unsupported("/dev/net/tun that is open as a path (O_PATH): open it anew"));
        }
        let device = device(file)?;
        let record = match device.interface().map_err(&failed)? {
            None => TunRecord { open, ..TunRecord::bare() },
            Some((name, flags)) => {
                check_namespace(device)?;
                read(device, name, flags, open)?
            }
        };
        record.encode().map_err(indescribable("the interface"))
    }

    fn make(record: &[u8]) -> Result<HostFile, Failure> {
        let record = TunRecord::decode(record).map_err(damaged("the interface"))?;
        let how = open::access(record.open) | rustix::fs::OFlags::CLOEXEC;
        let file = rustix::fs::open(PATH, how, Mode::empty()).map_err(system(
            "/dev/net/tun cannot be opened (its module is to be loaded, and luod's unit to allow it: \
             DeviceAllow=/dev/net/tun rw)",
        ))?;
        if !record.name.is_empty() {
            attach(&file, &record)?;
        }
        open::set_status(&file, record.open)?;
        Ok(HostFile::from(file))
    }
}

fn device(file: &impl AsFd) -> Result<Device<'_>, Failure> {
    Device::new(file.as_fd())
        .ok_or_else(|| Failure::new(Errno::NoEnt, "/dev/net/tun is another device here"))
}

/// Sees that the interface is where luod would make it again, and that it may.
fn check_namespace(device: Device<'_>) -> Result<(), Failure> {
    let there = device.namespace().map_err(system(
        "the interface cannot be made again: luod needs CAP_NET_ADMIN for tun and tap \
         (AmbientCapabilities= and CapabilityBoundingSet= of its unit)",
    ))?;
    let failed = system("luod's network namespace cannot be looked at");
    let own = std::fs::File::open("/proc/thread-self/ns/net").map_err(&failed)?;
    let number = |file: &dyn AsFd| -> std::io::Result<_> {
        let stat = fstat(file.as_fd())?;
        Ok((stat.st_dev, stat.st_ino))
    };
    if number(&there).map_err(&failed)? == number(&own).map_err(&failed)? {
        return Ok(());
    }
    Err(unsupported(
        "the interface is in another network namespace than luod: run luod in that one, or have the \
         program make it anew",
    ))
}

fn read(
    device: Device<'_>,
    name: Vec<u8>,
    found: u16,
    open: OpenFlags,
) -> Result<TunRecord, Failure> {
    let failed = system("the interface cannot be looked at");
    let link = Link::read(&name)?;
    let mut flags = 0;
    for (bit, recorded) in FLAGS {
        if found & bit != 0 {
            flags |= recorded;
        }
    }
    let number = |which| device.number(which).map_err(&failed);
    // A kernel that does not know of foreign byte orders has none.
    let order = |which| device.number(which).is_ok_and(|value| value != 0);
    for (is, flag) in [
        (link.no_pi, TunRecord::NO_PI),
        (found & IFF_PERSIST != 0, TunRecord::PERSIST),
        (found & IFF_DETACH_QUEUE != 0, TunRecord::DETACHED),
        (order(TunNumber::LittleEndian), TunRecord::LITTLE_ENDIAN),
        (order(TunNumber::BigEndian), TunRecord::BIG_ENDIAN),
    ] {
        if is {
            flags |= flag;
        }
    }
    let tap = flags & TunRecord::TAP != 0;
    if tap && device.had_filter().map_err(&failed)? {
        return Err(unsupported(
            "the interface has, or had, a filter (TUNATTACHFILTER), which cannot be read: attach it \
             after the update",
        ));
    }
    let features = luo_sys::interface_features(&name).map_err(&failed)?;
    let offload = OFFLOAD
        .iter()
        .filter(|(feature, _)| features.iter().any(|name| name == feature))
        .fold(0, |all, (_, bits)| all | bits);
    let (kind, address) = device.address().map_err(&failed)?;
    Ok(TunRecord {
        name,
        owner: link.owner,
        group: link.group,
        send_buffer: number(TunNumber::SendBuffer)?.unsigned_abs(),
        header: number(TunNumber::Header)?.unsigned_abs(),
        offload,
        open,
        flags,
        link: kind,
        address: if tap { address } else { [0; 6] },
    })
}

fn attach(file: &OwnedFd, record: &TunRecord) -> Result<(), Failure> {
    let name = String::from_utf8_lossy(&record.name).into_owned();
    let failed = system(format!("the interface {name} cannot be made as it was"));
    let device = device(file)?;
    let has = |flag: u32| record.flags & flag != 0;
    let mut flags = if has(TunRecord::NO_PI) { IFF_NO_PI } else { 0 };
    for (bit, recorded) in FLAGS {
        if has(recorded) {
            flags |= bit;
        }
    }
    device.attach(&record.name, flags).map_err(system(format!(
        "the interface {name} cannot be had (luod needs CAP_NET_ADMIN, and nobody else may have it)"
    )))?;
    let number = |which, value: u32| {
        device.set_number(which, i32::try_from(value).unwrap_or(i32::MAX)).map_err(&failed)
    };
    number(TunNumber::Header, record.header)?;
    for (flag, which) in [
        (TunRecord::LITTLE_ENDIAN, TunNumber::LittleEndian),
        (TunRecord::BIG_ENDIAN, TunNumber::BigEndian),
    ] {
        if has(flag) {
            number(which, 1)?;
        }
    }
    number(TunNumber::SendBuffer, record.send_buffer)?;
    let set = |what, value| device.set(what, value).map_err(&failed);
    set(TunSetting::Offload, record.offload)?;
    for (what, id) in [(TunSetting::Owner, record.owner), (TunSetting::Group, record.group)] {
        if id != NONE {
            set(what, id)?;
        }
    }
    set(TunSetting::Persist, has(TunRecord::PERSIST).into())?;
    let (link, address) = device.address().map_err(&failed)?;
    if has(TunRecord::TAP) && (link, address) != (record.link, record.address) {
        device.set_address(record.link, record.address).map_err(&failed)?;
    }
    // Of one that was there and is up it cannot be set, and is what it was.
    if has(TunRecord::TUN) && link != record.link && record.link != NO_LINK {
        set(TunSetting::Link, record.link.into())?;
    }
    if has(TunRecord::DETACHED) {
        device.detach_queue().map_err(&failed)?;
    }
    Ok(())
}

/// What only `rtnetlink` tells of an interface.
struct Link {
    owner: u32,
    group: u32,
    no_pi: bool,
}

impl Link {
    fn read(name: &[u8]) -> Result<Self, Failure> {
        const RTM_GETLINK: u16 = 18;
        const IFINFOMSG: usize = 16;
        const IFLA_IFNAME: u16 = 3;
        const IFLA_LINKINFO: u16 = 18;
        const IFLA_INFO_DATA: u16 = 2;
        const IFLA_TUN_OWNER: u16 = 1;
        const IFLA_TUN_GROUP: u16 = 2;
        const IFLA_TUN_PI: u16 = 4;
        let failed = system("the interface cannot be looked at");
        let mut body = vec![0; IFINFOMSG];
        netlink::attribute(&mut body, IFLA_IFNAME, &[name, &[0]].concat());
        let socket = netlink::socket().map_err(&failed)?;
        let answer = netlink::get(&socket, RTM_GETLINK, &body).map_err(&failed)?;
        let data = answer
            .get(IFINFOMSG..)
            .and_then(|attributes| netlink::find(attributes, IFLA_LINKINFO))
            .and_then(|info| netlink::find(info, IFLA_INFO_DATA))
            .ok_or_else(|| {
                unsupported("this kernel does not describe tun and tap: use a newer one")
            })?;
        let number = |kind| -> u32 {
            let value = netlink::find(data, kind).and_then(|value| value.first_chunk());
            value.map_or(NONE, |bytes| u32::from_ne_bytes(*bytes))
        };
        let no_pi = netlink::find(data, IFLA_TUN_PI) == Some(&[0]);
        Ok(Self { owner: number(IFLA_TUN_OWNER), group: number(IFLA_TUN_GROUP), no_pi })
    }
}
