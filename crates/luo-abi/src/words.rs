//! The words that trees and records share, each with its number on the wire.
//!
//! Invariants: zero is no value of any of them, so that a record of zeros says nothing; a number
//! keeps its meaning for ever.

macro_rules! word {
    ($(#[$doc:meta])* $name:ident { $($(#[$vdoc:meta])* $variant:ident = $value:literal, $text:literal;)* }) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
        #[repr(u8)]
        pub enum $name { $($(#[$vdoc])* $variant = $value,)* }

        impl $name {
            /// Every value, in the order of their numbers.
            pub const ALL: &'static [Self] = &[$(Self::$variant,)*];

            /// Its number in a record.
            #[must_use]
            pub const fn raw(self) -> u8 { self as u8 }

            /// The value of that number, `None` where there is none.
            #[must_use]
            pub const fn from_raw(raw: u8) -> Option<Self> {
                match raw { $($value => Some(Self::$variant),)* _ => None }
            }

            /// Its word in a tree.
            #[must_use]
            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $text,)* }
            }

            /// The value of that word, `None` where there is none.
            #[must_use]
            pub fn from_word(word: &str) -> Option<Self> {
                match word { $($text => Some(Self::$variant),)* _ => None }
            }
        }

        impl core::fmt::Display for $name {
            fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
                f.write_str(self.as_str())
            }
        }
    };
}

word! {
    /// What a span of a timeline was spent on.
    TimelinePhase {
        /// Keeping while the workload ran.
        Prepare = 1, "prepare";
        /// Keeping the rest while nothing changed.
        Freeze = 2, "freeze";
        /// Taking up the handover.
        Arrive = 3, "arrive";
        /// A session's new owner claimed it for the first time.
        Claim = 4, "claim";
        /// From the first retrieval of a session's files to the last so far.
        Retrieve = 5, "retrieve";
        /// Ending the live update, of one session or of all.
        Finish = 6, "finish";
    }
}

word! {
    /// Where a session, a file or the machine is in the cycle.
    State {
        /// Nothing is under way.
        Normal = 1, "normal";
        /// `prepare` is done; the workload still runs.
        Prepared = 2, "prepared";
        /// `freeze` is done; nothing may change.
        Frozen = 3, "frozen";
        /// The other side has begun; files may be retrieved.
        Updated = 4, "updated";
    }
}

word! {
    /// What happens to a session when the last copy of its socket is closed.
    OnClose {
        /// It is released, with all its files: the kernel's way.
        Release = 1, "release";
        /// It is kept until somebody claims it, or until its time limit.
        Keep = 2, "keep";
    }
}

word! {
    /// What the failure of a file or subsystem means for the update.
    Criticality {
        /// It cancels the update.
        Required = 1, "required";
        /// It is reported, and the update goes on without it.
        Optional = 2, "optional";
    }
}

word! {
    /// What moves the machine, a session or a file from one state to another.
    Event {
        /// Keep what can be kept while the workload runs.
        Prepare = 1, "prepare";
        /// Keep the rest; from here nothing changes.
        Freeze = 2, "freeze";
        /// Commit the handover; the other side begins.
        Depart = 3, "depart";
        /// Begin on the other side.
        Arrive = 4, "arrive";
        /// The live update is over.
        Finish = 5, "finish";
        /// Undo `prepare` and `freeze`.
        Cancel = 6, "cancel";
    }
}

word! {
    /// Whose event brought a session or file to its state.
    Level {
        /// One of this file alone.
        File = 1, "file";
        /// One of its session alone.
        Session = 2, "session";
        /// One of the machine.
        Machine = 3, "machine";
    }
}

word! {
    /// How far an incoming file is.
    Arrival {
        /// Nobody has it yet.
        Waiting = 1, "waiting";
        /// It was retrieved.
        Retrieved = 2, "retrieved";
        /// It cannot be had.
        Failed = 3, "failed";
    }
}

word! {
    /// Which of its session's two sets a file is in.
    Side {
        /// It is on this side and will be handed over.
        Outgoing = 1, "outgoing";
        /// It came from the other side and may be retrieved.
        Incoming = 2, "incoming";
    }
}

/// Whose a session is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Owner {
    /// The user id.
    pub uid: u32,
    /// The group id.
    pub gid: u32,
}
