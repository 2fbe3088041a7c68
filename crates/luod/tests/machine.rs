//! The cycle of the machine, with participants, on a real luod.

mod common;

use std::time::Duration;

use common::{Luod, PATIENCE, assert_connected, errno, pipe};
use luo::protocol::ParticipantPhase;
use luo::{Participant, ParticipantOptions, State, Unclaimed};

fn join(luod: &Luod, name: &str, required: bool, deadline: Duration) -> Participant {
    let how = ParticipantOptions { options: luod.options(), required, deadline: Some(deadline) };
    Participant::join(name, how).expect("it may take part")
}

#[test]
fn a_live_update_of_the_agent_brings_every_session_over() {
    let luod = Luod::start();
    let manager = luod.manager();
    let (reader, writer) = pipe();
    let shop = luod.session("shop");
    shop.preserve(1, &reader).unwrap();
    let bank = luod.session("bank");
    bank.preserve(0xffff_ffff_ffff_ffff, &writer).unwrap();
    assert_eq!(manager.prepare().unwrap().unwrap().state, State::Prepared);
    assert_eq!(errno(shop.unpreserve(1)), "EBUSY");
    let frozen = manager.freeze().unwrap().unwrap();
    assert_eq!(frozen.state, State::Frozen);
    assert!(frozen.timings.iter().any(|part| part.session.as_deref() == Some("bank")));
    let before = luod.worker();
    manager.depart().unwrap();
    luod.wait("another worker", || luod.worker() != before);
    luod.wait("arrival", || luod.manager().status().unwrap().state == State::Updated);
    drop((shop, bank, reader, writer));

    let status = luod.manager().status().unwrap();
    assert_eq!((status.liveupdate_number, status.unclaimed), (1, 2));
    let (shop, bank) = (luod.session("shop"), luod.session("bank"));
    let reader = shop.retrieve(1).unwrap();
    assert_eq!(errno(luod.manager().finish(Unclaimed::Refuse)), "EBUSY");
    let writer = bank.retrieve(0xffff_ffff_ffff_ffff).unwrap();
    assert_connected(&reader, &writer, b"over");
    shop.finish().unwrap();
    assert_eq!(luod.manager().finish(Unclaimed::Refuse).unwrap().unwrap().state, State::Normal);
    assert_eq!(bank.info().unwrap().state, State::Normal);
}

#[test]
fn the_machine_cycle_can_be_cancelled_at_each_state() {
    let luod = Luod::start();
    let manager = luod.manager();
    let session = luod.session("shop");
    let (reader, _writer) = pipe();
    session.preserve(1, &reader).unwrap();
    assert_eq!(errno(manager.cancel()), "EBUSY");
    assert_eq!(errno(manager.freeze()), "EBUSY");
    manager.prepare().unwrap();
    assert_eq!(errno(manager.prepare()), "EBUSY");
    assert_eq!(manager.cancel().unwrap().unwrap().state, State::Normal);
    manager.prepare().unwrap();
    manager.freeze().unwrap();
    assert_eq!(manager.cancel().unwrap().unwrap().state, State::Normal);
    assert_eq!(errno(manager.depart()), "EBUSY");
    session.unpreserve(1).unwrap();
}

#[test]
fn a_rehearsal_measures_every_part_and_changes_nothing() {
    let luod = Luod::start();
    let session = luod.session("shop");
    let (reader, _writer) = pipe();
    session.preserve(1, &reader).unwrap();
    let report = luod.manager().rehearse().unwrap();
    assert_eq!((report.event.as_str(), report.state), ("rehearse", State::Normal));
    for phase in ["prepare", "freeze", "cancel"] {
        assert!(
            report.timings.iter().any(|part| part.phase == phase
                && part.session.as_deref() == Some("shop")
                && part.calls == 1),
            "{phase}: {report:?}"
        );
    }
    assert_eq!(session.info().unwrap().files, [1]);
}

