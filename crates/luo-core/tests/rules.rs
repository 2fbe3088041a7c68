//! Registration, names, tokens, identities and limits.

mod common;

use std::sync::Arc;

use common::*;
use luo_core::*;

#[test]
fn handlers_are_asked_in_registration_order_and_their_strings_are_unique() {
    let mut world = World::new();
    let again = Arc::new(ToyHandler::new("toy", &world.script));
    assert_eq!(world.core.register_handler(again).unwrap_err().errno(), Errno::Exist);
    for (bad, errno) in [("", Errno::Inval), ("a b", Errno::Inval), ("é", Errno::Inval)] {
        let handler = Arc::new(ToyHandler::new(bad, &world.script));
        assert_eq!(world.core.register_handler(handler).unwrap_err().errno(), errno, "{bad:?}");
    }
    let long = "a123456789a123456789a123456789a123456789a1234567";
    let handler = Arc::new(ToyHandler::new(long, &world.script));
    assert_eq!(world.core.register_handler(handler).unwrap_err().errno(), Errno::NameTooLong);
    world.handler("more");
    let names: Vec<&str> = world.core.handlers().map(|handler| handler.compatible()).collect();
    assert_eq!(names, ["toy", "more"]);

    let a = world.session("a");
    world.give(a, 1);
    let error = world.core.unregister_handler("toy").unwrap_err();
    assert_eq!(error.errno(), Errno::Busy);
    world.core.unpreserve(a, Token(1)).unwrap();
    world.core.unregister_handler("toy").unwrap();
    assert_eq!(world.core.unregister_handler("toy").unwrap_err().errno(), Errno::NoEnt);
    world.core.unregister_handler("more").unwrap();
}

#[test]
fn a_file_that_nobody_takes_is_refused_with_who_refused_and_what_is_lacking() {
    let mut world = World::bare(ToyCarrier::default());
    let a = world.session("a");
    let give = |world: &mut World, kind| {
        let given = world.core.preserve(a, None, Toy::of(kind, 1), Criticality::Required);
        given.map_err(|error| {
            assert_eq!(error.errno(), Errno::NoEnt);
            error.to_string()
        })
    };
    assert!(give(&mut world, "toy").unwrap_err().contains("none is registered"));
    world.handler("one");
    world.handler("two");
    let memory = ToyHandler { requires: Caps::MEMORY, ..ToyHandler::new("toy", &world.script) };
    world.core.register_handler(Arc::new(memory)).unwrap();
    assert_eq!(
        give(&mut world, "toy").unwrap_err(),
        "no handler takes this file: one, two refuse it; toy needs memory, which the carrier does \
         not keep (ENOENT)"
    );
    assert!(give(&mut world, "two").is_ok());
}

#[test]
fn tokens_are_given_or_assigned_and_never_collide() {
    let mut world = World::new();
    let a = world.session("a");
    let mut next = 10;
    let mut add = |world: &mut World, token: Option<u64>| {
        next += 1;
        world.core.preserve(a, token.map(Token), Toy::new(next), Criticality::Required)
    };
    assert_eq!(add(&mut world, None).unwrap(), Token(1));
    assert_eq!(add(&mut world, Some(2)).unwrap(), Token(2));
    assert_eq!(add(&mut world, Some(0)).unwrap(), Token(0));
    assert_eq!(add(&mut world, None).unwrap(), Token(3));
    assert_eq!(add(&mut world, Some(3)).unwrap_err().errno(), Errno::Exist);
    assert_eq!(add(&mut world, Some(u64::MAX)).unwrap(), Token(u64::MAX));
    world.core.unpreserve(a, Token(3)).unwrap();
    assert_eq!(add(&mut world, None).unwrap(), Token(4), "an assigned one is not assigned again");
    assert_eq!(add(&mut world, Some(3)).unwrap(), Token(3));
    assert_eq!(world.core.unpreserve(a, Token(99)).unwrap_err().errno(), Errno::NoEnt);
}

#[test]
fn the_same_open_file_is_preserved_once_and_its_place_is_told_to_its_owner_only() {
    let mut world = World::new();
    let a = world.session("a");
    let theirs = world.core.create_session("theirs", BOB, Policy::default()).unwrap();
    let file = Toy::new(1);
    world.core.preserve(a, Some(Token(26)), file.clone(), Criticality::Required).unwrap();
    let b = world.session("b");
    for session in [a, b] {
        let error =
            world.core.preserve(session, None, file.clone(), Criticality::Required).unwrap_err();
        assert_eq!(error.errno(), Errno::Busy);
        assert!(error.reason().contains("session a as 0x1a"), "{error}");
    }
    let error = world.core.preserve(theirs, None, file.clone(), Criticality::Required).unwrap_err();
    assert_eq!(error.errno(), Errno::Busy);
    assert!(!error.to_string().contains("0x1a"), "{error}");
    assert_eq!(world.core.usage(BOB.uid), Usage { sessions: 1, files: 0, bytes: 0 });
    // A twin has the same identity and is another file.
    for id in 2..50 {
        let twin = Toy::twin("toy", id, 1, 0);
        world.core.preserve(b, None, twin.clone(), Criticality::Required).unwrap();
        let again = world.core.preserve(b, None, twin, Criticality::Required);
        assert_eq!(again.unwrap_err().errno(), Errno::Busy);
    }
    world.core.unpreserve(a, Token(26)).unwrap();
    world.core.preserve(theirs, None, file, Criticality::Required).unwrap();
}

