//! The rule keeper as a real process, each test in a network namespace of its own.

#![cfg(test)]

#[path = "../../kernel/tests/support/iptables.rs"]
mod iptables;
#[path = "../../kernel/tests/support/mod.rs"]
mod support;
#[path = "../../kernel/tests/support/without_target.rs"]
mod without_target;

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command as ProcessCommand, Stdio},
    thread,
    time::{Duration, Instant},
};

use iptables::{VARIANTS, input_rules, make_sets, mangle_rules};
use refract::rule_keeper::{
    ARGUMENT, Answer, Command, Confinement, Found, RuleKeeper, RuleKeeperConfig, RuleKeeperError,
    RuleSets, Strip,
};
use refract_kernel::xtables::{
    ChainName, NoIpv6, NoStrip, Protocol, Report, State, StripReport, Variant,
};
use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    process::{Pid, PidfdFlags, Signal, getpgid, kill_process, pidfd_open},
};
use support::{Namespace, shell};
use without_target::WithoutTarget;

const REFRACT: &str = env!("CARGO_BIN_EXE_refract");
const PATIENCE: Duration = Duration::from_secs(10);
const TCP_443: &str =
    "-p tcp -m tcp --dport 443 -m set --match-set refract_banned_users src -j DROP";

const STRIP_443: &str = "-p tcp -m tcp --dport 443 --tcp-flags SYN SYN -m comment --comment refract \
                         -j TCPOPTSTRIP --strip-options 30";

/// What a keeper is told here unless a test says otherwise.
fn config(iptables: impl Into<PathBuf>) -> RuleKeeperConfig {
    RuleKeeperConfig {
        sets: RuleSets::Lasting,
        protocols: vec![Protocol::Tcp],
        ports: vec![443..=443],
        strip_mptcp: true,
        chain: ChainName::default(),
        iptables: Some(iptables.into()),
    }
}

fn start_with(config: &RuleKeeperConfig) -> RuleKeeper {
    RuleKeeper::start_program(Path::new(REFRACT), config, Confinement::Free).unwrap()
}

fn start(iptables: impl Into<PathBuf>) -> RuleKeeper {
    start_with(&config(iptables))
}

fn broken(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../kernel/tests/broken_programs").join(name)
}

fn states(state: State) -> Report {
    Report { v4: state, v6: Ok(state) }
}

fn stripped(state: State) -> Strip {
    Strip::Wanted(StripReport { v4: Ok(state), v6: Ok(state) })
}

fn pid(keeper: &RuleKeeper) -> Pid {
    Pid::from_raw(keeper.process_id().unwrap().cast_signed()).unwrap()
}

/// Waits as the daemon does: for the pipe, then for what is in it.
fn next_answer(keeper: &mut RuleKeeper) -> Answer {
    loop {
        if let Some(answer) = keeper.answer() {
            return answer;
        }
        let pipe = keeper.answer_fd().unwrap();
        let mut ready = [PollFd::from_borrowed_fd(pipe, PollFlags::IN)];
        let patience = Timespec::try_from(PATIENCE * 3).unwrap();
        assert_eq!(poll(&mut ready, Some(&patience)).unwrap(), 1, "no answer");
    }
}

#[test]
fn the_three_commands_reach_the_kernel() {
    for (program, variant) in VARIANTS.into_iter().zip(Variant::ALL) {
        Namespace::new().inside(|| {
            make_sets();
            let mut keeper = start(program);
            for (command, found, are_there) in [
                (Command::Check, State::Missing, false),
                (Command::Install, State::Missing, true),
                (Command::Install, State::InPlace, true),
                (Command::Check, State::InPlace, true),
                (Command::Remove, State::InPlace, false),
                (Command::Remove, State::Missing, false),
            ] {
                let strip = if command == Command::Remove { Strip::Off } else { stripped(found) };
                let expected = Found { report: states(found), variant: Some(variant), strip };
                assert_eq!(keeper.ask_and_wait(command, PATIENCE).unwrap(), expected);
                let (rules, strip_rules): (&[_], &[_]) =
                    if are_there { (&[TCP_443], &[STRIP_443]) } else { (&[], &[]) };
                assert_eq!(input_rules(program), rules);
                assert_eq!(mangle_rules(program), strip_rules);
            }
        });
    }
}

