//! What must hold of kv with a real luod: updates lose nothing, a kill loses what the README says and no more, and
//! without luod kv runs on alone.

mod common;
#[path = "../../../crates/luo-files/tests/namespace/mod.rs"]
mod namespace;

use std::net::SocketAddr;
use std::os::fd::AsFd;
use std::sync::Arc;

use common::{Client, Kv, Luod, wait_until};
use kv::custody::MEMORY;
use kv::load::{Load, LoadHandle, LoadOptions, LoadReport};
use kv::store::FIRST_CONNECTION;
use luo::{State, Unclaimed};
use luo_carriers::arena::{Arena, FileMedium, machine_id};
use rustix::process::Signal;

const CONNECTIONS: usize = 16;

fn load(address: SocketAddr) -> LoadHandle {
    let mut options = LoadOptions::default();
    options.connections = CONNECTIONS;
    options.value_len = 3000;
    options.fill_bytes = 4 << 20;
    Load::start(address, options, &mut |_| ()).unwrap()
}

fn stop(load: LoadHandle) -> LoadReport {
    load.stop(&mut |_| ()).unwrap()
}

/// Lets the load go on until it was served this often more.
fn serve(load: &LoadHandle, more: u64) {
    let before = load.snapshot().served;
    wait_until("the load is served", || {
        assert!(!load.has_ended(), "the load ended by itself");
        load.snapshot().served >= before + more
    });
}

#[test]
fn updates_under_load_lose_nothing() {
    let luod = Luod::start();
    let mut kv = Kv::with(&luod, "v0");
    let address = kv.listens();
    let load = load(address);
    let mut half = Client::connect(address);
    half.send(b"SET ha");
    for version in 1..=5 {
        serve(&load, 500);
        let label = format!("v{version}");
        assert_eq!(kv.update(&luod, &label), address);
        assert_eq!(Client::connect(address).version(), label);
    }
    half.send(b"lf 1\r\n");
    assert_eq!(half.line(), "+OK");
    serve(&load, 500);
    let report = stop(load);
    assert!(report.is_clean(), "{:?}", report.first_failure);
}

#[test]
fn what_ends_is_forgotten_and_what_stays_is_carried_without_being_given_again() {
    let luod = Luod::start();
    let mut kv = Kv::with(&luod, "v0");
    let address = kv.listens();
    let mut clients: Vec<Client> = (0..300).map(|_| Client::connect(address)).collect();
    wait_until("all connections are in custody", || luod.files() == 2 + 300);
    kv.update(&luod, "v1");
    assert_eq!(luod.files(), 2 + 300);
    for client in &mut clients {
        assert_eq!(client.version(), "v1");
    }
    clients.truncate(20);
    wait_until("connections that ended are let go", || luod.files() == 2 + 20);
    kv.update(&luod, "v2");
    assert_eq!(clients[19].version(), "v2");
    assert_eq!(luod.files(), 2 + 20);
}

#[test]
fn a_kv_that_is_killed_loses_no_data_and_at_most_the_connection_in_service() {
    let luod = Luod::start();
    let mut kv = Kv::with(&luod, "v0");
    let address = kv.listens();
    let load = load(address);
    // These are not in service at any kill, and one is in the middle of a request.
    let mut idle: Vec<Client> = (0..8).map(|_| Client::connect(address)).collect();
    idle[0].send(b"SET ha");
    const KILLS: u64 = 5;
    for kill in 1..=KILLS {
        serve(&load, 500);
        wait_until("all connections are in custody", || luod.files() == 2 + CONNECTIONS + 8);
        kv.signal(Signal::KILL);
        kv.ended();
        kv = Kv::with(&luod, &format!("v{kill}"));
        assert_eq!(kv.listens(), address);
    }
    idle[0].send(b"lf 1\r\n");
    assert_eq!(idle[0].line(), "+OK");
    for client in &mut idle {
        assert_eq!(client.version(), format!("v{KILLS}"));
    }
    serve(&load, 500);
    let report = stop(load);
    assert_eq!(report.total.failed, 0, "{:?}", report.first_failure);
    assert!(report.total.dropped <= KILLS, "{} connections dropped", report.total.dropped);
}

