//! `luoctl scan`: which descriptors of a process can be kept, and how far.
//!
//! [`process`] reads, [`kind`] and [`net`] understand, [`policy`] judges; luod is asked which handlers
//! and carriers it has, where it runs.
//!
//! Invariants: no process is stopped, asked or changed; what may not be looked at is said, and counted
//! as unknown.

mod kind;
mod net;
mod policy;
mod process;

use std::io;
use std::path::PathBuf;

use clap::Args;
use luo::protocol::HandlerInfo;
use luo::{Error, Manager};
use serde::Serialize;

use crate::cli::Global;
use crate::exit::Exit;
use crate::failure::{Context, Failure};
use crate::format;
use crate::output::{Output, TextTable, Tone, cell};
use kind::Kind;
use policy::Reach;
use process::{Process, Sockets};

#[derive(Debug, Args)]
pub(crate) struct Arguments {
    /// A process by its number, or a unit of systemd's by its name.
    #[arg(value_name = "PID|UNIT", required_unless_present = "all", conflicts_with = "all")]
    what: Option<String>,
    /// Every process.
    #[arg(long)]
    all: bool,
}

/// What `--json` prints.
#[derive(Debug, Serialize)]
struct Told {
    /// Whether a luod was asked what it can keep; otherwise it is what one of this version can.
    luod: bool,
    processes: Vec<ToldProcess>,
    /// Processes that may not be looked at.
    unreadable: Vec<u32>,
    summary: Summary,
}

#[derive(Debug, Serialize)]
struct ToldProcess {
    pid: u32,
    name: String,
    descriptors: Vec<ToldDescriptor>,
}

#[derive(Debug, Serialize)]
struct ToldDescriptor {
    number: u32,
    what: String,
    kind: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    state: Option<&'static str>,
    /// In bytes.
    #[serde(skip_serializing_if = "Option::is_none")]
    size: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    handler: Option<String>,
    reach: Reach,
    #[serde(skip_serializing_if = "Option::is_none")]
    why: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    advice: Option<&'static str>,
}

/// Descriptors by how far they can be kept.
#[derive(Debug, Default, Serialize)]
struct Summary {
    descriptors: u64,
    power: u64,
    kernel: u64,
    agent: u64,
    service: u64,
    none: u64,
}

impl Summary {
    fn new(processes: &[ToldProcess]) -> Self {
        let mut summary = Self::default();
        for descriptor in processes.iter().flat_map(|process| &process.descriptors) {
            summary.descriptors += 1;
            *summary.of(descriptor.reach) += 1;
        }
        summary
    }

    fn of(&mut self, reach: Reach) -> &mut u64 {
        match reach {
            Reach::Power => &mut self.power,
            Reach::Kernel => &mut self.kernel,
            Reach::Agent => &mut self.agent,
            Reach::Service => &mut self.service,
            Reach::None => &mut self.none,
        }
    }

    /// The line that says what to expect.
    fn line(&mut self) -> String {
        if self.descriptors == 0 {
            return "There are no descriptors.".to_owned();
        }
        let parts: Vec<String> = Reach::ALL
            .into_iter()
            .filter_map(|reach| match *self.of(reach) {
                0 => None,
                count if reach == Reach::None => Some(format!("{count} cannot be kept")),
                count => Some(format!("{count} can be kept as far as {}", reach.name())),
            })
            .collect();
        let all = format::count(self.descriptors, "descriptor");
        let verdict = match (self.none, self.agent + self.service) {
            (0, 0) => "everything can go to another kernel",
            (0, _) => "a restart loses nothing that is given to luod, a new kernel does",
            _ => "what cannot be kept must be made anew after a restart",
        };
        format!("{all}: {}; {verdict}.", parts.join(", "))
    }
}

pub(crate) fn run(
    arguments: &Arguments,
    global: &Global,
    output: &mut Output,
) -> Result<(), Failure> {
    let (handlers, asked) = handlers(global)?;
    let processes = chosen(arguments)?;
    let mut sockets = Sockets::default();
    let (mut told, mut unreadable) = (Vec::new(), Vec::new());
    for process in processes {
        match process.descriptors(&mut sockets) {
            Ok(found) => {
                let descriptors =
                    found.into_iter().map(|(number, facts)| descriptor(number, facts, &handlers));
                let descriptors = descriptors.collect();
                told.push(ToldProcess { pid: process.pid, name: process.name, descriptors });
            }
            // It has just ended.
            Err(error) if error.kind() == io::ErrorKind::NotFound && arguments.all => {}
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied && arguments.all => {
                unreadable.push(process.pid);
            }
            Err(source) => return Err(unread(process.pid, source)),
        }
    }
    let mut summary = Summary::new(&told);
    if output.is_json() {
        return output.reply(&Told { luod: asked, processes: told, unreadable, summary });
    }
    for process in &told {
        print(process, arguments.all, output)?;
    }
    if !asked {
        output.line("No luod runs here: this is what one of this version could keep.")?;
    }
    if !unreadable.is_empty() {
        let unseen = format::count(unreadable.len() as u64, "process");
        let unseen = unseen.replace("processs", "processes");
        output.line(&format!("{unseen} may not be looked at: ask as root for all."))?;
    }
    output.line(&summary.line())
}

