use std::fs::File;
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;
use std::thread;

use rustix::fs::{MemfdFlags, memfd_create};

use super::*;

const PAGE: u64 = 4096;

fn memfd(len: u64) -> File {
    let file = File::from(memfd_create("luo-test", MemfdFlags::CLOEXEC).unwrap());
    file.set_len(len).unwrap();
    file
}

fn map(file: &File, len: u64) -> Mapped {
    Mapped::file(file.as_fd(), len, PAGE, Protection::ReadWrite).unwrap()
}

fn errno<T: fmt::Debug>(result: io::Result<T>) -> Option<i32> {
    result.unwrap_err().raw_os_error()
}

#[test]
fn bytes_go_in_and_out_at_any_offset_and_nothing_beside_them_changes() {
    let file = memfd(4 * PAGE);
    let mapped = map(&file, 4 * PAGE);
    assert_eq!(mapped.durability(), Durability::Fsync, "a memfd is no persistent memory");
    let bytes: Vec<u8> = (0..5000_u32).map(|n| (n % 251) as u8 + 1).collect();
    let mut expected = vec![0; 4 * PAGE as usize];
    for (offset, len) in [(0, 4096), (4096, 1), (4099, 700), (5003, 64), (9001, 4999), (16383, 1)] {
        expected[offset..offset + len].copy_from_slice(&bytes[..len]);
        mapped.write_at(offset as u64, &bytes[..len]).unwrap();
        let mut seen = vec![0; expected.len()];
        file.read_exact_at(&mut seen, 0).unwrap();
        assert!(seen == expected, "{len} bytes at {offset}");
        let mut back = vec![0; len];
        mapped.read_at(offset as u64, &mut back).unwrap();
        assert_eq!(back, bytes[..len]);
    }
}

#[test]
fn nothing_beyond_the_bounds_is_touched() {
    let file = memfd(2 * PAGE);
    let mapped = map(&file, PAGE + 10);
    assert_eq!(mapped.len(), PAGE + 10);
    for offset in [PAGE + 9, PAGE + 10, 2 * PAGE, u64::MAX] {
        let error = mapped.write_at(offset, b"xx").unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidInput);
        let error = mapped.read_at(offset, &mut [0; 2]).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);
    }
    mapped.write_at(PAGE + 8, b"xx").unwrap();
    mapped.write_at(PAGE + 10, b"").unwrap();
    assert_eq!(errno(Mapped::file(file.as_fd(), 0, PAGE, Protection::Read)), Some(libc::EINVAL));
    assert_eq!(errno(Mapped::file(file.as_fd(), 1, 3, Protection::Read)), Some(libc::EINVAL));
    let most = Mapped::file(file.as_fd(), u64::MAX, PAGE, Protection::Read);
    assert_eq!(errno(most), Some(libc::EOVERFLOW));
    let look = Mapped::file(file.as_fd(), PAGE, PAGE, Protection::Read).unwrap();
    assert_eq!(errno(look.write_at(0, b"x")), Some(libc::EBADF));
}

#[test]
fn a_file_that_shrinks_is_an_error_and_not_the_end_of_the_process() {
    let (file, other) = (memfd(8 * PAGE), memfd(PAGE));
    let (mapped, whole) = (map(&file, 8 * PAGE), map(&other, PAGE));
    mapped.write_at(0, b"there").unwrap();
    whole.write_at(0, b"other").unwrap();
    file.set_len(PAGE).unwrap();
    // What is there can be read, until something that is not there is touched.
    mapped.read_at(0, &mut [0; 5]).unwrap();
    assert_eq!(errno(mapped.read_at(PAGE, &mut [0; 5])), Some(libc::EIO));
    assert_eq!(errno(mapped.read_at(0, &mut [0; 5])), Some(libc::EIO));
    assert_eq!(errno(mapped.write_at(0, b"later")), Some(libc::EIO));
    assert_eq!(errno(mapped.whole()), Some(libc::EIO));
    let mut seen = [0; 5];
    file.read_exact_at(&mut seen, 0).unwrap();
    assert_eq!(&seen, b"there", "nothing is written to a mapping that broke");
    // Others are none the worse, also those that come after it.
    whole.read_at(0, &mut seen).unwrap();
    assert_eq!(&seen, b"other");
    drop(mapped);
    file.set_len(2 * PAGE).unwrap();
    let again = map(&file, 2 * PAGE);
    again.write_at(PAGE, b"again").unwrap();
    file.set_len(0).unwrap();
    assert_eq!(errno(again.write_at(0, &[1; 8192])), Some(libc::EIO));
}

#[test]
fn a_file_that_shrinks_under_many_threads_breaks_for_all_of_them() {
    let file = memfd(64 * PAGE);
    let mapped = map(&file, 64 * PAGE);
    thread::scope(|scope| {
        let all: Vec<_> = (0..4)
            .map(|number| {
                let mapped = &mapped;
                scope.spawn(move || {
                    let block = vec![number; 64 * PAGE as usize];
                    while mapped.write_at(0, &block).is_ok() {}
                    mapped.read_at(0, &mut [0; 8]).is_err()
                })
            })
            .collect();
        file.set_len(PAGE).unwrap();
        assert!(all.into_iter().all(|thread| thread.join().unwrap()));
    });
    assert_eq!(file.metadata().unwrap().len(), PAGE);
}

#[test]
fn a_sigbus_of_no_guarded_mapping_still_ends_the_process() {
    use std::os::unix::process::ExitStatusExt as _;
    const NAME: &str = "mapped::tests::a_sigbus_of_no_guarded_mapping_still_ends_the_process";
    if std::env::var_os("LUO_TEST_DIES").is_some() {
        let file = memfd(PAGE);
        let _guarded = map(&file, PAGE);
        let (prot, len) = (ProtFlags::READ, PAGE as usize);
        // SAFETY: no address is asked for.
        let address = unsafe {
            rustix::mm::mmap(std::ptr::null_mut(), len, prot, MapFlags::SHARED, &file, 0)
        };
        file.set_len(0).unwrap();
        let mut byte = 0;
        // SAFETY: one byte can be written there; that it cannot be read is what is tested.
        unsafe { moves::copy_out(address.unwrap().cast(), &mut byte, 1) };
        return;
    }
    let status = std::process::Command::new(std::env::current_exe().unwrap())
        .args(["--exact", NAME])
        .env("LUO_TEST_DIES", "1")
        .stdout(std::process::Stdio::null())
        .stderr(std::process::Stdio::null())
        .status()
        .unwrap();
    assert_eq!(status.signal(), Some(libc::SIGBUS), "{status}");
}
