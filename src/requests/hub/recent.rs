//! A set that forgets its oldest member when it is full.

use std::{
    collections::{HashSet, VecDeque},
    hash::Hash,
};

use super::REMEMBERED_ORPHANS;

/// At most [`REMEMBERED_ORPHANS`] members.
#[derive(Debug)]
pub(super) struct Recent<T> {
    members: HashSet<T>,
    order: VecDeque<T>,
}

impl<T> Default for Recent<T> {
    fn default() -> Self {
        Self { members: HashSet::new(), order: VecDeque::new() }
    }
}

impl<T: Clone + Eq + Hash> Recent<T> {
    pub(super) fn contains(&self, member: &T) -> bool {
        self.members.contains(member)
    }

    pub(super) fn insert(&mut self, member: T) {
        if !self.members.insert(member.clone()) {
            return;
        }
        self.order.push_back(member);
        if self.order.len() > REMEMBERED_ORPHANS
            && let Some(oldest) = self.order.pop_front()
        {
            self.members.remove(&oldest);
        }
    }
}
