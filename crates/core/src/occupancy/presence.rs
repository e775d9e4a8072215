//! One user at one source, as the kernel's counters show him: when he came, and when he moves.
//!
//! Takes moves with their moments and bytes; keeps the last slots, the arrival, what was begun and
//! what was asked. It knows no name and no other source, and asks nobody.

use std::{net::IpAddr, time::Duration};

use crate::{
    moment::Moment,
    network::Source,
    overlap::{Occupied, SLOTS},
    sighting::{Peer, Transport},
    tags::Tag,
};

/// An answer within a slot is prompt, and one within this in any case: what was reset has to be
/// noticed, opened again, let in and logged.
const PROMPT_AT_LEAST: Duration = Duration::from_secs(1);
/// How many times as long an answer may take that is late.
const LATE: u32 = 3;
/// Questions without an answer put the next one off: by 2, 4 and at most 8 windows.
const MOST_PUT_OFF: u32 = 3;

/// Slots whose bytes are kept for the record.
pub(super) const SLOTS_KEPT: usize = SLOTS as usize;

/// Addresses of a source kept that a ban has named: a further ban of one that is not kept does no
/// harm.
const BANNED_KEPT: usize = 64;

/// Payload may be dated so much too early: the kernel counts its age in ticks (10 ms at HZ=100), and
/// from a moment a little after the one that it is subtracted from.
const DATED_WITHIN: Duration = Duration::from_millis(25);

/// The lengths of time that a presence is measured with.
#[derive(Clone, Copy, Debug)]
pub(super) struct Measures {
    pub(super) window: Duration,
    pub(super) slot: Duration,
}

impl Measures {
    pub(super) fn of(window: Duration) -> Self {
        // A slot of no length would be divided by; windows are milliseconds at least in practice.
        Self { window, slot: (window / SLOTS).max(Duration::from_nanos(1)) }
    }

    /// The number of the slot that `moment` is in.
    pub(super) fn slot_of(self, moment: Moment) -> u64 {
        let length = u64::try_from(self.slot.as_nanos()).unwrap_or(u64::MAX);
        moment.as_nanos() / length
    }

    /// When a slot is over.
    pub(super) fn end_of(self, slot: u64) -> Moment {
        let length = u64::try_from(self.slot.as_nanos()).unwrap_or(u64::MAX);
        Moment::from_nanos(slot.saturating_add(1).saturating_mul(length))
    }
}

/// A user at a source.
#[derive(Clone, Debug)]
pub(super) struct Presence {
    pub(super) source: Source,
    /// The user's name as the last line from here wrote it.
    pub(super) shown_as: Box<[u8]>,
    /// The last connection that a line named here.
    pub(super) peer: Peer,
    pub(super) transport: Transport,
    pub(super) tag: Tag,
    /// What seniority is ranked by.
    pub(super) first_seen: Moment,
    /// The first move after a silence longer than the window.
    pub(super) arrival: Moment,
    pub(super) last_move: Moment,
    /// Until here it cannot be ruled out that it moved.
    quiet_since: Moment,
    /// The latest slot that `moved` and `bytes` tell of.
    slot: u64,
    /// Bit 0 is `slot`, bit 1 the one before.
    moved: u16,
    /// In the same order.
    bytes: [u64; SLOTS_KEPT],
    begun: Option<Moment>,
    /// The last question.
    pub(super) asked: Option<Moment>,
    /// When that was answered.
    pub(super) answered: Option<Moment>,
    /// The last question was answered late.
    was_late: bool,
    /// Questions answered promptly in a row.
    answers: u32,
    /// Questions answered late in a row.
    late_answers: u32,
    /// Questions without any answer in a row; no more are counted than put the next one off.
    unanswered: u32,
    /// Open connections that the user owns here, the one that moved last at the end.
    pub(super) connections: Vec<Peer>,
    /// It was acted upon, and is no party to another verdict before this.
    pub(super) acted_until: Moment,
    /// When that was, as far as it is known.
    pub(super) acted_at: Option<Moment>,
    /// The addresses that were named when it was banned, the last [`BANNED_KEPT`] of them.
    pub(super) banned: Vec<IpAddr>,
    /// New connections of the user from here are reset on sight before this.
    pub(super) ordered_until: Moment,
}

impl Presence {
    pub(super) fn new(source: Source, peer: Peer, shown_as: &[u8], now: Moment) -> Self {
        Self {
            source,
            shown_as: shown_as.into(),
            peer,
            transport: Transport::Unstated,
            tag: Tag::default(),
            first_seen: now,
            arrival: now,
            last_move: now,
            quiet_since: now,
            slot: 0,
            moved: 0,
            bytes: [0; SLOTS_KEPT],
            begun: None,
            asked: None,
            answered: None,
            was_late: false,
            answers: 0,
            late_answers: 0,
            unanswered: 0,
            connections: Vec::new(),
            acted_until: Moment::default(),
            acted_at: None,
            banned: Vec::new(),
            ordered_until: Moment::default(),
        }
    }

