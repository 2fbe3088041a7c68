//! Network interfaces, by way of rtnetlink: brought up, given an address and a way out.
//!
//! Invariants: every request asks for an acknowledgement and waits for it, so the next one finds it
//! done.

use std::fs;
use std::io;
use std::net::Ipv6Addr;
use std::os::fd::OwnedFd;

use rustix::net::netlink::SocketAddrNetlink;
use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, recv, sendto, socket_with,
};

/// Of the kernel's `linux/rtnetlink.h`, `linux/netlink.h`, `linux/if_addr.h` and `linux/if.h`.
const RTM_NEWLINK: u16 = 16;
const RTM_NEWADDR: u16 = 20;
const RTM_NEWROUTE: u16 = 24;
const NLM_F_REQUEST: u16 = 1;
const NLM_F_ACK: u16 = 4;
const NLM_F_CREATE: u16 = 0x400;
const NLMSG_ERROR: u16 = 2;
const IFA_ADDRESS: u16 = 1;
const IFA_LOCAL: u16 = 2;
const RTA_OIF: u16 = 4;
const RTA_GATEWAY: u16 = 5;
const IFF_UP: u32 = 1;
const AF_INET: u8 = 2;
const AF_INET6: u8 = 10;
/// Nobody else on the cable has the address: it is not looked for before it is used.
const IFA_F_NODAD: u8 = 2;
const RT_TABLE_MAIN: u8 = 254;
const RTPROT_BOOT: u8 = 3;
const RTN_UNICAST: u8 = 1;
const HEADER: usize = 16;

/// The number of an interface.
pub(crate) fn index(name: &str) -> io::Result<u32> {
    let text = fs::read_to_string(format!("/sys/class/net/{name}/ifindex"))?;
    text.trim().parse().map_err(io::Error::other)
}

/// The interfaces that have hardware behind them, in order.
pub(crate) fn hardware() -> io::Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in fs::read_dir("/sys/class/net")? {
        let entry = entry?;
        if entry.path().join("device").exists() {
            names.push(entry.file_name().to_string_lossy().into_owned());
        }
    }
    names.sort();
    Ok(names)
}

/// Brings an interface up.
pub(crate) fn up(index: u32) -> io::Result<()> {
    // struct ifinfomsg: family, pad, type, index, flags, change mask.
    let mut body = vec![0, 0, 0, 0];
    body.extend(index.to_ne_bytes());
    body.extend(IFF_UP.to_ne_bytes());
    body.extend(IFF_UP.to_ne_bytes());
    ask(RTM_NEWLINK, 0, &body)
}

/// Gives it an address.
pub(crate) fn add_address(index: u32, address: [u8; 4], prefix: u8) -> io::Result<()> {
    // struct ifaddrmsg: family, prefix length, flags, scope, index.
    let mut body = vec![AF_INET, prefix, 0, 0];
    body.extend(index.to_ne_bytes());
    attribute(&mut body, IFA_LOCAL, &address);
    attribute(&mut body, IFA_ADDRESS, &address);
    ask(RTM_NEWADDR, NLM_F_CREATE, &body)
}

/// Gives it an address that can be used at once.
pub(crate) fn add_address_v6(index: u32, address: Ipv6Addr, prefix: u8) -> io::Result<()> {
    let mut body = vec![AF_INET6, prefix, IFA_F_NODAD, 0];
    body.extend(index.to_ne_bytes());
    attribute(&mut body, IFA_ADDRESS, &address.octets());
    ask(RTM_NEWADDR, NLM_F_CREATE, &body)
}

/// Sends by way of a gateway what goes elsewhere.
pub(crate) fn add_default_route(index: u32, gateway: [u8; 4]) -> io::Result<()> {
    // struct rtmsg: family, lengths, tos, table, protocol, scope, type, flags.
    let mut body = vec![AF_INET, 0, 0, 0, RT_TABLE_MAIN, RTPROT_BOOT, 0, RTN_UNICAST];
    body.extend(0_u32.to_ne_bytes());
    attribute(&mut body, RTA_GATEWAY, &gateway);
    attribute(&mut body, RTA_OIF, &index.to_ne_bytes());
    ask(RTM_NEWROUTE, NLM_F_CREATE, &body)
}

