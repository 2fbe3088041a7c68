//! Finds the blocks of a Markdown page that are to be run.

use std::time::Duration;

/// A block that the page's author wants run, or says why not.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Block {
    /// The line of the opening fence, from 1.
    pub(super) line: usize,
    pub(super) luod: bool,
    pub(super) repo: bool,
    pub(super) no_run: Option<String>,
    /// Programs without which it cannot run.
    pub(super) needs: Vec<String>,
    pub(super) timeout: Duration,
    pub(super) commands: Vec<Command>,
}

/// One command as bash is to read it; several lines where it spans them.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Command {
    pub(super) line: usize,
    pub(super) text: String,
}

/// What is wrong with a page, and where.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Bad {
    pub(super) line: usize,
    pub(super) what: String,
}

/// The blocks of a page that are `console` or `sh`, in order.
pub(super) fn blocks(page: &str) -> Result<Vec<Block>, Bad> {
    let mut blocks = Vec::new();
    let mut lines = page.lines().enumerate().map(|(at, line)| (at + 1, line));
    while let Some((opened, line)) = lines.next() {
        let Some(fence) = Fence::open(line) else { continue };
        let mut body = Vec::new();
        loop {
            match lines.next() {
                None => return Err(Bad { line: opened, what: "this fence is not closed".into() }),
                Some((_, line)) if fence.is_closed_by(line) => break,
                Some((at, line)) => body.push((at, fence.unindent(line))),
            }
        }
        if let Some(block) = block(opened, fence.info, &body)? {
            blocks.push(block);
        }
    }
    Ok(blocks)
}

/// An opening fence: how far it is indented, its marks, and the info string.
#[derive(Debug)]
struct Fence<'a> {
    indent: usize,
    marks: &'a str,
    info: &'a str,
}

impl<'a> Fence<'a> {
    fn open(line: &'a str) -> Option<Self> {
        let rest = line.trim_start_matches(' ');
        let indent = line.len() - rest.len();
        let mark = rest.chars().next().filter(|mark| matches!(mark, '`' | '~'))?;
        let info = rest.trim_start_matches(mark);
        let marks = &rest[..rest.len() - info.len()];
        // Three marks; and a backtick in the info string makes it inline code.
        let is_fence = marks.len() >= 3 && !(mark == '`' && info.contains('`'));
        is_fence.then(|| Self { indent, marks, info: info.trim() })
    }

    fn is_closed_by(&self, line: &str) -> bool {
        let line = line.trim();
        line.len() >= self.marks.len() && line.chars().all(|mark| self.marks.starts_with(mark))
    }

    fn unindent<'b>(&self, line: &'b str) -> &'b str {
        let spaces = line.len() - line.trim_start_matches(' ').len();
        &line[spaces.min(self.indent)..]
    }
}

fn block(line: usize, info: &str, body: &[(usize, &str)]) -> Result<Option<Block>, Bad> {
    let bad = |what: String| Bad { line, what };
    let mut words = words(info).map_err(|what| bad(what.into()))?.into_iter();
    let language = words.next().unwrap_or_default();
    let commands = match language.as_str() {
        "console" => console(body),
        "sh" => script(body),
        // Somebody who writes this expects it to be run.
        "bash" | "shell" | "shell-session" | "zsh" => {
            return Err(bad(format!("`{language}` is not run: write `console` or `sh`")));
        }
        _ => return Ok(None),
    };
    if commands.is_empty() {
        return Err(bad(format!("this `{language}` block holds no command")));
    }
    let mut block = Block {
        line,
        luod: false,
        repo: false,
        no_run: None,
        needs: Vec::new(),
        timeout: Duration::from_secs(60),
        commands,
    };
    for word in words {
        match word.split_once('=') {
            None if word == "luod" => block.luod = true,
            None if word == "repo" => block.repo = true,
            Some(("no-run", reason)) if !reason.trim().is_empty() => {
                block.no_run = Some(reason.into());
            }
            Some(("needs", program)) if !program.is_empty() => block.needs.push(program.into()),
            Some(("timeout", seconds)) => {
                let seconds = seconds.parse().ok().filter(|seconds| (1..=600).contains(seconds));
                let seconds = seconds
                    .ok_or_else(|| bad("timeout is a number of seconds from 1 to 600".into()))?;
                block.timeout = Duration::from_secs(seconds);
            }
            _ => return Err(bad(format!("`{word}` is no attribute of a block that is run"))),
        }
    }
    Ok(Some(block))
}

