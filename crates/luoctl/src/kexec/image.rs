//! What a file that is to be the next kernel is: a kernel of this architecture, of another one, or
//! something around a kernel.
//!
//! Invariants: nothing of a file is believed before it was found within the file's length; a file
//! that cannot be made out is [`Format::Unknown`], never an error, since the kernel has the last word.

use std::ops::Range;

/// What a file is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Format {
    /// `bzImage` of x86.
    BzImage,
    /// `Image` of arm64 or riscv.
    Image,
    /// An ELF file: `vmlinux`.
    Elf,
    /// An EFI program that unpacks the kernel in it (`vmlinuz.efi`).
    Zboot,
    /// A whole file that is compressed, by that program.
    Compressed(&'static str),
    /// A unified kernel image: kernel, initrd and command line in one EFI program.
    Unified(Sections),
    /// Something else.
    Unknown,
}

/// Where the parts of a unified kernel image lie.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Sections {
    pub(crate) linux: Range<usize>,
    pub(crate) initrd: Option<Range<usize>>,
    pub(crate) command_line: Option<Range<usize>>,
}

/// What is known of a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Image {
    pub(crate) format: Format,
    /// In Rust's words, as `x86_64`; `None` where it cannot be told.
    pub(crate) architecture: Option<&'static str>,
    /// The release, as `uname -r` would say it.
    pub(crate) release: Option<String>,
    /// Where the kernel proper lies, which is compressed in a `bzImage`.
    pub(crate) payload: Option<Range<usize>>,
}

/// Programs that unpack, by the bytes that a file begins with.
const COMPRESSIONS: [(&[u8], &str); 7] = [
    (b"\x1f\x8b", "gzip"),
    (b"\xfd7zXZ\0", "xz"),
    (b"\x28\xb5\x2f\xfd", "zstd"),
    (b"BZh", "bzip2"),
    (b"\x5d\0\0", "lzma"),
    (b"\x89LZO", "lzop"),
    (b"\x02\x21\x4c\x18", "lz4"),
];

/// The program that unpacks what begins so.
pub(crate) fn compression(bytes: &[u8]) -> Option<&'static str> {
    COMPRESSIONS.iter().find(|(magic, _)| bytes.starts_with(magic)).map(|(_, program)| *program)
}

fn number<const N: usize>(bytes: &[u8], at: usize) -> Option<[u8; N]> {
    bytes.get(at..)?.first_chunk().copied()
}

fn half(bytes: &[u8], at: usize) -> Option<u16> {
    number(bytes, at).map(u16::from_le_bytes)
}

fn word(bytes: &[u8], at: usize) -> Option<u32> {
    number(bytes, at).map(u32::from_le_bytes)
}

fn offset(bytes: &[u8], at: usize) -> Option<usize> {
    word(bytes, at).and_then(|offset| usize::try_from(offset).ok())
}

/// A part of the file, if it lies within it.
fn within(bytes: &[u8], start: usize, len: usize) -> Option<Range<usize>> {
    let range = start..start.checked_add(len)?;
    bytes.get(range.clone()).map(|_| range)
}

/// Makes out what a file is.
pub(crate) fn recognise(bytes: &[u8]) -> Image {
    if let Some(image) = unified(bytes).or_else(|| bz_image(bytes)).or_else(|| elf(bytes)) {
        return image;
    }
    let plain =
        |format, architecture, payload| Image { format, architecture, release: None, payload };
    if bytes.starts_with(b"MZ\0\0zimg") {
        return plain(Format::Zboot, pe_architecture(bytes), None);
    }
    let magic = bytes.get(0x38..0x3c);
    let of_image = match magic {
        Some(b"ARM\x64") => Some("aarch64"),
        Some(b"RSC\x05") => Some("riscv64"),
        _ => None,
    };
    if of_image.is_some() {
        return plain(Format::Image, of_image, Some(0..bytes.len()));
    }
    match compression(bytes) {
        Some(program) => plain(Format::Compressed(program), None, None),
        None => plain(Format::Unknown, None, None),
    }
}

/// Where the header of an EFI program begins.
fn pe_header(bytes: &[u8]) -> Option<usize> {
    let header = offset(bytes, 0x3c).filter(|_| bytes.starts_with(b"MZ"))?;
    bytes.get(header..)?.starts_with(b"PE\0\0").then_some(header)
}

fn pe_architecture(bytes: &[u8]) -> Option<&'static str> {
    match half(bytes, pe_header(bytes)?.checked_add(4)?)? {
        0x8664 => Some("x86_64"),
        0xaa64 => Some("aarch64"),
        0x014c => Some("x86"),
        0x5064 => Some("riscv64"),
        _ => None,
    }
}

