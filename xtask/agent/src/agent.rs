//! Does what the host asks for: one thread a connection.

use std::collections::HashMap;
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::os::fd::AsFd;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::process::{CommandExt as _, ExitStatusExt as _};
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use luo_lab_agent::{
    Answer, End, PORT, Reboot, Request, WireError, read_bytes, read_frame, write_frame,
};
use rustix::process::{Pid, Signal, kill_process, kill_process_group};
use rustix::system::RebootCommand;

use crate::{PROBLEMS, setup};

/// Between two looks whether a program has ended.
const LOOK: Duration = Duration::from_millis(5);
/// The host sends and takes its bytes at once; a connection that stands for so long is given up.
const STANDS: Duration = Duration::from_secs(120);

/// Programs that were started and not waited for.
static RUNNING: Mutex<Option<HashMap<u32, Child>>> = Mutex::new(None);

fn running() -> MutexGuard<'static, Option<HashMap<u32, Child>>> {
    RUNNING.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Listens, and serves for ever.
pub(crate) fn serve() -> io::Result<()> {
    let listener = TcpListener::bind((Ipv4Addr::UNSPECIFIED, PORT))?;
    // To the console, where a person sees how far the machine is.
    eprintln!("lab: ready");
    loop {
        let (connection, _) = listener.accept()?;
        thread::spawn(move || {
            if let Err(error) = answer(&connection) {
                eprintln!("lab: a request failed: {error}");
            }
        });
    }
}

fn answer(connection: &TcpStream) -> Result<(), WireError> {
    connection.set_nodelay(true)?;
    connection.set_read_timeout(Some(STANDS))?;
    connection.set_write_timeout(Some(STANDS))?;
    let mut from = connection;
    let mut to = connection;
    let request = read_frame::<Request>(&mut from)?;
    let input = match &request {
        Request::Run { stdin, .. } => read_bytes(&mut from, *stdin)?,
        Request::Push { len, .. } => read_bytes(&mut from, *len)?,
        _ => Vec::new(),
    };
    if let Request::Reboot { how } = request {
        write_frame(&mut to, &Answer::Done)?;
        // Once the host closes its side it has the answer, which the kernel's end would swallow.
        let mut rest = [0];
        let _ = from.read(&mut rest);
        // Nothing comes back but a refusal, which the host hears after the answer.
        let why = reboot(how).to_string();
        return write_frame(&mut to, &Answer::Failed { why });
    }
    let (answer, parts) = match act(request, input) {
        Ok(done) => done,
        Err(error) => (Answer::Failed { why: error.to_string() }, Vec::new()),
    };
    write_frame(&mut to, &answer)?;
    for part in parts {
        to.write_all(&part)?;
    }
    Ok(())
}

type Done = (Answer, Vec<Vec<u8>>);

fn act(request: Request, input: Vec<u8>) -> io::Result<Done> {
    let done = |answer| Ok((answer, Vec::new()));
    match request {
        Request::Hello => done(hello()?),
        Request::Run { argv, env, deadline_ms, .. } => run(&argv, env, input, deadline_ms),
        Request::Start { argv, env, log } => done(start(&argv, env, &log)?),
        Request::Wait { pid, deadline_ms } => done(wait(pid, deadline_ms)?),
        Request::Signal { pid, signal } => {
            kill_process(pid_of(pid)?, signal_of(signal)?)?;
            done(Answer::Done)
        }
        Request::Push { path, mode, .. } => {
            push(Path::new(&path), mode, &input)?;
            done(Answer::Done)
        }
        Request::Pull { path } => {
            let content = fs::read(path)?;
            Ok((Answer::Content { len: content.len() as u64 }, vec![content]))
        }
        Request::LoadKernel { kernel, initrd, append } => {
            let kernel = File::open(kernel)?;
            let initrd = File::open(initrd)?;
            luo_sys::load_kernel(kernel.as_fd(), Some(initrd.as_fd()), &append)?;
            done(Answer::Done)
        }
        _ => Err(io::Error::new(
            io::ErrorKind::Unsupported,
            "this agent does not know that request; it and the host are of different builds",
        )),
    }
}

fn hello() -> io::Result<Answer> {
    let uptime = fs::read_to_string("/proc/uptime")?;
    let seconds: f64 =
        uptime.split(' ').next().unwrap_or_default().parse().map_err(io::Error::other)?;
    let problems = match fs::read_to_string(PROBLEMS) {
        Ok(problems) => problems.lines().map(str::to_owned).collect(),
        Err(error) => vec![format!("read {PROBLEMS}: {error}")],
    };
    Ok(Answer::Hello {
        boot_id: fs::read_to_string("/proc/sys/kernel/random/boot_id")?.trim().to_owned(),
        release: rustix::system::uname().release().to_string_lossy().into_owned(),
        uptime_ms: (seconds * 1e3) as u64,
        problems,
    })
}

