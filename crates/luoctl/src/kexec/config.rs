//! What a kernel was built with: from the configuration in it, or from the file that distributions
//! put beside it.
//!
//! The configuration in a kernel (`CONFIG_IKCONFIG`) is packed within what is packed; the machine's
//! own programs unpack it, as the kernel's `scripts/extract-ikconfig` has them do.
//!
//! Invariants: what is not found is unknown, not absent; a program that unpacks gets no more than
//! [`UNPACKED_MAX`] read from it, and is waited for.

use std::collections::BTreeMap;
use std::fs;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use super::image::{self, Image};

/// What a handover may need of a kernel.
pub(crate) const OPTIONS: [&str; 7] = [
    "CONFIG_KEXEC_HANDOVER",
    "CONFIG_KEXEC_HANDOVER_ENABLE_DEFAULT",
    "CONFIG_LIVEUPDATE",
    "CONFIG_LIVEUPDATE_MEMFD",
    "CONFIG_BLK_DEV_PMEM",
    "CONFIG_X86_PMEM_LEGACY",
    "CONFIG_DEV_DAX",
];

/// The most that is read of an unpacked kernel.
const UNPACKED_MAX: u64 = 1 << 30;

/// What the packed configuration lies between.
const BEGIN: &[u8] = b"IKCFG_ST";
const END: &[u8] = b"IKCFG_ED";

/// What a kernel was built with, of [`OPTIONS`].
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub(crate) struct Built {
    /// Where that is written.
    pub(crate) source: String,
    /// Options that are on: `y`, or `m`.
    pub(crate) options: BTreeMap<String, String>,
}

impl Built {
    /// The options of a configuration, if it is one.
    fn parse(source: String, text: &str) -> Option<Self> {
        let lines = || text.lines().filter_map(|line| line.split_once('='));
        lines().find(|(name, _)| name.starts_with("CONFIG_"))?;
        let options = lines()
            .filter(|(name, _)| OPTIONS.contains(name))
            .map(|(name, value)| (name.to_owned(), value.to_owned()))
            .collect();
        Some(Self { source, options })
    }

    /// Whether an option is on, in the kernel or as a module.
    pub(crate) fn has(&self, option: &str) -> bool {
        self.options.contains_key(option)
    }

    pub(crate) fn is_module(&self, option: &str) -> bool {
        self.options.get(option).is_some_and(|value| value == "m")
    }
}

/// What a kernel was built with.
///
/// # Errors
/// In words, why that cannot be told.
pub(crate) fn of(path: &Path, bytes: &[u8], image: &Image) -> Result<Built, String> {
    let in_it = match in_kernel(bytes, image) {
        Ok(text) => match Built::parse(format!("{} itself", path.display()), &text) {
            Some(built) => return Ok(built),
            None => "what it holds is no configuration".to_owned(),
        },
        Err(reason) => reason,
    };
    let Some(release) = &image.release else {
        return Err(format!("{in_it}; and it does not tell its release, to look in /boot"));
    };
    let places = beside(path, release);
    for place in &places {
        if let Some(built) = fs::read_to_string(place)
            .ok()
            .and_then(|text| Built::parse(place.display().to_string(), &text))
        {
            return Ok(built);
        }
    }
    Err(format!("{in_it}; and there is no /boot/config-{release}"))
}

/// Where a distribution puts the configuration of a kernel.
fn beside(path: &Path, release: &str) -> Vec<PathBuf> {
    // A release is a file's name here, whatever a damaged image says.
    if release.contains('/') {
        return Vec::new();
    }
    let mut places = vec![
        Path::new("/boot").join(format!("config-{release}")),
        Path::new("/usr/lib/modules").join(release).join("config"),
        Path::new("/lib/modules").join(release).join("config"),
    ];
    places.extend(path.parent().map(|parent| parent.join(format!("config-{release}"))));
    places
}

