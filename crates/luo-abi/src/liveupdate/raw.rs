//! A catalogue as it lies in its memory file.
//!
//! Invariants: `magic`, `version`, `checksum` and `total` of the header are the same in every version.

use zerocopy::little_endian::{U32, U64};

layout! {
    /// What a catalogue begins with.
    Header {
        magic: [u8; 8],
        version: U32,
        length: U32,
        checksum: U64,
        total: U64,
        sessions: U64,
        objects: U64,
        bytes: U64,
        handover: U64,
    }

    /// One kernel session.
    Session {
        name: [u8; 64],
    }

    /// One kept object.
    Object {
        handle: U64,
        kind: U32,
        session: U32,
        place: U64,
        length: U64,
        checksum: U64,
    }
}
