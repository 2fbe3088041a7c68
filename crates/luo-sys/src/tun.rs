//! Network interfaces of tun and tap, as `/dev/net/tun` gives them.
//!
//! Source: `linux/if_tun.h`, `netdevice(7)`, `linux/ethtool.h`.
//!
//! Invariants: a [`Tun`] is a descriptor of that device and of nothing else, so that its requests mean
//! what they mean here.

use std::ffi::c_ulong;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use rustix::fs::{FileType, fstat, major, minor};

/// The length of an interface's name, with a zero byte at its end.
const NAME: usize = libc::IFNAMSIZ;
/// `sizeof(struct ifreq)`, of which this module uses name and union.
const IFREQ: usize = size_of::<libc::ifreq>();

/// A number of an interface that is read and set by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TunNumber {
    /// The length of the header before each packet.
    Header,
    /// The limit of what waits to be sent.
    SendBuffer,
    /// Headers are little-endian.
    LittleEndian,
    /// Headers are big-endian.
    BigEndian,
}

/// What is set of an interface and not read here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TunSetting {
    /// It stays when nobody has it open any more: 0 or 1.
    Persist,
    /// The user who may attach to it.
    Owner,
    /// The group that may.
    Group,
    /// What is left to the reader of a packet: bits of `TUN_F_*`.
    Offload,
    /// Its type (`ARPHRD_*`); it has to be down.
    Link,
}

/// A descriptor of `/dev/net/tun`.
#[derive(Debug, Clone, Copy)]
pub struct Tun<'a>(BorrowedFd<'a>);

impl<'a> Tun<'a> {
    /// The descriptor, if it is one.
    #[must_use]
    pub fn new(file: BorrowedFd<'a>) -> Option<Self> {
        let stat = fstat(file).ok()?;
        let is = FileType::from_raw_mode(stat.st_mode) == FileType::CharacterDevice
            && (major(stat.st_rdev), minor(stat.st_rdev)) == (10, 200);
        is.then_some(Self(file))
    }