#[test]
fn a_handlers_own_identity_makes_different_files_the_same() {
    let mut world = World::bare(ToyCarrier::default());
    let device = ToyHandler { own_identity: true, ..ToyHandler::new("device", &world.script) };
    world.core.register_handler(Arc::new(device)).unwrap();
    world.handler("toy");
    let a = world.session("a");
    let give = |world: &mut World, kind, id| {
        let file = Toy::twin(kind, id, 5, 0);
        world.core.preserve(a, None, file, Criticality::Required)
    };
    give(&mut world, "device", 1).unwrap();
    assert_eq!(give(&mut world, "device", 2).unwrap_err().errno(), Errno::Busy);
    give(&mut world, "toy", 3).unwrap();
    world.core.unpreserve(a, Token(1)).unwrap();
    give(&mut world, "device", 2).unwrap();
}

#[test]
fn limits_are_refused_with_the_limit_and_the_use() {
    let mut world = World::new();
    let limits = Limits { sessions: Some(2), files: Some(3), bytes: Some(35), exempt_root: true };
    world.core.set_limits(limits);
    let a = world.session("a");
    let b = world.session("b");
    let error = world.core.create_session("c", ALICE, Policy::default()).unwrap_err();
    assert_eq!(error.errno(), Errno::NoSpc);
    assert!(error.reason().contains("may have 2 sessions, has 2"), "{error}");
    world.give(a, 1);
    world.give(b, 2);
    let big = Toy::twin("toy", 9, 9, 16);
    let error = world.core.preserve(a, None, big, Criticality::Required).unwrap_err();
    assert!(error.reason().contains("35 pinned bytes, has 20 and wants 16"), "{error}");
    assert!(error.advice().is_some());
    world.give(a, 3);
    let none = Toy::twin("toy", 10, 10, 0);
    let error = world.core.preserve(a, None, none.clone(), Criticality::Required).unwrap_err();
    assert!(error.reason().contains("3 preserved files, has 3"), "{error}");
    assert_eq!(world.core.usage(ALICE.uid), Usage { sessions: 2, files: 3, bytes: 30 });
    assert_eq!(world.core.session(a).unwrap().pinned, 20);
    assert_eq!(world.core.pinned(), 30);
    // Others are not affected, and root may be exempt.
    for owner in [BOB, Owner { uid: 0, gid: 0 }] {
        for n in 0..2 {
            let name = format!("{}-{n}", owner.uid);
            world.core.create_session(&name, owner, Policy::default()).unwrap();
        }
        let third = world.core.create_session("third", owner, Policy::default());
        assert_eq!(third.is_ok(), owner.uid == 0);
    }
    world.core.remove_session(b).unwrap();
    assert_eq!(world.core.usage(ALICE.uid), Usage { sessions: 1, files: 2, bytes: 20 });
    world.core.preserve(a, None, none, Criticality::Required).unwrap();
    world.core.remove_session(a).unwrap();
    assert_eq!(world.core.usage(ALICE.uid), Usage::default());
}

#[test]
fn session_names_are_checked_and_unique() {
    let mut world = World::new();
    let long = "x".repeat(63);
    for good in ["a", "web cache@home", ".hidden", &long] {
        let id = world.session(good);
        assert_eq!(world.core.session_by_name(good), Some(id));
        assert_eq!(&*world.core.session(id).unwrap().name, good);
    }
    let too_long = "x".repeat(64);
    for (bad, errno) in [
        ("", Errno::Inval),
        (".", Errno::Inval),
        ("..", Errno::Inval),
        ("a/b", Errno::Inval),
        ("a\0b", Errno::Inval),
        ("a\nb", Errno::Inval),
        ("é", Errno::Inval),
        (&too_long, Errno::NameTooLong),
        ("a", Errno::Exist),
    ] {
        let made = world.core.create_session(bad, ALICE, Policy::default());
        assert_eq!(made.unwrap_err().errno(), errno, "{bad:?}");
    }
    assert_eq!(world.core.sessions().count(), 4);
    assert_eq!(world.core.remove_session(SessionId(99)).unwrap_err().errno(), Errno::NoEnt);
}

