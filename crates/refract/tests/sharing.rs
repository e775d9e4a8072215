//! A shared account is cut, on the evidence of the kernel, and exactly the right device goes.
//!
//! Every story is told once and lived by some hundred users side by side, each at times of his own:
//! real connections, a log as Xray writes it. The witnesses are the connections themselves, `ipset
//! list` and the block log.

#[expect(dead_code, reason = "each test uses its part of the lab")]
mod support;

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    panic,
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use support::{
    Result,
    crowd::{Crowd, Stay, User, Work},
    eventually,
    sidecar::{Record, Sidecar},
    witness,
};

/// How many live through each story.
const USERS: u16 = 200;
const WINDOW: Duration = Duration::from_secs(2);
/// The users begin within this time.
const SPREAD: Duration = Duration::from_secs(4);
/// Short connections, one after the other.
const BROWSE: Work = Work::Browse(Duration::from_millis(400));
/// How long two devices are at it at most, on a machine that has much else to do. It takes less than
/// two windows.
const CUT_BOUND: Duration = Duration::from_secs(20);
/// How long anything may take that happens at once.
const BOUND: Duration = Duration::from_secs(5);
/// From the line of the answer to the reset, in all but one of a hundred cases.
const LATENCY_BOUND: Duration = Duration::from_millis(100);
const BANNED: &str = "refract_banned_users";
const BANNED6: &str = "refract_banned_users6";
const FIRST: u8 = 0;
const SECOND: u8 = 1;
const THIRD: u8 = 2;

#[test]
fn of_two_that_browse_the_second_goes() -> Result<()> {
    let (crowd, sidecar) = scene(&[])?;
    crowd.live(0..USERS, SPREAD, |user| {
        let [first, second] = at_once(user, [BROWSE, BROWSE])?;
        assert_second_goes(user, &first, &second);
        Ok(())
    })?;
    let records = enforced(&sidecar, USERS)?;
    for (user, record) in each(&crowd, &records)? {
        assert_explained(&record, &user, "ban", SECOND, &[FIRST]);
    }
    assert_banned(&crowd, SECOND)
}

#[test]
fn of_two_that_hold_one_connection_each_both_answer_and_that_cuts_the_second() -> Result<()> {
    asked_and_cut([Work::Talk, Work::Talk], true)
}

#[test]
fn who_has_been_downloading_quietly_for_long_is_there_when_a_second_device_comes() -> Result<()> {
    asked_and_cut([Work::Download, BROWSE], false)
}

#[track_caller]
fn assert_second_goes(user: &User<'_>, first: &Stay, second: &Stay) {
    let shut_out = [&first.shut_out, &second.shut_out];
    assert!(first.is_let && !second.is_let, "{}: {shut_out:?}", user.name());
}

/// The first device is asked, and answers; so is the second, and does; that cuts the second one, at
/// that moment if it has `quiet` work.
fn asked_and_cut(works: [Work; 2], quiet: bool) -> Result<()> {
    let (crowd, sidecar) = scene(&[])?;
    let mut latencies = crowd.live(0..USERS, SPREAD, |user| {
        // Who is downloading has been at it for longer than a window.
        let alone = if quiet { WINDOW / 2 } else { 3 * WINDOW / 2 } + user.within(WINDOW);
        let [first, second] = at_once_for(user, works, alone, CUT_BOUND)?;
        assert_second_goes(user, &first, &second);
        assert!(!first.resets.is_empty(), "{} was not asked", user.name());
        // The verdict falls with the last line that it needs. Who browses may have nothing open then.
        let Some(cut) = second.resets.last().copied() else {
            assert!(!quiet, "{} was shut out and never reset", user.name());
            return Ok(Duration::ZERO);
        };
        let lines = first.lines.iter().chain(&second.lines);
        let last = lines.filter(|line| **line <= cut).max().copied();
        Ok(last.map_or(Duration::MAX, |last| cut.saturating_duration_since(last)))
    })?;
    let records = enforced(&sidecar, USERS)?;
    for (user, record) in each(&crowd, &records)? {
        assert_explained(&record, &user, "ban", SECOND, &[FIRST]);
        assert_asked(&records, &user, FIRST);
        let answered = if quiet { &[FIRST, SECOND][..] } else { &[FIRST] };
        for place in answered {
            assert_answered(&record, &user.at(*place));
        }
    }
    if quiet {
        assert_at_once(&mut latencies);
    }
    assert_banned(&crowd, SECOND)
}

