//! Writes what packages carry beside the binary: the manual page, and completions for three shells.
//!
//! Takes a directory; fills it. It installs nothing.

mod pages;

use std::{env, path::PathBuf, process::ExitCode};

fn main() -> ExitCode {
    let Some(directory) = env::args_os().nth(1).map(PathBuf::from) else {
        eprintln!("manual: name the directory to write into");
        return ExitCode::from(2);
    };
    match pages::write_all(&directory) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("manual: cannot write into {}: {error}", directory.display());
            ExitCode::FAILURE
        }
    }
}
