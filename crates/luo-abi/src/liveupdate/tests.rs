//! Layouts against the documentation and the kernel's, and damage of every byte.

use alloc::string::ToString;
use alloc::vec::Vec;
use alloc::{format, vec};

extern crate std;

use core::mem::{align_of, offset_of};

use zerocopy::IntoBytes;

use super::ioctl::{Finish, NAME_LENGTH, Name, NamedSession, SessionFile, SessionName};
use super::*;

fn catalogue() -> Catalogue {
    Catalogue {
        sessions: vec![Name::new(b"luo/shop").unwrap(), Name::new(b"luo/till").unwrap()],
        objects: vec![
            Object {
                handle: handle(1),
                place: Place::Memory { session: 0, token: OWN_TOKENS | 1, length: 4097 },
            },
            Object { handle: handle(2), place: Place::Live { session: 1, token: OWN_TOKENS } },
            Object {
                handle: handle(9),
                place: Place::Bytes { offset: 8, length: 16, checksum: 7 },
            },
        ],
        bytes: 24,
        handover: b"the handover".to_vec(),
    }
}

#[test]
fn the_arguments_are_laid_out_like_the_kernels() {
    assert_eq!((size_of::<NamedSession>(), align_of::<NamedSession>()), (72, 4));
    assert_eq!((offset_of!(NamedSession, fd), offset_of!(NamedSession, name)), (4, 8));
    assert_eq!(size_of::<SessionFile>(), 16);
    assert_eq!((offset_of!(SessionFile, fd), offset_of!(SessionFile, token)), (4, 8));
    assert_eq!((size_of::<Finish>(), offset_of!(Finish, reserved)), (8, 4));
    assert_eq!(size_of::<SessionName>(), 72);
    assert_eq!((offset_of!(SessionName, reserved), offset_of!(SessionName, name)), (4, 8));
    let argument = NamedSession::new(Name::new(b"ab").unwrap());
    assert_eq!(argument.as_bytes()[..11], [&72_u32.to_ne_bytes()[..], &[255; 4], b"ab\0"].concat());
    assert_eq!(SessionFile::new(3, 5).as_bytes()[..4], 16_u32.to_ne_bytes());
    assert_eq!(Finish::new().as_bytes(), [&8_u32.to_ne_bytes()[..], &[0; 4]].concat());
    assert_eq!(SessionName::new().as_bytes()[..4], 72_u32.to_ne_bytes());
}

#[test]
fn a_name_has_1_to_63_bytes_and_ends_with_a_nul() {
    assert!(Name::new(b"").is_none());
    assert!(Name::new(b"a\0b").is_none());
    assert!(Name::new(&[b'x'; NAME_LENGTH]).is_none());
    let longest = Name::new(&[b'x'; KERNEL_NAME_MAX]).unwrap();
    assert_eq!(longest.as_bytes_without_nul(), [b'x'; KERNEL_NAME_MAX]);
    assert_eq!(longest.as_bytes().last(), Some(&0));
    assert_eq!(Name::new(b"luod").unwrap().as_bytes_without_nul(), b"luod");
}

#[test]
fn a_catalogue_comes_back_as_it_was_written() {
    for whole in [catalogue(), Catalogue::default()] {
        let mut bytes = whole.encode();
        assert_eq!(Catalogue::decode(&bytes).as_ref(), Ok(&whole));
        // A memory file may be longer than what was written into it.
        bytes.extend_from_slice(&[0; 100]);
        assert_eq!(Catalogue::decode(&bytes), Ok(whole));
    }
}

#[test]
fn every_flipped_bit_and_every_cut_is_noticed() {
    let bytes = catalogue().encode();
    for bit in 0..bytes.len() * 8 {
        let mut damaged = bytes.clone();
        damaged[bit / 8] ^= 1 << (bit % 8);
        assert!(Catalogue::decode(&damaged).is_err(), "bit {bit}");
    }
    for end in 0..bytes.len() {
        assert!(Catalogue::decode(&bytes[..end]).is_err(), "{end} bytes");
    }
}

#[test]
fn what_contradicts_itself_is_refused() {
    let with = |change: fn(&mut Catalogue)| {
        let mut changed = catalogue();
        change(&mut changed);
        Catalogue::decode(&changed.encode()).unwrap_err()
    };
    assert_eq!(
        with(|c| c.objects[0].place = Place::Live { session: 2, token: 0 }),
        CatalogueError::Object(handle(1))
    );
    assert_eq!(with(|c| c.bytes = 23), CatalogueError::Object(handle(9)));
    assert_eq!(
        with(|c| c.objects[2].place = Place::Bytes { offset: u64::MAX, length: 2, checksum: 0 }),
        CatalogueError::Object(handle(9))
    );
    assert_eq!(with(|c| c.objects[1].handle = handle(1)), CatalogueError::Handle(handle(1)));
    assert_eq!(with(|c| c.objects[1].handle = 5), CatalogueError::Handle(5));
}

#[test]
fn another_version_is_told_by_its_number() {
    let mut bytes = catalogue().encode();
    bytes[8] = 2;
    bytes[16..24].fill(0);
    let sum = crate::arena::checksum(&bytes);
    bytes[16..24].copy_from_slice(&sum.to_le_bytes());
    assert_eq!(Catalogue::decode(&bytes), Err(CatalogueError::Version(2)));
}

#[test]
fn no_handle_of_this_carrier_is_one_of_another() {
    assert_ne!(SPACE, crate::arena::SPACE);
    assert_ne!(SPACE, key::CARRIER);
    assert_eq!(key::space(handle(u64::MAX)), SPACE);
}

#[test]
fn no_name_of_a_luo_session_is_a_name_of_another_kernel_session_of_luo() {
    assert!(!crate::is_name_byte(b'/'));
    assert!(SESSION_PREFIX.contains('/') && !AGENT_SESSION.contains('/'));
    assert!(CLIENT_PREFIX.contains('/') && !CLIENT_PREFIX.starts_with(SESSION_PREFIX));
}

#[test]
fn the_documented_layouts_are_those_of_the_code() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/abi.md");
    let page = std::fs::read_to_string(path).unwrap();
    let page = page.split("## Kernel sessions").nth(1).unwrap();
    for (table, fields) in
        [(0, raw::Header::fields()), (1, raw::Session::fields()), (2, raw::Object::fields())]
    {
        let fields: Vec<_> = fields.into_iter().map(|(o, s, f)| (o, s, f.to_string())).collect();
        assert_eq!(crate::record::tests::documented(page, "### The catalogue", table), fields);
    }
    for words in [
        format!("Version {VERSION}."),
        format!("topmost byte of a handle is {SPACE:#x}"),
        format!("token {CATALOGUE_TOKEN} of the kernel session `{AGENT_SESSION}`"),
        format!("token {BYTES_TOKEN} of the same"),
        format!("`{SESSION_PREFIX}NAME`"),
        format!("`{CLIENT_PREFIX}UID/NAME`"),
    ] {
        assert!(page.contains(&words), "docs/abi.md lacks {words:?}");
    }
}