    /// Payload moved at `at`, or a connection was opened then.
    pub(super) fn moves(&mut self, at: Moment, bytes: u64, measures: Measures) {
        let slot = measures.slot_of(at);
        if slot > self.slot {
            let passed = slot - self.slot;
            self.moved =
                u32::try_from(passed).ok().map_or(0, |by| self.moved.checked_shl(by).unwrap_or(0));
            let by = usize::try_from(passed).unwrap_or(SLOTS_KEPT).min(SLOTS_KEPT);
            self.bytes.rotate_right(by);
            self.bytes.iter_mut().take(by).for_each(|bytes| *bytes = 0);
            self.slot = slot;
        }
        let ago = self.slot - slot;
        if let Some(bit) = u32::try_from(ago).ok().and_then(|ago| 1u16.checked_shl(ago)) {
            self.moved |= bit;
        }
        if let Some(sum) = usize::try_from(ago).ok().and_then(|ago| self.bytes.get_mut(ago)) {
            *sum = sum.saturating_add(bytes);
        }
        if at.saturating_since(self.quiet_since) > measures.window {
            self.arrival = at;
        }
        self.last_move = self.last_move.max(at);
        self.may_have_moved(at);
    }

    /// It cannot be ruled out that payload moved until `at`.
    pub(super) fn may_have_moved(&mut self, at: Moment) {
        self.quiet_since = self.quiet_since.max(at);
    }

    /// Payload came at `received` on a connection that was opened at `opened`.
    ///
    /// It may answer a question. One answer that comes late may be a device that came back just
    /// then; two in a row are not.
    pub(super) fn begins(&mut self, opened: Moment, received: Moment, measures: Measures) {
        let begun = opened.min(received);
        if self.begun.is_some_and(|known| known >= begun) {
            return;
        }
        self.begun = Some(begun);
        let is_answer =
            |asked: &Moment| opened > *asked && received.saturating_add(DATED_WITHIN) > *asked;
        let Some(asked) = self.asked.filter(|asked| self.answered.is_none() && is_answer(asked))
        else {
            return;
        };
        let took = opened.saturating_since(asked);
        let prompt = measures.slot.max(PROMPT_AT_LEAST);
        if took <= prompt {
            self.answers += 1;
            self.late_answers = 0;
            self.answered = Some(opened);
        } else if took <= prompt * LATE && !self.was_late {
            self.was_late = true;
            self.answers = 0;
            self.late_answers += 1;
            self.answered = (self.late_answers >= 2).then_some(opened);
        }
    }

    /// A question is put to it.
    pub(super) fn is_asked(&mut self, now: Moment) {
        if self.answered.is_some() {
            self.unanswered = 0;
        } else if self.asked.is_some() {
            self.answers = 0;
            if !self.was_late {
                self.late_answers = 0;
                self.unanswered = (self.unanswered + 1).min(MOST_PUT_OFF);
            }
        }
        self.asked = Some(now);
        self.answered = None;
        self.was_late = false;
    }

    /// A question is out that was not answered yet.
    pub(super) fn owes_an_answer(&self) -> bool {
        self.asked.is_some() && self.answered.is_none()
    }

    /// As the question sees it at the end of `slot`. That it is silent after it was asked is the
    /// question's doing, and nothing in its favour, for a window.
    pub(super) fn occupied(&self, slot: u64, measures: Measures, now: Moment) -> Occupied {
        let silenced = self.asked.filter(|asked| is_recent(*asked, now, measures));
        let silenced = silenced.map_or(0, |asked| {
            let since = slot.checked_sub(measures.slot_of(asked));
            let slots = since.and_then(|since| u32::try_from(since + 1).ok()).unwrap_or_default();
            1u8.checked_shl(slots.min(SLOTS)).unwrap_or_default().wrapping_sub(1)
        });
        Occupied {
            arrival: self.arrival,
            moved: self.moved_until(slot) | silenced,
            begun: self.begun,
            answered: self.answered,
            answers: self.answers,
            may_be_asked: !self.connections.is_empty()
                && self.asked.is_none_or(|asked| {
                    // Who does not answer has probably left, and is asked ever less often.
                    now.saturating_since(asked) >= measures.window * (1 << self.unanswered)
                }),
        }
    }

