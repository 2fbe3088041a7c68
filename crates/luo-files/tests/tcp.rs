//! Connections that are taken apart and put together again, over a carrier that copies bytes. The
//! side that is kept and its peer are in one network namespace of the test's own; where the machine
//! does not let this user have one, each test says so and ends.

mod common;
mod namespace;

use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, SocketAddr, SocketAddrV6, TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::sync::atomic::Ordering;
use std::time::Duration;

use common::Copier;
use luo_abi::record::TcpRecord;
use luo_carriers::{HostFile, closer};
use luo_core::{Errno, Handle, Handler, Keep, Recall};
use luo_files::TcpHandler;
use luo_sys::tcp;
use namespace::{in_network_namespace, without_any_network};
use rustix::net::sockopt;

const DEADLINE: Duration = Duration::from_secs(20);
const LOOPBACK: [&str; 3] = ["127.0.0.1", "::1", "::ffff:127.0.0.1"];

/// Both ends of a connection; the second one was accepted.
fn connect(address: &str) -> (TcpStream, TcpStream) {
    let ip: IpAddr = address.parse().unwrap();
    let listener = TcpListener::bind(SocketAddr::new(ip, 0)).unwrap();
    let peer = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let (kept, _) = listener.accept().unwrap();
    peer.set_read_timeout(Some(DEADLINE)).unwrap();
    (peer, kept)
}

fn file(stream: TcpStream) -> HostFile {
    HostFile::from(OwnedFd::from(stream))
}

fn stream(file: &HostFile) -> TcpStream {
    let stream = TcpStream::from(file.try_clone_fd().unwrap());
    stream.set_read_timeout(Some(DEADLINE)).unwrap();
    stream
}

fn frozen(file: &HostFile, carrier: &Copier) -> u64 {
    assert!(TcpHandler.can_preserve(file));
    let data = TcpHandler.prepare(file, carrier).unwrap();
    TcpHandler.freeze(file, data, carrier).unwrap()
}

fn record(carrier: &Copier, data: u64) -> TcpRecord {
    TcpRecord::decode(&carrier.bytes(Handle(data)).unwrap()).unwrap()
}

/// The kept end on the other side: the socket of before is gone.
fn over(kept: TcpStream) -> TcpStream {
    let carrier = Copier::default();
    let kept = file(kept);
    let data = frozen(&kept, &carrier);
    close(kept);
    let back = retrieved(data, &carrier);
    TcpHandler.finish(Some(&back), data, true, &carrier);
    assert!(carrier.kept.lock().unwrap().is_empty(), "something stays in the carrier");
    stream(&back)
}

/// Closes it, and waits for that.
fn close(kept: HostFile) {
    drop(kept);
    while closer::waiting() > 0 {
        std::thread::yield_now();
    }
}

/// Retrieved, and kept where it outlives who has done that.
fn retrieved(data: u64, carrier: &Copier) -> HostFile {
    let back = TcpHandler.retrieve(data, carrier).unwrap();
    assert!(tcp::is_in_repair(&back).unwrap(), "dropped now it would tell its peer");
    assert!(tcp::incoming_dropped(&back).unwrap().is_some(), "it is not locked");
    TcpHandler.let_live(&back);
    assert!(!tcp::is_in_repair(&back).unwrap());
    TcpHandler.let_live(&back);
    back
}

fn read(stream: &mut TcpStream, length: usize) -> Vec<u8> {
    let mut bytes = vec![0; length];
    stream.read_exact(&mut bytes).unwrap();
    bytes
}

fn pattern(length: usize, seed: u8) -> Vec<u8> {
    (0..length).map(|at| (at % 251) as u8 ^ seed).collect()
}

/// Writes until nobody takes any more; gives what was written.
fn write_full(stream: &TcpStream, seed: u8) -> Vec<u8> {
    stream.set_nonblocking(true).unwrap();
    let bytes = pattern(64 << 20, seed);
    let mut written = 0;
    loop {
        match (&mut &*stream).write(&bytes[written..]) {
            Ok(more) => written += more,
            Err(error) if error.kind() == ErrorKind::WouldBlock => break,
            Err(error) => panic!("{error}"),
        }
    }
    stream.set_nonblocking(false).unwrap();
    bytes[..written].to_vec()
}

