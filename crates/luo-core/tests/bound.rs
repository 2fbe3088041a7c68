//! Files that are bound to each other come back in order, and are kept together or not at all.

mod common;

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex},
};

use common::*;
use luo_core::*;
use proptest::prelude::*;

/// What each file refers to, by its id.
#[derive(Clone, Default)]
struct Links(Arc<Mutex<BTreeMap<u64, Link>>>);

#[derive(Clone, Default)]
struct Link {
    needs: Vec<u64>,
    with: Vec<u64>,
    /// The file that is made along with it.
    makes: Option<u64>,
}

/// As [`ToyHandler`], of files that refer to others as the links say.
struct LinkedHandler {
    toys: ToyHandler,
    links: Links,
}

impl LinkedHandler {
    fn link(&self, id: u64) -> Link {
        self.links.0.lock().unwrap().get(&id).cloned().unwrap_or_default()
    }
}

fn linked(id: u64) -> Toy {
    Toy::of("linked", id)
}

impl Handler<Toy> for LinkedHandler {
    fn compatible(&self) -> &str {
        "linked"
    }
    fn requires(&self) -> Caps {
        Caps::LIVE
    }
    fn can_preserve(&self, file: &Toy) -> bool {
        self.toys.can_preserve(file)
    }
    fn refers(&self) -> bool {
        true
    }
    fn prepare(&self, file: &Toy, keep: &dyn Keep<Toy>) -> Result<u64, Failure> {
        let link = self.link(file.id());
        for (others, note) in [(&link.needs, true), (&link.with, false)] {
            for other in others {
                let Some(token) = keep.token_of(&linked(*other)) else {
                    let reason = format!("{other} is not in the session");
                    return Err(Failure::new(Errno::OpNotSupp, reason));
                };
                if note { keep.need(token)? } else { keep.bind(token)? }
            }
        }
        self.toys.prepare(file, keep)
    }
    fn freeze(&self, file: &Toy, data: u64, keep: &dyn Keep<Toy>) -> Result<u64, Failure> {
        self.toys.freeze(file, data, keep)
    }
    fn cancel(&self, file: &Toy, data: u64, keep: &dyn Keep<Toy>) {
        self.toys.cancel(file, data, keep)
    }
    fn retrieve(&self, data: u64, recall: &dyn Recall<Toy>) -> Result<Toy, Failure> {
        let link = self.link(data - 1000);
        for other in &link.needs {
            assert_eq!(recall.file(Token(*other))?.id(), *other, "it is the one that was meant");
        }
        assert_eq!(recall.file(Token(999)).unwrap_err().errno(), Errno::NoEnt);
        let file = self.toys.retrieve(data, recall)?;
        if let Some(other) = link.makes {
            recall.give(Token(other), linked(other))?;
        }
        Ok(file)
    }
    fn can_finish(&self, file: Option<&Toy>, data: u64, recall: &dyn Recall<Toy>) -> bool {
        self.toys.can_finish(file, data, recall)
    }
    fn finish(&self, file: Option<&Toy>, data: u64, reclaimed: bool, recall: &dyn Recall<Toy>) {
        self.toys.finish(file, data, reclaimed, recall)
    }
}

fn world_on(carrier: ToyCarrier, links: &Links) -> World {
    let mut world = World::bare(carrier);
    let toys = ToyHandler::new("linked", &world.script);
    let handler = LinkedHandler { toys, links: links.clone() };
    world.core.register_handler(Arc::new(handler)).unwrap();
    world
}

fn world(links: &[(u64, Link)]) -> (World, Links) {
    let links = Links(Arc::new(Mutex::new(links.iter().cloned().collect())));
    (world_on(ToyCarrier::default(), &links), links)
}

fn needs(ids: &[u64]) -> Link {
    Link { needs: ids.to_vec(), ..Link::default() }
}

fn give(world: &mut World, session: SessionId, id: u64, criticality: Criticality) {
    world.core.preserve(session, Some(Token(id)), linked(id), criticality).unwrap();
}

/// Files 1 to `files`, required, prepared, frozen and departed; gives the other side.
fn over(world: &mut World, links: &Links, files: u64) -> (World, SessionId) {
    let session = world.session("s");
    for id in 1..=files {
        give(world, session, id, Criticality::Required);
    }
    for event in [Event::Prepare, Event::Freeze, Event::Depart] {
        world.machine(event).result.unwrap();
    }
    let mut other = world_on(world.carrier.clone(), links);
    other.machine(Event::Arrive).result.unwrap();
    other.log();
    let session = other.core.session_by_name("s").unwrap();
    (other, session)
}

