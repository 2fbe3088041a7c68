//! Numbers and texts as people read them.
//!
//! Invariants: what comes from a peer has no control characters when it leaves here, so that it
//! cannot reach the terminal's; a number is never shown larger than its unit's limit (`1024 KiB`
//! is `1 MiB`).

use std::borrow::Cow;

/// Bytes with IEC units, to three digits.
pub(crate) fn bytes(bytes: u64) -> String {
    const UNITS: [&str; 6] = ["KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    if bytes < 1024 {
        return format!("{bytes} B");
    }
    let mut value = bytes as f64 / 1024.0;
    let mut units = UNITS.iter().copied().peekable();
    let mut unit = units.next().unwrap_or_default();
    // 1023.5 would be rounded to 1024.
    while value >= 1023.5 && units.peek().is_some() {
        value /= 1024.0;
        unit = units.next().unwrap_or_default();
    }
    format!("{} {unit}", digits(value))
}

/// A length of time that is given in microseconds.
pub(crate) fn micros(micros: u64) -> String {
    let value = micros as f64;
    if micros < 1000 {
        format!("{micros} µs")
    } else if value < 999_500.0 {
        format!("{} ms", digits(value / 1e3))
    } else if value < 99_950_000.0 {
        format!("{} s", digits(value / 1e6))
    } else {
        seconds((value / 1e6).round() as u64)
    }
}

/// A length of time in whole seconds.
pub(crate) fn seconds(seconds: u64) -> String {
    match seconds {
        0..100 => format!("{seconds} s"),
        100..6000 => format!("{} min {:02} s", seconds / 60, seconds % 60),
        6000..172_800 => format!("{} h {:02} min", seconds / 3600, seconds / 60 % 60),
        _ => format!("{} d {:02} h", seconds / 86_400, seconds / 3600 % 24),
    }
}

/// Three digits, without zeros at the end of a fraction.
fn digits(value: f64) -> String {
    let text = match value {
        ..9.995 => format!("{value:.2}"),
        ..99.95 => format!("{value:.1}"),
        _ => return format!("{value:.0}"),
    };
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

/// `1 file`, `2 files`.
pub(crate) fn count(number: u64, noun: &str) -> String {
    format!("{number} {noun}{}", if number == 1 { "" } else { "s" })
}

/// A token as handovers, logs and the client library write it.
pub(crate) fn token(token: u64) -> String {
    format!("{token:#x}")
}

/// A text of a peer without control characters: what there were is written as an escape.
pub(crate) fn plain(text: &str) -> Cow<'_, str> {
    if !text.contains(is_unfit) {
        return Cow::Borrowed(text);
    }
    let mut plain = String::with_capacity(text.len() + 16);
    for character in text.chars() {
        if is_unfit(character) {
            plain.extend(character.escape_default());
        } else {
            plain.push(character);
        }
    }
    Cow::Owned(plain)
}

/// Controls, and the marks that change the direction of the text around them.
fn is_unfit(character: char) -> bool {
    character.is_control()
        || matches!(character, '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

/// A moment in seconds since 1970, as date and time in UTC.
pub(crate) fn moment(seconds: u64) -> String {
    let (days, rest) = (seconds / 86_400, seconds % 86_400);
    // Years are counted from March on, so that the leap day is a year's last. An era is the 400
    // years after which the calendar repeats; 1970 lies 719,468 days after the first one's start.
    let days = days + 719_468;
    let (era, day) = (days / 146_097, days % 146_097);
    let year = (day - day / 1460 + day / 36_524 - day / 146_096) / 365;
    let day = day - (365 * year + year / 4 - year / 100);
    let from_march = (5 * day + 2) / 153;
    let day = day - (153 * from_march + 2) / 5 + 1;
    let month = if from_march < 10 { from_march + 3 } else { from_march - 9 };
    let year = era * 400 + year + u64::from(month <= 2);
    let (hour, minute, second) = (rest / 3600, rest / 60 % 60, rest % 60);
    format!("{year:04}-{month:02}-{day:02} {hour:02}:{minute:02}:{second:02} UTC")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_have_three_digits_and_never_1024_of_a_unit() {
        for (number, text) in [
            (0, "0 B"),
            (1023, "1023 B"),
            (1024, "1 KiB"),
            (1536, "1.5 KiB"),
            (1_048_575, "1 MiB"),
            (256 << 20, "256 MiB"),
            (10_500 << 20, "10.3 GiB"),
            (u64::MAX, "16 EiB"),
        ] {
            assert_eq!(bytes(number), text);
        }
    }

    #[test]
    fn times_change_their_unit_where_people_would() {
        for (number, text) in [
            (0, "0 µs"),
            (999, "999 µs"),
            (1_000, "1 ms"),
            (12_345, "12.3 ms"),
            (999_499, "999 ms"),
            (999_500, "1 s"),
            (99_949_999, "99.9 s"),
            (99_950_000, "1 min 40 s"),
            (7_200_000_000, "2 h 00 min"),
            (200_000_000_000, "2 d 07 h"),
        ] {
            assert_eq!(micros(number), text);
        }
    }

    #[test]
    fn control_characters_do_not_reach_the_terminal() {
        assert_eq!(plain("memfd:\u{1b}[31m\nred\u{202e}"), "memfd:\\u{1b}[31m\\nred\\u{202e}");
        assert!(matches!(plain("/memfd:größe"), Cow::Borrowed(_)));
    }

    #[test]
    fn moments_follow_the_calendar() {
        for (number, text) in [
            (0, "1970-01-01 00:00:00 UTC"),
            (951_782_400, "2000-02-29 00:00:00 UTC"),
            (1_709_210_096, "2024-02-29 12:34:56 UTC"),
            (4_107_542_399, "2100-02-28 23:59:59 UTC"),
            (4_107_542_400, "2100-03-01 00:00:00 UTC"),
        ] {
            assert_eq!(moment(number), text);
        }
        // The largest number must not overflow either.
        assert!(moment(u64::MAX).ends_with("UTC"));
    }
}
