//! Very many files of several users cross a kexec, after an update that a participant has refused.
//!
//! The first try fails in the middle of freeze: nothing is lost by that, and the second one takes
//! everything over. On the other side one session is left unclaimed at first.

use std::time::Instant;

use luo_lab_agent::End;

use super::guest::{self, PATIENT, READY};
use super::medium::Medium;
use super::must;
use crate::failure::{Context as _, Result};
use crate::lab::machine::{Config, Machine};
use crate::lab::{Kernel, Lab};

/// Sessions of each user.
const SESSIONS: u64 = 50;
/// In each session.
const FILES: u64 = 10;
/// The users, by the names and numbers that the guest has for them.
const USERS: [(&str, &str); 2] = [("one", "1001"), ("two", "1002")];
const VETO_LOG: &str = "/run/lab/veto.log";

pub(super) fn liveupdate(lab: &Lab) -> Result<String> {
    cross(lab, &Medium::Liveupdate, Kernel::Own)
}

pub(super) fn arena(lab: &Lab) -> Result<String> {
    cross(lab, &Medium::Pmem, Kernel::Stock)
}

fn cross(lab: &Lab, medium: &Medium, kernel: Kernel) -> Result<String> {
    let mut machine = Machine::start(lab, &Config::new(kernel))?;
    let configuration = format!("{}socket_mode = \"0666\"\n", medium.configuration());
    medium.attach(&machine)?;
    medium.create(&machine)?;
    let luod = guest::start_luod(&machine, &configuration)?;
    for (user, uid) in USERS {
        guest::client(&machine, Some(uid), &["keep", user, &all(), &files()])?;
    }

    // A participant's veto in freeze ends the first try, and nothing is lost by it.
    let veto = machine.spawn(&["luo-lab-client", "veto", "doubtful"], VETO_LOG)?;
    machine.until_ok(&["grep", "-q", "subscribed", VETO_LOG], READY)?;
    guest::luoctl(&machine, &["prepare", "--carrier", medium.carrier()])?;
    let freeze = machine.run_with(&["luoctl", "--deadline", "300", "freeze"], &[], b"", PATIENT)?;
    let said = freeze.text();
    must(freeze.end != End::Exited(0), || format!("freeze went on after a veto: {said}"))?;
    must(said.contains("doubtful") && said.contains("the first freeze is refused"), || {
        format!("freeze does not say who has refused it, and why: {said}")
    })?;
    let status = guest::luoctl(&machine, &["status"])?;
    must(status.contains("normal"), || {
        format!("after the veto the machine is not normal: {status}")
    })?;
    machine
        .ok(&["grep", "-q", "Cancel", VETO_LOG])
        .context(|| "the participant was not told that its update was cancelled".into())?;

    // The second one takes everything over.
    let began = Instant::now();
    medium.depart(&machine, luod)?;
    let departed = began.elapsed();
    machine.signal(veto, rustix::process::Signal::KILL.as_raw())?;
    medium.detach(&machine)?;
    machine.load(kernel)?;
    machine.kexec()?;
    medium.attach(&machine)?;
    guest::start_luod(&machine, &configuration)?;

    let [(one, one_uid), (two, two_uid)] = USERS;
    let last = format!("{two}{}", SESSIONS - 1);
    guest::client(&machine, Some(one_uid), &["refused", &last, "EPERM"])?;
    let began = Instant::now();
    let said = guest::client(&machine, Some(one_uid), &["take", one, &all(), &files()])?;
    let most = format!("--to={}", SESSIONS - 1);
    guest::client(&machine, Some(two_uid), &["take", two, &most, &files()])?;
    let taken = began.elapsed();
    must(said.contains(&format!("{} files compared", SESSIONS * FILES)), || {
        format!("the client says {said}")
    })?;

    // What nobody has claimed is neither freed nor forgotten.
    let finish = machine.run(&["luoctl", "finish"])?;
    must(finish.end != End::Exited(0) && finish.text().contains(&last), || {
        format!("finish does not say that {last} is unclaimed: {}", finish.text())
    })?;
    let rest = format!("--from={}", SESSIONS - 1);
    guest::client(&machine, Some(two_uid), &["take", two, &rest, &all(), &files()])?;
    guest::luoctl(&machine, &["finish"])?;
    let status = guest::luoctl(&machine, &["status"])?;
    must(status.contains("normal"), || {
        format!("after finish the machine is not normal: {status}")
    })?;
    Ok(format!(
        "{} files compared; away in {:.1} s, taken back in {:.1} s",
        USERS.len() as u64 * SESSIONS * FILES,
        departed.as_secs_f64(),
        taken.as_secs_f64()
    ))
}

/// The number after the last of a user's sessions; the first is 0.
fn all() -> String {
    format!("--to={SESSIONS}")
}

fn files() -> String {
    format!("--files={FILES}")
}