fn retrieved(log: &[String]) -> Vec<u64> {
    log.iter().filter_map(|line| line.strip_prefix("retrieve ")?.parse().ok()).collect()
}

#[test]
fn what_a_file_needs_is_retrieved_first_side_by_side_and_finished_last() {
    let (mut world, links) = world(&[(1, needs(&[2, 3])), (4, needs(&[1]))]);
    let (mut other, session) = over(&mut world, &links, 4);
    assert!(matches!(other.core.retrieve(session, Token(4)), Ok(Retrieval::Pending)));
    let calls = other.calls();
    let mut tokens: Vec<_> = calls.iter().map(|call| call.location().token.unwrap().0).collect();
    tokens.sort_unstable();
    assert_eq!(tokens, [2, 3], "nothing else may be called yet, and these side by side");
    other.complete(&calls[0]);
    assert!(other.core.next_call().is_none());
    other.complete(&calls[1]);
    other.run();
    assert_eq!(retrieved(&other.log())[2..], [1, 4]);
    assert_eq!(other.retrieve(session, 4).unwrap().id(), 4);
    for token in 1..=4 {
        other.core.mark_reclaimed(session, Token(token)).unwrap();
    }
    other.machine(Event::Finish).result.unwrap();
    let log = other.log();
    let finished: Vec<_> = log.iter().filter(|line| line.starts_with("finish ")).collect();
    assert_eq!(finished[..2], ["finish 4 reclaimed", "finish 1 reclaimed"]);
    assert_eq!(finished.len(), 4);
}

#[test]
fn the_failure_of_a_needed_file_is_the_failure_of_who_needs_it_with_its_cause() {
    let (mut world, links) = world(&[(1, needs(&[2, 3])), (4, needs(&[1]))]);
    let (mut other, session) = over(&mut world, &links, 5);
    other.script.fail("retrieve 3");
    let error = other.retrieve(session, 4).unwrap_err();
    assert_eq!(error.errno(), Errno::Io);
    assert!(error.reason().contains("retrieve 3 breaks"), "{error}");
    assert!(error.reason().contains("bound to 0x1"), "{error}");
    assert!(std::error::Error::source(&error).is_some(), "the cause is kept");
    assert_eq!(error.location().token, Some(Token(4)));
    assert_eq!(other.retrieve(session, 2).unwrap().id(), 2);
    assert_eq!(other.retrieve(session, 5).unwrap().id(), 5);
}

#[test]
fn a_file_that_another_needs_is_not_finished_before_that_one_is_there() {
    let (mut world, links) = world(&[(1, needs(&[2]))]);
    let (mut other, session) = over(&mut world, &links, 2);
    other.retrieve(session, 2).unwrap();
    other.core.mark_reclaimed(session, Token(2)).unwrap();
    let error = other.core.begin(Scope::File(session, Token(2)), Event::Finish).unwrap_err();
    assert_eq!(error.errno(), Errno::Busy);
    other.retrieve(session, 1).unwrap();
    other.event(Scope::File(session, Token(2)), Event::Finish).result.unwrap();
}

#[test]
fn files_that_need_each_other_in_a_circle_are_refused_in_prepare() {
    let (mut world, _) = world(&[(1, needs(&[2])), (2, needs(&[1])), (3, needs(&[2]))]);
    let session = world.session("s");
    for id in 1..=4 {
        give(&mut world, session, id, Criticality::Required);
    }
    let report = world.machine(Event::Prepare);
    let error = report.result.unwrap_err();
    assert_eq!((error.errno(), error.phase()), (Errno::Inval, Some(Phase::Prepare)));
    assert!(error.reason().contains("circle"), "{error}");
    assert_eq!((world.state(), world.carrier.kept()), (State::Normal, 0));
}

#[test]
fn optional_files_in_a_circle_are_left_out_with_what_needs_them() {
    let (mut world, _) = world(&[(1, needs(&[2])), (2, needs(&[1])), (3, needs(&[2]))]);
    let session = world.session("s");
    for id in 1..=4 {
        give(&mut world, session, id, Criticality::Optional);
    }
    let report = world.machine(Event::Prepare);
    report.result.unwrap();
    let left_out: BTreeSet<_> =
        report.left_out.iter().map(|e| e.location().token.unwrap().0).collect();
    assert_eq!(left_out, BTreeSet::from([1, 2, 3]));
    let states: Vec<_> = world.core.files(session).map(|file| file.state).collect();
    assert_eq!(states, [State::Normal, State::Normal, State::Normal, State::Prepared]);
}