fn both_ways(peer: &mut TcpStream, kept: &mut TcpStream) {
    for round in 0..20_u8 {
        peer.write_all(&[round; 1000]).unwrap();
        assert_eq!(read(kept, 1000), [round; 1000]);
        kept.write_all(&[round ^ 255; 700]).unwrap();
        assert_eq!(read(peer, 700), [round ^ 255; 700]);
    }
}

#[test]
fn an_idle_connection_goes_on_in_every_family() {
    in_network_namespace("an_idle_connection_goes_on_in_every_family", || {
        for address in LOOPBACK {
            let (mut peer, mut kept) = connect(address);
            both_ways(&mut peer, &mut kept);
            let (local, remote) = (kept.local_addr().unwrap(), kept.peer_addr().unwrap());
            let mut kept = over(kept);
            assert_eq!((kept.local_addr().unwrap(), kept.peer_addr().unwrap()), (local, remote));
            both_ways(&mut peer, &mut kept);
            // And once more: what came back can be kept again.
            let mut kept = over(kept);
            both_ways(&mut peer, &mut kept);
            drop(kept);
            assert_eq!(peer.read(&mut [0; 8]).unwrap(), 0, "{address}: no end of the connection");
        }
    });
}

#[test]
fn what_is_in_both_queues_comes_back_byte_by_byte() {
    in_network_namespace("what_is_in_both_queues_comes_back_byte_by_byte", || {
        for address in LOOPBACK {
            let (mut peer, kept) = connect(address);
            let to_kept = write_full(&peer, 1);
            let to_peer = write_full(&kept, 2);
            assert!(tcp::unacknowledged(&kept).unwrap() > 0, "nothing waits to be sent");
            let mut kept = over(kept);
            let receiver = std::thread::spawn(move || {
                let bytes = read(&mut peer, to_peer.len());
                assert!(bytes == to_peer, "what was written has changed");
                peer
            });
            assert!(read(&mut kept, to_kept.len()) == to_kept, "what had come has changed");
            let mut peer = receiver.join().unwrap();
            both_ways(&mut peer, &mut kept);
        }
    });
}

#[test]
fn what_the_peer_sends_meanwhile_is_not_lost() {
    in_network_namespace("what_the_peer_sends_meanwhile_is_not_lost", || {
        let (mut peer, kept) = connect("127.0.0.1");
        let carrier = Copier::default();
        let kept = file(kept);
        let data = frozen(&kept, &carrier);
        peer.write_all(b"while frozen").unwrap();
        assert_eq!(tcp::unacknowledged(&peer).unwrap(), 12, "it was acknowledged");
        // Who still has it, and writes or ends it, is not heard.
        let still = stream(&kept);
        (&mut &still).write_all(b"x").unwrap();
        still.shutdown(std::net::Shutdown::Both).unwrap();
        drop(still);
        close(kept);
        let back = retrieved(data, &carrier);
        let mut kept = stream(&back);
        assert_eq!(read(&mut kept, 12), b"while frozen");
        both_ways(&mut peer, &mut kept);
    });
}

#[test]
fn a_cancelled_connection_goes_on_as_it_was() {
    in_network_namespace("a_cancelled_connection_goes_on_as_it_was", || {
        for reuse in [false, true] {
            let (mut peer, mut kept) = connect("127.0.0.1");
            sockopt::set_socket_reuseaddr(&kept, reuse).unwrap();
            let carrier = Copier::default();
            let kept_file = file(kept.try_clone().unwrap());
            let data = frozen(&kept_file, &carrier);
            peer.write_all(b"meanwhile").unwrap();
            kept.write_all(b"held back").unwrap();
            TcpHandler.cancel(&kept_file, data, &carrier);
            assert_eq!(read(&mut kept, 9), b"meanwhile");
            assert_eq!(read(&mut peer, 9), b"held back");
            both_ways(&mut peer, &mut kept);
            assert_eq!(tcp::incoming_dropped(&kept).unwrap(), None);
            assert!(!tcp::is_in_repair(&kept).unwrap());
            assert_eq!(sockopt::socket_reuseaddr(&kept).unwrap(), reuse);
            // Cancelled without having been frozen, it stays as it is.
            TcpHandler.cancel(&kept_file, 0, &carrier);
            both_ways(&mut peer, &mut kept);
        }
    });
}

