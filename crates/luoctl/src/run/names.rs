//! How the names of stored descriptors are kept in the session: the token of a file says which name
//! it has, and each name is a record of its own.
//!
//! ```text
//! bit 63  62 ........ 32  31 ........ 1  0
//!     0   name, from 1    serial number  1: not looked after (FDPOLL=0)      a file
//!     0   name, from 1    0              0                                   the name's record
//! ```
//!
//! Serial numbers are those of the session, in the order in which files were stored. A record is the
//! line [`MARK`] and the name.
//!
//! Invariants: a file is given to luod after its name, or in one batch with it and behind it, and
//! taken out before it. So a crash leaves a name without files at the worst, and never a file
//! without its name. A record never changes.

use std::collections::BTreeMap;

/// The first line of a name's record, with its version.
const MARK: &str = "luoctl-run-name-v1\n";

/// The largest name and the largest serial number.
const MOST: u32 = (1 << 31) - 1;

/// What the name of a descriptor may be at most, in bytes.
const NAME_MAX: usize = 255;

/// What systemd calls descriptors that nobody gave a name.
pub(crate) const STORED: &str = "stored";

/// Whether a descriptor may have this name in `LISTEN_FDNAMES`: systemd's rule.
pub(crate) fn is_name(name: &str) -> bool {
    let fits = |byte: u8| (b' '..=b'~').contains(&byte) && byte != b':';
    !name.is_empty() && name.len() <= NAME_MAX && name.bytes().all(fits)
}

/// Bytes of the record for a name.
pub(crate) fn record(name: &str) -> Vec<u8> {
    format!("{MARK}{name}").into_bytes()
}

/// The name in a record.
pub(crate) fn of_record(bytes: &[u8]) -> Option<String> {
    let name = bytes.strip_prefix(MARK.as_bytes())?;
    std::str::from_utf8(name).ok().filter(|name| is_name(name)).map(str::to_owned)
}

/// The token of a stored file, taken apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Token {
    name: u32,
    serial: u32,
    /// Whether it is dropped when it is hung up.
    pub(crate) watched: bool,
}

impl Token {
    pub(crate) fn number(self) -> u64 {
        record_token(self.name) | u64::from(self.serial) << 1 | u64::from(!self.watched)
    }
}

/// The token of a name's record.
fn record_token(name: u32) -> u64 {
    u64::from(name) << 32
}

/// What a token stands for.
enum Meaning {
    Name(u32),
    File(Token),
}

fn meaning(token: u64) -> Option<Meaning> {
    let name = u32::try_from(token >> 32).ok().filter(|name| (1..=MOST).contains(name))?;
    let low = token as u32;
    match low >> 1 {
        0 if low == 0 => Some(Meaning::Name(name)),
        0 => None,
        serial => Some(Meaning::File(Token { name, serial, watched: low & 1 == 0 })),
    }
}

/// A session holds something that `luoctl run` has not put there.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Foreign(pub(crate) u64);

/// The tokens of a session's names and of its files, as they are found.
#[derive(Debug, Default)]
pub(crate) struct Found {
    pub(crate) names: Vec<u64>,
    pub(crate) files: Vec<u64>,
}

impl Found {
    pub(crate) fn new(tokens: &[u64]) -> Result<Self, Foreign> {
        let mut found = Self::default();
        for &token in tokens {
            match meaning(token).ok_or(Foreign(token))? {
                Meaning::Name(_) => found.names.push(token),
                Meaning::File(_) => found.files.push(token),
            }
        }
        Ok(found)
    }
}

/// Which names and files the session has.
#[derive(Debug, Default)]
pub(crate) struct Catalogue {
    names: BTreeMap<u32, String>,
    files: BTreeMap<u32, Token>,
    last_name: u32,
    last_serial: u32,
}

impl Catalogue {
    /// Takes up a name whose record is in the session.
    pub(crate) fn found_name(&mut self, token: u64, name: String) -> Result<(), Foreign> {
        match meaning(token) {
            Some(Meaning::Name(number)) => {
                self.last_name = self.last_name.max(number);
                self.names.insert(number, name);
                Ok(())
            }
            _ => Err(Foreign(token)),
        }
    }

    /// Takes up a file that is in the session; its name must be known.
    pub(crate) fn found_file(&mut self, token: u64) -> Result<Token, Foreign> {
        match meaning(token) {
            Some(Meaning::File(file))
                if self.names.contains_key(&file.name)
                    && !self.files.contains_key(&file.serial) =>
            {
                self.last_serial = self.last_serial.max(file.serial);
                self.files.insert(file.serial, file);
                Ok(file)
            }
            _ => Err(Foreign(token)),
        }
    }

    pub(crate) fn count(&self) -> usize {
        self.files.len()
    }

    /// Files in the order in which they were stored.
    pub(crate) fn files(&self) -> impl Iterator<Item = (Token, &str)> {
        self.files.values().map(|file| (*file, self.name(*file)))
    }

    pub(crate) fn name(&self, file: Token) -> &str {
        self.names.get(&file.name).map_or(STORED, String::as_str)
    }

    /// Every name with the token of its record.
    pub(crate) fn names(&self) -> impl Iterator<Item = (u64, &str)> {
        self.names.iter().map(|(number, name)| (record_token(*number), name.as_str()))
    }

