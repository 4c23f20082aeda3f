//! `force-primary`: makes this member the primary while no coordinator can be brought back. The last resort.
//!
//! The running agent decides and does it ([`crate::force`]); this only carries the person's words there, and the answer back.

use std::{io, time::Duration};

use super::{Common, Failure, Output, output};
use crate::{
    force::{Answer, Outcome, Words},
    local,
};

/// How long it may take: asking everybody, recovering, promoting.
const ANSWER_WITHIN: Duration = Duration::from_secs(400);

/// What a person has to know before.
pub(super) const LONG_ABOUT: &str = "\
Makes this node's member the primary while no coordinator can be brought back: the last resort, for root. Nothing but your \
word makes sure that the others are off.

Switch every other member's machine off first, and keep it off until a coordinator is back and \"regentctl cluster show\" names \
this member as the primary. The coordinator then adopts it and brings the others back as its replicas; what only they had is \
reported as a divergence.

Refused while a coordinator is connected or answers; while this member's promise to the primary, or a lease that anybody knows \
of, stands; while a member that answers knows a higher epoch; and while one that you name as off answers in any way. A refusal \
changes nothing. If it breaks off in the middle, say it again: it goes on.";

/// Arguments of `force-primary`.
#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    #[command(flatten)]
    common: Common,
    /// Name of this node's member, as a confirmation
    #[arg(long, value_name = "MEMBER", required_unless_present = "dry_run")]
    confirm: Option<String>,
    /// Another member, or its node, that is off; to be given for every one
    #[arg(long, value_name = "NODE")]
    confirm_off: Vec<String>,
    /// Only show what would be done, and what would be refused
    #[arg(long)]
    dry_run: bool,
    /// Form of what is shown
    #[arg(long, value_enum, default_value_t)]
    output: Output,
}

pub(super) fn run(arguments: &Arguments) -> Result<(), Failure> {
    let config = arguments.common.load()?;
    let words = Words {
        confirm: arguments.confirm.clone(),
        confirm_off: arguments.confirm_off.clone(),
        dry_run: arguments.dry_run,
    };
    let answer = ask(&config, &words)?;
    match arguments.output {
        Output::Json => output::result(serde_json::to_string_pretty(&answer).expect("an answer has only text keys")),
        Output::Table => {
            for (member, said) in &answer.others {
                output::note(format!("{member} {said}"));
            }
        }
    }
    let said = sentence(&answer)?;
    if arguments.output == Output::Table {
        output::result(said);
    }
    Ok(())
}

fn ask(config: &crate::config::Config, words: &Words) -> Result<Answer, Failure> {
    let socket = config.status_socket();
    let reply = local::order_force_primary(&socket, words, ANSWER_WITHIN).map_err(|error| unheard(&error))?;
    match reply.code {
        200 => serde_json::from_str(&reply.body)
            .map_err(|error| Failure::new(Failure::FAILED, format!("the agent's answer cannot be read: {error}"))),
        403 => Err(Failure::new(Failure::DENIED, format!("{}; nothing was changed", reply.body))),
        404 => {
            let older =
                "the running agent is older than this program and does not know this: restart it; nothing was changed";
            Err(Failure::new(Failure::REFUSED, older))
        }
        code => Err(Failure::new(Failure::FAILED, format!("the agent answered with {code}: {}", reply.body))),
    }
}

fn unheard(error: &io::Error) -> Failure {
    match error.kind() {
        io::ErrorKind::PermissionDenied => {
            Failure::new(Failure::DENIED, "only root of this machine may say this; nothing was changed")
        }
        io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => {
            let message =
                "the agent does not run, and only the running agent can do this: start it; nothing was changed";
            Failure::new(Failure::UNREACHABLE, message)
        }
        io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => Failure::new(
            Failure::UNREACHABLE,
            format!(
                "the agent has no answer within {} s; it may still be at it: see \"regent-agent status\" before you say it again",
                ANSWER_WITHIN.as_secs()
            ),
        ),
        _ => Failure::new(
            Failure::UNREACHABLE,
            format!("the agent broke off ({error}): see \"regent-agent status\" before you say it again"),
        ),
    }
}