#[test]
fn a_required_file_whose_optional_one_is_left_out_cancels_the_update() {
    for (by, ok) in [(Criticality::Required, false), (Criticality::Optional, true)] {
        for phase in ["prepare", "freeze"] {
            let (mut world, _) = world(&[(1, needs(&[2])), (3, needs(&[1]))]);
            let session = world.session("s");
            give(&mut world, session, 1, Criticality::Optional);
            give(&mut world, session, 2, Criticality::Optional);
            give(&mut world, session, 3, by);
            world.script.fail(&format!("{phase} 2"));
            let mut report = world.machine(Event::Prepare);
            if phase == "freeze" {
                report.result.unwrap();
                report = world.machine(Event::Freeze);
            }
            assert_eq!(report.result.is_ok(), ok);
            match report.result {
                Ok(()) => {
                    assert_eq!(report.left_out.len(), 3);
                    assert_eq!(
                        world.core.files(session).filter(|f| f.left_out.is_some()).count(),
                        3
                    );
                    world.machine(Event::Cancel).result.unwrap();
                }
                Err(error) => {
                    assert_eq!(error.location().token, Some(Token(3)));
                    assert!(error.reason().contains(&format!("{phase} 2 breaks")), "{error}");
                }
            }
            assert_eq!((world.state(), world.carrier.kept()), (State::Normal, 0));
        }
    }
}

#[test]
fn a_file_of_another_session_is_not_found() {
    let (mut world, _) = world(&[(1, needs(&[2]))]);
    let (one, other) = (world.session("one"), world.session("other"));
    give(&mut world, one, 1, Criticality::Required);
    give(&mut world, other, 2, Criticality::Required);
    let error = world.machine(Event::Prepare).result.unwrap_err();
    assert_eq!(error.errno(), Errno::OpNotSupp);
    assert!(error.reason().contains("not in the session"), "{error}");
}

#[test]
fn two_ends_are_made_together_whichever_is_asked_for_and_kept_together_or_not_at_all() {
    let maker = Link { with: vec![2], makes: Some(2), ..Link::default() };
    for first in [1, 2] {
        let (mut world, links) = world(&[(1, maker.clone()), (2, needs(&[1]))]);
        let (mut other, session) = over(&mut world, &links, 2);
        assert_eq!(other.retrieve(session, first).unwrap().id(), first);
        assert_eq!(other.retrieve(session, 3 - first).unwrap().id(), 3 - first);
        assert_eq!(retrieved(&other.log()), [1], "the maker has made both");
    }
    let (mut world, _) = world(&[(1, maker), (2, needs(&[1]))]);
    let session = world.session("s");
    give(&mut world, session, 1, Criticality::Required);
    give(&mut world, session, 2, Criticality::Optional);
    world.script.fail("prepare 2");
    let error = world.machine(Event::Prepare).result.unwrap_err();
    assert_eq!(error.location().token, Some(Token(1)));
}

#[test]
fn what_is_carried_on_is_retrieved_in_order_and_an_error_carries_nothing() {
    for breaks in [None, Some("retrieve 3")] {
        let (mut world, links) = world(&[(1, needs(&[2, 3])), (2, needs(&[4]))]);
        let (mut other, session) = over(&mut world, &links, 4);
        if let Some(call) = breaks {
            other.script.fail(call);
        }
        let options = FinishOptions { unclaimed: UnclaimedFiles::Carry, carry_reclaimed: true };
        let id = other.core.finish(Scope::Machine, options).unwrap();
        other.run();
        let report = other.report(id);
        assert_eq!(report.result.is_ok(), breaks.is_none());
        let order = retrieved(&other.log());
        let at = |id| order.iter().position(|other| *other == id);
        assert!(at(4) < at(2));
        assert!(breaks.is_some() || at(2) < at(1) && at(3) < at(1));
        let there = other.core.session(session).unwrap();
        let expected = if breaks.is_none() { (4, 0) } else { (0, 4) };
        assert_eq!((there.outgoing, there.incoming), expected);
    }
}

