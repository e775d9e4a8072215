//! A phone that changes networks is let be, on the evidence of the kernel.
//!
//! Every story is told once and lived by some hundred users side by side, each at times of his own:
//! real connections, links that are really cut, a log as Xray writes it. Beside them, in the same
//! daemon, one account is really shared and is cut, so that the daemon is known to have been awake.
//! The witnesses are the connections themselves, `ipset list` and the block log.

#![cfg(test)]

#[expect(dead_code, reason = "each test uses its part of the lab")]
mod support;

use std::{
    net::IpAddr,
    thread,
    time::{Duration, Instant},
};

use support::{
    LabError, Result,
    crowd::{Crowd, User, Work},
    eventually,
    pump::Line,
    sidecar::Sidecar,
    witness,
};

/// How long anything may take that happens at once.
const BOUND: Duration = Duration::from_secs(5);
/// The daemon has seen within this time that nobody listens.
const LOOKED_AFTER: Duration = Duration::from_millis(1_200);
/// The user whose account is shared; no phone of any story has this number.
const SHARED: u16 = 10_000;
const A: u8 = 0;
const B: u8 = 1;

/// A daemon beside a crowd.
struct Scene {
    crowd: Crowd,
    window: Duration,
    flags: Vec<String>,
}

#[test]
fn a_phone_closes_its_connections_on_one_network_and_goes_on_from_another() -> Result<()> {
    let scene = Scene::set(Duration::from_secs(1), "kernel")?;
    let sidecar = scene.watch()?;
    scene.beside_a_shared_account(|| {
        scene
            .crowd
            .live(0..200, 4 * scene.window, |user| closes_and_goes_on(&scene, user))
            .map(drop)
    })?;
    assert_nobody_else_was_cut(&scene, &sidecar, false)
}

#[test]
fn a_phone_whose_link_is_cut_while_it_downloads_goes_on_from_another_network() -> Result<()> {
    let scene = Scene::set(Duration::from_secs(1), "kernel")?;
    let sidecar = scene.watch()?;
    scene.beside_a_shared_account(|| {
        scene.crowd.live(0..200, 4 * scene.window, |user| {
            let left_behind = [user.download(user.v4(A))?, user.talk(user.v4(A))?];
            thread::sleep(scene.window / 2 + user.within(scene.window));
            user.cut_link(user.v4(A))?;
            thread::sleep(scene.window);
            goes_on(&scene, user, user.v4(B))?;
            for line in &left_behind {
                assert_eq!(line.progress().ending(), None, "{}", user.name());
            }
            Ok(())
        })?;
        Ok(())
    })?;
    assert_nobody_else_was_cut(&scene, &sidecar, true)
}

#[test]
fn a_phone_may_leave_connections_behind_that_move_on_and_change_networks_for_a_minute() -> Result<()>
{
    let scene = Scene::set(Duration::from_secs(5), "kernel")?;
    let sidecar = scene.watch()?;
    let lingering = |user: &User<'_>| {
        let seconds = [3, 12, 30][usize::from(user.number() % 3)];
        leaves_behind(&scene, user, Duration::from_secs(seconds))
    };
    let changing = |user: &User<'_>| to_and_fro(user, Duration::from_mins(1));
    let changes = scene.beside_a_shared_account(|| {
        thread::scope(|scope| {
            let left_behind = scope.spawn(|| scene.crowd.live(0..210, scene.window, lingering));
            let changes = scene.crowd.live(1_000..1_080, scene.window, changing);
            left_behind.join().unwrap_or_else(|cause| std::panic::resume_unwind(cause))?;
            changes
        })
    })?;
    let changes: u32 = changes.iter().sum();
    assert!(changes > 1_000, "{changes}");
    assert_nobody_else_was_cut(&scene, &sidecar, true)
}

#[test]
fn phones_change_networks_while_the_daemon_is_restarted() -> Result<()> {
    restarted_in_the_middle(Sidecar::stop)
}