#[test]
fn a_kill_of_luods_worker_is_not_noticed() {
    let luod = Luod::start();
    let mut kv = Kv::with(&luod, "v0");
    let address = kv.listens();
    let load = load(address);
    let mut late = Vec::new();
    for _ in 0..3 {
        serve(&load, 500);
        luod.kill_worker();
        let mut client = Client::connect(address);
        assert_eq!(client.version(), "v0");
        late.push(client);
    }
    wait_until("all connections are in custody", || luod.files() == 2 + CONNECTIONS + 3);
    kv.update(&luod, "v1");
    for client in &mut late {
        assert_eq!(client.version(), "v1");
    }
    serve(&load, 500);
    let report = stop(load);
    assert!(report.is_clean(), "{:?}", report.first_failure);
}

#[test]
fn connections_of_the_time_when_the_machine_is_prepared_are_in_custody_after_it() {
    let luod = Luod::start();
    let mut kv = Kv::with(&luod, "v0");
    let address = kv.listens();
    let tokens = || -> Vec<u64> {
        let files = luod.manager().files(Some("kv")).unwrap();
        files.iter().map(|file| file.token).filter(|token| *token >= FIRST_CONNECTION).collect()
    };
    let mut clients = vec![Client::connect(address), Client::connect(address)];
    let mut expected = vec![FIRST_CONNECTION, FIRST_CONNECTION + 1];
    wait_until("all connections are in custody", || tokens() == expected);
    for round in 0..3 {
        luod.manager().prepare().unwrap();
        let mut late = Client::connect(address);
        assert_eq!(late.version(), "v0");
        // One that came in time ends meanwhile, and one that did not.
        let mut brief = Client::connect(address);
        assert_eq!(brief.version(), "v0");
        drop((brief, clients.remove(0)));
        if round > 0 {
            // kv stands still from here on.
            luod.manager().freeze().unwrap();
        }
        if round == 2 {
            luod.kill_worker();
        }
        assert_eq!(tokens(), expected);
        luod.manager().cancel().unwrap();
        clients.push(late);
        expected = vec![expected[1], FIRST_CONNECTION + 2 + 2 * round];
        wait_until("those that are left are in custody", || tokens() == expected);
    }
    kv.signal(Signal::KILL);
    kv.ended();
    let mut kv = Kv::with(&luod, "v1");
    assert_eq!(kv.listens(), address);
    for client in &mut clients {
        assert_eq!(client.version(), "v1");
    }
}

#[test]
fn a_load_that_moves_to_another_kv_sees_whether_its_data_is_there() {
    let (mut with, mut without) = (Kv::start(&["--no-luo"]), Kv::start(&["--no-luo"]));
    let (with, without) = (with.listens(), without.listens());
    let mut resting = load(with).rest().unwrap();
    resting.move_to(with).unwrap();
    let report = resting.verify(&mut |_| ()).unwrap();
    assert!(report.is_clean(), "{:?}", report.first_failure);
    let mut resting = load(with).rest().unwrap();
    resting.move_to(without).unwrap();
    let report = resting.verify(&mut |_| ()).unwrap();
    assert_eq!((report.verify.failed, report.verify.verified_bytes), ((4 << 20) / 3000, 0));
    assert_eq!(report.total.dropped, 0);
}

#[test]
fn a_kv_that_arrived_listens_where_the_one_before_did() {
    arrive(false);
}

#[test]
fn a_kv_whose_address_somebody_else_has_binds_anew_and_is_updated_as_before() {
    arrive(true);
}