/// The handlers of the luod that runs, or those that one of this version has. True where luod was
/// asked.
fn handlers(global: &Global) -> Result<(Vec<HandlerInfo>, bool), Failure> {
    let manager = match Manager::connect(global.options()) {
        Ok(manager) => manager,
        Err(Error::Unavailable { .. } | Error::Unreachable { .. }) => {
            return Ok((policy::built_in(), false));
        }
        Err(error) => return Err(Failure::luod(Context::Asking)(error)),
    };
    let handlers = manager.handlers().map_err(Failure::luod(Context::Asking))?;
    Ok((handlers, true))
}

fn chosen(arguments: &Arguments) -> Result<Vec<Process>, Failure> {
    let unlisted = |source| unread_path("/proc".into(), source);
    let Some(what) = arguments.what.as_deref().filter(|_| !arguments.all) else {
        return Process::all().map_err(unlisted);
    };
    if let Ok(pid) = what.parse() {
        return Ok(vec![Process::find(pid).map_err(|source| unread(pid, source))?]);
    }
    let processes = Process::of_unit(what).map_err(unlisted)?;
    if processes.is_empty() {
        return Err(Failure::Step {
            sentence: format!(
                "no process is in a unit {what}; `systemctl status {what}` tells more"
            ),
            exit: Exit::NotFound,
            source: None,
        });
    }
    Ok(processes)
}

fn unread(pid: u32, source: io::Error) -> Failure {
    unread_path(format!("/proc/{pid}").into(), source)
}

fn unread_path(path: PathBuf, source: io::Error) -> Failure {
    let next = match source.kind() {
        io::ErrorKind::PermissionDenied => "ask as root, or as the user that the process runs as",
        _ => "name a process that runs",
    };
    Failure::Path { path, doing: "looked at", next, source }
}

fn descriptor(number: u32, facts: kind::Facts, handlers: &[HandlerInfo]) -> ToldDescriptor {
    let kind = Kind::of(&facts);
    let state = facts.socket.as_ref().and_then(|socket| socket.state);
    let verdict = policy::judge(kind, state, handlers);
    ToldDescriptor {
        number,
        size: facts.size(kind),
        what: facts.target,
        kind: kind.name(),
        state,
        handler: verdict.handler,
        reach: verdict.reach,
        why: verdict.why,
        advice: verdict.advice,
    }
}

/// A process; in short where there are many of them.
fn print(process: &ToldProcess, short: bool, output: &mut Output) -> Result<(), Failure> {
    let name = format!("{} ({})", process.pid, process.name);
    if short {
        let mut summary = Summary::new(std::slice::from_ref(process));
        return output.line(&format!("{name}: {}", summary.line()));
    }
    output.line(&format!("Process {name}"))?;
    let mut table =
        TextTable::new(&["FD", "TYPE", "SIZE", "HANDLER", "REACH", "WHAT"]).numbers(&[0, 2]);
    for descriptor in &process.descriptors {
        let tone = match descriptor.reach {
            Reach::None => Tone::Bad,
            Reach::Service | Reach::Agent => Tone::Notice,
            Reach::Kernel | Reach::Power => Tone::Good,
        };
        let size = descriptor.size.map_or_else(|| "-".to_owned(), format::bytes);
        table.row(vec![
            cell(&descriptor.number.to_string(), Tone::Plain),
            cell(descriptor.kind, Tone::Plain),
            cell(&size, Tone::Plain),
            cell(descriptor.handler.as_deref().unwrap_or("-"), Tone::Plain),
            cell(descriptor.reach.name(), tone),
            cell(&descriptor.what, Tone::Plain),
        ]);
    }
    output.table(&table)?;
    reasons(process, output)
}

/// Each reason once, with the descriptors that it is about.
fn reasons(process: &ToldProcess, output: &mut Output) -> Result<(), Failure> {
    let mut reasons: Vec<(&str, &str, Vec<String>)> = Vec::new();
    for descriptor in &process.descriptors {
        let (Some(why), Some(advice)) = (&descriptor.why, descriptor.advice) else { continue };
        let number = descriptor.number.to_string();
        match reasons.iter_mut().find(|(its, next, _)| *its == why && *next == advice) {
            Some((_, _, numbers)) => numbers.push(number),
            None => reasons.push((why, advice, vec![number])),
        }
    }
    for (why, advice, numbers) in reasons {
        output.line(&format!("{}: {why}: {advice}.", numbers.join(", ")))?;
    }
    Ok(())
}