#[test]
fn a_freeze_that_fails_at_any_step_leaves_the_connection_alive() {
    in_network_namespace("a_freeze_that_fails_at_any_step_leaves_the_connection_alive", || {
        let (mut peer, kept) = connect("127.0.0.1");
        peer.write_all(b"unread").unwrap();
        let mut kept_again = kept.try_clone().unwrap();
        let kept = file(kept);
        for room in 0..2 {
            let carrier = Copier::default();
            carrier.refuse_after.store(room + 1, Ordering::Relaxed);
            let data = TcpHandler.prepare(&kept, &carrier).unwrap();
            let failure = TcpHandler.freeze(&kept, data, &carrier).unwrap_err();
            assert_eq!(failure.errno(), Errno::NoSpc);
            assert!(!tcp::is_in_repair(&kept).unwrap());
            assert_eq!(tcp::incoming_dropped(&kept).unwrap(), None);
        }
        assert_eq!(read(&mut kept_again, 6), b"unread");
        both_ways(&mut peer, &mut kept_again);
    });
}

#[test]
fn who_is_killed_before_it_is_kept_elsewhere_has_lost_nothing() {
    in_network_namespace("who_is_killed_before_it_is_kept_elsewhere_has_lost_nothing", || {
        let (mut peer, kept) = connect("127.0.0.1");
        let to_peer = write_full(&kept, 3);
        peer.write_all(b"unread").unwrap();
        let carrier = Copier::default();
        let kept = file(kept);
        let data = frozen(&kept, &carrier);
        close(kept);
        for _ in 0..3 {
            let back = TcpHandler.retrieve(data, &carrier).unwrap();
            peer.write_all(b"more").unwrap();
            close(back);
        }
        let back = retrieved(data, &carrier);
        assert_eq!(read(&mut stream(&back), 18), b"unreadmoremoremore");
        assert!(read(&mut peer, to_peer.len()) == to_peer, "what was written has changed");
    });
}

#[test]
fn what_the_peer_has_closed_is_read_to_its_end() {
    in_network_namespace("what_the_peer_has_closed_is_read_to_its_end", || {
        let (mut peer, kept) = connect("127.0.0.1");
        peer.write_all(b"last words").unwrap();
        peer.shutdown(std::net::Shutdown::Write).unwrap();
        let mut kept = over(kept);
        let mut text = String::new();
        kept.read_to_string(&mut text).unwrap();
        assert_eq!(text, "last words");
        kept.write_all(b"answer").unwrap();
        assert_eq!(read(&mut peer, 6), b"answer");
        drop(kept);
        assert_eq!(peer.read(&mut [0; 8]).unwrap(), 0);
    });
}

#[test]
fn a_connection_that_has_ended_meanwhile_comes_back_as_one_that_has_ended() {
    in_network_namespace(
        "a_connection_that_has_ended_meanwhile_comes_back_as_one_that_has_ended",
        || {
            let (peer, kept) = connect("127.0.0.1");
            sockopt::set_tcp_nodelay(&kept, true).unwrap();
            let carrier = Copier::default();
            let kept = file(kept);
            let data = TcpHandler.prepare(&kept, &carrier).unwrap();
            sockopt::set_socket_linger(&peer, Some(Duration::ZERO)).unwrap();
            drop(peer);
            let data = TcpHandler.freeze(&kept, data, &carrier).unwrap();
            assert_eq!(record(&carrier, data).flags & TcpRecord::ENDED, TcpRecord::ENDED);
            let back = TcpHandler.retrieve(data, &carrier).unwrap();
            assert!(sockopt::tcp_nodelay(&back).unwrap());
            let error = stream(&back).read(&mut [0; 1]).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::NotConnected);
        },
    );
}

