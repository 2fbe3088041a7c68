//! Loading, with a kernel that only writes down what it is asked for.

use std::cell::RefCell;
use std::io::Read;

use super::image::tests::{bz_image_with, pe};
use super::*;

/// One load: kernel, initrd, command line.
type Load = (Vec<u8>, Option<Vec<u8>>, String);

/// A kernel that takes everything, or answers with an errno.
#[derive(Debug, Default)]
struct Double {
    refuses: Option<Errno>,
    loads: RefCell<Vec<Load>>,
    unloads: RefCell<usize>,
}

fn content(descriptor: BorrowedFd<'_>) -> Vec<u8> {
    let mut bytes = Vec::new();
    File::from(descriptor.try_clone_to_owned().unwrap()).read_to_end(&mut bytes).unwrap();
    // As the kernel does: whoever can be written to by somebody is refused.
    let flags = rustix::fs::fcntl_getfl(descriptor).unwrap();
    assert!(!flags.intersects(rustix::fs::OFlags::RDWR | rustix::fs::OFlags::WRONLY));
    bytes
}

impl Loader for Double {
    fn load(
        &self,
        kernel: BorrowedFd<'_>,
        initrd: Option<BorrowedFd<'_>>,
        line: &str,
    ) -> io::Result<()> {
        if let Some(errno) = self.refuses {
            return Err(errno.into());
        }
        self.loads.borrow_mut().push((content(kernel), initrd.map(content), line.to_owned()));
        Ok(())
    }

    fn unload(&self) -> io::Result<()> {
        *self.unloads.borrow_mut() += 1;
        Ok(())
    }
}

struct Place {
    directory: tempfile::TempDir,
}

impl Place {
    fn new() -> Self {
        Self { directory: tempfile::tempdir().unwrap() }
    }

    fn file(&self, name: &str, bytes: &[u8]) -> PathBuf {
        let path = self.directory.path().join(name);
        fs::write(&path, bytes).unwrap();
        path
    }

    fn note(&self) -> PathBuf {
        self.directory.path().join("run/next-kernel.json")
    }
}

fn wanted(kernel: &Path) -> Wanted<'_> {
    Wanted { kernel, initrd: None, append: None, reuse: false }
}

fn kernel_here() -> Vec<u8> {
    assert_eq!(std::env::consts::ARCH, "x86_64", "the test's images are of this architecture");
    bz_image_with("6.12.9-amd64", b"payload")
}

#[test]
fn a_kernel_is_loaded_with_the_command_line_of_this_one_and_noted() {
    let place = Place::new();
    let kernel = place.file("vmlinuz", &kernel_here());
    let initrd = place.file("initrd", b"cpio");
    let loader = Double::default();
    let wanted = Wanted {
        kernel: &kernel,
        initrd: Some(&initrd),
        append: Some("kho=on liveupdate=on"),
        reuse: true,
    };
    let note =
        load(&wanted, "BOOT_IMAGE=/vmlinuz ro memmap=1G!4G\n", &place.note(), &loader).unwrap();
    let line = "ro memmap=1G!4G kho=on liveupdate=on";
    let loads = loader.loads.take();
    assert_eq!(loads, [(kernel_here(), Some(b"cpio".to_vec()), line.to_owned())]);
    assert_eq!(note.command_line, line);
    assert_eq!(note.release.as_deref(), Some("6.12.9-amd64"));
    assert!(note.built.is_none() && note.unknown.is_some());
    assert_eq!(Note::read(&place.note()).unwrap(), Some(note));

    unload(&place.note(), &loader).unwrap();
    assert_eq!((loader.unloads.take(), Note::read(&place.note()).unwrap()), (1, None));
}

#[test]
fn a_unified_image_is_loaded_part_by_part() {
    let place = Place::new();
    let linux = kernel_here();
    let parts = [(".linux", &linux[..]), (".initrd", b"cpio"), (".cmdline", b"ro quiet\n\0")];
    let unified = place.file("uki.efi", &pe(0x8664, &parts));
    let loader = Double::default();
    load(&wanted(&unified), "of this one", &place.note(), &loader).unwrap();
    load(
        &Wanted { append: Some("debug"), ..wanted(&unified) },
        "of this one",
        &place.note(),
        &loader,
    )
    .unwrap();
    let loads = loader.loads.take();
    assert_eq!(loads[0], (linux.clone(), Some(b"cpio".to_vec()), "ro quiet".to_owned()));
    assert_eq!(loads[1].2, "debug", "a command line that is given takes the place of its own");
}

#[test]
fn what_does_not_fit_never_reaches_the_kernel() {
    let place = Place::new();
    let loader = Double::default();
    let refusal = |name: &str, bytes: &[u8]| {
        load(&wanted(&place.file(name, bytes)), "", &place.note(), &loader).unwrap_err().to_string()
    };
    let other = refusal("arm.efi", &pe(0xaa64, &[(".linux", b"x")]));
    assert!(other.contains("aarch64") && other.contains("x86_64"), "{other}");
    let packed = refusal("Image.gz", b"\x1f\x8b\x08\0");
    assert!(packed.contains("gzip -dc"), "{packed}");
    let missing = load(&wanted(Path::new("/nonexistent")), "", &place.note(), &loader).unwrap_err();
    assert_eq!(missing.exit(), Exit::NotFound);
    assert!(loader.loads.take().is_empty());
    assert_eq!(Note::read(&place.note()).unwrap(), None);
}

#[test]
fn every_refusal_says_what_to_do() {
    let place = Place::new();
    let kernel = place.file("vmlinuz", &kernel_here());
    for (errno, exit, says) in [
        (Errno::NOSYS, Exit::Failed, "CONFIG_KEXEC_FILE"),
        (Errno::PERM, Exit::Denied, "lock"),
        (Errno::NOEXEC, Exit::Failed, "bzImage"),
        (Errno::KEYREJECTED, Exit::Failed, "mokutil"),
        (Errno::NOKEY, Exit::Failed, "mokutil"),
        (Errno::NODATA, Exit::Failed, "sbsign"),
        (Errno::BUSY, Exit::WrongState, "again"),
        (Errno::NOMEM, Exit::Failed, "room"),
        (Errno::INVAL, Exit::Failed, "command line"),
        (Errno::IO, Exit::Failed, "dmesg"),
    ] {
        let loader = Double { refuses: Some(errno), ..Double::default() };
        let failure = load(&wanted(&kernel), "", &place.note(), &loader).unwrap_err();
        let text = failure.to_string();
        assert!(text.contains(says) && text.contains("; "), "{errno:?}: {text}");
        assert_eq!(failure.exit(), exit, "{errno:?}");
        assert_eq!(Note::read(&place.note()).unwrap(), None);
    }
}

#[test]
fn a_kernel_that_cannot_be_noted_is_unloaded_again() {
    let place = Place::new();
    let kernel = place.file("vmlinuz", &kernel_here());
    let in_the_way = place.file("file", b"");
    let loader = Double::default();
    let failure = load(&wanted(&kernel), "", &in_the_way.join("note"), &loader).unwrap_err();
    assert!(failure.to_string().contains("unloaded again"), "{failure}");
    assert_eq!(loader.unloads.take(), 1);
}
