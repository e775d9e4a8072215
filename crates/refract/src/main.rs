//! The `refract` program: one command line in, one exit status out.
//!
//! 0: done, or stopped as asked. 1: refused or failed, one sentence on stderr. 2: the command line
//! makes no sense, one sentence on stderr. It decides nothing itself.

use std::{
    env,
    io::{self, Write},
    process::ExitCode,
};

use refract::{
    cli::{self, Command, Refusal},
    commands, daemon, doctor, rule_keeper, telemetry,
};

fn main() -> ExitCode {
    let mut arguments = env::args_os();
    if arguments.nth(1).is_some_and(|first| first == rule_keeper::ARGUMENT) {
        return rule_keeper::run_process(arguments);
    }
    let cli = match cli::parse(env::args_os()) {
        Ok(cli) => cli,
        Err(Refusal::Text(text)) => {
            // A reader that went away has no use for the rest.
            let _ = io::stdout().write_all(text.as_bytes());
            return ExitCode::SUCCESS;
        }
        Err(Refusal::Mistake(sentence)) => {
            eprintln!("refract: {sentence}");
            return ExitCode::from(2);
        }
    };
    let mut out = io::stdout().lock();
    let result = match cli.command {
        None => {
            let guard = telemetry::start(cli.flags.log_format);
            let result = daemon::run(&cli.flags);
            drop(guard);
            result
        }
        Some(Command::List) => commands::list(&mut out),
        Some(Command::Unban { sources, all }) => commands::unban(&sources, all, &mut out),
        Some(Command::Why { source, block_log }) => commands::why(&source, &block_log, &mut out),
        Some(Command::Uninstall { iptables }) => commands::uninstall(iptables, &mut out),
        Some(Command::Doctor { flags }) => match doctor::examine(&flags, &mut out) {
            Ok(true) => Ok(()),
            Ok(false) => return ExitCode::FAILURE,
            Err(error) => Err(error),
        },
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("refract: {error}");
            ExitCode::FAILURE
        }
    }
}
