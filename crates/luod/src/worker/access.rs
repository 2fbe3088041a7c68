//! Who may do what. Policy without I/O.
//!
//! Invariants: a session belongs to the user that made it; root and the user that luod runs as may
//! do everything. Whoever holds a session's descriptor needs no other right.

use luo_core::{Criticality, Errno, Owner};

use super::refusal::Refusal;

/// Who is at the other end of a connection, as the kernel says (`SO_PEERCRED`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Peer {
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) pid: i32,
}

impl Peer {
    /// As the owner of what it makes.
    pub(crate) fn owner(self) -> Owner {
        Owner { uid: self.uid, gid: self.gid }
    }
}

/// Decides for a luod that runs as one user.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Access {
    /// The user that luod runs as.
    pub(crate) own_uid: u32,
}

impl Access {
    /// Whether the peer may do everything.
    pub(crate) fn is_operator(self, peer: Peer) -> bool {
        peer.uid == 0 || peer.uid == self.own_uid
    }

    /// Whether the peer may see and use this session.
    pub(crate) fn may_use(self, peer: Peer, owner: Owner) -> bool {
        peer.uid == owner.uid || self.is_operator(peer)
    }

    /// Who may do everything, in words.
    fn operators(self) -> String {
        match self.own_uid {
            0 => "root".to_owned(),
            own_uid => format!("root and uid {own_uid}"),
        }
    }

    /// Refuses what is for operators alone.
    pub(crate) fn operator(self, peer: Peer, what: &str) -> Result<(), Refusal> {
        if self.is_operator(peer) {
            return Ok(());
        }
        let reason = format!(
            "{what} is for {} alone, this is uid {}; ask whoever operates luod",
            self.operators(),
            peer.uid
        );
        Err(Refusal::new(Errno::Perm, reason))
    }

    /// How a peer may take part in the cycle: only operators may stop the machine's update.
    pub(crate) fn participation(
        self,
        peer: Peer,
        required: Option<bool>,
    ) -> Result<Criticality, Refusal> {
        match (self.is_operator(peer), required) {
            (true, None | Some(true)) => Ok(Criticality::Required),
            (_, Some(false)) | (false, None) => Ok(Criticality::Optional),
            (false, Some(true)) => {
                let reason = format!(
                    "a required participant can stop the machine's update, and is for {}; take \
                     part as an optional one",
                    self.operators()
                );
                Err(Refusal::new(Errno::Perm, reason))
            }
        }
    }

    /// Refuses the use of another user's session.
    pub(crate) fn session(self, peer: Peer, owner: Owner, name: &str) -> Result<(), Refusal> {
        if self.may_use(peer, owner) {
            return Ok(());
        }
        let reason = format!(
            "session {name} belongs to another user, this is uid {}; ask its owner for its \
             descriptor, or choose another name",
            peer.uid
        );
        Err(Refusal::new(Errno::Perm, reason))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn peer(uid: u32) -> Peer {
        Peer { uid, gid: uid, pid: 1 }
    }

    #[test]
    fn a_session_is_for_its_owner_root_and_the_operator() {
        let access = Access { own_uid: 7 };
        let owner = Owner { uid: 1000, gid: 1000 };
        for (uid, may) in [(1000, true), (0, true), (7, true), (1001, false)] {
            assert_eq!(access.may_use(peer(uid), owner), may, "uid {uid}");
            assert_eq!(access.session(peer(uid), owner, "s").is_ok(), may, "uid {uid}");
        }
    }

    #[test]
    fn the_machine_is_for_root_and_the_operator() {
        let access = Access { own_uid: 7 };
        assert!(access.operator(peer(0), "prepare").is_ok());
        assert!(access.operator(peer(7), "prepare").is_ok());
        let refusal = access.operator(peer(1000), "prepare").unwrap_err();
        assert_eq!(refusal.errno(), "EPERM");
        assert!(refusal.reason().contains("1000"));
        assert!(refusal.reason().contains("root and uid 7"), "{refusal:?}");
        let refusal = Access { own_uid: 0 }.operator(peer(1000), "prepare").unwrap_err();
        assert!(refusal.reason().contains("for root alone"), "{refusal:?}");
    }

    #[test]
    fn only_operators_can_stop_the_machine() {
        let access = Access { own_uid: 7 };
        assert_eq!(access.participation(peer(0), None).unwrap(), Criticality::Required);
        assert_eq!(access.participation(peer(0), Some(false)).unwrap(), Criticality::Optional);
        assert_eq!(access.participation(peer(1000), None).unwrap(), Criticality::Optional);
        assert_eq!(access.participation(peer(1000), Some(true)).unwrap_err().errno(), "EPERM");
    }

    #[test]
    fn the_same_group_gives_no_right() {
        let access = Access { own_uid: 7 };
        let owner = Owner { uid: 1000, gid: 50 };
        assert!(!access.may_use(Peer { uid: 1001, gid: 50, pid: 1 }, owner));
    }
}
