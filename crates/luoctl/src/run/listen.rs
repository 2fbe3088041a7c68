//! Listeners that `luoctl run` makes for programs that want them passed in.

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileTypeExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::str::FromStr;

use super::names::is_name;

/// The name of a listener that was given none.
const LISTEN: &str = "listen";

/// Where to listen.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Address {
    Ip(SocketAddr),
    Path(PathBuf),
}

/// A listener to make.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Listen {
    pub(crate) name: String,
    address: Address,
}

impl FromStr for Listen {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (name, address) = match text.split_once('=') {
            // A path may have such a sign in it.
            Some((name, address)) if !name.contains('/') => (name, address),
            _ => (LISTEN, text),
        };
        if !is_name(name) {
            return Err(format!("{name:?} cannot be the name of a descriptor"));
        }
        let address = if address.starts_with('/') {
            Address::Path(address.into())
        } else {
            Address::Ip(address.parse().map_err(|_| {
                format!("{address:?} is neither a path from / on nor an IP address with a port")
            })?)
        };
        Ok(Self { name: name.to_owned(), address })
    }
}

impl std::fmt::Display for Listen {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match &self.address {
            Address::Ip(address) => address.fmt(f),
            Address::Path(path) => path.display().fmt(f),
        }
    }
}

impl Listen {
    /// Makes it.
    pub(crate) fn bind(&self) -> io::Result<OwnedFd> {
        match &self.address {
            Address::Ip(address) => TcpListener::bind(address).map(OwnedFd::from),
            Address::Path(path) => {
                remove_dead(path);
                UnixListener::bind(path).map(OwnedFd::from)
            }
        }
    }
}

/// Removes the socket file of a listener that is gone.
fn remove_dead(path: &Path) {
    let is_socket = path.symlink_metadata().is_ok_and(|file| file.file_type().is_socket());
    let refused = |error: io::Error| error.kind() == io::ErrorKind::ConnectionRefused;
    if is_socket && UnixStream::connect(path).is_err_and(refused) {
        // If it cannot be removed, binding fails and says so.
        let _ = std::fs::remove_file(path);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_told_apart_and_named() {
        let listen = |text: &str| text.parse::<Listen>();
        assert_eq!(listen("[::1]:80").unwrap().name, "listen");
        assert_eq!(listen("web=127.0.0.1:0").unwrap().name, "web");
        let path = listen("/run/a=b").unwrap();
        assert_eq!((path.name.as_str(), path.to_string().as_str()), ("listen", "/run/a=b"));
        for wrong in ["", "web=", "localhost:80", "a:b=/x", "127.0.0.1"] {
            assert!(listen(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_dead_listeners_file_is_in_nobodys_way_and_a_living_ones_is_kept() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("sock");
        let listen: Listen = path.to_str().unwrap().parse().unwrap();
        drop(listen.bind().unwrap());
        let _living = listen.bind().unwrap();
        assert_eq!(listen.bind().unwrap_err().kind(), io::ErrorKind::AddrInUse);
        std::fs::remove_file(&path).unwrap();
        std::fs::write(&path, "somebody's").unwrap();
        assert!(listen.bind().is_err());
        assert_eq!(std::fs::read(&path).unwrap(), b"somebody's");
    }
}
