//! One virtual machine, from its start to its end.
//!
//! ```text
//!            start                load, then kexec
//!   (none) ─────────▶ agent answers ─────────────▶ agent of the next kernel answers ─▶ …
//!                         │  drop                        │
//!                         └──────────▶ QEMU has ended ◀──┘
//! ```
//!
//! Invariants:
//! - QEMU ends with its guard, and with xtask, however that ends.
//! - Every wait has a deadline; a failure shows the end of the guest's console.
//! - Ports of this machine that lead to the guest are on the loopback, and picked by the kernel.

use std::fs;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use luo_lab_agent::{Answer, End, PORT, Reboot, Request};
use serde_json::json;
use tempfile::TempDir;

use super::agent::Agent;
use super::qmp::{self, Qmp};
use super::{Kernel, Lab, needs};
use crate::failure::{Context as _, Failed, Result};

/// How long a boot may take where much else runs.
pub(crate) const BOOT: Duration = Duration::from_secs(120);
/// How long a command may take unless a test says something else.
pub(crate) const COMMAND: Duration = Duration::from_secs(60);
/// How long one look at the agent may take while the guest boots.
const LOOK: Duration = Duration::from_secs(1);
/// Lines of the console that a failure shows.
const CONSOLE_LINES: usize = 25;
/// Where the next kernel lies in the guest.
const NEXT_KERNEL: &str = "/run/lab/next-kernel";
const NEXT_INITRD: &str = "/run/lab/next-initrd";

/// What a machine is to be like.
#[derive(Debug, Clone)]
pub(crate) struct Config {
    /// With what it starts.
    pub(crate) kernel: Kernel,
    /// MiB of memory.
    pub(crate) memory: u32,
    /// Processors.
    pub(crate) processors: u32,
    /// What is added to the kernel's command line.
    pub(crate) append: String,
    /// Files that the guest sees as /dev/vda, /dev/vdb, …
    pub(crate) disks: Vec<PathBuf>,
    /// Ports of the guest to which [`Machine::address`] leads.
    pub(crate) ports: Vec<u16>,
    /// A second network card, on a cable to another machine.
    pub(crate) wire: Option<Wire>,
    /// The console is this terminal, with a shell, instead of a file.
    pub(crate) shell: bool,
}

/// One end of a cable between two machines: a socket on which the first of them listens.
#[derive(Debug, Clone)]
pub(crate) struct Wire {
    pub(crate) socket: PathBuf,
    pub(crate) listens: bool,
    /// Its IPv6 address, of 64 bits of prefix.
    pub(crate) address: Ipv6Addr,
}

impl Config {
    /// A machine with 256 MiB of persistent memory among 2 GiB: what every test is content with.
    pub(crate) fn new(kernel: Kernel) -> Self {
        Self {
            kernel,
            memory: 2048,
            processors: 2,
            append: "memmap=256M!1G".into(),
            disks: Vec::new(),
            ports: vec![KV_PORT],
            wire: None,
            shell: false,
        }
    }
}

/// Where kv listens in the guest.
pub(crate) const KV_PORT: u16 = 6379;

/// What a program in the guest came to.
#[derive(Debug, Clone)]
pub(crate) struct Output {
    pub(crate) end: End,
    pub(crate) stdout: Vec<u8>,
    pub(crate) stderr: Vec<u8>,
}

impl Output {
    /// Standard output, then standard error, as text.
    pub(crate) fn text(&self) -> String {
        let mut text = String::from_utf8_lossy(&self.stdout).into_owned();
        text.push_str(&String::from_utf8_lossy(&self.stderr));
        text
    }
}

/// Who answers in the guest.
#[derive(Debug, Clone)]
pub(crate) struct Hello {
    /// Another one for each boot.
    pub(crate) boot_id: String,
    /// The kernel's release.
    pub(crate) release: String,
    /// Since the kernel started.
    pub(crate) uptime: Duration,
}

/// A machine that runs.
#[derive(Debug)]
pub(crate) struct Machine<'a> {
    lab: &'a Lab,
    child: Child,
    qmp: Option<Qmp>,
    agent: Agent,
    ports: Vec<(u16, SocketAddr)>,
    console: PathBuf,
    append: String,
    hello: Hello,
    // After the child: its files go when it has ended.
    _dir: TempDir,
}