#[test]
fn options_and_terms_come_back() {
    in_network_namespace("options_and_terms_come_back", || {
        let (_peer, kept) = connect("::1");
        sockopt::set_socket_keepalive(&kept, true).unwrap();
        sockopt::set_tcp_keepidle(&kept, Duration::from_secs(77)).unwrap();
        sockopt::set_tcp_keepcnt(&kept, 3).unwrap();
        sockopt::set_tcp_nodelay(&kept, true).unwrap();
        sockopt::set_tcp_user_timeout(&kept, 12_345).unwrap();
        sockopt::set_socket_linger(&kept, Some(Duration::from_secs(3))).unwrap();
        sockopt::set_socket_recv_buffer_size(&kept, 54_321).unwrap();
        sockopt::set_socket_timeout(
            &kept,
            sockopt::Timeout::Send,
            Some(Duration::from_millis(1_200)),
        )
        .unwrap();
        sockopt::set_ipv6_unicast_hops(&kept, Some(9)).unwrap();
        sockopt::set_ipv6_tclass(&kept, 0x20).unwrap();
        luo_sys::set_socket_mark(&kept, 0x80_00_00_01).unwrap();
        kept.set_nonblocking(true).unwrap();
        let carrier = Copier::default();
        let kept = file(kept);
        let data = frozen(&kept, &carrier);
        let before = record(&carrier, data);
        assert!(before.flags & TcpRecord::NONBLOCK != 0);
        close(kept);
        // Still locked: its windows do not change.
        let back = TcpHandler.retrieve(data, &carrier).unwrap();
        assert_eq!(sockopt::tcp_keepidle(&back).unwrap(), Duration::from_secs(77));
        assert_eq!(luo_sys::socket_mark(&back).unwrap(), 0x80_00_00_01);
        // And all others: the record of what came back is the same.
        let again = Copier::default();
        let data = frozen(&back, &again);
        let after = record(&again, data);
        assert!(after.timestamp.wrapping_sub(before.timestamp) < 20_000);
        assert_eq!(TcpRecord { timestamp: before.timestamp, ..after }, before);
    });
}

#[test]
fn it_is_put_together_where_there_is_no_network_yet() {
    in_network_namespace("it_is_put_together_where_there_is_no_network_yet", || {
        for address in ["127.0.0.1", "::1"] {
            let (_peer, kept) = connect(address);
            let carrier = Copier::default();
            let kept = file(kept);
            let data = frozen(&kept, &carrier);
            let there = record(&carrier, data);
            // As if the machine had other addresses, which no device has yet.
            let far: [IpAddr; 2] = match address {
                "::1" => ["2001:db8::1".parse().unwrap(), "2001:db8::2".parse().unwrap()],
                _ => ["192.0.2.1".parse().unwrap(), "198.51.100.2".parse().unwrap()],
            };
            let [local, remote] = far.map(|ip| match ip {
                IpAddr::V4(ip) => ip.to_ipv6_mapped(),
                IpAddr::V6(ip) => ip,
            });
            let mut moved = there;
            moved.local.set_ip(local);
            moved.remote.set_ip(remote);
            let moved = carrier.keep_bytes(&moved.encode().unwrap()).unwrap();
            let back = stream(&retrieved(moved.0, &carrier));
            assert_eq!(back.local_addr().unwrap().ip(), far[0]);
            assert_eq!(back.peer_addr().unwrap().ip(), far[1]);
            assert_eq!(tcp::state(&back).unwrap(), tcp::TcpState::Established);
            assert!(!namespace::is_reachable(far[1]), "the route stays");
        }
    });
}