#[test]
fn where_mptcp_is_not_to_be_stripped_an_install_takes_the_rule_away() {
    for program in VARIANTS {
        for (strip_mptcp, protocols) in [(false, vec![Protocol::Tcp]), (true, vec![Protocol::Udp])]
        {
            Namespace::new().inside(|| {
                make_sets();
                start(program).ask_and_wait(Command::Install, PATIENCE).unwrap();
                let foreign = STRIP_443.replace("--comment refract", "--comment mine");
                shell(&format!("{program} -t mangle -A INPUT {foreign}"));
                let config = RuleKeeperConfig { strip_mptcp, protocols, ..config(program) };
                let mut keeper = start_with(&config);
                let found = keeper.ask_and_wait(Command::Check, PATIENCE).unwrap();
                assert_eq!(found.strip, Strip::Off);
                assert_eq!(mangle_rules(program), [STRIP_443, &foreign]);
                for _ in 0..2 {
                    let found = keeper.ask_and_wait(Command::Install, PATIENCE).unwrap();
                    assert_eq!(found.strip, Strip::Off);
                    assert_eq!(mangle_rules(program), [foreign.as_str()]);
                }
            });
        }
    }
}

#[test]
fn rules_for_temporary_sets_leave_mptcp_alone() {
    Namespace::new().inside(|| {
        make_sets();
        shell("for set in $(ipset list -name); do ipset rename $set $set.tmp; done");
        make_sets();
        start(VARIANTS[0]).ask_and_wait(Command::Install, PATIENCE).unwrap();
        let config = RuleKeeperConfig { sets: RuleSets::Temporary, ..config(VARIANTS[0]) };
        let mut keeper = start_with(&config);
        for command in [Command::Install, Command::Check, Command::Remove] {
            let found = keeper.ask_and_wait(command, PATIENCE).unwrap();
            assert_eq!(found.strip, Strip::Off);
            assert_eq!(mangle_rules(VARIANTS[0]), [STRIP_443]);
        }
        assert_eq!(input_rules(VARIANTS[0]), [TCP_443]);
    });
}

#[test]
fn an_iptables_that_cannot_strip_still_installs_the_drop_rule_and_is_asked_once() {
    for program in VARIANTS {
        Namespace::new().inside(|| {
            make_sets();
            let tools = WithoutTarget::new(program);
            let mut keeper = start(tools.path());
            let nowhere = Strip::Wanted(StripReport {
                v4: Err(NoStrip::NoTarget),
                v6: Err(NoStrip::NoTarget),
            });
            for command in [Command::Install, Command::Check, Command::Check] {
                assert_eq!(keeper.ask_and_wait(command, PATIENCE).unwrap().strip, nowhere);
            }
            assert_eq!(input_rules(program), [TCP_443]);
            assert_eq!(mangle_rules(program), [""; 0]);
            assert_eq!(tools.attempts(), 2, "one a family");
        });
    }
}

#[test]
fn a_chain_that_iptables_cannot_use_is_a_sentence_beside_the_drop_rule() {
    Namespace::new().inside(|| {
        make_sets();
        // A chain of that name with another priority is none that iptables could have made.
        shell(
            "nft add table ip mangle && nft 'add chain ip mangle INPUT { type filter hook \
             input priority 5; }'",
        );
        let mut keeper = start(VARIANTS[0]);
        let found = keeper.ask_and_wait(Command::Install, PATIENCE).unwrap();
        let Strip::Failed(sentence) = found.strip else { panic!("{found:?}") };
        assert!(sentence.starts_with("cannot install the rule against MPTCP with /usr/sbin/"));
        assert!(sentence.contains("CHAIN_ADD failed"), "{sentence}");
        assert_eq!(input_rules(VARIANTS[0]), [TCP_443]);
    });
}

#[test]
fn a_flushed_chain_is_put_right_on_request() {
    Namespace::new().inside(|| {
        make_sets();
        let mut keeper = start(VARIANTS[0]);
        keeper.ask_and_wait(Command::Install, PATIENCE).unwrap();
        shell("iptables-nft -F INPUT");
        keeper.request(Command::Install);
        let report = Report { v4: State::Missing, v6: Ok(State::InPlace) };
        let strip = stripped(State::InPlace);
        let found = Found { report, variant: Some(Variant::NfTables), strip };
        let expected = Answer::Done { command: Command::Install, found };
        assert_eq!(next_answer(&mut keeper), expected);
        assert_eq!(input_rules(VARIANTS[0]), [TCP_443]);
    });
}

