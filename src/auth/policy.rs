//! The policy: which callers may call which methods for which accounts.

use std::{collections::HashSet, sync::Arc};

use super::Caller;
use crate::identity::AccountName;

/// A method of the API.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Method {
    DownloadProfile,
    GetRequestStatus,
    WatchRequest,
}

impl Method {
    pub(crate) const ALL: [Self; 3] =
        [Self::DownloadProfile, Self::GetRequestStatus, Self::WatchRequest];

    /// Returns the name in the proto and in the policy.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::DownloadProfile => "DownloadProfile",
            Self::GetRequestStatus => "GetRequestStatus",
            Self::WatchRequest => "WatchRequest",
        }
    }

    /// Returns the method with this name.
    pub(crate) fn parse(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|method| method.name() == name)
    }
}

/// The policy. Clones share everything.
#[derive(Debug, Clone)]
pub(crate) struct Policy(Arc<[Rule]>);

/// An entry of the policy.
#[derive(Debug)]
pub(crate) struct Rule {
    callers: Vec<Pattern>,
    methods: HashSet<Method>,
    /// `None`: every account.
    accounts: Option<HashSet<AccountName>>,
}

/// The names of callers: one, or all with a prefix.
#[derive(Debug)]
pub(crate) enum Pattern {
    Name(String),
    Prefix(String),
}

/// Stands for every method or every account, and at the end of a caller's name for every rest.
pub(crate) const ANY: &str = "*";

impl Policy {
    /// Returns the policy with these entries. Without entries, `anonymous` may do everything, and
    /// nobody else anything.
    pub(crate) fn new(mut rules: Vec<Rule>) -> Self {
        if rules.is_empty() {
            let callers = vec![Pattern::Name(Caller::anonymous().name().to_owned())];
            rules.push(Rule { callers, methods: Method::ALL.into(), accounts: None });
        }
        Self(rules.into())
    }

    /// Whether the caller may call the method for at least one account.
    pub(crate) fn allows_method(&self, caller: &Caller, method: Method) -> bool {
        self.0.iter().any(|rule| rule.is_for(caller, method))
    }

    pub(crate) fn allows(&self, caller: &Caller, method: Method, account: &AccountName) -> bool {
        self.0.iter().any(|rule| {
            rule.is_for(caller, method)
                && rule.accounts.as_ref().is_none_or(|accounts| accounts.contains(account))
        })
    }
}

impl Rule {
    /// Returns the entry with these names, which the configuration has checked.
    pub(crate) fn new(callers: &[String], methods: &[String], accounts: &[String]) -> Self {
        let methods = if methods.iter().any(|method| method == ANY) {
            Method::ALL.into()
        } else {
            methods.iter().filter_map(|method| Method::parse(method)).collect()
        };
        let accounts = (!accounts.iter().any(|account| account == ANY)).then(|| {
            accounts.iter().filter_map(|account| AccountName::parse(account).ok()).collect()
        });
        Self { callers: callers.iter().map(|text| Pattern::new(text)).collect(), methods, accounts }
    }

    fn is_for(&self, caller: &Caller, method: Method) -> bool {
        self.methods.contains(&method)
            && self.callers.iter().any(|pattern| pattern.matches(caller.name()))
    }
}

impl Pattern {
    pub(crate) fn new(text: &str) -> Self {
        match text.strip_suffix(ANY) {
            Some(prefix) => Self::Prefix(prefix.to_owned()),
            None => Self::Name(text.to_owned()),
        }
    }

    pub(crate) fn matches(&self, name: &str) -> bool {
        match self {
            Self::Name(own) => own == name,
            Self::Prefix(prefix) => name.starts_with(prefix.as_str()),
        }
    }
}
