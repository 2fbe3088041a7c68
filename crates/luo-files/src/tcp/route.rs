//! A route to one peer, for as long as it takes to connect: through the loopback device, which is
//! there when no other is.
//!
//! Source: `rtnetlink(7)`.
//!
//! Invariants: it comes after every other route to that peer, and goes when it is dropped.

use std::io;
use std::net::IpAddr;
use std::os::fd::OwnedFd;
use std::sync::{Mutex, MutexGuard, PoisonError};

use rustix::net::AddressFamily;

use crate::netlink::{self, ask, attribute};

const RTM_NEWLINK: u16 = 16;
const RTM_NEWROUTE: u16 = 24;
const RTM_DELROUTE: u16 = 25;
const NLM_F_CREATE: u16 = 0x400;

const RTA_DST: u16 = 1;
const RTA_OIF: u16 = 4;
const RTA_PRIORITY: u16 = 6;
const RT_TABLE_MAIN: u8 = 254;
const RTPROT_STATIC: u8 = 4;
const RT_SCOPE_LINK: u8 = 253;
const RTN_UNICAST: u8 = 1;

/// The loopback device has this number in every network namespace.
const LOOPBACK: u32 = 1;
const IFF_UP: u32 = 1;
/// After all other routes.
const LAST: u32 = u32::MAX;

/// One at a time: connections have peers in common.
static ONE: Mutex<()> = Mutex::new(());

/// See the module.
pub(super) struct Route {
    socket: OwnedFd,
    to: IpAddr,
    _one: MutexGuard<'static, ()>,
}

/// Brings up the loopback device. Before that a kernel may have no table of its own addresses, and
/// takes an address that is to be bound for a broadcast.
pub(super) fn loopback() -> io::Result<()> {
    ask(&netlink::socket()?, RTM_NEWLINK, 0, &loopback_up())
}

impl Route {
    pub(super) fn to(to: IpAddr) -> io::Result<Self> {
        // What is mapped is routed as what it is.
        let to = to.to_canonical();
        let one = ONE.lock().unwrap_or_else(PoisonError::into_inner);
        let socket = netlink::socket()?;
        ask(&socket, RTM_NEWROUTE, NLM_F_CREATE, &route(to))?;
        Ok(Self { socket, to, _one: one })
    }
}

impl Drop for Route {
    fn drop(&mut self) {
        // It is the last of all routes, and leads nowhere: one that stays does as little as none.
        let _ = ask(&self.socket, RTM_DELROUTE, 0, &route(self.to));
    }
}

/// `struct rtmsg` and its attributes.
fn route(to: IpAddr) -> Vec<u8> {
    let (family, bits, scope, octets) = match to {
        IpAddr::V4(ip) => (AddressFamily::INET, 32, RT_SCOPE_LINK, ip.octets().to_vec()),
        IpAddr::V6(ip) => (AddressFamily::INET6, 128, 0, ip.octets().to_vec()),
    };
    let family = family.as_raw() as u8;
    let mut message =
        vec![family, bits, 0, 0, RT_TABLE_MAIN, RTPROT_STATIC, scope, RTN_UNICAST, 0, 0, 0, 0];
    attribute(&mut message, RTA_DST, &octets);
    attribute(&mut message, RTA_OIF, &LOOPBACK.to_ne_bytes());
    attribute(&mut message, RTA_PRIORITY, &LAST.to_ne_bytes());
    message
}

/// `struct ifinfomsg`.
fn loopback_up() -> Vec<u8> {
    let mut message = vec![0; 4];
    for word in [LOOPBACK, IFF_UP, IFF_UP] {
        message.extend_from_slice(&word.to_ne_bytes());
    }
    message
}
