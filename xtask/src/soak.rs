//! `cargo xtask soak`: the tests that draw their cases by chance, long and with new seeds.
//!
//! A round plays every part once, each with a seed that no round before had. Rounds follow one
//! another until the time is over; a round that was begun is played to its end, so there is always
//! one.
//!
//! Invariants:
//! - What failed is named with the command that plays the same again.
//! - A part that takes longer than its deadline is ended, and counts as failed.

use std::fs::{self, File};
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use crate::failure::{Context as _, Failed, Result};
use crate::proc::{self, Ended};
use crate::workspace::Workspace;

/// Options of `cargo xtask soak`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Begin no round after so many minutes.
    #[arg(long, value_name = "MINUTES", default_value_t = 30)]
    minutes: u64,
    /// The first round's seed, to play a run again [default: by the clock].
    #[arg(long, value_name = "NUMBER")]
    seed: Option<u32>,
}

/// How long one part may take.
const DEADLINE: Duration = Duration::from_secs(20 * 60);
/// Between the seeds of two rounds: more than the lives that one round plays, which have seeds that
/// follow one another.
const STRIDE: u64 = 1_000_000;
/// What is shown of the output of a part that failed, in lines.
const SHOWN: usize = 30;

/// A test that takes a seed and how much to play from its environment.
struct Part {
    about: &'static str,
    seed: &'static str,
    amounts: &'static [(&'static str, u64)],
    /// What cargo is told.
    test: &'static [&'static str],
}

const PARTS: &[Part] = &[
    Part {
        about: "50,000 losses of power in an arena's life",
        seed: "LUO_CRASH_SEED",
        amounts: &[("LUO_CRASH_REPLAYS", 50_000)],
        test: &["--package=luo-carriers", "--lib", "arena::crash::after_a_loss_of_power"],
    },
    Part {
        about: "2,000 kills of luod's worker",
        seed: "LUO_CHAOS_SEED",
        amounts: &[("LUO_CHAOS_KILLS", 2_000)],
        test: &["--package=luod", "--test=chaos", "a_worker_killed_at_a_thousand_moments"],
    },
    Part {
        about: "kills in 60 upgrades",
        seed: "LUO_CHAOS_SEED",
        amounts: &[("LUO_CHAOS_UPGRADES", 60)],
        test: &["--package=luod", "--test=chaos", "kills_during_upgrades"],
    },
    Part {
        about: "kills in 40 updates of the machine",
        seed: "LUO_CHAOS_SEED",
        amounts: &[("LUO_CHAOS_DEPARTURES", 40)],
        test: &["--package=luod", "--test=chaos", "kills_during_the_departure_and_arrival"],
    },
];

impl Part {
    fn environment(&self, seed: u64) -> impl Iterator<Item = (&'static str, u64)> {
        std::iter::once((self.seed, seed)).chain(self.amounts.iter().copied())
    }

    fn command(&self, workspace: &Workspace, seed: u64) -> Command {
        let mut command = workspace.cargo();
        command.args(["test", "--locked"]).args(self.test).args(["--", "--nocapture"]);
        for (name, number) in self.environment(seed) {
            command.env(name, number.to_string());
        }
        command
    }

    /// What plays the same again, to be typed in the checkout.
    fn again(&self, seed: u64) -> String {
        let mut line = String::new();
        for (name, number) in self.environment(seed) {
            line.push_str(&format!("{name}={number} "));
        }
        format!("{line}cargo test {} -- --nocapture", self.test.join(" "))
    }
}

/// The seed of a round, counted from 0. Never zero, which is no seed to some generators.
fn seed_of(first: u64, round: u64) -> u64 {
    first.max(1).wrapping_add(round.wrapping_mul(STRIDE))
}

/// Plays rounds until the time is over, or something failed.
pub(crate) fn run(workspace: &Workspace, args: &Args) -> Result<()> {
    let first = match args.seed {
        Some(seed) => u64::from(seed),
        None => by_the_clock()?,
    };
    let length = Duration::from_secs(args.minutes.saturating_mul(60));
    let logs = workspace.target().join("soak");
    fs::create_dir_all(&logs).context(|| format!("make {}", logs.display()))?;
    println!("building the tests");
    let packages = ["test", "--locked", "--no-run", "--package=luo-carriers", "--package=luod"];
    proc::check(workspace.cargo().args(packages))?;
    let began = Instant::now();
    let rounds = rounds(length, &mut || began.elapsed(), &mut |round| {
        let seed = seed_of(first, round);
        println!(
            "round {}, minute {} of {}, seed {seed}",
            round + 1,
            began.elapsed().as_secs() / 60,
            args.minutes
        );
        PARTS.iter().try_for_each(|part| play(workspace, &logs, part, seed))
    })?;
    println!("{rounds} rounds, nothing failed");
    Ok(())
}

/// Plays rounds, the first in any case and others while there is time; how many.
fn rounds(
    length: Duration,
    elapsed: &mut dyn FnMut() -> Duration,
    play: &mut dyn FnMut(u64) -> Result<()>,
) -> Result<u64> {
    let mut round = 0;
    loop {
        play(round)?;
        round += 1;
        if elapsed() >= length {
            return Ok(round);
        }
    }
}

