//! luod is killed at the named moments of a departure through an arena (`worker/moments.rs`): it is the old
//! state or the whole handover that is found, and the update ends either way.

mod common;

use std::path::PathBuf;
use std::sync::Arc;

use common::Luod;
use luo::{Options, Record, State, Unclaimed};
use luo_carriers::arena::{self, Arena, FileMedium};
use tempfile::TempDir;

struct Place(TempDir);

impl Place {
    fn new() -> Self {
        let place = Self(tempfile::tempdir().unwrap());
        let medium = FileMedium::create(&place.0.path().join("arena"), 16 << 20).unwrap();
        Arena::create(Arc::new(medium), arena::machine_id().unwrap(), false).unwrap();
        place
    }

    fn moments(&self) -> PathBuf {
        self.0.path().join("moments")
    }

    fn luod(&self) -> Luod {
        let configuration = format!("arena = {:?}", self.0.path().join("arena"));
        let moments = self.moments();
        let environment = [("LUOD_TEST_MOMENTS", moments.to_str().unwrap())];
        Luod::start_binary(env!("CARGO_BIN_EXE_luod").into(), &configuration, &environment)
    }

    /// luod has died at the moment that it was to die at.
    fn reached(&self, luod: &Luod) {
        luod.wait("it is killed", || {
            std::fs::read_to_string(self.moments()).unwrap().trim().is_empty()
        });
    }
}

/// Departs, and is killed meanwhile.
fn depart(place: &Place, luod: &Luod, moment: &str) {
    let session = luod.session("shop");
    session.preserve(1, Record::new(b"page=3").unwrap()).unwrap();
    drop(session);
    let manager = luod.manager();
    manager.prepare_through("arena").unwrap();
    manager.freeze().unwrap();
    std::fs::write(place.moments(), moment).unwrap();
    // Whoever asks may get an answer from the next worker, or none.
    let asking = Options::new().socket(luod.socket()).deadline(std::time::Duration::from_secs(2));
    let departing = luo::Manager::connect(asking).and_then(|manager| manager.depart());
    drop(departing);
    place.reached(luod);
}

fn assert_whole(luod: &Luod) {
    let shop = luod.session("shop");
    assert!(shop.is_updated().unwrap());
    let record = Record::try_from(shop.retrieve(1).unwrap()).unwrap();
    assert_eq!(record.bytes().unwrap(), b"page=3");
    shop.finish().unwrap();
    luod.manager().finish(Unclaimed::Refuse).unwrap();
}

/// What is left of the arena is no obstacle.
fn assert_goes_on(luod: &Luod) {
    let manager = luod.manager();
    manager.prepare_through("arena").unwrap();
    manager.cancel().unwrap();
}

#[test]
fn a_worker_killed_after_the_switch_is_followed_by_one_that_arrives() {
    for moment in ["called depart", "ended depart", "kept depart"] {
        let place = Place::new();
        let luod = place.luod();
        depart(&place, &luod, moment);
        luod.wait("the next worker arrives", || {
            let status = luo::Manager::connect(luod.options()).and_then(|luod| luod.status());
            status.is_ok_and(|status| status.state == State::Updated)
        });
        assert_whole(&luod);
        assert_goes_on(&luod);
    }
}

#[test]
fn a_worker_killed_before_the_switch_is_followed_by_one_that_undoes_it() {
    let place = Place::new();
    let luod = place.luod();
    depart(&place, &luod, "call depart");
    luod.wait("the next worker undoes it", || {
        let status = luo::Manager::connect(luod.options()).and_then(|luod| luod.status());
        status.is_ok_and(|status| status.state == State::Normal && status.transition.is_none())
    });
    assert_eq!(luod.manager().status().unwrap().files, 1);
    assert_goes_on(&luod);
}

#[test]
fn a_luod_killed_whole_after_the_switch_is_followed_by_one_that_arrives() {
    for moment in ["luod called depart", "luod ended depart", "luod kept depart"] {
        let place = Place::new();
        let mut luod = place.luod();
        depart(&place, &luod, moment);
        luod.wait_for_end();
        let luod = place.luod();
        assert_whole(&luod);
        assert_goes_on(&luod);
    }
}
