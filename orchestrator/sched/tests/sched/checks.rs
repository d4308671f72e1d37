//! What must hold for the effects of any event.

use proptest::prelude::*;
use std::collections::BTreeSet;
use taskvec_model::{
    id::{AttemptRef, WorkerId},
    schedule::{Change, SlotRef},
    state::WorkerState,
};
use taskvec_sched::{Effect, Event, Message, State, Verdict};

/// The attempt that the event ends, if it does, and who says so.
pub fn outcome_of(event: &Event) -> Option<(WorkerId, AttemptRef)> {
    match event {
        Event::Succeeded { worker, attempt }
        | Event::Failed { worker, attempt, .. }
        | Event::Released { worker, attempt } => Some((*worker, *attempt)),
        _ => None,
    }
}

/// One answer to an outcome; and to one that is not current, a refusal and nothing else.
pub fn check_answer(
    effects: &[Effect],
    worker: WorkerId,
    attempt: AttemptRef,
    current: bool,
) -> Result<(), TestCaseError> {
    let answers: Vec<&Effect> = effects.iter().filter(|e| matches!(e, Effect::Send(Message::Answer { .. }))).collect();
    if current {
        prop_assert_eq!(answers, [&Effect::Send(Message::Answer { worker, attempt, verdict: Verdict::Accepted })]);
    } else {
        let refused = matches!(effects, [Effect::Send(Message::Answer { verdict: Verdict::Refused(_), .. })]);
        prop_assert!(refused, "a late outcome has these effects: {:?}", effects);
    }
    Ok(())
}

/// An assignment follows its starts, which are in one slot, and goes to a worker that is there.
pub fn check_messages(effects: &[Effect], state: &State) -> Result<(), TestCaseError> {
    for (i, effect) in effects.iter().enumerate() {
        if let Effect::Send(Message::Assign { worker, attempts }) = effect {
            let started = |attempt: &AttemptRef| {
                effects[..i].iter().find_map(|effect| match effect {
                    Effect::Persist(Change::Start { attempt: a, slot }) if a == attempt => Some(*slot),
                    _ => None,
                })
            };
            let slots: BTreeSet<Option<SlotRef>> = attempts.iter().map(started).collect();
            prop_assert!(slots.len() == 1, "{:?} is not one pack: {:?}", effect, slots);
            prop_assert!(
                slots.iter().all(|slot| slot.is_some_and(|s| s.worker == *worker)),
                "{:?} was sent before it was persisted",
                effect
            );
            prop_assert_eq!(state.worker_state(*worker), Some(WorkerState::Connected));
            for attempt in attempts {
                prop_assert_eq!(state.running(attempt.job), Some((*attempt, *worker)));
            }
        }
    }
    Ok(())
}