/// The configuration in a kernel.
fn in_kernel(bytes: &[u8], image: &Image) -> Result<String, String> {
    let payload = image.payload.clone().and_then(|payload| bytes.get(payload));
    let payload = payload.ok_or("the kernel in it was not found")?;
    let unpacked = match image::compression(payload) {
        Some(program) => unpack(program, payload)?,
        None => payload.to_vec(),
    };
    let find = |what: &[u8], bytes: &[u8]| bytes.windows(what.len()).position(|at| at == what);
    let packed = find(BEGIN, &unpacked)
        .and_then(|at| unpacked.get(at + BEGIN.len()..))
        .and_then(|rest| rest.get(..find(END, rest)?));
    let packed = packed.ok_or("it was built without its configuration in it (CONFIG_IKCONFIG)")?;
    let text = unpack("gzip", packed)?;
    String::from_utf8(text).map_err(|_| "the configuration in it is no text".to_owned())
}

/// Has a program unpack bytes.
fn unpack(program: &'static str, bytes: &[u8]) -> Result<Vec<u8>, String> {
    let failed = |error: std::io::Error| format!("{program} cannot unpack it: {error}");
    let mut child = Command::new(program)
        .arg("-dc")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .map_err(failed)?;
    let (stdin, stdout) = (child.stdin.take(), child.stdout.take());
    let unpacked = std::thread::scope(|scope| {
        scope.spawn(move || {
            // A program that has enough closes its end: what follows the kernel is not its own.
            stdin.map(|mut stdin| stdin.write_all(bytes))
        });
        let mut unpacked = Vec::new();
        let read = stdout.map(|stdout| stdout.take(UNPACKED_MAX).read_to_end(&mut unpacked));
        read.transpose().map(|_| unpacked)
    });
    // Whether it liked all of it is of no interest: a kernel is followed by its size, for example.
    let _ = child.kill();
    child.wait().map_err(failed)?;
    match unpacked.map_err(failed)? {
        empty if empty.is_empty() => Err(format!("{program} cannot unpack it")),
        unpacked => Ok(unpacked),
    }
}

#[cfg(test)]
mod tests {
    use super::super::image::tests::bz_image_with;
    use super::*;

    const CONFIG: &str = "# Linux\nCONFIG_X86=y\nCONFIG_KEXEC_HANDOVER=y\nCONFIG_BLK_DEV_PMEM=m\n\
                          # CONFIG_LIVEUPDATE is not set\n";

    fn pack(program: &str, bytes: &[u8]) -> Option<Vec<u8>> {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(bytes).unwrap();
        let output = Command::new(program).arg("-c").arg(file.path()).output();
        match output {
            Ok(output) => Some(output.stdout),
            Err(error) => {
                println!("SKIPPED: {program}: {error}");
                None
            }
        }
    }

    #[test]
    fn the_configuration_in_a_kernel_is_found_however_it_is_packed() {
        let Some(config) = pack("gzip", CONFIG.as_bytes()) else { return };
        let kernel = [&[7; 5000][..], BEGIN, &config, END, &[9; 5000]].concat();
        for program in ["gzip", "xz", "zstd"] {
            let Some(mut payload) = pack(program, &kernel) else { continue };
            // The kernel's build appends the unpacked size.
            payload.extend_from_slice(&(kernel.len() as u32).to_le_bytes());
            let bytes = bz_image_with("6.12.9", &payload);
            let built = of(Path::new("/k"), &bytes, &image::recognise(&bytes)).unwrap();
            assert_eq!(built.source, "/k itself", "{program}");
            assert!(built.has("CONFIG_KEXEC_HANDOVER") && !built.has("CONFIG_LIVEUPDATE"));
            assert!(
                built.is_module("CONFIG_BLK_DEV_PMEM") && !built.options.contains_key("CONFIG_X86")
            );
        }
    }

    #[test]
    fn what_is_not_in_it_is_looked_for_beside_it_and_else_unknown() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("vmlinuz-6.0.0-nowhere");
        let bytes = bz_image_with("6.0.0-nowhere", b"not packed");
        let image = image::recognise(&bytes);
        let reason = of(&path, &bytes, &image).unwrap_err();
        assert!(reason.contains("IKCONFIG") && reason.contains("config-6.0.0-nowhere"), "{reason}");
        fs::write(directory.path().join("config-6.0.0-nowhere"), CONFIG).unwrap();
        assert!(of(&path, &bytes, &image).unwrap().has("CONFIG_KEXEC_HANDOVER"));
    }

    #[test]
    fn a_release_that_is_a_path_leads_nowhere() {
        assert!(beside(Path::new("/k"), "../../etc/passwd").is_empty());
    }
}
