//! The keeper's slots, for fuzzing: messages of a worker as bytes.

use std::os::fd::OwnedFd;

use luo_abi::keeper::{Message, flag, op};
use rustix::io::Errno;

use super::slots::{Limits, Slots, Staged};

/// Small, so that they are met.
const LIMITS: Limits = Limits { slots: 40, fds: 30, bytes: 4_096 };

/// What a keeper holds, and the batch that is being collected.
#[derive(Debug)]
pub struct Held {
    slots: Slots,
    staged: Staged,
}

impl Default for Held {
    fn default() -> Self {
        Self { slots: Slots::new(LIMITS), staged: Staged::default() }
    }
}

impl Held {
    /// Takes one message of a worker. `null` is any open descriptor, duplicated for those that the
    /// message is to carry. Gives whether a batch was applied, `None` where none has ended.
    ///
    /// # Panics
    /// If what is held is not what is counted, or is more than the limits allow.
    pub fn take(&mut self, bytes: &[u8], null: &OwnedFd) -> Option<Result<(), Errno>> {
        let mut applied = None;
        // As many descriptors as the entries want, where they want few.
        for count in 0..=LIMITS.fds + 2 {
            let Ok(message) = Message::parse(bytes, count) else { continue };
            if message.header.op.get() != op::CHANGE {
                break;
            }
            let mut fds: Vec<OwnedFd> = (0..count).map_while(|_| null.try_clone().ok()).collect();
            self.slots.stage(&mut self.staged, &message, &mut fds);
            assert!(fds.is_empty(), "descriptors stay");
            if message.header.flags.get() & flag::MORE == 0 {
                let before = self.picture();
                let result = self.slots.apply(&mut self.staged, |_| {});
                if result.is_err() {
                    assert_eq!(before, self.picture(), "a refused batch has changed something");
                }
                assert!(self.staged.is_empty(), "a batch stays");
                applied = Some(result);
            }
            break;
        }
        self.check();
        applied
    }

    fn picture(&self) -> Vec<(u64, usize, usize)> {
        let slots = self.slots.from(0).map(|(key, slot)| (key, slot.parts()));
        slots.map(|(key, (record, fds))| (key, record.len(), fds.len())).collect()
    }

    fn check(&self) {
        let picture = self.picture();
        let fds: usize = picture.iter().map(|(_, _, fds)| fds).sum();
        let bytes: usize = picture.iter().map(|(_, bytes, _)| bytes).sum();
        assert_eq!((self.slots.len(), self.slots.fds()), (picture.len(), fds));
        assert!(picture.len() <= LIMITS.slots && fds <= LIMITS.fds && bytes <= LIMITS.bytes);
    }
}
