//! What the lab needs of the machine, and how it comes there.

use std::fs;
use std::path::Path;

use crate::failure::{Failed, Result};
use crate::proc;
use crate::test::tools;

/// Something that is needed, and Debian's package of it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Need {
    /// A program, or the path of a file.
    what: &'static str,
    package: &'static str,
}

const fn need(what: &'static str, package: &'static str) -> Need {
    Need { what, package }
}

/// To run a virtual machine.
pub(super) const TO_RUN: &[Need] = &[
    need("qemu-system-x86_64", "qemu-system-x86"),
    need("setpriv", "util-linux"),
    need("strip", "binutils"),
    need("mke2fs", "e2fsprogs"),
];

/// To build a kernel.
pub(super) const TO_BUILD: &[Need] = &[
    need("gcc", "gcc"),
    need("ld", "binutils"),
    need("make", "make"),
    need("flex", "flex"),
    need("bison", "bison"),
    need("bc", "bc"),
    need("perl", "perl"),
    need("gzip", "gzip"),
    need("tar", "tar"),
    need("xz", "xz-utils"),
    need("/usr/include/gelf.h", "libelf-dev"),
    need("/usr/include/openssl/opensslv.h", "libssl-dev"),
    need("/usr/include/stdio.h", "libc6-dev"),
];

/// To fetch and unpack packages.
pub(super) const TO_FETCH: &[Need] = &[
    need("apt-get", "apt"),
    need("apt-cache", "apt"),
    need("dpkg-deb", "dpkg"),
    need("xz", "xz-utils"),
];

impl Need {
    fn is_there(self) -> bool {
        // Some lie in directories that only root has on PATH.
        if self.what.starts_with('/') {
            Path::new(self.what).exists()
        } else {
            program(self.what).is_some()
        }
    }
}

/// A program, also where only root looks for it.
pub(super) fn program(name: &str) -> Option<std::path::PathBuf> {
    proc::find(name).or_else(|| {
        ["/usr/sbin", "/sbin"]
            .iter()
            .map(|dir| Path::new(dir).join(name))
            .find(|path| path.is_file())
    })
}

/// Installs what is missing, or says what is, and how it is installed.
pub(super) fn provide(needs: &[Need], may_install: bool) -> Result<()> {
    let lacking = |needs: &[Need]| {
        let mut packages: Vec<&str> =
            needs.iter().filter(|need| !need.is_there()).map(|need| need.package).collect();
        packages.sort_unstable();
        packages.dedup();
        packages
    };
    let packages = lacking(needs);
    if packages.is_empty() {
        return Ok(());
    }
    let why = match tools::obstacle(may_install) {
        Some(obstacle) => obstacle,
        None => match tools::install(&packages) {
            Ok(()) if lacking(needs).is_empty() => return Ok(()),
            Ok(()) => format!("the packages do not hold {}", missing(needs)),
            Err(failed) => failed.chain(),
        },
    };
    Err(Failed::new(format!(
        "{} missing; install with `apt-get install {}` (elsewhere than on Debian under the \
         packages' names there); not done here: {why}",
        missing(needs),
        packages.join(" ")
    )))
}

fn missing(needs: &[Need]) -> String {
    let names: Vec<&str> =
        needs.iter().filter(|need| !need.is_there()).map(|need| need.what).collect();
    match names.as_slice() {
        [one] => format!("{one} is"),
        many => format!("{} are", many.join(", ")),
    }
}

/// The code name of the machine's own release of Debian.
pub(super) fn debian() -> Result<String> {
    let release = fs::read_to_string("/etc/os-release").unwrap_or_default();
    code_name(&release).ok_or_else(|| {
        Failed::new(
            "this is not Debian, from whose packages the lab takes its kernels; name a kernel with \
             LUO_LAB_KERNEL=/path/of/bzImage (docs/lab.md says what it needs)",
        )
    })
}

fn code_name(os_release: &str) -> Option<String> {
    let field = |name: &str| {
        os_release
            .lines()
            .find_map(|line| line.strip_prefix(name)?.strip_prefix('='))
            .map(|value| value.trim_matches('"').to_owned())
    };
    (field("ID")? == "debian").then(|| field("VERSION_CODENAME")).flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_release_of_debian_is_known_and_of_nothing_else() {
        let debian = "PRETTY_NAME=\"x\"\nVERSION_CODENAME=bookworm\nID=debian\n";
        assert_eq!(code_name(debian).as_deref(), Some("bookworm"));
        assert_eq!(code_name("ID=fedora\nVERSION_CODENAME=x\n"), None);
        assert_eq!(code_name(""), None);
    }

    #[test]
    fn what_is_missing_is_named_with_the_command() {
        let needs = [need("/no/such/file", "a-package"), need("sh", "dash")];
        let failed = provide(&needs, false).expect_err("it is missing");
        assert!(failed.chain().contains("/no/such/file is missing"), "{}", failed.chain());
        assert!(failed.chain().contains("apt-get install a-package"), "{}", failed.chain());
    }
}