#[test]
fn a_command_that_fails_is_one_sentence_and_the_process_lives_on() {
    Namespace::new().inside(|| {
        let mut keeper = start(VARIANTS[1]);
        let error = keeper.ask_and_wait(Command::Install, PATIENCE).unwrap_err();
        assert!(matches!(error, RuleKeeperError::Failed { .. }), "{error:?}");
        let sentence = error.to_string();
        let beginning = "cannot install the rule with /usr/sbin/iptables-legacy-restore: a set \
                         that the rule names does not exist; sets are made before the rule: ";
        assert!(sentence.starts_with(beginning), "{sentence}");
        assert!(sentence.contains("Set refract_banned_users doesn't exist."), "{sentence}");
        assert_eq!(sentence.lines().count(), 1);
        make_sets();
        keeper.ask_and_wait(Command::Install, PATIENCE).unwrap();
    });
}

#[test]
fn where_there_is_no_iptables_only_removal_succeeds() {
    let mut keeper = start("/nonexistent/iptables");
    for command in [Command::Install, Command::Check] {
        let error = keeper.ask_and_wait(command, PATIENCE).unwrap_err().to_string();
        assert!(error.contains("install the package iptables"), "{error}");
    }
    let report = Report { v4: State::Missing, v6: Err(NoIpv6::NoProgram) };
    let nothing = Found { report, variant: None, strip: Strip::Off };
    assert_eq!(keeper.ask_and_wait(Command::Remove, PATIENCE).unwrap(), nothing);
}

#[test]
fn one_command_is_in_flight_and_a_check_takes_no_change_away() {
    Namespace::new().inside(|| {
        make_sets();
        let mut keeper = start(VARIANTS[0]);
        for command in [Command::Check, Command::Check, Command::Install, Command::Check] {
            keeper.request(command);
        }
        for expected in [Command::Check, Command::Install] {
            match next_answer(&mut keeper) {
                Answer::Done { command, .. } => assert_eq!(command, expected),
                other => panic!("{other:?}"),
            }
        }
        let found = keeper.ask_and_wait(Command::Check, PATIENCE).unwrap();
        assert_eq!(found.report, states(State::InPlace));
        assert_eq!(keeper.answer(), None, "nothing else was asked");
    });
}

#[test]
fn an_iptables_that_hangs_holds_nobody_up_and_becomes_a_sentence() {
    let mut keeper = start(broken("hanging/iptables"));
    let began = Instant::now();
    for _ in 0..1000 {
        keeper.request(Command::Install);
        assert_eq!(keeper.answer(), None);
    }
    assert!(began.elapsed() < Duration::from_secs(2));
    let Answer::Failed { command: Command::Install, sentence, .. } = next_answer(&mut keeper)
    else {
        panic!("it cannot have done it");
    };
    assert!(sentence.ends_with("it was stopped after 10 s without an answer"), "{sentence}");
    assert!(began.elapsed() < Duration::from_secs(20));

    // The remembered request is under way now; the end does not wait for it.
    let hanging = child_of(pid(&keeper));
    let error = keeper.ask_and_wait(Command::Check, Duration::from_millis(1)).unwrap_err();
    assert!(matches!(error, RuleKeeperError::Silent { .. }), "{error:?}");
    let status = keeper.stop(Duration::from_millis(1)).unwrap();
    assert_eq!(status.to_string(), "signal: 9 (SIGKILL)");
    kill_process(hanging, Signal::KILL).unwrap();
}

/// The program that a process has started, as soon as it has.
fn child_of(parent: Pid) -> Pid {
    let children = format!("/proc/{parent}/task/{parent}/children");
    let began = Instant::now();
    loop {
        let text = fs::read_to_string(&children).unwrap();
        if let Some(child) = text.split_whitespace().next() {
            return Pid::from_raw(child.parse().unwrap()).unwrap();
        }
        assert!(began.elapsed() < PATIENCE, "it starts nothing");
        thread::yield_now();
    }
}

