//! The problems of a configuration.

use std::{collections::HashSet, fmt};

/// One line per problem: `section.key: what is wrong and what to do`.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Problems(pub(super) Vec<String>);

impl Problems {
    pub(super) fn one(problem: impl Into<String>) -> Self {
        Self(vec![problem.into()])
    }

    /// Adds a problem, unless the same line is there already.
    pub(super) fn push(&mut self, problem: impl Into<String>) {
        let problem = problem.into();
        if !self.0.contains(&problem) {
            self.0.push(problem);
        }
    }

    /// Adds a problem about a key if the check failed.
    pub(super) fn check<T>(&mut self, key: &str, checked: Result<T, String>) {
        if let Err(what) = checked {
            self.push(format!("{key}: {what}"));
        }
    }

    /// Adds the problems of keys that have none yet. A key whose value cannot be read keeps its
    /// default, so a later problem of that key would be about the default.
    pub(super) fn append(&mut self, others: Self) {
        let known: HashSet<_> = self.0.iter().map(|problem| key(problem).to_owned()).collect();
        self.0.extend(others.0.into_iter().filter(|problem| !known.contains(key(problem))));
    }

    /// Returns the problems, one line each.
    pub fn iter(&self) -> impl Iterator<Item = &str> {
        self.0.iter().map(String::as_str)
    }
}

/// Returns the key that a problem is about: the first word of the problem. In a `[[credentials]]`
/// section it is the first three words, without an index into a list.
fn key(problem: &str) -> &str {
    let words = if problem.starts_with("credentials #") { 3 } else { 1 };
    let ends = problem.match_indices([' ', ':', '[']).map(|(at, _)| at);
    // A colon and the space after it count as one end.
    let mut ends = ends.filter(|&at| !problem[..at].ends_with(':'));
    ends.nth(words - 1).map_or(problem, |end| &problem[..end])
}

impl std::error::Error for Problems {}

impl fmt::Display for Problems {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.join("\n"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_problem_is_about() {
        for (problem, about) in [
            ("grpc.listen: is wrong", "grpc.listen"),
            ("credentials: there are none", "credentials"),
            ("credentials #12: key_file: /a b: is empty", "credentials #12: key_file"),
            ("credentials #1: accounts is missing", "credentials #1: accounts"),
            ("credentials #1: accounts[0]: must be", "credentials #1: accounts"),
            ("broken", "broken"),
        ] {
            assert_eq!(key(problem), about);
        }
    }
}
