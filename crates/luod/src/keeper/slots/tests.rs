use super::*;
use luo_abi::keeper::{Entry, Header, op};
use proptest::prelude::*;
use std::collections::BTreeMap;
use zerocopy::IntoBytes;

#[derive(Debug, Clone)]
enum Do {
    Put(u64, Vec<u8>, usize),
    Rewrite(u64, Vec<u8>),
    Delete(u64),
}

/// What is expected: records and numbers of descriptors.
type Model = BTreeMap<u64, (Vec<u8>, usize)>;

fn fds(count: usize) -> Vec<OwnedFd> {
    (0..count).map(|_| std::fs::File::open("/dev/null").unwrap().into()).collect()
}

/// Sends one message through the same path as a worker's.
fn stage(slots: &Slots, staged: &mut Staged, changes: &[Do]) {
    let (mut entries, mut body, mut count) = (Vec::new(), Vec::new(), 0);
    for change in changes {
        let (key, record, own, flags) = match change {
            Do::Put(key, record, own) => (*key, record.as_slice(), *own, 0),
            Do::Rewrite(key, record) => (*key, record.as_slice(), 0, entry_flag::KEEP_FDS),
            Do::Delete(key) => (*key, &[][..], 0, entry_flag::DELETE),
        };
        entries.push(Entry {
            key: key.into(),
            length: (record.len() as u32).into(),
            fds: (own as u16).into(),
            flags: flags.into(),
        });
        body.extend_from_slice(record);
        count += own;
    }
    let mut header = Header::new(1, op::CHANGE, 1);
    header.count = (entries.len() as u32).into();
    let bytes = [header.as_bytes(), entries.as_bytes(), &body].concat();
    let mut fds = fds(count);
    slots.stage(staged, &Message::parse(&bytes, count).unwrap(), &mut fds);
    assert!(fds.is_empty(), "all are taken or closed");
}

fn apply(model: &mut Model, change: &Do) {
    match change {
        Do::Put(key, record, fds) => drop(model.insert(*key, (record.clone(), *fds))),
        Do::Rewrite(key, record) => model.entry(*key).or_default().0.clone_from(record),
        Do::Delete(key) => drop(model.remove(key)),
    }
}

fn picture(slots: &Slots) -> Model {
    slots
        .from(0)
        .map(|(key, slot)| (key, (slot.record.to_vec(), slot.fds.as_slice().len())))
        .collect()
}

fn used(model: &Model) -> Used {
    Used {
        slots: model.len(),
        fds: model.values().map(|(_, fds)| fds).sum(),
        bytes: model.values().map(|(record, _)| record.len()).sum(),
    }
}

fn change() -> impl Strategy<Value = Do> {
    let key = 1..8_u64;
    let record = proptest::collection::vec(any::<u8>(), 0..12);
    prop_oneof![
        3 => (key.clone(), record.clone(), 0..4_usize).prop_map(|(k, r, f)| Do::Put(k, r, f)),
        1 => (key.clone(), record).prop_map(|(k, r)| Do::Rewrite(k, r)),
        1 => key.prop_map(Do::Delete),
    ]
}

proptest! {
    #[test]
    fn slots_behave_like_a_map_with_limits(
        batches in proptest::collection::vec(
            (proptest::collection::vec(proptest::collection::vec(change(), 0..4), 1..4), any::<bool>()),
            0..20,
        ),
        limits in (2..9_usize, 2..20_usize, 10..80_usize),
    ) {
        let limits = Limits { slots: limits.0, fds: limits.1, bytes: limits.2 };
        let mut slots = Slots::new(limits);
        let mut model = Model::new();
        for (messages, dies) in batches {
            let mut staged = Staged::default();
            for message in &messages {
                stage(&slots, &mut staged, message);
                prop_assert_eq!(picture(&slots), model.clone(), "staging changes nothing");
            }
            if dies {
                continue;
            }
            let mut next = model.clone();
            messages.iter().flatten().for_each(|change| apply(&mut next, change));
            let mut changed = Vec::new();
            let result = slots.apply(&mut staged, |key| changed.push(key));
            prop_assert!(staged.is_empty());
            // The most it can need: everything new beside everything old.
            let most = messages.iter().flatten().fold(used(&model), |mut used, change| {
                if let Do::Put(_, record, _) | Do::Rewrite(_, record) = change {
                    used.slots += 1;
                    used.bytes += record.len();
                }
                if let Do::Put(_, _, fds) = change {
                    used.fds += fds;
                }
                used
            });
            let fits = |used: Used| {
                used.slots <= limits.slots && used.fds <= limits.fds && used.bytes <= limits.bytes
            };
            match result {
                Ok(()) => {
                    let keys: Vec<u64> = messages.iter().flatten().map(|change| match change {
                        Do::Put(key, ..) | Do::Rewrite(key, _) | Do::Delete(key) => *key,
                    }).collect();
                    prop_assert_eq!(changed, keys);
                    model = next;
                }
                Err(errno) => {
                    prop_assert_eq!(errno, Errno::NOSPC);
                    prop_assert!(!fits(most), "{most:?} would have fitted into {limits:?}");
                    prop_assert!(changed.is_empty());
                }
            }
            prop_assert_eq!(picture(&slots), model.clone());
            prop_assert_eq!(slots.used, used(&model));
            prop_assert!(fits(slots.used));
        }
    }
}

#[test]
fn a_slot_is_replaced_whole_and_its_descriptors_are_closed() {
    let mut slots = Slots::new(Limits::default());
    let (reader, writer) = rustix::pipe::pipe().unwrap();
    slots.insert(1, Slot { record: Box::default(), fds: Fds::One(writer) });
    let mut staged = Staged::default();
    stage(&slots, &mut staged, &[Do::Put(1, vec![1], 2)]);
    slots.apply(&mut staged, |_| {}).unwrap();
    assert_eq!(rustix::io::read(&reader, &mut [0; 1]).unwrap(), 0, "the writer is closed");
    assert_eq!(slots.fds(), 2);
}
