//! `luoctl kexec`: loads the kernel that the machine is to go on with. luod is not needed.
//!
//! ```text
//! file ──read──▶ recognised ──▶ kernel, initrd, command line ──kexec_file_load──▶ loaded ──▶ noted
//! ```
//!
//! Invariants: nothing is loaded that was recognised as unfit; a kernel is noted only after it was
//! loaded, and a note that cannot be written unloads it again, since a reboot would then judge by
//! nothing.

pub(crate) mod cmdline;
pub(crate) mod config;
pub(crate) mod image;
pub(crate) mod note;

use std::fs::{self, File};
use std::io::{self, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{MemfdFlags, memfd_create};
use rustix::io::Errno;

use crate::cli::KexecCommand;
use crate::exit::Exit;
use crate::failure::Failure;
use crate::output::{Output, TextTable, Tone, cell};
use image::{Format, Image};
use note::{Loaded, Note};

/// Where the running kernel's command line is.
pub(crate) const COMMAND_LINE: &str = "/proc/cmdline";

/// The kernel's side of it.
pub(crate) trait Loader {
    /// As [`luo_sys::load_kernel`].
    fn load(
        &self,
        kernel: BorrowedFd<'_>,
        initrd: Option<BorrowedFd<'_>>,
        line: &str,
    ) -> io::Result<()>;
    /// As [`luo_sys::unload_kernel`].
    fn unload(&self) -> io::Result<()>;
}

/// The running kernel.
#[derive(Debug)]
pub(crate) struct Running;

impl Loader for Running {
    fn load(
        &self,
        kernel: BorrowedFd<'_>,
        initrd: Option<BorrowedFd<'_>>,
        line: &str,
    ) -> io::Result<()> {
        luo_sys::load_kernel(kernel, initrd, line)
    }

    fn unload(&self) -> io::Result<()> {
        luo_sys::unload_kernel()
    }
}

/// What the command line asks for.
#[derive(Debug)]
pub(crate) struct Wanted<'a> {
    pub(crate) kernel: &'a Path,
    pub(crate) initrd: Option<&'a Path>,
    pub(crate) append: Option<&'a str>,
    pub(crate) reuse: bool,
}

pub(crate) fn run(command: &KexecCommand, output: &mut Output) -> Result<(), Failure> {
    match command {
        KexecCommand::Load { kernel, initrd, append, reuse_cmdline } => {
            let wanted = Wanted {
                kernel,
                initrd: initrd.as_deref(),
                append: append.as_deref(),
                reuse: *reuse_cmdline,
            };
            let running = fs::read_to_string(COMMAND_LINE).unwrap_or_default();
            let note = load(&wanted, &running, Path::new(note::PATH), &Running)?;
            told(&note, output)
        }
        KexecCommand::Unload => {
            unload(Path::new(note::PATH), &Running)?;
            output.done("No kernel is loaded any more: a reboot starts the boot loader.")
        }
    }
}

fn told(note: &Note, output: &mut Output) -> Result<(), Failure> {
    if output.is_json() {
        return output.reply(note);
    }
    output.done("The next kernel is loaded; `luoctl reboot --dry-run` tells whether it fits.")?;
    if output.is_quiet() {
        return Ok(());
    }
    let mut table = TextTable::bare();
    let mut row = |key: &str, value: &str| {
        table.row(vec![cell(key, Tone::Faint), cell(value, Tone::Plain)]);
    };
    row("kernel", &note.kernel.display().to_string());
    row("release", note.release.as_deref().unwrap_or("not told by the image"));
    if let Some(initrd) = &note.initrd {
        row("initrd", &initrd.display().to_string());
    }
    row("command line", &note.command_line);
    match (&note.built, &note.unknown) {
        (Some(built), _) => row("configuration", &built.source),
        (None, Some(reason)) => row("configuration", &format!("unknown: {reason}")),
        (None, None) => {}
    }
    output.table(&table)
}

fn failed(sentence: String, source: Option<io::Error>) -> Failure {
    let exit = match source.as_ref().map(io::Error::kind) {
        Some(io::ErrorKind::PermissionDenied) => Exit::Denied,
        Some(io::ErrorKind::NotFound) => Exit::NotFound,
        Some(io::ErrorKind::ResourceBusy) => Exit::WrongState,
        _ => Exit::Failed,
    };
    Failure::Step { sentence, exit, source }
}