#[test]
fn phones_change_networks_while_the_daemon_is_killed_and_started_again() -> Result<()> {
    restarted_in_the_middle(Sidecar::kill)
}

#[test]
fn phones_change_networks_while_the_proxy_is_restarted() -> Result<()> {
    let scene = Scene::set(Duration::from_secs(1), "auto")?;
    let sidecar = scene.watch()?;
    thread::scope(|scope| {
        let restarted = scope.spawn(|| {
            thread::sleep(3 * scene.window);
            scene.crowd.stop_server();
            // It is looked after once a second, and with each line; the log is quiet meanwhile. What
            // does not change is no event.
            let stopped = Instant::now();
            while stopped.elapsed() < LOOKED_AFTER {
                assert_rests_on_the_kernel(&sidecar)?;
            }
            scene.crowd.start_server()
        });
        // Half of them stay where they are; the others take the occasion to move.
        scene.crowd.live(0..200, scene.window, |user| {
            let mut lines = [user.talk(user.v4(A))?, user.download(user.v4(A))?];
            for line in &lines {
                line.progress().wait_for_end(2 * BOUND)?;
            }
            let source = user.v4(if user.number() % 2 == 0 { A } else { B });
            thread::sleep(user.within(scene.window / 5));
            lines = [persistently(user, source)?, persistently(user, source)?];
            thread::sleep(3 * scene.window);
            lines.iter().try_for_each(Line::is_whole)
        })?;
        restarted.join().unwrap_or_else(|cause| std::panic::resume_unwind(cause))
    })?;
    scene.beside_a_shared_account(|| Ok(()))?;
    assert_rests_on_the_kernel(&sidecar)?;
    assert_nobody_else_was_cut(&scene, &sidecar, false)
}

/// That somebody listened once is enough.
fn assert_rests_on_the_kernel(sidecar: &Sidecar) -> Result<()> {
    let status = sidecar.status()?;
    assert_eq!(status.lines_with("evidence=kernel").len(), 1, "{status}");
    Ok(())
}

#[test]
fn a_phone_is_on_both_families_at_once() -> Result<()> {
    let scene = Scene::set(Duration::from_secs(1), "kernel")?;
    let sidecar = scene.watch()?;
    scene.beside_a_shared_account(|| {
        scene.crowd.live(0..200, 2 * scene.window, |user| {
            for place in [A, B] {
                let lines = [user.talk(user.v4(place))?, user.talk(user.v6(place))?];
                let until = Instant::now() + 2 * scene.window + user.within(scene.window);
                while Instant::now() < until {
                    for source in [user.v4(place), user.v6(place)] {
                        let asked_for = user.talk(source)?;
                        thread::sleep(user.within(scene.window / 2));
                        asked_for.is_whole()?;
                    }
                }
                lines.iter().try_for_each(Line::is_whole)?;
            }
            Ok(())
        })?;
        Ok(())
    })?;
    assert_nobody_else_was_cut(&scene, &sidecar, false)
}

/// Phones of both kinds are on their way when the daemon ends as `end` ends it.
fn restarted_in_the_middle(end: fn(Sidecar) -> Result<()>) -> Result<()> {
    let scene = Scene::set(Duration::from_secs(2), "kernel")?;
    let sidecar = scene.watch()?;
    let sidecar = thread::scope(|scope| {
        let restarted = scope.spawn(|| {
            thread::sleep(3 * scene.window);
            end(sidecar)?;
            scene.start()
        });
        scene.crowd.live(0..200, 2 * scene.window, |user| {
            if user.number() % 2 == 0 {
                closes_and_goes_on(&scene, user)
            } else {
                leaves_behind(&scene, user, 3 * scene.window)
            }
        })?;
        restarted.join().unwrap_or_else(|cause| std::panic::resume_unwind(cause))
    })?;
    scene.beside_a_shared_account(|| Ok(()))?;
    assert_nobody_else_was_cut(&scene, &sidecar, true)
}

