//! Kernel command lines: what the boot loader has put into them, and what a handover needs of them.
//!
//! Invariants: what is not taken out stays as it was, in its order; quotes are the kernel's, so a
//! word may hold spaces between two of them.

/// What a boot loader adds for itself: it says nothing to a kernel that no boot loader starts.
const BOOT_LOADERS: [&str; 2] = ["BOOT_IMAGE", "initrd"];

/// The words of a command line.
pub(crate) fn words(line: &str) -> Vec<&str> {
    let mut words = Vec::new();
    let (mut begin, mut quoted) = (None, false);
    for (at, character) in line.char_indices() {
        match character {
            '"' => {
                quoted = !quoted;
                begin = begin.or(Some(at));
            }
            _ if character.is_ascii_whitespace() && !quoted => {
                words.extend(begin.take().and_then(|begin| line.get(begin..at)));
            }
            _ => begin = begin.or(Some(at)),
        }
    }
    words.extend(begin.and_then(|begin| line.get(begin..)));
    words
}

/// The name of a parameter and its value.
fn parts(word: &str) -> (&str, Option<&str>) {
    match word.split_once('=') {
        Some((name, value)) => (name, Some(value)),
        None => (word, None),
    }
}

/// A command line without what only fits the boot loader that made it.
pub(crate) fn without_boot_loader(line: &str) -> String {
    let mut kept = Vec::new();
    let mut for_init = false;
    for word in words(line) {
        for_init |= word == "--";
        if for_init || !BOOT_LOADERS.contains(&parts(word).0) {
            kept.push(word);
        }
    }
    kept.join(" ")
}

/// The kernel's own part: what is behind `--` is init's.
fn parameters(line: &str) -> impl Iterator<Item = (&str, Option<&str>)> {
    words(line).into_iter().take_while(|word| *word != "--").map(parts)
}

/// Whether a switch is on or off; `None` where nothing, or nothing that the kernel takes, says so.
/// The last one counts.
pub(crate) fn switch(line: &str, name: &str) -> Option<bool> {
    let mut state = None;
    for (_, value) in parameters(line).filter(|(found, _)| *found == name) {
        // As kstrtobool reads it: by the first letter, of "on" and "off" by the second.
        let mut letters = value.unwrap_or_default().bytes().map(|byte| byte.to_ascii_lowercase());
        state = match (letters.next(), letters.next()) {
            (Some(b'y' | b't' | b'1'), _) | (Some(b'o'), Some(b'n')) => Some(true),
            (Some(b'n' | b'f' | b'0'), _) | (Some(b'o'), Some(b'f')) => Some(false),
            _ => state,
        };
    }
    state
}

/// What is reserved as persistent memory by `memmap=SIZE!START`, sorted. One word may hold several.
pub(crate) fn persistent_memory(line: &str) -> Vec<&str> {
    let mut regions: Vec<&str> = parameters(line)
        .filter(|(name, _)| *name == "memmap")
        .flat_map(|(_, value)| value.unwrap_or_default().split(','))
        .filter(|region| region.contains('!'))
        .collect();
    regions.sort_unstable();
    regions
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_only_fits_the_boot_loader_goes_and_the_rest_stays_in_its_order() {
        let line = "BOOT_IMAGE=/vmlinuz root=/dev/vda1  initrd=\\initrd.img ro memmap=1G!4G\n";
        assert_eq!(without_boot_loader(line), "root=/dev/vda1 ro memmap=1G!4G");
        // A name that only begins alike is another one, and what is init's is not looked at.
        let line = "initrdmem=1,2 x=initrd=3 -- initrd=4";
        assert_eq!(without_boot_loader(line), line);
    }

    #[test]
    fn spaces_between_quotes_divide_nothing() {
        let line = r#"dyndbg="file a.c +p" "two words" end"#;
        assert_eq!(words(line), [r#"dyndbg="file a.c +p""#, r#""two words""#, "end"]);
        assert_eq!(words(r#"open="to the end"#), [r#"open="to the end"#]);
        assert_eq!(words("  "), [""; 0]);
    }

    #[test]
    fn switches_are_read_as_the_kernel_reads_them() {
        for (line, state) in [
            ("kho=on", Some(true)),
            ("kho=1 quiet", Some(true)),
            ("kho=Y", Some(true)),
            ("kho=off", Some(false)),
            ("kho=on kho=0", Some(false)),
            ("kho=on kho=maybe", Some(true)),
            ("kho", None),
            ("khost=on", None),
            ("-- kho=on", None),
        ] {
            assert_eq!(switch(line, "kho"), state, "{line}");
        }
    }

    #[test]
    fn persistent_memory_is_found_in_any_order() {
        let regions = persistent_memory("memmap=256M!1G,1M!8G memmap=64K$2G memmap=128M!3G");
        assert_eq!(regions, ["128M!3G", "1M!8G", "256M!1G"]);
    }
}
