//! Whether one user is at more sources than he has places: a pure function of what was measured.
//!
//! Takes, for each source of one address family, when it arrived, in which of the last five slots
//! it moved, when it last began something and how it answered when it was asked; makes a
//! [`Finding`]. It knows no user, no connection, no kernel and no clock.
//!
//! Time is cut into *slots* of a fifth of the window. The rule:
//!
//! 1. A source counts once its arrival (its first move after a silence longer than the window) is
//!    [`SETTLED`] slots old, and if it moved in [`TAKING_PART`] of the last [`SLOTS`]. A newer one, or
//!    one at which somebody was for a moment, decides nothing and holds nothing up.
//! 2. A slot *overlaps* when more sources moved in it than there are places. One such slot means
//!    nothing: phones change networks. [`OVERLAPS`] of the last [`SLOTS`], the latest included, do.
//! 3. A source *begins* when it opens a connection on which payload comes: a device is there at that
//!    moment. One device is where it began last, and what moves elsewhere may be a network that it
//!    has left, on which bytes may move for half a minute. So a source that only *finishes* what it
//!    had begun is *asked*: one connection of it is reset. A device that is there opens another at
//!    once, and from there; one that has left opens it where it is now.
//! 4. Two that answered within a window of each other are two devices: a single one, which may have
//!    been coming back in that very second when it answered the first time, would have had to move
//!    again to answer the second. Those who answered are a *violation* as soon as they overlap by
//!    themselves.
//! 5. A user who turned from one source to another and back within a window may be flapping between
//!    two networks: nothing is decided until he has settled. If he keeps on turning, all are asked,
//!    and only [`ANSWERS`] prompt answers in a row of each prove anything.
//! 6. [`CROSSING`] turns within a window are more than one device can make: then whoever began within
//!    it is at work.
//!
//! How many slots 1 and 2 take is given with the sources ([`Patience`]): fewer where it is known
//! already that the account is shared. The numbers of 4 to 6 come from the simulation (`tests/sim.rs`).

use std::time::Duration;

use crate::moment::Moment;

/// How many slots make a window.
pub const SLOTS: u32 = 5;
/// How many of them have to overlap.
pub const OVERLAPS: u32 = 4;
/// How old an arrival has to be, slots.
pub const SETTLED: u32 = 4;
/// In how many slots, and how old an arrival, where it is known already that the account is shared:
/// the device that was cut may be back in the other address family.
pub const AT_ONCE: Patience = Patience { overlaps: 2, settled: 1 };
/// The usual.
pub const USUAL: Patience = Patience { overlaps: OVERLAPS, settled: SETTLED };
/// In how many of them a source has to move to take part in that. With 3, one of forty devices that
/// share an account was sometimes not seen in the simulation.
pub const TAKING_PART: u32 = 2;
/// So many turns within a window are more than one device can make.
pub const CROSSING: u32 = 4;
/// So many turns within [`LATELY`] make a user restless.
pub const RESTLESS: u32 = 3;
/// How far back turns make a user restless, windows.
pub const LATELY: u32 = 6;
/// So many prompt answers in a row prove a device of a restless user.
pub const ANSWERS: u32 = 3;

/// How long sources have to overlap.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Patience {
    /// In how many of the last [`SLOTS`] slots, the latest included.
    pub overlaps: u32,
    /// How old the last arrival has to be, slots.
    pub settled: u32,
}

/// One source as the question sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Occupied {
    /// Its first move after a silence longer than the window.
    pub arrival: Moment,
    /// In which of the last [`SLOTS`] slots it moved; bit 0 is the latest.
    pub moved: u8,
    /// The last moment from which on payload is known to have come on a connection that was opened
    /// no earlier.
    pub begun: Option<Moment>,
    /// When it answered the last question, if it did.
    pub answered: Option<Moment>,
    /// How many questions it has answered promptly in a row.
    pub answers: u32,
    /// It may be asked now.
    pub may_be_asked: bool,
}

/// How often a user began elsewhere than where he had begun before, answers not counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Turns {
    /// Within the last window.
    pub now: u32,
    /// Within the last [`LATELY`] windows.
    pub lately: u32,
}

/// What the sources of one family amount to. Numbers are places in what was given.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Finding {
    /// No more sources than places.
    Calm,
    /// More than places, and somebody has yet to show that he is there.
    Undecided,
    /// These only finish: ask them.
    Ask(Vec<usize>),
    /// These are at work at once.
    Violation(Vec<usize>),
}

