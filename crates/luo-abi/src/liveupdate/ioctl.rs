//! The arguments of the ioctls, as `linux/liveupdate.h` has them.
//!
//! Each begins with its own size. What a kernel does not know of it must be zero (E2BIG
//! otherwise), so a program that was built for a newer kernel works on an older one.
//!
//! Invariants: no struct has padding; a name always ends with a NUL.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use super::KERNEL_NAME_MAX;

/// The type of all ioctls of the device and its sessions.
pub const TYPE: u8 = 0xba;
/// On the device: makes a session for the next kernel. [`NamedSession`].
pub const CREATE_SESSION: u8 = 0x00;
/// On the device: gives a session that came from the kernel before. [`NamedSession`].
pub const RETRIEVE_SESSION: u8 = 0x01;
/// On a session for the next kernel: preserves a file. [`SessionFile`].
pub const PRESERVE_FD: u8 = 0x40;
/// On a session from the kernel before: gives a file. [`SessionFile`].
pub const RETRIEVE_FD: u8 = 0x41;
/// On a session from the kernel before: ends it. [`Finish`].
pub const FINISH: u8 = 0x42;
/// On any session: gives its name. Not in Linux 6.19. [`SessionName`].
pub const GET_NAME: u8 = 0x43;

/// The bytes of a name, its NUL included.
pub const NAME_LENGTH: usize = KERNEL_NAME_MAX + 1;

/// The name of a kernel session: 1 to 63 bytes, none of them zero.
#[derive(Clone, Copy, PartialEq, Eq, Hash, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(transparent)]
pub struct Name([u8; NAME_LENGTH]);

impl Name {
    /// `None` for one that is empty, too long or has a zero in it.
    #[must_use]
    pub fn new(name: &[u8]) -> Option<Self> {
        if name.is_empty() || name.contains(&0) {
            return None;
        }
        let mut bytes = [0; NAME_LENGTH];
        bytes.get_mut(..KERNEL_NAME_MAX)?.get_mut(..name.len())?.copy_from_slice(name);
        Some(Self(bytes))
    }

    /// The name without its NUL. As a kernel writes it, or, of bytes from elsewhere, up to the
    /// first zero.
    #[must_use]
    pub fn as_bytes_without_nul(&self) -> &[u8] {
        self.0.split(|byte| *byte == 0).next().unwrap_or_default()
    }
}

impl core::fmt::Debug for Name {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(f, "\"{}\"", self.as_bytes_without_nul().escape_ascii())
    }
}

macro_rules! sized {
    ($type:ident) => {
        impl $type {
            /// The size that the struct says it has, in bytes.
            pub const SIZE: u32 = size_of::<Self>() as u32;
        }
    };
}

/// The argument of [`CREATE_SESSION`] and [`RETRIEVE_SESSION`].
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct NamedSession {
    /// [`Self::SIZE`].
    pub size: u32,
    /// The kernel's answer: the session's descriptor, close-on-exec.
    pub fd: i32,
    /// The session's name.
    pub name: Name,
}
sized!(NamedSession);

/// The argument of [`PRESERVE_FD`] and [`RETRIEVE_FD`].
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct SessionFile {
    /// [`Self::SIZE`].
    pub size: u32,
    /// The file: given to `PRESERVE_FD`, the kernel's answer to `RETRIEVE_FD` (close-on-exec).
    pub fd: i32,
    /// The file's token in the session.
    pub token: u64,
}
sized!(SessionFile);

/// The argument of [`FINISH`].
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Finish {
    /// [`Self::SIZE`].
    pub size: u32,
    /// Zero.
    pub reserved: u32,
}
sized!(Finish);

/// The argument of [`GET_NAME`].
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct SessionName {
    /// [`Self::SIZE`].
    pub size: u32,
    /// Zero.
    pub reserved: u32,
    /// The kernel's answer.
    pub name: Name,
}
sized!(SessionName);

impl NamedSession {
    /// Asks for a session of that name.
    #[must_use]
    pub const fn new(name: Name) -> Self {
        Self { size: Self::SIZE, fd: -1, name }
    }
}

impl SessionFile {
    /// Gives a file, or asks for one (-1).
    #[must_use]
    pub const fn new(fd: i32, token: u64) -> Self {
        Self { size: Self::SIZE, fd, token }
    }
}

impl Finish {
    /// Ends the session.
    #[must_use]
    pub const fn new() -> Self {
        Self { size: Self::SIZE, reserved: 0 }
    }
}

impl Default for Finish {
    fn default() -> Self {
        Self::new()
    }
}

impl SessionName {
    /// Asks for the name.
    #[must_use]
    pub const fn new() -> Self {
        Self { size: Self::SIZE, reserved: 0, name: Name([0; NAME_LENGTH]) }
    }
}

impl Default for SessionName {
    fn default() -> Self {
        Self::new()
    }
}
