//! What to say while an operation goes on: one line per change of a step, made from the operation before and the one now.
//! Pure; who draws lines that move on a terminal is `crate::watch`.

use jiff::Timestamp;
use regent_proto::{coordinator::v1 as wire, types::v1 as types};

use super::{
    operation::{lasted, progress, step_lasted, step_name},
    units::{percent, span},
    words,
};

/// Lines for what has changed since `before`, oldest first.
///
/// A step in progress is spoken of again when its phase changes, at each tenth of its bytes, or of its entries while that total
/// is the only one that is known, or, while none is, at each doubling.
pub fn changes(before: Option<&wire::Operation>, current: &wire::Operation, now: Timestamp) -> Vec<String> {
    let mut lines = Vec::new();
    let count = current.steps.len();
    for (index, step) in current.steps.iter().enumerate() {
        let earlier = before.and_then(|before| before.steps.get(index));
        let changed =
            earlier.map_or_else(|| step.state() != wire::StepState::Pending, |earlier| earlier.state != step.state);
        let moved = step.state() == wire::StepState::Running
            && earlier.and_then(|step| step.progress.as_ref()).map(mark) != step.progress.as_ref().map(mark);
        if changed || moved {
            lines.push(format!("[{}] {}/{count} {}", elapsed(current, now), index + 1, step_line(step, now)));
        }
    }
    if before.is_some_and(|before| before.state != current.state) || (before.is_none() && lines.is_empty()) {
        match current.state() {
            wire::OperationState::Pending => {
                lines.push(format!("[{}] waits for another operation of the cluster", elapsed(current, now)));
            }
            wire::OperationState::Unwinding => {
                lines.push(format!("[{}] a step failed: what was done is being undone", elapsed(current, now)));
            }
            wire::OperationState::Running
            | wire::OperationState::Succeeded
            | wire::OperationState::Failed
            | wire::OperationState::Cancelled
            | wire::OperationState::Unspecified => {}
        }
    }
    lines
}

/// A step on a line: name, member, state, time, and how far it is.
pub fn step_line(step: &wire::Step, now: Timestamp) -> String {
    let mut line = format!("{} {}", step_name(step), words::step_state(step.state));
    match step.state() {
        wire::StepState::Running => {
            if let Some(far) = step.progress.as_ref().map(progress).filter(|text| !text.is_empty()) {
                line.push_str(": ");
                line.push_str(&far);
            }
        }
        wire::StepState::Succeeded | wire::StepState::Undone | wire::StepState::Failed => {
            if let Some(time) = step_lasted(step, now) {
                line.push_str(&format!(" in {}", span(time)));
            }
            if !step.error.is_empty() {
                line.push_str(&format!(": {}", step.error));
            }
        }
        wire::StepState::Pending | wire::StepState::Unspecified => {}
    }
    line
}

fn elapsed(operation: &wire::Operation, now: Timestamp) -> String {
    lasted(operation, now).map_or_else(|| "-".to_owned(), span)
}

/// What must differ for a step in progress to be spoken of again.
fn mark(progress: &types::Progress) -> (String, u64) {
    let far = match (progress.bytes_total, progress.entries_total) {
        (0, 0) => u64::from(u64::BITS - progress.bytes_done.leading_zeros()),
        (0, total) => percent(progress.entries_done, total) / 10,
        (total, _) => percent(progress.bytes_done, total) / 10,
    };
    (progress.phase.clone(), far)
}