/// Applies the rule to the sources of one family. `turns` are the user's, or `None` where nobody is
/// asked and whoever overlaps is taken for a device; `slot` is the length of a slot.
#[must_use]
pub fn judge(
    sources: &[Occupied],
    places: usize,
    turns: Option<Turns>,
    patience: Patience,
    slot: Duration,
    now: Moment,
) -> Finding {
    let Patience { overlaps, settled } = patience;
    let is_settled = |source: &Occupied| {
        now.saturating_since(source.arrival) >= slot * settled
            && source.moved.count_ones() >= TAKING_PART
    };
    let mut members: Vec<usize> =
        sources.iter().enumerate().filter(|(_, it)| is_settled(it)).map(|(n, _)| n).collect();
    let Some(overlap) = overlapping(sources, &members, places, overlaps) else {
        return Finding::Calm;
    };
    members.retain(|place| sources.get(*place).is_some_and(|it| it.moved & overlap != 0));
    let Some(turns) = turns else { return Finding::Violation(members) };

    let window = slot * SLOTS;
    let is_crossing = turns.now >= CROSSING;
    let is_restless = turns.lately >= RESTLESS;
    if turns.now >= 2 && !is_crossing && !is_restless {
        return Finding::Undecided;
    }
    let recent = |moment: Option<Moment>| {
        moment.is_some_and(|moment| now.saturating_since(moment) <= window)
    };
    let is_proven = |it: &Occupied| {
        if is_crossing {
            recent(it.begun)
        } else if is_restless {
            recent(it.answered) && it.answers >= ANSWERS
        } else {
            recent(it.answered)
        }
    };
    let mut proven = members.clone();
    proven.retain(|place| sources.get(*place).is_some_and(is_proven));
    if overlapping(sources, &proven, places, overlaps).is_some() {
        return Finding::Violation(proven);
    }

    let latest = members
        .iter()
        .copied()
        .max_by_key(|place| sources.get(*place).map(|it| it.begun.unwrap_or(it.arrival)));
    let mut asked = members;
    asked.retain(|place| {
        sources.get(*place).is_some_and(|it| {
            // Where he began last, he is.
            it.may_be_asked && !recent(it.answered) && (is_restless || Some(*place) != latest)
        })
    });
    if asked.is_empty() { Finding::Undecided } else { Finding::Ask(asked) }
}