#[test]
fn two_descriptors_of_one_description_come_back_as_two_of_one() {
    let (mut world, links) = world(&[]);
    let session = world.session("s");
    give(&mut world, session, 5, Criticality::Required);
    let refused = world.core.preserve(session, None, linked(5), Criticality::Required).unwrap_err();
    assert_eq!(refused.errno(), Errno::Busy);
    let duplicate = |world: &mut World, token, of| {
        world.core.preserve_duplicate(session, Some(Token(token)), Token(of), Criticality::Required)
    };
    assert_eq!(duplicate(&mut world, 3, 9).unwrap_err().errno(), Errno::NoEnt);
    assert_eq!(duplicate(&mut world, 5, 5).unwrap_err().errno(), Errno::Exist);
    duplicate(&mut world, 3, 5).unwrap();
    duplicate(&mut world, 7, 3).unwrap();
    assert_eq!(world.core.unpreserve(session, Token(5)).unwrap_err().errno(), Errno::Busy);
    for event in [Event::Prepare, Event::Cancel, Event::Prepare, Event::Freeze, Event::Depart] {
        world.machine(event).result.unwrap();
    }
    let mut other = world_on(world.carrier.clone(), &links);
    other.machine(Event::Arrive).result.unwrap();
    let arrived = other.core.session_by_name("s").unwrap();
    for token in [3, 7, 5] {
        assert_eq!(other.retrieve(arrived, token).unwrap().id(), 5);
        other.core.mark_reclaimed(arrived, Token(token)).unwrap();
    }
    assert_eq!(retrieved(&other.log()), [5]);
    let options = FinishOptions { unclaimed: UnclaimedFiles::Refuse, carry_reclaimed: true };
    let id = other.core.finish(Scope::Machine, options).unwrap();
    other.run();
    other.report(id).result.unwrap();
    assert_eq!(other.core.session(arrived).unwrap().outgoing, 3);
    other.machine(Event::Prepare).result.unwrap();
    other.machine(Event::Cancel).result.unwrap();
    // Once its duplicates are gone, an original may go.
    let originals: Vec<_> =
        other.core.files(arrived).map(|f| (f.compatible.to_string(), f.token)).collect();
    let mut tokens: Vec<_> = originals;
    tokens.sort();
    for (_, token) in tokens {
        other.core.unpreserve(arrived, token).unwrap();
    }
    assert_eq!(other.core.usage(ALICE.uid).files, 0);
}

