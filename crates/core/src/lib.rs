//! Decides.
//!
//! | room | what it does |
//! |---|---|
//! | [`line`] | bytes to lines, bounded |

pub mod line;