fn read(path: &Path) -> Result<Vec<u8>, Failure> {
    fs::read(path).map_err(|source| Failure::Path {
        path: path.to_owned(),
        doing: "read",
        next: "name a file that you may read",
        source,
    })
}

/// Where something to be loaded comes from.
enum Part<'a> {
    File(File),
    /// Part of a unified kernel image.
    Bytes(&'a [u8]),
}

impl Part<'_> {
    /// A file that nobody can write to meanwhile, which the kernel insists on.
    fn into_file(self) -> io::Result<File> {
        let bytes = match self {
            Self::File(file) => return Ok(file),
            Self::Bytes(bytes) => bytes,
        };
        let mut written = File::from(memfd_create("luoctl-kexec", MemfdFlags::CLOEXEC)?);
        written.write_all(bytes)?;
        File::open(format!("/proc/self/fd/{}", written.as_raw_fd()))
    }
}

/// Loads a kernel and notes it.
pub(crate) fn load(
    wanted: &Wanted<'_>,
    running: &str,
    noted: &Path,
    loader: &dyn Loader,
) -> Result<Note, Failure> {
    let path = wanted.kernel;
    let bytes = read(path)?;
    let image = image::recognise(&bytes);
    fits(path, &image)?;
    let open = |path: &Path| {
        File::open(path).map_err(|source| Failure::Path {
            path: path.to_owned(),
            doing: "opened",
            next: "name a file that you may read",
            source,
        })
    };
    let section = |range: Option<&std::ops::Range<usize>>| bytes.get(range?.clone());
    let sections = match &image.format {
        Format::Unified(sections) => Some(sections),
        _ => None,
    };
    let kernel = match section(sections.map(|sections| &sections.linux)) {
        Some(linux) => Part::Bytes(linux),
        None => Part::File(open(path)?),
    };
    let own_initrd = section(sections.and_then(|sections| sections.initrd.as_ref()));
    let initrd = match (wanted.initrd, own_initrd) {
        (Some(path), _) => Some(Part::File(open(path)?)),
        (None, own) => own.map(Part::Bytes),
    };
    let own_line = section(sections.and_then(|sections| sections.command_line.as_ref()))
        .map(|line| String::from_utf8_lossy(line).trim_matches(['\0', '\n', ' ']).to_owned());
    let line = command_line(wanted, running, own_line);
    let unusable = |source: io::Error| {
        failed(format!("{} cannot be handed to the kernel: {source}", path.display()), Some(source))
    };
    let kernel = kernel.into_file().map_err(unusable)?;
    let initrd = initrd.map(Part::into_file).transpose().map_err(unusable)?;
    loader
        .load(kernel.as_fd(), initrd.as_ref().map(AsFd::as_fd), &line)
        .map_err(|source| failed(refused(path, &image, &source), Some(source)))?;
    let note = Note::new(Loaded {
        kernel: absolute(path),
        checksum: luo_abi::arena::checksum(&bytes),
        initrd: wanted.initrd.map(absolute),
        command_line: line,
        release: image.release.clone(),
        built: config::of(path, &bytes, &image),
    });
    note.and_then(|note| note.write(noted).map(|()| note)).map_err(|source| {
        let undone = match loader.unload() {
            Ok(()) => "the kernel was unloaded again".to_owned(),
            Err(error) => format!("the kernel stays loaded, as it cannot be unloaded: {error}"),
        };
        failed(
            format!(
                "what was loaded cannot be written down in {}: {source}; {undone}",
                noted.display()
            ),
            Some(source),
        )
    })
}

fn absolute(path: &Path) -> PathBuf {
    fs::canonicalize(path).unwrap_or_else(|_| path.to_owned())
}

/// The next kernel's command line.
fn command_line(wanted: &Wanted<'_>, running: &str, own: Option<String>) -> String {
    let reused = wanted.reuse.then(|| cmdline::without_boot_loader(running));
    // One's own words come last: of two alike the kernel takes the last.
    let base = reused.or(own.filter(|_| wanted.append.is_none())).unwrap_or_default();
    let added = wanted.append.unwrap_or_default().trim();
    let between = if base.is_empty() || added.is_empty() { "" } else { " " };
    format!("{base}{between}{added}")
}

