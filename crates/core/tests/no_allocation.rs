//! A line of a live session allocates nothing, from its bytes to the verdict.
//!
//! A program of its own, because the allocator is one for the whole program.

#![cfg(test)]
#![expect(unsafe_code, reason = "an allocator that counts is the only way to see an allocation")]

use std::{
    alloc::{GlobalAlloc, Layout, System},
    cell::Cell,
    time::Duration,
};

use refract_core::{Evidence, Exemptions, Moment, Policy, Roster, Verdict, access};

thread_local! {
    static ALLOCATIONS: Cell<u64> = const { Cell::new(0) };
}

struct Counting;

// SAFETY: every call is handed to the system's allocator as it came.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.set(ALLOCATIONS.get() + 1);
        // SAFETY: the caller's promise is passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: the caller's promise is passed on.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

#[test]
fn a_line_of_a_live_session_allocates_nothing() {
    let lines: Vec<String> = ["198.51.100.11:40833", "tcp:[2001:db8::11]:40834"]
        .into_iter()
        .flat_map(|peer| {
            [
                "alice@example.com",
                "Ünal@Example.com",
                "a-name-that-is-longer-than-most@mail.example.com",
            ]
            .map(|user| {
                format!(
                    "2026/11/23 09:44:06 from {peer} accepted tcp:h:443 [in >> out] email: {user}"
                )
            })
        })
        .collect();
    let exemptions = Exemptions::default();
    let mut roster = Roster::new(Policy::default());
    let mut round = |second: u64| {
        let now = Moment::default().saturating_add(Duration::from_secs(second));
        for line in &lines {
            let sighting = access::parse(line.as_bytes()).unwrap();
            assert_eq!(exemptions.reason(sighting.peer.address), None);
            assert_eq!(roster.observe(&sighting, Evidence::Log, now), Verdict::Admit);
        }
        roster.tick(now);
    };
    round(0);
    let before = ALLOCATIONS.get();
    // For more than an hour, so that the neighbours' table is told again too.
    for second in 1..4_000 {
        round(second);
    }
    assert_eq!(ALLOCATIONS.get() - before, 0);
    assert_ne!(before, 0, "the allocator counts");
}
