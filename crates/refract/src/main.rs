//! Joins.

use std::{env, ffi::OsStr, process::ExitCode};

use refract::rule_keeper;

fn main() -> ExitCode {
    let mut arguments = env::args_os().skip(1);
    if arguments.next().as_deref() == Some(OsStr::new(rule_keeper::ARGUMENT)) {
        return rule_keeper::run_process(arguments);
    }
    ExitCode::SUCCESS
}
