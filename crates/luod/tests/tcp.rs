//! TCP connections leave luod through an arena, and come back with the next luod before anybody asks
//! for them. luod, the service and its peer are in a network namespace of the test's own.

mod common;
#[path = "../../luo-files/tests/namespace/mod.rs"]
mod namespace;

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::time::{Duration, Instant};

use common::{Luod, PATIENCE, errno};
use luo::{Session, State, Unclaimed};
use luo_carriers::arena::{self, Arena, FileMedium};
use luo_sys::tcp;
use namespace::in_network_namespace;
use tempfile::TempDir;

struct Place(TempDir);

impl Place {
    fn new() -> Self {
        let place = Self(tempfile::tempdir().unwrap());
        let medium = FileMedium::create(&place.0.path().join("arena"), 64 << 20).unwrap();
        Arena::create(Arc::new(medium), arena::machine_id().unwrap(), false).unwrap();
        place
    }

    fn luod(&self) -> Luod {
        Luod::start_with(&format!("arena = {:?}", self.0.path().join("arena")))
    }
}

fn connections(count: u64, address: &str) -> (TcpListener, Vec<(TcpStream, TcpStream)>) {
    let listener = TcpListener::bind((address, 0)).unwrap();
    let connect = |_| {
        let peer = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        peer.set_read_timeout(Some(PATIENCE)).unwrap();
        (peer, listener.accept().unwrap().0)
    };
    let pairs = (0..count).map(connect).collect();
    (listener, pairs)
}

fn exchange(peer: &mut TcpStream, kept: &mut TcpStream, seed: u8) {
    peer.write_all(&[seed; 5_000]).unwrap();
    let mut bytes = [0; 5_000];
    kept.read_exact(&mut bytes).unwrap();
    assert_eq!(bytes, [seed; 5_000]);
    kept.write_all(&[!seed; 3_000]).unwrap();
    let mut bytes = [0; 3_000];
    peer.read_exact(&mut bytes).unwrap();
    assert_eq!(bytes, [!seed; 3_000]);
}

fn retrieved(session: &Session, token: u64) -> TcpStream {
    let stream = TcpStream::from(session.retrieve(token).unwrap());
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream
}

fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let start = Instant::now();
    while !holds() {
        assert!(start.elapsed() < PATIENCE, "{what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// Through every phase; the service has gone, and luod goes.
fn depart(luod: &mut Luod, session: Session) {
    drop(session);
    let manager = luod.manager();
    manager.prepare_through("arena").unwrap();
    manager.freeze().unwrap();
    manager.depart().unwrap();
    luod.wait_for_end();
}

fn back_before_their_owner_asks() {
    for address in ["127.0.0.1", "::1"] {
        let place = Place::new();
        let mut luod = place.luod();
        let (_listener, mut pairs) = connections(100, address);
        let shop = luod.session("shop");
        for (token, (peer, kept)) in (1_u64..).zip(&mut pairs) {
            shop.preserve(token, &*kept).unwrap();
            exchange(peer, kept, token as u8);
            // On its way in both directions.
            peer.write_all(&token.to_le_bytes()).unwrap();
            kept.write_all(&token.to_be_bytes()).unwrap();
        }
        let mut peers: Vec<TcpStream> = pairs.into_iter().map(|(peer, _)| peer).collect();
        namespace::cut_off(true);
        depart(&mut luod, shop);
        for peer in &mut peers {
            // Nobody is there, and nobody says so.
            peer.write_all(b"anyone?").unwrap();
        }
        let luod = place.luod();
        assert_eq!(luod.manager().status().unwrap().state, State::Updated);
        namespace::cut_off(false);
        // What was sent meanwhile is taken although nobody has asked for the connections.
        for peer in &peers {
            until("nobody takes it", || tcp::unacknowledged(peer).unwrap() == 0);
        }
        // A worker that is killed now takes none of them along.
        luod.kill_worker();
        let shop = luod.session("shop");
        for (token, peer) in (1_u64..).zip(&mut peers) {
            let mut kept = retrieved(&shop, token);
            let mut text = [0; 15];
            kept.read_exact(&mut text).unwrap();
            assert_eq!(text[..8], token.to_le_bytes());
            assert_eq!(&text[8..], b"anyone?");
            let mut text = [0; 8];
            peer.read_exact(&mut text).unwrap();
            assert_eq!(text, token.to_be_bytes());
            exchange(peer, &mut kept, token as u8);
        }
        shop.finish().unwrap();
        luod.manager().finish(Unclaimed::Refuse).unwrap();
    }
}

#[test]
fn connections_are_back_before_their_owner_asks_and_nobody_notices() {
    let name = "connections_are_back_before_their_owner_asks_and_nobody_notices";
    in_network_namespace(name, back_before_their_owner_asks);
}

fn killed_at_every_moment() {
    let place = Place::new();
    let (_listener, mut pairs) = connections(1, "127.0.0.1");
    let (mut peer, mut kept) = pairs.pop().unwrap();
    let mut luod = place.luod();
    let shop = luod.session("shop");
    shop.preserve(1, &kept).unwrap();
    let manager = luod.manager();
    manager.prepare_through("arena").unwrap();
    luod.kill_worker();
    manager.freeze().unwrap();
    kept.write_all(b"held back").unwrap();
    luod.kill_worker();
    manager.cancel().unwrap();
    let mut text = [0; 9];
    peer.read_exact(&mut text).unwrap();
    assert_eq!(&text, b"held back");
    exchange(&mut peer, &mut kept, 5);
    // And once more, all the way.
    drop(kept);
    namespace::cut_off(true);
    depart(&mut luod, shop);
    let luod = place.luod();
    namespace::cut_off(false);
    luod.kill_worker();
    let shop = luod.session("shop");
    luod.kill_worker();
    let mut kept = retrieved(&shop, 1);
    exchange(&mut peer, &mut kept, 6);
    luod.kill_worker();
    shop.finish_and_carry().unwrap();
    luod.manager().finish(Unclaimed::Refuse).unwrap();
    exchange(&mut peer, &mut kept, 7);
}

#[test]
fn a_worker_killed_at_every_moment_of_the_way_breaks_no_connection() {
    let name = "a_worker_killed_at_every_moment_of_the_way_breaks_no_connection";
    in_network_namespace(name, killed_at_every_moment);
}

fn cannot_be_kept() {
    let place = Place::new();
    let luod = place.luod();
    let (_listener, mut pairs) = connections(3, "127.0.0.1");
    let shop = luod.session("shop");
    for (token, (_, kept)) in (1..).zip(&pairs) {
        shop.preserve(token, kept).unwrap();
    }
    let manager = luod.manager();
    manager.prepare_through("arena").unwrap();
    // This side shuts one of them down, when it is too late to refuse that in time.
    pairs[1].1.shutdown(std::net::Shutdown::Write).unwrap();
    assert_eq!(errno(manager.freeze()), "EOPNOTSUPP");
    assert_eq!(manager.status().unwrap().state, State::Normal);
    for at in [0, 2] {
        let (peer, kept) = &mut pairs[at];
        kept.set_read_timeout(Some(PATIENCE)).unwrap();
        exchange(peer, kept, 9);
    }
}

#[test]
fn what_cannot_be_kept_cancels_the_update_and_nothing_happens_to_the_others() {
    let name = "what_cannot_be_kept_cancels_the_update_and_nothing_happens_to_the_others";
    in_network_namespace(name, cannot_be_kept);
}
