use std::fs;

use serde_json::json;

use crate::fake::{Act, Fake};
use crate::run::run;
use crate::status::status;

fn upgraded() -> Act {
    Act::Reply(json!({ "before": "0.1.0", "after": "0.2.0" }))
}

#[test]
fn both_versions_are_shown() {
    let call = |limit: u64, keeper| json!({ "deadline_milliseconds": limit, "keeper": keeper });
    for (arguments, what, expected) in [
        (vec!["upgrade"], "worker and keeper", vec![call(10_000, false), call(10_000, true)]),
        (
            vec!["upgrade", "--worker-only", "--deadline", "2.5"],
            "the worker",
            vec![call(2_500, false)],
        ),
    ] {
        let fake = Fake::new([("Upgrade", upgraded()), ("Upgrade", upgraded())]);
        assert_eq!(
            run(&fake, &arguments).good(),
            format!("luod was upgraded from 0.1.0 to 0.2.0: {what} replaced, nothing let go.\n")
        );
        let calls = fake.calls();
        let parameters: Vec<_> = calls.iter().map(|call| call.parameters.clone()).collect();
        assert_eq!(parameters, expected);
        assert!(calls.iter().all(|call| call.descriptors.is_empty()));
    }
    let fake = Fake::new([("Upgrade", upgraded()), ("Upgrade", upgraded())]);
    assert_eq!(
        run(&fake, &["upgrade", "--json"]).json(),
        json!({ "before": "0.1.0", "after": "0.2.0" })
    );
}

#[test]
fn the_binary_goes_along_as_a_descriptor() {
    let fake = Fake::new([("Upgrade", upgraded()), ("Upgrade", upgraded())]);
    let binary = fake.directory().join("luod");
    fs::write(&binary, "the new one").unwrap();
    run(&fake, &["upgrade", "--binary", binary.to_str().unwrap()]).good();
    let calls = fake.calls();
    assert_eq!(calls[0].descriptors, [b"the new one"]);
    // The fake has read it to its end by now: it is one open file.
    assert_eq!(calls[1].descriptors.len(), 1);
}

#[test]
fn a_binary_that_is_not_there_is_not_sent() {
    let fake = Fake::new([]);
    assert_eq!(
        run(&fake, &["upgrade", "--binary", "/nowhere/luod"]).bad(6),
        "luoctl: /nowhere/luod cannot be opened: No such file or directory (os error 2); \
         name luod's new binary with --binary\n"
    );
    assert!(fake.methods().is_empty());
}

#[test]
fn what_can_be_no_binary_is_not_waited_for() {
    let fake = Fake::new([]);
    let pipe = fake.directory().join("pipe");
    let made = std::process::Command::new("mkfifo").arg(&pipe).status().unwrap();
    assert!(made.success());
    for path in [&pipe, &fake.directory().to_owned()] {
        let said = run(&fake, &["upgrade", "--binary", path.to_str().unwrap()]).bad(1);
        assert!(said.contains("it is not a regular file"), "{said}");
    }
    assert!(fake.methods().is_empty());
}

#[test]
fn a_failure_says_why_and_that_the_old_one_serves_on() {
    let failure = json!({ "errno": "ETIMEDOUT", "reason": "the new luod was not ready in time" });
    let fake = Fake::new([("Upgrade", Act::Refuse(failure)), ("GetStatus", Act::Reply(status()))]);
    assert_eq!(
        run(&fake, &["upgrade"]).bad(1),
        "luoctl: the upgrade failed: the new luod was not ready in time (ETIMEDOUT); \
         luod 0.1.0 (worker 1234) serves on\n"
    );
    assert_eq!(fake.methods(), ["io.luo.Upgrade", "io.luo.GetStatus"]);
}

#[test]
fn where_nothing_is_known_it_says_who_serves_now() {
    let fake = Fake::new([("Upgrade", Act::Silence), ("GetStatus", Act::Reply(status()))]);
    assert_eq!(
        run(&fake, &["upgrade", "--deadline", "0.01"]).bad(1),
        "luoctl: luod did not answer io.luo.Upgrade within 30 ms; \
         luod 0.1.0 (worker 1234) serves now\n"
    );
}

#[test]
fn one_that_was_not_even_tried_has_its_own_status_and_next_step() {
    for (errno, code, next) in [
        ("EPERM", 3, "ask as root or as the user that luod runs as"),
        ("EBUSY", 5, "`luoctl status` shows what goes on"),
    ] {
        let fake = Fake::new([("Upgrade", Act::Refuse(json!({ "errno": errno, "reason": "no" })))]);
        assert_eq!(
            run(&fake, &["upgrade"]).bad(code),
            format!("luoctl: the upgrade failed: no ({errno}); {next}\n")
        );
        assert_eq!(fake.methods(), ["io.luo.Upgrade"]);
    }
}

#[test]
fn where_nobody_serves_any_more_it_says_so() {
    let failure = json!({ "errno": "EIO", "reason": "the new luod died" });
    let fake =
        Fake::new([("Upgrade", Act::Refuse(failure)), ("GetStatus", Act::WorkerFailed("it died"))]);
    assert_eq!(
        run(&fake, &["upgrade"]).bad(1),
        "luoctl: the upgrade failed: the new luod died (EIO); \
         and luod cannot be asked who serves: luod cannot serve: it died\n"
    );
}
