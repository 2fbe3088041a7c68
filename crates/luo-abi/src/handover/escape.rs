//! Names and tokens as a device tree can hold them.
//!
//! A device tree allows `0-9 a-z A-Z , . _ + -` in names. Every other byte of a session's or
//! subsystem's name, and `+` itself, is written as `+` and two lower-case hexadecimal digits. So
//! `web cache@home` is `web+20cache+40home`. The first byte of a name that means something of its
//! own to readers of device trees (`compatible`, `phandle`, …) is written that way as well.
//!
//! Invariants: every name has exactly one written form, and any other form is refused; so two
//! names in one tree are different if their written forms are.

use alloc::{borrow::Cow, string::String};

use crate::check_name;

/// Property names that readers of device trees give a meaning: dtc refuses a tree in which they
/// hold something else.
const RESERVED: [&str; 4] = ["compatible", "phandle", "linux,phandle", "name"];

const DIGITS: [u8; 16] = *b"0123456789abcdef";

const fn is_plain(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b',' | b'.' | b'_' | b'-')
}

/// How `name` is written in a tree.
pub(super) fn escape(name: &str) -> Cow<'_, str> {
    let reserved = RESERVED.contains(&name);
    if !reserved && name.bytes().all(is_plain) {
        return Cow::Borrowed(name);
    }
    let mut written = String::with_capacity(3 * name.len());
    for (i, byte) in name.bytes().enumerate() {
        if is_plain(byte) && !(reserved && i == 0) {
            written.push(char::from(byte));
        } else {
            let digit = |nibble: u8| char::from(DIGITS[usize::from(nibble & 15)]);
            written.extend(['+', digit(byte >> 4), digit(byte)]);
        }
    }
    Cow::Owned(written)
}

/// The name that is written so; `None` if it is not allowed, or written otherwise.
pub(super) fn unescape(written: &str) -> Option<Cow<'_, str>> {
    if written.bytes().all(is_plain) {
        let plain = check_name(written.as_bytes()).is_ok() && !RESERVED.contains(&written);
        return plain.then_some(Cow::Borrowed(written));
    }
    let mut name = String::with_capacity(written.len());
    let mut bytes = written.bytes();
    while let Some(byte) = bytes.next() {
        let byte = if byte == b'+' {
            let high = char::from(bytes.next()?).to_digit(16)?;
            let low = char::from(bytes.next()?).to_digit(16)?;
            (high << 4 | low) as u8
        } else {
            byte
        };
        if !byte.is_ascii() {
            return None;
        }
        name.push(char::from(byte));
    }
    check_name(name.as_bytes()).ok()?;
    (escape(&name) == written).then_some(Cow::Owned(name))
}

/// A token's name in a tree: `0x1a`.
pub(super) struct TokenName {
    bytes: [u8; 18],
    len: u8,
}

impl TokenName {
    #[inline]
    pub(super) fn new(token: u64) -> Self {
        let digits = (16 - token.leading_zeros() / 4).max(1) as usize;
        let mut bytes = [0; 18];
        bytes[0] = b'0';
        bytes[1] = b'x';
        let mut rest = token;
        for byte in bytes[2..].iter_mut().take(digits).rev() {
            *byte = DIGITS[(rest & 15) as usize];
            rest >>= 4;
        }
        Self { bytes, len: digits as u8 + 2 }
    }

    #[inline]
    pub(super) fn as_str(&self) -> &str {
        let bytes = self.bytes.get(..usize::from(self.len)).unwrap_or_default();
        core::str::from_utf8(bytes).unwrap_or_default()
    }
}

/// The token that is written so; `None` if it is none, or written otherwise.
#[inline]
pub(super) fn parse_token(name: &[u8]) -> Option<u64> {
    let digits = name.strip_prefix(b"0x")?;
    match digits {
        [] => return None,
        [b'0', _, ..] => return None,
        _ if digits.len() > 16 => return None,
        _ => {}
    }
    digits.iter().try_fold(0, |token, &byte| {
        let digit = match byte {
            b'0'..=b'9' => byte - b'0',
            b'a'..=b'f' => byte - b'a' + 10,
            _ => return None,
        };
        Some(token << 4 | u64::from(digit))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::{format, string::ToString};

    #[test]
    fn names_that_a_tree_can_hold_stay_as_they_are() {
        for name in ["kv", "web-1", "A.b,c_D", "0x1a"] {
            assert_eq!(escape(name), name);
            assert_eq!(unescape(name).unwrap(), name);
        }
    }

    #[test]
    fn other_bytes_are_escaped() {
        for (name, written) in [
            ("web cache@home", "web+20cache+40home"),
            ("a+b", "a+2bb"),
            ("compatible", "+63ompatible"),
            ("phandle", "+70handle"),
            ("~", "+7e"),
        ] {
            assert_eq!(escape(name), written);
            assert_eq!(unescape(written).unwrap(), name);
        }
    }

    #[test]
    fn every_byte_comes_back() {
        for byte in 0..=255_u8 {
            let name = char::from(byte).to_string();
            if check_name(name.as_bytes()).is_ok() {
                assert_eq!(unescape(&escape(&name)).unwrap(), name);
            }
        }
    }

    #[test]
    fn a_second_way_to_write_a_name_is_refused() {
        for written in [
            "",
            "+61",
            "a+2Bb",
            "a+2",
            "a+",
            "a+2f",
            "a+00",
            "a+7f",
            "a+ff",
            "compatible",
            "a b",
            "+63ompatiblx",
            "a+zz",
            "é",
        ] {
            assert_eq!(unescape(written), None, "{written:?}");
        }
        assert_eq!(unescape(&"a".repeat(64)), None);
        assert_eq!(unescape(&format!("{}+20", "a".repeat(63))), None);
        assert_eq!(unescape(&format!("{}+20", "a".repeat(62))).unwrap().len(), 63);
    }

    #[test]
    fn tokens_are_written_in_one_way() {
        for (token, name) in [
            (0, "0x0"),
            (9, "0x9"),
            (0x1a, "0x1a"),
            (0x10, "0x10"),
            (0xfff, "0xfff"),
            (0x1000, "0x1000"),
            (u64::MAX, "0xffffffffffffffff"),
        ] {
            assert_eq!(TokenName::new(token).as_str(), name);
            assert_eq!(parse_token(name.as_bytes()), Some(token));
        }
        for name in
            ["", "0x", "0x01", "0x00", "0X1", "0x1A", "1a", "0xg", "0x1ffffffffffffffff", "0x 1"]
        {
            assert_eq!(parse_token(name.as_bytes()), None, "{name:?}");
        }
    }
}
