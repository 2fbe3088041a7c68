//! Reads what nextest writes as JUnit XML: how many tests ran, which failed, which said that they
//! skipped themselves.
//!
//! A test that cannot run here prints a line that begins with `SKIPPED:` and returns. Nextest
//! hides the output of tests that pass, but writes it into this file.

/// What a run of tests came to.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Results {
    pub(super) passed: usize,
    pub(super) failed: Vec<String>,
    pub(super) skipped: Vec<String>,
}

/// Reads the whole file. It is nextest's own and well-formed, so elements are found by their tags.
pub(super) fn read(xml: &str) -> Results {
    let mut results = Results::default();
    for case in xml.split("<testcase ").skip(1) {
        let case = case.split("</testcase>").next().unwrap_or(case);
        let (head, body) = case.split_once('>').unwrap_or((case, ""));
        let name = format!("{} {}", attribute(head, "classname"), attribute(head, "name"));
        if body.contains("<failure") || body.contains("<error") {
            results.failed.push(name);
        } else if let Some(reason) = skipped_line(&unescape(body)) {
            results.skipped.push(format!("{name}: {reason}"));
        } else {
            results.passed += 1;
        }
    }
    results
}

/// The reason in the first line that begins with `SKIPPED:`.
pub(super) fn skipped_line(output: &str) -> Option<&str> {
    // The first line of an output follows the element's tag.
    output
        .lines()
        .map(|line| line.rsplit_once("system-out>").map_or(line, |(_, rest)| rest))
        .map(|line| line.rsplit_once("system-err>").map_or(line, |(_, rest)| rest))
        .find_map(|line| line.trim_start().strip_prefix("SKIPPED:"))
        .map(str::trim)
}

fn attribute<'a>(head: &'a str, name: &str) -> &'a str {
    head.split(' ')
        .find_map(|pair| pair.strip_prefix(name)?.strip_prefix("=\""))
        .and_then(|value| value.split('"').next())
        .unwrap_or("?")
}

fn unescape(text: &str) -> String {
    text.replace("&lt;", "<")
        .replace("&gt;", ">")
        .replace("&quot;", "\"")
        .replace("&apos;", "'")
        .replace("&amp;", "&")
}

#[cfg(test)]
mod tests {
    use super::*;

    const XML: &str = r#"<?xml version="1.0" encoding="UTF-8"?>
<testsuites name="nextest-run" tests="4" failures="1" errors="0">
    <testsuite name="luo-abi" tests="4" disabled="0" errors="0" failures="1">
        <testcase name="tree::tests::good" classname="luo-abi" time="0.004">
            <system-out>running 1 test</system-out>
        </testcase>
        <testcase name="quiet" classname="luo-abi" time="0.004"/>
        <testcase name="dtc_reads" classname="luo-abi::dtc" time="0.004">
            <system-out>
running 1 test
</system-out>
            <system-err>SKIPPED: dtc isn&apos;t installed &amp; cannot be
</system-err>
        </testcase>
        <testcase name="bad" classname="luo-abi" time="0.004">
            <failure message="it &gt; failed" type="test failure">SKIPPED: no</failure>
        </testcase>
    </testsuite>
</testsuites>
"#;

    #[test]
    fn passed_failed_and_skipped_tests_are_told_apart() {
        let results = read(XML);
        assert_eq!(results.passed, 2);
        assert_eq!(results.failed, ["luo-abi bad"]);
        assert_eq!(results.skipped, ["luo-abi::dtc dtc_reads: dtc isn't installed & cannot be"]);
    }

    #[test]
    fn a_skip_on_the_first_line_of_an_output_is_found() {
        assert_eq!(skipped_line("  <system-err>SKIPPED: not root"), Some("not root"));
        assert_eq!(skipped_line("this is not SKIPPED: it ran"), None);
    }
}
