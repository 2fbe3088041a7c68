//! Moves bytes into and out of memory that others may write meanwhile.
//!
//! Invariants: no access here is a data race in the sense of the language, whoever accesses the same
//! memory: it is done by the processor's own instructions, of which the compiler assumes nothing, or
//! by atomic accesses.

#[cfg(not(target_arch = "x86_64"))]
pub(super) use self::words::{DURABLE, copy_in, copy_out};
#[cfg(target_arch = "x86_64")]
pub(super) use self::x86_64::{DURABLE, copy_in, copy_out};

#[cfg(target_arch = "x86_64")]
mod x86_64 {
    use std::arch::asm;

    /// What [`copy_in`] has written to persistent memory is there when it returns.
    pub(in super::super) const DURABLE: bool = true;

    const LINE: usize = 64;
    const WORD: usize = 8;

    /// Copies out of shared memory.
    ///
    /// # Safety
    /// `count` bytes can be read at `from` and written at `to`, which nobody else accesses.
    pub(in super::super) unsafe fn copy_out(from: *const u8, to: *mut u8, count: usize) {
        // SAFETY: as the caller has promised; the direction flag is clear as the ABI has it.
        unsafe {
            asm!(
                "rep movsb",
                inout("rcx") count => _, inout("rsi") from => _, inout("rdi") to => _,
                options(nostack, preserves_flags),
            );
        }
    }

    /// Copies into shared memory, past the caches but for what is in no whole word, which is
    /// written back from them.
    ///
    /// # Safety
    /// `count` bytes can be read at `from`, which nobody else writes, and written at `to`.
    pub(in super::super) unsafe fn copy_in(to: *mut u8, from: *const u8, count: usize) {
        let (head, words, lines, tail_words, tail) = parts(to.addr(), count);
        let mut to = Cursor { to, from };
        // SAFETY: the parts make up `count` bytes, and the cursor moves by each.
        unsafe { to.bytes(head) };
        // SAFETY: as above.
        unsafe { to.words(words) };
        // SAFETY: as above; behind head and words a line begins.
        unsafe { to.lines(lines) };
        // SAFETY: as above.
        unsafe { to.words(tail_words) };
        // SAFETY: as above.
        unsafe { to.bytes(tail) };
        // SAFETY: no precondition. Makes what went past the caches visible, and durable where the
        // memory is, before anything that is written after.
        unsafe { asm!("sfence", options(nostack, preserves_flags)) };
    }

    /// How many bytes up to a word, bytes in words up to a line, in lines, in words, and behind.
    fn parts(address: usize, count: usize) -> (usize, usize, usize, usize, usize) {
        let head = (address.wrapping_neg() % WORD).min(count);
        let rest = count - head;
        let words = ((address.wrapping_neg() % LINE).wrapping_sub(head) % LINE).min(rest);
        let words = words - words % WORD;
        let rest = rest - words;
        // Where the range ends before a line begins, there is none.
        let lines = if address.wrapping_add(head + words).is_multiple_of(LINE) {
            rest - rest % LINE
        } else {
            0
        };
        let rest = rest - lines;
        (head, words, lines, rest - rest % WORD, rest % WORD)
    }

    struct Cursor {
        to: *mut u8,
        from: *const u8,
    }

    impl Cursor {
        /// Fewer bytes than a word, which are written back.
        ///
        /// # Safety
        /// As [`copy_in`].
        unsafe fn bytes(&mut self, count: usize) {
            if count == 0 {
                return;
            }
            let line = self.to;
            // SAFETY: as the caller has promised. The bytes are in one word, and so in one line.
            unsafe {
                asm!(
                    "rep movsb",
                    "clflush [{line}]",
                    line = in(reg) line,
                    inout("rcx") count => _, inout("rsi") self.from, inout("rdi") self.to,
                    options(nostack, preserves_flags),
                );
            }
        }

        /// Whole words.
        ///
        /// # Safety
        /// As [`copy_in`]; `count` is a multiple of 8, and the place too.
        unsafe fn words(&mut self, count: usize) {
            if count == 0 {
                return;
            }
            // SAFETY: as the caller has promised; `count` is not zero.
            unsafe {
                asm!(
                    "2:",
                    "mov {word}, [rsi]",
                    "movnti [rdi], {word}",
                    "add rsi, 8",
                    "add rdi, 8",
                    "sub rcx, 8",
                    "jnz 2b",
                    word = out(reg) _,
                    inout("rcx") count => _, inout("rsi") self.from, inout("rdi") self.to,
                    options(nostack),
                );
            }
        }

