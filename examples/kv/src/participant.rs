//! kv takes part in updates of the machine: it stands still before its memory and its connections are
//! taken as they are.
//!
//! ```text
//! serving ── freeze ──▶ standing still ── the kernel is replaced
//!    ▲                        │
//!    └── cancel, luod is gone ┘
//! ```
//!
//! Invariants:
//! - While kv stands still it changes neither its memory nor a connection.
//! - It takes part if it can: what luod refuses is asked again, and never holds kv up.

use std::convert::Infallible;
use std::time::Duration;

use luo::protocol::{ParticipantCall, ParticipantPhase};
use luo::{Error, Manager, Options, Participant, ParticipantOptions, State};

use crate::wake::Waker;

/// How long a request that is being served may take to end.
const STILL: Duration = Duration::from_secs(5);
/// Between two tries to take part.
const AGAIN: Duration = Duration::from_millis(500);
/// The longest name of a participant, in bytes.
const NAME_MAX: usize = 63;

/// Takes part for the server that this wakes, for as long as this process lives.
///
/// # Errors
/// No thread can be started (EAGAIN).
pub fn take_part(session: &str, options: Options, waker: Waker) -> std::io::Result<()> {
    let name = name(session);
    let work = move || {
        loop {
            // One that whoever runs kv may be.
            let how = ParticipantOptions {
                options: options.clone(),
                required: false,
                ..ParticipantOptions::default()
            };
            let Err(error) = Participant::join(&name, how)
                .and_then(|participant| serve(participant, &options, &waker));
            tracing::debug!(%error, "kv does not take part for now");
            // Nobody is there who would say how it ends.
            waker.go_on();
            std::thread::sleep(AGAIN);
        }
    };
    std::thread::Builder::new().name("participant".into()).spawn(work).map(drop)
}

/// Of the characters that a participant's name may have.
fn name(session: &str) -> String {
    let allowed = |c: char| if c.is_ascii_alphanumeric() || "._+-".contains(c) { c } else { '-' };
    let mut name: String = "kv-".chars().chain(session.chars().map(allowed)).collect();
    name.truncate(NAME_MAX);
    name
}

fn serve(
    mut participant: Participant,
    options: &Options,
    waker: &Waker,
) -> Result<Infallible, Error> {
    loop {
        let Some(call) = participant.next_call(None)? else { continue };
        match answer(&call, options, waker) {
            Answer::None => {}
            Answer::Agree(data) => participant.agree(&call, data)?,
            Answer::Veto(reason) => participant.veto(&call, reason)?,
        }
    }
}

enum Answer {
    None,
    Agree(u64),
    Veto(&'static str),
}

fn answer(call: &ParticipantCall, options: &Options, waker: &Waker) -> Answer {
    match call.phase {
        ParticipantPhase::Prepare => Answer::Agree(0),
        ParticipantPhase::Freeze => {
            if waker.stand_still(STILL) {
                tracing::info!("kv stands still: the machine is being updated");
                return Answer::Agree(call.data);
            }
            waker.go_on();
            Answer::Veto("kv is in the middle of a request that takes long")
        }
        ParticipantPhase::Subscribed => {
            // luod has been started again; what was frozen may still be.
            let frozen = Manager::connect(options.clone())
                .and_then(|manager| manager.status())
                .is_ok_and(|status| status.state == State::Frozen);
            if !frozen {
                waker.go_on();
            }
            Answer::None
        }
        _ => {
            waker.go_on();
            Answer::Agree(0)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_participants_name_is_made_of_what_is_allowed_there() {
        assert_eq!(name("kv"), "kv-kv");
        assert_eq!(name("shop one/ä"), "kv-shop-one--");
        assert_eq!(name(&"x".repeat(100)).len(), NAME_MAX);
    }
}
