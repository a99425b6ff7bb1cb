//! `ctl completions SHELL`.

use std::process::ExitCode;

use clap::CommandFactory;
use clap_complete::Shell;

use crate::args::Cli;
use crate::failure::Failure;
use crate::printer::Printer;

pub(crate) fn run(shell: Shell, printer: Printer) -> Result<ExitCode, Failure> {
    // Into memory first: the generator panics where its writer fails, and a closed pipe is no reason for that.
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "ctl", &mut script);
    printer.text(&String::from_utf8_lossy(&script))?;
    Ok(ExitCode::SUCCESS)
}
