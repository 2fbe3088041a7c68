//! Runs the commands that README.md and docs/*.md show, and follows their links to files, so that
//! they stay true. A link to a source file and a name (`tests/unix.rs#a_test`) is broken where the file
//! has no function of that name.
//!
//! What is run, and how, the info string of the fence says:
//!
//! | info string | what happens |
//! | --- | --- |
//! | `console` | each line that begins with `$ ` is a command; the others are output, not compared |
//! | `sh` | the whole block is a script |
//! | `…,luod` | a luod of the page's own runs, and `LUO_SOCKET` names its socket |
//! | `…,repo` | runs in the checkout, not in the page's directory |
//! | `…,timeout=SECONDS` | another deadline than 60 seconds |
//! | `…,needs=PROGRAM` | not run where the program is missing, which is listed among what was skipped |
//! | `…,no-run="reason"` | not run; the reason is listed among what was skipped |
//! | anything else | not run: `text`, `toml`, `rust` (tested by rustdoc), … |
//!
//! A page is read from top to bottom, as a person would follow it: its blocks share one temporary
//! directory, and luod runs from the first block that asks for it to the end of the page. Each
//! block is a `bash` of its own, ends at the first command that fails, and with it end all
//! programs that it started.
//!
//! Invariants: a fence or an attribute that is not understood is a failure, not a block that
//! silently does not run.

use std::fs;
use std::path::{Path, PathBuf};

use crate::failure::{Context as _, Result};
use crate::proc;
use crate::test::{Report, Run};
use crate::workspace::Workspace;

mod extract;
mod links;
mod run;

/// The stage of `cargo xtask test`.
pub(crate) fn stage(run: &Run<'_>) -> Result<Report> {
    let workspace = run.workspace;
    let pages = pages(workspace)?;
    let mut report = Report::default();
    let mut built = false;
    for path in pages {
        let name = path.strip_prefix(workspace.root()).unwrap_or(&path).display().to_string();
        let text = fs::read_to_string(&path).context(|| format!("read {name}"))?;
        let dir = path.parent().unwrap_or(workspace.root());
        let broken = links::broken(&text, &|file, place| match place {
            Some(place) => {
                fs::read_to_string(dir.join(file)).is_ok_and(|text| links::has(file, &text, place))
            }
            None => dir.join(file).exists(),
        });
        if broken.is_empty() {
            report.passed += 1;
        }
        for (line, target) in broken {
            report.failed.push(format!("{name}:{line}: there is no {target}"));
        }
        let blocks = match extract::blocks(&text) {
            Ok(blocks) => blocks,
            Err(bad) => {
                report.failed.push(format!("{name}:{}: {}", bad.line, bad.what));
                continue;
            }
        };
        if blocks.is_empty() {
            continue;
        }
        if !built {
            proc::check(workspace.cargo().args(["build", "--locked", "--workspace", "--bins"]))?;
            built = true;
        }
        run::page(workspace, &name, &blocks, &mut report)?;
    }
    Ok(report)
}

/// README.md, CONTRIBUTING.md and docs/*.md, in the order of their names.
fn pages(workspace: &Workspace) -> Result<Vec<PathBuf>> {
    let mut pages: Vec<PathBuf> = ["README.md", "CONTRIBUTING.md"]
        .iter()
        .map(|name| workspace.root().join(name))
        .filter(|path| path.is_file())
        .collect();
    let docs = workspace.root().join("docs");
    if docs.is_dir() {
        let doing = || format!("list {}", docs.display());
        let mut found = Vec::new();
        for entry in fs::read_dir(&docs).context(doing)? {
            let path = entry.context(doing)?.path();
            if path.extension() == Some(Path::new("md").as_os_str()) {
                found.push(path);
            }
        }
        found.sort();
        pages.append(&mut found);
    }
    Ok(pages)
}
