//! Links of a Markdown page to files of the checkout.

/// The links to files for which `exists` does not hold, with their lines, from 1: it is given the file
/// and what is behind the `#`, if anything is. Code, in blocks and in lines, holds no links.
pub(super) fn broken<'a>(
    page: &'a str,
    exists: &dyn Fn(&str, Option<&str>) -> bool,
) -> Vec<(usize, &'a str)> {
    let mut broken = Vec::new();
    let mut in_block = false;
    for (at, line) in page.lines().enumerate() {
        if line.trim_start().starts_with("```") {
            in_block = !in_block;
        }
        if in_block {
            continue;
        }
        // Every other piece between backticks is code.
        for text in line.split('`').step_by(2) {
            for rest in text.split("](").skip(1) {
                let target = rest.split([')', ' ']).next().unwrap_or(rest);
                let (file, place) = match target.split_once('#') {
                    Some((file, place)) => (file, Some(place)),
                    None => (target, None),
                };
                let elsewhere = target.contains("://") || target.starts_with("mailto:");
                if !elsewhere && !file.is_empty() && !exists(file, place) {
                    broken.push((at + 1, target));
                }
            }
        }
    }
    broken
}

/// Whether a link's file, whose text is `text`, has what is behind the `#`: of a source file, a
/// function of that name. Headings of pages are not looked for.
pub(super) fn has(file: &str, text: &str, place: &str) -> bool {
    !file.ends_with(".rs") || text.contains(&format!("fn {place}("))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links_to_files_that_are_not_there_are_found() {
        let page = "[a](here.md) [b](gone.md#x)\n\n[c](https://x.y/z) [d](#part) `[e](code.md)`\n\
                    ```text\n[f](block.md)\n```\n[g](gone/too.md)\n";
        let broken = broken(page, &|file, _| file == "here.md");
        assert_eq!(broken, [(1, "gone.md#x"), (7, "gone/too.md")]);
    }

    #[test]
    fn a_named_test_that_is_not_there_is_found() {
        let page = "[a](t.rs#there) [b](t.rs#the) [c](page.md#heading) [d](t.rs)\n";
        let text = "#[test]\nfn there() {}\n";
        let broken = broken(page, &|file, place| place.is_none_or(|place| has(file, text, place)));
        assert_eq!(broken, [(1, "t.rs#the")]);
    }
}
