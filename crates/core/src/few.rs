//! A list that is nearly always one item long, with that item in place.
//!
//! Nearly every user has one source. A vector would put it elsewhere in memory, and with many
//! users each line would wait for that one more read from memory: it is most of what a line costs.

/// Items in order, the first in place.
#[derive(Clone, Debug)]
pub(crate) struct Few<T> {
    first: Option<T>,
    rest: Vec<T>,
}

impl<T> Few<T> {
    pub(crate) const fn new() -> Self {
        Self { first: None, rest: Vec::new() }
    }

    pub(crate) fn len(&self) -> usize {
        usize::from(self.first.is_some()) + self.rest.len()
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &T> {
        self.first.iter().chain(&self.rest)
    }

    pub(crate) fn iter_mut(&mut self) -> impl Iterator<Item = &mut T> {
        self.first.iter_mut().chain(&mut self.rest)
    }

    pub(crate) fn push(&mut self, item: T) {
        match self.first {
            None => self.first = Some(item),
            Some(_) => self.rest.push(item),
        }
    }

    /// Keeps what `keep` wants, in order.
    pub(crate) fn retain(&mut self, mut keep: impl FnMut(&T) -> bool) {
        self.first = self.first.take().filter(&mut keep);
        self.rest.retain(keep);
        if self.first.is_none() && !self.rest.is_empty() {
            self.first = Some(self.rest.remove(0));
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn it_behaves_like_a_vector(pushed in prop::collection::vec(0u8..8, 0..12), dropped in 0u8..8) {
            let (mut few, mut vector) = (Few::new(), Vec::new());
            for item in pushed {
                few.push(item);
                vector.push(item);
            }
            few.retain(|item| *item != dropped);
            vector.retain(|item| *item != dropped);
            few.push(dropped);
            vector.push(dropped);
            for item in few.iter_mut().chain(&mut vector) {
                *item += 1;
            }
            prop_assert_eq!(few.len(), vector.len());
            prop_assert_eq!(few.iter().collect::<Vec<_>>(), vector.iter().collect::<Vec<_>>());
        }
    }
}
