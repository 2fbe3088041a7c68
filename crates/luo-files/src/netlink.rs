//! What the kernel's network is asked by messages.
//!
//! Source: `netlink(7)`, `rtnetlink(7)`.
//!
//! Invariants: an answer is not believed about its lengths.

use std::io;
use std::os::fd::OwnedFd;

use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, recv, send, socket_with,
};

const NLM_F_REQUEST: u16 = 1;
const NLM_F_ACK: u16 = 4;
const NLMSG_ERROR: u16 = 2;

const HEADER: usize = 16;
/// No answer to one question is longer.
const ANSWER: usize = 64 << 10;

/// A socket for the routes and interfaces of this network namespace.
pub(crate) fn socket() -> io::Result<OwnedFd> {
    // The protocol is NETLINK_ROUTE, which is zero.
    Ok(socket_with(AddressFamily::NETLINK, SocketType::RAW, SocketFlags::CLOEXEC, None)?)
}

/// Appends an attribute.
pub(crate) fn attribute(message: &mut Vec<u8>, kind: u16, value: &[u8]) {
    // At most 20 bytes.
    message.extend_from_slice(&(4 + value.len() as u16).to_ne_bytes());
    message.extend_from_slice(&kind.to_ne_bytes());
    message.extend_from_slice(value);
    message.resize(message.len().next_multiple_of(4), 0);
}

/// The value of the first attribute of that kind.
pub(crate) fn find(mut attributes: &[u8], wanted: u16) -> Option<&[u8]> {
    loop {
        let length = usize::from(u16::from_ne_bytes(*attributes.first_chunk()?));
        let kind = u16::from_ne_bytes(*attributes.get(2..)?.first_chunk()?);
        // The upper bits tell how the value is laid out.
        if kind & 0x3fff == wanted {
            return attributes.get(4..length);
        }
        attributes = attributes.get(length.max(4).next_multiple_of(4)..)?;
    }
}

/// Has something done.
pub(crate) fn ask(socket: &OwnedFd, kind: u16, flags: u16, body: &[u8]) -> io::Result<()> {
    exchange(socket, kind, NLM_F_ACK | flags, body).map(drop)
}

/// Asks for one message; gives what is behind its header.
pub(crate) fn get(socket: &OwnedFd, kind: u16, body: &[u8]) -> io::Result<Vec<u8>> {
    exchange(socket, kind, 0, body)
}

/// Sends one request, whose answer is there when it has been sent.
fn exchange(socket: &OwnedFd, kind: u16, flags: u16, body: &[u8]) -> io::Result<Vec<u8>> {
    let mut message = Vec::with_capacity(HEADER + body.len());
    message.extend_from_slice(&((HEADER + body.len()) as u32).to_ne_bytes());
    message.extend_from_slice(&kind.to_ne_bytes());
    message.extend_from_slice(&(NLM_F_REQUEST | flags).to_ne_bytes());
    message.extend_from_slice(&[0; 8]);
    message.extend_from_slice(body);
    send(socket, &message, SendFlags::empty())?;
    let mut answer = vec![0; ANSWER];
    let (length, _) = recv(socket, answer.as_mut_slice(), RecvFlags::DONTWAIT)?;
    answer.truncate(length);
    let told = answer.first_chunk().map(|bytes| u32::from_ne_bytes(*bytes) as usize);
    let kind = answer.get(4..6).and_then(|bytes| bytes.try_into().ok()).map(u16::from_ne_bytes);
    let body = told.and_then(|told| answer.get(HEADER..told));
    let error = body.and_then(|body| body.first_chunk()).map(|bytes| i32::from_ne_bytes(*bytes));
    match (kind, error, body) {
        (Some(NLMSG_ERROR), Some(0), _) => Ok(Vec::new()),
        (Some(NLMSG_ERROR), Some(errno), _) => {
            Err(io::Error::from_raw_os_error(errno.saturating_neg()))
        }
        (Some(_), _, Some(body)) => Ok(body.to_vec()),
        _ => Err(io::ErrorKind::InvalidData.into()),
    }
}