impl<'a> Machine<'a> {
    /// Starts it, and returns when its agent answers.
    pub(crate) fn start(lab: &'a Lab, config: &Config) -> Result<Self> {
        let runs = lab.dir.join("run");
        let doing = || format!("make a directory in {}", runs.display());
        fs::create_dir_all(&runs).context(doing)?;
        let dir = TempDir::with_prefix_in("machine-", &runs).context(doing)?;
        let console = dir.path().join("console");
        // Sockets have short names; what lies deep in a tree would not fit.
        let control = TempDir::with_prefix("luo-lab-").context(doing)?;
        let socket = control.path().join("qmp");
        let append = command_line(config);
        let mut command = qemu(lab, config, &append, &console, &socket)?;
        if !config.shell {
            command.stdin(Stdio::null());
        }
        let log = dir.path().join("qemu.log");
        let stderr = fs::File::create(&log).context(doing)?;
        if !config.shell {
            command.stdout(Stdio::null()).stderr(stderr);
        }
        let child = command.spawn().context(|| "start QEMU".into())?;
        let mut child = Guarded(Some(child));
        let qmp = Qmp::connect(&socket, Duration::from_secs(20)).and_then(|mut qmp| {
            let usernet = qmp.monitor("info usernet")?;
            Ok((qmp, usernet))
        });
        let (qmp, usernet) = match qmp {
            Ok(qmp) => qmp,
            Err(failed) => {
                let said = fs::read_to_string(&log).unwrap_or_default();
                return Err(failed).context(|| format!("QEMU did not start ({})", said.trim()));
            }
        };
        let mut ports = Vec::new();
        for guest in config.ports.iter().copied().chain([PORT]) {
            let host = qmp::forwarded(&usernet, guest)
                .ok_or_else(|| Failed::new(format!("QEMU does not forward port {guest}")))?;
            ports.push((guest, SocketAddr::from((Ipv4Addr::LOCALHOST, host))));
        }
        let agent = ports
            .iter()
            .find(|(guest, _)| *guest == PORT)
            .map(|(_, address)| Agent::at(*address))
            .ok_or_else(|| Failed::new("no port leads to the agent"))?;
        let child = child.0.take().ok_or_else(|| Failed::new("QEMU is gone"))?;
        let hello =
            Hello { boot_id: String::new(), release: String::new(), uptime: Duration::ZERO };
        let mut machine =
            Self { lab, child, qmp: Some(qmp), agent, ports, console, append, hello, _dir: dir };
        machine.hello = machine.await_boot("")?;
        Ok(machine)
    }

    /// Who answers.
    pub(crate) fn hello(&self) -> &Hello {
        &self.hello
    }

    /// The address of this machine that leads to a port of the guest.
    pub(crate) fn address(&self, port: u16) -> Result<SocketAddr> {
        self.ports
            .iter()
            .find(|(guest, _)| *guest == port)
            .map(|(_, address)| *address)
            .ok_or_else(|| Failed::new(format!("no address leads to the guest's port {port}")))
    }

    /// The command line with which the kernel was started.
    pub(crate) fn command_line(&self) -> &str {
        &self.append
    }

    /// Runs a program to its end, whatever that is.
    pub(crate) fn run(&self, argv: &[&str]) -> Result<Output> {
        self.run_with(argv, &[], b"", COMMAND)
    }

    /// As [`run`](Self::run), with an environment, a standard input and a deadline of its own.
    pub(crate) fn run_with(
        &self,
        argv: &[&str],
        env: &[(&str, &str)],
        stdin: &[u8],
        deadline: Duration,
    ) -> Result<Output> {
        let request = Request::Run {
            argv: owned(argv),
            env: pairs(env),
            stdin: stdin.len() as u64,
            deadline_ms: millis(deadline),
        };
        self.blamed(|| {
            let mut answered = self.agent.ask(&request, stdin, deadline + LATE)?;
            let Answer::Ended { end, stdout, stderr } = answered.answer else {
                return Err(unexpected(&answered.answer));
            };
            let stdout = answered.bytes(stdout)?;
            let stderr = answered.bytes(stderr)?;
            Ok(Output { end, stdout, stderr })
        })
    }

    /// Runs a program that has to end well; its standard output.
    pub(crate) fn ok(&self, argv: &[&str]) -> Result<String> {
        self.ok_within(argv, COMMAND)
    }