/// Splits an info string at commas and spaces outside quotes, and takes the quotes off.
fn words(info: &str) -> Result<Vec<String>, &'static str> {
    let mut words = vec![String::new()];
    let mut quoted = false;
    for c in info.chars() {
        match (c, words.last_mut()) {
            ('"', _) => quoted = !quoted,
            (',' | ' ', _) if !quoted => words.push(String::new()),
            (c, Some(word)) => word.push(c),
            (_, None) => {}
        }
    }
    if quoted {
        return Err("a quote in the info string is not closed");
    }
    words.retain(|word| !word.is_empty());
    Ok(words)
}

/// Lines that begin with `$ `; those that begin with `> ` go on with the command before, as does
/// the line after one that ends in a backslash.
fn console(body: &[(usize, &str)]) -> Vec<Command> {
    let mut commands: Vec<Command> = Vec::new();
    let mut goes_on = false;
    for &(line, text) in body {
        if let Some(text) = text.strip_prefix("$ ").filter(|_| !goes_on) {
            commands.push(Command { line, text: text.into() });
            goes_on = text.ends_with('\\');
        } else if let Some(command) = commands.last_mut() {
            let more = text.strip_prefix("> ");
            if goes_on || more.is_some() {
                let text = more.unwrap_or(text);
                command.text.push('\n');
                command.text.push_str(text);
                goes_on = text.ends_with('\\');
            }
        }
    }
    commands
}

fn script(body: &[(usize, &str)]) -> Vec<Command> {
    let text = body.iter().map(|(_, text)| *text).collect::<Vec<_>>().join("\n");
    match body.first() {
        Some(&(line, _)) if !text.trim().is_empty() => vec![Command { line, text }],
        _ => Vec::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn texts(page: &str) -> Vec<Vec<String>> {
        let blocks = blocks(page).expect("the page is understood");
        blocks
            .into_iter()
            .map(|block| block.commands.into_iter().map(|command| command.text).collect())
            .collect()
    }

    #[test]
    fn only_prompted_lines_of_a_console_block_are_commands() {
        let page =
            "# t\n\n```console\n$ luoctl status\nnormal\n$ a && b\n```\n\n```text\n$ no\n```\n";
        assert_eq!(texts(page), [["luoctl status", "a && b"]]);
    }

    #[test]
    fn commands_go_on_after_a_backslash_and_at_a_second_prompt() {
        let page = "```console\n$ a \\\n    b\nout\n$ cat <<E\n> x\n> E\n```\n";
        assert_eq!(texts(page), [["a \\\n    b", "cat <<E\nx\nE"]]);
    }

    #[test]
    fn a_script_is_one_command() {
        assert_eq!(texts("~~~sh\na\nb\n~~~\n"), [["a\nb"]]);
    }

    #[test]
    fn attributes_are_read() {
        let page =
            "1\n```console,luod,repo,timeout=5,no-run=\"needs a, b\",needs=a,needs=b\n$ a\n```\n";
        let expected = Block {
            line: 2,
            luod: true,
            repo: true,
            no_run: Some("needs a, b".into()),
            needs: vec!["a".into(), "b".into()],
            timeout: Duration::from_secs(5),
            commands: vec![Command { line: 3, text: "a".into() }],
        };
        assert_eq!(blocks(page), Ok(vec![expected]));
    }

    #[test]
    fn a_block_in_a_list_is_unindented() {
        assert_eq!(texts("1. x\n\n   ```console\n   $ a\n   ```\n"), [["a"]]);
    }

    #[test]
    fn a_fence_within_a_longer_fence_is_not_run() {
        assert_eq!(texts("````markdown\n```console\n$ a\n```\n````\n"), Vec::<Vec<String>>::new());
    }

    #[test]
    fn what_is_not_understood_is_an_error_with_its_line() {
        for page in [
            "\n```console\n$ a\n",
            "\n```console,lued\n$ a\n```\n",
            "\n```console,no-run\n$ a\n```\n",
            "\n```console,no-run=\"\"\n$ a\n```\n",
            "\n```console,no-run=\"x\n$ a\n```\n",
            "\n```console,timeout=x\n$ a\n```\n",
            "\n```console,needs=\n$ a\n```\n",
            "\n```console\nno prompt\n```\n",
            "\n```sh\n```\n",
            "\n```bash\na\n```\n",
        ] {
            assert_eq!(blocks(page).expect_err(page).line, 2, "{page:?}");
        }
    }
}
