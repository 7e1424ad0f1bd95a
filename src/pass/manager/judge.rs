//! The judgement at the end of a pipeline: whether a matrix stays as its passes left it.

use super::choose::Chosen;
use super::schedule::Schedule;
use crate::pass::{Pass, Residual};

/// Why the source is kept although passes ran, if it is.
///
/// A residual that is stored was asked for, and is as large as the source by itself; such a matrix
/// is not judged. One whose passes found nothing to take is left alone rather than made zero.
pub(super) fn verdict(
    schedule: &Schedule,
    chosen: &Chosen,
    bytes: u64,
    source: u64,
) -> Option<String> {
    if chosen.keep.is_some() {
        return None;
    }
    if bytes > source {
        return Some(format!(
            "its terms take {bytes} bytes, the source {source}: kept as it was"
        ));
    }
    let drops = |step: &usize| matches!(&schedule.steps[*step].pass, Pass::Matrix(p) if p.residual() == Residual::DropNow);
    let nothing = bytes == 0 && !chosen.steps.iter().any(drops);
    nothing.then(|| "no pass took anything out of it: kept as it was".to_string())
}
