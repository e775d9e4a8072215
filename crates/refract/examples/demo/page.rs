//! What is read: lines that are no wider than a screen.
//!
//! Takes text; prints it, folded between words.

use std::{
    io::{self, Write as _},
    panic,
};

use crate::support::{Result, lab::Host};

/// No line of the output is wider, in characters.
const WIDTH: usize = 100;
/// What every line of a section begins with,
const INDENT: &str = "   ";
/// and what continues one that was too long.
const CONTINUED: &str = "       ";

/// Begins a section.
pub(crate) fn headline(text: &str) {
    print_line(&format!("\n== {text}\n"));
}

/// Prints `text` indented, its lines folded between words.
pub(crate) fn say(text: &str) {
    for line in text.lines() {
        for piece in fold(line) {
            print_line(&piece);
        }
    }
}

/// `line` in pieces that are no wider than [`WIDTH`]. Spaces within a piece are kept.
fn fold(line: &str) -> Vec<String> {
    let mut pieces = Vec::new();
    let mut piece = INDENT.to_owned();
    let mut is_empty = true;
    for word in line.split(' ') {
        let space = usize::from(!is_empty);
        if !is_empty && piece.chars().count() + space + word.chars().count() > WIDTH {
            pieces.push(std::mem::replace(&mut piece, CONTINUED.to_owned()));
        } else if !is_empty {
            piece.push(' ');
        }
        piece += word;
        is_empty = false;
    }
    pieces.push(piece);
    pieces
}

/// Runs a command on `host`, and shows it with its output.
pub(crate) fn run(host: &Host, program: &str, arguments: &[&str]) -> Result<()> {
    print_line("");
    say(&format!("$ {program} {}", arguments.join(" ")));
    say(host.output(program, arguments)?.trim_end());
    print_line("");
    Ok(())
}

/// Prints a line. Nobody may be reading any more (`| head`); then the demo ends without a word, and
/// unwinds, so that nothing stays behind.
pub(crate) fn print_line(text: &str) {
    if writeln!(io::stdout(), "{text}").is_err() {
        panic::resume_unwind(Box::new("nobody reads"));
    }
}