/// Takes a kv through an arena; `taken`: its address is somebody else's then.
fn arrive(taken: bool) {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("arena");
    let medium = Arc::new(FileMedium::create(&path, 64 << 20).unwrap());
    Arena::create(medium, machine_id().unwrap(), false).unwrap();
    let configuration = format!("arena = {path:?}");

    let mut luod = Luod::start_with(&configuration);
    // An address of the test's own: nobody else is given its port while it is away.
    let [_, a, b, c] = std::process::id().to_be_bytes();
    let own = format!("127.{}.{b}.{}:0", 64 | a, c.max(1));
    let mut kv = Kv::with_args(&luod, "v0", &["--bind", &own]);
    let before = kv.listens();
    let mut client = Client::connect(before);
    client.send(b"SET key value\r\nSET ha");
    assert_eq!(client.line(), "+OK");
    drop(client);
    wait_until("memory and listener alone are in custody", || luod.files() == 2);
    let prepared = luod.manager().prepare_through("arena").unwrap().unwrap();
    assert_eq!(prepared.left_out.len(), 0, "{:?}", prepared.left_out);
    luod.manager().freeze().unwrap();
    luod.manager().depart().unwrap();
    kv.signal(Signal::KILL);
    kv.ended();
    assert_eq!(luod.ended().code(), Some(3));
    drop(luod);

    let luod = Luod::start_with(&configuration);
    assert_eq!(luod.manager().status().unwrap().state, State::Updated);
    // Where it is told to listen counts only if it has to bind.
    let _other = taken.then(|| std::net::TcpListener::bind(before).unwrap());
    let free = std::net::TcpListener::bind("127.0.0.2:0").unwrap().local_addr().unwrap();
    let mut kv = Kv::with_args(&luod, "v1", &["--bind", &free.to_string()]);
    let address = kv.listens();
    assert_eq!(address, if taken { free } else { before });
    let mut client = Client::connect(address);
    client.send(b"GET key\r\nDBSIZE\r\n");
    assert_eq!((client.bulk(), client.line()), ("value".into(), ":1".into()));
    luod.manager().finish(Unclaimed::Refuse).unwrap();
    wait_until("memory, listener and connection are in custody", || luod.files() == 3);
    assert_eq!(kv.update(&luod, "v2"), address);
    assert_eq!(client.version(), "v2");
}

/// The machine is replaced under a connection with half a request; luod, kv and the client are in a
/// network of their own, which is cut off meanwhile.
fn goes_on_after_the_machine() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("arena");
    let medium = Arc::new(FileMedium::create(&path, 64 << 20).unwrap());
    Arena::create(medium, machine_id().unwrap(), false).unwrap();
    let configuration = format!("arena = {path:?}");
    let mut luod = Luod::start_with(&configuration);
    let mut kv = Kv::with(&luod, "v0");
    let address = kv.listens();
    let mut client = Client::connect(address);
    client.send(b"SET key value\r\nSET ha");
    assert_eq!(client.line(), "+OK");
    wait_until("the connection is in custody", || luod.files() == 3);
    let participates = || {
        let participants = luod.manager().status().unwrap().subsystems;
        participants.iter().any(|participant| participant.name == "kv-kv")
    };
    wait_until("kv takes part", participates);
    luod.manager().prepare_through("arena").unwrap();
    namespace::cut_off(true);
    luod.manager().freeze().unwrap();
    // kv stands still, and nothing that is sent now is lost.
    client.send(b"lf 1\r\nGET ke");
    luod.manager().depart().unwrap();
    kv.signal(Signal::KILL);
    kv.ended();
    assert_eq!(luod.ended().code(), Some(3));
    drop(luod);
    let luod = Luod::start_with(&configuration);
    namespace::cut_off(false);
    let mut kv = Kv::with_args(&luod, "v1", &["--bind", &address.to_string()]);
    kv.listens();
    client.send(b"y\r\nGET half\r\n");
    assert_eq!(client.line(), "+OK");
    assert_eq!((client.bulk(), client.bulk()), ("value".into(), "1".into()));
    assert_eq!(client.version(), "v1");
    luod.manager().finish(Unclaimed::Refuse).unwrap();
    kv.update(&luod, "v2");
    assert_eq!(client.version(), "v2");
}

