//! The README keeps step with the code: the table of reasons is made from it, and what it names exists.
//!
//! `REGENT_UPDATE=1 cargo test -p regent-tests --test tidy readme` writes the table anew.

use std::fs;

use regent_common::error::Reason;

use super::root;

const BEGIN: &str = "<!-- reasons: made by tests/tests/tidy/readme.rs -->\n";
const END: &str = "<!-- end of reasons -->\n";

fn table() -> String {
    let mut lines =
        vec!["| reason | code | meaning | what to do | try again |".to_owned(), "|---|---|---|---|---|".to_owned()];
    for reason in Reason::ALL {
        lines.push(format!(
            "| `{reason}` | {:?} | {} | {} | {} |",
            reason.code(),
            reason.meaning(),
            reason.what_to_do(),
            if reason.retryable() { "yes" } else { "no" }
        ));
    }
    lines.join("\n") + "\n"
}

#[test]
fn the_table_of_reasons_is_that_of_the_code() {
    let path = root().join("README.md");
    let readme = fs::read_to_string(&path).unwrap();
    let (before, rest) = readme.split_once(BEGIN).expect("README.md has the mark where the table begins");
    let (found, after) = rest.split_once(END).expect("README.md has the mark where the table ends");
    if std::env::var_os("REGENT_UPDATE").is_some() {
        fs::write(&path, format!("{before}{BEGIN}{}{END}{after}", table())).unwrap();
        return;
    }
    assert_eq!(found, table(), "run it with REGENT_UPDATE=1");
}

#[test]
fn what_the_readme_names_exists() {
    let readme = fs::read_to_string(root().join("README.md")).unwrap();
    let links = readme.split("](").skip(1).filter_map(|rest| rest.split_once(')').map(|(target, _)| target));
    let inner: Vec<_> = links.filter(|target| !target.starts_with('#') && !target.contains("://")).collect();
    let missing: Vec<_> =
        inner.iter().filter(|target| !root().join(target).exists()).map(ToString::to_string).collect();
    super::no_complaints("a link of README.md leads nowhere", &missing);
}