/// Refuses what the kernel would refuse with less to say.
fn fits(path: &Path, image: &Image) -> Result<(), Failure> {
    let here = std::env::consts::ARCH;
    if let Some(architecture) = image.architecture.filter(|found| *found != here) {
        return Err(failed(
            format!(
                "{} is a kernel for {architecture}, and this machine is {here}; name one for {here}",
                path.display()
            ),
            None,
        ));
    }
    match image.format {
        Format::Compressed(program) if here == "x86_64" || here == "aarch64" => Err(failed(
            format!(
                "{path} is compressed as a whole, which the kernel does not unpack; unpack it: \
                 {program} -dc {path} > kernel, and load that",
                path = path.display()
            ),
            None,
        )),
        _ => Ok(()),
    }
}

/// What a refusal of the kernel's means, and what to do.
fn refused(path: &Path, image: &Image, error: &io::Error) -> String {
    let path = path.display();
    let errno = error.raw_os_error().map(Errno::from_raw_os_error);
    let (why, next) = match errno {
        Some(Errno::NOSYS) => (
            "the running kernel cannot load another one (CONFIG_KEXEC_FILE is off)",
            "boot a kernel that can, once",
        ),
        Some(Errno::PERM) => (
            "it is not permitted: the caller lacks CAP_SYS_BOOT, or kernel.kexec_load_disabled is \
             set, or the kernel is locked down",
            "run it as root outside of containers; see `sysctl kernel.kexec_load_disabled` and \
             /sys/kernel/security/lockdown, which last until the next boot",
        ),
        Some(Errno::NOEXEC) => match image.format {
            Format::Zboot => (
                "the running kernel does not unpack a kernel that is packed as an EFI program",
                "load the vmlinux or Image of the same build",
            ),
            _ => (
                "the running kernel knows no such image",
                "name a bzImage (vmlinuz) on x86, an Image on arm64",
            ),
        },
        Some(Errno::KEYREJECTED) => (
            "its signature is not by a key that the running kernel trusts",
            "sign it with a key in the platform's or the machine owner's keyring (mokutil \
             --list-enrolled), or load one that is",
        ),
        Some(Errno::NOKEY) => (
            "no key is there for its signature",
            "enrol the key (mokutil --import), or load a kernel that is signed with one that is",
        ),
        Some(Errno::NODATA | Errno::BADMSG) => (
            "it has no signature that can be read, and the running kernel asks for one",
            "load the signed kernel (vmlinuz-...-signed), or sign this one with sbsign",
        ),
        Some(Errno::BUSY) => (
            "another load goes on, or a crash kernel is being set up",
            "try again when it has ended",
        ),
        Some(Errno::NOMEM | Errno::ADDRNOTAVAIL) => {
            ("there is no room for it in memory", "free memory, or load a smaller initrd")
        }
        Some(Errno::INVAL) => (
            "its parts do not fit: the command line may be too long (2,047 bytes on x86), or the \
             image is cut off",
            "look at the command line and at the file's size",
        ),
        Some(Errno::TXTBSY) => ("it is being written to", "try again when that has ended"),
        Some(Errno::FBIG) => ("it is larger than a kernel can be", "name a kernel"),
        _ => ("the running kernel does not take it", "`dmesg` may tell more"),
    };
    format!("{path} was not loaded: {why} ({error}); {next}")
}

/// Lets go of a loaded kernel.
pub(crate) fn unload(noted: &Path, loader: &dyn Loader) -> Result<(), Failure> {
    loader.unload().map_err(|source| {
        let next = match source.raw_os_error().map(Errno::from_raw_os_error) {
            Some(Errno::PERM) => "run it as root outside of containers",
            Some(Errno::NOSYS) => "this kernel cannot load one (CONFIG_KEXEC_FILE is off)",
            Some(Errno::BUSY) => "a load goes on: try again when it has ended",
            _ => "`dmesg` may tell more",
        };
        failed(format!("the kernel was not unloaded: {source}; {next}"), Some(source))
    })?;
    Note::remove(noted).map_err(|source| Failure::Path {
        path: noted.to_owned(),
        doing: "removed",
        next: "no kernel is loaded, only this note of it is left: remove it",
        source,
    })
}

#[cfg(test)]
mod tests;