/// The slots in which more of `members` moved than there are places, if they are enough.
fn overlapping(
    sources: &[Occupied],
    members: &[usize],
    places: usize,
    overlaps: u32,
) -> Option<u8> {
    let moved = |slot: u32| {
        let each = members.iter().filter_map(|place| sources.get(*place));
        each.filter(|source| source.moved >> slot & 1 == 1).count()
    };
    let overlap =
        (0..SLOTS).filter(|slot| moved(*slot) > places).fold(0u8, |slots, slot| slots | 1 << slot);
    (overlap & 1 == 1 && overlap.count_ones() >= overlaps).then_some(overlap)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SLOT: Duration = Duration::from_secs(1);
    const ALL: u8 = 0b1_1111;
    const ONE_TURN: Turns = Turns { now: 1, lately: 1 };

    fn at(second: u64) -> Moment {
        Moment::from_nanos(second * 1_000_000_000)
    }

    fn source(arrival: u64, moved: u8, begun: u64) -> Occupied {
        Occupied {
            arrival: at(arrival),
            moved,
            begun: Some(at(begun)),
            answered: None,
            answers: 0,
            may_be_asked: true,
        }
    }

    fn answered(source: Occupied, answered: u64, answers: u32) -> Occupied {
        Occupied {
            answered: Some(at(answered)),
            begun: Some(at(answered)),
            answers,
            may_be_asked: false,
            ..source
        }
    }

    #[track_caller]
    fn check(sources: &[Occupied], places: usize, turns: Turns, expected: &Finding) {
        assert_eq!(&judge(sources, places, Some(turns), USUAL, SLOT, at(100)), expected);
    }

    #[test]
    fn one_source_a_place_is_calm() {
        check(&[source(0, ALL, 99)], 1, ONE_TURN, &Finding::Calm);
        check(&[source(0, ALL, 99), source(50, ALL, 99)], 2, ONE_TURN, &Finding::Calm);
        check(&[], 1, ONE_TURN, &Finding::Calm);
    }

    #[test]
    fn who_only_finishes_is_asked_once_the_other_has_settled() {
        let both = |arrival| [source(0, ALL, 10), source(arrival, ALL, arrival)];
        check(&both(96), 1, ONE_TURN, &Finding::Ask(vec![0]));
        check(&both(97), 1, ONE_TURN, &Finding::Calm);
    }

    #[test]
    fn four_slots_of_five_with_the_latest_have_to_overlap() {
        let with = |moved| [source(0, ALL, 10), source(50, moved, 96)];
        for moved in [0b1_1111, 0b0_1111, 0b1_0111, 0b1_1101] {
            check(&with(moved), 1, ONE_TURN, &Finding::Ask(vec![0]));
        }
        for moved in [0b1_1110, 0b0_0111, 0b1_0101, 0] {
            check(&with(moved), 1, ONE_TURN, &Finding::Calm);
        }
    }

    #[test]
    fn one_answer_proves_nobody_and_a_second_from_elsewhere_proves_both() {
        // A phone may have been coming back when it answered, from where it began a moment ago.
        let first = answered(source(0, ALL, 10), 99, 1);
        check(&[first, source(95, ALL, 95)], 1, ONE_TURN, &Finding::Ask(vec![1]));
        let second = answered(source(50, ALL, 90), 100, 1);
        check(&[first, second], 1, ONE_TURN, &Finding::Violation(vec![0, 1]));
    }

    #[test]
    fn whoever_begins_after_an_answer_may_be_the_one_who_answered() {
        // He answered from the first network, then moved to the second.
        let first = answered(source(0, ALL, 10), 97, 1);
        let moved_on = source(50, ALL, 99);
        check(&[first, moved_on], 1, ONE_TURN, &Finding::Undecided);
    }

    #[test]
    fn who_may_not_be_asked_again_is_waited_for() {
        let first = Occupied { may_be_asked: false, ..source(0, ALL, 10) };
        check(&[first, source(50, ALL, 96)], 1, ONE_TURN, &Finding::Undecided);
    }

    #[test]
    fn without_the_question_whoever_overlaps_is_taken_for_a_device() {
        let both = [source(0, ALL, 10), source(50, ALL, 50)];
        let finding = judge(&both, 1, None, USUAL, SLOT, at(100));
        assert_eq!(finding, Finding::Violation(vec![0, 1]));
    }

    #[test]
    fn where_it_is_known_to_be_shared_two_slots_are_enough_and_the_answers_are_wanted_all_the_same()
    {
        let both = |arrival, moved| [source(0, ALL, 99), source(arrival, moved, arrival)];
        let at_once = |sources: &[Occupied]| {
            judge(sources, 1, Some(Turns::default()), AT_ONCE, SLOT, at(100))
        };
        assert_eq!(at_once(&both(98, 0b0_0011)), Finding::Ask(vec![1]));
        assert_eq!(at_once(&both(99, 0b0_0001)), Finding::Calm);
        assert_eq!(at_once(&both(90, 0b1_1110)), Finding::Calm, "not in the latest");
    }

    #[test]
    fn a_source_that_keeps_arriving_holds_up_nothing_about_others() {
        let three = [source(0, ALL, 10), source(50, ALL, 96), source(99, 1, 99)];
        check(&three, 1, ONE_TURN, &Finding::Ask(vec![0]));
    }

    #[test]
    fn a_lingering_third_does_not_protect_two_devices() {
        let first = answered(source(0, ALL, 10), 100, 1);
        let last = answered(source(50, ALL, 96), 100, 1);
        let three = [first, source(20, ALL, 30), last];
        check(&three, 1, ONE_TURN, &Finding::Violation(vec![0, 2]));
        check(&three, 2, ONE_TURN, &Finding::Ask(vec![1]));
    }

    #[test]
    fn where_somebody_was_for_a_moment_nobody_goes_with_those_who_are_too_many() {
        let crossing = Turns { now: 4, lately: 4 };
        let left = source(50, 0b1_0000, 96);
        let three = [source(0, ALL, 98), left, source(50, ALL, 99)];
        check(&three, 1, crossing, &Finding::Violation(vec![0, 2]));
        let passing = [source(0, ALL, 98), left, source(50, 0b0_0111, 99)];
        check(&passing, 1, crossing, &Finding::Calm);
    }

    #[test]
    fn who_turned_back_within_a_window_is_given_time_to_settle() {
        let both = [answered(source(0, ALL, 10), 100, 1), source(95, ALL, 95)];
        check(&both, 1, Turns { now: 2, lately: 2 }, &Finding::Undecided);
    }

    #[test]
    fn of_a_restless_user_all_are_asked_and_only_answers_in_a_row_count() {
        let restless = Turns { now: 2, lately: 3 };
        let both = [source(0, ALL, 96), source(50, ALL, 99)];
        check(&both, 1, restless, &Finding::Ask(vec![0, 1]));
        let with = |answers| {
            [answered(source(0, ALL, 0), 100, answers), answered(source(9, ALL, 9), 100, 3)]
        };
        check(&with(2), 1, restless, &Finding::Undecided);
        check(&with(3), 1, restless, &Finding::Violation(vec![0, 1]));
    }

    #[test]
    fn more_turns_than_one_device_can_make_prove_those_who_began_meanwhile() {
        let crossing = Turns { now: 4, lately: 4 };
        let both = [source(0, ALL, 98), source(50, ALL, 99)];
        check(&both, 1, crossing, &Finding::Violation(vec![0, 1]));
        let three = [source(0, ALL, 98), source(50, ALL, 99), source(20, ALL, 60)];
        check(&three, 1, crossing, &Finding::Violation(vec![0, 1]));
    }
}