/// Everything is closed at A, and a moment later there is something at B.
fn closes_and_goes_on(scene: &Scene, user: &User<'_>) -> Result<()> {
    let lines = [user.talk(user.v4(A))?, user.download(user.v4(A))?];
    thread::sleep(scene.window / 2 + user.within(2 * scene.window));
    assert!(lines.iter().all(|line| line.progress().ending().is_none()), "{}", user.name());
    drop(lines);
    thread::sleep(user.within(scene.window / 3));
    goes_on(scene, user, user.v4(B))
}

/// B is in use while what is left at A still moves. The phone never opens anything at A again: what
/// is reset there comes back at B.
fn leaves_behind(scene: &Scene, user: &User<'_>, lingering: Duration) -> Result<()> {
    let mut old = vec![user.talk(user.v4(A))?, user.download(user.v4(A))?];
    thread::sleep(scene.window / 5 + user.within(scene.window / 2));
    let mut new = vec![user.talk(user.v4(B))?];
    let until = Instant::now() + lingering;
    while Instant::now() < until {
        let asked_for = user.talk(user.v4(B))?;
        thread::sleep(scene.window / 10 + user.within(scene.window / 5));
        let was_reset = |line: &mut Line| line.was_reset();
        let asked = old.extract_if(.., was_reset).count() + new.extract_if(.., was_reset).count();
        for _ in 0..asked {
            new.push(user.talk(user.v4(B))?);
        }
        asked_for.is_whole()?;
    }
    drop(old);
    thread::sleep(scene.window + 2 * scene.window / 5);
    // What is left behind may stutter, and then it is not known which of the two is left behind: it
    // may be the new network that is asked.
    new.retain(|line| !line.was_reset());
    new.iter().try_for_each(Line::is_whole)?;
    // All of them may be gone with the questions; that he is let be shows in one more.
    user.talk(user.v4(B))?.is_whole()
}

/// From one network to the other and back, a change every 2 to 6 s; half of the users close what
/// they have, the others lose their link, and either their system gives its connections up or it
/// goes on with them when the link is back. Gives the number of changes.
fn to_and_fro(user: &User<'_>, lasting: Duration) -> Result<u32> {
    let until = Instant::now() + lasting;
    let mut changes = 0;
    // Each network, and what stalls there.
    let (mut here, mut elsewhere) = ((A, Vec::<Line>::new()), (B, Vec::new()));
    while Instant::now() < until {
        let place = here.0;
        let mut lines = std::mem::take(&mut here.1);
        lines.push(user.talk(user.v4(place))?);
        lines.push(user.download(user.v4(place))?);
        let leaving = Instant::now() + Duration::from_secs(2) + user.within(Duration::from_secs(4));
        while Instant::now() < leaving {
            thread::sleep(Duration::from_millis(200) + user.within(Duration::from_millis(300)));
            let gone = lines.extract_if(.., |line| line.progress().ending().is_some()).count();
            for _ in 0..gone.min(1) {
                lines.push(user.talk(user.v4(place))?);
            }
            user.talk(user.v4(place))?.is_whole()?;
        }
        match user.number() % 4 {
            0 | 2 => drop(lines),
            1 => {
                user.cut_link(user.v4(place))?;
                lines.into_iter().try_for_each(Line::abort)?;
            }
            _ => {
                user.cut_link(user.v4(place))?;
                here.1 = lines;
            }
        }
        if user.number() % 2 == 1 {
            user.mend_link(user.v4(elsewhere.0))?;
        }
        std::mem::swap(&mut here, &mut elsewhere);
        changes += 1;
    }
    Ok(changes)
}

