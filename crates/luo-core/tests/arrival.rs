//! Files that cannot wait for their owners: they are retrieved when the machine has arrived, and live
//! once they are kept.

mod common;

use std::sync::Arc;

use common::*;
use luo_core::*;

/// As the toys' own handler, of files that cannot wait.
struct Urgent(ToyHandler);

impl Handler<Toy> for Urgent {
    fn compatible(&self) -> &str {
        self.0.compatible()
    }
    fn requires(&self) -> Caps {
        self.0.requires()
    }
    fn can_preserve(&self, file: &Toy) -> bool {
        self.0.can_preserve(file)
    }
    fn prepare(&self, file: &Toy, keep: &dyn Keep<Toy>) -> Result<u64, Failure> {
        self.0.prepare(file, keep)
    }
    fn freeze(&self, file: &Toy, data: u64, keep: &dyn Keep<Toy>) -> Result<u64, Failure> {
        self.0.freeze(file, data, keep)
    }
    fn retrieve(&self, data: u64, recall: &dyn Recall<Toy>) -> Result<Toy, Failure> {
        self.0.retrieve(data, recall)
    }
    fn finish(&self, file: Option<&Toy>, data: u64, reclaimed: bool, recall: &dyn Recall<Toy>) {
        self.0.finish(file, data, reclaimed, recall);
    }
    fn retrieves_on_arrival(&self) -> bool {
        true
    }
    fn let_live(&self, file: &Toy) {
        let _ = self.0.script.call(format!("let live {}", file.id()));
    }
}

const URGENT: &str = "urgent";

/// The other side, arrived with a plain file 1 and the urgent files 2 and 3.
fn arrived() -> (World, SessionId) {
    let mut world = World::new();
    let urgent = |world: &mut World| {
        let handler = Urgent(ToyHandler::new(URGENT, &world.script));
        world.core.register_handler(Arc::new(handler)).unwrap();
    };
    urgent(&mut world);
    let session = world.session("a");
    world.give(session, 1);
    for id in 2..=3 {
        let file = Toy::of(URGENT, id);
        world.core.preserve(session, Some(Token(id)), file, Criticality::Required).unwrap();
    }
    for event in [Event::Prepare, Event::Freeze, Event::Depart] {
        assert!(world.machine(event).result.is_ok());
    }
    let mut other = world.other_side();
    urgent(&mut other);
    assert!(other.machine(Event::Arrive).result.is_ok());
    other.log();
    let session = other.core.session_by_name("a").unwrap();
    (other, session)
}

#[test]
fn what_cannot_wait_is_retrieved_unasked_and_lives_when_it_is_told_to() {
    let (mut world, session) = arrived();
    assert_eq!(world.core.retrieve_on_arrival(), 2);
    world.run();
    assert_eq!(world.log(), ["retrieve 2", "retrieve 3"]);
    assert_eq!(world.core.retrieve_on_arrival(), 0, "they are there");
    world.core.let_live();
    assert_eq!(world.log(), ["let live 2", "let live 3"]);
    // Their owner is asked for as before.
    let refused = world.core.finish(Scope::Machine, FinishOptions::default()).unwrap_err();
    assert_eq!(refused.errno(), Errno::Busy);
    for id in 1..=3 {
        assert_eq!(world.retrieve(session, id).unwrap().id(), id);
        world.core.mark_reclaimed(session, Token(id)).unwrap();
    }
    assert_eq!(world.log(), ["retrieve 1", "let live 2", "let live 3"]);
    let id = world.core.finish(Scope::Machine, FinishOptions::default()).unwrap();
    world.run();
    assert!(world.report(id).result.is_ok());
}

#[test]
fn what_fails_on_arrival_is_told_to_its_owner_and_holds_up_nothing() {
    let (mut world, session) = arrived();
    world.script.fail("retrieve 2");
    world.core.retrieve_on_arrival();
    world.run();
    assert_eq!(world.core.retrieve_on_arrival(), 0);
    world.core.let_live();
    assert_eq!(world.log(), ["retrieve 2", "retrieve 3", "let live 3"]);
    world.script.heal();
    assert_eq!(world.retrieve(session, 2).unwrap_err().errno(), Errno::Io);
    assert_eq!(world.log(), Vec::<String>::new(), "it was tried again");
}