#[test]
fn an_iptables_that_is_broken_becomes_a_sentence() {
    for (name, expected) in [
        ("failing/iptables", "it ended with exit status: 1: this iptables is broken"),
        ("garbage/iptables", "its answer is not that of an iptables"),
        ("stubborn/iptables", "somebody else keeps changing chain INPUT"),
    ] {
        let mut keeper = start(broken(name));
        let error = keeper.ask_and_wait(Command::Install, PATIENCE).unwrap_err().to_string();
        assert!(error.ends_with(expected), "{error}");
        assert_eq!(error.lines().count(), 1);
    }
}

#[test]
fn a_killed_process_is_noticed_and_another_takes_its_place() {
    Namespace::new().inside(|| {
        make_sets();
        let mut keeper = start(VARIANTS[0]);
        kill_process(pid(&keeper), Signal::KILL).unwrap();
        let died = Answer::Died { reason: "signal: 9 (SIGKILL)".to_owned() };
        assert_eq!(next_answer(&mut keeper), died);
        assert!(keeper.answer_fd().is_none() && keeper.process_id().is_none());
        let error = keeper.ask_and_wait(Command::Install, PATIENCE).unwrap_err();
        assert!(matches!(error, RuleKeeperError::Died { .. }), "{error:?}");

        keeper.restart().unwrap();
        match next_answer(&mut keeper) {
            Answer::Done { command, .. } => assert_eq!(command, Command::Install),
            other => panic!("what was requested meanwhile is done: {other:?}"),
        }
        assert_eq!(input_rules(VARIANTS[0]), [TCP_443]);
    });
}

#[test]
fn one_that_stands_by_takes_its_place_and_starts_the_next() {
    for confinement in [Confinement::Free, Confinement::Own] {
        Namespace::new().inside(move || {
            make_sets();
            let config = config(VARIANTS[0]);
            let mut keeper =
                RuleKeeper::start_program(Path::new(REFRACT), &config, confinement).unwrap();
            keeper.keep_spare().unwrap();
            let first = pid(&keeper);
            kill_process(first, Signal::KILL).unwrap();
            assert!(matches!(next_answer(&mut keeper), Answer::Died { .. }));
            keeper.restart().unwrap();
            assert_ne!(pid(&keeper), first);
            keeper.ask_and_wait(Command::Install, PATIENCE).unwrap();
            assert_eq!(input_rules(VARIANTS[0]), [TCP_443]);
            // The next one is a child of this one, which it outlives.
            let third = child_of(pid(&keeper));
            kill_process(pid(&keeper), Signal::KILL).unwrap();
            assert!(matches!(next_answer(&mut keeper), Answer::Died { .. }));
            keeper.restart().unwrap();
            assert_eq!(keeper.process_id(), None, "it is not our own child");
            let found = keeper.ask_and_wait(Command::Check, PATIENCE).unwrap();
            assert_eq!(found.report, states(State::InPlace));
            assert!(keeper.look_after_spare(), "there is one again");

            // It ends with its input, like any other.
            let end = pidfd_open(third, PidfdFlags::empty()).unwrap();
            assert!(keeper.stop(PATIENCE).is_none(), "whose child it is not does not learn how");
            let mut ready = [PollFd::new(&end, PollFlags::IN)];
            let patience = Timespec::try_from(PATIENCE).unwrap();
            assert_eq!(poll(&mut ready, Some(&patience)).unwrap(), 1, "it is still there");
        });
    }
}

#[test]
fn a_program_that_answers_something_else_is_ended() {
    let config = RuleKeeperConfig { iptables: None, ..config("") };
    let free = Confinement::Free;
    let mut keeper = RuleKeeper::start_program(Path::new("/bin/echo"), &config, free).unwrap();
    let dead = Answer::Died { reason: "its answer cannot be understood".to_owned() };
    assert_eq!(next_answer(&mut keeper), dead);

    let error = RuleKeeper::start_program(Path::new("/nonexistent"), &config, free).unwrap_err();
    assert!(error.to_string().starts_with("cannot start the rule keeper /nonexistent: No such"));
}

#[test]
fn a_configuration_that_the_process_would_refuse_starts_none() {
    for (protocols, ports, iptables, expected) in [
        (vec![], 443..=443, None, "does not take the argument \"--protocols=\""),
        (vec![Protocol::Tcp], 0..=443, None, "holds port 0"),
        (vec![Protocol::Tcp], 443..=443, Some("iptables"), "\"--iptables=iptables\""),
    ] {
        let config = RuleKeeperConfig {
            sets: RuleSets::Lasting,
            protocols,
            ports: vec![ports],
            strip_mptcp: true,
            chain: ChainName::default(),
            iptables: iptables.map(Into::into),
        };
        let refused = RuleKeeper::start_program(Path::new(REFRACT), &config, Confinement::Free);
        let error = refused.unwrap_err();
        assert!(error.to_string().contains(expected), "{error}");
    }
}