#[test]
fn of_three_on_two_places_the_third_goes() -> Result<()> {
    let (crowd, sidecar) = scene(&["--limit=2"])?;
    crowd.live(0..USERS, SPREAD, |user| {
        // Half of them browse, and half of them hold one connection.
        let work = if user.number() % 2 == 0 { BROWSE } else { Work::Talk };
        let waits = [WINDOW / 2 + user.within(WINDOW), 2 * WINDOW + user.within(WINDOW)];
        let over = Over::within(waits[1] + CUT_BOUND);
        let later = |wait: Duration, place| {
            thread::sleep(wait);
            over.after(|| user.work(user.v4(place), work, &|| over.is_over()))
        };
        let (first, (second, third)) = both(
            || later(Duration::ZERO, FIRST),
            || both(|| later(waits[0], SECOND), || later(waits[1], THIRD)),
        )?;
        assert!(first.is_let && second.is_let && !third.is_let, "{}", user.name());
        Ok(())
    })?;
    let records = enforced(&sidecar, USERS)?;
    for (user, record) in each(&crowd, &records)? {
        assert_explained(&record, &user, "ban", THIRD, &[FIRST, SECOND]);
    }
    assert_banned(&crowd, THIRD)
}

#[test]
fn where_the_last_one_stays_the_first_goes() -> Result<()> {
    let (crowd, sidecar) = scene(&["--keep=last"])?;
    crowd.live(0..USERS, SPREAD, |user| {
        let [first, second] = at_once(user, [BROWSE, BROWSE])?;
        assert!(!first.is_let && second.is_let, "{}", user.name());
        Ok(())
    })?;
    let records = enforced(&sidecar, USERS)?;
    for (user, record) in each(&crowd, &records)? {
        assert_explained(&record, &user, "ban", FIRST, &[SECOND]);
    }
    assert_banned(&crowd, FIRST)
}

#[test]
fn the_cut_device_that_comes_back_over_the_other_family_goes_while_the_first_is_at_work()
-> Result<()> {
    let (crowd, sidecar) = scene(&[])?;
    let mut times = crowd.live(0..USERS, SPREAD, |user| {
        let over = Over::within(3 * CUT_BOUND);
        let (first, time) = both(
            || user.work(user.v4(FIRST), BROWSE, &|| over.is_over()),
            || {
                thread::sleep(WINDOW / 2 + user.within(WINDOW));
                over.after(|| {
                    let never = || over.is_over();
                    let over_v4 = user.work(user.v4(SECOND), BROWSE, &never)?;
                    // Half of them browse on, and half of them hold one connection.
                    let work = if user.number() % 2 == 0 { BROWSE } else { Work::Talk };
                    let begun = Instant::now();
                    let over_v6 = user.work(user.v6(SECOND), work, &never)?;
                    assert!(!over_v4.is_let && !over_v6.is_let, "{}", user.name());
                    let last = over_v6.resets.last().or(over_v6.lines.last()).copied();
                    Ok(last.map_or(Duration::MAX, |last| last.saturating_duration_since(begun)))
                })
            },
        )?;
        assert!(first.is_let, "{}", user.name());
        Ok(time)
    })?;
    times.sort_unstable();
    println!("from the comeback to the cut: {:?} to {:?}", times.first(), times.last());
    assert!(times.get(times.len() / 2).is_some_and(|median| *median < 2 * WINDOW), "{times:?}");
    let records = enforced(&sidecar, 2 * USERS)?;
    let networks = crowd.live(0..USERS, Duration::ZERO, |user| {
        let network = format!("{}/64", user.v6(SECOND)).replace("::1/", "::/");
        let of_user = |record: &&Record| record.user == user.name() && record.action == "ban";
        let mut own = records.iter().filter(of_user);
        let over_v4 = own.next().unwrap();
        assert_explained(over_v4, &subject(user), "ban", SECOND, &[FIRST]);
        let over_v6 = own.next().unwrap();
        assert_eq!((&*over_v6.source, &*over_v6.reason), (&*network, "other_family"));
        let banned = over_v6.rests_on.as_ref().map(|it| &*it.source);
        assert_eq!(banned, Some(&*over_v4.source));
        assert_eq!(&*over_v6.evidence, "kernel");
        assert_eq!(over_v6.incumbents, [user.v4(FIRST).to_string()]);
        let shown = over_v6.proof.iter().flatten().map(|exhibit| exhibit.source.clone());
        assert_eq!(sorted(shown.collect()), sorted(vec![network.clone(), subject(user).at(FIRST)]));
        Ok(network)
    })?;
    assert_eq!(sorted(witness::set_members(crowd.lab().server(), BANNED6)?), sorted(networks));
    assert_v4_banned(&crowd, SECOND)
}