/// What came of it, for people; a failure where it is one.
fn sentence(answer: &Answer) -> Result<String, Failure> {
    let (member, epoch) = match (&answer.member, answer.epoch) {
        (Some(member), Some(epoch)) => (member.to_string(), epoch.to_string()),
        (Some(member), None) => (member.to_string(), "-".to_owned()),
        (None, _) => ("this node".to_owned(), "-".to_owned()),
    };
    let off: Vec<_> = answer.confirmed_off.iter().map(ToString::to_string).collect();
    let keep = if off.is_empty() {
        "start a coordinator as soon as you can: it adopts this member".to_owned()
    } else {
        format!(
            "keep {} off until a coordinator is back and \"regentctl cluster show\" names {member} as the primary",
            off.join(", ")
        )
    };
    match answer.outcome {
        Outcome::Forced => Ok(format!("{member} is the primary of epoch {epoch}, alone; {keep}")),
        Outcome::AlreadyForced => {
            Ok(format!("{member} is the forced primary of epoch {epoch} already; nothing was changed; {keep}"))
        }
        Outcome::WouldForce => Ok(format!("{member} would become the primary of epoch {epoch}; nothing was changed")),
        Outcome::Refused => {
            let reasons =
                answer.refusals.iter().map(|refused| format!("\n  - {}", refused.message)).collect::<String>();
            let usage = answer.refusals.iter().all(|refused| refused.usage);
            let code = if usage { Failure::USAGE } else { Failure::REFUSED };
            Err(Failure::new(code, format!("refused; nothing was changed:{reasons}")))
        }
        Outcome::Failed => Err(Failure::new(
            Failure::FAILED,
            format!(
                "it was begun and did not come to its end: {}; mend that and say it again, it goes on; {keep}",
                answer.problem
            ),
        )),
    }
}

#[cfg(test)]
mod tests {
    use regent_common::ids::Epoch;

    use super::*;
    use crate::force::Refused;

    fn answer(outcome: Outcome) -> Answer {
        Answer {
            outcome,
            cluster: Some("db".parse().unwrap()),
            member: Some("db2".parse().unwrap()),
            epoch: Some(Epoch(1001)),
            confirmed_off: vec!["db1".parse().unwrap(), "db3".parse().unwrap()],
            refusals: Vec::new(),
            problem: String::new(),
            others: Default::default(),
        }
    }

    fn refused(usage: &[bool]) -> Failure {
        let refusal = |usage: &bool| Refused { reason: "r".to_owned(), message: "because".to_owned(), usage: *usage };
        let answer = Answer { refusals: usage.iter().map(refusal).collect(), ..answer(Outcome::Refused) };
        sentence(&answer).unwrap_err()
    }

    #[test]
    fn what_was_done_says_what_to_keep_off() {
        let said = sentence(&answer(Outcome::Forced)).unwrap();
        assert!(said.starts_with("db2 is the primary of epoch 1001, alone; keep db1, db3 off until"), "{said}");
        assert!(sentence(&answer(Outcome::WouldForce)).unwrap().ends_with("nothing was changed"));
    }

    #[test]
    fn the_exit_code_tells_a_wrong_command_from_a_refusal_and_a_failure() {
        assert_eq!(refused(&[true, true]).code, Failure::USAGE);
        let mixed = refused(&[true, false]);
        assert_eq!(mixed.code, Failure::REFUSED);
        assert_eq!(mixed.message, "refused; nothing was changed:\n  - because\n  - because");
        let failed = sentence(&answer(Outcome::Failed)).unwrap_err();
        assert_eq!(failed.code, Failure::FAILED);
        assert!(failed.message.contains("say it again"), "{}", failed.message);
    }

    #[test]
    fn an_agent_that_does_not_run_and_one_that_may_not_be_asked_are_told_apart() {
        assert_eq!(unheard(&io::Error::from(io::ErrorKind::NotFound)).code, Failure::UNREACHABLE);
        assert_eq!(unheard(&io::Error::from(io::ErrorKind::PermissionDenied)).code, Failure::DENIED);
    }
}
