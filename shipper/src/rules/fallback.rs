//! What becomes of options that can't work, of a container that runs already.
//!
//! Nobody can change the options of a container that exists. `docker run` checks them, but not all of
//! them can be checked by every version and without a shipper. So an option that turns out wrong here
//! must hold no line for ever: it is left out, its lines are shipped without what it asked for, and each
//! record says so. Options that say where records go, and by whose right, are another matter: to guess
//! there would show lines to somebody else.

use std::collections::HashMap;

/// Options that say where records go and by whose right.
const TARGETS: [&str; 5] = [
    "endpoint",
    "topic_id",
    "credentials",
    "secret_id",
    "secret_key",
];

/// Begins a sentence about one option.
const OF_ONE: &str = "log-opt ";

/// Takes out the options that the faults are about. Returns false, with nothing changed, if one of them
/// says where records go, or if none can be found.
pub fn leave_out(log_opts: &mut HashMap<String, String>, faults: &[String]) -> bool {
    let at_fault = |name: &str| faults.iter().any(|fault| is_about(fault, name));
    if TARGETS.into_iter().any(at_fault) {
        return false;
    }
    let count = log_opts.len();
    log_opts.retain(|name, _| !at_fault(name));
    log_opts.len() < count
}

/// Returns whether a sentence is about an option: the one that it begins with, or any that it names.
fn is_about(fault: &str, name: &str) -> bool {
    match fault.strip_prefix(OF_ONE) {
        Some(rest) => {
            let rest = rest.strip_prefix(name);
            rest.is_some_and(|rest| rest.starts_with(['=', ':']))
        }
        None => fault.split([' ', ',', ';', '.']).any(|word| word == name),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(faults: &[&str], left: Option<&[&str]>) {
        let names = ["filter-regex", "filter", "env", "topic_id", "json"];
        let all = names.map(|name| (name.to_owned(), "x".to_owned()));
        let mut log_opts = HashMap::from(all.clone());
        let faults: Vec<String> = faults.iter().map(|&fault| fault.to_owned()).collect();
        assert_eq!(leave_out(&mut log_opts, &faults), left.is_some());
        let mut names: Vec<_> = log_opts.keys().map(String::as_str).collect();
        names.sort_unstable();
        let mut expected = left.unwrap_or(&names).to_vec();
        expected.sort_unstable();
        assert_eq!(names, expected);
        assert!(left.is_some() || log_opts == HashMap::from(all));
    }

    #[test]
    fn options_at_fault_are_left_out_but_never_those_of_the_target() {
        let rest = ["filter", "env", "topic_id", "json"];
        check(&["log-opt filter-regex=[: must be"], Some(&rest));
        check(
            &["log-opt filter: a rule of env"],
            Some(&["filter-regex", "env", "topic_id", "json"]),
        );
        let many =
            "the attributes have 9 bytes, the limit is 8; ask for less with labels, env and tag";
        check(
            &[many],
            Some(&["filter-regex", "filter", "topic_id", "json"]),
        );
        check(&["log-opt topic_id: is missing"], None);
        check(&["log-opt json=x: must be", "log-opt topic_id=x: no"], None);
        check(&["something else"], None);
        check(&[], None);
    }
}