#[test]
fn a_phone_that_leaves_home_while_a_guest_is_banned_over_the_other_family_is_left_alone()
-> Result<()> {
    let (crowd, sidecar) = scene(&[])?;
    crowd.live(0..USERS, SPREAD, |user| {
        let over = Over::within(2 * CUT_BOUND);
        // At home she is on both families, as phones are.
        let (at_home, guest) = both(
            || {
                both(
                    || user.work(user.v4(FIRST), BROWSE, &|| over.is_over()),
                    || user.work(user.v6(FIRST), Work::Talk, &|| over.is_over()),
                )
            },
            || {
                thread::sleep(WINDOW / 2 + user.within(WINDOW));
                over.after(|| user.work(user.v4(SECOND), BROWSE, &|| over.is_over()))
            },
        )?;
        assert!(at_home.0.is_let && at_home.1.is_let && !guest.is_let, "{}", user.name());
        // All of that is closed. Her next network has IPv6 only.
        let away = Over::within(2 * WINDOW);
        let stay = user.work(user.v6(THIRD), BROWSE, &|| away.is_over())?;
        assert!(stay.is_let && stay.resets.is_empty(), "{}", user.name());
        Ok(())
    })?;
    enforced(&sidecar, USERS)?;
    assert_banned(&crowd, SECOND)
}

#[test]
fn without_the_question_a_quiet_pair_is_cut_and_nobody_is_asked() -> Result<()> {
    let (crowd, sidecar) = scene(&["--ask=off"])?;
    crowd.live(0..USERS, SPREAD, |user| {
        let [first, second] = at_once(user, [Work::Talk, Work::Talk])?;
        assert_second_goes(user, &first, &second);
        assert_eq!((first.resets.len(), second.resets.len()), (0, 1), "{}", user.name());
        Ok(())
    })?;
    let records = enforced(&sidecar, USERS)?;
    assert_eq!(records.len(), usize::from(USERS), "no questions");
    for (user, record) in each(&crowd, &records)? {
        assert_explained(&record, &user, "ban", SECOND, &[FIRST]);
    }
    assert_banned(&crowd, SECOND)
}

#[test]
fn by_order_nobody_is_banned_but_reset_and_again_on_sight() -> Result<()> {
    const USERS: u16 = 40;
    const RESETS: usize = 14;
    let (crowd, sidecar) = scene(&["--action=kill"])?;
    let resets = crowd.live(0..USERS, SPREAD / 2, |user| {
        let over = Over::within(2 * CUT_BOUND);
        let (first, resets) = both(
            || user.work(user.v4(FIRST), BROWSE, &|| over.is_over()),
            || {
                thread::sleep(WINDOW / 2 + user.within(WINDOW));
                over.after(|| is_reset_again(user, RESETS))
            },
        )?;
        assert!(first.is_let, "{}", user.name());
        Ok(resets)
    })?;
    let resets = resets.iter().zip(crowd.live(0..USERS, Duration::ZERO, |user| Ok(subject(user)))?);
    // The verdict and three resets on sight for each, and a sum that is written ten seconds after it
    // was begun.
    let of = |records: &[Record], user: &Subject| -> Vec<Record> {
        let own = records.iter().filter(|record| record.user == user.name);
        own.filter(|record| record.action == "kill").cloned().collect()
    };
    for (resets, user) in resets {
        let own = eventually("the sum", 3 * BOUND, || {
            let own = of(&sidecar.records()?, &user);
            Ok(own.last().is_some_and(|last| last.repeats > 0).then_some(own))
        })?;
        let reasons: Vec<_> = own.iter().map(|record| record.reason.as_str()).collect();
        assert_eq!(reasons, [&["by_order"][..], &["on_sight"; 4]].concat(), "{own:#?}");
        let is_asked = |record: &&Record| record.action == "ask" && record.source == own[0].source;
        let asked = sidecar.records()?.iter().filter(is_asked).count();
        let killed: usize = own.iter().map(|record| record.killed as usize).sum();
        assert_eq!(killed + asked, *resets, "{own:#?}");
        assert_eq!(own[4].repeats, u64::from(own[4].killed), "{own:#?}");
        assert_explained(&own[0], &user, "kill", SECOND, &[FIRST]);
    }
    for set in [BANNED, BANNED6] {
        assert_eq!(witness::set_members(crowd.lab().server(), set)?, [""; 0]);
    }
    Ok(())
}