#[test]
fn it_has_its_own_address_in_a_system_that_never_had_any() {
    without_any_network("it_has_its_own_address_in_a_system_that_never_had_any", || {
        let address = |ip: [u8; 4], port| {
            SocketAddrV6::new(std::net::Ipv4Addr::from(ip).to_ipv6_mapped(), port, 0, 0)
        };
        let record = TcpRecord {
            flags: TcpRecord::SACK,
            local: address([192, 0, 2, 1], 80),
            remote: address([198, 51, 100, 2], 5_000),
            mss: 1_460,
            send_scale: 0,
            receive_scale: 0,
            send_sequence: 1_000,
            receive_sequence: 2_000,
            timestamp: 0,
            send_update: 2_000,
            send_window: 8_192,
            send_window_max: 8_192,
            receive_window: 8_192,
            receive_update: 2_000,
            unread: 0,
            unread_length: 0,
            written: 0,
            written_length: 0,
            unsent_length: 0,
            congestion: Vec::new(),
            options: Vec::new(),
        };
        let carrier = Copier::default();
        for port in 80..90 {
            let mut record = record.clone();
            record.local.set_port(port);
            let data = carrier.keep_bytes(&record.encode().unwrap()).unwrap();
            let back = stream(&retrieved(data.0, &carrier));
            let local = SocketAddr::from(([192, 0, 2, 1], port));
            assert_eq!(back.local_addr().unwrap(), local);
            assert_eq!(back.peer_addr().unwrap(), SocketAddr::from(([198, 51, 100, 2], 5_000)));
        }
    });
}

#[test]
fn what_cannot_be_kept_is_refused_with_the_reason() {
    in_network_namespace("what_cannot_be_kept_is_refused_with_the_reason", || {
        let refuse = |stream: &TcpStream, word: &str| {
            let carrier = Copier::default();
            let file = file(stream.try_clone().unwrap());
            let failure = TcpHandler.prepare(&file, &carrier).unwrap_err();
            assert_eq!(failure.errno(), Errno::OpNotSupp, "{failure:?}");
            assert!(failure.reason().contains(word), "{failure:?}");
        };
        let (_peer, shut) = connect("127.0.0.1");
        shut.shutdown(std::net::Shutdown::Write).unwrap();
        refuse(&shut, "shut down");
        let (_peer, bound) = connect("127.0.0.1");
        luo_sys::set_bound_device(&bound, 1).unwrap();
        refuse(&bound, "device");
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        assert!(!TcpHandler.can_preserve(&HostFile::from(OwnedFd::from(listener))));
        let null = std::fs::File::open("/dev/null").unwrap();
        assert!(!TcpHandler.can_preserve(&HostFile::from(OwnedFd::from(null))));
    });
}

#[test]
fn a_damaged_record_or_queue_is_an_error_and_leaves_no_socket() {
    in_network_namespace("a_damaged_record_or_queue_is_an_error_and_leaves_no_socket", || {
        let (mut peer, kept) = connect("127.0.0.1");
        peer.write_all(b"unread").unwrap();
        let carrier = Copier::default();
        let kept = file(kept);
        let data = frozen(&kept, &carrier);
        close(kept);
        let whole = carrier.bytes(Handle(data)).unwrap();
        let good = record(&carrier, data);
        for at in 0..whole.len() {
            let mut bytes = whole.clone();
            bytes[at] ^= 0x11;
            let damaged = carrier.keep_bytes(&bytes).unwrap();
            // Whatever it says now: no panic, and no socket in the way of the true one.
            if let Ok(back) = TcpHandler.retrieve(damaged.0, &carrier) {
                close(back);
            }
        }
        carrier.kept.lock().unwrap().insert(good.unread, b"unrea".to_vec());
        let failure = TcpHandler.retrieve(data, &carrier).unwrap_err();
        assert_eq!(failure.errno(), Errno::Inval);
        carrier.kept.lock().unwrap().insert(good.unread, b"unread".to_vec());
        let back = retrieved(data, &carrier);
        assert_eq!(read(&mut stream(&back), 6), b"unread");
    });
}