    /// The interface's name and flags (`TUNGETIFF`); `None` where it is attached to none. Where no
    /// filter is attached, Linux sets a bit of the flags that is `IFF_NO_PI`.
    ///
    /// # Errors
    /// EBADF for a path.
    pub fn interface(self) -> io::Result<Option<(Vec<u8>, u16)>> {
        let mut request = [0; IFREQ];
        match self.pass(libc::TUNGETIFF, &mut request) {
            Ok(_) => Ok(Some((name_of(&request), flags_of(&request)))),
            Err(error) if error.raw_os_error() == Some(libc::EBADFD) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Attaches it to the interface of that name, which is made where it is not there
    /// (`TUNSETIFF`).
    ///
    /// # Errors
    /// EPERM without `CAP_NET_ADMIN`, EBUSY where others are attached, EINVAL for flags that do not
    /// fit the interface, ENAMETOOLONG.
    pub fn attach(self, name: &[u8], flags: u16) -> io::Result<()> {
        let mut request = request(name)?;
        set_flags(&mut request, flags);
        self.pass(libc::TUNSETIFF, &mut request).map(drop)
    }

    /// Detaches this queue of an interface with several, which stays its own (`TUNSETQUEUE`).
    ///
    /// # Errors
    /// EINVAL where it has one.
    pub fn detach_queue(self) -> io::Result<()> {
        let mut request = [0; IFREQ];
        // Both are bits of 16.
        set_flags(&mut request, libc::IFF_DETACH_QUEUE as u16);
        self.pass(libc::TUNSETQUEUE, &mut request).map(drop)
    }

    /// A number of the interface.
    ///
    /// # Errors
    /// EBADFD where it is attached to none, EINVAL where the kernel does not know it.
    pub fn number(self, which: TunNumber) -> io::Result<i32> {
        let mut value = 0_i32.to_ne_bytes();
        self.pass(which.requests().0, &mut value)?;
        Ok(i32::from_ne_bytes(value))
    }

    /// Sets such a number.
    ///
    /// # Errors
    /// As [`number`](Self::number); EINVAL out of range.
    pub fn set_number(self, which: TunNumber, value: i32) -> io::Result<()> {
        self.pass(which.requests().1, &mut value.to_ne_bytes()).map(drop)
    }

    /// Sets what is given by value.
    ///
    /// # Errors
    /// EBADFD, EINVAL, EBUSY for the type of an interface that is up.
    pub fn set(self, what: TunSetting, value: u32) -> io::Result<()> {
        let request = match what {
            TunSetting::Persist => libc::TUNSETPERSIST,
            TunSetting::Owner => libc::TUNSETOWNER,
            TunSetting::Group => libc::TUNSETGROUP,
            TunSetting::Offload => libc::TUNSETOFFLOAD,
            TunSetting::Link => libc::TUNSETLINK,
        };
        // SAFETY: of a descriptor of this device, which it is, these requests take their argument
        // as a number and read and write no memory.
        let done = unsafe { libc::ioctl(self.0.as_raw_fd(), request, c_ulong::from(value)) };
        if done == -1 { Err(io::Error::last_os_error()) } else { Ok(()) }
    }

    /// The interface's type (`ARPHRD_*`), and the first bytes of its address.
    ///
    /// # Errors
    /// EBADFD.
    pub fn address(self) -> io::Result<(u16, [u8; 6])> {
        let mut request = [0; IFREQ];
        self.pass(libc::SIOCGIFHWADDR as libc::Ioctl, &mut request)?;
        let mut address = [0; 6];
        address.copy_from_slice(&request[NAME + 2..NAME + 8]);
        Ok((flags_of(&request), address))
    }

    /// Sets its address.
    ///
    /// # Errors
    /// EADDRNOTAVAIL, EBADFD, EOPNOTSUPP for a tun.
    pub fn set_address(self, link: u16, address: [u8; 6]) -> io::Result<()> {
        let mut request = [0; IFREQ];
        set_flags(&mut request, link);
        request[NAME + 2..NAME + 8].copy_from_slice(&address);
        self.pass(libc::SIOCSIFHWADDR as libc::Ioctl, &mut request).map(drop)
    }

    /// Whether a filter is, or was, attached to a tap (`TUNATTACHFILTER`).
    ///
    /// # Errors
    /// EBADFD; EINVAL for a tun, which has none.
    pub fn had_filter(self) -> io::Result<bool> {
        // A length and a pointer that is the attacher's: nothing looks at it.
        let mut program = [0; size_of::<libc::sock_fprog>()];
        self.pass(libc::TUNGETFILTER, &mut program)?;
        Ok(program[..2] != [0; 2])
    }

    /// The network namespace that the interface is in.
    ///
    /// # Errors
    /// EPERM without `CAP_NET_ADMIN` there; EBADFD, EINVAL before Linux 5.2.
    pub fn namespace(self) -> io::Result<OwnedFd> {
        let fd = self.pass(libc::TUNGETDEVNETNS, &mut [])?;
        // SAFETY: the kernel has just made this descriptor, close-on-exec, and nobody else knows of
        // it.
        Ok(unsafe { OwnedFd::from_raw_fd(fd) })
    }

    fn pass(self, number: libc::Ioctl, buffer: &mut [u8]) -> io::Result<i32> {
        // SAFETY: each request that this module passes reads and writes as many bytes as the buffer
        // has that it passes along: those of a `struct ifreq`, an int, or a `struct sock_fprog`; or
        // none. The descriptor is one of the device whose requests they are.
        let done = unsafe { libc::ioctl(self.0.as_raw_fd(), number, buffer.as_mut_ptr()) };
        if done == -1 { Err(io::Error::last_os_error()) } else { Ok(done) }
    }
}

impl TunNumber {
    const fn requests(self) -> (libc::Ioctl, libc::Ioctl) {
        match self {
            Self::Header => (libc::TUNGETVNETHDRSZ, libc::TUNSETVNETHDRSZ),
            Self::SendBuffer => (libc::TUNGETSNDBUF, libc::TUNSETSNDBUF),
            Self::LittleEndian => (libc::TUNGETVNETLE, libc::TUNSETVNETLE),
            Self::BigEndian => (libc::TUNGETVNETBE, libc::TUNSETVNETBE),
        }
    }
}

fn request(name: &[u8]) -> io::Result<[u8; IFREQ]> {
    let mut request = [0; IFREQ];
    if name.len() >= NAME {
        return Err(io::Error::from_raw_os_error(libc::ENAMETOOLONG));
    }
    request[..name.len()].copy_from_slice(name);
    Ok(request)
}

fn name_of(request: &[u8; IFREQ]) -> Vec<u8> {
    request[..NAME].iter().copied().take_while(|byte| *byte != 0).collect()
}

/// The first two bytes behind the name: flags, or the type of an address.
fn flags_of(request: &[u8; IFREQ]) -> u16 {
    u16::from_ne_bytes([request[NAME], request[NAME + 1]])
}

fn set_flags(request: &mut [u8; IFREQ], flags: u16) {
    request[NAME..NAME + 2].copy_from_slice(&flags.to_ne_bytes());
}

/// The names of the features of a network interface that are in effect, as `ethtool -k` has them in
/// the kernel.
///
/// # Errors
/// ENODEV, EMFILE, EOPNOTSUPP.
pub fn interface_features(name: &[u8]) -> io::Result<Vec<String>> {
    const GSTRINGS: u32 = 0x1b;
    const GSSET_INFO: u32 = 0x37;
    const GFEATURES: u32 = 0x3a;
    const FEATURES: u32 = 4;
    const LONGEST: usize = 32;
    let socket = rustix::net::socket_with(
        rustix::net::AddressFamily::INET,
        rustix::net::SocketType::DGRAM,
        rustix::net::SocketFlags::CLOEXEC,
        None,
    )?;
    // Command, reserved, a bit for each set that is asked for, in two words; the count of the one.
    let mut info = [GSSET_INFO, 0, 0, 0, 0];
    let mask = (1_u64 << FEATURES).to_ne_bytes();
    info[2] = u32::from_ne_bytes([mask[0], mask[1], mask[2], mask[3]]);
    info[3] = u32::from_ne_bytes([mask[4], mask[5], mask[6], mask[7]]);
    ethtool(&socket, name, &mut info)?;
    let count = info[4] as usize;
    // The kernel has as many for as long as it runs; beside the three words of the head.
    let mut strings = vec![0; 3 + count * LONGEST / 4];
    strings[..3].copy_from_slice(&[GSTRINGS, FEATURES, info[4]]);
    ethtool(&socket, name, &mut strings)?;
    let blocks = count.div_ceil(32);
    let mut features = vec![0; 2 + 4 * blocks];
    features[..2].copy_from_slice(&[GFEATURES, blocks as u32]);
    ethtool(&socket, name, &mut features)?;
    let bytes: Vec<u8> = strings[3..].iter().flat_map(|word| word.to_ne_bytes()).collect();
    let names = bytes.chunks_exact(LONGEST).map(|name| {
        let text: Vec<u8> = name.iter().copied().take_while(|byte| *byte != 0).collect();
        String::from_utf8_lossy(&text).into_owned()
    });
    // Of each block the third word is what is in effect.
    let active = |at: usize| {
        features.get(2 + 4 * (at / 32) + 2).is_some_and(|word| word >> (at % 32) & 1 == 1)
    };
    Ok(names.enumerate().filter(|(at, _)| active(*at)).map(|(_, name)| name).collect())
}

/// One request of `SIOCETHTOOL`, whose answer is as long as `words`.
fn ethtool(socket: &OwnedFd, name: &[u8], words: &mut [u32]) -> io::Result<()> {
    const SIOCETHTOOL: libc::Ioctl = 0x8946;
    let mut request = request(name)?;
    let pointer = words.as_mut_ptr().expose_provenance().to_ne_bytes();
    request[NAME..NAME + pointer.len()].copy_from_slice(&pointer);
    // SAFETY: the kernel reads a `struct ifreq`, whose pointer is to `words`; both live through the
    // call. It writes there at most what `interface_features` has made room for: one count, as many
    // strings as that kernel has, and as many blocks as it is told there is room for.
    let done =
        unsafe { libc::ioctl(socket.as_fd().as_raw_fd(), SIOCETHTOOL, request.as_mut_ptr()) };
    if done == -1 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn another_device_is_none_and_the_loopback_device_has_features() {
        let null = std::fs::File::open("/dev/null").unwrap();
        assert!(Tun::new(null.as_fd()).is_none());
        let features = interface_features(b"lo").unwrap();
        assert!(features.iter().any(|name| name == "loopback"), "{features:?}");
        assert!(interface_features(b"not-there").is_err());
        let error = interface_features(b"a-name-that-is-much-too-long").unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::ENAMETOOLONG));
    }
}