#[test]
fn by_order_a_shared_address_is_banned() -> Result<()> {
    beside_a_neighbour("--action=ban", "ban", "overlap")
}

#[test]
fn by_default_a_shared_address_is_not_banned() -> Result<()> {
    beside_a_neighbour("--action=auto", "kill", "shared_source")
}

/// The second device is where another user is, too.
fn beside_a_neighbour(flag: &str, action: &str, reason: &str) -> Result<()> {
    let (crowd, sidecar) = scene(&[flag])?;
    crowd.live(0..USERS, SPREAD, |user| {
        let neighbour = user.neighbour_talks(user.v4(SECOND))?;
        let is_banned = action == "ban";
        if is_banned {
            let [first, second] = at_once(user, [BROWSE, Work::Talk])?;
            assert_second_goes(user, &first, &second);
        } else {
            let over = Over::within(2 * CUT_BOUND);
            let (first, _) = both(
                || user.work(user.v4(FIRST), BROWSE, &|| over.is_over()),
                || {
                    thread::sleep(WINDOW / 2 + user.within(WINDOW));
                    over.after(|| is_reset_again(user, 5))
                },
            )?;
            assert!(first.is_let, "{}", user.name());
        }
        // What a neighbour has is never reset; but where the address is banned, nothing comes
        // through.
        assert_eq!(neighbour.progress().ending(), None, "{}", user.name());
        if is_banned { Ok(()) } else { neighbour.is_whole() }
    })?;
    let records = sidecar.records()?;
    let subjects = crowd.live(0..USERS, Duration::ZERO, |user| Ok(subject(user)))?;
    for user in subjects {
        let is_his = |record: &&Record| record.user == user.name && record.action != "ask";
        let record = records.iter().find(is_his);
        assert_eq!(record.map(|record| record.reason.as_str()), Some(reason), "{}", user.name);
        record.inspect(|record| assert_explained(record, &user, action, SECOND, &[FIRST]));
    }
    let is_punished = |record: &&Record| record.action != "ask" && record.action != action;
    assert_eq!(records.iter().filter(is_punished).count(), 0);
    if action == "ban" {
        return assert_banned(&crowd, SECOND);
    }
    assert_eq!(witness::set_members(crowd.lab().server(), BANNED)?, [""; 0]);
    Ok(())
}

#[test]
fn a_dry_run_says_who_would_go_and_touches_nothing() -> Result<()> {
    let (crowd, sidecar) = scene(&["--dry-run"])?;
    // Neither is shut out, so the record is what ends it.
    let (recorded, over) = (Mutex::new(BTreeSet::new()), AtomicBool::new(false));
    thread::scope(|scope| {
        let watch = scope.spawn(|| -> Result<()> {
            // A story that fails says nothing.
            let latest = Over::within(3 * CUT_BOUND);
            while !over.load(Ordering::Relaxed) && !latest.is_over() {
                let names = sidecar.records()?.into_iter().filter(|it| it.action != "ask");
                *lock(&recorded) = names.map(|record| record.user).collect();
                thread::sleep(WINDOW / 20);
            }
            Ok(())
        });
        let lived = crowd.live(0..USERS, SPREAD, |user| {
            let latest = Over::within(2 * CUT_BOUND);
            let is_over = || latest.is_over() || lock(&recorded).contains(user.name());
            let stays = both(
                || user.work(user.v4(FIRST), BROWSE, &is_over),
                || {
                    thread::sleep(WINDOW / 2 + user.within(WINDOW));
                    user.work(user.v4(SECOND), BROWSE, &is_over)
                },
            )?;
            let untouched =
                [stays.0, stays.1].iter().all(|stay| stay.is_let && stay.resets.is_empty());
            assert!(untouched, "{}", user.name());
            Ok(())
        });
        over.store(true, Ordering::Relaxed);
        watch.join().unwrap_or_else(|cause| panic::resume_unwind(cause))?;
        lived
    })?;
    let records = enforced(&sidecar, USERS)?;
    for (user, record) in each(&crowd, &records)? {
        assert_eq!((&*record.outcome, record.killed), ("dry-run", 0), "{record:#?}");
        assert_explained(&record, &user, "ban", SECOND, &[FIRST]);
    }
    let server = crowd.lab().server();
    assert_eq!(witness::sets(server)?, [""; 0]);
    assert_eq!(witness::input_rules(server, &IpAddr::from([0; 4]))?.trim(), "-P INPUT ACCEPT");
    Ok(())
}

