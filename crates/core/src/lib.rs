//! Decides.
//!
//! | room | what it does |
//! |---|---|
//! | [`mod@line`] | bytes to lines, bounded |

pub mod line;