#[test]
fn a_rehearsal_that_is_cut_short_leaves_the_machine_normal() {
    let luod = Luod::start();
    for last in [ParticipantPhase::Prepare, ParticipantPhase::Freeze, ParticipantPhase::Cancel] {
        let mut participant = join(&luod, &format!("in-{last:?}"), false, PATIENCE);
        let rehearsing = {
            let manager = luod.manager();
            std::thread::spawn(move || manager.rehearse())
        };
        loop {
            let call = participant.next_call(Some(PATIENCE)).unwrap().expect("a call");
            if call.phase == last {
                break;
            }
            participant.agree(&call, 1).unwrap();
        }
        luod.kill_worker();
        // The library may have asked for it again, of the next worker.
        drop(participant);
        let _ = rehearsing.join().unwrap();
        assert_eq!(luod.manager().status().unwrap().state, State::Normal, "{last:?}");
    }
}

#[test]
fn a_participant_takes_part_and_its_data_comes_back() {
    let luod = Luod::start();
    let mut participant = join(&luod, "database", true, PATIENCE);
    let manager = luod.manager();
    let phases = std::thread::spawn(move || {
        let mut phases = Vec::new();
        for data in 10.. {
            let call = participant.next_call(Some(PATIENCE)).unwrap().expect("a call");
            phases.push((call.phase, call.data));
            participant.agree(&call, data).unwrap();
            if call.phase == ParticipantPhase::Cancel {
                break;
            }
        }
        phases
    });
    let report = manager.rehearse().unwrap();
    assert!(report.timings.iter().any(|part| part.subsystem == "database"));
    assert_eq!(
        phases.join().unwrap(),
        [
            (ParticipantPhase::Prepare, 0),
            (ParticipantPhase::Freeze, 10),
            (ParticipantPhase::Cancel, 11)
        ]
    );
}

#[test]
fn a_veto_cancels_the_update_with_its_reason() {
    let luod = Luod::start();
    let mut participant = join(&luod, "database", true, PATIENCE);
    let veto = std::thread::spawn(move || {
        let call = participant.next_call(Some(PATIENCE)).unwrap().expect("a call");
        participant.veto(&call, "a checkpoint runs").unwrap();
        participant
    });
    match luod.manager().prepare() {
        Err(luo::Error::Refused(refusal)) => {
            assert!(refusal.reason.contains("a checkpoint runs"), "{refusal}");
            let failure = refusal.failure.expect("where it happened");
            assert_eq!(failure.subsystem.as_deref(), Some("database"));
        }
        other => panic!("{other:?}"),
    }
    drop(veto.join().unwrap());
    assert_eq!(luod.manager().status().unwrap().state, State::Normal);
}

