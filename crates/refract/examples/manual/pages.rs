//! The manual page and the completions, as text of the command line.
//!
//! Takes a directory; writes `refract.8`, `refract.bash`, `_refract` (zsh) and `refract.fish` into it.
//! The same sources make the same bytes: no date, and nothing of the machine.

use std::{
    fs::{self, File},
    io::{self, Write},
    path::Path,
};

use clap::{Arg, ArgAction, Command, CommandFactory};
use clap_complete::{Shell, generate_to};
use clap_mangen::Man;
use refract::cli::Cli;

/// What comes before the commands and after the flags, in the roff of man(7).
const OPENING: &str = include_str!("opening.roff");
const CLOSING: &str = include_str!("closing.roff");

/// Writes all of it into `directory`, which is made if it is not there.
pub(crate) fn write_all(directory: &Path) -> io::Result<()> {
    fs::create_dir_all(directory)?;
    write_page(&mut File::create(directory.join("refract.8"))?)?;
    for shell in [Shell::Bash, Shell::Zsh, Shell::Fish] {
        generate_to(shell, &mut Cli::command(), "refract", directory)?;
    }
    Ok(())
}

/// One page for the daemon and for all of its commands.
fn write_page(out: &mut impl Write) -> io::Result<()> {
    let command = Cli::command();
    let page =
        Man::new(command.clone()).title("REFRACT").section("8").manual("System administration");
    page.render_title(out)?;
    out.write_all(OPENING.as_bytes())?;
    page.render_description_section(out)?;
    writeln!(out, ".SH COMMANDS")?;
    for subcommand in command.get_subcommands().filter(|command| !command.is_hide_set()) {
        write_command(out, subcommand)?;
    }
    page.render_options_section(out)?;
    out.write_all(CLOSING.as_bytes())
}

/// A command with its arguments; where it takes all of the daemon's, those are told once.
fn write_command(out: &mut impl Write, command: &Command) -> io::Result<()> {
    let daemon = Cli::command();
    let takes = |command: &Command, wanted: &Arg| {
        command.get_arguments().any(|argument| argument.get_id() == wanted.get_id())
    };
    let takes_all = daemon.get_arguments().all(|flag| takes(command, flag));
    let is_own = |argument: &&Arg| !takes_all || !takes(&daemon, argument);
    let own: Vec<_> = command.get_arguments().filter(is_own).collect();
    write!(out, ".TP\n\\fBrefract {}\\fR", command.get_name())?;
    for argument in &own {
        let value = value_name(argument);
        match argument.get_long() {
            None => write!(out, " {}", positional(argument, &value))?,
            Some(name) if !argument.get_action().takes_values() => {
                write!(out, " [\\fB\\-\\-{}\\fR]", escaped(name))?;
            }
            Some(name) => write!(out, " [\\fB\\-\\-{}=\\fI{value}\\fR]", escaped(name))?,
        }
    }
    let flags = if takes_all { " [\\fIFLAGS\\fR]" } else { "" };
    let about = command.get_about().map(ToString::to_string).unwrap_or_default();
    writeln!(out, "{flags}\n{}.", escaped(&about))?;
    for argument in &own {
        let help = argument.get_help().map(ToString::to_string).unwrap_or_default();
        let name = match argument.get_long() {
            Some(name) => format!("\\fB\\-\\-{}\\fR", escaped(name)),
            None => format!("\\fI{}\\fR", value_name(argument)),
        };
        writeln!(out, ".br\n{name}: {}.", escaped(&help))?;
    }
    Ok(())
}

/// An argument without dashes, as the command line's own usage has it: in brackets if it may be left out,
/// and with dots if it may be given again.
fn positional(argument: &Arg, value: &str) -> String {
    let (open, close) = if argument.is_required_set() { ("", "") } else { ("[", "]") };
    let again = matches!(argument.get_action(), ArgAction::Append);
    format!("{open}\\fI{value}\\fR{close}{}", if again { "..." } else { "" })
}

fn value_name(argument: &Arg) -> String {
    let names = argument.get_value_names().unwrap_or_default();
    names.first().map(|name| escaped(name)).unwrap_or_default()
}

/// Text in which roff finds nothing of its own.
fn escaped(text: &str) -> String {
    text.replace('\\', "\\e").replace('-', "\\-").replace('\'', "\\(aq")
}
