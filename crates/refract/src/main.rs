//! The `refract` program: one command line in, one exit status out.
//!
//! 0: done, or stopped as asked. 1: refused or failed, one sentence on stderr. 2: the command line
//! makes no sense, or flags contradict each other, one sentence on stderr. It decides nothing itself.

use std::{
    env,
    io::{self, Write},
    process::ExitCode,
};

use refract::{
    check,
    cli::{self, Command, Refusal, Where},
    commands, config, daemon, doctor,
    error::Error,
    netns, rule_keeper,
    telemetry::Telemetry,
};

fn main() -> ExitCode {
    let mut arguments = env::args_os();
    if arguments.nth(1).is_some_and(|first| first == rule_keeper::ARGUMENT) {
        return rule_keeper::run_process(arguments);
    }
    let refused = |refusal| match refusal {
        Refusal::Text(text) => {
            // A reader that went away has no use for the rest.
            let _ = io::stdout().write_all(text.as_bytes());
            ExitCode::SUCCESS
        }
        Refusal::Mistake(sentence) => {
            eprintln!("refract: {sentence}");
            ExitCode::from(2)
        }
        Refusal::File(error) => {
            eprintln!("refract: {error}");
            ExitCode::FAILURE
        }
        Refusal::Contradiction(error) => {
            eprintln!("refract: {error}");
            ExitCode::from(2)
        }
    };
    let command = match cli::parse(env::args_os()) {
        Ok(cli) => cli.command,
        Err(refusal) => return refused(refusal),
    };
    match run(command) {
        Ok(Ok(status)) => status,
        Ok(Err(error)) => {
            eprintln!("refract: {error}");
            ExitCode::FAILURE
        }
        Err(refusal) => refused(refusal),
    }
}

/// Runs what was asked for; the policy file is read where its values count.
fn run(command: Option<Command>) -> Result<Result<ExitCode, Error>, Refusal> {
    let settings = || config::load(env::args_os());
    let mut out = io::stdout().lock();
    let result = match command {
        None => {
            let settings = settings()?;
            netns::enter(settings.flags.netns.as_deref()).and_then(|namespace| {
                let mut telemetry = Telemetry::start(settings.flags.log_format);
                daemon::run(settings, namespace, &mut telemetry)
            })
        }
        Some(Command::List { at }) => inside(&at, || commands::list(&mut out)),
        Some(Command::Unban { sources, all, at }) => {
            inside(&at, || commands::unban(&sources, all, &mut out))
        }
        Some(Command::Why { source, block_log }) => {
            let block_log = block_log.unwrap_or_else(commands::usual_block_log);
            commands::why(&source, &block_log, &mut out)
        }
        Some(Command::Uninstall { iptables, at }) => {
            inside(&at, || commands::uninstall(iptables.as_deref(), &mut out))
        }
        Some(Command::Check { user: None, .. }) => check::everything(&settings()?, &mut out),
        Some(Command::Check { user: Some(user), .. }) => {
            check::one_user(&settings()?, &user, &mut out)
        }
        Some(Command::Doctor { .. }) => {
            let flags = settings()?.flags;
            let healthy = netns::enter(flags.netns.as_deref())
                .and_then(|_| doctor::examine(&flags, &mut out));
            let status = |healthy| if healthy { ExitCode::SUCCESS } else { ExitCode::FAILURE };
            return Ok(healthy.map(status));
        }
    };
    Ok(result.map(|()| ExitCode::SUCCESS))
}

/// Acts in the network namespace that is meant.
fn inside(at: &Where, act: impl FnOnce() -> Result<(), Error>) -> Result<(), Error> {
    netns::enter(at.netns.as_deref()).and_then(|_| act())
}
