//! Writes the archive that a kernel unpacks as its first root file system: cpio, format `newc`.
//!
//! Invariants: a directory is written before what is in it; whatever is added twice is written once.

use std::collections::BTreeSet;
use std::path::Path;

const FILE: u32 = 0o100_000;
const DIRECTORY: u32 = 0o040_000;
const SYMLINK: u32 = 0o120_000;
const CHARACTER: u32 = 0o020_000;

/// An archive that is being written, all of it owned by root.
#[derive(Debug, Default)]
pub(super) struct Archive {
    bytes: Vec<u8>,
    names: BTreeSet<String>,
    inode: u32,
}

impl Archive {
    /// A file, and the directories above it.
    pub(super) fn file(&mut self, path: &Path, mode: u32, content: &[u8]) {
        self.node(path, FILE | mode, (0, 0), content);
    }

    /// A directory, and those above it.
    pub(super) fn directory(&mut self, path: &Path) {
        self.node(path, DIRECTORY | 0o755, (0, 0), b"");
    }

    /// A symbolic link.
    pub(super) fn link(&mut self, path: &Path, target: &str) {
        self.node(path, SYMLINK | 0o777, (0, 0), target.as_bytes());
    }

    /// A character device.
    pub(super) fn device(&mut self, path: &Path, mode: u32, number: (u32, u32)) {
        self.node(path, CHARACTER | mode, number, b"");
    }

    fn node(&mut self, path: &Path, mode: u32, device: (u32, u32), content: &[u8]) {
        let name = path.to_string_lossy();
        let name = name.trim_matches('/').to_owned();
        if name.is_empty() || !self.names.insert(name.clone()) {
            return;
        }
        if let Some(parent) = Path::new(&name).parent() {
            self.directory(parent);
        }
        self.inode += 1;
        self.entry(&name, self.inode, mode, device, content);
    }

    fn entry(&mut self, name: &str, inode: u32, mode: u32, device: (u32, u32), content: &[u8]) {
        let len = |bytes: usize| u32::try_from(bytes).unwrap_or(u32::MAX);
        let links = if mode & DIRECTORY != 0 { 2 } else { 1 };
        // c_magic, then c_ino, c_mode, c_uid, c_gid, c_nlink, c_mtime, c_filesize, c_devmajor,
        // c_devminor, c_rdevmajor, c_rdevminor, c_namesize, c_check: each eight hexadecimal digits.
        self.bytes.extend_from_slice(b"070701");
        let name_len = len(name.len() + 1);
        let fields = [
            inode,
            mode,
            0,
            0,
            links,
            0,
            len(content.len()),
            0,
            0,
            device.0,
            device.1,
            name_len,
            0,
        ];
        for field in fields {
            self.bytes.extend_from_slice(format!("{field:08x}").as_bytes());
        }
        self.bytes.extend_from_slice(name.as_bytes());
        self.bytes.push(0);
        self.pad();
        self.bytes.extend_from_slice(content);
        self.pad();
    }

    fn pad(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }

    /// The whole archive.
    pub(super) fn finish(mut self) -> Vec<u8> {
        self.entry("TRAILER!!!", 0, 0, (0, 0), b"");
        self.bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_entry_has_its_header_its_name_and_its_content_each_padded() {
        let mut archive = Archive::default();
        archive.file(Path::new("/init"), 0o755, b"12345");
        let bytes = archive.finish();
        assert_eq!(&bytes[..22], b"07070100000001000081ed");
        assert_eq!(&bytes[54..62], b"00000005");
        assert_eq!(&bytes[110..116], b"init\0\0");
        assert_eq!(&bytes[116..124], b"12345\0\0\0");
        assert!(bytes.windows(10).any(|window| window == b"TRAILER!!!"));
        assert_eq!(bytes.len() % 4, 0);
    }

    #[test]
    fn directories_come_first_and_once() {
        let mut archive = Archive::default();
        archive.file(Path::new("/a/b/c"), 0o644, b"");
        archive.file(Path::new("/a/b/d"), 0o644, b"");
        archive.link(Path::new("a/e"), "b/c");
        archive.directory(Path::new("/a"));
        let names = names(&archive.finish());
        assert_eq!(names, ["a", "a/b", "a/b/c", "a/b/d", "a/e", "TRAILER!!!"]);
    }

    fn names(mut bytes: &[u8]) -> Vec<String> {
        let mut names = Vec::new();
        while let Some(header) = bytes.get(..110) {
            let number = |at: usize| {
                let digits = std::str::from_utf8(&header[at..at + 8]).expect("digits");
                usize::from_str_radix(digits, 16).expect("hexadecimal")
            };
            let (size, name) = (number(54), number(94));
            names.push(String::from_utf8_lossy(&bytes[110..110 + name - 1]).into_owned());
            let content = (110 + name).next_multiple_of(4);
            bytes = &bytes[(content + size).next_multiple_of(4)..];
        }
        names
    }
}
