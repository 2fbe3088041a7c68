//! `luoctl completions` and `man`: written from the command line's definition.

use std::fs;
use std::io::{self, Write};
use std::path::Path;

use clap::CommandFactory;
use clap_complete::Shell;
use clap_mangen::Man;
use luo::protocol::SOCKET_ENV;

use crate::cli::Cli;
use crate::exit::Exit;
use crate::failure::Failure;
use crate::format;
use crate::output::Output;

/// What the definition does not hold in a form that becomes a section.
const ENVIRONMENT: [(&str, &str); 2] = [
    (SOCKET_ENV, "The socket that luod listens on, where \\fB\\-\\-socket\\fR is not given."),
    ("NO_COLOR", "Where it is set and not empty there are no colours, unless they are asked for."),
];
const SEE_ALSO: &str = ".SH \"SEE ALSO\"\n\\fBluod\\fR(8)\n";

pub(crate) fn completions(shell: Shell, output: &mut Output) -> Result<(), Failure> {
    let mut command = Cli::command();
    let name = command.get_name().to_owned();
    // By way of a buffer, because the generator panics where it cannot write.
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut command, name, &mut script);
    Ok(output.raw().write_all(&script)?)
}

pub(crate) fn pages(directory: Option<&Path>, output: &mut Output) -> Result<(), Failure> {
    let mut command = Cli::command();
    // Gives subcommands their full names and the options for every command.
    command.build();
    let Some(directory) = directory else {
        let (_, page) = page(command)?;
        return Ok(output.raw().write_all(&page)?);
    };
    let unwritten = |source| Failure::Path {
        path: directory.to_owned(),
        doing: "written to",
        next: "name another directory",
        source,
    };
    let mut pages = Vec::new();
    collect(command, &mut pages)?;
    fs::create_dir_all(directory).map_err(unwritten)?;
    for (name, page) in &pages {
        fs::write(directory.join(name), page).map_err(unwritten)?;
    }
    let pages = format::count(pages.len() as u64, "man page");
    output.done(&format!("{pages} written to {}.", directory.display()))
}

/// The pages of a command and of all below it.
fn collect(command: clap::Command, pages: &mut Vec<(String, Vec<u8>)>) -> io::Result<()> {
    for below in command.get_subcommands().filter(|below| !below.is_hide_set()) {
        collect(below.clone(), pages)?;
    }
    pages.push(page(command)?);
    Ok(())
}

/// A command's page and its file name.
fn page(command: clap::Command) -> io::Result<(String, Vec<u8>)> {
    // The statuses have a section of their own.
    let command = command.after_long_help(None::<&str>).after_help(None::<&str>);
    let has_subcommands = command.has_subcommands();
    let man = Man::new(command).source(concat!("luo ", env!("CARGO_PKG_VERSION"))).manual("luo");
    let mut page = Vec::new();
    man.render_title(&mut page)?;
    man.render_name_section(&mut page)?;
    man.render_synopsis_section(&mut page)?;
    man.render_description_section(&mut page)?;
    man.render_options_section(&mut page)?;
    if has_subcommands {
        man.render_subcommands_section(&mut page)?;
    }
    exit_section(&mut page)?;
    environment_section(&mut page)?;
    page.write_all(SEE_ALSO.as_bytes())?;
    Ok((man.get_filename(), page))
}

fn environment_section(page: &mut impl Write) -> io::Result<()> {
    writeln!(page, ".SH ENVIRONMENT")?;
    for (name, meaning) in ENVIRONMENT {
        writeln!(page, ".TP\n\\fB{name}\\fR\n{meaning}")?;
    }
    Ok(())
}

fn exit_section(page: &mut impl Write) -> io::Result<()> {
    writeln!(page, ".SH \"EXIT STATUS\"")?;
    for exit in Exit::ALL {
        writeln!(page, ".TP\n\\fB{}\\fR\n{}", exit.code(), exit.meaning().replace('\'', "\\(aq"))?;
    }
    Ok(())
}
