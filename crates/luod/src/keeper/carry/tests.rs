use super::*;
use crate::keeper::slots::Limits;

fn null() -> OwnedFd {
    std::fs::File::open("/dev/null").unwrap().into()
}

fn written() -> Vec<u8> {
    let mut slots = Slots::new(Limits::default());
    slots.insert(3, Slot { record: b"three"[..].into(), fds: Fds::One(null()) });
    slots.insert(u64::MAX, Slot::default());
    let fds = Fds::take(2, &mut [null(), null()].into_iter());
    slots.insert(7, Slot { record: [9; 100][..].into(), fds });
    let program = null();
    let listeners = [null()];
    let state = write(&Parts {
        incarnation: 5,
        program: &program,
        worker: None,
        listeners: &listeners,
        slots: &slots,
        upgraded: 3,
    });
    let mut bytes = Vec::new();
    std::fs::File::from(state.unwrap()).read_to_end(&mut bytes).unwrap();
    bytes
}

/// With header and checksum made to fit a changed body.
fn resealed(mut bytes: Vec<u8>) -> Vec<u8> {
    let (header, body) = StateHeader::mut_from_prefix(&mut bytes).unwrap();
    header.length = (body.len() as u64).into();
    header.checksum = checksum(body).into();
    bytes
}

#[test]
fn what_was_written_is_decoded() {
    let bytes = written();
    let State { core, listeners, slots } = decode(&bytes).unwrap();
    assert_eq!((core.incarnation.get(), core.upgraded.get(), listeners.len()), (5, 3, 1));
    let shape: Vec<_> =
        slots.iter().map(|(key, fds, record)| (*key, fds.len(), record.len())).collect();
    assert_eq!(shape, [(3, 1, 5), (7, 2, 100), (u64::MAX, 0, 0)]);
}

#[test]
fn a_state_cut_short_or_with_a_flipped_bit_is_refused() {
    let bytes = written();
    for end in 0..bytes.len() {
        assert!(decode(&bytes[..end]).is_err(), "cut at {end}");
    }
    for bit in 0..bytes.len() * 8 {
        let mut damaged = bytes.clone();
        damaged[bit / 8] ^= 1 << (bit % 8);
        assert!(decode(&damaged).is_err(), "bit {bit}");
    }
}

#[test]
fn a_state_with_a_good_checksum_and_a_bad_body_is_refused_where_it_is_bad() {
    let bytes = written();
    for end in size_of::<StateHeader>()..bytes.len() {
        assert!(matches!(
            decode(&resealed(bytes[..end].to_vec())),
            Err(StateError::Damaged { .. })
        ));
    }
    let longer = resealed([&bytes[..], b"x"].concat());
    assert!(
        matches!(decode(&longer), Err(StateError::Damaged { offset }) if offset == bytes.len())
    );
    let mut many = bytes;
    // Core::slots, then Core::listeners.
    for (offset, width) in [(16, 8), (36, 4)] {
        let at = size_of::<StateHeader>() + offset;
        let saved = many[at..at + width].to_vec();
        many[at..at + width].fill(0xff);
        assert!(matches!(decode(&resealed(many.clone())), Err(StateError::Damaged { .. })));
        many[at..at + width].copy_from_slice(&saved);
    }
}

#[test]
fn another_layout_and_another_wire_are_refused_by_name() {
    let mut newer = written();
    newer[8] = 2;
    assert!(matches!(decode(&newer), Err(StateError::Version { found: 2 })));
    let mut foreign = written();
    let core = size_of::<StateHeader>();
    // Core::worker_pid and Core::worker_wire.
    foreign[core + 28] = 1;
    foreign[core + 44] = 9;
    assert!(matches!(decode(&resealed(foreign)), Err(StateError::Wire { found: 9 })));
    assert!(matches!(
        decode(b"something else, and long enough to be a header"),
        Err(StateError::Magic)
    ));
}