/// All that are needed here have a multiple of four bytes, so none needs padding.
fn attribute<const LEN: usize>(body: &mut Vec<u8>, kind: u16, value: &[u8; LEN]) {
    const { assert!(LEN.is_multiple_of(4) && LEN < 256) };
    body.extend((4 + LEN as u16).to_ne_bytes());
    body.extend(kind.to_ne_bytes());
    body.extend(value);
}

fn message(kind: u16, flags: u16, body: &[u8]) -> Vec<u8> {
    let len = u32::try_from(HEADER + body.len()).unwrap_or(u32::MAX);
    let mut message = Vec::with_capacity(HEADER + body.len());
    message.extend(len.to_ne_bytes());
    message.extend(kind.to_ne_bytes());
    message.extend((NLM_F_REQUEST | NLM_F_ACK | flags).to_ne_bytes());
    message.extend(1_u32.to_ne_bytes());
    message.extend(0_u32.to_ne_bytes());
    message.extend(body);
    message
}

fn ask(kind: u16, flags: u16, body: &[u8]) -> io::Result<()> {
    let socket: OwnedFd = socket_with(
        AddressFamily::NETLINK,
        SocketType::RAW,
        SocketFlags::CLOEXEC,
        // NETLINK_ROUTE is number 0, which is what none is.
        None,
    )?;
    let kernel = SocketAddrNetlink::new(0, 0);
    sendto(&socket, &message(kind, flags, body), SendFlags::empty(), &kernel)?;
    let mut answer = [0; 4096];
    let (_, len) = recv(&socket, &mut answer, RecvFlags::empty())?;
    acknowledged(answer.get(..len).unwrap_or_default())
}

/// Reads `struct nlmsgerr`.
fn acknowledged(answer: &[u8]) -> io::Result<()> {
    let kind = answer.get(4..6).and_then(|bytes| bytes.try_into().ok()).map(u16::from_ne_bytes);
    let error = answer
        .get(HEADER..HEADER + 4)
        .and_then(|bytes| bytes.try_into().ok())
        .map(i32::from_ne_bytes);
    match (kind, error) {
        (Some(NLMSG_ERROR), Some(0)) => Ok(()),
        (Some(NLMSG_ERROR), Some(error)) => Err(io::Error::from_raw_os_error(error.wrapping_neg())),
        _ => Err(io::Error::other("the kernel's answer about the network makes no sense")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_keeps_its_errno() {
        let mut answer = message(NLMSG_ERROR, 0, &(-17_i32).to_ne_bytes());
        let error = acknowledged(&answer).expect_err("it was refused");
        assert_eq!(error.raw_os_error(), Some(17));
        answer.truncate(HEADER);
        assert!(acknowledged(&answer).is_err());
    }

    #[test]
    fn an_acknowledgement_is_no_error() {
        let answer = message(NLMSG_ERROR, 0, &0_i32.to_ne_bytes());
        assert!(acknowledged(&answer).is_ok());
    }

    #[test]
    fn the_kernel_understands_what_is_asked() {
        // Without privileges each is EPERM, which the kernel says after it has found the
        // request whole; as root on an interface that does not exist it is ENODEV.
        let nobody = u32::MAX >> 1;
        for asked in [
            up(nobody),
            add_address(nobody, [10, 0, 2, 15], 24),
            add_address_v6(nobody, Ipv6Addr::LOCALHOST, 128),
        ] {
            let errno = asked.expect_err("there is no such interface").raw_os_error();
            let known = [rustix::io::Errno::PERM, rustix::io::Errno::NODEV];
            assert!(known.iter().any(|known| Some(known.raw_os_error()) == errno), "{errno:?}");
        }
    }
}