#[test]
fn duplicates_and_bonds_outlive_the_process_between_any_two_events() {
    let (mut world, links) = world(&[(1, needs(&[2]))]);
    let session = world.session("s");
    for id in 1..=2 {
        give(&mut world, session, id, Criticality::Required);
    }
    let required = Criticality::Required;
    world.core.preserve_duplicate(session, Some(Token(0)), Token(1), required).unwrap();
    let again = |world: &World| {
        let mut next = world_on(world.carrier.clone(), &links);
        next.core.restore_machine(world.core.machine_record()).unwrap();
        for session in world.core.sessions() {
            next.core.restore_session(world.core.session_record(session.id).unwrap()).unwrap();
            for file in world.core.files(session.id) {
                let (session, side, token) = (session.id, file.side, file.token);
                let key = FileKey { session, side, token };
                let (record, file) = world.core.file_with_record(key).unwrap();
                next.core.restore_file(record.clone(), file).unwrap();
                assert_eq!(next.core.file_record(key), Some(record));
            }
        }
        next.core.resume();
        next.run();
        next
    };
    let mut world = again(&world);
    for event in [Event::Prepare, Event::Freeze, Event::Depart] {
        world.machine(event).result.unwrap();
        world = again(&world);
    }
    let mut other = world_on(world.carrier.clone(), &links);
    other.machine(Event::Arrive).result.unwrap();
    let mut other = again(&other);
    other.log();
    assert_eq!(other.retrieve(session, 0).unwrap().id(), 1);
    assert_eq!(retrieved(&other.log()), [2, 1]);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    /// Any graph: circles and what needs them are refused or left out, everything else comes back,
    /// each file after all that it needs and once, in whatever order is asked and calls end.
    #[test]
    fn every_order_of_asking_and_answering_retrieves_what_is_needed_first(
        edges in proptest::collection::vec((1_u64..9, 1_u64..9), 0..14),
        optional in proptest::collection::btree_set(1_u64..9, 0..9),
        breaks in proptest::option::of(1_u64..9),
        asked in proptest::collection::vec(1_u64..9, 1..12),
        picks in proptest::collection::vec(any::<proptest::sample::Index>(), 40),
    ) {
        let mut graph: BTreeMap<u64, BTreeSet<u64>> = BTreeMap::new();
        for (by, other) in edges.into_iter().filter(|(by, other)| by != other) {
            graph.entry(by).or_default().insert(other);
        }
        let reach = |from: u64| {
            let mut seen = BTreeSet::new();
            let mut open: Vec<u64> = graph.get(&from).into_iter().flatten().copied().collect();
            while let Some(next) = open.pop() {
                if seen.insert(next) {
                    open.extend(graph.get(&next).into_iter().flatten());
                }
            }
            seen
        };
        let reaches: BTreeMap<u64, BTreeSet<u64>> = (1..9).map(|id| (id, reach(id))).collect();
        let circular = |id: u64| reaches[&id].contains(&id);
        let lost: BTreeSet<u64> =
            (1..9).filter(|id| circular(*id) || reaches[id].iter().any(|o| circular(*o))).collect();

        let links: Vec<_> = graph
            .iter()
            .map(|(id, others)| (*id, needs(&others.iter().copied().collect::<Vec<_>>())))
            .collect();
        let (mut world, links) = world(&links);
        let session = world.session("s");
        for id in 1..9 {
            let weak = optional.contains(&id);
            give(&mut world, session, id, if weak { Criticality::Optional } else { Criticality::Required });
        }
        let report = world.machine(Event::Prepare);
        let refused = lost.iter().any(|id| !optional.contains(id));
        prop_assert_eq!(report.result.is_err(), refused);
        if refused {
            prop_assert_eq!((world.state(), world.carrier.kept()), (State::Normal, 0));
            return Ok(());
        }
        prop_assert_eq!(report.left_out.len(), lost.len());
        world.machine(Event::Freeze).result.unwrap();
        world.machine(Event::Depart).result.unwrap();
        let mut other = world_on(world.carrier.clone(), &links);
        other.machine(Event::Arrive).result.unwrap();
        other.log();
        let session = other.core.session_by_name("s").unwrap();
        if let Some(id) = breaks {
            other.script.fail(&format!("retrieve {id}"));
        }
        let mut picks = picks.into_iter();
        let mut flying: Vec<Call<Toy>> = Vec::new();
        let mut asked: Vec<u64> = asked.into_iter().filter(|id| !lost.contains(id)).collect();
        let wanted: BTreeSet<u64> = asked.iter().copied().collect();
        loop {
            flying.extend(other.calls());
            let index = picks.next();
            let ask = index.is_none_or(|i| i.index(2) == 0) || flying.is_empty();
            if ask && let Some(id) = asked.pop() {
                other.core.retrieve(session, Token(id)).unwrap();
            } else if flying.is_empty() {
                break;
            } else {
                let at = index.map_or(0, |index| index.index(flying.len()));
                let call = flying.swap_remove(at);
                let token = call.location().token.unwrap().0;
                for needed in graph.get(&token).into_iter().flatten() {
                    let ready = other.core.retrieve(session, Token(*needed)).unwrap();
                    prop_assert!(matches!(ready, Retrieval::Ready(_)), "{needed} before {token}");
                }
                other.complete(&call);
            }
        }
        for id in wanted {
            let broken = breaks.is_some_and(|broken| broken == id || reaches[&id].contains(&broken));
            match other.core.retrieve(session, Token(id)).unwrap() {
                Retrieval::Ready(file) => prop_assert!(!broken && file.id() == id),
                Retrieval::Failed(_) => prop_assert!(broken),
                Retrieval::Pending => prop_assert!(false, "{id} waits for ever"),
            }
        }
        let mut order = retrieved(&other.log());
        let calls = order.len();
        order.sort_unstable();
        order.dedup();
        prop_assert_eq!(order.len(), calls, "no file is retrieved twice");
        // And the end: everything goes, in order, whatever is there.
        let options = FinishOptions { unclaimed: UnclaimedFiles::Release, carry_reclaimed: false };
        let id = other.core.finish(Scope::Machine, options).unwrap();
        other.run();
        other.report(id).result.unwrap();
        let log = other.log();
        let at = |id: u64| log.iter().position(|line| line.starts_with(&format!("finish {id}")));
        for id in (1..9).filter(|id| !lost.contains(id)) {
            prop_assert!(at(id).is_some());
            for needed in graph.get(&id).into_iter().flatten() {
                prop_assert!(at(id) < at(*needed), "{id} is finished before {needed}");
            }
        }
    }
}