/// An EFI program with a section `.linux`.
fn unified(bytes: &[u8]) -> Option<Image> {
    let header = pe_header(bytes)?;
    let count = half(bytes, header.checked_add(6)?)?;
    let optional = half(bytes, header.checked_add(20)?)?;
    let table = header.checked_add(24)?.checked_add(usize::from(optional))?;
    let mut linux = None;
    let mut sections = Sections::default();
    let mut release = None;
    for index in 0..usize::from(count) {
        let at = table.checked_add(index.checked_mul(40)?)?;
        let name = bytes.get(at..at.checked_add(8)?)?;
        // What is in memory may be less than what is in the file, which is filled up.
        let len = offset(bytes, at + 8)?.min(offset(bytes, at + 16)?);
        let Some(range) = within(bytes, offset(bytes, at + 20)?, len) else { continue };
        let name = name.split(|byte| *byte == 0).next().unwrap_or_default();
        match name {
            b".linux" => linux = Some(range),
            b".initrd" => sections.initrd = Some(range),
            b".cmdline" => sections.command_line = Some(range),
            b".uname" => release = bytes.get(range).and_then(text),
            _ => {}
        }
    }
    sections.linux = linux?;
    let inner = recognise_inner(bytes.get(sections.linux.clone())?);
    Some(Image {
        architecture: pe_architecture(bytes),
        release: release.or(inner.as_ref().and_then(|inner| inner.release.clone())),
        payload: inner.and_then(|inner| inner.payload).map(|payload| {
            payload.start + sections.linux.start..payload.end + sections.linux.start
        }),
        format: Format::Unified(sections),
    })
}

/// The kernel in a unified image, which is not looked into for another one.
fn recognise_inner(bytes: &[u8]) -> Option<Image> {
    bz_image(bytes).or_else(|| elf(bytes))
}

fn text(bytes: &[u8]) -> Option<String> {
    let bytes = bytes.split(|byte| *byte == 0).next()?;
    let text = std::str::from_utf8(bytes).ok()?.trim();
    (!text.is_empty() && !text.contains(char::is_control)).then(|| text.to_owned())
}

/// The boot protocol of x86: `Documentation/arch/x86/boot.rst` of the kernel.
fn bz_image(bytes: &[u8]) -> Option<Image> {
    if bytes.get(0x202..0x206)? != b"HdrS" {
        return None;
    }
    let protocol = half(bytes, 0x206)?;
    let release = half(bytes, 0x20e)
        .filter(|at| *at != 0)
        .and_then(|at| bytes.get(usize::from(at) + 0x200..))
        .and_then(|line| text(line.get(..line.len().min(256))?))
        .and_then(|line| line.split(' ').next().map(str::to_owned));
    let is_64_bit = protocol < 0x20c || half(bytes, 0x236).is_some_and(|flags| flags & 1 != 0);
    let payload = (protocol >= 0x208).then(|| {
        let sectors = match bytes.get(0x1f1)? {
            0 => 4,
            sectors => usize::from(*sectors),
        };
        let start = (sectors + 1) * 512;
        within(bytes, start.checked_add(offset(bytes, 0x248)?)?, offset(bytes, 0x24c)?)
    });
    Some(Image {
        format: Format::BzImage,
        architecture: Some(if is_64_bit { "x86_64" } else { "x86" }),
        release,
        payload: payload.flatten(),
    })
}