    /// Whether it moved in the last slots up to `slot`; bit 0 is `slot`.
    pub(super) fn moved_until(&self, slot: u64) -> u8 {
        let moved = if slot >= self.slot {
            let by = u32::try_from(slot - self.slot).unwrap_or(u32::MAX);
            self.moved.checked_shl(by).unwrap_or(0)
        } else {
            let by = u32::try_from(self.slot - slot).unwrap_or(u32::MAX);
            self.moved.checked_shr(by).unwrap_or(0)
        };
        let [_, low] = (moved & ((1 << SLOTS) - 1)).to_be_bytes();
        low
    }

    /// The bytes that were seen to move in the last slots, the earliest first.
    pub(super) fn bytes_until(&self, slot: u64) -> [u64; SLOTS_KEPT] {
        let mut bytes = [0; SLOTS_KEPT];
        for (ago, sum) in (0u64..).zip(bytes.iter_mut().rev()) {
            let place = self.slot.checked_sub(slot.saturating_sub(ago));
            let kept = place.and_then(|place| usize::try_from(place).ok());
            *sum = kept.and_then(|place| self.bytes.get(place)).copied().unwrap_or_default();
        }
        bytes
    }

    /// It moved within the last window.
    pub(super) fn is_present(&self, measures: Measures, now: Moment) -> bool {
        now.saturating_since(self.last_move) < measures.window
    }

    /// It may be at work: it is present, or what it has open may move.
    pub(super) fn may_be_at_work(&self, measures: Measures, now: Moment) -> bool {
        !self.connections.is_empty() || self.is_present(measures, now)
    }

    /// The last sign of life.
    pub(super) fn last_seen(&self) -> Moment {
        self.last_move.max(self.quiet_since)
    }

    /// A connection that was not known is open here.
    pub(super) fn opens(&mut self, peer: Peer) {
        self.connections.push(peer);
    }

    /// A connection is no longer the user's, or no longer there.
    pub(super) fn loses(&mut self, peer: Peer) {
        if let Some(place) = self.connections.iter().rposition(|open| *open == peer) {
            self.connections.remove(place);
        }
    }

    /// A connection moved: it is looked at first the next time.
    pub(super) fn prefers(&mut self, peer: Peer) {
        if let Some(place) = self.connections.iter().rposition(|open| *open == peer)
            && let Some(tail) = self.connections.get_mut(place..)
        {
            tail.rotate_left(1);
        }
    }

    /// The open connection that moved last.
    pub(super) fn liveliest(&self) -> Option<Peer> {
        self.connections.last().copied()
    }

    /// A ban names `address` of this source.
    pub(super) fn is_banned_at(&mut self, address: IpAddr) {
        if self.banned.contains(&address) {
            return;
        }
        if self.banned.len() == BANNED_KEPT {
            self.banned.remove(0);
        }
        self.banned.push(address);
    }

    /// Begins anew with slots of another length.
    pub(super) fn forget_slots(&mut self) {
        (self.slot, self.moved, self.bytes) = (0, 0, [0; SLOTS_KEPT]);
    }

    /// When the order fell by which the user's new connections are reset here, if there was one.
    pub(super) fn ordered_at(&self) -> Option<Moment> {
        self.acted_at.filter(|_| self.ordered_until != Moment::default())
    }

    /// Takes over what is remembered from an earlier run.
    pub(super) fn restore(&mut self, first_seen: Moment, arrival: Moment, last_move: Moment) {
        (self.first_seen, self.arrival, self.last_move) = (first_seen, arrival, last_move);
        self.quiet_since = last_move;
    }
}

