//! `ctl man`: one page for the program and all its commands.

use std::io;
use std::process::ExitCode;

use clap::{Command, CommandFactory};
use clap_mangen::Man;

use crate::args::Cli;
use crate::failure::Failure;
use crate::printer::Printer;

pub(crate) fn run(printer: Printer) -> Result<ExitCode, Failure> {
    let page = page().map_err(|error| Failure::io("make the page", error))?;
    printer.text(&page)?;
    Ok(ExitCode::SUCCESS)
}

fn page() -> io::Result<String> {
    let mut command = Cli::command();
    // Hands the global options down to the commands, which would not show them otherwise.
    command.build();
    let man = Man::new(command.clone());
    let mut page = Vec::new();
    man.render_title(&mut page)?;
    man.render_name_section(&mut page)?;
    man.render_synopsis_section(&mut page)?;
    man.render_description_section(&mut page)?;
    man.render_options_section(&mut page)?;
    let mut page = String::from_utf8_lossy(&page).into_owned();
    page.push_str(".SH COMMANDS\n");
    for sub in command.get_subcommands().filter(|sub| !sub.is_hide_set()) {
        page.push_str(&section(sub, "ctl")?);
    }
    let mut end = Vec::new();
    man.render_extra_section(&mut end)?;
    man.render_version_section(&mut end)?;
    page.push_str(&String::from_utf8_lossy(&end).replace(".SH EXTRA\n", ".SH MORE\n"));
    Ok(keep_columns(&page))
}

/// Lines that begin with spaces have columns: they are not to be filled.
fn keep_columns(page: &str) -> String {
    let mut kept = String::new();
    let mut columns = false;
    for line in page.lines() {
        if columns != line.starts_with("  ") {
            columns = !columns;
            kept.push_str(if columns { ".nf\n" } else { ".fi\n" });
        }
        kept.push_str(line);
        kept.push('\n');
    }
    kept
}

/// A command as a part of the page. The generator knows whole pages only, so its headings go one level down.
fn section(command: &Command, before: &str) -> io::Result<String> {
    let own = command.clone().mut_args(|argument| {
        let global = argument.is_global_set();
        argument.hide(global)
    });
    let man = Man::new(own);
    let mut text = Vec::new();
    man.render_description_section(&mut text)?;
    man.render_options_section(&mut text)?;
    if command.get_after_long_help().is_some() {
        man.render_extra_section(&mut text)?;
    }
    let text = String::from_utf8_lossy(&text)
        .replace(".SH DESCRIPTION\n", "")
        .replace(".SH OPTIONS\n", ".PP\n")
        .replace(".SH EXTRA\n", ".PP\n");
    let name = format!("{before} {}", command.get_name());
    let mut section = format!(".SS \"{name}\"\n{text}");
    for sub in command.get_subcommands().filter(|sub| !sub.is_hide_set()) {
        section.push_str(&self::section(sub, &name)?);
    }
    Ok(section)
}
