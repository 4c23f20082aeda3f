//! How a replica catches up with an upstream: it goes on from where it was, or the engine copies everything to it. The engine decides by
//! what both say of themselves, so that the reason can be told beforehand.

use super::{info::Info, position::end_of};

/// How a replica has caught up.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum CaughtUp {
    /// The stream went on from its place (a partial resynchronization).
    FromItsPlace,
    /// Everything was copied to it (a full synchronization), for this reason.
    ByACopy(String),
}

// === impl CaughtUp ===

impl CaughtUp {
    /// How one that says `own` will catch up with one that says `theirs`: as in `masterTryPartialResynchronization` of the engine.
    pub(super) fn foreseen(own: &Info, theirs: &Info) -> Self {
        why_everything(own, theirs).map_or(Self::FromItsPlace, Self::ByACopy)
    }

    /// The same when a copy was seen after all.
    pub(super) fn or_by_a_copy(self, seen: bool) -> Self {
        match self {
            Self::FromItsPlace if seen => Self::ByACopy("its upstream no longer had what comes next".to_owned()),
            foreseen => foreseen,
        }
    }

    /// For people.
    pub(super) fn sentence(&self) -> String {
        match self {
            Self::FromItsPlace => "it went on from where it was".to_owned(),
            Self::ByACopy(why) => format!("everything was copied to it: {why}"),
        }
    }
}

fn why_everything(own: &Info, theirs: &Info) -> Option<String> {
    let (Some(id), Some(offset)) = (own.id(), own.offset()) else {
        return Some("it had no place in a history yet".to_owned());
    };
    let wanted = end_of(offset);
    if theirs.id() != Some(id) {
        match theirs.former_id() {
            Some((former, last)) if former == id && wanted <= end_of(last) => {}
            Some((former, last)) if former == id => {
                return Some(format!("it had come to {offset}, and its upstream left that history at {last}"));
            }
            Some(_) | None => return Some("it was of another history than its upstream".to_owned()),
        }
    }
    let kept = theirs.number("repl_backlog_first_byte_offset").zip(theirs.number("repl_backlog_histlen"));
    let Some((first, length)) = kept.filter(|_| theirs.remembers()) else {
        return Some("its upstream remembered nothing of its history".to_owned());
    };
    if !(first..=first + length).contains(&wanted) {
        let last = (first + length).saturating_sub(1);
        return Some(format!("it had come to {offset}, and its upstream remembered {first} to {last} only"));
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn replica(id: &str, offset: u64) -> Info {
        Info::parse(&format!("role:slave\r\nmaster_replid:{id}\r\nslave_repl_offset:{offset}\r\n"))
    }

    fn upstream(change: impl Fn(String) -> String) -> Info {
        Info::parse(&change(
            "role:master\r\nmaster_replid:bb\r\nmaster_replid2:aa\r\nsecond_repl_offset:101\r\n\
             repl_backlog_active:1\r\nrepl_backlog_first_byte_offset:50\r\nrepl_backlog_histlen:151\r\n"
                .to_owned(),
        ))
    }

    fn why(own: &Info, theirs: &Info) -> String {
        match CaughtUp::foreseen(own, theirs) {
            CaughtUp::FromItsPlace => String::new(),
            CaughtUp::ByACopy(why) => why,
        }
    }

    #[test]
    fn it_goes_on_wherever_its_upstream_remembers_what_comes_next() {
        let theirs = upstream(|text| text);
        for own in [replica("bb", 49), replica("bb", 200), replica("aa", 100), replica("aa", 49)] {
            assert_eq!(why(&own, &theirs), "", "{own:?}");
        }
    }

    #[test]
    fn everything_is_copied_for_a_reason() {
        let theirs = upstream(|text| text);
        assert!(why(&replica("bb", 48), &theirs).contains("50 to 200 only"));
        assert!(why(&replica("bb", 201), &theirs).contains("had come to 201"));
        assert!(why(&replica("aa", 101), &theirs).contains("left that history at 100"));
        assert!(why(&replica("cc", 60), &theirs).contains("another history"));
        assert!(why(&replica("00", 0), &theirs).contains("no place"), "the engine writes zeros where there is no id");
        let forgetful = upstream(|text| text.replace("active:1", "active:0"));
        assert!(why(&replica("bb", 60), &forgetful).contains("remembered nothing"));
    }

    #[test]
    fn what_was_seen_counts_more_than_what_was_foreseen() {
        assert_eq!(CaughtUp::FromItsPlace.or_by_a_copy(false).sentence(), "it went on from where it was");
        assert!(CaughtUp::FromItsPlace.or_by_a_copy(true).sentence().contains("no longer had"));
        let foreseen = CaughtUp::ByACopy("a reason".to_owned());
        assert_eq!(foreseen.clone().or_by_a_copy(true), foreseen);
    }
}