        /// Whole lines.
        ///
        /// # Safety
        /// As [`copy_in`]; `count` and the place are multiples of 64.
        unsafe fn lines(&mut self, count: usize) {
            if count == 0 {
                return;
            }
            // SAFETY: as the caller has promised; `count` is not zero.
            unsafe {
                asm!(
                    "2:",
                    "movdqu {a}, [rsi]",
                    "movdqu {b}, [rsi + 16]",
                    "movdqu {c}, [rsi + 32]",
                    "movdqu {d}, [rsi + 48]",
                    "movntdq [rdi], {a}",
                    "movntdq [rdi + 16], {b}",
                    "movntdq [rdi + 32], {c}",
                    "movntdq [rdi + 48], {d}",
                    "add rsi, 64",
                    "add rdi, 64",
                    "sub rcx, 64",
                    "jnz 2b",
                    a = out(xmm_reg) _, b = out(xmm_reg) _, c = out(xmm_reg) _, d = out(xmm_reg) _,
                    inout("rcx") count => _, inout("rsi") self.from, inout("rdi") self.to,
                    options(nostack),
                );
            }
        }
    }

    #[cfg(test)]
    mod tests {
        use super::*;

        #[test]
        fn the_parts_make_up_the_range_and_are_aligned() {
            for address in 4096..4096 + 2 * LINE {
                for count in 0..4 * LINE {
                    let (head, words, lines, tail_words, tail) = parts(address, count);
                    assert_eq!(head + words + lines + tail_words + tail, count);
                    assert!(head < WORD && tail < WORD);
                    assert!([words, tail_words].iter().all(|part| part % WORD == 0));
                    assert!(words == 0 || (address + head).is_multiple_of(WORD));
                    assert!(lines == 0 || (address + head + words).is_multiple_of(LINE));
                    assert!(lines.is_multiple_of(LINE) && tail_words < LINE);
                    assert!(
                        tail_words == 0 || (address + head + words + lines).is_multiple_of(WORD)
                    );
                    // A piece in no whole word is in one word.
                    assert!(head == 0 || address / WORD == (address + head - 1) / WORD);
                }
            }
        }
    }
}

#[cfg(any(test, not(target_arch = "x86_64")))]
mod words {
    use std::sync::atomic::{AtomicU8, AtomicU64, Ordering, fence};

    #[cfg(not(target_arch = "x86_64"))]
    pub(in super::super) const DURABLE: bool = false;

    const WORD: usize = 8;

    /// Copies out of shared memory.
    ///
    /// # Safety
    /// `count` bytes can be read at `from`, and written at `to`, which nobody else accesses.
    pub(in super::super) unsafe fn copy_out(from: *const u8, to: *mut u8, count: usize) {
        let mut at = 0;
        while at < count {
            let from = from.wrapping_add(at);
            let to = to.wrapping_add(at);
            if from.addr().is_multiple_of(WORD) && count - at >= WORD {
                // SAFETY: it is aligned, and the caller has promised that it can be read; all other
                // accesses in this process are atomic ones too.
                let word = unsafe { AtomicU64::from_ptr(from.cast_mut().cast()) };
                // SAFETY: as the caller has promised.
                unsafe { to.cast::<u64>().write_unaligned(word.load(Ordering::Relaxed)) };
                at += WORD;
            } else {
                // SAFETY: as above.
                let byte = unsafe { AtomicU8::from_ptr(from.cast_mut()) };
                // SAFETY: as above.
                unsafe { to.write(byte.load(Ordering::Relaxed)) };
                at += 1;
            }
        }
    }

    /// Copies into shared memory.
    ///
    /// # Safety
    /// `count` bytes can be read at `from`, which nobody else writes, and written at `to`.
    pub(in super::super) unsafe fn copy_in(to: *mut u8, from: *const u8, count: usize) {
        let mut at = 0;
        while at < count {
            let from = from.wrapping_add(at);
            let to = to.wrapping_add(at);
            if to.addr().is_multiple_of(WORD) && count - at >= WORD {
                // SAFETY: as the caller has promised.
                let word = unsafe { from.cast::<u64>().read_unaligned() };
                // SAFETY: it is aligned, and the caller has promised that it can be written; all
                // other accesses in this process are atomic ones too.
                unsafe { AtomicU64::from_ptr(to.cast()) }.store(word, Ordering::Relaxed);
                at += WORD;
            } else {
                // SAFETY: as above.
                let byte = unsafe { from.read() };
                // SAFETY: as above.
                unsafe { AtomicU8::from_ptr(to) }.store(byte, Ordering::Relaxed);
                at += 1;
            }
        }
        fence(Ordering::Release);
    }

    #[cfg(test)]
    mod tests {
        use super::*;

        #[test]
        fn bytes_arrive_at_any_alignment_and_nothing_beside_them_changes() {
            let from: Vec<u8> = (1..=200).collect();
            for (offset, skip, count) in [(0, 0, 64), (3, 1, 70), (7, 5, 9), (1, 0, 0), (8, 3, 1)] {
                let mut to = vec![0; 120];
                let part = &from[skip..skip + count];
                // SAFETY: the lengths fit.
                unsafe { copy_in(to.as_mut_ptr().wrapping_add(offset), part.as_ptr(), count) };
                let mut back = vec![0; count];
                // SAFETY: the lengths fit.
                unsafe { copy_out(to.as_ptr().wrapping_add(offset), back.as_mut_ptr(), count) };
                assert_eq!(back, part);
                let beside = to[..offset].iter().chain(&to[offset + count..]);
                assert!(beside.into_iter().all(|byte| *byte == 0));
            }
        }
    }
}
