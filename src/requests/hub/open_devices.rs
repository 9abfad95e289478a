//! Counts the devices of the open requests, in total and for each caller that ordered some.

use std::{collections::HashMap, sync::Arc};

use crate::requests::fold::state::Request;

#[derive(Debug, Default)]
pub(super) struct OpenDevices {
    total: usize,
    /// Without the requests whose caller is not known: external ones, and those that earlier
    /// releases ordered.
    by_caller: HashMap<Arc<str>, usize>,
}

/// What one request adds to the counts.
#[derive(Debug, Clone, Default)]
pub(super) struct RequestDevices {
    caller: Option<Arc<str>>,
    open: usize,
}

impl RequestDevices {
    pub(super) fn of(request: &Request) -> Self {
        let open = if request.is_closed() { 0 } else { request.counts.total };
        Self { caller: request.caller.clone(), open }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.open == 0
    }
}

impl OpenDevices {
    /// Replaces what a request added before.
    pub(super) fn replace(&mut self, before: &RequestDevices, after: RequestDevices) {
        self.total = self.total + after.open - before.open;
        if let Some(caller) = &before.caller
            && let Some(count) = self.by_caller.get_mut(caller)
        {
            *count -= before.open;
            if *count == 0 {
                self.by_caller.remove(caller);
            }
        }
        if let Some(caller) = after.caller.filter(|_| after.open > 0) {
            *self.by_caller.entry(caller).or_default() += after.open;
        }
    }

    pub(super) fn total(&self) -> usize {
        self.total
    }

    pub(super) fn of_caller(&self, caller: &str) -> usize {
        self.by_caller.get(caller).copied().unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn devices(caller: Option<&str>, open: usize) -> RequestDevices {
        RequestDevices { caller: caller.map(Into::into), open }
    }

    #[test]
    fn each_caller_has_its_own_count() {
        let (mut counts, nothing) = (OpenDevices::default(), RequestDevices::default());
        counts.replace(&nothing, devices(Some("a"), 3));
        counts.replace(&nothing, devices(Some("b"), 4));
        counts.replace(&nothing, devices(None, 5));
        assert_eq!((counts.total(), counts.of_caller("a"), counts.of_caller("b")), (12, 3, 4));
        // A status answer adds a device, a withdrawal takes the caller.
        counts.replace(&devices(Some("a"), 3), devices(Some("a"), 4));
        counts.replace(&devices(Some("b"), 4), devices(None, 0));
        counts.replace(&devices(None, 5), devices(Some("c"), 5));
        assert_eq!((counts.total(), counts.of_caller("a"), counts.of_caller("c")), (9, 4, 5));
        counts.replace(&devices(Some("a"), 4), devices(Some("a"), 0));
        counts.replace(&devices(Some("c"), 5), nothing);
        assert_eq!((counts.total(), counts.by_caller.len()), (0, 0));
    }
}
