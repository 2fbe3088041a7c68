//! redis-benchmark runs against kv without an error, also while kv is handed over. Skipped, loudly, where
//! redis-tools is not installed.

mod common;

use std::io::Write;
use std::net::TcpListener;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use common::{Kv, Luod, PATIENCE};
use kv::custody::{Custody, NoCustody};
use kv::server::{Options, Server, Stop};
use kv::store::Store;
use kv::wake::Waker;

fn no_custody(_: &Waker) -> std::io::Result<Box<dyn Custody>> {
    Ok(Box::new(NoCustody::default()))
}

#[test]
fn redis_benchmark_runs_without_an_error_through_hand_overs() {
    if Command::new("redis-benchmark").arg("--version").stdout(Stdio::null()).status().is_err() {
        let _ = writeln!(
            std::io::stderr(),
            "SKIPPED: redis-benchmark is not installed (Debian: redis-tools)"
        );
        return;
    }
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let store = Store::create(1 << 30).unwrap();
    let mut server = Server::start(store, listener.into(), Options::default(), no_custody).unwrap();
    let port = server.local_addr().unwrap().port().to_string();
    for pipeline in ["1", "16"] {
        let child = Command::new("redis-benchmark")
            .args([
                "-p", &port, "-t", "set,get", "-n", "20000", "-c", "50", "-P", pipeline, "-r",
                "1000", "--csv",
            ])
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let waiter = {
            let waker = server.waker();
            std::thread::spawn(move || {
                let output = child.wait_with_output().unwrap();
                waker.stop();
                output
            })
        };
        let mut next_update = Instant::now();
        let mut updates = 0;
        loop {
            match server.turn(Some(Duration::from_millis(10))).unwrap() {
                None => {}
                Some(Stop::Asked) => break,
                Some(Stop::Shutdown) => panic!("nobody asked for a shutdown"),
            }
            if Instant::now() >= next_update && !waiter.is_finished() {
                server = Server::resume(server.suspend().unwrap(), Options::default(), no_custody)
                    .unwrap();
                next_update = Instant::now() + Duration::from_millis(30);
                updates += 1;
                // The waker of the server before woke nobody any more.
                if waiter.is_finished() {
                    break;
                }
            }
            if waiter.is_finished() {
                break;
            }
        }
        let output = waiter.join().unwrap();
        let (text, errors) =
            (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        assert!(output.status.success(), "{text}{errors}");
        assert!(text.contains("\"SET\"") && text.contains("\"GET\""), "{text}");
        assert!(
            !text.to_lowercase().contains("error") && !errors.to_lowercase().contains("error"),
            "{text}{errors}"
        );
        assert!(updates > 0);
        // A stop that was asked of this server belongs to the run that ended.
        server = Server::resume(server.suspend().unwrap(), Options::default(), no_custody).unwrap();
    }
}

#[test]
fn redis_benchmark_runs_without_an_error_through_updates_and_kills_of_luods_worker() {
    if Command::new("redis-benchmark").arg("--version").stdout(Stdio::null()).status().is_err() {
        let _ = writeln!(
            std::io::stderr(),
            "SKIPPED: redis-benchmark is not installed (Debian: redis-tools)"
        );
        return;
    }
    let luod = Luod::start();
    let mut kv = Kv::with(&luod, "v0");
    let port = kv.listens().port().to_string();
    let (mut updates, mut kills) = (0, 0);
    let begun = Instant::now();
    // A run may be over before both have happened in it.
    while updates == 0 || kills == 0 {
        assert!(begun.elapsed() < PATIENCE, "{updates} updates and {kills} kills within a run");
        let mut child = Command::new("redis-benchmark")
            .args(["-p", &port, "-t", "set,get", "-n", "100000", "-c", "50", "-r", "1000", "--csv"])
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut version = 0;
        while child.try_wait().unwrap().is_none() {
            version += 1;
            kv.update(&luod, &format!("v{version}"));
            updates += u32::from(child.try_wait().unwrap().is_none());
            luod.kill_worker();
            kills += u32::from(child.try_wait().unwrap().is_none());
            // Not faster than luod takes for a worker that dies at once, again and again.
            std::thread::sleep(Duration::from_secs(1));
        }
        let output = child.wait_with_output().unwrap();
        let (text, errors) =
            (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        assert!(output.status.success(), "{text}{errors}");
        assert!(text.contains("\"SET\"") && text.contains("\"GET\""), "{text}");
        assert!(
            !text.to_lowercase().contains("error") && !errors.to_lowercase().contains("error"),
            "{text}{errors}"
        );
    }
}