#[test]
fn a_late_participant_is_named() {
    let luod = Luod::start();
    let _late = join(&luod, "sleeper", true, Duration::from_millis(50));
    match luod.manager().prepare() {
        Err(luo::Error::Refused(refusal)) => {
            assert_eq!(refusal.errno, "ETIMEDOUT");
            assert!(refusal.reason.contains("sleeper"), "{refusal}");
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_participant_that_dies_in_its_call_is_named() {
    let luod = Luod::start();
    let mut participant = join(&luod, "mortal", true, PATIENCE);
    let dying = std::thread::spawn(move || {
        participant.next_call(Some(PATIENCE)).unwrap().expect("a call");
    });
    match luod.manager().prepare() {
        Err(luo::Error::Refused(refusal)) => {
            assert!(refusal.reason.contains("mortal"), "{refusal}");
            assert_eq!(refusal.errno, "ENOTCONN");
        }
        other => panic!("{other:?}"),
    }
    dying.join().unwrap();
    luod.wait("it is taken out", || {
        luod.manager().status().unwrap().subsystems.iter().all(|info| info.name != "mortal")
    });
    luod.manager().prepare().unwrap();
}

#[test]
fn a_participant_that_does_not_come_back_to_the_next_worker_is_taken_out() {
    let luod = Luod::start_with("[participants]\nreturn_milliseconds = 1");
    // Nobody asks for its next call, so it does not connect again.
    let _away = join(&luod, "away", true, PATIENCE);
    luod.kill_worker();
    luod.wait("it is taken out", || {
        luod.manager().status().unwrap().subsystems.iter().all(|info| info.name != "away")
    });
    luod.manager().prepare().unwrap();
}

#[test]
fn an_update_waits_for_a_participant_of_the_worker_before() {
    let luod = Luod::start();
    let mut away = join(&luod, "away", true, PATIENCE);
    luod.kill_worker();
    let error = luod.manager().prepare().unwrap_err();
    assert_eq!(error.errno(), Some("ENOTCONN"));
    assert!(error.to_string().contains("away"), "{error}");
    // It comes back when it looks for its next call.
    let answering = std::thread::spawn(move || {
        while let Ok(Some(call)) = away.next_call(Some(PATIENCE)) {
            away.agree(&call, 0).unwrap();
            if call.phase == ParticipantPhase::Cancel {
                break;
            }
        }
    });
    luod.wait("it is back", || luod.manager().rehearse().is_ok());
    answering.join().unwrap();
}

#[test]
fn an_optional_participant_that_fails_is_left_out() {
    let luod = Luod::start();
    let mut participant = join(&luod, "optional", false, PATIENCE);
    let veto = std::thread::spawn(move || {
        let call = participant.next_call(Some(PATIENCE)).unwrap().expect("a call");
        participant.veto(&call, "not today").unwrap();
        participant
    });
    let report = luod.manager().prepare().unwrap().unwrap();
    assert_eq!(report.state, State::Prepared);
    assert!(report.left_out.iter().any(|failure| failure.reason.contains("not today")));
    drop(veto.join().unwrap());
}

#[test]
fn participants_are_called_side_by_side() {
    let luod = Luod::start();
    let names = ["one", "two", "three"];
    let all: Vec<_> = names.iter().map(|name| join(&luod, name, true, PATIENCE)).collect();
    // Each answers only when all have been called: one after the other would never end.
    let barrier = std::sync::Arc::new(std::sync::Barrier::new(names.len()));
    let threads: Vec<_> = all
        .into_iter()
        .map(|mut participant| {
            let barrier = std::sync::Arc::clone(&barrier);
            std::thread::spawn(move || {
                let call = participant.next_call(Some(PATIENCE)).unwrap().expect("a call");
                barrier.wait();
                participant.agree(&call, 0).unwrap();
                participant
            })
        })
        .collect();
    luod.manager().prepare().unwrap();
    for thread in threads {
        drop(thread.join().unwrap());
    }
}

#[test]
fn events_come_as_they_happen() {
    let luod = Luod::start();
    let manager = luod.manager();
    let mut watch = manager.watch().unwrap();
    // The subscription stands when its first event comes: until then sessions are made.
    let mut number = 0;
    luod.wait("an event", || {
        number += 1;
        drop(luod.session(&format!("s{number}")));
        watch.next_event(Some(Duration::from_millis(20))).unwrap().is_some()
    });
    manager.prepare().unwrap();
    luod.wait("the prepared state", || {
        watch
            .next_event(Some(Duration::from_millis(20)))
            .unwrap()
            .is_some_and(|event| event.kind == "state" && event.state == "prepared")
    });
}

#[test]
fn a_cancel_in_the_middle_of_prepare_is_answered_and_so_is_prepare() {
    let luod = Luod::start();
    let mut participant = join(&luod, "slow", true, PATIENCE);
    let preparing = {
        let manager = luod.manager();
        std::thread::spawn(move || manager.prepare())
    };
    let call = participant.next_call(Some(PATIENCE)).unwrap().expect("a call");
    assert_eq!(call.phase, ParticipantPhase::Prepare);
    let cancelling = {
        let manager = luod.manager();
        std::thread::spawn(move || manager.cancel())
    };
    // What is under way is waited for: it ends when the participant has answered.
    participant.agree(&call, 0).unwrap();
    let answering = std::thread::spawn(move || {
        while let Ok(Some(call)) = participant.next_call(Some(PATIENCE)) {
            participant.agree(&call, 0).unwrap();
            if call.phase == ParticipantPhase::Cancel {
                break;
            }
        }
    });
    let (prepared, cancelled) = (preparing.join().unwrap(), cancelling.join().unwrap());
    // The cancel may come before or after the answer: either way it ends in normal.
    assert_eq!(cancelled.unwrap().unwrap().state, State::Normal);
    if let Err(error) = prepared {
        assert_eq!(error.errno(), Some("ECANCELED"));
    }
    answering.join().unwrap();
    assert_eq!(luod.manager().status().unwrap().state, State::Normal);
}