fn command(argv: &[String], env: Vec<(String, String)>) -> io::Result<Command> {
    let (program, arguments) = argv
        .split_first()
        .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, "no program is named"))?;
    let mut command = Command::new(program);
    setup::environment(&mut command);
    // In a group of its own, so that what it starts ends with it when its deadline passes.
    command.args(arguments).envs(env).current_dir("/root").process_group(0);
    Ok(command)
}

fn named(argv: &[String], error: io::Error) -> io::Error {
    let program = argv.first().map_or("", String::as_str);
    io::Error::new(error.kind(), format!("start {program}: {error}"))
}

fn run(
    argv: &[String],
    env: Vec<(String, String)>,
    input: Vec<u8>,
    deadline_ms: u64,
) -> io::Result<Done> {
    let mut command = command(argv, env)?;
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().map_err(|error| named(argv, error))?;
    let stdin = child.stdin.take();
    let fed = thread::spawn(move || {
        // A program need not read its input: what it leaves is no failure.
        let _ = stdin.map(|mut stdin| stdin.write_all(&input));
    });
    let stdout = collect(child.stdout.take());
    let stderr = collect(child.stderr.take());
    let end = match end_within(&mut child, deadline_ms)? {
        Some(status) => end_of(status),
        None => {
            // Fails only where all of it has ended just now.
            let _ = kill_process_group(pid_of(child.id())?, Signal::KILL);
            child.wait()?;
            End::Late
        }
    };
    let panicked = |_| io::Error::other("a thread of the agent panicked");
    fed.join().map_err(panicked)?;
    let stdout = stdout.join().map_err(panicked)??;
    let stderr = stderr.join().map_err(panicked)??;
    let answer = Answer::Ended { end, stdout: stdout.len() as u64, stderr: stderr.len() as u64 };
    Ok((answer, vec![stdout, stderr]))
}

fn collect(from: Option<impl Read + Send + 'static>) -> thread::JoinHandle<io::Result<Vec<u8>>> {
    thread::spawn(move || {
        let mut all = Vec::new();
        if let Some(mut from) = from {
            from.read_to_end(&mut all)?;
        }
        Ok(all)
    })
}

fn start(argv: &[String], env: Vec<(String, String)>, log: &str) -> io::Result<Answer> {
    if let Some(parent) = Path::new(log).parent() {
        fs::create_dir_all(parent)?;
    }
    let out = File::create(log)?;
    let err = out.try_clone()?;
    let mut command = command(argv, env)?;
    let child = command
        .stdin(Stdio::null())
        .stdout(out)
        .stderr(err)
        .spawn()
        .map_err(|error| named(argv, error))?;
    let pid = child.id();
    running().get_or_insert_default().insert(pid, child);
    Ok(Answer::Started { pid })
}

fn wait(pid: u32, deadline_ms: u64) -> io::Result<Answer> {
    let taken = running().as_mut().and_then(|running| running.remove(&pid));
    let mut child = taken.ok_or_else(|| {
        io::Error::new(io::ErrorKind::NotFound, format!("process {pid} is none that was started"))
    })?;
    let end = match end_within(&mut child, deadline_ms) {
        Ok(Some(status)) => end_of(status),
        Ok(None) => {
            running().get_or_insert_default().insert(pid, child);
            End::Late
        }
        Err(error) => return Err(error),
    };
    Ok(Answer::Ended { end, stdout: 0, stderr: 0 })
}

fn end_within(child: &mut Child, deadline_ms: u64) -> io::Result<Option<ExitStatus>> {
    let deadline = Instant::now() + Duration::from_millis(deadline_ms);
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(Some(status));
        }
        if Instant::now() >= deadline {
            return Ok(None);
        }
        thread::sleep(LOOK);
    }
}

fn end_of(status: ExitStatus) -> End {
    match (status.code(), status.signal()) {
        (Some(code), _) => End::Exited(code),
        (None, signal) => End::Signalled(signal.unwrap_or_default()),
    }
}

fn push(path: &Path, mode: u32, content: &[u8]) -> io::Result<()> {
    if let Some(parent) = path.parent() {
        fs::create_dir_all(parent)?;
    }
    fs::write(path, content)?;
    fs::set_permissions(path, fs::Permissions::from_mode(mode))
}

fn reboot(how: Reboot) -> io::Error {
    match how {
        Reboot::Kexec => luo_sys::restart_into_loaded(),
        Reboot::PowerOff => match rustix::system::reboot(RebootCommand::PowerOff) {
            Ok(()) => io::Error::other("the kernel goes on running"),
            Err(error) => error.into(),
        },
    }
}

fn pid_of(pid: u32) -> io::Result<Pid> {
    i32::try_from(pid).ok().and_then(Pid::from_raw).ok_or_else(|| {
        io::Error::new(io::ErrorKind::InvalidInput, format!("no process can be {pid}"))
    })
}

fn signal_of(signal: i32) -> io::Result<Signal> {
    Signal::from_named_raw(signal).ok_or_else(|| {
        io::Error::new(io::ErrorKind::InvalidInput, format!("{signal} is no signal"))
    })
}
