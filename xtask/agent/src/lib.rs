//! How the host speaks with the agent in a virtual machine of the lab.
//!
//! One TCP connection a request: a frame with the request, the bytes that belong to it, a frame with
//! the answer, the bytes that belong to that. A frame is a little-endian `u32`, then so many bytes of
//! JSON. Connections do not wait for each other, so a command that takes long keeps no other from
//! running.
//!
//! Invariants: a length is checked against its bound before anything is allocated for it; what a
//! connection's end cuts short is an error, never a short result.

use std::io::{Read, Write};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

/// Where the agent listens in the guest.
pub const PORT: u16 = 1024;
/// Bytes of the largest frame.
pub const MAX_FRAME: u32 = 1 << 20;
/// Bytes of the largest file or output, and of the largest standard input.
pub const MAX_BYTES: u64 = 1 << 30;

/// What the host asks for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub enum Request {
    /// Who is there? Answered with [`Answer::Hello`].
    Hello,
    /// Runs a program to its end, or until `deadline_ms` have passed: then it is killed. So many
    /// bytes of its standard input follow. Answered with [`Answer::Ended`].
    Run {
        /// The program, looked up in PATH, and its arguments.
        argv: Vec<String>,
        /// Beside the agent's own environment.
        env: Vec<(String, String)>,
        /// Bytes that follow.
        stdin: u64,
        /// Milliseconds.
        deadline_ms: u64,
    },
    /// Starts a program that goes on running. Its output goes to `log`. Answered with
    /// [`Answer::Started`].
    Start {
        /// The program, looked up in PATH, and its arguments.
        argv: Vec<String>,
        /// Beside the agent's own environment.
        env: Vec<(String, String)>,
        /// Where its output goes; made anew.
        log: String,
    },
    /// Waits for the end of a program that was started. Answered with [`Answer::Ended`], without
    /// output; where the deadline passes first, it is *not* killed.
    Wait {
        /// From [`Answer::Started`].
        pid: u32,
        /// Milliseconds.
        deadline_ms: u64,
    },
    /// Sends a signal to any process. Answered with [`Answer::Done`].
    Signal {
        /// Its number.
        pid: u32,
        /// The signal's number.
        signal: i32,
    },
    /// Writes a file; its bytes follow. Answered with [`Answer::Done`].
    Push {
        /// Made anew; directories above it are made where they are missing.
        path: String,
        /// Its permissions.
        mode: u32,
        /// Bytes that follow.
        len: u64,
    },
    /// Reads a file. Answered with [`Answer::Content`].
    Pull {
        /// Which.
        path: String,
    },
    /// Loads the next kernel with `kexec_file_load`. Answered with [`Answer::Done`].
    LoadKernel {
        /// A file in the guest.
        kernel: String,
        /// A file in the guest.
        initrd: String,
        /// The next kernel's command line.
        append: String,
    },
    /// Ends this system at once, without asking or ending any process. Answered with
    /// [`Answer::Done`]; it happens once the host has then closed its side of the connection, and is
    /// answered with [`Answer::Failed`] where the kernel refuses.
    Reboot {
        /// How.
        how: Reboot,
    },
}

/// How a system ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Reboot {
    /// The kernel that was loaded takes over.
    Kexec,
    /// The machine is switched off.
    PowerOff,
}

/// What the agent answers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub enum Answer {
    /// It is there.
    Hello {
        /// Another one for each boot.
        boot_id: String,
        /// The kernel's release.
        release: String,
        /// Milliseconds since the kernel started.
        uptime_ms: u64,
        /// What of the machine's set-up failed, in words.
        problems: Vec<String>,
    },
    /// It was done.
    Done,
    /// A program runs.
    Started {
        /// Its number.
        pid: u32,
    },
    /// A program has ended; standard output and standard error follow.
    Ended {
        /// How.
        end: End,
        /// Bytes that follow first.
        stdout: u64,
        /// Bytes that follow then.
        stderr: u64,
    },
    /// A file; its bytes follow.
    Content {
        /// Bytes that follow.
        len: u64,
    },
    /// It could not be done.
    Failed {
        /// Why, in words.
        why: String,
    },
}