#[test]
fn a_connection_goes_on_after_the_machine_was_replaced() {
    let name = "a_connection_goes_on_after_the_machine_was_replaced";
    namespace::in_network_namespace(name, goes_on_after_the_machine);
}

#[test]
fn a_cancelled_update_of_the_machine_lets_kv_go_on() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("arena");
    let medium = Arc::new(FileMedium::create(&path, 64 << 20).unwrap());
    Arena::create(medium, machine_id().unwrap(), false).unwrap();
    let luod = Luod::start_with(&format!("arena = {path:?}"));
    let mut kv = Kv::with(&luod, "v0");
    let mut client = Client::connect(kv.listens());
    assert_eq!(client.version(), "v0");
    for _ in 0..3 {
        luod.manager().prepare_through("arena").unwrap();
        luod.manager().freeze().unwrap();
        luod.manager().cancel().unwrap();
        assert_eq!(client.version(), "v0");
    }
}

#[test]
fn a_shutdown_by_a_client_ends_the_session_and_the_data() {
    let luod = Luod::start();
    let mut kv = Kv::with(&luod, "v0");
    let mut client = Client::connect(kv.listens());
    client.send(b"SET key value\r\nSHUTDOWN\r\n");
    assert!(kv.ended().success());
    assert!(luod.manager().sessions().unwrap().is_empty());
    let mut kv = Kv::with(&luod, "v1");
    let mut client = Client::connect(kv.listens());
    client.send(b"DBSIZE\r\n");
    assert_eq!(client.line(), ":0");
}

#[test]
fn a_kv_that_cannot_read_the_memory_leaves_the_session_as_it_was() {
    let luod = Luod::start();
    let junk = rustix::fs::memfd_create("junk", rustix::fs::MemfdFlags::CLOEXEC).unwrap();
    rustix::fs::ftruncate(&junk, 1 << 20).unwrap();
    luod.session("kv").preserve(MEMORY, junk.as_fd()).unwrap();
    for _ in 0..2 {
        assert_eq!(Kv::with(&luod, "v1").ended().code(), Some(1));
    }
    let session = luod.session("kv");
    assert_eq!(session.info().unwrap().incoming, [MEMORY]);
    session.retrieve(MEMORY).unwrap();
}

#[test]
fn a_session_of_another_program_is_refused_and_left_alone() {
    let luod = Luod::start();
    let file = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    luod.session("kv").preserve(77, file.as_fd()).unwrap();
    assert_eq!(Kv::with(&luod, "v1").ended().code(), Some(1));
    assert_eq!(luod.session("kv").info().unwrap().incoming, [77]);
}

#[test]
fn without_luod_kv_runs_alone_and_ends_when_told() {
    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("no.sock");
    let mut kv = Kv::start(&["--luo-socket", socket.to_str().unwrap()]);
    let mut client = Client::connect(kv.listens());
    client.send(b"SET key value\r\nGET key\r\n");
    assert_eq!((client.line(), client.bulk()), ("+OK".into(), "value".into()));
    kv.signal(Signal::TERM);
    assert!(kv.ended().success());
}

#[test]
fn a_kv_that_is_to_do_without_luo_asks_for_no_session() {
    let luod = Luod::start();
    let socket = luod.socket();
    let mut kv = Kv::start(&["--no-luo", "--luo-socket", socket.to_str().unwrap()]);
    let mut client = Client::connect(kv.listens());
    client.send(b"PING\r\n");
    assert_eq!(client.line(), "+PONG");
    assert!(luod.manager().sessions().unwrap().is_empty());
}