/// Two devices at work, the first of them alone for up to a window and a half. A window after one of
/// them is not let in any more it is over.
fn at_once(user: &User<'_>, works: [Work; 2]) -> Result<[Stay; 2]> {
    at_once_for(user, works, WINDOW / 2 + user.within(WINDOW), CUT_BOUND)
}

/// The same, the first of them alone for `alone`, and both for `bound` at most.
fn at_once_for(
    user: &User<'_>,
    works: [Work; 2],
    alone: Duration,
    bound: Duration,
) -> Result<[Stay; 2]> {
    let over = Over::within(alone + bound);
    let (first, second) = both(
        || over.after(|| user.work(user.v4(FIRST), works[0], &|| over.is_over())),
        || {
            thread::sleep(alone);
            over.after(|| user.work(user.v4(SECOND), works[1], &|| over.is_over()))
        },
    )?;
    Ok([first, second])
}

/// The second device is let in whenever it comes, and is reset `times` times: once it was cut, as soon
/// as it is named.
fn is_reset_again(user: &User<'_>, times: usize) -> Result<usize> {
    for _ in 0..times {
        user.talk(user.v4(SECOND))?.wait_for_reset(CUT_BOUND)?;
        thread::sleep(WINDOW / 20);
    }
    Ok(times)
}

/// When a story is over.
struct Over(Mutex<Instant>);

impl Over {
    fn within(bound: Duration) -> Self {
        Self(Mutex::new(Instant::now() + bound))
    }

    fn is_over(&self) -> bool {
        *lock(&self.0) <= Instant::now()
    }

    /// Not later than a window after `work` has ended.
    fn after<T>(&self, work: impl FnOnce() -> T) -> T {
        let end = work();
        let mut over = lock(&self.0);
        *over = (*over).min(Instant::now() + WINDOW);
        end
    }
}

fn lock<T>(shared: &Mutex<T>) -> MutexGuard<'_, T> {
    shared.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What two devices do at once.
fn both<T: Send, U>(
    first: impl FnOnce() -> Result<T> + Send,
    second: impl FnOnce() -> Result<U>,
) -> Result<(T, U)> {
    thread::scope(|scope| {
        let first = scope.spawn(first);
        let second = second();
        let first = first.join().unwrap_or_else(|cause| panic::resume_unwind(cause));
        Ok((first?, second?))
    })
}

/// A crowd, and a daemon that has been watching for long enough to judge.
fn scene(flags: &[&str]) -> Result<(Crowd, Sidecar)> {
    let crowd = Crowd::gather(WINDOW / 20)?;
    let common = ["--evidence=kernel", "--window=2s", "--max-bans=0", "--timeout=10m"];
    let sidecar = Sidecar::start(crowd.lab(), &[&common, flags].concat())?;
    thread::sleep(WINDOW);
    Ok((crowd, sidecar))
}

/// A user as records show him.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Subject {
    name: String,
    sources: [String; 3],
}

impl Subject {
    fn at(&self, place: u8) -> String {
        self.sources.get(usize::from(place)).cloned().unwrap_or_default()
    }
}

fn subject(user: &User<'_>) -> Subject {
    let sources = [FIRST, SECOND, THIRD].map(|place| user.v4(place).to_string());
    Subject { name: user.name().to_owned(), sources }
}

/// All records, once `count` of them tell of more than a question.
fn enforced(sidecar: &Sidecar, count: u16) -> Result<Vec<Record>> {
    let mut records = Vec::new();
    let is_enforced = |record: &&Record| record.action != "ask";
    eventually("a record for each", BOUND, || {
        records = sidecar.records()?;
        let found = records.iter().filter(is_enforced).count();
        Ok((found >= usize::from(count)).then_some(()))
    })?;
    let more = records.iter().filter(is_enforced).skip(usize::from(count));
    assert_eq!(more.count(), 0, "{:#?}", records.iter().rfind(is_enforced));
    Ok(records)
}