/// How a program ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum End {
    /// By itself, with a status.
    Exited(i32),
    /// By a signal.
    Signalled(i32),
    /// It had not when the deadline passed.
    Late,
}

/// Why nothing was understood.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum WireError {
    /// The connection failed or ended in the middle.
    #[error("the connection to the agent broke")]
    Io(#[from] std::io::Error),
    /// A frame that is no request, or no answer.
    #[error("a frame that makes no sense")]
    Json(#[from] serde_json::Error),
    /// A length beyond its bound.
    #[error("{len} bytes are more than the {max} that are allowed")]
    TooLong {
        /// What was announced.
        len: u64,
        /// What may be.
        max: u64,
    },
}

/// Writes a frame.
///
/// # Errors
/// [`WireError`]; TooLong before anything is written.
pub fn write_frame(to: &mut impl Write, value: &impl Serialize) -> Result<(), WireError> {
    let body = serde_json::to_vec(value)?;
    let len = u32::try_from(body.len()).unwrap_or(u32::MAX);
    if len > MAX_FRAME {
        return Err(WireError::TooLong { len: len.into(), max: MAX_FRAME.into() });
    }
    to.write_all(&len.to_le_bytes())?;
    to.write_all(&body)?;
    to.flush()?;
    Ok(())
}

/// Reads a frame.
///
/// # Errors
/// [`WireError`].
pub fn read_frame<T: DeserializeOwned>(from: &mut impl Read) -> Result<T, WireError> {
    let mut len = [0; 4];
    from.read_exact(&mut len)?;
    let len = u32::from_le_bytes(len);
    let body = read_bytes_within(from, len.into(), MAX_FRAME.into())?;
    Ok(serde_json::from_slice(&body)?)
}

/// Reads the bytes that belong to a frame.
///
/// # Errors
/// [`WireError`].
pub fn read_bytes(from: &mut impl Read, len: u64) -> Result<Vec<u8>, WireError> {
    read_bytes_within(from, len, MAX_BYTES)
}

fn read_bytes_within(from: &mut impl Read, len: u64, max: u64) -> Result<Vec<u8>, WireError> {
    if len > max {
        return Err(WireError::TooLong { len, max });
    }
    // Grows with what comes, so that a wrong length costs nothing.
    let mut bytes = Vec::new();
    let got = from.take(len).read_to_end(&mut bytes)?;
    if got as u64 != len {
        return Err(WireError::Io(std::io::ErrorKind::UnexpectedEof.into()));
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_written_is_read() {
        let mut wire = Vec::new();
        let request = Request::Push { path: "/a".into(), mode: 0o755, len: 3 };
        write_frame(&mut wire, &request).expect("it is written");
        wire.extend_from_slice(b"abc");
        let mut from = wire.as_slice();
        assert_eq!(read_frame::<Request>(&mut from).expect("it is read"), request);
        assert_eq!(read_bytes(&mut from, 3).expect("they are there"), b"abc");
    }

    #[test]
    fn what_was_cut_short_is_an_error() {
        let mut wire = Vec::new();
        write_frame(&mut wire, &Answer::Done).expect("it is written");
        for end in 0..wire.len() {
            let cut = read_frame::<Answer>(&mut &wire[..end]);
            assert!(matches!(cut, Err(WireError::Io(_))), "{end}: {cut:?}");
        }
        assert!(matches!(read_bytes(&mut &b"ab"[..], 3), Err(WireError::Io(_))));
    }

    #[test]
    fn a_length_beyond_its_bound_is_refused_unread() {
        let wire = [0xff; 4];
        assert!(matches!(
            read_frame::<Answer>(&mut wire.as_slice()),
            Err(WireError::TooLong { len: 0xffff_ffff, .. })
        ));
        assert!(matches!(
            read_bytes(&mut wire.as_slice(), MAX_BYTES + 1),
            Err(WireError::TooLong { .. })
        ));
    }
}