fn is_recent(asked: Moment, now: Moment, measures: Measures) -> bool {
    now.saturating_since(asked) < measures.window
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(millis: u64) -> Moment {
        Moment::from_nanos(millis * 1_000_000)
    }

    fn presence(now: Moment) -> Presence {
        let peer = Peer { address: [198, 51, 100, 7].into(), port: 1 };
        Presence::new(Source::of(peer.address, 32, 64), peer, b"alice", now)
    }

    fn measures() -> Measures {
        Measures::of(Duration::from_secs(5))
    }

    #[test]
    fn slots_are_a_fifth_of_the_window_and_remember_moves_and_bytes() {
        let mut presence = presence(at(1_000));
        for (millis, bytes) in [(1_000, 1), (1_900, 2), (3_000, 4), (4_999, 8)] {
            presence.moves(at(millis), bytes, measures());
        }
        assert_eq!(measures().slot_of(at(4_999)), 4);
        assert_eq!(presence.moved_until(4), 0b0_1011);
        assert_eq!(presence.moved_until(5), 0b1_0110);
        assert_eq!(presence.moved_until(3), 0b0_0101);
        assert_eq!(presence.moved_until(40), 0);
        assert_eq!(presence.bytes_until(4), [0, 3, 0, 4, 8]);
        assert_eq!(presence.bytes_until(6), [0, 4, 8, 0, 0]);
        presence.moves(at(60_000), 16, measures());
        assert_eq!(presence.moved_until(60), 1);
        assert_eq!(presence.bytes_until(60), [0, 0, 0, 0, 16]);
    }

    #[test]
    fn a_move_that_is_heard_of_late_counts_in_its_own_slot() {
        let mut presence = presence(at(1_000));
        presence.moves(at(4_100), 1, measures());
        presence.moves(at(2_100), 2, measures());
        assert_eq!(presence.moved_until(4), 0b0_0101);
        assert_eq!(presence.bytes_until(4), [0, 0, 2, 0, 1]);
        assert_eq!(presence.last_move, at(4_100));
    }

    #[test]
    fn a_silence_longer_than_the_window_makes_an_arrival() {
        let mut presence = presence(at(1_000));
        presence.moves(at(6_000), 1, measures());
        assert_eq!(presence.arrival, at(1_000));
        presence.moves(at(11_001), 1, measures());
        assert_eq!(presence.arrival, at(11_001));
    }

    #[test]
    fn what_may_have_been_a_move_is_no_silence() {
        let mut presence = presence(at(1_000));
        presence.may_have_moved(at(5_500));
        presence.moves(at(10_000), 1, measures());
        assert_eq!(presence.arrival, at(1_000));
    }

    #[test]
    fn silence_after_a_question_is_nothing_in_favour_of_who_was_asked() {
        let mut presence = presence(at(1_000));
        presence.moves(at(4_500), 1, measures());
        presence.is_asked(at(5_001));
        let moved = |slot, now| presence.occupied(slot, measures(), at(now)).moved;
        assert_eq!(moved(4, 5_001), 0b0_0001);
        assert_eq!(moved(5, 6_100), 0b0_0011);
        assert_eq!(moved(7, 8_100), 0b0_1111);
        assert_eq!(moved(9, 10_100), 0, "the window is over");
    }

    #[test]
    fn payload_of_an_answer_may_be_dated_a_tick_too_early() {
        let mut presence = presence(at(1_000));
        presence.is_asked(at(5_000));
        presence.begins(at(5_010), at(4_996), measures());
        assert_eq!(presence.answered, Some(at(5_010)));
    }

    #[test]
    fn who_is_asked_answers_by_what_he_begins_afterwards() {
        let mut presence = presence(at(1_000));
        presence.is_asked(at(5_000));
        presence.begins(at(4_000), at(5_500), measures());
        assert_eq!(presence.begun, Some(at(4_000)), "an older connection");
        assert!(presence.owes_an_answer());
        presence.begins(at(5_100), at(4_900), measures());
        assert_eq!(presence.begun, Some(at(4_900)), "a line that came late");
        assert!(presence.owes_an_answer());
        presence.begins(at(5_200), at(5_300), measures());
        assert_eq!(presence.begun, Some(at(5_200)));
        assert!(!presence.owes_an_answer());
        for opened in [5_150, 5_200] {
            presence.begins(at(opened), at(5_400), measures());
            assert_eq!(presence.begun, Some(at(5_200)), "no news");
        }
        assert_eq!((presence.answered, presence.answers), (Some(at(5_200)), 1));
    }

    #[test]
    fn one_late_answer_is_none_and_two_in_a_row_are_one() {
        let mut presence = presence(at(1_000));
        for (asked, begun, is_answered) in [
            (10_000, 12_500, false),
            // Nothing at all in between.
            (20_000, 0, false),
            (40_000, 42_500, false),
            (50_000, 52_500, true),
            (60_000, 64_000, false),
        ] {
            presence.is_asked(at(asked));
            if begun > 0 {
                presence.begins(at(begun), at(begun), measures());
            }
            assert_eq!(presence.answered.is_some(), is_answered, "asked at {asked}");
            assert_eq!(presence.answers, 0, "none of them is prompt");
        }
    }

    #[test]
    fn who_does_not_answer_is_asked_ever_less_often() {
        let mut presence = presence(at(1_000));
        presence.opens(Peer { address: [198, 51, 100, 7].into(), port: 1 });
        let mut now = 10_000;
        for windows in [1, 2, 4, 8, 8] {
            presence.is_asked(at(now));
            let may =
                |presence: &Presence, now| presence.occupied(0, measures(), at(now)).may_be_asked;
            assert!(!may(&presence, now + windows * 5_000 - 1));
            now += windows * 5_000;
            assert!(may(&presence, now));
        }
        presence.is_asked(at(now));
        presence.begins(at(now + 100), at(now + 100), measures());
        presence.is_asked(at(now + 5_000));
        assert!(presence.occupied(0, measures(), at(now + 10_000)).may_be_asked);
    }
}