#[test]
fn subsystems_are_registered_once_and_files_stays() {
    let mut world = World::new();
    world.subsystem("s", SubsystemOptions::default());
    let add = |world: &mut World, name: &str| {
        world
            .core
            .register_subsystem(name, SubsystemKind::Remote, SubsystemOptions::default())
            .map_err(|error| error.errno())
    };
    assert_eq!(add(&mut world, "s"), Err(Errno::Exist));
    assert_eq!(add(&mut world, "files"), Err(Errno::Exist));
    assert_eq!(add(&mut world, "compatible"), Err(Errno::Inval));
    assert_eq!(add(&mut world, "files:toy"), Err(Errno::Inval), "where shared state travels");
    assert_eq!(add(&mut world, &"s".repeat(64)), Err(Errno::NameTooLong));
    assert_eq!(world.core.unregister_subsystem("files").unwrap_err().errno(), Errno::Busy);
    assert_eq!(world.core.unregister_subsystem("t").unwrap_err().errno(), Errno::NoEnt);
    let id = world.core.begin(Scope::Machine, Event::Prepare).unwrap();
    assert_eq!(world.core.unregister_subsystem("s").unwrap_err().errno(), Errno::Busy);
    world.run();
    assert!(world.report(id).result.is_ok());
    assert_eq!(world.core.unregister_subsystem("s").unwrap_err().errno(), Errno::Busy);
    assert_eq!(add(&mut world, "t"), Err(Errno::Busy));
    world.machine(Event::Cancel);
    world.core.unregister_subsystem("s").unwrap();
    let names: Vec<String> = world.core.subsystems().map(|sub| sub.name.to_string()).collect();
    assert_eq!(names, ["files"]);
}

#[test]
fn an_error_is_one_sentence_with_place_errno_and_next_step_and_keeps_its_cause() {
    let mut world = World::new();
    let a = world.session("kv");
    world.give(a, 26);
    world.script.fail("prepare 26");
    let error = world.machine(Event::Prepare).result.unwrap_err();
    assert_eq!(
        error.to_string(),
        "prepare of token 0x1a, session kv, handler toy, subsystem files: prepare 26 breaks (EIO)"
    );
    assert_eq!(error.failure().unwrap().errno(), Errno::Io);
    world.script.heal();
    world.machine(Event::Prepare);
    let error = world.core.unpreserve(a, Token(26)).unwrap_err();
    assert_eq!(
        error.to_string(),
        "cannot change the files while the machine is prepared (EBUSY); wait for the update, or \
         cancel it"
    );
}

#[test]
fn what_the_handler_forgets_to_forget_is_forgotten_and_no_handle_twice() {
    struct Careful(Shared);
    impl Handler<Toy> for Careful {
        fn compatible(&self) -> &str {
            "careful"
        }
        fn requires(&self) -> Caps {
            Caps::BYTES
        }
        fn can_preserve(&self, _: &Toy) -> bool {
            true
        }
        fn prepare(&self, file: &Toy, keep: &dyn Keep<Toy>) -> Result<u64, Failure> {
            let draft = keep.keep_bytes(b"draft")?;
            keep.keep_live(file)?;
            keep.forget(draft);
            let data = keep.keep_bytes(b"kept")?.0;
            self.0.call("prepare".into())?;
            Ok(data)
        }
        fn freeze(&self, _: &Toy, data: u64, keep: &dyn Keep<Toy>) -> Result<u64, Failure> {
            // It replaces what it kept before, and then fails.
            keep.forget(Handle(data));
            let data = keep.keep_bytes(b"frozen")?.0;
            self.0.call("freeze".into())?;
            Ok(data)
        }
        fn cancel(&self, _: &Toy, data: u64, keep: &dyn Keep<Toy>) {
            if self.0.call("cancel".into()).is_ok() {
                return;
            }
            keep.forget(Handle(data));
        }
        fn retrieve(&self, _: u64, _: &dyn Recall<Toy>) -> Result<Toy, Failure> {
            Ok(Toy::new(1))
        }
        fn finish(&self, _: Option<&Toy>, data: u64, _: bool, recall: &dyn Recall<Toy>) {
            recall.release(Handle(data));
        }
    }
    for fails in [&[][..], &["prepare"], &["freeze"], &["cancel"]] {
        let mut world = World::bare(ToyCarrier::default());
        world.core.register_handler(Arc::new(Careful(world.script.clone()))).unwrap();
        let a = world.session("a");
        world.give(a, 1);
        fails.iter().for_each(|call| world.script.fail(call));
        if world.machine(Event::Prepare).result.is_ok() {
            assert_eq!(world.carrier.kept(), 2);
            if fails != ["cancel"] {
                world.machine(Event::Freeze);
            }
            if world.state() != State::Normal {
                world.machine(Event::Cancel);
            }
        }
        assert_eq!(world.carrier.kept(), 0, "{fails:?}");
        world.script.heal();
        world.event(Scope::Session(a), Event::Depart);
        world.event(Scope::Session(a), Event::Arrive);
        world.retrieve(a, 1).unwrap();
        let options = FinishOptions { unclaimed: UnclaimedFiles::Carry, carry_reclaimed: true };
        world.core.finish(Scope::Session(a), options).unwrap();
        world.run();
        assert_eq!(world.carrier.kept(), 0, "{fails:?}");
    }
}
