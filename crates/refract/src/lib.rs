//! Joins.
//!
//! | room | what it does |
//! |---|---|
//! | [`tail`] | follows the access log, whatever becomes of it |

pub mod tail;