    /// As [`ok`](Self::ok), with a deadline of its own.
    pub(crate) fn ok_within(&self, argv: &[&str], deadline: Duration) -> Result<String> {
        let output = self.run_with(argv, &[], b"", deadline)?;
        if output.end != End::Exited(0) {
            return Err(self.blame(Failed::new(format!(
                "`{}` ended with {:?} in the guest: {}",
                argv.join(" "),
                output.end,
                output.text().trim()
            ))));
        }
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// Runs a program again and again until it ends well; its standard output.
    pub(crate) fn until_ok(&self, argv: &[&str], wait: Duration) -> Result<String> {
        let deadline = Instant::now() + wait;
        loop {
            match self.ok(argv) {
                Ok(said) => return Ok(said),
                Err(failed) if Instant::now() > deadline => return Err(failed),
                Err(_) => std::thread::sleep(Duration::from_millis(20)),
            }
        }
    }

    /// Starts a program that goes on running; its number. Its output goes to a file of the guest.
    pub(crate) fn spawn(&self, argv: &[&str], log: &str) -> Result<u32> {
        self.spawn_with(argv, &[], log)
    }

    /// As [`spawn`](Self::spawn), with more in its environment.
    pub(crate) fn spawn_with(&self, argv: &[&str], env: &[(&str, &str)], log: &str) -> Result<u32> {
        let request = Request::Start { argv: owned(argv), env: pairs(env), log: log.into() };
        self.blamed(|| match self.agent.ask(&request, b"", COMMAND)?.answer {
            Answer::Started { pid } => Ok(pid),
            other => Err(unexpected(&other)),
        })
    }

    /// Waits for the end of a program that was started.
    pub(crate) fn wait(&self, pid: u32, deadline: Duration) -> Result<End> {
        let request = Request::Wait { pid, deadline_ms: millis(deadline) };
        self.blamed(|| match self.agent.ask(&request, b"", deadline + LATE)?.answer {
            Answer::Ended { end, .. } => Ok(end),
            other => Err(unexpected(&other)),
        })
    }

    /// Sends a signal to any process of the guest.
    pub(crate) fn signal(&self, pid: u32, signal: i32) -> Result<()> {
        self.done(&Request::Signal { pid, signal }, b"", COMMAND)
    }

    /// Writes a file of the guest.
    pub(crate) fn push(&self, path: &str, mode: u32, content: &[u8]) -> Result<()> {
        let request = Request::Push { path: path.into(), mode, len: content.len() as u64 };
        self.done(&request, content, COMMAND)
    }

    /// Reads a file of the guest.
    pub(crate) fn pull(&self, path: &str) -> Result<Vec<u8>> {
        self.blamed(|| {
            let mut answered =
                self.agent.ask(&Request::Pull { path: path.into() }, b"", COMMAND)?;
            match answered.answer {
                Answer::Content { len } => answered.bytes(len),
                ref other => Err(unexpected(other)),
            }
        })
    }

    /// Puts a kernel and its file system into the guest; where they lie there.
    pub(crate) fn push_kernel(&self, kernel: Kernel) -> Result<(&'static str, &'static str)> {
        let files = self.lab.kernel(kernel)?;
        for (from, to) in [(&files.image, NEXT_KERNEL), (&files.initrd, NEXT_INITRD)] {
            let content = fs::read(from).context(|| format!("read {}", from.display()))?;
            self.push(to, 0o644, &content)?;
        }
        Ok((NEXT_KERNEL, NEXT_INITRD))
    }

    /// Loads the next kernel, with the same command line.
    pub(crate) fn load(&self, kernel: Kernel) -> Result<()> {
        let (image, initrd) = self.push_kernel(kernel)?;
        let request = Request::LoadKernel {
            kernel: image.into(),
            initrd: initrd.into(),
            append: self.append.clone(),
        };
        self.done(&request, b"", COMMAND)
    }

    /// Starts the kernel that was loaded, and returns when its agent answers: how long that took.
    pub(crate) fn kexec(&mut self) -> Result<Duration> {
        let reboot = Request::Reboot { how: Reboot::Kexec };
        let mut answered = self.blamed(|| self.agent.ask(&reboot, b"", COMMAND))?;
        answered.close()?;
        // What comes now is a refusal, or nothing: the connection ends with the kernel, unseen.
        answered.until(Instant::now() + LOOK);
        if let Ok(Answer::Failed { why }) = answered.next() {
            return Err(self.blame(Failed::new(format!("the kernel refuses to kexec: {why}"))));
        }
        self.await_kexec()
    }

    /// Waits for the next kernel, which a program that was started in the guest is to start; fails
    /// with what it said where it ends instead.
    pub(crate) fn await_kexec_by(&mut self, pid: u32, log: &str) -> Result<Duration> {
        // Asked anew again and again: who has asked hears nothing of the kernel's end.
        let request = Request::Wait { pid, deadline_ms: millis(LOOK) };
        let began = Instant::now();
        while began.elapsed() < BOOT {
            // No answer: the kernel is gone, and the agent with it.
            let Ok(answered) = self.agent.ask(&request, b"", LOOK + LOOK) else { break };
            if let Answer::Ended { end, .. } = answered.answer
                && end != End::Late
            {
                let said = self.pull(log).unwrap_or_default();
                return Err(self.blame(Failed::new(format!(
                    "what was to start the next kernel ended with {end:?} and says {}",
                    String::from_utf8_lossy(&said).trim()
                ))));
            }
        }
        self.await_kexec()?;
        Ok(began.elapsed())
    }

    /// Waits for the next kernel, which something in the guest has started: how long that took.
    pub(crate) fn await_kexec(&mut self) -> Result<Duration> {
        let began = Instant::now();
        let before = self.hello.boot_id.clone();
        self.hello = self.await_boot(&before)?;
        Ok(began.elapsed())
    }

    /// Waits for an agent of another boot.
    fn await_boot(&mut self, before: &str) -> Result<Hello> {
        let deadline = Instant::now() + BOOT;
        loop {
            match self.child.try_wait() {
                Ok(None) => {}
                Ok(Some(status)) => {
                    return Err(self.blame(Failed::new(format!("the machine went off ({status})"))));
                }
                Err(error) => return Err(error).context(|| "look at QEMU".into()),
            }
            match self.agent.ask(&Request::Hello, b"", LOOK) {
                Ok(answered) => match answered.answer {
                    Answer::Hello { boot_id, release, uptime_ms, problems }
                        if boot_id != before =>
                    {
                        if !problems.is_empty() {
                            return Err(self.blame(Failed::new(problems.join("; "))));
                        }
                        let uptime = Duration::from_millis(uptime_ms);
                        return Ok(Hello { boot_id, release, uptime });
                    }
                    _ => {}
                },
                Err(failed) if Instant::now() > deadline => return Err(self.blame(failed)),
                Err(_) => {}
            }
            if Instant::now() > deadline {
                return Err(self.blame(Failed::new("the kernel before goes on running")));
            }
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// Waits until the machine is off, however long a person uses it.
    pub(crate) fn wait_off(mut self) -> Result<()> {
        self.child.wait().map(|_| ()).context(|| "wait for QEMU".into())
    }

    fn done(&self, request: &Request, input: &[u8], wait: Duration) -> Result<()> {
        self.blamed(|| match self.agent.ask(request, input, wait)?.answer {
            Answer::Done => Ok(()),
            other => Err(unexpected(&other)),
        })
    }

    fn blamed<T>(&self, act: impl FnOnce() -> Result<T>) -> Result<T> {
        act().map_err(|failed| self.blame(failed))
    }

    /// The failure, with the end of the console.
    pub(crate) fn blame(&self, failed: Failed) -> Failed {
        let console = self.console_end(CONSOLE_LINES);
        Failed::new(format!("{}; the end of the guest's console:\n{console}", failed.chain()))
    }

    fn console_end(&self, count: usize) -> String {
        let console = fs::read(&self.console).unwrap_or_default();
        let console = String::from_utf8_lossy(&console);
        let lines: Vec<&str> = console.lines().collect();
        let last = lines.get(lines.len().saturating_sub(count)..).unwrap_or_default();
        last.iter().map(|line| format!("  | {line}\n")).collect()
    }
}

impl Drop for Machine<'_> {
    fn drop(&mut self) {
        // It may be off already. What it does not do when asked is done to it.
        if let Some(mut qmp) = self.qmp.take() {
            let _ = qmp.ask("quit", json!({}));
        }
        end(&mut self.child);
    }
}

/// Ended when it is dropped.
struct Guarded(Option<Child>);

impl Drop for Guarded {
    fn drop(&mut self) {
        if let Some(child) = &mut self.0 {
            end(child);
        }
    }
}

fn end(child: &mut Child) {
    let deadline = Instant::now() + Duration::from_secs(2);
    while matches!(child.try_wait(), Ok(None)) && Instant::now() < deadline {
        std::thread::sleep(Duration::from_millis(5));
    }
    // Both fail only where it has ended.
    let _ = child.kill();
    let _ = child.wait();
}

/// More than a deadline within the guest, so that the guest's answer comes first.
const LATE: Duration = Duration::from_secs(10);

fn pairs(env: &[(&str, &str)]) -> Vec<(String, String)> {
    env.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
}

fn owned(words: &[&str]) -> Vec<String> {
    words.iter().map(|word| (*word).to_owned()).collect()
}

fn millis(wait: Duration) -> u64 {
    u64::try_from(wait.as_millis()).unwrap_or(u64::MAX)
}

fn unexpected(answer: &Answer) -> Failed {
    Failed::new(format!("the guest's answer makes no sense: {answer:?}"))
}

fn command_line(config: &Config) -> String {
    // A kernel that panics restarts, and QEMU ends instead of that: nobody waits for it in vain.
    let mut line =
        format!("console=ttyS0 panic=-1 loglevel=4 kho=on liveupdate=on {}", config.append);
    if let Some(wire) = &config.wire {
        line.push_str(&format!(" lab.wire={}", wire.address));
    }
    if config.shell {
        line.push_str(" lab.shell");
    }
    line
}

fn qemu(
    lab: &Lab,
    config: &Config,
    append: &str,
    console: &Path,
    control: &Path,
) -> Result<Command> {
    let files = lab.kernel(config.kernel)?;
    let program = |name: &str| {
        needs::program(name).ok_or_else(|| Failed::new(format!("{name} is not installed")))
    };
    // However xtask ends, the kernel ends QEMU with it.
    let mut command = Command::new(program("setpriv")?);
    command.args(["--pdeathsig", "KILL", "--"]).arg(program("qemu-system-x86_64")?);
    command.args(["-nodefaults", "-no-user-config", "-no-reboot", "-display", "none"]);
    command.args(["-machine", "q35", "-cpu", "max", "-accel", &lab.acceleration]);
    command.args(["-smp", &config.processors.to_string(), "-m", &config.memory.to_string()]);
    command.arg("-kernel").arg(&files.image).arg("-initrd").arg(&files.initrd);
    command.args(["-append", append]);
    if config.shell {
        command.args(["-serial", "mon:stdio"]);
    } else {
        command.args(["-serial", &format!("file:{}", escaped(console))]);
    }
    command.args(["-qmp", &format!("unix:{},server=on,wait=off", escaped(control))]);
    // The guest reaches nothing outside; only the ports below lead into it.
    let mut network = "user,id=net,restrict=on".to_owned();
    for port in config.ports.iter().chain([&PORT]) {
        network.push_str(&format!(",hostfwd=tcp:127.0.0.1:0-:{port}"));
    }
    command.args(["-netdev", &network, "-device", "virtio-net-pci,netdev=net,romfile="]);
    if let Some(wire) = &config.wire {
        let server = if wire.listens { "on" } else { "off" };
        let path = escaped(&wire.socket);
        let cable = format!("stream,id=wire,server={server},addr.type=unix,addr.path={path}");
        command.args(["-netdev", &cable, "-device"]);
        // Two cards of one address would take each other's packets for their own.
        let [.., last] = wire.address.octets();
        command.arg(format!("virtio-net-pci,netdev=wire,romfile=,mac=52:54:00:6c:75:{last:02x}"));
    }
    command.args(["-device", "virtio-rng-pci"]);
    for (disk, index) in config.disks.iter().zip(0..) {
        command.args([
            "-drive",
            &format!("if=none,id=disk{index},format=raw,cache=unsafe,file={}", escaped(disk)),
            "-device",
            &format!("virtio-blk-pci,drive=disk{index}"),
        ]);
    }
    Ok(command)
}

/// QEMU's options are separated by commas.
fn escaped(path: &Path) -> String {
    path.to_string_lossy().replace(',', ",,")
}