#[test]
fn signals_meant_for_the_daemon_do_not_end_it_and_the_end_of_its_input_does() {
    Namespace::new().inside(|| {
        make_sets();
        let mut keeper = start(VARIANTS[0]);
        keeper.ask_and_wait(Command::Check, PATIENCE).unwrap();
        let process = pid(&keeper);
        for signal in [Signal::HUP, Signal::INT, Signal::TERM, Signal::USR1] {
            kill_process(process, signal).unwrap();
            keeper.ask_and_wait(Command::Install, PATIENCE).unwrap();
            assert_eq!(input_rules(VARIANTS[0]), [TCP_443]);
            shell(&format!("{} -F INPUT", VARIANTS[0]));
        }
        assert_eq!(pid(&keeper), process);
        let group = getpgid(Some(pid(&keeper))).unwrap();
        assert_eq!(group, pid(&keeper), "Ctrl-C goes to the group of the daemon");
        let status = keeper.stop(PATIENCE).unwrap();
        assert!(status.success(), "{status}");
    });
}

#[test]
fn it_ends_with_the_thread_that_started_it() {
    let end = Namespace::new().inside(|| {
        let mut keeper = start(VARIANTS[0]);
        // It has read its arguments once it answers.
        keeper.ask_and_wait(Command::Check, PATIENCE).unwrap();
        let end = pidfd_open(pid(&keeper), PidfdFlags::empty()).unwrap();
        // Neither is its input closed nor is it stopped: only this thread ends.
        std::mem::forget(keeper);
        end
    });
    let mut ready = [PollFd::new(&end, PollFlags::IN)];
    let patience = Timespec::try_from(PATIENCE).unwrap();
    assert_eq!(poll(&mut ready, Some(&patience)).unwrap(), 1, "it is still there");
}

#[test]
fn hostile_arguments_are_refused_in_one_sentence() {
    let good =
        ["--sets=lasting", "--protocols=tcp", "--ports=443", "--strip-mptcp=true", "--chain=INPUT"];
    for (arguments, expected) in [
        (vec![], "does not take the argument \"\""),
        (vec![good[0], good[1], "--ports=443 -j ACCEPT"], "--ports=443 -j ACCEPT"),
        (vec![good[0], good[1], "--ports=443\n-F"], "--ports=443\\n-F"),
        (vec![good[0], good[1], "--ports=$(reboot)"], "--ports=$(reboot)"),
        (vec![good[0], good[1], "--ports=0", good[3], good[4]], "holds port 0"),
        (
            vec![good[0], "--protocols=tcp,tcp", good[2], good[3], good[4]],
            "a protocol is named twice",
        ),
        (vec![good[0], "--protocols=tcp -F", good[2]], "--protocols=tcp -F"),
        (vec![good[0], good[1], good[2], "--strip-mptcp=-F"], "--strip-mptcp=-F"),
        (vec![good[0], good[1], good[2], good[3], "--chain=-F"], "--chain=-F"),
        (vec![good[0], good[1], good[2], good[3], good[4], "--iptables=sh"], "--iptables=sh"),
        ([good.as_slice(), &["--iptables=/usr/sbin/iptables", "-F"]].concat(), "argument \"-F\""),
    ] {
        let refused = ProcessCommand::new(REFRACT)
            .arg(ARGUMENT)
            .args(&arguments)
            .stdin(Stdio::null())
            .output()
            .unwrap();
        let sentence = String::from_utf8(refused.stderr).unwrap();
        assert_eq!(refused.status.code(), Some(2), "{arguments:?}");
        assert!(sentence.contains(expected), "{arguments:?}: {sentence}");
        assert_eq!(sentence.lines().count(), 1, "{sentence}");
        assert_eq!(refused.stdout, b"");
    }
}

#[test]
fn a_program_of_another_name_is_never_run() {
    let mut keeper = start("/bin/sh");
    let error = keeper.ask_and_wait(Command::Remove, PATIENCE).unwrap_err().to_string();
    assert!(error.contains("not an absolute path to a program named iptables"), "{error}");
}
