//! Kernel sessions that clients fill by themselves, where this machine has no `/dev/liveupdate` for
//! luod. (Where it has one they are tried in the lab, over a kexec.)

mod common;

use common::Luod;
use luo::{Memory, Session};

#[test]
fn without_the_device_a_client_is_told_that_there_is_none_and_keeps_its_session() {
    let luod = Luod::start_with("liveupdate = \"off\"");
    let session = Session::create_with("vm", luod.options()).unwrap();
    let memory = Memory::create("ram", 4096).unwrap();
    session.preserve(1, &memory).unwrap();
    for refused in [
        session.kernel_session().expect_err("there is no device"),
        session.arrived_kernel_session().expect_err("there is no device"),
    ] {
        assert_eq!(refused.errno(), Some("EOPNOTSUPP"));
        let words = refused.to_string();
        assert!(words.contains("/dev/liveupdate"), "{words}");
        assert!(words.contains("Preserve the files in luo's session instead"), "{words}");
    }
    // Nothing is there to be released, which is what was asked for.
    session.release_kernel_session().unwrap();
    assert_eq!(session.info().unwrap().files, [1]);
    session.release().unwrap();
}