/// Each user with the only record that tells of more than a question.
fn each(crowd: &Crowd, records: &[Record]) -> Result<BTreeMap<Subject, Record>> {
    let subjects = crowd.live(0..USERS, Duration::ZERO, |user| Ok(subject(user)))?;
    let of_user = |subject: Subject| {
        let is_his = |record: &&Record| record.user == subject.name && record.action != "ask";
        let [record] = &records.iter().filter(is_his).collect::<Vec<_>>()[..] else {
            panic!("one record was to be about {}", subject.name);
        };
        (subject, (*record).clone())
    };
    Ok(subjects.into_iter().map(of_user).collect())
}

/// The record names who went and who stayed, and proves it.
fn assert_explained(record: &Record, user: &Subject, action: &str, goes: u8, stay: &[u8]) {
    let at = |place| user.at(place);
    assert_eq!((&*record.action, &*record.source), (action, &*at(goes)), "{record:#?}");
    assert_eq!(&*record.evidence, "kernel", "{record:#?}");
    let stay: Vec<String> = stay.iter().map(|place| at(*place)).collect();
    assert_eq!(record.incumbents, stay, "{record:#?}");
    assert_eq!(record.places, stay.len(), "{record:#?}");
    assert!(["ok", "dry-run"].contains(&&*record.outcome), "{record:#?}");
    assert_eq!(record.slot_ms, Some(400), "{record:#?}");
    let exhibits = record.proof.as_deref().unwrap_or_default();
    let shown: Vec<String> = exhibits.iter().map(|exhibit| exhibit.source.clone()).collect();
    assert_eq!(sorted(shown), sorted([&stay[..], &[at(goes)]].concat()), "{record:#?}");
    for exhibit in exhibits {
        let moved = exhibit.moved.iter().filter(|moved| **moved).count();
        let bytes: u64 = exhibit.bytes.iter().sum();
        assert!(moved > 0 && bytes > 0, "{record:#?}");
        // That he was silent since he was asked is nothing in his favour.
        let silenced = exhibit.asked_ms.map_or(0, |asked| asked.div_ceil(400));
        assert!(moved as u64 + silenced >= 3, "{record:#?}");
    }
}

/// The one at `place`, who holds one connection, was asked by resetting it.
fn assert_asked(records: &[Record], user: &Subject, place: u8) {
    let source = &user.at(place);
    let is_his = |record: &&Record| record.user == user.name && record.action == "ask";
    let questions: Vec<&Record> = records.iter().filter(is_his).collect();
    assert!(questions.iter().any(|question| question.source == *source), "{}", user.name);
    for question in questions {
        assert_eq!(&*question.reason, "only_finishes", "{question:#?}");
        // What is short may be over when it is to be reset.
        assert!(question.killed == 1 || question.source != *source, "{question:#?}");
    }
}

/// That somebody at `source` was asked, and answered, is part of the proof.
fn assert_answered(verdict: &Record, source: &str) {
    let mut exhibits = verdict.proof.iter().flatten().filter(|it| it.source == source);
    let has_answered = exhibits.any(|it| it.asked_ms.is_some() && it.answered_ms.is_some());
    assert!(has_answered, "{source} is not shown to have answered: {verdict:#?}");
}

/// Everybody's address at `place` is banned, and no other.
fn assert_banned(crowd: &Crowd, place: u8) -> Result<()> {
    assert_eq!(witness::set_members(crowd.lab().server(), BANNED6)?, [""; 0]);
    assert_v4_banned(crowd, place)
}

fn assert_v4_banned(crowd: &Crowd, place: u8) -> Result<()> {
    let address = |user: &User<'_>| Ok(user.v4(place).to_string());
    let addresses = crowd.live(0..USERS, Duration::ZERO, address)?;
    let members = witness::set_members(crowd.lab().server(), BANNED)?;
    assert_eq!(sorted(members), sorted(addresses));
    Ok(())
}

fn sorted(mut texts: Vec<String>) -> Vec<String> {
    texts.sort_unstable();
    texts
}

/// Bounds what passed between a line and the reset that it led to.
fn assert_at_once(latencies: &mut [Duration]) {
    latencies.sort_unstable();
    let part = |part: usize| {
        let place = latencies.len().saturating_sub(1) * part / 100;
        latencies.get(place).copied().unwrap_or(Duration::MAX)
    };
    let told = format!("median {:?}, 99 % {:?}, all {:?}", part(50), part(99), part(100));
    println!("from the line to the reset: {told}");
    assert!(part(99) < LATENCY_BOUND, "{told}");
}