fn by_the_clock() -> Result<u64> {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    Ok(since.context(|| "read the clock".into())?.as_secs() & u64::from(u32::MAX))
}

fn play(workspace: &Workspace, logs: &Path, part: &Part, seed: u64) -> Result<()> {
    let began = Instant::now();
    let log = logs.join(format!("{seed}.log"));
    let doing = || format!("write {}", log.display());
    let output = File::create(&log).context(doing)?;
    let mut command = part.command(workspace, seed);
    command.stderr(output.try_clone().context(doing)?).stdout(output);
    let child = proc::in_group(&mut command).spawn().context(|| part.about.into())?;
    let ended = proc::wait_group(child, DEADLINE)?;
    let said = fs::read(&log).context(|| format!("read {}", log.display()))?;
    match judge(part, seed, &ended, &String::from_utf8_lossy(&said)) {
        None => {
            println!("  {:44} {:7.1} s", part.about, began.elapsed().as_secs_f64());
            fs::remove_file(&log).context(|| format!("remove {}", log.display()))
        }
        Some(failed) => {
            Err(Failed::new(format!("{failed}\nthe whole output is in {}", log.display())))
        }
    }
}

/// What is wrong with how a part ended, with its seed and the end of what it said.
fn judge(part: &Part, seed: u64, ended: &Ended, said: &str) -> Option<String> {
    let what = match ended {
        // A name that fits no test would pass by playing nothing.
        Ended::Exited(status) if status.success() && said.contains("test result: ok. 1 passed") => {
            return None;
        }
        Ended::Exited(status) if status.success() => "played no test".to_owned(),
        Ended::Exited(status) => format!("failed ({status})"),
        Ended::Late => format!("was not done after {} minutes", DEADLINE.as_secs() / 60),
    };
    let lines: Vec<&str> = said.lines().collect();
    let end = lines.get(lines.len().saturating_sub(SHOWN)..).unwrap_or_default().join("\n  ");
    Some(format!(
        "{} {what} with seed {seed}; the end of its output:\n  {end}\nto play it again: {}",
        part.about,
        part.again(seed)
    ))
}

#[cfg(test)]
mod tests {
    use std::os::unix::process::ExitStatusExt as _;
    use std::process::ExitStatus;

    use super::*;

    fn exited(code: i32) -> Ended {
        Ended::Exited(ExitStatus::from_raw(code << 8))
    }

    #[test]
    fn no_two_rounds_play_the_same_lives() {
        let seeds: Vec<u64> = (0..100).map(|round| seed_of(0, round)).collect();
        assert!(seeds.iter().all(|seed| *seed > 0));
        let most = PARTS.iter().flat_map(|part| part.amounts).map(|(_, amount)| *amount).max();
        assert!(seeds.windows(2).all(|pair| pair[1] - pair[0] > most.unwrap_or(u64::MAX)));
        // A test multiplies it by a thousand.
        assert!(seed_of(u64::from(u32::MAX), 1 << 20).checked_mul(1000).is_some());
    }

    #[test]
    fn there_is_a_round_without_time_and_none_after_the_time_is_over() {
        for (minutes, expected) in [(0, 1), (1, 1), (3, 3), (4, 4)] {
            let (mut minute, mut played) = (0, Vec::new());
            let length = Duration::from_secs(60 * minutes);
            let count = rounds(
                length,
                &mut || {
                    minute += 1;
                    Duration::from_secs(60 * minute)
                },
                &mut |round| {
                    played.push(round);
                    Ok(())
                },
            );
            assert_eq!(count.expect("nothing fails"), expected);
            assert_eq!(played, (0..expected).collect::<Vec<_>>());
        }
    }

    #[test]
    fn nothing_is_played_after_a_failure() {
        let mut played = 0;
        let failed = rounds(Duration::MAX, &mut || Duration::ZERO, &mut |_| {
            played += 1;
            if played == 3 { Err(Failed::new("the third")) } else { Ok(()) }
        });
        assert_eq!((failed.expect_err("it fails").chain().as_str(), played), ("the third", 3));
    }

    #[test]
    fn a_failure_names_its_seed_and_how_to_play_it_again() {
        let failed = judge(&PARTS[0], 7, &exited(101), "torn\n").expect("it failed");
        for part in ["seed 7", "torn", "LUO_CRASH_SEED=7 LUO_CRASH_REPLAYS=50000 cargo test"] {
            assert!(failed.contains(part), "{failed}");
        }
        let late = judge(&PARTS[1], 7, &Ended::Late, "").expect("it was late");
        assert!(late.contains("LUO_CHAOS_SEED=7 LUO_CHAOS_KILLS=2000 cargo test"), "{late}");
    }

    #[test]
    fn only_a_test_that_was_played_passes() {
        let passed = "test result: ok. 1 passed; 0 failed";
        assert_eq!(judge(&PARTS[0], 7, &exited(0), passed), None);
        let none = "test result: ok. 0 passed; 0 failed";
        let failed = judge(&PARTS[0], 7, &exited(0), none).expect("nothing was played");
        assert!(failed.contains("played no test"), "{failed}");
        assert!(judge(&PARTS[0], 7, &exited(1), passed).is_some());
    }
}