    pub(crate) fn by_name(&self, name: &str) -> Vec<Token> {
        self.files().filter(|(_, its)| *its == name).map(|(file, _)| file).collect()
    }

    /// A token for one more file of that name; if the name is new too, the token of its record, which
    /// has to be preserved first.
    pub(crate) fn add(&mut self, name: &str, watched: bool) -> (Option<u64>, Token) {
        let known = self.names.iter().find(|(_, its)| *its == name).map(|(number, _)| *number);
        let number = known.unwrap_or_else(|| {
            let number = free(self.last_name, |number| self.names.contains_key(&number));
            self.last_name = number;
            self.names.insert(number, name.to_owned());
            number
        });
        let serial = free(self.last_serial, |serial| self.files.contains_key(&serial));
        self.last_serial = serial;
        let file = Token { name: number, serial, watched };
        self.files.insert(serial, file);
        (known.is_none().then(|| record_token(number)), file)
    }

    /// Forgets a file; gives the token of its name's record where that has no file any more, which is
    /// to be taken out after it.
    pub(crate) fn remove(&mut self, file: Token) -> Option<u64> {
        self.files.remove(&file.serial)?;
        if self.files.values().any(|other| other.name == file.name) {
            return None;
        }
        self.names.remove(&file.name).map(|_| record_token(file.name))
    }

    /// Forgets the names that no file has; gives the tokens of their records.
    pub(crate) fn unused(&mut self) -> Vec<u64> {
        let is_unused = |number: &u32| !self.files.values().any(|file| file.name == *number);
        let unused: Vec<u32> = self.names.keys().copied().filter(is_unused).collect();
        unused
            .into_iter()
            .map(|number| {
                self.names.remove(&number);
                record_token(number)
            })
            .collect()
    }
}

/// The next number after `last` that is not taken, from 1 on again after the largest. There are more
/// numbers than a session can have files.
fn free(last: u32, taken: impl Fn(u32) -> bool) -> u32 {
    let mut number = last;
    loop {
        number = if number >= MOST { 1 } else { number + 1 };
        if !taken(number) {
            return number;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_stored_is_found_again_under_its_name_and_in_its_order() {
        let mut before = Catalogue::default();
        let mut tokens = Vec::new();
        for (name, watched) in [("client", true), ("listener", false), ("client", true)] {
            let (record, file) = before.add(name, watched);
            tokens.extend(record);
            tokens.push(file.number());
        }
        assert_eq!(tokens.len(), 5);
        assert!(tokens.iter().all(|token| i64::try_from(*token).is_ok()));
        tokens.reverse();
        let found = Found::new(&tokens).unwrap();
        let mut after = Catalogue::default();
        for token in found.names {
            let name = before.names().find(|(its, _)| *its == token).unwrap().1;
            after.found_name(token, of_record(&record(name)).unwrap()).unwrap();
        }
        for token in found.files {
            after.found_file(token).unwrap();
        }
        let files: Vec<_> = after.files().map(|(file, name)| (name, file.watched)).collect();
        assert_eq!(files, [("client", true), ("listener", false), ("client", true)]);
        let (record, next) = after.add("client", true);
        assert!(record.is_none() && !tokens.contains(&next.number()));
    }

    #[test]
    fn a_name_goes_with_its_last_file() {
        let mut catalogue = Catalogue::default();
        let (record, one) = catalogue.add("client", true);
        let (_, two) = catalogue.add("client", true);
        assert_eq!(catalogue.remove(one), None);
        assert_eq!(catalogue.remove(two), record);
        assert_eq!(catalogue.remove(two), None);
        assert_eq!((catalogue.count(), catalogue.names().count()), (0, 0));
        catalogue.found_name(7 << 32, "left by a crash".into()).unwrap();
        assert_eq!(catalogue.unused(), [7 << 32]);
    }

    #[test]
    fn tokens_of_somebody_else_are_refused() {
        for token in [0, 1, 0x2a, 1 << 63, 1 << 32 | 1, u64::MAX] {
            assert_eq!(Found::new(&[token]).unwrap_err(), Foreign(token));
        }
        let mut catalogue = Catalogue::default();
        assert!(catalogue.found_file(5 << 32 | 2).is_err(), "it has no name");
        catalogue.found_name(5 << 32, "a".into()).unwrap();
        catalogue.found_file(5 << 32 | 2).unwrap();
        assert!(catalogue.found_file(5 << 32 | 3).is_err(), "its number is taken");
    }

    #[test]
    fn numbers_begin_anew_after_the_largest() {
        assert_eq!(free(MOST, |number| number < 3), 3);
        assert_eq!(free(0, |_| false), 1);
    }

    #[test]
    fn names_are_what_systemd_allows() {
        assert!(is_name("stored") && is_name("a b~") && is_name(&"x".repeat(255)));
        for name in ["", "a:b", "a\nb", "ä", "\u{7f}", &"x".repeat(256)] {
            assert!(!is_name(name), "{name:?}");
        }
        assert_eq!(of_record(&record("web")), Some("web".into()));
        for bytes in [&b""[..], b"web", b"luoctl-run-name-v2\nweb", b"luoctl-run-name-v1\na:b"] {
            assert_eq!(of_record(bytes), None);
        }
    }
}
