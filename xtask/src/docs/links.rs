//! Links of a Markdown page to files of the checkout.

/// The links to files for which `exists` does not hold, with their lines, from 1. Code, in blocks
/// and in lines, holds no links.
pub(super) fn broken<'a>(page: &'a str, exists: &dyn Fn(&str) -> bool) -> Vec<(usize, &'a str)> {
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
                let file = target.split('#').next().unwrap_or(target);
                let elsewhere = target.contains("://") || target.starts_with("mailto:");
                if !elsewhere && !file.is_empty() && !exists(file) {
                    broken.push((at + 1, target));
                }
            }
        }
    }
    broken
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links_to_files_that_are_not_there_are_found() {
        let page = "[a](here.md) [b](gone.md#x)\n\n[c](https://x.y/z) [d](#part) `[e](code.md)`\n\
                    ```text\n[f](block.md)\n```\n[g](gone/too.md)\n";
        let broken = broken(page, &|file| file == "here.md");
        assert_eq!(broken, [(1, "gone.md#x"), (7, "gone/too.md")]);
    }
}