/// A phone settles at `source` and loses nothing there.
fn goes_on(scene: &Scene, user: &User<'_>, source: IpAddr) -> Result<()> {
    let lines = [user.talk(source)?, user.talk(source)?];
    thread::sleep(2 * scene.window + user.within(scene.window / 2));
    lines.iter().try_for_each(Line::is_whole)
}

/// Tries until the proxy listens again.
fn persistently(user: &User<'_>, source: IpAddr) -> Result<Line> {
    eventually("the proxy to listen again", BOUND, || Ok(user.talk(source).ok()))
}

impl Scene {
    fn set(window: Duration, evidence: &str) -> Result<Self> {
        let crowd = Crowd::gather(window / 20)?;
        let window_flag = format!("--window={}ms", window.as_millis());
        let flags = vec![
            format!("--evidence={evidence}"),
            window_flag,
            "--max-bans=0".to_owned(),
            "--timeout=10m".to_owned(),
        ];
        Ok(Self { crowd, window, flags })
    }

    fn start(&self) -> Result<Sidecar> {
        let flags: Vec<&str> = self.flags.iter().map(String::as_str).collect();
        Sidecar::start(self.crowd.lab(), &flags)
    }

    /// Starts the daemon, and waits until verdicts may fall.
    fn watch(&self) -> Result<Sidecar> {
        let sidecar = self.start()?;
        thread::sleep(self.window);
        Ok(sidecar)
    }

    /// Plays `story` while one account is shared, until that is cut.
    fn beside_a_shared_account<T>(&self, story: impl FnOnce() -> Result<T>) -> Result<T> {
        thread::scope(|scope| {
            let shared = scope.spawn(|| {
                let users = SHARED..SHARED + 1;
                self.crowd.live(users, Duration::ZERO, |user| self.share_until_cut(user))
            });
            let told = story();
            shared.join().unwrap_or_else(|cause| std::panic::resume_unwind(cause))?;
            told
        })
    }

    fn share_until_cut(&self, user: &User<'_>) -> Result<()> {
        let (work, deadline) = (Work::Browse(self.window / 3), Instant::now() + 6 * self.window);
        let is_over = || Instant::now() > deadline;
        let kept = thread::scope(|scope| {
            let first = scope.spawn(|| user.work(user.v4(A), work, &is_over));
            thread::sleep(self.window / 2);
            let second = user.work(user.v4(B), work, &is_over)?;
            let first = first.join().unwrap_or_else(|cause| std::panic::resume_unwind(cause))?;
            Ok([first.is_let, second.is_let])
        })?;
        if kept == [true, false] {
            Ok(())
        } else {
            Err(LabError::new(format!("who shares was not cut as he should: {kept:?}")))
        }
    }
}

/// Only the shared account was acted upon. Questions are no punishment, but where nothing lingers
/// nothing is asked.
fn assert_nobody_else_was_cut(scene: &Scene, sidecar: &Sidecar, may_ask: bool) -> Result<()> {
    let name = format!("user-{SHARED}@lab");
    let records = sidecar.records()?;
    let (of_shared, of_phones): (Vec<_>, Vec<_>) =
        records.into_iter().partition(|record| record.user == name);
    assert_eq!(of_shared.iter().filter(|record| record.action == "ban").count(), 1);
    let asked = of_phones.iter().filter(|record| record.action == "ask").count();
    println!("{asked} questions; {} records", of_phones.len());
    let punished = of_phones.iter().filter(|record| record.action != "ask" || !may_ask);
    assert_eq!(punished.map(|record| format!("{record:#?}")).collect::<Vec<_>>(), [""; 0]);
    let server = scene.crowd.lab().server();
    let [shared] = &witness::set_members(server, "refract_banned_users")?[..] else {
        panic!("one address was to be banned: {of_shared:#?}");
    };
    assert_eq!(of_shared.iter().filter(|record| record.source == *shared).count(), 1);
    assert_eq!(witness::set_members(server, "refract_banned_users6")?, [""; 0]);
    Ok(())
}
