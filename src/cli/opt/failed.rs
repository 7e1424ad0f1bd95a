//! What a run that failed leaves behind, and what is said of it.

use crate::cli::args::OptArgs;
use crate::cli::{Exit, Failure, budget, errors};
use crate::export::hlrc::{FolderError, partial_path};
use crate::opt::{OptError, Output};
use crate::pass::manager::RunError;
use crate::report::human;
use crate::store::JOURNAL;

/// Removes what a failed run leaves, unless it can be gone on from: a pass that failed would fail again,
/// but an interrupt ends and a disk gets space.
pub(super) fn after(args: &OptArgs, output: &Output, error: &OptError) -> Failure {
    let mut failure = errors::job(error);
    let partial = match output {
        Output::Folder(path) | Output::Onnx(path, _) => partial_path(path),
        Output::Text(path) => partial_path(&path.with_extension("weights")),
        Output::Shown => return failure,
    };
    let writing = matches!(
        error,
        OptError::Sink(_)
            | OptError::Run(RunError::Sink(_))
            | OptError::Folder(FolderError::Io { .. })
    );
    // The first line is the run's fingerprint, each further one a finished tensor.
    let journal = std::fs::read(partial.join(JOURNAL)).unwrap_or_default();
    let finished = journal
        .iter()
        .filter(|&&byte| byte == b'\n')
        .count()
        .saturating_sub(1);
    // A target measures and chooses anew, so that there is nothing that its output could be gone on with.
    let anew = budget::is_target(args) || args.sequential;
    if anew && (writing || failure.exit == Exit::Interrupted) && is_own(error) {
        if failure.exit == Exit::Interrupted {
            let option = match args.sequential {
                true => "--sequential",
                false => "a target",
            };
            failure.help = format!("the same command begins anew: {option} has no --resume");
        }
        // As below.
        let _ = std::fs::remove_dir_all(partial);
    } else if writing && finished > 0 {
        let done = human::plural(finished, "tensor");
        failure.help = format!(
            "{done} of it are in {}; --resume goes on from there",
            partial.display()
        );
    } else if failure.exit != Exit::Interrupted && !args.resume && is_own(error) {
        // The failure is what is told; a folder that stays has a name that says what it is.
        let _ = std::fs::remove_dir_all(partial);
    }
    failure
}

/// Whether the partial folder is this run's, and not one that it found there and left alone.
fn is_own(error: &OptError) -> bool {
    !matches!(
        error,
        OptError::Folder(FolderError::Busy(_) | FolderError::NothingToResume(_))
    )
}