fn elf(bytes: &[u8]) -> Option<Image> {
    if !bytes.starts_with(b"\x7fELF") {
        return None;
    }
    let machine = number(bytes, 18)?;
    let machine = match bytes.get(5)? {
        2 => u16::from_be_bytes(machine),
        _ => u16::from_le_bytes(machine),
    };
    let architecture = match machine {
        62 => Some("x86_64"),
        3 => Some("x86"),
        183 => Some("aarch64"),
        21 => Some("powerpc64"),
        22 => Some("s390x"),
        243 => Some("riscv64"),
        258 => Some("loongarch64"),
        _ => None,
    };
    Some(Image { format: Format::Elf, architecture, release: None, payload: Some(0..bytes.len()) })
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    fn put(bytes: &mut [u8], at: usize, what: &[u8]) {
        bytes[at..at + what.len()].copy_from_slice(what);
    }

    /// A `bzImage` of that release, with this in place of the compressed kernel.
    pub(crate) fn bz_image_with(release: &str, payload: &[u8]) -> Vec<u8> {
        let mut bytes = vec![0; 1024];
        put(&mut bytes, 0x1f1, &[1]);
        put(&mut bytes, 0x202, b"HdrS");
        put(&mut bytes, 0x206, &0x20f_u16.to_le_bytes());
        put(&mut bytes, 0x20e, &0x100_u16.to_le_bytes());
        put(&mut bytes, 0x236, &1_u16.to_le_bytes());
        put(&mut bytes, 0x24c, &(payload.len() as u32).to_le_bytes());
        put(&mut bytes, 0x300, format!("{release} (builder) #1 SMP").as_bytes());
        bytes.extend_from_slice(payload);
        bytes
    }

    /// An EFI program with these sections.
    pub(crate) fn pe(machine: u16, sections: &[(&str, &[u8])]) -> Vec<u8> {
        let mut bytes = vec![0; 0x400];
        put(&mut bytes, 0, b"MZ");
        put(&mut bytes, 0x3c, &0x80_u32.to_le_bytes());
        put(&mut bytes, 0x80, b"PE\0\0");
        put(&mut bytes, 0x84, &machine.to_le_bytes());
        put(&mut bytes, 0x86, &(sections.len() as u16).to_le_bytes());
        put(&mut bytes, 0x94, &0x10_u16.to_le_bytes());
        for (index, (name, content)) in sections.iter().enumerate() {
            let (at, start) = (0xa8 + index * 40, bytes.len() as u32);
            let filled = content.len().next_multiple_of(512);
            put(&mut bytes, at, name.as_bytes());
            put(&mut bytes, at + 8, &(content.len() as u32).to_le_bytes());
            put(&mut bytes, at + 16, &(filled as u32).to_le_bytes());
            put(&mut bytes, at + 20, &start.to_le_bytes());
            bytes.extend_from_slice(content);
            bytes.resize(start as usize + filled, 0);
        }
        bytes
    }

    #[test]
    fn a_bz_image_tells_its_release_and_where_the_kernel_lies() {
        let bytes = bz_image_with("6.12.9-amd64", b"payload");
        let image = recognise(&bytes);
        assert_eq!(image.format, Format::BzImage);
        assert_eq!(image.architecture, Some("x86_64"));
        assert_eq!(image.release.as_deref(), Some("6.12.9-amd64"));
        assert_eq!(&bytes[image.payload.unwrap()], b"payload");
    }

    #[test]
    fn a_unified_image_is_told_from_a_kernel_that_is_an_efi_program() {
        let linux = bz_image_with("6.12.9", b"payload");
        let parts = [(".linux", &linux[..]), (".initrd", b"cpio"), (".cmdline", b"ro quiet\0")];
        let bytes = pe(0x8664, &parts);
        let image = recognise(&bytes);
        let Format::Unified(sections) = image.format else { panic!("{image:?}") };
        assert_eq!(bytes[sections.linux], linux);
        assert_eq!(&bytes[sections.initrd.unwrap()], b"cpio");
        assert_eq!(&bytes[sections.command_line.unwrap()], b"ro quiet\0");
        assert_eq!(
            (image.architecture, image.release.as_deref()),
            (Some("x86_64"), Some("6.12.9"))
        );
        assert_eq!(&bytes[image.payload.unwrap()], b"payload");

        assert_eq!(recognise(&pe(0x8664, &[(".text", b"stub")])).format, Format::Unknown);
    }

    #[test]
    fn other_architectures_and_packed_files_are_known() {
        let mut arm = vec![0; 64];
        put(&mut arm, 0x38, b"ARM\x64");
        assert_eq!(recognise(&arm).architecture, Some("aarch64"));
        let mut elf = vec![0; 64];
        put(&mut elf, 0, b"\x7fELF\x02\x01");
        put(&mut elf, 18, &183_u16.to_le_bytes());
        assert_eq!(
            (recognise(&elf).format, recognise(&elf).architecture),
            (Format::Elf, Some("aarch64"))
        );
        assert_eq!(recognise(b"\x1f\x8b\x08\0").format, Format::Compressed("gzip"));
        assert_eq!(recognise(b"#!/bin/sh\n").format, Format::Unknown);
        assert_eq!(recognise(b"").format, Format::Unknown);
    }

    #[test]
    fn no_cut_and_no_changed_byte_is_followed_out_of_the_file() {
        let linux = bz_image_with("6.12.9", b"payload");
        let whole = pe(0x8664, &[(".linux", &linux[..]), (".initrd", b"cpio")]);
        for bytes in [&linux, &whole] {
            for end in 0..bytes.len() {
                recognise(&bytes[..end]);
            }
            for at in 0..bytes.len().min(0x400) {
                let mut bytes = bytes.clone();
                bytes[at] ^= 0xff;
                let image = recognise(&bytes);
                assert!(image.payload.is_none_or(|payload| payload.end <= bytes.len()));
            }
        }
    }
}
